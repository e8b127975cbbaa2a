"""On a GPU: the CPU's bits, the oracle's values, every library, streams, graphs, threads, sizes.

Skipped where there is no GPU; with SIGMOID_CE_GPU=1 in the environment that is a failure. With
SIGMOID_CE_GPU=emulated the same tests run on the package that test_gpu_emulated.py builds.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

import digest
import oracle
import sigmoid_ce as sce
from gpu_arrays import FLOATS, HALVES, Library, Missing, load, rounded
from sigmoid_ce import bounds

_WANTED = os.environ.get("SIGMOID_CE_GPU", "")
EMULATED = _WANTED == "emulated"
NAMES = ["emulated"] if EMULATED else ["torch", "cupy", "jax", "numba"]
# The first of these that is here serves the tests of the kernels.
MAIN = ["emulated"] if EMULATED else ["torch", "cupy"]

INTEGERS = ("bool", "uint8", "int8", "int32", "int64")
# What targets are made of. The emulation is slow, and has other tests of the integer types.
KINDS = ("soft", "float32", "uint8", "int64") if EMULATED else ("soft", "float32", *INTEGERS)


def _no_gpu() -> str | None:
    """Why there is nothing to test here."""
    about = sce.info().get("cuda")
    if not about or not about["devices"]:
        return (about or {}).get("reason") or "this build has no CUDA kernels"
    return None


_PROBLEM = _no_gpu()


def _skip(reason: str) -> None:
    if _WANTED == "1":
        pytest.fail(f"SIGMOID_CE_GPU=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def gpu() -> None:
    if _PROBLEM is not None:
        if _WANTED == "1":  # once is enough
            pytest.exit(f"SIGMOID_CE_GPU=1, but {_PROBLEM}", returncode=1)
        pytest.skip(_PROBLEM)


@pytest.fixture
def lib() -> Library:
    """The library that the tests of the kernels use."""
    problems = []
    for name in MAIN:
        try:
            return load(name)
        except Missing as error:
            problems.append(str(error))
    _skip("; ".join(problems))
    raise AssertionError


@pytest.fixture(params=NAMES)
def library(request: pytest.FixtureRequest) -> Library:
    """Each library in turn."""
    try:
        return load(request.param)
    except Missing as error:
        pytest.skip(str(error))


@pytest.fixture
def torch() -> Any:
    """For what only PyTorch lets us arrange."""
    if EMULATED:
        pytest.skip("streams and graphs are a GPU's")
    try:
        library = load("torch")
    except Missing as error:
        _skip(str(error))
    return library.torch  # type: ignore[attr-defined]


dtypes = pytest.mark.parametrize("dtype", FLOATS)


def need(lib: Library, dtype: str) -> None:
    if dtype not in lib.dtypes:
        pytest.skip(f"no {dtype} in {lib.name}")


# ---------------------------------------------------------------- inputs


def make_scores(shape: Any, dtype: str, seed: int = 0) -> Any:
    """Most in [-16, 16], some far out in the tails."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 4, shape)
    far = rng.random(shape) < 0.1
    return rounded(np.where(far, rng.uniform(-110, 110, shape), x), dtype)


def make_targets(shape: Any, kind: str, seed: int = 1) -> Any:
    """`kind`: a dtype, or "hard" or "soft" for numbers to be rounded to that of the scores."""
    rng = np.random.default_rng(seed)
    if kind == "soft":
        return np.where(rng.random(shape) < 0.3, rng.integers(0, 2, shape), rng.random(shape))
    if kind == "bool":
        return rng.integers(0, 2, shape).astype(np.bool_)
    hard = rng.integers(0, 2, shape)
    return hard.astype(kind) if kind in INTEGERS else hard.astype(np.float64)


SHAPE = (3, 5, 1117)  # whole tiles and a rest; rows that are no multiple of any vector
CHANNELS = [0.25, 1.0, 2.5, 7.0, 0.0]


class Case:
    """One set of options: on the device, for the CPU's kernels, and as factors for the oracle."""

    def __init__(self, name: str, dtype: str) -> None:
        self.name = name
        self.dtype = dtype
        rng = np.random.default_rng(3)
        full = rounded(np.where(rng.random(SHAPE) < 0.1, 0, rng.uniform(0, 4, SHAPE)), dtype)
        masks = rng.integers(0, 2, SHAPE)
        self.p: Any = 1.0
        self.w: Any = 1.0
        self.label: int | None = None
        self.options: dict[str, Any] = {}
        self.mode: dict[str, Any] = {}
        if name == "pos_weight":
            self.p = self.options["pos_weight"] = 2.5
        elif name in ("pos_weight per channel", "pos_weight on the device", "all"):
            self.options["pos_weight"] = CHANNELS
            self.p = np.array(CHANNELS).reshape(1, 5, 1)
        if name in ("weight", "all"):
            self.w = self.options["weight"] = full
        elif name == "weight per channel":
            self.w = self.options["weight"] = full[:1, :, :1].copy()
        elif name == "weight per sample":
            self.w = self.options["weight"] = full[:, :1, :1].copy()
        elif name == "weight, a number":
            self.w = self.options["weight"] = 0.75
        elif name.startswith("weight "):
            kind = name.removeprefix("weight ")
            self.w = masks if kind == "bool" else 3 * masks
            self.options["weight"] = self.w.astype(kind)
        if name in ("ignore_label", "all"):
            self.label = self.options["ignore_label"] = 1
            self.mode = {"normalization": "valid"}
        elif name == "full":
            self.mode = {"normalization": "full"}
        elif name == "number":
            self.mode = {"normalization": 0.3}
        elif name == "normalize":
            self.mode = {"normalize": True}

    def on(self, lib: Library, **more: Any) -> dict[str, Any]:
        """The options for arrays on the device."""
        options = {**self.options, **more}
        weight = options.get("weight")
        if isinstance(weight, np.ndarray):
            kind = weight.dtype.name
            options["weight"] = lib.put(weight, kind if weight.dtype.kind != "f" else self.dtype)
        if self.name == "pos_weight on the device":
            wide = "float64" if self.dtype == "float64" else "float32"
            options["pos_weight"] = lib.put(np.array(CHANNELS), wide)
        return options


