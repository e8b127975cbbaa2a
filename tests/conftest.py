"""Shared fixtures: the native programs, built once, and settings put back after each test."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import sigmoid_ce as sce

# What a script runs in the background ignores Ctrl-C, and so does all that it starts: tests of
# Ctrl-C would wait in vain.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]


def tool(name: str) -> str | None:
    """A program on the PATH or beside the interpreter (where pip puts cmake)."""
    beside = str(Path(sys.executable).parent)
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), beside]))


def missing(what: str) -> None:
    """Skips; but where CI=true, a test that cannot run is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing, and CI=true allows no skip")
    pytest.skip(f"{what} is missing")


@contextmanager
def build_lock(folder: Path) -> Iterator[None]:
    """For what builds in a folder or installs from it: `make test` has two processes of tests."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f"{folder.name}.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


# emulated.py has its module from the same build: kernels take long to compile.
NATIVE_BUILD = ROOT / "build" / "native-tests"
NATIVE_OPTIONS = ["-DSIGMOID_CE_CUDA=EMULATED", "-DCMAKE_CXX_FLAGS=-Werror"]


@pytest.fixture(scope="session")
def native_tests() -> Path:
    """Folder with the programs of tests/native, built by CMake; the build is kept between runs."""
    cmake = tool("cmake")
    if cmake is None:
        missing("cmake")
    assert cmake is not None
    # Another build of them, with instrumentation, where test_coverage.py says so.
    other = os.environ.get("SIGMOID_CE_NATIVE_TESTS")
    build = Path(other or NATIVE_BUILD)
    options = ["-DSIGMOID_CE_BUILD_TESTS=ON"]
    if not other:
        options += ["-DSIGMOID_CE_PYTHON=OFF", *NATIVE_OPTIONS]
    with build_lock(build):
        for command in (
            [cmake, "-S", str(ROOT), "-B", str(build), *options],
            [cmake, "--build", str(build), "--parallel", "2"],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return build


@pytest.fixture(autouse=True)
def default_settings() -> Iterator[None]:
    """A test that forces threads or an instruction set does not do so for the next one."""
    yield
    sce.set_num_threads(0)
    sce.set_isa(None)
