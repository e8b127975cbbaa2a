"""What is measured: the groups, the rows of the report, and the figures that the project aims at.

A group is one task on one size of data. Everything in it (the peers, the machine's limits, our own
variants) is measured in the same rounds, so that any two of its entries can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum


class Work(Enum):
    """What one call computes."""

    FORWARD = "forward"
    BACKWARD = "backward"
    BOTH = "forward + backward"
    ELEMENTWISE = "elementwise"  # the losses, none of them added to another


class Gradient(Enum):
    """Where the gradient goes, or the losses of the elements."""

    NONE = ""
    REUSED = "reused"  # into an array that the caller keeps
    FRESH = "fresh"  # into an array allocated by the call and dropped after it


class Option(Enum):
    """What the loss has beside scores and targets."""

    NONE = ""
    UINT8 = "uint8 targets"  # for every backend; who takes none converts them within the call
    POS_WEIGHT = "pos_weight"
    IGNORE = "ignore_label"  # the divisor is the number of the others
    WEIGHT = "element weight"
    SMOOTHING = "label_smoothing"
    BALANCE = "balance"  # of the two classes, over the batch
    FOCAL = "focal"  # with alpha


# The values of the options.
POS_WEIGHT = 3.0
IGNORED_TARGET = -1
NO_TARGET = 255  # a label that is ignored and that no target of a variant has: the work is the same
SMOOTHING = 0.1
GAMMA, ALPHA = 2.0, 0.25
# Of the profile "family" alone.
FAMILY = (Option.SMOOTHING, Option.BALANCE, Option.FOCAL)

HALVES = ("float16", "bfloat16")
_ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True)
class Shape:
    """Scores as a model has them: one array, or several of different sizes, a call for each."""

    label: str
    parts: tuple[tuple[int, ...], ...]

    @property
    def name(self) -> str:
        if len(self.parts) > 1:
            return f"{self.label} of {len(self.parts)} sizes"
        return f"{self.label} {'x'.join(map(str, self.parts[0]))}"

    @property
    def elements(self) -> int:
        return sum(math.prod(part) for part in self.parts)


MULTI_LABEL = Shape("multi-label", ((256, 1000),))
SEGMENTATION = Shape("segmentation", ((8, 1, 1024, 1024),))
DETECTION = Shape("detection", ((1, 200000, 80),))
EDGE_MAPS = Shape(
    "edge maps", ((1, 1, 321, 481), (1, 1, 481, 321), (1, 1, 375, 500), (1, 1, 425, 560))
)
SHAPES = (MULTI_LABEL, SEGMENTATION, DETECTION, EDGE_MAPS)


@dataclass(frozen=True)
class Case:
    """A task, the same for every backend: the mean loss, its gradient, or both.

    Of 1-D arrays, unless there is a shape, whose number of elements is `elements`.
    """

    work: Work
    dtype: str  # of the scores; NumPy's name
    elements: int
    gradient: Gradient = Gradient.NONE
    option: Option = Option.NONE
    shape: Shape | None = None

    @property
    def name(self) -> str:
        size = self.shape.name if self.shape else size_name(self.elements)
        parts = [self.work.value, self.gradient.value, self.dtype, size, self.option.value]
        return " ".join(part for part in parts if part)

    def parts(self) -> Iterator[Case]:
        """A case for each array; the case itself where there is one."""
        if self.shape is None or len(self.shape.parts) == 1:
            yield self
            return
        for part in self.shape.parts:
            shape = Shape(self.shape.label, (part,))
            yield replace(self, shape=shape, elements=shape.elements)


@dataclass(frozen=True)
class Variant:
    """Ours, with other targets or options, another instruction set or another number of threads."""

    targets: str = (
        "hard"  # "hard": 0 or 1, of the scores' dtype; "soft": in [0, 1); "uint8": 0 or 1
    )
    isa: str | None = None  # None: the best that the machine has
    threads: int | None = None  # None: as many as everything else
    option: Option = Option.NONE  # that the case itself has not

    @property
    def entry(self) -> str:
        remarks = []
        if self.targets != "hard":
            remarks.append(f"{self.targets} targets")
        if self.option is not Option.NONE:
            remarks.append(self.option.value)
        if self.isa:
            remarks.append(self.isa)
        if self.threads:
            remarks.append(f"{self.threads} thread{'s' if self.threads > 1 else ''}")
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
        return f"{self.factor:.3g}x {self.other}"


FASTEST_PEER = "the fastest peer"
LIMIT = "the limit"

OURS = Variant()
AVX512 = Variant(isa="avx512")
AVX2 = Variant(isa="avx2")
NEON = Variant(isa="neon")
SCALAR = Variant(isa="scalar")
UINT8 = Variant(targets="uint8")
SOFT = Variant(targets="soft")

# Of the second-level cache, where the system does not tell its size: most server CPUs of the last
# years have as much per core, or more.
LEVEL2_CACHE_BYTES = 2**20
# The part of it that a run in cache takes: code, stack and the interpreter's objects are there too.
_CACHE_SHARE = 3 / 4


@dataclass(frozen=True)
class Row:
    """One line of the report."""

    variant: Variant
    aims: tuple[Aim, ...] = ()


@dataclass(frozen=True)
class Group:
    """A case and its rows. Limits are of no use where the cost of a call outweighs the memory's."""

    case: Case
    rows: tuple[Row, ...] = (Row(OURS),)
    limits: bool = True
    reduced: bool = False  # smaller than planned: the aims are not for this size
    rounds: int | None = None  # at most so many
    all_forms: bool = True  # try each way that a peer has; else the first that it names

    @property
    def variants(self) -> tuple[Variant, ...]:
        return tuple(row.variant for row in self.rows)


