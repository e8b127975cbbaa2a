"""Errors of the kernels against oracle.py, held to the bounds of bounds.py.

Each test prints the largest error it saw, also when it passes: `pytest -rP tests/test_accuracy.py`.
The sweep over all 2^32 scores is marked long: `pytest -m long tests/test_accuracy.py`.
"""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest

import oracle
import sigmoid_ce as sce
from sigmoid_ce import bounds

ROOT = Path(__file__).resolve().parents[1]
LD = np.longdouble
CHUNK = 1 << 20

# Where longdouble is no wider than float64, mpmath is the oracle of float32 on this many points.
FEW = 20_000
wide = pytest.mark.skipif(
    not oracle.LONGDOUBLE_IS_WIDE, reason="longdouble has fewer than 64 bits here"
)


@pytest.fixture(params=sce.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    sce.set_isa(request.param)
    yield request.param
    sce.set_isa(None)


def neighbours(values: Any, reach: int, dtype: Any) -> Any:
    """Each value and the `reach` numbers of the type on either side of it."""
    integer = np.int32 if dtype == np.float32 else np.int64
    bits = np.asarray(values, dtype=dtype).view(integer)[:, None]
    return (bits + np.arange(-reach, reach + 1, dtype=integer)).view(dtype).ravel()


def stratified(total: int, dtype: Any) -> Any:
    """Scores that meet every regime of the kernels; the same ones in each run.

    All exponents and both signs alike; the specials; the neighbours of multiples of ln2 / 2, where
    a range reduction changes its integer; and the range with a result that is not trivial, densely.
    """
    info, rng = np.finfo(dtype), np.random.default_rng(20240607)
    edge = 110.0 if dtype == np.float32 else 760.0  # exp(-edge) is below half the smallest number
    unsigned = np.uint32 if dtype == np.float32 else np.uint64
    exponents = 2 ** (info.bits - info.nmant - 1)
    per_exponent = max(1, 2 * total // 5 // (2 * exponents))
    high = np.arange(2 * exponents, dtype=unsigned) << unsigned(info.nmant)
    low = rng.integers(0, 2**info.nmant, (2 * exponents, per_exponent), dtype=unsigned)
    low[:, :1] = 0  # the powers of 2, zero and infinity
    spread = (high[:, None] | low).view(dtype).ravel()

    halves = np.arange(1, int(2 * edge / math.log(2)) + 1) * (math.log(2) / 2)
    reach = max(1, min(64, total // 10 // (4 * halves.size)))
    steps = neighbours(np.concatenate([halves, -halves]), reach, dtype)

    special = np.array(
        [0.0, -0.0, 1, -1, np.inf, -np.inf, np.nan, info.max, info.smallest_subnormal,
         info.smallest_normal, 17, -17, 20, -20, -30, 88.7, -88.7, -103.9, -104.1, -709.7, -745.1],
        dtype=dtype,
    )  # fmt: skip
    special = np.concatenate([special, -special])
    rest = total - spread.size - steps.size - special.size
    dense = rng.uniform(-edge, edge, max(0, rest)).astype(dtype)
    return np.concatenate([special, steps, spread, dense])[:total]


class Worst:
    """The largest error and where it occurred."""

    def __init__(self) -> None:
        self.error, self.where = 0.0, ""

    def update(self, errors: Any, *inputs: Any) -> None:
        k = int(np.argmax(errors))
        if errors[k] > self.error:
            self.error = float(errors[k])
            values = (float(np.broadcast_to(v, errors.shape)[k]) for v in inputs)
            self.where = ", ".join(f"{v:.9g}" for v in values)

    def check(self, name: str, bound: float, unit: str = "ulp") -> None:
        print(f"{name}: max {self.error:.4f} {unit} at ({self.where}), bound {bound}")
        assert self.error <= bound, f"{name}: {self.error} {unit} at ({self.where})"


# ---------------------------------------------------------------- the oracle itself


@wide
def test_oracle_longdouble_agrees_with_mpmath() -> None:
    """Two oracles of different origin; 2^-60 is a few roundings of a 64-bit mantissa."""
    x = stratified(FEW, np.float32)
    x = x[np.isfinite(x) & (np.abs(x) < 11000)][::16]  # beyond, exp(-|x|) leaves longdouble
    pieces = oracle.Pieces(x)
    for t in (0.0, 1.0, 0.3):
        t = float(np.float32(t))
        for k, exact in enumerate(oracle.mp_values(x, t)):
            for got, value, terms in (
                (oracle.loss(pieces, t)[k], exact[0], exact[2]),
                (oracle.gradient(pieces, t)[k], exact[1], exact[3]),
            ):
                error = abs(got - oracle.to_longdouble(value))
                tolerance = LD(2) ** -60 * oracle.to_longdouble(terms)
                # Values below float64's range cannot pass through to_longdouble.
                assert error <= tolerance + LD(2) ** -1000, (x[k], t)


@wide
def test_ulp_is_the_spacing_of_the_exact_value() -> None:
    exact = np.array([1.0, 1.5, 2.0, 2.0**-126, 2.0**-127, 2.0**-149, 1e-60, 0.0, 3e38], dtype=LD)
    wanted = np.array([-23, -23, -22, -149, -149, -149, -149, -149, 104])
    assert np.array_equal(oracle.spacing(exact, np.float32), np.ldexp(LD(1), wanted))
    assert oracle.ulp_error(np.float32([0]), LD([1e-60]), np.float32)[0] < 1e-10
    assert oracle.ulp_error(np.float32([np.nan]), LD([1.0]), np.float32)[0] == np.inf
    assert oracle.ulp_error(np.float32([np.inf]), LD([1.0]), np.float32)[0] == np.inf
    assert oracle.ulp_error(np.float32([0.0]), LD([np.nan]), np.float32)[0] == np.inf
    assert oracle.ulp_error(np.float32([np.nan]), LD([np.nan]), np.float32)[0] == 0
    assert oracle.mp_ulp_error(1.0 + 2.0**-52, mpmath.mpf(1), np.float64) == 1


def test_documented_bounds_are_the_tested_ones() -> None:
    text = (ROOT / "docs" / "numerics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|\s*`?([A-Z0-9_]+)`?\s*\|\s*([-+.0-9e]+)\s*\|", text, re.MULTILINE)
    documented = {name: float(value) for name, value in rows if name in bounds.TABLE}
    assert documented == bounds.TABLE


# ---------------------------------------------------------------- float32, t = 0 and 1


def float32_errors(x: Any) -> dict[str, Worst]:
    worst = {f"{what} t={t}": Worst() for what in ("loss", "gradient") for t in (0, 1)}
    for start in range(0, x.size, CHUNK):
        part = x[start : start + CHUNK]
        pieces = oracle.Pieces(part)
        for t in (0, 1):
            targets = np.full(part.size, t, dtype=np.float32)
            got = sce.elementwise(part, targets)
            worst[f"loss t={t}"].update(
                oracle.ulp_error(got, oracle.loss(pieces, t), np.float32), part
            )
            got = sce.backward(part, targets, normalization="none")
            worst[f"gradient t={t}"].update(
                oracle.ulp_error(got, oracle.gradient(pieces, t), np.float32), part
            )
    return worst


@wide
def test_float32_hard_targets_ten_million() -> None:
    x = stratified(10_000_000, np.float32)
    assert x.size == 10_000_000
    for name, worst in float32_errors(x).items():
        worst.check(f"float32 {name} ({sce.get_isa()})", bounds.FLOAT32_ULP)


@wide
def test_float32_hard_targets_each_isa(isa: str) -> None:
    for name, worst in float32_errors(stratified(400_000, np.float32)).items():
        worst.check(f"float32 {name} ({isa})", bounds.FLOAT32_ULP)


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(np.float32, bounds.FLOAT32_ULP), (np.float64, bounds.FLOAT64_ULP)],
    ids=["float32", "float64"],
)
def test_hard_targets_against_mpmath(dtype: Any, bound: float, isa: str) -> None:
    # The exact values do not depend on the instruction set; neither do the results, which
    # test_reproducibility.py asserts: a tenth of the points will do for all but the default one.
    count = FEW if isa == sce.available_isas()[0] else FEW // 10
    x = stratified(count, dtype)
    x = x[~np.isnan(x)]
    worst = {f"{what} t={t}": Worst() for what in ("loss", "gradient") for t in (0, 1)}
    for t in (0, 1):
        targets = np.full(x.size, t, dtype=dtype)
        losses = sce.elementwise(x, targets)
        gradients = sce.backward(x, targets, normalization="none")
        exact = oracle.mp_values(x, float(t))
        for name, got, k in (("loss", losses, 0), ("gradient", gradients, 1)):
            errors = [oracle.mp_ulp_error(g, e[k], dtype) for g, e in zip(got, exact, strict=True)]
            worst[f"{name} t={t}"].update(np.array(errors), x)
    for name, value in worst.items():
        value.check(f"{np.dtype(dtype).name} {name} ({isa})", bound)


# ---------------------------------------------------------------- soft targets, weights


def general_inputs(kind: str, count: int, dtype: Any) -> tuple[Any, Any, float, Any]:
    """Scores, targets, pos_weight, weights."""
    rng = np.random.default_rng(7)
    x = stratified(count, dtype)
    x = rng.permutation(x[np.isfinite(x) & (np.abs(x) < 1e30)])
    n = x.size
    t = rng.uniform(0, 1, n).astype(dtype)
    t[::5] = rng.integers(0, 2, t[::5].size)
    t[1::7] = np.exp(-rng.uniform(0, 90, t[1::7].size)).astype(dtype)
    t[2::7] = 1 - t[1::7][: t[2::7].size] * dtype(np.finfo(dtype).eps * 64)
    w = np.ones(n, dtype=dtype)
    p = 1.0
    if "outside" in kind:
        t[::2] = (rng.normal(0, 1, t[::2].size) * 10.0 ** rng.integers(0, 7, t[::2].size)).astype(
            dtype
        )
    if "pos_weight" in kind:
        p = 0.001 if "small" in kind else 37.5
        p = float(dtype(p))
    if "weights" in kind:
        w = np.exp(rng.uniform(-8, 8, n)).astype(dtype)
        w[::11] = 0
    return x, t, p, w


KINDS = [
    "soft",
    "pos_weight",
    "small pos_weight",
    "weights",
    "weights, pos_weight",
    "outside [0, 1]",
    "outside [0, 1], weights, pos_weight",
]


def subnormal_factors(kind: str, x: Any, t: Any, p: float, w: Any) -> tuple[Any, Any]:
    """The factors of `tiny` in bounds.py, for loss and gradient."""
    x, t, w = (np.asarray(v, dtype=LD) for v in (x, t, w))
    gradient = 1 + w * (np.abs(1 - t) + abs(p) * np.abs(t))
    if "pos_weight" in kind:  # 1 - t + p t may be tiny itself
        gradient = gradient + w
        return gradient + w * np.abs(x), gradient
    return gradient, gradient


@wide
@pytest.mark.parametrize("kind", KINDS)
def test_float32_general(kind: str, isa: str) -> None:
    x, t, p, w = general_inputs(kind, 500_000, np.float32)
    options: dict[str, Any] = {}
    if "pos_weight" in kind:
        options["pos_weight"] = p
    if "weights" in kind:
        options["weight"] = w
    pieces = oracle.Pieces(x)
    info = np.finfo(np.float32)
    factors = subnormal_factors(kind, x, t, p, w)
    for name, got, exact, terms, factor, k in (
        (
            "loss",
            sce.elementwise(x, t, **options),
            oracle.loss(pieces, t, p, w),
            oracle.loss_terms(pieces, t, p, w),
            factors[0],
            bounds.LOSS_TERMS_EPS,
        ),
        (
            "gradient",
            sce.backward(x, t, normalization="none", **options),
            oracle.gradient(pieces, t, p, w),
            oracle.gradient_terms(pieces, t, p, w),
            factors[1],
            bounds.GRADIENT_TERMS_EPS,
        ),
    ):
        floor = factor * LD(float(info.smallest_subnormal))
        finite = np.isfinite(got)  # beyond float32's largest number the result is infinite
        assert np.all(terms[~finite] > float(info.max) / 4)
        errors = np.abs(got.astype(LD) - exact)[finite]
        errors /= (LD(float(info.eps)) * terms + floor)[finite]
        worst = Worst()
        worst.update(errors.astype(np.float64), x[finite], t[finite], w[finite])
        worst.check(f"float32 {name}, {kind} ({isa})", k, "eps of the terms")


@pytest.mark.parametrize("kind", KINDS)
def test_float64_general(kind: str) -> None:
    x, t, p, w = general_inputs(kind, 4_000, np.float64)
    options: dict[str, Any] = {}
    if "pos_weight" in kind:
        options["pos_weight"] = p
    if "weights" in kind:
        options["weight"] = w
    exact = oracle.mp_values(x, t, p, w)
    info = np.finfo(np.float64)
    factors = subnormal_factors(kind, x, t, p, w)
    for name, got, value, terms, k in (
        ("loss", sce.elementwise(x, t, **options), 0, 2, bounds.LOSS_TERMS_EPS),
        (
            "gradient",
            sce.backward(x, t, normalization="none", **options),
            1,
            3,
            bounds.GRADIENT_TERMS_EPS,
        ),
    ):
        errors = [
            float(
                abs(mpmath.mpf(float(g)) - e[value])
                / (float(info.eps) * e[terms] + float(f) * float(info.smallest_subnormal))
            )
            for g, e, f in zip(got, exact, factors[value], strict=True)
        ]
        worst = Worst()
        worst.update(np.array(errors), x, t, w)
        worst.check(f"float64 {name}, {kind}", k, "eps of the terms")


@wide
@pytest.mark.parametrize("pos_weight", [None, 0.001, 37.5])
def test_float32_loss_of_targets_in_unit_interval(pos_weight: float | None) -> None:
    """A mean over equal elements errs as its element does: the bound of the mean holds for each."""
    x, t, _, _ = general_inputs("soft", 2_000_000, np.float32)
    p = 1.0
    if pos_weight is not None:
        p = float(np.float32(pos_weight))
        t = np.round(t)
    exact = oracle.loss(oracle.Pieces(x), t, p)
    errors = oracle.ulp_error(sce.elementwise(x, t, pos_weight=pos_weight), exact, np.float32)
    if pos_weight is not None:
        errors[exact < float(np.finfo(np.float32).smallest_normal) * max(1, p)] = 0
    worst = Worst()
    worst.update(errors, x, t)
    worst.check(f"float32 loss, t in [0, 1], p = {p}", bounds.MEAN_WORST_FLOAT32_ULP)


# ---------------------------------------------------------------- the reduced loss


def exact_mean(x: Any, t: Any) -> Any:
    """Longdouble, chunk by chunk and pairwise inside: relative error below 2^-58."""
    total = LD(0)
    for start in range(0, x.size, CHUNK):
        part = slice(start, start + CHUNK)
        total += np.sum(oracle.loss(oracle.Pieces(x[part]), t[part]))
    return total / x.size


Draw = Callable[[np.random.Generator, int], Any]
TARGETS: dict[str, Draw] = {
    "hard": lambda rng, n: rng.integers(0, 2, n).astype(np.float32),
    "rare": lambda rng, n: (rng.random(n) < 0.01).astype(np.float32),
    "soft": lambda rng, n: rng.random(n, dtype=np.float32),
}


@wide
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_mean_of_2_to_24(dtype: Any) -> None:
    rng = np.random.default_rng(1)
    n = 1 << 24
    x = rng.normal(0, 3, n).astype(dtype)
    t = rng.integers(0, 2, n).astype(dtype)
    loss = sce.forward(x, t, normalization="full")
    exact = exact_mean(x, t)
    error = oracle.ulp_error(np.array([loss]), np.array([exact]), np.float32)[0]
    rounded = oracle.ulp_error(np.float32([loss]), np.array([exact]), np.float32)[0]
    print(f"{np.dtype(dtype).name} mean at 2^24: {error:.6f} ulp, rounded to float32 {rounded:.4f}")
    assert rounded <= bounds.MEAN_FLOAT32_ULP
    if dtype == np.float64:
        # float64 ulp: each element's 2 and at most 25 of the sum inside a block.
        error = oracle.ulp_error(np.array([loss]), np.array([exact]), np.float64)[0]
        print(f"  {error:.4f} float64 ulp")
        assert error <= bounds.FLOAT64_ULP + bounds.CUT_FLOAT64_ULP


@wide
@pytest.mark.parametrize("targets", list(TARGETS))
@pytest.mark.parametrize("spread", [0.1, 3.0, 60.0])
def test_mean_other_inputs(targets: str, spread: float) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        n = (1 << 20) + 12345 * seed
        x = rng.normal(0, spread, n).astype(np.float32)
        t = TARGETS[targets](rng, n)
        loss = np.float32([sce.forward(x, t, normalization="full")])
        error = oracle.ulp_error(loss, np.array([exact_mean(x, t)]), np.float32)[0]
        print(f"{targets}, N(0, {spread}), seed {seed}: {error:.4f} ulp")
        assert error <= bounds.MEAN_WORST_FLOAT32_ULP


@wide
def test_mean_where_all_elements_err_alike() -> None:
    """Constant arrays of the scores with the largest errors: nothing averages out."""
    x = stratified(1_000_000, np.float32)
    x = x[np.isfinite(x)]
    for t in (0.0, 1.0):
        exact = oracle.loss(oracle.Pieces(x), t)
        targets = np.full(x.size, t, dtype=np.float32)
        errors = oracle.ulp_error(sce.elementwise(x, targets), exact, np.float32)
        for k in np.argsort(errors)[-8:]:
            loss = sce.forward(
                np.full(10_000, x[k]), np.full(10_000, t, np.float32), normalization="full"
            )
            error = oracle.ulp_error(np.float32([loss]), exact[k : k + 1], np.float32)[0]
            print(f"x = {x[k]:.9g}, t = {t}: {error:.4f} ulp")
            assert error <= bounds.MEAN_WORST_FLOAT32_ULP


# ---------------------------------------------------------------- every score


def test_sweep_program_sample(native_tests: Path) -> None:
    """One chunk in 256 of the sweep: the program works and is able to fail."""
    command = [str(native_tests / "sweep"), "--every", "256"]
    done = subprocess.run(
        [*command, "--bound", str(bounds.FLOAT32_ULP)], capture_output=True, text=True
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    strict = subprocess.run([*command, "--bound", "0.1"], capture_output=True, text=True)
    assert strict.returncode == 1, strict.stdout + strict.stderr


@pytest.mark.long
def test_sweep_of_all_scores(native_tests: Path) -> None:
    command = [str(native_tests / "sweep"), "--bound", str(bounds.FLOAT32_ULP), "--threads", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
