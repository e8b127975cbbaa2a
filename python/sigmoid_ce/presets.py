"""The options that give the losses of published systems.

Each preset returns a dict of keyword options for the functions of the package and for
`SigmoidCrossEntropyLoss`:

    loss = sce.forward(scores, targets, **sce.presets.rcf())
    layer = sce.SigmoidCrossEntropyLoss(**sce.presets.rcf(), loss_weight=0.5)

`elementwise` has no divisor and takes no `normalization`: leave that key out there.

In the formulas x is a score, t its target, s = sigmoid(x), n the length of axis 0 (images), and
l = max(x, 0) - x t + log(1 + exp(-|x|)). P and M are the numbers of targets that are 1 and that are
0. The sources compute in float32 with s - t and log(1 + exp(.)), which lose the tails: s - t is 0
from x = 17 on. Here the tails are exact, loss sums too, and counts are 64-bit integers; each
docstring says what else differs. docs/losses.md has all differences in a table, and
tests/test_presets.py the formulas in NumPy.
"""

from __future__ import annotations

import operator
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = [
    "CASENET_IGNORED",
    "casenet",
    "casenet_targets",
    "casenet_weight",
    "detectron",
    "detectron_focal",
    "detectron_focal_targets",
    "hed",
    "pytorch",
    "rcf",
    "weighted",
]

Options = dict[str, Any]

# What casenet_targets gives an ignored pixel.
CASENET_IGNORED = 255

_WORD_BITS = 32
_IGNORE_BIT = np.uint32(1 << 31)


# ---- Edge detection ----


def hed(*, uncertain: Literal["soft", "ignore"] = "soft") -> Options:
    """Holistically-nested edge detection: classes balanced in each image.

    Source: s9xie/hed, src/caffe/layers/sigmoid_cross_entropy_loss_layer.cpp. Per image,

        loss = (1 / n) sum over images of (M / (P + M) sum over t = 1 of l
                                         + P / (P + M) sum over t = 0 of l)
        gradient = M / (P + M) (s - t) / n, or P / (P + M) (s - t) / n

    What differs: targets other than 0 and 1 have no loss in the source, and the gradient
    (s - t) / n. Here loss and gradient belong together: `uncertain` says whether such a target lies
    between the classes, with the weight t M / (P + M) + (1 - t) P / (P + M), or is ignored. An
    image without any target 0 or 1 makes the source's loss NaN; here it adds 0.

    Scores: 2 axes or more, images along the first.
    """
    return {"balance": "image", "uncertain": uncertain, "normalization": "batch_size"}


def rcf(*, negative_scale: float = 1.1) -> Options:
    """Richer convolutional features: as `hed`, negatives times 1.1, other targets ignored.

    Source: yun-liu/RCF, src/caffe/layers/sigmoid_cross_entropy_loss_layer.cpp, with the 1.1 in the
    code.

        loss = (1 / n) sum over images of (M / (P + M) sum over t = 1 of l
                                         + negative_scale P / (P + M) sum over t = 0 of l)

    Targets other than 0 and 1 have neither loss nor gradient, there and here. An image without any
    target 0 or 1 makes the source's loss NaN; here it adds 0.

    Parameters
    ----------
    negative_scale : finite and >= 0
        1.1 in the source.
    """
    return {
        "balance": "image",
        "negative_scale": negative_scale,
        "uncertain": "ignore",
        "normalization": "batch_size",
    }


def casenet(weight: Any | None = None) -> Options:
    """CASENet's two layers, for targets that `casenet_targets` has decoded.

    Source: merlresearch/CASENet, in caffe/src/caffe/layers:
    reweighted_sigmoid_cross_entropy_loss_layer.cpp for one channel, and
    multichannel_reweighted_sigmoid_cross_entropy_loss_layer.cpp for several.

    One channel: the loss of `hed` over the pixels that are not ignored.

        targets = sce.presets.casenet_targets(labels)
        loss = sce.forward(scores, targets, **sce.presets.casenet())

    Several channels: P is the number of pixels with any class, M of those with none, and all
    channels of an image have the weights M / (P + M) and P / (P + M). No `balance` counts like that
    (over all channels it counts elements, and per channel each has weights of its own), so the
    weights come as an array:

        targets = sce.presets.casenet_targets(labels, channels)
        weight = sce.presets.casenet_weight(labels, channels)
        loss = sce.forward(scores, targets, **sce.presets.casenet(weight))

    What differs: an image of which every pixel is ignored ends the process in the layer for one
    channel; here it adds 0, as in the one for several.
    """
    options: Options = {"ignore_label": CASENET_IGNORED, "normalization": "batch_size"}
    return options | ({"balance": "image"} if weight is None else {"weight": weight})


