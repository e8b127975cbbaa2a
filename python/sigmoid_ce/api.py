"""The functions of the package, for arrays of any library on the CPU or on a CUDA GPU.

With score x, target t, positive weight p and element weight w, the loss of an element is

    w * (max(x, 0) - x t + (1 + (p - 1) t) log1p(exp(-|x|)) + (p - 1) t max(-x, 0))

which is w * E with E = (1 - t) log(1 + exp(x)) + p t log(1 + exp(-x)): the cross-entropy between
the target and sigmoid(x). Options make a family of it,

    loss = weight * (t w+ + (1 - t) w-) * r^gamma * E       r = t sigmoid(-x) + (1 - t) sigmoid(x)

with class weights w+ and w- that may be counted from the targets, and the focal factor. Derivation,
error bounds and the guarantee of equal bits: docs/numerics.md. The semantics of `ignore_label` and
`normalization` are those of Caffe's SigmoidCrossEntropyLossLayer.

The device of the scores picks the kernels. On a GPU a loss is an array: `sigmoid_ce.cuda` says what
differs. It is imported when it has a use.
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
Normalization = Literal["full", "valid", "batch_size", "none", "foreground"] | float
Uncertain = Literal["soft", "ignore"]
Balance = Literal["none", "image", "batch", "batch_mean"]

# What the native code takes as it is; a call with these alone costs no more than the look at them,
# which each function takes itself, since calls of Python's are slow.
_NATIVE_ARRAY = np.ndarray
_NATIVE_WEIGHTS = frozenset({type(None), float, int, np.ndarray})

# Defaults of options, known by identity: a small call would take a tenth more time to hand all of
# them over. (Which happens all the same where an interpreter has such a constant twice.)
_ZERO = 0.0
_ONE = 1.0
_NONE = "none"
_SOFT = "soft"


def forward(
    scores: Array,
    targets: Array,
    *,
    pos_weight: Array | None = None,
    weight: Array | None = None,
    ignore_label: int | None = None,
    uncertain: Uncertain = "soft",
    label_smoothing: float = 0.0,
    balance: Balance | None = "none",
    balance_per_channel: bool = False,
    negative_scale: float = 1.0,
    gamma: float = 0.0,
    alpha: float | None = None,
    normalization: Normalization | None = None,
    normalize: bool | None = None,
    check: bool = False,
) -> float | Array:
    """The loss: the sum over the elements, over a divisor.

    Parameters
    ----------
    scores : any shape; float16, bfloat16, float32 or float64
        Logits. Read in place, whatever the strides or the alignment. Lists become float64. The
        16-bit types are computed in float32, and results in them are rounded once. NumPy has
        bfloat16 by the package ml_dtypes.
    targets : the shape of scores, axes of length 1 aside; the dtype of scores, or bool, uint8,
        int8, int32, int64; float32 beside 16-bit scores
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
    uncertain : "soft" or "ignore"
        What targets other than 0 and 1 are: between the classes, or ignored like `ignore_label`.
    label_smoothing : number s, 0 <= s < 1
        t becomes t (1 - s) + s / 2, after ignored elements are found and classes are counted
        (Szegedy et al., Rethinking the Inception architecture, 2016, with two classes).
    balance : "none", "image", "batch" or "batch_mean"
        Weights w+ and w- of the two classes: an element has the factor t w+ + (1 - t) w-. With P
        targets that are 1 and M that are 0, ignored ones aside: "image" and "batch" are w+ =
        M / (P + M) and w- = P / (P + M), counted for each index of axis 0 or over all (Xie and Tu,
        Holistically-nested edge detection, 2015); an image of one class has loss 0. "batch_mean" is
        w+ = V / (2 P) and w- = V / (2 (V - P)) over all, with V = P + M and P kept in [1, V - 1]:
        both classes weigh the same, and 1 in the mean. Takes one more read of the targets.
    balance_per_channel : bool
        Count for each index of axis 1 by itself; needs a `balance`.
    negative_scale : number, finite and >= 0
        Factor on w-.
    gamma : number from 0 to 10^6
        Focal loss (Lin et al., Focal loss for dense object detection, 2017): the factor r^gamma
        with r = t sigmoid(-x) + (1 - t) sigmoid(x). Targets outside [0, 1] then give NaN. 0: off,
        with the bits of the loss without.
    alpha : number from 0 to 1
        Its class weights: w+ is multiplied by alpha, w- by 1 - alpha. Works without `gamma` too.
    normalization : "full", "valid", "batch_size", "none", "foreground" or a positive number
        The divisor: the number of elements, of elements not ignored, scores.shape[0] (1 for a 0-d
        score), 1, the number of targets that are 1 and not ignored, each at least 1; or the number
        itself. Default: by `normalize`, else "batch_size".
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
    if (
        check
        or type(scores) is not _NATIVE_ARRAY
        or type(targets) is not _NATIVE_ARRAY
        or type(pos_weight) not in _NATIVE_WEIGHTS
        or type(weight) not in _NATIVE_WEIGHTS
    ):
        if gpu_library(scores) is not None:
            import sigmoid_ce.cuda as cuda

            return cuda.forward(
                scores,
                targets,
                pos_weight=pos_weight,
                weight=weight,
                ignore_label=ignore_label,
                uncertain=uncertain,
                label_smoothing=label_smoothing,
                balance=balance,
                balance_per_channel=balance_per_channel,
                negative_scale=negative_scale,
                gamma=gamma,
                alpha=alpha,
                normalization=normalization,
                normalize=normalize,
                check=check,
            )
        scores, targets, pos_weight, weight, _ = _views(
            scores, targets, pos_weight, weight, ignore_label, uncertain, check
        )
    if (
        gamma is _ZERO
        and alpha is None
        and balance is _NONE
        and uncertain is _SOFT
        and label_smoothing is _ZERO
        and negative_scale is _ONE
        and balance_per_channel is False
    ):
        return _cpu.forward(
            scores,
            targets,
            pos_weight,
            weight,
            ignore_label,
            normalization,
            normalize,
        )
    return _cpu.forward(
        scores,
        targets,
        pos_weight,
        weight,
        ignore_label,
        normalization,
        normalize,
        uncertain,
        label_smoothing,
        balance,
        balance_per_channel,
        negative_scale,
        gamma,
        alpha,
    )


