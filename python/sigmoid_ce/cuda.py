"""The bound functions on the GPU: as in `sigmoid_ce`, for arrays in device memory.

Scores are float16, bfloat16, float32 or float64; half types are computed in float32 and rounded
once. Targets are of the scores' dtype, float32, bool, uint8, int8, int32 or int64. All arrays are
on one GPU, except `pos_weight`, whose few values may also be on the CPU. Results are on that GPU
and belong to the library of the scores: PyTorch, CuPy, JAX, Numba, or any other that has
`from_dlpack`; else they are a `DeviceArray`. What is not PyTorch is read by the package cuda-core
(pip install 'sigmoid-ce[cuda]').

Work goes into the current stream of PyTorch or CuPy, the stream that __cuda_array_interface__
names, or else the legacy default stream, after whatever makes the inputs. `forward` and the other
functions do not wait for it, except `partial`, `partial_backward` and `check`, which read a value.
Results have the bits of the CPU for float32 and float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from sigmoid_ce import arrays, layout
from sigmoid_ce._cpu import Partial
from sigmoid_ce.devices import (
    CudaError,
    DeviceArray,
    Library,
    hold,
    import_native,
    library_of,
    native,
)
from sigmoid_ce.gpu import is_of
from sigmoid_ce.layout import Cut, Shape, View

Array = Any
Normalization = Literal["full", "valid", "batch_size", "none", "foreground"] | float
Uncertain = Literal["soft", "ignore"]
Balance = Literal["none", "image", "batch", "batch_mean"]

__all__ = [
    "CudaError",
    "DeviceArray",
    "backward",
    "backward_targets",
    "elementwise",
    "forward",
    "forward_backward",
    "info",
    "partial",
    "partial_backward",
]


def forward(
    scores: Array,
    targets: Array,
    pos_weight: Array | None = None,
    weight: Array | None = None,
    ignore_label: int | None = None,
    normalization: Normalization | None = None,
    normalize: bool | None = None,
    check: bool = False,
    *,
    uncertain: Uncertain = "soft",
    label_smoothing: float = 0.0,
    balance: Balance | None = "none",
    balance_per_channel: bool = False,
    negative_scale: float = 1.0,
    gamma: float = 0.0,
    alpha: float | None = None,
) -> Array:
    """The loss, a 0-d array in float64 (in float32 for JAX without x64).

    Arguments: see `sigmoid_ce.forward`. An array of `weight` is on the GPU of the scores. So may be
    `pos_weight`, contiguous and in the type that is computed in: float64 for float64 scores, else
    float32; its values are then not checked. `check=True` takes PyTorch or CuPy arrays.

    Raises
    ------
    TypeError, ValueError
        As `sigmoid_ce.forward`; TypeError also for arrays on more than one device.
    CudaError
        No GPU, no driver, a driver that is too old, or an error that CUDA reports.
    MemoryError
        No memory left on the device. Where the library of the scores allocates: its own exception.
    RuntimeError
        This build has no CUDA kernels, or the arrays have more than 8 axes that cannot be merged.
    ImportError
        cuda-core is missing and needed.
    """
    family = _family(
        uncertain, label_smoothing, balance, balance_per_channel, negative_scale, gamma, alpha
    )
    call = _Call(scores, targets, pos_weight, weight, ignore_label, family, check=check)
    call.set_normalization(normalization, normalize)
    loss = call.new_loss()
    call.run(call.native.forward, call.results(loss=loss))
    return call.finish(loss)


def backward(
    scores: Array,
    targets: Array,
    pos_weight: Array | None = None,
    weight: Array | None = None,
    ignore_label: int | None = None,
    normalization: Normalization | None = None,
    normalize: bool | None = None,
    loss_weight: float = 1.0,
    out: Array | None = None,
    check: bool = False,
    *,
    uncertain: Uncertain = "soft",
    label_smoothing: float = 0.0,
    balance: Balance | None = "none",
    balance_per_channel: bool = False,
    negative_scale: float = 1.0,
    gamma: float = 0.0,
    alpha: float | None = None,
) -> Array:
    """The gradient with respect to the scores. Arguments: see `forward` and `sigmoid_ce.backward`.

    Returns `out`, or a new array of the library, shape and dtype of scores.
    """
    family = _family(
        uncertain, label_smoothing, balance, balance_per_channel, negative_scale, gamma, alpha
    )
    call = _Call(scores, targets, pos_weight, weight, ignore_label, family, check=check)
    call.set_normalization(normalization, normalize)
    call.loss_weight = loss_weight
    gradient = call.output(out)
    call.run(call.native.backward, out=gradient)
    return call.finish(gradient)


def forward_backward(
    scores: Array,
    targets: Array,
    pos_weight: Array | None = None,
    weight: Array | None = None,
    ignore_label: int | None = None,
    normalization: Normalization | None = None,
    normalize: bool | None = None,
    loss_weight: float = 1.0,
    out: Array | None = None,
    check: bool = False,
    *,
    uncertain: Uncertain = "soft",
    label_smoothing: float = 0.0,
    balance: Balance | None = "none",
    balance_per_channel: bool = False,
    negative_scale: float = 1.0,
    gamma: float = 0.0,
    alpha: float | None = None,
    hessian: bool | Array = False,
) -> tuple[Array, ...]:
    """`forward` and `backward` in one pass over memory, with the bits of the two.

    With `hessian` the second derivatives too: see `sigmoid_ce.forward_backward`.
    """
    family = _family(
        uncertain, label_smoothing, balance, balance_per_channel, negative_scale, gamma, alpha
    )
    call = _Call(scores, targets, pos_weight, weight, ignore_label, family, check=check)
    call.set_normalization(normalization, normalize)
    call.loss_weight = loss_weight
    gradient = call.output(out)
    loss = call.new_loss()
    if hessian is False:
        call.run(call.native.forward_backward, call.results(loss=loss), gradient)
        return call.finish(loss), call.finish(gradient)
    second = call.hessian(hessian)
    call.run(call.native.forward_backward, call.results(loss=loss), gradient, second)
    return call.finish(loss), call.finish(gradient), call.finish(second)


def backward_targets(
    scores: Array,
    targets: Array,
    pos_weight: Array | None = None,
    weight: Array | None = None,
    ignore_label: int | None = None,
    normalization: Normalization | None = None,
    normalize: bool | None = None,
    loss_weight: float = 1.0,
    out: Array | None = None,
    check: bool = False,
    *,
    uncertain: Uncertain = "soft",
    label_smoothing: float = 0.0,
    balance: Balance | None = "none",
    balance_per_channel: bool = False,
    negative_scale: float = 1.0,
    gamma: float = 0.0,
    alpha: float | None = None,
) -> Array:
    """The gradient with respect to the targets. See `forward` and `sigmoid_ce.backward_targets`.

    Returns `out`, or a new array of the library, shape and dtype of scores.
    """
    family = _family(
        uncertain, label_smoothing, balance, balance_per_channel, negative_scale, gamma, alpha
    )
    call = _Call(scores, targets, pos_weight, weight, ignore_label, family, check=check)
    call.set_normalization(normalization, normalize)
    call.loss_weight = loss_weight
    gradient = call.output(out)
    call.run(call.native.backward_targets, out=gradient)
    return call.finish(gradient)


def elementwise(
    scores: Array,
    targets: Array,
    pos_weight: Array | None = None,
    weight: Array | None = None,
    ignore_label: int | None = None,
    out: Array | None = None,
    check: bool = False,
    *,
    uncertain: Uncertain = "soft",
    label_smoothing: float = 0.0,
    balance: Balance | None = "none",
    balance_per_channel: bool = False,
    negative_scale: float = 1.0,
    gamma: float = 0.0,
    alpha: float | None = None,
) -> Array:
    """The loss of each element, without a divisor. See `forward` and `sigmoid_ce.elementwise`."""
    family = _family(
        uncertain, label_smoothing, balance, balance_per_channel, negative_scale, gamma, alpha
    )
    call = _Call(scores, targets, pos_weight, weight, ignore_label, family, check=check)
    losses = call.output(out)
    call.run(call.native.elementwise, out=losses)
    return call.finish(losses)


def partial(
    scores: Array,
    targets: Array,
    pos_weight: Array | None = None,
    weight: Array | None = None,
    ignore_label: int | None = None,
    first_index: int = 0,
    shape: Sequence[int] | None = None,
    *,
    uncertain: Uncertain = "soft",
    label_smoothing: float = 0.0,
    negative_scale: float = 1.0,
    gamma: float = 0.0,
    alpha: float | None = None,
) -> Partial:
    """The exact sum of the losses of a chunk, on the CPU: waits for the work.

    It adds up with parts of any device. See `sigmoid_ce.partial`.
    """
    family = _family(uncertain, label_smoothing, "none", False, negative_scale, gamma, alpha)
    call = _Call(scores, targets, pos_weight, weight, ignore_label, family, first_index, shape)
    words = call.new_words()
    call.run(call.native.forward, call.results(words=words))
    return call.finish_words(words)


def partial_backward(
    scores: Array,
    targets: Array,
    divisor: float,
    pos_weight: Array | None = None,
    weight: Array | None = None,
    ignore_label: int | None = None,
    loss_weight: float = 1.0,
    first_index: int = 0,
    shape: Sequence[int] | None = None,
    out: Array | None = None,
    *,
    uncertain: Uncertain = "soft",
    label_smoothing: float = 0.0,
    negative_scale: float = 1.0,
    gamma: float = 0.0,
    alpha: float | None = None,
) -> tuple[Partial, Array]:
    """`partial`, and the gradient of the chunk's elements. See `sigmoid_ce.partial_backward`."""
    family = _family(uncertain, label_smoothing, "none", False, negative_scale, gamma, alpha)
    call = _Call(scores, targets, pos_weight, weight, ignore_label, family, first_index, shape)
    if divisor is None:
        raise TypeError("divisor: expected a positive number, got NoneType")
    call.divisor = divisor
    call.loss_weight = loss_weight
    gradient = call.output(out)
    words = call.new_words()
    call.run(call.native.forward_backward, call.results(words=words), gradient)
    return call.finish_words(words), call.finish(gradient)