def casenet_targets(labels: ArrayLike, channels: int | None = None) -> NDArray[np.uint8]:
    """Targets 0, 1 and 255 (ignored, `CASENET_IGNORED`) from CASENet's labels.

    Parameters
    ----------
    labels : float32, uint32 or int32
        The 32 bits of a value are flags, whatever number they make. Without `channels` any shape:
        bit 31 ignores the pixel, and any other bit makes it 1. With `channels` the shape is (N, L,
        ...): channel k is bit k % 32 of word k // 32, and bit 31 of the last word ignores a pixel.
    channels : int, 1 to 32 L - 1
        Number of channels of the scores.

    Returns
    -------
    uint8, the shape of labels, or (N, channels, ...)

    Raises
    ------
    TypeError
        For labels of another dtype: a conversion would have changed the bits. For `channels` that
        are no int.
    ValueError
        For a number of channels, or an array of too few axes, that does not fit.
    """
    words = _words(labels)
    if channels is None:
        return np.where(words & _IGNORE_BIT, CASENET_IGNORED, words != 0).astype(np.uint8)
    channels = _check_channels(words, channels)
    targets = np.empty((words.shape[0], channels, *words.shape[2:]), np.uint8)
    for channel in range(channels):
        word, bit = divmod(channel, _WORD_BITS)
        targets[:, channel] = (words[:, word] >> np.uint32(bit)) & np.uint32(1)
    ignored = np.broadcast_to(_ignored(words), targets.shape)
    targets[ignored] = CASENET_IGNORED
    return targets


