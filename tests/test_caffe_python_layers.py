"""The Python layers for pycaffe: on made-up blobs, and in a real Caffe with published prototxts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sigmoid_ce as sce
from conftest import missing
from sigmoid_ce.bounds import GRADIENT_TERMS_EPS, LOSS_TERMS_EPS
from sigmoid_ce.caffe import data_folder, layers
from tests import realcaffe

PLAIN = layers.CustomSigmoidCrossEntropyLossLayer
WEIGHTED = layers.SigmoidCrossEntropyWeightLossLayer
MODULES = {PLAIN: "loss_layers", WEIGHTED: "SigmoidCrossEntropyWeightLossLayer"}

EPS = float(np.finfo(np.float32).eps)
# Of the sum of losses of one sign, relative: the elements' bound, and the top's rounding.
LOSS_TOLERANCE = (LOSS_TERMS_EPS + 0.5) * EPS
# What one pass may take from NumPy's allocator, in bytes: objects, not data.
SMALL = 20_000


# ---- The formulas of the published layers, in float64 ----


def plain(x: Any, t: Any) -> tuple[float, Any]:
    x, t = x.astype(np.float64), t.astype(np.float64).reshape(x.shape)
    loss = np.maximum(x, 0) - x * t + np.log(1 + np.exp(-np.abs(x)))
    return float(loss.sum()), 1 / (1 + np.exp(-x)) - t


def weighted(x: Any, t: Any, w: float) -> tuple[float, Any]:
    x, t = x.astype(np.float64), t.astype(np.float64).reshape(x.shape)
    loss = (1 - t) * x + (1 + (w - 1) * t) * np.log(1 + np.exp(-x))
    return float(loss.sum()), ((w - 1) * t + 1) / (1 + np.exp(-x)) - w * t


def gradient_tolerance(t: Any, w: float = 1.0) -> Any:
    """The bound of docs/numerics.md, where |u| + U sigmoid(-a) is at most 2 (1 - t + w t); and a
    rounding of the product with the top's diff."""
    t = t.astype(np.float64)
    return (GRADIENT_TERMS_EPS + 1) * EPS * 2 * (1 - t + w * t)


def data(shape: tuple[int, ...], soft: bool = False, seed: int = 1) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 3, shape).astype(np.float32)
    x.flat[::7] = 100
    x.flat[3::7] = -100
    t = rng.random(shape) if soft else rng.random(shape) < 0.3
    return x, t.astype(np.float32)


# ---- Made-up blobs ----


class Blob:
    """What the layers use of pycaffe's Blob."""

    def __init__(self, value: Any) -> None:
        self.data = np.array(value, np.float32)
        self.diff = np.full_like(self.data, 7)

    @property
    def shape(self) -> list[int]:
        return list(self.data.shape)

    @property
    def count(self) -> int:
        return self.data.size

    def reshape(self, *shape: int) -> None:
        if self.data.shape != shape:
            self.data = np.zeros(shape, np.float32)
            self.diff = np.zeros(shape, np.float32)


class Run:
    """A layer as Caffe treats it: setup and reshape, then reshape before every forward."""

    def __init__(self, cls: Any, *arrays: Any, param_str: str | None = None) -> None:
        # Where pycaffe is installed, only Caffe can call the constructor.
        self.layer = cls.__new__(cls)
        if param_str is None:
            param_str = '{"cls_weight": 100}' if cls is WEIGHTED else ""
        self.layer.param_str = param_str
        self.bottom = [Blob(array) for array in arrays]
        self.top = [Blob(np.zeros(()))]
        self.layer.setup(self.bottom, self.top)
        self.layer.reshape(self.bottom, self.top)

    def forward(self) -> float:
        self.layer.reshape(self.bottom, self.top)
        self.layer.forward(self.bottom, self.top)
        assert self.top[0].data.shape == (1,)
        return float(self.top[0].data[0])

    def backward(self, *propagate_down: bool, loss_weight: float = 1.0) -> Any:
        self.top[0].diff[...] = loss_weight
        down = propagate_down or (True,) + (False,) * (len(self.bottom) - 1)
        self.layer.backward(self.top, down, self.bottom)
        return self.bottom[0].diff


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize(
    ("shape", "targets_shape"),
    [
        ((64, 21), None),
        ((2, 3, 5, 7), (2, 105)),
        ((40,), (40, 1)),
        ((8, 1, 1, 1), (8,)),
        ((), (1,)),
    ],
)
def test_formulas(shape: tuple[int, ...], targets_shape: Any, soft: bool) -> None:
    x, t = data(shape, soft)
    t_blob = t.reshape(targets_shape or shape)
    for w, run in (
        (1.0, Run(PLAIN, x, t_blob)),
        (100.0, Run(WEIGHTED, x, t_blob)),
        (0.25, Run(WEIGHTED, x, t_blob, param_str="{'cls_weight': 0.25}")),
    ):
        want, gradient = plain(x, t) if w == 1.0 else weighted(x, t, w)
        assert run.forward() == pytest.approx(want, rel=LOSS_TOLERANCE)
        for loss_weight in (1.0, 2.0, -0.5):
            got = run.backward(loss_weight=loss_weight)
            bound = abs(loss_weight) * gradient_tolerance(t, w)
            assert np.all(np.abs(got - loss_weight * gradient) <= bound)