def info() -> dict[str, Any]:
    """Whether this build has the kernels, the versions of CUDA, and the GPUs or why there are none.

    "runtime" is the CUDA that the kernels were built with, "driver" the newest that the driver
    knows; memory in bytes.
    """
    facts: dict[str, Any] = {"built": False, "runtime": None, "driver": None, "devices": []}
    module = import_native()
    if isinstance(module, ImportError):
        return {**facts, "reason": f"this build has no CUDA kernels ({module})"}
    facts.update(
        built=True, runtime=module.runtime_version(), driver=module.driver_version(), reason=None
    )
    try:
        facts["devices"] = [module.device_info(i) for i in range(module.device_count())]
    except (CudaError, RuntimeError) as error:
        facts["reason"] = str(error)
    return facts


# ---- One call ----


# The options of the family of losses, in the order that the native functions have.
_Family = tuple[Any, ...]
_OFF: _Family = ("soft", 0.0, "none", False, 1.0, 0.0, None)


def _family(*options: Any) -> _Family | None:
    # By identity first: what compares like a number may be an array, which the native code refuses.
    for option, off in zip(options, _OFF, strict=True):
        if option is not off and (type(option) is not type(off) or option != off):
            return options
    return None


class _Output(NamedTuple):
    """An array that a call writes; `ours` where it was not the caller's."""

    array: Any
    place: tuple[int, Shape | None]  # address and strides
    ours: bool


