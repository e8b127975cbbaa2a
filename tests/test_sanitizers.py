"""The native programs and the Python tests under GCC's sanitizers: no report.

Long: make test-long ARGS="-k sanitizers". Builds stay in build/asan and build/tsan.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import instrumented
from conftest import ROOT, missing

pytestmark = pytest.mark.long

NATIVE = {
    "asan": [["digest"], ["functions", "--every", "100003"], ["cut"], ["settings"], ["cgroup"]],
    "tsan": [["digest"], ["cut"]],
}


@pytest.mark.parametrize("preset", list(NATIVE))
def test_native_programs(preset: str, tmp_path: Path) -> None:
    build = instrumented.build(preset, python=True)
    (tmp_path / "self").write_text("4:cpu,cpuacct:/x\n0::/a/b\n")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "cpu.max").write_text("150000 100000\n")
    for program, *arguments in NATIVE[preset]:
        if program == "cgroup":
            arguments = [str(tmp_path / "self"), str(tmp_path)]
        done = subprocess.run(
            [str(build / program), *arguments],
            env={**os.environ, "SIGMOID_CE_NUM_THREADS": "3"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{program}: {done.stderr[-4000:]}"
        assert done.stderr == "", program
        if program == "digest":
            committed = (ROOT / "tests" / "digests.txt").read_text()
            assert done.stdout.splitlines() == committed.splitlines()
        elif program == "cgroup":
            assert done.stdout == "2\n"


# Left out by name: tests that compile or run native programs, which the other test has, and from
# ThreadSanitizer PyTorch's own processes, whose locks it cannot see.
ELSEWHERE = "not contraction and not fast_math and not native and not cpp and not cgroup"
CHOICE = {"asan": ELSEWHERE, "tsan": f"{ELSEWHERE} and not all_reduce"}
PYTHON = {
    "asan": [
        "test_arrays.py",
        "test_exact_sum.py",
        "test_family.py",
        "test_fuzz.py",
        "test_half_cpu.py",
        "test_partial.py",
        "test_partial_backward.py",
        "test_reproducibility.py",
        "test_semantics.py",
        "test_threads.py",
    ],
    "tsan": ["test_family.py", "test_partial.py", "test_reproducibility.py", "test_threads.py"],
}

# Python is not instrumented and has no part in what is looked for: leaks would be its own, and it
# goes on after a fork of a process with threads, which ThreadSanitizer would end.
OPTIONS = {
    "asan": {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"},
    "tsan": {"TSAN_OPTIONS": "die_after_fork=0"},
}


def runtime(compiler: str, *names: str) -> str:
    """Libraries to preload, since the interpreter itself is not built with a sanitizer. With the
    C++ library among them, which the runtime wants to find for exceptions."""
    paths = []
    for name in (*names, "libstdc++.so"):
        path = subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        if not Path(path).is_absolute():
            missing(name)
        paths.append(path)
    return " ".join(paths)


@pytest.mark.skipif(platform.system() != "Linux", reason="preloads with LD_PRELOAD")
@pytest.mark.parametrize("preset", list(PYTHON))
def test_python_tests(preset: str, tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        missing("g++")
    assert compiler is not None
    names = {"asan": ("libasan.so", "libubsan.so"), "tsan": ("libtsan.so",)}[preset]
    preload = runtime(compiler, *names)
    build = instrumented.build(preset, python=True)
    path = instrumented.package(build, tmp_path / "package")
    reports = tmp_path / "report"
    options = {k: f"{v}:log_path={reports}" for k, v in OPTIONS[preset].items()}
    files = [f"tests/{name}" for name in PYTHON[preset]]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-k",
            CHOICE[preset],
            *files,
        ],
        env={**os.environ, **options, "PYTHONPATH": str(path), "LD_PRELOAD": preload},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    found = "".join(report.read_text() for report in sorted(tmp_path.glob("report*")))
    assert found == "", found[:8000]
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None, done.stdout[-4000:]
    print(f"{preset}: {passed[0]}")