def test_propagate_down() -> None:
    x, t = data((4, 5))
    for cls in (PLAIN, WEIGHTED):
        run = Run(cls, x, t, np.ones((4, 5)))
        run.forward()
        assert np.all(run.backward(False, False, False) == 7)
        for i, what in ((1, "targets"), (2, "element weights")):
            down = [True, i == 1, i == 2]
            with pytest.raises(ValueError, match=f"{cls.__name__}: there is no gradient .* {what}"):
                run.backward(*down)
        run = Run(cls, x, t, np.ones((4, 5)), param_str='{"pos_weight": 3, "force_backward": true}')
        expected = Run(cls, x, t, param_str='{"pos_weight": 3}').backward()
        assert np.array_equal(run.backward(True, True, True), expected)
        assert np.all(run.bottom[1].diff == 0)
        assert np.all(run.bottom[2].diff == 0)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"pos_weight": 3},
    {"pos_weight": [0.5, 2, 30]},
    {"pos_weight": [4.0]},
    {"weight": 0.25},
    {"ignore_label": 0},
    {"ignore_label": -1, "normalization": "valid"},
    {"ignore_label": 1, "normalization": "VALID", "pos_weight": 2},
    {"normalization": "full"},
    {"normalization": "batch_size"},
    {"normalization": "none"},
    {"normalization": 12.5},
    {"normalize": True, "ignore_label": 0},
    {"normalize": False},
    {"normalize": False, "normalization": "NONE"},
    {"weight": [0.5, 2, 0]},
    {"weight": [4.0], "pos_weight": [1, 2, 3]},
    {"uncertain": "ignore", "normalization": "valid"},
    {"balance": "image", "negative_scale": 1.1, "uncertain": "ignore"},
    {"balance": "batch", "balance_per_channel": True, "normalization": "batch_size"},
    {"balance": "batch_mean", "ignore_label": -1, "normalization": "valid"},
    {"gamma": 2, "alpha": 0.25, "normalization": "FOREGROUND", "ignore_label": -1},
    {"label_smoothing": 0.1, "pos_weight": 3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["plain", "pos_weight", "cls_weight"])
def test_options_are_those_of_the_kernels(name: str, options: dict[str, Any]) -> None:
    x, t = data((6, 3, 5))
    t[1, 2] = -1
    known, given = dict(options), dict(options)
    if name != "plain":
        known.setdefault("pos_weight", 7)
        given.pop("pos_weight", None)
        given[name] = known["pos_weight"]
    if "normalize" not in known:
        known.setdefault("normalization", "none")
    if isinstance(known.get("normalization"), str):
        known["normalization"] = known["normalization"].lower()
    if isinstance(known.get("weight"), list):
        known["weight"] = np.array(known["weight"], np.float32).reshape(1, -1, 1)
    loss, gradient = sce.forward_backward(x, t, loss_weight=3, **known)
    for text in (json.dumps(given), repr(given), f" \n{given!r}\n"):
        run = Run(PLAIN if name == "plain" else WEIGHTED, x, t, param_str=text)
        assert run.forward() == np.float32(loss)
        assert np.array_equal(run.backward(loss_weight=3), gradient)


@pytest.mark.parametrize(
    ("shape", "broadcast"),
    [
        ((6, 3, 5), (6, 3, 5)),
        ((6, 15), (6, 3, 5)),
        ((6,), (6, 1, 1)),
        ((6, 3), (6, 3, 1)),
        ((1, 3, 1), (1, 3, 1)),
        ((1,), (1, 1, 1)),
        ((), (1, 1, 1)),
    ],
)
def test_third_bottom(shape: tuple[int, ...], broadcast: tuple[int, ...]) -> None:
    x, t = data((6, 3, 5))
    w = np.random.default_rng(5).integers(0, 4, shape).astype(np.float32)
    options: dict[str, Any] = {"weight": w.reshape(broadcast), "normalization": "none"}
    loss, gradient = sce.forward_backward(x, t, pos_weight=9, **options)
    run = Run(WEIGHTED, x, t, w, param_str='{"cls_weight": 9}')
    assert run.forward() == np.float32(loss)
    assert np.array_equal(run.backward(), gradient)


def test_other_batch_size() -> None:
    run = Run(WEIGHTED, *data((4, 6)), param_str='{"cls_weight": [1, 2, 3, 4, 5, 6]}')
    for n in (9, 0, 2):
        x, t = data((n, 6), seed=n)
        run.bottom = [Blob(x), Blob(t)]
        new = Run(WEIGHTED, x, t, param_str='{"cls_weight": [1, 2, 3, 4, 5, 6]}')
        assert run.forward() == new.forward()
        assert np.array_equal(run.backward(), new.backward())
    for x_shape, t_shape, text in (
        ((4, 6), (4, 5), r"targets: expected as many elements as .*\(4, 6\).*\(4, 5\)"),
        ((4, 5), (4, 5), r"param_str: cls_weight: expected one value, .*\(4, 5\), got 6"),
        ((30,), (30,), r"param_str: cls_weight: expected one value, .*\(30,\), got 6"),
    ):
        run.bottom = [Blob(np.zeros(x_shape)), Blob(np.zeros(t_shape))]
        with pytest.raises(ValueError, match=f"^SigmoidCrossEntropyWeightLossLayer: {text}$"):
            run.layer.reshape(run.bottom, run.top)


