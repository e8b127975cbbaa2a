"""The options that make a family of the loss (focal factor, class balance, smoothing, uncertain
targets) and the derivatives that came with them."""

from __future__ import annotations

import itertools
from typing import Any

import mpmath
import numpy as np
import pytest

import digest
import oracle
import sigmoid_ce as sce
from conftest import missing
from sigmoid_ce import bounds
from test_reproducibility import bits, same

DTYPES = [np.float32, np.float64]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
INTEGERS = [np.bool_, np.uint8, np.int8, np.int32, np.int64]

# Of the values; the names of `exact`.
RESULTS = ("loss", "gradient", "hessian", "targets")


def bytes_of(a: Any) -> bytes:
    return bits(np.atleast_1d(np.asarray(a))).tobytes()


def is_plus_zero(a: Any) -> bool:
    return not a.any() and not np.signbit(a).any()


def without_divisor(options: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in options.items() if k not in ("normalization", "normalize")}


def results(x: Any, t: Any, module: Any = sce, **options: Any) -> dict[str, Any]:
    """Every result of every operation, in NumPy."""
    loss, gradient, hessian = module.forward_backward(x, t, hessian=True, **options)
    found = {
        "forward": module.forward(x, t, **options),
        "forward of both": loss,
        "gradient of both": gradient,
        "hessian": hessian,
        "backward": module.backward(x, t, **options),
        "targets": module.backward_targets(x, t, **options),
        "elementwise": module.elementwise(x, t, **without_divisor(options)),
    }
    return {name: np.asarray(value) for name, value in found.items()}


def assert_same(got: dict[str, Any], wanted: dict[str, Any], what: str) -> None:
    for name in wanted:
        assert same(got[name], wanted[name]), f"{what}: {name}"


