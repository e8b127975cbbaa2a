"""What goes in, what comes out, and what is refused: layouts, libraries, out=, chunks, messages."""

from __future__ import annotations

import array
import importlib
import pickle
import subprocess
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import sigmoid_ce as sce
from conftest import missing
from sigmoid_ce import arrays

OPERATIONS = ["elementwise", "backward", "forward_backward", "forward"]
DTYPES = [np.float32, np.float64]

# What a call may take from NumPy's allocator beyond its output: objects, not data.
SMALL = 200_000  # bytes; the arrays of the test have 4 million


def data(shape: tuple[int, ...], dtype: Any = np.float32) -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    scores = rng.normal(0, 3, shape).astype(dtype)
    return scores, (rng.random(shape) < 0.4).astype(dtype)


def peer(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        missing(name)


def bits(result: Any) -> list[Any]:
    """Loss and arrays of a result as bytes, for comparisons that are exact."""
    parts = result if isinstance(result, tuple) else (result,)
    return [np.asarray(part).tobytes() for part in parts]


# ---- Layouts ----


def transposed(a: Any) -> Any:
    return np.asfortranarray(a)


def every_other(a: Any) -> Any:
    wide = np.full((*a.shape[:-1], 2 * a.shape[-1]), 7, a.dtype)
    wide[..., ::2] = a
    return wide[..., ::2]


def backwards(a: Any) -> Any:
    return np.ascontiguousarray(a[::-1, :, ::-1])[::-1, :, ::-1]


def unaligned(a: Any) -> Any:
    raw = np.zeros(a.nbytes + 1, np.uint8)[1:]
    view = raw.view(a.dtype) if a.dtype.itemsize == 1 else np.ndarray(a.shape, a.dtype, raw)
    view = view.reshape(a.shape)
    view[...] = a
    return view


def odd_strides(a: Any) -> Any:
    """A field of packed records: strides that are no multiple of the item."""
    records = np.zeros(a.shape, np.dtype([("pad", np.uint8), ("value", a.dtype)]))
    records["value"] = a
    return records["value"]


def read_only(a: Any) -> Any:
    a = a.copy()
    a.flags.writeable = False
    return a


LAYOUTS = [transposed, every_other, backwards, unaligned, odd_strides, read_only]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_layouts_give_the_bits_of_a_copy(operation: str, layout: Any, dtype: Any) -> None:
    call = getattr(sce, operation)
    scores, targets = data((13, 70, 9), dtype)  # two blocks of 4096, the second not full
    weight = np.random.default_rng(3).random(scores.shape).astype(dtype)
    expected = bits(call(scores, targets, weight=weight, pos_weight=2.5))
    for x, t, w in [
        (layout(scores), targets, weight),
        (scores, layout(targets), weight),
        (scores, layout(targets.astype(np.int64)), weight),
        (scores, targets, layout(weight)),
        (layout(scores), layout(targets.astype(np.uint8)), layout(weight)),
    ]:
        before = [a.copy() for a in (x, t, w)]
        assert bits(call(x, t, weight=w, pos_weight=2.5)) == expected
        for a, b in zip((x, t, w), before, strict=True):
            np.testing.assert_array_equal(a, b)


def test_broadcast_inputs() -> None:
    scores = np.broadcast_to(np.float32([[0.5], [-2.0]]), (2, 5000))
    targets = np.broadcast_to(np.uint8(1), (2, 5000))
    expected = sce.forward_backward(scores.copy(), targets.copy())
    assert bits(sce.forward_backward(scores, targets)) == bits(expected)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (5000,), (3, 1, 5), (2, 3, 4, 5, 6, 7)])
def test_shapes(shape: tuple[int, ...]) -> None:
    scores, targets = data(shape)
    scores, targets = np.asarray(scores), np.asarray(targets)
    flat = sce.backward(scores.ravel(), targets.ravel(), normalization="none")
    got = sce.backward(scores, targets, normalization="none")
    assert got.shape == shape
    assert isinstance(got, np.ndarray)
    assert bits(got) == bits(flat)


def test_axes_of_length_one() -> None:
    scores, targets = data((6, 1, 5, 1))
    expected = bits(sce.backward(scores, targets))
    for shape in [(6, 5), (1, 6, 5), (6, 5, 1, 1, 1)]:
        assert bits(sce.backward(scores, targets.reshape(shape))) == expected
        # Without being contiguous too.
        view = every_other(targets.reshape(shape)) if shape[-1] != 1 else targets.reshape(shape)
        assert bits(sce.backward(scores, view)) == expected
    turned = np.asfortranarray(targets.reshape(6, 5))
    assert bits(sce.backward(scores, turned)) == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_dtype", [None, np.bool_, np.uint8, np.int8])
@pytest.mark.parametrize(
    "shape", [(), (1,), (5,), (1, 1, 5), (3, 1, 1), (3, 4, 1), (2, 1, 1, 1), (2, 3, 4, 5)]
)
def test_weight_broadcasts(shape: tuple[int, ...], weight_dtype: Any, dtype: Any) -> None:
    scores, targets = data((2, 3, 4, 5), dtype)
    weight = np.asarray(np.random.default_rng(4).integers(0, 3, shape)).astype(
        weight_dtype or dtype
    )
    full = np.ascontiguousarray(np.broadcast_to(weight, scores.shape)).astype(dtype)
    for operation in OPERATIONS:
        call = getattr(sce, operation)
        assert bits(call(scores, targets, weight=weight)) == bits(
            call(scores, targets, weight=full)
        )


@pytest.mark.parametrize("weight", [2, 2.0, True, np.float32(2), np.float64(2), np.int64(2)])
def test_weight_as_a_number(weight: Any) -> None:
    scores, targets = data((3, 5))
    full = np.full_like(scores, weight)
    expected = bits(sce.forward_backward(scores, targets, weight=full))
    assert bits(sce.forward_backward(scores, targets, weight=weight)) == expected


def test_pos_weight_forms() -> None:
    scores, targets = data((4, 3, 5, 7))
    p = np.array([0.5, 2.0, 3.0])
    expected = bits(sce.backward(scores, targets, pos_weight=p))
    forms = [p.tolist(), tuple(p), p.reshape(3, 1, 1), p.reshape(1, 3, 1, 1), p.astype(np.float32)]
    forms += [np.repeat(p, 2)[::2], p.astype(">f8"), array.array("d", p)]
    for form in forms:
        assert bits(sce.backward(scores, targets, pos_weight=form)) == expected
    number = bits(sce.backward(scores, targets, pos_weight=3.0))
    for form in [3, np.float32(3), np.int8(3), np.array(3.0), [3.0], np.full(3, 3), [[[3.0]]]]:
        assert bits(sce.backward(scores, targets, pos_weight=form)) == number
    for channel in range(3):
        one = sce.backward(
            scores[:, channel], targets[:, channel], pos_weight=p[channel], normalization=4
        )
        got = sce.backward(scores, targets, pos_weight=p)[:, channel]
        np.testing.assert_array_equal(got, one)


