"""Largest errors of the loss and the gradient of an element, ours and others', in float32.

    python -m bench.accuracy [--samples 3000000] [--markdown FILE]

Scores uniform in [-110, 110], targets 0 and 1. Errors are in ulp: the spacing of float32 numbers in
the binade of the exact value (2^-149 at the least), which is computed in extended precision. A
result of 0 where the exact value is a normal number is off by 2^23 ulp or more.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import sigmoid_ce as sce

Array = np.ndarray
# Scores and targets to the losses and gradients of the elements.
System = Callable[[Array, Array], tuple[Array, Array]]


def ours(x: Array, t: Array) -> tuple[Array, Array]:
    return sce.elementwise(x, t), sce.backward(x, t, normalization="none")


def pytorch(x: Array, t: Array) -> tuple[Array, Array]:
    import torch

    scores = torch.from_numpy(x).requires_grad_()
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        scores, torch.from_numpy(t), reduction="none"
    )
    losses.sum().backward()
    return losses.detach().numpy(), scores.grad.numpy()


def jax(x: Array, t: Array) -> tuple[Array, Array]:
    import jax
    import jax.numpy as jnp

    def loss(x: jax.Array, t: jax.Array) -> jax.Array:
        return -t * jax.nn.log_sigmoid(x) - (1 - t) * jax.nn.log_sigmoid(-x)

    def total(x: jax.Array, t: jax.Array) -> jax.Array:
        return loss(x, t).sum()

    a, b = jnp.asarray(x), jnp.asarray(t)
    return np.asarray(jax.jit(loss)(a, b)), np.asarray(jax.jit(jax.grad(total))(a, b))


def caffe_formula(x: Array, t: Array) -> tuple[Array, Array]:
    one = np.float32(1)
    positive = (x >= 0).astype(np.float32)
    losses = -(x * (t - positive) - np.log(one + np.exp(x - 2 * x * positive)))
    return losses, one / (one + np.exp(-x)) - t


SYSTEMS: list[tuple[str, str, System]] = [
    ("sigmoid_ce", "sigmoid_ce", ours),
    ("PyTorch", "torch", pytorch),
    ("JAX", "jax", jax),
    ("Caffe's formula, in NumPy", "numpy", caffe_formula),
]


def exact(x: Array, t: float) -> tuple[Array, Array]:
    """Loss and gradient for t = 0 or 1, in extended precision."""
    wide = x.astype(np.longdouble)
    y = wide if t == 0 else -wide  # the loss is log(1 + exp(y)), its derivative +-sigmoid(y)
    e = np.exp(-np.abs(y))
    loss = np.maximum(y, 0) + np.log1p(e)
    sigmoid = np.where(y >= 0, 1, e) / (1 + e)
    return loss, sigmoid if t == 0 else -sigmoid


def largest_error(got: Array, right: Array) -> float:
    """In ulp of float32."""
    exponent = np.frexp(right)[1] - 24
    spacing = np.ldexp(np.longdouble(1), np.maximum(exponent, -149))
    return float(np.max(np.abs(got.astype(np.longdouble) - right) / spacing))


def rows(samples: int) -> list[list[str]]:
    """A row of cells per system."""
    scores = np.random.default_rng(0).uniform(-110, 110, samples).astype(np.float32)
    table = []
    for name, module, system in SYSTEMS:
        if find_spec(module) is None:
            table.append([name] + ["not installed"] * 4)
            continue
        losses, gradients = [], []
        for t in (0.0, 1.0):
            targets = np.full_like(scores, t)
            with np.errstate(over="ignore", under="ignore"):
                got = system(scores, targets)
            right = exact(scores, t)
            losses.append(largest_error(got[0], right[0]))
            gradients.append(largest_error(got[1], right[1]))
        table.append([name] + [f"{error:.3g}" for error in (*losses, *gradients)])
    return table


def markdown(table: list[list[str]]) -> str:
    head = [
        "largest error, ulp",
        "loss, t = 0",
        "loss, t = 1",
        "gradient, t = 0",
        "gradient, t = 1",
    ]
    lines = [head, ["---"] * len(head), *table]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.accuracy", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--samples", type=int, default=3_000_000, help="number of scores")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    text = markdown(rows(arguments.samples))
    print(text, end="")
    if arguments.markdown:
        arguments.markdown.write_text(text)


if __name__ == "__main__":
    main()