CASES = (
    "plain",
    "pos_weight",
    "pos_weight per channel",
    "pos_weight on the device",
    "weight",
    "weight per channel",
    "weight per sample",
    "weight, a number",
    "weight bool",
    "weight uint8",
    "weight int8",
    "ignore_label",
    "full",
    "number",
    "normalize",
    "all",
)
cases = pytest.mark.parametrize("case", CASES)


def inputs(lib: Library, dtype: str, kind: str) -> tuple[Any, Any, Any, Any]:
    """Scores and targets for the CPU's kernels, and on the device."""
    x = make_scores(SHAPE, dtype)
    t = make_targets(SHAPE, kind)
    if kind in INTEGERS:
        return x, t, lib.put(x, dtype), lib.put(t)
    held = "float32" if kind == "float32" else dtype
    t = rounded(t if kind != "float32" else make_targets(SHAPE, "soft"), held).astype(x.dtype)
    return x, t, lib.put(x, dtype), lib.put(t, held)


def same_bits(found: Any, wanted: Any) -> bool:
    """Equal bits, where a NaN is a NaN."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    words = f"u{found.dtype.itemsize}"
    nan = np.isnan(found) & np.isnan(wanted)
    return bool(np.all(nan | (found.view(words) == wanted.view(words))))


def number(lib: Library, loss: Any) -> np.float64:
    """A loss as it came, checked to be a float64 scalar of the library."""
    assert lib.is_own(loss)
    assert tuple(loss.shape) == ()
    value = lib.get(loss)
    assert value.dtype == np.float64
    return np.float64(value)


# ---------------------------------------------------------------- the oracle


def allowed(terms: Any, x: Any, t: Any, p: Any, w: Any, dtype: str, *, loss: bool) -> Any:
    """The bound of bounds.py for any targets and weights; of half types, of the float32 that they
    are computed in, and half a step of the type for the rounding."""
    single = np.finfo(np.float64 if dtype == "float64" else np.float32)
    eps, tiny = float(single.eps), float(single.smallest_subnormal)
    u = np.abs(1 - t) + np.abs(p * t)
    used = 0.0 if np.isscalar(p) and p == 1.0 else 1.0
    factor = bounds.LOSS_TERMS_EPS if loss else bounds.GRADIENT_TERMS_EPS
    reach = 1 + np.abs(x) if loss else 1.0
    bound = factor * (eps * terms + tiny * (1 + w * u + w * reach * used))
    return bound.astype(np.float64)


def half_step(exact: Any, bound: Any, dtype: str) -> Any:
    """Half the spacing of a half type around a value that is off by `bound` at most."""
    if dtype not in HALVES:
        return 0.0
    bits, smallest = (10, -14) if dtype == "float16" else (7, -126)
    exponent = np.frexp(np.abs(exact).astype(np.float64) + bound)[1] - 1
    return np.ldexp(0.5, np.maximum(exponent, smallest) - bits)


@dtypes
@pytest.mark.parametrize("kind", KINDS)
@cases
def test_against_the_oracle(lib: Library, dtype: str, kind: str, case: str) -> None:
    need(lib, dtype)
    options = Case(case, dtype)
    x, t, dx, dt = inputs(lib, dtype, kind)
    pieces = oracle.Pieces(x)
    wide = t.astype(np.float64)
    p, w = options.p, options.w
    ignored = np.zeros(SHAPE, bool)
    if options.label is not None:
        ignored = np.trunc(wide) == options.label
    for loss in (True, False):
        exact = (oracle.loss if loss else oracle.gradient)(pieces, wide, p, w)
        terms = (oracle.loss_terms if loss else oracle.gradient_terms)(pieces, wide, p, w)
        if loss:
            got = sce.elementwise(dx, dt, **options.on(lib))
        else:
            got = sce.backward(dx, dt, **options.on(lib, normalization="none"))
        assert lib.is_own(got)
        assert tuple(got.shape) == SHAPE
        found = lib.get(got).astype(oracle.LD)
        exact = np.where(ignored | (np.asarray(w) == 0), 0, exact)
        bound = allowed(terms, x, wide, p, np.asarray(w, np.float64), dtype, loss=loss)
        bound = bound + half_step(exact, bound, dtype)
        wrong = ~(np.abs(found - exact) <= bound)
        assert not wrong.any(), (x[wrong][:3], wide[wrong][:3], found[wrong][:3], exact[wrong][:3])
        assert np.all(found[ignored] == 0)
    # The sum: half a float64 step beyond the errors of the elements, which all have that bound.
    losses = np.where(ignored | (np.asarray(w) == 0), 0, oracle.loss(pieces, wide, p, w))
    terms = oracle.loss_terms(pieces, wide, p, w)
    bound = allowed(terms, x, wide, p, np.asarray(w, np.float64), dtype, loss=True)
    divisors = {"full": x.size, "valid": max(1, int((~ignored).sum())), None: SHAPE[0]}
    mode = options.mode.get("normalization")
    divisor = divisors.get(mode, mode)
    if options.mode.get("normalize"):
        divisor = x.size
    total = number(lib, sce.forward(dx, dt, **options.on(lib, **options.mode)))
    exact_sum = float(losses.sum()) / divisor
    assert abs(total - exact_sum) <= float(bound.sum()) / divisor + abs(exact_sum) * 2.0**-50


# ---------------------------------------------------------------- the bits of the CPU


@dtypes
@pytest.mark.parametrize("kind", KINDS)
@cases
def test_same_bits_as_the_cpu(lib: Library, dtype: str, kind: str, case: str) -> None:
    """Half types: those of the same numbers in float32, rounded once."""
    need(lib, dtype)
    options = Case(case, dtype)
    x, t, dx, dt = inputs(lib, dtype, kind)
    host = dict(options.options)
    gradient_options = {**options.mode, "loss_weight": 0.37}

    losses = sce.elementwise(x, t, **host)
    found = lib.get(sce.elementwise(dx, dt, **options.on(lib)))
    assert same_bits(found, rounded(losses, dtype))
    gradient = sce.backward(x, t, **host, **gradient_options)
    found = lib.get(sce.backward(dx, dt, **options.on(lib, **gradient_options)))
    assert same_bits(found, rounded(gradient, dtype))
    loss = sce.forward(x, t, **host, **options.mode)
    assert same_bits(number(lib, sce.forward(dx, dt, **options.on(lib, **options.mode))), loss)
    both, found = sce.forward_backward(dx, dt, **options.on(lib, **gradient_options))
    assert same_bits(number(lib, both), np.float64(loss))
    assert same_bits(lib.get(found), rounded(gradient, dtype))
    assert sce.partial(dx, dt, **options.on(lib)) == sce.partial(x, t, **host)


FAMILY: tuple[dict[str, Any], ...] = (
    {"uncertain": "ignore", "normalization": "valid"},
    {"label_smoothing": 0.1, "negative_scale": 1.1, "alpha": 0.25, "ignore_label": 1},
    {"gamma": 2.0, "alpha": 0.25, "normalization": "foreground"},
    {"gamma": 0.5, "pos_weight": CHANNELS, "label_smoothing": 0.01},
    {"balance": "image", "normalization": "full"},
    {"balance": "batch_mean", "uncertain": "ignore", "normalization": "valid"},
    {"balance": "batch", "balance_per_channel": True, "gamma": 1.5, "pos_weight": 2.5},
    {"balance": "image", "balance_per_channel": True, "label_smoothing": 0.2},
)


@dtypes
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", FAMILY, ids=str)
def test_family_has_the_bits_of_the_cpu(
    lib: Library, dtype: str, kind: str, options: dict[str, Any]
) -> None:
    need(lib, dtype)
    x, t, dx, dt = inputs(lib, dtype, kind)
    mode = {"loss_weight": 0.37, **options}
    each = {k: v for k, v in options.items() if k != "normalization"}
    found = lib.get(sce.elementwise(dx, dt, **each))
    assert same_bits(found, rounded(sce.elementwise(x, t, **each), dtype))
    wanted = sce.forward_backward(x, t, hessian=True, **mode)
    got = sce.forward_backward(dx, dt, hessian=True, **mode)
    assert same_bits(number(lib, got[0]), np.float64(wanted[0]))
    for derivative, on_cpu in zip(got[1:], wanted[1:], strict=True):
        assert same_bits(lib.get(derivative), rounded(on_cpu, dtype))
    assert same_bits(number(lib, sce.forward(dx, dt, **options)), np.float64(wanted[0]))
    assert same_bits(lib.get(sce.backward(dx, dt, **mode)), lib.get(got[1]))
    slopes = rounded(sce.backward_targets(x, t, **mode), dtype)
    assert same_bits(lib.get(sce.backward_targets(dx, dt, **mode)), slopes)


@pytest.mark.parametrize("shape", [(1000, 7), (3000, 2), (7, 300, 11), (2, 3, 70_001), (40_000, 1)])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("balance", ["image", "batch", "batch_mean"])
def test_groups_of_any_number_and_length(
    lib: Library, balance: str, per_channel: bool, shape: tuple[int, ...]
) -> None:
    x, t = make_scores(shape, "float32"), make_targets(shape, "uint8")
    options = {"balance": balance, "balance_per_channel": per_channel}
    found = lib.get(sce.backward(lib.put(x), lib.put(t), **options))
    assert same_bits(found, sce.backward(x, t, **options))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_bits_on_any_bits(lib: Library, dtype: str) -> None:
    """Infinities, NaNs and subnormals among scores and targets, in every lane."""
    kind = np.dtype(dtype).type
    for n in (1, 67, 4097, 30_011):
        x = digest.make_scores(n, kind, True)
        t = digest.make_targets(n, "anybits", kind)
        dx, dt = lib.put(x), lib.put(t)
        assert same_bits(lib.get(sce.elementwise(dx, dt)), sce.elementwise(x, t))
        assert same_bits(lib.get(sce.backward(dx, dt)), sce.backward(x, t))
        assert same_bits(number(lib, sce.forward(dx, dt)), np.float64(sce.forward(x, t)))
        assert sce.partial(dx, dt) == sce.partial(x, t)


class OnDevice:
    """The functions that digest.py calls, for its NumPy arrays by way of the device."""

    def __init__(self, lib: Library) -> None:
        self._lib = lib

    def _put(self, x: Any, t: Any, options: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
        weight = options.get("weight")
        if isinstance(weight, np.ndarray):
            options = {**options, "weight": self._lib.put(weight)}
        return self._lib.put(x), self._lib.put(t), options

    def elementwise(self, x: Any, t: Any, **options: Any) -> Any:
        x, t, options = self._put(x, t, options)
        return self._lib.get(sce.elementwise(x, t, **options))

    def backward(self, x: Any, t: Any, **options: Any) -> Any:
        x, t, options = self._put(x, t, options)
        return self._lib.get(sce.backward(x, t, **options))

    def forward(self, x: Any, t: Any, **options: Any) -> float:
        x, t, options = self._put(x, t, options)
        return float(number(self._lib, sce.forward(x, t, **options)))

    def backward_targets(self, x: Any, t: Any, **options: Any) -> Any:
        x, t, options = self._put(x, t, options)
        return self._lib.get(sce.backward_targets(x, t, **options))

    def forward_backward(self, x: Any, t: Any, **options: Any) -> tuple[Any, ...]:
        x, t, options = self._put(x, t, options)
        loss, *derivatives = sce.forward_backward(x, t, **options)
        return (float(number(self._lib, loss)), *map(self._lib.get, derivatives))

    def partial(self, x: Any, t: Any, **options: Any) -> Any:
        x, t, options = self._put(x, t, options)
        return sce.partial(x, t, **options)


def test_digests(lib: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """All lines of digests.txt, which the CPU gives too."""
    monkeypatch.setattr(digest, "sce", OnDevice(lib))
    wanted = digest.DIGESTS.read_text(encoding="ascii").splitlines()
    assert list(digest.lines()) == wanted


def test_every_score_near_zero(torch: Any) -> None:
    """Loss and gradient of every float32 score from 2^-28 to 120, of either sign: every quotient
    z / (1 + z) that there is, since the device's division is made of an approximation."""
    step = 2**26
    first, last = (int(np.float32(value).view(np.int32)) for value in (2.0**-28, 120.0))
    for start in range(first, last + 1, step):
        count = min(step, last + 1 - start)
        bits = torch.arange(start, start + count, dtype=torch.int32, device="cuda")
        t = torch.zeros(count, dtype=torch.uint8, device="cuda")
        t_host = np.zeros(count, np.uint8)
        for sign in (1, -1):
            dx = bits.view(torch.float32) * sign
            x = dx.cpu().numpy()
            for function, options in ((sce.elementwise, {}), (sce.backward, {"normalization": 1})):
                found = function(dx, t, **options).cpu().numpy()
                wanted = function(x, t_host, **options)
                assert np.array_equal(found.view(np.int32), wanted.view(np.int32))


