"""The NumPy reference against values worked out by hand, and the native code against the reference.

The reference shares no line with the native code: other tests lean on it, so it is tested first.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import sigmoid_ce as sce
from sigmoid_ce import reference

LOG2 = math.log(2.0)

# float64 values worked out in one or two operations.
BY_HAND = 1e-15

# Reference and native code round differently: a few float32 roundings (2**-24 each) per element,
# relative to the largest term of the formula.
FLOAT32_TERMS = 8 * 2.0**-24
FLOAT64_TERMS = 16 * 2.0**-53

INF = math.inf
NAN = math.nan


def one(x: float, t: float, **options: Any) -> tuple[float, float]:
    """Loss and gradient of one element."""
    loss = reference.elementwise([x], [t], **options)
    gradient = reference.backward([x], [t], **options)
    assert loss.dtype == gradient.dtype == np.float64
    return float(loss[0]), float(gradient[0])


@pytest.mark.parametrize(
    ("x", "t", "loss", "gradient"),
    [
        (0.0, 0.0, LOG2, 0.5),
        (0.0, 1.0, LOG2, -0.5),
        (0.0, 0.25, LOG2, 0.25),
        (math.log(3), 0.0, math.log(4), 0.75),
        (math.log(3), 1.0, math.log(4 / 3), -0.25),
        (-math.log(3), 1.0, math.log(4), -0.75),
        (math.log(3), 0.5, math.log(4) - math.log(3) / 2, 0.25),
        (math.log(3), 2.0, math.log(4) - 2 * math.log(3), -1.25),
        (-40.0, 0.0, math.exp(-40), math.exp(-40)),  # 1 + exp(-40) is 1: a naive formula gives 0
        (40.0, 1.0, math.exp(-40), -math.exp(-40)),
        (1000.0, 0.0, 1000.0, 1.0),
        (-1000.0, 1.0, 1000.0, -1.0),
    ],
)
def test_values_by_hand(x: float, t: float, loss: float, gradient: float) -> None:
    assert one(x, t) == pytest.approx((loss, gradient), rel=BY_HAND, abs=0)


@pytest.mark.parametrize(
    ("x", "t", "options", "loss", "gradient"),
    [
        (0.0, 1.0, {"pos_weight": 3.0}, 3 * LOG2, -1.5),
        (0.0, 0.0, {"pos_weight": 3.0}, LOG2, 0.5),
        (0.0, 0.5, {"pos_weight": 3.0}, 2 * LOG2, -0.5),
        (0.0, 1.0, {"weight": 3.0}, 3 * LOG2, -1.5),
        (math.log(3), 0.5, {"pos_weight": 2.0, "weight": 0.5}, None, 0.0625),
        (-120.0, 1.0, {"pos_weight": 2.0}, 240.0, -2.0),
        (0.0, 1.0, {"pos_weight": 0.0}, 0.0, 0.0),
        (3.0, 5.0, {"ignore_label": 5}, 0.0, 0.0),
    ],
)
def test_weights_by_hand(
    x: float, t: float, options: dict[str, Any], loss: float | None, gradient: float
) -> None:
    if loss is None:  # w * ((1 - t) * log(1 + 3) + p * t * log(1 + 1/3))
        loss = 0.5 * (0.5 * math.log(4) + math.log(4 / 3))
    assert one(x, t, **options) == pytest.approx((loss, gradient), rel=BY_HAND, abs=BY_HAND)


def test_two_elements() -> None:
    """Scores (9.7, 0), targets (0, 1): (9.7 + log(1 + exp(-9.7)) + log 2) / 2."""
    loss = reference.forward([9.7, 0.0], [0.0, 1.0])
    assert f"{loss:.5f}" == "5.19660"
    assert loss == pytest.approx((9.7 + math.log1p(math.exp(-9.7)) + LOG2) / 2, rel=BY_HAND)
    assert f"{sce.forward([9.7, 0.0], [0.0, 1.0]):.5f}" == "5.19660"


SPECIAL = [  # x, t, options, loss, gradient
    (NAN, 0.0, {}, NAN, NAN),
    (NAN, 1.0, {}, NAN, NAN),
    (0.0, NAN, {}, NAN, NAN),
    (0.0, INF, {}, NAN, NAN),
    (0.0, -INF, {}, NAN, NAN),
    (INF, INF, {}, NAN, NAN),
    (1.0, 0.0, {"weight": [NAN]}, NAN, NAN),
    (INF, 0.0, {}, INF, 1.0),
    (INF, 0.3, {}, INF, 0.7),
    (INF, 1.0, {}, 0.0, 0.0),
    (INF, 1.5, {}, -INF, -0.5),
    (-INF, 0.0, {}, 0.0, 0.0),
    (-INF, 0.3, {}, INF, -0.3),
    (-INF, 1.0, {}, INF, -1.0),
    (-INF, -0.5, {}, -INF, 0.5),
    (-INF, 1.0, {"pos_weight": 0.0}, 0.0, 0.0),
    (INF, 0.0, {"weight": 0.0}, 0.0, 0.0),
    (NAN, NAN, {"weight": 0.0}, 0.0, 0.0),
    (0.0, INF, {"weight": 0.0}, 0.0, 0.0),
    (NAN, 2.0, {"ignore_label": 2}, 0.0, 0.0),
    (INF, 2.9, {"ignore_label": 2}, 0.0, 0.0),
    (1.0, 2.0, {"ignore_label": 2, "weight": [NAN]}, 0.0, 0.0),
    (0.0, NAN, {"ignore_label": 0}, NAN, NAN),
]


@pytest.mark.parametrize(("x", "t", "options", "loss", "gradient"), SPECIAL)
def test_special_values(
    x: float, t: float, options: dict[str, Any], loss: float, gradient: float
) -> None:
    got = one(x, t, **options)
    assert got == pytest.approx((loss, gradient), rel=BY_HAND, abs=0, nan_ok=True)
    assert reference.forward([x], [t], **options) == pytest.approx(loss, nan_ok=True)
    for value in got:
        if value == 0:
            assert math.copysign(1.0, value) == 1.0, "a zero is +0"


@pytest.mark.parametrize(
    ("losses_of", "expected"), [((INF, -INF), NAN), ((INF, INF), INF), ((NAN, INF), NAN)]
)
def test_sum_of_special_values(losses_of: tuple[float, float], expected: float) -> None:
    targets = [0.0 if value != -INF else 1.5 for value in losses_of]  # x = inf, t = 1.5: -inf
    scores = [abs(value) for value in losses_of]
    assert reference.forward(scores, targets) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("label", "target", "ignored"),
    [
        (0, 0.9, True),
        (0, -0.9, True),
        (0, 1.0, False),
        (0, -1.0, False),
        (2, 2.0, True),
        (2, 2.99, True),
        (2, 1.99, False),
        (-1, -1.0, True),
        (-1, -1.99, True),
        (-1, -0.99, False),
        (-1, -2.0, False),
        (255, np.uint8(255), True),
        (-1, np.uint8(255), False),
        (-1, np.int8(-1), True),
        (300, np.int8(44), False),
        (1, np.bool_(True), True),
        (2**31 - 1, np.int64(2**40), False),  # compared before it saturates
        (2**40, np.int64(2**40), True),
        (2**24 + 1, np.float32(2**24), False),  # not a float32
        (2**24, np.float32(2**24), True),
    ],
)
def test_ignore_label_truncates(label: int, target: Any, ignored: bool) -> None:
    dtype = np.float32 if isinstance(target, np.float32) else np.float64
    targets = np.array([target])
    loss = reference.elementwise(np.ones(1, dtype), targets, ignore_label=label)
    assert (loss[0] == 0) == ignored
    native = sce.elementwise(np.ones(1, dtype), targets, ignore_label=label)
    assert (native[0] == 0) == ignored


@pytest.mark.parametrize(
    ("options", "divisor"),
    [
        ({}, 2),
        ({"normalization": "full"}, 6),
        ({"normalization": "valid"}, 4),
        ({"normalization": "batch_size"}, 2),
        ({"normalization": "none"}, 1),
        ({"normalization": 2.5}, 2.5),
        ({"normalization": 0.25}, 0.25),  # a number is not raised to 1
        ({"normalize": True}, 4),
        ({"normalize": False}, 2),
        ({"normalization": "full", "normalize": True}, 6),
    ],
)
@pytest.mark.parametrize("module", [reference, sce])
def test_normalization(module: Any, options: dict[str, Any], divisor: float) -> None:
    scores = np.zeros((2, 3))
    targets = np.array([[0.0, 1.0, 9.0], [9.0, 0.0, 1.0]])
    loss = module.forward(scores, targets, ignore_label=9, **options)
    assert loss == pytest.approx(4 * LOG2 / divisor, rel=BY_HAND)
    gradient = module.backward(scores, targets, ignore_label=9, loss_weight=3.0, **options)
    expected = np.array([[0.5, -0.5, 0.0], [0.0, 0.5, -0.5]]) * 3 / divisor
    np.testing.assert_allclose(gradient, expected, rtol=BY_HAND, atol=0)


@pytest.mark.parametrize("module", [reference, sce])
@pytest.mark.parametrize("shape", [(0,), (4, 0), (0, 3), (2, 0, 5)])
def test_empty(module: Any, shape: tuple[int, ...]) -> None:
    empty = np.zeros(shape)
    for normalization in ("full", "valid", "batch_size", "none"):
        assert module.forward(empty, empty, normalization=normalization) == 0.0
        assert module.backward(empty, empty, normalization=normalization).shape == shape


@pytest.mark.parametrize("module", [reference, sce])
def test_zero_dimensions(module: Any) -> None:
    assert module.forward(np.float64(0), np.float64(1)) == pytest.approx(LOG2, rel=BY_HAND)
    assert module.elementwise(np.float64(0), np.float64(1)).shape == ()
    assert float(module.backward(0.0, 1.0)) == -0.5


def test_integer_targets_saturate() -> None:
    """64-bit targets become 32-bit ones first; the loss is then -t x + ... in the score's type."""
    for module in (reference, sce):
        losses = module.elementwise(np.array([-1.0, -1.0]), np.array([2**40, -(2**40)]))
        expected = [(1.0 * (2**31 - 1)), -(2.0**31)]
        np.testing.assert_allclose(losses, expected, rtol=1e-9)  # the log1p term is 0.3 of 2e9


