"""Numba: the loop that one writes by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numba
import numpy as np

from ..plan import IGNORED_TARGET, POS_WEIGHT, Case, Gradient, Option, Work
from .base import Backend, Form, Tolerance, no_family, no_halves, usual_tolerance


class NumbaLoop(Backend):
    """njit(parallel=True) over the stable formula in the scores' dtype, with a sum in float64."""

    compiles = True

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        numba.set_num_threads(threads)

    @property
    def version(self) -> str:
        return f"numba {numba.__version__}"

    def forms(
        self,
        case: Case,
        scores: np.ndarray,
        targets: np.ndarray,
        gradient: np.ndarray,
        weight: np.ndarray | None = None,
    ) -> list[Form]:
        no_family(case)
        no_halves(case, "Numba has no such numbers on the CPU")
        x, t = scores.ravel(), targets.ravel()
        # Of the scores' type, so that it widens nothing; read only where the case has weights.
        w = x[:1] if weight is None else weight.ravel()
        loop = _loops(case.option)[case.work]
        valid = case.option is Option.IGNORE
        reused = case.gradient is Gradient.REUSED
        out = gradient.ravel()
        # Constants in the code would be float64, and with them all that they meet.
        one, factor = x.dtype.type(1), x.dtype.type(POS_WEIGHT)
        arrays = (x, t, w, one, factor)

        def scale() -> Any:
            """1 / n; the number of the valid is counted in each call."""
            return one / x.dtype.type(_count(t) if valid else x.size)

        if case.work is Work.FORWARD:
            return [
                Form("njit, prange", lambda: loop(*arrays) * scale(), lambda v: (float(v), None))
            ]

        def run() -> Any:
            result = out if reused else np.empty_like(x)
            if case.work is Work.ELEMENTWISE:
                loop(*arrays, result)
                return None, result
            share = scale()
            total = loop(*arrays, share, result)
            return (total * share if case.work is Work.BOTH else None), result

        return [Form("njit, prange", run, lambda result: result)]

    def tolerance(self, case: Case, targets: str) -> Tolerance:
        return usual_tolerance(case)


def elements(x: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Losses and gradients of the elements, by the loops that are timed. For accuracy.py."""
    losses, slopes = np.empty_like(x), np.empty_like(x)
    one = x.dtype.type(1)
    loops = _loops(Option.NONE)
    loops[Work.ELEMENTWISE](x, t, x[:1], one, one, losses)
    loops[Work.BACKWARD](x, t, x[:1], one, one, one, slopes)  # divided by 1
    return losses, slopes


def _jit(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = numba.njit(parallel=True)(function)
    return compiled


# Numba reads `prange` as a global.
prange = numba.prange


def _count_valid(t: np.ndarray) -> int:
    count = 0
    for i in prange(t.size):
        count += t[i] != IGNORED_TARGET
    return count


_count = _jit(_count_valid)


@lru_cache
def _loops(option: Option) -> dict[Work, Callable[..., Any]]:
    """Compiled with the option as a constant: what it does not ask for is not in the loop."""
    pos = option is Option.POS_WEIGHT
    ignore = option is Option.IGNORE
    weighted = option is Option.WEIGHT
    converted = option is Option.UINT8

    @numba.njit(inline="always")
    def loss(x: Any, t: Any, w: Any, one: Any, factor: Any) -> Any:
        if converted:
            t = one * t
        soft = math.log1p(math.exp(-abs(x)))
        if pos:
            value = (one - t) * x + (one + (factor - one) * t) * (soft + max(-x, one - one))
        else:
            value = max(x, one - one) - x * t + soft
        if ignore and t == IGNORED_TARGET:
            return one - one
        return value * w if weighted else value

    @numba.njit(inline="always")
    def slope(x: Any, t: Any, w: Any, one: Any, factor: Any) -> Any:
        if converted:
            t = one * t
        s = one / (one + math.exp(-x))
        if pos:
            value = (one + (factor - one) * t) * s - factor * t
        else:
            value = s - t
        if ignore and t == IGNORED_TARGET:
            return one - one
        return value * w if weighted else value

    def forward(x: Any, t: Any, w: Any, one: Any, factor: Any) -> float:
        total = 0.0
        for i in prange(x.size):
            total += loss(x[i], t[i], w[i] if weighted else one, one, factor)
        return total

    def backward(x: Any, t: Any, w: Any, one: Any, factor: Any, scale: Any, out: Any) -> None:
        for i in prange(x.size):
            out[i] = slope(x[i], t[i], w[i] if weighted else one, one, factor) * scale

    def both(x: Any, t: Any, w: Any, one: Any, factor: Any, scale: Any, out: Any) -> float:
        total = 0.0
        for i in prange(x.size):
            each = w[i] if weighted else one
            total += loss(x[i], t[i], each, one, factor)
            out[i] = slope(x[i], t[i], each, one, factor) * scale
        return total

    def elementwise(x: Any, t: Any, w: Any, one: Any, factor: Any, out: Any) -> None:
        for i in prange(x.size):
            out[i] = loss(x[i], t[i], w[i] if weighted else one, one, factor)

    return {
        Work.FORWARD: _jit(forward),
        Work.BACKWARD: _jit(backward),
        Work.BOTH: _jit(both),
        Work.ELEMENTWISE: _jit(elementwise),
    }
