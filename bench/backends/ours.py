"""This project, through its Python API."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

import sigmoid_ce

from ..plan import Case, Gradient, Work
from .base import Backend, Form, Tolerance


class Ours(Backend):
    """sigmoid_ce on NumPy arrays."""

    @property
    def version(self) -> str:
        return str(sigmoid_ce.__version__)

    def forms(
        self, case: Case, scores: np.ndarray, targets: np.ndarray, gradient: np.ndarray
    ) -> list[Form]:
        out = gradient if case.gradient is Gradient.REUSED else None
        if case.work is Work.FORWARD:
            return [
                Form(
                    "sigmoid_ce.forward",
                    lambda: sigmoid_ce.forward(scores, targets, normalization="full"),
                    lambda loss: (loss, None),
                )
            ]
        if case.work is Work.BACKWARD:
            return [
                Form(
                    "sigmoid_ce.backward",
                    lambda: sigmoid_ce.backward(scores, targets, normalization="full", out=out),
                    lambda result: (None, result),
                )
            ]
        return [
            Form(
                "sigmoid_ce.forward_backward",
                lambda: sigmoid_ce.forward_backward(scores, targets, normalization="full", out=out),
                lambda result: result,
            )
        ]

    def tolerance(self, case: Case, targets: str) -> Tolerance:
        """Loss: 1 float32 ulp. Gradient: 2 ulp, then the roundings of the scale and of the product.

        Hard targets have a bound relative to each element, soft ones relative to the largest term.
        In float64 the reference's own errors are of the same size, so there is room for them.
        """
        epsilon = float(np.finfo(case.dtype).eps)
        room = 1 if case.dtype == "float32" else 8
        if targets == "soft":
            return Tolerance(loss=room * epsilon, gradient=4 * room * epsilon)
        return Tolerance(loss=room * epsilon, gradient=0.0, gradient_relative=4 * room * epsilon)


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
