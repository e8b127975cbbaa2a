"""What an installed wheel must do. Without pytest: cibuildwheel runs it on every wheel it makes."""

from __future__ import annotations

import importlib.metadata
import math
import subprocess
import sysconfig
from pathlib import Path

import numpy as np

import sigmoid_ce as sce

# Two float32 losses within 2 ulp each, of 2^-23 at most, and the same sign.
LOSS_REL = 2 * 2.0**-23
# 2 ulp of the derivative and 2 of its scaling.
GRADIENT_REL = 4 * 2.0**-23


def check_installed() -> None:
    """The package that answers is the installed one, and knows its version."""
    folder = Path(sce.__file__).resolve().parent
    assert folder.parent == Path(sysconfig.get_path("platlib")).resolve(), folder
    assert sce.__version__ == importlib.metadata.version("sigmoid-ce")


def check_values() -> None:
    """Known values, the same bits from every instruction set."""
    scores = np.array([9.7, 0.0], dtype=np.float32)
    targets = np.array([0, 1], dtype=np.uint8)
    x = float(scores[0])
    exact = (x + math.log1p(math.exp(-x)) + math.log(2)) / 2
    derivative = [1 / (1 + math.exp(-x)) / 2, -0.25]
    seen = set()
    for isa in sce.available_isas():
        sce.set_isa(isa)
        loss, gradient = sce.forward_backward(scores, targets)
        assert math.isclose(loss, exact, rel_tol=LOSS_REL), (isa, loss, exact)
        assert np.allclose(gradient, derivative, rtol=GRADIENT_REL, atol=0), (isa, gradient)
        seen.add((loss, gradient.tobytes()))
    assert len(seen) == 1, seen


def check_command() -> None:
    """The command line, where the wheel brings one."""
    points = importlib.metadata.distribution("sigmoid-ce").entry_points
    if not any(p.group == "console_scripts" and p.name == "sigmoid-ce" for p in points):
        print("no command line in this wheel")
        return
    command = str(Path(sysconfig.get_path("scripts")) / "sigmoid-ce")
    for arguments in (["--version"], ["info"]):
        done = subprocess.run([command, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert sce.__version__ in done.stdout, done.stdout


if __name__ == "__main__":
    check_installed()
    check_values()
    check_command()
    print(f"sigmoid_ce {sce.__version__} works: {', '.join(sce.available_isas())}")