@dataclass(frozen=True)
class Profile:
    """How much is measured.

    rounds: of each group, unless it has fewer.
    max_elements: no array is larger.
    call_seconds: an entry of which one call takes longer is listed as too slow.
    seconds: after which no group is begun (first calls, which compile, do not count). What is
        missing then is listed.
    all_forms: whether peers with several forms may try them.
    remote_elements: of more, none go to peers that have a process of their own.
    measurement_seconds: a measurement repeats its call until it lasts about so long.
    """

    rounds: int
    max_elements: int
    call_seconds: float
    seconds: float
    all_forms: bool = True
    remote_elements: float = math.inf
    # 10^5 times what the clock resolves.
    measurement_seconds: float = 8e-3
    backends: tuple[str, ...] | None = None  # the peers; None: all
    figures: bool = True  # accuracy, scaling and memory


PROFILES = {
    # It is to find what is wrong: its times are too short to be compared.
    "quick": Profile(
        rounds=3,
        max_elements=2**16,
        call_seconds=0.1,
        seconds=100,
        all_forms=False,
        measurement_seconds=1e-3,
    ),
    "default": Profile(
        rounds=6,
        max_elements=2**26,
        call_seconds=0.6,
        seconds=410,
        # At 2^26 the copies would take longer than what they are for.
        remote_elements=2**24,
    ),
    "family": Profile(
        rounds=9,
        max_elements=2**24,
        call_seconds=1.0,
        seconds=300,
        backends=("PyTorch", "torch.compile"),
        figures=False,
    ),
    "full": Profile(rounds=25, max_elements=2**26, call_seconds=10, seconds=math.inf),
}

# Of what is there for a plot or a comparison, not for an aim.
_FEW_ROUNDS = 3
_SOME_ROUNDS = 4
_BOTH_REUSED = (Work.BOTH, Gradient.REUSED)
_FORWARD = (Work.FORWARD, Gradient.NONE)


def plan(profile: str = "default", threads: int = 2) -> list[Group]:
    """All groups, in the order of the report: the aims' first."""
    if profile == "family":
        return _family()
    groups = [
        *_aims(threads),
        *_elementwise(),
        *_halves(),
        *_options(full=profile == "full"),
    ]
    measured = {group.case for group in groups}
    groups += _shapes(full=profile == "full")
    groups += [group for group in _sweep(profile) if group.case not in measured]
    return reduced(groups, PROFILES[profile].max_elements)


