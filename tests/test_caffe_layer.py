"""The layer in a real Caffe: its C++ tests, parity with the built-in layer, whole builds.

Stock Caffe is built once and cached (tests/realcaffe); the overlay's objects are linked beside its
own. Each Caffe runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

import oracle
from conftest import ROOT, missing
from sigmoid_ce import bounds
from sigmoid_ce.caffe import proto
from tests.realcaffe import (
    CPU_TESTS,
    LAYER_TEST,
    CaffeBuild,
    Missing,
    bvlc_source,
    copy_tree,
    fork_source,
    gtest_alone,
    gtest_program,
    run_tests,
    stock,
    with_overlay,
)
from tests.realcaffe.cache import digest, entry, jobs

T = TypeVar("T")

OVERLAY = ROOT / "caffe"
OWN_TEST = OVERLAY / LAYER_TEST
PROGRAMS = ROOT / "tests/native/caffe"


def built(make: Callable[[], T]) -> T:
    """What make() returns; skips, with the reason, where this machine cannot have it."""
    try:
        return make()
    except Missing as error:
        missing(str(error))
        raise


@pytest.fixture(scope="module")
def builtin() -> CaffeBuild:
    """BVLC Caffe as published."""
    return built(stock)


@pytest.fixture(scope="module")
def ours() -> CaffeBuild:
    return built(lambda: with_overlay(OVERLAY))


# C++ tests.


def test_own_tests(ours: CaffeBuild) -> None:
    assert run_tests(gtest_program(ours, [OWN_TEST])) >= 57


def test_published_tests(ours: CaffeBuild) -> None:
    """Caffe's own test of its built-in layer, as it is."""
    assert run_tests(gtest_program(ours, [ours.source / LAYER_TEST])) == 6


def test_own_tests_find_the_builtins_faults(builtin: CaffeBuild) -> None:
    """So they can fail. Other tests would ask the built-in for what it does not have."""
    failing, passing = ("ConfidentScores", "ManyElements"), ("IgnoredOnly", "TargetsOutside")
    names = [f"SigmoidCrossEntropyLossLayerTest/0.Test{name}" for name in (*failing, *passing)]
    command = [str(gtest_program(builtin, [OWN_TEST])), f"--gtest_filter={':'.join(names)}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    ended = r"^\[ +(OK|FAILED) +\] \S+\.Test(\w+).* ms\)$"
    outcomes = {name: how for how, name in re.findall(ended, done.stdout, re.MULTILINE)}
    assert outcomes == dict.fromkeys(failing, "FAILED") | dict.fromkeys(passing, "OK"), done.stdout


@pytest.mark.parametrize("tests", ["published", "own"])
def test_older_fork(tests: str) -> None:
    tree = built(fork_source)
    file = tree / LAYER_TEST if tests == "published" else OWN_TEST
    program = built(lambda: gtest_alone(tree, OVERLAY, [file]))
    assert run_tests(program) >= (4 if tests == "published" else 40)


# As earlier versions had it.
FIRST_MESSAGE = """
message SigmoidCrossEntropyLossParameter {
  repeated double pos_weight = 1;
  optional double weight = 2;
  optional double divisor = 3;
}
"""
FIELD = "optional SigmoidCrossEntropyLossParameter sigmoid_cross_entropy_loss_param = 150;"


def tree_with_message(which: str) -> Path:
    """A copy of the BVLC tree whose caffe.proto has the layer's message, first or as installed."""
    tree = bvlc_source()
    text = (tree / "src/caffe/proto/caffe.proto").read_text()
    assert "sigmoid_cross_entropy_loss_param" not in text
    if which == "installed":
        text, _ = proto.add(text)
    else:
        start = "message LayerParameter {\n"
        assert text.count(start) == 1
        text = text.replace(start, f"{start}  {FIELD}\n") + FIRST_MESSAGE

    def make(folder: Path) -> None:
        copy_tree(tree, folder / "tree")
        (folder / "tree/src/caffe/proto/caffe.proto").write_text(text)

    return entry(f"source-message-{digest(str(tree), text)}", make) / "tree"


