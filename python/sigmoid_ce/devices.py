"""Arrays on a GPU, of any library: whose they are, what they are, and results in the same library.

PyTorch tensors are read by their attributes. Arrays of other libraries are read by cuda-core's
StridedMemoryView, through DLPack or __cuda_array_interface__. No library is imported that the
caller has not imported already, except cuda-core, when an array needs it.
"""

from __future__ import annotations

import importlib
import sys
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from sigmoid_ce.gpu import gpu_library
from sigmoid_ce.layout import CODES, ITEMSIZES, SCORES, Shape, View, is_contiguous, targets_of

_LEGACY_STREAM = 1  # as DLPack and __cuda_array_interface__ number it
_DLPACK_CUDA = 2  # kDLCUDA


class CudaError(RuntimeError):
    """No GPU, no driver, a driver that is too old, or an error that CUDA reports.

    CUDA may report an error of work that was started earlier, by whoever it was.
    """

    __module__ = "sigmoid_ce.cuda"


def native() -> Any:
    """The module with the kernels. Raises RuntimeError where this build has none."""
    module = import_native()
    if isinstance(module, ImportError):
        raise RuntimeError(
            f"this build of sigmoid_ce has no CUDA kernels ({module}); install it where nvcc is "
            "found, with pip install -C cmake.define.SIGMOID_CE_CUDA=ON, or copy the arrays to the "
            "CPU"
        )
    return module


@cache
def import_native() -> Any:
    """The module, or the ImportError that says why there is none."""
    try:
        return importlib.import_module("sigmoid_ce._cuda")
    except ImportError as error:
        return error


# ---- Results of our own ----


class DeviceArray:
    """An array on a GPU that belongs to no library; what others take over without a copy.

    It speaks DLPack and __cuda_array_interface__, so that `from_dlpack` of any library takes it.
    """

    def __init__(self, shape: Sequence[int], dtype: str, device: int, stream: int) -> None:
        self.shape = tuple(shape)
        self.dtype = dtype
        self.device = device
        size = ITEMSIZES[dtype]
        for length in self.shape:
            size *= length
        self._memory = native().Memory(device, stream, size)

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype}, device=cuda:{self.device})"

    @property
    def address(self) -> int:
        return int(self._memory.address)

    def __dlpack_device__(self) -> tuple[int, int]:
        return _DLPACK_CUDA, self.device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        if dl_device is not None and tuple(dl_device) != self.__dlpack_device__():
            raise BufferError(f"expected device {self.__dlpack_device__()}, got {dl_device}")
        if copy:
            raise BufferError("copy: expected None or False")
        if stream != -1:
            self._memory.make_wait(stream or _LEGACY_STREAM)
        return self._memory.capsule(self.shape, CODES[self.dtype])

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.dtype == "bfloat16":
            raise AttributeError("__cuda_array_interface__ has no bfloat16")
        # A consumer waits for the legacy stream, which, unlike the stream of the call, stays.
        self._memory.make_wait(_LEGACY_STREAM)
        return {
            "version": 3,
            "shape": self.shape,
            "strides": None,
            "typestr": np.dtype(self.dtype).str,
            "data": (self.address, False),
            "stream": _LEGACY_STREAM,
        }

    def copy_to_host(self) -> Any:
        """A NumPy array, when the work is done. bfloat16 needs the package ml_dtypes."""
        dtype: Any = self.dtype
        if dtype == "bfloat16":
            dtype = importlib.import_module("ml_dtypes").bfloat16
        array = np.empty(self.shape, dtype)
        self._memory.make_wait(_LEGACY_STREAM)
        native().to_host(self.device, _LEGACY_STREAM, self.address, array)
        return array

    def __float__(self) -> float:
        return float(self.copy_to_host().item())

    def _finish(self, stream: int) -> None:
        self._memory.record(stream)


# ---- Libraries ----


class UsualPair(NamedTuple):
    """Scores and targets of one library, device and shape, contiguous, of dtypes that fit."""

    device: int
    shape: Shape
    dtype: str
    elements: int
    inputs: tuple[Any, Any]  # address, strides (None) and code of the dtype of each