def test_options_that_need_axes() -> None:
    x, t = data((30,))
    for text, message in (
        ('{"balance": "image"}', r'balance: "image" expects .*, got shape \(30,\)'),
        (
            '{"balance": "batch", "balance_per_channel": true}',
            r"balance_per_channel: expected .*, got shape \(30,\)",
        ),
        ('{"weight": [1, 2]}', r"weight: expected one value, .*\(30,\), got 2"),
    ):
        with pytest.raises(ValueError, match=f"^CustomSigm.*Layer: param_str: {message}$"):
            Run(PLAIN, x, t, param_str=text)
    # One of a list serves all.
    run = Run(PLAIN, x, t, param_str='{"weight": [2], "balance": "batch"}')
    assert run.forward() == np.float32(
        sce.forward(x, t, weight=2, balance="batch", normalization="none")
    )


def test_no_arrays_of_its_own() -> None:
    x, t = data((1000, 300))
    for run in (Run(PLAIN, x, t), Run(WEIGHTED, x, t.reshape(-1), np.ones(1000))):
        run.forward()
        run.backward()
        tracemalloc.start()
        try:
            run.forward()
            run.backward()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < SMALL


def test_extreme_scores() -> None:
    x = np.array([[-1000.0, -89.0, 1000.0]], np.float32)
    for t, want in ((np.zeros_like(x), 1000.0), (np.ones_like(x), 100 * 1089.0)):
        run = Run(WEIGHTED, x, t)
        assert run.forward() == pytest.approx(want, rel=LOSS_TOLERANCE)
        assert np.all(np.isfinite(run.backward()))
    # A sum beyond float32: infinity, without a warning (which would be an error here).
    run = Run(PLAIN, np.full((2, 2), -1e38, np.float32), np.ones((2, 2), np.float32))
    assert run.forward() == np.inf
    run = Run(PLAIN, np.array([np.nan, 0], np.float32), np.zeros(2, np.float32))
    assert np.isnan(run.forward())
    assert np.isnan(run.backward()).tolist() == [True, False]
    # A top's diff that is not finite is a value too.
    run = Run(PLAIN, np.array([-200, 0], np.float32), np.zeros(2, np.float32))
    np.testing.assert_array_equal(run.backward(loss_weight=np.inf), [np.nan, np.inf])
    assert np.all(np.isnan(run.backward(loss_weight=np.nan)))


# ---- What is refused ----

