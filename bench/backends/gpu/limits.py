"""What the memory of the device allows to code that does nothing else: a sum, and a copy."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from ...gpu_data import Tensor
from ...gpu_plan import COPY_LIMIT, READ_LIMIT, GpuCase

# Values for the arena are drawn once for so many words and repeated: nothing is timed on zeros.
_DRAWN = 2**20


class Limits:
    """Moves as many bytes as the case has to, in memory of its own, another part for each call."""

    def __init__(self, case: GpuCase, sets: int, device: torch.device) -> None:
        # Whole groups of 16 bytes in each half of a part.
        words = max(case.elements * case.bytes_per_element // 32 * 8, 8)
        self.bytes = 4 * words
        self._arena = torch.empty((sets, words), device=device)
        drawn = torch.randn(min(_DRAWN, words), device=device)
        repeats = -(-words // drawn.numel())
        self._arena[:] = drawn.repeat(repeats)[:words]

    def forms(self, name: str) -> dict[str, Callable[[int], Any]]:
        """The ways to reach the limit of that name; the fastest counts. Checked here."""
        if name == READ_LIMIT:
            return {"torch.sum": lambda i: self._arena[i].sum(), **self._triton_sums()}
        assert name == COPY_LIMIT
        half = self._arena.shape[1] // 2
        pairs = [(part[:half], part[half:]) for part in self._arena]
        pairs[0][1].zero_()
        pairs[0][1].copy_(pairs[0][0])
        if not torch.equal(*pairs[0]):
            raise RuntimeError("the copy is wrong")
        return {"copy of one half to the other": lambda i: pairs[i][1].copy_(pairs[i][0])}

    def _triton_sums(self) -> dict[str, Callable[[int], Any]]:
        if self._arena.device.type != "cuda" and not os.environ.get("TRITON_INTERPRET"):
            return {}
        try:
            from . import triton_sum
        except ImportError:
            return {}
        forms: dict[str, Callable[[int], Any]] = {}
        exact = float(self._arena[0].double().sum())
        # Of float32 sums of numbers of either sign.
        allowed = 1e-5 * float(self._arena[0].double().abs().sum())
        for label, run in triton_sum.forms(self._arena).items():
            found: Tensor = run(0)
            if not abs(float(found.double().sum()) - exact) <= allowed:
                raise RuntimeError(f"the sum by Triton ({label}) is wrong")
            forms[label] = run
        return forms
