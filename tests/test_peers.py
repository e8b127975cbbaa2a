"""PyTorch, TensorFlow, JAX with the formula of optax, and scikit-learn compute the same loss.

The tolerances are the peers' errors, not ours (test_accuracy.py has those): every peer forms the
loss of an element with an absolute error of a few eps times the size of its terms, and loses the
tails altogether (0 instead of exp(-|x|) from |x| = 17 on in float32). A wrong formula, weight or
divisor is off by far more.
"""

from __future__ import annotations

import importlib
import os
import warnings
from typing import Any

import numpy as np
import pytest

import sigmoid_ce as sce
from conftest import missing

# Roundings of a peer in units of eps times the terms: 1 - t, p t, their products, exp, log1p, sums.
PEER_ROUNDINGS = 16
# A peer's mean: its sum in blocks of its own precision adds no more than this many eps of the
# result.
PEER_SUM = 64

DTYPES = [np.float32, np.float64]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
SHAPE = (6, 5, 40)


def load(name: str) -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the peers are not ours
        try:
            module = importlib.import_module(name)
        except ImportError:
            missing(name)
    if name == "tensorflow":
        # Its first use in a process fixes these: the benchmark's tests want one of each.
        threading = module.config.threading
        if threading.get_intra_op_parallelism_threads() != 1:
            threading.set_intra_op_parallelism_threads(1)
            threading.set_inter_op_parallelism_threads(1)
    return module


@pytest.fixture(scope="module")
def torch() -> Any:
    return load("torch")


@pytest.fixture(scope="module")
def tf() -> Any:
    return load("tensorflow")


def data(dtype: Any, soft: bool = True) -> tuple[Any, Any, Any, Any]:
    """Scores (zeros and tails among them), targets, weights, pos_weight by channel."""
    rng = np.random.default_rng(9)
    x = rng.normal(0, 5, SHAPE).astype(dtype)
    x.flat[:8] = [0, -0.0, 50, -50, 120, -120, 700, -700]
    t = rng.random(SHAPE) if soft else rng.integers(0, 2, SHAPE)
    w = rng.uniform(0, 3, SHAPE)
    p = rng.uniform(0.1, 9, (SHAPE[1], 1))
    return x, t.astype(dtype), w.astype(dtype), p.astype(dtype)


def terms(x: Any, t: Any, w: Any, p: Any) -> Any:
    """Size of the terms of each loss (float64)."""
    x, t, w, p = (np.asarray(v, np.float64) for v in (x, t, w, p))
    return w * ((1 + np.abs(x)) * (np.abs(1 - t) + p * np.abs(t)))


def slopes(t: Any, w: Any, p: Any) -> Any:
    t, w, p = (np.asarray(v, np.float64) for v in (t, w, p))
    return w * (np.abs(1 - t) + p * np.abs(t))


def options_of(use_w: bool, use_p: bool, w: Any, p: Any) -> dict[str, Any]:
    options = {}
    if use_w:
        options["weight"] = w
    if use_p:
        options["pos_weight"] = p
    return options