def backward(
    scores: Array,
    targets: Array,
    *,
    pos_weight: Array | None = None,
    weight: Array | None = None,
    ignore_label: int | None = None,
    uncertain: Uncertain = "soft",
    label_smoothing: float = 0.0,
    balance: Balance | None = "none",
    balance_per_channel: bool = False,
    negative_scale: float = 1.0,
    gamma: float = 0.0,
    alpha: float | None = None,
    normalization: Normalization | None = None,
    normalize: bool | None = None,
    loss_weight: float = 1.0,
    out: Array | None = None,
    check: bool = False,
) -> Array:
    """The gradient of `forward` with respect to the scores, times `loss_weight`.

    Per element, with w = weight (t w+ + (1 - t) w-), R = r^gamma and E' = (1 - t) sigmoid(x) -
    p t sigmoid(-x): w R (E' + gamma (1 - 2 t) sigmoid(x) sigmoid(-x) E / r) * loss_weight /
    divisor; without options ((1 - t) sigmoid(x) - t sigmoid(-x)) / divisor. The other arguments
    and the errors are those of `forward`.

    Parameters
    ----------
    loss_weight : number, finite
        Factor on the gradient: the derivative of what is minimised with respect to this loss.
    out : the shape and dtype of scores; float32 beside 16-bit scores on the CPU
        Receives the gradient. It may be the scores array itself; any other overlap with an input is
        a ValueError.

    Returns
    -------
    `out`, or a new array of the library, shape and dtype of scores.
    """
    restore: Callable[[Any], Any] | None = None
    if (
        check
        or type(scores) is not _NATIVE_ARRAY
        or type(targets) is not _NATIVE_ARRAY
        or type(pos_weight) not in _NATIVE_WEIGHTS
        or type(weight) not in _NATIVE_WEIGHTS
    ):
        if gpu_library(scores) is not None:
            import sigmoid_ce.cuda as cuda

            return cuda.backward(
                scores,
                targets,
                pos_weight=pos_weight,
                weight=weight,
                ignore_label=ignore_label,
                uncertain=uncertain,
                label_smoothing=label_smoothing,
                balance=balance,
                balance_per_channel=balance_per_channel,
                negative_scale=negative_scale,
                gamma=gamma,
                alpha=alpha,
                normalization=normalization,
                normalize=normalize,
                loss_weight=loss_weight,
                out=out,
                check=check,
            )
        scores, targets, pos_weight, weight, restore = _views(
            scores, targets, pos_weight, weight, ignore_label, uncertain, check
        )
    written = out if out is None or type(out) is _NATIVE_ARRAY else arrays.view_out(out)
    if (
        gamma is _ZERO
        and alpha is None
        and balance is _NONE
        and uncertain is _SOFT
        and label_smoothing is _ZERO
        and negative_scale is _ONE
        and balance_per_channel is False
    ):
        gradient = _cpu.backward(
            scores,
            targets,
            pos_weight,
            weight,
            ignore_label,
            normalization,
            normalize,
            loss_weight,
            written,
        )
    else:
        gradient = _cpu.backward(
            scores,
            targets,
            pos_weight,
            weight,
            ignore_label,
            normalization,
            normalize,
            loss_weight,
            written,
            uncertain,
            label_smoothing,
            balance,
            balance_per_channel,
            negative_scale,
            gamma,
            alpha,
        )
    if out is None and restore is None:
        return gradient
    return _result(gradient, out, restore)


