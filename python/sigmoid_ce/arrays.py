"""Arrays of any library on the CPU as NumPy views without a copy, and results back in that library.

`sigmoid_ce.api` comes here when the scores are on the CPU and an argument is not a NumPy array;
shapes and dtypes are checked by the native code. Arrays on a GPU: `sigmoid_ce.devices`. PyTorch and
JAX are used only where the caller has imported them already.
"""

from __future__ import annotations

import ctypes
import operator
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from sigmoid_ce.gpu import gpu_library

Array = NDArray[Any]

_DLPACK_CPU = 1  # kDLCPU of DLPack's DLDeviceType
_DLPACK_BFLOAT = 4  # kDLBfloat of its DLDataTypeCode

# Stands for bfloat16, which NumPy has by the package ml_dtypes only: bits of one field that the
# native code knows by its name.
_BFLOAT16 = np.dtype([("bfloat16", np.uint16)])
_CHECK_BLOCK = 1 << 16  # elements that a check looks at in one step


class View(NamedTuple):
    """A NumPy view of the caller's array, and the way back for a new array of the same kind."""

    array: Array
    restore: Callable[[Array], Any]


def _same(array: Array) -> Array:
    return array


def view(value: Any, name: str) -> View:
    """`value` as a NumPy array that shares its memory; lists and numbers become float64.

    Raises TypeError for what is no array on the CPU, naming the argument `name`.
    """
    if isinstance(value, np.ndarray):
        return View(value, _same)
    if isinstance(value, np.generic):
        return View(np.asarray(value), _same)
    if isinstance(value, (bool, int, float)):
        try:
            return View(np.asarray(value, dtype=np.float64), _same)
        except OverflowError:
            raise ValueError(f"{name}: expected a number that fits a float, got {value}") from None
    if isinstance(value, (list, tuple)):
        return View(_from_list(value, name), _same)
    # Tensors that libraries wrap (Parameter, Variable) are found by their class.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, getattr(torch, "Tensor", ())):
        return View(_from_torch(value, name), _to_torch)
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(value, getattr(jax, "Array", ())):
        return View(_from_jax(value, name), _to_jax)
    if type(value).__module__.partition(".")[0] == "tensorflow":
        raise TypeError(f"{name}: TensorFlow tensors are not read directly; pass {name}.numpy()")
    if gpu_library(value) is not None:
        raise _on_a_gpu(value, name)
    if hasattr(value, "__dlpack__"):
        return _from_dlpack(value, name)
    try:
        buffer = memoryview(value)
    except TypeError:
        raise TypeError(
            f"{name}: expected an array (NumPy, PyTorch, JAX, DLPack, buffer protocol), a list "
            f"or a number, got {_type(value)}"
        ) from None
    return View(np.asarray(buffer), _same)


def view_pair(scores: Any, targets: Any) -> tuple[Array, Array, Callable[[Array], Any]]:
    """Views of scores and targets, and the way back to the library of the scores."""
    x, restore = view(scores, "scores")
    t = view(targets, "targets").array
    if isinstance(targets, (bool, int, float, list, tuple)):
        dtype = "bfloat16" if is_bfloat16(x.dtype) else str(x.dtype)
        if dtype in ("float16", "bfloat16", "float32"):
            raise TypeError(
                f"targets: a {type(targets).__name__} becomes float64, and scores are {dtype}; "
                "pass numpy.asarray(targets, dtype=numpy.float32)"
            )
    return x, t, restore


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Whether it is the bfloat16 of ml_dtypes, or what stands for it here."""
    return dtype.kind == "V" and (dtype == _BFLOAT16 or dtype.name == "bfloat16")


def view_weight(value: Any, name: str) -> Any:
    """A `weight` or `pos_weight` for the native code: None, a number or a NumPy array."""
    if value is None or isinstance(value, (np.ndarray, float, int, np.generic)):
        return value
    return view(value, name).array


def view_out(value: Any) -> Array | None:
    """The NumPy view through which the native code writes into the caller's `out`."""
    if value is None or isinstance(value, np.ndarray):
        return value
    if isinstance(value, (np.generic, bool, int, float, list, tuple)):
        raise TypeError(f"out: expected an array that can be written, got {_type(value)}")
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(value, getattr(jax, "Array", ())):
        raise TypeError("out: JAX arrays are immutable; leave out= away")
    return view(value, "out").array


