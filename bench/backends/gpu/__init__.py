"""What is compared on the GPU. A backend is one file here with one class, and one line below."""

from __future__ import annotations

from importlib import import_module

from ...gpu_plan import CAFFE, COMPILE, COMPILE_BY_HAND, CUPY, PYTORCH, TRITON
from .. import Missing
from .base import GpuBackend

# Its name in the report: module of this package, class in it.
PEERS = {
    PYTORCH: ("torch_eager", "TorchEager"),
    COMPILE: ("torch_compile", "TorchCompile"),
    COMPILE_BY_HAND: ("torch_compile", "TorchCompileByHand"),
    TRITON: ("triton_kernels", "TritonKernels"),
    CUPY: ("cupy_fusion", "CupyFusion"),
    CAFFE: ("caffe_operations", "CaffeOperations"),
}


def load(name: str) -> GpuBackend | Missing:
    """The peer of that name, or the reason why it is missing."""
    module, class_name = PEERS[name]
    try:
        backend: type[GpuBackend] = getattr(import_module(f".{module}", __package__), class_name)
        return backend()
    except ImportError as error:
        return Missing(f"not installed ({error})")