@dtypes
@pytest.mark.parametrize("use_p", [False, True], ids=["", "pos_weight"])
@pytest.mark.parametrize("use_w", [False, True], ids=["", "weight"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_torch(
    torch: Any, dtype: Any, use_p: bool, use_w: bool, reduction: str, soft: bool
) -> None:
    x, t, w, p = data(dtype, soft)
    options = options_of(use_w, use_p, w, p)
    scores = torch.tensor(x, requires_grad=True)
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(
        scores,
        torch.from_numpy(t),
        weight=torch.from_numpy(w) if use_w else None,
        pos_weight=torch.from_numpy(p) if use_p else None,
        reduction=reduction,
    )
    (theirs.sum() if reduction == "none" else theirs).backward()
    slope = scores.grad.numpy()
    theirs = theirs.detach().numpy()

    eps = float(np.finfo(dtype).eps)
    size = terms(x, t, w if use_w else 1, p if use_p else 1)
    gradient_size = slopes(t, w if use_w else 1, p if use_p else 1) * np.ones(SHAPE)
    mode = "full" if reduction == "mean" else "none"
    divisor = x.size if reduction == "mean" else 1
    if reduction == "none":
        ours = sce.elementwise(x, t, **options)
        assert np.all(np.abs(ours - theirs) <= PEER_ROUNDINGS * eps * size)
    else:
        loss = sce.forward(x, t, normalization=mode, **options)
        room = (PEER_ROUNDINGS + PEER_SUM) * eps * np.sum(size) / divisor
        assert abs(loss - float(theirs)) <= room
    ours = sce.backward(x, t, normalization=mode, **options)
    assert np.all(np.abs(ours - slope) <= PEER_ROUNDINGS * eps * gradient_size / divisor)


@dtypes
def test_torch_tensors_and_channel_pos_weight(torch: Any, dtype: Any) -> None:
    """PyTorch's own pos_weight of shape (C, 1, 1) for NCHW, and tensors in and out."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(0, 3, (2, 3, 4, 5)).astype(dtype))
    t = torch.from_numpy(rng.integers(0, 2, (2, 3, 4, 5)).astype(dtype))
    p = torch.tensor([0.5, 2.0, 9.0], dtype=x.dtype).reshape(3, 1, 1)
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(x, t, pos_weight=p)
    assert sce.forward(x, t, pos_weight=p, normalization="full") == pytest.approx(
        float(theirs), rel=PEER_SUM * float(np.finfo(dtype).eps)
    )
    losses = sce.elementwise(x, t, pos_weight=p)
    assert isinstance(losses, torch.Tensor)
    assert losses.dtype == x.dtype


@dtypes
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_tensorflow(tf: Any, dtype: Any, soft: bool) -> None:
    x, t, _, _ = data(dtype, soft)
    scores = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(scores)
        theirs = tf.nn.sigmoid_cross_entropy_with_logits(labels=tf.constant(t), logits=scores)
        total = tf.reduce_sum(theirs)
    slope = tape.gradient(total, scores).numpy()
    eps = float(np.finfo(dtype).eps)
    ours = sce.elementwise(x, t)
    assert np.all(np.abs(ours - theirs.numpy()) <= PEER_ROUNDINGS * eps * terms(x, t, 1, 1))
    ours = sce.backward(x, t, normalization="none")
    assert np.all(np.abs(ours - slope) <= PEER_ROUNDINGS * eps * slopes(t, 1, 1))


@dtypes
@pytest.mark.parametrize("pos_weight", [0.001, 0.5, 1.0, 12.0])
def test_tensorflow_weighted(tf: Any, dtype: Any, pos_weight: float) -> None:
    x, t, _, _ = data(dtype)
    scores = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(scores)
        theirs = tf.nn.weighted_cross_entropy_with_logits(
            labels=tf.constant(t), logits=scores, pos_weight=pos_weight
        )
        total = tf.reduce_sum(theirs)
    slope = tape.gradient(total, scores).numpy()
    # Its factor 1 + (p - 1) t keeps p t only to an eps of 1, so p counts as 1 at least.
    least = max(1.0, pos_weight)
    eps = float(np.finfo(dtype).eps)
    ours = sce.elementwise(x, t, pos_weight=pos_weight)
    assert np.all(np.abs(ours - theirs.numpy()) <= PEER_ROUNDINGS * eps * terms(x, t, 1, least))
    ours = sce.backward(x, t, pos_weight=pos_weight, normalization="none")
    room = PEER_ROUNDINGS * eps * slopes(t, 1, least)
    room[x == 0] = np.inf  # it differentiates |x| and max(-x, 0) apart, each with slope 0 there
    assert np.all(np.abs(ours - slope) <= room)


@dtypes
def test_jax(dtype: Any) -> None:
    """The formula of optax, and JAX's arrays in and out."""
    jax = load("jax")
    jnp = load("jax.numpy")
    if dtype == np.float64:
        jax.config.update("jax_enable_x64", True)
    try:
        x, t, _, _ = data(dtype)

        def losses(scores: Any) -> Any:
            log_p, log_not_p = jax.nn.log_sigmoid(scores), jax.nn.log_sigmoid(-scores)
            return -t * log_p - (1 - t) * log_not_p

        scores = jnp.asarray(x)
        theirs = np.asarray(losses(scores))
        slope = np.asarray(jax.grad(lambda v: jnp.sum(losses(v)))(scores))
        eps = float(np.finfo(dtype).eps)
        ours = sce.elementwise(scores, jnp.asarray(t))
        assert isinstance(ours, jax.Array)
        assert np.all(np.abs(np.asarray(ours) - theirs) <= PEER_ROUNDINGS * eps * terms(x, t, 1, 1))
        ours = sce.backward(x, t, normalization="none")
        assert np.all(np.abs(ours - slope) <= PEER_ROUNDINGS * eps * slopes(t, 1, 1))
    finally:
        jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weights"])
def test_sklearn_log_loss(weighted: bool) -> None:
    """log_loss takes probabilities: rounding one near 1 costs exp(|x|) eps, so |x| <= 6 here."""
    metrics, special = load("sklearn.metrics"), load("scipy.special")
    rng = np.random.default_rng(3)
    x = np.clip(rng.normal(0, 2, 5000), -6, 6)
    t = rng.integers(0, 2, x.size)
    w = rng.uniform(0, 3, x.size) if weighted else None
    theirs = metrics.log_loss(t, special.expit(x), sample_weight=w, labels=[0, 1])
    divisor = float(np.sum(w)) if w is not None else float(x.size)
    ours = sce.forward(x, t, weight=w, normalization=divisor)
    rounding = np.exp(6) * np.finfo(np.float64).eps
    assert ours == pytest.approx(theirs, rel=PEER_ROUNDINGS * rounding)


def test_sklearn_log_loss_as_pos_weight() -> None:
    """pos_weight is a sample weight of p on the positives."""
    metrics, special = load("sklearn.metrics"), load("scipy.special")
    rng = np.random.default_rng(4)
    x = np.clip(rng.normal(-1, 2, 5000), -6, 6)
    t = (rng.random(x.size) < 0.1).astype(np.uint8)
    w = np.where(t == 1, 9.0, 1.0)
    theirs = metrics.log_loss(t, special.expit(x), sample_weight=w, labels=[0, 1])
    ours = sce.forward(x, t, pos_weight=9.0, normalization=float(np.sum(w)))
    rounding = np.exp(6) * np.finfo(np.float64).eps
    assert ours == pytest.approx(theirs, rel=PEER_ROUNDINGS * rounding)
