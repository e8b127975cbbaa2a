"""Exact values to compare the kernels with.

The oracle uses the textbook form of the loss, a sum of two softplus functions,

    loss = w ((1 - t) softplus(x) + p t softplus(-x))
    grad = w ((1 - t) sigmoid(x) - p t sigmoid(-x))

with more precision than any kernel, and shares no code and no regrouping with them: x87 extended
precision (64 bits of mantissa, exponents to 2^-16445) for float32 scores, mpmath for float64. Where
NumPy's longdouble is something else, mpmath serves float32 too, on fewer points.
"""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np

LD = np.longdouble
MPMATH_DIGITS = 60  # decimal digits; float64 has 16, and no step below loses 40


def _longdouble_is_wide() -> bool:
    """Whether longdouble really computes with 64 bits or more, whatever finfo claims."""
    one, step = LD(1), LD(2) ** -63
    resolves = one + step > one and (one + step) - one == step
    # A pair of doubles resolves this too, but not its square: there 2^-126 gets lost or is kept
    # whole.
    square = (one + step) * (one + step)
    plain_format = square == one + 2 * step or np.finfo(LD).nmant == 112
    return bool(resolves and plain_format and LD(2) ** -16000 > 0)


LONGDOUBLE_IS_WIDE = _longdouble_is_wide()


class Pieces:
    """softplus and sigmoid of x and -x for an array of scores (longdouble)."""

    def __init__(self, x: Any) -> None:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            x = np.asarray(x, dtype=LD)  # a signalling NaN is invalid already here
            e = np.exp(-np.abs(x))
            low = np.log1p(e)  # softplus(-|x|)
            small = e / (1 + e)  # sigmoid(-|x|)
            high = np.abs(x) + low
            big = 1 / (1 + e)
        negative = x < 0
        self.softplus = np.where(negative, low, high)
        self.softplus_neg = np.where(negative, high, low)
        self.sigmoid = np.where(negative, small, big)
        self.sigmoid_neg = np.where(negative, big, small)


def _times(factor: Any, value: Any) -> Any:
    """factor * value, where a factor of 0 gives 0 even for an infinite value."""
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        return np.where(factor == 0, LD(0), factor * value)


def loss(pieces: Pieces, t: Any, p: Any = 1.0, w: Any = 1.0) -> Any:
    t, p, w = (np.asarray(v, dtype=LD) for v in (t, p, w))
    return w * (_times(1 - t, pieces.softplus) + _times(p * t, pieces.softplus_neg))


def gradient(pieces: Pieces, t: Any, p: Any = 1.0, w: Any = 1.0) -> Any:
    t, p, w = (np.asarray(v, dtype=LD) for v in (t, p, w))
    return w * (_times(1 - t, pieces.sigmoid) - _times(p * t, pieces.sigmoid_neg))


def loss_terms(pieces: Pieces, t: Any, p: Any = 1.0, w: Any = 1.0) -> Any:
    """Size of the terms of the loss: what its error bound is relative to."""
    t, p, w = (np.asarray(v, dtype=LD) for v in (t, p, w))
    return np.abs(w) * (np.abs(1 - t) * pieces.softplus + np.abs(p * t) * pieces.softplus_neg)


def gradient_terms(pieces: Pieces, t: Any, p: Any = 1.0, w: Any = 1.0) -> Any:
    """The same for the gradient."""
    t, p, w = (np.asarray(v, dtype=LD) for v in (t, p, w))
    return np.abs(w) * (np.abs(1 - t) * pieces.sigmoid + np.abs(p * t) * pieces.sigmoid_neg)


def spacing(exact: Any, dtype: Any) -> Any:
    """Spacing of `dtype` in the binade of each exact (longdouble) value; subnormals share one."""
    info = np.finfo(dtype)
    _, exponent = np.frexp(np.where(np.isfinite(exact), exact, LD(1)))
    exponent = np.where(exact == 0, info.minexp, exponent - 1)
    return np.ldexp(LD(1), np.maximum(exponent, info.minexp) - info.nmant)


def ulp_error(got: Any, exact: Any, dtype: Any) -> Any:
    """|got - exact| in ulp (float64). Infinite where only one of them is NaN or infinite."""
    got = np.asarray(got)
    with np.errstate(invalid="ignore"):
        error = np.abs(got.astype(LD) - exact) / spacing(exact, dtype)
    same = (got == exact) | (np.isnan(got) & np.isnan(exact))
    error = np.where(same, LD(0), error)
    return np.where(np.isnan(error), np.inf, error).astype(np.float64)


def to_longdouble(value: mpmath.mpf) -> Any:
    """The longdouble next to an mpf: two exact doubles carry 106 bits."""
    high = float(value)
    return LD(high) + LD(float(value - mpmath.mpf(high)))


def mp_pieces(x: float) -> tuple[mpmath.mpf, mpmath.mpf, mpmath.mpf, mpmath.mpf]:
    """softplus(x), softplus(-x), sigmoid(x), sigmoid(-x) of one score."""
    if np.isinf(x):
        ends = (mpmath.inf, mpmath.mpf(0), mpmath.mpf(1), mpmath.mpf(0))
        return ends if x > 0 else (ends[1], ends[0], ends[3], ends[2])
    with mpmath.workdps(MPMATH_DIGITS):
        value = mpmath.mpf(x)
        e = mpmath.exp(-abs(value))
        low, small = mpmath.log1p(e), e / (1 + e)
        high, big = abs(value) + low, 1 / (1 + e)
        return (low, high, small, big) if value < 0 else (high, low, big, small)


def mp_values(x: Any, t: Any, p: Any = 1.0, w: Any = 1.0) -> list[tuple[mpmath.mpf, ...]]:
    """Per element: loss, gradient, size of the loss's terms, size of the gradient's terms."""
    out = []
    with mpmath.workdps(MPMATH_DIGITS):
        for score, target, positive, factor in np.broadcast(x, t, p, w):
            sp, sn, gp, gn = mp_pieces(float(score))
            u0 = 1 - mpmath.mpf(float(target))
            u1 = mpmath.mpf(float(positive)) * mpmath.mpf(float(target))
            f = mpmath.mpf(float(factor))

            def times(a: mpmath.mpf, b: mpmath.mpf) -> mpmath.mpf:
                return a * b if a else mpmath.mpf(0)

            out.append(
                (
                    f * (times(u0, sp) + times(u1, sn)),
                    f * (times(u0, gp) - times(u1, gn)),
                    abs(f) * (times(abs(u0), sp) + times(abs(u1), sn)),
                    abs(f) * (times(abs(u0), gp) + times(abs(u1), gn)),
                )
            )
    return out


def mp_ulp_error(got: float, exact: mpmath.mpf, dtype: Any) -> float:
    """|got - exact| in ulp of `dtype`."""
    if mpmath.isinf(exact) or not np.isfinite(got):
        return 0.0 if float(exact) == got else float("inf")
    info = np.finfo(dtype)
    with mpmath.workdps(MPMATH_DIGITS):
        exponent = info.minexp if exact == 0 else max(mpmath.frexp(exact)[1] - 1, info.minexp)
        return float(
            abs(mpmath.mpf(float(got)) - exact) / mpmath.ldexp(1, int(exponent - info.nmant))
        )
