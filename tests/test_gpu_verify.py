"""tools/gpu_verify.py with programs that only pretend: what it reports, that it ends in time."""

from __future__ import annotations

import importlib.util
import json
import os
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from conftest import ROOT

SCRIPT = ROOT / "tools" / "gpu_verify.sh"
DIGESTS = ROOT / "tests" / "digests.txt"
LINES = len(DIGESTS.read_text().splitlines())
STEPS = [
    "build",
    "build of digest_cuda",
    "build of gpu_small",
    "build of gpu_planted",
    "digests from C++",
    "digests from C++, unaligned",
    "small inputs from C++",
    "GPU tests",
    "compute-sanitizer memcheck",
    "compute-sanitizer racecheck",
    "compute-sanitizer initcheck",
    "compute-sanitizer synccheck",
    "Caffe",
    "benchmark",
    "targets",
]

ROW = {"name": "forward", "aims": [{"text": "93% of the limit", "value": 0.95, "holds": True}]}
MISSED = {"name": "both", "aims": [{"text": "2x PyTorch", "value": 1.5, "holds": False}]}
UNKNOWN = {"name": "back", "aims": [{"text": "2x PyTorch", "value": None, "holds": None}]}

# What the programs do; a test replaces some of it. FAKE is the folder with these texts in files.
BEHAVIOUR = {
    "nvidia-smi": "echo 'NVIDIA H999, 580.1, 9.0, 100 MiB'",
    "nvcc-version": "echo 'Cuda compilation tools, release 13.0, V13.0.1'",
    "nvcc": ":",
    "pip": ":",
    "pytest": 'tests=\'<testcase name="a"/><testcase name="b"/>\'',
    "bench": f"rows '{json.dumps([ROW, UNKNOWN])}'",
    "digest_cuda": f"cat '{DIGESTS}'",
    "gpu_small": "echo 'ok 176'",
    "sanitizer": "clean",
    "planted": "echo 'ERROR SUMMARY: 1 error'; exit 97",
}

NVCC = """
[ "$1" = --version ] && { . "$FAKE/nvcc-version"; exit; }
. "$FAKE/nvcc"
while [ $# -gt 1 ]; do [ "$1" = -o ] && out=$2; shift; done
[ "$1" = -o ] || [ -n "$out" ] || exit 1
printf '#!/bin/sh\\n. "$FAKE/%s"\\n' "$(basename "$out")" > "$out"
chmod +x "$out"
"""

PYTHON = """
[ "$1" = --version ] && { echo Python 3.99; exit; }
echo "PYTHONPATH=$PYTHONPATH"
case "$2" in
pip) . "$FAKE/pip" ;;
pytest)
  for a in "$@"; do case "$a" in --junitxml=*) file=${a#*=};; esac; done
  . "$FAKE/pytest"
  [ -n "$tests" ] && echo "<testsuites><testsuite>$tests</testsuite></testsuites>" > "$file"
  [ -z "$status" ] || exit "$status" ;;
bench.gpu)
  while [ $# -gt 1 ]; do [ "$1" = --json ] && file=$2; shift; done
  rows() { echo "{\\"rows\\": $1}" > "$file"; }
  . "$FAKE/bench" ;;
*) exit 1 ;;
esac
"""

SANITIZER = """
tool=$2
shift 4
program=$1
clean() {
  "$program"
  [ "$tool" = racecheck ] && echo "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"
  [ "$tool" = racecheck ] || echo "========= ERROR SUMMARY: 0 errors"
}
case "$program" in
*gpu_planted) . "$FAKE/planted" ;;
*) . "$FAKE/sanitizer" ;;
esac
"""


class Run:
    """One run of the script: its exit status, what it printed, its report."""

    def __init__(
        self, folder: Path, done: subprocess.CompletedProcess[str], seconds: float
    ) -> None:
        self.status = done.returncode
        self.text = done.stdout + done.stderr
        self.seconds = seconds
        self.report: dict[str, Any] = json.loads((folder / "out" / "report.json").read_text())
        self.markdown = (folder / "out" / "report.md").read_text()
        self.log = (folder / "out" / "log.txt").read_text()

    def step(self, name: str) -> dict[str, Any]:
        (step,) = (step for step in self.report["steps"] if step["name"] == name)
        return step

    def statuses(self) -> dict[str, str]:
        return {step["name"]: step["status"] for step in self.report["steps"]}


