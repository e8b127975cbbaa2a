"""PyTorch compiled by Inductor, anew for each case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ..plan import Case, Gradient, Work
from .base import Backend, Form, Tolerance, usual_tolerance


class TorchCompile(Backend):
    """Functions compiled for fixed sizes.

    A reused gradient is an argument that the compiled function fills with copy_, which Inductor
    turns into stores from the loop that computes it. Two ways to state the gradient: derived by
    PyTorch from binary_cross_entropy_with_logits, and written by hand as (sigmoid(x) - t) / n.
    """

    compiles = True

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        torch.set_num_threads(threads)

    @property
    def version(self) -> str:
        return f"torch {torch.__version__}"

    def forms(
        self, case: Case, scores: np.ndarray, targets: np.ndarray, gradient: np.ndarray
    ) -> list[Form]:
        torch._dynamo.reset()
        x = torch.from_numpy(scores)
        t = torch.from_numpy(targets)
        out = torch.from_numpy(gradient)
        scale = 1.0 / scores.size
        derived = torch.func.grad_and_value(binary_cross_entropy_with_logits)

        def by_hand(x: Tensor, t: Tensor) -> Tensor:
            return (torch.sigmoid(x) - t) * scale

        if case.work is Work.FORWARD:
            compiled = _compiled(binary_cross_entropy_with_logits)
            return [
                Form(
                    "binary_cross_entropy_with_logits",
                    lambda: compiled(x, t),
                    lambda loss: (loss.item(), None),
                )
            ]

        # The function returns (loss, gradient) or writes the gradient to its third argument.
        def hand_fresh(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            return binary_cross_entropy_with_logits(x, t), by_hand(x, t)

        def hand_reused(x: Tensor, t: Tensor, out: Tensor) -> Tensor:
            out.copy_(by_hand(x, t))
            return binary_cross_entropy_with_logits(x, t)

        def derived_fresh(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            result, loss = derived(x, t)
            return loss, result

        def derived_reused(x: Tensor, t: Tensor, out: Tensor) -> Tensor:
            result, loss = derived(x, t)
            out.copy_(result)
            return loss

        def hand_backward(x: Tensor, t: Tensor, out: Tensor) -> None:
            out.copy_(by_hand(x, t))

        def derived_backward(x: Tensor, t: Tensor, out: Tensor) -> None:
            out.copy_(derived(x, t)[0])

        by_name: dict[str, Callable[..., Any]]
        if case.work is Work.BACKWARD:
            by_name = {"gradient by hand": hand_backward, "func.grad": derived_backward}
            return [
                _writing(label, _compiled(function), x, t, out, lambda _: (None, out.numpy()))
                for label, function in by_name.items()
            ]
        if case.gradient is Gradient.REUSED:
            by_name = {"gradient by hand": hand_reused, "func.grad_and_value": derived_reused}
            return [
                _writing(
                    label, _compiled(function), x, t, out, lambda loss: (loss.item(), out.numpy())
                )
                for label, function in by_name.items()
            ] + [_autograd(x, t)]  # allocates its gradient, but is the usual way
        by_name = {"gradient by hand": hand_fresh, "func.grad_and_value": derived_fresh}
        return [
            _returning(label, _compiled(function), x, t) for label, function in by_name.items()
        ] + [_autograd(x, t)]

    def tolerance(self, case: Case, targets: str) -> Tolerance:
        return usual_tolerance(case)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(function, dynamic=False)
    return compiled


def _writing(
    label: str,
    function: Callable[..., Any],
    x: Tensor,
    t: Tensor,
    out: Tensor,
    unpack: Callable[[Any], tuple[float | None, np.ndarray | None]],
) -> Form:
    return Form(label, lambda: function(x, t, out), unpack)


def _returning(label: str, function: Callable[..., Any], x: Tensor, t: Tensor) -> Form:
    return Form(label, lambda: function(x, t), lambda result: (result[0].item(), result[1].numpy()))


def _autograd(x: Tensor, t: Tensor) -> Form:
    """The compiled loss, and autograd from outside: what a training loop does."""
    function = _compiled(binary_cross_entropy_with_logits)
    leaf = x.detach().requires_grad_()

    def run() -> tuple[Tensor, Tensor]:
        loss = function(leaf, t)
        return loss, torch.autograd.grad(loss, leaf)[0]

    return Form("autograd.grad", run, lambda result: (result[0].item(), result[1].numpy()))
