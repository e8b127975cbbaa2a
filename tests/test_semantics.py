"""What the loss means: Caffe's modes, ignored labels, special values, and faults of other systems.

Expected values are written out, or come from `simple` below, which is the formula with the float64
functions of Python's math module, one element at a time. The package's NumPy reference is tested
against the kernels on shapes and options that Hypothesis makes.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sigmoid_ce as sce

INF, NAN = math.inf, math.nan

# Kernels of float64 (2 ulp an element) against float64 arithmetic of about 8 roundings.
FLOAT64_REL = 1e-14
# float32: 2 ulp of the kernel, a rounding of the weight and of the scale.
FLOAT32_REL = 1e-6

DTYPES = [np.float32, np.float64]
INTEGERS = [np.bool_, np.uint8, np.int8, np.int32, np.int64]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


def rel(dtype: Any) -> float:
    return FLOAT32_REL if dtype == np.float32 else FLOAT64_REL


def simple(x: float, t: float, p: float = 1.0, w: float = 1.0) -> tuple[float, float]:
    """Loss and gradient of one finite element."""
    low = math.log1p(math.exp(-abs(x)))
    small = math.exp(-abs(x)) / (1 + math.exp(-abs(x)))
    softplus, sigmoid = (x + low, 1 - small) if x >= 0 else (low, small)
    softplus_neg, sigmoid_neg = (low, small) if x >= 0 else (-x + low, 1 - small)
    loss = (1 - t) * softplus + p * t * softplus_neg
    return w * loss, w * ((1 - t) * sigmoid - p * t * sigmoid_neg)


def one(x: float, t: Any, dtype: Any = np.float64, **options: Any) -> tuple[float, float]:
    """Loss and gradient of one element from the kernels, by every way that gives them."""
    scores = np.array([x], dtype=dtype)
    targets = np.asarray(t).reshape(1) if isinstance(t, np.generic) else np.array([t], dtype=dtype)
    loss = sce.elementwise(scores, targets, **options)[0]
    gradient = sce.backward(scores, targets, normalization="none", **options)[0]
    total, both = sce.forward_backward(scores, targets, normalization="none", **options)
    assert np.array_equal(both, [gradient], equal_nan=True)
    assert np.array_equal(total, np.float64(loss), equal_nan=True)
    return float(loss), float(gradient)


def is_plus_zero(value: float) -> bool:
    return value == 0 and math.copysign(1, value) == 1


# ---------------------------------------------------------------- plain values


@dtypes
def test_two_element_example(dtype: Any) -> None:
    x, t = np.array([9.7, 0.0], dtype=dtype), np.array([0, 1], dtype=dtype)
    for scores, targets in ((x, t), (x.reshape(2, 1), t.reshape(2, 1))):
        assert sce.forward(scores, targets) == pytest.approx(5.19660, abs=5e-6)


@dtypes
@pytest.mark.parametrize("x", [-120.0, -20.0, -1.5, -0.0, 0.0, 0.25, 17.0, 20.0, 88.0])
@pytest.mark.parametrize("t", [0.0, 1.0, 0.25, -0.5, 1.5])
@pytest.mark.parametrize("p", [None, 0.0, 0.5, 4.0])
def test_formula(dtype: Any, x: float, t: float, p: float | None) -> None:
    positive = 1.0 if p is None else p
    loss, gradient = one(x, t, dtype, pos_weight=p)
    wanted = simple(x, t, positive)
    # Terms of opposite sign may cancel for these targets, so the tolerance goes by their size.
    size = simple(x, 0.0)[0] * abs(1 - t) + positive * simple(-x, 0.0)[0] * abs(t)
    slope = abs(1 - t) * simple(x, 0.0)[1] + positive * abs(t) * simple(-x, 0.0)[1]
    tiny = 1e-44 if dtype == np.float32 else 0.0
    assert abs(loss - wanted[0]) <= rel(dtype) * size + tiny
    assert abs(gradient - wanted[1]) <= rel(dtype) * slope + tiny


@dtypes
def test_gradient_is_the_derivative(dtype: Any) -> None:
    """Central differences of the float64 loss."""
    rng = np.random.default_rng(11)
    x = rng.normal(0, 4, (6, 3, 50))
    t = rng.random(x.shape).astype(dtype)
    w = rng.uniform(0, 2, x.shape).astype(dtype)
    x = x.astype(dtype)
    p, h = [0.5, 1.0, 3.0], 1e-4
    options = {"pos_weight": p, "ignore_label": 7}
    wide = {"weight": w.astype(np.float64), **options}
    up = sce.elementwise(x.astype(np.float64) + h, t.astype(np.float64), **wide)
    down = sce.elementwise(x.astype(np.float64) - h, t.astype(np.float64), **wide)
    gradient = sce.backward(x, t, weight=w, normalization="none", **options)
    # h^2 / 6 times a third derivative below 0.2 p w; and the rounding of two losses below 64.
    truncation, rounding = h * h, 64 * 2.0**-53 / h
    assert np.max(np.abs((up - down) / (2 * h) - gradient)) <= truncation + rounding + (
        20 * np.finfo(dtype).eps
    )


# ---------------------------------------------------------------- special values


SPECIAL: list[tuple[str, float, float, dict[str, Any], float, float]] = [
    # name, x, t, options, loss, gradient (rounded to the dtype; 1 - 0.3 is 0.7 in both)
    ("score NaN, t 0", NAN, 0, {}, NAN, NAN),
    ("score NaN, t 1", NAN, 1, {}, NAN, NAN),
    ("target NaN", 1, NAN, {}, NAN, NAN),
    ("weight NaN", 1, 0, {"weight": NAN}, NAN, NAN),
    ("+inf, t 0", INF, 0, {}, INF, 1),
    ("+inf, t 1", INF, 1, {}, 0, 0),
    ("-inf, t 0", -INF, 0, {}, 0, 0),
    ("-inf, t 1", -INF, 1, {}, INF, -1),
    ("+inf, t 0.3", INF, 0.3, {}, INF, 0.7),
    ("-inf, t 0.3", -INF, 0.3, {}, INF, -0.3),
    ("+inf, t above 1", INF, 1.5, {}, -INF, -0.5),
    ("-inf, t below 0", -INF, -0.5, {}, -INF, 0.5),
    ("-inf, t 1, p 0", -INF, 1, {"pos_weight": 0.0}, 0, 0),
    ("finite, t 1, p 0", -5, 1, {"pos_weight": 0.0}, 0, 0),
    ("target +inf", 1, INF, {}, NAN, NAN),
    ("target -inf", 1, -INF, {}, NAN, NAN),
    ("target inf, score 0", 0, INF, {}, NAN, NAN),
    ("both infinite", INF, INF, {}, NAN, NAN),
    ("w 0, +inf", INF, 0, {"weight": 0.0}, 0, 0),
    ("w 0, score NaN", NAN, 0, {"weight": 0.0}, 0, 0),
    ("w 0, target NaN", 3, NAN, {"weight": 0.0}, 0, 0),
    ("w -0, score NaN", NAN, 1, {"weight": -0.0}, 0, 0),
    ("w 0, target inf", 3, INF, {"weight": 0.0}, 0, 0),
    ("ignored, score NaN", NAN, 2, {"ignore_label": 2}, 0, 0),
    ("ignored, +inf", INF, 2, {"ignore_label": 2}, 0, 0),
    ("ignored, weight NaN", 1, 2, {"ignore_label": 2, "weight": NAN}, 0, 0),
    ("ignored, weight inf", 1, 2, {"ignore_label": 2, "weight": INF}, 0, 0),
    ("NaN target is never ignored", 1, NAN, {"ignore_label": 0}, NAN, NAN),
    ("weight inf", 1, 0, {"weight": INF}, INF, INF),
    ("weight inf, t 1", 1, 1, {"weight": INF}, INF, -INF),
]


@dtypes
@pytest.mark.parametrize(
    ("x", "t", "options", "loss", "gradient"),
    [case[1:] for case in SPECIAL],
    ids=[case[0] for case in SPECIAL],
)
@pytest.mark.parametrize("isa", sce.available_isas())
def test_special_values(
    dtype: Any, x: float, t: float, options: dict[str, Any], loss: float, gradient: float, isa: str
) -> None:
    sce.set_isa(isa)
    options = dict(options)
    if "weight" in options:
        options["weight"] = np.array([options["weight"]], dtype=dtype)
    got = one(x, t, dtype, **options)
    for value, wanted in zip(got, (loss, gradient), strict=True):
        assert math.isnan(value) if math.isnan(wanted) else value == float(dtype(wanted))
    if options.get("ignore_label") == t or (np.asarray(options.get("weight", 1)) == 0).all():
        assert is_plus_zero(got[0])
        assert is_plus_zero(got[1])
    reference = sce.reference.elementwise(np.array([x]), np.array([float(t)]), **options)
    assert np.array_equal(reference, [loss], equal_nan=True)
    slopes = sce.reference.backward(
        np.array([x]), np.array([float(t)]), normalization="none", **options
    )
    assert np.array_equal(slopes, [gradient], equal_nan=True)


@dtypes
@pytest.mark.parametrize("isa", sce.available_isas())
def test_special_value_in_every_lane(dtype: Any, isa: str) -> None:
    """A NaN is not lost in a vector, and does not touch the elements beside it."""
    sce.set_isa(isa)
    x = np.linspace(-3, 3, 70).astype(dtype)
    t = (np.arange(70) % 2).astype(dtype)
    clean = sce.elementwise(x, t)
    for bad, lane in itertools.product((NAN, INF), range(70)):
        scores = x.copy()
        scores[lane] = bad
        got = sce.elementwise(scores, t)
        assert np.isnan(got[lane]) if math.isnan(bad) else got[lane] == (0 if t[lane] else INF)
        assert np.array_equal(np.delete(got, lane), np.delete(clean, lane))
        assert np.isnan(sce.forward(scores, t)) == math.isnan(bad)


UNIFORM: dict[str, Any] = {
    "0-d": lambda w, n: w,
    "shape (1,)": lambda w, n: w.reshape(1),
    "stride 0": lambda w, n: np.broadcast_to(w, (n,)),
}


@dtypes
@pytest.mark.parametrize("form", list(UNIFORM))
@pytest.mark.parametrize("value", [INF, -INF, NAN], ids=["inf", "-inf", "nan"])
@pytest.mark.parametrize("isa", sce.available_isas())
def test_uniform_weight_that_is_not_finite(dtype: Any, form: str, value: float, isa: str) -> None:
    """One weight for all is each element's: nothing that fills up a vector takes part."""
    sce.set_isa(isa)
    rng = np.random.default_rng(8)
    for n, integer in itertools.product((1, 2, 65, 4097), (False, True)):
        x = rng.normal(0, 3, n).astype(dtype)  # losses above 0: infinity times 0 is not meant here
        t = rng.integers(0, 2, n).astype(np.uint8) if integer else rng.random(n).astype(dtype)
        weight = UNIFORM[form](np.array(value, dtype), n)
        full = np.full(n, value, dtype)
        options = {"normalization": "full"}

        loss = sce.forward(x, t, weight=weight, **options)
        assert np.array_equal(loss, value, equal_nan=True)
        assert np.array_equal(loss, sce.forward(x, t, weight=full, **options), equal_nan=True)
        wanted = sce.reference.forward(x, t, weight=weight, **options)
        assert np.array_equal(loss, wanted, equal_nan=True)
        both, gradient = sce.forward_backward(x, t, weight=weight, **options)
        assert np.array_equal(both, loss, equal_nan=True)
        slope = sce.backward(x, t, weight=full, **options)
        assert np.array_equal(gradient, slope, equal_nan=True)
        assert np.array_equal(
            sce.elementwise(x, t, weight=weight), np.full(n, value), equal_nan=True
        )

        # All ignored: +0, whatever the weight. One valid element: its loss alone.
        label = np.full(n, 3, t.dtype)
        assert is_plus_zero(sce.forward(x, label, weight=weight, ignore_label=3))
        loss, gradient = sce.forward_backward(x, label, weight=weight, ignore_label=3)
        assert is_plus_zero(loss)
        assert np.array_equal(gradient, np.zeros(n))
        label[-1] = 0
        loss = sce.forward(x, label, weight=weight, ignore_label=3, normalization="none")
        assert np.array_equal(loss, value, equal_nan=True)


