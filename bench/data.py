"""The arrays that everything is measured on, and the results that they should give."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

import sigmoid_ce

from .plan import Case, Work

_SEED = 20
_SCORE_DEVIATION = 3.0
# Elements that the reference takes at a time, so that its float64 temporaries stay small.
_PIECE = 2**18

# The width of an AVX-512 vector; JAX asks for it too, of an array that it takes without a copy.
ALIGNMENT = 64


@dataclass(frozen=True)
class Reference:
    """The mean loss and its gradient in float64. None: not part of the work."""

    loss: float | None
    gradient: np.ndarray | None


class Data:
    """Scores N(0, 3), targets of each kind, and an array for the gradient, for one case.

    All backends get the same arrays: the same memory, where they take it without a copy.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.scores = aligned_empty(case.elements, case.dtype)
        np.random.default_rng(_SEED).standard_normal(out=self.scores, dtype=self.scores.dtype.type)
        self.scores *= _SCORE_DEVIATION
        self.gradient = aligned_empty(case.elements, case.dtype)
        self._targets: dict[str, np.ndarray] = {}
        self._references: dict[tuple[str, int], Reference] = {}

    def targets(self, kind: str) -> np.ndarray:
        """Targets of a kind that plan.Variant names."""
        if kind not in self._targets:
            self._targets[kind] = self._make_targets(kind)
        return self._targets[kind]

    def _make_targets(self, kind: str) -> np.ndarray:
        if kind == "uint8":
            targets = aligned_empty(self.case.elements, np.uint8)
            targets[:] = self.targets("hard")
            return targets
        targets = aligned_empty(self.case.elements, self.case.dtype)
        np.random.default_rng(_SEED + 1).random(out=targets, dtype=targets.dtype.type)
        if kind == "hard":
            np.round(targets, out=targets)
        return targets

    def reference(self, kind: str, elements: int) -> Reference:
        """What the first `elements` elements should give."""
        if kind == "uint8":
            kind = "hard"  # the same values
        key = (kind, elements)
        if key not in self._references:
            self._references[key] = reference(
                self.scores[:elements], self.targets(kind)[:elements], self.case.work
            )
        return self._references[key]


def aligned_empty(elements: int, dtype: np.typing.DTypeLike) -> np.ndarray:
    """A 1-D array without values whose address is a multiple of ALIGNMENT."""
    size = elements * np.dtype(dtype).itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype)


def reference(scores: np.ndarray, targets: np.ndarray, work: Work) -> Reference:
    """The result in float64, from sigmoid_ce.reference, which shares no code with any backend."""
    count = scores.size
    losses = []
    gradient = None if work is Work.FORWARD else np.empty(count)
    for start in range(0, count, _PIECE):
        piece = slice(start, start + _PIECE)
        x = scores[piece].astype(np.float64)
        t = targets[piece].astype(np.float64)
        if work is not Work.BACKWARD:
            losses.append(sigmoid_ce.reference.forward(x, t, normalization="none"))
        if gradient is not None:
            gradient[piece] = sigmoid_ce.reference.backward(x, t, normalization="none")
    if gradient is not None:
        gradient /= count
    return Reference(math.fsum(losses) / count if losses else None, gradient)