class _Call:
    """Reads the arguments, holds what the native function is told, and brings the results back."""

    loss_weight: Any = 1.0
    divisor: Any = None
    device = -1
    _normalization: tuple[Any, Any] = (None, None)
    _first = 0
    _cut: Cut | None = None  # with the views of scores and targets, where they had to be looked at
    _number: Any = None  # pos_weight
    _channels: tuple[int, int] | None = None
    _pos_weight: View | None = None
    _out: View | None = None  # the caller's
    _weight: Any = None
    _weight_view: View | None = None
    _loss_code = 0
    _owners: tuple[Any, ...] = ()  # what must live until the work is done
    _foreign: tuple[tuple[Library, Any, Any], ...] = ()  # arrays of other libraries
    _scratches: tuple[Any, ...] = ()

    def __init__(
        self,
        scores: Array,
        targets: Array,
        pos_weight: Array | None,
        weight: Array | None,
        ignore_label: int | None,
        family: _Family | None,
        first_index: int = 0,
        shape: Sequence[int] | None = None,
        check: bool = False,
    ) -> None:
        library = library_of(scores)
        if library is None:
            raise TypeError(
                f"scores: expected an array on a GPU, got {_kind(scores)}; sigmoid_ce has the "
                "functions for arrays on the CPU"
            )
        self.native = native()
        self.library = library
        self.like = scores
        self.stream = library.stream(scores)
        self._targets_object = targets
        self._ignore_label = ignore_label
        self._family = family
        pair = None
        if shape is None and type(first_index) is int and first_index == 0:
            pair = library.usual_pair(scores, targets)
        if pair is None:
            self._read_inputs(first_index, shape)
        else:
            self.device, self._shape, self._dtype, self._count, self._inputs = pair
        if pos_weight is not None:
            self._set_pos_weight(pos_weight)
        if weight is not None:
            self._set_weight(weight)
        if check:
            # Where uncertain targets are ignored, all but 0 and 1 are.
            if family is None or not isinstance(family[0], str) or family[0] != "ignore":
                _check_targets(targets, ignore_label)
            _check_weight(weight)

    def set_normalization(self, normalization: Any, normalize: Any) -> None:
        self._normalization = (normalization, normalize)

    # ---- Inputs ----

    def _read_inputs(self, first_index: Any, shape: Any) -> Cut:
        x = self._read(self.like, "scores")
        layout.check_dtype(x, "scores", layout.SCORES)
        self._cut = cut = Cut(x, first_index, shape)
        t = self._read(self._targets_object, "targets")
        layout.check_dtype(t, "targets", layout.targets_of(x.dtype), x.dtype)
        self._targets = t
        self._inputs = (
            (*cut.place(x, "scores"), layout.CODES[x.dtype]),
            (*cut.place_targets(t), layout.CODES[t.dtype]),
        )
        self._shape, self._dtype = cut.shape, x.dtype
        self._first, self._count = cut.first, cut.count
        return cut

    def _cut_inputs(self) -> Cut:
        return self._cut or self._read_inputs(0, None)

    def _read(self, value: Any, name: str) -> View:
        library = library_of(value)
        if library is None:
            raise self._not_on_the_gpu(value, name)
        view, owner = library.describe(value, name, self.stream)
        if self.device < 0:
            self.device = view.device
        elif view.device != self.device:
            raise TypeError(
                f"{name}: expected an array on cuda:{self.device}, as scores are, got one on "
                f"cuda:{view.device}; copy it to that GPU"
            )
        if library is not self.library:
            library.order_before(value, self.device, self.stream)
            self._foreign += ((library, value, owner),)
        elif not library.orders_memory:
            self._owners += (value, owner)
        return view

    def _not_on_the_gpu(self, value: Any, name: str) -> TypeError:
        where = "the CPU"
        if is_of(value, "torch", "Tensor"):
            where = str(value.device)
        elif name == "out":
            arrays.view_out(value)  # has better words for what is no array at all
        elif name == "hessian":
            arrays.view_hessian(value)
        else:
            arrays.view(value, name)
        return TypeError(
            f"{name}: expected an array on cuda:{self.device}, as scores are, got {_kind(value)} "
            f"on {where}; pass {self.library.to_gpu.format(name=name)}"
        )

    def _set_pos_weight(self, value: Any) -> None:
        if isinstance(value, (bool, int, float, np.generic)):
            self._number = value
            return
        compute = layout.computed_in(self._dtype)
        if library_of(value) is None:
            self._copy_pos_weight(arrays.view_weight(value, "pos_weight"), compute)
            return
        view = self._read(value, "pos_weight")
        if view.dtype != compute:
            raise TypeError(
                f"pos_weight: expected {compute} for {self._dtype} scores, got {view.dtype}"
            )
        self._cut_inputs().check_pos_weight(view.shape)
        if view.strides is not None and math.prod(view.shape) > 1:
            raise ValueError(
                "pos_weight: expected contiguous values on the GPU, got shape "
                f"{layout.text(view.shape)} with strides {layout.text(view.strides)}; pass a "
                "contiguous copy"
            )
        self._pos_weight = view
        self._set_channels(view.address, math.prod(view.shape))

    def _copy_pos_weight(self, array: Any, compute: str) -> None:
        if isinstance(array, np.ma.MaskedArray):
            raise TypeError(
                "pos_weight: masked arrays are not read as such; pass .filled() or .data"
            )
        if array.dtype.kind not in "fiub":
            raise TypeError(f"pos_weight: expected real numbers, got {array.dtype}")
        self._cut_inputs().check_pos_weight(array.shape)
        values = np.ascontiguousarray(array, np.float64).ravel()
        for value in values[~((values >= 0) & (values <= np.finfo(compute).max))]:
            of_dtype = " in float32" if compute == "float32" else ""
            raise ValueError(
                f"pos_weight: expected finite values >= 0{of_dtype}, got {float(value)!r}"
            )
        if values.size == 1:
            self._number = float(values[0])
        elif values.size > 1:
            values = values.astype(compute)
            address = self._scratch(values.nbytes)
            self.native.to_device(self.device, self.stream, address, values)
            self._set_channels(address, values.size)

    def _set_channels(self, address: int, count: int) -> None:
        if count > 0:
            self._channels = (address, count)

    def _set_weight(self, value: Any) -> None:
        if isinstance(value, (bool, int, float, np.generic)):
            self._weight = value
            return
        self._weight_view = view = self._read(value, "weight")
        layout.check_dtype(view, "weight", [self._dtype, *layout.MASKS], self._dtype)
        address, strides = self._cut_inputs().place_weight(view)
        self._weight = (address, strides, layout.CODES[view.dtype])

    # ---- Outputs ----

    def new_loss(self) -> _Output:
        dtype = self.library.loss_dtype()
        array, address = self.library.empty(self.like, (), dtype, self.device, self.stream)
        self._loss_code = layout.CODES[dtype]
        return _Output(array, (address, None), True)

    def new_words(self) -> int:
        return self._scratch(Partial().to_words().nbytes)

    def results(self, loss: _Output | None = None, words: int = 0) -> tuple[int, int, int]:
        if loss is None:
            return (0, layout.CODES["float64"], words)
        return (loss.place[0], self._loss_code, words)

    def output(self, out: Any) -> _Output:
        if out is None:
            shape = self._shape if self._cut is None else self._cut.scores.shape
            array, address = self.library.empty(
                self.like, shape, self._dtype, self.device, self.stream
            )
            return _Output(array, (address, None), True)
        self._out, output = self._given_output(out, "out", {})
        return output

    def _given_output(
        self, out: Any, name: str, others: dict[str, View | None]
    ) -> tuple[View, _Output]:
        library = library_of(out)
        if library is not None:
            library.refuse_out()
        cut = self._cut_inputs()
        view = self._read(out, name)
        inputs = {
            "targets": self._targets,
            "weight": self._weight_view,
            "pos_weight": self._pos_weight,
            **others,
        }
        layout.check_out(view, cut.scores, inputs, name)
        return view, _Output(out, cut.place(view, name), False)

    def hessian(self, value: Any) -> _Output:
        if value is True:
            return self.output(None)
        if value is None or isinstance(value, (bool, int, float, np.generic)):
            raise TypeError(f"hessian: expected True, False or an array, got {_kind(value)}")
        return self._given_output(value, "hessian", {"the gradient": self._out})[1]

    def _scratch(self, size: int) -> int:
        memory, address = self.library.scratch(self.like, size, self.device, self.stream)
        self._scratches += (memory,)
        return address

    # ---- The call ----

    def run(
        self,
        function: Callable[..., None],
        results: tuple[int, int, int] | None = None,
        out: _Output | None = None,
        hessian: _Output | None = None,
    ) -> None:
        inputs = (self._shape, *self._inputs, self._first, self._count)
        options = (
            self._number,
            self._channels,
            self._weight,
            self._ignore_label,
            *self._normalization,
            self.loss_weight,
            self.divisor,
            self._family,
        )
        workspace, size = 0, 0
        if self._family is not None:
            size = self.native.workspace_bytes(inputs, options)
        elif function is not self.native.elementwise:
            size = self.native.workspace_size
        if size > 0:
            workspace = self._scratch(size)
        arguments: list[Any] = [] if results is None else [results]
        arguments += [output.place for output in (out, hessian) if output is not None]
        function((self.device, self.stream, workspace, size), inputs, options, *arguments)
        for library, value, owner in self._foreign:
            if not library.order_after(value, self.device, self.stream):
                self._owners += (value, owner)
        if self._owners:
            hold(self.device, self.stream, self._owners)

    def finish(self, output: _Output) -> Any:
        if not output.ours:
            return output.array
        return self.library.finish(output.array, self.like, self.stream)

    def finish_words(self, address: int) -> Partial:
        words = Partial().to_words()
        self.native.to_host(self.device, self.stream, address, words)
        return Partial.from_words(words)


