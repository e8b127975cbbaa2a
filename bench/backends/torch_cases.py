"""The cases in PyTorch, for the backends that have them: arrays, the loss, the gradient by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ..plan import ALPHA, GAMMA, IGNORED_TARGET, POS_WEIGHT, SMOOTHING, Case, Option, Work


def tensor(array: np.ndarray) -> Tensor:
    """The same memory as a tensor."""
    if array.dtype.name == "bfloat16":  # which PyTorch does not know from NumPy
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def array(tensor: Tensor) -> np.ndarray:
    """The values as an array that NumPy can compute with."""
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def loss_function(case: Case) -> Callable[..., Tensor]:
    """Of scores, targets and a weight: the loss, or the losses where they are the work.

    Targets of another type are converted in the call. ignore_label is a weight that the call makes
    of the targets, and the sum is divided by the weights'.
    """
    reduction = "none" if case.work is Work.ELEMENTWISE else "mean"
    if case.option is Option.NONE and reduction == "mean":

        def plain(x: Tensor, t: Tensor, w: Tensor | None = None) -> Tensor:
            return binary_cross_entropy_with_logits(x, t)

        return plain

    if case.option is Option.UINT8:

        def converted(x: Tensor, t: Tensor, w: Tensor | None = None) -> Tensor:
            return binary_cross_entropy_with_logits(x, t.to(x.dtype), reduction=reduction)

        return converted

    if case.option is Option.IGNORE:

        def masked(x: Tensor, t: Tensor, w: Tensor | None = None) -> Tensor:
            mask = (t != IGNORED_TARGET).to(x.dtype)
            if reduction == "none":
                return binary_cross_entropy_with_logits(x, t, weight=mask, reduction="none")
            return binary_cross_entropy_with_logits(x, t, weight=mask, reduction="sum") / mask.sum()

        return masked

    if case.option is Option.POS_WEIGHT:
        factor = torch.tensor(POS_WEIGHT)

        def positive(x: Tensor, t: Tensor, w: Tensor | None = None) -> Tensor:
            return binary_cross_entropy_with_logits(
                x, t, pos_weight=factor.to(x.dtype), reduction=reduction
            )

        return positive

    if case.option is Option.SMOOTHING:

        def smooth(x: Tensor, t: Tensor, w: Tensor | None = None) -> Tensor:
            return binary_cross_entropy_with_logits(x, _smoothed(t), reduction=reduction)

        return smooth

    if case.option is Option.BALANCE:

        def balanced(x: Tensor, t: Tensor, w: Tensor | None = None) -> Tensor:
            return binary_cross_entropy_with_logits(
                x, t, weight=_class_weights(t), reduction=reduction
            )

        return balanced

    if case.option is Option.FOCAL:

        def focal(x: Tensor, t: Tensor, w: Tensor | None = None) -> Tensor:
            # As torchvision writes it.
            losses = binary_cross_entropy_with_logits(x, t, reduction="none")
            p = torch.sigmoid(x)
            p_t = p * t + (1 - p) * (1 - t)
            losses = (ALPHA * t + (1 - ALPHA) * (1 - t)) * (1 - p_t) ** GAMMA * losses
            return losses if reduction == "none" else losses.mean()

        return focal

    def weighted(x: Tensor, t: Tensor, w: Tensor | None = None) -> Tensor:
        return binary_cross_entropy_with_logits(x, t, weight=w, reduction=reduction)

    return weighted


def _smoothed(t: Tensor) -> Tensor:
    return t * (1 - SMOOTHING) + SMOOTHING / 2


def _class_weights(t: Tensor) -> Tensor:
    """Of each element: the share of the other class."""
    wide = torch.float64 if t.dtype == torch.float64 else torch.float32
    positive = (t == 1).sum().to(wide)
    negative = (t == 0).sum().to(wide)
    count = positive + negative
    return torch.where(t == 1, negative / count, positive / count).to(t.dtype)


def gradient_by_hand(case: Case, elements: int) -> Callable[..., Tensor] | None:
    """Of scores, targets and a weight: the gradient of the mean, written out. None: nobody does."""
    scale = 1.0 / elements
    if case.option is Option.FOCAL:
        return None

    def gradient(x: Tensor, t: Tensor, w: Tensor | None = None) -> Tensor:
        s = torch.sigmoid(x)
        if case.option is Option.POS_WEIGHT:
            return ((1 + (POS_WEIGHT - 1) * t) * s - POS_WEIGHT * t) * scale
        if case.option is Option.IGNORE:
            mask = (t != IGNORED_TARGET).to(x.dtype)
            return (s - t) * mask / mask.sum()
        if case.option is Option.WEIGHT:
            return (s - t) * w * scale
        if case.option is Option.SMOOTHING:
            return (s - _smoothed(t)) * scale
        if case.option is Option.BALANCE:
            return (s - t) * _class_weights(t) * scale
        return (s - t) * scale

    return gradient


def unpack_both(result: Any) -> tuple[float | None, np.ndarray | None]:
    """Of a loss and a gradient."""
    return result[0].item(), array(result[1])