class Library:
    """What a call needs of the library of an array. The base reads any array by its protocol."""

    # Memory that the library frees is reused in the order of the stream of the call.
    orders_memory = False
    to_cpu = "a copy on the CPU"
    to_gpu = "a copy on the GPU"

    def stream(self, value: Any) -> int:
        """The stream that work on the array belongs into."""
        interface = getattr(value, "__cuda_array_interface__", None)
        stream = None if interface is None else interface.get("stream")
        return stream or _LEGACY_STREAM

    def describe(self, value: Any, name: str, stream: int) -> tuple[View, Any]:
        """The array, ready for what is put into the stream, and what keeps it alive."""
        return _describe(value, name, stream)

    def usual_pair(self, scores: Any, targets: Any) -> UsualPair | None:
        """The two arrays where they can be read at once, since nothing about them is unusual."""
        return None

    def order_before(self, value: Any, device: int, stream: int) -> None:
        """Makes the stream of another library's call wait for the work of this one. Of the base,
        `describe` has done so."""

    def order_after(self, value: Any, device: int, stream: int) -> bool:
        """Makes this library wait for the stream of another library's call, where that goes."""
        return False

    def empty(
        self, like: Any, shape: Sequence[int], dtype: str, device: int, stream: int
    ) -> tuple[Any, int]:
        """A new array and its address."""
        array = DeviceArray(shape, dtype, device, stream)
        return array, array.address

    def scratch(self, like: Any, size: int, device: int, stream: int) -> tuple[Any, int]:
        """Bytes for the time of a call, and their address."""
        memory = native().Memory(device, stream, size)
        return memory, memory.address

    def finish(self, array: Any, like: Any, stream: int) -> Any:
        """What the caller gets for an array from `empty`, when the work is in the stream."""
        array._finish(stream)
        module = sys.modules.get(type(like).__module__.partition(".")[0])
        from_dlpack = getattr(module, "from_dlpack", None)
        return array if from_dlpack is None else from_dlpack(array)

    def loss_dtype(self) -> str:
        return "float64"

    def refuse_out(self) -> None:
        """Raises TypeError where arrays cannot be written."""

    # ---- For check=True ----

    def namespace(self) -> Any:
        """The module with isfinite and trunc, or None."""
        return None

    def to_float64(self, value: Any) -> Any:
        raise NotImplementedError

    def first_false(self, value: Any) -> int:
        raise NotImplementedError


class _Torch(Library):
    orders_memory = True
    to_cpu = "{name}.cpu()"
    to_gpu = "torch.as_tensor({name}, device=scores.device)"

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        names = ("float16", "bfloat16", "float32", "float64", "uint8", "int8", "int32", "int64")
        self._names = {getattr(torch, name): name for name in (*names, "bool")}
        self._dtypes = {name: dtype for dtype, name in self._names.items()}
        self._pairs = {
            (self._dtypes[x], self._dtypes[t]): (x, CODES[x], CODES[t])
            for x in SCORES
            for t in targets_of(x)
        }

    def stream(self, value: Any) -> int:
        return int(self._torch.cuda.current_stream(value.device).cuda_stream)

    def describe(self, value: Any, name: str, stream: int) -> tuple[View, Any]:
        if value.requires_grad:
            raise TypeError(f"{name}: the tensor requires grad; pass {name}.detach()")
        dtype = self._names.get(value.dtype)
        if dtype is None:
            dtype = str(value.dtype).removeprefix("torch.")
        if value.layout is not self._torch.strided:
            raise TypeError(
                f"{name}: expected a dense tensor, got {value.dtype}, {value.layout}; pass "
                f"{name}.to_dense()"
            )
        if value.is_neg():
            raise TypeError(
                f"{name}: the tensor has its negative bit set; pass {name}.resolve_neg()"
            )
        strides = None
        if not value.is_contiguous():
            itemsize = value.element_size()
            strides = tuple(stride * itemsize for stride in value.stride())
        view = View(value.data_ptr(), value.shape, strides, dtype, value.get_device())
        return view, None

    def usual_pair(self, scores: Any, targets: Any) -> UsualPair | None:
        # A small call takes as long as what Python does for it.
        if type(targets) is not type(scores):
            return None
        shape, device, strided = scores.shape, scores.get_device(), self._torch.strided
        pair = self._pairs.get((scores.dtype, targets.dtype))
        if pair is None or targets.shape != shape or targets.get_device() != device:
            return None
        for tensor in (scores, targets):
            if tensor.layout is not strided or not tensor.is_contiguous():
                return None
            if tensor.requires_grad or tensor.is_neg():
                return None
        dtype, x, t = pair
        inputs = ((scores.data_ptr(), None, x), (targets.data_ptr(), None, t))
        return UsualPair(device, shape, dtype, scores.numel(), inputs)

    def order_before(self, value: Any, device: int, stream: int) -> None:
        native().order_streams(device, stream, self.stream(value))

    def order_after(self, value: Any, device: int, stream: int) -> bool:
        native().order_streams(device, self.stream(value), stream)
        return True

    def empty(
        self, like: Any, shape: Sequence[int], dtype: str, device: int, stream: int
    ) -> tuple[Any, int]:
        array = self._torch.empty(shape, dtype=self._dtypes[dtype], device=like.device)
        return array, array.data_ptr()

    def scratch(self, like: Any, size: int, device: int, stream: int) -> tuple[Any, int]:
        memory = self._torch.empty(size, dtype=self._torch.uint8, device=like.device)
        return memory, memory.data_ptr()

    def finish(self, array: Any, like: Any, stream: int) -> Any:
        return array

    def namespace(self) -> Any:
        return self._torch

    def to_float64(self, value: Any) -> Any:
        return value.double()

    def first_false(self, value: Any) -> int:
        return int(self._torch.nonzero(~value.reshape(-1))[0].item())


