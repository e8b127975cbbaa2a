"""What a backend has to say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ...gpu_data import DTYPES, Arrays
from ...gpu_plan import GpuCase
from ..base import Tolerance


class NotHere(Exception):
    """The backend has no way to state the case. It is listed with the reason."""


@dataclass(frozen=True)
class GpuForm:
    """One way to write a case with a backend's own means.

    label: names the way in the report, in the words of the backend's users.
    run: makes one complete call on the set of arrays of that index; nothing waits for the device.
    unpack: of what `run(0)` returned, the loss and the gradient; None for what is not in the work.
    """

    label: str
    run: Callable[[int], Any]
    unpack: Callable[[Any], tuple[torch.Tensor | float | None, torch.Tensor | None]]


class GpuBackend(ABC):
    """A way to compute the mean loss and its gradient from tensors on the device, on its current
    stream."""

    compiles = False  # whether the first call compiles: how long it took is listed

    @property
    @abstractmethod
    def version(self) -> str: ...

    @abstractmethod
    def forms(self, case: GpuCase, sets: list[Arrays]) -> list[GpuForm]:
        """The ways to write the case; the fastest on this machine is measured. Raises NotHere."""

    def tolerance(self, case: GpuCase) -> Tolerance:
        """For code that computes and sums in float32, or in the dtype of float64 scores.

        Loss: sums of 2^28 terms in many partial sums were seen to be within 1e-6 in float32; a sum
        in one float32 accumulator is off by 1e-2, and is to be noticed. Gradient: sigmoid(x) - t
        rounds twice near 1, and library exponentials are good to some ulp. In the half types
        every operation may round, and the loss itself does.
        """
        epsilon = torch.finfo(DTYPES[case.dtype]).eps
        if case.dtype in ("float16", "bfloat16"):
            return Tolerance(loss=4 * epsilon, gradient=4 * epsilon)
        return Tolerance(loss=1e2 * epsilon, gradient=8 * epsilon)
