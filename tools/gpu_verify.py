"""Builds with CUDA, tests, sanitizes and measures on the GPU of this machine, and reports.

    tools/gpu_verify.sh [OUTDIR]        the default is build/gpu-verify/report

Needs nvcc, Python with pip, NumPy, pytest, mpmath and the packages of the build backend, and no
network. Environment:

    WHEELS      folder of wheels that this Python lacks; they are installed beside the package
    CAFFE_CUDA  folder with a prepared CUDA build of Caffe: its run.sh is one of the steps
    PYTHON      the Python that builds, tests and measures

OUTDIR receives report.md and report.json, all output in log.txt, and the benchmark's bench.json and
bench.md. A step that fails does not stop those that do not need it. What a machine refuses is
"not run", with the reason, never "passed".

Exit status: 0, all that ran passed; 1, something failed, ran out of time or missed its target; 2, a
usage error; 3, nothing was verified, because there is no GPU or no compiler for it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = 1

PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"

# Seconds for everything: what runs longer than 8 minutes is of no use on a lent machine. And for
# each step at most, several times what it is expected to take.
TOTAL_SECONDS = 470.0
BUILD_SECONDS = 200.0
NATIVE_BUILD_SECONDS = 60.0
DIGEST_SECONDS = 40.0
TESTS_SECONDS = 150.0
SANITIZER_SECONDS = 45.0
PLANTED_SECONDS = 20.0
CAFFE_SECONDS = 150.0
BENCH_SECONDS = 200.0
# The benchmark is told to end so much before it would be ended.
BENCH_MARGIN_SECONDS = 15.0
# Of its output, what goes into the report: what passed, and the times of both layers.
CAFFE_LINES = 40
# A step that has less than this left is not started.
LEAST_SECONDS = 3.0

# What compute-sanitizer prints at the end when it found nothing, by tool.
SANITIZERS = {
    "memcheck": "ERROR SUMMARY: 0 errors",
    "racecheck": "RACECHECK SUMMARY: 0 hazards",
    "initcheck": "ERROR SUMMARY: 0 errors",
    "synccheck": "ERROR SUMMARY: 0 errors",
}
SANITIZER_ERROR_STATUS = 97


@dataclass
class Step:
    """What became of one step. `detail` is one line: counts, or why it failed or did not run."""

    name: str
    status: str
    detail: str = ""
    seconds: float = 0.0
    command: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass
class Done:
    """A command that ended. `status` is None where it ran out of time."""

    status: int | None
    output: str
    seconds: float

    @property
    def last_line(self) -> str:
        lines = [line for line in self.output.splitlines() if line.strip()]
        return lines[-1].strip() if lines else "no output"

    def problem(self, limit: float) -> str | None:
        """Why it did not work, in one line. None: it did."""
        if self.status is None:
            return f"ended after {limit:.0f} s"
        return f"exit status {self.status}: {self.last_line}" if self.status else None


class Verification:
    """Runs the steps one after the other and keeps what became of each."""

    def __init__(self, out: Path, work: Path, environ: dict[str, str], seconds: float) -> None:
        self.out = out
        self.work = work
        self.site = work / "site"
        self.build = work / "build"
        self.python = environ.get("PYTHON") or sys.executable
        self.environ = dict(environ)
        # The package under test goes before one that is installed.
        path = [str(self.site), *filter(None, [environ.get("PYTHONPATH")])]
        self.environ["PYTHONPATH"] = os.pathsep.join(path)
        self.environ["PYTHONUNBUFFERED"] = "1"
        self.steps: list[Step] = []
        self.machine: dict[str, Any] = {}
        self.end = time.monotonic() + seconds
        self.log = (out / "log.txt").open("w", encoding="utf-8")

    # ---- Commands ----

    def left(self) -> float:
        return self.end - time.monotonic()

    def run(self, command: list[str], limit: float, **environ: str) -> Done:
        """Runs a command with its children in a group of their own, which ends with it."""
        limit = max(min(limit, self.left()), 0.0)
        self.log.write(f"\n$ {shlex.join(command)}\n")
        start = time.monotonic()
        try:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**self.environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            self.log.write(f"{error}\n")
            return Done(127, str(error), 0.0)
        try:
            raw, _ = process.communicate(timeout=limit)
            status: int | None = process.returncode
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            raw, _ = process.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            status = None
        seconds = time.monotonic() - start
        output = raw.decode(errors="replace")
        how = "ended for lack of time" if status is None else f"status {status}"
        self.log.write(f"{output}[{how}, {seconds:.1f} s]\n")
        self.log.flush()
        return Done(status, output, seconds)

    def step(
        self,
        name: str,
        command: list[str],
        limit: float,
        judge: Callable[[Done], Step | None] = lambda done: None,
        *,
        needs: str | None = None,
        **environ: str,
    ) -> Step:
        """Runs a command as a step. `judge` sees what worked, and what failed, and may say more;
        None leaves it with the exit status. `needs`: a step that must have passed."""
        shown = shlex.join(command)
        reason = self._blocked(needs)
        if reason is not None:
            return self.add(Step(name, NOT_RUN, reason, command=shown))
        if self.left() < LEAST_SECONDS:
            return self.add(Step(name, FAILED, "no time was left for it", command=shown))
        limit = min(limit, self.left())
        done = self.run(command, limit, **environ)
        problem = done.problem(limit)
        step = None if done.status is None else judge(done)
        if step is None:
            step = Step(name, FAILED if problem else PASSED, problem or "")
        step.seconds, step.command = done.seconds, shown
        return self.add(step)

    def add(self, step: Step) -> Step:
        self.steps.append(step)
        line = f"{step.status:8} {step.name}"
        print(line + (f": {step.detail}" if step.detail else ""), flush=True)
        return step

    def _blocked(self, needs: str | None) -> str | None:
        if needs is None or any(s.name == needs and s.status == PASSED for s in self.steps):
            return None
        return f"'{needs}' did not pass"

    # ---- The steps ----

    def look(self) -> str | None:
        """What machine this is. Returns why it can verify nothing, or None."""
        self.machine = {"python": None, "nvcc": None, "gpus": []}
        version = self.run([self.python, "--version"], 20)
        self.machine["python"] = version.last_line if version.status == 0 else None
        query = "--query-gpu=name,driver_version,compute_cap,memory.total"
        gpu = self.run(["nvidia-smi", query, "--format=csv,noheader"], 30)
        if gpu.status == 0:
            for line in gpu.output.splitlines():
                cells = [cell.strip() for cell in line.split(",")]
                if len(cells) == 4:
                    names = ("name", "driver", "compute_capability", "memory")
                    self.machine["gpus"].append(dict(zip(names, cells, strict=True)))
        nvcc = self.run(["nvcc", "--version"], 20)
        release = re.search(r"release ([\d.]+)", nvcc.output)
        if nvcc.status == 0:
            self.machine["nvcc"] = release[1] if release else nvcc.last_line
        if not self.machine["gpus"]:
            return f"no GPU: nvidia-smi: {gpu.last_line}"
        if self.machine["nvcc"] is None:
            return f"no CUDA compiler: nvcc: {nvcc.last_line}"
        return None

    def build_package(self) -> None:
        pip = [self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        pip += ["--no-index", "--no-deps", "--upgrade", "--target", str(self.site)]
        wheels = self.environ.get("WHEELS")
        if wheels:
            files = sorted(str(path.resolve()) for path in Path(wheels).glob("*.whl"))
            if files:
                self.step("wheels", [*pip, *files], BUILD_SECONDS)
            else:
                self.add(Step("wheels", FAILED, f"WHEELS={wheels}: no .whl file is there"))
        settings = [
            f"build-dir={self.build}",
            "cmake.define.SIGMOID_CE_CUDA=ON",
            "cmake.define.CMAKE_CUDA_ARCHITECTURES=native",
        ]
        command = [*pip, "--no-build-isolation"]
        for setting in settings:
            command += ["-C", setting]
        jobs = str(os.cpu_count() or 2)
        self.step("build", [*command, str(ROOT)], BUILD_SECONDS, CMAKE_BUILD_PARALLEL_LEVEL=jobs)

    def build_programs(self) -> None:
        libraries = [str(self.build / f"lib{name}.a") for name in ("sigmoid_ce_cuda", "sigmoid_ce")]
        common = ["nvcc", "-std=c++14", "-O2", "-arch=native", "-Icpp", "-Icpp/include"]
        for name, source, options in (
            ("digest_cuda", "tests/native/digest.cpp", ["-DSIGMOID_CE_DIGEST_CUDA", *libraries]),
            ("gpu_small", "tests/native/gpu_small.cu", libraries),
            ("gpu_planted", "tests/native/gpu_planted.cu", []),
        ):
            command = [*common, source, *options, "-o", str(self.work / name)]
            needs = "build" if options else None
            self.step(f"build of {name}", command, NATIVE_BUILD_SECONDS, needs=needs)

    def digests(self) -> None:
        wanted = (ROOT / "tests" / "digests.txt").read_text(encoding="ascii").splitlines()

        def judge(done: Done) -> Step | None:
            if done.status != 0:
                return None
            found = done.output.splitlines()
            wrong = [line for line in wanted if line not in set(found)]
            more = len(found) - len(wanted)
            figures = {"lines": len(found), "expected": len(wanted), "wrong": wrong[:20]}
            if wrong or more:
                text = f"{len(wrong)} of {len(wanted)} lines are missing or differ"
                return Step(name, FAILED, f"{text}, {len(found)} came", figures=figures)
            return Step(name, PASSED, f"{len(found)} lines, the CPU's bits", figures=figures)

        program = str(self.work / "digest_cuda")
        for offset, remark in (("0", ""), ("1", ", unaligned")):
            name = f"digests from C++{remark}"
            self.step(
                name,
                [program],
                DIGEST_SECONDS,
                judge,
                needs="build of digest_cuda",
                SIGMOID_CE_DIGEST_OFFSET=offset,
            )
        self.step(
            "small inputs from C++",
            [str(self.work / "gpu_small")],
            DIGEST_SECONDS,
            lambda done: (
                None if done.status else Step("small inputs from C++", PASSED, done.last_line)
            ),
            needs="build of gpu_small",
        )

    def tests(self) -> None:
        file = self.work / "tests.xml"
        file.unlink(missing_ok=True)
        command = [self.python, "-m", "pytest", "tests/test_gpu.py", "-q", "-W", "default"]
        command += ["-p", "no:cacheprovider", "--durations=15", f"--junitxml={file}"]

        def judge(done: Done) -> Step | None:
            figures = counts_of(file)
            if figures is None:
                problem = done.problem(TESTS_SECONDS)
                return Step("GPU tests", FAILED, problem or "no results were written")
            passed, failed = figures["passed"], figures["failed"]
            text = f"{passed} passed, {failed} failed, {figures['skipped']} skipped"
            good = done.status == 0 and passed > 0 and not failed
            return Step("GPU tests", PASSED if good else FAILED, text, figures=figures)

        self.step("GPU tests", command, TESTS_SECONDS, judge, needs="build", SIGMOID_CE_GPU="1")

    def sanitizers(self) -> None:
        sanitizer = shutil.which("compute-sanitizer", path=self.environ.get("PATH"))
        for tool, clean in SANITIZERS.items():
            name = f"compute-sanitizer {tool}"
            reason = self._blocked("build of gpu_small") or self._blocked("build of gpu_planted")
            if sanitizer is None:
                reason = "compute-sanitizer is not on the PATH"
            if reason is None and self.left() < LEAST_SECONDS:
                self.add(Step(name, FAILED, "no time was left for it"))
                continue
            if reason is None:
                command = [str(sanitizer), "--tool", tool]
                command += ["--error-exitcode", str(SANITIZER_ERROR_STATUS)]
                reason = self._refused(command, tool)
            if reason is not None:
                self.add(Step(name, NOT_RUN, reason))
                continue
            self._sanitize(name, command, clean)

    def _refused(self, command: list[str], tool: str) -> str | None:
        """Why the sanitizer is of no use here: it has to find a fault that was planted for it."""
        planted = self.run([*command, str(self.work / "gpu_planted"), tool], PLANTED_SECONDS)
        if planted.status is None:
            return "it did not end on a program of one small kernel"
        refusal = re.search(r"[^\n]*not supported[^\n]*", planted.output, re.IGNORECASE)
        if refusal:
            return f"refused here: {refusal[0].strip('= ')}"
        found = re.search(r"SUMMARY: [1-9]\d* (error|hazard)", planted.output)
        if found and planted.status == SANITIZER_ERROR_STATUS:
            return None
        return f"it does not find a planted fault here: {planted.last_line}"

    def _sanitize(self, name: str, command: list[str], clean: str) -> None:
        def judge(done: Done) -> Step | None:
            ran = re.search(r"^ok (\d+)$", done.output, re.MULTILINE)
            if done.status == 0 and ran and clean in done.output:
                return Step(name, PASSED, f"{ran[1]} passes, {clean.lower()}")
            if done.status == 0:
                return Step(name, FAILED, f"no clean summary: {done.last_line}")
            return None

        program = [str(self.work / "gpu_small"), "--few"]
        self.step(name, [*command, *program], SANITIZER_SECONDS, judge)

    def caffe(self) -> None:
        folder = self.environ.get("CAFFE_CUDA")
        if not folder:
            self.add(Step("Caffe", NOT_RUN, "CAFFE_CUDA names no prepared build"))
            return
        script = Path(folder).resolve() / "run.sh"
        if not script.is_file():
            self.add(Step("Caffe", FAILED, f"CAFFE_CUDA={folder}: no run.sh is there"))
            return

        def judge(done: Done) -> Step:
            problem = done.problem(CAFFE_SECONDS)
            lines = done.output.splitlines()[-CAFFE_LINES:]
            status = FAILED if problem else PASSED
            return Step("Caffe", status, problem or "", figures={"output": lines})

        self.step("Caffe", ["sh", str(script)], CAFFE_SECONDS, judge)

    def benchmark(self) -> None:
        file = self.out / "bench.json"
        file.unlink(missing_ok=True)
        limit = min(BENCH_SECONDS + BENCH_MARGIN_SECONDS, self.left())
        command = [self.python, "-m", "bench.gpu", "--json", str(file)]
        command += ["--markdown", str(self.out / "bench.md")]
        command += ["--seconds", f"{max(limit - BENCH_MARGIN_SECONDS, 1):.0f}"]
        self.step("benchmark", command, limit, needs="build")
        try:
            rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
        except (OSError, ValueError, KeyError) as error:
            self.add(Step("targets", NOT_RUN, f"no results of the benchmark: {error}"))
            return
        self.add(judge_targets(rows))

    def all(self) -> str | None:
        """Every step. Returns why nothing could be verified, or None."""
        reason = self.look()
        if reason is not None:
            print(f"nothing verified: {reason}", flush=True)
            return reason
        self.build_package()
        self.build_programs()
        self.digests()
        self.tests()
        self.sanitizers()
        self.caffe()
        self.benchmark()
        return None


def counts_of(file: Path) -> dict[str, Any] | None:
    """What pytest wrote about its tests: counts, the first failures, the reasons of skips."""
    try:
        cases = list(ElementTree.parse(file).iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return None
    failures, reasons = [], {}
    for case in cases:
        bad = case.find("failure")
        bad = case.find("error") if bad is None else bad
        skip = case.find("skipped")
        if bad is not None:
            message = (bad.get("message") or "").partition("\n")[0]
            failures.append(f"{case.get('name')}: {message}"[:300])
        elif skip is not None:
            reason = skip.get("message") or ""
            reasons[reason] = reasons.get(reason, 0) + 1
    skipped = sum(reasons.values())
    return {
        "passed": len(cases) - len(failures) - skipped,
        "failed": len(failures),
        "skipped": skipped,
        "failures": failures[:20],
        "skip_reasons": reasons,
    }


def judge_targets(rows: list[dict[str, Any]]) -> Step:
    """One step from the aims in the benchmark's rows."""
    aims = [(row["name"], aim) for row in rows for aim in row["aims"]]
    lines = {True: [], False: [], None: []}
    for name, aim in aims:
        value = "not measured" if aim["value"] is None else f"{aim['value']:.3f}"
        lines[aim["holds"]].append(f"{name}: {aim['text']}: {value}")
    figures = {"met": lines[True], "missed": lines[False], "not_judged": lines[None]}
    text = f"{len(lines[True])} met, {len(lines[False])} missed, {len(lines[None])} not judged"
    if lines[False]:
        return Step("targets", FAILED, text, figures=figures)
    return Step("targets", PASSED if lines[True] else NOT_RUN, text, figures=figures)


