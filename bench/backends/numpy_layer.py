"""The layer in NumPy as tutorials write it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..plan import IGNORED_TARGET, POS_WEIGHT, Case, Gradient, Option, Work
from .base import Backend, Form, Tolerance, no_family, no_halves, usual_tolerance


def element_losses(x: np.ndarray, t: np.ndarray) -> Any:
    return np.maximum(x, 0) - x * t + _soft(x)


def element_slopes(x: np.ndarray, t: np.ndarray, out: np.ndarray | None = None) -> Any:
    """The gradient of the sum."""
    return np.subtract(_sigmoid(x), t, out=out)


def _soft(x: np.ndarray) -> Any:
    return np.log(1 + np.exp(-np.abs(x)))


def _sigmoid(x: np.ndarray) -> Any:
    return 1 / (1 + np.exp(-x))


class NumpyLayer(Backend):
    """max(x, 0) - x t + log(1 + exp(-|x|)), and sigmoid(x) - t. One thread: NumPy has no more."""

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
        no_halves(case, "NumPy adds up in 16 bits, in which the sum overflows or stops growing")
        x, t, n = scores, targets, scores.size
        option = case.option
        reused = case.gradient is Gradient.REUSED

        def elementwise() -> Any:
            if option is Option.POS_WEIGHT:
                factor = 1 + (POS_WEIGHT - 1) * t
                return (1 - t) * x + factor * (_soft(x) + np.maximum(-x, 0))
            losses = element_losses(x, t)
            if option is Option.WEIGHT:
                losses *= weight
            elif option is Option.IGNORE:
                losses *= t != IGNORED_TARGET
            return losses

        def divisor() -> int:
            return int(np.sum(t != IGNORED_TARGET)) if option is Option.IGNORE else n

        def forward() -> Any:
            return np.sum(elementwise()) / divisor()

        def backward() -> Any:
            out = gradient if reused else None
            if option is Option.POS_WEIGHT:
                slopes = _sigmoid(x)
                slopes *= 1 + (POS_WEIGHT - 1) * t
                result = np.subtract(slopes, POS_WEIGHT * t, out=out)
            else:
                result = element_slopes(x, t, out)
            if option is Option.WEIGHT:
                np.multiply(result, weight, out=result)
            elif option is Option.IGNORE:
                np.multiply(result, t != IGNORED_TARGET, out=result)
            return np.divide(result, divisor(), out=gradient) if reused else result / divisor()

        def losses() -> Any:
            if not reused:
                return elementwise()
            np.copyto(gradient, elementwise())
            return gradient

        if case.work is Work.FORWARD:
            return [Form("NumPy", forward, lambda loss: (float(loss), None))]
        if case.work is Work.BACKWARD:
            return [Form("NumPy", backward, lambda result: (None, result))]
        if case.work is Work.ELEMENTWISE:
            return [Form("NumPy", losses, lambda result: (None, result))]
        return [
            Form(
                "NumPy",
                lambda: (forward(), backward()),
                lambda result: (float(result[0]), result[1]),
            )
        ]

    def tolerance(self, case: Case, targets: str) -> Tolerance:
        return usual_tolerance(case)