@dtypes
def test_uniform_weight_of_zero(dtype: Any) -> None:
    """Masked, all of them, in vectors that are not full too."""
    for n in (1, 2, 65, 4097):
        x, t = np.full(n, NAN, dtype), np.zeros(n, dtype)
        for form in UNIFORM.values():
            weight = form(np.array(0, dtype), n)
            assert is_plus_zero(sce.forward(x, t, weight=weight))
            assert np.array_equal(sce.backward(x, t, weight=weight), np.zeros(n))


@dtypes
def test_infinities_in_the_sum(dtype: Any) -> None:
    for n in (2, 5000, 100_000):
        x, t = np.ones(n, dtype), np.zeros(n, dtype)
        x[0] = INF
        assert sce.forward(x, t) == INF
        t[0] = 1.5
        assert sce.forward(x, t) == -INF
        x[-1] = INF
        assert math.isnan(sce.forward(x, t))
        x[0] = 1
        assert sce.forward(x, t) == INF
        t[0] = NAN
        assert math.isnan(sce.forward(x, t))


@dtypes
def test_sum_beyond_the_range_of_the_type(dtype: Any) -> None:
    """The mean of huge losses is finite where the float32 (or float64) sum is not."""
    top = float(np.finfo(dtype).max)
    x, t = np.full(3 * 4096, top, dtype), np.zeros(3 * 4096, dtype)
    loss = sce.forward(x, t, normalization="full")
    if dtype == np.float32:
        assert loss == top
    else:
        assert loss == INF  # 4096 such losses leave float64 inside the block, as the docs say