def view_hessian(value: Any) -> Any:
    """The same for `hessian`, which may be a bool as well."""
    if isinstance(value, (bool, np.ndarray)):
        return value
    if value is None or isinstance(value, (np.generic, int, float, list, tuple)):
        raise TypeError(f"hessian: expected True, False or an array, got {_type(value)}")
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(value, getattr(jax, "Array", ())):
        raise TypeError("hessian: JAX arrays are immutable; pass hessian=True")
    return view(value, "hessian").array


def check_targets(
    targets: Array, ignore_label: int | None, first: int = 0, shape: tuple[int, ...] | None = None
) -> None:
    """Raises ValueError for a target outside [0, 1] that is not ignored. Takes a pass over the data
    and a buffer of fixed size. For the message, `targets` are elements from index `first` on of an
    array of shape `shape`."""
    if ignore_label is not None:
        try:
            ignore_label = operator.index(ignore_label)
        except TypeError:
            return  # the native code refuses it with a better message
        if not -(2**63) <= ignore_label < 2**63:
            return
    _check_blocks(
        targets,
        "targets",
        "values in [0, 1]",
        lambda t: _is_target(t, ignore_label),
        first,
        targets.shape if shape is None else shape,
    )


def check_weight(
    weight: Array | float | None, first: int = 0, shape: tuple[int, ...] | None = None
) -> None:
    """Raises ValueError for an element weight that is negative, infinite or NaN; `first` and
    `shape` as for `check_targets`."""
    if isinstance(weight, np.ndarray) and (weight.dtype.kind in "fi" or is_bfloat16(weight.dtype)):
        _check_blocks(
            weight,
            "weight",
            "finite values >= 0",
            lambda w: np.isfinite(w) & (w >= 0),
            first,
            weight.shape if shape is None else shape,
        )


def _is_target(t: Array, ignore_label: int | None) -> Array:
    good: Array = (t >= 0) & (t <= 1)
    if ignore_label is not None and t.dtype.kind != "f":
        good |= t == ignore_label
    elif ignore_label is not None and float(ignore_label) == ignore_label:
        # In float64, where the label is exact; one that is not has no float target. NaN and
        # infinities cannot be the label, and pass through trunc without a warning.
        good |= np.trunc(t.astype(np.float64, copy=False)) == float(ignore_label)
    return good


def _check_blocks(
    array: Array,
    name: str,
    expected: str,
    good: Callable[[Array], Array],
    first: int,
    shape: tuple[int, ...],
) -> None:
    bfloat16 = is_bfloat16(array.dtype)
    if bfloat16:
        array = array.view(np.uint16)
    if array.dtype.kind not in "fbiu":
        return  # the native code refuses it with a better message
    if array.dtype.kind == "b" or array.size == 0:
        return
    with np.nditer(
        array,
        flags=["external_loop", "buffered", "zerosize_ok"],
        order="C",
        buffersize=_CHECK_BLOCK,
    ) as blocks:
        for step in blocks:
            block = cast(Array, step)  # one operand: an array, not a tuple
            if bfloat16:  # the upper half of a float32
                block = (block.astype(np.uint32) << np.uint32(16)).view(np.float32)
            with np.errstate(invalid="ignore"):  # a signalling NaN is no more of an error
                fits = good(block)
            if not fits.all():
                where = int(np.argmin(fits))
                index = tuple(int(i) for i in np.unravel_index(first + where, shape))
                raise ValueError(
                    f"{name}: expected {expected} with check=True, got {block[where]} "
                    f"at index {index}"
                )
            first += block.size


def _type(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _on_a_gpu(value: Any, name: str) -> TypeError:
    """Where the scores are not: they choose."""
    from sigmoid_ce.devices import library_of  # it takes time, and seldom has a use

    library = library_of(value)
    to_cpu = "" if library is None else library.to_cpu.format(name=name)
    return TypeError(
        f"{name}: expected an array on the CPU, as scores are, got {_type(value)} on a GPU; pass "
        f"{to_cpu}, or scores on that GPU"
    )


def _from_list(value: list[Any] | tuple[Any, ...], name: str) -> Array:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name}: expected a list that becomes a float64 array; {error}") from None


