"""Errors of the loss and the gradient of an element, and of the mean loss, ours and others'.

    python -m bench.accuracy [--samples 3000000] [--dtype float32] [--markdown FILE]

Scores uniform in [-110, 110], targets 0 and 1. Errors are in ulp: the spacing of the dtype's
numbers in the binade of the exact value (that of subnormal numbers at the least), which is computed
in extended precision. A result of 0 where the exact value is a normal float32 is off by 2^23 ulp or
more. A result that is not finite is off by "inf".
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import sigmoid_ce as sce

Array = np.ndarray
# Scores and targets to the losses and gradients of the elements.
Function = Callable[[Array, Array], tuple[Array, Array]]
Progress = Callable[[str], None]

LARGEST_SCORE = 110
# 2 wide: one per exponent of the exact values, about.
BINS = 110

# Scores per target, by profile. Extended precision takes most of the time.
_SAMPLES = {
    "quick": {"float32": 2**17, "float64": 2**15},
    "default": {"float32": 3_000_000, "float64": 2**18},
    "full": {"float32": 2**23, "float64": 2**20},
}
# Scores that are in extended precision at a time.
_PIECE = 2**20
# Elements of the mean, by profile.
_MEAN_ELEMENTS = {"quick": 2**20, "default": 2**24, "full": 2**24}


@dataclass(frozen=True)
class System:
    """What computes losses and gradients, element by element.

    name: the backend's, where it is one (backends/__init__.py).
    module: has to be there; its version is reported.
    slow_start: its first call compiles for long, so the quick profile leaves it out.
    """

    name: str
    module: str
    function: Function
    about: str = ""
    slow_start: bool = False


def _ours(x: Array, t: Array) -> tuple[Array, Array]:
    return sce.elementwise(x, t), sce.backward(x, t, normalization="none")


def _pytorch(x: Array, t: Array) -> tuple[Array, Array]:
    import torch

    scores = torch.from_numpy(x).requires_grad_()
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        scores, torch.from_numpy(t), reduction="none"
    )
    losses.sum().backward()
    return losses.detach().numpy(), scores.grad.numpy()


@lru_cache
def _torch_compiled() -> Any:
    import torch

    torch._dynamo.reset()
    loss = torch.nn.functional.binary_cross_entropy_with_logits

    def losses(x: Any, t: Any) -> Any:
        return loss(x, t, reduction="none")

    def gradients(x: Any, t: Any) -> Any:
        return torch.func.grad(lambda x: losses(x, t).sum())(x)

    return torch.compile(losses, dynamic=False), torch.compile(gradients, dynamic=False)


def _torch_compile(x: Array, t: Array) -> tuple[Array, Array]:
    import torch

    a, b = torch.from_numpy(x), torch.from_numpy(t)
    losses, gradients = _torch_compiled()
    return losses(a, b).numpy(), gradients(a, b).numpy()


def _jax(x: Array, t: Array) -> tuple[Array, Array]:
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)  # float32 arrays stay what they are

    def loss(x: Any, t: Any) -> Any:
        return -t * jax.nn.log_sigmoid(x) - (1 - t) * jax.nn.log_sigmoid(-x)

    def total(x: Any, t: Any) -> Any:
        return loss(x, t).sum()

    a, b = jnp.asarray(x), jnp.asarray(t)
    return np.asarray(jax.jit(loss)(a, b)), np.asarray(jax.jit(jax.grad(total))(a, b))


def _tensorflow(x: Array, t: Array) -> tuple[Array, Array]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    scores = tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(scores)
        losses = tf.nn.sigmoid_cross_entropy_with_logits(
            labels=tf.convert_to_tensor(t), logits=scores
        )
    return losses.numpy(), tape.gradient(losses, scores).numpy()


@lru_cache
def _numba_compiled() -> Any:
    import numba

    @numba.njit
    def loop(x: Array, t: Array, losses: Array, gradients: Array) -> None:
        one = x.dtype.type(1)
        for i in range(x.size):
            e = np.exp(-abs(x[i]))
            losses[i] = max(x[i], x.dtype.type(0)) - x[i] * t[i] + np.log1p(e)
            gradients[i] = one / (one + np.exp(-x[i])) - t[i]

    return loop


def _numba(x: Array, t: Array) -> tuple[Array, Array]:
    losses, gradients = np.empty_like(x), np.empty_like(x)
    _numba_compiled()(x, t, losses, gradients)
    return losses, gradients


def _scikit_learn(x: Array, t: Array) -> tuple[Array, Array]:
    # What LogisticRegression and gradient boosting minimise; log_loss itself gives the mean alone.
    from sklearn._loss import HalfBinomialLoss

    losses, gradients = HalfBinomialLoss().loss_gradient(y_true=t, raw_prediction=x)
    return losses, gradients


def _numpy(x: Array, t: Array) -> tuple[Array, Array]:
    losses = np.maximum(x, 0) - x * t + np.log(1 + np.exp(-np.abs(x)))
    return losses, 1 / (1 + np.exp(-x)) - t


def _numpy_blog(x: Array, t: Array) -> tuple[Array, Array]:
    # The class-weighted layer with weight 1.
    losses = (1 - t) * x + np.log(1 + np.exp(-x))
    return losses, 1 / (1 + np.exp(-x)) - t


def _caffe(x: Array, t: Array) -> tuple[Array, Array]:
    one = x.dtype.type(1)
    positive = (x >= 0).astype(x.dtype)
    losses = -(x * (t - positive) - np.log(one + np.exp(x - 2 * x * positive)))
    return losses, one / (one + np.exp(-x)) - t


OURS = "sigmoid_ce"
CAFFE = "Caffe's formula"
SYSTEMS = [
    System(OURS, "sigmoid_ce", _ours),
    System("PyTorch", "torch", _pytorch),
    System("torch.compile", "torch", _torch_compile, slow_start=True),
    System("JAX", "jax", _jax),
    System("TensorFlow", "tensorflow", _tensorflow),
    System("Numba", "numba", _numba),
    System("scikit-learn", "sklearn", _scikit_learn, "HalfBinomialLoss"),
    System("NumPy", "numpy", _numpy),
    System("NumPy (blog)", "numpy", _numpy_blog, "log(1 + exp(-x))"),
    System(CAFFE, "numpy", _caffe, "the built-in layer's, in NumPy"),
]


# ---- Errors of the elements ----


def exact(x: Array, t: float) -> tuple[Array, Array]:
    """Loss and gradient for t = 0 or 1, in extended precision."""
    wide = x.astype(np.longdouble)
    y = wide if t == 0 else -wide  # the loss is log(1 + exp(y)), its derivative +-sigmoid(y)
    e = np.exp(-np.abs(y))
    loss = np.maximum(y, 0) + np.log1p(e)
    sigmoid = np.where(y >= 0, 1, e) / (1 + e)
    return loss, sigmoid if t == 0 else -sigmoid


def errors(got: Array, right: Array, dtype: str = "float32") -> Array:
    """In ulp of the dtype, for each element; inf where `got` is not finite."""
    info = np.finfo(dtype)
    exponent = np.frexp(right)[1] - (info.nmant + 1)
    spacing = np.ldexp(np.longdouble(1), np.maximum(exponent, info.minexp - info.nmant))
    off = np.abs(got.astype(np.longdouble) - right) / spacing
    return np.where(np.isfinite(got), off, np.inf).astype(np.float64)


def largest_error(got: Array, right: Array, dtype: str = "float32") -> float:
    """In ulp of the dtype."""
    return float(np.max(errors(got, right, dtype)))


def scores(samples: int, dtype: str) -> Array:
    """The same for every system: uniform in [-110, 110]."""
    uniform = np.random.default_rng(0).uniform(-LARGEST_SCORE, LARGEST_SCORE, samples)
    return uniform.astype(dtype)


def bin_centres() -> Array:
    """Of the curve, in scores."""
    width = 2 * LARGEST_SCORE / BINS
    centres: Array = -LARGEST_SCORE + width * (np.arange(BINS) + 0.5)
    return centres


# Loss and gradient for t = 0 and for t = 1.
Exact = tuple[tuple[Array, Array], tuple[Array, Array]]


def exact_for_both(x: Array) -> Exact:
    """What `measure` compares with: worked out once for all systems."""
    return exact(x, 0), exact(x, 1)


def measure(function: Function, x: Array, right: Exact | None = None) -> dict[str, Any]:
    """The largest errors of a system for t = 0 and t = 1, over all scores and per bin of them."""
    right = right or exact_for_both(x)
    dtype = str(x.dtype)
    bins = np.clip(((x + LARGEST_SCORE) * (BINS / (2 * LARGEST_SCORE))).astype(int), 0, BINS - 1)
    curves = {"loss_ulp": np.zeros(BINS), "gradient_ulp": np.zeros(BINS)}
    largest: dict[str, dict[str, Any]] = {"loss_ulp": {}, "gradient_ulp": {}}
    for t in (0, 1):
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            found = function(x, np.full_like(x, t))
        top = dict.fromkeys(curves, 0.0)
        for start in range(0, x.size, _PIECE):
            piece = slice(start, start + _PIECE)
            for key, got, wide in zip(curves, found, right[t], strict=True):
                off = errors(np.asarray(got)[piece], wide[piece], dtype)
                np.maximum.at(curves[key], bins[piece], off)
                top[key] = max(top[key], float(off.max()))
        for key, value in top.items():
            largest[key][str(t)] = _number(value)
    curve: dict[str, Any] = {"score": bin_centres().tolist()}
    curve |= {key: [_number(float(value)) for value in curves[key]] for key in curves}
    return {**largest, "curve": curve}


def _number(value: float) -> float | str:
    """JSON has no infinity: it is a string there, which float() reads."""
    return value if math.isfinite(value) else "inf"


# ---- Error of the mean ----


def exact_mean(x: Array, t: Array) -> float:
    """Of the losses, each computed in float64 (off by 2^-52 or so), added up exactly."""

    def terms() -> Iterator[float]:
        for start in range(0, x.size, _PIECE):
            a = x[start : start + _PIECE].astype(np.float64)
            b = t[start : start + _PIECE].astype(np.float64)
            yield from (np.maximum(a, 0) - a * b + np.log1p(np.exp(-np.abs(a)))).tolist()

    return math.fsum(terms()) / x.size


def mean_error(found: float, right: float, elements: int) -> dict[str, Any]:
    """Relative, and in ulp of float32."""
    off = abs(found - right) if math.isfinite(found) else math.inf
    return {
        "elements": elements,
        "relative": _number(off / right),
        "float32_ulp": _number(off / float(np.spacing(np.float32(right)))),
    }


def _own_mean(system: System) -> Callable[[Array, Array], float]:
    """Of a system that is no backend of the benchmark."""

    def mean(x: Array, t: Array) -> float:
        losses = system.function(x, t)[0]
        if system.name == CAFFE:  # adds up one after the other, in float32
            return float(np.cumsum(losses, dtype=np.float32)[-1]) / x.size
        return float(losses.mean())

    return mean


def _backend_mean(backend: Any, case: Any, x: Array, t: Array, out: Array) -> float:
    backend.begin(case)
    form = backend.forms(case, x, t, out)[0]
    loss = form.unpack(form.run())[0]
    if loss is None:
        raise RuntimeError("no loss")
    return float(loss)


# ---- The report ----


def report(
    profile: str,
    threads: int,
    progress: Progress | None = None,
    backends: list[str] | None = None,
) -> list[dict[str, Any]]:
    """The entries of "accuracy" in the JSON: every system, float32 and float64.

    profile: "quick", "default" or "full"; `threads` are those of the backends whose means are
    taken; backends: peers to load for that, all unless given. bench/README.md says what the keys
    mean.
    """
    # Here, since `python -m bench` restricts itself to its CPUs before peers are imported.
    from .backends import PEERS, Missing, load
    from .backends.ours import Ours
    from .data import Data
    from .plan import Case, Work

    show = progress or (lambda text: None)
    case = Case(Work.FORWARD, "float32", _MEAN_ELEMENTS[profile])
    data = Data(case)
    x, t = data.scores, data.targets("hard")
    show("accuracy: the exact mean")
    right = exact_mean(x, t)
    inputs = {dtype: scores(samples, dtype) for dtype, samples in _SAMPLES[profile].items()}
    show("accuracy: the exact losses")
    rights = {dtype: exact_for_both(scores) for dtype, scores in inputs.items()}
    entries: list[dict[str, Any]] = []
    by_name = {system.name: system for system in SYSTEMS}
    chosen = [name for name in PEERS if backends is None or name in backends]
    others = [name for name in by_name if name in chosen or name not in PEERS]
    for name in [*others, *(name for name in chosen if name not in by_name)]:
        show(f"accuracy: {name}")
        system = by_name.get(name)
        if system is not None and system.slow_start and profile == "quick":
            entries.append(entry(name, None, "float32", problem="not in the quick profile"))
            continue
        backend: Any = None
        if name == OURS:
            backend = Ours(threads)
        elif name in PEERS:
            try:
                backend = load(name, threads)
            except Exception as error:  # a peer's failure is listed, and the others go on
                backend = Missing(_failure(error))
        if system is None:
            entries.append(_backend_entry(name, backend, case, data, right))
            continue
        if not _there(system.module):
            entries.append(entry(name, None, "float32", problem="not installed"))
            continue
        for dtype, input_scores in inputs.items():
            found = entry(name, _version(system), dtype)
            entries.append(found)
            if np.finfo(np.longdouble).nmant < np.finfo(dtype).nmant + 10:
                found["problem"] = "no wider type here to compare with"
                continue
            try:
                found |= measure(system.function, input_scores, rights[dtype])
                if dtype == "float32":
                    if isinstance(backend, Missing):
                        found["problem"] = backend.reason
                    elif backend is not None:
                        mean = _backend_mean(backend, case, x, t, data.gradient)
                        found["mean_error"] = mean_error(mean, right, x.size)
                    else:
                        mean = _own_mean(system)(x, t)
                        found["mean_error"] = mean_error(mean, right, x.size)
            except Exception as error:  # as above
                found["problem"] = _failure(error)
    return entries


def entry(
    name: str, version: str | None, dtype: str, *, problem: str | None = None
) -> dict[str, Any]:
    """An entry without figures."""
    return {
        "backend": name,
        "version": version,
        "dtype": dtype,
        "loss_ulp": None,
        "gradient_ulp": None,
        "curve": None,
        "mean_error": None,
        "problem": problem,
    }


def _backend_entry(name: str, backend: Any, case: Any, data: Any, right: float) -> dict[str, Any]:
    """Of a backend that is known by its mean alone."""
    from .backends import Missing

    if isinstance(backend, Missing):
        return entry(name, None, "float32", problem=backend.reason)
    found = entry(name, backend.version, "float32", problem="only the mean is compared")
    try:
        mean = _backend_mean(backend, case, data.scores, data.targets("hard"), data.gradient)
        found["mean_error"] = mean_error(mean, right, case.elements)
    except Exception as error:  # a peer's failure is listed, and the others go on
        found["problem"] = _failure(error)
    return found


def _failure(error: Exception) -> str:
    return f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _there(module: str) -> bool:
    return module in sys.modules or find_spec(module) is not None


def _version(system: System) -> str:
    if system.module == "tensorflow":
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    version = f"{system.module} {import_module(system.module).__version__}"
    return f"{version}, {system.about}" if system.about else version


# ---- The command ----


def rows(samples: int, dtype: str = "float32") -> list[list[str]]:
    """A row of cells per system."""
    x = scores(samples, dtype)
    right = exact_for_both(x)
    table = []
    for system in SYSTEMS:
        if not _there(system.module):
            table.append([system.name] + ["not installed"] * 4)
            continue
        found = measure(system.function, x, right)
        table.append([system.name, *cells(found)])
    return table


HEAD = [
    "largest error, ulp",
    "loss, t = 0",
    "loss, t = 1",
    "gradient, t = 0",
    "gradient, t = 1",
]


def cells(found: dict[str, Any]) -> list[str]:
    """The figures of a line of the table."""
    return [
        f"{float(found[key][t]):.3g}" for key in ("loss_ulp", "gradient_ulp") for t in ("0", "1")
    ]


def markdown(table: list[list[str]]) -> str:
    lines = [HEAD, ["---"] * len(HEAD), *table]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.accuracy", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--samples", type=int, default=3_000_000, help="number of scores")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    text = markdown(rows(arguments.samples, arguments.dtype))
    print(text, end="")
    if arguments.markdown:
        arguments.markdown.write_text(text)


if __name__ == "__main__":
    main()
