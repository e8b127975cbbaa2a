"""The loss in plain NumPy, float64: slow, short, and independent of the native code.

Scores, targets and weights are first rounded to the dtype of the scores, as the native code does
(16-bit scores: to float32); everything after that is float64. Results are float64.

Per element, with softplus(x) = log(1 + exp(x)) and sigmoid(x) = 1 / (1 + exp(-x)):

    E = (1 - t) * softplus(x) + p * t * softplus(-x)
    r = (1 - t) * sigmoid(x) + t * sigmoid(-x)
    loss = weight * (t * w+ + (1 - t) * w-) * r**gamma * E

and its derivatives. 0 times infinity is 0 in these sums. An infinite target gives NaN, and so does
one outside [0, 1] where gamma is not 0. An ignored element, or one of weight 0, gives 0 whatever
the score.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]


class _Elements(NamedTuple):
    x: Float64  # scores
    t: Float64  # targets, smoothed
    n: Float64  # 1 - t, without the rounding error of t
    p: Float64  # pos_weight, in a shape that broadcasts to x
    w: Float64  # weight, likewise
    ignored: NDArray[np.bool_]
    class_weights: tuple[Float64, Float64]  # w+ and w-, likewise
    smoothing: float
    gamma: float
    n_foreground: int


class _Pieces(NamedTuple):
    """What the results are made of, per element; a derivative is by the score."""

    e: Float64  # E
    e1: Float64  # E'
    e2: Float64  # E''
    a: Float64  # sigmoid(x)
    b: Float64  # sigmoid(-x)
    r: Float64
    slope: Float64  # r' / r
    factor: Float64  # r**gamma


# ---- The functions, whose arguments are those of the same names in `sigmoid_ce` ----


def forward(
    scores: ArrayLike,
    targets: ArrayLike,
    *,
    pos_weight: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    ignore_label: int | None = None,
    uncertain: str = "soft",
    label_smoothing: float = 0.0,
    balance: str | None = "none",
    balance_per_channel: bool = False,
    negative_scale: float = 1.0,
    gamma: float = 0.0,
    alpha: float | None = None,
    normalization: str | float | None = None,
    normalize: bool | None = None,
    check: bool = False,
) -> float:
    """The sum of the losses over the divisor. Arguments: see `sigmoid_ce.forward`."""
    e = _read(
        scores,
        targets,
        pos_weight,
        weight,
        ignore_label,
        uncertain,
        label_smoothing,
        balance,
        balance_per_channel,
        negative_scale,
        gamma,
        alpha,
        check,
    )
    return _sum(_losses(e)) / _divisor(e, normalization, normalize)


def backward(
    scores: ArrayLike,
    targets: ArrayLike,
    *,
    pos_weight: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    ignore_label: int | None = None,
    uncertain: str = "soft",
    label_smoothing: float = 0.0,
    balance: str | None = "none",
    balance_per_channel: bool = False,
    negative_scale: float = 1.0,
    gamma: float = 0.0,
    alpha: float | None = None,
    normalization: str | float | None = None,
    normalize: bool | None = None,
    loss_weight: float = 1.0,
    check: bool = False,
) -> Float64:
    """The gradient of `forward` times `loss_weight`. Arguments: see `sigmoid_ce.backward`."""
    e = _read(
        scores,
        targets,
        pos_weight,
        weight,
        ignore_label,
        uncertain,
        label_smoothing,
        balance,
        balance_per_channel,
        negative_scale,
        gamma,
        alpha,
        check,
    )
    return _gradients(e, loss_weight / _divisor(e, normalization, normalize))


def forward_backward(
    scores: ArrayLike,
    targets: ArrayLike,
    *,
    pos_weight: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    ignore_label: int | None = None,
    uncertain: str = "soft",
    label_smoothing: float = 0.0,
    balance: str | None = "none",
    balance_per_channel: bool = False,
    negative_scale: float = 1.0,
    gamma: float = 0.0,
    alpha: float | None = None,
    normalization: str | float | None = None,
    normalize: bool | None = None,
    loss_weight: float = 1.0,
    hessian: bool = False,
    check: bool = False,
) -> tuple[float, Float64] | tuple[float, Float64, Float64]:
    """Both, and perhaps the Hessian. Arguments: see `sigmoid_ce.forward_backward`."""
    e = _read(
        scores,
        targets,
        pos_weight,
        weight,
        ignore_label,
        uncertain,
        label_smoothing,
        balance,
        balance_per_channel,
        negative_scale,
        gamma,
        alpha,
        check,
    )
    divisor = _divisor(e, normalization, normalize)
    loss, gradient = _sum(_losses(e)) / divisor, _gradients(e, loss_weight / divisor)
    return (loss, gradient, _hessians(e, loss_weight / divisor)) if hessian else (loss, gradient)


def backward_targets(
    scores: ArrayLike,
    targets: ArrayLike,
    *,
    pos_weight: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    ignore_label: int | None = None,
    uncertain: str = "soft",
    label_smoothing: float = 0.0,
    balance: str | None = "none",
    balance_per_channel: bool = False,
    negative_scale: float = 1.0,
    gamma: float = 0.0,
    alpha: float | None = None,
    normalization: str | float | None = None,
    normalize: bool | None = None,
    loss_weight: float = 1.0,
    check: bool = False,
) -> Float64:
    """The gradient with respect to the targets. Arguments: see `sigmoid_ce.backward_targets`."""
    e = _read(
        scores,
        targets,
        pos_weight,
        weight,
        ignore_label,
        uncertain,
        label_smoothing,
        balance,
        balance_per_channel,
        negative_scale,
        gamma,
        alpha,
        check,
    )
    return _target_gradients(e, loss_weight / _divisor(e, normalization, normalize))


def elementwise(
    scores: ArrayLike,
    targets: ArrayLike,
    *,
    pos_weight: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    ignore_label: int | None = None,
    uncertain: str = "soft",
    label_smoothing: float = 0.0,
    balance: str | None = "none",
    balance_per_channel: bool = False,
    negative_scale: float = 1.0,
    gamma: float = 0.0,
    alpha: float | None = None,
    check: bool = False,
) -> Float64:
    """The loss of each element. Arguments: see `sigmoid_ce.elementwise`."""
    return _losses(
        _read(
            scores,
            targets,
            pos_weight,
            weight,
            ignore_label,
            uncertain,
            label_smoothing,
            balance,
            balance_per_channel,
            negative_scale,
            gamma,
            alpha,
            check,
        )
    )


# ---- The formula ----


@np.errstate(all="ignore")
def _pieces(e: _Elements) -> _Pieces:
    negative, positive = e.n, e.p * e.t
    a, b = _sigmoid(e.x), _sigmoid(-e.x)
    loss = _times(negative, np.logaddexp(0, e.x)) + _times(positive, np.logaddexp(0, -e.x))
    r = negative * a + e.t * b
    slope = np.where(e.t == 1, -a, np.where(e.t == 0, b, (1 - 2 * e.t) * a * b / r))
    factor = np.ones_like(r) if e.gamma == 0 else r**e.gamma
    if e.gamma != 0:
        factor = np.where((e.t >= 0) & (e.t <= 1), factor, np.nan)
    gradient = negative * a - positive * b
    return _Pieces(loss, gradient, (negative + positive) * a * b, a, b, r, slope, factor)


@np.errstate(all="ignore")
def _losses(e: _Elements) -> Float64:
    v = _pieces(e)
    return _special(e, _weights(e) * v.factor * v.e)


@np.errstate(all="ignore")
def _gradients(e: _Elements, scale: float) -> Float64:
    v = _pieces(e)
    change = v.factor * (v.e1 + e.gamma * _times(v.slope, v.e))
    return _special(e, change * _weights(e) * scale)


@np.errstate(all="ignore")
def _hessians(e: _Elements, scale: float) -> Float64:
    v = _pieces(e)
    curve = v.slope * ((e.gamma - 1) * v.slope + v.b - v.a)  # (r^gamma)'' / (gamma r^gamma)
    change = v.e2 + e.gamma * (2 * v.slope * v.e1 + _times(curve, v.e))
    return _special(e, v.factor * change * _weights(e) * scale)


@np.errstate(all="ignore")
def _target_gradients(e: _Elements, scale: float) -> Float64:
    v = _pieces(e)
    w1, w0 = e.class_weights
    e_t = _times(e.p, np.logaddexp(0, -e.x)) - np.logaddexp(0, e.x)  # dE/dt
    e_t = np.where(e.p == 1, -e.x, e_t)
    e_r = np.where(v.r == 0, 1.0, v.e / v.r)  # where r = 0, r**gamma is
    by_target = _times(v.factor, e_t)
    if e.gamma != 0:
        by_target += v.factor * e.gamma * (v.b - v.a) * e_r
    step, by_class = w1 - w0, _class_weights(e)  # where they are 0, what they multiply is nothing
    change = np.where(step == 0, 0.0, step * _times(v.factor, v.e))
    change = change + np.where(by_class == 0, 0.0, by_class * by_target)
    values = change * (1 - e.smoothing) * e.w * scale
    values = np.where(np.isinf(e.t), np.nan, values + 0 * e.t)
    return np.where(e.ignored | (e.w == 0), 0.0, values)


def _class_weights(e: _Elements) -> Float64:
    w1, w0 = e.class_weights
    return np.where(w1 == w0, w1, e.t * w1 + e.n * w0)


def _weights(e: _Elements) -> Float64:
    return e.w * _class_weights(e)


def _sigmoid(x: Float64) -> Float64:
    z = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + z), z / (1 + z))


def _times(factor: Float64, value: Float64) -> Float64:
    """factor * value, with 0 * inf = 0; but 0 * NaN = NaN."""
    return np.where((factor == 0) & np.isinf(value), 0.0, factor * value)


def _special(e: _Elements, values: Float64) -> Float64:
    values = np.where(np.isinf(e.t), np.nan, values)
    masked = (e.w == 0) | (e.w * _class_weights(e) == 0)
    return np.where(e.ignored | masked, 0.0, values)


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
    counts["foreground"] = e.n_foreground
    return max(1, counts[normalization])


# ---- The arguments ----


@np.errstate(over="ignore", invalid="ignore")
def _read(
    scores: ArrayLike,
    targets: ArrayLike,
    pos_weight: ArrayLike | None,
    weight: ArrayLike | None,
    ignore_label: int | None,
    uncertain: str,
    label_smoothing: float,
    balance: str | None,
    balance_per_channel: bool,
    negative_scale: float,
    gamma: float,
    alpha: float | None,
    check: bool,
) -> _Elements:
    x, t = (_of_16_bits(np.asarray(array)) for array in (scores, targets))
    if x.dtype != np.float32:
        x = x.astype(np.float64)
    if _long_axes(t) != _long_axes(x):
        raise ValueError(f"targets: expected shape {x.shape}, got {t.shape}")
    t = t.reshape(x.shape)
    is_class = (t == 1, t == 0)
    ignored = _is_label(t, ignore_label)
    if uncertain == "ignore":
        ignored |= ~(is_class[0] | is_class[1])
    elif uncertain != "soft":
        raise ValueError(f'uncertain: expected "soft" or "ignore", got {uncertain!r}')
    if t.dtype == np.int64:  # 64-bit integers saturate to 32 bits
        t = np.clip(t, -(2**31), 2**31 - 1)
    w = _of_16_bits(np.asarray(1.0 if weight is None else weight))
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
    for name, value, most in (
        ("label_smoothing", label_smoothing, np.nextafter(1, 0)),
        ("negative_scale", negative_scale, np.finfo(np.float32).max),
        ("gamma", gamma, 1e6),
        ("alpha", 0.5 if alpha is None else alpha, 1),
    ):
        if not 0 <= value <= most:
            raise ValueError(f"{name}: expected a number from 0 to {most}, got {value}")

    def rounded(a: NDArray[Any]) -> Float64:
        return a.astype(x.dtype).astype(np.float64)

    w1, w0 = _balance(balance, balance_per_channel, *(c & ~ignored for c in is_class))
    if alpha is not None:
        w1, w0 = w1 * alpha, w0 * (1 - alpha)

    def smoothed(a: Float64) -> Float64:
        return a * (1 - label_smoothing) + label_smoothing / 2

    return _Elements(
        rounded(x),
        smoothed(rounded(t)),
        smoothed(1 - rounded(t)),
        rounded(p),
        rounded(w),
        ignored,
        (rounded(w1), rounded(w0 * negative_scale)),
        label_smoothing,
        gamma,
        int(np.count_nonzero(is_class[0] & ~ignored)),
    )


def _balance(
    balance: str | None, per_channel: bool, ones: NDArray[np.bool_], zeros: NDArray[np.bool_]
) -> tuple[Float64, Float64]:
    """w+ and w-, in shapes that broadcast, from where targets are 1 and where they are 0."""
    if balance not in (None, "none", "image", "batch", "batch_mean"):
        raise ValueError(
            f'balance: expected "none", "image", "batch" or "batch_mean", got {balance!r}'
        )
    if per_channel and (balance in (None, "none") or ones.ndim < 2):
        raise ValueError("balance_per_channel: expected a balance, and scores with channels")
    if balance in (None, "none"):
        return np.ones(()), np.ones(())
    if balance == "image" and ones.ndim < 2:
        raise ValueError("balance: expected scores of 2 axes or more")
    kept = ((0,) if balance == "image" else ()) + ((1,) if per_channel else ())
    axes = tuple(axis for axis in range(ones.ndim) if axis not in kept)
    p, m = (np.count_nonzero(c, axis=axes, keepdims=True).astype(np.float64) for c in (ones, zeros))
    v = p + m
    if balance == "batch_mean":
        k = np.clip(p, 1, np.maximum(v - 1, 1))
        return v / (2 * k), v / (2 * np.maximum(v - k, 1))
    return m / np.maximum(v, 1), p / np.maximum(v, 1)


def _of_16_bits(a: NDArray[Any]) -> NDArray[Any]:
    """In float32, where it was float16 or bfloat16."""
    return a.astype(np.float32) if a.dtype.name in ("float16", "bfloat16") else a


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
