"""sce.presets: each published formula written out in NumPy, and where ours differs on purpose.

Also docs/losses.md: its table of differences, what it says of float16, and its pictures.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sigmoid_ce as sce
from sigmoid_ce import presets
from test_peers import load

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "losses.md"

# The published formulas are computed in float64 on the data that ours gets. They form s - t and add
# a few hundred losses, each with absolute errors of some eps, and weights up to 100 multiply them.
# Ours in float32 has its own rounding of 6e-8, some of them per element.
RELATIVE = {"float64": 1e-12, "float32": 2e-6}
ABSOLUTE = {"float64": 1e-13, "float32": 1e-5}

DTYPES = ("float32", "float64")
dtypes = pytest.mark.parametrize("dtype", DTYPES)

# Images of one channel or more, in which P and M differ.
SHAPE = (4, 2, 6, 5)

Result = tuple[float, Any]


# ---- The published formulas ----


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def cross_entropy(x: Any, t: Any) -> Any:
    return np.maximum(x, 0) - x * t + np.log1p(np.exp(-np.abs(x)))


def published_hed(x: Any, t: Any, negative_scale: float = 1.0) -> Result:
    """s9xie/hed: other targets have no loss, and a gradient without a weight."""
    n = len(x)
    loss = 0.0
    gradient = sigmoid(x) - t
    for i in range(n):
        positive, negative = t[i] == 1, t[i] == 0
        p, m = float(positive.sum()), float(negative.sum())
        with np.errstate(invalid="ignore"):  # 0 / 0 is one of its faults
            w_positive, w_negative = np.float64(m) / (p + m), np.float64(p) / (p + m)
        w_negative *= negative_scale
        losses = cross_entropy(x[i], t[i])
        loss += losses[positive].sum() * w_positive + losses[negative].sum() * w_negative
        gradient[i][positive] *= w_positive
        gradient[i][negative] *= w_negative
    return loss / n, gradient / n


def published_rcf(x: Any, t: Any) -> Result:
    """yun-liu/RCF: negatives times 1.1, other targets ignored in both passes."""
    loss, gradient = published_hed(x, t, 1.1)
    gradient[(t != 0) & (t != 1)] = 0
    return loss, gradient


def published_casenet(x: Any, words: Any) -> Result:
    """ReweightedSigmoidCrossEntropyLoss; words: uint32, the shape of x."""
    n = len(x)
    loss, gradient = 0.0, np.zeros_like(x)
    for i in range(n):
        scores, bits = x[i].ravel(), words[i].ravel()
        out = gradient[i].reshape(-1)
        kept = [j for j in range(bits.size) if not int(bits[j]) >> 31]
        p = sum(bits[j] != 0 for j in kept)
        m = len(kept) - p
        if not kept:
            raise SystemExit("All pixels ignored!")
        for j in kept:
            t = int(bits[j] != 0)
            w = m / (p + m) if t else p / (p + m)
            loss += w * cross_entropy(scores[j], t)
            out[j] = w * (sigmoid(scores[j]) - t) / n
    return loss / n, gradient


def published_casenet_channels(x: Any, words: Any) -> Result:
    """MultiChannelReweightedSigmoidCrossEntropyLoss; words: uint32 (N, L, H, W)."""
    n, channels, height, width = x.shape
    loss, gradient = 0.0, np.zeros_like(x)
    for i in range(n):
        p = m = 0
        pixels = [
            (a, b) for a in range(height) for b in range(width) if not int(words[i, -1, a, b]) >> 31
        ]
        for a, b in pixels:
            if any(words[i, k, a, b] != 0 for k in range(channels // 32 + 1)):
                p += 1
            else:
                m += 1
        for k in range(channels):
            for a, b in pixels:
                t = int(words[i, k // 32, a, b]) >> (k % 32) & 1
                w = m / (p + m) if t else p / (p + m)
                loss += w * cross_entropy(x[i, k, a, b], t)
                gradient[i, k, a, b] = w * (sigmoid(x[i, k, a, b]) - t) / n
    return loss / n, gradient


def published_detectron(x: Any, t: Any, scale: float, normalize: bool) -> Result:
    """The Caffe2 operator SigmoidCrossEntropyLoss."""
    kept = t != -1
    divisor = max(kept.sum(), 1e-5) if normalize else 1
    loss = np.where(kept, cross_entropy(x, t), 0).sum() * scale / divisor
    return loss, np.where(kept, sigmoid(x) - t, 0) * scale / divisor


def published_detectron_focal(
    x: Any, labels: Any, classes: int, gamma: float, alpha: float, scale: float, foreground: float
) -> Result:
    """The Caffe2 operator SigmoidFocalLoss; x (N, A * classes, H, W), labels (N, A, H, W)."""
    s = sigmoid(x)
    divisor = max(foreground, 1.0)
    z_positive, z_negative = alpha / divisor, (1 - alpha) / divisor
    log_s = np.log(np.maximum(s, np.finfo(np.float32).tiny))
    log_rest = -x * (x >= 0) - np.log(1 + np.exp(x - 2 * x * (x >= 0)))
    losses, gradient = np.zeros_like(x), np.zeros_like(x)
    for c in range(x.shape[1]):
        label = labels[:, c // classes]
        yes = label == c % classes + 1
        no = (label != -1) & ~yes
        q, lq, lr = s[:, c], log_s[:, c], log_rest[:, c]
        losses[:, c] -= yes * (1 - q) ** gamma * lq * z_positive
        losses[:, c] -= no * q**gamma * lr * z_negative
        gradient[:, c] -= yes * z_positive * (1 - q) ** gamma * (1 - q - q * gamma * lq)
        gradient[:, c] -= no * z_negative * q**gamma * (lr * (1 - q) * gamma - q)
    return losses.sum() * scale, gradient * scale


def published_weighted(x: Any, t: Any, cls_weight: float) -> Result:
    """SigmoidCrossEntropyWeightLossLayer.py."""
    with np.errstate(over="ignore"):  # one of its faults
        loss = np.sum(-(t - 1) * x - ((1 - cls_weight) * t - 1) * np.log(1 + np.exp(-x)))
        return loss, ((cls_weight - 1) * t + 1) * sigmoid(x) - cls_weight * t


def published_pytorch(x: Any, t: Any, weight: Any, pos_weight: Any, reduction: str) -> Result:
    """BCEWithLogitsLoss; pos_weight of shape (C, 1, 1)."""
    factor = (pos_weight - 1) * t + 1
    losses = weight * ((1 - t) * x + factor * (np.log1p(np.exp(-np.abs(x))) + np.maximum(-x, 0)))
    gradient = weight * (factor * sigmoid(x) - pos_weight * t)
    divisor = x.size if reduction == "mean" else 1
    return losses.sum() / divisor, gradient / divisor


# ---- Data ----


def scores(rng: Any, shape: tuple[int, ...], dtype: str) -> Any:
    return rng.normal(0, 3, shape).astype(dtype)


def images(rng: Any, kind: str) -> Any:
    """Targets of SHAPE, mostly 0."""
    t = (rng.random(SHAPE) < 0.2).astype(np.float32)
    if kind == "one class":
        t[1], t[2] = 0, 1
    if kind == "others":
        t[rng.random(SHAPE) < 0.3] = 0.25
        t[rng.random(SHAPE) < 0.1] = 0.75
        t[rng.random(SHAPE) < 0.1] = 2
    return t


def ours(x: Any, t: Any, options: dict[str, Any]) -> Result:
    """Loss and gradient, the same from each function and from the layer."""
    loss, gradient = sce.forward_backward(x, t, **options)
    layer = sce.SigmoidCrossEntropyLoss(**options)
    assert sce.forward(x, t, **options) == layer.forward(x, t) == loss
    assert np.array_equal(sce.backward(x, t, **options), gradient)
    assert np.array_equal(layer.backward(), gradient)
    return loss, gradient


def check(found: Result, expected: Result, dtype: str) -> None:
    loss, gradient = expected
    assert np.isfinite(loss)
    close = {"rtol": RELATIVE[dtype], "atol": ABSOLUTE[dtype]}
    np.testing.assert_allclose(found[0], loss, **close)
    np.testing.assert_allclose(found[1], gradient, **close)
    assert np.any(found[1] != 0)


# ---- Ours are the published ----


@dtypes
@pytest.mark.parametrize("kind", ["plain", "one class"])
def test_hed(dtype: str, kind: str) -> None:
    rng = np.random.default_rng(1)
    x, t = scores(rng, SHAPE, dtype), images(rng, kind)
    expected = published_hed(x.astype(np.float64), t)
    for uncertain in ("soft", "ignore"):
        found = ours(x, t.astype(np.uint8), presets.hed(uncertain=uncertain))
        check(found, expected, dtype)
    if kind == "one class":
        assert np.all(found[1][1:3] == 0)


@dtypes
@pytest.mark.parametrize("kind", ["plain", "one class", "others"])
def test_rcf(dtype: str, kind: str) -> None:
    rng = np.random.default_rng(2)
    x, t = scores(rng, SHAPE, dtype), images(rng, kind)
    check(ours(x, t.astype(dtype), presets.rcf()), published_rcf(x.astype(np.float64), t), dtype)
    if kind != "others":
        tripled = published_hed(x.astype(np.float64), t, 3.0)
        check(ours(x, t.astype(dtype), presets.rcf(negative_scale=3.0)), tripled, dtype)


def flags(rng: Any, shape: tuple[int, ...], share: float) -> Any:
    """uint32 with random bits, of which a good part are 0."""
    words = rng.integers(0, 2**31, shape).astype(np.uint32)
    return np.where(rng.random(shape) < share, words, np.uint32(0))


@dtypes
@pytest.mark.parametrize("label_dtype", [np.float32, np.uint32, np.int32])
def test_casenet(dtype: str, label_dtype: Any) -> None:
    rng = np.random.default_rng(3)
    shape = (4, 1, 6, 5)
    words = flags(rng, shape, 0.2)
    words[1], words[2] = 0, 5  # images of one class
    words[rng.random(shape) < 0.2] |= np.uint32(1 << 31)
    words[0, 0, 0, :3] = 0x7FC00001, 0x80000000, 1  # NaN, -0, the smallest subnormal
    x = scores(rng, shape, dtype)
    targets = presets.casenet_targets(words.view(label_dtype))
    assert targets.dtype == np.uint8
    assert targets.shape == shape
    assert targets[0, 0, 0, :3].tolist() == [1, presets.CASENET_IGNORED, 1]
    # Any layout: a view with other strides has the same bits.
    turned = np.asfortranarray(words.view(label_dtype))
    assert np.array_equal(presets.casenet_targets(turned), targets)
    expected = published_casenet(x.astype(np.float64), words)
    check(ours(x, targets, presets.casenet()), expected, dtype)


@dtypes
@pytest.mark.parametrize(("channels", "n_words"), [(1, 1), (20, 1), (31, 1), (33, 2), (40, 3)])
def test_casenet_channels(dtype: str, channels: int, n_words: int) -> None:
    rng = np.random.default_rng(channels)
    words = flags(rng, (4, n_words, 3, 5), 0.3)
    words[1] = 0
    words[2] |= np.uint32(1)  # every pixel has a class
    words[:, -1][rng.random((4, 3, 5)) < 0.2] |= np.uint32(1 << 31)
    words[3, -1] |= np.uint32(1 << 31)  # all ignored: 0 in this layer
    x = scores(rng, (4, channels, 3, 5), dtype)
    labels = words.view(np.float32)
    targets = presets.casenet_targets(labels, channels)
    weight = presets.casenet_weight(labels, channels, dtype=dtype)
    assert targets.shape == weight.shape == x.shape
    assert weight.dtype == dtype
    expected = published_casenet_channels(x.astype(np.float64), words)
    found = ours(x, targets, presets.casenet(weight))
    check(found, expected, dtype)
    assert np.all(found[1][[1, 3]] == 0)
    # Where every pixel has a class, the other channels of it weigh 1.
    assert np.all(weight[2][targets[2] == 0] == 1)


def test_casenet_channels_are_no_balance() -> None:
    """What casenet() without the weights counts instead, which its docstring says."""
    rng = np.random.default_rng(4)
    words = flags(rng, (2, 1, 6, 5), 0.3)
    x = scores(rng, (2, 5, 6, 5), "float64")
    targets = presets.casenet_targets(words, 5)
    found = ours(x, targets, presets.casenet())
    check(found, published_hed(x, targets.astype(np.float64)), "float64")
    assert found[0] != pytest.approx(published_casenet_channels(x, words)[0], rel=0.01)


@pytest.mark.parametrize("labels", [[0.0], np.zeros(2), np.zeros(2, np.int64), np.zeros(2, ">f4")])
def test_casenet_wants_32_bits(labels: Any) -> None:
    with pytest.raises(TypeError, match="labels: expected float32, uint32 or int32, whose bits"):
        presets.casenet_targets(labels)
    with pytest.raises(TypeError, match="labels: expected float32, uint32 or int32, whose bits"):
        presets.casenet_weight(labels, 1)


@pytest.mark.parametrize("channels", [0, -1, 32])
def test_casenet_channels_that_labels_lack(channels: int) -> None:
    labels = np.zeros((2, 1, 3, 3), np.float32)
    for function in (presets.casenet_targets, presets.casenet_weight):
        with pytest.raises(ValueError, match=rf"channels: expected 1 to 31 .* got {channels}$"):
            function(labels, channels)
        with pytest.raises(TypeError, match=r"^channels: expected an int, got float"):
            function(labels, 2.5)  # type: ignore[arg-type]
        with pytest.raises(
            ValueError, match=r"labels: expected shape \(N, L, \.\.\.\), got \(2,\)"
        ):
            function(labels[:, 0, 0, 0], 1)


@dtypes
@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("normalize", [True, False])
def test_detectron(dtype: str, scale: float, normalize: bool) -> None:
    rng = np.random.default_rng(5)
    x, t = scores(rng, (6, 40), dtype), rng.integers(-1, 2, (6, 40)).astype(np.int32)
    expected = published_detectron(x.astype(np.float64), t, scale, normalize)
    found = ours(x, t, presets.detectron(scale=scale, normalize=normalize))
    check(found, expected, dtype)
    assert np.all(found[1][t == -1] == 0)


@dtypes
@pytest.mark.parametrize("kind", ["plain", "one class", "no foreground", "given"])
@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (1.0, 0.5), (0.0, 0.25), (0.5, 1.0)])
def test_detectron_focal(dtype: str, kind: str, gamma: float, alpha: float) -> None:
    rng = np.random.default_rng(6)
    classes, anchors = 3, 2
    labels = rng.integers(-1, classes + 1, (2, anchors, 4, 5)).astype(np.int32)
    if kind == "one class":
        labels = np.abs(labels) + (labels == 0)
    if kind == "no foreground":
        labels = np.minimum(labels, 0)
    foreground = 7.5 if kind == "given" else float((labels > 0).sum())
    x = scores(rng, (2, anchors * classes, 4, 5), dtype)
    targets = presets.detectron_focal_targets(labels, classes)
    assert targets.dtype == np.int8
    assert targets.shape == x.shape
    # F is the number of targets that are 1.
    assert (targets == 1).sum() == (labels > 0).sum()
    options = presets.detectron_focal(
        gamma=gamma,
        alpha=alpha,
        scale=0.5,
        foreground=foreground if kind == "given" else None,
    )
    expected = published_detectron_focal(
        x.astype(np.float64), labels, classes, gamma, alpha, 0.5, foreground
    )
    if kind == "no foreground" and alpha == 1:  # nothing has a weight
        assert ours(x, targets, options)[0] == expected[0] == 0
    else:
        check(ours(x, targets, options), expected, dtype)


def test_detectron_focal_without_alpha() -> None:
    rng = np.random.default_rng(7)
    x, t = scores(rng, SHAPE, "float64"), images(rng, "plain").astype(np.int8)
    half = ours(x, t, presets.detectron_focal(alpha=0.5, scale=2.0))
    none = ours(x, t, presets.detectron_focal(alpha=None))
    assert none[0] == half[0]  # factors that are powers of 2
    assert np.array_equal(none[1], half[1])


def test_detectron_focal_targets_refuses() -> None:
    with pytest.raises(TypeError, match="labels: expected integers, got float64"):
        presets.detectron_focal_targets(np.zeros((1, 1)), 2)
    with pytest.raises(ValueError, match=r"labels: expected shape \(N, A, \.\.\.\), got \(4,\)"):
        presets.detectron_focal_targets(np.zeros(4, int), 2)
    with pytest.raises(TypeError, match=r"^classes: expected an int, got float"):
        presets.detectron_focal_targets(np.zeros((1, 1), int), 1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="classes: expected at least 1, got 0"):
        presets.detectron_focal_targets(np.zeros((1, 1), int), 0)
    with pytest.raises(ValueError, match="labels: expected -1 to 2, got -2"):
        presets.detectron_focal_targets(np.full((1, 1), -2), 2)


@dtypes
@pytest.mark.parametrize("cls_weight", [100.0, 1.0, 0.0, 0.5])
@pytest.mark.parametrize("kind", ["plain", "one class", "others"])
def test_weighted(dtype: str, cls_weight: float, kind: str) -> None:
    rng = np.random.default_rng(8)
    x, t = scores(rng, SHAPE, dtype), images(rng, kind)
    expected = published_weighted(x.astype(np.float64), t.astype(np.float64), cls_weight)
    check(ours(x, t.astype(dtype), presets.weighted(cls_weight)), expected, dtype)


@dtypes
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", ["plain", "one class", "others"])
def test_pytorch(dtype: str, reduction: Any, kind: str) -> None:
    rng = np.random.default_rng(9)
    x, t = scores(rng, SHAPE, dtype), images(rng, kind).astype(dtype)
    weight = rng.random(SHAPE[-2:]).astype(dtype)
    pos_weight = np.array([3, 0.5], dtype).reshape(2, 1, 1)
    double = [a.astype(np.float64) for a in (x, t, weight, pos_weight)]
    expected = published_pytorch(*double, reduction)
    options = presets.pytorch(pos_weight=pos_weight, weight=weight, reduction=reduction)
    check(ours(x, t, options), expected, dtype)
    plain = published_pytorch(*double[:2], 1.0, 1.0, reduction)
    check(ours(x, t, presets.pytorch(reduction=reduction)), plain, dtype)


def test_pytorch_itself() -> None:
    torch = load("torch")
    rng = np.random.default_rng(10)
    x, t = scores(rng, SHAPE, "float64"), images(rng, "others").astype(np.float64)
    weight, pos_weight = rng.random(SHAPE[-2:]), np.array([3, 0.5]).reshape(2, 1, 1)
    for reduction in ("mean", "sum", "none"):
        logits = torch.tensor(x, requires_grad=True)
        loss = torch.nn.BCEWithLogitsLoss(
            weight=torch.tensor(weight), pos_weight=torch.tensor(pos_weight), reduction=reduction
        )(logits, torch.tensor(t))
        options = presets.pytorch(pos_weight=pos_weight, weight=weight, reduction=reduction)
        if reduction == "none":
            close = {"rtol": RELATIVE["float64"], "atol": ABSOLUTE["float64"]}
            np.testing.assert_allclose(
                sce.elementwise(x, t, **options), loss.detach().numpy(), **close
            )
            continue
        loss.backward()
        check(ours(x, t, options), (loss.item(), logits.grad.numpy()), "float64")


def test_pytorch_reduction() -> None:
    expected = 'reduction: expected "mean", "sum" or "none", got'
    with pytest.raises(ValueError, match=expected):
        presets.pytorch(reduction="avg")  # type: ignore[arg-type]


PRESETS: dict[str, Callable[[], dict[str, Any]]] = {
    "hed": presets.hed,
    "rcf": presets.rcf,
    "casenet": presets.casenet,
    "detectron": presets.detectron,
    "detectron_focal": presets.detectron_focal,
    "weighted": lambda: presets.weighted(10.0),
    "pytorch": presets.pytorch,
}
every_preset = pytest.mark.parametrize("name", PRESETS)


def test_every_preset_is_here() -> None:
    helpers = {"CASENET_IGNORED", "casenet_targets", "casenet_weight", "detectron_focal_targets"}
    assert PRESETS.keys() | helpers == set(presets.__all__)
    assert "presets" in sce.__all__


@every_preset
@pytest.mark.parametrize("shape", [(0, 2, 3, 3), (3, 2, 0, 3)])
def test_empty(name: str, shape: tuple[int, ...]) -> None:
    found = ours(np.zeros(shape, np.float32), np.zeros(shape, np.uint8), PRESETS[name]())
    assert found[0] == 0
    assert found[1].shape == shape


@every_preset
def test_each_call_gives_its_own_options(name: str) -> None:
    first = PRESETS[name]()
    first["normalization"] = 3
    assert PRESETS[name]()["normalization"] != 3


# ---- Where ours differ on purpose ----

# System, what it does, what ours does: the rows of the table in docs/losses.md. A test each.
DIFFERENCES = {
    "others_of_hed": (
        "HED",
        "a target other than 0 and 1 has no loss, and the gradient (s - t) / n",
        "loss and gradient of one function: between the classes, or ignored (`uncertain`)",
    ),
    "images_without_classes": (
        "HED, RCF",
        "an image without any target 0 or 1 makes the loss NaN",
        "it adds 0",
    ),
    "counts": (
        "HED, RCF, CASENet",
        "counts in float32, which stop at 2^24",
        "64-bit integers",
    ),
    "ignored_images": (
        "CASENet, one channel",
        "an image of which every pixel is ignored ends the process",
        "it adds 0",
    ),
    "divisor_of_detectron": (
        "Detectron",
        "the divisor is max(V, 1e-5)",
        "max(V, 1): the same wherever anything is valid, and 0 / 1 for 0 / 1e-5 elsewhere",
    ),
    "floor_of_the_focal_loss": (
        "Detectron, focal",
        "log max(s, FLT_MIN): the loss of a positive stays at 87.3 alpha below x = -87.3",
        "it follows the score, as its gradient does",
    ),
    "classes_that_do_not_exist": (
        "Detectron, focal",
        "a class number above the number of classes is background",
        "`detectron_focal_targets` refuses it",
    ),
    "overflow_of_the_weighted_layer": (
        "weighted",
        "exp(-x) overflows in float32 below x = -88: the loss is infinite",
        "no score overflows",
    ),
    "loss_weight_of_the_weighted_layer": (
        "weighted",
        "the gradient leaves out the top's diff, and `loss_weight` with it",
        "`loss_weight` is a factor",
    ),
    "mean_of_nothing": (
        "PyTorch",
        "the mean of no elements is NaN",
        "0",
    ),
    "infinite_scores": (
        "PyTorch",
        "an infinite score that is right has the loss NaN (0 times infinity)",
        "0, the limit",
    ),
    "pos_weight_by_channel": (
        "PyTorch",
        "`pos_weight` of shape (C,) belongs to the last axis",
        "to axis 1; (C, 1, 1) means the same in both for (N, C, H, W)",
    ),
    "tails": (
        "all",
        "in float32 the gradient of a positive is 0 from x = 17 on",
        "exact to 2 ulp: -exp(-x)",
    ),
    "sums": (
        "HED, RCF, CASENet",
        "losses are added in float32, one after the other: 0.07% off at 2^20 elements",
        "exact sums of blocks",
    ),
}


def test_table_of_differences() -> None:
    """The page has these rows, and each has its test."""
    rows = [" | ".join(row) for row in DIFFERENCES.values()]
    page = PAGE.read_text(encoding="utf-8")
    table = page.split("| system | what it does | ours |\n", 1)[1].split("\n\n", 1)[0]
    assert [line.strip("| ") for line in table.splitlines()[1:]] == rows
    tests = {name for name in globals() if name.startswith("test_differs_")}
    assert tests == {f"test_differs_{name}" for name in DIFFERENCES}


def test_differs_others_of_hed() -> None:
    x = np.array([[-1.0, 2.0, 0.5, 1.5]])
    t = np.array([[1.0, 0.0, 0.0, 0.25]])
    theirs = published_hed(x, t)
    alone = published_hed(x[:, :3], t[:, :3])
    assert theirs[0] == alone[0]
    assert theirs[1][0, 3] == sigmoid(1.5) - 0.25
    # w+ = 2/3, w- = 1/3.
    w = 0.25 * 2 / 3 + 0.75 / 3
    soft = ours(x, t, presets.hed())
    assert soft[0] == pytest.approx(alone[0] + w * cross_entropy(1.5, 0.25), rel=1e-14)
    assert soft[1][0, 3] == pytest.approx(w * (sigmoid(1.5) - 0.25), rel=1e-14)
    ignore = ours(x, t, presets.hed(uncertain="ignore"))
    assert ignore[0] == pytest.approx(alone[0], rel=1e-14)
    assert ignore[1][0, 3] == 0


def test_differs_images_without_classes() -> None:
    x = np.array([[-1.0, 2.0], [0.5, 1.5]])
    t = np.array([[1.0, 0.0], [0.25, 0.5]])
    for published, options in (
        (published_hed, presets.hed()),
        (published_hed, presets.hed(uncertain="ignore")),
        (published_rcf, presets.rcf()),
    ):
        assert np.isnan(published(x, t)[0])
        loss, gradient = ours(x, t, options)
        # n counts the image all the same.
        assert loss == pytest.approx(published(x[:1], t[:1])[0] / 2, rel=1e-14)
        assert np.all(gradient[1] == 0)


def test_differs_counts() -> None:
    assert np.float32(2**24) + np.float32(1) == 2**24
    p, m = 2**24 + 2**22, 2**22
    t = np.ones((1, p + m), np.uint8)
    t[0, :m] = 0
    x = np.broadcast_to(np.float32(0), t.shape)
    # Every element has the loss log 2, so the positives have M / (P + M) P log 2, as the negatives.
    loss = sce.forward(x, t, **presets.hed())
    assert loss == pytest.approx(2 * np.log(2) * p * m / (p + m), rel=1e-7)
    stuck = float(2**24)
    theirs = np.log(2) * (p * m + m * stuck) / (stuck + m)
    assert abs(theirs / loss - 1) > 0.05


def test_differs_ignored_images() -> None:
    words = np.array([[[1, 0, 0]], [[1 << 31] * 3]], np.uint32)
    x = np.array([[[-1.0, 2.0, 3.0]], [[0.5, 1.5, 2.5]]])
    with pytest.raises(SystemExit):
        published_casenet(x, words)
    loss, gradient = ours(x, presets.casenet_targets(words), presets.casenet())
    assert loss == pytest.approx(published_casenet(x[:1], words[:1])[0] / 2, rel=1e-14)
    assert np.all(gradient[1] == 0)


def test_differs_divisor_of_detectron() -> None:
    x, ignored = np.array([1.0, 2.0]), np.array([-1, -1], np.int32)
    theirs = published_detectron(x, ignored, 1.0, True)
    loss, gradient = ours(x, ignored, presets.detectron())
    assert theirs[0] == loss == 0
    assert np.all(theirs[1] == 0)
    assert np.all(gradient == 0)
    # With an element of weight 0 alone, V is 1 in both.
    one = np.array([-1, 1], np.int32)
    assert ours(x, one, presets.detectron())[0] == pytest.approx(
        published_detectron(x, one, 1.0, True)[0], rel=1e-14
    )


def test_differs_floor_of_the_focal_loss() -> None:
    x, label = np.full((1, 1, 1, 1), -100.0), np.ones((1, 1, 1, 1), np.int32)
    theirs = published_detectron_focal(x, label, 1, 2.0, 0.25, 1.0, 1.0)
    assert theirs[0] == pytest.approx(0.25 * 87.3, rel=1e-3)
    assert published_detectron_focal(2 * x, label, 1, 2.0, 0.25, 1.0, 1.0)[0] == theirs[0]
    targets = presets.detectron_focal_targets(label, 1)
    loss, gradient = ours(x.astype(np.float32), targets, presets.detectron_focal())
    assert loss == pytest.approx(25, rel=1e-6)
    assert gradient.item() == theirs[1].item() == -0.25


def test_differs_classes_that_do_not_exist() -> None:
    label = np.full((1, 1, 1, 1), 3)
    x = np.zeros((1, 2, 1, 1))
    assert np.all(published_detectron_focal(x, label, 2, 2.0, 0.25, 1.0, 1.0)[1] > 0)
    with pytest.raises(ValueError, match="labels: expected -1 to 2, got 3"):
        presets.detectron_focal_targets(label, 2)


def test_differs_overflow_of_the_weighted_layer() -> None:
    x, t = np.array([-89.0], np.float32), np.array([1.0], np.float32)
    assert published_weighted(x, t, np.float32(2))[0] == np.inf
    assert ours(x, t, presets.weighted(2.0))[0] == 178


def test_differs_loss_weight_of_the_weighted_layer() -> None:
    x, t = np.array([1.0, -2.0]), np.array([1.0, 0.0])
    theirs = published_weighted(x, t, 3.0)[1]  # whatever the top's diff is
    gradient = sce.backward(x, t, **presets.weighted(3.0), loss_weight=0.5)
    np.testing.assert_allclose(gradient, 0.5 * theirs, rtol=1e-13)


def test_differs_mean_of_nothing() -> None:
    torch = load("torch")
    nothing = torch.zeros(0, 3)
    assert torch.nn.BCEWithLogitsLoss()(nothing, nothing).isnan()
    assert sce.forward(nothing, nothing, **presets.pytorch()) == 0


def test_differs_infinite_scores() -> None:
    torch = load("torch")
    x, t = torch.tensor([np.inf, -np.inf]), torch.tensor([1.0, 0.0])
    assert torch.nn.BCEWithLogitsLoss(reduction="none")(x, t).isnan().any()
    assert sce.elementwise(x, t, **presets.pytorch(reduction="none")).tolist() == [0, 0]


def test_differs_pos_weight_by_channel() -> None:
    torch = load("torch")
    rng = np.random.default_rng(11)
    x = torch.tensor(scores(rng, (2, 3, 4, 3), "float64"))
    t = (torch.tensor(rng.random(x.shape)) < 0.5).double()
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    by_axis_1, by_last = (
        torch.nn.BCEWithLogitsLoss(pos_weight=w)(x, t).item()
        for w in (weights.reshape(3, 1, 1), weights)
    )
    assert abs(by_axis_1 / by_last - 1) > 0.01
    for w in (weights, weights.reshape(3, 1, 1)):
        assert sce.forward(x, t, **presets.pytorch(pos_weight=w)) == pytest.approx(by_axis_1)


@every_preset
def test_differs_tails(name: str) -> None:
    x = np.float32([[17, 20, 30, 0]])
    t = np.uint8([[1, 1, 1, 0]])
    one = np.float32(1)
    assert np.all(one / (one + np.exp(-x[0, :3])) - one == 0)
    options = PRESETS[name]() | {"normalization": "none"}
    gamma = options.pop("gamma", 0.0)  # which makes it r^gamma times smaller
    gradient = sce.backward(x, t, **options)[0, :3].astype(np.float64)
    w = {"hed": 0.25, "rcf": 0.25, "casenet": 0.25, "weighted": 10, "detectron_focal": 0.25}
    s = 1 / (1 + np.exp(x[0, :3].astype(np.float64)))
    # 2 ulp, at most 2^-22 of the value, and as many roundings of the weight.
    np.testing.assert_allclose(gradient, -w.get(name, 1) * s, rtol=2.0**-21)
    assert np.all(sce.backward(x, t, gamma=gamma, **options)[0, :2] < 0)


def test_gradient_of_pytorch_has_no_tail_either() -> None:
    torch = load("torch")
    x = torch.tensor([20.0], requires_grad=True)
    torch.nn.BCEWithLogitsLoss()(x, torch.ones(1)).backward()
    assert x.grad is not None
    assert x.grad.item() == 0


def test_differs_sums() -> None:
    rng = np.random.default_rng(12)
    n = 2**20
    x = scores(rng, (1, n), "float32")
    t = (np.arange(n).reshape(1, n) % 2).astype(np.uint8)  # both classes weigh 1/2
    losses = 0.5 * cross_entropy(x.astype(np.float64), t)
    exact = losses.sum()
    one_after_the_other = np.cumsum(losses.astype(np.float32).ravel(), dtype=np.float32)[-1]
    assert abs(one_after_the_other / exact - 1) > 1e-4
    # Half an ulp of each float32 loss, which average out.
    assert sce.forward(x, t, **presets.hed()) == pytest.approx(exact, rel=1e-8)


# ---- docs/losses.md ----


def test_page_has_every_option() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for function in (sce.forward, sce.backward, sce.forward_backward, sce.backward_targets):
        for name in inspect.signature(function).parameters:
            assert f"`{name}" in page or f"`{name}`" in page or name in ("scores", "targets"), name
    for name in PRESETS:
        assert f"`{name}(" in page, name


def test_page_links_to_what_is_there() -> None:
    page = PAGE.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page)
    assert len(links) > 5
    for link in links:
        assert (PAGE.parent / link).exists(), link


def test_float16_gradients_of_means() -> None:
    """The numbers of the page: a gradient of 1 divided by n."""
    x, t = np.full(1, 100, np.float16), np.zeros(1, np.uint8)

    def gradient(n: int, **options: Any) -> Any:
        return sce.backward(x, t, normalization=float(n), **options)

    tiny = np.finfo(np.float16)
    assert gradient(2**14).dtype == np.float16
    assert gradient(2**14)[0] == tiny.smallest_normal
    assert gradient(2**24)[0] == tiny.smallest_subnormal
    assert gradient(2**25)[0] == 0
    # An error of 0.01.
    x = np.full(1, -np.log(99), np.float16)
    assert gradient(150)[0] > tiny.smallest_normal > gradient(170)[0]
    assert gradient(300_000)[0] > 0 == gradient(400_000)[0]
    # What helps.
    n = 2**30
    plain = sce.backward(x, t, normalization="none")
    assert np.array_equal(gradient(n, loss_weight=float(n)), plain)
    wide = gradient(n, out=np.empty(1, np.float32))
    assert wide[0] == pytest.approx(0.01 / n, rel=1e-3)


def test_equivalents_in_keras() -> None:
    """Rows of the page: moderate scores, where Keras loses no digits worth mentioning."""
    keras = load("tensorflow").keras
    rng = np.random.default_rng(13)
    x, t = rng.uniform(-3, 3, (6, 5)).astype(np.float32), (rng.random((6, 5)) < 0.3).astype("f4")
    close = {"rel": 1e-5}  # float32 roundings of a mean, and of pow and log beneath it
    smooth = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.2)
    found = sce.forward(x, t, normalization="full", label_smoothing=0.2)
    assert found == pytest.approx(float(smooth(t, x)), **close)
    for balancing in (False, True):
        focal = keras.losses.BinaryFocalCrossentropy(
            apply_class_balancing=balancing, alpha=0.3, gamma=1.5, from_logits=True
        )
        found = sce.forward(x, t, normalization="full", gamma=1.5, alpha=0.3 if balancing else None)
        assert found == pytest.approx(float(focal(t, x)), **close)


def test_focal_loss_of_torchvision_and_optax() -> None:
    """Their formula: r is 1 - p_t, with p_t of the target; soft targets too."""
    rng = np.random.default_rng(14)
    x, t = rng.normal(0, 3, (6, 5)), rng.random((6, 5))
    s = sigmoid(x)
    p = s * t + (1 - s) * (1 - t)
    losses = (0.3 * t + 0.7 * (1 - t)) * (1 - p) ** 1.5 * cross_entropy(x, t)
    found = sce.elementwise(x, t, gamma=1.5, alpha=0.3)
    np.testing.assert_allclose(found, losses, rtol=1e-11)


def _plot_losses() -> Any:
    path = ROOT / "tools" / "plot_losses.py"
    spec = importlib.util.spec_from_file_location("plot_losses", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pictures_are_current(tmp_path: Path) -> None:
    """If not: python tools/plot_losses.py."""
    plots = _plot_losses()
    docs = ROOT / "docs"
    assert plots.differences(docs) == []
    page = PAGE.read_text(encoding="utf-8")
    for name in plots.PICTURES:
        assert f"]({name}.svg)" in page
    matplotlib = pytest.importorskip("matplotlib")
    name = "losses_targets"  # one: drawing takes a second
    drawn = (docs / f"{name}.svg").read_text()
    plots.write_one(name, tmp_path / f"{name}.svg")
    again = (tmp_path / f"{name}.svg").read_text()
    assert plots.digest(name) in again
    if f"matplotlib {matplotlib.__version__}<" in drawn:
        assert again == drawn


def test_pictures_that_are_not_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plots = _plot_losses()
    names = ("losses_targets", "losses_focal")
    monkeypatch.setattr(plots, "PICTURES", {name: plots.PICTURES[name] for name in names})
    for name in names:
        for kind in ("svg", "png"):
            copy = tmp_path / f"{name}.{kind}"
            copy.write_bytes((ROOT / "docs" / copy.name).read_bytes())
    assert plots.differences(tmp_path) == []
    (tmp_path / "losses_focal.png").unlink()
    (tmp_path / "losses_former.svg").touch()
    monkeypatch.setitem(plots._STYLES, 0.0, ("#ff0000", "-"))  # not a figure
    rows, columns = plots.PICTURES["losses_targets"]
    other = columns | {"label_smoothing = 0.2": {"label_smoothing": 0.1}}
    monkeypatch.setitem(plots.PICTURES, "losses_targets", (rows, other))
    assert plots.differences(tmp_path) == [
        "losses_targets.svg: drawn from other figures",
        "losses_targets.png: drawn from other figures",
        "losses_focal.png: missing",
        "losses_former.svg: drawn by nothing",
    ]