# x = log 3, where sigmoid is 3/4: the loss of a 1 is log(4/3), of a 0 log 4.
GOOD, BAD = math.log(4 / 3), math.log(4)


@pytest.mark.parametrize(
    ("t", "options", "loss", "gradient"),
    [
        (1.0, {"gamma": 2.0}, GOOD / 16, (-0.25 - 1.5 * GOOD) / 16),
        (0.0, {"gamma": 1.0}, 0.75 * BAD, 0.75 * (0.75 + 0.25 * BAD)),
        (0.5, {"gamma": 1.0}, (GOOD + BAD) / 4, 0.125),
        (1.0, {"gamma": 2.0, "pos_weight": 3}, 3 * GOOD / 16, 3 * (-0.25 - 1.5 * GOOD) / 16),
        (1.0, {"alpha": 0.25}, 0.25 * GOOD, -0.0625),
        (0.0, {"alpha": 0.25, "negative_scale": 2}, 1.5 * BAD, 1.125),
        (0.5, {"alpha": 0.25}, (GOOD + BAD) / 4, 0.125),
        (1.0, {"label_smoothing": 0.5}, 0.75 * GOOD + 0.25 * BAD, 0.0),
        (0.5, {"uncertain": "ignore"}, 0.0, 0.0),
        (NAN, {"uncertain": "ignore"}, 0.0, 0.0),
        (1.0, {"uncertain": "ignore"}, GOOD, -0.25),
        (1.5, {"gamma": 1.0}, NAN, NAN),
    ],
)
def test_options_by_hand(t: float, options: Any, loss: float, gradient: float) -> None:
    got = one(math.log(3), t, **options)
    # Sums of terms of size 1, which may cancel.
    assert got == pytest.approx((loss, gradient), rel=BY_HAND, abs=BY_HAND, nan_ok=True)


