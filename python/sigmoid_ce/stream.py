"""The loss and its gradient for .npy files of any size: mapped into memory and read in blocks.

The results have the bits of those for arrays in memory, since blocks are cut at multiples of 4096
elements and `Partial` adds up exactly. Memory for a few blocks is all that is used.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from sigmoid_ce import _cpu, arrays

Array = NDArray[Any]

# Elements in a block, a multiple of 4096. Float64 scores, targets, weights and gradient of one
# block take 64 MiB, and the time that a block takes is far above that of handing it out.
BLOCK = 1 << 21


class Result(NamedTuple):
    """What `run` found."""

    part: _cpu.Partial
    normalization: str | float | None
    batch_size: int | None
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def loss(self) -> float:
        """In nats per unit of the divisor, as `sigmoid_ce.forward` returns it."""
        return self.part.loss(self.normalization, self.batch_size)

    @property
    def divisor(self) -> float:
        return self.part.divisor(self.normalization, self.batch_size)


class File:
    """A .npy file, mapped into memory. `array` has its shape and refers to the mapping.

    Raises ValueError for a file of another kind, of Python objects or of records, in Fortran order,
    or shorter than it says; OSError where it cannot be read. Messages begin with `name`.
    """

    def __init__(self, path: Path, name: str) -> None:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a pipe would wait for its other end
            raise ValueError(f"{name}: {path} is no regular file, which can be mapped into memory")
        with path.open("rb") as file:
            try:
                shape, fortran, dtype = _header(file)
            except OSError:
                raise
            except Exception as error:  # NumPy raises many kinds for damaged headers
                raise ValueError(f"{name}: {path} is not a .npy file; {error}") from None
            if dtype.kind not in "biufc":  # objects would be unpickled
                raise ValueError(f"{name}: {path} holds {dtype}, expected an array of numbers")
            if fortran and sum(length > 1 for length in shape) > 1:
                raise ValueError(
                    f"{name}: {path} is in Fortran order, and elements are taken in C order; "
                    "rewrite it: numpy.save(new, numpy.ascontiguousarray(numpy.load(old)))"
                )
            start = file.tell()
            size = math.prod(shape)
            present = os.fstat(file.fileno()).st_size
            if present < start + size * dtype.itemsize:
                raise ValueError(
                    f"{name}: {path} has {present} bytes, expected {start + size * dtype.itemsize} "
                    f"for shape {shape} of {dtype}"
                )
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.flat: Array = np.frombuffer(self._map, dtype, size, start)
        try:
            self.array: Array = self.flat.reshape(shape)
        except ValueError as error:  # too many axes; no elements, but axes longer than an address
            raise ValueError(f"{name}: {path} has shape {shape}; {error}") from None

    def forget(self) -> None:
        """Gives the pages that were read back; they count as this process's memory otherwise."""
        self._map.madvise(mmap.MADV_DONTNEED)


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        # Version 3 is for records with names outside of Latin-1.
        raise ValueError(f"unknown version {version}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # files that Python 2 wrote
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    if min(shape, default=0) < 0:
        raise ValueError(f"shape {shape} is negative")
    return tuple(map(int, shape)), fortran, dtype


def run(
    scores_file: Path,
    targets_file: Path,
    *,
    pos_weight: float | Array | Path | None = None,
    weight: float | Path | None = None,
    ignore_label: int | None = None,
    uncertain: str = "soft",
    label_smoothing: float = 0.0,
    negative_scale: float = 1.0,
    gamma: float = 0.0,
    alpha: float | None = None,
    normalization: str | float | None = None,
    loss_weight: float = 1.0,
    check: bool = False,
    grad_out: Path | None = None,
    progress: Callable[[int, int], object] = lambda elements, total: None,
) -> Result:
    """`sigmoid_ce.forward` of two .npy files, and `backward` into a third.

    Parameters
    ----------
    scores_file, targets_file : paths of .npy files; shapes and dtypes as in `forward`
        They are not to shrink while they are read: the system ends a process that reads a mapping
        beyond the end of its file.
    pos_weight, weight : see `forward`; or the path of a .npy file
    ignore_label, uncertain, label_smoothing, negative_scale, gamma, alpha, loss_weight, check
        See `forward` and `backward`.
    normalization : as for `forward`, but for "foreground"
    grad_out : path of the .npy file to write
        It appears when it is complete and on disk, and replaces one of that name; until then it has
        another name in the same folder.
    progress : called after each block with its number of elements and the number to add up to
        With ignored targets, normalization "valid" and grad_out the targets are read twice, and
        that number is twice the size.

    Raises
    ------
    TypeError, ValueError
        As `forward` does, or where a file is not as expected.
    OSError
        Where a file cannot be read or written.
    """
    scores, targets = File(scores_file, "scores"), File(targets_file, "targets")
    files = [scores, targets]
    inputs = {
        "scores": scores_file,
        "targets": targets_file,
        "weight": weight,
        "pos_weight": pos_weight,
    }
    if isinstance(pos_weight, Path):
        pos_weight = np.array(File(pos_weight, "pos_weight").array)
    factor: float | Array | None = None
    if isinstance(weight, Path):
        files.append(File(weight, "weight"))
        factor = files[-1].array
    else:
        factor = weight
    shape, size = scores.array.shape, scores.array.size
    if _long_axes(shape) != _long_axes(targets.array.shape):
        raise ValueError(
            f"targets: expected shape {shape}, the shape of scores (axes of length 1 aside), got "
            f"{targets.array.shape}"
        )
    if check and isinstance(factor, np.ndarray):
        for block in _cut(factor.size):
            arrays.check_weight(files[-1].flat[block], block.start, factor.shape)
            files[-1].forget()
    options = {
        "pos_weight": pos_weight,
        "weight": factor,
        "ignore_label": ignore_label,
        "uncertain": uncertain,
        "label_smoothing": label_smoothing,
        "negative_scale": negative_scale,
        "gamma": gamma,
        "alpha": alpha,
    }
    ignores = ignore_label is not None or uncertain == "ignore"
    count_first = grad_out is not None and normalization == "valid" and ignores
    passes = 2 if count_first else 1
    # Where uncertain targets are ignored, none of the others is outside of [0, 1].
    check = check and uncertain != "ignore"
    batch_size = None
    if normalization is None or normalization == "batch_size":
        batch_size = shape[0] if shape else 1

    def blocks() -> Iterator[slice]:
        for block in _cut(size):
            yield block
            for file in files:
                file.forget()
            progress(block.stop - block.start, passes * size)

    def sum_of(x: Array) -> _cpu.Partial:
        total = _cpu.Partial()
        for block in blocks():
            t = targets.flat[block]
            if check:
                arrays.check_targets(t, ignore_label, block.start, shape)
            total += _cpu.partial(
                x[block], t, first_index=block.start, shape=shape, **cast(Any, options)
            )
        return total

    if grad_out is None:
        total = sum_of(scores.flat)
        return Result(total, normalization, batch_size, shape, scores.array.dtype)

    path = _destination(grad_out, inputs)
    if count_first:
        # The divisor must be known before the first gradient. Scores do not matter to the count.
        counts = sum_of(np.broadcast_to(np.zeros((), scores.array.dtype), (size,)))
        check = False
    else:
        counts = _counts(size)
    divisor = counts.divisor(normalization, batch_size)
    total = _cpu.Partial()
    gradient = np.empty(min(size, BLOCK), scores.array.dtype)
    with _written(path) as file:
        header = {
            "descr": np.lib.format.dtype_to_descr(scores.array.dtype),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks():
            t = targets.flat[block]
            if check:
                arrays.check_targets(t, ignore_label, block.start, shape)
            part, written = _cpu.partial_backward(
                scores.flat[block],
                t,
                divisor,
                loss_weight=loss_weight,
                first_index=block.start,
                shape=shape,
                out=gradient[: block.stop - block.start],
                **cast(Any, options),
            )
            total += part
            file.write(written.data)
    return Result(total, normalization, batch_size, shape, scores.array.dtype)


def _long_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(length for length in shape if length != 1)


def _counts(size: int) -> _cpu.Partial:
    """The counts of `size` elements of which none is ignored."""
    words = np.zeros_like(_cpu.Partial().to_words())
    words[-2:] = size  # n_valid, n_total
    return _cpu.Partial.from_words(words)


def _cut(size: int) -> Iterator[slice]:
    """Blocks of `size` elements; one that is empty where there are none."""
    for first in range(0, max(size, 1), BLOCK):
        yield slice(first, min(first + BLOCK, size))


def refuse_same(path: Path, name: str, others: dict[str, Any]) -> None:
    """Raises ValueError where the file to write is one of the others, also through links."""
    for other_name, other in others.items():
        if not isinstance(other, Path):
            continue
        same = os.path.realpath(path) == os.path.realpath(other)
        if same or (path.exists() and other.exists() and path.samefile(other)):
            raise ValueError(f"{name}: {path} is the file of {other_name}; give another name")


def _destination(path: Path, inputs: dict[str, Any]) -> Path:
    """Where links lead; not onto an input, nor onto what is no file."""
    refuse_same(path, "grad_out", inputs)
    try:
        path = path.resolve()
    except RuntimeError as error:  # Python before 3.13, links in a circle
        raise ValueError(f"grad_out: {error}") from None
    if path.exists() and not path.is_file():
        raise ValueError(f"grad_out: expected the name of a file, got {path}")
    if not path.parent.is_dir():
        raise ValueError(f"grad_out: {path.parent} is no directory")
    return path


@contextlib.contextmanager
def _written(path: Path) -> Iterator[BinaryIO]:
    """A new file that is given the name `path` once it is complete and on disk, else removed."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    # Left by a process of the same number that was killed, as is common in containers.
    unfinished.unlink(missing_ok=True)
    try:
        with unfinished.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if not os.path.samestat(os.fstat(file.fileno()), unfinished.stat()):
                raise ValueError(f"grad_out: another process of this number writes {path}")
        unfinished.replace(path)
    except BaseException as error:  # Ctrl-C as well
        unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # disk full, file too large
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