REFUSED = [
    # Not a dict, or none that can be read as data.
    ("100", ValueError, "param_str: expected a dict as JSON or as a Python literal, .* got '100'"),
    ("[1]", ValueError, "param_str: expected a dict"),
    ("'pos_weight'", ValueError, "param_str: expected a dict"),
    ("{'pos_weight'}", ValueError, "param_str: expected a dict"),
    ("{'pos_weight': 1", ValueError, "param_str: expected a dict"),
    ("{**{'pos_weight': 1}}", ValueError, "param_str: unknown option None"),
    ("{[]: 1}", ValueError, r"param_str: unknown option \[\]"),
    ("dict(pos_weight=1)", ValueError, ".* not evaluated as code"),
    ("{'pos_weight': float('2')}", ValueError, ".* not evaluated as code"),
    ("{'pos_weight': 1\0}", ValueError, "param_str: expected a dict"),
    ("[" * 100_000, ValueError, "param_str: expected a dict"),
    ("{" + "9" * 5000 + ": 1}", ValueError, "param_str: expected a dict"),
    # Keys.
    (
        '{"loss_weight": 2}',
        ValueError,
        "param_str: unknown option 'loss_weight', expected .*weight",
    ),
    ("{1: 2}", ValueError, "param_str: unknown option 1, expected"),
    ('{"weight": 1, "weight": 2}', ValueError, "param_str: weight is there twice"),
    ("{'weight': 1, 'weight': 2}", ValueError, "param_str: weight is there twice"),
    # Types.
    (
        '{"pos_weight": "100"}',
        TypeError,
        "param_str: pos_weight: expected a number, or a list .*'100'",
    ),
    ('{"pos_weight": true}', TypeError, "param_str: pos_weight: expected a number"),
    ('{"pos_weight": []}', TypeError, "param_str: pos_weight: expected a number"),
    ('{"pos_weight": [1, "2"]}', TypeError, "param_str: pos_weight: expected a number"),
    ('{"pos_weight": {"a": 1}}', TypeError, "param_str: pos_weight: expected a number"),
    ('{"pos_weight": null}', TypeError, "param_str: pos_weight: expected a number.* got None"),
    ('{"weight": ["1", 2]}', TypeError, "param_str: weight: expected a number, or a list of"),
    ("{'weight': 1j}", TypeError, "param_str: weight: expected a number, or a list .*got 1j"),
    ('{"gamma": [2]}', TypeError, r"param_str: gamma: expected a number, got \[2\]"),
    ('{"alpha": null}', TypeError, "param_str: alpha: expected a number, got None"),
    ('{"label_smoothing": true}', TypeError, "param_str: label_smoothing: expected a number"),
    ('{"negative_scale": "1.1"}', TypeError, "param_str: negative_scale: expected a number"),
    ('{"uncertain": true}', TypeError, 'param_str: uncertain: expected "soft" or "ignore", got T'),
    ('{"balance": 1}', TypeError, 'param_str: balance: expected "none", "image", "batch" or "batc'),
    ('{"balance_per_channel": 1}', TypeError, "param_str: balance_per_channel: expected true or"),
    ('{"ignore_label": 255.0}', TypeError, "param_str: ignore_label: expected an int, got 255.0"),
    ('{"ignore_label": true}', TypeError, "param_str: ignore_label: expected an int"),
    ("{'normalization': None}", TypeError, "param_str: normalization: expected"),
    ('{"normalize": 1}', TypeError, "param_str: normalize: expected true or false, got 1"),
    ('{"force_backward": "no"}', TypeError, "param_str: force_backward: expected true or false"),
    # Values.
    ('{"pos_weight": -1}', ValueError, "param_str: pos_weight: .*-1"),
    ('{"pos_weight": [1, NaN]}', ValueError, "param_str: pos_weight: "),
    ('{"pos_weight": 1e39}', ValueError, "param_str: pos_weight: "),
    ('{"pos_weight": 1' + "0" * 400 + "}", ValueError, "param_str: pos_weight: "),
    ('{"pos_weight": [1' + "0" * 400 + "]}", ValueError, "param_str: pos_weight: "),
    ('{"weight": Infinity}', ValueError, "param_str: weight: "),
    ('{"weight": -0.5}', ValueError, "param_str: weight: "),
    ('{"weight": [1, -0.5]}', ValueError, "param_str: weight: .*-0.5"),
    ('{"weight": [1, NaN]}', ValueError, "param_str: weight: "),
    ('{"weight": [1' + "0" * 400 + "]}", ValueError, "param_str: weight: "),
    ('{"weight": [1, 2, 3]}', ValueError, r"param_str: weight: .*axis 1. of .*\(2, 2\), got 3"),
    ('{"gamma": -1}', ValueError, "param_str: gamma: .*-1"),
    ('{"alpha": 1.5}', ValueError, "param_str: alpha: .*1.5"),
    ('{"label_smoothing": 1}', ValueError, "param_str: label_smoothing: .*1"),
    ('{"negative_scale": -1}', ValueError, "param_str: negative_scale: .*-1"),
    (
        '{"balance": "imag"}',
        ValueError,
        'param_str: balance: expected "none", "image", "batch" or "batch_mean", got .imag',
    ),
    ('{"uncertain": "no"}', ValueError, 'param_str: uncertain: expected "soft" or "ignore", got .'),
    ('{"balance_per_channel": true}', ValueError, "param_str: balance_per_channel: "),
    ('{"ignore_label": 1' + "0" * 40 + "}", ValueError, "param_str: ignore_label: "),
    ('{"normalization": "mean"}', ValueError, "param_str: normalization: .*'mean'"),
    ('{"normalization": 0}', ValueError, "param_str: normalization: "),
    ('{"normalization": NaN}', ValueError, "param_str: normalization: "),
]


