"""The demo runs as its user runs it, learns, and writes its picture."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, missing

DEMO = ROOT / "examples" / "demo_coins.py"
NEEDED = ("matplotlib", "scipy", "skimage", "sklearn")

# Two float64 means of 60 000 terms; log_loss works on probabilities, so that scores near 10 cost it
# exp(10) eps of a single, small term.
LOG_LOSS_REL = 1e-9


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the demo prints, and its picture."""
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            missing(name)
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [sys.executable, str(DEMO)],
        cwd=folder,
        env={**os.environ, "MPLCONFIGDIR": str(folder), "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    return done.stdout, folder / "demo_coins.png"


def test_picture(output: tuple[str, Path]) -> None:
    import matplotlib.image as image

    picture = image.imread(output[1])
    assert picture.shape[0] > 400
    assert picture.shape[1] > 600
    assert picture.std() > 0.05  # not an empty canvas


def numbers(text: str, start: str) -> list[float]:
    """The numbers of the first line that begins so."""
    line = next(line for line in text.splitlines() if line.strip().startswith(start))
    out = []
    for word in line.replace(":", " ").split():
        try:
            out.append(float(word))
        except ValueError:
            continue
    return out


def test_the_loss_falls(output: tuple[str, Path]) -> None:
    curve = output[0][output[0].index("training loss") :]
    for name in ("no pos_weight", "pos_weight"):
        shown = numbers(curve, name)
        steps, losses = shown[::2], shown[1::2]
        assert steps[0] == 0
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] < losses[0] / 5


def test_pos_weight_raises_the_recall(output: tuple[str, Path]) -> None:
    text = output[0]
    before = numbers(text, "no pos_weight      outline")
    after = numbers(text, "pos_weight         outline")
    coin = numbers(text, "pos_weight         coin")
    assert after[1] > before[1] + 0.1
    assert after[1] > 0.9
    assert min(coin) > 0.9


def test_agrees_with_log_loss(output: tuple[str, Path]) -> None:
    tail = output[0][output[0].index("log_loss of the same") :]
    for channel in ("coin", "outline"):
        ours, theirs, difference = numbers(tail, f"{channel} ")
        assert difference <= LOG_LOSS_REL
        assert ours == pytest.approx(theirs, rel=LOG_LOSS_REL, abs=1e-12)  # 12 digits are printed