def data(shape: tuple[int, ...], dtype: Any, seed: int = 1, hard: bool = False) -> tuple[Any, Any]:
    """Half of the targets are 0 or 1, unless all are."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 4, shape).astype(dtype)
    t = np.where(rng.random(shape) < (2 if hard else 0.5), rng.random(shape) < 0.3, 0.0)
    soft = rng.random(shape)
    return x, (t if hard else np.where(rng.random(shape) < 0.5, t, soft)).astype(dtype)


def everything(shape: tuple[int, ...], dtype: Any) -> dict[str, dict[str, Any]]:
    """Sets of options for scores of this shape, which has 2 axes or more."""
    rng = np.random.default_rng(3)
    channels = shape[1]
    weight = (rng.integers(0, 64, (1, channels, *(1 for _ in shape[2:]))) / 16).astype(dtype)
    return {
        "focal": {"gamma": 2.0, "alpha": 0.25, "normalization": "foreground"},
        "image": {"balance": "image", "negative_scale": 1.1},
        "channel": {"balance": "batch", "balance_per_channel": True, "normalization": "full"},
        "uncertain": {"balance": "batch_mean", "uncertain": "ignore", "normalization": "valid"},
        "smooth": {"label_smoothing": 0.1, "pos_weight": 3.0, "ignore_label": 1},
        "all": {
            "pos_weight": np.linspace(0.1, 3, channels),
            "weight": weight,
            "ignore_label": 1,
            "uncertain": "soft",
            "label_smoothing": 0.05,
            "balance": "image",
            "balance_per_channel": True,
            "negative_scale": 1.1,
            "gamma": 1.5,
            "alpha": 0.75,
            "normalization": "foreground",
            "loss_weight": 0.5,
        },
    }


def with_loss_weight(x: Any, t: Any, module: Any = sce, **options: Any) -> dict[str, Any]:
    """`results` with options that not every function has."""
    loss_weight = {"loss_weight": options.pop("loss_weight", 1.0)}
    loss, gradient, hessian = module.forward_backward(x, t, hessian=True, **loss_weight, **options)
    found = {
        "forward": module.forward(x, t, **options),
        "forward of both": loss,
        "gradient of both": gradient,
        "hessian": hessian,
        "backward": module.backward(x, t, **loss_weight, **options),
        "targets": module.backward_targets(x, t, **loss_weight, **options),
        "elementwise": module.elementwise(x, t, **without_divisor(options)),
    }
    return {name: np.asarray(value) for name, value in found.items()}


# ---- The exact values ----


def exact(
    x: Any, t: Any, p: Any, w: Any, classes: tuple[Any, Any], gamma: Any, s: Any, wide: bool
) -> dict[str, tuple[Any, Any]]:
    """Each result of each element, and what its error is relative to: the size of its terms, times
    1 + gamma (1 + L) with L = -log r, since r^gamma = exp(-gamma L), and r has an error.

    r and q are multiples of tiny, the smallest subnormal number. What that does to quotients of a
    soft target is `lost`; and what else is rounded so is multiplied by (1 + gamma)^2 (1 + |x|)
    (1 + U) at most.

    s is the label smoothing. In longdouble, or in mpmath's numbers.
    """
    info = np.finfo(x.dtype)
    tiny_eps = float(info.smallest_subnormal) / float(info.eps)
    to_wide = np.longdouble if wide else object
    exp, log, log1p = (
        (np.exp, np.log, np.log1p)
        if wide
        else (np.frompyfunc(f, 1, 1) for f in (mpmath.exp, mpmath.log, mpmath.log1p))
    )

    def read(a: Any) -> Any:
        a = np.asarray(a)
        if wide:
            return a.astype(to_wide)
        return np.frompyfunc(mpmath.mpf, 1, 1)(a.astype(np.float64).astype(object))

    x, t, p, w, w1, w0, gamma, s = map(read, (x, t, p, w, *classes, gamma, s))
    factor = 1 - s
    t = t * factor + s / 2
    a = abs(x)
    z = exp(-a)
    m, q = log1p(z), z / (1 + z)
    negative = x < 0
    high, near = a + m, 1 / (1 + z)
    soft_x, soft_minus_x = np.where(negative, m, high), np.where(negative, high, m)
    sig_x, sig_minus_x = np.where(negative, q, near), np.where(negative, near, q)

    e = (1 - t) * soft_x + p * t * soft_minus_x
    e1 = (1 - t) * sig_x - p * t * sig_minus_x
    e1_terms = abs(1 - t) * sig_x + abs(p * t) * sig_minus_x
    e2 = ((1 - t) + p * t) * sig_x * sig_minus_x
    r = (1 - t) * sig_x + t * sig_minus_x
    power = exp(gamma * log(r))
    slope = (1 - 2 * t) * sig_x * sig_minus_x / r
    by_class = t * w1 + (1 - t) * w0
    scale = w * by_class * power
    lost = np.where((t * (1 - t) != 0) & (gamma != 0), tiny_eps / r, 0)
    h = sig_x * sig_minus_x / r  # of 1 - 2 t: 1 - t and t
    slope_terms = h + lost
    power_terms = power * (1 + gamma * (1 - log(r) + lost))
    size = abs(w * by_class) * power_terms
    curve = (gamma - 1) * slope + sig_minus_x - sig_x
    curve_terms = abs(gamma - 1) * (h + float(info.eps) * lost) + 1  # h as it may be found
    e_t = p * soft_minus_x - soft_x + gamma * (sig_minus_x - sig_x) * e / r
    e_t_terms = p * soft_minus_x + soft_x + gamma * e / r * (1 + lost)
    class_size = abs(w * factor) * power_terms
    least = tiny_eps * (1 + gamma) ** 2 * 1000 * (1 + abs(1 - t) + abs(p * t))
    found = {
        "loss": (scale * e, size * e),
        "gradient": (
            scale * (e1 + gamma * slope * e),
            size * (e1_terms + gamma * slope_terms * e),
        ),
        "hessian": (
            scale * (e2 + gamma * (2 * slope * e1 + e * slope * curve)),
            size * (e2 + gamma * slope_terms * (2 * e1_terms + e * curve_terms)),
        ),
        "targets": (
            factor * w * power * ((w1 - w0) * e + by_class * e_t),
            class_size * ((w1 + w0) * e + by_class * e_t_terms),
        ),
    }
    return {name: (value, terms + least) for name, (value, terms) in found.items()}


def native(x: Any, t: Any, **options: Any) -> dict[str, Any]:
    _, gradient, hessian = sce.forward_backward(x, t, normalization="none", hessian=True, **options)
    return {
        "loss": sce.elementwise(x, t, **options),
        "gradient": gradient,
        "hessian": hessian,
        "targets": sce.backward_targets(x, t, normalization="none", **options),
    }


def errors(got: dict[str, Any], wanted: dict[str, tuple[Any, Any]]) -> dict[str, Any]:
    """In eps times the terms."""
    found = {}
    for name in RESULTS:
        value, terms = wanted[name]
        eps = float(np.finfo(got[name].dtype).eps)
        if value.dtype == object:
            difference = np.array([mpmath.mpf(float(v)) for v in got[name]], object) - value
        else:
            difference = got[name].astype(value.dtype) - value
        found[name] = (abs(difference) / (eps * terms)).astype(np.float64)
        assert np.isfinite(found[name]).all(), name
    return found


def kinds(dtype: Any, count: int) -> list[tuple[str, Any, Any, dict[str, Any]]]:
    """Scores of all sizes with hard, soft and extreme soft targets, and options of one element."""
    rng = np.random.default_rng(11)
    last = 85.0 if dtype == np.float32 else 700.0
    x = np.concatenate(
        [
            rng.uniform(-last, last, count // 2),
            rng.normal(0, 3, count - count // 2 - count // 8),
            rng.choice([-1, 1], count // 8) * 10.0 ** rng.uniform(-30, 1, count // 8),
        ]
    ).astype(dtype)
    hard = (rng.random(count) < 0.5).astype(dtype)
    near = 10.0 ** rng.uniform(-30, 0, count)
    targets = {
        "hard": hard,
        "soft": rng.random(count).astype(dtype),
        "near 0": near.astype(dtype),
        "near 1": (1 - near).astype(dtype),
    }
    rows = []
    for (name, t), gamma in itertools.product(targets.items(), (0.0, 0.5, 1.0, 2.0, 3.7, 50.0)):
        rows.append((f"{name} {gamma}", x, t, {"gamma": gamma}))
    weight = rng.uniform(0.25, 4, count).astype(dtype)
    for gamma in (0.0, 2.0):
        options = {"gamma": gamma, "pos_weight": 2.5, "alpha": 0.25, "weight": weight}
        rows += [(f"weights {gamma}", x, t, options) for t in (hard, targets["soft"])]
        # Of a small smoothing, 1 - t keeps nothing where it is made from a rounded t.
        for s in (1e-9, 1e-3, 0.3, 0.9999):
            smoothed = options | {"label_smoothing": s}
            rows += [(f"smoothing {s} {gamma}", x, t, smoothed) for t in targets.values()]
            rows.append(
                (f"smoothing {s} {gamma} alone", x, hard, {"gamma": gamma} | {"label_smoothing": s})
            )
    # A target and an exp(-|x|) of one or few of the smallest numbers, and a weight that shows them.
    lowest, highest = (99, 110) if dtype == np.float32 else (735, 750)
    far = (-rng.uniform(lowest, highest, count)).astype(dtype)
    few = (np.finfo(dtype).smallest_subnormal * rng.integers(1, 20, count)).astype(dtype)
    for gamma, large in itertools.product((0.0, 1e-3, 0.5, 1.0, 2.0), (1.0, 4e30)):
        options = {"gamma": gamma, "pos_weight": large}
        rows.append((f"subnormal {gamma} {large}", far, few, options))
    return rows


def exact_of(x: Any, t: Any, options: dict[str, Any], wide: bool) -> dict[str, tuple[Any, Any]]:
    dtype = x.dtype
    alpha = options.get("alpha")
    classes = (1.0, 1.0) if alpha is None else (dtype.type(alpha), dtype.type(1 - alpha))
    pos_weight, weight = options.get("pos_weight", 1.0), options.get("weight", 1.0)
    s = options.get("label_smoothing", 0.0)
    return exact(x, t, pos_weight, weight, classes, options["gamma"], s, wide)


@pytest.mark.skipif(not oracle.LONGDOUBLE_IS_WIDE, reason="longdouble has no more bits here")
def test_float32_errors() -> None:
    """A hundred thousand scores for each gamma and kind of target. Prints the maxima."""
    largest = dict.fromkeys(RESULTS, 0.0)
    for name, x, t, options in kinds(np.float32, 100_000):
        with np.errstate(under="ignore"):
            found = errors(native(x, t, **options), exact_of(x, t, options, True))
        for result in RESULTS:
            worst = int(np.argmax(found[result]))
            largest[result] = max(largest[result], found[result][worst])
            print(f"{name} {result}: {found[result][worst]:.2f} at {x[worst]!r}, {t[worst]!r}")
            assert found[result][worst] <= bounds.FAMILY_TERMS_EPS, (
                name,
                result,
                x[worst],
                t[worst],
            )
    print("largest:", largest)


def test_float64_errors() -> None:
    """Against mpmath, on a sample. Prints the maxima."""
    largest = dict.fromkeys(RESULTS, 0.0)
    with mpmath.workdps(50):
        for name, x, t, options in kinds(np.float64, 400):
            found = errors(native(x, t, **options), exact_of(x, t, options, False))
            for result in RESULTS:
                worst = int(np.argmax(found[result]))
                largest[result] = max(largest[result], found[result][worst])
                assert found[result][worst] <= bounds.FAMILY_TERMS_EPS, (
                    name,
                    result,
                    x[worst],
                    t[worst],
                )
    print("largest:", largest)


# ---- Against the reference ----


def random_case(rng: np.random.Generator, dtype: Any) -> tuple[Any, Any, dict[str, Any]]:
    ndim = int(rng.integers(0, 5))
    shape = tuple(int(n) for n in rng.integers(1, 7, ndim))
    if ndim and rng.random() < 0.1:
        shape = (0, *shape[1:])
    x = rng.normal(0, 5, shape).astype(dtype)
    kind = rng.integers(4)
    t: Any = rng.integers(0, 2, shape).astype(dtype)
    if kind == 1:
        t = np.where(rng.random(shape) < 0.5, t, rng.random(shape)).astype(dtype)
    elif kind == 2:
        t = rng.integers(-1, 3, shape).astype(rng.choice([np.int8, np.int32, np.int64]))
    elif kind == 3:
        t = t.astype(bool)
    options: dict[str, Any] = {}

    def maybe(name: str, value: Any) -> None:
        if rng.random() < 0.4:
            options[name] = value

    maybe("pos_weight", rng.uniform(0, 4))
    if ndim >= 2:
        maybe("pos_weight", rng.uniform(0, 4, shape[1]))
    maybe("weight", rng.choice([0, 0.5, 2], shape).astype(dtype))
    maybe("ignore_label", int(rng.integers(-1, 3)))
    maybe("uncertain", rng.choice(["soft", "ignore"]).item())
    maybe("label_smoothing", rng.uniform(0, 0.9))
    maybe("balance", rng.choice(["none", "batch", "batch_mean", *["image"] * (ndim >= 2)]).item())
    if ndim >= 2 and options.get("balance", "none") != "none":
        maybe("balance_per_channel", True)
    maybe("negative_scale", rng.uniform(0, 3))
    maybe("gamma", rng.choice([0.0, 0.5, 1, 2, 5]))
    maybe("alpha", rng.uniform(0, 1))
    modes = ["full", "valid", "batch_size", "none", "foreground", 2.5]
    maybe("normalization", modes[rng.integers(len(modes))])
    return x, t, options


# Both round: the targets that are smoothed, the weights, each step. Times the largest result of the
# case, whose terms may cancel. NaN where both have it: gamma and targets outside [0, 1].
AGAINST_REFERENCE = 2.0**9  # eps


@dtypes
@pytest.mark.parametrize("seed", range(8))
def test_random_options_match_the_reference(dtype: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(60):
        x, t, options = random_case(rng, dtype)
        got = results(x, t, **options)
        wanted = results(x, t, sce.reference, **options)
        for name, value in wanted.items():
            size = np.abs(value[np.isfinite(value)]).max(initial=1e-3)
            tolerance = AGAINST_REFERENCE * float(np.finfo(dtype).eps) * size
            np.testing.assert_allclose(
                got[name].astype(np.float64),
                value,
                rtol=0,
                atol=tolerance,
                err_msg=f"{name} {x.shape} {t.dtype} {options}",
            )


# ---- Focal loss ----


@dtypes
def test_gamma_0_has_the_bits_of_the_plain_loss(dtype: Any) -> None:
    x = digest.make_scores(20_000, dtype, True)
    t = digest.make_targets(20_000, "anybits", dtype)
    for options in ({}, {"pos_weight": 2.0, "weight": 3.0}):
        plain = results(x, t, **options)
        assert_same(results(x, t, gamma=0.0, **options), plain, "0.0")
        assert_same(results(x, t, gamma=0, **options), plain, "an int")


def torchvision(x: Any, t: Any, gamma: float, alpha: float) -> Any:
    """The formula of its sigmoid_focal_loss, which loses the tails."""
    p = 1 / (1 + np.exp(-x))
    entropy = np.maximum(x, 0) - x * t + np.log1p(np.exp(-np.abs(x)))
    p_t = p * t + (1 - p) * (1 - t)
    return (alpha * t + (1 - alpha) * (1 - t)) * entropy * (1 - p_t) ** gamma


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 2.5])
def test_focal_is_that_of_torchvision(gamma: float) -> None:
    x, t = data((2000,), np.float64, hard=gamma == 2.5)
    x = np.clip(x, -10, 10)
    # 1 - p_t is 4e-5 at the least there, with an error of some 2^-53: 1e-11 in its power.
    np.testing.assert_allclose(
        sce.elementwise(x, t, gamma=gamma, alpha=0.25), torchvision(x, t, gamma, 0.25), rtol=1e-10
    )


def test_focal_tails() -> None:
    """At |x| = 100, where 1 - p_t is 0 in float64, r is exp(-100) (1 - exp(-100))."""
    x = np.array([100.0, -100.0, 100.0, -100.0])
    t = np.array([1.0, 0.0, 0.0, 1.0])
    losses = sce.elementwise(x, t, gamma=2.0)
    gradient = sce.backward(x, t, gamma=2.0, normalization="none")
    far = float(mpmath.exp(-300))  # r^2 E with r = E = exp(-100), up to exp(-100)
    # 4 eps of the bounds, and 200 eps for exp(-300): gamma L = 200.
    np.testing.assert_allclose(losses, [far, far, 100, 100], rtol=1e-13)
    np.testing.assert_allclose(gradient, [-3 * far, 3 * far, 1, -1], rtol=1e-13)


@dtypes
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 1e6])
def test_focal_up_to_infinity(dtype: Any, gamma: float) -> None:
    """Finite or infinite, never NaN; far on the wrong side the plain loss."""
    large = [100.0, 200.0, 1000.0, 1e30, np.inf]
    x = np.array([s * v for v in large for s in (1, -1)], dtype)
    for target in (0.0, 1.0):
        t = np.full_like(x, target)
        got = native(x, t, gamma=gamma)
        for name in ("loss", "gradient", "hessian", "targets"):
            assert not np.isnan(got[name]).any(), (name, target, got[name])
        wrong = (x > 0) == (target == 0)
        np.testing.assert_array_equal(got["loss"][wrong], np.abs(x[wrong]))
        np.testing.assert_array_equal(got["gradient"][wrong], np.sign(x[wrong]))
        assert (np.abs(got["gradient"][~wrong]) < 1e-9).all()


@dtypes
@pytest.mark.parametrize("score", [-3.0, 0.0, 3.0])
def test_focal_targets_outside_give_nan(dtype: Any, score: float) -> None:
    tiny = np.finfo(dtype).smallest_subnormal  # 1 + tiny is 1
    above = np.nextafter(dtype(1), dtype(2))
    t = np.array([-0.1, 1.1, -tiny, above, 0.0, 1.0, tiny, -0.0], dtype)
    got = native(np.full(t.size, score, dtype), t, gamma=2.0)
    for name in RESULTS:
        np.testing.assert_array_equal(np.isnan(got[name]), [True] * 4 + [False] * 4, name)


def test_alpha_without_gamma() -> None:
    x, t = data((500,), np.float64)
    plain = sce.elementwise(x, t)
    got = sce.elementwise(x, t, alpha=0.25)
    # Two products more.
    np.testing.assert_allclose(got, plain * (0.25 * t + 0.75 * (1 - t)), rtol=1e-14)


# ---- Balance ----


def hed(t: Any) -> Any:
    """Weights of one image: Xie and Tu's, the share of the other class."""
    positive, negative = np.sum(t == 1), np.sum(t == 0)
    total = positive + negative
    if total == 0:
        return np.zeros(t.shape)
    return np.where(t == 1, negative / total, np.where(t == 0, positive / total, np.nan))


