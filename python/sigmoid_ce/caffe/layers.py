"""Python layers for pycaffe with the names and prototxts of widely copied ones, on our kernels.

With the folder that `sigmoid-ce caffe pythonpath` prints on PYTHONPATH, a net has them as

    layer {
      name: "loss"  type: "Python"  bottom: "score"  bottom: "label"  top: "loss"
      python_param { module: "loss_layers"  layer: "CustomSigmoidCrossEntropyLossLayer" }
      loss_weight: 1
    }
    layer {
      name: "loss"  type: "Python"  bottom: "score"  bottom: "label"  top: "loss"
      python_param {
        module: "SigmoidCrossEntropyWeightLossLayer"
        layer: "SigmoidCrossEntropyWeightLossLayer"
        param_str: '{"cls_weight": 100}'
      }
      loss_weight: 1
    }

Caffe gives a Python layer no loss weight of its own accord: without the line `loss_weight: 1` the
loss is computed, and nothing learns from it. Nor does a Python layer see `loss_param`. So
every option is in `param_str`, a dict as JSON or as a Python literal:

    pos_weight      a number, or a list with one per channel (axis 1): factor on the positive part
    weight          a number, or a list with one per channel: factor on everything
    ignore_label    an int: elements whose target, truncated, equals it have loss and gradient 0
    uncertain       "soft" (the default), or "ignore": so have targets other than 0 and 1
    balance         "image", "batch" or "batch_mean": weights of the two classes by how many targets
                    there are of each; "none" is the default
    balance_per_channel  true: each channel is counted by itself
    negative_scale  a number: factor on the negatives' weight
    alpha           a number in [0, 1]: factors alpha on the positives', 1 - alpha on the negatives'
    label_smoothing  a number in [0, 1), s: targets t become t (1 - s) + s / 2
    gamma           a number of 0 or more: focal loss
    normalization   the divisor: "none" (1, the default), "full", "valid", "batch_size" (as in
                    loss_param, in capitals too), "foreground", the number of targets that are 1, or
                    a positive number
    normalize       the older way to say "valid" (true) or "batch_size" (false); normalization goes
                    first
    cls_weight      pos_weight under the name that SigmoidCrossEntropyWeightLossLayer needs
    force_backward  true in a net with `force_backward: true`, which asks Python layers for a
                    gradient of every bottom: targets and weights then get zeros, not an error

All are optional, but for cls_weight (or pos_weight) of SigmoidCrossEntropyWeightLossLayer.

Bottoms: scores, of any shape; targets, as many elements, in the same order; and, optionally, a
weight per element, of the shape of the scores or with axes of length 1 in it, missing ones at the
end counting as such: (N) is a weight per sample. Top: the loss, of shape (1), in nats.

What the published layers do, and these do not:

- The weighted one computes exp(-score), which overflows in float32 for scores below -88: the loss
  becomes infinite. Here no score overflows.
- Both add up the loss in float32. Here the sum is exact over blocks of 4096 elements, and rounded
  to float32 once.
- Both ignore the top's diff, and with it loss_weight: any weight other than 1 has no effect on
  what is learned. Here it is a factor on the gradient.
- Both end the process with exit() when the loss is NaN. Here a NaN is a value.
- The plain one needs SciPy, and imports it without the module scipy.special that it uses, which is
  there only if something else has imported it. Here NumPy is enough.
- The weighted one evaluates param_str as code, and takes a string for a number. Here param_str is
  read as data, and an option that is not known, or not of its type, is refused.
- Both write the scores' gradient even where propagate_down says no, and leave the targets' diff as
  it is where it says yes. Here the first is left alone, and the second refused: there is none.
- Both keep an array of the size of the scores from forward to backward, and make others on the
  way. Here there are none.
"""

from __future__ import annotations

import ast
import functools
import importlib
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from sigmoid_ce import api

__all__ = ["CustomSigmoidCrossEntropyLossLayer", "SigmoidCrossEntropyWeightLossLayer"]

# Longer ones are cut in messages.
_SHOWN_CHARACTERS = 200


