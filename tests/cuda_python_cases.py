"""The Python side of the GPU, on the emulated GPU: what test_cuda_python.py runs in a process with
the package of emulated.py. Device memory is host memory there, so arrays of NumPy that say they are
on a GPU will do.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import math
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import digest
import sigmoid_ce as sce
from conftest import missing
from sigmoid_ce import cli, devices
from test_arrays import ACCEPTS, VALUE_ERRORS, X, every_other, transposed

OPERATIONS = ["elementwise", "backward", "forward_backward", "forward"]
DTYPES = [np.float32, np.float64]
HALVES = [np.float16, ml_dtypes.bfloat16]
INTEGERS = [np.bool_, np.uint8, np.int8, np.int32, np.int64]
CUDA = 2  # kDLCUDA
LEGACY = 1  # the legacy default stream, as DLPack counts

# ---- Arrays that say they are on a GPU ----


class Tensor(ctypes.Structure):
    """DLTensor, as far as it is changed here."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("type_code", ctypes.c_uint8),
    )


VERSIONED_TENSOR = 32  # offset of the DLTensor in DLManagedTensorVersioned
BFLOAT = 4  # kDLBfloat

pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
pointer_of.restype = ctypes.c_void_p
pointer_of.argtypes = [ctypes.py_object, ctypes.c_char_p]


class GpuArray:
    """Speaks DLPack. Keeps the streams that were passed."""

    def __init__(self, values: Any, device: int = 0) -> None:
        self.values = np.asarray(values)
        self.gpu = device
        self.streams: list[int] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.gpu

    def __dlpack__(self, *, stream: int, **options: Any) -> Any:
        self.streams.append(stream)
        values = self.values
        is_bfloat = values.dtype == ml_dtypes.bfloat16
        if is_bfloat:
            values = values.view(np.uint16)
        if values.flags.writeable:
            capsule = values.__dlpack__()
            tensor = Tensor.from_address(pointer_of(capsule, b"dltensor"))
        else:
            capsule = values.__dlpack__(max_version=(1, 0))
            managed = pointer_of(capsule, b"dltensor_versioned")
            tensor = Tensor.from_address(managed + VERSIONED_TENSOR)
        tensor.device_type, tensor.device_id = CUDA, self.gpu
        if is_bfloat:
            tensor.type_code = BFLOAT
        return capsule


def gpu(value: Any, device: int = 0) -> Any:
    """Arrays in it become arrays on the GPU."""
    if isinstance(value, dict):
        return {k: gpu(v, device) for k, v in value.items()}
    return GpuArray(value, device) if isinstance(value, np.ndarray) else value


def host(result: Any) -> Any:
    if isinstance(result, tuple):
        return tuple(host(part) for part in result)
    if isinstance(result, sce.cuda.DeviceArray):
        return result.copy_to_host()
    return result.values if isinstance(result, GpuArray) else result


def bits(result: Any) -> list[Any]:
    parts = result if isinstance(result, tuple) else (result,)
    return [np.asarray(part).tobytes() for part in map(host, parts)]


def data(shape: tuple[int, ...], dtype: Any = np.float32) -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    scores = np.asarray(rng.normal(0, 3, shape)).astype(dtype)
    return scores, np.asarray(rng.random(shape) < 0.4).astype(dtype)