@pytest.mark.parametrize("which", ["first", "installed"])
def test_message(which: str) -> None:
    """Options by their own message in caffe.proto; the same sources compile with and without, and
    with one that lacks the later fields."""
    program = built(lambda: gtest_alone(tree_with_message(which), OVERLAY, [OWN_TEST]))
    assert run_tests(program) >= 57
    header = (program.parents[1] / "include/caffe/proto/caffe.pb.h").read_text()
    assert "has_sigmoid_cross_entropy_loss_param" in header
    assert ("has_negative_scale" in header) == (which == "installed")


def test_memory(ours: CaffeBuild) -> None:
    """No allocation after Reshape but for what is counted; less than 64 KiB per layer."""
    if os.uname().sysname != "Linux":
        missing("the GNU C library")
    assert run_tests(gtest_program(ours, [PROGRAMS / "memory.cpp"])) == 12


# Parity with the built-in layer.


@dataclass
class Case:
    """A net of two inputs and the loss; scores and targets in float64."""

    text: str
    scores: Any
    targets: Any
    loss_weight: float
    divisor: int
    ignored: Any
    hard: bool


SHAPES = [(10, 5), (7,), (2, 3, 5, 4), (1, 4, 21), (1, 1, 1, 1), (3, 1, 40)]
# What loss_param holds, and the mode it comes to.
MODES = [
    ("", "batch_size"),
    ("normalization: FULL", "full"),
    ("normalization: VALID", "valid"),
    ("normalization: BATCH_SIZE", "batch_size"),
    ("normalization: NONE", "none"),
    ("normalize: true", "valid"),
    ("normalize: false", "batch_size"),
    ("normalize: true normalization: NONE", "none"),
]
TARGETS = ["hard", "soft", "outside", "labels"]
LABELS: list[int | None] = [None, 0, 1, -1, 255]
LOSS_WEIGHTS = [1.0, 3.7, -0.25, 0.0]


def make_targets(kind: str, shape: tuple[int, ...], rng: Any) -> Any:
    soft = rng.random(shape)
    hard = np.floor(soft * 2)
    if kind == "labels":
        return rng.choice([-1.0, 0.0, 1.0, 255.0, 0.25], shape)
    return {"hard": hard, "soft": soft, "outside": soft * 6 - 2.5}[kind]


def inputs(shape: tuple[int, ...]) -> str:
    dims = " ".join(f"dim: {n}" for n in shape)
    return "".join(
        f'layer {{ name: "{name}" type: "Input" top: "{name}" '
        f"input_param {{ shape {{ {dims} }} }} }} "
        for name in ("scores", "targets")
    )


def cases(dtype: Any) -> list[Case]:
    """The grid, with a loss weight for each in turn."""
    made = []
    rng = np.random.default_rng(4)
    for shape in SHAPES:
        for mode_text, mode in MODES:
            for kind in TARGETS:
                for label in LABELS:
                    # As the layer's type has them, so that the oracle sees the same.
                    scores = rng.normal(0, 3, shape)
                    scores.flat[rng.integers(scores.size)] *= 10
                    scores = scores.astype(dtype).astype(np.float64)
                    targets = make_targets(kind, shape, rng).astype(dtype).astype(np.float64)
                    weight = LOSS_WEIGHTS[len(made) % len(LOSS_WEIGHTS)]
                    ignored = np.zeros(shape, bool)
                    if label is not None:
                        ignored = np.trunc(targets) == label
                        mode_and_label = f"{mode_text} ignore_label: {label}"
                    else:
                        mode_and_label = mode_text
                    divisor = {
                        "full": scores.size,
                        "valid": scores.size - int(ignored.sum()),
                        "batch_size": shape[0],
                        "none": 1,
                    }[mode]
                    text = (
                        f"force_backward: true {inputs(shape)}"
                        'layer { name: "loss" type: "SigmoidCrossEntropyLoss" bottom: "scores" '
                        f'bottom: "targets" top: "loss" loss_weight: {weight} '
                        f"loss_param {{ {mode_and_label} }} }}"
                    )
                    made.append(
                        Case(
                            text=text,
                            scores=scores,
                            targets=targets,
                            # A float in the prototxt, whatever the layer's type.
                            loss_weight=float(np.float32(weight)),
                            divisor=max(1, divisor),
                            ignored=ignored,
                            hard=kind == "hard",
                        )
                    )
    return made


