"""The arrays that everything is measured on, and the results that they should give."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

import sigmoid_ce

from .plan import (
    ALPHA,
    GAMMA,
    IGNORED_TARGET,
    OURS,
    POS_WEIGHT,
    SMOOTHING,
    Case,
    Option,
    Work,
    targets_kind,
)

_SEED = 20
_SCORE_DEVIATION = 3.0
# Elements that the reference takes at a time, so that its float64 temporaries stay small.
_PIECE = 2**18
# Of reference results: two arrays of float64 at 2^24.
_KEPT_BYTES = 2**28 + 2**20
# Every tenth target, as in a batch that is padded or has unlabelled pixels.
_IGNORED_SHARE = 0.1

# The width of an AVX-512 vector; JAX asks for it too, of an array that it takes without a copy.
ALIGNMENT = 64


class DtypeUnavailable(RuntimeError):
    """NumPy has no such numbers here. The message says what is missing."""


@dataclass(frozen=True)
class Reference:
    """The mean loss, its gradient and the elements' losses in float64. None: not in the work."""

    loss: float | None
    gradient: np.ndarray | None
    losses: np.ndarray | None = None


class Data:
    """Scores N(0, 3), targets of each kind, and an array for the gradient, for one case.

    All are 1-D; `shaped` gives them the shape that the case has. All backends get the same arrays:
    the same memory, where they take it without a copy. Raises DtypeUnavailable.
    """

    def __init__(self, case: Case) -> None:
        if case.shape is not None and len(case.shape.parts) != 1:
            raise ValueError(f"{case.name}: an object for each of Case.parts(), not one for all")
        self.case = case
        self.dtype = numpy_dtype(case.dtype)
        self.scores = self._random(_SEED, normal=True)
        self.gradient = aligned_empty(case.elements, self.dtype)
        self._targets: dict[str, np.ndarray] = {}
        self._references: dict[tuple[str, int, Option], Reference] = {}
        self._weight: np.ndarray | None = None

    def shaped(self, array: np.ndarray) -> np.ndarray:
        """A view of an array of all elements in the shape of the case."""
        if self.case.shape is None or array.size != self.case.elements:
            return array
        return array.reshape(self.case.shape.parts[0])

    @property
    def weight(self) -> np.ndarray | None:
        """Element weights in [1/2, 3/2), where the case has them."""
        return self.weight_for(self.case.option)

    def weight_for(self, option: Option) -> np.ndarray | None:
        """Those of an option, where it has them."""
        if option is not Option.WEIGHT:
            return None
        if self._weight is None:
            self._weight = self._random(_SEED + 2)
            self._weight += 0.5
        return self._weight

    def targets(self, kind: str | None = None) -> np.ndarray:
        """Targets of a kind that plan.Variant names, or "ignored": 0, 1 and the ignored label.

        None: those that the case has for every backend.
        """
        kind = targets_kind(self.case, OURS) if kind is None else kind
        if kind not in self._targets:
            self._targets[kind] = self._make_targets(kind)
        return self._targets[kind]

    def _make_targets(self, kind: str) -> np.ndarray:
        if kind == "uint8":
            targets = aligned_empty(self.case.elements, np.uint8)
            targets[:] = self.targets("hard")
            return targets
        targets = self._random(_SEED + 1)
        if kind == "soft":
            return targets
        # By hand: rounding knows no bfloat16.
        targets[:] = targets > 0.5
        if kind == "ignored":
            ignored = np.random.default_rng(_SEED + 3).random(targets.size, np.float32)
            targets[ignored < _IGNORED_SHARE] = IGNORED_TARGET
        return targets

    def _random(self, seed: int, *, normal: bool = False) -> np.ndarray:
        """Normal with the deviation of the scores, or uniform in [0, 1)."""
        generator = np.random.default_rng(seed)
        made = self.dtype if self.dtype.itemsize > 2 else np.dtype(np.float32)
        array = aligned_empty(self.case.elements, made)
        if normal:
            generator.standard_normal(out=array, dtype=made.type)
            array *= _SCORE_DEVIATION
        else:
            generator.random(out=array, dtype=made.type)
        if made == self.dtype:
            return array
        rounded = aligned_empty(array.size, self.dtype)
        rounded[:] = array
        return rounded

    def reference(self, kind: str | None, elements: int, option: Option | None = None) -> Reference:
        """What the first `elements` elements should give, with the case's option or another."""
        option = self.case.option if option is None else option
        kind = targets_kind(self.case, OURS) if kind is None else kind
        if kind == "uint8":
            kind = "hard"  # the same values
        key = (kind, elements, option)
        if key not in self._references:
            weight = self.weight_for(option)
            arrays = (
                self.scores[:elements],
                self.targets(kind)[:elements],
                None if weight is None else weight[:elements],
            )
            # The same values, in every case of this dtype and size.
            values = (self.case.dtype, self.case.elements, *key)
            self._references[key] = Reference(
                *(
                    _kept(function, values, (*arrays, option)) if self.case.work in works else None
                    for function, works in _PARTS
                )
            )
        return self._references[key]