@contextlib.contextmanager
def machine(kind: str) -> Iterator[None]:
    """Another emulated machine: see tests/native/emulation/cuda_runtime.h."""
    os.environ["SIGMOID_CE_EMULATED_GPU"] = kind
    try:
        yield
    finally:
        del os.environ["SIGMOID_CE_EMULATED_GPU"]


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Device and stream of the native calls."""
    seen: list[tuple[int, int]] = []
    native = devices.native()

    def recording(function: Callable[..., None]) -> Callable[..., None]:
        def call(place: tuple[int, int, int], *arguments: Any) -> None:
            seen.append(place[:2])
            function(place, *arguments)

        return call

    for name in OPERATIONS:
        monkeypatch.setattr(native, name, recording(getattr(native, name)))
    return seen


def both(operation: str, scores: Any, targets: Any, **options: Any) -> None:
    """Equal bits on the CPU and on the GPU."""
    call = getattr(sce, operation)
    expected = bits(call(scores, targets, **options))
    assert bits(call(gpu(scores), gpu(targets), **gpu(options))) == expected


# ---- The bits of the CPU ----


class OnTheGpu:
    """What digest.py asks of the package."""

    Partial = sce.Partial

    def __getattr__(self, name: str) -> Any:
        function = getattr(sce, name)

        def call(scores: Any, targets: Any, **options: Any) -> Any:
            result = host(function(gpu(scores), gpu(targets), **gpu(options)))
            if name == "forward":
                assert (result.dtype, result.shape) == (np.float64, ())
                return float(result)
            if name == "forward_backward":
                return (float(result[0]), *result[1:])
            return result

        return call


def test_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "sce", OnTheGpu())
    wanted = digest.DIGESTS.read_text(encoding="ascii").splitlines()
    wrong = [pair for pair in zip(digest.lines(), wanted, strict=True) if pair[0] != pair[1]]
    assert wrong == []


def backwards(a: Any) -> Any:
    return np.ascontiguousarray(a[::-1])[::-1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [transposed, every_other, backwards])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_layouts(operation: str, layout: Any, dtype: Any) -> None:
    scores, targets = data((5, 70, 13), dtype)  # two blocks of 4096, the second not full
    weight = np.random.default_rng(3).random(scores.shape).astype(dtype)
    for x, t, w in [
        (layout(scores), targets, weight),
        (scores, layout(targets.astype(np.int64)), None),
        (layout(scores), layout(targets.astype(np.uint8)), layout(weight)),
    ]:
        both(operation, x, t, weight=w, pos_weight=2.5)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (0,), (4, 0), (3, 1, 5), (2, 3, 4, 5, 6)])
def test_shapes(shape: tuple[int, ...]) -> None:
    scores, targets = data(shape)
    for operation in OPERATIONS:
        both(operation, scores, targets)
        both(operation, scores, targets, weight=scores * scores, pos_weight=3.0)
        if len(shape) > 1:
            pos_weight = list(range(shape[1]))
            both(operation, scores, targets, pos_weight=pos_weight)
    result = sce.backward(gpu(scores), gpu(targets))
    assert (result.shape, result.dtype) == (shape, "float32")


def test_axes_of_length_one() -> None:
    scores, targets = data((6, 1, 5, 1))
    for shape in [(6, 5), (1, 6, 5), (6, 5, 1, 1, 1)]:
        t = targets.reshape(shape)
        both("backward", scores, t)
        both("backward", scores, every_other(t) if shape[-1] != 1 else np.asfortranarray(t))
    both("backward", np.asfortranarray(scores), targets.reshape(6, 5))


@pytest.mark.parametrize("weight_dtype", [None, np.bool_, np.uint8, np.int8])
@pytest.mark.parametrize(
    "shape", [(), (1,), (5,), (3, 1, 1), (3, 4, 1), (2, 1, 1, 1), (2, 3, 4, 5)]
)
def test_weight_broadcasts(shape: tuple[int, ...], weight_dtype: Any) -> None:
    scores, targets = data((2, 3, 4, 5))
    weight = np.asarray(np.random.default_rng(4).integers(0, 3, shape))
    weight = weight.astype(weight_dtype or np.float32)
    for operation in OPERATIONS:
        both(operation, scores, targets, weight=weight)
    both("backward", transposed(scores), targets, weight=weight)


@pytest.mark.parametrize("weight", [2, 2.0, True, np.float32(2), np.float64(1.5), np.int64(2)])
def test_numbers(weight: Any) -> None:
    scores, targets = data((3, 5))
    both("forward_backward", scores, targets, weight=weight, pos_weight=weight)
    both("forward", scores, targets, normalization=float(weight), ignore_label=1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pos_weight_forms(dtype: Any) -> None:
    scores, targets = data((4, 3, 5, 7), dtype)
    p = np.array([0.5, 2.0, 3.0])
    expected = bits(sce.backward(scores, targets, pos_weight=p))
    on_cpu = [p.tolist(), tuple(p), p, p.reshape(3, 1, 1), p.astype(np.float32), p.astype(">f8")]
    on_gpu = [gpu(p.astype(dtype).reshape(s)) for s in ((3,), (3, 1, 1), (1, 3, 1, 1))]
    for x in (scores, transposed(scores)):
        for form in on_cpu + on_gpu:
            assert bits(sce.backward(gpu(x), gpu(targets), pos_weight=form)) == expected


@pytest.mark.parametrize("shape", [(), (7,), (6, 5), (3, 4, 5)])
def test_one_pos_weight_on_the_gpu(shape: tuple[int, ...]) -> None:
    """It takes the way of the channels, whatever the shape."""
    scores, targets = data(shape)
    weight = np.random.default_rng(2).random(shape[1:]).astype(np.float32)
    for x in (scores, every_other(scores) if shape else scores):
        for options in ({}, {"weight": np.asarray(weight)}, {"normalization": "full"}):
            for operation in ("backward", "forward_backward"):
                call = getattr(sce, operation)
                expected = bits(call(x, targets, pos_weight=2.5, **options))
                for form in ((), (1,), (1, 1)):
                    one = gpu(np.full(form, 2.5, np.float32))
                    got = call(gpu(x), gpu(targets), pos_weight=one, **gpu(options))
                    assert bits(got) == expected
    out = gpu(every_other(np.zeros_like(scores)) if shape else np.zeros_like(scores))
    one = gpu(np.float32([2.5]))
    assert sce.backward(gpu(scores), gpu(targets), pos_weight=one, out=out) is out
    assert bits(out) == bits(sce.backward(scores, targets, pos_weight=2.5))


@pytest.mark.parametrize("half", HALVES, ids=["float16", "bfloat16"])
@pytest.mark.parametrize("target", [None, np.float32, *INTEGERS])
def test_half_types(half: Any, target: Any) -> None:
    """Computed in float32 and rounded once."""
    scores, targets = data((3, 5, 301))
    x = scores.astype(half)
    wide = x.astype(np.float32)
    t = targets.astype(target or half)
    as_float = t if target in INTEGERS else t.astype(np.float32)
    weight = np.abs(scores[0]).astype(half)
    pos_weight = np.linspace(0.1, 3, 5).astype(np.float32)
    for options, wide_options in [
        ({}, {}),
        ({"pos_weight": pos_weight}, {"pos_weight": pos_weight}),
        ({"weight": weight, "ignore_label": 1}, {"weight": weight.astype(np.float32)}),
    ]:
        wide_options = {**options, **wide_options}
        for operation in OPERATIONS:
            call = getattr(sce, operation)
            got = host(call(gpu(x), gpu(t), **gpu(options)))
            wanted = call(wide, as_float, **wide_options)
            if operation == "forward_backward":
                assert bits(got[0]) == bits(wanted[0])
                got, wanted = got[1], wanted[1]
            elif operation == "forward":
                wanted = np.float64(wanted)
            if operation != "forward":
                assert got.dtype == half
                wanted = wanted.astype(half)
            assert bits(got) == bits(wanted)


def test_float32_targets_of_float64_scores() -> None:
    scores, targets = data((50, 7), np.float64)
    single = targets.astype(np.float32) * np.float32(0.3)
    for operation in OPERATIONS:
        call = getattr(sce, operation)
        expected = bits(call(scores, single.astype(np.float64)))
        assert bits(call(gpu(scores), gpu(single))) == expected


@pytest.mark.parametrize("normalization", ["full", "valid", "batch_size", "none", 7.5, None])
def test_normalization(normalization: Any) -> None:
    scores, targets = data((6, 50))
    for label in (None, 0, 1, 7):
        options = {"ignore_label": label, "normalization": normalization}
        both("forward", scores, targets, **options)
        both("forward_backward", scores, targets.astype(np.uint8), loss_weight=0.37, **options)
        both("backward", scores, targets, loss_weight=0.37, **options)
    for normalize in (True, False):
        both("forward", scores, targets, ignore_label=1, normalize=normalize)


# ---- The family of losses ----

SOFT = {"label_smoothing": 0.1, "negative_scale": 1.1, "alpha": 0.25}
FAMILY: list[dict[str, Any]] = [
    {"uncertain": "ignore", "normalization": "valid"},
    {"uncertain": "ignore", "ignore_label": 1, "normalization": "foreground"},
    SOFT,
    {"gamma": 2.0, "alpha": 0.25, "normalization": "foreground"},
    {"balance": None, "gamma": 0.5, "pos_weight": 2.5},
    {"balance": "image", "normalization": "full"},
    {"balance": "batch", "uncertain": "ignore", "normalization": "valid"},
    {"balance": "batch_mean", "ignore_label": 0, "normalization": "none"},
    {"balance": "image", "balance_per_channel": True, "gamma": 3, "pos_weight": [0.5, 2, 1, 3, 4]},
    {"balance": "batch", "balance_per_channel": True, **SOFT, "gamma": 1.5, "loss_weight": 0.37},
]
DERIVATIVES = ("backward", "forward_backward", "hessian", "backward_targets")


def family_call(operation: str, x: Any, t: Any, options: dict[str, Any]) -> Any:
    refused = {"elementwise": ("loss_weight", "normalization"), "forward": ("loss_weight",)}
    options = {k: v for k, v in options.items() if k not in refused.get(operation, ())}
    if operation == "hessian":
        return sce.forward_backward(x, t, hessian=True, **options)
    return getattr(sce, operation)(x, t, **options)


@pytest.mark.parametrize("target", [None, np.float64, np.bool_, np.uint8, np.int64])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", FAMILY, ids=str)
def test_family(options: dict[str, Any], dtype: Any, target: Any) -> None:
    if target is np.float64 and dtype is np.float32:
        pytest.skip("not targets of float32 scores")
    scores, hard = data((4, 5, 301), dtype)
    targets = hard.astype(target or dtype)
    if targets.dtype.kind == "f":
        targets[:, :, ::3] = np.random.default_rng(2).random((4, 5, 101))
    for operation in ("forward", "elementwise", *DERIVATIVES):
        for x in (scores, transposed(scores)):
            expected = bits(family_call(operation, x, targets, options))
            assert bits(family_call(operation, gpu(x), gpu(targets), options)) == expected


@pytest.mark.parametrize("half", HALVES, ids=["float16", "bfloat16"])
@pytest.mark.parametrize("options", FAMILY, ids=str)
def test_family_of_half_types(options: dict[str, Any], half: Any) -> None:
    scores, targets = data((4, 5, 301))
    x, t = scores.astype(half), targets.astype(half)
    for operation in ("forward", "elementwise", *DERIVATIVES):
        expected = bits(family_call(operation, x, t, options))
        assert bits(family_call(operation, gpu(x), gpu(t), options)) == expected


@pytest.mark.parametrize("shape", [(3, 7), (2, 1500), (1, 1), (0, 4), (4, 0), (2, 3, 1, 5)])
def test_groups_of_any_length(shape: tuple[int, ...]) -> None:
    scores, targets = data(shape)
    for balance in ("image", "batch", "batch_mean"):
        for per_channel in (False, True):
            options = {"balance": balance, "balance_per_channel": per_channel}
            for operation in ("forward_backward", "elementwise"):
                both(operation, scores, targets, **options)
            one = gpu(np.float32([2.5]))
            got = sce.backward(gpu(scores), gpu(targets), pos_weight=one, **options)
            assert bits(got) == bits(sce.backward(scores, targets, pos_weight=2.5, **options))


def test_family_of_parts() -> None:
    scores, targets = data((8, 1024))
    options = {**SOFT, "gamma": 2.0, "uncertain": "ignore"}
    whole = sce.partial(scores, targets, **options)
    halves = [slice(0, 4), slice(4, 8)]
    parts = [sce.partial(gpu(scores[h]), gpu(targets[h]), **options) for h in halves]
    assert parts[0] + parts[1] == whole
    part, gradient = sce.partial_backward(gpu(scores[:4]), gpu(targets[:4]), 3.0, **options)
    assert part == parts[0]
    wanted = sce.backward(scores, targets, normalization=3.0, **options)
    assert bits(gradient) == bits(wanted[:4].copy())


def test_hessian_outputs() -> None:
    scores, targets = data((6, 50))
    expected = bits(sce.forward_backward(scores, targets, hessian=True))
    for layout in (np.copy, transposed, every_other):
        out, curve = gpu(layout(scores)), gpu(layout(scores))
        result = sce.forward_backward(gpu(scores), gpu(targets), hessian=curve, out=out)
        assert result[1] is out
        assert result[2] is curve
        assert bits(result) == expected
    x = gpu(scores)
    assert bits(sce.forward_backward(x, gpu(targets), hessian=True, out=x)) == expected
    same = gpu(scores.copy())
    for options, message in [
        ({"hessian": same, "out": same}, "hessian: shares memory with the gradient"),
        ({"hessian": gpu(scores[:3].copy())}, "hessian: expected shape \\(6, 50\\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            sce.forward_backward(gpu(scores), gpu(targets), **options)
    t = gpu(targets)
    with pytest.raises(ValueError, match="hessian: shares memory with targets"):
        sce.forward_backward(gpu(scores), t, hessian=t)
    for wrong in (None, 1, 1.0):
        with pytest.raises(TypeError, match="hessian: expected True, False or an array"):
            sce.forward_backward(gpu(scores), t, hessian=wrong)
    with pytest.raises(TypeError, match="hessian: expected an array on cuda:0"):
        sce.forward_backward(gpu(scores), t, hessian=np.zeros_like(scores))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"balance": "imag"}, ValueError, 'balance: expected "none", "image", "batch"'),
        ({"balance": 1}, TypeError, 'balance: expected "none", "image", "batch"'),
        ({"uncertain": "hard"}, ValueError, 'uncertain: expected "soft" or "ignore"'),
        ({"balance_per_channel": True}, ValueError, "balance_per_channel: expected False"),
        ({"balance": "batch", "balance_per_channel": 1}, TypeError, "balance_per_channel: expec"),
        ({"gamma": -1.0}, ValueError, "gamma: expected a number from 0 to 1e6, got -1.0"),
        ({"gamma": np.zeros(2)}, TypeError, "gamma: expected a number, got ndarray"),
        ({"alpha": 1.5}, ValueError, "alpha: expected a number from 0 to 1, or None"),
        ({"label_smoothing": 1}, ValueError, "label_smoothing: expected a number of 0 or more"),
        ({"negative_scale": math.inf}, ValueError, "negative_scale: expected a number >= 0"),
    ],
)
def test_family_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    scores, targets = data((6, 50))
    for operation in ("forward", "elementwise", *DERIVATIVES):
        with pytest.raises(error, match=message) as on_gpu:
            family_call(operation, gpu(scores), gpu(targets), options)
        with pytest.raises(error) as on_cpu:
            family_call(operation, scores, targets, options)
        assert str(on_gpu.value) == str(on_cpu.value)
    with pytest.raises(ValueError, match="balance: expected scores with an axis of images"):
        sce.forward(gpu(scores[0]), gpu(targets[0]), balance="image")


# ---- Outputs ----


@pytest.mark.parametrize("layout", [np.copy, transposed, every_other, backwards])
@pytest.mark.parametrize("operation", ["elementwise", "backward", "forward_backward"])
def test_out(operation: str, layout: Any) -> None:
    call = getattr(sce, operation)
    scores, targets = data((13, 70, 9))
    expected = bits(call(scores, targets, pos_weight=2.0))
    out = gpu(layout(np.full_like(scores, np.nan)))
    result = call(gpu(scores), gpu(targets), pos_weight=2.0, out=out)
    assert (result[1] if isinstance(result, tuple) else result) is out
    assert bits(result) == expected
    in_place = gpu(layout(scores))
    result = call(in_place, gpu(targets), pos_weight=2.0, out=in_place)
    assert bits(result) == expected


def test_out_that_overlaps() -> None:
    base = np.zeros(300, np.float32)
    scores, targets = base[:100], np.zeros(100, np.float32)
    out = np.zeros(100, np.float32)
    square = np.zeros((10, 10), np.float32)
    channels = np.zeros((10, 100), np.float32)
    cases: list[tuple[Any, Any, Any, dict[str, Any], str]] = [
        (scores, targets, shifted, {}, "out: shares memory with scores; pass the scores array")
        for shifted in (base[1:101], base[99:199], base[:200:2], base[99::-1])
    ]
    cases += [
        (scores, out, out, {}, "out: shares memory with targets"),
        (scores, out.view(np.uint8)[:100], out, {}, "out: shares memory with targets"),
        (scores, targets, out, {"weight": out}, "out: shares memory with weight"),
        (scores, targets, out, {"weight": out[:1]}, "out: shares memory with weight"),
        (square, square.copy(), square.T, {}, "out: shares memory with scores"),
        (square, square.copy(), as_strided(base, (10, 10), (4, 4)), {}, "out: expected one addre"),
        (
            channels,
            channels.copy(),
            channels,
            {"pos_weight": channels[0]},
            "out: shares memory with pos_weight",
        ),
    ]
    for x, t, o, options, message in cases:
        with pytest.raises(ValueError, match=f"^{message}"):
            sce.backward(gpu(x), gpu(t), out=gpu(o), **gpu(options))
    pair = np.zeros((100, 8, 2), np.float32)  # bounds overlap, elements do not
    x, t = data((100, 8))
    pair[..., 0] = x
    result = sce.backward(gpu(pair[..., 0]), gpu(t), out=gpu(pair[..., 1]))
    assert bits(result) == bits(sce.backward(x, t))


def test_read_only_out() -> None:
    out = X.copy()
    out.flags.writeable = False
    with pytest.raises(ValueError, match=r"^out: .* written, got a read-only one$"):
        sce.backward(gpu(X), gpu(X.copy()), out=gpu(out))


# ---- Refusals ----


@pytest.mark.parametrize(("arguments", "message"), VALUE_ERRORS)
def test_value_errors_are_those_of_the_cpu(arguments: dict[str, Any], message: str) -> None:
    """Word for word; pos_weight is on the CPU."""
    scores = np.asarray(arguments.get("scores", X)) if message[:6] != "scores" else None
    out = arguments.get("out")
    if scores is None or (out is not None and not out.flags.writeable):
        pytest.skip("not for arrays on a GPU")
    targets = np.asarray(arguments.get("targets", np.zeros((2, 3), np.float32)))
    options = {k: v for k, v in arguments.items() if k not in ("scores", "targets")}
    for name, accepted in ACCEPTS.items():
        if not options.keys() <= accepted:
            continue
        call = getattr(sce, name)
        with pytest.raises(ValueError, match=": expected") as on_cpu:
            call(scores, targets, **options)
        host_only = {k: v for k, v in options.items() if k == "pos_weight"}
        with pytest.raises(ValueError, match=": expected") as on_gpu:
            call(gpu(scores), gpu(targets), **{**gpu(options), **host_only})
        assert str(on_gpu.value) == str(on_cpu.value)


def wrong_dtypes() -> Iterator[tuple[dict[str, Any], str]]:
    x = np.zeros((2, 3), np.float32)
    half = x.astype(np.float16)
    expected = "expected float16, bfloat16, float32 or float64, got"
    yield {"scores": x.astype(np.int64)}, f"scores: {expected} int64"
    yield {"scores": x.astype(np.complex64)}, f"scores: {expected} complex64"
    integers = "bool, uint8, int8, int32 or int64, got"
    yield (
        {"targets": x.astype(np.float64)},
        (f"targets: expected float32 (the dtype of scores), {integers} float64"),
    )
    yield {"targets": half}, f"targets: expected float32 (the dtype of scores), {integers} float16"
    yield (
        {"scores": half, "targets": x.astype(np.float64)},
        (f"targets: expected float16 (the dtype of scores), float32, {integers} float64"),
    )
    yield {"targets": x.astype(np.int16)}, f"targets: expected float32 .*{integers} int16"
    weights = "bool, uint8 or int8, got"
    yield (
        {"weight": x.astype(np.float64)},
        (f"weight: expected float32 (the dtype of scores), {weights} float64"),
    )
    yield {"weight": x.astype(np.int32)}, f"weight: expected float32 .*{weights} int32"
    yield (
        {"scores": half, "weight": x},
        (f"weight: expected float16 (the dtype of scores), {weights} float32"),
    )
    yield (
        {"pos_weight": np.ones(3)},
        ("pos_weight: expected float32 for float32 scores, got float64"),
    )
    yield (
        {"pos_weight": np.ones(3, np.float16), "scores": half},
        ("pos_weight: expected float32 for float16 scores, got float16"),
    )
    yield (
        {"scores": x.astype(np.float64), "pos_weight": np.ones(3, np.float32)},
        ("pos_weight: expected float64 for float64 scores, got float32"),
    )
    yield {"out": x.astype(np.float64)}, "out: expected float32 (the dtype of scores), got float64"


@pytest.mark.parametrize(("arguments", "message"), list(wrong_dtypes()))
def test_dtypes(arguments: dict[str, Any], message: str) -> None:
    options = {"scores": X, "targets": np.zeros((2, 3), np.uint8), **arguments}
    with pytest.raises(TypeError) as caught:
        sce.backward(**gpu(options))
    start, _, end = message.partition(".*")
    assert str(caught.value).startswith(start)
    assert str(caught.value).endswith(end)


def test_type_errors_of_options() -> None:
    x, t = gpu(X), gpu(np.zeros((2, 3), np.uint8))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"pos_weight": np.array([1j, 1, 1])}, "pos_weight: expected real numbers, got complex128"),
        ({"pos_weight": np.ma.masked_array(np.ones(3))}, "pos_weight: masked arrays are not"),
        ({"pos_weight": "2"}, "pos_weight: expected an array"),
        ({"weight": "1"}, "weight: expected an array"),
        ({"weight": [1.0, 2.0, 3.0]}, "weight: expected an array on cuda:0, as scores are, got "),
        ({"ignore_label": 1.0}, "ignore_label: expected an int, got float"),
        ({"ignore_label": True}, "ignore_label: expected an int, got bool"),
        ({"normalize": 1}, "normalize: expected True (valid), False (batch_size) or None, got int"),
        ({"normalization": True}, 'normalization: expected "full", "valid", "batch_size", "none"'),
        ({"normalization": [1]}, "normalization: expected "),
        ({"loss_weight": "1"}, "loss_weight: expected a number, got str"),
        ({"out": [[0.0] * 3] * 2}, "out: expected an array that can be written, got list"),
        ({"out": 1.0}, "out: expected an array that can be written, got float"),
    ]
    for options, message in cases:
        with pytest.raises(TypeError) as caught:
            sce.backward(x, t, **options)
        assert str(caught.value).startswith(message)
    with pytest.raises(ValueError, match=r"^pos_weight: expected contiguous values on the GPU, go"):
        sce.backward(x, t, pos_weight=gpu(np.ones(6, np.float32)[::2]))
    with pytest.raises(ValueError, match=r"^pos_weight: expected a number or shape \(3,\) for sco"):
        sce.backward(x, t, pos_weight=gpu(np.ones(2, np.float32)))
    many = np.zeros((3,) * 9, np.float32)[(slice(None, None, 2),) * 9]
    with pytest.raises(RuntimeError, match=r"^scores: expected at most 8 axes that cannot be merg"):
        sce.backward(gpu(many), gpu(np.zeros(many.shape, np.uint8)))
    for divisor in (None, True, "1"):
        with pytest.raises(TypeError, match=r"^divisor: expected a positive number, got "):
            sce.partial_backward(x, t, divisor)
    for number in (0, -1.0, np.nan):
        with pytest.raises(ValueError, match=r"^divisor: expected a positive number, got "):
            sce.partial_backward(x, t, number)


def test_mixed_devices() -> None:
    cpu, integers = X, np.zeros((2, 3), np.uint8)
    x, t = gpu(cpu), gpu(integers)
    other = "expected an array on cuda:0, as scores are, got numpy.ndarray on the CPU; pass a copy"
    for options in ({"targets": integers}, {"weight": cpu.copy()}, {"out": cpu.copy()}):
        (name,) = options
        with pytest.raises(TypeError) as caught:
            sce.backward(**{"scores": x, "targets": t, **options})
        assert str(caught.value) == f"{name}: {other} on the GPU"
        (value,) = options.values()
        with pytest.raises(TypeError) as caught:
            sce.backward(**{"scores": x, "targets": t, name: gpu(value, 1)})
        assert str(caught.value) == (
            f"{name}: expected an array on cuda:0, as scores are, got one on cuda:1; copy it to "
            "that GPU"
        )
        with pytest.raises(TypeError) as caught:
            sce.backward(**{"scores": cpu, "targets": integers, name: gpu(value)})
        assert str(caught.value) == (
            f"{name}: expected an array on the CPU, as scores are, got "
            f"{GpuArray.__module__}.GpuArray on a GPU; pass a copy on the CPU, or scores on that "
            "GPU"
        )
    with pytest.raises(TypeError, match=r"^pos_weight: expected an array on the CPU, as scores ar"):
        sce.backward(cpu, integers, pos_weight=gpu(np.ones(3)))
    with pytest.raises(TypeError, match=r"^targets: expected an array on cuda:0, as scores are, g"):
        sce.forward(gpu(np.zeros((), np.float32)), 1)


def test_bound_functions_take_arrays_on_a_gpu() -> None:
    scores, targets = data((4, 3))
    x, t = gpu(scores), gpu(targets)
    assert bits(sce.cuda.forward(x, t, 2.0, None, 1, "valid")) == bits(
        sce.forward(scores, targets, pos_weight=2.0, ignore_label=1, normalization="valid")
    )
    for name in (*OPERATIONS, "partial"):
        with pytest.raises(TypeError, match=r"^scores: expected an array on a GPU, got numpy\.nda"):
            getattr(sce.cuda, name)(scores, targets)


def test_unreadable_arrays() -> None:
    class Odd(GpuArray):
        def __dlpack__(self, **options: Any) -> Any:
            raise BufferError("today not")

    with pytest.raises(TypeError, match=r"^scores: .*Odd cannot be read on the GPU; today not$"):
        sce.forward(Odd(X), gpu(X))


def test_without_cuda_core(monkeypatch: pytest.MonkeyPatch) -> None:
    devices._strided_memory_view.cache_clear()
    monkeypatch.setitem(sys.modules, "cuda.core.utils", None)
    try:
        message = (
            r"^scores: to read .*GpuArray on a GPU takes the package cuda-core .*; pip install"
        )
        with pytest.raises(ImportError, match=message + r" 'sigmoid-ce\[cuda\]'$"):
            sce.forward(gpu(X), gpu(X))
    finally:
        devices._strided_memory_view.cache_clear()


# ---- Machines ----

MACHINES = {
    "none": "no GPU that CUDA can use",
    "no driver": "no driver for GPUs on this machine",
    "old driver": "the driver of the GPU is too old for the CUDA that this was built with",
}


@pytest.mark.parametrize("kind", MACHINES)
def test_machines_without_a_gpu(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    x, t = gpu(X), gpu(X.copy())
    reader = devices._strided_memory_view()
    with machine(kind):
        for name in (*OPERATIONS, "partial"):
            with pytest.raises(sce.cuda.CudaError) as caught:
                getattr(sce, name)(x, t)
            assert str(caught.value) == MACHINES[kind]
        # Tensors of PyTorch are not described by way of the runtime.
        native = devices.native()
        calls: list[Callable[[], Any]] = [
            lambda: native.Memory(0, LEGACY, 8),
            lambda: native.Event(0, LEGACY),
            lambda: native.order_streams(0, LEGACY, 2),
            lambda: native.to_host(0, LEGACY, 0, np.zeros(1)),
            lambda: native.to_device(0, LEGACY, 0, np.zeros(1)),
            lambda: native.device_info(0),
        ]
        for call in calls:
            with pytest.raises(sce.cuda.CudaError, match=f"^{MACHINES[kind]}$"):
                call()
        info = sce.info()
        assert info["devices"] == ["cpu"]
        driver = {"none": "13.0", "no driver": None, "old driver": "11.0"}[kind]
        assert info["cuda"] == {
            "built": True, "runtime": "13.0", "driver": driver, "devices": [],
            "reason": MACHINES[kind],
        }  # fmt: skip
        assert cli.run(["info"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split(maxsplit=1) for line in lines if line.startswith("cuda")] == [
            ["cuda", MACHINES[kind]],
            ["cuda", f"versions   built with 13.0, driver {driver or 'none'}"],
        ]
    assert reader is devices._strided_memory_view()
    assert issubclass(sce.cuda.CudaError, RuntimeError)
    assert sce.forward(X, X.copy()) > 0, "the CPU does not mind"


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    with machine("two"):
        info = sce.info()
        assert info["devices"] == ["cpu", "cuda:0 emulated GPU", "cuda:1 emulated GPU"]
        assert info["cuda"]["reason"] is None
        assert info["cuda"]["devices"][1] == {
            "name": "emulated GPU", "compute_capability": "9.0", "multiprocessors": 1,
            "memory": 2**30,
        }  # fmt: skip
        assert cli.run(["info"]) == 0
    words = capsys.readouterr().out.split()
    assert " ".join(words[words.index("cuda:1", words.index("versions")) :]).startswith(
        "cuda:1 compute capability 9.0, 1 SMs, 1.0 GiB"
    )


def test_out_of_memory() -> None:
    scores = as_strided(np.zeros(1, np.float32), (2**21, 2**20), (0, 0))
    targets = as_strided(np.zeros(1, np.uint8), scores.shape, (0, 0))
    with pytest.raises(MemoryError, match=r"^no memory left on the device$"):
        sce.backward(gpu(scores), gpu(targets))


def test_without_memory_pools() -> None:
    scores, targets = data((30, 3))
    with machine("no pools"):
        both("forward_backward", scores, targets, pos_weight=[1.0, 2.0, 3.0])
        gc.collect()


def test_capture() -> None:
    """A graph cannot have values of the host that may be gone when it is replayed."""
    x, t = (gpu(a) for a in data((30, 3)))
    with machine("capturing"):
        sce.forward(x, t, pos_weight=2.0, weight=3.0)
        sce.forward(x, t, pos_weight=gpu(np.ones(3, np.float32)))
        with pytest.raises(RuntimeError, match=r"^values on the CPU cannot go into a graph; pass"):
            sce.forward(x, t, pos_weight=[1.0, 2.0, 3.0])


def test_second_gpu(places: list[tuple[int, int]]) -> None:
    scores, targets = data((30, 3))
    with machine("two"):
        x, t = gpu(scores, 1), gpu(targets, 1)
        loss, gradient = sce.forward_backward(x, t, pos_weight=[1.0, 2.0, 3.0])
        assert (loss.device, gradient.device) == (1, 1)
        assert gradient.__dlpack_device__() == (CUDA, 1)
        expected = sce.forward_backward(scores, targets, pos_weight=[1.0, 2.0, 3.0])
        assert bits((loss, gradient)) == bits(expected)
    assert places == [(1, LEGACY)]
    with pytest.raises(sce.cuda.CudaError, match=r"^an error of the emulation \(CUDA error 101\)$"):
        sce.forward(gpu(scores, 1), gpu(targets, 1))


# ---- Partial ----


def test_partial_adds_up_across_devices() -> None:
    scores, targets = data((10 * 4096 + 5,))
    whole = sce.partial(scores, targets)
    parts = []
    for k, i in enumerate(range(0, scores.size, 4096)):
        x, t = scores[i : i + 4096], targets[i : i + 4096]
        parts.append(sce.partial(gpu(x), gpu(t)) if k % 2 else sce.partial(x, t))
    assert all(type(part) is sce.Partial for part in parts)
    assert sce.combine(parts) == whole
    assert sce.combine(parts).loss("full") == sce.forward(scores, targets, normalization="full")
    ignored = sce.partial(gpu(scores), gpu(targets), ignore_label=1)
    assert ignored == sce.partial(scores, targets, ignore_label=1)
    assert (ignored.n_total, ignored.n_valid) == (scores.size, int((targets != 1).sum()))
    empty = np.zeros(0, np.float32)
    assert sce.partial(gpu(empty), gpu(empty)) == sce.Partial()
    bad = np.float32([np.nan, np.inf, -np.inf, 1])
    assert math.isnan(sce.partial(gpu(bad), gpu(np.zeros(4, np.uint8))).sum)


@pytest.mark.parametrize("layout", [np.ascontiguousarray, every_other])
@pytest.mark.parametrize("cut", [4096, 5000])
def test_chunks_of_a_shape(cut: int, layout: Any) -> None:
    shape = (9, 3, 17, 50)
    scores, targets = data(shape)
    rng = np.random.default_rng(6)
    options: dict[str, Any] = {"pos_weight": [0.5, 2.0, 3.0], "ignore_label": 7}
    for weight in (rng.random((3, 1, 50)), np.asfortranarray(rng.random(shape)), 2.5):
        if isinstance(weight, np.ndarray):
            weight = weight.astype(np.float32)
        gradient = sce.backward(scores, targets, weight=weight, normalization="full", **options)
        parts, pieces = [], []
        for i in range(0, scores.size, cut):
            part, piece = sce.partial_backward(
                gpu(layout(scores.ravel()[i : i + cut])),
                gpu(layout(targets.ravel()[i : i + cut].astype(np.uint8))),
                scores.size,
                weight=gpu(weight),
                first_index=i,
                shape=shape,
                **options,
            )
            parts.append(part)
            pieces.append(host(piece))
        assert bits(np.concatenate(pieces)) == bits(gradient)
        if cut == 4096:
            assert sce.combine(parts) == sce.partial(scores, targets, weight=weight, **options)


@pytest.mark.parametrize("layout", [np.ascontiguousarray, transposed, every_other, backwards])
def test_chunks_of_rows(layout: Any) -> None:
    scores, targets = data((8, 64, 16))  # 4 rows are 4096 elements
    weight = np.random.default_rng(6).random((8, 1, 16)).astype(np.float32)
    p = np.linspace(0, 3, 64)
    whole = sce.partial(scores, targets, pos_weight=p, weight=weight)
    parts = [
        sce.partial(
            gpu(layout(scores[i : i + 4])),
            gpu(layout(targets[i : i + 4])),
            pos_weight=p,
            weight=gpu(layout(weight[i : i + 4])),
            first_index=i * 64 * 16,
        )
        for i in (0, 4)
    ]
    assert sce.combine(parts) == whole


def chunk_errors() -> Iterator[tuple[Any, dict[str, Any]]]:
    yield np.zeros(6), {"first_index": -1}
    yield np.zeros(6), {"first_index": 1.0}
    yield np.zeros(6), {"first_index": True}
    yield np.zeros(6), {"first_index": 2**70}
    yield np.zeros(6), {"first_index": 2**62}
    yield np.zeros((2, 3)), {"first_index": 4}
    yield np.zeros(()), {"first_index": 1}
    yield np.zeros((2, 0)), {"first_index": 1}
    yield np.zeros(6), {"shape": 6}
    yield np.zeros(6), {"shape": (2, -3)}
    yield np.zeros(6), {"shape": (2, 3.0)}
    yield np.zeros(1), {"shape": (2**40,) * 2}
    yield np.zeros(1), {"shape": (1,) * 65}
    yield np.zeros(6), {"shape": (2, 5), "first_index": 5}
    yield np.zeros((3, 2)).T, {"shape": (5, 3)}
    yield np.zeros(6), {"shape": (5, 3), "weight": np.ones(6)}
    yield np.zeros(6), {"shape": (5, 3), "pos_weight": [1.0] * 6}


@pytest.mark.parametrize(("scores", "options"), list(chunk_errors()))
def test_chunk_errors_are_those_of_the_cpu(scores: Any, options: dict[str, Any]) -> None:
    targets = np.zeros(scores.shape)
    with pytest.raises((TypeError, ValueError)) as on_cpu:
        sce.partial(scores, targets, **options)
    with pytest.raises((TypeError, ValueError)) as on_gpu:
        sce.partial(gpu(scores), gpu(targets), **gpu(options))
    assert type(on_gpu.value) is type(on_cpu.value)
    assert str(on_gpu.value) == str(on_cpu.value)


# ---- Streams and lifetimes ----


def test_dlpack_stream(places: list[tuple[int, int]]) -> None:
    x, t, w = (gpu(X.copy()) for _ in range(3))
    sce.forward_backward(x, t, weight=w)
    assert x.streams == t.streams == w.streams == [LEGACY]
    assert places == [(0, LEGACY)]


class WithInterface(GpuArray):
    """An array that also names its stream, as __cuda_array_interface__ does."""

    stream: int | None = 0x5EA0

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "shape": self.values.shape,
            "typestr": self.values.dtype.str,
            "data": (self.values.ctypes.data, False),
            "strides": self.values.strides,
            "stream": self.stream,
        }


def test_stream_of_the_interface(places: list[tuple[int, int]]) -> None:
    scores, targets = data((7, 3))
    x, t = WithInterface(scores), gpu(targets)
    assert bits(sce.backward(x, t)) == bits(sce.backward(scores, targets))
    assert x.streams == t.streams == [0x5EA0]
    x.stream = None
    sce.backward(x, t)
    assert places == [(0, 0x5EA0), (0, LEGACY)]


def test_inputs_live_until_the_work_is_done() -> None:
    def dead(count: list[int]) -> GpuArray:
        class Counted(GpuArray):
            def __del__(self) -> None:
                count[0] += 1

        return Counted(X.copy())

    gone = [0]
    with machine("busy"):
        sce.forward(dead(gone), dead(gone))
        gc.collect()
        sce.forward(dead(gone), dead(gone))
        gc.collect()
        assert gone == [0], "the stream may still read them"
    sce.forward(gpu(X), gpu(X.copy()))
    gc.collect()
    assert gone == [4]


def test_threads() -> None:
    scores, targets = data((50, 40))
    expected = bits(sce.forward_backward(scores, targets))
    wrong = []

    def work() -> None:
        for _ in range(5):
            if bits(sce.forward_backward(gpu(scores), gpu(targets))) != expected:
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# ---- Results without a library ----


class OnTheCpu:
    """A consumer's view of a capsule whose device is put back to what the memory is."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, **options: Any) -> Any:
        capsule = self.array.__dlpack__(stream=LEGACY)
        tensor = Tensor.from_address(pointer_of(capsule, b"dltensor"))
        assert (tensor.device_type, tensor.device_id) == (CUDA, 0)
        tensor.device_type = 1
        return capsule


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_device_array(dtype: Any) -> None:
    scores, targets = data((6, 5), dtype)
    result = sce.backward(gpu(scores), gpu(targets))
    assert type(result) is sce.cuda.DeviceArray
    assert (result.shape, result.dtype, result.device) == ((6, 5), np.dtype(dtype).name, 0)
    assert repr(result) == f"DeviceArray(shape=(6, 5), dtype={result.dtype}, device=cuda:0)"
    interface = result.__cuda_array_interface__
    assert interface == {
        "version": 3, "shape": (6, 5), "strides": None, "typestr": np.dtype(dtype).str,
        "data": (result.address, False), "stream": LEGACY,
    }  # fmt: skip
    again = np.from_dlpack(OnTheCpu(result))
    copy = result.copy_to_host()
    address = result.address
    del result
    gc.collect()
    assert again.ctypes.data == address
    np.testing.assert_array_equal(again, copy)
    assert again.strides == copy.strides
    # Shapes with an axis of no elements or none at all.
    for shape in ((), (0, 3)):
        array = sce.backward(gpu(np.zeros(shape, dtype)), gpu(np.zeros(shape, dtype)))
        assert np.from_dlpack(OnTheCpu(array)).shape == shape