def _pycaffe_layer() -> type:
    """caffe.Layer; where pycaffe cannot be imported, a class that says so when Caffe wants it."""
    try:
        # A folder that happens to be called caffe also imports, and has no Layer.
        layer: type = importlib.import_module("caffe").Layer
        return layer
    except Exception as error:
        # Not only ImportError: generated code of another protobuf fails in its own ways.
        reason = f"{type(error).__name__}: {error}"

    class Layer:
        def __init__(self, *arguments: object) -> None:
            if arguments:
                raise ImportError(
                    f"{type(self).__name__}: pycaffe could not be imported ({reason}); its folder, "
                    "the one above caffe/_caffe.so, belongs on PYTHONPATH"
                )

    return Layer


if TYPE_CHECKING:

    class _Layer:
        param_str: str

else:
    _Layer = _pycaffe_layer()


# ---- param_str ----


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_number_or_list(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and all(map(_is_number, value))
    return _is_number(value)


class _Option(NamedTuple):
    """What type an option has. The kernels look at its value."""

    fits: Callable[[object], bool]
    expected: str


_POS_WEIGHT = _Option(_is_number_or_list, "a number, or a list of numbers, one per channel")
_BOOL = _Option(lambda value: isinstance(value, bool), "true or false")
_NUMBER = _Option(_is_number, "a number")
_OPTIONS = {
    "pos_weight": _POS_WEIGHT,
    "weight": _POS_WEIGHT,
    "ignore_label": _Option(
        lambda value: isinstance(value, int) and not isinstance(value, bool), "an int"
    ),
    "uncertain": _Option(lambda value: isinstance(value, str), '"soft" or "ignore"'),
    "balance": _Option(
        lambda value: isinstance(value, str), '"none", "image", "batch" or "batch_mean"'
    ),
    "balance_per_channel": _BOOL,
    "negative_scale": _NUMBER,
    "alpha": _NUMBER,
    "label_smoothing": _NUMBER,
    "gamma": _NUMBER,
    "normalization": _Option(
        lambda value: isinstance(value, str) or _is_number(value),
        '"none", "full", "valid", "batch_size", "foreground" or a positive number',
    ),
    "normalize": _BOOL,
    "force_backward": _BOOL,
}


class _Pairs(list[tuple[str, Any]]):
    """A JSON object before a key that is there twice is lost."""


def _read_pairs(text: str) -> Sequence[tuple[Any, Any]] | None:
    """The items of a dict written as JSON or as a Python literal; None for anything else."""
    if not text.strip():
        return []
    try:
        read = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        pass
    else:
        return read if isinstance(read, _Pairs) else None
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if not isinstance(node, ast.Dict):
            return None
        # literal_eval takes numbers, strings and the like: a name, a call or `**` is a ValueError.
        keys = [ast.literal_eval(key) if key else key for key in node.keys]
        values = [ast.literal_eval(value) for value in node.values]
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return list(zip(keys, values, strict=True))


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an int of thousands of digits
        text = f"an {type(value).__name__}"
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


# ---- The layers ----


def _told(method: Callable[..., None]) -> Callable[..., None]:
    """Prints the exception where Python is embedded: `caffe train`, as CMake builds it, does not
    catch it, and nothing else of it would be seen."""

    @functools.wraps(method)
    def told(*arguments: Any) -> None:
        try:
            method(*arguments)
        except Exception as error:
            if not sys.orig_argv:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            raise

    return told


class _SigmoidCrossEntropyLayer(_Layer):
    """setup, reshape, forward and backward as pycaffe calls them; no state but the options."""

    # What param_str may have, and what it may look like.
    _options: ClassVar[Mapping[str, _Option]] = _OPTIONS
    _example: ClassVar[str] = '{"pos_weight": 100}'

    @_told
    def setup(self, bottom: Sequence[Any], top: Sequence[Any]) -> None:
        """Reads param_str.

        Raises TypeError or ValueError for options that are unknown or wrong, and for a number of
        bottoms or tops other than 2 or 3, and 1.
        """
        if len(bottom) not in (2, 3):
            raise ValueError(
                f"{self._name}: expected 2 bottoms, scores and targets, or 3 with element weights, "
                f"got {len(bottom)}"
            )
        if len(top) != 1:
            raise ValueError(f"{self._name}: expected 1 top, the loss, got {len(top)}")
        options = self._read_param_str()
        self._force_backward: bool = options.pop("force_backward", False)
        self._weight: Any = options.pop("weight", None)
        if self._weight is not None and len(bottom) == 3:
            raise ValueError(
                f"{self._where('weight')} and a third bottom with element weights are both there; "
                "give one"
            )
        if "normalize" not in options:
            options.setdefault("normalization", "none")
        self._arguments = options
        self._check_values()

    @_told
    def reshape(self, bottom: Sequence[Any], top: Sequence[Any]) -> None:
        """Checks the shapes, and gives the top the shape (1). Called before every forward."""
        scores = tuple(bottom[0].shape)
        if bottom[0].count != bottom[1].count:
            raise ValueError(
                f"{self._name}: targets: expected as many elements as scores of shape {scores} "
                f"have, got shape {tuple(bottom[1].shape)}"
            )
        for key, values in (
            (self._pos_weight_key, self._arguments.get("pos_weight")),
            ("weight", self._weight),
        ):
            if isinstance(values, np.ndarray) and values.size > 1:
                if len(scores) < 2 or scores[1] != values.size:
                    raise ValueError(
                        f"{self._where(key)}: expected one value, or one per channel (axis 1) of "
                        f"scores of shape {scores}, got {values.size}"
                    )
        if len(scores) < 2:
            if self._arguments.get("balance") == "image":
                raise ValueError(
                    f'{self._where("balance")}: "image" expects scores with an axis of images '
                    f"and another one, got shape {scores}"
                )
            if self._arguments.get("balance_per_channel"):
                raise ValueError(
                    f"{self._where('balance_per_channel')}: expected scores with channels (axis 1)"
                    f", got shape {scores}"
                )
        if len(bottom) == 3:
            self._weights_shape(bottom)
        top[0].reshape(1)

    @_told
    def forward(self, bottom: Sequence[Any], top: Sequence[Any]) -> None:
        """The loss. One pass over scores and targets, in place."""
        scores = bottom[0].data
        loss = api.forward(
            scores,
            bottom[1].data.reshape(scores.shape),
            weight=self._weights(bottom),
            **self._arguments,
        )
        # A loss beyond float32 is infinite there, without a warning in each iteration.
        with np.errstate(over="ignore"):
            top[0].data[...] = loss

    @_told
    def backward(
        self, top: Sequence[Any], propagate_down: Sequence[bool], bottom: Sequence[Any]
    ) -> None:
        """The gradient with respect to the scores, times the top's diff, into the scores' diff.

        Raises ValueError where propagate_down asks for the gradient of targets or weights (see
        force_backward).
        """
        for i in range(1, len(bottom)):
            if not propagate_down[i]:
                continue
            if not self._force_backward:
                what = "targets" if i == 1 else "element weights"
                raise ValueError(
                    f"{self._name}: there is no gradient with respect to {what} (bottom {i}): "
                    "nothing that learns may come before them, unless the layer says "
                    "propagate_down: true for the scores and propagate_down: false for the others; "
                    'in a net with force_backward: true, put "force_backward": true in param_str'
                )
            bottom[i].diff[...] = 0
        if not propagate_down[0]:
            return
        scores, gradient = bottom[0].data, bottom[0].diff
        factor = float(top[0].diff.flat[0])
        finite = math.isfinite(factor)
        api.backward(
            scores,
            bottom[1].data.reshape(scores.shape),
            weight=self._weights(bottom),
            loss_weight=factor if finite else 1.0,
            out=gradient,
            **self._arguments,
        )
        if not finite:
            # What comes after this layer has diverged. The kernels' option must be finite.
            with np.errstate(invalid="ignore"):
                np.multiply(gradient, np.float32(factor), out=gradient)

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _where(self, key: str) -> str:
        return f"{self._name}: param_str: {key}"

    def _read_param_str(self) -> dict[str, Any]:
        """The options by the names that the kernels know, each of the right type."""
        pairs = _read_pairs(self.param_str)
        if pairs is None:
            raise ValueError(
                f"{self._name}: param_str: expected a dict as JSON or as a Python literal, such as "
                f"{self._example}, got {_shown(self.param_str)}, which is not evaluated as code"
            )
        options: dict[str, Any] = {}
        self._pos_weight_key = "pos_weight"
        for key, value in pairs:
            option = self._options.get(key) if isinstance(key, str) else None
            if option is None:
                *others, last = self._options
                raise ValueError(
                    f"{self._name}: param_str: unknown option {_shown(key)}, expected "
                    f"{', '.join(others)} or {last}"
                )
            if not option.fits(value):
                raise TypeError(
                    f"{self._where(key)}: expected {option.expected}, got {_shown(value)}"
                )
            name = "pos_weight" if key == "cls_weight" else key
            if name in options:
                same = self._pos_weight_key if name == "pos_weight" else key
                both = "is there twice" if same == key else f"and {same} are the same; give one"
                raise ValueError(f"{self._where(key)} {both}")
            if name == "pos_weight":
                self._pos_weight_key = key
            if name == "normalization" and isinstance(value, str):
                value = value.lower()  # the names of loss_param are in capitals
            options[name] = value
        return options

    def _check_values(self) -> None:
        """The kernels' own checks, on no data."""
        options = self._arguments
        channels = 1
        key = "weight"
        try:
            if isinstance(self._weight, (list, tuple)):
                # Arrays of weights go unchecked.
                one = np.empty((0, 1), np.float32)
                for value in self._weight:
                    api.forward(one, one, weight=value)
                self._weight = np.asarray(self._weight, np.float32)
            key = self._pos_weight_key
            if isinstance(options.get("pos_weight"), (list, tuple)):
                options["pos_weight"] = np.asarray(options["pos_weight"], np.float64)
                channels = len(options["pos_weight"])
            nothing = np.empty((0, channels), np.float32)
            weight = None if isinstance(self._weight, np.ndarray) else self._weight
            api.forward(nothing, nothing, weight=weight, **options)
        except (OverflowError, TypeError, ValueError) as error:
            message = str(error).replace("pos_weight", self._pos_weight_key, 1)
            if isinstance(error, OverflowError):
                message = f"{key}: expected numbers that fit a float"
            raise ValueError(f"{self._name}: param_str: {message}") from None

    def _weights_shape(self, bottom: Sequence[Any]) -> tuple[int, ...]:
        """The shape in which the third bottom broadcasts to the scores."""
        scores, weights = tuple(bottom[0].shape), tuple(bottom[2].shape)
        if bottom[2].count == bottom[0].count:
            return scores
        padded = weights + (1,) * (len(scores) - len(weights))
        if len(padded) != len(scores) or any(
            w not in (1, s) for w, s in zip(padded, scores, strict=True)
        ):
            raise ValueError(
                f"{self._name}: weights: expected as many elements as scores of shape {scores} "
                f"have, or axes of length 1 in that shape, got shape {weights}"
            )
        return padded

    def _weights(self, bottom: Sequence[Any]) -> Any:
        if len(bottom) == 3:
            return bottom[2].data.reshape(self._weights_shape(bottom))
        if isinstance(self._weight, np.ndarray):
            axes = len(bottom[0].shape)
            return self._weight.reshape((1, -1, *(1,) * (axes - 2)) if axes > 1 else -1)
        return self._weight


class CustomSigmoidCrossEntropyLossLayer(_SigmoidCrossEntropyLayer):
    """sum(max(x, 0) - x t + log(1 + exp(-|x|))), gradient sigmoid(x) - t, for scores x, targets t.

    No divisor unless `normalization` asks for one. Options, bottoms, and what differs from the
    published layer of this name: see the module.
    """


class SigmoidCrossEntropyWeightLossLayer(_SigmoidCrossEntropyLayer):
    """sum((1 - t) x + (1 + (w - 1) t) log(1 + exp(-x))), gradient ((w - 1) t + 1) sigmoid(x) - w t.

    Here w is cls_weight, the factor on the positive part: PyTorch's pos_weight. It must be there, a
    number or one per channel. No divisor unless `normalization` asks for one. Options, bottoms, and
    what differs from the published layer of this name: see the module.
    """

    _options: ClassVar[Mapping[str, _Option]] = {"cls_weight": _POS_WEIGHT, **_OPTIONS}
    _example: ClassVar[str] = '{"cls_weight": 100}'

    def _read_param_str(self) -> dict[str, Any]:
        options = super()._read_param_str()
        if "pos_weight" not in options:
            raise ValueError(
                f"{self._where('cls_weight')} is missing, expected {self._example} or the like"
            )
        return options