# ---- Outputs ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operation", ["elementwise", "backward", "forward_backward"])
def test_new_outputs(operation: str, dtype: Any) -> None:
    for n in (0, 1, 3, 1000, 1_000_000):
        scores, targets = data((n,), dtype)
        result = getattr(sce, operation)(scores, targets)
        result = result[1] if isinstance(result, tuple) else result
        assert type(result) is np.ndarray
        assert result.dtype == dtype
        assert result.flags.c_contiguous
        assert result.flags.writeable
        assert result.ctypes.data % 64 == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [np.copy, transposed, every_other, backwards, unaligned])
@pytest.mark.parametrize("operation", ["elementwise", "backward", "forward_backward"])
def test_out(operation: str, layout: Any, dtype: Any) -> None:
    call = getattr(sce, operation)
    scores, targets = data((13, 70, 9), dtype)
    expected = bits(call(scores, targets, pos_weight=2.0))
    out = layout(np.full_like(scores, np.nan))
    for result in (
        call(scores, targets, pos_weight=2.0, out=out),
        call(layout(scores), targets, pos_weight=2.0, out=out),
    ):
        assert (result[1] if isinstance(result, tuple) else result) is out
        assert bits(result) == expected
    if layout is every_other:
        assert (out.base[..., 1::2] == 7).all(), "written between the elements"
    in_place = layout(scores)
    result = call(in_place, targets, pos_weight=2.0, out=in_place)
    assert bits(result) == expected


def test_out_beside_the_inputs() -> None:
    """Arrays that touch, but share no element, are fine."""
    block = np.zeros((3, 4096), np.float32)
    scores, targets = data((4096,))
    block[0], block[1] = scores, targets
    expected = bits(sce.backward(scores, targets))
    assert bits(sce.backward(block[0], block[1], out=block[2])) == expected
    block[0], block[1] = targets, scores
    assert bits(sce.backward(block[1], block[0], out=block[2])) == expected


def test_interleaved_out() -> None:
    """Bounds that overlap without a common element."""
    scores, targets = data((100, 8))
    expected = bits(sce.backward(scores, targets))
    pair = np.zeros((100, 8, 2), np.float32)
    pair[..., 0] = scores
    assert bits(sce.backward(pair[..., 0], targets, out=pair[..., 1])) == expected
    halves = np.zeros((100, 16), np.float32)
    halves[:, :8] = scores
    assert bits(sce.backward(halves[:, :8], targets, out=halves[:, 8:])) == expected
    np.testing.assert_array_equal(halves[:, :8], scores)


def test_out_that_overlaps() -> None:
    base = np.zeros(300, np.float32)
    scores, targets = base[:100], np.zeros(100, np.float32)
    for out in (base[1:101], base[99:199], base[:200:2], base[99::-1]):
        with pytest.raises(ValueError, match=r"^out: shares memory with scores; pass the scores"):
            sce.backward(scores, targets, out=out)
    out = np.zeros(100, np.float32)
    with pytest.raises(ValueError, match=r"^out: shares memory with targets$"):
        sce.backward(scores, out, out=out)
    with pytest.raises(ValueError, match=r"^out: shares memory with targets$"):
        sce.backward(out, out, out=out)
    with pytest.raises(ValueError, match=r"^out: shares memory with targets$"):
        sce.backward(scores, out.view(np.uint8)[:100], out=out)
    for weight in (out, out[:1]):
        with pytest.raises(ValueError, match=r"^out: shares memory with weight$"):
            sce.backward(scores, targets, weight=weight, out=out)
    square = np.zeros((10, 10), np.float32)
    with pytest.raises(ValueError, match=r"^out: shares memory with scores"):
        sce.backward(square, square.copy(), out=square.T)
    twice = as_strided(base, (10, 10), (4, 4))
    with pytest.raises(ValueError, match=r"^out: expected one address per element, got strides"):
        sce.backward(square, square.copy(), out=twice)
    assert (base == 0).all()


def test_no_temporary_grows_with_the_input() -> None:
    """Through NumPy's allocator, which reports to tracemalloc."""
    scores, targets = data((1000, 1000))
    out = np.empty_like(scores)
    calls: list[Any] = [
        lambda: sce.forward(scores.T, targets, weight=targets[0], check=True),
        lambda: sce.forward_backward(scores[::-1], targets.T, out=out.T),
        lambda: sce.partial(scores.T, targets.T),
        lambda: sce.elementwise(scores, targets.T, pos_weight=2.0, out=out, check=True),
    ]
    for call in calls:
        call()
        tracemalloc.start()
        try:
            call()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < SMALL + 4 * arrays._CHECK_BLOCK * 8


# Staging takes 160 KiB for each of 4 threads; the rest is for their stacks, the allocator and
# code that is read from disk. The smallest array of the test has 64 MiB.
RESIDENT_KIB = 4096

MEMORY = """
import sys
import numpy as np
import sigmoid_ce as sce

def read(name):
    with open("/proc/self/status") as lines:
        return int(next(line.split()[1] for line in lines if line.startswith(name)))

n = 8192
base = np.zeros((n, n), np.float32)
base[...] = np.linspace(-8, 8, n, dtype=np.float32)
x = base.T
t = np.ones((n, n), np.uint8)
out = np.full((n, n), 7, np.float32)
weight = np.linspace(1, 2, n, dtype=np.float32).reshape(n, 1)
pos_weight = np.linspace(0.5, 4, n)
options = {"weight": weight, "pos_weight": pos_weight, "ignore_label": 3}
sce.set_num_threads(4)
calls = {
    "forward": lambda: sce.forward(x, t, **options),
    "backward": lambda: sce.backward(x, t, out=out, normalization="valid", **options),
    "forward_backward": lambda: sce.forward_backward(x, t, out=out, **options),
    "a copy": lambda: np.ascontiguousarray(x),
}
for name, call in calls.items():
    # The peak is that of the memory of this process, and starts again from what is resident now;
    # ru_maxrss would start from the peak of the process that started this one.
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    before = read("VmRSS:")
    call()
    print(name, read("VmHWM:") - before, sep=",")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/clear_refs")
def test_no_memory_grows_with_the_input() -> None:
    """As above, of all memory: 256 MiB of transposed scores, the peak that the system saw."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    growth = {name: int(kib) for name, kib in (v.split(",") for v in done.stdout.splitlines())}
    assert growth.pop("a copy") > 200 * 1024  # the measurement sees what it should see
    assert growth.keys() == {"forward", "backward", "forward_backward"}
    for name, kib in growth.items():
        assert kib < RESIDENT_KIB, name