def casenet_weight(
    labels: ArrayLike, channels: int, *, dtype: DTypeLike = np.float32
) -> NDArray[Any]:
    """The element weights of CASENet's layer for several channels.

    Per image, M / (P + M) where the target is 1 and P / (P + M) elsewhere, with P pixels that have
    a bit in the words 0 to channels // 32 (also in one that is no channel, as in the source) and M
    that have none, ignored pixels aside. 0 where P + M is 0.

    Parameters and errors: see `casenet_targets`.

    Parameters
    ----------
    dtype : dtype of the scores
        The quotients are float64, rounded to it.

    Returns
    -------
    dtype, (N, channels, ...)
    """
    channels = _count("channels", channels)
    targets = casenet_targets(labels, channels)
    words = _words(labels)
    ignored = _ignored(words)[:, 0]
    any_class = (words[:, : channels // _WORD_BITS + 1] != 0).any(axis=1)
    pixels = tuple(range(1, any_class.ndim))
    positive = np.count_nonzero(any_class & ~ignored, axis=pixels)
    counted = np.count_nonzero(~ignored, axis=pixels)
    share = np.asarray(positive / np.maximum(counted, 1)).reshape((-1,) + (1,) * (targets.ndim - 1))
    rest = np.asarray((counted - positive) / np.maximum(counted, 1)).reshape(share.shape)
    return np.where(targets == 1, rest, share).astype(dtype)


def _words(labels: ArrayLike) -> NDArray[np.uint32]:
    """The bits of labels."""
    array = np.asarray(labels)
    if array.dtype not in (np.float32, np.uint32, np.int32):
        raise TypeError(
            f"labels: expected float32, uint32 or int32, whose bits are flags, got {array.dtype}"
        )
    shape = array.shape
    return np.ascontiguousarray(array).view(np.uint32).reshape(shape)


def _ignored(words: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """(N, 1, ...)"""
    return np.asarray(words[:, -1:] & _IGNORE_BIT, np.bool_)


def _count(name: str, value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}") from None


def _check_channels(words: NDArray[np.uint32], channels: int) -> int:
    if words.ndim < 2:
        raise ValueError(f"labels: expected shape (N, L, ...), got {words.shape}")
    most = _WORD_BITS * words.shape[1] - 1  # the last bit ignores
    channels = _count("channels", channels)
    if not 1 <= channels <= most:
        raise ValueError(
            f"channels: expected 1 to {most} for labels of shape {words.shape}, got {channels}"
        )
    return channels


# ---- Detection ----


def detectron(*, scale: float = 1.0, normalize: bool = True) -> Options:
    """The Caffe2 operator SigmoidCrossEntropyLoss of Detectron: targets -1 ignored.

    Source: pytorch/pytorch, modules/detectron/sigmoid_cross_entropy_loss_op.cu.

        loss = scale / max(V, 1e-5) sum over t >= 0 of l
        gradient = scale / max(V, 1e-5) (s - t)

    with V targets that are not -1, and without the division where normalize is false. What differs:
    the divisor is max(V, 1), which is the same number wherever anything is valid.

    Parameters
    ----------
    scale : >= 0
        Factor on loss and gradient. It is the option `weight`: give one of the two.
    normalize : bool
        Divide by V.
    """
    options: Options = {
        "ignore_label": -1,
        "normalization": "valid" if normalize else "none",
    }
    return options | ({} if scale == 1 else {"weight": scale})


def detectron_focal(
    *,
    gamma: float = 2.0,
    alpha: float | None = 0.25,
    scale: float = 1.0,
    foreground: float | None = None,
) -> Options:
    """The Caffe2 operator SigmoidFocalLoss of Detectron, for targets of the shape of the scores.

    Source: pytorch/pytorch, modules/detectron/sigmoid_focal_loss_op.cu (RetinaNet). With F the
    number of foreground boxes,

        loss = scale / max(F, 1) (sum over t = 1 of -alpha (1 - s)^gamma log s
                                + sum over t = 0 of -(1 - alpha) s^gamma log(1 - s))

    Its targets are class numbers, one for each anchor: `detectron_focal_targets` decodes them. What
    differs: the source takes log max(s, FLT_MIN), so that the loss of a positive stops growing
    below x = -87.3; here it goes on, and with it stays the function that the gradient belongs to.

    Parameters
    ----------
    gamma, alpha : >= 0; 0 to 1
        The defaults are RetinaNet's. The operator's own are 1 and 0.25. None: no alpha.
    scale : >= 0
        Factor on loss and gradient. It is the option `weight`: give one of the two.
    foreground : number
        F, which is an input of the operator. None: the number of targets that are 1.
    """
    options: Options = {
        "ignore_label": -1,
        "gamma": gamma,
        "alpha": alpha,
        "normalization": "foreground" if foreground is None else float(max(foreground, 1)),
    }
    return options | ({} if scale == 1 else {"weight": scale})


def detectron_focal_targets(labels: ArrayLike, classes: int) -> NDArray[np.int8]:
    """Targets 0, 1 and -1 (ignored) from the class numbers of Detectron's focal loss.

    Parameters
    ----------
    labels : integers, (N, A, ...), A anchors
        0 is the background, d + 1 class d, -1 ignored in every class.
    classes : int, >= 1

    Returns
    -------
    int8, (N, A * classes, ...)
        Channel a * classes + d is anchor a, class d.

    Raises
    ------
    TypeError
        For labels that are not integers, and `classes` that are no int.
    ValueError
        For too few axes, and for a label outside -1 to classes, which the source takes for the
        background.
    """
    array = np.asarray(labels)
    if array.dtype.kind not in "iu":
        raise TypeError(f"labels: expected integers, got {array.dtype}")
    if array.ndim < 2:
        raise ValueError(f"labels: expected shape (N, A, ...), got {array.shape}")
    classes = _count("classes", classes)
    if classes < 1:
        raise ValueError(f"classes: expected at least 1, got {classes}")
    wrong = array[(array < -1) | (array > classes)]
    if wrong.size:
        raise ValueError(f"labels: expected -1 to {classes}, got {wrong[0]}")
    numbers = np.arange(1, classes + 1).reshape((classes,) + (1,) * (array.ndim - 2))
    anchors = array[:, :, np.newaxis]
    targets = np.where(anchors == -1, -1, anchors == numbers).astype(np.int8)
    return targets.reshape((array.shape[0], array.shape[1] * classes, *array.shape[2:]))


# ---- Others ----


def weighted(cls_weight: Any) -> Options:
    """The class-weighted Python layer for Caffe that blog posts pass on.

    Source: SigmoidCrossEntropyWeightLossLayer.py.

        loss = sum of (1 - t) x + ((cls_weight - 1) t + 1) log(1 + exp(-x))
        gradient = ((cls_weight - 1) t + 1) s - cls_weight t

    No divisor. What differs: exp(-x) overflows in the source below x = -88, which makes the loss
    infinite; here no score overflows. The source's gradient leaves out the top's diff, and with it
    `loss_weight`; here that is a factor. `sigmoid_ce.caffe` has the layer itself.

    Parameters
    ----------
    cls_weight : number, or one per channel
        The option `pos_weight`.
    """
    return {"pos_weight": cls_weight, "normalization": "none"}


def pytorch(
    *,
    pos_weight: Any | None = None,
    weight: Any | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Options:
    """torch.nn.BCEWithLogitsLoss and torch.nn.functional.binary_cross_entropy_with_logits.

    Source: pytorch/pytorch, aten/src/ATen/native/Loss.cpp.

        loss = mean, or sum, of weight ((1 - t) x + ((pos_weight - 1) t + 1) log(1 + exp(-x)))

    What differs: C values of pos_weight are for axis 1 of the scores, the channels, as (C, 1, 1) is
    in PyTorch for (N, C, H, W); PyTorch aligns (C,) with the last axis. The mean of no elements is
    0, not NaN. An infinite score has the limit as its loss, where PyTorch multiplies 0 by infinity.

    Parameters
    ----------
    pos_weight, weight : as the options of these names
    reduction : "mean", "sum" or "none"
        "none" leaves the divisor out: the options are for `sigmoid_ce.elementwise`.

    Raises
    ------
    ValueError
        For another reduction.
    """
    normalizations = {"mean": "full", "sum": "none", "none": None}
    if reduction not in normalizations:
        raise ValueError(f'reduction: expected "mean", "sum" or "none", got {reduction!r}')
    options: Options = {
        "pos_weight": pos_weight,
        "weight": weight,
        "normalization": normalizations[reduction],
    }
    return {name: value for name, value in options.items() if value is not None}