def test_large_target_without_pos_weight() -> None:
    """(1 - t) + t is 0 or 2 in float32 at t = 3e7: the factor of log1p is the constant 1."""
    x, t = np.float32(1e-3), np.float32(3e7)
    loss, gradient = one(float(x), t, np.float32)
    exact = (1 - float(t)) * float(x) + math.log1p(math.exp(-float(x)))
    assert loss == pytest.approx(exact, rel=FLOAT32_REL)
    assert one(0.0, t, np.float32)[0] == pytest.approx(math.log(2), rel=FLOAT32_REL)
    assert gradient == pytest.approx(1 / (1 + math.exp(-float(x))) - float(t), rel=FLOAT32_REL)
    assert one(0.0, -t, np.float32)[0] == pytest.approx(math.log(2), rel=FLOAT32_REL)


@dtypes
def test_small_pos_weight_is_not_lost(dtype: Any) -> None:
    """1 + (p - 1) t would keep 4 digits of p = 0.001 in float32, and p t keeps all."""
    p = float(dtype(0.001))
    for x in (-30.0, 0.0, 12.0, 40.0):
        loss, gradient = one(x, 1.0, dtype, pos_weight=p)
        wanted = simple(x, 1.0, p)
        assert loss == pytest.approx(wanted[0], rel=rel(dtype))
        assert gradient == pytest.approx(wanted[1], rel=rel(dtype))


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_subnormal_results_and_inputs(t: float) -> None:
    sign = -1.0 if t == 0 else 1.0
    for x in (88.0, 95.0, 103.0):
        loss, gradient = one(sign * x, t, np.float32)
        assert 0 < loss < np.finfo(np.float32).smallest_normal * 2
        assert loss == pytest.approx(math.exp(-x), abs=2 * 2.0**-149, rel=FLOAT32_REL)
        assert abs(gradient) == pytest.approx(math.exp(-x), abs=2 * 2.0**-149, rel=FLOAT32_REL)
    loss, _ = one(sign * 740.0, t, np.float64)
    assert loss == pytest.approx(math.exp(-740.0), abs=2 * 5e-324)
    assert loss > 0
    # A subnormal score, target and weight are numbers, not zeros.
    tiny = np.float32(2.0**-149)
    assert one(1.0, 1.0, np.float32, weight=np.array([tiny]))[0] == 0  # 0.31 of the smallest
    assert one(-3.0, 1.0, np.float32, weight=np.array([tiny]))[0] == 3 * float(tiny)
    assert one(2.0**127, tiny, np.float32, pos_weight=0.0)[0] == 2.0**127
    big = one(-(2.0**127), tiny, np.float32)[0]
    assert big == pytest.approx(2.0**127 * 2.0**-149, rel=FLOAT32_REL)