def _from_torch(value: Any, name: str) -> Array:
    if value.requires_grad:
        raise TypeError(f"{name}: the tensor requires grad; pass {name}.detach()")
    if value.is_cuda:
        raise _on_a_gpu(value, name)
    if value.device.type != "cpu":
        raise TypeError(
            f"{name}: expected a tensor on the CPU or on a CUDA GPU, got one on {value.device}; "
            f"pass {name}.cpu()"
        )
    torch = sys.modules["torch"]
    try:
        if value.dtype == torch.bfloat16:
            bits: Array = value.view(torch.int16).numpy()
            return bits.view(_BFLOAT16)
        array: Array = value.numpy()
    except (RuntimeError, TypeError) as error:  # sparse, conjugated, a dtype that NumPy lacks
        reason = str(error).partition("\n")[0]
        raise TypeError(
            f"{name}: expected a dense tensor of a dtype that NumPy has, got {value.dtype}, "
            f"{value.layout}; {reason}"
        ) from None
    return array


def _to_torch(array: Array) -> Any:
    torch = sys.modules["torch"]
    if is_bfloat16(array.dtype):
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _from_jax(value: Any, name: str) -> Array:
    jax = sys.modules["jax"]
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"{name}: JAX tracers have no values; call outside of jit, grad and vmap, or through "
            "jax.pure_callback"
        )
    if gpu_library(value) is not None:
        raise _on_a_gpu(value, name)
    devices = value.devices()
    if len(devices) != 1 or next(iter(devices)).platform != "cpu":
        names = ", ".join(sorted(str(device) for device in devices))
        raise TypeError(
            f"{name}: expected a JAX array on the CPU or on one CUDA GPU, got one on {names}; "
            f"pass jax.device_put({name}, jax.devices('cpu')[0])"
        )
    return np.asarray(value)


def _to_jax(array: Array) -> Any:
    jax = sys.modules["jax"]
    if is_bfloat16(array.dtype):  # which NumPy cannot hand over by DLPack
        return jax.numpy.asarray(array)
    return jax.dlpack.from_dlpack(array)


def _from_dlpack(value: Any, name: str) -> View:
    device, number = value.__dlpack_device__()
    if device != _DLPACK_CPU:
        raise TypeError(
            f"{name}: expected an array on the CPU or on a CUDA GPU, got {_type(value)} on DLPack "
            f"device ({int(device)}, {number})"
        )
    library = sys.modules.get(type(value).__module__.partition(".")[0])
    try:
        array: Array = np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        bits = _bfloat16_from_dlpack(value)
        if bits is None:
            raise TypeError(
                f"{name}: {_type(value)} cannot be read through DLPack; {error}"
            ) from None
        return View(bits, _to_ml_dtypes)
    return View(array, getattr(library, "from_dlpack", _same))


def _to_ml_dtypes(array: Array) -> Any:
    """NumPy cannot hand bfloat16 over by DLPack, so the result stays there."""
    try:
        import ml_dtypes
    except ImportError:
        raise TypeError(
            "scores: bfloat16 results in NumPy need the package ml_dtypes; install it, or pass out="
        ) from None
    return array.view(ml_dtypes.bfloat16)


class _DLTensor(ctypes.Structure):
    """The beginning of what a capsule named "dltensor" points to, by the specification."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),  # in elements, or null
        ("byte_offset", ctypes.c_uint64),
    )


class _Memory:
    """Memory of others as NumPy takes it; `owner` keeps it."""

    def __init__(self, owner: object, interface: dict[str, Any]) -> None:
        self.owner = owner
        self.__array_interface__ = interface


def _bfloat16_from_dlpack(value: Any) -> Array | None:
    """A view of bfloat16, which NumPy does not read; None for any other type.

    The capsule is not consumed but kept, and gives the memory back when it goes.
    """
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    try:
        capsule = value.__dlpack__()
        tensor = _DLTensor.from_address(cast(int, pointer(capsule, b"dltensor")))
    except (BufferError, RuntimeError, TypeError, ValueError):
        return None  # the message of NumPy's attempt is better
    if (tensor.code, tensor.bits, tensor.lanes) != (_DLPACK_BFLOAT, 16, 1):
        return None
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = None
    if tensor.strides:
        strides = tuple(2 * stride for stride in tensor.strides[: tensor.ndim])
    interface = {
        "version": 3,
        "shape": shape,
        "strides": strides,
        "typestr": np.dtype(np.uint16).str,
        # NumPy wants an address even for no elements. Writable: this version of the protocol cannot
        # say otherwise.
        "data": ((tensor.data or 0) + tensor.byte_offset or 2, False),
    }
    return np.asarray(_Memory(capsule, interface)).view(_BFLOAT16)