# ---------------------------------------------------------------- sizes, addresses, layouts

SIZES = (
    0,
    1,
    2,
    3,
    5,
    15,
    16,
    17,
    63,
    255,
    257,
    1023,
    4095,
    4096,
    4097,
    8191,
    8193,
    16385,
    100_003,
)


@dtypes
def test_odd_sizes_and_poisoned_outputs(lib: Library, dtype: str) -> None:
    """Every element of an output is written, and none beside it."""
    need(lib, dtype)
    if not lib.views:
        pytest.skip(f"no views in {lib.name}")
    guard = 16
    for n in SIZES:
        x = make_scores(n, dtype, n)
        t = make_targets(n, "uint8", n)
        dx, dt = lib.put(x, dtype), lib.put(t)
        for function, wanted in (
            (sce.elementwise, sce.elementwise(x, t)),
            (sce.backward, sce.backward(x, t, normalization="none")),
        ):
            more = {} if function is sce.elementwise else {"normalization": "none"}
            buffer = lib.put(np.full(n + 2 * guard, np.nan, np.float32), dtype)
            out = lib.strided(buffer, (n,), (1,), guard)
            assert function(dx, dt, out=out, **more) is out
            found = lib.get(buffer)
            assert same_bits(found[guard : guard + n], rounded(wanted, dtype).astype(found.dtype))
            assert np.isnan(found[:guard]).all()
            assert np.isnan(found[guard + n :]).all()
        loss, gradient = sce.forward_backward(dx, dt, normalization="none")
        assert same_bits(number(lib, loss), np.float64(sce.forward(x, t, normalization="none")))
        assert same_bits(lib.get(gradient), rounded(wanted, dtype))


