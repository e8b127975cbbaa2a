"""PyTorch compiled by Inductor, anew for each case."""

from __future__ import annotations

from typing import Any

import torch

from ...gpu_data import Arrays, Tensor
from ...gpu_plan import GpuCase
from ...plan import Work
from .base import GpuBackend, GpuForm, NotHere
from .torch_eager import autograd_form, loss_function


class TorchCompile(GpuBackend):
    """The loss compiled for a fixed size, with the backward pass that autograd derives from it."""

    compiles = True

    @property
    def version(self) -> str:
        return f"torch {torch.__version__}"

    def forms(self, case: GpuCase, sets: list[Arrays]) -> list[GpuForm]:
        torch._dynamo.reset()
        remark, loss_of = loss_function(case, sets[0].scores.device)
        label = "compiled" + (f" ({remark})" if remark else "")
        compiled = torch.compile(loss_of, dynamic=False, fullgraph=True)
        return [autograd_form(case, sets, label, compiled)]


class TorchCompileByHand(TorchCompile):
    """The loss and (sigmoid(x) - t) / n, written out in one function that Inductor may fuse."""

    def forms(self, case: GpuCase, sets: list[Arrays]) -> list[GpuForm]:
        if case.work is Work.FORWARD or case.options:
            raise NotHere("only for gradients without options")
        torch._dynamo.reset()
        _, loss_of = loss_function(case, sets[0].scores.device)
        scale = case.loss_weight / case.elements
        backward = case.work is Work.BACKWARD

        def function(x: Tensor, t: Tensor, out: Tensor) -> Any:
            out.copy_((torch.sigmoid(x) - t) * scale)
            return None if backward else loss_of(x, t)

        compiled = torch.compile(function, dynamic=False, fullgraph=True)

        def run(i: int) -> Any:
            a = sets[i]
            return compiled(a.scores, a.targets, a.gradient)

        return [GpuForm("gradient by hand", run, lambda loss: (loss, sets[0].gradient))]
