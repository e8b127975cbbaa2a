"""The layer in NumPy as blog posts for users of Caffe have it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..plan import POS_WEIGHT, Case, Gradient, Option, Work
from .base import Backend, Form, Tolerance, Unsupported, no_family, no_halves, usual_tolerance


class BlogLayer:
    """Formulas of the widely copied Python layers, plain and with a weight on the positive part.

    The forward pass computes the gradient too and keeps it, as they do, and the backward pass
    copies it. They divide by nothing; here both are means, for the sake of comparison.
    """

    def __init__(self, pos_weight: float | None = None) -> None:
        self.pos_weight = pos_weight
        self.diff: np.ndarray | None = None

    def losses(self, x: np.ndarray, t: np.ndarray) -> Any:
        """Of the elements; their gradients are in `diff` then."""
        if self.pos_weight is None:
            losses = np.maximum(x, 0) - x * t + np.log(1 + np.exp(-np.abs(x)))
            self.diff = 1 / (1 + np.exp(-x)) - t
        else:
            factor = self.pos_weight
            losses = (1 - t) * x + (1 + (factor - 1) * t) * np.log(1 + np.exp(-x))
            self.diff = ((factor - 1) * t + 1) * (1 / (1 + np.exp(-x))) - factor * t
        return losses

    def forward(self, x: np.ndarray, t: np.ndarray) -> Any:
        return np.sum(self.losses(x, t)) / x.size

    def backward(self, out: np.ndarray) -> np.ndarray:
        assert self.diff is not None
        out[...] = self.diff / self.diff.size
        return out


def blog_options(case: Case) -> float | None:
    """The weight of the positive part. Raises Unsupported for what the layers cannot do."""
    if case.work is Work.ELEMENTWISE:
        raise Unsupported("the layer has one output, the loss")
    if case.option in (Option.IGNORE, Option.WEIGHT):
        raise Unsupported(f"the layer has no {case.option.value}")
    return POS_WEIGHT if case.option is Option.POS_WEIGHT else None


class NumpyBlog(Backend):
    """The layer's two passes on arrays, without Caffe. One thread."""

    @property
    def version(self) -> str:
        return f"numpy {np.__version__}"

    def forms(
        self,
        case: Case,
        scores: np.ndarray,
        targets: np.ndarray,
        gradient: np.ndarray,
        weight: np.ndarray | None = None,
    ) -> list[Form]:
        no_family(case)
        layer = BlogLayer(blog_options(case))
        no_halves(case, "NumPy adds up in 16 bits, in which the sum overflows or stops growing")
        if case.work is Work.FORWARD:
            return [
                Form(
                    "forward pass, which computes the gradient too",
                    lambda: layer.forward(scores, targets),
                    lambda loss: (float(loss), None),
                )
            ]
        reused = case.gradient is Gradient.REUSED

        def backward() -> np.ndarray:
            return layer.backward(gradient if reused else np.empty_like(scores))

        if case.work is Work.BACKWARD:
            layer.forward(scores, targets)
            return [
                Form(
                    "backward pass, which copies what the forward pass kept",
                    backward,
                    lambda result: (None, result),
                )
            ]
        return [
            Form(
                "both passes",
                lambda: (layer.forward(scores, targets), backward()),
                lambda result: (float(result[0]), result[1]),
            )
        ]

    def tolerance(self, case: Case, targets: str) -> Tolerance:
        return usual_tolerance(case)
