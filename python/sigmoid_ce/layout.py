"""Shapes, strides and dtypes of arrays of which only an address is known: the rules and the words
of python/bindings/array_args.h, for memory that the CPU cannot read.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Shape = tuple[int, ...]

# By the code of DType in cpp/include/sigmoid_ce/options.h.
DTYPES = (
    "float32", "float64", "bool", "uint8", "int8", "int32", "int64", "float16", "bfloat16"
)  # fmt: skip
CODES = {name: code for code, name in enumerate(DTYPES)}
ITEMSIZES = {
    "float32": 4, "float64": 8, "bool": 1, "uint8": 1, "int8": 1, "int32": 4, "int64": 8,
    "float16": 2, "bfloat16": 2,
}  # fmt: skip
SCORES = ("float16", "bfloat16", "float32", "float64")
MASKS = ("bool", "uint8", "int8")
INTEGERS = (*MASKS, "int32", "int64")

_MAX_DIMS = 64
_MAX_ELEMENTS = 2**60  # what 64 bits can address in float64


class View(NamedTuple):
    """An array in device memory. `strides` in bytes; None where it is contiguous in C order."""

    address: int
    shape: Shape
    strides: Shape | None
    dtype: str  # NumPy's name, or whatever the library calls what is not in DTYPES
    device: int
    read_only: bool = False

    @property
    def itemsize(self) -> int:
        return ITEMSIZES[self.dtype]

    @property
    def all_strides(self) -> Shape:
        return contiguous(self.shape, self.itemsize) if self.strides is None else self.strides


def contiguous(shape: Sequence[int], itemsize: int) -> Shape:
    """The strides of an array in C order."""
    strides = []
    step = itemsize
    for length in reversed(shape):
        strides.append(step)
        step *= length
    return tuple(reversed(strides))


def is_contiguous(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> bool:
    step = itemsize
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length == 0:
            return True
        if length != 1:
            if stride != step:
                return False
            step *= length
    return True


def text(shape: Sequence[int]) -> str:
    return str(tuple(shape))


# ---- dtypes ----


def check_dtype(view: View, name: str, allowed: Sequence[str], of_scores: str = "") -> None:
    """Raises TypeError unless the dtype is one of `allowed`, which may include that of scores."""
    if view.dtype in allowed:
        return
    names = [f"{d} (the dtype of scores)" if d == of_scores else d for d in allowed]
    expected = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
    raise TypeError(f"{name}: expected {expected}, got {view.dtype}")


def targets_of(scores: str) -> list[str]:
    """The types of targets that go with a type of scores."""
    return [scores, *(["float32"] if scores != "float32" else []), *INTEGERS]


def computed_in(scores: str) -> str:
    """The type that scores of a type are computed in."""
    return "float64" if scores == "float64" else "float32"


# ---- Overlap ----


def _bounds(view: View) -> tuple[int, int]:
    low = high = view.address
    for length, stride in zip(view.shape, view.all_strides, strict=True):
        if length == 0:
            return view.address, view.address
        reach = (length - 1) * stride
        if reach < 0:
            low += reach
        else:
            high += reach
    return low, high + view.itemsize


def _same_elements(a: View, b: View) -> bool:
    """Element i of one is element i of the other, for every i."""
    return (
        a.address == b.address
        and a.itemsize == b.itemsize
        and a.shape == b.shape
        and all(
            length <= 1 or s == t
            for length, s, t in zip(a.shape, a.all_strides, b.all_strides, strict=True)
        )
    )


class _Addresses:
    """The elements of a view as NumPy sees them, which computes with addresses alone."""

    def __init__(self, view: View) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (view.address, True),
            "shape": view.shape,
            "strides": view.all_strides,
            "typestr": f"|V{view.itemsize}",
        }


def shares_memory(a: View, b: View) -> bool:
    """Exact where NumPy can tell with moderate work, else on the safe side."""
    a_low, a_high = _bounds(a)
    b_low, b_high = _bounds(b)
    if not (a_low < b_high and b_low < a_high):
        return False
    if a.strides is None and b.strides is None:
        return True
    limit: Any = 100_000
    try:
        return np.shares_memory(np.asarray(_Addresses(a)), np.asarray(_Addresses(b)), limit)
    except RuntimeError:  # TooHardError
        return True


def _are_distinct(view: View) -> bool:
    """No two elements at one address, as far as nested strides show."""
    if view.strides is None or 0 in view.shape:
        return True
    axes = sorted(
        (abs(stride), length)
        for length, stride in zip(view.shape, view.strides, strict=True)
        if length > 1
    )
    extent = view.itemsize
    for stride, length in axes:
        if stride < extent:
            return False
        extent += stride * (length - 1)
    return True


def check_out(out: View, scores: View, others: dict[str, View | None], name: str = "out") -> None:
    """Raises where `out` is not an array that a derivative by the scores can be written to."""
    check_dtype(out, name, [scores.dtype], scores.dtype)
    if out.shape != scores.shape:
        raise ValueError(
            f"{name}: expected shape {text(scores.shape)}, the shape of scores, got "
            f"{text(out.shape)}"
        )
    if out.read_only:
        raise ValueError(f"{name}: expected an array that can be written, got a read-only one")
    if not _are_distinct(out):
        raise ValueError(
            f"{name}: expected one address per element, got strides {text(out.all_strides)} "
            "that may overlap"
        )
    if not _same_elements(out, scores) and shares_memory(out, scores):
        raise ValueError(
            f"{name}: shares memory with scores; pass the scores array itself, or a separate one"
        )
    for input_name, other in others.items():
        if other is not None and shares_memory(out, other):
            raise ValueError(f"{name}: shares memory with {input_name}")


# ---- Shapes ----


def read_integer(value: Any, name: str) -> int:
    """Any object with __index__ except a bool, which is more likely a slip than a number."""
    if isinstance(value, (bool, np.ndarray)) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    number = operator.index(value)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{name}: expected an int of 64 bits, got {number}")
    return number


class Cut:
    """The elements of a call in the whole array: its shape, and where the scores stand in it.

    An array with strides is described from element 0 of the whole on, which may lie outside of the
    memory of a chunk; a contiguous one from the first element of the call on.
    """

    def __init__(self, scores: View, first_index: Any = 0, shape: Any = None) -> None:
        self.scores = scores
        self.shape = scores.shape
        self.count = math.prod(scores.shape)
        self.first = 0
        self.is_flat = False  # scores are a flat piece of an array of another shape
        self._rows_before = 0  # else: rows of axis 0 that stand before the scores
        if shape is None and first_index == 0 and type(first_index) is int:
            return
        self.first = read_integer(first_index, "first_index")
        if self.first < 0:
            raise ValueError(f"first_index: expected an int >= 0, got {self.first}")
        if shape is None:
            self._set_rows()
        else:
            self._set_flat(shape)

    def _set_rows(self) -> None:
        row = math.prod(self.shape[1:])
        if self.first == 0:
            return
        if not self.shape or row == 0 or self.first % row != 0:
            raise ValueError(
                f"first_index: expected a multiple of the {row} elements of a row, got "
                f"{self.first} for scores of shape {text(self.shape)}; give the whole array's "
                "shape as shape= to cut elsewhere"
            )
        self._rows_before = self.first // row
        if self.first + self.count > _MAX_ELEMENTS:
            raise ValueError(
                f"first_index: expected fewer than 2^60 elements in all, got {self.first}"
            )
        self.shape = (self.shape[0] + self._rows_before, *self.shape[1:])

    def _set_flat(self, shape: Any) -> None:
        if not isinstance(shape, (tuple, list)):
            raise TypeError(f"shape: expected a tuple of ints >= 0, got {type(shape).__name__}")
        if len(shape) > _MAX_DIMS:
            raise ValueError(f"shape: expected at most {_MAX_DIMS} axes, got {len(shape)}")
        lengths = tuple(read_integer(length, "shape") for length in shape)
        if any(length < 0 for length in lengths):
            raise ValueError(f"shape: expected a tuple of ints >= 0, got {shape!r}")
        total = math.prod(lengths)
        if total > _MAX_ELEMENTS:
            raise ValueError(f"shape: more elements than 64 bits can count, got {shape!r}")
        if self.first + self.count > total:
            raise ValueError(
                f"shape: expected at least first_index + scores.size = {self.first} + "
                f"{self.count} elements, got {total} in {shape!r}"
            )
        self.is_flat = lengths != self.scores.shape
        self.shape = lengths

    def place(self, view: View, name: str) -> tuple[int, Shape | None]:
        """Address and strides of an array that has an axis for each of the scores."""
        if view.strides is None:
            return view.address, None
        if self.is_flat:
            return self._place_flat(view, name)
        return self._rebase(view.address, view.strides), view.strides

    def place_targets(self, targets: View) -> tuple[int, Shape | None]:
        """As `place`, for an array that has the shape of the scores but for axes of length 1."""
        scores = self.scores
        if targets.shape != scores.shape:
            strides = iter(
                [(n, s) for n, s in zip(targets.shape, targets.all_strides, strict=True) if n != 1]
            )
            long_axes = [n for n in scores.shape if n != 1]
            if long_axes != [n for n in targets.shape if n != 1]:
                raise ValueError(
                    f"targets: expected shape {text(scores.shape)}, the shape of scores (axes of "
                    f"length 1 aside), got {text(targets.shape)}"
                )
            if targets.strides is not None and not self.is_flat:
                over = tuple(0 if n == 1 else next(strides)[1] for n in scores.shape)
                return self._rebase(targets.address, over), over
        return self.place(targets, "targets")

    def place_weight(self, weight: View) -> tuple[int, Shape | None]:
        """As `place`, for an array that broadcasts to the scores: to the whole of a flat chunk."""
        shape = self.shape if self.is_flat else self.scores.shape
        if weight.shape == shape and weight.strides is None and not self.is_flat:
            return weight.address, None
        lead = len(shape) - len(weight.shape)
        if lead < 0 or any(
            n not in (1, whole) for n, whole in zip(weight.shape, shape[lead:], strict=True)
        ):
            what = "the whole shape" if self.is_flat else "the shape of scores"
            raise ValueError(
                f"weight: expected a shape that broadcasts to {text(shape)}, {what}, got "
                f"{text(weight.shape)}"
            )
        strides = (0,) * lead + tuple(
            0 if n == 1 else s for n, s in zip(weight.shape, weight.all_strides, strict=True)
        )
        return weight.address if self.is_flat else self._rebase(weight.address, strides), strides

    def check_pos_weight(self, shape: Shape) -> None:
        """Raises unless it is of one value, or one for each channel: axis 1 of the whole."""
        size = math.prod(shape)
        if size == 1:
            return
        ndim = len(self.shape)
        if ndim >= 2 and size == self.shape[1] and len(shape) in (1, ndim - 1, ndim):
            # With the size in one axis, the others are of length 1 unless the size is 0.
            if shape[1 if len(shape) == ndim else 0] == size:
                return
        came = f", got shape {text(shape)}"
        if ndim < 2:
            raise ValueError(
                f"pos_weight: expected a number, since scores of shape {text(self.shape)} have no "
                f"channel axis (axis 1){came}"
            )
        channels = self.shape[1]
        forms = f"a number or shape ({channels},)"
        if ndim > 2:
            forms += f" or {text((channels, *(1,) * (ndim - 2)))}"
        raise ValueError(
            f"pos_weight: expected {forms} for scores of shape {text(self.shape)}{came}"
        )

    def _rebase(self, address: int, strides: Shape) -> int:
        return address - self._rows_before * strides[0] if self._rows_before else address

    def _place_flat(self, view: View, name: str) -> tuple[int, Shape]:
        """Element i of the chunk is element first + i of the whole; one stride serves all axes."""
        long_axes = [s for n, s in zip(view.shape, view.all_strides, strict=True) if n != 1]
        if len(long_axes) > 1:
            raise ValueError(
                f"{name}: expected a chunk with one axis or contiguous in C order, got shape "
                f"{text(view.shape)} with strides {text(view.all_strides)}"
            )
        stride = long_axes[0] if long_axes else 0
        return view.address - self.first * stride, contiguous(self.shape, stride)