def _kind(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


# ---- check=True ----


def _check_targets(targets: Any, ignore_label: int | None) -> None:
    library, xp = _asked(targets, "targets")
    if _is_bool(targets):
        return
    good = (targets >= 0) & (targets <= 1)
    if ignore_label is not None:
        label = layout.read_integer(ignore_label, "ignore_label")
        # In float64, where integers of 32 bits are exact; of 64 bits, in their own type.
        if str(targets.dtype).endswith("int64"):
            good |= targets == label
        elif float(label) == label:
            good |= xp.trunc(library.to_float64(targets)) == float(label)
    _require(good, targets, "targets", "values in [0, 1]", library)


def _check_weight(weight: Any) -> None:
    if weight is None or isinstance(weight, (bool, int, float, np.generic)):
        return
    library, xp = _asked(weight, "weight")
    if not _is_bool(weight):
        good = xp.isfinite(weight) & (weight >= 0)
        _require(good, weight, "weight", "finite values >= 0", library)


def _asked(value: Any, name: str) -> tuple[Library, Any]:
    library = library_of(value)
    xp = None if library is None else library.namespace()
    if library is None or xp is None:
        raise TypeError(
            f"{name}: check=True takes PyTorch or CuPy arrays on the GPU, whose operations it "
            f"uses, got {_kind(value)}; leave check= away"
        )
    return library, xp


def _is_bool(value: Any) -> bool:
    return str(value.dtype) in ("bool", "torch.bool")


def _require(good: Any, value: Any, name: str, expected: str, library: Library) -> None:
    if bool(good.all()):
        return
    first = library.first_false(good)
    index = tuple(int(i) for i in np.unravel_index(first, tuple(value.shape)))
    got = value[index].item()
    raise ValueError(f"{name}: expected {expected} with check=True, got {got} at index {index}")