# ---------------------------------------------------------------- normalisation


def case() -> tuple[Any, Any, float, int]:
    """Scores, targets with ignored elements, the sum of the losses, the number of valid ones."""
    rng = np.random.default_rng(5)
    x = rng.normal(0, 3, (4, 3, 5, 7))
    t = rng.integers(-1, 2, x.shape).astype(np.float64)
    pairs = [simple(a, b)[0] for a, b in zip(x.ravel(), t.ravel(), strict=True) if b != -1]
    return x, t, math.fsum(pairs), len(pairs)


@pytest.mark.parametrize("mode", ["full", "valid", "batch_size", "none", 12.5, 0.25])
def test_normalization(mode: Any) -> None:
    x, t, total, valid = case()
    divisor = {"full": x.size, "valid": valid, "batch_size": 4, "none": 1}.get(mode, mode)
    options = {"ignore_label": -1, "normalization": mode}
    assert sce.forward(x, t, **options) == pytest.approx(total / divisor, rel=FLOAT64_REL)
    plain = sce.backward(x, t, ignore_label=-1, normalization="none")
    gradient = sce.backward(x, t, loss_weight=3.0, **options)
    assert np.allclose(gradient, plain * (3.0 / divisor), rtol=FLOAT64_REL, atol=0)
    loss, both = sce.forward_backward(x, t, loss_weight=3.0, **options)
    assert loss == sce.forward(x, t, **options)  # loss_weight is a factor of the gradient only
    assert np.array_equal(both, gradient)
    assert np.array_equal(gradient == 0, t == -1)


def test_valid_counts_elements_and_not_weights() -> None:
    x, t, _, valid = case()
    w = np.zeros_like(x)
    w[0] = 0.5
    loss = sce.forward(x, t, weight=w, ignore_label=-1, normalization="valid")
    total = sce.forward(x, t, weight=w, ignore_label=-1, normalization="none")
    assert loss == pytest.approx(total / valid, rel=FLOAT64_REL)
    assert sce.partial(x, t, weight=w, ignore_label=-1).n_valid == valid
    assert sce.partial(x, t).n_valid == x.size


def test_precedence_of_normalization_and_normalize() -> None:
    x, t, total, valid = case()

    def divisor(**options: Any) -> float:
        return total / sce.forward(x, t, ignore_label=-1, **options)

    approx = {"rel": 1e-12}  # a quotient of two sums that are good to 1e-14
    assert divisor() == pytest.approx(4, **approx)
    assert divisor(normalize=None) == pytest.approx(4, **approx)
    assert divisor(normalize=False) == pytest.approx(4, **approx)
    assert divisor(normalize=True) == pytest.approx(valid, **approx)
    for normalize in (None, False, True):
        assert divisor(normalization="full", normalize=normalize) == pytest.approx(x.size, **approx)
        assert divisor(normalization="none", normalize=normalize) == pytest.approx(1, **approx)
        assert divisor(normalization=3, normalize=normalize) == pytest.approx(3, **approx)


def test_all_ignored_divides_by_one() -> None:
    x, t = np.ones((3, 4)), np.full((3, 4), 255, dtype=np.uint8)
    for mode in ("full", "valid", "batch_size", "none"):
        assert is_plus_zero(sce.forward(x, t, ignore_label=255, normalization=mode))
        gradient = sce.backward(x, t, ignore_label=255, normalization=mode)
        assert all(is_plus_zero(g) for g in gradient.ravel())


@dtypes
@pytest.mark.parametrize("shape", [(0,), (4, 0), (0, 4), (2, 0, 3)])
@pytest.mark.parametrize("mode", ["full", "valid", "batch_size", "none", 2.0])
def test_empty(dtype: Any, shape: tuple[int, ...], mode: Any) -> None:
    x, t = np.empty(shape, dtype), np.empty(shape, np.uint8)
    assert is_plus_zero(sce.forward(x, t, normalization=mode))
    loss, gradient = sce.forward_backward(x, t, normalization=mode)
    assert is_plus_zero(loss)
    assert gradient.shape == shape
    assert gradient.dtype == dtype
    assert sce.elementwise(x, t).shape == shape
    part = sce.partial(x, t)
    assert (part.sum, part.n_valid, part.n_total) == (0.0, 0, 0)
    batch = shape[0] if mode == "batch_size" else None
    assert part.loss(normalization=mode, batch_size=batch) == 0


