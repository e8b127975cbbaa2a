"""The sum behind Partial against Python's fractions: exact whatever the order, rounded once."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest

import sigmoid_ce as sce

# For x = 1024 and t = 0 the loss is 1024 exactly (log1p(exp(-1024)) is 0), for t = 2 -1024; so an
# element weight w makes a loss of +-1024 w, exact where 1024 w is a number.
SCALE = 1024.0


def part_of(loss: float) -> sce.Partial:
    weight = abs(loss) / SCALE
    assert weight * SCALE == abs(loss)
    target = 0.0 if loss >= 0 else 2.0
    return sce.partial(np.array([SCALE]), np.array([target]), weight=np.array([weight]))


def rounded(total: Fraction) -> float:
    """To the nearest float64, ties to even, as Python's division of integers does."""
    try:
        return total.numerator / total.denominator
    except OverflowError:
        return float("inf") if total > 0 else float("-inf")


def random_losses(rng: random.Random) -> list[float]:
    kind = rng.randrange(4)
    if kind == 0:  # any exponent; 2^-1000 keeps 1024 w exact
        return [
            rng.choice((-1, 1)) * rng.uniform(1, 2) * 2.0 ** rng.randint(-1000, 1020)
            for _ in range(rng.randint(1, 30))
        ]
    if kind == 1:  # near the top, where partial sums overflow and come back
        return [rng.choice((-1, 1)) * rng.uniform(1, 2) * 2.0**1022 for _ in range(20)]
    if kind == 2:  # cancels but for a small rest
        values = [rng.uniform(-1, 1) * 2.0 ** rng.randint(-60, 60) for _ in range(10)]
        return [*values, *(-v for v in values), rng.uniform(1, 2) * 2.0**-900]
    # ties: 2^53 + halves and units
    return [2.0**53, rng.choice((0.5, 1.0, 1.5, 3.0)), rng.choice((0.0, 2.0**-200, -(2.0**-200)))]


@pytest.mark.parametrize("seed", range(8))
def test_sum_is_the_rounded_exact_sum(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(100):
        losses = random_losses(rng)
        parts = [part_of(loss) for loss in losses]
        exact = rounded(sum(map(Fraction, losses), Fraction(0)))
        whole = sce.combine(parts)
        assert whole.sum == exact
        rng.shuffle(parts)
        half = len(parts) // 2
        if half:
            assert sce.combine(parts[:half]) + sce.combine(parts[half:]) == whole


def test_subnormal_sums() -> None:
    """Smallest subnormals: 1024 w would need w below them, so the scores make the loss: exp(x)."""
    x = np.array([-745.0, -744.5, -740.0, -720.0])
    losses = sce.elementwise(x, np.zeros(4))
    assert losses.min() == 5e-324
    whole = sce.combine([sce.partial(x[i : i + 1], np.zeros(1)) for i in range(4)])
    assert whole.sum == rounded(sum(map(Fraction, losses.tolist()), Fraction(0)))