def mean_balanced(t: Any) -> Any:
    v = np.sum((t == 0) | (t == 1))
    k = max(1, min(np.sum(t == 1), v - 1))
    return np.where(t == 1, v / (2 * k), v / (2 * max(1, v - k)))


@dtypes
def test_balance_is_the_published_weight(dtype: Any) -> None:
    """Hard targets: the bits of the same weights given element by element."""
    x, t = data((5, 3, 7, 11), dtype, hard=True)
    by_channel = [(n, c) for n in range(5) for c in range(3)]
    image, image_channel, channel = (np.zeros(x.shape) for _ in range(3))
    for n in range(5):
        image[n] = hed(t[n])
    for n, c in by_channel:
        image_channel[n, c] = hed(t[n, c])
    for c in range(3):
        channel[:, c] = hed(t[:, c])
    for weights, options in (
        (image, {"balance": "image"}),
        (image_channel, {"balance": "image", "balance_per_channel": True}),
        (channel, {"balance": "batch", "balance_per_channel": True}),
        (hed(t), {"balance": "batch"}),
        (mean_balanced(t), {"balance": "batch_mean"}),
    ):
        got = results(x, t, **options)
        wanted = results(x, t, weight=weights.astype(dtype))
        for name in ("forward", "backward", "gradient of both", "elementwise", "hessian"):
            assert same(got[name], wanted[name]), (name, options)


