"""The machine's limits: builds limits.cpp for this CPU and calls it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from time import perf_counter

import numpy as np

from .data import aligned_empty
from .machine import cpu_model

_SOURCE = Path(__file__).with_name("limits.cpp")
_FLAGS = ["-std=c++14", "-O3", "-march=native", "-shared", "-fPIC", "-pthread"]
_COMPILERS = ("c++", "g++", "clang++")


def _build_folder() -> Path:
    """In a clone its build/, else the user's cache."""
    root = Path(__file__).parents[1]
    if (root / "CMakeLists.txt").exists():
        return root / "build" / "bench"
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "sigmoid_ce" / "bench"


class LimitsUnavailable(RuntimeError):
    """limits.cpp cannot be built here. The message says why."""


class Limits:
    """Loops that only read, or read and write, with one thread pinned to each CPU of `cpus`."""

    def __init__(self, cpus: list[int]) -> None:
        self.compiler, path = _build()
        library = ctypes.CDLL(str(path))
        self._cpus = (ctypes.c_int * len(cpus))(*cpus)
        self._read = library.limits_read
        self._read.restype = ctypes.c_double
        self._write = library.limits_write
        self._write.restype = ctypes.c_double
        self.has_streaming = bool(library.limits_has_streaming())

    def read(self, a: np.ndarray, b: np.ndarray, passes: int) -> float:
        """Seconds to read both arrays `passes` times. They may differ in size."""
        return self._read_and_sum(a, b, passes)[0]

    def write(
        self, a: np.ndarray, b: np.ndarray, out: np.ndarray, passes: int, *, streaming: bool
    ) -> float:
        """Seconds to read `a` and `b` and write `out`, of equal size, `passes` times."""
        if not a.nbytes == b.nbytes == out.nbytes:
            raise ValueError(f"sizes in bytes differ: {a.nbytes}, {b.nbytes}, {out.nbytes}")
        seconds: float = self._write(
            _address(a),
            _address(b),
            _address(out),
            ctypes.c_size_t(a.nbytes),
            ctypes.c_int(streaming),
            ctypes.c_int(len(self._cpus)),
            self._cpus,
            ctypes.c_int(passes),
        )
        return seconds

    def write_fresh(self, a: np.ndarray, b: np.ndarray, passes: int, *, streaming: bool) -> float:
        """As `write`, into an array that each pass allocates and frees."""
        seconds = 0.0
        for _ in range(passes):
            start = perf_counter()
            out = aligned_empty(a.size, a.dtype)
            allocated = perf_counter()
            seconds += self.write(a, b, out, 1, streaming=streaming)
            freeing = perf_counter()
            del out
            seconds += allocated - start + perf_counter() - freeing
        return seconds

    def check(self, a: np.ndarray, b: np.ndarray) -> None:
        """Raises RuntimeError unless the loops read and write every word of these arrays."""
        words_a, words_b = a.view(np.uint32), b.view(np.uint32)
        expected = (int(words_a.sum(dtype=np.uint64)) + int(words_b.sum(dtype=np.uint64))) % 2**32
        found = self._read_and_sum(a, b, 2)[1]
        if found != expected:
            raise RuntimeError(f"read limit: the sum is {found}, expected {expected}")
        if a.nbytes != b.nbytes:
            return
        for streaming in (False, True) if self.has_streaming else (False,):
            out = aligned_empty(words_a.size, np.uint32)
            out.fill(0)
            self.write(a, b, out, 1, streaming=streaming)
            if not np.array_equal(out, words_a + words_b):
                raise RuntimeError(f"write limit (streaming: {streaming}): the result is wrong")

    def _read_and_sum(self, a: np.ndarray, b: np.ndarray, passes: int) -> tuple[float, int]:
        total = ctypes.c_uint32()
        seconds = self._read(
            _address(a),
            ctypes.c_size_t(a.nbytes),
            _address(b),
            ctypes.c_size_t(b.nbytes),
            ctypes.c_int(len(self._cpus)),
            self._cpus,
            ctypes.c_int(passes),
            ctypes.byref(total),
        )
        return seconds, total.value


def _address(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _build() -> tuple[str, Path]:
    """The compiler's version and the library, built unless it is there for this CPU already."""
    command = shlex.split(os.environ.get("CXX", ""))
    if not command:
        found = next((path for path in map(shutil.which, _COMPILERS) if path), None)
        if not found:
            raise LimitsUnavailable(f"no C++ compiler: none of {', '.join(_COMPILERS)}, no CXX")
        command = [found]
    try:
        version = _output([*command, "--version"]).splitlines()[0]
        # -march=native: another CPU needs another library, in a folder that machines may share.
        about = [_SOURCE.read_text(), version, cpu_model(), *_FLAGS]
        digest = hashlib.sha256("\0".join(about).encode()).hexdigest()[:16]
        library = _build_folder() / f"limits-{digest}.so"
        if not library.exists():
            library.parent.mkdir(parents=True, exist_ok=True)
            # Renamed when complete, so that a build beside this one never loads a part.
            partial = library.with_suffix(f".{os.getpid()}")
            _output([*command, *_FLAGS, str(_SOURCE), "-o", str(partial)])
            partial.replace(library)
    except OSError as error:
        raise LimitsUnavailable(str(error)) from error
    except subprocess.CalledProcessError as error:
        raise LimitsUnavailable(f"{shlex.join(error.cmd)}: {error.stderr.strip()}") from error
    return version, library


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
