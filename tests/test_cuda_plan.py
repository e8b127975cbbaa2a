"""The launch plan of the CUDA kernels: host code, up to 2^43 elements (tests/native/plan.cpp)."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SEED = 20
VIEWS = 400
MOST_AXES = 8


def run(native_tests: Path, what: str, text: str = "") -> str:
    done = subprocess.run(
        [str(native_tests / "plan"), what], input=text, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("what", ["grid", "divide", "errors"])
def test_plan(what: str, native_tests: Path) -> None:
    """Grids and tails; quotients of indices below 2^63; refused arguments."""
    said = run(native_tests, what)
    print(said)
    match = re.fullmatch(r"(\d+) checks\n", said)
    assert match
    assert int(match[1]) > 100


def merged_axes(array: Any) -> int:
    """Axes that are left when those of length 1 go and neighbours in one stride become one."""
    axes: list[tuple[int, int]] = []
    for length, stride in zip(array.shape, array.strides, strict=True):
        if length == 1:
            continue
        if axes and axes[-1][1] == stride * length:
            axes[-1] = (axes[-1][0] * length, stride)
        else:
            axes.append((length, stride))
    return max(1, len(axes))


def random_view(rng: np.random.Generator, memory: Any) -> Any:
    """Reshaped, sliced, turned, broadcast, as users do."""
    ndim = int(rng.integers(1, 6))
    lengths = rng.integers(1, 9, ndim)
    view = memory[: int(np.prod(lengths))].reshape(lengths)
    for _ in range(rng.integers(0, 4)):
        kind = rng.integers(0, 5)
        axis = int(rng.integers(0, view.ndim))
        if kind == 0:
            view = view.transpose(rng.permutation(view.ndim))
        elif kind == 1:
            view = np.flip(view, axis)
        elif kind == 2:
            slices = [slice(None)] * view.ndim
            slices[axis] = slice(int(rng.integers(0, view.shape[axis])), None, 2)
            view = view[tuple(slices)]
        elif kind == 3 and view.ndim < 9:
            view = np.broadcast_to(view, (int(rng.integers(1, 5)), *view.shape))
        elif view.ndim < 9:
            view = np.expand_dims(view, axis)
    return view


def test_views_have_the_offsets_of_numpy(native_tests: Path) -> None:
    rng = np.random.default_rng(SEED)
    lines, wanted = [], []
    for _ in range(VIEWS):
        memory = np.arange(8**5, dtype=rng.choice(["int32", "int64"]))
        view = random_view(rng, memory)
        values = view.ravel()
        first = int(rng.integers(0, values.size))
        indices = np.unique(np.append(rng.integers(first, values.size, 20), values.size - 1))
        numbers = [view.itemsize, first, view.ndim, *view.shape, *view.strides]
        lines.append(" ".join(map(str, [*numbers, len(indices), *indices])))
        # The memory counts up, so a value says where it is.
        offsets = (values[indices].astype(np.int64) - int(values[0])) * view.itemsize
        wanted.append((view, [int(v) for v in offsets]))
    said = run(native_tests, "views", "\n".join(lines) + "\n").splitlines()
    assert len(said) == VIEWS
    seen = set()
    for line, (view, offsets) in zip(said, wanted, strict=True):
        axes = merged_axes(view)
        plain = axes == 1 and (view.size == 1 or view.ravel()[1] == view.ravel()[0] + 1)
        assert axes <= MOST_AXES
        _, n_axes, *got = (int(word) for word in line.split())
        assert n_axes == (0 if plain else axes), (view.shape, view.strides)
        assert got == offsets, (view.shape, view.strides)
        seen.add(n_axes)
    assert {0, 1, 2, 3, 4} <= seen


def test_too_many_axes(native_tests: Path) -> None:
    for ndim in (MOST_AXES, MOST_AXES + 1):
        view = np.zeros((3,) * ndim, dtype=np.float32)[(slice(None, None, 2),) * ndim]
        numbers = [4, 0, ndim, *view.shape, *view.strides, 1, view.size - 1]
        said = run(native_tests, "views", " ".join(map(str, numbers)) + "\n")
        assert (said == "too many\n") == (ndim > MOST_AXES)
