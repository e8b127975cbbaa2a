from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[Any]
_Number = float | np.number[Any] | np.bool_

version: str
compiler: str

class Partial:
    def __init__(self) -> None: ...
    @property
    def sum(self) -> float: ...
    @property
    def n_valid(self) -> int: ...
    @property
    def n_total(self) -> int: ...
    def loss(
        self, normalization: str | float | None = None, batch_size: int | None = None
    ) -> float: ...
    def divisor(
        self, normalization: str | float | None = None, batch_size: int | None = None
    ) -> float: ...
    def to_words(self) -> NDArray[np.int64]: ...
    @staticmethod
    def from_words(words: NDArray[np.int64]) -> Partial: ...
    def __add__(self, other: Partial) -> Partial: ...
    def __radd__(self, zero: Literal[0]) -> Partial: ...  # for sum()
    def __eq__(self, other: object) -> bool: ...
    __hash__: ClassVar[None]  # type: ignore[assignment]

def combine(parts: Iterable[Partial]) -> Partial: ...
def forward(
    scores: _Array,
    targets: _Array,
    pos_weight: _Array | _Number | None = None,
    weight: _Array | _Number | None = None,
    ignore_label: int | None = None,
    normalization: str | float | None = None,
    normalize: bool | None = None,
    uncertain: str = "soft",
    label_smoothing: float = 0.0,
    balance: str | None = "none",
    balance_per_channel: bool = False,
    negative_scale: float = 1.0,
    gamma: float = 0.0,
    alpha: float | None = None,
) -> float: ...
def elementwise(
    scores: _Array,
    targets: _Array,
    pos_weight: _Array | _Number | None = None,
    weight: _Array | _Number | None = None,
    ignore_label: int | None = None,
    out: _Array | None = None,
    uncertain: str = "soft",
    label_smoothing: float = 0.0,
    balance: str | None = "none",
    balance_per_channel: bool = False,
    negative_scale: float = 1.0,
    gamma: float = 0.0,
    alpha: float | None = None,
) -> _Array: ...
def backward(
    scores: _Array,
    targets: _Array,
    pos_weight: _Array | _Number | None = None,
    weight: _Array | _Number | None = None,
    ignore_label: int | None = None,
    normalization: str | float | None = None,
    normalize: bool | None = None,
    loss_weight: float = 1.0,
    out: _Array | None = None,
    uncertain: str = "soft",
    label_smoothing: float = 0.0,
    balance: str | None = "none",
    balance_per_channel: bool = False,
    negative_scale: float = 1.0,
    gamma: float = 0.0,
    alpha: float | None = None,
) -> _Array: ...
def backward_targets(
    scores: _Array,
    targets: _Array,
    pos_weight: _Array | _Number | None = None,
    weight: _Array | _Number | None = None,
    ignore_label: int | None = None,
    normalization: str | float | None = None,
    normalize: bool | None = None,
    loss_weight: float = 1.0,
    out: _Array | None = None,
    uncertain: str = "soft",
    label_smoothing: float = 0.0,
    balance: str | None = "none",
    balance_per_channel: bool = False,
    negative_scale: float = 1.0,
    gamma: float = 0.0,
    alpha: float | None = None,
) -> _Array: ...
def forward_backward(
    scores: _Array,
    targets: _Array,
    pos_weight: _Array | _Number | None = None,
    weight: _Array | _Number | None = None,
    ignore_label: int | None = None,
    normalization: str | float | None = None,
    normalize: bool | None = None,
    loss_weight: float = 1.0,
    out: _Array | None = None,
    hessian: _Array | bool = False,
    uncertain: str = "soft",
    label_smoothing: float = 0.0,
    balance: str | None = "none",
    balance_per_channel: bool = False,
    negative_scale: float = 1.0,
    gamma: float = 0.0,
    alpha: float | None = None,
) -> tuple[Any, ...]: ...  # loss, gradient and perhaps the Hessian
def partial(
    scores: _Array,
    targets: _Array,
    pos_weight: _Array | _Number | None = None,
    weight: _Array | _Number | None = None,
    ignore_label: int | None = None,
    first_index: int = 0,
    shape: Sequence[int] | None = None,
    uncertain: str = "soft",
    label_smoothing: float = 0.0,
    negative_scale: float = 1.0,
    gamma: float = 0.0,
    alpha: float | None = None,
) -> Partial: ...
def partial_backward(
    scores: _Array,
    targets: _Array,
    divisor: float,
    pos_weight: _Array | _Number | None = None,
    weight: _Array | _Number | None = None,
    ignore_label: int | None = None,
    loss_weight: float = 1.0,
    first_index: int = 0,
    shape: Sequence[int] | None = None,
    out: _Array | None = None,
    uncertain: str = "soft",
    label_smoothing: float = 0.0,
    negative_scale: float = 1.0,
    gamma: float = 0.0,
    alpha: float | None = None,
) -> tuple[Partial, _Array]: ...
def set_num_threads(n: int | None) -> None: ...
def get_num_threads() -> int: ...
def set_isa(name: str | None) -> None: ...
def get_isa() -> str: ...
def available_isas() -> list[str]: ...
def compiled_isas() -> list[str]: ...
