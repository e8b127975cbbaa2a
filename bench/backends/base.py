"""What a backend has to say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..plan import Case


@dataclass(frozen=True)
class Form:
    """One way to write a case with a backend's own means.

    label: names the way in the report, in the words of the backend's users.
    run: makes one complete call, which is what is timed; the result is there when it returns.
    unpack: of what `run` returned, the loss and the gradient; None for what is not in the work.
    """

    label: str
    run: Callable[[], Any]
    unpack: Callable[[Any], tuple[float | None, np.ndarray | None]]


@dataclass(frozen=True)
class Tolerance:
    """How far a right result may be from the float64 reference.

    loss: relative to the reference.
    gradient: of n times the gradient (the derivative before the mean), absolute. The derivative is
        at most 1, so that this is relative to the largest one possible.
    gradient_relative: of each element, relative to the reference, in addition to `gradient`.
    """

    loss: float
    gradient: float
    gradient_relative: float = 0.0


class Backend(ABC):
    """A way to compute the mean loss and its gradient. Its constructor sets the number of threads.

    Inputs are NumPy arrays whose addresses are multiples of 64; they are taken without a copy, or
    are copied once, outside of what is timed.
    """

    # Whether the first call compiles: its time is then kept out of the measurements and listed.
    compiles = False

    def __init__(self, threads: int) -> None:
        self.threads = threads

    @property
    @abstractmethod
    def version(self) -> str: ...

    @abstractmethod
    def forms(
        self, case: Case, scores: np.ndarray, targets: np.ndarray, gradient: np.ndarray
    ) -> list[Form]:
        """The ways to write the case, the one expected to be fastest first.

        Where there are several, the fastest on this machine is measured. `gradient` is an array to
        write to when the case asks for Gradient.REUSED.
        """

    @abstractmethod
    def tolerance(self, case: Case, targets: str) -> Tolerance:
        """For targets of a kind that plan.Variant names."""


def usual_tolerance(case: Case) -> Tolerance:
    """For code that computes and sums in the dtype of the scores.

    Loss: sums of 2^24 terms in float32, pairwise or in many partial sums, were seen to be within
    1e-6; a sum in one float32 accumulator is off by 1e-2, and is to be noticed. Gradient:
    sigmoid(x) - t rounds twice near 1, and library exponentials are good to some ulp.
    """
    epsilon = float(np.finfo(case.dtype).eps)
    return Tolerance(loss=1e2 * epsilon, gradient=8 * epsilon)
