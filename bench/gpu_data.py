"""The arrays on the device, and whether a result on them is right."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .backends.base import Tolerance
from .gpu_plan import GpuCase
from .plan import Work

Tensor = torch.Tensor

POS_WEIGHT = 2.5
# With ignore_label, one target in ten has it. 255 is what uint8 label images have.
IGNORED_SHARE = 0.1
_SEED = 20
_SCORE_DEVIATION = 3.0
# Elements that the reference takes at a time: 128 MiB for each of its float64 temporaries.
_PIECE = 2**24

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
    "uint8": torch.uint8,
}


class WrongResult(Exception):
    """A result is outside its tolerance. Its time does not count."""


def ignored_label(case: GpuCase) -> int:
    return 255 if case.targets == "uint8" else -1


@dataclass(frozen=True)
class Arrays:
    """What one call reads and writes."""

    scores: Tensor
    targets: Tensor
    gradient: Tensor


class Data:
    """Sets of arrays with equal values in different memory, so that calls in turn find nothing in
    cache: scores N(0, 3), targets 0 or 1."""

    def __init__(self, case: GpuCase, sets: int, device: torch.device) -> None:
        self.case = case
        n, dtype = case.elements, DTYPES[case.dtype]
        generator = torch.Generator(device).manual_seed(_SEED)
        wide = torch.float64 if case.dtype == "float64" else torch.float32
        scores = torch.empty((sets, n), dtype=dtype, device=device)
        scores[0] = torch.randn(n, generator=generator, device=device, dtype=wide).mul_(
            _SCORE_DEVIATION
        )
        targets = torch.empty((sets, n), dtype=DTYPES[case.targets or case.dtype], device=device)
        drawn = torch.rand(n, generator=generator, device=device)
        targets[0] = drawn < 0.5
        if case.options == "ignore_label":
            drawn = torch.rand(n, generator=generator, device=device)
            targets[0].masked_fill_(drawn < IGNORED_SHARE, ignored_label(case))
        del drawn
        for i in range(1, sets):
            scores[i] = scores[0]
            targets[i] = targets[0]
        # One array is enough where nothing is written.
        rows = 1 if case.work is Work.FORWARD else sets
        gradients = torch.empty((rows, n), dtype=dtype, device=device)
        self.sets = [Arrays(scores[i], targets[i], gradients[i % rows]) for i in range(sets)]

    def pieces(self) -> Iterator[tuple[slice, Tensor, Tensor, int]]:
        """Losses and gradients of the elements in float64, piece by piece, and how many are valid.

        (1 - t) softplus(x) + p t softplus(-x), and its derivative: not the form that any backend
        computes."""
        p = POS_WEIGHT if self.case.options == "pos_weight" else 1.0
        for start in range(0, self.case.elements, _PIECE):
            piece = slice(start, start + _PIECE)
            x = self.sets[0].scores[piece].double()
            t = self.sets[0].targets[piece].double()
            zero = torch.zeros((), dtype=torch.float64, device=x.device)
            loss = (1 - t) * torch.logaddexp(x, zero) + p * t * torch.logaddexp(-x, zero)
            slope = (1 - t) * torch.sigmoid(x) - p * t * torch.sigmoid(-x)
            valid = int(t.numel())
            if self.case.options == "ignore_label":
                ignored = t == ignored_label(self.case)
                loss = loss.masked_fill(ignored, 0.0)
                slope = slope.masked_fill(ignored, 0.0)
                valid -= int(ignored.sum())
            yield piece, loss, slope, valid

    def poison(self) -> None:
        """What another backend left in the gradients must not pass."""
        for arrays in self.sets:
            arrays.gradient.fill_(math.nan)

    def check(self, loss: Tensor | float | None, gradient: Tensor | None, t: Tolerance) -> None:
        """Raises WrongResult unless they are those of the first set, within the tolerance."""
        case = self.case
        if case.work is not Work.FORWARD and (
            gradient is None or gradient.shape != self.sets[0].scores.shape
        ):
            raise WrongResult("no gradient, or one of another shape")
        if case.work is not Work.BACKWARD and loss is None:
            raise WrongResult("no loss")
        total, n_valid = 0.0, 0
        wrong, worst = 0, 0.0
        slopes_of: list[tuple[slice, Tensor]] = []
        for piece, losses, slopes, valid in self.pieces():
            total += float(losses.sum())
            n_valid += valid
            if gradient is not None and case.work is not Work.FORWARD:
                slopes_of.append((piece, slopes))
        divisor = n_valid if case.options == "ignore_label" else case.elements
        for piece, slopes in slopes_of:
            assert gradient is not None
            # Times the divisor: the derivative of one element's loss, at most 1 or p.
            found = gradient[piece].double() * (divisor / case.loss_weight)
            error = (found - slopes).abs()
            allowed = t.gradient + t.gradient_relative * slopes.abs()
            # Half a step of float16's subnormal numbers.
            if case.dtype == "float16":
                allowed = allowed + 2.0**-25 * divisor / case.loss_weight
            bad = ~(error <= allowed)  # written so that NaN is wrong
            wrong += int(bad.sum())
            worst = max(worst, float(torch.nan_to_num(error, nan=math.inf).max()))
        if wrong:
            raise WrongResult(
                f"{wrong} of {case.elements} elements of the gradient are wrong, "
                f"one by {worst:.2g} of the largest possible"
            )
        if case.work is not Work.BACKWARD:
            assert loss is not None
            expected = total / divisor
            relative = abs(float(loss) - expected) / abs(expected)
            if not relative <= t.loss:
                raise WrongResult(
                    f"loss {float(loss)!r}, expected {expected!r}: "
                    f"relative error {relative:.2g}, allowed {t.loss:.2g}"
                )
