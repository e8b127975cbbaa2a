"""exp(-a) and log1p(z) by themselves: their constants and their errors."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sigmoid_ce import bounds

ROOT = Path(__file__).resolve().parents[1]
HEADER = ROOT / "cpp" / "math" / "exp_log1p.h"


def test_constants_are_those_of_the_fitting_script() -> None:
    """Each printed coefficient stands in the header, in the order of the script."""
    script = ROOT / "tools" / "fit_polynomials.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    fitted = re.findall(r"^  \[\d+\]\s+(\S+)", done.stdout, flags=re.MULTILINE)
    header = HEADER.read_text()
    used = []
    for call in re.findall(r"horner<O>\([rv],([^;]*)\);", header):
        used += [text.strip() for text in call.split(",")]
    assert len(fitted) == (5 + 1) + (9 + 1) + (10 + 1) + (20 + 1)

    def value(text: str) -> float:
        return float(text.rstrip("f"))

    assert [value(text) for text in used] == [value(text) for text in fitted]


def test_errors(native_tests: Path) -> None:
    done = subprocess.run(
        [str(native_tests / "functions")], capture_output=True, text=True, check=True
    )
    print(done.stdout)
    errors = {name: float(error) for name, error, _ in map(str.split, done.stdout.splitlines())}
    kinds = {"exp": bounds.EXP_ULP, "log": bounds.LOG1P_ULP, "logy": bounds.LOG_ULP}
    assert errors.keys() == {f"{kind}{bits}" for kind in kinds for bits in (32, 64)}
    for name, error in errors.items():
        bound = kinds[name[:-2]]
        # Right to the last bit would mean that nothing was computed.
        assert 0.5 < error <= bound, name


@pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.long)])
def test_division_of_the_gpu(native_tests: Path, every: int) -> None:
    """cuda/division.h gives IEEE's quotient for every z, whatever the first guess."""
    done = subprocess.run(
        [str(native_tests / "division"), "--every", str(every)],
        capture_output=True,
        text=True,
        check=True,
    )
    quotients, wrong = map(int, done.stdout.split())
    assert wrong == 0
    assert quotients >= 5 * (0x3F800000 // every)