@pytest.mark.parametrize("target_dtype", [bool, "u1", "i1", "i4", "i8", "f4", "f8"])
@pytest.mark.parametrize(("channels", "length"), [(3, 1), (1024, 1), (1025, 1), (1500, 3), (7, 40)])
def test_balance_of_short_groups(channels: int, length: int, target_dtype: Any) -> None:
    """Many groups of few elements have counts of their own: per channel, per image and both."""
    x, t = data((5, channels, length), np.float64 if target_dtype == "f8" else np.float32)
    t = (t > 0.5).astype(target_dtype)
    if target_dtype is not bool:
        t[::2, ::3] = 9  # ignored; of neither class
    cases: tuple[tuple[tuple[int, ...], dict[str, Any]], ...] = (
        ((0, 2), {"balance": "batch", "balance_per_channel": True}),
        ((2,), {"balance": "image", "balance_per_channel": True}),
        ((1, 2), {"balance": "image"}),
    )
    for axis, options in cases:
        p, m = ((t == value).sum(axis, keepdims=True) for value in (1, 0))
        weights = np.where(t == 1, m, p) / np.maximum(p + m, 1)
        got = results(x, t, ignore_label=9, **options)
        wanted = results(x, t, ignore_label=9, weight=weights.astype(x.dtype))
        for name in ("forward", "backward", "elementwise"):
            assert same(got[name], wanted[name]), (name, options)


