"""PyTorch as most of its users run it."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from ..plan import Case, Work
from .base import Backend, Form, Tolerance, usual_tolerance


class TorchEager(Backend):
    """binary_cross_entropy_with_logits and autograd.

    autograd has no out=: each call allocates its gradient, also where a case asks to reuse one, and
    what is reused is what the allocator gives back.
    """

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        torch.set_num_threads(threads)

    @property
    def version(self) -> str:
        return f"torch {torch.__version__}"

    def forms(
        self, case: Case, scores: np.ndarray, targets: np.ndarray, gradient: np.ndarray
    ) -> list[Form]:
        x = torch.from_numpy(scores)
        t = torch.from_numpy(targets)
        if case.work is Work.FORWARD:
            return [
                Form(
                    "binary_cross_entropy_with_logits",
                    lambda: binary_cross_entropy_with_logits(x, t),
                    lambda loss: (loss.item(), None),
                )
            ]
        x.requires_grad_()
        if case.work is Work.BACKWARD:
            loss = binary_cross_entropy_with_logits(x, t)
            return [
                Form(
                    "autograd.grad of a kept graph",
                    lambda: torch.autograd.grad(loss, x, retain_graph=True)[0],
                    lambda result: (None, result.numpy()),
                )
            ]

        def both() -> tuple[torch.Tensor, torch.Tensor]:
            loss = binary_cross_entropy_with_logits(x, t)
            return loss, torch.autograd.grad(loss, x)[0]

        return [
            Form(
                "binary_cross_entropy_with_logits, autograd.grad",
                both,
                lambda result: (result[0].item(), result[1].numpy()),
            )
        ]

    def tolerance(self, case: Case, targets: str) -> Tolerance:
        return usual_tolerance(case)
