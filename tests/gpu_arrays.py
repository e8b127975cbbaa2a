"""Arrays of each library on the GPU, so that one test serves all of them.

Half types travel as float32 arrays of numbers that the type holds, since NumPy has no bfloat16.
"""

from __future__ import annotations

import os
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np

FLOATS = ("float16", "bfloat16", "float32", "float64")
HALVES = ("float16", "bfloat16")


def rounded(values: Any, dtype: str) -> Any:
    """The nearest numbers of a type, ties to even: float32 arrays for half types."""
    if dtype == "float64":
        return np.asarray(values, np.float64)
    with np.errstate(over="ignore"):
        single = np.asarray(values, np.float32)
        if dtype == "float32":
            return single
        if dtype == "float16":
            return single.astype(np.float16).astype(np.float32)
    bits = single.view(np.uint32).astype(np.uint64)
    upper = (bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) & np.uint64(0xFFFF0000)
    return np.where(np.isnan(single), single, upper.astype(np.uint32).view(np.float32))


class Missing(Exception):
    """The library is not here, or sees no GPU. The message says which."""


class Library:
    """Arrays of one library. dtypes: of scores that its arrays may have."""

    name: str
    dtypes: tuple[str, ...] = FLOATS
    writes = True  # whether its arrays can be `out`
    views = True  # whether it has views with any strides

    def put(self, array: Any, dtype: str | None = None) -> Any:
        """The values of a NumPy array on the GPU, as a contiguous array of `dtype`."""
        raise NotImplementedError

    def get(self, array: Any) -> Any:
        """A NumPy array, when all work on the array is done."""
        raise NotImplementedError

    def strided(self, flat: Any, shape: Any, strides: Any, offset: int = 0) -> Any:
        """A view of a 1-D array, strides and offset in elements."""
        raise NotImplementedError

    def is_own(self, array: Any) -> bool:
        """Whether a result is an array of this library on the GPU."""
        raise NotImplementedError


class Torch(Library):
    name = "torch"

    def __init__(self) -> None:
        try:
            import torch
        except ImportError as error:
            raise Missing(f"PyTorch is not installed ({error})") from None
        if not torch.cuda.is_available():
            raise Missing(f"PyTorch {torch.__version__} sees no GPU")
        self.torch = torch

    def put(self, array: Any, dtype: str | None = None) -> Any:
        tensor = self.torch.from_numpy(np.array(array, order="C"))
        if dtype is not None:
            tensor = tensor.to(getattr(self.torch, dtype))
        return tensor.cuda()

    def get(self, array: Any) -> Any:
        half = array.dtype in (self.torch.float16, self.torch.bfloat16)
        return (array.float() if half else array).cpu().numpy()

    def strided(self, flat: Any, shape: Any, strides: Any, offset: int = 0) -> Any:
        return flat.as_strided(tuple(shape), tuple(strides), offset)

    def is_own(self, array: Any) -> bool:
        return isinstance(array, self.torch.Tensor) and bool(array.is_cuda)


class Cupy(Library):
    name = "cupy"

    def __init__(self) -> None:
        try:
            import cupy
        except ImportError as error:
            raise Missing(f"CuPy is not installed ({error})") from None
        try:
            cupy.cuda.runtime.getDeviceCount()
        except Exception as error:
            raise Missing(f"CuPy sees no GPU ({error})") from None
        self.cupy = cupy
        self.dtypes = ("float16", "float32", "float64")

    def put(self, array: Any, dtype: str | None = None) -> Any:
        return self.cupy.asarray(np.array(array, dtype=dtype, order="C"))

    def get(self, array: Any) -> Any:
        array = self.cupy.asnumpy(array)
        return array.astype(np.float32) if array.dtype == np.float16 else array

    def strided(self, flat: Any, shape: Any, strides: Any, offset: int = 0) -> Any:
        return self.cupy.lib.stride_tricks.as_strided(
            flat[offset:], shape, [stride * flat.itemsize for stride in strides]
        )

    def is_own(self, array: Any) -> bool:
        return isinstance(array, self.cupy.ndarray)


