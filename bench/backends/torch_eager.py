"""PyTorch as most of its users run it."""

from __future__ import annotations

import numpy as np
import torch

from ..plan import Case, Work
from .base import Backend, Form, Tolerance, usual_tolerance
from .torch_cases import array, loss_function, tensor, unpack_both


class TorchEager(Backend):
    """binary_cross_entropy_with_logits and autograd.

    autograd has no out=: each call allocates its gradient, also where a case asks to reuse one, and
    what is reused is what the allocator gives back. So are the losses of elements.
    """

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        torch.set_num_threads(threads)

    @property
    def version(self) -> str:
        return f"torch {torch.__version__}"

    def forms(
        self,
        case: Case,
        scores: np.ndarray,
        targets: np.ndarray,
        gradient: np.ndarray,
        weight: np.ndarray | None = None,
    ) -> list[Form]:
        x, t = tensor(scores), tensor(targets)
        w = None if weight is None else tensor(weight)
        function = loss_function(case)
        name = "binary_cross_entropy_with_logits"
        if case.work is Work.FORWARD:
            return [Form(name, lambda: function(x, t, w), lambda loss: (loss.item(), None))]
        if case.work is Work.ELEMENTWISE:
            return [
                Form(
                    f"{name}, reduction='none'",
                    lambda: function(x, t, w),
                    lambda losses: (None, array(losses)),
                )
            ]
        x.requires_grad_()
        if case.work is Work.BACKWARD:
            loss = function(x, t, w)
            return [
                Form(
                    "autograd.grad of a kept graph",
                    lambda: torch.autograd.grad(loss, x, retain_graph=True)[0],
                    lambda result: (None, array(result)),
                )
            ]

        def both() -> tuple[torch.Tensor, torch.Tensor]:
            loss = function(x, t, w)
            return loss, torch.autograd.grad(loss, x)[0]

        return [Form(f"{name}, autograd.grad", both, unpack_both)]

    def tolerance(self, case: Case, targets: str) -> Tolerance:
        return usual_tolerance(case)
