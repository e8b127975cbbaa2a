"""JAX compiled by XLA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..plan import IGNORED_TARGET, POS_WEIGHT, Case, Gradient, Option, Work
from .base import Backend, Form, Tolerance, no_family, usual_tolerance


class JaxJit(Backend):
    """jit of max(x, 0) - x t + log1p(exp(-|x|)), the faster form of the loss.

    Derived from this form, the gradient at x = 0 would be off by 1/2 (JAX takes abs's slope to be 1
    there). So it is written by hand, or derived from softplus(x) - x t.

    JAX arrays cannot be written to. A gradient's memory is reused by donating the previous gradient
    to the call. XLA's number of threads is the number of CPUs that the process may use.
    """

    compiles = True

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        configure()

    @property
    def version(self) -> str:
        return f"jax {jax.__version__}"

    def forms(
        self,
        case: Case,
        scores: np.ndarray,
        targets: np.ndarray,
        gradient: np.ndarray,
        weight: np.ndarray | None = None,
    ) -> list[Form]:
        no_family(case)
        arrays = [_taken(scores), _taken(targets)]
        if weight is not None:
            arrays.append(_taken(weight))
        if case.work is Work.FORWARD:
            function = jax.jit(lambda *arrays: _mean(case, _losses, *arrays))
            return [
                Form(
                    "jit",
                    lambda: function(*arrays).block_until_ready(),
                    lambda loss: (float(loss), None),
                )
            ]
        if case.work is Work.ELEMENTWISE:
            return [self._form(case, "jit", lambda *a: _elements(case, _losses, *a), arrays)]

        def by_hand(*arrays: jax.Array) -> Any:
            return _mean(case, _losses, *arrays), _gradient(case, *arrays)

        def derived(x: jax.Array, *others: jax.Array) -> Any:
            return jax.value_and_grad(lambda x: _mean(case, _softplus_losses, x, *others))(x)

        return [
            self._form(case, "gradient by hand", by_hand, arrays),
            self._form(case, "value_and_grad of softplus", derived, arrays),
        ]

    def _form(
        self, case: Case, label: str, way: Callable[..., Any], arrays: list[jax.Array]
    ) -> Form:
        """`way` returns the loss and the gradient, or the losses where they are the work."""
        single = case.work in (Work.BACKWARD, Work.ELEMENTWISE)

        def function(*arrays: jax.Array) -> Any:
            return way(*arrays)[1] if case.work is Work.BACKWARD else way(*arrays)

        def unpack(result: Any) -> tuple[float | None, np.ndarray | None]:
            if single:
                return None, np.asarray(result)
            return float(result[0]), np.asarray(result[1])

        if case.gradient is Gradient.FRESH:
            compiled = jax.jit(function)
            return Form(label, lambda: jax.block_until_ready(compiled(*arrays)), unpack)

        donating = jax.jit(
            lambda previous, *arrays: function(*arrays), donate_argnums=0, keep_unused=True
        )
        previous = jnp.zeros_like(arrays[0])

        def run() -> Any:
            nonlocal previous
            result = jax.block_until_ready(donating(previous, *arrays))
            previous = result if single else result[1]
            return result

        return Form(label + ", donated", run, unpack)

    def tolerance(self, case: Case, targets: str) -> Tolerance:
        return usual_tolerance(case)


def configure() -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)  # float32 arrays stay what they are


def _taken(array: np.ndarray) -> jax.Array:
    """Without a copy, but for bfloat16, which NumPy does not hand over."""
    if array.dtype.name == "bfloat16":
        return jnp.asarray(array)
    return jax.dlpack.from_dlpack(array)


def _losses(x: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.maximum(x, 0) - x * t + jnp.log1p(jnp.exp(-jnp.abs(x)))


def _softplus_losses(x: jax.Array, t: jax.Array) -> jax.Array:
    return jax.nn.softplus(x) - x * t


def _slopes(x: jax.Array, t: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(x) - t


def elements_by_hand(x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Losses and gradients of the elements by the form "gradient by hand". For accuracy.py."""
    return _losses(x, t), _slopes(x, t)


def elements_derived(x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """By the form "value_and_grad of softplus", here of the sum instead of the mean."""

    def total(x: jax.Array) -> Any:
        losses = _softplus_losses(x, t)
        return losses.sum(), losses

    (_, losses), slopes = jax.value_and_grad(total, has_aux=True)(x)
    return losses, slopes


def _elements(
    case: Case, losses: Callable[..., jax.Array], x: jax.Array, t: jax.Array, *weight: jax.Array
) -> jax.Array:
    if case.option is Option.POS_WEIGHT:
        return (1 - t) * x + (1 + (POS_WEIGHT - 1) * t) * jax.nn.softplus(-x)
    each = losses(x, t.astype(x.dtype))
    if case.option is Option.WEIGHT:
        return each * weight[0]
    return each * _mask(x, t) if case.option is Option.IGNORE else each


def _mean(
    case: Case, losses: Callable[..., jax.Array], x: jax.Array, t: jax.Array, *weight: jax.Array
) -> jax.Array:
    each = _elements(case, losses, x, t, *weight)
    if case.option is Option.IGNORE:
        return jnp.sum(each) / jnp.sum(_mask(x, t))
    return jnp.mean(each)


def _gradient(case: Case, x: jax.Array, t: jax.Array, *weight: jax.Array) -> jax.Array:
    """By hand."""
    scale = 1.0 / x.size
    if case.option in (Option.NONE, Option.UINT8):
        return _slopes(x, t.astype(x.dtype)) * scale
    s = jax.nn.sigmoid(x)
    if case.option is Option.POS_WEIGHT:
        return ((1 + (POS_WEIGHT - 1) * t) * s - POS_WEIGHT * t) * scale
    if case.option is Option.IGNORE:
        mask = _mask(x, t)
        return (s - t) * mask / jnp.sum(mask)
    return (s - t) * weight[0] * scale


def _mask(x: jax.Array, t: jax.Array) -> jax.Array:
    return (t != IGNORED_TARGET).astype(x.dtype)
