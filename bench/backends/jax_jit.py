"""JAX compiled by XLA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..plan import Case, Gradient, Work
from .base import Backend, Form, Tolerance, usual_tolerance


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
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_x64", True)  # float32 arrays stay what they are

    @property
    def version(self) -> str:
        return f"jax {jax.__version__}"

    def forms(
        self, case: Case, scores: np.ndarray, targets: np.ndarray, gradient: np.ndarray
    ) -> list[Form]:
        x = jax.dlpack.from_dlpack(scores)
        t = jax.dlpack.from_dlpack(targets)
        if case.work is Work.FORWARD:
            function = jax.jit(_loss)
            return [
                Form(
                    "jit",
                    lambda: function(x, t).block_until_ready(),
                    lambda loss: (float(loss), None),
                )
            ]
        ways: dict[str, Callable[..., Any]] = {
            "gradient by hand": _by_hand,
            "value_and_grad of softplus": jax.value_and_grad(_softplus_loss),
        }
        return [self._form(case, label, way, x, t) for label, way in ways.items()]

    def _form(
        self, case: Case, label: str, way: Callable[..., Any], x: jax.Array, t: jax.Array
    ) -> Form:
        backward = case.work is Work.BACKWARD

        def function(x: jax.Array, t: jax.Array) -> Any:
            return way(x, t)[1] if backward else way(x, t)

        def unpack(result: Any) -> tuple[float | None, np.ndarray | None]:
            if backward:
                return None, np.asarray(result)
            return float(result[0]), np.asarray(result[1])

        if case.gradient is Gradient.FRESH:
            compiled = jax.jit(function)
            return Form(label, lambda: jax.block_until_ready(compiled(x, t)), unpack)

        donating = jax.jit(
            lambda x, t, previous: function(x, t), donate_argnums=2, keep_unused=True
        )
        previous = jnp.zeros_like(x)

        def run() -> Any:
            nonlocal previous
            result = jax.block_until_ready(donating(x, t, previous))
            previous = result if backward else result[1]
            return result

        return Form(label + ", donated", run, unpack)

    def tolerance(self, case: Case, targets: str) -> Tolerance:
        return usual_tolerance(case)


def _loss(x: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.mean(jnp.maximum(x, 0) - x * t + jnp.log1p(jnp.exp(-jnp.abs(x))))


def _softplus_loss(x: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.mean(jax.nn.softplus(x) - x * t)


def _by_hand(x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _loss(x, t), (jax.nn.sigmoid(x) - t) * (1.0 / x.size)
