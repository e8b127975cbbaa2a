"""What the library makes of the machine: CPUs, caches, and answers that are missing or odd.

A preloaded library stands for another machine (tests/native/preload/other_system.c).
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import instrumented
import sigmoid_ce as sce
from conftest import ROOT, missing

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or bool(os.environ.get("LD_PRELOAD")),
    reason="preloads a library that stands between a program and glibc",
)

UNKNOWN_CACHE = 32 << 20
CACHE = "sys/devices/system/cpu/cpu0/cache/index{}/size"


@pytest.fixture(scope="module")
def other_system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        missing("a C compiler")
    assert compiler is not None
    library = tmp_path_factory.mktemp("preload") / "other_system.so"
    source = str(ROOT / "tests" / "native" / "preload" / "other_system.c")
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    instrumented.run([compiler, *flags, source, "-o", str(library), "-ldl"])
    return library


def environment(library: Path, root: Path, files: dict[str, str], **more: str) -> dict[str, str]:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SIGMOID_CE_")}
    return {**kept, "LD_PRELOAD": str(library), "OTHER_SYSTEM_ROOT": str(root), **more}


def settings(program: Path, env: dict[str, str] | None = None) -> dict[str, str]:
    """What tests/native/settings.cpp prints; it checks the functions for settings besides."""
    done = subprocess.run([str(program / "settings")], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


def test_this_machine(native_tests: Path) -> None:
    found = settings(native_tests)
    assert found["isa"] == sce.get_isa()
    assert int(found["cpus"]) == int(found["threads"]) >= 1
    assert int(found["cache"]) > 0


def test_environment_without_sense(native_tests: Path) -> None:
    """Settings made by calls work all the same, which the program checks."""
    env = {**os.environ, "SIGMOID_CE_ISA": "pentium", "SIGMOID_CE_NUM_THREADS": "many"}
    found = settings(native_tests, env)
    assert (found["isa"], found["threads"]) == ("", "0")


@pytest.mark.parametrize(
    ("sizes", "size"),
    [
        ({0: "48K\n", 1: "32K\n", 2: "2048K\n", 3: "36864K\n"}, 36864 << 10),
        ({0: "32K\n", 2: "1M\n"}, 1 << 20),
        ({3: "123456"}, 123456),
        ({0: "\n", 1: "none\n"}, UNKNOWN_CACHE),
        ({}, UNKNOWN_CACHE),
    ],
    ids=["three levels", "mebibytes", "bytes", "no numbers", "none"],
)
def test_cache_size(
    sizes: dict[int, str], size: int, native_tests: Path, other_system: Path, tmp_path: Path
) -> None:
    files = {CACHE.format(index): text for index, text in sizes.items()}
    env = environment(other_system, tmp_path, files)
    assert int(settings(native_tests, env)["cache"]) == size


def test_quota_of_the_process(native_tests: Path, other_system: Path, tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n"}
    assert settings(native_tests, environment(other_system, tmp_path, files))["cpus"] == "1"


def test_lines_of_cgroup_without_sense(
    native_tests: Path, other_system: Path, tmp_path: Path
) -> None:
    files = {
        "proc/self/cgroup": "\nno colon\none: colon\n1:cpu:/x\n2:cpu:/y\n0::no/slash/at/first\n",
        "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "many\n",
        "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu/y/cpu.cfs_quota_us": "100000\n",
        "sys/fs/cgroup/cpu/y/cpu.cfs_period_us": "0\n",
    }
    found = settings(native_tests, environment(other_system, tmp_path, files))
    assert int(found["cpus"]) == len(os.sched_getaffinity(0))


def test_without_affinity_mask(native_tests: Path, other_system: Path, tmp_path: Path) -> None:
    env = environment(other_system, tmp_path, {}, OTHER_SYSTEM_AFFINITY="fails")
    assert 1 <= int(settings(native_tests, env)["cpus"]) <= (os.cpu_count() or 1)


@pytest.mark.parametrize("isa", sce.available_isas())
def test_streaming_stores_of_every_kernel(isa: str, other_system: Path, tmp_path: Path) -> None:
    """Where arrays exceed the cache, outputs are written past it; with a cache of 1 KiB all do."""
    files = {CACHE.format(0): "1K\n"}
    env = environment(other_system, tmp_path, files, SIGMOID_CE_ISA=isa)
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "digest.py"), "--check"],
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
