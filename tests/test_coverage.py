"""Branch coverage of cpp/: what the tests of default runs reach, by gcov.

Long: make test-long ARGS="-k coverage -rP" prints the table; the build stays in build/coverage.
Counted are the branches of every instantiation of a template, so those of all kernels, as the
library and the module have them, and not those of the tests' programs. Left out are the edges of
exceptions, which the compiler puts at every call, and NEON, which x86-64 does not compile. What a
child of fork does is lost, since it ends without writing its counts.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import instrumented
import sigmoid_ce as sce
from conftest import ROOT, missing, tool
from test_threads import CGROUPS, cgroup

pytestmark = pytest.mark.long

LEAST = (
    95.0  # percent of the branches: of all, and kernels aside, beside which others would be lost
)
KERNELS = ("cpp/cpu/kernel", "cpp/cpu/ops_")

FILES = [
    "test_arrays.py",
    "test_exact_sum.py",
    "test_family.py",
    "test_half_cpu.py",
    "test_hard_cases.py",
    "test_partial.py",
    "test_partial_backward.py",
    "test_reproducibility.py",
    "test_semantics.py",
    "test_system.py",
    "test_threads.py",
]


def test_branches(tmp_path: Path) -> None:
    gcovr = tool("gcovr")
    compiler = shutil.which("g++")
    if gcovr is None:
        missing("gcovr")
    if compiler is None:
        missing("g++")
    assert gcovr is not None
    assert compiler is not None
    build = instrumented.build("coverage", python=True)
    for old in build.rglob("*.gcda"):
        old.unlink()

    for isa in sce.available_isas():
        for threads in ("1", "3"):
            env = {**os.environ, "SIGMOID_CE_ISA": isa, "SIGMOID_CE_NUM_THREADS": threads}
            subprocess.run([str(build / "digest")], env=env, check=True, capture_output=True)
    for program in ("cut", "exact_sum", "settings"):
        instrumented.run([str(build / program)])
    for i, (_, self, files, cpus) in enumerate(CGROUPS):
        assert cgroup(build, tmp_path / str(i), self, files) == cpus
    fuzz = ROOT / "tests" / "fuzz"
    program = str(build / "fuzz_api")
    source = [str(fuzz / "fuzz_api.cpp"), str(build / "libsigmoid_ce.a")]
    flags = ["-std=c++14", "-O1", "-DFUZZ_MAIN", f"-I{ROOT / 'cpp' / 'include'}"]
    # Not with --coverage: what it inlines of our headers would be counted beside the library's.
    instrumented.run([compiler, *flags, *source, "-lgcov", "-pthread", "-o", program])
    instrumented.run([program, "--random", "10000", "1"])

    # The tests' native programs come from this build too.
    path = instrumented.package(build, tmp_path / "package")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        + [f"tests/{name}" for name in FILES],
        env={**os.environ, "PYTHONPATH": str(path), "SIGMOID_CE_NATIVE_TESTS": str(build)},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout[-4000:]

    summary = tmp_path / "summary.json"
    table = instrumented.run(
        [
            *(gcovr, "--root", str(ROOT), "--filter", "cpp/"),
            *("--exclude-throw-branches", "--exclude-unreachable-branches"),
            *("--merge-mode-functions", "merge-use-line-0"),
            # Counts above 2^32 are no fault of gcov here: a test computes that many elements.
            *("--gcov-suspicious-hits-threshold", "0"),
            *("--json-summary", str(summary), "--txt-metric", "branch", "--txt", "-"),
            *(str(build / "CMakeFiles" / name) for name in ("sigmoid_ce.dir", "_cpu.dir")),
        ]
    )
    found = json.loads(summary.read_text())
    print("\n".join(line[:100] for line in table.splitlines()))
    others = [f for f in found["files"] if not f["filename"].startswith(KERNELS)]
    covered, total = (sum(f[f"branch_{key}"] for f in others) for key in ("covered", "total"))
    elsewhere = 100 * covered / total
    print(f"branches {found['branch_percent']} %, kernels aside {elsewhere:.1f} %")
    print(f"lines {found['line_percent']} %")
    assert found["branch_percent"] >= LEAST
    assert elsewhere >= LEAST