@dtypes
@pytest.mark.parametrize("kind", ["same", "uint8", "int64"])
def test_unaligned_views(lib: Library, dtype: str, kind: str) -> None:
    need(lib, dtype)
    if not lib.views:
        pytest.skip(f"no views in {lib.name}")
    n = 9001
    x = make_scores(n, dtype)
    t = make_targets(n, "uint8" if kind == "same" else kind)
    t_host = t.astype(x.dtype) if kind == "same" else t
    wanted = sce.backward(x, t_host)
    part = sce.partial(x, t_host)
    for a, b, c in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 3, 2), (4, 4, 4), (8, 7, 3)):
        pads = [np.zeros(k, x.dtype) for k in (a, c)]
        dx = lib.strided(lib.put(np.concatenate([pads[0], x]), dtype), (n,), (1,), a)
        padded = np.concatenate([np.zeros(b, t.dtype), t])
        flat = lib.put(padded.astype(x.dtype), dtype) if kind == "same" else lib.put(padded)
        dt = lib.strided(flat, (n,), (1,), b)
        out = lib.strided(lib.put(np.concatenate([pads[1], x]), dtype), (n,), (1,), c)
        sce.backward(dx, dt, out=out)
        assert same_bits(lib.get(out), rounded(wanted, dtype)), (a, b, c)
        assert sce.partial(dx, dt) == part, (a, b, c)


