"""A kernel that reads an array once and does as little as it can with it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from .triton_kernels import multiprocessors

# Elements of a block, its warps, and how many programs per multiprocessor; 0: one for each block.
_SHAPES = ((2048, 4, 16), (4096, 8, 8), (8192, 8, 0))


@triton.jit
def _sum(x_ptr, sums_ptr, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(tl.program_id(0) * BLOCK, n, tl.num_programs(0) * BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(x_ptr + at, mask=at < n, other=0.0)
    tl.store(sums_ptr + tl.program_id(0), tl.sum(total))


def forms(arena: torch.Tensor) -> dict[str, Callable[[int], torch.Tensor]]:
    """By label, functions from the index of a part to the sums of its programs."""
    return {
        f"Triton, blocks of {block}, {f'{programs} per multiprocessor' if programs else 'all'}": (
            _form(arena, block, warps, programs)
        )
        for block, warps, programs in _SHAPES
    }


def _form(
    arena: torch.Tensor, block: int, warps: int, programs: int
) -> Callable[[int], torch.Tensor]:
    words = arena.shape[1]
    grid = triton.cdiv(words, block)
    if programs:
        grid = min(grid, programs * multiprocessors(arena.device))
    sums = torch.empty(grid, device=arena.device)

    def run(i: int) -> torch.Tensor:
        _sum[(grid,)](arena[i], sums, words, BLOCK=block, num_warps=warps)
        return sums

    return run
