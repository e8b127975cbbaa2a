"""What is measured: the groups, the rows of the report, and the figures that the project aims at.

A group is one task on one size of data. Everything in it (the peers, the machine's limits, our own
variants) is measured in the same rounds, so that any two of its entries can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum


class Work(Enum):
    """What one call computes."""

    FORWARD = "forward"
    BACKWARD = "backward"
    BOTH = "forward + backward"


class Gradient(Enum):
    """Where the gradient goes."""

    NONE = ""
    REUSED = "reused"  # into an array that the caller keeps
    FRESH = "fresh"  # into an array allocated by the call and dropped after it


@dataclass(frozen=True)
class Case:
    """A task, the same for every backend: the mean loss, its gradient, or both, of 1-D arrays."""

    work: Work
    dtype: str  # of the scores; NumPy's name
    elements: int
    gradient: Gradient = Gradient.NONE

    @property
    def name(self) -> str:
        parts = [self.work.value, self.gradient.value, self.dtype, size_name(self.elements)]
        return " ".join(part for part in parts if part)


@dataclass(frozen=True)
class Variant:
    """Ours, with other targets or another instruction set."""

    targets: str = (
        "hard"  # "hard": 0 or 1, of the scores' dtype; "soft": in [0, 1); "uint8": 0 or 1
    )
    isa: str | None = None  # None: the best that the machine has

    @property
    def entry(self) -> str:
        remarks = []
        if self.targets != "hard":
            remarks.append(f"{self.targets} targets")
        if self.isa:
            remarks.append(self.isa)
        return ", ".join(["ours", *remarks])


@dataclass(frozen=True)
class Aim:
    """A figure that the project aims at: the ratio to `other` is `factor` or more.

    `other` is the name of an entry, or FASTEST_PEER, or LIMIT.
    """

    factor: float
    other: str

    @property
    def text(self) -> str:
        if self.other == LIMIT:
            return f"{self.factor:.0%} of the limit"
        return f"{self.factor:g}x {self.other}"


FASTEST_PEER = "the fastest peer"
LIMIT = "the limit"

OURS = Variant()
AVX2 = Variant(isa="avx2")
UINT8 = Variant(targets="uint8")
SOFT = Variant(targets="soft")

# Elements of the run that stays in cache on one thread: 128 KiB of float32 scores and targets.
CACHE_ELEMENTS = 2**14


@dataclass(frozen=True)
class Row:
    """One line of the report."""

    variant: Variant
    aims: tuple[Aim, ...] = ()


@dataclass(frozen=True)
class Group:
    """A case and its rows. Limits are of no use where the cost of a call outweighs the memory's."""

    case: Case
    rows: tuple[Row, ...]
    limits: bool = True
    reduced: bool = False  # smaller than planned: the aims are not for this size

    @property
    def variants(self) -> tuple[Variant, ...]:
        return tuple(row.variant for row in self.rows)


def plan() -> list[Group]:
    """All groups, in the order of the report."""
    compiled = "torch.compile"
    fastest = FASTEST_PEER
    groups = [
        Group(
            Case(Work.FORWARD, "float32", 2**24),
            (
                Row(OURS, (Aim(2.5, compiled), Aim(0.85, LIMIT))),
                Row(SOFT),
                Row(UINT8, (Aim(0.95, OURS.entry),)),
                Row(AVX2, (Aim(1.3, compiled),)),
            ),
        ),
        Group(Case(Work.FORWARD, "float32", 2**20), (Row(OURS, (Aim(2.5, fastest),)),)),
        Group(Case(Work.FORWARD, "float32", 2**16), (Row(OURS, (Aim(2.0, fastest),)),)),
        Group(
            Case(Work.FORWARD, "float32", 2**10), (Row(OURS, (Aim(2.5, "PyTorch"),)),), limits=False
        ),
    ]
    for gradient, compiled_factor in ((Gradient.REUSED, 6.0), (Gradient.FRESH, 2.0)):
        reused = gradient is Gradient.REUSED
        case = Case(Work.BOTH, "float32", 2**24, gradient)
        aims = (Aim(compiled_factor, compiled), *([Aim(0.95, LIMIT)] if reused else []))
        more = [Row(SOFT), Row(AVX2, (Aim(1.3, compiled),))] if reused else []
        groups += [
            Group(case, (Row(OURS, aims), *more)),
            Group(
                replace(case, elements=2**20), (Row(OURS, (Aim(2.5, fastest),) if reused else ()),)
            ),
            Group(
                replace(case, elements=2**16), (Row(OURS, (Aim(2.0, fastest),) if reused else ()),)
            ),
            Group(replace(case, elements=2**10), (Row(OURS),), limits=False),
        ]
    groups += [
        Group(
            Case(Work.BACKWARD, "float32", 2**24, Gradient.REUSED),
            (Row(OURS, (Aim(0.95, LIMIT),)),),
        ),
        Group(
            Case(Work.FORWARD, "float64", 2**23),
            (Row(OURS, (Aim(2.0, compiled), Aim(0.45, LIMIT))),),
        ),
        Group(
            Case(Work.BOTH, "float64", 2**23, Gradient.REUSED),
            (Row(OURS, (Aim(2.0, compiled), Aim(0.6, LIMIT))),),
        ),
    ]
    return groups


def reduced(groups: list[Group], max_elements: int) -> list[Group]:
    """The groups with at most `max_elements` elements, each case once."""
    seen = set()
    kept = []
    for group in groups:
        case = replace(group.case, elements=min(group.case.elements, max_elements))
        if case in seen:
            continue
        seen.add(case)
        kept.append(replace(group, case=case, reduced=group.reduced or case != group.case))
    return kept


def chosen(groups: list[Group], text: str) -> list[Group]:
    """The rows whose name holds `text`. Plain ours stays: variants are compared with it."""
    kept = []
    for group in groups:
        rows = tuple(row for row in group.rows if text in row_name(group.case, row.variant))
        if rows:
            ours = tuple(row for row in group.rows if row.variant == OURS and row not in rows)
            kept.append(replace(group, rows=ours + rows))
    return kept


def row_name(case: Case, variant: Variant) -> str:
    """Such as "forward float32 2^24" or "forward float32 2^24, uint8 targets"."""
    return case.name + variant.entry.removeprefix("ours")


def size_name(elements: int) -> str:
    """2^k where it is one."""
    k = elements.bit_length() - 1
    return f"2^{k}" if elements == 2**k else str(elements)