def forward_backward(
    scores: Array,
    targets: Array,
    *,
    pos_weight: Array | None = None,
    weight: Array | None = None,
    ignore_label: int | None = None,
    uncertain: Uncertain = "soft",
    label_smoothing: float = 0.0,
    balance: Balance | None = "none",
    balance_per_channel: bool = False,
    negative_scale: float = 1.0,
    gamma: float = 0.0,
    alpha: float | None = None,
    normalization: Normalization | None = None,
    normalize: bool | None = None,
    loss_weight: float = 1.0,
    hessian: Array | bool = False,
    out: Array | None = None,
    check: bool = False,
) -> tuple[float | Array, Array] | tuple[float | Array, Array, Array]:
    """`forward` and `backward` in one pass over memory, with the bits of the two.

    `loss_weight` is a factor on the derivatives only. Other arguments and errors: see `forward` and
    `backward`.

    Parameters
    ----------
    hessian : bool, or an array like `out`
        Also the second derivatives with respect to the scores, with the factors of the gradient, in
        the same pass: without the focal factor weight (t w+ + (1 - t) w-) ((1 - t) + p t)
        sigmoid(x) sigmoid(-x) loss_weight / divisor, and then never negative. Elements do not mix,
        so this is the whole Hessian: its diagonal.

    Returns
    -------
    (loss, gradient), or (loss, gradient, hessian)
    """
    restore: Callable[[Any], Any] | None = None
    if (
        check
        or type(scores) is not _NATIVE_ARRAY
        or type(targets) is not _NATIVE_ARRAY
        or type(pos_weight) not in _NATIVE_WEIGHTS
        or type(weight) not in _NATIVE_WEIGHTS
    ):
        if gpu_library(scores) is not None:
            import sigmoid_ce.cuda as cuda

            return cuda.forward_backward(
                scores,
                targets,
                pos_weight=pos_weight,
                weight=weight,
                ignore_label=ignore_label,
                uncertain=uncertain,
                label_smoothing=label_smoothing,
                balance=balance,
                balance_per_channel=balance_per_channel,
                negative_scale=negative_scale,
                gamma=gamma,
                alpha=alpha,
                normalization=normalization,
                normalize=normalize,
                loss_weight=loss_weight,
                hessian=hessian,
                out=out,
                check=check,
            )
        scores, targets, pos_weight, weight, restore = _views(
            scores, targets, pos_weight, weight, ignore_label, uncertain, check
        )
    written = out if out is None or type(out) is _NATIVE_ARRAY else arrays.view_out(out)
    second = hessian if hessian is False else arrays.view_hessian(hessian)
    if (
        gamma is _ZERO
        and alpha is None
        and balance is _NONE
        and uncertain is _SOFT
        and label_smoothing is _ZERO
        and negative_scale is _ONE
        and balance_per_channel is False
    ):
        results = _cpu.forward_backward(
            scores,
            targets,
            pos_weight,
            weight,
            ignore_label,
            normalization,
            normalize,
            loss_weight,
            written,
            second,
        )
    else:
        results = _cpu.forward_backward(
            scores,
            targets,
            pos_weight,
            weight,
            ignore_label,
            normalization,
            normalize,
            loss_weight,
            written,
            second,
            uncertain,
            label_smoothing,
            balance,
            balance_per_channel,
            negative_scale,
            gamma,
            alpha,
        )
    loss, gradient = results[0], _result(results[1], out, restore)
    if hessian is False:
        return loss, gradient
    return loss, gradient, _result(results[2], None if hessian is True else hessian, restore)