@pytest.fixture
def verify(tmp_path: Path) -> Callable[..., Run]:
    """Runs the script where the programs do as BEHAVIOUR says, with changes."""

    def program(name: str, text: str) -> None:
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def run(
        arguments: list[str] | None = None,
        environ: dict[str, str] | None = None,
        without: tuple[str, ...] = (),
        **changes: str,
    ) -> Run:
        (tmp_path / "bin").mkdir(exist_ok=True)
        for name, text in BEHAVIOUR.items():
            (tmp_path / name).write_text(changes.get(name.replace("-", "_"), text) + "\n")
        program("nvcc", NVCC)
        program("python-fake", PYTHON)
        program("nvidia-smi", '. "$FAKE/nvidia-smi"')
        program("compute-sanitizer", SANITIZER)
        for name in without:
            (tmp_path / "bin" / name).unlink()
        command = [sys.executable, str(ROOT / "tools" / "gpu_verify.py"), str(tmp_path / "out")]
        start = time.monotonic()
        done = subprocess.run(
            [*command, "--work", str(tmp_path / "work"), *(arguments or [])],
            env={
                "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
                "FAKE": str(tmp_path),
                "PYTHON": str(tmp_path / "bin" / "python-fake"),
                **(environ or {}),
            },
            capture_output=True,
            text=True,
        )
        return Run(tmp_path, done, time.monotonic() - start)

    return run


def test_everything_passes(verify: Callable[..., Run]) -> None:
    run = verify()
    assert run.status == 0, run.text
    expected = dict.fromkeys(STEPS, "passed") | {"Caffe": "not run"}
    assert run.statuses() == expected
    assert list(run.statuses()) == STEPS
    report = run.report
    assert report["verified"] is True
    assert report["counts"] == {"passed": 14, "failed": 0, "not run": 1}
    assert report["machine"]["gpus"] == [
        {
            "name": "NVIDIA H999",
            "driver": "580.1",
            "compute_capability": "9.0",
            "memory": "100 MiB",
        }
    ]
    assert report["machine"]["nvcc"] == "13.0"
    assert report["machine"]["python"] == "Python 3.99"
    assert run.step("GPU tests")["detail"] == "2 passed, 0 failed, 0 skipped"
    assert run.step("digests from C++")["figures"]["lines"] == LINES
    assert run.step("targets")["detail"] == "1 met, 0 missed, 1 not judged"
    assert "CAFFE_CUDA" in run.step("Caffe")["detail"]
    assert run.markdown.startswith("# GPU report: everything that ran passed")
    assert "NVIDIA H999" in run.markdown
    for name in STEPS:
        assert f"| {name} | {expected[name]} |" in run.markdown
    # The package under test is the one that was built, for this machine alone, without the network.
    build = run.step("build")["command"]
    for word in (
        "--no-index",
        "--no-build-isolation",
        "--no-deps",
        "SIGMOID_CE_CUDA=ON",
        "=native",
    ):
        assert word in build
    assert "work/site" in run.log


def test_the_launcher_runs_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(SCRIPT), "--help"],
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "OUTDIR" in done.stdout
    assert os.access(SCRIPT, os.X_OK)


@pytest.mark.parametrize(
    ("without", "changes", "reason"),
    [
        (("nvidia-smi",), {}, "no GPU: nvidia-smi"),
        ((), {"nvidia_smi": "echo 'No devices were found'; exit 6"}, "No devices were found"),
        ((), {"nvidia_smi": ":"}, "no GPU"),
        (("nvcc",), {}, "no CUDA compiler"),
    ],
)
def test_a_machine_that_can_verify_nothing(
    verify: Callable[..., Run], without: tuple[str, ...], changes: dict[str, str], reason: str
) -> None:
    run = verify(without=without, **changes)
    assert run.status == 3
    assert reason in run.report["reason"]
    assert run.report["verified"] is None
    assert run.report["steps"] == []
    assert run.markdown.startswith("# GPU report: not verified")
    assert reason in run.markdown
    assert "passed |" not in run.markdown