class Jax(Library):
    name = "jax"
    writes = False
    views = False

    def __init__(self) -> None:
        # Else JAX takes most of the memory, and others find none.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        try:
            import jax
        except ImportError as error:
            raise Missing(f"JAX is not installed ({error})") from None
        try:
            self.device = jax.devices("gpu")[0]
        except RuntimeError as error:
            raise Missing(f"JAX sees no GPU ({str(error).splitlines()[0]})") from None
        jax.config.update("jax_enable_x64", True)  # float64 stays what it is
        self.jax = jax

    def put(self, array: Any, dtype: str | None = None) -> Any:
        value = self.jax.numpy.asarray(np.array(array, order="C"), dtype=dtype)
        return self.jax.device_put(value, self.device)

    def get(self, array: Any) -> Any:
        wide = array.dtype.name in HALVES
        return np.asarray(array).astype(np.float32) if wide else np.asarray(array)

    def is_own(self, array: Any) -> bool:
        own = isinstance(array, self.jax.Array)
        return own and next(iter(array.devices())).platform in ("gpu", "cuda")


class Numba(Library):
    name = "numba"

    def __init__(self) -> None:
        try:
            from numba import cuda
        except ImportError as error:
            raise Missing(f"Numba is not installed ({error})") from None
        if not cuda.is_available():
            raise Missing("Numba sees no GPU")
        self.cuda = cuda
        self.dtypes = ("float16", "float32", "float64")
        self.views = False

    def put(self, array: Any, dtype: str | None = None) -> Any:
        return self.cuda.to_device(np.array(array, dtype=dtype, order="C"))

    def get(self, array: Any) -> Any:
        array = array.copy_to_host()
        return array.astype(np.float32) if array.dtype == np.float16 else array

    def is_own(self, array: Any) -> bool:
        return bool(self.cuda.is_cuda_array(array)) and "numba" in type(array).__module__


class _HostMemory:
    """An array whose "device" memory is the emulation's: that of the host. Half types as bits."""

    def __init__(self, array: Any, dtype: str) -> None:
        self.array = array
        self.dtype = dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    # How the package finds out that this is an array on a GPU. It is then read by _Reader.
    __cuda_array_interface__: Any = None


class _Reader:
    """In the place of cuda-core's StridedMemoryView, which cannot be had without a driver."""

    def __init__(self, value: Any) -> None:
        memory = isinstance(value, _HostMemory)
        self.ptr = value.array.ctypes.data if memory else value.address
        self.shape = tuple(value.shape)
        self.strides = None
        size = np.dtype("u2" if value.dtype == "bfloat16" else value.dtype).itemsize
        if memory:
            self.strides = tuple(stride // size for stride in value.array.strides)
        self.dtype = SimpleNamespace(name=value.dtype, itemsize=size)
        self.device_id = 0
        self.readonly = False

    @classmethod
    def from_any_interface(cls, value: Any, stream_ptr: int) -> _Reader:
        return cls(value)


class Emulated(Library):
    """For the package built with SIGMOID_CE_CUDA=EMULATED: what these tests are tested with."""

    name = "emulated"

    def __init__(self) -> None:
        from sigmoid_ce import devices

        devices._strided_memory_view = lambda: _Reader  # type: ignore[assignment]

    def put(self, array: Any, dtype: str | None = None) -> Any:
        array = np.array(array, order="C")
        name = dtype or array.dtype.name
        if name == "float16":
            return _HostMemory(array.astype(np.float16).view(np.uint16), name)
        if name == "bfloat16":
            bits = np.asarray(rounded(array, name), np.float32).view(np.uint32) >> np.uint32(16)
            return _HostMemory(bits.astype(np.uint16), name)
        return _HostMemory(array.astype(name, copy=False), name)

    def get(self, array: Any) -> Any:
        if not isinstance(array, _HostMemory):
            found = array.copy_to_host()
            return found.astype(np.float32) if array.dtype in HALVES else found
        if array.dtype == "float16":
            return array.array.view(np.float16).astype(np.float32)
        if array.dtype == "bfloat16":
            return (array.array.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return array.array.copy()

    def strided(self, flat: Any, shape: Any, strides: Any, offset: int = 0) -> Any:
        base = flat.array[offset:]
        strides = [stride * base.itemsize for stride in strides]
        return _HostMemory(np.lib.stride_tricks.as_strided(base, shape, strides), flat.dtype)

    def is_own(self, array: Any) -> bool:
        return type(array).__name__ == "DeviceArray" or isinstance(array, _HostMemory)


LIBRARIES = {kind.name: kind for kind in (Torch, Cupy, Jax, Numba, Emulated)}
_loaded: dict[str, Library | Missing] = {}


def load(name: str) -> Library:
    """The library of that name. Raises Missing."""
    if name not in _loaded:
        try:
            with warnings.catch_warnings():  # of other people's imports
                warnings.simplefilter("ignore")
                _loaded[name] = LIBRARIES[name]()
        except Missing as error:
            _loaded[name] = error
    found = _loaded[name]
    if isinstance(found, Missing):
        raise found
    return found
