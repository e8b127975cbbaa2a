"""float16 and bfloat16 scores on the CPU: computed in float32, rounded once, in any library."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest

import sigmoid_ce as sce
from sigmoid_ce import arrays

ml_dtypes = pytest.importorskip("ml_dtypes")
HALVES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
halves = pytest.mark.parametrize("dtype", HALVES, ids=str)

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "number": {"weight": 0.1, "pos_weight": 2.5},  # 0.1 in float32, not in 16 bits
    "ignored": {"ignore_label": 1, "normalization": "valid"},
    "focal": {"gamma": 2.0, "alpha": 0.25, "label_smoothing": 0.1},
    "balanced": {"balance": "image", "uncertain": "ignore", "normalization": "foreground"},
}


def half_bits(a: Any) -> Any:
    """As integers, NaNs alike."""
    a = np.ascontiguousarray(a)
    found = a.view(np.uint16).copy()
    found[np.isnan(a.astype(np.float32))] = 0x7FFF
    return found


def data(shape: tuple[int, ...], dtype: Any) -> tuple[Any, Any]:
    rng = np.random.default_rng(2)
    x = rng.normal(0, 4, shape).astype(dtype)
    t = np.where(rng.random(shape) < 0.7, rng.random(shape) < 0.4, rng.random(shape))
    return x, t.astype(dtype)


def results(x: Any, t: Any, **options: Any) -> dict[str, Any]:
    loss, gradient, hessian = sce.forward_backward(x, t, hessian=True, **options)
    elements = {k: v for k, v in options.items() if k != "normalization"}
    return {
        "forward": sce.forward(x, t, **options),
        "loss": loss,
        "gradient": gradient,
        "hessian": hessian,
        "backward": sce.backward(x, t, **options),
        "targets": sce.backward_targets(x, t, **options),
        "elementwise": sce.elementwise(x, t, **elements),
    }


def assert_rounded(got: dict[str, Any], wide: dict[str, Any], dtype: Any, what: str) -> None:
    """Losses equal; arrays are those of float32, rounded once."""
    for name, value in wide.items():
        if isinstance(value, float):
            assert got[name] == value, (what, name)
        else:
            with np.errstate(over="ignore", under="ignore"):
                expected = value.astype(dtype)
            assert got[name].dtype == dtype
            np.testing.assert_array_equal(
                half_bits(got[name]), half_bits(expected), f"{what}, {name}"
            )


@halves
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_rounded_once(dtype: Any, options: dict[str, Any]) -> None:
    x, t = data((4, 3, 1501), dtype)
    wide = x.astype(np.float32), t.astype(np.float32)
    assert_rounded(results(x, t, **options), results(*wide, **options), dtype, "own targets")
    assert_rounded(results(x, wide[1], **options), results(*wide, **options), dtype, "float32")
    for integer in (np.bool_, np.uint8, np.int8, np.int32, np.int64):
        labels = (wide[1] == 1).astype(integer)
        assert_rounded(
            results(x, labels, **options),
            results(wide[0], labels.astype(np.float32), **options),
            dtype,
            str(integer),
        )
    weight = np.random.default_rng(3).integers(0, 9, (3, 1)) / 4
    if "weight" not in options:
        for kind in (dtype, np.uint8, np.bool_):
            got = results(x, t, weight=weight.astype(kind), **options)
            same_weight = weight.astype(kind).astype(np.float32)
            assert_rounded(got, results(*wide, weight=same_weight, **options), dtype, "weight")


@halves
def test_every_score(dtype: Any) -> None:
    x = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    for target in (0, 1):
        t = np.full(x.shape, target, np.uint8)
        with np.errstate(all="ignore"):  # NaN and infinities
            wide = results(x.astype(np.float32), t, normalization="none")
        got = results(x, t, normalization="none")
        for name in ("forward", "loss"):
            assert np.isnan(got.pop(name))
            assert np.isnan(wide.pop(name))
        assert_rounded(got, wide, dtype, f"target {target}")


@halves
def test_instruction_sets_and_threads(dtype: Any) -> None:
    x, t = data((5, 4, 5003), dtype)
    for name, options in OPTIONS.items():
        sce.set_isa("scalar")
        sce.set_num_threads(1)
        wanted = results(x, t, **options)
        for isa in sce.available_isas():
            sce.set_isa(isa)
            for threads in (1, 3):
                sce.set_num_threads(threads)
                for key, value in results(x, t, **options).items():
                    assert np.asarray(value).tobytes() == np.asarray(wanted[key]).tobytes(), (
                        name,
                        isa,
                        threads,
                        key,
                    )


@halves
def test_layouts(dtype: Any) -> None:
    x, t = data((6, 5, 900), dtype)
    expected = half_bits(sce.backward(x, t))
    turned = np.asfortranarray(x), np.asfortranarray(t)
    np.testing.assert_array_equal(half_bits(sce.backward(*turned)), expected)
    memory = np.empty(x.nbytes + 1, np.uint8)[1:]
    odd = memory.view(dtype).reshape(x.shape)
    odd[...] = x
    np.testing.assert_array_equal(half_bits(sce.backward(odd, t)), expected)
    np.testing.assert_array_equal(half_bits(sce.backward(odd, t, out=odd)), expected)
    wide = np.zeros((6, 5, 1800), dtype)
    place = wide[..., ::2]
    assert sce.backward(turned[0], t, out=place) is place
    np.testing.assert_array_equal(half_bits(place), expected)
    assert not wide[..., 1::2].any()
    place[...] = x
    sce.backward(place, t, out=place)
    np.testing.assert_array_equal(half_bits(place), expected)


@halves
def test_out_may_be_float32(dtype: Any) -> None:
    x, t = data((6, 5, 900), dtype)
    wide = x.astype(np.float32), t.astype(np.float32)
    expected = sce.backward(*wide)
    hessian = sce.forward_backward(*wide, hessian=True)[2]
    out, second = np.empty_like(expected), np.empty((6, 5, 1800), np.float32)[..., ::2]
    assert sce.backward(x, t, out=out) is out
    np.testing.assert_array_equal(out, expected)
    got = sce.forward_backward(x, t, out=out, hessian=second)
    assert got[2] is second
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(second, hessian)
    sce.elementwise(x, t, out=second)
    np.testing.assert_array_equal(second, sce.elementwise(*wide))
    sce.backward_targets(x, t, out=out)
    np.testing.assert_array_equal(out, sce.backward_targets(*wide))
    other = HALVES[1 - HALVES.index(dtype)]
    with pytest.raises(TypeError, match=rf"^out: expected {dtype} .* or float32, got {other}"):
        sce.backward(x, t, out=np.empty(x.shape, other))
    memory = np.zeros(x.size, np.float32)
    inside = memory.view(dtype)[: x.size].reshape(x.shape)
    inside[...] = x
    with pytest.raises(ValueError, match=r"^out: shares memory with scores"):
        sce.backward(inside, t, out=memory.reshape(x.shape))


@halves
def test_chunks(dtype: Any) -> None:
    x, t = data((4, 3, 4096), dtype)
    weight = np.arange(1, 4).reshape(3, 1).astype(dtype)
    options: dict[str, Any] = {"pos_weight": np.array([1.0, 2, 3]), "weight": weight, "gamma": 1.0}
    whole = sce.partial(x, t, **options)
    gradient = sce.backward(x, t, normalization=7, **options)
    flat_x, flat_t = x.ravel(), t.ravel()
    parts = []
    for first in range(0, x.size, 8192):
        cut = slice(first, first + 8192)
        part, piece = sce.partial_backward(
            flat_x[cut], flat_t[cut], 7, first_index=first, shape=x.shape, **options
        )
        parts.append(part)
        np.testing.assert_array_equal(half_bits(piece), half_bits(gradient.ravel()[cut]))
    assert sce.combine(parts) == whole
    options["weight"] = weight.astype(np.float32)
    assert whole == sce.partial(x.astype(np.float32), t.astype(np.float32), **options)


@halves
def test_reference(dtype: Any) -> None:
    x, t = data((4, 300), dtype)
    for options in OPTIONS.values():
        got, wanted = sce.backward(x, t, **options), sce.reference.backward(x, t, **options)
        # Half an ulp of the rounding, and eps of float32, which is far below it.
        eps = float(ml_dtypes.finfo(dtype).eps)
        np.testing.assert_allclose(got.astype(float), wanted, rtol=0.6 * eps, atol=1e-6)


# ---- Libraries ----


def test_pytorch() -> None:
    torch = pytest.importorskip("torch")
    for dtype, name in zip((torch.float16, torch.bfloat16), HALVES, strict=True):
        x, t = data((6, 40), name)
        xs = torch.from_numpy(x.astype(np.float32)).to(dtype)
        ts = torch.from_numpy(t.astype(np.float32)).to(dtype)
        expected = sce.backward(x, t).astype(np.float32)
        for targets in (ts, ts.float()):
            got = sce.backward(xs, targets)
            assert got.dtype == dtype
            np.testing.assert_array_equal(got.float().numpy(), expected)
        assert sce.forward(xs, ts) == sce.forward(x, t)
        assert sce.forward(xs, ts, check=True, weight=ts) == sce.forward(x, t, weight=t)
        out = torch.empty_like(xs)
        assert sce.backward(xs, ts, out=out) is out
        np.testing.assert_array_equal(out.float().numpy(), expected)
        wide = torch.empty(xs.shape)
        assert sce.backward(xs, ts, out=wide) is wide
        wide_inputs = x.astype(np.float32), t.astype(np.float32)
        np.testing.assert_array_equal(wide.numpy(), sce.backward(*wide_inputs))
        # Both ways without a copy.
        assert arrays.view(xs, "scores").array.ctypes.data == xs.data_ptr()
        fresh = sce.cpu.backward(arrays.view(xs, "scores").array, t)
        assert arrays.view(xs, "scores").restore(fresh).data_ptr() == fresh.ctypes.data
        turned = xs.t()
        np.testing.assert_array_equal(
            sce.elementwise(turned, ts.t()).float().numpy(),
            sce.elementwise(xs, ts).float().numpy().T,
        )


def test_pytorch_without_ml_dtypes() -> None:
    pytest.importorskip("torch")
    code = (
        "import sys; sys.modules['ml_dtypes'] = None\n"
        "import torch, sigmoid_ce as sce\n"
        "x = torch.linspace(-5, 5, 100, dtype=torch.bfloat16)\n"
        "t = (x > 1).bfloat16()\n"
        "g = sce.backward(x, t, check=True)\n"
        "assert g.dtype == torch.bfloat16\n"
        "assert torch.equal(g, sce.backward(x.float(), t.float()).bfloat16())\n"
        "out = torch.empty_like(x); sce.elementwise(x, t, out=out, weight=x.abs())\n"
        "assert torch.equal(out, sce.elementwise(x.float(), t.float(), weight=x.abs().float())"
        ".bfloat16())\n"
        "print('good')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "good", done.stderr


def test_jax() -> None:
    jax = pytest.importorskip("jax")
    jnp = jax.numpy
    for dtype, name in zip((jnp.float16, jnp.bfloat16), HALVES, strict=True):
        x, t = data((6, 40), name)
        xs, ts = jnp.asarray(x), jnp.asarray(t)
        got = sce.backward(xs, ts)
        assert isinstance(got, jax.Array)
        assert got.dtype == dtype
        np.testing.assert_array_equal(half_bits(np.asarray(got)), half_bits(sce.backward(x, t)))
        assert sce.forward(xs, ts, pos_weight=2.0) == sce.forward(x, t, pos_weight=2.0)


class Exporter:
    """Speaks DLPack, and nothing else."""

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor

    def __dlpack__(self, **options: Any) -> Any:
        return self._tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._tensor.__dlpack_device__()


def test_dlpack() -> None:
    torch = pytest.importorskip("torch")
    for dtype, name in zip((torch.float16, torch.bfloat16), HALVES, strict=True):
        x, t = data((6, 40), name)
        xs, ts = (torch.from_numpy(a.astype(np.float32)).to(dtype) for a in (x, t))
        expected = half_bits(sce.backward(x, t))
        got = sce.backward(Exporter(xs), Exporter(ts))
        assert got.dtype == name
        np.testing.assert_array_equal(half_bits(got), expected)
        got = sce.backward(Exporter(xs.t()), Exporter(ts.t()), normalization=6)
        np.testing.assert_array_equal(half_bits(got), expected.T)
        view = arrays.view(Exporter(xs[1:]), "scores").array
        assert view.ctypes.data == xs[1:].data_ptr()
        del xs, ts  # the view keeps the memory
        np.testing.assert_array_equal(view.view(np.uint16), x[1:].view(np.uint16))
        assert sce.elementwise(Exporter(torch.zeros((0, 3), dtype=dtype)), t[:0, :3]).shape == (
            0,
            3,
        )
    with pytest.raises(TypeError, match=r"^scores: .*Exporter cannot be read through DLPack"):
        sce.forward(Exporter(torch.zeros(3, requires_grad=True)), t)
    with pytest.raises(TypeError, match=r"^scores: .*Exporter cannot be read through DLPack"):
        sce.forward(Exporter(torch.zeros(3, dtype=torch.float8_e5m2)), t)


# ---- Refusals, checks, memory ----


@halves
def test_checks(dtype: Any) -> None:
    x, t = data((3, 70), dtype)
    sce.forward(x, t, check=True)
    t[1, 5] = 2
    with pytest.raises(ValueError, match=r"^targets: expected values in \[0, 1\].* \(1, 5\)"):
        sce.forward(x, t, check=True)
    sce.forward(x, t, check=True, ignore_label=2)
    sce.forward(x, t, check=True, uncertain="ignore")
    weight = np.ones(x.shape, dtype)
    weight[2, 2] = np.inf
    with pytest.raises(ValueError, match=r"^weight: expected finite values >= 0 .* \(2, 2\)"):
        sce.forward(x, np.zeros_like(x), weight=weight, check=True)


def test_refusals() -> None:
    half, brain = (np.zeros((2, 3), dtype) for dtype in HALVES)
    single = np.zeros((2, 3), np.float32)
    for scores, targets, name in ((half, brain, "bfloat16"), (brain, half, "float16")):
        with pytest.raises(TypeError, match=rf"^targets: expected .*, got {name}$"):
            sce.forward(scores, targets)
    with pytest.raises(TypeError, match=r"^targets: expected float32 .*, got bfloat16$"):
        sce.forward(single, brain)
    with pytest.raises(TypeError, match=r"^targets: a list becomes float64, and scores are bfl"):
        sce.forward(brain, [[0.0] * 3] * 2)
    with pytest.raises(TypeError, match=r"^weight: expected bfloat16 \(the dtype of scores\), boo"):
        sce.forward(brain, brain.copy(), weight=single)
    with pytest.raises(ValueError, match=r"^weight: .* in float32, got 1e\+39"):
        sce.forward(half, half.copy(), weight=1e39)


@halves
def test_no_copies(dtype: Any) -> None:
    """The output, and objects."""
    x, t = data((1 << 20,), dtype)
    sce.backward(x, t)
    tracemalloc.start()
    try:
        sce.backward(x, t)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < x.nbytes + 200_000
