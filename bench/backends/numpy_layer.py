"""The layer in NumPy as tutorials write it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..plan import Case, Gradient, Work
from .base import Backend, Form, Tolerance, usual_tolerance


class NumpyLayer(Backend):
    """max(x, 0) - x t + log(1 + exp(-|x|)), and sigmoid(x) - t. One thread: NumPy has no more."""

    @property
    def version(self) -> str:
        return f"numpy {np.__version__}"

    def forms(
        self, case: Case, scores: np.ndarray, targets: np.ndarray, gradient: np.ndarray
    ) -> list[Form]:
        x, t, n = scores, targets, scores.size
        reused = case.gradient is Gradient.REUSED

        def forward() -> Any:
            return np.sum(np.maximum(x, 0) - x * t + np.log(1 + np.exp(-np.abs(x)))) / n

        def backward() -> Any:
            sigmoid = 1 / (1 + np.exp(-x))
            if not reused:
                return (sigmoid - t) / n
            np.subtract(sigmoid, t, out=gradient)
            return np.divide(gradient, n, out=gradient)

        if case.work is Work.FORWARD:
            return [Form("NumPy", forward, lambda loss: (float(loss), None))]
        if case.work is Work.BACKWARD:
            return [Form("NumPy", backward, lambda result: (None, result))]
        return [
            Form(
                "NumPy",
                lambda: (forward(), backward()),
                lambda result: (float(result[0]), result[1]),
            )
        ]

    def tolerance(self, case: Case, targets: str) -> Tolerance:
        return usual_tolerance(case)