@pytest.mark.parametrize("mode", ["full", "valid", "batch_size", "none", None])
def test_zero_dimensional(mode: str | None) -> None:
    x, t = np.array(-2.0), np.array(1.0)
    loss, gradient = simple(-2.0, 1.0)
    assert sce.forward(x, t, normalization=mode) == pytest.approx(loss, rel=FLOAT64_REL)
    got = sce.backward(x, t, normalization=mode)
    assert np.shape(got) == ()
    assert float(got) == pytest.approx(gradient, rel=FLOAT64_REL)
    assert np.shape(sce.elementwise(x, t)) == ()


def test_batch_size_of_one_by_many() -> None:
    """SSD's MultiBox layer passes a blob [1, n, c] and relies on a divisor of 1."""
    x, t = np.zeros((1, 8, 21)), np.zeros((1, 8, 21))
    assert sce.forward(x, t) == pytest.approx(8 * 21 * math.log(2), rel=FLOAT64_REL)


# ---------------------------------------------------------------- ignore_label


def ignored(targets: Any, label: int, dtype: Any = np.float64) -> list[bool]:
    """Which elements the kernels leave out, seen in the losses, gradients, counts and reference."""
    t = np.asarray(targets)
    t = t.astype(dtype) if t.dtype.kind == "f" else t
    x = np.full(t.shape, NAN, dtype)  # an element that is not ignored gives NaN
    losses = sce.elementwise(x, t, ignore_label=label)
    out = [bool(v) for v in ~np.isnan(losses)]
    gradient = sce.backward(x, t, ignore_label=label, normalization="none")
    assert [bool(v) for v in ~np.isnan(gradient)] == out
    assert all(is_plus_zero(v) for v in losses[out])
    assert sce.partial(x, t, ignore_label=label).n_valid == t.size - sum(out)
    reference = sce.reference.elementwise(x.astype(np.float64), t, ignore_label=label)
    assert [bool(v) for v in ~np.isnan(reference)] == out
    return out


@dtypes
@pytest.mark.parametrize("isa", sce.available_isas())
def test_ignore_truncates(dtype: Any, isa: str) -> None:
    """int(t) == label with C's truncation towards 0, Caffe's comparison."""
    sce.set_isa(isa)

    def near(v: float, towards: float) -> float:
        return float(np.nextafter(dtype(v), dtype(towards)))

    for label in (-300, -2, -1, 0, 1, 2, 255):
        targets = []
        for edge in (label - 1, label, label + 1):
            targets += [float(edge), near(edge, -INF), near(edge, INF), edge + 0.5]
        t = np.array(targets, dtype=dtype)
        assert ignored(t, label, dtype) == [int(v) == label for v in t]
    assert ignored([0.0, -0.0, 0.3, 0.999, -0.999, 1.0, -1.0, NAN], 0, dtype) == [
        True, True, True, True, True, False, False, False
    ]  # fmt: skip
    assert ignored([NAN, INF, -INF], -1, dtype) == [False] * 3


@dtypes
def test_ignore_label_beyond_the_float_grid(dtype: Any) -> None:
    """2^24 + 1 is no float32: the range k <= t < k + 1 then holds no float32, or rounds to none."""
    big = float(2**30)
    assert ignored([big, big * 2], 2**30, dtype) == [True, False]
    t = np.array([2.0**24, 2.0**24 + 2], dtype=np.float32).astype(dtype)
    assert ignored(t, 2**24 + 1, dtype) == [False, False]
    assert ignored(t, 2**24 + 2, dtype) == [False, True]


@dtypes
@pytest.mark.parametrize("integer", INTEGERS, ids=lambda v: np.dtype(v).name)
def test_ignore_integer_targets(dtype: Any, integer: Any) -> None:
    if integer == np.bool_:
        t = np.array([False, True, True])
    else:
        info = np.iinfo(integer)
        t = np.array([0, 1, 2, info.min, info.max], dtype=integer)
    for label in (-129, -128, -1, 0, 1, 2, 127, 255, 256, 2**31 - 1, 2**31, -(2**31), 2**32,
                  2**32 + 1, 2**63 - 1, -(2**63)):  # fmt: skip
        assert ignored(t, label, dtype) == [int(v) == label for v in t]


@dtypes
def test_ignore_compares_64_bits(dtype: Any) -> None:
    """Two int64 labels that agree in their low 32 bits, or that saturate to one value, differ."""
    t = np.array([2**32 + 1, 1, 2**40, 2**40 + 1, -(2**40)], dtype=np.int64)
    assert ignored(t, 1, dtype) == [False, True, False, False, False]
    assert ignored(t, 2**32 + 1, dtype) == [True, False, False, False, False]
    assert ignored(t, 2**40 + 1, dtype) == [False, False, False, True, False]
    assert ignored(t, 2**31 - 1, dtype) == [False] * 5


@dtypes
def test_ignore_bool(dtype: Any) -> None:
    assert ignored(np.array([True, False]), 1, dtype) == [True, False]
    assert ignored(np.array([True, False]), 0, dtype) == [False, True]
    assert ignored(np.array([True, False]), 255, dtype) == [False, False]


