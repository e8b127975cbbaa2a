"""The demo with a real Caffe: our layer trains as the built-in one does, and more when asked."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import realcaffe
from conftest import ROOT, missing

DEMO = ROOT / "examples" / "demo_caffe.py"
NEEDED = ("h5py", "matplotlib", "scipy", "skimage", "sklearn")

# Scores in a batch: 6 patches of 64 x 64 pixels, 2 channels.
TERMS = 6 * 2 * 64 * 64
# Half a unit in the last place of a float32 sum, relative to it.
ROUNDING = 2.0**-24
# The built-in layer adds the terms one after another in float32: an error of up to ROUNDING of the
# sum for each of them.
STOCK_ERROR = TERMS * ROUNDING
# That is if all err by the most and to one side. Some do, small terms that are lost in a big sum:
# this run reaches a thirtieth of it, the same whichever of OpenBLAS's kernels compute the net, so
# the trainings' own drift is less. A gradient wrong by 0.1% comes to six times CURVE_REL.
CURVE_REL = STOCK_ERROR / 8
# Before the first step the weights are the same and the terms of one size: their errors are as
# random numbers, which add up as the root does. Four of that, and the log's six digits.
FIRST_REL = 4 * TERMS**0.5 * ROUNDING + 1e-6
# Pixels on the edge of two classes, among those of the photograph: predictions differ in none to
# some ten of 230 000.
CHANGED = 1e-3

# Input layers only, so that nothing but the loss can stop it.
NET_WITH_UNKNOWN_OPTION = """
layer { name: "data" type: "Input" top: "scores" top: "targets"
        input_param { shape { dim: 2 dim: 3 } shape { dim: 2 dim: 3 } } }
layer { name: "loss" type: "SigmoidCrossEntropyLoss" bottom: "scores" bottom: "targets"
        top: "loss" python_param { param_str: '{"nonsense": 1}' } }
"""


class Demo(NamedTuple):
    folder: Path
    text: str
    found: dict[str, Any]

    def layer(self, name: str) -> dict[str, Any]:
        layers: dict[str, dict[str, Any]] = self.found["layers"]
        return layers[name]


def start(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            missing(name)
    return subprocess.run(
        [sys.executable, str(DEMO), *arguments],
        cwd=folder,
        env={**os.environ, "MPLCONFIGDIR": str(folder), "MPLBACKEND": "Agg", **env},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def stock() -> realcaffe.CaffeBuild:
    try:
        return realcaffe.stock()
    except realcaffe.Missing as reason:
        missing(str(reason))
        raise


@pytest.fixture(scope="module")
def demo(stock: realcaffe.CaffeBuild, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder = tmp_path_factory.mktemp("demo_caffe")
    done = start(folder, "--quick", "--json", "found.json")
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    return Demo(folder, done.stdout, json.loads((folder / "found.json").read_text()))


def test_the_losses_fall(demo: Demo) -> None:
    for name in ("Caffe's", "ours", "ours, pos_weight"):
        curve = demo.layer(name)["curve"]
        assert len(curve) == demo.found["iterations"]
        assert np.mean(curve[-20:]) < curve[0] / 3  # the last epoch


def test_the_curves_are_the_same(demo: Demo) -> None:
    theirs, ours = (np.array(demo.layer(name)["curve"]) for name in ("Caffe's", "ours"))
    difference = np.abs(ours / theirs - 1)
    print(f"losses differ by {difference.max():.1e}, by {difference[0]:.1e} at first")
    assert difference[0] <= FIRST_REL
    assert difference.max() <= CURVE_REL
    # What it prints is this.
    assert demo.found["difference"] == difference.tolist()
    assert demo.found["stock_error"] == STOCK_ERROR


def test_the_predictions_are_the_same(demo: Demo) -> None:
    assert demo.found["changed"] <= CHANGED
    for channel, least in (("coin", 0.95), ("outline", 0.97)):
        theirs = demo.layer("Caffe's")["accuracy"][channel]
        ours = demo.layer("ours")["accuracy"][channel]
        assert abs(ours - theirs) <= CHANGED
        assert ours > least


def test_training_goes_on_from_a_snapshot(demo: Demo) -> None:
    """Same digits in the log, and the same file of weights at the end."""
    half = demo.found["iterations"] // 2
    for name in ("Caffe's", "ours"):
        layer = demo.layer(name)
        assert len(layer["resumed"]) == half
        assert layer["resumed"] == layer["curve"][half:]
        assert layer["same_weights"] is True
    assert demo.text.count(f"resumed at iteration {half}") == 2
    assert "NOT" not in demo.text


def test_pos_weight_finds_more_of_what_is_rare(demo: Demo) -> None:
    before, after = (demo.layer(name)["f1"]["outline"] for name in ("ours", "ours, pos_weight"))
    print(f"F1 of the outlines: {before:.3f}, with pos_weight {after:.3f}")
    assert after > before + 0.1
    assert demo.layer("ours, pos_weight")["f1"]["coin"] > 0.9


def test_the_layer_was_ours(demo: Demo, stock: realcaffe.CaffeBuild, tmp_path: Path) -> None:
    """Its own options are read with the plugin that the demo used, and only with it."""
    assert demo.found["caffe"] == str(stock.binary)
    net = tmp_path / "net.prototxt"
    net.write_text(NET_WITH_UNKNOWN_OPTION)
    command = ("time", f"--model={net}", "--iterations=1")
    assert stock.run(*command).returncode == 0
    done = stock.run(*command, env={"LD_PRELOAD": demo.found["plugin"]}, check=False)
    assert done.returncode != 0
    assert 'unknown option "nonsense"' in done.stderr
    plain, weighted = (demo.layer(name)["curve"][0] for name in ("ours", "ours, pos_weight"))
    # The same weights and data: each outline's term counts five times.
    assert weighted > plain * 1.01


def test_picture(demo: Demo) -> None:
    import matplotlib.image as image

    path = demo.folder / "demo_caffe.png"
    picture = image.imread(path)
    assert picture.shape[0] > 400
    assert picture.shape[1] > 600
    # Each of the two rows of three panels has something in it.
    height, width = picture.shape[0] // 2, picture.shape[1] // 3
    for row in range(2):
        for column in range(3):
            panel = picture[row * height :, column * width :][:height, :width, :3]
            assert panel.std() > 0.05
    assert path.stat().st_size < 300_000


def test_says_what_is_missing(tmp_path: Path) -> None:
    done = start(tmp_path, "--quick", SIGMOID_CE_CAFFE_SRC=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.endswith(f"SIGMOID_CE_CAFFE_SRC={tmp_path} is missing\n")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "demo_caffe.png").exists()


def test_refuses_part_of_an_epoch(tmp_path: Path) -> None:
    done = start(tmp_path, "--iterations", "50")
    assert done.returncode == 2
    assert "expected a multiple of 40" in done.stderr
