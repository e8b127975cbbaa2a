"""The loss in plain NumPy, float64: slow, short, and independent of the native code.

Scores, targets and weights are first rounded to the dtype of the scores, as the native code does;
everything after that is float64. Results are float64.

Per element, with softplus(x) = log(1 + exp(x)) and sigmoid(x) = 1 / (1 + exp(-x)):

    loss = w * ((1 - t) * softplus(x) + p * t * softplus(-x))
    grad = w * ((1 - t) * sigmoid(x) - p * t * sigmoid(-x))          d loss / d x

0 times infinity is 0 in these sums. An infinite target gives NaN. An ignored element, or one of
weight 0, gives 0 whatever the score.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]


class _Elements(NamedTuple):
    x: Float64  # scores
    t: Float64  # targets
    p: Float64  # pos_weight, in a shape that broadcasts to x
    w: Float64  # weight, likewise
    ignored: NDArray[np.bool_]


def forward(
    scores: ArrayLike,
    targets: ArrayLike,
    *,
    pos_weight: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    ignore_label: int | None = None,
    normalization: str | float | None = None,
    normalize: bool | None = None,
    check: bool = False,
) -> float:
    """The sum of the losses over the divisor. Arguments: see `sigmoid_ce.forward`."""
    e = _read(scores, targets, pos_weight, weight, ignore_label, check)
    return _sum(_losses(e)) / _divisor(e, normalization, normalize)


def backward(
    scores: ArrayLike,
    targets: ArrayLike,
    *,
    pos_weight: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    ignore_label: int | None = None,
    normalization: str | float | None = None,
    normalize: bool | None = None,
    loss_weight: float = 1.0,
    check: bool = False,
) -> Float64:
    """The gradient of `forward` times `loss_weight`. Arguments: see `sigmoid_ce.backward`."""
    e = _read(scores, targets, pos_weight, weight, ignore_label, check)
    return _gradients(e, loss_weight / _divisor(e, normalization, normalize))


def forward_backward(
    scores: ArrayLike,
    targets: ArrayLike,
    *,
    pos_weight: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    ignore_label: int | None = None,
    normalization: str | float | None = None,
    normalize: bool | None = None,
    loss_weight: float = 1.0,
    check: bool = False,
) -> tuple[float, Float64]:
    """Both. Arguments: see `sigmoid_ce.forward_backward`."""
    e = _read(scores, targets, pos_weight, weight, ignore_label, check)
    divisor = _divisor(e, normalization, normalize)
    return _sum(_losses(e)) / divisor, _gradients(e, loss_weight / divisor)


def elementwise(
    scores: ArrayLike,
    targets: ArrayLike,
    *,
    pos_weight: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    ignore_label: int | None = None,
    check: bool = False,
) -> Float64:
    """The loss of each element. Arguments: see `sigmoid_ce.elementwise`."""
    return _losses(_read(scores, targets, pos_weight, weight, ignore_label, check))


# ---- The formula ----


@np.errstate(invalid="ignore", over="ignore")
def _losses(e: _Elements) -> Float64:
    rest = _times(1 - e.t, np.logaddexp(0, e.x))
    positive = _times(e.p * e.t, np.logaddexp(0, -e.x))
    return _special(e, e.w * (rest + positive))


@np.errstate(invalid="ignore", over="ignore")
def _gradients(e: _Elements, scale: float) -> Float64:
    slope = (1 - e.t) * _sigmoid(e.x) - e.p * e.t * _sigmoid(-e.x)
    return _special(e, slope * e.w * scale)


def _sigmoid(x: Float64) -> Float64:
    z = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + z), z / (1 + z))


def _times(factor: Float64, value: Float64) -> Float64:
    """factor * value, with 0 * inf = 0; but 0 * NaN = NaN."""
    return np.where((factor == 0) & np.isinf(value), 0.0, factor * value)


def _special(e: _Elements, values: Float64) -> Float64:
    values = np.where(np.isinf(e.t), np.nan, values)
    return np.where(e.ignored | (e.w == 0), 0.0, values)


def _sum(losses: Float64) -> float:
    """Rounded once, as long as all losses are finite."""
    if np.isfinite(losses).all():
        try:
            return math.fsum(losses.ravel())  # .flat ends at 32 axes
        except OverflowError:  # on the way; the sum itself may be finite
            return math.fsum(losses.ravel() * 2.0**-64) * 2.0**64
    with np.errstate(invalid="ignore"):
        return float(losses.sum())


def _divisor(e: _Elements, normalization: str | float | None, normalize: bool | None) -> float:
    if normalization is None:
        normalization = "valid" if normalize else "batch_size"
    if not isinstance(normalization, str):
        return float(normalization)
    batch_size = e.x.shape[0] if e.x.ndim > 0 else 1
    n_valid = e.x.size - int(e.ignored.sum())
    counts = {"full": e.x.size, "valid": n_valid, "batch_size": batch_size, "none": 1}
    return max(1, counts[normalization])


# ---- The arguments ----


@np.errstate(over="ignore")
def _read(
    scores: ArrayLike,
    targets: ArrayLike,
    pos_weight: ArrayLike | None,
    weight: ArrayLike | None,
    ignore_label: int | None,
    check: bool,
) -> _Elements:
    x = np.asarray(scores)
    if x.dtype != np.float32:
        x = x.astype(np.float64)
    t = np.asarray(targets)
    if _long_axes(t) != _long_axes(x):
        raise ValueError(f"targets: expected shape {x.shape}, got {t.shape}")
    t = t.reshape(x.shape)
    ignored = _is_label(t, ignore_label)
    if t.dtype == np.int64:  # 64-bit integers saturate to 32 bits
        t = np.clip(t, -(2**31), 2**31 - 1)
    w = np.asarray(1.0 if weight is None else weight)
    np.broadcast_to(w, x.shape)  # raises where it does not broadcast
    p = np.asarray(1.0 if pos_weight is None else pos_weight)
    p = p.reshape(()) if p.size == 1 else p.reshape((x.shape[1],) + (1,) * (x.ndim - 2))
    if check:
        if not ((t >= 0) & (t <= 1) | ignored).all():
            raise ValueError("targets: expected values in [0, 1]")
        if not (np.isfinite(w) & (w >= 0)).all():
            raise ValueError("weight: expected finite values >= 0")
    if not (np.isfinite(p) & (p >= 0)).all():
        raise ValueError("pos_weight: expected finite values >= 0")

    def rounded(a: NDArray[Any]) -> Float64:
        return a.astype(x.dtype).astype(np.float64)

    return _Elements(rounded(x), rounded(t), rounded(p), rounded(w), ignored)


def _long_axes(a: NDArray[Any]) -> tuple[int, ...]:
    return tuple(length for length in a.shape if length != 1)


def _is_label(t: NDArray[Any], label: int | None) -> NDArray[np.bool_]:
    """Where the target, truncated to an integer, equals the label."""
    if label is None:
        return np.zeros(t.shape, dtype=np.bool_)
    if t.dtype.kind != "f":
        return np.asarray(t.astype(np.int64) == label)
    if int(t.dtype.type(label)) != label:  # above the integers that this type can tell apart
        return np.zeros(t.shape, dtype=np.bool_)
    return np.asarray(np.trunc(t) == label)