def test_balance_by_hand() -> None:
    x = np.full((2, 4), math.log(3))
    t = np.array([[1, 0, 0, 255], [1, 1, 1, 0.5]])
    ignored: dict[str, Any] = {"ignore_label": 255}
    soft = (GOOD + BAD) / 2 / 2
    of_image = [[2 / 3 * GOOD, BAD / 3, BAD / 3, 0], [0, 0, 0, soft]]
    got = reference.elementwise(x, t, balance="image", **ignored)
    np.testing.assert_allclose(got, of_image, rtol=BY_HAND)
    of_batch = [[GOOD / 3, 2 / 3 * BAD, 2 / 3 * BAD, 0], [*[GOOD / 3] * 3, soft]]
    got = reference.elementwise(x, t, balance="batch", **ignored)
    np.testing.assert_allclose(got, of_batch, rtol=BY_HAND)
    of_mean = [[0.75 * GOOD, 1.5 * BAD, 1.5 * BAD, 0], [*[0.75 * GOOD] * 3, 1.125 * 2 * soft]]
    got = reference.elementwise(x, t, balance="batch_mean", **ignored)
    np.testing.assert_allclose(got, of_mean, rtol=BY_HAND)
    got = reference.elementwise(x, t, balance="batch", balance_per_channel=True, **ignored)
    of_channel = [[0, BAD / 2, BAD / 2, 0], [0, GOOD / 2, GOOD / 2, 0]]
    np.testing.assert_allclose(got, of_channel, rtol=BY_HAND)
    got = reference.forward(x, t, normalization="foreground", **ignored)
    assert got == pytest.approx((4 * GOOD + 2 * BAD + 2 * soft) / 4, rel=BY_HAND)