def test_a_failing_build_blocks_what_needs_it(verify: Callable[..., Run]) -> None:
    run = verify(pip="echo 'nvcc fatal: no such thing'; exit 5")
    assert run.status == 1
    step = run.step("build")
    assert step["status"] == "failed"
    assert step["detail"] == "exit status 5: nvcc fatal: no such thing"
    assert run.step("GPU tests")["status"] == "not run"
    assert run.step("GPU tests")["detail"] == "'build' did not pass"
    assert run.step("benchmark")["status"] == "not run"
    assert run.step("targets")["status"] == "not run"
    # What does not need it goes on.
    assert run.step("build of gpu_planted")["status"] == "passed"
    assert run.report["verified"] is False


@pytest.mark.parametrize(
    ("changes", "name", "detail"),
    [
        ({"digest_cuda": f"head -600 '{DIGESTS}'"}, "digests from C++", f"{LINES - 600} of"),
        (
            {"digest_cuda": f"sed '1s/.$/x/' '{DIGESTS}'"},
            "digests from C++",
            f"1 of {LINES} lines",
        ),
        (
            {"digest_cuda": f"cat '{DIGESTS}'; echo x 1"},
            "digests from C++",
            "0 of",
        ),
        ({"digest_cuda": "exit 0"}, "digests from C++", f"{LINES} of {LINES}"),
        ({"gpu_small": "echo 'scores 7: another sum'; exit 1"}, "small inputs from C++", "another"),
        ({"nvcc": "exit 2"}, "build of gpu_small", "exit status 2"),
        (
            {
                "pytest": 'tests=\'<testcase name="a"/><testcase name="b"><failure message="no"/>'
                "</testcase>'; status=1"
            },
            "GPU tests",
            "1 passed, 1 failed",
        ),
        (
            {"pytest": 'tests=\'<testcase name="a"><error message="no"/></testcase>\'; status=1'},
            "GPU tests",
            "0 passed, 1 failed",
        ),
        # All skipped is not passed; nor is a pytest that ends without results, or with status 2.
        (
            {"pytest": 'tests=\'<testcase name="a"><skipped message="no GPU"/></testcase>\''},
            "GPU tests",
            "0 passed, 0 failed, 1 skipped",
        ),
        ({"pytest": "tests=; echo broken; status=4"}, "GPU tests", "exit status 4: broken"),
        ({"pytest": "tests="}, "GPU tests", "no results"),
        ({"pytest": "tests='<testcase name=\"a\"/>'; status=2"}, "GPU tests", "1 passed, 0 failed"),
        ({"bench": "echo 'wrong result'; exit 1"}, "benchmark", "exit status 1: wrong result"),
        ({"bench": f"rows '{json.dumps([ROW, MISSED])}'"}, "targets", "1 met, 1 missed"),
    ],
)
def test_failures_are_failures(
    verify: Callable[..., Run], changes: dict[str, str], name: str, detail: str
) -> None:
    run = verify(**changes)
    assert run.status == 1
    step = run.step(name)
    assert step["status"] == "failed"
    assert detail in step["detail"]
    assert run.report["verified"] is False
    assert run.markdown.startswith("# GPU report: something failed")
    # The steps after it ran.
    assert list(run.statuses()) == STEPS


def test_reasons_of_skips_and_failures_are_in_the_report(verify: Callable[..., Run]) -> None:
    cases = (
        '<testcase name="a"/>'
        '<testcase name="b"><skipped message="CuPy sees no GPU"/></testcase>'
        '<testcase name="c"><failure message="another sum"/></testcase>'
    )
    run = verify(pytest=f"tests='{cases}'; status=1")
    assert run.step("GPU tests")["figures"]["skip_reasons"] == {"CuPy sees no GPU": 1}
    assert "- CuPy sees no GPU" in run.markdown
    assert "- c: another sum" in run.markdown


def test_missing_results_of_the_benchmark(verify: Callable[..., Run]) -> None:
    run = verify(bench=":")
    assert run.step("benchmark")["status"] == "passed"
    assert run.step("targets")["status"] == "not run"
    run = verify(bench=f"rows '{json.dumps([UNKNOWN])}'")
    assert run.step("targets")["status"] == "not run"


# ---- The sanitizer ----