def test_negative_scale_and_soft_targets() -> None:
    x, t = data((4, 200), np.float64)
    p, m = ((t == value).sum(1, keepdims=True) for value in (1, 0))
    w1 = m / (p + m)
    w0 = p / (p + m) * 1.1
    got = sce.elementwise(x, t, balance="image", negative_scale=1.1)
    # Three products and a sum more.
    np.testing.assert_allclose(got, sce.elementwise(x, t) * (t * w1 + (1 - t) * w0), rtol=1e-14)


@dtypes
def test_one_class_and_all_ignored(dtype: Any) -> None:
    x = np.linspace(-3, 3, 12, dtype=dtype).reshape(3, 4)
    t = np.array([[1, 1, 1, 1], [0, 0, 0, 0], [9, 9, 9, 9]], dtype)
    for balance in ("image", "batch"):
        for row in range(3):
            got = results(x[row : row + 1], t[row : row + 1], balance=balance, ignore_label=9)
            for name, value in got.items():
                if name != "targets":
                    assert is_plus_zero(value), (name, row)
    # All of one class: the clamp leaves it V / (2 (V - 1)) or V / (2 V - 2).
    got = sce.elementwise(x[:1], t[:1], balance="batch_mean")
    np.testing.assert_allclose(got, sce.elementwise(x[:1], t[:1]) * (4 / 6), rtol=1e-6)
    got = sce.elementwise(x[1:2], t[1:2], balance="batch_mean")
    np.testing.assert_allclose(got, sce.elementwise(x[1:2], t[1:2]) * (4 / 6), rtol=1e-6)
    assert not sce.elementwise(x[2:], t[2:], balance="batch_mean", ignore_label=9).any()


def test_a_balanced_batch_has_the_bits_of_the_plain_loss() -> None:
    x, _ = data((4, 50), np.float32)
    t = np.tile(np.array([0, 1], np.float32), (4, 25))
    assert_same(results(x, t, balance="batch_mean"), results(x, t), "weights of 1")
    assert_same(results(x, t, balance=None), results(x, t), "None")


def test_counts_leave_ignored_targets_out() -> None:
    x, t = data((2, 300), np.float64, hard=True)
    t[0, :100] = 255
    kept = t[0, 100:]
    got = sce.elementwise(x, t, balance="image", ignore_label=255)
    np.testing.assert_array_equal(
        got[0, 100:], sce.elementwise(x[:1, 100:], kept[None], balance="image")[0]
    )
    # A label of a class: it counts no more.
    w = sce.elementwise(x[1:], t[1:], balance="batch", ignore_label=0)
    assert not w.any()  # w+ = M / (P + M) with M = 0
    foreground = sce.forward(x, t, normalization="foreground", ignore_label=1)
    assert foreground == sce.forward(x, t, normalization=1, ignore_label=1)


def test_foreground_and_valid_divisors() -> None:
    x, t = data((3, 400), np.float32)
    n_foreground, n_classes = int((t == 1).sum()), int(((t == 0) | (t == 1)).sum())
    for target in (t, t > 0.5, (t > 0.5).astype(np.int8)):
        count = int((target == 1).sum())
        assert_same(
            results(x, target, normalization="foreground"),
            results(x, target, normalization=count),
            "foreground",
        )
    assert n_foreground < n_classes < t.size
    assert_same(
        results(x, t, normalization="valid", uncertain="ignore"),
        results(x, t, normalization=n_classes, uncertain="ignore"),
        "valid",
    )


# ---- Uncertain targets, smoothing ----


@dtypes
def test_uncertain_targets_are_ignored(dtype: Any) -> None:
    x, t = data((3, 500), dtype)
    t[0, :3] = [np.nan, -1, 2]
    uncertain = ~((t == 0) | (t == 1))
    got = results(x, t, uncertain="ignore", gamma=1.0)
    kept = results(x, np.where(uncertain, 7, t).astype(dtype), ignore_label=7, gamma=1.0)
    assert_same(got, kept, "as ignored by a label")
    for name in ("elementwise", "backward", "hessian", "targets"):
        assert is_plus_zero(got[name][uncertain]), name
    part = sce.partial(x, t, uncertain="ignore")
    assert (part.n_valid, part.n_total) == (int((~uncertain).sum()), t.size)
    # Integers that are no class, and both ways to ignore at once.
    labels = np.array([[0, 1, 2, -1, 255]], np.int32)
    scores = np.ones((1, 5), dtype)
    assert sce.partial(scores, labels, uncertain="ignore").n_valid == 2
    assert sce.partial(scores, labels, uncertain="ignore", ignore_label=1).n_valid == 1
    assert sce.forward(scores, labels, uncertain="ignore", check=True) > 0