def test_derivatives_by_hand() -> None:
    x, t = [math.log(3)], [1.0]
    _, _, hessian = reference.forward_backward(x, t, hessian=True, pos_weight=2.0)
    assert hessian[0] == pytest.approx(2 * 3 / 16, rel=BY_HAND)
    # r^2 E with r' = -3/16, E' = -1/4: 2 r'^2 E + 4 r r' E' + 2 r r'' E + r^2 E''.
    by_hand = 2 * 9 / 256 * GOOD + 3 / 64 + 0.5 * 3 / 32 * GOOD + 3 / 256
    _, _, hessian = reference.forward_backward(x, t, hessian=True, gamma=2.0)
    assert hessian[0] == pytest.approx(by_hand, rel=BY_HAND)
    by_target = reference.backward_targets(x, t, label_smoothing=0.5, loss_weight=2.0)
    assert by_target[0] == pytest.approx(-math.log(3), rel=BY_HAND)
    # r E: r' = 1/4 - 3/4 and E' = GOOD - BAD, by the target.
    by_target = reference.backward_targets(x, t, gamma=1.0)
    assert by_target[0] == pytest.approx(-0.5 * GOOD + 0.25 * (GOOD - BAD), rel=BY_HAND)


def test_wrong_options() -> None:
    for options, message in (
        ({"balance": "imag"}, 'balance: expected "none", "image", "batch" or "batch_mean", got '),
        ({"uncertain": "hard"}, 'uncertain: expected "soft" or "ignore", got '),
        ({"gamma": -1}, "gamma: expected a number from 0 to"),
        ({"alpha": 1.5}, "alpha: expected a number from 0 to 1"),
        ({"label_smoothing": 1.0}, "label_smoothing: expected"),
        ({"negative_scale": np.nan}, "negative_scale: expected"),
        ({"balance_per_channel": True}, "balance_per_channel: expected"),
        ({"balance": "image"}, "balance: expected scores of 2 axes"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            reference.forward([0.0], [1.0], **options)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="targets: expected shape"):
        reference.forward(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="pos_weight"):
        reference.forward([0.0], [1.0], pos_weight=-1.0)
    with pytest.raises(ValueError, match=r"targets: expected values in \[0, 1\]"):
        reference.forward([0.0], [7.0], check=True)
    with pytest.raises(ValueError, match="weight: expected finite"):
        reference.forward([0.0], [1.0], weight=[-1.0], check=True)
    assert reference.forward([0.0], [7.0], ignore_label=7, check=True) == 0.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "target_dtype", [None, np.bool_, np.uint8, np.int8, np.int32, np.int64], ids=str
)
@pytest.mark.parametrize("shape", [(7,), (5, 3), (2, 3, 5, 7), (40, 3, 71)])
@pytest.mark.parametrize("options", ["plain", "pos_weight", "weight", "ignore_label", "all"])
def test_native_against_reference(
    dtype: Any, target_dtype: Any, shape: tuple[int, ...], options: str
) -> None:
    rng = np.random.default_rng(2)
    scores = rng.normal(0, 8, shape).astype(dtype)
    targets = rng.uniform(0, 1, shape).astype(dtype)
    if target_dtype is not None:
        targets = (targets > 0.5).astype(target_dtype)
    given: dict[str, Any] = {}
    if options in ("pos_weight", "all"):
        given["pos_weight"] = rng.uniform(0, 4, shape[1]) if len(shape) > 1 else 2.5
    if options in ("weight", "all"):
        given["weight"] = rng.uniform(0, 4, shape[-1]).astype(dtype)
    if options in ("ignore_label", "all"):
        given["ignore_label"] = 1
        targets.flat[::3] = 1
    scale: dict[str, Any] = {"normalization": "valid", "loss_weight": 0.75}
    bound = FLOAT32_TERMS if dtype == np.float32 else FLOAT64_TERMS
    # The largest term: (|x| + 1) p w.
    largest = (np.abs(scores.astype(np.float64)) + 1) * 4 * 4

    losses = reference.elementwise(scores, targets, **given)
    assert (np.abs(sce.elementwise(scores, targets, **given) - losses) <= bound * largest).all()

    loss, gradient = reference.forward_backward(scores, targets, **given, **scale)
    divisor = max(1, scores.size - int((targets.astype(np.int64) == 1).sum()))
    divisor = divisor if "ignore_label" in given else scores.size
    for got_loss, got_gradient in (
        sce.forward_backward(scores, targets, **given, **scale),
        (
            sce.forward(scores, targets, **given, normalization="valid"),
            sce.backward(scores, targets, **given, **scale),
        ),
    ):
        assert abs(got_loss - loss) <= bound * largest.sum() / divisor
        assert (np.abs(got_gradient - gradient) <= bound * 16 / divisor).all()
    assert (loss, gradient.tolist()) == (
        reference.forward(scores, targets, **given, normalization="valid"),
        reference.backward(scores, targets, **given, **scale).tolist(),
    )
