"""The bound native functions: as in `sigmoid_ce`, for NumPy arrays only and without `check`.

Positional arguments follow the order of the signatures of `sigmoid_ce`, but the options from
`uncertain` to `alpha` stand after the others.
"""

from sigmoid_ce._cpu import (
    backward,
    backward_targets,
    elementwise,
    forward,
    forward_backward,
    partial,
    partial_backward,
)

__all__ = [
    "backward",
    "backward_targets",
    "elementwise",
    "forward",
    "forward_backward",
    "partial",
    "partial_backward",
]