@dtypes
def test_label_smoothing_is_a_softer_target(dtype: Any) -> None:
    x, t = data((1000,), dtype, hard=True)
    s = 0.125  # 1 - s and s / 2 are exact, and 1 less the sum
    soft = (t * (1 - s) + s / 2).astype(dtype)
    got, wanted = results(x, t, label_smoothing=s), results(x, soft)
    del got["targets"], wanted["targets"]
    assert_same(got, wanted, "targets of 0.0625 and 0.9375")
    one = {"normalization": "none"}
    got = sce.backward_targets(x, t, label_smoothing=s, **one)
    np.testing.assert_array_equal(got, sce.backward_targets(x, soft, **one) * dtype(1 - s))
    # What is ignored or counted is the raw target.
    assert sce.forward(x, t, label_smoothing=s, ignore_label=1) == sce.forward(
        x, np.where(t == 1, 1, s / 2).astype(dtype), ignore_label=1
    )
    # A smoothing far below eps is not lost, and a positive gets what its mirrored negative gets.
    far, classes = np.array([50, -50], dtype), np.array([1, 0], np.uint8)
    np.testing.assert_allclose(
        sce.elementwise(far, classes, label_smoothing=1e-17), 50 * 0.5e-17, rtol=1e-6
    )


# ---- Derivatives ----

# Central differences of step h: h^2 of the third derivative, and eps / h of the values, of size 30.
STEP = 2.0**-17
BY_DIFFERENCES = 1e-7


def smooth_case(seed: int) -> tuple[Any, Any, dict[str, Any]]:
    x, t = data((3, 4, 25), np.float64, seed)
    t = np.clip(t, 0.02, 0.98)
    options = {
        "pos_weight": np.array([0.5, 1.0, 2.0, 3.0]),
        "weight": np.random.default_rng(seed).uniform(0, 2, x.shape),
        "label_smoothing": 0.1,
        "negative_scale": 1.3,
        "gamma": [0.0, 0.5, 1.0, 2.0, 4.0][seed],
        "alpha": 0.3,
    }
    return x, t, options


@pytest.mark.parametrize("seed", range(5))
def test_derivatives_by_differences(seed: int) -> None:
    x, t, options = smooth_case(seed)

    def differences(function: Any, up: tuple[Any, Any], down: tuple[Any, Any]) -> Any:
        return (function(*up, **options) - function(*down, **options)) / (2 * STEP)

    def gradient(x: Any, t: Any, **options: Any) -> Any:
        return sce.backward(x, t, normalization="none", **options)

    got = native(x, t, **options)
    near = {"rtol": BY_DIFFERENCES, "atol": BY_DIFFERENCES}
    slope = differences(sce.elementwise, (x + STEP, t), (x - STEP, t))
    np.testing.assert_allclose(got["gradient"], slope, **near)
    curve = differences(gradient, (x + STEP, t), (x - STEP, t))
    np.testing.assert_allclose(got["hessian"], curve, **near)
    by_target = differences(sce.elementwise, (x, t + STEP), (x, t - STEP))
    np.testing.assert_allclose(got["targets"], by_target, **near)


@pytest.mark.parametrize("balance", ["none", "image", "batch_mean"])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_derivatives_against_pytorch(balance: str, gamma: float) -> None:
    try:
        import torch
    except ImportError:
        missing("torch")
    functional = torch.nn.functional
    scores, targets = data((4, 60), np.float64)
    x = torch.tensor(scores, requires_grad=True)
    t = torch.tensor(targets, requires_grad=True)
    s = 0.1
    raw = t.detach()
    axis = {"dim": 1, "keepdim": True} if balance == "image" else {}
    p, m = ((raw == v).double().sum(**axis) for v in (1, 0))
    w1, w0 = (1.0, 1.0) if balance == "none" else (m / (p + m), p / (p + m))
    if balance == "batch_mean":
        w1, w0 = (p + m) / (2 * p), (p + m) / (2 * m)
    soft = t * (1 - s) + s / 2
    entropy = soft * 2.0 * functional.softplus(-x) + (1 - soft) * functional.softplus(x)
    r = soft * torch.sigmoid(-x) + (1 - soft) * torch.sigmoid(x)
    losses = (soft * w1 + (1 - soft) * w0) * r**gamma * entropy
    (losses.sum() / 4).backward()
    options = {"balance": balance, "gamma": gamma, "label_smoothing": s, "pos_weight": 2.0}
    # Both in float64, with some 20 roundings each of terms that are 10 times the result.
    near = {"rtol": 1e-11, "atol": 1e-13}
    np.testing.assert_allclose(sce.elementwise(scores, targets, **options), losses.detach(), **near)
    np.testing.assert_allclose(sce.backward(scores, targets, **options), x.grad, **near)
    np.testing.assert_allclose(sce.backward_targets(scores, targets, **options), t.grad, **near)


def test_plain_target_gradient_is_minus_the_score() -> None:
    x, t = data((300,), np.float32)
    np.testing.assert_array_equal(sce.backward_targets(x, t, normalization="none"), -x)
    weight = np.where(np.arange(300) % 3 == 0, 0, 2).astype(np.float32)
    got = sce.backward_targets(x, t, normalization="none", weight=weight, loss_weight=0.5)
    np.testing.assert_array_equal(got, -x * weight * np.float32(0.5))
    assert not np.signbit(got[weight == 0]).any()


def test_hessian_is_not_negative() -> None:
    x = np.linspace(-800, 800, 4001)
    for t in (np.zeros_like(x), np.ones_like(x), np.full_like(x, 0.3)):
        for options in ({}, {"pos_weight": 3.0, "alpha": 0.25}):
            _, gradient, hessian = sce.forward_backward(x, t, hessian=True, **options)
            assert (hessian >= 0).all()
            assert same(gradient, sce.backward(x, t, **options))