@dtypes
@pytest.mark.parametrize("layout", ["every second", "transposed", "broadcast", "gaps in rows"])
def test_strided_views(lib: Library, dtype: str, layout: str) -> None:
    """The bits of contiguous copies; strided outputs too."""
    need(lib, dtype)
    if not lib.views:
        pytest.skip(f"no views in {lib.name}")
    shape = (6, 5, 333)
    flat = make_scores(2 * 6 * 5 * 340, dtype)
    targets = make_targets(flat.size, "uint8")
    strides = {
        "every second": (2 * 5 * 333, 2 * 333, 2),
        "transposed": (1, 6, 30),
        "broadcast": (5 * 333, 333, 1),
        "gaps in rows": (5 * 340, 340, 1),
    }[layout]
    dx_flat, dt_flat = lib.put(flat, dtype), lib.put(targets)
    dx = lib.strided(dx_flat, shape, strides, 3)
    x = np.lib.stride_tricks.as_strided(flat[3:], shape, [s * flat.itemsize for s in strides])
    t_strides = (0, 333, 1) if layout == "broadcast" else strides
    dt = lib.strided(dt_flat, shape, t_strides, 1)
    t = np.lib.stride_tricks.as_strided(targets[1:], shape, t_strides)
    options = {"pos_weight": CHANNELS, "normalization": "full"}
    x, t = np.ascontiguousarray(x), np.ascontiguousarray(t)
    wanted = rounded(sce.backward(x, t, **options), dtype)
    assert same_bits(lib.get(sce.backward(dx, dt, **options)), wanted)
    loss, gradient = sce.forward_backward(dx, dt, **options)
    assert same_bits(number(lib, loss), np.float64(sce.forward(x, t, **options)))
    assert same_bits(lib.get(gradient), wanted)
    room = lib.put(np.full(flat.size, 7, np.float32), dtype)
    sce.backward(dx, dt, out=lib.strided(room, shape, strides, 3), **options)
    found = lib.get(room)
    view = np.lib.stride_tricks.as_strided(found[3:], shape, [s * found.itemsize for s in strides])
    assert same_bits(np.ascontiguousarray(view), wanted)
    assert np.count_nonzero(found == 7) >= found.size - wanted.size  # nothing else was written


@dtypes
def test_in_place(lib: Library, dtype: str) -> None:
    need(lib, dtype)
    x, t = make_scores(20_011, dtype), make_targets(20_011, "int32")
    wanted = rounded(sce.backward(x, t), dtype)
    for both in (False, True):
        dx, dt = lib.put(x, dtype), lib.put(t)
        if not lib.writes:
            with pytest.raises(TypeError, match="out"):
                sce.backward(dx, dt, out=dx)
            continue
        result = sce.forward_backward(dx, dt, out=dx)[1] if both else sce.backward(dx, dt, out=dx)
        assert result is dx
        assert same_bits(lib.get(dx), wanted)


@pytest.mark.parametrize("shape", [(0,), (4, 0), (0, 4), (2, 0, 3)])
@pytest.mark.parametrize("mode", ["full", "valid", "batch_size", "none", 2.0])
def test_empty(lib: Library, shape: tuple[int, ...], mode: Any) -> None:
    dx, dt = lib.put(np.empty(shape, np.float32)), lib.put(np.empty(shape, np.uint8))
    options = {"normalization": mode, "ignore_label": 0}
    assert same_bits(number(lib, sce.forward(dx, dt, **options)), np.float64(0))
    loss, gradient = sce.forward_backward(dx, dt, **options)
    assert same_bits(number(lib, loss), np.float64(0))
    assert tuple(gradient.shape) == shape
    assert tuple(sce.elementwise(dx, dt).shape) == shape
    assert sce.partial(dx, dt) == sce.partial(np.empty(shape, np.float32), np.empty(shape, "u1"))


def test_all_ignored_and_zero_dimensional(lib: Library) -> None:
    dx, dt = lib.put(np.ones((3, 4), np.float32)), lib.put(np.full((3, 4), 255, np.uint8))
    for mode in ("full", "valid", "batch_size", "none"):
        loss, gradient = sce.forward_backward(dx, dt, ignore_label=255, normalization=mode)
        assert same_bits(number(lib, loss), np.float64(0))
        assert same_bits(lib.get(gradient), np.zeros((3, 4), np.float32))
    x, t = np.array(-2.0), np.array(1.0)
    dx, dt = lib.put(x), lib.put(t)
    assert same_bits(number(lib, sce.forward(dx, dt)), np.float64(sce.forward(x, t)))
    gradient = sce.backward(dx, dt)
    assert tuple(gradient.shape) == ()
    assert float(lib.get(gradient)) == float(sce.backward(x, t))


def test_chunks_have_the_bits_of_the_whole(lib: Library) -> None:
    """Partials of chunks from the device and from the CPU add up to that of the whole."""
    n, step = 5 * 4096 + 77, 2 * 4096
    x, t = make_scores((1, 1, n), "float32").ravel(), make_targets(n, "uint8")
    whole = sce.partial(x, t)
    parts, gradients = [], []
    for start in range(0, n, step):
        piece = slice(start, start + step)
        dx, dt = lib.put(x[piece]), lib.put(t[piece])
        part = sce.partial(dx, dt, first_index=start, shape=(n,))
        assert part == sce.partial(x[piece], t[piece], first_index=start, shape=(n,))
        again, gradient = sce.partial_backward(dx, dt, n, first_index=start, shape=(n,))
        assert again == part
        parts.append(part)
        gradients.append(lib.get(gradient))
    parts[0] = sce.partial(x[:step], t[:step], first_index=0, shape=(n,))  # one from the CPU
    assert sce.combine(parts) == whole
    assert same_bits(np.concatenate(gradients), sce.backward(x, t, normalization="full"))


# Beyond 32-bit indices, by an odd number.
LARGE = 2**31 + 5