def backward_targets(
    scores: Array,
    targets: Array,
    *,
    pos_weight: Array | None = None,
    weight: Array | None = None,
    ignore_label: int | None = None,
    uncertain: Uncertain = "soft",
    label_smoothing: float = 0.0,
    balance: Balance | None = "none",
    balance_per_channel: bool = False,
    negative_scale: float = 1.0,
    gamma: float = 0.0,
    alpha: float | None = None,
    normalization: Normalization | None = None,
    normalize: bool | None = None,
    loss_weight: float = 1.0,
    out: Array | None = None,
    check: bool = False,
) -> Array:
    """The gradient of `forward` with respect to the targets, times `loss_weight`.

    As distillation and learned soft labels need it. Per element, with softplus(x) = log(1 + exp(x))
    and t what `label_smoothing` s has made of the target,

        weight (1 - s) d/dt [(t w+ + (1 - t) w-) r^gamma E] * loss_weight / divisor

    which is -x weight loss_weight / divisor without options, where dE/dt = p softplus(-x) -
    softplus(x). The counts of `balance` and of the divisor are taken for constants. Ignored
    elements and those of weight 0 have gradient 0. Arguments and errors: see `forward` and
    `backward`.

    Returns
    -------
    `out`, or a new array of the library, shape and dtype of scores, whatever the targets' dtype.
    """
    restore: Callable[[Any], Any] | None = None
    if (
        check
        or type(scores) is not _NATIVE_ARRAY
        or type(targets) is not _NATIVE_ARRAY
        or type(pos_weight) not in _NATIVE_WEIGHTS
        or type(weight) not in _NATIVE_WEIGHTS
    ):
        if gpu_library(scores) is not None:
            import sigmoid_ce.cuda as cuda

            return cuda.backward_targets(
                scores,
                targets,
                pos_weight=pos_weight,
                weight=weight,
                ignore_label=ignore_label,
                uncertain=uncertain,
                label_smoothing=label_smoothing,
                balance=balance,
                balance_per_channel=balance_per_channel,
                negative_scale=negative_scale,
                gamma=gamma,
                alpha=alpha,
                normalization=normalization,
                normalize=normalize,
                loss_weight=loss_weight,
                out=out,
                check=check,
            )
        scores, targets, pos_weight, weight, restore = _views(
            scores, targets, pos_weight, weight, ignore_label, uncertain, check
        )
    gradient = _cpu.backward_targets(
        scores,
        targets,
        pos_weight,
        weight,
        ignore_label,
        normalization,
        normalize,
        loss_weight,
        arrays.view_out(out),
        uncertain,
        label_smoothing,
        balance,
        balance_per_channel,
        negative_scale,
        gamma,
        alpha,
    )
    if out is None and restore is None:
        return gradient
    return _result(gradient, out, restore)