# ---- Libraries ----


def test_lists_and_numbers() -> None:
    result = sce.elementwise([[0.5, -1.0]], [[0, 1]])
    assert type(result) is np.ndarray
    assert result.dtype == np.float64
    expected = sce.elementwise(np.array([[0.5, -1.0]]), np.array([[0.0, 1.0]]))
    assert bits(result) == bits(expected)
    assert bits(sce.elementwise(((0.5, -1.0),), ((False, True),))) == bits(expected)
    assert sce.forward(0.5, 1) == sce.forward(np.array([0.5]), np.array([1.0]))
    assert sce.forward(np.float32(0.5), np.int64(1)) == sce.forward(
        np.array([0.5], np.float32), np.array([1], np.uint8)
    )
    assert isinstance(sce.forward(0.5, 1), float)


def test_buffers() -> None:
    scores, targets = array.array("f", [0.5, -1.0, 2.0]), bytes([0, 1, 1])
    expected = sce.backward(np.array(scores), np.array([0, 1, 1], np.uint8))
    assert bits(sce.backward(scores, targets)) == bits(expected)
    assert bits(sce.backward(memoryview(scores), bytearray(targets))) == bits(expected)
    out = array.array("f", [0, 0, 0])
    assert sce.backward(scores, targets, out=out) is out
    assert bits(np.array(out)) == bits(expected)
    with pytest.raises(ValueError, match=r"^out: expected an array that can be written"):
        sce.backward(scores, targets, out=memoryview(out).toreadonly())


def test_memory_map(tmp_path: Any) -> None:
    scores, targets = data((100, 7))
    mapped = np.memmap(tmp_path / "scores", np.float32, "w+", shape=scores.shape)
    mapped[...] = scores
    assert bits(sce.backward(mapped, targets)) == bits(sce.backward(scores, targets))


class Exporter:
    """An array that speaks only DLPack."""

    def __init__(self, values: Any, device: tuple[int, int] = (1, 0)) -> None:
        self.values = values
        self.device = device

    def __dlpack__(self, **arguments: Any) -> Any:
        return self.values.__dlpack__(**arguments)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


def test_dlpack() -> None:
    scores, targets = data((20, 3))
    result = sce.backward(Exporter(scores), Exporter(targets.astype(np.int64)))
    assert type(result) is np.ndarray
    assert bits(result) == bits(sce.backward(scores, targets))
    assert np.shares_memory(arrays.view(Exporter(scores), "scores").array, scores)
    message = r"^scores: expected an array on the CPU or on a CUDA GPU, got .*Exporter on DLPack"
    with pytest.raises(TypeError, match=message):
        sce.forward(Exporter(scores, (10, 0)), targets)  # kDLROCM
    with pytest.raises(
        TypeError, match=r"^targets: expected an array on the CPU, as scores are, g"
    ):
        sce.forward(scores, Exporter(targets, (2, 0)))


def test_pytorch() -> None:
    torch = peer("torch")
    scores, targets = data((6, 3, 50))
    x, t = torch.from_numpy(scores), torch.from_numpy(targets)
    p = np.array([1.0, 2.0, 3.0], np.float32)
    expected = bits(sce.backward(scores, targets, pos_weight=p))
    for target in (t, t.bool(), t.long(), t.byte(), targets):
        got = sce.backward(x, target, pos_weight=torch.from_numpy(p).view(3, 1))
        assert isinstance(got, torch.Tensor)
        assert got.dtype == torch.float32
        assert bits(got.numpy()) == expected
    assert type(sce.backward(scores, t)) is np.ndarray
    assert isinstance(sce.forward(x, t, weight=x.abs()), float)
    assert isinstance(sce.elementwise(x, t), torch.Tensor)
    assert isinstance(sce.forward_backward(x, t, check=True)[1], torch.Tensor)
    out = torch.empty_like(x)
    assert sce.backward(x, t, pos_weight=p, out=out) is out
    assert bits(out.numpy()) == expected
    assert sce.backward(x.double(), t.double()).dtype == torch.float64
    turned = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not turned.is_contiguous()
    assert bits(sce.backward(turned, t, pos_weight=p).numpy()) == expected
    # In and out without a copy.
    assert arrays.view(x, "scores").array.ctypes.data == x.data_ptr()
    result = np.zeros(64, np.float32)
    assert arrays.view(x, "scores").restore(result).data_ptr() == result.ctypes.data


def test_pytorch_refusals() -> None:
    torch = peer("torch")
    x = torch.zeros(3)
    cases = [
        (x.clone().requires_grad_(), r"the tensor requires grad; pass scores\.detach\(\)"),
        (torch.zeros(3, device="meta"), "expected a tensor on the CPU or on a CUDA GPU, got one"),
        (x.long(), "expected float16, bfloat16, float32 or float64, got int64"),
        (x.to_sparse(), "expected a dense tensor"),
        (
            torch.zeros(3, dtype=torch.complex64),
            "expected float16, bfloat16, float32 or float64, got complex64",
        ),
    ]
    for scores, message in cases:
        with pytest.raises(TypeError, match=f"^scores: {message}"):
            sce.forward(scores, x)
    with pytest.raises(TypeError, match=r"^out: the tensor requires grad; pass out\.detach\(\)"):
        sce.backward(x, x.clone(), out=x.clone().requires_grad_())


def test_jax() -> None:
    jax = peer("jax")
    jnp = importlib.import_module("jax.numpy")
    scores, targets = data((6, 3, 50))
    x, t = jnp.asarray(scores) * 1, jnp.asarray(targets)
    expected = bits(sce.backward(scores, targets))
    for target in (t, t.astype(bool), t.astype(jnp.int32), t.astype(jnp.uint8), targets):
        got = sce.backward(x, target)
        assert isinstance(got, jax.Array)
        assert got.dtype == jnp.float32
        assert got.shape == x.shape
        assert bits(got) == expected
    assert isinstance(sce.elementwise(x, t), jax.Array)
    assert sce.forward(x, t, weight=jnp.abs(x)) == sce.forward(scores, targets, weight=abs(scores))
    assert bits(sce.backward(x, t, out=np.empty_like(scores))) == expected
    # In and out without a copy.
    assert arrays.view(x, "scores").array.ctypes.data == x.unsafe_buffer_pointer()
    result = sce.cpu.backward(scores, targets)
    restored = arrays.view(x, "scores").restore(result)
    assert restored.unsafe_buffer_pointer() == result.ctypes.data