# ---------------------------------------------------------------- target types


@dtypes
@pytest.mark.parametrize("integer", INTEGERS, ids=lambda v: np.dtype(v).name)
def test_integer_targets_are_their_float(dtype: Any, integer: Any) -> None:
    rng = np.random.default_rng(2)
    t = rng.integers(0, 2, (5, 3, 400)).astype(integer)
    if integer not in (np.bool_, np.uint8):
        t[0] -= 2
    x = rng.normal(0, 3, t.shape).astype(dtype)
    options = {"pos_weight": [0.5, 1, 2], "ignore_label": 1}
    for name in ("elementwise", "forward", "backward"):
        operation = getattr(sce, name)
        got, wanted = operation(x, t, **options), operation(x, t.astype(dtype), **options)
        assert np.array_equal(got, wanted)


@dtypes
def test_int64_targets_saturate_to_32_bits(dtype: Any) -> None:
    t = np.array([2**31, 2**40, 2**63 - 1, -(2**31) - 1, -(2**63)], dtype=np.int64)
    x = np.array([1, -2, 3, -4, 5], dtype=dtype)
    clipped = np.clip(t, -(2**31), 2**31 - 1).astype(np.int32)
    assert np.array_equal(sce.elementwise(x, t), sce.elementwise(x, clipped))
    assert np.array_equal(sce.backward(x, t), sce.backward(x, clipped))


@dtypes
@pytest.mark.parametrize("isa", sce.available_isas())
def test_bool_bytes_other_than_one_are_true(dtype: Any, isa: str) -> None:
    sce.set_isa(isa)
    raw = np.arange(256, dtype=np.uint8)
    t = raw.view(np.bool_)
    x = np.linspace(-5, 5, 256).astype(dtype)
    assert np.array_equal(sce.elementwise(x, t), sce.elementwise(x, (raw != 0).astype(dtype)))
    w = np.ones(256, np.uint8)
    w[7:] = raw[7:]
    losses = sce.elementwise(x, raw, weight=w.view(np.bool_), ignore_label=300)
    assert np.array_equal(losses, sce.elementwise(x, raw))


# ---------------------------------------------------------------- weights


