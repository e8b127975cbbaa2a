"""Sigmoid cross-entropy loss and its gradient: exact in the tails, the same bits everywhere."""

from sigmoid_ce import cpu, reference
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
    elementwise,
    forward,
    forward_backward,
    info,
    partial,
    partial_backward,
)

__all__ = [
    "Partial",
    "SigmoidCrossEntropyLoss",
    "__version__",
    "available_isas",
    "backward",
    "combine",
    "compiled_isas",
    "cpu",
    "elementwise",
    "forward",
    "forward_backward",
    "get_isa",
    "get_num_threads",
    "info",
    "partial",
    "partial_backward",
    "reference",
    "set_isa",
    "set_num_threads",
]
