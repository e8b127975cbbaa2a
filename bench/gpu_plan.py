"""What is measured on the GPU: the groups, in the order in which they are measured, and their aims.

The groups that are judged come first, since the whole may run out of time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from .plan import LIMIT, Aim, Work, size_name

OURS = "ours"
PYTORCH = "PyTorch"
COMPILE = "torch.compile"
COMPILE_BY_HAND = "torch.compile, gradient by hand"
TRITON = "Triton"
CUPY = "CuPy"
CAFFE = "Caffe's operations"
READ_LIMIT = "read limit"
COPY_LIMIT = "copy limit"

BEST_COMPILED = f"the best of {COMPILE} and {TRITON}"

ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "uint8": 1}

# Below this many elements a call is launches, and the limits of the memory say nothing.
LIMIT_ELEMENTS = 2**20
# Where the aims are judged: each array is several times the cache of any GPU of today.
JUDGED_ELEMENTS = 2**26


class Timed(Enum):
    """How a measurement is taken; the report says which."""

    DEVICE = "events"  # on the device, calls back to back, nothing in cache
    PYTHON = "wall clock"  # of calls from Python that nobody waits for, until all are done
    GRAPH = "graph replay"  # on the device, calls captured into one CUDA graph


@dataclass(frozen=True)
class GpuCase:
    """A task, the same for every backend, on 1-D arrays: the mean loss, its gradient, or both."""

    work: Work
    dtype: str  # of the scores
    elements: int
    targets: str = ""  # "": the dtype of the scores; else "uint8"
    options: str = ""  # "", "pos_weight" or "ignore_label" (with the mean over the valid elements)
    timed: Timed = Timed.DEVICE

    @property
    def name(self) -> str:
        text = f"{self.work.value} {self.dtype} {size_name(self.elements)}"
        if self.targets:
            text += f", {self.targets} targets"
        if self.options:
            text += f", {self.options}"
        if self.timed is not Timed.DEVICE:
            text += f", {self.timed.value}"
        return text

    @property
    def bytes_per_element(self) -> int:
        """That the work has to move at least: each array of the caller read or written once. The
        count of valid elements before a gradient reads the targets once more."""
        scores, targets = ITEMSIZE[self.dtype], ITEMSIZE[self.targets or self.dtype]
        total = scores + targets + (0 if self.work is Work.FORWARD else scores)
        counts = self.options == "ignore_label" and self.work is not Work.FORWARD
        return total + (targets if counts else 0)

    @property
    def loss_weight(self) -> float:
        """Loss scaling, as mixed precision training has it: a float16 gradient of a mean over many
        elements would be 0."""
        return 2.0**15 if self.dtype in ("float16", "bfloat16") else 1.0


@dataclass(frozen=True)
class GpuGroup:
    """A case, the peers that take part, and what is aimed at."""

    case: GpuCase
    peers: tuple[str, ...]
    aims: tuple[Aim, ...] = ()
    reduced: bool = False  # smaller than planned: the aims are not for this size

    @property
    def limit(self) -> str | None:
        case = self.case
        if case.timed is not Timed.DEVICE or case.elements < LIMIT_ELEMENTS:
            return None
        return READ_LIMIT if case.work is Work.FORWARD else COPY_LIMIT


def plan() -> list[GpuGroup]:
    """All groups."""
    groups = []
    works = (Work.FORWARD, Work.BACKWARD, Work.BOTH)
    every = (PYTORCH, COMPILE, TRITON, CUPY, CAFFE)
    by_hand = (PYTORCH, COMPILE, COMPILE_BY_HAND, TRITON, CUPY, CAFFE)
    # Compiling takes seconds a case, so that torch.compile is not in every group.
    quick = (PYTORCH, TRITON, CUPY, CAFFE)
    large = JUDGED_ELEMENTS

    aims: tuple[Aim, ...]
    for work in works:
        if work is Work.FORWARD:
            aims = (Aim(0.93, LIMIT), Aim(0.98, BEST_COMPILED), Aim(2.5, PYTORCH))
        else:
            aims = (Aim(0.93, LIMIT), Aim(2.0, PYTORCH), Aim(1.5, COMPILE))
        peers = every if work is Work.FORWARD else by_hand
        groups.append(GpuGroup(GpuCase(work, "float32", large), peers, aims))
    for work in (Work.FORWARD, Work.BOTH):
        for timed in (Timed.PYTHON, Timed.GRAPH):
            aims = (Aim(1.0, PYTORCH),) if (work, timed) == (Work.FORWARD, Timed.PYTHON) else ()
            case = GpuCase(work, "float32", 2**10, timed=timed)
            groups.append(GpuGroup(case, (PYTORCH, COMPILE, TRITON), aims))
    aims = (Aim(0.85, LIMIT),)
    for dtype in ("float16", "bfloat16"):
        for work in works:
            peers = quick if work is Work.BACKWARD else every
            groups.append(GpuGroup(GpuCase(work, dtype, large), peers, aims))
    for dtype in ("float32", "float16"):
        for work in works:
            case = GpuCase(work, dtype, large, targets="uint8")
            groups.append(GpuGroup(case, (PYTORCH, TRITON), aims))
    for k in (10, 12, 14, 16, 18, 20, 22, 24, 28):
        for work in works:
            compiled = k in (20, 28) and work is not Work.BACKWARD
            case = GpuCase(work, "float32", 2**k)
            groups.append(GpuGroup(case, every if compiled else quick))
    for options in ("pos_weight", "ignore_label"):
        for work in works:
            groups.append(GpuGroup(GpuCase(work, "float32", large, options=options), (PYTORCH,)))
    for work in works:
        groups.append(GpuGroup(GpuCase(work, "float64", large), quick))
    for dtype in ("float16", "bfloat16"):
        for k in (10, 20, 28):
            for work in works:
                groups.append(GpuGroup(GpuCase(work, dtype, 2**k), (PYTORCH, TRITON)))
    return groups


def reduced(groups: list[GpuGroup], max_elements: int) -> list[GpuGroup]:
    """The groups with at most `max_elements` elements, each case once."""
    seen = set()
    kept = []
    for group in groups:
        case = replace(group.case, elements=min(group.case.elements, max_elements))
        if case not in seen:
            seen.add(case)
            kept.append(replace(group, case=case, reduced=case != group.case))
    return kept


def without(groups: list[GpuGroup], peers: set[str]) -> list[GpuGroup]:
    """The groups without some peers."""
    return [replace(g, peers=tuple(p for p in g.peers if p not in peers)) for g in groups]
