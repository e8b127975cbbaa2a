"""This project, through its Python API."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import sigmoid_ce

from ..plan import (
    ALPHA,
    GAMMA,
    HALVES,
    IGNORED_TARGET,
    NO_TARGET,
    POS_WEIGHT,
    SMOOTHING,
    Case,
    Gradient,
    Option,
    Work,
)
from .base import Backend, Form, Tolerance, epsilon, usual_tolerance


class Ours(Backend):
    """sigmoid_ce on NumPy arrays."""

    @property
    def version(self) -> str:
        return str(sigmoid_ce.__version__)

    def forms(
        self,
        case: Case,
        scores: np.ndarray,
        targets: np.ndarray,
        gradient: np.ndarray,
        weight: np.ndarray | None = None,
    ) -> list[Form]:
        options: dict[str, Any] = {}
        if case.option is Option.POS_WEIGHT:
            options["pos_weight"] = POS_WEIGHT
        elif case.option is Option.IGNORE:
            # Of a variant: no targets that are ignored, and no count of the others.
            counts = targets.dtype != np.uint8
            options["ignore_label"] = IGNORED_TARGET if counts else NO_TARGET
        elif case.option is Option.WEIGHT:
            options["weight"] = weight
        elif case.option is Option.SMOOTHING:
            options["label_smoothing"] = SMOOTHING
        elif case.option is Option.BALANCE:
            options["balance"] = "batch"
        elif case.option is Option.FOCAL:
            options.update(gamma=GAMMA, alpha=ALPHA)
        out = gradient if case.gradient is Gradient.REUSED else None
        if case.work is Work.ELEMENTWISE:
            return [
                Form(
                    "sigmoid_ce.elementwise",
                    lambda: sigmoid_ce.elementwise(scores, targets, out=out, **options),
                    lambda result: (None, result),
                )
            ]
        valid = case.option is Option.IGNORE and targets.dtype != np.uint8
        options["normalization"] = "valid" if valid else "full"
        if case.work is Work.FORWARD:
            return [
                Form(
                    "sigmoid_ce.forward",
                    lambda: sigmoid_ce.forward(scores, targets, **options),
                    lambda loss: (loss, None),
                )
            ]
        if case.work is Work.BACKWARD:
            return [
                Form(
                    "sigmoid_ce.backward",
                    lambda: sigmoid_ce.backward(scores, targets, out=out, **options),
                    lambda result: (None, result),
                )
            ]
        return [
            Form(
                "sigmoid_ce.forward_backward",
                lambda: sigmoid_ce.forward_backward(scores, targets, out=out, **options),
                lambda result: result,
            )
        ]

    def tolerance(self, case: Case, targets: str) -> Tolerance:
        return kernels_tolerance(case, targets)


def kernels_tolerance(case: Case, targets: str) -> Tolerance:
    """Loss: 1 ulp of the dtype. Gradient: 2 ulp, then the scale's and the product's roundings.

    Hard targets have a bound relative to each element, soft ones relative to the largest term. In
    float64 the reference's own errors are of the same size, so there is room for them. Options
    round once or twice more, and their largest factor is 3.
    """
    if case.dtype in HALVES:
        # Computed in float32, but each element is rounded to 16 bits once.
        usual = usual_tolerance(case)
        return Tolerance(loss=1e-6, gradient=usual.gradient)
    room = 1 if case.dtype == "float32" else 8
    if case.option is not Option.NONE:
        room *= 4
    step = room * epsilon(case)
    # The losses of elements are judged by the element too.
    if targets == "soft" or case.option is Option.SMOOTHING:
        return Tolerance(loss=step, gradient=4 * step)
    return Tolerance(loss=step, gradient=0.0, gradient_relative=4 * step)


@contextmanager
def settings(threads: int, isa: str | None) -> Iterator[None]:
    """Runs ours on so many threads and with that instruction set, then as before."""
    threads_before = sigmoid_ce.get_num_threads()
    sigmoid_ce.set_num_threads(threads)
    sigmoid_ce.set_isa(isa)
    try:
        yield
    finally:
        sigmoid_ce.set_isa(None)
        sigmoid_ce.set_num_threads(threads_before)