def elementwise(
    scores: Array,
    targets: Array,
    *,
    pos_weight: Array | None = None,
    weight: Array | None = None,
    ignore_label: int | None = None,
    uncertain: Uncertain = "soft",
    label_smoothing: float = 0.0,
    balance: Balance | None = "none",
    balance_per_channel: bool = False,
    negative_scale: float = 1.0,
    gamma: float = 0.0,
    alpha: float | None = None,
    out: Array | None = None,
    check: bool = False,
) -> Array:
    """The loss of each element (reduction "none"), in nats, without a divisor.

    Returns `out`, or a new array of the library, shape and dtype of scores. Arguments and errors:
    see `forward` and `backward`.
    """
    restore: Callable[[Any], Any] | None = None
    if (
        check
        or type(scores) is not _NATIVE_ARRAY
        or type(targets) is not _NATIVE_ARRAY
        or type(pos_weight) not in _NATIVE_WEIGHTS
        or type(weight) not in _NATIVE_WEIGHTS
    ):
        if gpu_library(scores) is not None:
            import sigmoid_ce.cuda as cuda

            return cuda.elementwise(
                scores,
                targets,
                pos_weight=pos_weight,
                weight=weight,
                ignore_label=ignore_label,
                uncertain=uncertain,
                label_smoothing=label_smoothing,
                balance=balance,
                balance_per_channel=balance_per_channel,
                negative_scale=negative_scale,
                gamma=gamma,
                alpha=alpha,
                out=out,
                check=check,
            )
        scores, targets, pos_weight, weight, restore = _views(
            scores, targets, pos_weight, weight, ignore_label, uncertain, check
        )
    written = out if out is None or type(out) is _NATIVE_ARRAY else arrays.view_out(out)
    if (
        gamma is _ZERO
        and alpha is None
        and balance is _NONE
        and uncertain is _SOFT
        and label_smoothing is _ZERO
        and negative_scale is _ONE
        and balance_per_channel is False
    ):
        losses = _cpu.elementwise(
            scores,
            targets,
            pos_weight,
            weight,
            ignore_label,
            written,
        )
    else:
        losses = _cpu.elementwise(
            scores,
            targets,
            pos_weight,
            weight,
            ignore_label,
            written,
            uncertain,
            label_smoothing,
            balance,
            balance_per_channel,
            negative_scale,
            gamma,
            alpha,
        )
    if out is None and restore is None:
        return losses
    return _result(losses, out, restore)


