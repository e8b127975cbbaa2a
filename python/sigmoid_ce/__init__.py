"""Sigmoid cross-entropy loss and its gradient: exact in the tails, the same bits everywhere.

Arrays on the CPU or on a CUDA GPU, of any library; the device of the scores picks the kernels.
"""

import importlib
from typing import TYPE_CHECKING, Any

from sigmoid_ce import cpu, presets, reference
from sigmoid_ce._cpu import (
    Partial,
    available_isas,
    combine,
    compiled_isas,
    get_isa,
    get_num_threads,
    set_isa,
    set_num_threads,
)
from sigmoid_ce._cpu import version as __version__
from sigmoid_ce.api import (
    SigmoidCrossEntropyLoss,
    backward,
    backward_targets,
    elementwise,
    forward,
    forward_backward,
    info,
    partial,
    partial_backward,
)

if TYPE_CHECKING:
    from sigmoid_ce import cuda

__all__ = [
    "Partial",
    "SigmoidCrossEntropyLoss",
    "__version__",
    "available_isas",
    "backward",
    "backward_targets",
    "combine",
    "compiled_isas",
    "cpu",
    "cuda",
    "elementwise",
    "forward",
    "forward_backward",
    "get_isa",
    "get_num_threads",
    "info",
    "partial",
    "partial_backward",
    "presets",
    "reference",
    "set_isa",
    "set_num_threads",
]


def __getattr__(name: str) -> Any:
    if name == "cuda":  # imported when it has a use
        return importlib.import_module("sigmoid_ce.cuda")
    raise AttributeError(f"module 'sigmoid_ce' has no attribute {name!r}")