@pytest.mark.parametrize(
    ("without", "changes", "reason"),
    [
        (("compute-sanitizer",), {}, "not on the PATH"),
        (
            (),
            {"planted": "echo '========= Error: Device not supported. Please refer'; exit 1"},
            "refused here: Error: Device not supported",
        ),
        # It finds nothing where something is: it has not checked.
        ((), {"planted": "echo 'ERROR SUMMARY: 0 errors'"}, "does not find a planted fault"),
        ((), {"planted": "echo 'error 999'; exit 1"}, "does not find a planted fault"),
        ((), {"planted": "echo 'ERROR SUMMARY: 1 error'"}, "does not find a planted fault"),
        ((), {"planted": "exit 97"}, "does not find a planted fault"),
    ],
)
def test_a_sanitizer_that_cannot_check_is_not_run(
    verify: Callable[..., Run], without: tuple[str, ...], changes: dict[str, str], reason: str
) -> None:
    run = verify(without=without, **changes)
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        step = run.step(f"compute-sanitizer {tool}")
        assert step["status"] == "not run"
        assert reason in step["detail"]
    assert run.status == 0
    assert run.report["counts"]["not run"] == 5


@pytest.mark.parametrize(
    ("behaviour", "detail"),
    [
        ("clean; exit 97", "exit status 97"),
        ("echo 'ok 176'; echo 'ERROR SUMMARY: 3 errors'", "no clean summary"),
        ("echo 'ERROR SUMMARY: 0 errors'; echo 'RACECHECK SUMMARY: 0 hazards'", "no clean summary"),
        ("echo 'ok 176'", "no clean summary"),
    ],
)
def test_a_sanitizer_that_finds_something_fails(
    verify: Callable[..., Run], behaviour: str, detail: str
) -> None:
    run = verify(sanitizer=behaviour)
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        step = run.step(f"compute-sanitizer {tool}")
        assert step["status"] == "failed"
        assert detail in step["detail"]
    assert run.status == 1


# ---- Caffe, wheels ----


def test_caffe(verify: Callable[..., Run], tmp_path: Path) -> None:
    folder = tmp_path / "caffe"
    folder.mkdir()
    environ = {"CAFFE_CUDA": str(folder)}
    assert run_of_caffe(verify(environ=environ)) == (
        "failed",
        f"CAFFE_CUDA={folder}: no run.sh is there",
    )
    (folder / "run.sh").write_text("echo test_own: 40 tests passed\n")
    run = verify(environ=environ)
    assert run_of_caffe(run) == ("passed", "")
    assert run.status == 0
    assert "- test_own: 40 tests passed" in run.markdown
    (folder / "run.sh").write_text("echo 2 tests failed; exit 1\n")
    assert run_of_caffe(verify(environ=environ)) == ("failed", "exit status 1: 2 tests failed")


def run_of_caffe(run: Run) -> tuple[str, str]:
    step = run.step("Caffe")
    return step["status"], step["detail"]


def test_wheels(verify: Callable[..., Run], tmp_path: Path) -> None:
    folder = tmp_path / "wheels"
    folder.mkdir()
    run = verify(environ={"WHEELS": str(folder)})
    assert run.step("wheels")["status"] == "failed"
    (folder / "a-1-py3-none-any.whl").touch()
    run = verify(environ={"WHEELS": str(folder)})
    assert run.status == 0
    assert "a-1-py3-none-any.whl" in run.step("wheels")["command"]


# ---- Time ----


def test_a_step_that_hangs_is_ended_with_its_children(
    verify: Callable[..., Run], tmp_path: Path
) -> None:
    """Its children too, and what is after it has no time left, which is no pass."""
    marker = tmp_path / "child"
    run = verify(
        ["--seconds", "6"],
        gpu_small=f"(sleep 30; touch '{marker}') & echo begun; sleep 30",
    )
    assert run.seconds < 25  # it was ended, not waited for
    assert run.status == 1
    step = run.step("small inputs from C++")
    assert step["status"] == "failed"
    assert step["detail"].startswith("ended after")
    assert "begun" in run.log
    assert "ended for lack of time" in run.log
    later = [run.step(name) for name in ("GPU tests", "compute-sanitizer memcheck")]
    assert [step["status"] for step in later] == ["failed", "failed"]
    assert {step["detail"] for step in later} == {"no time was left for it"}
    assert not marker.exists()


def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_verify", ROOT / "tools" / "gpu_verify.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules["gpu_verify"] = loaded  # dataclasses look there
    spec.loader.exec_module(loaded)
    return loaded


def test_the_limits_fit_into_eight_minutes() -> None:
    verify = module()
    assert verify.TOTAL_SECONDS < 480
    # A file of results is small enough to be kept, and the steps are told apart by name.
    assert len(set(STEPS)) == len(STEPS)
    assert textwrap.dedent(verify.__doc__).isascii()