# Reads cases.npz and the nets beside it, as of caffe.Net; float32 is pycaffe's only type.
RUN_NETS = """
import json, os, sys
import numpy as np
import caffe
folder = sys.argv[1]
texts = json.load(open(os.path.join(folder, "nets.json")))
cases = np.load(os.path.join(folder, "cases.npz"))
path = os.path.join(sys.argv[2] + ".prototxt")
results = []
for i, text in enumerate(texts):
    with open(path, "w") as file:
        file.write(text)
    net = caffe.Net(path, caffe.TEST)
    for name in ("scores", "targets"):
        net.blobs[name].data[...] = cases[name + str(i)]
    weighted = net._forward(0, len(net.layers) - 1)
    net._backward(len(net.layers) - 1, 0)
    results += [np.append([net.blobs["loss"].data[()], weighted], net.blobs["scores"].diff)]
np.save(sys.argv[2], np.concatenate(results))
"""


def run_float(build: CaffeBuild, made: list[Case], folder: Path) -> Any:
    texts = [case.text for case in made]
    (folder / "nets.json").write_text(json.dumps(texts))
    arrays = {f"scores{i}": case.scores for i, case in enumerate(made)}
    arrays |= {f"targets{i}": case.targets for i, case in enumerate(made)}
    np.savez(folder / "cases.npz", **arrays)
    result = folder / f"{build.root.name}.npy"
    build.python(RUN_NETS, folder, result, env={"GLOG_minloglevel": "2"})
    return np.load(result)


