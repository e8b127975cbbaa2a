"""TensorFlow: a tf.function, with XLA and without."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

# Before the import: else it writes about the CPU and GPUs to stderr, between the progress.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
import tensorflow as tf

from ..plan import HALVES, IGNORED_TARGET, POS_WEIGHT, Case, Option, Work
from .base import Backend, Form, Tolerance, no_family, usual_tolerance


class TensorFlowFunction(Backend):
    """sigmoid_cross_entropy_with_logits in a tf.function, the gradient by GradientTape.

    Tensors cannot be written to: each call allocates its gradient, also where a case asks to reuse
    one, and what is reused is what the allocator gives back.
    """

    compiles = True

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        # No advice on how not to compile anew: here each case is compiled on purpose.
        tf.get_logger().setLevel("ERROR")
        if tf.config.threading.get_intra_op_parallelism_threads() != threads:
            # RuntimeError once a process has computed something: the number cannot change then.
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(1)

    @property
    def version(self) -> str:
        return f"tensorflow {tf.__version__}"

    def forms(
        self,
        case: Case,
        scores: np.ndarray,
        targets: np.ndarray,
        gradient: np.ndarray,
        weight: np.ndarray | None = None,
    ) -> list[Form]:
        no_family(case)
        arrays = [tf.constant(scores), tf.constant(targets)]
        if weight is not None:
            arrays.append(tf.constant(weight))
        work: Callable[..., Any]
        if case.work in (Work.FORWARD, Work.ELEMENTWISE):

            def work(*arrays: Any) -> Any:
                return _value(case, *arrays)

        else:

            def work(*arrays: Any) -> Any:
                loss, slope = _with_gradient(case, *arrays)
                return slope if case.work is Work.BACKWARD else (loss, slope)

        return [
            self._form(case, "tf.function, XLA", work, arrays, jit=True),
            self._form(case, "tf.function", work, arrays, jit=False),
        ]

    def _form(
        self, case: Case, label: str, work: Callable[..., Any], arrays: list[Any], *, jit: bool
    ) -> Form:
        function = _compiled(work, jit=jit)

        def unpack(result: Any) -> tuple[float | None, np.ndarray | None]:
            if case.work is Work.FORWARD:
                return float(result), None
            if case.work is Work.BOTH:
                return float(result[0]), result[1].numpy()
            return None, result.numpy()

        return Form(label, lambda: function(*arrays), unpack)

    def tolerance(self, case: Case, targets: str) -> Tolerance:
        """XLA adds up in float32, a long run after the other: 0.07% off at 2^24 elements. That is
        listed with the figures, and here only more is wrong."""
        usual = usual_tolerance(case)
        return replace(usual, loss=max(usual.loss, 2e-10 * case.elements))


def _compiled(work: Callable[..., Any], *, jit: bool) -> Any:
    # A function of its own: a form must not find what another one traced.
    return tf.function(lambda *arrays: work(*arrays), jit_compile=jit, autograph=False)


def _with_gradient(case: Case, x: Any, *others: Any) -> tuple[Any, Any]:
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = _value(case, x, *others)
    return value, tape.gradient(value, x)


def elements(case: Case, *, jit: bool) -> Callable[..., tuple[Any, Any]]:
    """Of scores and targets, the losses and gradients of the elements by one of the two forms, for
    a case that asks for the losses. For accuracy.py."""
    # Of losses instead of their mean, the tape derives the sum.
    function: Callable[..., tuple[Any, Any]] = _compiled(
        lambda *arrays: _with_gradient(case, *arrays), jit=jit
    )
    return function


def _value(case: Case, x: Any, t: Any, *weight: Any) -> Any:
    """The mean loss, or the losses where they are the work."""
    mask = None
    if case.option is Option.UINT8:
        t = tf.cast(t, x.dtype)
    if case.option is Option.POS_WEIGHT:
        losses = tf.nn.weighted_cross_entropy_with_logits(t, x, POS_WEIGHT)
    else:
        losses = tf.nn.sigmoid_cross_entropy_with_logits(t, x)
    if case.option is Option.WEIGHT:
        losses = losses * weight[0]
    elif case.option is Option.IGNORE:
        mask = tf.cast(t != IGNORED_TARGET, x.dtype)
        losses = losses * mask
    if case.work is Work.ELEMENTWISE:
        return losses
    if case.dtype in HALVES:
        losses = tf.cast(losses, tf.float32)  # a sum in 16 bits would be a sum of few elements
    if mask is not None:
        return tf.reduce_sum(losses) / tf.reduce_sum(tf.cast(mask, losses.dtype))
    return tf.reduce_mean(losses)