def test_jax_refusals() -> None:
    jax = peer("jax")
    jnp = importlib.import_module("jax.numpy")
    x = jnp.zeros(3)
    with pytest.raises(TypeError, match=r"^out: JAX arrays are immutable"):
        sce.backward(x, x, out=x)
    with pytest.raises(TypeError, match=r"^scores: JAX tracers have no values; call outside"):
        jax.jit(lambda a: sce.forward(a, a))(x)
    with pytest.raises(
        TypeError,
        match=r"^targets: expected float32 \(the dtype of scores\), bool, .*, got bfloat16",
    ):
        sce.forward(x, x.astype(jnp.bfloat16))


def test_libraries_are_not_imported() -> None:
    code = (
        "import sys, sigmoid_ce as sce; sce.forward([0.5], [1]);"
        "names = ('torch', 'jax', 'tensorflow', 'scipy', 'cuda', 'sigmoid_ce.cuda');"
        "print([m for m in names if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- Refusals ----

X = np.zeros((2, 3), np.float32)
X4 = np.zeros((2, 3, 4, 5), np.float32)
T = np.zeros((2, 3), np.float32)
BIG_ENDIAN = np.dtype(np.float32).newbyteorder(">" if sys.byteorder == "little" else "<")


class Device:
    __cuda_array_interface__: dict[str, Any] = {}  # noqa: RUF012


class Foreign:
    """As TensorFlow's tensors look to the package."""


Foreign.__module__ = "tensorflow.python.framework.ops"

TYPE_ERRORS: list[tuple[dict[str, Any], str]] = [
    (
        {"targets": T.astype(np.float16)},
        "targets: expected float32 (the dtype of scores), bool, uint8, int8, int32 or int64, got "
        "float16",
    ),
    (
        {"scores": X.astype(np.float16), "targets": T.astype(np.float64)},
        "targets: expected float16 (the dtype of scores), float32, bool, uint8, int8, int32 or "
        "int64, got float64",
    ),
    (
        {"scores": X.astype(np.float16), "weight": X},
        "weight: expected float16 (the dtype of scores), bool, uint8 or int8, got float32",
    ),
    (
        {"scores": X.astype(np.float16), "out": X.astype(np.float64)},
        "out: expected float16 (the dtype of scores) or float32, got float64",
    ),
    (
        {"scores": X.astype(np.float16), "targets": [[0.0] * 3] * 2},
        "targets: a list becomes float64, and scores are float16; pass numpy.asarray(targets, ",
    ),
    (
        {"scores": X.astype(np.float16).astype(np.dtype(np.float16).newbyteorder())},
        "scores: expected native byte order, got ",
    ),
    (
        {"scores": np.zeros((2, 3), [("x", np.uint16)])},
        "scores: expected float16, bfloat16, float32 or float64, got [('x', '<u2')]",
    ),
    ({"uncertain": None}, 'uncertain: expected "soft" or "ignore", got NoneType'),
    ({"uncertain": True}, 'uncertain: expected "soft" or "ignore", got bool'),
    (
        {"balance": True},
        'balance: expected "none", "image", "batch" or "batch_mean", got bool',
    ),
    ({"balance": 0}, 'balance: expected "none", "image", "batch" or "batch_mean", got int'),
    (
        {"balance": "batch", "balance_per_channel": 1},
        "balance_per_channel: expected True or False, got int",
    ),
    ({"balance_per_channel": None}, "balance_per_channel: expected True or False, got NoneType"),
    ({"label_smoothing": "0.1"}, "label_smoothing: expected a number, got str"),
    ({"label_smoothing": True}, "label_smoothing: expected a number, got bool"),
    ({"negative_scale": None}, "negative_scale: expected a number, got NoneType"),
    ({"gamma": [2.0]}, "gamma: expected a number, got list"),
    ({"gamma": np.array([2.0, 2.0])}, "gamma: expected a number, got ndarray"),
    ({"gamma": 2j}, "gamma: expected a number, got complex"),
    ({"alpha": True}, "alpha: expected a number, got bool"),
    ({"alpha": "0.25"}, "alpha: expected a number, got str"),
    ({"hessian": None}, "hessian: expected True, False or an array, got NoneType"),
    ({"hessian": 1}, "hessian: expected True, False or an array, got int"),
    (
        {"hessian": np.zeros((2, 3))},
        "hessian: expected float32 (the dtype of scores), got float64",
    ),
    (
        {"scores": X.astype(np.int64)},
        "scores: expected float16, bfloat16, float32 or float64, got int64",
    ),
    (
        {"scores": X.astype(complex)},
        "scores: expected float16, bfloat16, float32 or float64, got complex128",
    ),
    (
        {"scores": X.astype(object)},
        "scores: expected float16, bfloat16, float32 or float64, got object",
    ),
    (
        {"scores": X.astype(np.longdouble)},
        "scores: expected float16, bfloat16, float32 or float64, got ",
    ),
    (
        {"scores": X.astype(BIG_ENDIAN)},
        f'scores: expected native byte order, got {BIG_ENDIAN}; convert with .astype("float32")',
    ),
    ({"scores": np.ma.masked_array(X)}, "scores: masked arrays are not read as such; pass"),
    ({"targets": np.ma.masked_array(T)}, "targets: masked arrays are not read as such; pass"),
    ({"weight": np.ma.masked_array(T)}, "weight: masked arrays are not read as such; pass"),
    (
        {"scores": "text"},
        "scores: expected an array (NumPy, PyTorch, JAX, DLPack, buffer protocol)",
    ),
    ({"scores": None}, "scores: expected an array"),
    ({"scores": {1, 2}}, "scores: expected an array"),
    ({"scores": [["a"]]}, None),  # ValueError of NumPy or TypeError: see below
    ({"scores": [1j]}, "scores: expected a list that becomes a float64 array; "),
    ({"targets": Device()}, "targets: expected an array on the CPU, as scores are, got "),
    ({"weight": Device()}, "weight: expected an array on the CPU, as scores are, got "),
    ({"out": Device()}, "out: expected an array on the CPU, as scores are, got "),
    ({"targets": Foreign()}, "targets: TensorFlow tensors are not read directly; pass targets.nu"),
    (
        {"targets": T.astype(np.float64)},
        "targets: expected float32 (the dtype of scores), bool, uint8, int8, int32 or int64, "
        "got float64",
    ),
    (
        {"scores": X.astype(np.float64)},
        "targets: expected float64 (the dtype of scores), bool, uint8, int8, int32 or int64, "
        "got float32",
    ),
    ({"targets": T.astype(np.int16)}, "targets: expected float32 (the dtype of scores), bool, "),
    ({"targets": T.astype(np.uint64)}, "targets: expected float32 (the dtype of scores), bool, "),
    ({"targets": T.astype(BIG_ENDIAN)}, "targets: expected native byte order, got "),
    (
        {"targets": [[0, 1, 0], [1, 0, 1]]},
        "targets: a list becomes float64, and scores are float32",
    ),
    (
        {"weight": T.astype(np.float64)},
        "weight: expected float32 (the dtype of scores), bool, uint8 or int8, got float64",
    ),
    ({"weight": T.astype(np.int32)}, "weight: expected float32 (the dtype of scores), bool, uint8"),
    ({"weight": "1"}, "weight: expected an array"),
    ({"weight": 1j}, "weight: expected an array"),
    ({"pos_weight": np.array([1j, 1, 1])}, "pos_weight: expected real numbers, got complex128"),
    ({"pos_weight": np.array([None] * 3)}, "pos_weight: expected real numbers, got object"),
    ({"pos_weight": "2"}, "pos_weight: expected an array"),
    ({"ignore_label": 1.0}, "ignore_label: expected an int, got float"),
    ({"ignore_label": True}, "ignore_label: expected an int, got bool"),
    ({"ignore_label": "1"}, "ignore_label: expected an int, got str"),
    ({"normalize": 1}, "normalize: expected True (valid), False (batch_size) or None, got int"),
    (
        {"normalization": True},
        'normalization: expected "full", "valid", "batch_size", "none", "foreground" or a positive '
        "number, got bool",
    ),
    ({"normalization": [1]}, "normalization: expected "),
    ({"loss_weight": "1"}, "loss_weight: expected a number, got str"),
    ({"loss_weight": None}, "loss_weight: expected a number, got NoneType"),
    ({"out": [[0.0] * 3] * 2}, "out: expected an array that can be written, got list"),
    ({"out": 1.0}, "out: expected an array that can be written, got float"),
    ({"out": X.astype(np.float64)}, "out: expected float32 (the dtype of scores), got float64"),
    ({"out": np.ma.masked_array(X.copy())}, "out: masked arrays are not read as such"),
]

VALUE_ERRORS: list[tuple[dict[str, Any], str]] = [
    (
        {"targets": np.zeros((3, 2), np.float32)},
        "targets: expected shape (2, 3), the shape of scores (axes of length 1 aside), got (3, 2)",
    ),
    ({"targets": np.zeros(6, np.float32)}, "targets: expected shape (2, 3), the shape of scores"),
    ({"targets": np.zeros((2, 3, 2), np.float32)}, "targets: expected shape (2, 3), the shape of"),
    ({"targets": np.zeros((2,), np.float32)}, "targets: expected shape (2, 3), the shape of score"),
    ({"targets": np.zeros((), np.float32)}, "targets: expected shape (2, 3), the shape of scores"),
    (
        {"scores": np.zeros(3, np.float32), "targets": np.zeros(0, np.float32)},
        "targets: expected shape (3,), the shape of scores (axes of length 1 aside), got (0,)",
    ),
    (
        {"scores": np.zeros((64, 2), np.float32), "targets": np.zeros((2, 64), np.float32)},
        "targets: expected shape (64, 2), the shape of scores (axes of length 1 aside), "
        "got (2, 64)",
    ),
    (
        {"weight": np.zeros(2, np.float32)},
        "weight: expected a shape that broadcasts to (2, 3), the shape of scores, got (2,)",
    ),
    ({"weight": np.zeros((1, 2, 3), np.float32)}, "weight: expected a shape that broadcasts to"),
    ({"weight": np.zeros((0, 3), np.float32)}, "weight: expected a shape that broadcasts to (2"),
    ({"weight": -1.0}, "weight: expected a finite number >= 0 in float32, got -1.0"),
    ({"weight": np.nan}, "weight: expected a finite number >= 0 in float32, got nan"),
    ({"weight": 1e300}, "weight: expected a finite number >= 0 in float32, got 1e+300"),
    ({"weight": 10**400}, "weight: expected a number that fits a float, got 1000"),
    (
        {"pos_weight": [1.0, 2.0]},
        "pos_weight: expected a number or shape (3,) for scores of shape (2, 3), got shape (2,)",
    ),
    (
        {"scores": X4, "targets": X4.copy(), "pos_weight": np.ones(5)},
        "pos_weight: expected a number or shape (3,) or (3, 1, 1) for scores of shape (2, 3, 4, 5)"
        ", got shape (5,)",
    ),
    (
        {"scores": X4, "targets": X4.copy(), "pos_weight": np.ones((3, 1))},
        "pos_weight: expected a ",
    ),
    (
        {"scores": X4, "targets": X4.copy(), "pos_weight": np.ones((1, 1, 3))},
        "pos_weight: expected a number or shape (3,) or (3, 1, 1)",
    ),
    (
        {"scores": np.zeros(3), "targets": np.zeros(3), "pos_weight": np.ones(3)},
        "pos_weight: expected a number, since scores of shape (3,) have no channel axis (axis 1), "
        "got shape (3,)",
    ),
    ({"scores": 0.5, "targets": 1.0, "pos_weight": [1.0, 2.0]}, "pos_weight: expected a number"),
    ({"pos_weight": -1.0}, "pos_weight: expected finite values >= 0 in float32, got -1.0"),
    ({"pos_weight": [1, np.nan, 1]}, "pos_weight: expected finite values >= 0 in float32, got nan"),
    ({"pos_weight": np.inf}, "pos_weight: expected finite values >= 0 in float32, got inf"),
    ({"pos_weight": 1e39}, "pos_weight: expected finite values >= 0 in float32, got 1e+39"),
    (
        {"normalization": "mean"},
        'normalization: expected "full", "valid", "batch_size", "none", "foreground" or a positive '
        "number, got 'mean'",
    ),
    ({"uncertain": "hard"}, 'uncertain: expected "soft" or "ignore", got "hard"'),
    ({"uncertain": "Soft"}, 'uncertain: expected "soft" or "ignore", got "Soft"'),
    (
        {"balance": "imag"},
        'balance: expected "none", "image", "batch" or "batch_mean", got "imag"',
    ),
    ({"balance": "\ud800"}, 'balance: expected "none", "image", "batch" or "batch_mean", got '),
    (
        {"scores": np.zeros(3), "targets": np.zeros(3), "balance": "image"},
        'balance: expected scores with an axis of images and another one for "image", got shape '
        "(3,)",
    ),
    (
        {"balance_per_channel": True},
        'balance_per_channel: expected False, since balance is "none", got True',
    ),
    (
        {"balance_per_channel": True, "balance": None},
        'balance_per_channel: expected False, since balance is "none", got True',
    ),
    (
        {
            "scores": np.zeros(3),
            "targets": np.zeros(3),
            "balance": "batch",
            "balance_per_channel": True,
        },
        "balance_per_channel: expected scores with a channel axis (axis 1), got shape (3,)",
    ),
    (
        {"label_smoothing": 1},
        "label_smoothing: expected a number of 0 or more and below 1, got 1",
    ),
    ({"label_smoothing": -0.1}, "label_smoothing: expected a number of 0 or more and below 1, got"),
    ({"label_smoothing": np.nan}, "label_smoothing: expected a number of 0 or more and below 1"),
    (
        {"negative_scale": -1.0},
        "negative_scale: expected a number >= 0 that is finite in float32, got -1.0",
    ),
    ({"negative_scale": 1e39}, "negative_scale: expected a number >= 0 that is finite in float32"),
    ({"negative_scale": np.inf}, "negative_scale: expected a number >= 0 that is finite"),
    ({"gamma": -1}, "gamma: expected a number from 0 to 1e6, got -1"),
    ({"gamma": 1e7}, "gamma: expected a number from 0 to 1e6, got 10000000.0"),
    ({"gamma": np.nan}, "gamma: expected a number from 0 to 1e6, got nan"),
    ({"gamma": 10**400}, "gamma: expected a number that fits a float, got 1000"),
    ({"alpha": 1.5}, "alpha: expected a number from 0 to 1, or None, got 1.5"),
    ({"alpha": -0.5}, "alpha: expected a number from 0 to 1, or None, got -0.5"),
    (
        {"hessian": np.zeros((3, 2), np.float32)},
        "hessian: expected shape (2, 3), the shape of scores, got (3, 2)",
    ),
    ({"hessian": read_only(X)}, "hessian: expected an array that can be written, got a read-only"),
    ({"normalization": "VALID"}, "normalization: expected "),
    ({"normalization": 0}, "normalization: expected "),
    ({"normalization": -2.0}, "normalization: expected "),
    ({"normalization": np.nan}, "normalization: expected "),
    ({"normalization": np.inf}, "normalization: expected "),
    ({"ignore_label": 2**63}, "ignore_label: expected an int of 64 bits, got 9223372036854775808"),
    ({"loss_weight": np.nan}, "loss_weight: expected a finite number, got nan"),
    ({"loss_weight": 10**400}, "loss_weight: expected a number that fits a float, got 1000"),
    (
        {"out": np.zeros((3, 2), np.float32)},
        "out: expected shape (2, 3), the shape of scores, got (3, 2)",
    ),
    ({"out": np.zeros((2, 3, 1), np.float32)}, "out: expected shape (2, 3), the shape of scores"),
    ({"out": read_only(X)}, "out: expected an array that can be written, got a read-only one"),
    ({"out": np.broadcast_to(np.float32(0), (2, 3))}, "out: expected an array that can be writt"),
    ({"scores": [[1.0], [2.0, 3.0]]}, "scores: expected a list that becomes a float64 array; "),
]

_ELEMENTS = {
    "pos_weight", "weight", "ignore_label", "uncertain", "label_smoothing", "negative_scale",
    "gamma", "alpha",
}  # fmt: skip
_BALANCE = {"balance", "balance_per_channel"}
_DIVISOR = {"normalization", "normalize"}
ACCEPTS = {
    "forward": _ELEMENTS | _BALANCE | _DIVISOR,
    "backward": _ELEMENTS | _BALANCE | _DIVISOR | {"loss_weight", "out"},
    "elementwise": _ELEMENTS | _BALANCE | {"out"},
    "partial": _ELEMENTS,
}
ACCEPTS["backward_targets"] = ACCEPTS["backward"]
ACCEPTS["forward_backward"] = ACCEPTS["backward"] | {"hessian"}


def refusals(arguments: dict[str, Any], error: Any) -> list[str]:
    """The messages of all functions that take the arguments."""
    scores = arguments.get("scores", X)
    targets = arguments.get("targets", T)
    options = {k: v for k, v in arguments.items() if k not in ("scores", "targets")}
    messages = []
    for name, accepted in ACCEPTS.items():
        if options.keys() <= accepted:
            with pytest.raises(error) as caught:
                getattr(sce, name)(scores, targets, **options)
            messages.append(str(caught.value))
    assert messages
    return messages


@pytest.mark.parametrize(("arguments", "message"), TYPE_ERRORS)
def test_type_errors(arguments: dict[str, Any], message: str | None) -> None:
    for got in refusals(arguments, TypeError if message else (TypeError, ValueError)):
        assert got.startswith(message or "scores: expected a list that becomes a float64 array; ")


@pytest.mark.parametrize(("arguments", "message"), VALUE_ERRORS)
def test_value_errors(arguments: dict[str, Any], message: str) -> None:
    for got in refusals(arguments, ValueError):
        assert got.startswith(message)


def test_native_functions_take_numpy_only() -> None:
    assert sce.cpu.forward(X, T, 2.0, None, 1, "valid") == sce.forward(
        X, T, pos_weight=2.0, ignore_label=1, normalization="valid"
    )
    assert bits(sce.cpu.forward_backward(X, T)) == bits(sce.forward_backward(X, T))
    with pytest.raises(TypeError, match=r"^scores: expected a NumPy array, got list$"):
        sce.cpu.forward([0.5], T)
    with pytest.raises(TypeError, match=r"^targets: expected a NumPy array, got NoneType$"):
        sce.cpu.forward(X, None)
    with pytest.raises(TypeError, match=r"^weight: expected a NumPy array or a number, got list$"):
        sce.cpu.forward(X, T, weight=[1.0])


def test_data_is_never_an_error() -> None:
    values = np.array([np.nan, np.inf, -np.inf, 0, 1, -1, 3e38, 1e-45], np.float32)
    scores, targets, weight = (a.ravel() for a in np.meshgrid(values, values, values))
    for operation in OPERATIONS:
        getattr(sce, operation)(scores, targets, weight=weight, pos_weight=2.0, ignore_label=1)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_check(operation: str) -> None:
    call = getattr(sce, operation)
    scores, targets = data((300, 300))
    weight = np.abs(scores)
    call(scores, targets, weight=weight, check=True)
    call(scores.tolist(), targets.tolist(), weight=2.0, pos_weight=3.0, check=True)

    for bad in (7.0, -1e-30, np.nan, np.inf):
        t = targets.copy()
        t[250, 3] = bad
        call(scores, t)
        message = (
            r"^targets: expected values in \[0, 1\] with check=True, got .* at index \(250, 3\)$"
        )
        with pytest.raises(ValueError, match=message):
            call(scores, t, check=True)
        with pytest.raises(ValueError, match=message):
            call(scores, transposed(t), check=True)
    for bad in (-1.0, np.nan, np.inf, -np.inf):
        w = weight.copy()
        w[299, 299] = bad
        call(scores, targets, weight=w)
        message = r"^weight: expected finite values >= 0 with check=True, got .*\(299, 299\)$"
        with pytest.raises(ValueError, match=message):
            call(scores, targets, weight=w, check=True)
    signed = np.full((300, 300), -3, np.int8)
    with pytest.raises(ValueError, match=r"^weight: .* got -3 at index \(0, 0\)$"):
        call(scores, targets, weight=signed, check=True)


@pytest.mark.parametrize(
    ("label", "values"), [(255, [0, 1, 255]), (-1, [0.5, -1.0, -1.9]), (2, [1.0, 2.5, 2.0])]
)
def test_check_leaves_ignored_targets_alone(label: int, values: list[float]) -> None:
    targets = np.array(values, np.uint8 if label == 255 else np.float64)
    scores = np.zeros(3)
    sce.forward(scores, targets, ignore_label=label, check=True)
    with pytest.raises(ValueError, match=r"^targets: expected values in"):
        sce.forward(scores, targets, check=True)
    with pytest.raises(ValueError, match=r"^targets: expected values in"):
        sce.forward(scores, targets, ignore_label=7, check=True)


# ---- Partial ----


def test_partial() -> None:
    scores, targets = data((40, 3, 71))
    targets[targets == 0] = np.random.default_rng(5).choice([0, 9], int((targets == 0).sum()))
    part = sce.partial(scores, targets, ignore_label=9)
    assert part.n_total == scores.size
    assert part.n_valid == int((targets != 9).sum())
    for normalization in ("full", "valid", "none", 7.5):
        expected = sce.forward(scores, targets, ignore_label=9, normalization=normalization)
        assert part.loss(normalization) == expected
        assert part.loss(normalization=normalization) == expected
    assert part.loss(batch_size=40) == sce.forward(scores, targets, ignore_label=9)
    assert part.loss("none") == part.sum
    assert part.loss("batch_size", batch_size=0) == part.sum
    assert (
        repr(part) == f"Partial(sum={part.sum!r}, n_valid={part.n_valid}, n_total={part.n_total})"
    )


def test_partial_adds_up() -> None:
    scores, targets = data((20000,))
    whole = sce.partial(scores, targets)
    parts = [
        sce.partial(scores[i : i + 4096], targets[i : i + 4096]) for i in range(0, 20000, 4096)
    ]
    assert sce.combine(parts) == whole
    assert sce.combine(reversed(parts)) == whole
    assert sum(parts[1:], parts[0]) == whole
    assert sum(parts, sce.Partial()) == whole
    assert sce.combine([]) == sce.Partial()
    assert sce.Partial().sum == 0
    assert parts[0] != parts[1]
    assert parts[0] != "a part"
    words = np.sum([part.to_words() for part in parts], axis=0)
    assert sce.Partial.from_words(words) == whole
    before = parts[0].to_words()
    parts[0] + parts[1]
    np.testing.assert_array_equal(parts[0].to_words(), before)
    with pytest.raises(TypeError, match=r"^parts: expected Partial objects, got int$"):
        sce.combine([whole, 1])
    with pytest.raises(TypeError, match="unsupported operand"):
        whole + 1


def test_partial_words_and_pickle() -> None:
    scores, targets = data((5000,))
    scores[:3] = [np.inf, np.nan, -np.inf]
    for part in (sce.Partial(), sce.partial(scores, targets), sce.partial(-scores, targets)):
        words = part.to_words()
        assert (words.dtype, words.shape) == (np.int64, (73,))
        assert sce.Partial.from_words(words) == part
        assert sce.Partial.from_words(every_other(words)) == part
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            copy = pickle.loads(pickle.dumps(part, protocol))
            assert copy == part
            assert bits(copy.sum) == bits(part.sum)
    for wrong in (np.zeros(72, np.int64), np.zeros(73), np.zeros((73, 1), np.int64)):
        with pytest.raises(
            ValueError, match=r"^words: expected an int64 array of shape \(73,\), got"
        ):
            sce.Partial.from_words(wrong)


def test_partial_loss_errors() -> None:
    part = sce.partial(X, T)
    with pytest.raises(ValueError, match=r"^batch_size: expected an int, since normalization"):
        part.loss()
    with pytest.raises(ValueError, match=r"^batch_size: expected an int >= 0, got -1"):
        part.loss(batch_size=-1)
    with pytest.raises(TypeError, match=r"^batch_size: expected an int, got float"):
        part.loss(batch_size=2.0)
    with pytest.raises(ValueError, match=r"^batch_size: expected None unless normalization is"):
        part.loss("full", batch_size=2)
    with pytest.raises(ValueError, match=r"^normalization: expected "):
        part.loss("mean")


@pytest.mark.parametrize("layout", [np.ascontiguousarray, every_other, unaligned])
@pytest.mark.parametrize("cut", [4096, 8192])
def test_chunks_of_a_shape(cut: int, layout: Any) -> None:
    """Flat pieces at multiples of 4096, with channels and weights of the whole."""
    shape = (9, 3, 17, 50)
    scores, targets = data(shape)
    rng = np.random.default_rng(6)
    p = np.array([0.5, 2.0, 3.0])
    for weight in (
        rng.random((3, 1, 50)).astype(np.float32),
        rng.random(shape).astype(np.float32),
        np.asfortranarray(rng.random(shape).astype(np.float32)),
        2.5,
    ):
        whole = sce.partial(scores, targets, pos_weight=p, weight=weight)
        parts = [
            sce.partial(
                layout(scores.ravel()[i : i + cut]),
                layout(targets.ravel()[i : i + cut].astype(np.uint8)),
                pos_weight=p,
                weight=weight,
                first_index=i,
                shape=shape,
            )
            for i in range(0, scores.size, cut)
        ]
        assert sce.combine(parts) == whole
    assert sce.partial(transposed(scores), targets, pos_weight=p, shape=shape) == sce.partial(
        scores, targets, pos_weight=p
    )


@pytest.mark.parametrize("layout", [np.ascontiguousarray, transposed, every_other, backwards])
def test_chunks_of_rows(layout: Any) -> None:
    """Without a shape: rows of axis 0, with the channels and the weights of the chunk."""
    scores, targets = data((8, 64, 16))  # 4 rows are 4096 elements
    weight = np.random.default_rng(6).random((8, 1, 16)).astype(np.float32)
    p = np.linspace(0, 3, 64)
    whole = sce.partial(scores, targets, pos_weight=p, weight=weight)
    parts = [
        sce.partial(
            layout(scores[i : i + 4]),
            layout(targets[i : i + 4]),
            pos_weight=p,
            weight=layout(weight[i : i + 4]),
            first_index=i * 64 * 16,
        )
        for i in (0, 4)
    ]
    assert sce.combine(parts) == whole
    rows = [
        sce.partial(layout(scores[i : i + 1]), targets[i], first_index=1024 * i) for i in (0, 7)
    ]
    assert rows[0] == sce.partial(scores[0], targets[0])
    assert rows[1] == sce.partial(scores[7], targets[7])


@pytest.mark.parametrize(
    ("scores", "options", "error", "message"),
    [
        (np.zeros(6), {"first_index": -1}, ValueError, "first_index: expected an int >= 0, got -1"),
        (np.zeros(6), {"first_index": 1.0}, TypeError, "first_index: expected an int, got float"),
        (
            np.zeros((2, 3)),
            {"first_index": 4},
            ValueError,
            "first_index: expected a multiple of the 3 elements of a row, got 4 for scores of "
            "shape (2, 3); give the whole array's shape",
        ),
        (np.zeros(()), {"first_index": 1}, ValueError, "first_index: expected a multiple of"),
        (np.zeros(6), {"shape": 6}, TypeError, "shape: expected a tuple of ints >= 0, got int"),
        (np.zeros(6), {"shape": (2, -3)}, ValueError, "shape: expected a tuple of ints >= 0, got"),
        (np.zeros(6), {"shape": (2, 3.0)}, TypeError, "shape: expected an int, got float"),
        (np.zeros(1), {"shape": (2**40,) * 2}, ValueError, "shape: more elements than 64 bits"),
        (
            np.zeros(6),
            {"shape": (2, 5), "first_index": 5},
            ValueError,
            "shape: expected at least first_index + scores.size = 5 + 6 elements, got 10 in (2, 5)",
        ),
        (
            np.zeros((3, 2)).T,
            {"shape": (5, 3)},
            ValueError,
            "scores: expected a chunk with one axis or contiguous in C order, got shape (2, 3)",
        ),
        (
            np.zeros(6),
            {"shape": (5, 3), "weight": np.ones(6)},
            ValueError,
            "weight: expected a shape that broadcasts to (5, 3), the whole shape, got (6,)",
        ),
        (
            np.zeros(6),
            {"shape": (5, 3), "pos_weight": np.ones(6)},
            ValueError,
            "pos_weight: expected a number or shape (3,) for scores of shape (5, 3), got shape (6",
        ),
    ],
)
def test_chunk_errors(scores: Any, options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error) as caught:
        sce.partial(scores, np.zeros(scores.shape), **options)
    assert str(caught.value).startswith(message)


# ---- The layer, settings ----


def test_layer() -> None:
    scores, targets = data((10, 3))
    options: dict[str, Any] = {"pos_weight": [1.0, 2.0, 3.0], "weight": 2.0, "ignore_label": 1}
    layer = sce.SigmoidCrossEntropyLoss(**options, normalization="valid", loss_weight=0.5)
    with pytest.raises(RuntimeError, match=r"^backward: call forward first$"):
        layer.backward()
    expected = sce.forward_backward(
        scores, targets, **options, normalization="valid", loss_weight=0.5
    )
    assert layer.forward(scores, targets) == expected[0]
    assert bits(layer.backward()) == bits(expected[1])
    out = np.empty_like(scores)
    assert layer.backward(out=out) is out
    assert bits(out) == bits(expected[1])
    layer.forward(scores[:5], targets[:5])
    assert layer.backward().shape == (5, 3)
    with pytest.raises(ValueError, match=r"^targets: "):
        layer.forward(scores, targets[:5])
    assert layer.backward().shape == (5, 3), "a forward that failed leaves the last one in place"


def test_info() -> None:
    info = sce.info()
    assert info["version"] == sce.__version__
    assert info["isa"] == sce.get_isa() in info["available_isas"] == sce.available_isas()
    assert "scalar" in info["available_isas"]
    assert info["num_threads"] == sce.get_num_threads() >= 1
    assert info["numpy"] == np.__version__
    assert info["compiler"].split()[0] in ("gcc", "clang")


def test_settings() -> None:
    default = sce.get_num_threads()
    sce.set_num_threads(3)
    assert sce.get_num_threads() == 3
    sce.set_num_threads(0)
    assert sce.get_num_threads() == default
    for wrong in (-1, 2**31, 2**40, -(2**40)):
        with pytest.raises(ValueError, match=rf"^n: expected .*, got {wrong}$"):
            sce.set_num_threads(wrong)
    with pytest.raises(TypeError, match=r"^n: expected an int, got float$"):
        sce.set_num_threads(2.0)
    best = sce.get_isa()
    for name in sce.available_isas():
        sce.set_isa(name)
        assert sce.get_isa() == name
    sce.set_isa(None)
    assert sce.get_isa() == best
    with pytest.raises(
        ValueError, match=r"^name: expected one of \".*\"scalar\" or None, got 'mmx'$"
    ):
        sce.set_isa("mmx")
    with pytest.raises(TypeError, match=r"^name: expected a str or None, got int$"):
        sce.set_isa(2)
    assert sce.get_isa() == best
