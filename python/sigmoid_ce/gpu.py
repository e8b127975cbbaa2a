"""Whether an array is on a GPU, and whose it is. No library is imported for that."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

_DLPACK_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged of DLPack's DLDeviceType
_NEVER = (np.ndarray, np.generic, bool, int, float, list, tuple, type(None))


def gpu_library(value: Any) -> str | None:
    """For an array on a GPU "torch", "cupy", "jax", "numba.cuda" or "other"; None for all else."""
    if isinstance(value, _NEVER):
        return None
    if is_of(value, "torch", "Tensor"):
        return "torch" if value.is_cuda else None
    if is_of(value, "cupy", "ndarray"):
        return "cupy"
    if is_of(value, "jax", "Array"):
        return "jax" if _is_jax_on_a_gpu(value) else None
    if hasattr(value, "__cuda_array_interface__"):
        return "numba.cuda" if type(value).__module__.startswith("numba.") else "other"
    if hasattr(value, "__dlpack_device__") and value.__dlpack_device__()[0] in _DLPACK_CUDA:
        return "other"
    return None


def is_of(value: Any, module: str, name: str) -> bool:
    """Whether it is of a class of a library."""
    library = sys.modules.get(module)
    return library is not None and isinstance(value, getattr(library, name, ()))


def _is_jax_on_a_gpu(value: Any) -> bool:
    if is_of(value, "jax.core", "Tracer"):
        return False
    devices = value.devices()
    return len(devices) == 1 and next(iter(devices)).platform in ("gpu", "cuda")