@pytest.mark.parametrize("options", [{}, {"ignore_label": 1, "normalization": "valid"}])
def test_more_than_31_bits_of_elements(torch: Any, options: dict[str, Any]) -> None:
    """float16 scores, uint8 targets. Chunks have small indices, and are to give the same."""
    needed = LARGE * (2 + 2 + 1) + 2**31
    free, _ = torch.cuda.mem_get_info()
    if free < needed:
        pytest.skip(f"takes {needed >> 30} GiB on the GPU, {free >> 30} are free")
    period = 2**20 + 4096
    generator = torch.Generator("cuda").manual_seed(1)
    draw = torch.randn(period, generator=generator, device="cuda") * 3
    x = torch.empty(LARGE, dtype=torch.float16, device="cuda")
    t = torch.empty(LARGE, dtype=torch.uint8, device="cuda")
    coins = torch.rand(period, generator=generator, device="cuda") < 0.5
    for start in range(0, LARGE, period):
        length = min(period, LARGE - start)
        x[start : start + length] = draw[:length]
        t[start : start + length] = coins[:length]
    x[-1], t[-1] = 9.0, 0  # not what 2^32 elements before it has
    part_options = {k: v for k, v in options.items() if k != "normalization"}
    whole = sce.partial(x, t, **part_options)
    assert whole.n_total == LARGE
    chunk = 2**28
    parts = [
        sce.partial(x[start : start + chunk], t[start : start + chunk], **part_options)
        for start in range(0, LARGE, chunk)
    ]
    assert sce.combine(parts) == whole
    mode = options.get("normalization", "full")
    divisor = whole.n_valid if mode == "valid" else LARGE
    out = torch.full_like(x, math.nan)
    # Loss scaling: a gradient of 1 / 2^31 is 0 in float16.
    loss, gradient = sce.forward_backward(
        x, t, out=out, loss_weight=float(divisor), **{"normalization": mode, **options}
    )
    assert gradient is out
    assert float(loss) == whole.sum / divisor
    for start in (0, 2**30 - 3, 2**31 - 4096, LARGE - 5000):
        stop = min(start + 5000, LARGE)
        wanted = sce.backward(
            x[start:stop].clone(), t[start:stop].clone(), normalization="none", **part_options
        )
        # loss_weight / divisor is 1 in both.
        assert torch.equal(gradient[start:stop], wanted), start
    assert not torch.isnan(gradient).any()
    del wanted
    assert torch.equal(
        sce.backward(x, t, out=x, loss_weight=float(divisor), **{"normalization": mode, **options}),
        gradient,
    )


# ---------------------------------------------------------------- libraries


@pytest.mark.parametrize("dtype", FLOATS)
def test_each_library(library: Library, dtype: str) -> None:
    """Inputs of the library give results of the library, with the CPU's bits."""
    need(library, dtype)
    options = {"pos_weight": CHANNELS, "ignore_label": 1, "normalization": "valid"}
    x, t = make_scores(SHAPE, dtype), make_targets(SHAPE, "int32")
    w = rounded(np.random.default_rng(2).uniform(0, 2, SHAPE), dtype)
    dx, dt, dw = library.put(x, dtype), library.put(t), library.put(w, dtype)
    loss, gradient = sce.forward_backward(dx, dt, weight=dw, **options)
    wanted, slopes = sce.forward_backward(x, t, weight=w, **options)
    assert same_bits(number(library, loss), np.float64(wanted))
    assert library.is_own(gradient)
    assert same_bits(library.get(gradient), rounded(slopes, dtype))
    assert same_bits(number(library, sce.forward(dx, dt, weight=dw, **options)), np.float64(wanted))
    assert same_bits(library.get(sce.backward(dx, dt, weight=dw, **options)), library.get(gradient))
    losses = sce.elementwise(dx, dt, weight=dw, pos_weight=CHANNELS, ignore_label=1)
    wanted = sce.elementwise(x, t, weight=w, pos_weight=CHANNELS, ignore_label=1)
    assert library.is_own(losses)
    assert same_bits(library.get(losses), rounded(wanted, dtype))
    # Nothing was written to the inputs.
    assert same_bits(library.get(dx), x)
    assert np.array_equal(library.get(dt), t)


def test_results_are_inputs_again(library: Library) -> None:
    """Work on a result goes on without a wait of the caller's."""
    x, t = make_scores(50_021, "float32"), make_targets(50_021, "uint8")
    dx, dt = library.put(x), library.put(t)
    for _ in range(5):
        dx = sce.backward(dx, dt, normalization="none")
        x = sce.backward(x, t, normalization="none")
    assert same_bits(library.get(dx), x)


def test_the_layer(library: Library) -> None:
    x, t = make_scores((8, 1001), "float32"), make_targets((8, 1001), "int8")
    dx, dt = library.put(x), library.put(t)
    host = sce.SigmoidCrossEntropyLoss(pos_weight=3.0, ignore_label=1, normalization="valid")
    layer = sce.SigmoidCrossEntropyLoss(pos_weight=3.0, ignore_label=1, normalization="valid")
    assert same_bits(number(library, layer.forward(dx, dt)), np.float64(host.forward(x, t)))
    assert same_bits(library.get(layer.backward()), host.backward())


def test_bound_functions(lib: Library) -> None:
    """sce.cuda has the same functions, for arrays on the device alone."""
    x, t = make_scores(1001, "float32"), make_targets(1001, "uint8")
    dx, dt = lib.put(x), lib.put(t)
    assert same_bits(number(lib, sce.cuda.forward(dx, dt)), np.float64(sce.forward(x, t)))
    assert same_bits(lib.get(sce.cuda.backward(dx, dt)), sce.backward(x, t))
    loss, gradient = sce.cuda.forward_backward(dx, dt)
    assert same_bits(number(lib, loss), np.float64(sce.forward(x, t)))
    assert same_bits(lib.get(gradient), sce.backward(x, t))
    assert same_bits(lib.get(sce.cuda.elementwise(dx, dt)), sce.elementwise(x, t))
    assert sce.cuda.partial(dx, dt) == sce.partial(x, t)
    with pytest.raises(TypeError):
        sce.cuda.forward(x, t)