# ---- The report ----


def status_of(steps: list[Step], reason: str | None) -> int:
    if reason is not None:
        return 3
    return 1 if any(step.status == FAILED for step in steps) else 0


def report_of(verification: Verification, reason: str | None, seconds: float) -> dict[str, Any]:
    steps = verification.steps
    return {
        "schema": SCHEMA,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": verification.machine,
        "verified": None if reason else not any(step.status == FAILED for step in steps),
        "reason": reason,
        "seconds": seconds,
        "counts": {
            status: sum(step.status == status for step in steps)
            for status in (PASSED, FAILED, NOT_RUN)
        },
        "steps": [asdict(step) for step in steps],
    }


def markdown(report: dict[str, Any]) -> str:
    machine, counts = report["machine"], report["counts"]
    gpus = "; ".join(
        f"{gpu['name']} (compute capability {gpu['compute_capability']}, driver {gpu['driver']})"
        for gpu in machine["gpus"]
    )
    headline = {True: "Everything that ran passed", False: "Something failed", None: "Not verified"}
    lines = [
        f"# GPU report: {headline[report['verified']].lower()}",
        "",
        f"- GPU: {gpus or 'none'}",
        f"- CUDA compiler: {machine['nvcc'] or 'none'}; {machine['python'] or 'no Python'}",
        f"- {report['date']}, {report['seconds']:.0f} s",
        f"- {counts[PASSED]} passed, {counts[FAILED]} failed, {counts[NOT_RUN]} not run",
    ]
    if report["reason"]:
        lines.append(f"- Nothing was verified: {report['reason']}")
    lines += ["", "| step | status | seconds | |", "|---|---|---|---|"]
    for step in report["steps"]:
        detail = step["detail"].replace("|", "\\|")
        lines.append(f"| {step['name']} | {step['status']} | {step['seconds']:.1f} | {detail} |")
    for step in report["steps"]:
        for title, key in (
            ("failures", "failures"),
            ("wrong lines", "wrong"),
            ("missed", "missed"),
            ("not judged", "not_judged"),
            ("reasons of skips", "skip_reasons"),
            ("output", "output"),
        ):
            found = step["figures"].get(key)
            if found:
                lines += ["", f"{step['name']}, {title}:", ""]
                lines += [f"- {line}" for line in found]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tools/gpu_verify.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", nargs="?", type=Path, default=ROOT / "build/gpu-verify/report")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build/gpu-verify", help="folder for what is built"
    )
    parser.add_argument(
        "--seconds", type=float, default=TOTAL_SECONDS, help="for everything (%(default)s)"
    )
    options = parser.parse_args(arguments)
    out, work = options.out.resolve(), options.work.resolve()
    out.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    verification = Verification(out, work, dict(os.environ), options.seconds)
    reason = None
    try:
        reason = verification.all()
    except KeyboardInterrupt:  # what there is, is reported
        verification.add(Step("the rest", FAILED, "interrupted"))
    report = report_of(verification, reason, time.monotonic() - start)
    text = markdown(report)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (out / "report.md").write_text(text, encoding="utf-8")
    verification.log.close()
    print(text)
    return status_of(verification.steps, reason)


if __name__ == "__main__":
    sys.exit(main())