def test_device_array_in_real_libraries() -> None:
    scores, targets = data((6, 5))
    expected = sce.forward_backward(scores, targets)
    for name in ("torch", "jax.dlpack"):
        try:
            library = importlib.import_module(name)
        except ImportError:
            missing(name)
        result = sce.forward_backward(gpu(scores), gpu(targets))
        loss, gradient = (library.from_dlpack(OnTheCpu(part)) for part in result)
        del result
        gc.collect()
        assert bits(np.asarray(gradient)) == bits(expected[1])
        assert float(loss) == (np.float32 if name == "jax.dlpack" else float)(expected[0])


def test_device_array_protocol() -> None:
    array = sce.backward(gpu(X.astype(ml_dtypes.bfloat16)), gpu(X))
    assert not hasattr(array, "__cuda_array_interface__")
    for stream in (None, -1, 1, 2, 0x5EA0):
        capsule = array.__dlpack__(stream=stream, max_version=(1, 0))
        tensor = Tensor.from_address(pointer_of(capsule, b"dltensor"))
        assert (tensor.data, tensor.type_code) == (array.address, BFLOAT)
    assert array.__dlpack__(dl_device=(CUDA, 0), copy=False)
    with pytest.raises(BufferError, match="expected device"):
        array.__dlpack__(dl_device=(1, 0))
    with pytest.raises(BufferError, match="copy"):
        array.__dlpack__(copy=True)
    assert float(sce.forward(gpu(X), gpu(X.copy()))) == sce.forward(X, X.copy())
    # It goes in again.
    x, t = data((6, 5))
    loss = sce.elementwise(gpu(x), gpu(t))
    assert bits(sce.forward(loss, gpu(t))) == bits(sce.forward(sce.elementwise(x, t), t))