def numpy_dtype(name: str) -> np.dtype[Any]:
    """NumPy's type of that name; bfloat16 is one where ml_dtypes is installed."""
    if name == "bfloat16":
        try:
            import ml_dtypes
        except ImportError as error:
            raise DtypeUnavailable(f"NumPy has bfloat16 with ml_dtypes only ({error})") from error
        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def aligned_empty(elements: int, dtype: np.typing.DTypeLike) -> np.ndarray:
    """A 1-D array without values whose address is a multiple of ALIGNMENT."""
    size = elements * np.dtype(dtype).itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype)


def _part(
    function: str,
    scores: np.ndarray,
    targets: np.ndarray,
    weight: np.ndarray | None,
    option: Option,
) -> Any:
    """What a function of sigmoid_ce.reference, which shares no code with any backend, gives in
    float64: the mean loss, or an array."""
    count = scores.size
    options: dict[str, Any] = {} if function == "elementwise" else {"normalization": "none"}
    divisor = count
    if option is Option.POS_WEIGHT:
        options["pos_weight"] = POS_WEIGHT
    elif option is Option.IGNORE:
        options["ignore_label"] = IGNORED_TARGET
        divisor = max(1, count - int(np.count_nonzero(targets == IGNORED_TARGET)))
    elif option is Option.SMOOTHING:
        options["label_smoothing"] = SMOOTHING
    elif option is Option.FOCAL:
        options.update(gamma=GAMMA, alpha=ALPHA)
    elif option is Option.BALANCE:
        positive = int(np.count_nonzero(targets == 1))
        weight = np.where(targets == 1, count - positive, positive) / count  # targets are 0 or 1
    per_element = None if function == "forward" else np.empty(count)

    def compute(start: int) -> Any:
        piece = slice(start, start + _PIECE)
        own = {} if weight is None else {"weight": weight[piece].astype(np.float64)}
        found = getattr(sigmoid_ce.reference, function)(
            scores[piece].astype(np.float64), targets[piece].astype(np.float64), **options, **own
        )
        if per_element is None:
            return found
        per_element[piece] = found
        return None

    with ThreadPoolExecutor(sigmoid_ce.get_num_threads()) as pool:
        sums = list(pool.map(compute, range(0, count, _PIECE)))
    if per_element is None:
        return math.fsum(sums) / divisor
    if function == "backward":
        per_element /= divisor
    return per_element


# The parts of a Reference: the function that gives each, and the work that has it.
_PARTS = (
    ("forward", (Work.FORWARD, Work.BOTH)),
    ("backward", (Work.BACKWARD, Work.BOTH)),
    ("elementwise", (Work.ELEMENTWISE,)),
)
# The last ones, for the next groups of the same size: they take longer than most measurements.
_kept_parts: dict[Any, Any] = {}


def _kept(function: str, values: tuple[Any, ...], arguments: tuple[Any, ...]) -> Any:
    """_part(function, *arguments), which depends on `values` alone."""
    key = (function, *values)
    part = _kept_parts.pop(key) if key in _kept_parts else _part(function, *arguments)
    _kept_parts[key] = part  # now the last
    while sum(np.asarray(kept).nbytes for kept in _kept_parts.values()) > _KEPT_BYTES:
        del _kept_parts[next(iter(_kept_parts))]
    return part