def partial(
    scores: Array,
    targets: Array,
    *,
    pos_weight: Array | None = None,
    weight: Array | None = None,
    ignore_label: int | None = None,
    uncertain: Uncertain = "soft",
    label_smoothing: float = 0.0,
    negative_scale: float = 1.0,
    gamma: float = 0.0,
    alpha: float | None = None,
    first_index: int = 0,
    shape: Sequence[int] | None = None,
) -> _cpu.Partial:
    """The exact sum of the losses of a chunk, to be added to those of other chunks.

    Data cut at multiples of 4096 elements gives the bits of the whole. There is no `balance`, since
    a chunk does not know the counts of the whole. The other arguments and the errors are those of
    `forward`.

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

        return cuda.partial(
            scores,
            targets,
            pos_weight=pos_weight,
            weight=weight,
            ignore_label=ignore_label,
            uncertain=uncertain,
            label_smoothing=label_smoothing,
            negative_scale=negative_scale,
            gamma=gamma,
            alpha=alpha,
            first_index=first_index,
            shape=shape,
        )
    scores, targets, pos_weight, weight, _ = _views(
        scores, targets, pos_weight, weight, ignore_label, uncertain, False
    )
    return _cpu.partial(
        scores,
        targets,
        pos_weight,
        weight,
        ignore_label,
        first_index,
        shape,
        uncertain,
        label_smoothing,
        negative_scale,
        gamma,
        alpha,
    )


def partial_backward(
    scores: Array,
    targets: Array,
    divisor: float,
    *,
    pos_weight: Array | None = None,
    weight: Array | None = None,
    ignore_label: int | None = None,
    uncertain: Uncertain = "soft",
    label_smoothing: float = 0.0,
    negative_scale: float = 1.0,
    gamma: float = 0.0,
    alpha: float | None = None,
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
            pos_weight=pos_weight,
            weight=weight,
            ignore_label=ignore_label,
            uncertain=uncertain,
            label_smoothing=label_smoothing,
            negative_scale=negative_scale,
            gamma=gamma,
            alpha=alpha,
            loss_weight=loss_weight,
            first_index=first_index,
            shape=shape,
            out=out,
        )
    scores, targets, pos_weight, weight, restore = _views(
        scores, targets, pos_weight, weight, ignore_label, uncertain, False
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
        uncertain,
        label_smoothing,
        negative_scale,
        gamma,
        alpha,
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
        *,
        uncertain: Uncertain = "soft",
        label_smoothing: float = 0.0,
        balance: Balance | None = "none",
        balance_per_channel: bool = False,
        negative_scale: float = 1.0,
        gamma: float = 0.0,
        alpha: float | None = None,
    ) -> None:
        self.pos_weight = pos_weight
        self.weight = weight
        self.ignore_label = ignore_label
        self.normalization = normalization
        self.normalize = normalize
        self.loss_weight = loss_weight
        self.uncertain = uncertain
        self.label_smoothing = label_smoothing
        self.balance = balance
        self.balance_per_channel = balance_per_channel
        self.negative_scale = negative_scale
        self.gamma = gamma
        self.alpha = alpha
        self._inputs: tuple[Array, Array] | None = None

    def forward(self, scores: Array, targets: Array) -> float | Array:
        """The loss. Keeps references to both arrays, not copies, for `backward`."""
        loss = forward(
            scores,
            targets,
            pos_weight=self.pos_weight,
            weight=self.weight,
            ignore_label=self.ignore_label,
            uncertain=self.uncertain,
            label_smoothing=self.label_smoothing,
            balance=self.balance,
            balance_per_channel=self.balance_per_channel,
            negative_scale=self.negative_scale,
            gamma=self.gamma,
            alpha=self.alpha,
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
            uncertain=self.uncertain,
            label_smoothing=self.label_smoothing,
            balance=self.balance,
            balance_per_channel=self.balance_per_channel,
            negative_scale=self.negative_scale,
            gamma=self.gamma,
            alpha=self.alpha,
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


def _views(
    scores: Array,
    targets: Array,
    pos_weight: Array | None,
    weight: Array | None,
    ignore_label: int | None,
    uncertain: str,
    check: bool,
) -> tuple[Any, Any, Any, Any, Callable[[Any], Any]]:
    """The arguments as NumPy views, and the way back to the library of the scores."""
    scores, targets, restore = arrays.view_pair(scores, targets)
    pos_weight = arrays.view_weight(pos_weight, "pos_weight")
    weight = arrays.view_weight(weight, "weight")
    if check:
        if uncertain != "ignore":  # else all targets but 0 and 1 are
            arrays.check_targets(targets, ignore_label)
        arrays.check_weight(weight)
    return scores, targets, pos_weight, weight, restore


def _result(array: Array, out: Array | None, restore: Callable[[Any], Any] | None) -> Array:
    if out is not None:
        return out
    return array if restore is None else restore(array)