@pytest.mark.parametrize(("text", "error", "message"), REFUSED, ids=lambda v: str(v)[:30])
def test_param_str_refused(text: str, error: type[Exception], message: str) -> None:
    x, t = data((2, 2))
    with pytest.raises(
        error, match=f"(?s)^CustomSigmoidCrossEntropyLossLayer: {message}"
    ) as caught:
        Run(PLAIN, x, t, param_str=text)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", ValueError, "param_str: cls_weight is missing"),
        ("{}", ValueError, "param_str: cls_weight is missing"),
        ('{"cls_weight": "100"}', TypeError, "param_str: cls_weight: expected a number, or a list"),
        ('{"cls_weight": -1}', ValueError, "param_str: cls_weight: "),
        ('{"cls_weight": [1, -2]}', ValueError, "param_str: cls_weight: "),
        ('{"cls_weight": [1' + "0" * 400 + "]}", ValueError, "param_str: cls_weight: "),
        (
            '{"cls_weight": 1, "pos_weight": 1}',
            ValueError,
            "param_str: pos_weight and cls_weight are the same; give one",
        ),
    ],
)
def test_cls_weight_refused(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^SigmoidCrossEntropyWeightLossLayer: {message}"):
        Run(WEIGHTED, *data((2, 2)), param_str=text)


def test_cls_weight_is_of_the_weighted_layer() -> None:
    with pytest.raises(ValueError, match="unknown option 'cls_weight'"):
        Run(PLAIN, *data((2, 2)), param_str='{"cls_weight": 100}')


def test_bottoms_and_tops_refused() -> None:
    x, t = data((2, 3))
    for arrays in ((x,), (x, t, t, t)):
        with pytest.raises(ValueError, match=f"Layer: expected 2 bottoms.* got {len(arrays)}"):
            Run(PLAIN, *arrays)
    with pytest.raises(ValueError, match="weight and a third bottom"):
        Run(PLAIN, x, t, t, param_str='{"weight": 2}')
    for shape in ((3,), (2, 2), (2, 3, 2), (3, 3)):
        with pytest.raises(ValueError, match=r"weights: expected as many .*\(2, 3\)"):
            Run(PLAIN, x, t, np.ones(shape))
    layer = PLAIN.__new__(PLAIN)
    layer.param_str = ""
    with pytest.raises(ValueError, match="expected 1 top, the loss, got 2"):
        layer.setup([Blob(x), Blob(t)], [Blob(0), Blob(0)])


def test_code_is_not_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    touched = tmp_path / "touched"
    for text in (
        f"__import__('os').system('touch {touched}')",
        f"{{'cls_weight': __import__('os').system('touch {touched}')}}",
        f"{{'cls_weight': open({str(touched)!r}, 'w') and 1}}",
        f"{{__import__('pathlib').Path({str(touched)!r}).touch(): 1}}",
    ):
        with pytest.raises(ValueError, match="not evaluated as code"):
            Run(WEIGHTED, *data((2, 2)), param_str=text)
    assert not touched.exists()
    # Printed only where Python is embedded in another program.
    assert capfd.readouterr() == ("", "")


# ---- The modules ----


def python(code: str, cwd: Path, **env: str) -> str:
    """What a new interpreter prints, started in `cwd` without the caller's PYTHONPATH."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env={**clean, **env}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_modules_are_in_their_folder_only(tmp_path: Path) -> None:
    names = list(MODULES.values())
    find = f"from importlib.util import find_spec as f; print([f(n) for n in {names}])"
    assert python(find, tmp_path) == "[None, None]\n"
    folder = data_folder() / "pythonpath"
    assert sorted(path.stem for path in folder.glob("*.py")) == sorted(names)
    for cls, module in MODULES.items():
        code = f"import {module} as m, sigmoid_ce.caffe.layers as l; print(m.__all__, "
        code += f"m.{cls.__name__} is l.{cls.__name__})"
        assert python(code, tmp_path, PYTHONPATH=str(folder)) == f"['{cls.__name__}'] True\n"


def test_without_pycaffe(tmp_path: Path) -> None:
    """The module imports; but where Caffe makes a layer, the reason is told."""
    code = """
import sys
sys.modules["caffe"] = {stub}
from sigmoid_ce.caffe.layers import CustomSigmoidCrossEntropyLossLayer as Layer
Layer()
try:
    Layer(object())
except ImportError as error:
    print(error)
"""
    for stub, reason in (("None", "ModuleNotFoundError: "), ("sys", "AttributeError: ")):
        printed = python(code.format(stub=stub), tmp_path)
        assert printed.startswith(
            "CustomSigmoidCrossEntropyLossLayer: pycaffe could not be imported"
        )
        assert reason in printed
        assert "PYTHONPATH" in printed


# ---- In a real Caffe ----

BATCH, INPUTS, CHANNELS = 6, 8, 5


@pytest.fixture(scope="module")
def stock() -> realcaffe.CaffeBuild:
    """Caffe 1.0 as published, with its pycaffe."""
    try:
        caffe = realcaffe.stock()
    except realcaffe.Missing as error:
        missing(str(error))
        raise
    if caffe.pycaffe is None:
        pytest.skip(caffe.no_pycaffe)  # not possible with this Python
    return caffe


def environment(caffe: realcaffe.CaffeBuild) -> dict[str, str]:
    path = caffe.env()["PYTHONPATH"]
    return {"PYTHONPATH": os.pathsep.join([path, str(data_folder() / "pythonpath")])}


def run_python(caffe: realcaffe.CaffeBuild, code: str, folder: Path, *arguments: str) -> str:
    return caffe.python(code, *arguments, cwd=folder, env=environment(caffe)).stdout


# As they are in use.
PUBLISHED = {
    PLAIN: """
layer { type: "Python" name: "loss" bottom: "score" bottom: "label" top: "loss"
  python_param { module: "loss_layers" layer: "CustomSigmoidCrossEntropyLossLayer" }
  loss_weight: 1 }
""",
    WEIGHTED: r"""
layer { type: "Python" name: "loss" bottom: "score" bottom: "label" top: "loss"
  python_param { module: "SigmoidCrossEntropyWeightLossLayer"
                 layer: "SigmoidCrossEntropyWeightLossLayer"
                 param_str: "{\"cls_weight\":100}" }
  loss_weight: 1 }
""",
}


def layer_text(
    cls: Any, param_str: str = "", *, bottoms: tuple[str, ...] = ("score", "label"), more: str = ""
) -> str:
    lines = "".join(f'bottom: "{bottom}" ' for bottom in bottoms)
    return (
        f'layer {{ type: "Python" name: "loss" {lines} top: "loss" {more} loss_weight: 1\n'
        f'  python_param {{ module: "{MODULES[cls]}" layer: "{cls.__name__}"\n'
        f"    param_str: {json.dumps(param_str)} }} }}\n"
    )


def net_text(loss: str, head: str = "", batch: int = BATCH) -> str:
    """Inputs, one layer that learns, and the loss."""
    inputs = {"data": INPUTS, "label": CHANNELS, "weights": CHANNELS}
    text = head + "\n"
    for name, width in inputs.items():
        text += f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ '
        text += f"dim: {batch} dim: {width} }} }} }}\n"
    text += f"""layer {{ name: "score" type: "InnerProduct" bottom: "data" top: "score"
  inner_product_param {{ num_output: {CHANNELS} bias_term: false }} }}
layer {{ name: "unused" type: "Silence" bottom: "weights" }}
"""
    return text + loss


# Runs each net of a JSON file {name: prototxt} forward and backward, for the shapes of its inputs.
RUN_NETS = """
import json, sys
import numpy as np
import caffe

nets = json.load(open(sys.argv[1]))
values = np.load(sys.argv[2])
results = {}
errors = {}
for name, text in nets.items():
    with open("net.prototxt", "w") as file:
        file.write(text)
    try:
        net = caffe.Net("net.prototxt", caffe.TRAIN)
        for blob in ("data", "label", "weights"):
            net.blobs[blob].reshape(*values[blob].shape)
            net.blobs[blob].data[...] = values[blob]
        net.params["score"][0].data[...] = values["parameters"]
        net.forward()
        net.backward()
        results[name + ".loss"] = net.blobs["loss"].data.copy()
        results[name + ".score"] = net.blobs["score"].data.copy()
        results[name + ".gradient"] = net.blobs["score"].diff.copy()
        results[name + ".parameters"] = net.params["score"][0].diff.copy()
    except Exception as error:
        errors[name] = type(error).__name__ + ": " + str(error)
np.savez("results.npz", **results)
json.dump(errors, open("errors.json", "w"))
"""


def inputs(batch: int = BATCH) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    label = (rng.random((batch, CHANNELS)) < 0.4).astype(np.float32)
    return {
        "data": rng.normal(0, 2, (batch, INPUTS)).astype(np.float32),
        "label": label,
        "weights": rng.random((batch, CHANNELS)).astype(np.float32),
        "parameters": rng.normal(0, 1, (CHANNELS, INPUTS)).astype(np.float32),
    }


def run_nets(
    caffe: realcaffe.CaffeBuild, folder: Path, nets: dict[str, str], values: dict[str, Any]
) -> tuple[Any, dict[str, str]]:
    (folder / "nets.json").write_text(json.dumps(nets))
    np.savez(folder / "values.npz", **values)
    run_python(caffe, RUN_NETS, folder, "nets.json", "values.npz")
    with np.load(folder / "results.npz") as results:
        return dict(results), json.loads((folder / "errors.json").read_text())


def test_published_prototxts(stock: realcaffe.CaffeBuild, tmp_path: Path) -> None:
    """Value and gradient by the formulas; a loss_weight is a factor on the gradient; and the
    built-in layer has the same gradient, but for its divisor."""
    built_in = """
layer { name: "loss" type: "SigmoidCrossEntropyLoss" bottom: "score" bottom: "label" top: "loss" }
"""
    nets = {cls.__name__: net_text(text) for cls, text in PUBLISHED.items()}
    for cls, text in PUBLISHED.items():
        nets[f"{cls.__name__}*2"] = net_text(text.replace("loss_weight: 1", "loss_weight: 2"))
        nets[f"{cls.__name__}*0"] = net_text(text.replace("loss_weight: 1", ""))
    nets["built-in"] = net_text(built_in)
    # The batch is not the one of the prototxt.
    values = inputs(BATCH + 3)
    results, errors = run_nets(stock, tmp_path, nets, values)
    assert errors == {}
    t = values["label"]
    for cls, w in ((PLAIN, 1.0), (WEIGHTED, 100.0)):
        x = results[f"{cls.__name__}.score"]
        assert x.shape == t.shape
        assert np.ptp(x) > 5
        loss, gradient = plain(x, t) if cls is PLAIN else weighted(x, t, w)
        bound = gradient_tolerance(t, w)
        for factor, name in ((1, cls.__name__), (2, f"{cls.__name__}*2")):
            assert results[f"{name}.loss"].shape == (1,)
            assert float(results[f"{name}.loss"][0]) == pytest.approx(loss, rel=LOSS_TOLERANCE)
            got = results[f"{name}.gradient"]
            assert np.all(np.abs(got - factor * gradient) <= factor * bound)
        # Without loss_weight, the value is there, and nothing learns.
        assert results[f"{cls.__name__}*0.loss"] == results[f"{cls.__name__}.loss"]
        assert np.all(results[f"{cls.__name__}*0.parameters"] == 0)
    # Of the built-in layer: sigmoid(x) - t in float32, with errors of an ulp of 1 or two.
    n = t.shape[0]
    ours = results[f"{PLAIN.__name__}.gradient"] / n
    assert np.allclose(ours, results["built-in.gradient"], rtol=0, atol=4 * EPS / n)
    assert float(results[f"{PLAIN.__name__}.loss"][0]) / n == pytest.approx(
        float(results["built-in.loss"]), rel=t.size * EPS
    )


def test_options_in_caffe(stock: realcaffe.CaffeBuild, tmp_path: Path) -> None:
    """Quotes, lists, and a third bottom, all the way through a prototxt; shared blobs too."""
    per_channel = [1, 2, 3, 4, 50]
    third = ("score", "label", "weights")
    layers_of: dict[str, tuple[str, dict[str, Any]]] = {
        "single quotes": (layer_text(WEIGHTED, "{'cls_weight': 3}"), {"pos_weight": 3}),
        "per channel": (
            layer_text(WEIGHTED, f'{{"cls_weight": {per_channel}}}'),
            {"pos_weight": per_channel},
        ),
        "valid": (
            layer_text(PLAIN, '{"ignore_label": 1, "normalization": "VALID"}'),
            {"ignore_label": 1, "normalization": "valid"},
        ),
        "number": (
            layer_text(PLAIN, '{"weight": 0.5, "normalization": 10}'),
            {"weight": 0.5, "normalization": 10},
        ),
        "family": (
            layer_text(
                WEIGHTED,
                '{"cls_weight": 3, "balance": "image", "uncertain": "ignore", "gamma": 2, '
                '"alpha": 0.25, "normalization": "foreground"}',
            ),
            {
                "pos_weight": 3,
                "balance": "image",
                "uncertain": "ignore",
                "gamma": 2,
                "alpha": 0.25,
                "normalization": "foreground",
            },
        ),
        "third": (layer_text(PLAIN, bottoms=third), {"weight": inputs()["weights"]}),
        "force": (layer_text(PLAIN, '{"force_backward": true}'), {}),
        "down": (
            layer_text(PLAIN, more="propagate_down: true propagate_down: false"),
            {},
        ),
        # The scores go to another layer too, so that their diff is added up from two.
        "split": (
            layer_text(PLAIN)
            + 'layer { name: "power" type: "Power" bottom: "score" top: "power" }\n'
            + 'layer { name: "sum" type: "Reduction" bottom: "power" top: "sum" loss_weight: 1 }\n',
            {},
        ),
    }
    nets = {name: net_text(text) for name, (text, _) in layers_of.items()}
    nets["force"] = net_text(layers_of["force"][0], head="force_backward: true")
    values = inputs()
    results, errors = run_nets(stock, tmp_path, nets, values)
    assert errors == {}
    for name, (_, options) in layers_of.items():
        options = {"normalization": "none", **options}
        loss, gradient = sce.forward_backward(results[f"{name}.score"], values["label"], **options)
        assert results[f"{name}.loss"] == np.float32(loss), name
        if name == "split":
            gradient = gradient + np.float32(1)
        assert np.array_equal(results[f"{name}.gradient"], gradient), name


def test_refused_in_caffe(stock: realcaffe.CaffeBuild, tmp_path: Path) -> None:
    """An exception of Python with our message, and no code run."""
    touched = tmp_path / "touched"
    learned = 'layer { name: "l" type: "InnerProduct" bottom: "data" top: "learned"\n'
    learned += f"inner_product_param {{ num_output: {CHANNELS} }} }}\n"
    cases = {
        "code": (
            layer_text(WEIGHTED, f"__import__('os').system('touch {touched}')"),
            "not evaluated as code",
        ),
        "unknown": (layer_text(PLAIN, '{"beta": 1}'), "unknown option 'beta'"),
        "type": (layer_text(WEIGHTED, '{"cls_weight": "1"}'), "cls_weight: expected a number"),
        "missing": (layer_text(WEIGHTED), "cls_weight is missing"),
        "channels": (layer_text(WEIGHTED, "{'cls_weight': [1, 2]}"), "one per channel"),
        "count": (layer_text(PLAIN, bottoms=("score", "data")), "targets: expected as many"),
        "bottoms": (layer_text(PLAIN, bottoms=("score",)), "expected 2 bottoms"),
        "learned": (
            learned + layer_text(PLAIN, bottoms=("score", "learned")),
            "there is no gradient with respect to targets",
        ),
        "force": (layer_text(PLAIN), "there is no gradient with respect to targets"),
    }
    nets = {name: net_text(text) for name, (text, _) in cases.items()}
    nets["force"] = net_text(cases["force"][0], head="force_backward: true")
    results, errors = run_nets(stock, tmp_path, nets, inputs())
    assert results == {}
    for name, (text, message) in cases.items():
        cls = WEIGHTED if WEIGHTED.__name__ in text else PLAIN
        assert f"Error: {cls.__name__}: " in errors[name]
        assert message in errors[name]
    assert not touched.exists()


TRAIN = """
import sys
import numpy as np
import caffe

values = np.load("values.npz")
solver = caffe.SGDSolver("solver.prototxt")
for blob in ("data", "label"):
    solver.net.blobs[blob].data[...] = values[blob]
solver.net.params["score"][0].data[...] = values["parameters"]
losses = []
for _ in range(int(sys.argv[1])):
    solver.step(1)
    losses.append(float(solver.net.blobs["loss"].data[0]))
np.savez("results.npz", losses=losses, parameters=solver.net.params["score"][0].data)
"""


@pytest.mark.parametrize("cls", [PLAIN, WEIGHTED], ids=lambda cls: cls.__name__)
def test_training(stock: realcaffe.CaffeBuild, tmp_path: Path, cls: Any) -> None:
    """Gradient descent in Caffe goes the way of gradient descent in NumPy, in float64."""
    steps, rate = 10, 0.02 if cls is PLAIN else 0.001
    text = PUBLISHED[cls].replace("loss_weight: 1", "loss_weight: 0.5")
    (tmp_path / "net.prototxt").write_text(net_text(text))
    (tmp_path / "solver.prototxt").write_text(
        f'net: "net.prototxt" base_lr: {rate} lr_policy: "fixed" momentum: 0 weight_decay: 0\n'
        f"max_iter: {steps} display: 0 snapshot_after_train: false solver_mode: CPU\n"
    )
    values = inputs()
    np.savez(tmp_path / "values.npz", **values)
    run_python(stock, TRAIN, tmp_path, str(steps))
    parameters = values["parameters"].astype(np.float64)
    losses = []
    for _ in range(steps):
        x = values["data"] @ parameters.T
        formula = plain(x, values["label"]) if cls is PLAIN else weighted(x, values["label"], 100.0)
        losses.append(formula[0])
        parameters -= rate * 0.5 * formula[1].T @ values["data"]
    with np.load(tmp_path / "results.npz") as results:
        # Caffe multiplies matrices and updates parameters in float32: a few roundings each step.
        np.testing.assert_allclose(results["losses"], losses, rtol=steps * 20 * EPS)
        np.testing.assert_allclose(results["parameters"], parameters, atol=steps * 20 * EPS)
        assert results["losses"][-1] < 0.7 * results["losses"][0]
        assert np.all(np.diff(results["losses"]) < 0)


THREADS = """
import threading
import numpy as np
import caffe

def passes(seed):
    net = caffe.Net("net.prototxt", caffe.TRAIN)
    rng = np.random.default_rng(seed)
    net.blobs["score"].data[...] = rng.normal(0, 3, net.blobs["score"].data.shape)
    net.blobs["label"].data[...] = rng.random(net.blobs["label"].data.shape) < 0.3
    made = []
    for _ in range(5):
        net.blobs["scores"].diff[...] = 7
        net.forward()
        net.backward()
        made.append(net.blobs["loss"].data.tobytes() + net.blobs["scores"].diff.tobytes())
    assert len(set(made)) == 1
    results[seed] = made[0]

results = {}
for seed in range(4):
    passes(seed)
alone = dict(results)
assert len(set(alone.values())) == 4
results.clear()
threads = [threading.Thread(target=passes, args=(seed,)) for seed in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(results == alone)
"""


def test_nets_in_threads(stock: realcaffe.CaffeBuild, tmp_path: Path) -> None:
    """The kernels release the GIL, so that another net runs while a layer computes."""
    size = "shape { dim: 50 dim: 4000 }"
    (tmp_path / "net.prototxt").write_text(
        "force_backward: true\n"
        f'layer {{ name: "score" type: "Input" top: "score" input_param {{ {size} }} }}\n'
        f'layer {{ name: "label" type: "Input" top: "label" input_param {{ {size} }} }}\n'
        'layer { name: "scores" type: "Power" bottom: "score" top: "scores" }\n'
        + layer_text(
            WEIGHTED, "{'cls_weight': 5, 'force_backward': True}", bottoms=("scores", "label")
        )
    )
    assert run_python(stock, THREADS, tmp_path) == "True\n"


def test_command_line(stock: realcaffe.CaffeBuild, tmp_path: Path) -> None:
    """`caffe train` finds the modules, learns, and shows our message where it cannot."""
    source = f"""
layer {{ name: "data" type: "DummyData" top: "data" top: "label" dummy_data_param {{
  shape {{ dim: {BATCH} dim: {INPUTS} }} shape {{ dim: {BATCH} dim: {CHANNELS} }}
  data_filler {{ type: "constant" value: 1 }} data_filler {{ type: "constant" value: 1 }} }} }}
layer {{ name: "score" type: "InnerProduct" bottom: "data" top: "score"
  inner_product_param {{ num_output: {CHANNELS} weight_filler {{ type: "constant" }} }} }}
"""
    (tmp_path / "solver.prototxt").write_text(
        'net: "net.prototxt" base_lr: 0.001 lr_policy: "fixed" max_iter: 20 display: 1\n'
        "snapshot_after_train: false solver_mode: CPU\n"
    )

    def train(loss: str) -> Any:
        (tmp_path / "net.prototxt").write_text(source + loss)
        return stock.run(
            "train", "--solver=solver.prototxt", cwd=tmp_path, env=environment(stock), check=False
        )

    done = train(PUBLISHED[WEIGHTED])
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [
        float(s.split("loss = ")[1].split()[0])
        for s in done.stderr.splitlines()
        if "Iteration" in s and "loss = " in s
    ]
    # All scores are 0 at first, and all targets 1.
    assert losses[0] == pytest.approx(100 * BATCH * CHANNELS * np.log(2), rel=1e-4)  # as printed
    assert losses[-1] < 0.5 * losses[0]
    done = train(layer_text(WEIGHTED, '{"class_weight": 100}'))
    assert done.returncode != 0
    assert (
        f"ValueError: {WEIGHTED.__name__}: param_str: unknown option 'class_weight'" in done.stderr
    )