def _aims(threads: int) -> list[Group]:
    """The groups that are judged."""
    compiled = "torch.compile"
    fastest = FASTEST_PEER
    # Each instruction set by name, and fewer threads than the rest has.
    sets = [Row(AVX512), Row(NEON), Row(SCALAR)]
    fewer = [Row(Variant(threads=count)) for count in _counts_below(threads)]
    groups = [
        Group(
            Case(Work.FORWARD, "float32", 2**24),
            (
                Row(OURS, (Aim(2.5, compiled), Aim(0.85, LIMIT))),
                Row(SOFT),
                Row(UINT8, (Aim(0.95, OURS.entry),)),
                Row(AVX2, (Aim(1.3, compiled),)),
                *sets,
                *fewer,
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
        more = [Row(SOFT), Row(AVX2, (Aim(1.3, compiled),)), *sets, *fewer] if reused else []
        groups += [
            Group(case, (Row(OURS, aims), *more)),
            Group(
                replace(case, elements=2**20), (Row(OURS, (Aim(2.5, fastest),) if reused else ()),)
            ),
            Group(
                replace(case, elements=2**16), (Row(OURS, (Aim(2.0, fastest),) if reused else ()),)
            ),
            Group(replace(case, elements=2**10), limits=False),
        ]
    groups += [
        Group(
            Case(Work.BACKWARD, "float32", 2**24, Gradient.REUSED),
            (Row(OURS, (Aim(0.95, LIMIT),)),),
        ),
        Group(Case(Work.BACKWARD, "float32", 2**24, Gradient.FRESH), rounds=_SOME_ROUNDS),
        Group(
            Case(Work.FORWARD, "float64", 2**23),
            (Row(OURS, (Aim(2.0, compiled), Aim(0.45, LIMIT))),),
            rounds=_SOME_ROUNDS,
        ),
        Group(
            Case(Work.BOTH, "float64", 2**23, Gradient.REUSED),
            (Row(OURS, (Aim(2.0, compiled), Aim(0.6, LIMIT))),),
            rounds=_SOME_ROUNDS,
        ),
        _beside(Case(Work.BOTH, "float64", 2**23, Gradient.FRESH), rounds=_FEW_ROUNDS),
    ]
    return groups


def _beside(case: Case, *, limits: bool = True, rounds: int = _SOME_ROUNDS) -> Group:
    """A group that no aim is for: fewer rounds, and one form per peer."""
    return Group(case, limits=limits, rounds=rounds, all_forms=False)


def _elementwise() -> list[Group]:
    return [
        _beside(Case(Work.ELEMENTWISE, dtype, elements, gradient))
        for dtype, elements in (("float32", 2**22), ("float64", 2**21))
        for gradient in (Gradient.REUSED, Gradient.FRESH)
    ]


def _halves() -> list[Group]:
    # At 2^20 elements the gradient of a mean is not all 0 in float16.
    works = (*_with_gradients(Work.BOTH), _FORWARD, (Work.BACKWARD, Gradient.REUSED))
    return [
        _beside(Case(work, dtype, 2**20, gradient)) for dtype in HALVES for work, gradient in works
    ]


def _options(*, full: bool) -> list[Group]:
    groups = []
    for option in Option:
        if option is Option.NONE or option in FAMILY:
            continue
        works = [_FORWARD, *_with_gradients(Work.BOTH)]
        if full:
            works += [*_with_gradients(Work.BACKWARD), *_with_gradients(Work.ELEMENTWISE)]
        for work, gradient in works:
            # The loop of the write limit reads two arrays of the scores' dtype.
            writes = gradient is not Gradient.NONE
            limits = not (writes and option in (Option.WEIGHT, Option.UINT8))
            for dtype in ("float32", "float64") if full else ("float32",):
                case = Case(work, dtype, 2**20, gradient, option)
                groups.append(_beside(case, limits=limits))
    return groups


def _shapes(*, full: bool) -> list[Group]:
    works = [_FORWARD, *_with_gradients(Work.BOTH)]
    if full:
        works += _with_gradients(Work.BACKWARD)
    return [
        _beside(
            Case(work, "float32", shape.elements, gradient, shape=shape),
            limits=len(shape.parts) == 1,
            rounds=_SOME_ROUNDS if shape.elements < 2**22 else _FEW_ROUNDS,
        )
        for shape in SHAPES
        for work, gradient in works
    ]


def _sweep(profile: str) -> list[Group]:
    """Sizes from 2^26 to 2^8, for the plots: if time is short, small ones are left out."""
    works = [_FORWARD, _BOTH_REUSED]
    if profile == "full":
        works += [(Work.BOTH, Gradient.FRESH), (Work.BACKWARD, Gradient.REUSED)]
    step = 1 if profile == "full" else 2
    return [
        # As with the judged groups: no limit where starting a call costs more.
        _beside(
            Case(work, "float32", 2**k, gradient),
            limits=k >= 12,
            rounds=_FEW_ROUNDS,
        )
        for work, gradient in works
        for k in range(26, 7, -step)
    ]


def _family() -> list[Group]:
    """What options cost beside the plain loss, and beside those who compose them, at 2^24."""
    elements = 2**24
    within = Aim(1 / 1.1, OURS.entry)

    def rows(plain_bytes: int) -> tuple[Row, ...]:
        more = plain_bytes / (plain_bytes + 4)  # one more array of float32 to read
        return (
            Row(OURS),
            Row(UINT8),
            *(
                Row(Variant(targets="uint8", option=option), (within,))
                for option in (Option.POS_WEIGHT, Option.IGNORE, Option.SMOOTHING)
            ),
            Row(Variant(option=Option.WEIGHT), (Aim(more, OURS.entry),)),
            Row(Variant(option=Option.BALANCE), (Aim(more, OURS.entry),)),
            Row(Variant(option=Option.FOCAL), (Aim(0.5, OURS.entry),)),
            Row(Variant(targets="soft", option=Option.FOCAL)),
        )

    both = Case(Work.BOTH, "float32", elements, Gradient.REUSED)
    forward = Case(Work.FORWARD, "float32", elements)
    groups = [Group(both, rows(12)), Group(forward, rows(8))]
    for option in (Option.POS_WEIGHT, Option.IGNORE, Option.WEIGHT, *FAMILY):
        aims = (Aim(5.0, "PyTorch"), Aim(2.0, "torch.compile"))
        case = replace(both, option=option)
        groups.append(Group(case, (Row(OURS, aims),), limits=False, rounds=_SOME_ROUNDS))
        fresh = replace(case, gradient=Gradient.FRESH)
        groups.append(_beside(fresh, limits=False, rounds=_FEW_ROUNDS))
        groups.append(_beside(replace(forward, option=option), limits=False, rounds=_FEW_ROUNDS))
    return groups


def _with_gradients(work: Work) -> list[tuple[Work, Gradient]]:
    """Each comparison of gradients is two rows."""
    return [(work, Gradient.REUSED), (work, Gradient.FRESH)]


def _counts_below(threads: int) -> list[int]:
    """1, 2, 3 ... below `threads`; of many, the powers of two."""
    if threads <= 8:
        return list(range(1, threads))
    return [2**k for k in range(threads.bit_length()) if 2**k < threads]


def reduced(groups: list[Group], max_elements: int) -> list[Group]:
    """The groups with at most `max_elements` elements, each case once."""
    seen = set()
    kept = []
    for group in groups:
        case = _reduced(group.case, max_elements)
        if case in seen:
            continue
        seen.add(case)
        kept.append(replace(group, case=case, reduced=group.reduced or case != group.case))
    return kept


def cache_elements(case: Case, variant: Variant, level2_bytes: int | None = None) -> int:
    """Elements of the run that stays in the second-level cache on one thread; a power of two.

    The most for which the caller's arrays take three quarters of the cache: fewer would have more
    of the cost of a call from Python in their rate. 2^16 of float32 for 1 MiB.
    """
    available = (level2_bytes or LEVEL2_CACHE_BYTES) * _CACHE_SHARE
    elements = int(available / bytes_per_element(case, variant))
    return 1 << (elements.bit_length() - 1)


def _reduced(case: Case, max_elements: int) -> Case:
    if case.elements <= max_elements:
        return case
    if case.shape is None:
        return replace(case, elements=max_elements)
    parts = list(case.shape.parts)
    while sum(map(math.prod, parts)) > max_elements:
        index = max(range(len(parts)), key=lambda i: math.prod(parts[i]))
        longest = max(parts[index])
        if longest == 1:
            break  # one element each: fewer would be another case
        axis = parts[index].index(longest)
        parts[index] = (*parts[index][:axis], longest // 2, *parts[index][axis + 1 :])
    shape = Shape(case.shape.label, tuple(parts))
    return replace(case, shape=shape, elements=shape.elements)


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


def targets_kind(case: Case, variant: Variant) -> str:
    """The targets that a variant gets in a case: the case's option goes first."""
    if case.option is Option.UINT8:
        return "uint8"
    if case.option is Option.IGNORE:
        return "ignored"
    return variant.targets


def of_variant(case: Case, variant: Variant) -> Case:
    """The case with the option of a variant of ours."""
    return replace(case, option=variant.option) if variant.option is not Option.NONE else case


def bytes_per_element(case: Case, variant: Variant) -> int:
    """That the work has to move at least: each array of the caller read once or written once, but
    for targets that must be counted before."""
    scores = _ITEMSIZE[case.dtype]
    targets = 1 if targets_kind(case, variant) == "uint8" else scores
    option = of_variant(case, variant).option
    weight = scores if option is Option.WEIGHT else 0
    if option is Option.BALANCE:
        targets *= 2  # they are counted before
    written = 0 if case.work is Work.FORWARD else scores
    return scores + targets + weight + written
