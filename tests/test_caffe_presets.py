"""Published losses as nets of our layer: each prototxt of examples/caffe/presets in a real Caffe,
both passes, against the published formula in NumPy; and the same bits as the presets in Python.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sigmoid_ce as sce
from conftest import ROOT, missing
from sigmoid_ce import presets
from sigmoid_ce.bounds import GRADIENT_TERMS_EPS, LOSS_TERMS_EPS
from tests.realcaffe import CaffeBuild, with_overlay
from tests.test_caffe_layer import OVERLAY, built

FOLDER = ROOT / "examples/caffe/presets"
EPS = float(np.finfo(np.float32).eps)
# Roundings beyond those of the loss without options: two weights of the classes and their sum, the
# factors, and the divisor; half of an eps each.
OPTIONS_EPS = 4
# Of the focal factor (1 - s)^gamma, for gamma = 2 and scores of size 20: gamma times the roundings
# of a logarithm of that size.
FOCAL_EPS = 4 * (1 + 2 * (1 + 20))

LOSS_WEIGHT = 3.0


@dataclass
class Loss:
    """One loss layer of a net: its blobs, and what the published formula makes of them."""

    scores: str
    loss: str
    blobs: dict[str, Any]
    want: float
    gradient: Any
    # Sizes of the gradient's terms, which errors are relative to.
    terms: Any
    roundings: float
    # The preset in Python that is the same.
    targets: Any
    preset: dict[str, Any]


def scores(shape: tuple[int, ...], seed: int) -> Any:
    x = np.random.default_rng(seed).normal(0, 3, shape).clip(-20, 20)
    return x.astype(np.float32)


def pieces(x: Any) -> tuple[Any, Any, Any]:
    """In float64: log(1 + exp(x)), log(1 + exp(-x)) and sigmoid(x)."""
    x = x.astype(np.float64)
    return np.log1p(np.exp(x)), np.log1p(np.exp(-x)), 1 / (1 + np.exp(-x))


def sizes(t: Any, s: Any, w: Any, p: Any = 1.0) -> Any:
    """Of the two terms of a gradient of weight w, at targets of 0 and 1."""
    return w * np.where(t == 1, p * (1 - s), s)


def edge(x: Any, t: Any, negative: float, ignored: Any) -> tuple[float, Any, Any]:
    """HED's formula, image after image. Targets are 0 or 1 where they are not ignored."""
    n = len(x)
    total, gradient, terms = 0.0, np.zeros(x.shape), np.zeros(x.shape)
    for i in range(n):
        valid = ~ignored[i]
        positives = float(np.sum((t[i] == 1) & valid))
        negatives = float(np.sum((t[i] == 0) & valid))
        w_positive = negatives / (positives + negatives)
        w_negative = negative * positives / (positives + negatives)
        l0, l1, s = pieces(x[i])
        total += w_positive * np.sum(l1[(t[i] == 1) & valid])
        total += w_negative * np.sum(l0[(t[i] == 0) & valid])
        w = np.where(t[i] == 1, w_positive, w_negative) * valid
        gradient[i] = w * (s - (t[i] == 1)) / n
        terms[i] = sizes(t[i], s, w) / n
    return total / n, gradient, terms


def hed() -> list[Loss]:
    x = scores((2, 1, 12, 15), 1)
    t = (np.random.default_rng(2).random(x.shape) < [[[[0.05]]], [[[0.4]]]]).astype(np.float32)
    want, gradient, terms = edge(x, t, 1.0, np.zeros(x.shape, bool))
    blobs = {"scores": x, "targets": t}
    preset = presets.hed()
    return [Loss("scores", "loss", blobs, want, gradient, terms, OPTIONS_EPS, t, preset)]


def rcf() -> list[Loss]:
    x = scores((2, 1, 12, 15), 3)
    t = np.random.default_rng(4).choice([0, 0, 0, 1, 0.5, 2, -1], x.shape).astype(np.float32)
    want, gradient, terms = edge(x, t, 1.1, (t != 0) & (t != 1))
    blobs = {"scores": x, "targets": t}
    preset = presets.rcf()
    return [Loss("scores", "loss", blobs, want, gradient, terms, OPTIONS_EPS, t, preset)]