def test_hessian_into_an_array() -> None:
    x, t = data((6, 50), np.float32)
    loss, gradient, hessian = sce.forward_backward(x, t, hessian=True)
    room, place = np.empty_like(x), np.empty((6, 100), np.float32)[:, ::2]
    got = sce.forward_backward(x, t, hessian=place, out=room)
    assert got[0] == loss
    assert got[1] is room
    assert got[2] is place
    assert same(room, gradient)
    assert same(place, hessian)
    assert len(sce.forward_backward(x, t)) == 2
    scores = x.copy()  # in place, both ways
    sce.forward_backward(scores, t, hessian=scores, out=room)
    assert same(scores, hessian)
    for arguments, message in (
        ({"hessian": room, "out": room}, "hessian: shares memory with the gradient"),
        ({"hessian": t}, "hessian: shares memory with targets"),
        ({"hessian": x.ravel()[::-1].reshape(x.shape)}, "hessian: shares memory with scores; pass"),
        ({"hessian": x, "out": x}, "hessian: shares memory with the gradient"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            sce.forward_backward(x, t, **arguments)
    # Interleaved: their bounds overlap, and no element does.
    both = np.empty((6, 50, 2), np.float32)
    sce.forward_backward(x, t, out=both[..., 0], hessian=both[..., 1])
    assert same(np.ascontiguousarray(both[..., 0]), gradient)
    assert same(np.ascontiguousarray(both[..., 1]), hessian)
    torch = pytest.importorskip("torch")
    xs, ts = torch.from_numpy(x), torch.from_numpy(t)
    assert isinstance(sce.forward_backward(xs, ts, hessian=True)[2], torch.Tensor)
    into = torch.empty_like(xs)
    assert sce.forward_backward(xs, ts, hessian=into)[2] is into
    assert same(into.numpy(), hessian)


# ---- The same bits ----


@dtypes
@pytest.mark.parametrize("kind", ["float", "anybits", "int32", "bool"])
def test_instruction_sets(dtype: Any, kind: str) -> None:
    shape = (3, 5, 1117)
    count = int(np.prod(shape))
    x = digest.make_scores(count, dtype, kind == "anybits").reshape(shape)
    t = digest.make_targets(count, kind, dtype).reshape(shape)
    for name, options in everything(shape, dtype).items():
        sce.set_isa("scalar")
        wanted = with_loss_weight(x, t, **options)
        for isa in sce.available_isas():
            sce.set_isa(isa)
            assert_same(with_loss_weight(x, t, **options), wanted, f"{name}, {isa}")


@pytest.mark.parametrize("kind", ["float", "anybits", "uint8"])
@pytest.mark.parametrize("length", [1, 63, 1365, 4117])
def test_one_option_has_the_bits_that_it_has_beside_others(length: int, kind: str) -> None:
    """Some have kernels of their own; with an array of weights 1 the general one takes them."""
    shape = (3, length)
    x = digest.make_scores(3 * length, np.float32, kind == "anybits").reshape(shape)
    t = digest.make_targets(3 * length, kind, np.float32).reshape(shape)
    ones = np.ones(shape, np.float32)
    cases: list[dict[str, Any]] = [
        {"ignore_label": 0},
        {"ignore_label": 1, "normalization": "valid"},
        {"pos_weight": 3.0},
        {"pos_weight": np.linspace(0, 3, length)},
        {"label_smoothing": 0.1},
        {"alpha": 0.25},
        {"alpha": 0.0},
        {"balance": "image", "negative_scale": 1.1},
        {"balance": "batch", "balance_per_channel": True},
        {"gamma": 2.0},
        {"gamma": 2.0, "alpha": 0.25, "normalization": "foreground"},
        {"gamma": 0.5, "balance": "image"},
    ]
    for isa in sce.available_isas():
        sce.set_isa(isa)
        for options in cases:
            wanted = with_loss_weight(x, t, weight=ones, **options)
            assert_same(with_loss_weight(x, t, **options), wanted, f"{options}, {isa}")


@dtypes
def test_threads(dtype: Any) -> None:
    shape = (7, 5, 4001)
    x, t = data(shape, dtype)
    for name, options in everything(shape, dtype).items():
        sce.set_num_threads(1)
        wanted = with_loss_weight(x, t, **options)
        for threads in (2, 7):
            sce.set_num_threads(threads)
            assert_same(with_loss_weight(x, t, **options), wanted, f"{name}, {threads} threads")


@dtypes
def test_layouts_and_addresses(dtype: Any) -> None:
    shape = (3, 4, 1100)
    x, t = data(shape, dtype)
    turned = [np.asfortranarray(a) for a in (x, t)]
    odd = []
    for a in (x, t):
        memory = np.empty(a.nbytes + 1, np.uint8)[1:]
        odd.append(memory.view(a.dtype).reshape(shape))  # at no multiple of the size
        odd[-1][...] = a
    for name, options in everything(shape, dtype).items():
        wanted = with_loss_weight(x, t, **options)
        assert_same(with_loss_weight(*turned, **options), wanted, f"{name}, in Fortran order")
        assert_same(with_loss_weight(*odd, **options), wanted, f"{name}, unaligned")
        assert_same(with_loss_weight(turned[0], t, **options), wanted, f"{name}, mixed")


@dtypes
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_cuts(dtype: Any, gamma: float) -> None:
    """Chunks have the bits of the whole; without balance, which needs the whole."""
    shape = (6, 5, 1000)
    x, t = data(shape, dtype)
    options = {
        "uncertain": "ignore",
        "label_smoothing": 0.1,
        "negative_scale": 2.0,
        "gamma": gamma,
        "alpha": 0.25,
        "pos_weight": np.linspace(0.5, 2, 5),
    }
    loss, gradient = sce.forward_backward(x, t, normalization="valid", **options)
    whole = sce.partial(x, t, **options)
    parts, pieces = [], []
    flat_x, flat_t = x.ravel(), t.ravel()
    for first in range(0, x.size, 2 * 4096):
        cut = slice(first, first + 2 * 4096)
        part, piece = sce.partial_backward(
            flat_x[cut], flat_t[cut], whole.n_valid, first_index=first, shape=shape, **options
        )
        parts.append(part)
        pieces.append(piece)
        assert part == sce.partial(
            flat_x[cut], flat_t[cut], first_index=first, shape=shape, **options
        )
    assert sce.combine(parts) == whole
    assert whole.loss("valid") == loss
    assert same(np.concatenate(pieces), gradient.ravel())
    rows = [
        sce.partial(x[k : k + 1], t[k : k + 1], first_index=k * 5000, **options) for k in range(6)
    ]
    assert sce.combine(rows).n_valid == whole.n_valid


@dtypes
@pytest.mark.parametrize("integer", INTEGERS)
def test_integer_targets(dtype: Any, integer: Any) -> None:
    rng = np.random.default_rng(5)
    shape = (3, 4, 700)
    x = rng.normal(0, 3, shape).astype(dtype)
    t = rng.integers(0, 2, shape).astype(integer)
    for name, options in everything(shape, dtype).items():
        wanted = with_loss_weight(x, t.astype(dtype), **options)
        assert_same(with_loss_weight(x, t, **options), wanted, name)


def test_many_groups() -> None:
    """More groups than are counted on the stack, and groups of one element."""
    x, t = data((1500, 3), np.float32, hard=True)
    got = sce.elementwise(x, t, balance="image")
    weights = np.stack([hed(row) for row in t]).astype(np.float32)
    assert same(got, sce.elementwise(x, t, weight=weights))
    assert not sce.elementwise(x, t, balance="image", balance_per_channel=True).any()


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), ()])
def test_empty_and_scalar(shape: tuple[int, ...]) -> None:
    x, t = np.zeros(shape), np.ones(shape)
    for options in ({"balance": "batch"}, {"balance": "batch_mean"}, {"gamma": 2.0}):
        got = results(x, t, normalization="foreground", **options)
        wanted = results(x, t, sce.reference, normalization="foreground", **options)
        for name, value in wanted.items():
            np.testing.assert_allclose(got[name], value, rtol=1e-14, err_msg=name)
    if len(shape) == 2:
        assert sce.forward(x, t, balance="image", balance_per_channel=True) == 0.0


