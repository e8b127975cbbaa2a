"""Instructions per element of the main loops, counted by valgrind's callgrind.

tests/instructions.txt has a line `compiler case count` for each case of
tests/native/instructions.cpp. Where they are meant to change, or for another compiler:
python tests/test_instructions.py --write
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from conftest import ROOT

COUNTS = ROOT / "tests" / "instructions.txt"
# A compiler's patch release may allocate a register otherwise; a lost vectorisation, an option
# looked at per element or a copy too many is a larger change.
TOLERANCE = 0.05
EXIT_SKIPPED = 77


class Skipped(Exception):
    pass


def compiler_of(build: Path) -> str:
    """Name and major version, as CMake found them."""
    # One for each version of CMake that was used there.
    all_found = build.glob("CMakeFiles/*/CMakeCXXCompiler.cmake")
    found = max(all_found, key=lambda path: path.stat().st_mtime)
    text = found.read_text()
    name = re.search(r'CMAKE_CXX_COMPILER_ID "(\w+)"', text)
    version = re.search(r'CMAKE_CXX_COMPILER_VERSION "(\d+)', text)
    assert name is not None
    assert version is not None
    return f"{name[1]}-{version[1]}"


def measure(program: Path) -> dict[str, float]:
    """Instructions per element by case."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise Skipped("valgrind is not installed")
    env = {k: v for k, v in os.environ.items() if not k.startswith("SIGMOID_CE_")}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind"
        options = ["--tool=callgrind", "--collect-atstart=no", f"--callgrind-out-file={out}"]
        done = subprocess.run(
            [valgrind, "-q", *options, str(program)], env=env, capture_output=True, text=True
        )
        if done.returncode == EXIT_SKIPPED:
            raise Skipped(done.stderr.strip())
        assert done.returncode == 0, done.stderr[-4000:]
        counts: dict[str, list[tuple[int, int]]] = {}
        for part, line in enumerate(done.stdout.splitlines(), 1):
            case, size = line.split()
            summary = re.search(r"^summary: (\d+)", Path(f"{out}.{part}").read_text(), re.M)
            assert summary is not None
            counts.setdefault(case, []).append((int(size), int(summary[1])))
    return {case: (n2 - n1) / (s2 - s1) for case, ((s1, n1), (s2, n2)) in counts.items()}


def read_counts() -> dict[str, dict[str, float]]:
    counts: dict[str, dict[str, float]] = {}
    for line in COUNTS.read_text().splitlines() if COUNTS.exists() else []:
        compiler, case, count = line.split()
        counts.setdefault(compiler, {})[case] = float(count)
    return counts


def lines(compiler: str, counts: dict[str, float]) -> list[str]:
    return [f"{compiler} {case} {count:.3f}" for case, count in counts.items()]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="counts AVX2")
def test_instructions_per_element(native_tests: Path) -> None:
    try:
        counts = measure(native_tests / "instructions")
    except Skipped as reason:
        pytest.skip(str(reason))
    compiler = compiler_of(native_tests)
    print("\n".join(lines(compiler, counts)))
    wanted = read_counts().get(compiler)
    if wanted is None:
        pytest.skip(f"no counts of {compiler}; python tests/test_instructions.py --write adds them")
    assert counts.keys() == wanted.keys()
    off = {
        case: f"{counts[case]:.3f} and not {wanted[case]:.3f}"
        for case in counts
        if abs(counts[case] - wanted[case]) > TOLERANCE * wanted[case]
    }
    assert off == {}


def write(build: Path) -> None:
    compiler = compiler_of(build)
    counts = read_counts()
    counts[compiler] = measure(build / "instructions")
    text = [line for name in sorted(counts) for line in lines(name, counts[name])]
    COUNTS.write_text("\n".join(text) + "\n")
    print(f"{len(counts[compiler])} counts of {compiler}")


if __name__ == "__main__":
    if sys.argv[1:2] != ["--write"]:
        sys.exit("usage: test_instructions.py --write [BUILD], a build of the native tests")
    write(Path(sys.argv[2]) if sys.argv[2:] else ROOT / "build" / "native-tests")
