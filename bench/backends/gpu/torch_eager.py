"""PyTorch as most of its users run it."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from ...gpu_data import POS_WEIGHT, Arrays, Tensor, ignored_label
from ...gpu_plan import GpuCase
from ...plan import Work
from .base import GpuBackend, GpuForm


def loss_function(case: GpuCase, device: torch.device) -> tuple[str, Any]:
    """The case in PyTorch's words, and a function of scores and targets."""
    if case.options == "pos_weight":
        p = torch.tensor(POS_WEIGHT, device=device)

        def weighted(x: Tensor, t: Tensor) -> Tensor:
            return binary_cross_entropy_with_logits(x, t.to(x.dtype), pos_weight=p)

        return "with pos_weight", weighted
    if case.options == "ignore_label":
        label = ignored_label(case)

        def masked(x: Tensor, t: Tensor) -> Tensor:
            valid = (t != label).to(x.dtype)
            t = t.to(x.dtype)
            losses = binary_cross_entropy_with_logits(x, t, weight=valid, reduction="sum")
            return losses / valid.sum()

        return "weight=mask, sum over the mask's sum", masked
    if case.targets:

        def converted(x: Tensor, t: Tensor) -> Tensor:
            return binary_cross_entropy_with_logits(x, t.to(x.dtype))

        return "targets converted", converted
    return "", binary_cross_entropy_with_logits


class TorchEager(GpuBackend):
    """binary_cross_entropy_with_logits and autograd, which allocates its gradient, and needs the
    forward pass for it: backward alone is both passes."""

    @property
    def version(self) -> str:
        return f"torch {torch.__version__}"

    def forms(self, case: GpuCase, sets: list[Arrays]) -> list[GpuForm]:
        remark, loss_of = loss_function(case, sets[0].scores.device)
        label = "binary_cross_entropy_with_logits" + (f" ({remark})" if remark else "")
        return [autograd_form(case, sets, label, loss_of)]


def autograd_form(case: GpuCase, sets: list[Arrays], label: str, loss_of: Any) -> GpuForm:
    """`loss_of`, and where a gradient is asked for, autograd after it."""
    if case.work is Work.FORWARD:
        return GpuForm(
            label, lambda i: loss_of(sets[i].scores, sets[i].targets), lambda loss: (loss, None)
        )
    leaves = [arrays.scores.detach().requires_grad_() for arrays in sets]
    scale = torch.tensor(case.loss_weight, dtype=leaves[0].dtype, device=leaves[0].device)

    def both(i: int) -> tuple[Tensor, Tensor]:
        x = leaves[i]
        loss = loss_of(x, sets[i].targets)
        return loss, torch.autograd.grad(loss, x, grad_outputs=scale)[0]

    def unpack(result: Any) -> tuple[Tensor | None, Tensor]:
        return (None if case.work is Work.BACKWARD else result[0].detach()), result[1]

    return GpuForm(f"{label}, autograd.grad", both, unpack)
