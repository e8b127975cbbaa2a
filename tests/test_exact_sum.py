"""The sum behind Partial against Python's fractions: exact whatever the order, rounded once."""

from __future__ import annotations

import math
import random
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

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


# ---------------------------------------------------------------- 10^5 sets, in C++

SETS_OF_A_KIND = 12_500
LEAST = 2.0**-1074  # the smallest subnormal; every finite float64 is a whole number of them
LARGEST = sys.float_info.max


def signed(rng: random.Random, low: int, high: int) -> float:
    """A number of either sign with an exponent from low to high, and a few or many bits."""
    bits = rng.choice((1, 2, 53, 53))
    mantissa = rng.getrandbits(bits) | 1 | 1 << (bits - 1)
    return rng.choice((-1.0, 1.0)) * math.ldexp(mantissa, rng.randint(low, high) - bits + 1)


def any_numbers(rng: random.Random) -> list[float]:
    return [signed(rng, -1073, 1023) for _ in range(rng.randint(1, 12))]


def subnormals(rng: random.Random) -> list[float]:
    """Subnormal numbers, and small normal ones that may cancel to them."""
    values = [rng.randint(-(2**53), 2**53) * LEAST for _ in range(rng.randint(1, 8))]
    return values + [rng.choice((-1, 1)) * 2.0 ** rng.randint(-1074, -1020) for _ in range(3)]


def huge(rng: random.Random) -> list[float]:
    """About 1e308 each: past the largest on the way, and often at the end."""
    values = [rng.choice((-1.0, 1.0)) * rng.uniform(0.9e308, LARGEST) for _ in range(2)]
    return values + [signed(rng, 960, 1023) for _ in range(rng.randint(0, 8))]


def edge_of_overflow(rng: random.Random) -> list[float]:
    """The largest number and about half its ulp, above which the sum rounds to infinity."""
    half = 2.0**970
    change = rng.choice((0.0, LEAST, -LEAST, signed(rng, -1000, 900), 2 * half, -2 * half))
    values = [LARGEST, half, change, 2.0**1023, -(2.0**1023)]
    return values if rng.random() < 0.5 else [-v for v in values]


def cancelling(rng: random.Random) -> list[float]:
    """Nothing is left but a number far below the others, or 0."""
    values = [signed(rng, -1000, 1023) for _ in range(rng.randint(1, 6))]
    rest = rng.choice((0.0, -0.0, LEAST, -LEAST, signed(rng, -1073, 1000)))
    return [*values, *(-v for v in values), rest]


def ties(rng: random.Random) -> list[float]:
    """A number and half its ulp, and nothing, or something tiny above or below."""
    exponent = rng.randint(-1020, 971)
    big = math.ldexp(rng.getrandbits(52) | 1 << 52, exponent)  # ulp 2^exponent
    half = math.ldexp(0.5, exponent)
    tiny = rng.choice((0.0, 0.0, LEAST, -LEAST, signed(rng, -1074, max(exponent - 2, -1074))))
    sign = rng.choice((-1.0, 1.0))
    return [sign * v for v in (big, rng.choice((-1, 1)) * half, tiny)]


def split_ties(rng: random.Random) -> list[float]:
    """The half ulp in many pieces."""
    exponent = rng.randint(-1000, 971)
    pieces = 2 ** rng.randint(1, 5)
    piece = math.ldexp(0.5 / pieces, exponent)
    big = math.ldexp(rng.getrandbits(52) | 1 << 52, exponent)
    return [big, *[piece] * (pieces + rng.choice((-1, 0, 0, 1)))]


def carries(rng: random.Random) -> list[float]:
    """Long runs of ones around the edges of limbs, and what makes them roll over."""
    edge = 32 * rng.randint(-30, 30)
    ones = math.ldexp(2**53 - 1, edge - 53)
    return [signed(rng, edge - 60, edge + 60), ones, math.ldexp(1, edge - 53), -ones,
            rng.choice((-1.0, 1.0)) * math.ldexp(1, edge)]  # fmt: skip


KINDS = (any_numbers, subnormals, huge, edge_of_overflow, cancelling, ties, split_ties, carries)


def in_leasts(value: float) -> int:
    numerator, denominator = value.as_integer_ratio()
    return numerator * (2**1074 // denominator)


def test_a_hundred_thousand_sets(native_tests: Path) -> None:
    """Bits of the exact sum, rounded once; the program also compares orders and ways to merge."""
    rng = random.Random(0)
    sets = [kind(rng) for kind in KINDS for _ in range(SETS_OF_A_KIND)]
    for values in sets:
        rng.shuffle(values)
    data = b"".join(struct.pack(f"=Q{len(v)}d", len(v), *v) for v in sets)
    done = subprocess.run([str(native_tests / "exact_sum")], input=data, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    sums = struct.unpack(f"={len(sets)}d", done.stdout)
    assert len(sets) == 100_000
    seen = {"subnormal": 0, "infinite": 0, "zero": 0, "inexact": 0}
    for values, got in zip(sets, sums, strict=True):
        exact = Fraction(sum(map(in_leasts, values)), 2**1074)
        wanted = rounded(exact)  # the sum 0 is +0
        assert struct.pack("=d", got) == struct.pack("=d", wanted), (values, got, wanted)
        seen["subnormal"] += 0 < abs(wanted) < sys.float_info.min
        seen["infinite"] += math.isinf(wanted)
        seen["zero"] += wanted == 0
        seen["inexact"] += math.isfinite(wanted) and Fraction(wanted) != exact
    print(seen)
    assert min(seen.values()) > 1000  # each kind of end is there
