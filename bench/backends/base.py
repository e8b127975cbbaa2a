"""What a backend has to say."""

from __future__ import annotations

import contextlib
import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from ..plan import FAMILY, HALVES, POS_WEIGHT, Case, Option


class Unsupported(Exception):
    """The backend has no way to state a case. The text says why, for the report."""


class NotAvailable(Exception):
    """The backend cannot be had here. The text says why, for the report."""


@dataclass(frozen=True)
class Form:
    """One way to write a case with a backend's own means.

    label: names the way in the report, in the words of the backend's users.
    run: makes one complete call, which is what is timed; the result is there when it returns.
    unpack: of what `run` returned, the loss and the gradient (or the losses of the elements, where
        they are the work); None for what is not in the work.
    """

    label: str
    run: Callable[[], Any]
    unpack: Callable[[Any], tuple[float | None, np.ndarray | None]]


# Makes as many calls as the second number says, then as many as the first, and returns the seconds
# that the latter took.
Timer = Callable[[int, int], float]


def timer(*runs: Callable[[], Any]) -> Timer:
    """A call of what is timed is one of each, one after the other."""

    def each() -> None:
        for run in runs:
            run()

    # A loop over one is not to be in the figures of short calls.
    call = runs[0] if len(runs) == 1 else each

    def timed(calls: int, before: int) -> float:
        for _ in range(before):
            call()
        start = perf_counter()
        for _ in range(calls):
            call()
        return perf_counter() - start

    return timed


@dataclass(frozen=True)
class Tolerance:
    """How far a right result may be from the float64 reference.

    loss: relative to the reference.
    gradient: of n times the gradient (the derivative before the mean), absolute. The derivative is
        at most 1 (with options, the largest factor), so that this is relative to the largest one
        possible. For the losses of elements, relative to the larger of 1 and the loss.
    gradient_relative: of each element, relative to the reference, in addition to `gradient`.
    """

    loss: float
    gradient: float
    gradient_relative: float = 0.0


class Backend(ABC):
    """A way to compute the mean loss and its gradient. Its constructor sets the number of threads.

    Inputs are NumPy arrays whose addresses are multiples of 64; they are taken without a copy, or
    are copied once, outside of what is timed. The constructor raises ImportError or NotAvailable
    where the backend cannot be had.
    """

    # Whether the first call compiles: its time is then kept out of the measurements and listed.
    compiles = False
    # Whether its memory is that of this process, and not of one to which arrays are copied.
    in_process = True

    def __init__(self, threads: int) -> None:
        self.threads = threads

    @property
    @abstractmethod
    def version(self) -> str: ...

    @abstractmethod
    def forms(
        self,
        case: Case,
        scores: np.ndarray,
        targets: np.ndarray,
        gradient: np.ndarray,
        weight: np.ndarray | None = None,
    ) -> list[Form]:
        """The ways to write the case, the one expected to be fastest first.

        Where there are several, the fastest on this machine is measured. `gradient` is an array to
        write to when the case asks for Gradient.REUSED (of losses, where those are the work).
        `weight` is there when the case asks for Option.WEIGHT. All have the same shape.

        Raises Unsupported where there is no way.
        """

    def timer(self, forms: Sequence[Form]) -> Timer:
        """Of a call of each form, one after the other; they are of one case and several arrays."""
        return timer(*(form.run for form in forms))

    @abstractmethod
    def tolerance(self, case: Case, targets: str) -> Tolerance:
        """For targets of a kind that plan.targets_kind names."""

    def begin(self, case: Case) -> None:  # noqa: B027 - most have nothing to do
        """Called before the forms of a case are asked for, once, however many arrays it has."""

    def give_back_memory(self) -> None:
        """What the C library's allocator keeps for later calls goes back to the system."""
        with contextlib.suppress(AttributeError, OSError):  # glibc only
            ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))


# Of each dtype, the distance from 1 to the next number, and the smallest number above 0.
_EPSILON = {
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
    "float32": 2.0**-23,
    "float64": 2.0**-52,
}
_SMALLEST = {
    "float16": 2.0**-24,
    "bfloat16": 2.0**-133,
    "float32": 2.0**-149,
    "float64": 2.0**-1074,
}


def epsilon(case: Case) -> float:
    """The distance from 1 to the next number of the scores' dtype."""
    return _EPSILON[case.dtype]


def usual_tolerance(case: Case) -> Tolerance:
    """For code that computes and sums in the dtype of the scores.

    Loss: sums of 2^24 terms in float32, pairwise or in many partial sums, were seen to be within
    1e-6; a sum in one float32 accumulator is off by 1e-2, and is to be noticed. Gradient:
    sigmoid(x) - t rounds twice near 1, and library exponentials are good to some ulp; 1 / n and
    the product with it round too, and in float16 n times the gradient has steps of n times the
    smallest number.

    Half types: each term rounds a few times, errors of either sign that average out; the sum is
    in float32.
    """
    steps = 2 * case.elements * _SMALLEST[case.dtype]
    loss = 4 if case.dtype in HALVES else 1e2
    # The factor of a focal loss is a power of a difference, and takes as many roundings again.
    largest = {Option.POS_WEIGHT: POS_WEIGHT, Option.FOCAL: 3.0}.get(case.option, 1.0)
    return Tolerance(loss=loss * epsilon(case), gradient=8 * largest * epsilon(case) + steps)


def no_family(case: Case) -> None:
    """For backends whose forms of the profile "family" are not written here."""
    if case.option in FAMILY:
        raise Unsupported(f"{case.option.value} is measured beside PyTorch and torch.compile")


def no_halves(case: Case, reason: str) -> None:
    """Raises Unsupported, with the reason, where the scores have 16 bits."""
    if case.dtype in HALVES:
        raise Unsupported(f"{case.dtype}: {reason}")