def test_the_device_decides(library: Library) -> None:
    """Scores and targets on different sides are an error that names the argument."""
    x, t = make_scores(100, "float32"), make_targets(100, "uint8")
    dx, dt = library.put(x), library.put(t)
    for arguments, name in (((dx, t), "targets"), ((x, dt), "targets")):
        for function in (sce.forward, sce.backward, sce.elementwise, sce.forward_backward):
            with pytest.raises(TypeError, match=name):
                function(*arguments)
    with pytest.raises(TypeError, match="weight"):
        sce.forward(dx, dt, weight=np.ones(100, np.float32))
    if library.writes:
        with pytest.raises(TypeError, match="out"):
            sce.backward(dx, dt, out=np.empty(100, np.float32))
        with pytest.raises(TypeError, match="out"):
            sce.backward(x, t, out=dx)


def test_wrong_arguments(lib: Library) -> None:
    x, t = make_scores(100, "float32"), make_targets(100, "uint8")
    dx, dt = lib.put(x), lib.put(t)
    for error, message, arguments, options in (
        (TypeError, "scores", (dt, dt), {}),
        (TypeError, "targets", (dx, lib.put(t.astype(np.int16))), {}),
        (ValueError, "targets", (dx, lib.put(t[:99])), {}),
        (ValueError, "pos_weight", (dx, dt), {"pos_weight": [1.0, 2.0]}),
        (ValueError, "pos_weight", (dx, dt), {"pos_weight": -1.0}),
        (ValueError, "normalization", (dx, dt), {"normalization": "mean"}),
        (TypeError, "ignore_label", (dx, dt), {"ignore_label": 1.5}),
        (TypeError, "weight", (dx, dt), {"weight": lib.put(np.ones(100))}),
        (ValueError, "weight", (dx, dt), {"weight": lib.put(np.ones(7, np.float32))}),
    ):
        with pytest.raises(error, match=message):
            sce.forward(*arguments, **options)
    for error, out in (
        (TypeError, lib.put(np.ones(100))),
        (ValueError, lib.put(np.ones(99, np.float32))),
    ):
        with pytest.raises(error, match="out"):
            sce.backward(dx, dt, out=out)
    if lib.views:
        room = lib.put(np.ones(101, np.float32))
        with pytest.raises(ValueError, match="out"):
            sce.backward(
                lib.strided(room, (100,), (1,), 0), dt, out=lib.strided(room, (100,), (1,), 1)
            )


def test_a_tensor_that_requires_grad_is_refused(torch: Any) -> None:
    x = torch.zeros(10, device="cuda", requires_grad=True)
    with pytest.raises(TypeError, match="requires grad"):
        sce.forward(x, torch.zeros(10, device="cuda"))


def test_two_gpus(torch: Any) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    x, t = make_scores(10_001, "float32"), make_targets(10_001, "uint8")
    a, b = (torch.from_numpy(x).to(f"cuda:{i}") for i in range(2))
    targets = torch.from_numpy(t).to("cuda:1")
    with pytest.raises(TypeError, match="targets"):
        sce.forward(a, targets)
    # The current device is the first; the arrays decide.
    gradient = sce.backward(b, targets)
    assert gradient.device == b.device
    assert same_bits(gradient.cpu().numpy(), sce.backward(x, t))
    assert torch.cuda.current_device() == 0


def test_info(lib: Library) -> None:
    about = sce.info()["cuda"]
    assert about["built"]
    assert about["reason"] is None
    assert about["devices"]
    for device in about["devices"]:
        assert device["name"]
        assert device["multiprocessors"] >= 1
        assert device["memory"] > 2**30 or EMULATED


# ---------------------------------------------------------------- streams, graphs, threads

# Cycles of PyTorch's waiting kernel: a quarter of a second at 2 GHz, much longer than a call takes.
_LONG = 500_000_000


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("pos_weight", [2.0, CHANNELS], ids=["number", "list"])
def test_nothing_waits_for_the_device(torch: Any, pos_weight: Any) -> None:
    """The calls come back while the device is still busy with what was before them."""
    x, t = make_scores((8, 5, 1001), "float32"), make_targets((8, 5, 1001), "uint8")
    dx, dt = torch.from_numpy(x).cuda(), torch.from_numpy(t).cuda()
    options = {"ignore_label": 1, "normalization": "valid", "pos_weight": pos_weight}
    out = torch.empty_like(dx)

    def calls() -> tuple[Any, ...]:
        loss = sce.forward(dx, dt, **options)
        both = sce.forward_backward(dx, dt, out=out, **options)
        return loss, *both, sce.backward(dx, dt, **options), sce.elementwise(dx, dt)

    calls()  # what is done only once, such as loading the kernels
    torch.cuda.synchronize()
    before = torch.cuda.Event()
    torch.cuda._sleep(_LONG)
    before.record()
    torch.cuda.set_sync_debug_mode("error")  # PyTorch's own waits
    try:
        results = calls()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not before.query(), "a call waited for the device"
    wanted = sce.forward(x, t, **options)
    assert float(results[0]) == float(results[1]) == wanted
    assert same_bits(results[3].cpu().numpy(), sce.backward(x, t, **options))


