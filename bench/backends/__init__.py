"""What is compared. A backend is one file here with one class, and one line below."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from .base import Backend, NotAvailable

# Its name in the report: module of this package, class in it.
PEERS = {
    "PyTorch": ("torch_eager", "TorchEager"),
    "PyTorch (trim raised)": ("torch_trim", "TorchTrim"),
    "torch.compile": ("torch_compile", "TorchCompile"),
    "JAX": ("jax_jit", "JaxJit"),
    "TensorFlow": ("tensorflow_function", "TensorFlowFunction"),
    "Numba": ("numba_loop", "NumbaLoop"),
    "scikit-learn": ("sklearn_log_loss", "SklearnLogLoss"),
    "NumPy": ("numpy_layer", "NumpyLayer"),
    "NumPy (blog)": ("numpy_blog", "NumpyBlog"),
    "Caffe built-in": ("caffe_built_in", "CaffeBuiltIn"),
    "Caffe ours in tree": ("caffe_tree", "CaffeTree"),
    "Caffe plugin": ("caffe_plugin", "CaffePlugin"),
    "Caffe Python layer (blog)": ("caffe_python_blog", "CaffePythonBlog"),
    "Caffe Python layer (ours)": ("caffe_python_ours", "CaffePythonOurs"),
}

# Of these, what runs this project's kernels: listed beside the others, but no peer.
OURS_ELSEWHERE = frozenset({"Caffe ours in tree", "Caffe plugin", "Caffe Python layer (ours)"})


@dataclass(frozen=True)
class Missing:
    """A peer that cannot be measured here, and why. It is listed in the report."""

    reason: str


def load(name: str, threads: int) -> Backend | Missing:
    """The peer of that name, on so many threads, or the reason why it is missing."""
    module, class_name = PEERS[name]
    try:
        backend: type[Backend] = getattr(import_module(f".{module}", __package__), class_name)
        return backend(threads)
    except ImportError as error:
        return Missing(f"not installed ({error})")
    except NotAvailable as error:
        return Missing(f"not available here ({error})")