@dtypes
@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 1), (3, 1, 1), (1, 5, 1), (3, 5, 7)])
def test_weight_broadcasts(dtype: Any, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(0, 3, (3, 5, 7)).astype(dtype)
    t = rng.random(x.shape).astype(dtype)
    w = rng.uniform(0, 2, shape).astype(dtype)
    plain = sce.elementwise(x, t).astype(np.float64)
    wanted = (plain * w).astype(dtype)
    assert np.allclose(sce.elementwise(x, t, weight=w), wanted, rtol=rel(dtype), atol=0)
    gradient = sce.backward(x, t, normalization="none").astype(np.float64) * w
    got = sce.backward(x, t, weight=w, normalization="none")
    assert np.allclose(got, gradient, rtol=rel(dtype), atol=0)


@dtypes
@pytest.mark.parametrize("kind", [np.bool_, np.uint8, np.int8], ids=lambda v: np.dtype(v).name)
def test_weight_of_integers(dtype: Any, kind: Any) -> None:
    x = np.linspace(-4, 4, 99).astype(dtype)
    t = np.linspace(0, 1, 99).astype(dtype)
    w = (np.arange(99) % 3).astype(kind)
    for name in ("elementwise", "backward"):
        operation = getattr(sce, name)
        assert np.array_equal(operation(x, t, weight=w), operation(x, t, weight=w.astype(dtype)))


@dtypes
def test_pos_weight_forms(dtype: Any) -> None:
    """A number, one value per channel, and PyTorch's (C, 1, 1)."""
    rng = np.random.default_rng(6)
    x = rng.normal(0, 3, (2, 3, 4, 5)).astype(dtype)
    t = rng.random(x.shape).astype(dtype)
    p = np.array([0.25, 1.0, 8.0])
    wanted = np.stack(
        [sce.elementwise(x[:, c], t[:, c], pos_weight=p[c]) for c in range(3)], axis=1
    )
    for form in (p, p.astype(np.float32), list(p), p.reshape(3, 1, 1)):
        assert np.array_equal(sce.elementwise(x, t, pos_weight=form), wanted)
    plain = sce.elementwise(x, t, pos_weight=2.0)
    assert np.array_equal(sce.elementwise(x, t, pos_weight=[2.0, 2.0, 2.0]), plain)


# ---------------------------------------------------------------- more than 32 bits can count


def test_more_than_2_to_the_31_elements() -> None:
    """Broadcast to 2^31 + 5000 elements of one memory cell each: indices and counts are 64 bits."""
    n = 2**31 + 5000
    x = np.broadcast_to(np.float32(0.5), (n,))
    t = np.broadcast_to(np.uint8(1), (n,))
    loss = float(sce.elementwise(x[:1], t[:1])[0])
    # A sum of equal float32 losses takes 24 + 12 bits in a block, and is exact.
    exact = n * Fraction(loss)
    part = sce.partial(x, t, ignore_label=0)
    assert (part.n_total, part.n_valid) == (n, n)
    assert abs(Fraction(part.sum) - exact) <= Fraction(1e-12) * exact
    got = sce.forward(x, t, normalization="none")
    assert got == part.sum
    assert sce.forward(x, t, normalization="full") == pytest.approx(loss, rel=1e-12)


@dtypes
def test_chunk_far_out(dtype: Any) -> None:
    """Channels and weights of a chunk near 2^40, where a channel ends inside of it."""
    shape = (256, 3, 2**31)
    rng = np.random.default_rng(14)
    count, half = 8192, 4096
    x = rng.normal(0, 3, count).astype(dtype)
    t = rng.random(count).astype(dtype)
    p = [0.25, 1.5, 6.0]
    per_channel = np.array([[[1.0], [2.0], [4.0]]], dtype)
    per_sample = (1 + np.arange(256) / 256).reshape(256, 1, 1).astype(dtype)
    for sample, channel in ((170, 0), (170, 1), (170, 2), (171, 0)):
        row = 3 * sample + channel
        first = (row + 1) * 2**31 - half
        assert 2**40 - 2**33 < first < 2**40 + 2**33
        after = (sample, channel + 1) if channel < 2 else (sample + 1, 0)
        for name, weight in (("none", None), ("channel", per_channel), ("sample", per_sample)):
            got = sce.partial(x, t, pos_weight=p, weight=weight, first_index=first, shape=shape)
            assert (got.n_total, got.n_valid) == (count, count)
            wanted = sce.combine([])
            for k, (s, c) in enumerate(((sample, channel), after)):
                w = {"none": None, "channel": 2.0**c, "sample": float(per_sample[s, 0, 0])}[name]
                piece = slice(k * half, (k + 1) * half)
                wanted = wanted + sce.partial(x[piece], t[piece], pos_weight=p[c], weight=w)
            assert got == wanted, (sample, channel, name)


# ---------------------------------------------------------------- faults of other systems


@dtypes
def test_pos_weight_at_minus_120(dtype: Any) -> None:
    """PyTorch's first formula for pos_weight gave NaN here."""
    loss, gradient = one(-120.0, 1.0, dtype, pos_weight=3.0)
    assert loss == pytest.approx(360.0, rel=rel(dtype))
    assert gradient == -3.0
    loss, gradient = one(-120.0, 0.0, np.float64, pos_weight=3.0)
    assert loss == pytest.approx(math.exp(-120), rel=FLOAT64_REL)
    assert gradient == pytest.approx(math.exp(-120), rel=FLOAT64_REL)


@dtypes
def test_gradient_at_zero(dtype: Any) -> None:
    """A clamp at 0 had its gradient stopped: at x = 0 it is 1/2 - t, not 0."""
    for x in (0.0, -0.0):
        assert one(x, 0.0, dtype)[1] == 0.5
        assert one(x, 1.0, dtype)[1] == -0.5
        assert one(x, 1.0, dtype, pos_weight=3.0)[1] == -1.5


def test_confident_positives_keep_learning() -> None:
    """sigmoid(x) - 1 is 0 in float32 from x = 17 on."""
    for x in (17.0, 20.0, 50.0, 100.0):
        _, gradient = one(x, 1.0, np.float32)
        assert gradient == pytest.approx(-math.exp(-x), rel=FLOAT32_REL, abs=2 * 2.0**-149)


def test_loss_of_confident_negatives() -> None:
    """log(1 + exp(x)) is 6% off at x = -16 in float32 and 0 at x = -20."""
    for x in (-16.0, -20.0, -30.0):
        loss, _ = one(x, 0.0, np.float32)
        assert loss == pytest.approx(math.exp(x), rel=FLOAT32_REL)


def test_negative_losses_keep_their_sign_in_the_sum() -> None:
    """A sum of absolute values is wrong for targets outside [0, 1]."""
    x, t = np.full((2, 3), 5.0, np.float32), np.full((2, 3), 4.0, np.float32)
    wanted = 3 * (5.0 * (1 - 4.0) + math.log1p(math.exp(-5.0)))
    assert sce.forward(x, t) == pytest.approx(wanted, rel=FLOAT32_REL)


def test_sum_does_not_stick() -> None:
    """A float32 sum of equal terms stops at 2^24 of them."""
    n = (1 << 24) + 4096
    x = np.zeros(n, np.float32)
    t = np.zeros(n, np.uint8)
    assert sce.forward(x, t, normalization="full") == pytest.approx(math.log(2), rel=FLOAT32_REL)
    assert sce.partial(x, t, ignore_label=7).n_valid == n


def test_no_silent_broadcast() -> None:
    with pytest.raises(ValueError, match="targets"):
        sce.forward(np.zeros((64, 1)), np.zeros((64, 64)))
    with pytest.raises(ValueError, match="targets"):
        sce.forward(np.zeros((64, 64)), np.zeros(64))
    with pytest.raises(ValueError, match="targets"):
        sce.forward(np.zeros((2, 3, 4)), np.zeros((2, 4, 3)))
    assert sce.forward(np.zeros((64, 1)), np.zeros(64)) == pytest.approx(math.log(2))


def test_target_of_seven_is_reported_on_request() -> None:
    x, t = np.zeros(3), np.array([0.0, 1.0, 7.0])
    sce.elementwise(x, t)
    with pytest.raises(ValueError, match="targets"):
        sce.elementwise(x, t, check=True)


# ---------------------------------------------------------------- shapes and options at random


@st.composite
def problems(draw: Any) -> tuple[Any, Any, dict[str, Any]]:
    shape = tuple(draw(st.lists(st.integers(0, 9), min_size=0, max_size=4)))
    dtype = draw(st.sampled_from(DTYPES))
    kind = draw(st.sampled_from([dtype, *INTEGERS]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.normal(0, draw(st.sampled_from([0.1, 3, 40])), shape).astype(dtype)
    if kind == dtype:
        t = np.asarray(rng.choice([0, 1, 0.3, -0.5, 1.5, 2, -1], shape)).astype(dtype)
    else:
        t = np.asarray(rng.integers(0, 3, shape)).astype(kind)
    for _ in range(draw(st.integers(0, 2))):  # layouts: reversed axes, strides
        axis = draw(st.integers(0, max(0, len(shape) - 1)))
        if shape:
            x = np.flip(x, axis)
            t = np.flip(np.repeat(t, 2, axis), axis)[
                tuple(slice(None, None, 2) if k == axis else slice(None) for k in range(t.ndim))
            ]
    options: dict[str, Any] = {
        "normalization": draw(st.sampled_from([None, "full", "valid", "batch_size", "none", 2.5]))
    }
    if draw(st.booleans()):
        options["normalize"] = draw(st.booleans())
    if draw(st.booleans()):
        options["ignore_label"] = draw(st.integers(-2, 3))
    if draw(st.booleans()):
        channels = len(shape) >= 2 and draw(st.booleans())
        values = np.exp(rng.normal(0, 2, shape[1] if channels else 1))
        # Rounded as the kernels round it, so that the reference sees the same number.
        values = values.astype(dtype).astype(np.float64)
        options["pos_weight"] = values if channels else float(values[0])
    if draw(st.booleans()):
        keep = [draw(st.booleans()) for _ in shape]
        w_shape = tuple(n if k else 1 for n, k in zip(shape, keep, strict=True))
        w_kind = draw(st.sampled_from([dtype, np.bool_, np.uint8, np.int8]))
        options["weight"] = np.asarray(rng.integers(0, 4, w_shape)).astype(w_kind)
    return x, t, options


@settings(max_examples=300, deadline=None, derandomize=True)
@given(problem=problems(), loss_weight=st.sampled_from([1.0, 0.37, -2.0]))
def test_kernels_agree_with_the_reference(
    problem: tuple[Any, Any, dict[str, Any]], loss_weight: float
) -> None:
    x, t, options = problem
    dtype = x.dtype
    wide = x.astype(np.float64)
    wide_t = t.astype(np.float64) if t.dtype.kind == "f" else t
    wide_options = dict(options)
    if options.get("weight") is not None and options["weight"].dtype.kind == "f":
        wide_options["weight"] = options["weight"].astype(np.float64)
    per_element = {
        k: v for k, v in options.items() if k in ("ignore_label", "pos_weight", "weight")
    }
    wide_element = {k: wide_options[k] for k in per_element}

    # Relative to the largest terms (targets may lie outside [0, 1]): both parts of the loss, each
    # at most (1 + |t|) max(1, p) w times softplus(|x|) or 1.
    weight = np.abs(np.asarray(options.get("weight", 1.0), dtype=np.float64))
    p = np.asarray(options.get("pos_weight", 1.0), dtype=np.float64)
    if p.ndim:
        p = p.reshape((-1,) + (1,) * (x.ndim - 2))
    size = (1 + np.abs(wide_t.astype(np.float64))) * np.maximum(1, p) * weight
    tolerance = 2 * rel(dtype)

    losses = sce.elementwise(x, t, **per_element)
    wanted = sce.reference.elementwise(wide, wide_t, **wide_element)
    assert losses.dtype == dtype
    assert losses.shape == x.shape
    room = size * (np.abs(wide) + 1)
    assert np.all(np.abs(losses - wanted) <= tolerance * room)

    loss, gradient = sce.forward_backward(x, t, loss_weight=loss_weight, **options)
    assert loss == sce.forward(x, t, **options)
    assert np.array_equal(gradient, sce.backward(x, t, loss_weight=loss_weight, **options))
    wanted_loss, wanted_gradient = sce.reference.forward_backward(
        wide, wide_t, loss_weight=loss_weight, **wide_options
    )
    assert gradient.dtype == dtype
    assert gradient.shape == x.shape
    mode = options["normalization"]
    least = mode if isinstance(mode, float) else 1.0
    assert np.all(
        np.abs(gradient - wanted_gradient) <= tolerance * size * abs(loss_weight) / min(1.0, least)
    )
    assert abs(loss - wanted_loss) <= tolerance * np.sum(np.broadcast_to(room, x.shape)) + 0.0

    part = sce.partial(x, t, **per_element)
    batch = x.shape[0] if x.ndim else 1
    if mode is not None:
        needed = batch if mode == "batch_size" else None
        assert part.loss(normalization=mode, batch_size=needed) == loss
    layer = sce.SigmoidCrossEntropyLoss(loss_weight=loss_weight, **options)
    assert layer.forward(x, t) == loss
    assert np.array_equal(layer.backward(), gradient)
