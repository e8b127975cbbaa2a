"""PyTorch compiled by Inductor, anew for each case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..plan import Case, Gradient, Work
from .base import Backend, Form, Tolerance, usual_tolerance
from .torch_cases import array, gradient_by_hand, loss_function, tensor, unpack_both

Unpack = Callable[[Any], tuple[float | None, np.ndarray | None]]


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
        # By default a function that has been compiled for 8 sizes is run without being compiled.
        for name in ("recompile_limit", "cache_size_limit"):
            if hasattr(torch._dynamo.config, name):
                setattr(torch._dynamo.config, name, 64)

    @property
    def version(self) -> str:
        return f"torch {torch.__version__}"

    def begin(self, case: Case) -> None:
        torch._dynamo.reset()

    def forms(
        self,
        case: Case,
        scores: np.ndarray,
        targets: np.ndarray,
        gradient: np.ndarray,
        weight: np.ndarray | None = None,
    ) -> list[Form]:
        x, t, out = tensor(scores), tensor(targets), tensor(gradient)
        w = None if weight is None else tensor(weight)
        reused = case.gradient is Gradient.REUSED
        loss = loss_function(case)
        by_hand = gradient_by_hand(case, scores.size)
        # Of the first argument, the scores; it returns the gradient and the loss.
        derived = torch.func.grad_and_value(loss)
        name = "binary_cross_entropy_with_logits"

        def form(label: str, function: Callable[..., Any], unpack: Unpack) -> Form:
            compiled = torch.compile(function, dynamic=False)
            return Form(label, lambda: compiled(x, t, w, out), unpack)

        def mean(x: Tensor, t: Tensor, w: Tensor | None, out: Tensor) -> Tensor:
            return loss(x, t, w)

        if case.work is Work.FORWARD:
            return [form(name, mean, lambda loss: (loss.item(), None))]

        # Into the argument, which is not returned: a function that returns its argument does more.
        def stored(result: Tensor, out: Tensor) -> Tensor | None:
            if not reused:
                return result
            out.copy_(result)
            return None

        def only(result: Tensor | None) -> tuple[None, np.ndarray]:
            return None, array(out if result is None else result)

        def with_loss(result: Any) -> tuple[float, np.ndarray]:
            return result[0].item(), array(out if result[1] is None else result[1])

        def elements(x: Tensor, t: Tensor, w: Tensor | None, out: Tensor) -> Any:
            return stored(loss(x, t, w), out)

        if case.work is Work.ELEMENTWISE:
            return [form(f"{name}, reduction='none'", elements, only)]

        def hand_gradient(x: Tensor, t: Tensor, w: Tensor | None, out: Tensor) -> Any:
            assert by_hand is not None
            return stored(by_hand(x, t, w), out)

        def derived_gradient(x: Tensor, t: Tensor, w: Tensor | None, out: Tensor) -> Any:
            return stored(derived(x, t, w)[0], out)

        if case.work is Work.BACKWARD:
            ways = [] if by_hand is None else [form("gradient by hand", hand_gradient, only)]
            return [*ways, form("func.grad", derived_gradient, only)]

        def hand(x: Tensor, t: Tensor, w: Tensor | None, out: Tensor) -> Any:
            assert by_hand is not None
            return loss(x, t, w), stored(by_hand(x, t, w), out)

        def both(x: Tensor, t: Tensor, w: Tensor | None, out: Tensor) -> Any:
            result, value = derived(x, t, w)
            return value, stored(result, out)

        ways = [] if by_hand is None else [form("gradient by hand", hand, with_loss)]
        return [
            *ways,
            form("func.grad_and_value", both, with_loss),
            _autograd(loss, x, t, w),  # allocates its gradient, but is the usual way
        ]

    def tolerance(self, case: Case, targets: str) -> Tolerance:
        return usual_tolerance(case)


# Of the elements: scores and targets to their losses and gradients. For accuracy.py.
Elements = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def elements_by_hand(case: Case) -> Elements:
    """The form "gradient by hand", compiled, of a case that asks for the losses of elements."""
    torch._dynamo.reset()
    gradient = gradient_by_hand(case, 1)  # the mean of one element: not divided
    assert gradient is not None
    loss = loss_function(case)
    return torch.compile(lambda x, t: (loss(x, t), gradient(x, t)), dynamic=False)


def elements_derived(case: Case) -> Elements:
    """The form "func.grad_and_value", compiled, here of the sum instead of the mean."""
    torch._dynamo.reset()
    loss = loss_function(case)

    def total(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        losses = loss(x, t)
        return losses.sum(), losses

    def both(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        gradient, (_, losses) = torch.func.grad_and_value(total, has_aux=True)(x, t)
        return losses, gradient

    return torch.compile(both, dynamic=False)


def _autograd(loss: Callable[..., Tensor], x: Tensor, t: Tensor, w: Tensor | None) -> Form:
    """The compiled loss, and autograd from outside: what a training loop does."""
    function = torch.compile(loss, dynamic=False)
    leaf = x.detach().requires_grad_()

    def run() -> tuple[Tensor, Tensor]:
        value = function(leaf, t, w)
        return value, torch.autograd.grad(value, leaf)[0]

    return Form("autograd.grad", run, unpack_both)
