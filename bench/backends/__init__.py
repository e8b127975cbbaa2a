"""What is compared. A backend is one file here with one class, and one line below."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from .base import Backend

# Its name in the report: module of this package, class in it.
PEERS = {
    "PyTorch": ("torch_eager", "TorchEager"),
    "torch.compile": ("torch_compile", "TorchCompile"),
    "JAX": ("jax_jit", "JaxJit"),
    "NumPy": ("numpy_layer", "NumpyLayer"),
}


@dataclass(frozen=True)
class Missing:
    """A peer that cannot be measured here, and why. It is listed in the report."""

    reason: str


def load(name: str, threads: int) -> Backend | Missing:
    """The peer of that name, on so many threads, or the reason why it is missing."""
    module, class_name = PEERS[name]
    try:
        backend: type[Backend] = getattr(import_module(f".{module}", __package__), class_name)
    except ImportError as error:
        return Missing(f"not installed ({error})")
    return backend(threads)