def test_work_goes_into_the_current_stream(torch: Any) -> None:
    """Before the call: slow work that makes its inputs. After it: work on its results. Both in a
    stream of the caller's, and the default stream stays free."""
    x, t = make_scores(40_001, "float32"), make_targets(40_001, "uint8")
    source, dt = torch.from_numpy(x).cuda(), torch.from_numpy(t).cuda()
    sce.forward_backward(source, dt)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    dx = torch.full_like(source, math.nan)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(_LONG)
        dx.copy_(source)
        loss, gradient = sce.forward_backward(dx, dt)
        doubled = gradient * 2
    stream.synchronize()
    assert float(loss) == sce.forward(x, t)
    assert same_bits(doubled.cpu().numpy(), 2 * sce.backward(x, t))


def test_streams_side_by_side(torch: Any) -> None:
    """Calls that run at the same time have workspaces of their own."""
    count = 4
    x = [make_scores(300_007, "float32", seed) for seed in range(count)]
    t = make_targets(300_007, "uint8")
    dx, dt = [torch.from_numpy(a).cuda() for a in x], torch.from_numpy(t).cuda()
    options = {"ignore_label": 1, "normalization": "valid"}
    wanted = [sce.forward(a, t, **options) for a in x]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(count)]
    losses: list[list[Any]] = [[] for _ in range(count)]
    for _, i in itertools.product(range(50), range(count)):
        with torch.cuda.stream(streams[i]):
            losses[i].append(sce.forward_backward(dx[i], dt, **options)[0])
    torch.cuda.synchronize()
    for found, value in zip(losses, wanted, strict=True):
        assert {float(loss) for loss in found} == {value}


def test_cupy_stream(torch: Any) -> None:
    try:
        cupy = load("cupy").cupy  # type: ignore[attr-defined]
    except Missing as error:
        pytest.skip(str(error))
    x, t = make_scores(100_003, "float32"), make_targets(100_003, "uint8")
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        dx, dt = cupy.asarray(x), cupy.asarray(t)
        torch.cuda._sleep(_LONG // 10)  # in another stream: not to be waited for
        gradient = sce.backward(dx * 1, dt) * 2
        host = gradient.get(stream=stream)
    stream.synchronize()
    assert same_bits(host, 2 * sce.backward(x, t))


@pytest.mark.parametrize(
    "options",
    [
        {"ignore_label": 1, "normalization": "valid", "pos_weight": 2.0},
        {"balance": "batch", "gamma": 2.0, "normalization": "foreground"},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_graph_capture_and_replay(torch: Any, dtype: str, options: dict[str, Any]) -> None:
    """A graph computes anew from what its inputs hold when it is replayed."""
    n = 100_003
    kind = getattr(torch, dtype)
    dx = torch.zeros(n, dtype=kind, device="cuda")
    dt = torch.zeros(n, dtype=torch.uint8, device="cuda")
    out = torch.empty_like(dx)

    def calls() -> tuple[Any, ...]:
        loss, gradient = sce.forward_backward(dx, dt, out=out, **options)
        return loss, gradient, sce.forward(dx, dt), sce.backward(dx, dt, **options)

    aside = torch.cuda.Stream()
    with torch.cuda.stream(aside):
        calls()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, gradient, plain, alone = calls()
    for seed in range(5):
        x, t = make_scores(n, dtype, seed), make_targets(n, "uint8", seed)
        dx.copy_(torch.from_numpy(x))
        dt.copy_(torch.from_numpy(t))
        out.fill_(math.nan)
        graph.replay()
        torch.cuda.synchronize()
        wanted, slopes = sce.forward_backward(x, t, **options)
        assert float(loss) == wanted
        assert float(plain) == sce.forward(x, t)
        assert same_bits(gradient.float().cpu().numpy(), rounded(slopes, dtype))
        assert torch.equal(gradient, alone)


def test_many_threads(lib: Library) -> None:
    """Each with a stream of its own, where the library has one per thread."""
    threads, calls = (3, 4) if EMULATED else (8, 40)
    n = 10_007 if EMULATED else 200_003
    x = [make_scores(n, "float32", seed) for seed in range(threads)]
    t = make_targets(n, "uint8")
    options = {"ignore_label": 1, "normalization": "valid", "pos_weight": 2.0}
    wanted = [sce.forward_backward(a, t, **options) for a in x]
    problems: list[str] = []
    start = threading.Barrier(threads)

    def work(i: int) -> None:
        try:
            torch = getattr(lib, "torch", None)
            stream = torch.cuda.Stream() if torch else None
            context = torch.cuda.stream(stream) if torch else nullcontext()
            with context:
                dx, dt = lib.put(x[i]), lib.put(t)
                start.wait()
                results = [sce.forward_backward(dx, dt, **options) for _ in range(calls)]
                for loss, gradient in results:
                    if float(number(lib, loss)) != wanted[i][0]:
                        problems.append(f"thread {i}: another loss")
                    if not same_bits(lib.get(gradient), wanted[i][1]):
                        problems.append(f"thread {i}: another gradient")
        except Exception as error:
            problems.append(f"thread {i}: {type(error).__name__}: {error}")
            start.abort()

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert problems == []


def test_out_of_memory(torch: Any) -> None:
    """An output that does not fit is an error, and the next call works."""
    dx = torch.zeros(1, device="cuda").expand(2**39)  # 2 TiB for the gradient, 4 bytes for this
    dt = torch.zeros(1, dtype=torch.uint8, device="cuda").expand(2**39)
    with pytest.raises((MemoryError, torch.OutOfMemoryError)):
        sce.backward(dx, dt)
    small = torch.zeros(10, device="cuda")
    assert float(sce.forward(small, small)) == sce.forward(np.zeros(10, "f4"), np.zeros(10, "f4"))