# ---- The layer, positional arguments, defaults ----


def test_layer_has_the_options() -> None:
    x, t = data((4, 6), np.float32)
    options: dict[str, Any] = {
        "uncertain": "ignore",
        "label_smoothing": 0.1,
        "balance": "image",
        "balance_per_channel": False,
        "negative_scale": 1.1,
        "gamma": 2.0,
        "alpha": 0.25,
    }
    layer = sce.SigmoidCrossEntropyLoss(normalization="foreground", **options)
    assert layer.forward(x, t) == sce.forward(x, t, normalization="foreground", **options)
    assert same(layer.backward(), sce.backward(x, t, normalization="foreground", **options))
    for name, value in options.items():
        assert getattr(layer, name) == value
    layer.gamma = 0.0
    assert layer.forward(x, t) != sce.forward(x, t, normalization="foreground", **options)


def test_native_functions_take_the_options_by_name() -> None:
    x, t = data((4, 6), np.float32)
    assert sce.cpu.forward(x, t, gamma=2.0) == sce.forward(x, t, gamma=2.0)
    got = sce.cpu.backward_targets(x, t, None, 2.0, balance="image")
    assert same(got, sce.backward_targets(x, t, weight=2.0, balance="image"))
    assert len(sce.cpu.forward_backward(x, t, alpha=0.25, hessian=True)) == 3
    assert sce.cpu.partial(x, t, uncertain="ignore") == sce.partial(x, t, uncertain="ignore")
    with pytest.raises(TypeError):
        sce.cpu.partial(x, t, balance="image")


def test_explicit_defaults_change_nothing() -> None:
    x, t = data((4, 600), np.float32)
    defaults: dict[str, Any] = {
        "uncertain": "soft",
        "label_smoothing": float("0"),
        "balance": None,
        "balance_per_channel": False,
        "negative_scale": float("1"),
        "gamma": 0,
        "alpha": None,
    }
    assert_same(results(x, t, **defaults), results(x, t), "defaults")


def test_partial_has_no_foreground() -> None:
    x, t = data((4, 6), np.float32)
    with pytest.raises(
        ValueError,
        match=r'^normalization: expected "full", "valid", "batch_size", "none" or a positive num',
    ):
        sce.partial(x, t).loss("foreground")


def test_inputs_are_not_written() -> None:
    x, t = data((4, 600), np.float32)
    kept = bytes_of(x), bytes_of(t)
    for array in (x, t):
        array.flags.writeable = False
    with_loss_weight(x, t, **everything(x.shape, np.float32)["all"])
    assert (bytes_of(x), bytes_of(t)) == kept


def test_bools_of_numpy() -> None:
    x, t = data((4, 6), np.float32)
    for value in (True, False):
        of_numpy = np.bool_(value)
        assert sce.forward(x, t, normalize=of_numpy) == sce.forward(x, t, normalize=value)
        options: dict[str, Any] = {"balance": "batch"}
        found = sce.forward(x, t, **options, balance_per_channel=of_numpy)
        assert found == sce.forward(x, t, **options, balance_per_channel=value)