def test_order_of_results(places: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer's stream waits for a moment after the kernels; what is not handed on is freed."""
    native = devices.native()
    memory = native.Memory
    log: list[tuple[Any, ...]] = []

    class Memory:
        def __init__(self, device: int, stream: int, size: int) -> None:
            log.append(("new", size, stream, len(places)))
            self.real = memory(device, stream, size)
            self.address = self.real.address
            self.capsule = self.real.capsule

        def record(self, stream: int) -> None:
            log.append(("record", stream, len(places)))
            self.real.record(stream)

        def make_wait(self, stream: int) -> None:
            log.append(("wait", stream))
            self.real.make_wait(stream)

    monkeypatch.setattr(native, "Memory", Memory)
    x = WithInterface(X)
    loss = sce.forward(x, gpu(X.copy()))
    assert log == [
        ("new", 8, 0x5EA0, 0),
        ("new", native.workspace_size, 0x5EA0, 0),
        ("record", 0x5EA0, 1),
    ]
    log.clear()
    loss.__dlpack__(stream=7)
    loss.__dlpack__(stream=None)
    loss.__dlpack__(stream=-1)
    assert loss.__cuda_array_interface__["stream"] == LEGACY
    assert log == [("wait", 7), ("wait", LEGACY), ("wait", LEGACY)]


def test_layer() -> None:
    scores, targets = data((10, 3))
    options: dict[str, Any] = {"pos_weight": [1.0, 2.0, 3.0], "weight": 2.0, "ignore_label": 1}
    layer = sce.SigmoidCrossEntropyLoss(**options, normalization="valid", loss_weight=0.5)
    expected = sce.forward_backward(
        scores, targets, **options, normalization="valid", loss_weight=0.5
    )
    loss = layer.forward(gpu(scores), gpu(targets))
    assert bits((loss, layer.backward())) == bits(expected)
    out = gpu(np.empty_like(scores))
    assert layer.backward(out=out) is out


def test_check_needs_a_library() -> None:
    with pytest.raises(
        TypeError, match=r"^targets: check=True takes PyTorch or CuPy arrays on the"
    ):
        sce.forward(gpu(X), gpu(X.copy()), check=True)


# ---- PyTorch: real tensors that say they are on a GPU ----

TORCH_STREAM = 0x70C4


class Torch:
    def __init__(self, module: Any, patch: pytest.MonkeyPatch) -> None:
        self.module = module

        class GpuTensor(module.Tensor):
            gpu = 0  # of tensors that operations make
            is_cuda = property(lambda self: True)
            device = property(lambda self: module.device("cuda", self.gpu))

            def get_device(self) -> int:
                return self.gpu

        self.tensor = GpuTensor
        empty = module.empty

        def new(*shape: Any, dtype: Any, device: Any) -> Any:
            return self(empty(*shape, dtype=dtype), device.index)

        def current_stream(device: Any) -> Any:
            return types.SimpleNamespace(cuda_stream=TORCH_STREAM + device.index)

        patch.setattr(module, "empty", new)
        patch.setattr(module.cuda, "current_stream", current_stream)

    def __call__(self, array: Any, device: int = 0) -> Any:
        tensor = self.module.from_numpy(array) if isinstance(array, np.ndarray) else array
        tensor = tensor.as_subclass(self.tensor)
        tensor.gpu = device
        return tensor


def numpy_of(tensor: Any) -> Any:
    return tensor.as_subclass(sys.modules["torch"].Tensor).numpy()


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Torch:
    try:
        module = importlib.import_module("torch")
    except ImportError:
        missing("torch")
    return Torch(module, monkeypatch)


def test_pytorch(torch: Torch, places: list[tuple[int, int]]) -> None:
    scores, targets = data((6, 3, 50))
    x = torch(scores)
    p = np.array([1.0, 2.0, 3.0], np.float32)
    loss, gradient = sce.forward_backward(scores, targets, pos_weight=p)
    for target in (targets, targets > 0, targets.astype(np.int64), targets.astype(np.uint8)):
        for pos_weight in (p, p.tolist(), torch(p), torch(p.reshape(3, 1))):
            got = sce.forward_backward(x, torch(target), pos_weight=pos_weight)
            assert all(type(part) is torch.tensor and part.gpu == 0 for part in got)
            assert (got[0].dtype, got[0].shape) == (torch.module.float64, ())
            assert (got[1].dtype, got[1].shape) == (torch.module.float32, x.shape)
            assert bits(tuple(map(numpy_of, got))) == bits((loss, gradient))
    turned = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not turned.is_contiguous()
    got = sce.backward(turned, torch(targets), pos_weight=2.0)
    assert bits(numpy_of(got)) == bits(sce.backward(scores, targets, pos_weight=2.0))
    out = torch(np.zeros_like(scores))
    assert sce.backward(turned, torch(targets), pos_weight=p, out=out) is out
    assert bits(numpy_of(out)) == bits(gradient)
    assert sce.elementwise(x.double(), torch(targets)).dtype == torch.module.float64
    assert sce.partial(x, torch(targets)) == sce.partial(scores, targets)
    assert set(places) == {(0, TORCH_STREAM)}
    with machine("two"):
        got = sce.backward(torch(scores, 1), torch(targets, 1), pos_weight=p)
    assert got.gpu == 1
    assert places[-1] == (1, TORCH_STREAM + 1)
    assert bits(numpy_of(got)) == bits(gradient)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_pytorch_half_types(torch: Torch, name: str) -> None:
    dtype = getattr(torch.module, name)
    scores, targets = data((6, 301))
    x = torch(scores).to(dtype)
    got = sce.backward(x, torch(targets).to(dtype), weight=torch(np.abs(scores)).to(dtype))
    assert got.dtype == dtype
    wide = numpy_of(x.float())
    weight = numpy_of(torch(np.abs(scores)).to(dtype).float())
    wanted = torch.module.from_numpy(sce.backward(wide, targets, weight=weight)).to(dtype)
    assert torch.module.equal(got.as_subclass(torch.module.Tensor), wanted)


def test_pytorch_refusals(torch: Torch) -> None:
    x, t = torch(X), torch(X.copy())
    module = torch.module

    class Sparse(torch.tensor):
        layout = module.sparse_coo

    cases = [
        (x.clone().requires_grad_(), r"the tensor requires grad; pass scores\.detach\(\)"),
        (x.long(), "expected float16, bfloat16, float32 or float64, got int64"),
        (x.to(module.complex64), "expected float16, .*, got complex64"),
        (
            x.as_subclass(Sparse),
            "expected a dense tensor, got torch.float32, torch.sparse_coo; pass",
        ),
        (
            x._neg_view(),
            r"the tensor has its negative bit set; pass scores\.resolve_neg\(\)",
        ),
    ]
    for scores, message in cases:
        for targets in (t, scores):
            with pytest.raises(TypeError, match=f"^scores: {message}"):
                sce.forward(scores, targets)
    for targets in ([[0.0] * 3] * 2, X, None):
        with pytest.raises(TypeError, match=r"^targets: expected an array"):
            sce.forward(x, targets)
    cpu = module.zeros(2, 3)
    for name in ("targets", "weight", "out"):
        with pytest.raises(TypeError) as caught:
            sce.backward(**{"scores": x, "targets": t, name: cpu})
        assert str(caught.value) == (
            f"{name}: expected an array on cuda:0, as scores are, got torch.Tensor on cpu; pass "
            f"torch.as_tensor({name}, device=scores.device)"
        )
        with pytest.raises(TypeError) as caught:
            sce.backward(**{"scores": cpu, "targets": cpu.clone(), name: x})
        assert str(caught.value).startswith(f"{name}: expected an array on the CPU, as scores are,")
        assert str(caught.value).endswith(f"pass {name}.cpu(), or scores on that GPU")
        with pytest.raises(TypeError, match=f"^{name}: .*, got one on cuda:1; copy it to that GPU"):
            sce.backward(**{"scores": x, "targets": t, name: torch(X.copy(), 1)})
    with pytest.raises(ValueError, match=r"^targets: expected shape \(2, 3\), the shape of scores"):
        sce.forward(x, torch(np.zeros((3, 2), np.float32)))
    with pytest.raises(
        TypeError, match=r"^targets: expected float32 \(the dtype of scores\), bool"
    ):
        sce.forward(x, t.double())
    with pytest.raises(
        TypeError, match=r"^targets: the tensor requires grad; pass targets\.detach"
    ):
        sce.forward(x, t.clone().requires_grad_())
    assert sce.forward(x, torch(np.zeros((2, 1, 3), np.float32))) == sce.forward(X, X)
    grad = t.clone().requires_grad_()
    with pytest.raises(TypeError, match=r"^out: the tensor requires grad; pass out\.detach\(\)"):
        sce.backward(x, t, out=grad)
    with pytest.raises(
        TypeError, match=r"^scores: expected a tensor on the CPU or on a CUDA GPU, g"
    ):
        sce.forward(cpu.to("meta"), cpu)


def test_pytorch_needs_no_cuda_core(torch: Torch, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError

    monkeypatch.setattr(devices, "_strided_memory_view", refuse)
    sce.forward_backward(torch(X), torch(X.copy()), weight=torch(X.copy()))


def check_cases(library: Any, wrap: Callable[[Any], Any]) -> None:
    """What check=True finds, for a library with operations of its own."""
    scores, targets = data((30, 7))
    weight = np.abs(scores)
    for operation in OPERATIONS:
        call = getattr(sce, operation)
        call(wrap(scores), wrap(targets), weight=wrap(weight), check=True)
        call(wrap(scores), wrap(targets > 0), weight=wrap(weight > 0), check=True)
    for bad in (7.0, -1.0, np.nan, np.inf):
        t = targets.copy()
        t[25, 3] = t[26, 0] = bad
        for array in (t, transposed(t)):
            with pytest.raises(
                ValueError, match=r"^targets: expected values in \[0, 1\] with che"
            ) as e:
                sce.backward(wrap(scores), wrap(array), check=True)
            assert str(e.value).endswith(f", got {bad} at index (25, 3)")
    for bad in (-1.0, np.nan, np.inf):
        w = weight.copy()
        w[29, 6] = bad
        with pytest.raises(
            ValueError, match=r"^weight: expected finite values >= 0 with check="
        ) as e:
            sce.backward(wrap(scores), wrap(targets), weight=wrap(w), check=True)
        assert str(e.value).endswith(f", got {bad} at index (29, 6)")
    for label, values in [
        (255, np.uint8([0, 1, 255])),
        (-1, np.float32([0.5, -1.0, -1.9])),
        (2, np.float32([1.0, 2.5, 2.0])),
        (-1, np.int64([0, 1, -1])),
    ]:
        x = wrap(np.zeros(3, np.float32))
        sce.forward(x, wrap(values), ignore_label=label, check=True)
        for other in (None, 7, 2**62, -1 if label == 255 else 255):
            with pytest.raises(ValueError, match=r"^targets: expected values in"):
                sce.forward(x, wrap(values), ignore_label=other, check=True)
    with pytest.raises(TypeError, match=r"^ignore_label: expected an int, got float$"):
        sce.forward(wrap(scores), wrap(targets), ignore_label=1.0, check=True)


def test_pytorch_check(torch: Torch) -> None:
    check_cases(torch.module, torch)


# ---- CuPy, JAX, Numba: as far as they are used, in stubs ----


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module with arrays of NumPy in the place of those on the GPU."""
    module: Any = types.ModuleType("cupy")

    class Device:
        current = 0

        def __init__(self, number: int) -> None:
            self.id = number

        def __enter__(self) -> None:
            self.before, Device.current = Device.current, self.id

        def __exit__(self, *error: object) -> None:
            Device.current = self.before

    class ndarray(GpuArray):
        def __init__(self, values: Any, device: int | None = None) -> None:
            super().__init__(values, Device.current if device is None else device)
            self.device = Device(self.gpu)
            self.shape, self.dtype = self.values.shape, self.values.dtype
            self.data = types.SimpleNamespace(ptr=self.values.ctypes.data)

        def _do(self, other: Any, name: str) -> Any:
            other = other.values if isinstance(other, ndarray) else other
            return ndarray(getattr(self.values, name)(other))

        __hash__ = None

        def __ge__(self, other: Any) -> Any:
            return self._do(other, "__ge__")

        def __le__(self, other: Any) -> Any:
            return self._do(other, "__le__")

        def __eq__(self, other: Any) -> Any:
            return self._do(other, "__eq__")

        def __and__(self, other: Any) -> Any:
            return self._do(other, "__and__")

        def __or__(self, other: Any) -> Any:
            return self._do(other, "__or__")

        def __invert__(self) -> Any:
            return ndarray(~self.values)

        def __getitem__(self, index: Any) -> Any:
            return ndarray(self.values[index])

        def all(self) -> Any:
            return self.values.all()

        def __int__(self) -> int:
            return int(self.values)

        def item(self) -> Any:
            return self.values.item()

        def astype(self, dtype: Any) -> Any:
            return ndarray(self.values.astype(dtype))

    module.ndarray = ndarray
    module.pointer = 0
    module.cuda = types.SimpleNamespace(
        get_current_stream=lambda: types.SimpleNamespace(ptr=module.pointer + Device.current)
    )
    module.empty = lambda shape, dtype: ndarray(np.empty(shape, dtype))
    for name in ("isfinite", "trunc"):
        setattr(module, name, lambda a, name=name: ndarray(getattr(np, name)(a.values)))
    module.flatnonzero = lambda a: ndarray(np.flatnonzero(a.values))
    monkeypatch.setitem(sys.modules, "cupy", module)
    devices._library.cache_clear()
    yield module
    devices._library.cache_clear()


def test_cupy(cupy: Any, places: list[tuple[int, int]]) -> None:
    scores, targets = data((6, 3, 50))
    x, t = cupy.ndarray(scores), cupy.ndarray(targets)
    loss, gradient = sce.forward_backward(x, t, pos_weight=[1.0, 2.0, 3.0])
    assert type(loss) is type(gradient) is cupy.ndarray
    expected = sce.forward_backward(scores, targets, pos_weight=[1.0, 2.0, 3.0])
    assert bits((loss, gradient)) == bits(expected)
    assert loss.dtype == np.float64
    assert x.streams == t.streams == [LEGACY], "the null stream has this number in DLPack"
    out = cupy.ndarray(np.zeros_like(scores))
    cupy.pointer = 0xC0
    assert sce.elementwise(x, t, out=out) is out
    assert out.streams == [0xC0]
    half = sce.elementwise(cupy.ndarray(scores.astype(ml_dtypes.bfloat16)), t)
    assert half.dtype == ml_dtypes.bfloat16
    with machine("two"):
        result = sce.backward(cupy.ndarray(scores, 1), cupy.ndarray(targets, 1))
    assert result.gpu == 1
    assert places == [(0, LEGACY), (0, 0xC0), (0, 0xC0), (1, 0xC1)]
    with pytest.raises(TypeError, match=r"^targets: .* on the CPU; pass cupy\.asarray\(targets\)$"):
        sce.forward(x, targets)
    with pytest.raises(TypeError, match=r"^targets: .* on a GPU; pass targets\.get\(\), or scores"):
        sce.forward(scores, t)


def test_cupy_check(cupy: Any) -> None:
    check_cases(cupy, cupy.ndarray)


def test_libraries_side_by_side(
    cupy: Any, torch: Torch, places: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams wait for each other before and after; what has no stream is kept alive."""
    orders: list[tuple[int, int, int]] = []
    native = devices.native()
    monkeypatch.setattr(native, "order_streams", lambda *arguments: orders.append(arguments))
    held: list[Any] = []
    monkeypatch.setattr(native, "Event", lambda *arguments: held.append(arguments))
    monkeypatch.setattr(devices, "_held", devices.deque())
    cupy.pointer = 0xC0
    scores, targets = data((6, 3))
    weight = np.abs(scores)
    expected = bits(sce.backward(scores, targets, weight=weight))

    t, w = torch(targets), gpu(weight)
    result = sce.backward(cupy.ndarray(scores), t, weight=w)
    assert type(result) is cupy.ndarray
    assert bits(result) == expected
    assert orders == [(0, 0xC0, TORCH_STREAM), (0, TORCH_STREAM, 0xC0)]
    assert w.streams == [0xC0]
    assert held == [(0, 0xC0)]
    assert [owners[0] for _, owners in devices._held] == [w]

    orders.clear()
    t = cupy.ndarray(targets)
    result = sce.backward(torch(scores), t, weight=torch(weight))
    assert bits(numpy_of(result)) == expected
    assert t.streams == [TORCH_STREAM], "the producer orders what comes before"
    assert orders == [(0, 0xC0, TORCH_STREAM)]
    assert places == [(0, 0xC0), (0, TORCH_STREAM)]
    assert len(held) == 1


@pytest.fixture
def jax(monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = types.ModuleType("jax")

    class Array(GpuArray):
        def devices(self) -> Any:
            return [types.SimpleNamespace(platform="gpu")]

    module.Array = Array
    module.config = types.SimpleNamespace(jax_enable_x64=False)
    module.dlpack = types.SimpleNamespace(
        from_dlpack=lambda array: Array(np.from_dlpack(OnTheCpu(array)))
    )
    monkeypatch.setitem(sys.modules, "jax", module)
    devices._library.cache_clear()
    yield module
    devices._library.cache_clear()


def test_jax(jax: Any, places: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[int] = []
    finish = sce.cuda.DeviceArray._finish

    def recording(array: Any, stream: int) -> None:
        recorded.append(stream)
        finish(array, stream)

    monkeypatch.setattr(sce.cuda.DeviceArray, "_finish", recording)
    scores, targets = data((6, 3))
    x, t = jax.Array(scores), jax.Array(targets)
    loss, gradient = sce.forward_backward(x, t)
    assert type(loss) is type(gradient) is jax.Array
    expected = sce.forward_backward(scores, targets)
    assert loss.values.dtype == np.float32, "what JAX would make of it"
    assert bits((loss, gradient)) == bits((np.float32(expected[0]), expected[1]))
    assert recorded == [LEGACY] * 2
    jax.config.jax_enable_x64 = True
    assert bits(sce.forward(x, t)) == bits(expected[0])
    assert x.streams == [LEGACY] * 2
    assert places == [(0, LEGACY)] * 2
    with pytest.raises(TypeError, match=r"^out: JAX arrays are immutable; leave out= away$"):
        sce.backward(x, t, out=jax.Array(scores.copy()))
    with pytest.raises(TypeError, match=r"^targets: check=True takes PyTorch or CuPy arrays"):
        sce.forward(x, t, check=True)
    with pytest.raises(TypeError, match=r"; pass jax\.device_put\(targets, scores\.device\)$"):
        sce.forward(x, targets)


def test_jax_on_many_devices(jax: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    jax.core = types.SimpleNamespace(Tracer=())
    monkeypatch.setattr(jax.Array, "devices", lambda self: {1, 2})
    with pytest.raises(TypeError, match=r"^scores: expected a JAX array on the CPU or on one CUDA"):
        sce.forward(jax.Array(X), X)


def test_numba(monkeypatch: pytest.MonkeyPatch, places: list[tuple[int, int]]) -> None:
    entered = []

    class Gpu:
        def __init__(self, number: int) -> None:
            self.number = number

        def __enter__(self) -> None:
            entered.append(self.number)

        def __exit__(self, *error: object) -> None:
            pass

    class DeviceNDArray(WithInterface):
        stream = 0

    DeviceNDArray.__module__ = "numba.cuda.cudadrv.devicearray"

    def device_array(shape: Any, dtype: Any, stream: int) -> Any:
        array = DeviceNDArray(np.empty(shape, dtype))
        array.stream = stream
        return array

    module: Any = types.ModuleType("numba.cuda")
    module.gpus = [Gpu(0), Gpu(1)]
    module.default_stream = lambda: 0
    module.device_array = device_array
    monkeypatch.setitem(sys.modules, "numba.cuda", module)
    devices._library.cache_clear()
    scores, targets = data((6, 3))
    x, t = DeviceNDArray(scores), DeviceNDArray(targets)
    result = sce.forward_backward(x, t)
    assert all(type(part) is DeviceNDArray for part in result)
    assert bits(result) == bits(sce.forward_backward(scores, targets))
    x.stream = 0x4B
    assert sce.backward(x, t).stream == 0x4B
    module.default_stream = lambda: 2  # per thread
    x.stream = 0
    sce.backward(x, t)
    assert places == [(0, LEGACY), (0, 0x4B), (0, 2)]
    assert entered == [0, 0, 0, 0]
    devices._library.cache_clear()


def test_library_with_from_dlpack(monkeypatch: pytest.MonkeyPatch) -> None:
    class Array(GpuArray):
        pass

    Array.__module__ = "other_library.arrays"
    module: Any = types.ModuleType("other_library")
    module.from_dlpack = lambda array: Array(np.from_dlpack(OnTheCpu(array)))
    monkeypatch.setitem(sys.modules, "other_library", module)
    scores, targets = data((6, 3))
    result = sce.forward_backward(Array(scores), gpu(targets))
    assert all(type(part) is Array for part in result)
    assert bits(result) == bits(sce.forward_backward(scores, targets))


def test_interface_by_cuda_core() -> None:
    """Where there is no driver, cuda-core cannot ask for the device of a plain address."""

    class Plain:
        __cuda_array_interface__ = WithInterface(X).__cuda_array_interface__

    with pytest.raises(TypeError, match=r"^scores: .*Plain cannot be read on the GPU; "):
        sce.forward(Plain(), gpu(X))
