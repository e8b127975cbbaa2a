"""`partial_backward`: chunks give the sum and the gradient of the whole; `Partial.divisor`."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

import sigmoid_ce as sce

SHAPE = (9, 3, 17, 50)
SIZE = math.prod(SHAPE)
DTYPES = ("float32", "float64")


def data(dtype: str, target: str = "uint8") -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 4, SHAPE).astype(dtype)
    targets = rng.choice([0, 1, 1, 0, 7], SHAPE)
    return scores, targets.astype(dtype if target == "float" else target)


def every_other(array: Any) -> Any:
    spread = np.zeros((*array.shape, 2), array.dtype)
    spread[..., 0] = array
    return spread[..., 0]


def whole(scores: Any, targets: Any, **options: Any) -> tuple[sce.Partial, Any, float]:
    """The sum, the gradient, and the divisor of mode "valid"."""
    loss_weight = options.pop("loss_weight", 1.0)
    part = sce.partial(scores, targets, **options)
    gradient = sce.backward(
        scores, targets, loss_weight=loss_weight, normalization="valid", **options
    )
    return part, gradient, part.divisor("valid")


# ---- The whole from its chunks ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", ["float", "bool", "uint8", "int8", "int32", "int64"])
@pytest.mark.parametrize("cut", [4096, 12288, 5000, SIZE])
def test_flat_chunks(dtype: str, target: str, cut: int) -> None:
    """Any cut gives the bits of the gradient; one at multiples of 4096 those of the sum as well."""
    scores, targets = data(dtype, target)
    rng = np.random.default_rng(1)
    options = {
        "pos_weight": np.array([0.5, 2.0, 3.0]),
        "weight": rng.random((3, 1, 50)).astype(dtype),
        "ignore_label": 7,
        "loss_weight": 0.3,
    }
    total, gradient, divisor = whole(scores, targets, **options)
    parts, pieces = [], []
    for i in range(0, SIZE, cut):
        part, piece = sce.partial_backward(
            scores.ravel()[i : i + cut],
            targets.ravel()[i : i + cut],
            divisor,
            first_index=i,
            shape=SHAPE,
            **options,
        )
        assert piece.dtype == scores.dtype
        parts.append(part)
        pieces.append(piece)
    assert np.concatenate(pieces).tobytes() == gradient.tobytes()
    assert sum(parts).n_valid == total.n_valid
    if cut % 4096 == 0 or cut == SIZE:
        assert sum(parts) == total


@pytest.mark.parametrize("dtype", DTYPES)
def test_chunks_of_rows(dtype: str) -> None:
    """Without a shape; rows of 2550 elements, so that cuts are anywhere."""
    scores, targets = data(dtype)
    row = math.prod(SHAPE[1:])
    weight = np.random.default_rng(2).random((SHAPE[0], 1, 1, 50)).astype(dtype)
    p = np.array([[[0.5]], [[2.0]], [[3.0]]])
    options = {"pos_weight": p, "ignore_label": 7}
    total, gradient, divisor = whole(scores, targets, weight=weight, **options)
    for rows in (1, 2, 4):
        pieces = [
            sce.partial_backward(
                scores[i : i + rows],
                targets[i : i + rows],
                divisor,
                weight=weight[i : i + rows],
                first_index=i * row,
                **options,
            )
            for i in range(0, SHAPE[0], rows)
        ]
        assert pieces[0][1].shape == (rows, *SHAPE[1:])
        assert b"".join(piece.tobytes() for _, piece in pieces) == gradient.tobytes()
        assert sum(part for part, _ in pieces).n_valid == total.n_valid


@pytest.mark.parametrize("layout", [np.ascontiguousarray, every_other])
def test_strides_and_out(layout: Any) -> None:
    scores, targets = data("float32")
    total, gradient, divisor = whole(scores, targets)
    out = layout(np.empty(SIZE, np.float32))
    parts = []
    for i in range(0, SIZE, 4096):
        chunk = slice(i, i + 4096)
        place = out[chunk]
        part, result = sce.partial_backward(
            layout(scores.ravel())[chunk],
            layout(targets.ravel())[chunk],
            divisor,
            first_index=i,
            shape=SHAPE,
            out=place,
        )
        assert result is place
        parts.append(part)
    assert out.tobytes() == gradient.tobytes()
    assert sce.combine(parts) == total


def test_out_may_be_the_scores() -> None:
    scores, targets = data("float64")
    total, gradient, divisor = whole(scores, targets)
    part, result = sce.partial_backward(scores, targets, divisor, out=scores)
    assert result is scores
    assert scores.tobytes() == gradient.tobytes()
    assert part == total


def test_nothing_and_one() -> None:
    for shape in ((0,), (4, 0), ()):
        x = np.zeros(shape)
        part, gradient = sce.partial_backward(x, x, 2)
        assert gradient.shape == shape
        assert part == sce.partial(x, x)
        assert gradient.tobytes() == sce.backward(x, x, normalization=2.0).tobytes()
    part, gradient = sce.partial_backward(x.reshape(1)[:0], x.reshape(1)[:0], 1, shape=(5, 3))
    assert (part, gradient.size) == (sce.Partial(), 0)


def test_native_function() -> None:
    """`sigmoid_ce.cpu` has it too, with options by position."""
    scores, targets = data("float32")
    part, gradient = sce.cpu.partial_backward(scores, targets, 3.0, None, 2.0, 7, 0.5)
    wanted = sce.partial_backward(scores, targets, 3.0, weight=2.0, ignore_label=7, loss_weight=0.5)
    assert part == wanted[0]
    assert gradient.tobytes() == wanted[1].tobytes()


def test_torch() -> None:
    torch = pytest.importorskip("torch")
    scores, targets = data("float32")
    total, wanted, divisor = whole(scores, targets)
    x, t = torch.from_numpy(scores), torch.from_numpy(targets)
    part, gradient = sce.partial_backward(x, t, divisor)
    assert isinstance(gradient, torch.Tensor)
    assert gradient.numpy().tobytes() == wanted.tobytes()
    assert part == total
    out = torch.empty_like(x)
    _, same = sce.partial_backward(x, t, divisor, out=out)
    assert same is out
    assert torch.equal(out, gradient)


# ---- Errors ----


@pytest.mark.parametrize(
    ("divisor", "error", "got"),
    [
        (None, TypeError, "NoneType"),
        ("valid", TypeError, "str"),
        (True, TypeError, "bool"),
        (1j, TypeError, "complex"),
        ([1.0], TypeError, "list"),
        (0, ValueError, "0"),
        (-2.5, ValueError, "-2.5"),
        (math.nan, ValueError, "nan"),
        (math.inf, ValueError, "inf"),
    ],
)
def test_wrong_divisors(divisor: Any, error: Any, got: str) -> None:
    x = np.zeros(3)
    with pytest.raises(error) as caught:
        sce.partial_backward(x, x, divisor)
    assert str(caught.value) == f"divisor: expected a positive number, got {got}"


def test_divisor_is_required() -> None:
    with pytest.raises(TypeError, match="divisor"):
        sce.partial_backward(np.zeros(3), np.zeros(3))  # type: ignore[call-arg]


@pytest.mark.parametrize("divisor", [2, 2.0, np.float32(2), np.int64(2), np.uint8(2)])
def test_divisors_of_any_type(divisor: Any) -> None:
    x = np.zeros(3)
    _, gradient = sce.partial_backward(x, x, divisor)
    assert gradient.tolist() == [0.25] * 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"first_index": -1}, ValueError, "first_index: expected an int >= 0, got -1"),
        ({"first_index": 1.0}, TypeError, "first_index: expected an int, got float"),
        ({"first_index": 4}, ValueError, "first_index: expected a multiple of the 3 elements"),
        ({"shape": 6}, TypeError, "shape: expected a tuple of ints >= 0, got int"),
        ({"shape": (2, -3)}, ValueError, "shape: expected a tuple of ints >= 0, got"),
        ({"shape": (2, 5), "first_index": 5}, ValueError, "shape: expected at least first_index"),
        ({"loss_weight": math.inf}, ValueError, "loss_weight: expected a finite number, got inf"),
        ({"out": np.zeros(6)}, ValueError, "out: expected shape (2, 3), the shape of scores"),
        ({"out": np.zeros((2, 3), "f4")}, TypeError, "out: expected float64"),
        ({"weight": np.ones(2)}, ValueError, "weight: expected a shape that broadcasts to (2, 3)"),
    ],
)
def test_wrong_arguments(options: Any, error: Any, message: str) -> None:
    with pytest.raises(error) as caught:
        sce.partial_backward(np.zeros((2, 3)), np.zeros((2, 3)), 1.0, **options)
    assert str(caught.value).startswith(message)


# ---- Partial.divisor, sum() ----


def test_divisor() -> None:
    x = np.zeros((4, 3))
    t = np.zeros((4, 3))
    t[0] = 7
    part = sce.partial(x, t, ignore_label=7)
    assert part.divisor("full") == 12
    assert part.divisor("valid") == 9
    assert part.divisor("none") == 1
    assert part.divisor(2.5) == 2.5
    assert part.divisor(batch_size=4) == part.divisor("batch_size", 4) == 4
    nothing = sce.Partial()
    assert nothing.divisor("full") == nothing.divisor("valid") == 1
    assert nothing.divisor(batch_size=0) == 1
    for mode, size in itertools.product(("full", "valid", "none", 2.5), (None,)):
        assert part.loss(mode, size) == part.sum / part.divisor(mode, size)
    with pytest.raises(ValueError, match=r"^batch_size: expected an int, since normalization"):
        part.divisor()
    with pytest.raises(ValueError, match=r"^batch_size: expected None unless normalization is"):
        part.divisor("full", 4)
    with pytest.raises(ValueError, match=r"^normalization: expected "):
        part.divisor("mean")


def test_sum_of_parts() -> None:
    x = np.arange(6.0)
    parts = [sce.partial(x[i : i + 1], x[i : i + 1]) for i in range(6)]
    assert sum(parts) == sum(parts, sce.Partial()) == sce.combine(parts)
    assert isinstance(sum(parts), sce.Partial)
    assert sum(parts[:1]) == parts[0]
    assert sum([]) == 0  # Python's, which no Partial can change
    total = parts[0]
    total += parts[1]
    assert total == parts[0] + parts[1]
    assert parts[0].n_total == 1
    for other in (1, 0.0, True, False, None, "0"):
        with pytest.raises(TypeError):
            other + parts[0]
        with pytest.raises(TypeError):
            parts[0] + other