def casenet() -> list[Loss]:
    rng = np.random.default_rng(5)
    # Whether a pixel is of each class, and whether it is ignored: then the bits of the labels.
    x = scores((2, 1, 12, 15), 6)
    one = rng.random(x.shape) < 0.3
    ignored = rng.random(x.shape) < 0.2
    words = one.astype(np.uint32) << np.uint32(9) | ignored.astype(np.uint32) << np.uint32(31)
    t = presets.casenet_targets(words.view(np.float32)).astype(np.float32)
    want, gradient, terms = edge(x, one.astype(float), 1.0, ignored)
    blobs = {"edge_scores": x, "edge_targets": t}
    preset = presets.casenet()
    edges = Loss("edge_scores", "edge_loss", blobs, want, gradient, terms, OPTIONS_EPS, t, preset)

    x = scores((2, 40, 6, 7), 7)
    classes = rng.random(x.shape) < 0.02
    ignored = rng.random((2, 6, 7)) < 0.2
    words = np.zeros((2, 2, 6, 7), np.uint32)
    for k in range(40):
        words[:, k // 32] |= classes[:, k].astype(np.uint32) << np.uint32(k % 32)
    words[:, 1] |= ignored.astype(np.uint32) << np.uint32(31)
    labels = words.view(np.float32)
    t = presets.casenet_targets(labels, 40).astype(np.float32)
    weight = presets.casenet_weight(labels, 40)
    l0, l1, s = pieces(x)
    want, gradient, terms = 0.0, np.zeros(x.shape), np.zeros(x.shape)
    for i in range(2):
        any_class = classes[i].any(axis=0) & ~ignored[i]
        positives = float(np.sum(any_class))
        negatives = float(np.sum(~ignored[i])) - positives
        w = np.where(classes[i], negatives, positives) / (positives + negatives) * ~ignored[i]
        want += float(np.sum(w * np.where(classes[i], l1[i], l0[i]))) / 2
        gradient[i] = w * (s[i] - classes[i]) / 2
        terms[i] = sizes(classes[i], s[i], w) / 2
    blobs = {"class_scores": x, "class_targets": t, "class_weights": weight}
    preset = presets.casenet(weight)
    several = Loss(
        "class_scores", "class_loss", blobs, want, gradient, terms, OPTIONS_EPS, t, preset
    )
    return [edges, several]


def detectron() -> list[Loss]:
    x = scores((30, 7), 8)
    t = np.random.default_rng(9).choice([-1, 0, 1], x.shape).astype(np.float32)
    valid = t >= 0
    count = float(np.sum(valid))
    l0, l1, s = pieces(x)
    want = float(np.sum(np.where(t == 1, l1, l0)[valid])) / count
    gradient = valid * (s - t) / count
    terms = sizes(t, s, valid / count)
    preset = presets.detectron()
    blobs = {"scores": x, "targets": t}
    plain = Loss("scores", "loss", blobs, want, gradient, terms, OPTIONS_EPS, t, preset)

    x = scores((2, 12, 5, 6), 10)
    labels = np.random.default_rng(11).choice([-1, 0, 0, 0, 1, 2, 3, 4], (2, 3, 5, 6))
    t = presets.detectron_focal_targets(labels, 4).astype(np.float32)
    # Anchor a's scores of 4 classes side by side.
    want, foreground = 0.0, float(np.sum(labels > 0))
    gradient, terms = np.zeros(x.shape), np.zeros(x.shape)
    l0, l1, s = pieces(x)
    for channel in range(12):
        label = labels[:, channel // 4]
        s1, s0 = s[:, channel], 1 - s[:, channel]
        log_s, log_rest = -l1[:, channel], -l0[:, channel]
        is_one = label == channel % 4 + 1
        is_zero = (label >= 0) & ~is_one
        want -= float(np.sum((0.25 * s0**2 * log_s)[is_one]))
        want -= float(np.sum((0.75 * s1**2 * log_rest)[is_zero]))
        gradient[:, channel] = is_one * 0.25 * s0**2 * (2 * s1 * log_s - s0)
        gradient[:, channel] += is_zero * 0.75 * s1**2 * (s1 - 2 * s0 * log_rest)
        terms[:, channel] = np.abs(gradient[:, channel])
    blobs = {"anchor_scores": x, "anchor_targets": t}
    preset = presets.detectron_focal()
    focal = Loss(
        "anchor_scores",
        "focal_loss",
        blobs,
        want / foreground,
        gradient / foreground,
        terms / foreground,
        OPTIONS_EPS + FOCAL_EPS,
        t,
        preset,
    )
    return [plain, focal]


def weighted() -> list[Loss]:
    x = scores((16, 20), 12)
    t = (np.random.default_rng(13).random(x.shape) < 0.1).astype(np.float32)
    _, l1, s = pieces(x)
    want = float(np.sum((1.0 - t) * x.astype(np.float64) + (1.0 + 99.0 * t) * l1))
    gradient = (99.0 * t + 1) * s - 100.0 * t
    blobs = {"scores": x, "targets": t}
    preset = presets.weighted(100)
    terms = sizes(t, s, 1.0, 100.0)
    return [Loss("scores", "loss", blobs, want, gradient, terms, OPTIONS_EPS, t, preset)]


def pytorch() -> list[Loss]:
    x = scores((4, 3, 5, 6), 14)
    t = np.random.default_rng(15).random(x.shape).astype(np.float32)
    p = np.array([1, 5, 0.5]).reshape(3, 1, 1)
    l0, l1, s = pieces(x)
    losses = (1.0 - t) * l0 + p * t * l1
    gradient = ((1.0 - t) * s - p * t * (1 - s)) / x.size
    terms = ((1.0 - t) * s + p * t * (1 - s)) / x.size
    blobs = {"scores": x, "targets": t}
    preset = presets.pytorch(pos_weight=[1, 5, 0.5])
    want = float(np.mean(losses))
    return [Loss("scores", "loss", blobs, want, gradient, terms, OPTIONS_EPS, t, preset)]


PRESETS = {
    "casenet": casenet,
    "detectron": detectron,
    "hed": hed,
    "pytorch": pytorch,
    "rcf": rcf,
    "weighted": weighted,
}

RUN = """
import json, sys
import numpy as np
import caffe
net = caffe.Net(sys.argv[1], caffe.TEST)
inputs, results = dict(np.load(sys.argv[2])), {}
for name, value in inputs.items():
    assert net.blobs[name].data.shape == value.shape, name
    net.blobs[name].data[...] = value
net._forward(0, len(net.layers) - 1)
for loss in json.loads(sys.argv[4]):
    net.blobs[loss].diff[...] = float(sys.argv[5])
net._backward(len(net.layers) - 1, 0)
for name, blob in net.blobs.items():
    results[name] = blob.data.copy()
    if name in inputs and "scores" in name:
        results[name + " gradient"] = blob.diff.copy()
np.savez(sys.argv[3], **results)
"""


@pytest.fixture(scope="module")
def caffe() -> CaffeBuild:
    ours = built(lambda: with_overlay(OVERLAY))
    if ours.pycaffe is None:
        missing(ours.no_pycaffe)
    return ours


def run(caffe: CaffeBuild, text: str, losses: list[Loss], folder: Path) -> Any:
    (folder / "net.prototxt").write_text(f"force_backward: true\n{text}")
    blobs = {name: value for loss in losses for name, value in loss.blobs.items()}
    np.savez(folder / "inputs.npz", **blobs)
    names = json.dumps([loss.loss for loss in losses])
    files = [folder / name for name in ("net.prototxt", "inputs.npz", "results.npz")]
    caffe.python(RUN, *files, names, str(LOSS_WEIGHT), env={"GLOG_minloglevel": "2"})
    return np.load(folder / "results.npz")


def loss_tolerance(loss: Loss) -> float:
    """Of a sum of losses of one sign, rounded once."""
    return (LOSS_TERMS_EPS + loss.roundings + 0.5) * EPS * abs(loss.want)


@pytest.mark.parametrize("name", PRESETS)
def test_preset(name: str, caffe: CaffeBuild, tmp_path: Path) -> None:
    losses = PRESETS[name]()
    text = (FOLDER / f"{name}.prototxt").read_text()
    results = run(caffe, text, losses, tmp_path)
    for loss in losses:
        got = float(results[loss.loss])
        assert abs(got - loss.want) <= loss_tolerance(loss)
        gradient = results[f"{loss.scores} gradient"]
        tiny = float(np.finfo(np.float32).tiny)
        bound = (GRADIENT_TERMS_EPS + loss.roundings + 1) * EPS * LOSS_WEIGHT * loss.terms + tiny
        assert np.all(np.abs(gradient - LOSS_WEIGHT * loss.gradient) <= bound)
        assert np.abs(loss.gradient).max() > 0

        # The preset in Python: the same bits.
        x = loss.blobs[loss.scores]
        want, bits = sce.forward_backward(x, loss.targets, loss_weight=LOSS_WEIGHT, **loss.preset)
        assert got == np.float32(want)
        np.testing.assert_array_equal(gradient, bits)


def test_losses_of_the_elements(caffe: CaffeBuild, tmp_path: Path) -> None:
    """The second top of pytorch.prototxt, which stands for reduction="none"."""
    (loss,) = pytorch()
    results = run(caffe, (FOLDER / "pytorch.prototxt").read_text(), [loss], tmp_path)
    l0, l1, _ = pieces(loss.blobs["scores"])
    p = np.array([1, 5, 0.5]).reshape(3, 1, 1)
    want = (1.0 - loss.targets) * l0 + p * loss.targets * l1
    np.testing.assert_allclose(results["losses"], want, rtol=(LOSS_TERMS_EPS + 1) * EPS)


def test_options_matter(caffe: CaffeBuild, tmp_path: Path) -> None:
    """Without its param_str a net computes something else, by more than the tolerance."""
    for name in ("hed", "rcf", "detectron", "weighted", "pytorch"):
        losses = PRESETS[name]()
        text = (FOLDER / f"{name}.prototxt").read_text()
        assert text.count("param_str: ") == 1
        before, _, after = text.partition("param_str: '")
        results = run(
            caffe, f"{before}param_str: '{{}}{after[after.index(chr(39)) :]}", losses, tmp_path
        )
        loss = losses[-1]
        assert abs(float(results[loss.loss]) - loss.want) > 10 * loss_tolerance(loss)


def test_every_preset_is_tested() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(PRESETS)
