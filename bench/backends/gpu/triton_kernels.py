"""Kernels as one writes them in Triton by hand."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ...gpu_data import Arrays, Tensor
from ...gpu_plan import GpuCase
from ...plan import Work
from .base import GpuBackend, GpuForm, NotHere


@triton.jit
def _terms(x, t):  # type: ignore[no-untyped-def]
    """Loss and sigmoid."""
    z = tl.exp(-tl.abs(x))
    inverse = 1 / (1 + z)
    loss = tl.maximum(x, 0.0) - x * t + tl.log(1 + z)
    return loss, tl.where(x >= 0, inverse, z * inverse)


@triton.jit
def _pass(
    x_ptr,
    t_ptr,
    g_ptr,
    sums_ptr,
    n,
    scale,
    SUM: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
    REAL: tl.constexpr,
):  # type: ignore[no-untyped-def]
    """Blocks in turn, so that a few programs may take all of them."""
    total = tl.zeros([BLOCK], dtype=REAL)
    for start in range(tl.program_id(0) * BLOCK, n, tl.num_programs(0) * BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < n
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(REAL)
        t = tl.load(t_ptr + at, mask=inside, other=0).to(REAL)
        loss, sigmoid = _terms(x, t)
        if SUM:
            total += tl.where(inside, loss, 0.0)
        if GRADIENT:
            gradient = (sigmoid - t) * scale
            tl.store(g_ptr + at, gradient.to(g_ptr.dtype.element_ty), mask=inside)
    if SUM:
        tl.store(sums_ptr + tl.program_id(0), tl.sum(total))


@triton.jit
def _finish(sums_ptr, loss_ptr, count, n, REAL: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    total = tl.zeros([BLOCK], dtype=REAL)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(sums_ptr + at, mask=at < count, other=0.0)
    tl.store(loss_ptr, tl.sum(total) / n)


# Elements of a block, its warps, and how many programs per multiprocessor; 0: one for each block.
SHAPES = ((1024, 4, 16), (2048, 8, 8), (4096, 8, 0))
_FINISH_BLOCK = 1024


class TritonKernels(GpuBackend):
    """max(x, 0) - x t + log(1 + exp(-|x|)) and sigmoid(x) - t in one kernel, sums of blocks, and a
    second kernel that adds them."""

    compiles = True

    @property
    def version(self) -> str:
        return f"triton {triton.__version__}"

    def forms(self, case: GpuCase, sets: list[Arrays]) -> list[GpuForm]:
        if case.options:
            raise NotHere("only without options")
        return [_form(case, sets, *shape) for shape in SHAPES]


def _form(case: GpuCase, sets: list[Arrays], block: int, warps: int, programs: int) -> GpuForm:
    n = case.elements
    device = sets[0].scores.device
    double = case.dtype == "float64"
    blocks = triton.cdiv(n, block)
    grid = min(blocks, programs * multiprocessors(device)) if programs else blocks
    real = torch.float64 if double else torch.float32
    tl_real = tl.float64 if double else tl.float32
    sums = torch.empty(grid, dtype=real, device=device)
    adds, writes = case.work is not Work.BACKWARD, case.work is not Work.FORWARD
    scale = case.loss_weight / n

    def run(i: int) -> Tensor | None:
        a = sets[i]
        _pass[(grid,)](
            a.scores,
            a.targets,
            a.gradient,
            sums,
            n,
            scale,
            SUM=adds,
            GRADIENT=writes,
            BLOCK=block,
            REAL=tl_real,
            num_warps=warps,
        )
        if not adds:
            return None
        loss = torch.empty((), dtype=real, device=device)
        _finish[(1,)](sums, loss, grid, n, REAL=tl_real, BLOCK=_FINISH_BLOCK)
        return loss

    def unpack(loss: Any) -> tuple[Tensor | None, Tensor | None]:
        return loss, sets[0].gradient if writes else None

    how = f"{programs} programs per multiprocessor" if programs else "a program per block"
    return GpuForm(f"blocks of {block}, {warps} warps, {how}", run, unpack)


def multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
