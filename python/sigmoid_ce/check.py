"""Whether the promises hold on this machine: errors, special values and equal bits.

Each instruction set that the machine has computes the same scores, for float32 and float64, and is
compared with the textbook formula in NumPy's longdouble, with the table of special values of
docs/numerics.md, and with the bits of the first instruction set.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from sigmoid_ce import _cpu, bounds

Array = NDArray[Any]

DTYPES = ("float32", "float64")

# Beyond these scores nothing happens any more: exp(-|x|) is 0, subnormals included.
_LAST_SCORE = {"float32": 110.0, "float64": 760.0}
_BOUND = {"float32": bounds.FLOAT32_ULP, "float64": bounds.FLOAT64_ULP}

_INF, _NAN = float("inf"), float("nan")


class Error(NamedTuple):
    """The largest error of one result over the scores."""

    isa: str
    dtype: str
    result: str  # "loss" or "gradient"
    target: int
    ulp: float | None  # None: no wider type here to compare with
    score: float | None  # where
    bound: float

    @property
    def good(self) -> bool:
        return self.ulp is None or self.ulp <= self.bound


class Special(NamedTuple):
    """A special value, and what came out."""

    isa: str
    dtype: str
    case: str
    expected: tuple[float, float]  # loss and gradient
    got: tuple[float, float]
    masked: bool  # ignored or of weight 0: +0 is promised, where else a gradient may be -0

    @property
    def good(self) -> bool:
        (loss, gradient), (got_loss, got_gradient) = self.expected, self.got
        zeros = gradient == got_gradient == 0 and not self.masked
        return _same(loss, got_loss) and (zeros or _same(gradient, got_gradient))


class Bits(NamedTuple):
    """A digest of losses, gradients and sum over all scores: equal for all instruction sets."""

    isa: str
    dtype: str
    digest: str
    good: bool


class Report(NamedTuple):
    scores: int
    errors: list[Error]
    special: list[Special]
    bits: list[Bits]

    @property
    def good(self) -> bool:
        return all(row.good for rows in (self.errors, self.special, self.bits) for row in rows)


# Scores, targets and options to loss and gradient, in the order of the list in docs/numerics.md.
_SPECIAL: list[tuple[str, dict[str, Any], tuple[float, float]]] = [
    ("ignored, score NaN", {"x": _NAN, "t": 255, "ignore_label": 255}, (0, 0)),
    ("ignored, weight inf", {"x": 1, "t": -1, "weight": _INF, "ignore_label": -1}, (0, 0)),
    ("weight 0, score NaN", {"x": _NAN, "t": 1, "weight": 0}, (0, 0)),
    ("weight 0, score inf", {"x": _INF, "t": 0, "weight": 0}, (0, 0)),
    ("score NaN", {"x": _NAN, "t": 1}, (_NAN, _NAN)),
    ("target NaN", {"x": 1, "t": _NAN}, (_NAN, _NAN)),
    ("target inf", {"x": 1, "t": _INF}, (_NAN, _NAN)),
    ("weight NaN", {"x": 1, "t": 1, "weight": _NAN}, (_NAN, _NAN)),
    ("score +inf, target 0", {"x": _INF, "t": 0}, (_INF, 1)),
    ("score +inf, target 1", {"x": _INF, "t": 1}, (0, 0)),
    ("score +inf, target 2", {"x": _INF, "t": 2}, (-_INF, -1)),
    ("score -inf, target 0", {"x": -_INF, "t": 0}, (0, 0)),
    ("score -inf, target 1", {"x": -_INF, "t": 1}, (_INF, -1)),
    ("score -inf, target -1", {"x": -_INF, "t": -1}, (-_INF, 1)),
    ("score +-0, target 0", {"x": 0.0, "t": 0}, (float(np.log(2)), 0.5)),
    ("score +-0, target 1", {"x": -0.0, "t": 1}, (float(np.log(2)), -0.5)),
]
# The same with an option of the family.
_SPECIAL_OPTIONS: list[tuple[str, dict[str, Any], tuple[float, float]]] = [
    ("uncertain target, ignored", {"x": _NAN, "t": 0.5, "uncertain": "ignore"}, (0, 0)),
    ("focal, score +inf, target 1", {"x": _INF, "t": 1, "gamma": 2.0}, (0, 0)),
    ("focal, score +inf, target 0", {"x": _INF, "t": 0, "gamma": 2.0}, (_INF, 1)),
    ("focal, target 2", {"x": 1, "t": 2, "gamma": 2.0}, (_NAN, _NAN)),
    ("one class, balanced", {"x": 1, "t": 0, "balance": "batch"}, (0, 0)),
]


def run(size: int = 1 << 18, progress: Callable[[str], object] = lambda text: None) -> Report:
    """Checks every instruction set with `size` scores for each dtype; about a second for each 2^18.

    `progress` is called with the name of each part before it starts. The instruction set in use is
    the one of before afterwards.
    """
    report = Report(size, [], [], [])
    before = _cpu.get_isa()
    try:
        for dtype in DTYPES:
            x = _scores(size, dtype)
            progress(f"{dtype}, exact values")
            exact = _Exact(x) if _is_wider(dtype) else None
            first = ""
            for isa in _cpu.available_isas():
                progress(f"{dtype}, {isa}")
                _cpu.set_isa(isa)
                digest = hashlib.sha256()
                for target in (0, 1):
                    t = np.full(size, target, np.uint8)
                    losses = _cpu.elementwise(x, t)
                    gradient = _cpu.backward(x, t, normalization="none")
                    total = _cpu.partial(x, t)
                    options = {"gamma": 2.0, "alpha": 0.25, "label_smoothing": 0.1}
                    focal = _cpu.forward_backward(
                        x, t, normalization="none", hessian=True, **cast(Any, options)
                    )
                    for words in (losses, gradient, total.to_words(), *map(np.asarray, focal)):
                        digest.update(words.tobytes())
                    for result, values in (("loss", losses), ("gradient", gradient)):
                        error = None if exact is None else exact.error(result, target, values)
                        ulp, score = error or (None, None)
                        report.errors.append(
                            Error(isa, dtype, result, target, ulp, score, _BOUND[dtype])
                        )
                report.special.extend(_special(isa, dtype))
                first = first or digest.hexdigest()
                report.bits.append(
                    Bits(isa, dtype, digest.hexdigest(), digest.hexdigest() == first)
                )
    finally:
        _cpu.set_isa(before or None)  # none: the environment names one that is not there
    return report


def _scores(size: int, dtype: str) -> Array:
    """Half uniform between the last scores that matter, half of any exponent; no NaN."""
    rng = np.random.default_rng(0)
    last = _LAST_SCORE[dtype]
    uniform = rng.uniform(-last, last, size - size // 2)
    info = np.finfo(dtype)
    exponents = rng.integers(info.minexp - info.nmant, info.maxexp, size // 2)
    signs = rng.choice([-1.0, 1.0], size // 2)
    spread = signs * np.ldexp(rng.uniform(0.5, 1, size // 2), exponents)
    return np.concatenate([uniform, spread]).astype(dtype)


def _is_wider(dtype: str) -> bool:
    """Whether longdouble has the bits to judge `dtype`: 11 more, and a wider exponent."""
    one = np.longdouble(1)
    step = np.ldexp(one, -63)
    resolves = bool((one + step) - one == step)
    return dtype == "float32" or (resolves and bool(np.ldexp(one, -16000) > 0))


class _Exact:
    """Loss and gradient in longdouble: the softplus and the sigmoid of x and of -x."""

    def __init__(self, x: Array) -> None:
        self._x = x
        with np.errstate(under="ignore", over="ignore"):
            a = np.abs(x.astype(np.longdouble))
            z = np.exp(-a)
            self._low, self._small = np.log1p(z), z / (1 + z)
            self._high, self._big = a + self._low, 1 / (1 + z)

    def error(self, result: str, target: int, values: Array) -> tuple[float, float]:
        """The largest error in ulp of the dtype, and its score."""
        toward = (self._x >= 0) == (target == 1)  # the score is on the target's side
        if result == "loss":
            exact = np.where(toward, self._low, self._high)
        else:
            exact = np.where(toward, self._small, self._big)
            exact = -exact if target else exact
        info = np.finfo(values.dtype)
        with np.errstate(under="ignore", over="ignore", invalid="ignore"):
            _, exponent = np.frexp(exact)
            exponent = np.where(exact == 0, info.minexp, np.maximum(exponent - 1, info.minexp))
            ulp = np.ldexp(np.longdouble(1), exponent - info.nmant)
            errors = np.abs(values.astype(np.longdouble) - exact) / ulp
        errors = np.where(np.isnan(errors), np.inf, errors)
        worst = int(np.argmax(errors))
        return float(errors[worst]), float(self._x[worst])


def _special(isa: str, dtype: str) -> list[Special]:
    rows = []
    for case, given, (loss, gradient) in [*_SPECIAL, *_SPECIAL_OPTIONS]:
        options = dict(given)
        # In the middle of a block, so that vector code computes it.
        x = np.zeros(100, dtype)
        t = np.zeros(100, dtype)
        w = np.ones(100, dtype)
        x[50], t[50] = options.pop("x"), options.pop("t")
        w[50] = options.pop("weight", 1)
        if w[50] != 1:
            options["weight"] = w
        got = (
            float(_cpu.elementwise(x, t, **options)[50]),
            float(_cpu.backward(x, t, normalization="none", **options)[50]),
        )
        rounded = float(np.asarray(loss, dtype)), float(np.asarray(gradient, dtype))
        masked = not {"ignore_label", "uncertain", "balance"}.isdisjoint(given)
        masked = masked or given.get("weight") == 0
        rows.append(Special(isa, dtype, case, rounded, got, masked))
    return rows


def _same(a: float, b: float) -> bool:
    """Both NaN, or equal with equal signs: +0 is promised where the loss is 0."""
    return (a != a and b != b) or (a == b and math.copysign(1, a) == math.copysign(1, b))
