"""The operations of Caffe's own layer, one after the other, on arrays that are kept."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ...gpu_data import Arrays, Tensor
from ...gpu_plan import GpuCase
from ...plan import Work
from .base import GpuBackend, GpuForm, NotHere

_BLOCK = 512


@triton.jit
def _losses(x_ptr, t_ptr, loss_ptr, count_ptr, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Each loss, and a 1 to count it."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    t = tl.load(t_ptr + at, mask=inside, other=0.0)
    positive = tl.where(x >= 0, 1.0, 0.0)
    loss = tl.log(1 + tl.exp(x - 2 * x * positive)) - x * (t - positive)
    tl.store(loss_ptr + at, loss, mask=inside)
    tl.store(count_ptr + at, positive * 0 + 1, mask=inside)


class CaffeOperations(GpuBackend):
    """Forward: the sigmoid into an array, losses and counts into the two diffs, the sum of absolute
    values, and the diffs cleared. Backward: the sigmoid copied, minus the targets, times a factor.
    Unlike in Caffe, nothing waits for the sum."""

    compiles = True

    @property
    def version(self) -> str:
        return f"torch {torch.__version__}, triton {triton.__version__}"

    def forms(self, case: GpuCase, sets: list[Arrays]) -> list[GpuForm]:
        if case.dtype not in ("float32", "float64") or case.targets:
            raise NotHere("no such type in Caffe")
        if case.options:
            raise NotHere("only without options")
        sigmoids = [torch.sigmoid(a.scores) for a in sets]
        label_diffs = [torch.empty_like(a.scores) for a in sets]
        diffs = [torch.empty_like(a.scores) for a in sets]
        n, scale = case.elements, case.loss_weight / case.elements
        grid = (triton.cdiv(n, _BLOCK),)

        def forward(i: int) -> Tensor:
            a = sets[i]
            torch.sigmoid(a.scores, out=sigmoids[i])
            _losses[grid](a.scores, a.targets, diffs[i], label_diffs[i], n, BLOCK=_BLOCK)
            total = torch.linalg.vector_norm(diffs[i], ord=1)
            diffs[i].zero_()
            label_diffs[i].zero_()
            return total / n

        def backward(i: int) -> Tensor:
            diff = diffs[i]
            diff.copy_(sigmoids[i])
            diff.sub_(sets[i].targets)
            return diff.mul_(scale)

        def run(i: int) -> tuple[Any, Any]:
            loss = forward(i) if case.work is not Work.BACKWARD else None
            return loss, backward(i) if case.work is not Work.FORWARD else None

        return [GpuForm("separate kernels", run, lambda result: result)]