class _Cupy(Library):
    orders_memory = True
    to_cpu = "{name}.get()"
    to_gpu = "cupy.asarray({name})"

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy

    def stream(self, value: Any) -> int:
        with value.device:
            return self._cupy.cuda.get_current_stream().ptr or _LEGACY_STREAM

    def order_after(self, value: Any, device: int, stream: int) -> bool:
        native().order_streams(device, self.stream(value), stream)
        return True

    def empty(
        self, like: Any, shape: Sequence[int], dtype: str, device: int, stream: int
    ) -> tuple[Any, int]:
        with like.device:
            array = self._cupy.empty(tuple(shape), _numpy_dtype(dtype))
        return array, array.data.ptr

    def scratch(self, like: Any, size: int, device: int, stream: int) -> tuple[Any, int]:
        return self.empty(like, (size,), "uint8", device, stream)

    def finish(self, array: Any, like: Any, stream: int) -> Any:
        return array

    def namespace(self) -> Any:
        return self._cupy

    def to_float64(self, value: Any) -> Any:
        return value.astype("float64")

    def first_false(self, value: Any) -> int:
        return int(self._cupy.flatnonzero(~value)[0])


class _Jax(Library):
    to_cpu = "jax.device_put({name}, jax.devices('cpu')[0])"
    to_gpu = "jax.device_put({name}, scores.device)"

    def __init__(self, jax: Any) -> None:
        self._jax = jax

    def stream(self, value: Any) -> int:
        return _LEGACY_STREAM  # JAX shows none of its own; it hands over and waits by events

    def finish(self, array: Any, like: Any, stream: int) -> Any:
        array._finish(stream)
        return self._jax.dlpack.from_dlpack(array)

    def loss_dtype(self) -> str:
        # Without x64, JAX would round a float64 array to float32 when it takes it over.
        return "float64" if self._jax.config.jax_enable_x64 else "float32"

    def refuse_out(self) -> None:
        raise TypeError("out: JAX arrays are immutable; leave out= away")


class _Numba(Library):
    to_cpu = "{name}.copy_to_host()"
    to_gpu = "numba.cuda.to_device({name})"

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda

    def stream(self, value: Any) -> int:
        own = value.__cuda_array_interface__.get("stream")
        return own or int(self._cuda.default_stream()) or _LEGACY_STREAM

    def empty(
        self, like: Any, shape: Sequence[int], dtype: str, device: int, stream: int
    ) -> tuple[Any, int]:
        with self._cuda.gpus[device]:
            array = self._cuda.device_array(
                tuple(shape), np.dtype(dtype), stream=getattr(like, "stream", 0)
            )
        return array, array.__cuda_array_interface__["data"][0]

    def finish(self, array: Any, like: Any, stream: int) -> Any:
        return array


def library_of(value: Any) -> Library | None:
    """The library of an array on a GPU, and None for all that is not one."""
    kind = gpu_library(value)
    return None if kind is None else _library(kind)


@cache
def _library(kind: str) -> Library:
    kinds: dict[str, Callable[[Any], Library]] = {
        "torch": _Torch,
        "cupy": _Cupy,
        "jax": _Jax,
        "numba.cuda": _Numba,
    }
    return kinds[kind](sys.modules[kind]) if kind in kinds else Library()


# ---- By protocol ----


def _numpy_dtype(name: str) -> Any:
    if name == "bfloat16":
        return np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    return np.dtype(name)


@cache
def _strided_memory_view() -> Any:
    return importlib.import_module("cuda.core.utils").StridedMemoryView


def _describe(value: Any, name: str, stream: int) -> tuple[View, Any]:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    native().device_count()  # no GPU, no driver: said before anything else can stumble over it
    try:
        reader = _strided_memory_view()
    except ImportError as error:
        raise ImportError(
            f"{name}: to read {kind} on a GPU takes the package cuda-core ({error}); "
            "pip install 'sigmoid-ce[cuda]'"
        ) from None
    try:
        view = reader.from_any_interface(value, stream_ptr=stream)
        dtype = view.dtype.name
    except (BufferError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"{name}: {kind} cannot be read on the GPU; {error}") from None
    shape: Shape = tuple(view.shape)
    itemsize = view.dtype.itemsize
    strides = None
    if view.strides is not None:
        strides = tuple(stride * itemsize for stride in view.strides)
        if is_contiguous(shape, strides, itemsize):
            strides = None
    return View(view.ptr, shape, strides, dtype, view.device_id, view.readonly), view


# ---- Inputs of work that is not done yet ----

_held: deque[tuple[Any, Any]] = deque()


def hold(device: int, stream: int, owners: Sequence[Any]) -> None:
    """Keeps arrays until the work that is in the stream now is done.

    For libraries that may use the memory of an array again as soon as nobody refers to it. The
    references are dropped by a later call.
    """
    for _ in range(len(_held)):
        try:
            event, kept = _held.popleft()
        except IndexError:  # another thread was here
            break
        if event.is_pending():
            _held.append((event, kept))
    if owners:
        _held.append((native().Event(device, stream), tuple(owners)))