def run_double(build: CaffeBuild, made: list[Case], folder: Path) -> Any:
    program = gtest_program(build, [PROGRAMS / "nets.cpp"])
    with open(folder / "cases.bin", "wb") as file:
        for case in made:
            text = case.text.encode()
            file.write(struct.pack("qq", len(text), case.scores.size) + text)
            file.write(case.scores.tobytes() + case.targets.tobytes())
    result = folder / f"{build.root.name}.bin"
    done = subprocess.run(
        [program, f"--gtest_filter={CPU_TESTS}"],
        capture_output=True,
        text=True,
        timeout=300,
        env={
            **build.env({"GLOG_minloglevel": "2"}),
            "SIGMOID_CE_CASES": str(folder / "cases.bin"),
            "SIGMOID_CE_RESULTS": str(result),
        },
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return np.fromfile(result)


@pytest.mark.skipif(not oracle.LONGDOUBLE_IS_WIDE, reason="longdouble is no wider than double")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parity(dtype: Any, ours: CaffeBuild, builtin: CaffeBuild, tmp_path: Path) -> None:
    """Both layers on the same nets, each against the oracle within its own errors."""
    if ours.pycaffe is None:
        missing(ours.no_pycaffe)
    made = cases(dtype)
    run = run_float if dtype is np.float32 else run_double
    of_ours, of_builtin = run(ours, made, tmp_path), run(builtin, made, tmp_path)
    assert of_ours.shape == of_builtin.shape
    eps = np.finfo(dtype).eps
    unit = eps / 2
    worst: dict[str, float] = {}
    start = 0

    def check(name: str, error: Any, bound: Any, case: Case) -> None:
        """Errors within bounds, both in the same unit; keeps the largest share of a bound."""
        share = float(np.max(error / bound, initial=0))
        worst[name] = max(worst.get(name, 0.0), share)
        assert share <= 1, f"{name}: {share:.3g} times its bound\n{case.text}"

    for case in made:
        count = case.scores.size
        end = start + 2 + count
        loss, weighted, gradient = of_ours[start], of_ours[start + 1], of_ours[start + 2 : end]
        builtin_loss, builtin_gradient = of_builtin[start], of_builtin[start + 2 : end]
        start = end

        valid = ~case.ignored.ravel()
        x, t = case.scores.ravel()[valid], case.targets.ravel()[valid]
        pieces = oracle.Pieces(x)
        losses = oracle.loss(pieces, t)
        exact = losses.sum() / case.divisor
        terms = oracle.loss_terms(pieces, t).sum() / case.divisor
        scale = oracle.LD(case.loss_weight) / case.divisor
        exact_gradient = np.zeros(count, oracle.LD)
        exact_gradient[valid] = oracle.gradient(pieces, t) * scale
        gradient_terms = np.zeros(count, oracle.LD)
        gradient_terms[valid] = oracle.gradient_terms(pieces, t) * np.abs(scale)

        # Ours, by the bounds of docs/numerics.md. The sums inside a block, in float64, are as
        # accurate as the layer's type where that is float64. One rounding to the type is eps / 2.
        sums = bounds.CUT_FLOAT64_ULP if dtype is np.float64 else 0
        bound = (bounds.LOSS_TERMS_EPS + sums + 0.5) * eps * terms + np.finfo(dtype).tiny
        error = abs(oracle.LD(loss) - exact)
        check("our loss", error, bound, case)
        if case.hard and dtype is np.float32:
            ulp = oracle.ulp_error(np.float32(loss), exact, np.float32)
            check("our loss, hard targets", ulp, bounds.MEAN_WORST_FLOAT32_ULP, case)
        # loss_weight / divisor is rounded to the type, and its product with the gradient.
        allowed = (bounds.GRADIENT_TERMS_EPS + 1) * eps * gradient_terms + np.finfo(dtype).tiny
        errors = np.abs(gradient.astype(oracle.LD) - exact_gradient)
        check("our gradient", errors, allowed, case)
        # 0 where ignored, and with a loss_weight of 0.
        assert not gradient[exact_gradient == 0].any()
        assert weighted == dtype(loss) * dtype(case.loss_weight)

        # The built-in's errors as its formula has them: a few roundings of numbers around 1 and
        # of the size of the terms in each element, and one of the sum so far for each element.
        # Far from that bound, it would mean that the two do not agree on what is to be computed.
        size = np.abs(x) * np.abs(t - (x >= 0)) + 1
        summed = np.abs(losses).sum() * count
        builtin_bound = unit * (4 * size.sum() + summed) / case.divisor + np.finfo(dtype).tiny
        builtin_error = abs(oracle.LD(builtin_loss) - exact)
        check("built-in loss", builtin_error, builtin_bound, case)
        # s is rounded, s - t, and both steps of the scaling.
        rough = np.zeros(count)
        rough[valid] = 6 * unit * (1 + np.abs(t)) * abs(float(scale))
        builtin_allowed = rough + np.finfo(dtype).tiny
        builtin_errors = np.abs(builtin_gradient.astype(oracle.LD) - exact_gradient)
        check("built-in gradient", builtin_errors, builtin_allowed, case)

        # The two: apart by no more than that.
        apart = abs(oracle.LD(loss) - oracle.LD(builtin_loss))
        check("apart, loss", apart, bound + builtin_bound, case)
        gradients_apart = np.abs(gradient - builtin_gradient)
        check("apart, gradient", gradients_apart, allowed + builtin_allowed, case)
    assert start == len(of_ours)
    print(f"{np.dtype(dtype).name}, {len(made)} nets, largest share of each bound:")
    print(*(f"  {name}: {share:.3f}" for name, share in worst.items()), sep="\n")


# Nets in which the layer shares blobs and gradients.

RUN_SHARED = """
import sys
import numpy as np
import caffe
rng = np.random.default_rng(0)
scores = rng.normal(0, 3, (4, 3, 5, 2)).astype(np.float32)
targets = rng.integers(-1, 2, scores.shape).astype(np.float32)
results = {"scores": scores, "targets": targets}
for path in sys.argv[2:]:
    net = caffe.Net(path, caffe.TEST)
    net.blobs["scores"].data[...] = scores
    net.blobs["targets"].data[...] = targets
    for _ in range(2):
        total = net._forward(0, len(net.layers) - 1)
        net._backward(len(net.layers) - 1, 0)
    name = path.rsplit("/", 1)[-1].split(".")[0]
    results[name] = net.blobs["scores"].diff.copy()
    results[name + "_total"] = total
    results[name + "_losses"] = np.array([float(net.blobs[b].data) for b in net.outputs])
np.savez(sys.argv[1], **results)
"""

LOSS = 'type: "SigmoidCrossEntropyLoss" bottom: "scores" bottom: "targets" '
FIRST = f'layer {{ name: "a" {LOSS} top: "a" loss_weight: 2 loss_param {{ ignore_label: -1 }} }} '
SECOND = (
    f'layer {{ name: "b" {LOSS} top: "b" loss_weight: 0.5 '
    "loss_param { ignore_label: 0 normalization: VALID } "
    "python_param { param_str: '{\"pos_weight\": [1, 2, 4]}' } } "
)


def test_split_losses_and_debug_info(ours: CaffeBuild, tmp_path: Path) -> None:
    """Two losses of the same blobs, through Split layers: the gradients of each, added."""
    start = "force_backward: true " + inputs((4, 3, 5, 2))
    nets = {
        "first": start + FIRST,
        "second": start + SECOND,
        "both": start + FIRST + SECOND,
        "debug": "debug_info: true " + start + FIRST + SECOND,
    }
    for name, text in nets.items():
        (tmp_path / f"{name}.prototxt").write_text(text)
    paths = [tmp_path / f"{name}.prototxt" for name in nets]
    ours.python(RUN_SHARED, tmp_path / "results.npz", *paths)
    found = np.load(tmp_path / "results.npz")
    assert np.abs(found["first"]).max() > 0
    assert np.abs(found["second"]).max() > 0
    # The Split layer adds in float32, in either order.
    np.testing.assert_array_equal(found["both"], found["first"] + found["second"])
    np.testing.assert_array_equal(found["both"], found["debug"])
    losses = found["both_losses"]
    assert set(losses) == {*found["first_losses"], *found["second_losses"]}
    totals = [np.float32(found[f"{name}_total"]) for name in ("first", "second", "both")]
    assert totals[0] + totals[1] == totals[2]
    np.testing.assert_array_equal(losses, found["debug_losses"])
    ignored = found["targets"] == -1
    assert not found["first"][ignored].any()


TRAIN = """
layer { name: "data" type: "DummyData" top: "data" top: "targets"
  dummy_data_param {
    shape { dim: 4 dim: 6 } shape { dim: 4 dim: 8 }
    data_filler { type: "constant" value: 0.75 } data_filler { type: "constant" value: 1 } } }
layer { name: "scores" type: "InnerProduct" bottom: "data" top: "scores"
  inner_product_param { num_output: 8 weight_filler { type: "gaussian" std: 1 } } }
layer { name: "loss" type: "SigmoidCrossEntropyLoss"
  bottom: "scores" bottom: "targets" top: "loss" }
"""

RUN_SOLVERS = """
import sys
import numpy as np
import caffe
results = []
for path in sys.argv[2:]:
    solver = caffe.SGDSolver(path)
    start = solver.net.params["scores"][0].data.copy()
    solver.step(3)
    results += [start, solver.net.params["scores"][0].data.copy()]
np.save(sys.argv[1], results)
"""


def test_iter_size(ours: CaffeBuild, tmp_path: Path) -> None:
    """The same batch four times is that batch: such sums and their quarters are exact."""
    net = tmp_path / "net.prototxt"
    net.write_text(TRAIN)
    solvers = []
    for size in (1, 2, 4):
        path = tmp_path / f"solver{size}.prototxt"
        path.write_text(
            f'net: "{net}" base_lr: 0.1 lr_policy: "fixed" iter_size: {size} random_seed: 7 '
            f'display: 1 max_iter: 3 snapshot_prefix: "{tmp_path}/s" solver_mode: CPU'
        )
        solvers.append(path)
    ours.python(RUN_SOLVERS, tmp_path / "weights.npy", *solvers)
    start, once, *others = np.load(tmp_path / "weights.npy")
    assert np.abs(once - start).min() > 0
    for i in (1, 3):
        np.testing.assert_array_equal(others[i], once)


def test_command_line(ours: CaffeBuild, tmp_path: Path) -> None:
    """`caffe time` on a net with options, and what it says of a wrong one."""
    weights = 'layer { name: "weights" type: "Input" top: "weights" '
    weights += "input_param { shape { dim: 4 } } } "
    loss = f'layer {{ name: "the loss" {LOSS} bottom: "weights" top: "loss" '
    text = "force_backward: true " + inputs((4, 3, 5)) + weights + loss
    right, wrong = tmp_path / "right.prototxt", tmp_path / "wrong.prototxt"
    right.write_text(text + "python_param { param_str: '{\"pos_weight\": [1, 2, 3]}' } }")
    wrong.write_text(text + "python_param { param_str: '{\"pos_weight\": [1, 2]}' } }")
    done = ours.run("time", "-model", right, "-iterations", "2")
    assert re.search(r"the loss\s+backward: [\d.]+ ms", done.stderr)
    refused = ours.run("time", "-model", wrong, "-iterations", "2", check=False)
    assert refused.returncode != 0
    message = 'SigmoidCrossEntropyLoss layer "the loss": pos_weight: expected one value, or one per'
    assert message in refused.stderr
    assert "scores of shape 4 3 5 (60), got 2" in refused.stderr
    # What the kernels refuse is said in the layer's name too.
    many = {"SIGMOID_CE_NUM_THREADS": "many"}
    refused = ours.run("time", "-model", right, "-iterations", "2", check=False, env=many)
    assert refused.returncode != 0
    message = 'SigmoidCrossEntropyLoss layer "the loss": SIGMOID_CE_NUM_THREADS: '
    assert message in refused.stderr


# Whole builds with the overlay copied over the tree by hand.

NET = """
force_backward: true
layer { name: "data" type: "DummyData" top: "scores" top: "targets"
  dummy_data_param { shape { dim: 8 dim: 4 } shape { dim: 8 dim: 4 }
    data_filler { type: "gaussian" std: 3 } data_filler { type: "constant" value: 1 } } }
layer { name: "loss" type: "SigmoidCrossEntropyLoss" bottom: "scores" bottom: "targets" top: "loss"
  python_param { param_str: '{"pos_weight": 3}' } }
"""


def copy_over(tree: Path) -> None:
    """As docs/dropin.md says by hand: cp -r include src TREE."""
    for name in ("include", "src"):
        shutil.copytree(OVERLAY / name, tree / name, dirs_exist_ok=True)


def shell(command: str, cwd: Path, timeout: float = 3000) -> str:
    done = subprocess.run(
        ["sh", "-ec", command], cwd=cwd, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def swap_tests(tree: Path, program: Path, make: str, cwd: Path, published: Path) -> None:
    """Runs our tests, which are in the tree, and then the published ones in their place."""
    shell(make, cwd)
    assert run_tests(program) >= 40
    (tree / LAYER_TEST).write_text(published.read_text())
    shell(make, cwd)
    assert run_tests(program) >= 4


@pytest.mark.long
def test_whole_build_with_cmake(builtin: CaffeBuild, tmp_path: Path) -> None:
    tree = copy_tree(bvlc_source(), tmp_path / "tree")
    copy_over(tree)
    folder = tree / "build"
    folder.mkdir()
    options = "-DCPU_ONLY=ON -DUSE_OPENCV=OFF -DUSE_LEVELDB=OFF -DUSE_LMDB=OFF -DBLAS=Open"
    options += " -DBUILD_python=OFF -DBUILD_docs=OFF -DCMAKE_POLICY_VERSION_MINIMUM=3.5"
    # The layer's test alone, or all of Caffe's are compiled.
    options += " -DBUILD_only_tests=sigmoid_cross_entropy_loss_layer"
    shell(f"cmake {options} .. && make -j{jobs()} caffe caffe.bin", folder)
    swap_tests(
        tree,
        folder / "test/test.testbin",
        f"make -j{jobs()} test.testbin",
        folder,
        builtin.source / LAYER_TEST,
    )
    net = tmp_path / "net.prototxt"
    net.write_text(NET)
    assert "backward" in shell(f"tools/caffe time -model {net} -iterations 2", folder)


@pytest.mark.long
def test_whole_build_with_make(builtin: CaffeBuild, tmp_path: Path) -> None:
    tree = copy_tree(bvlc_source(), tmp_path / "tree")
    copy_over(tree)
    config = (tree / "Makefile.config.example").read_text()
    for line in ("CPU_ONLY := 1", "USE_OPENCV := 0", "USE_LEVELDB := 0", "USE_LMDB := 0"):
        assert f"# {line}\n" in config
        config = config.replace(f"# {line}\n", f"{line}\n")
    config = config.replace("BLAS := atlas", "BLAS := open")
    machine = shell("${CXX:-c++} -print-multiarch", tree).strip()
    config += f"""
INCLUDE_DIRS += /usr/include/hdf5/serial /usr/include/{machine}
LIBRARY_DIRS += /usr/lib/{machine} /usr/lib/{machine}/hdf5/serial
"""
    (tree / "Makefile.config").write_text(config)
    test = ".build_release/test/test_sigmoid_cross_entropy_loss_layer.testbin"
    shell(f"make -j{jobs()} lib .build_release/tools/caffe.bin", tree)
    swap_tests(tree, tree / test, f"make {test}", tree, builtin.source / LAYER_TEST)
    net = tmp_path / "net.prototxt"
    net.write_text(NET)
    run = f".build_release/tools/caffe.bin time -model {net} -iterations 2"
    assert "backward" in shell(f"LD_LIBRARY_PATH=.build_release/lib {run}", tree)


@pytest.mark.long
def test_whole_build_of_the_fork(builtin: CaffeBuild, tmp_path: Path) -> None:
    """It makes pycaffe alone, and looks for what it links in a folder such as conda's."""
    tree = copy_tree(built(fork_source), tmp_path / "tree")
    # Its caffe.pb.h is of another protobuf, and is found before the one that is generated.
    (tree / "include/caffe/proto/caffe.pb.h").unlink()
    copy_over(tree)
    machine = shell("${CXX:-c++} -print-multiarch", tree).strip()
    system, number = Path("/usr/lib") / machine, "{}.{}".format(*sys.version_info[:2])
    links = {
        "lib/libboost_python.so": system / f"libboost_python{number.replace('.', '')}.so",
        # Named in its CMakeLists, and used by nothing.
        "lib/libboost_regex.so": system / "libboost_system.so",
        "lib/libhdf5.so": system / "hdf5/serial/libhdf5.so",
        "lib/libhdf5_hl.so": system / "hdf5/serial/libhdf5_hl.so",
        f"include/python{number}": Path(sysconfig.get_path("include")),
        f"lib/python{number}/site-packages/numpy/core/include": Path(np.get_include()),
    }
    home = tmp_path / "home"
    for name, target in links.items():
        if not target.exists():
            missing(str(target))
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).symlink_to(target)
    folder = tree / "build"
    folder.mkdir()
    options = f"-DANACONDA_HOME={home} -DPYTHON_VERSION=python{number} -DCMAKE_CXX_FLAGS='-w "
    options += f"-I/usr/include/hdf5/serial -I{tree}/src' -DCMAKE_POLICY_VERSION_MINIMUM=3.5"
    shell(f"cmake {options} .. && make -j{jobs()} pycaffe", folder)

    # Its tests are not built by its CMake: these link with the one library that it makes.
    library = folder / "lib/_caffe.so"
    assert library.exists()
    gtest = f"c++ -DCPU_ONLY=1 -DGTEST_USE_OWN_TR1_TUPLE -w -I{folder}/include -I{tree}/include "
    gtest += (
        f"-I{tree}/src {tree}/src/gtest/gtest-all.cpp {tree}/src/caffe/test/test_caffe_main.cpp"
    )
    gtest += (
        f" {tree / LAYER_TEST} -o layer_test -L{library.parent} -l:_caffe.so -lglog -lprotobuf "
    )
    gtest += f"-lgflags -lboost_system -lpthread -Wl,-rpath,{library.parent} "
    gtest += f"{sysconfig.get_config_var('LIBDIR')}/{sysconfig.get_config_var('LDLIBRARY')}"
    swap_tests(tree, folder / "layer_test", gtest, folder, published=fork_source() / LAYER_TEST)
