"""The functions of the package, for arrays of any library on the CPU or on a CUDA GPU.

With score x, target t, positive weight p and element weight w, the loss of an element is

    w * (max(x, 0) - x t + (1 + (p - 1) t) log1p(exp(-|x|)) + (p - 1) t max(-x, 0))

which is w * ((1 - t) log(1 + exp(x)) + p t log(1 + exp(-x))): the cross-entropy between the target
and sigmoid(x). Derivation, error bounds and the guarantee of equal bits: docs/numerics.md. The
semantics of `ignore_label` and `normalization` are those of Caffe's SigmoidCrossEntropyLossLayer.

The device of the scores picks the kernels. On a GPU more dtypes are taken, and a loss is an array:
`sigmoid_ce.cuda` says what differs. It is imported when it has a use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from sigmoid_ce import _cpu, arrays
from sigmoid_ce.gpu import gpu_library

# An array of NumPy, PyTorch or JAX, or one that speaks DLPack or the buffer protocol, on the CPU; a
# list of numbers; a number. An array of PyTorch, CuPy, JAX or Numba, or one that speaks DLPack or
# __cuda_array_interface__, on a GPU. Results come back in the library of the scores.
Array = Any
Normalization = Literal["full", "valid", "batch_size", "none"] | float

# What the native code takes as it is; a call with these alone costs no more than the look at them.
_NATIVE_ARRAY = np.ndarray
_NATIVE_WEIGHTS = frozenset({type(None), float, int, np.ndarray})


def forward(
    scores: Array,
    targets: Array,
    *,
    pos_weight: Array | None = None,
    weight: Array | None = None,
    ignore_label: int | None = None,
    normalization: Normalization | None = None,
    normalize: bool | None = None,
    check: bool = False,
) -> float | Array:
    """The loss: the sum over the elements, over a divisor.

    Parameters
    ----------
    scores : any shape, float32 or float64; on a GPU float16 or bfloat16 too
        Logits. Read in place, whatever the strides or the alignment. Lists become float64.
    targets : the shape of scores, axes of length 1 aside; the dtype of scores, or bool, uint8,
        int8, int32, int64; on a GPU float32 too
        Usually in [0, 1]; other values go through the same formula. On the device of the scores, as
        is an array of `weight`.
    pos_weight : number, (C,) or (C, 1, ..., 1); finite and >= 0
        Factor on the positive part of the loss; C values are for axis 1 of the scores, the channels
        of Caffe and of (N, C, H, W). (PyTorch broadcasts (C,) along the last axis.)
    weight : number, or an array that broadcasts to scores; the dtype of scores, bool, uint8 or int8
        Factor per element. An element of weight 0 has loss and gradient 0, whatever its score.
    ignore_label : int
        An element whose target, truncated to an integer, equals it has loss and gradient 0 and does
        not count as valid.
    normalization : "full", "valid", "batch_size", "none" or a positive number
        The divisor: the number of elements, of elements not ignored, scores.shape[0] (1 for a 0-d
        score), 1, each at least 1; or the number itself. Default: by `normalize`, else
        "batch_size".
    normalize : bool
        The older way to say "valid" (True) or "batch_size" (False); `normalization` goes first.
    check : bool
        Also look for targets outside [0, 1] (ignored ones aside) and for negative, infinite or NaN
        element weights. Costs a pass over the data.

    Returns
    -------
    float; for scores on a GPU, a 0-d array there, in float64 (in float32 for JAX without x64)
        In nats (natural logarithm) per unit of the divisor. The sum is exact over blocks of 4096
        elements: no order, thread count, instruction set or device changes its bits. NaN and
        infinities in scores, targets or weight are never an error. On a GPU the array is there when
        its stream is; nobody waits.

    Raises
    ------
    TypeError
        For a dtype or a kind of object that is not listed above: complex and masked arrays, tensors
        that require grad, arrays on more than one device. Nothing is converted in silence.
    ValueError
        For a shape or a value that does not fit. Messages name the argument, what is expected and
        what came.
    CudaError, MemoryError, RuntimeError, ImportError
        For scores on a GPU: see `sigmoid_ce.cuda.forward`.
    """
    if check or _needs_views(scores, targets, pos_weight, weight):
        if gpu_library(scores) is not None:
            import sigmoid_ce.cuda as cuda

            return cuda.forward(
                scores, targets, pos_weight, weight, ignore_label, normalization, normalize, check
            )
        scores, targets, pos_weight, weight, _ = _views(
            scores, targets, pos_weight, weight, ignore_label, check
        )
    return _cpu.forward(scores, targets, pos_weight, weight, ignore_label, normalization, normalize)


def backward(
    scores: Array,
    targets: Array,
    *,
    pos_weight: Array | None = None,
    weight: Array | None = None,
    ignore_label: int | None = None,
    normalization: Normalization | None = None,
    normalize: bool | None = None,
    loss_weight: float = 1.0,
    out: Array | None = None,
    check: bool = False,
) -> Array:
    """The gradient of `forward` with respect to the scores, times `loss_weight`.

    Per element w * ((1 - t) sigmoid(x) - p t sigmoid(-x)) * loss_weight / divisor. The other
    arguments and the errors are those of `forward`.

    Parameters
    ----------
    loss_weight : number, finite
        Factor on the gradient: the derivative of what is minimised with respect to this loss.
    out : the shape and dtype of scores
        Receives the gradient. It may be the scores array itself; any other overlap with an input is
        a ValueError.

    Returns
    -------
    `out`, or a new array of the library, shape and dtype of scores.
    """
    restore: Callable[[Any], Any] | None = None
    if check or _needs_views(scores, targets, pos_weight, weight):
        if gpu_library(scores) is not None:
            import sigmoid_ce.cuda as cuda

            return cuda.backward(
                scores,
                targets,
                pos_weight,
                weight,
                ignore_label,
                normalization,
                normalize,
                loss_weight,
                out,
                check,
            )
        scores, targets, pos_weight, weight, restore = _views(
            scores, targets, pos_weight, weight, ignore_label, check
        )
    gradient = _cpu.backward(
        scores,
        targets,
        pos_weight,
        weight,
        ignore_label,
        normalization,
        normalize,
        loss_weight,
        arrays.view_out(out),
    )
    return _result(gradient, out, restore)


def forward_backward(
    scores: Array,
    targets: Array,
    *,
    pos_weight: Array | None = None,
    weight: Array | None = None,
    ignore_label: int | None = None,
    normalization: Normalization | None = None,
    normalize: bool | None = None,
    loss_weight: float = 1.0,
    out: Array | None = None,
    check: bool = False,
) -> tuple[float | Array, Array]:
    """`forward` and `backward` in one pass over memory, with the bits of the two.

    `loss_weight` is a factor on the gradient only. Arguments and errors: see `forward` and
    `backward`.
    """
    restore: Callable[[Any], Any] | None = None
    if check or _needs_views(scores, targets, pos_weight, weight):
        if gpu_library(scores) is not None:
            import sigmoid_ce.cuda as cuda

            return cuda.forward_backward(
                scores,
                targets,
                pos_weight,
                weight,
                ignore_label,
                normalization,
                normalize,
                loss_weight,
                out,
                check,
            )
        scores, targets, pos_weight, weight, restore = _views(
            scores, targets, pos_weight, weight, ignore_label, check
        )
    loss, gradient = _cpu.forward_backward(
        scores,
        targets,
        pos_weight,
        weight,
        ignore_label,
        normalization,
        normalize,
        loss_weight,
        arrays.view_out(out),
    )
    return loss, _result(gradient, out, restore)


def elementwise(
    scores: Array,
    targets: Array,
    *,
    pos_weight: Array | None = None,
    weight: Array | None = None,
    ignore_label: int | None = None,
    out: Array | None = None,
    check: bool = False,
) -> Array:
    """The loss of each element (reduction "none"), in nats, without a divisor.

    Returns `out`, or a new array of the library, shape and dtype of scores. Arguments and errors:
    see `forward` and `backward`.
    """
    restore: Callable[[Any], Any] | None = None
    if check or _needs_views(scores, targets, pos_weight, weight):
        if gpu_library(scores) is not None:
            import sigmoid_ce.cuda as cuda

            return cuda.elementwise(scores, targets, pos_weight, weight, ignore_label, out, check)
        scores, targets, pos_weight, weight, restore = _views(
            scores, targets, pos_weight, weight, ignore_label, check
        )
    losses = _cpu.elementwise(
        scores,
        targets,
        pos_weight,
        weight,
        ignore_label,
        arrays.view_out(out),
    )
    return _result(losses, out, restore)


def partial(
    scores: Array,
    targets: Array,
    *,
    pos_weight: Array | None = None,
    weight: Array | None = None,
    ignore_label: int | None = None,
    first_index: int = 0,
    shape: Sequence[int] | None = None,
) -> _cpu.Partial:
    """The exact sum of the losses of a chunk, to be added to those of other chunks.

    Data cut at multiples of 4096 elements gives the bits of the whole. The other arguments and the
    errors are those of `forward`.

    Parameters
    ----------
    first_index : int
        Index, in C order of the whole array, of the chunk's first element.
    shape : tuple of int
        Shape of the whole array, where the chunk is any run of its elements in C order. The
        channels of `pos_weight` follow axis 1 of this shape, and `weight` broadcasts to it. Without
        a shape the chunk consists of whole rows: its axes from the second on are those of the
        whole, and `weight` broadcasts to the chunk.
    """
    if gpu_library(scores) is not None:
        import sigmoid_ce.cuda as cuda

        return cuda.partial(scores, targets, pos_weight, weight, ignore_label, first_index, shape)
    scores, targets, pos_weight, weight, _ = _views(
        scores, targets, pos_weight, weight, ignore_label, False
    )
    return _cpu.partial(scores, targets, pos_weight, weight, ignore_label, first_index, shape)


def partial_backward(
    scores: Array,
    targets: Array,
    divisor: float,
    *,
    pos_weight: Array | None = None,
    weight: Array | None = None,
    ignore_label: int | None = None,
    loss_weight: float = 1.0,
    first_index: int = 0,
    shape: Sequence[int] | None = None,
    out: Array | None = None,
) -> tuple[_cpu.Partial, Array]:
    """`partial`, and the gradient of the chunk's elements, in one pass over memory.

    Parameters
    ----------
    divisor : number > 0
        What the loss of the whole is divided by, since a chunk does not know: its number of
        elements, of valid elements (`partial(...).n_valid`) or of rows.

    The other arguments and the errors are those of `partial` and `backward`. The gradients of the
    chunks have the bits of the whole's gradient, wherever the data is cut.

    Returns
    -------
    (Partial, gradient)
        The gradient has the shape and dtype of the chunk of scores.
    """
    if gpu_library(scores) is not None:
        import sigmoid_ce.cuda as cuda

        return cuda.partial_backward(
            scores,
            targets,
            divisor,
            pos_weight,
            weight,
            ignore_label,
            loss_weight,
            first_index,
            shape,
            out,
        )
    scores, targets, pos_weight, weight, restore = _views(
        scores, targets, pos_weight, weight, ignore_label, False
    )
    part, gradient = _cpu.partial_backward(
        scores,
        targets,
        divisor,
        pos_weight,
        weight,
        ignore_label,
        loss_weight,
        first_index,
        shape,
        arrays.view_out(out),
    )
    return part, _result(gradient, out, restore)


class SigmoidCrossEntropyLoss:
    """The loss as a layer: the options once, then `forward`, and `backward` for the last forward.

    Options: see `forward` and `backward`; each is an attribute that may be changed.
    """

    def __init__(
        self,
        pos_weight: Array | None = None,
        weight: Array | None = None,
        ignore_label: int | None = None,
        normalization: Normalization | None = None,
        normalize: bool | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        self.pos_weight = pos_weight
        self.weight = weight
        self.ignore_label = ignore_label
        self.normalization = normalization
        self.normalize = normalize
        self.loss_weight = loss_weight
        self._inputs: tuple[Array, Array] | None = None

    def forward(self, scores: Array, targets: Array) -> float | Array:
        """The loss. Keeps references to both arrays, not copies, for `backward`."""
        loss = forward(
            scores,
            targets,
            pos_weight=self.pos_weight,
            weight=self.weight,
            ignore_label=self.ignore_label,
            normalization=self.normalization,
            normalize=self.normalize,
        )
        self._inputs = scores, targets
        return loss

    def backward(self, out: Array | None = None) -> Array:
        """The gradient with respect to the scores of the last `forward`, times `loss_weight`.

        Raises RuntimeError where there was no forward.
        """
        if self._inputs is None:
            raise RuntimeError("backward: call forward first")
        scores, targets = self._inputs
        return backward(
            scores,
            targets,
            pos_weight=self.pos_weight,
            weight=self.weight,
            ignore_label=self.ignore_label,
            normalization=self.normalization,
            normalize=self.normalize,
            loss_weight=self.loss_weight,
            out=out,
        )


def info() -> dict[str, Any]:
    """What runs here: version, instruction sets, threads, devices, CUDA, compiler, NumPy."""
    import sigmoid_ce.cuda as cuda

    gpu = cuda.info()
    names = [f"cuda:{i} {device['name']}" for i, device in enumerate(gpu["devices"])]
    return {
        "version": _cpu.version,
        "isa": _cpu.get_isa(),
        "available_isas": _cpu.available_isas(),
        "compiled_isas": _cpu.compiled_isas(),
        "num_threads": _cpu.get_num_threads(),
        "devices": ["cpu", *names],
        "cuda": gpu,
        "compiler": _cpu.compiler,
        "numpy": np.__version__,
    }


def _needs_views(
    scores: Array, targets: Array, pos_weight: Array | None, weight: Array | None
) -> bool:
    return (
        type(scores) is not _NATIVE_ARRAY
        or type(targets) is not _NATIVE_ARRAY
        or type(pos_weight) not in _NATIVE_WEIGHTS
        or type(weight) not in _NATIVE_WEIGHTS
    )


def _views(
    scores: Array,
    targets: Array,
    pos_weight: Array | None,
    weight: Array | None,
    ignore_label: int | None,
    check: bool,
) -> tuple[Any, Any, Any, Any, Callable[[Any], Any]]:
    """The arguments as NumPy views, and the way back to the library of the scores."""
    scores, targets, restore = arrays.view_pair(scores, targets)
    pos_weight = arrays.view_weight(pos_weight, "pos_weight")
    weight = arrays.view_weight(weight, "weight")
    if check:
        arrays.check_targets(targets, ignore_label)
        arrays.check_weight(weight)
    return scores, targets, pos_weight, weight, restore


def _result(array: Array, out: Array | None, restore: Callable[[Any], Any] | None) -> Array:
    if out is not None:
        return out
    return array if restore is None else restore(array)
