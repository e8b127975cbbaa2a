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
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
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

    name: the backend's, where it is one (backends/__init__.py), of which it is the first form.
    module: has to be there; its version is reported.
    compiles: its first call does, for each dtype.
    slow_start: that takes long, so the quick profile leaves it out.
    backend: where it is another form of a backend, or a formula from its package, that one's name.
    """

    name: str
    module: str
    function: Function
    about: str = ""
    compiles: bool = False
    slow_start: bool = False
    backend: str = ""


# Each takes the formula from the module that is timed. There it has the mean, and a gradient that
# is divided by n; dividing a gradient near the smallest number by n would lose it, so that the
# elements' own are compared.


def _losses_case(x: Array) -> Any:
    from .plan import Case, Gradient, Work

    return Case(Work.ELEMENTWISE, x.dtype.name, x.size, Gradient.FRESH)


def _ours(x: Array, t: Array) -> tuple[Array, Array]:
    return sce.elementwise(x, t), sce.backward(x, t, normalization="none")


def _pytorch(x: Array, t: Array) -> tuple[Array, Array]:
    from .backends.torch_cases import array, loss_function, tensor

    scores = tensor(x).requires_grad_()
    losses = loss_function(_losses_case(x))(scores, tensor(t))
    losses.sum().backward()
    return array(losses), array(scores.grad)


@lru_cache(maxsize=1)  # for the second target it is compiled already
def _torch_compiled(case: Any, *, by_hand: bool) -> Any:
    from .backends.torch_compile import elements_by_hand, elements_derived

    return elements_by_hand(case) if by_hand else elements_derived(case)


def _torch_compile(x: Array, t: Array, *, by_hand: bool = True) -> tuple[Array, Array]:
    from .backends.torch_cases import array, tensor

    losses, gradients = _torch_compiled(_losses_case(x), by_hand=by_hand)(tensor(x), tensor(t))
    return array(losses), array(gradients)


def _jax(x: Array, t: Array, *, by_hand: bool = True) -> tuple[Array, Array]:
    import jax

    from .backends.jax_jit import configure, elements_by_hand, elements_derived

    configure()
    losses, gradients = jax.jit(elements_by_hand if by_hand else elements_derived)(x, t)
    return np.asarray(losses), np.asarray(gradients)


@lru_cache(maxsize=1)
def _tensorflow_compiled(case: Any, *, xla: bool) -> Any:
    from .backends.tensorflow_function import elements

    return elements(case, jit=xla)


def _tensorflow(x: Array, t: Array, *, xla: bool = True) -> tuple[Array, Array]:
    function = _tensorflow_compiled(_losses_case(x), xla=xla)
    import tensorflow as tf  # after the backend's module, which sets what the import reads

    losses, gradients = function(tf.constant(x), tf.constant(t))
    return losses.numpy(), gradients.numpy()


def _numba(x: Array, t: Array) -> tuple[Array, Array]:
    from .backends.numba_loop import elements

    return elements(x, t)


def _half_binomial(x: Array, t: Array) -> tuple[Array, Array]:
    from sklearn._loss import HalfBinomialLoss

    losses, gradients = HalfBinomialLoss().loss_gradient(y_true=t, raw_prediction=x)
    return losses, gradients


def _numpy(x: Array, t: Array) -> tuple[Array, Array]:
    from .backends.numpy_layer import element_losses, element_slopes

    return element_losses(x, t), element_slopes(x, t)


def _numpy_blog(x: Array, t: Array, *, pos_weight: float | None = None) -> tuple[Array, Array]:
    from .backends.numpy_blog import BlogLayer

    layer = BlogLayer(pos_weight)
    losses = layer.losses(x, t)
    assert layer.diff is not None
    return losses, layer.diff


def _caffe(x: Array, t: Array) -> tuple[Array, Array]:
    one = x.dtype.type(1)
    positive = (x >= 0).astype(x.dtype)
    losses = -(x * (t - positive) - np.log(one + np.exp(x - 2 * x * positive)))
    return losses, one / (one + np.exp(-x)) - t


OURS = "sigmoid_ce"
CAFFE = "Caffe's formula"
# The first form of each backend, others that are tried beside it, and formulas that nothing times
# as they are here.
SYSTEMS = [
    System(OURS, "sigmoid_ce", _ours),
    System("PyTorch", "torch", _pytorch),
    System(
        "torch.compile",
        "torch",
        _torch_compile,
        "gradient by hand",
        compiles=True,
        slow_start=True,
    ),
    System(
        "torch.compile, func.grad",
        "torch",
        partial(_torch_compile, by_hand=False),
        compiles=True,
        slow_start=True,
        backend="torch.compile",
    ),
    System("JAX", "jax", _jax, "gradient by hand", compiles=True),
    System(
        "JAX, softplus",
        "jax",
        partial(_jax, by_hand=False),
        "value_and_grad",
        compiles=True,
        backend="JAX",
    ),
    System("TensorFlow", "tensorflow", _tensorflow, "XLA", compiles=True),
    System(
        "TensorFlow, no XLA",
        "tensorflow",
        partial(_tensorflow, xla=False),
        compiles=True,
        backend="TensorFlow",
    ),
    System("Numba", "numba", _numba, compiles=True),
    # What LogisticRegression and gradient boosting minimise; log_loss, which is timed, has the mean
    # alone.
    System("HalfBinomialLoss", "sklearn", _half_binomial, backend="scikit-learn"),
    System("NumPy", "numpy", _numpy),
    System("NumPy (blog)", "numpy", _numpy_blog),
    # With a weight of 1 the class-weighted layer is the plain loss, but not by a stable formula.
    System(
        "NumPy (blog, class-weighted)",
        "numpy",
        partial(_numpy_blog, pos_weight=1.0),
        "log(1 + exp(-x))",
        backend="NumPy (blog)",
    ),
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
    others = [
        name
        for name, system in by_name.items()
        if (system.backend or name) in chosen or (system.backend or name) not in PEERS
    ]
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
                if system.compiles:
                    start = perf_counter()
                    with np.errstate(all="ignore"):
                        system.function(input_scores, np.zeros_like(input_scores))
                    found["compiling_seconds"] = perf_counter() - start
                found |= measure(system.function, input_scores, rights[dtype])
                if dtype == "float32":
                    if isinstance(backend, Missing):
                        found["problem"] = backend.reason
                    elif backend is not None:
                        mean = _backend_mean(backend, case, x, t, data.gradient)
                        found["mean_error"] = mean_error(mean, right, x.size)
                    elif not system.backend:  # whose mean is listed with it
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
        "compiling_seconds": 0.0,
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
    if system.module == "tensorflow":  # which sets what the import reads
        import_module(".backends.tensorflow_function", __package__)
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
