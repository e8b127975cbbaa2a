"""The real Caffe that other tests compare with is built right, and ours can be linked into it."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from conftest import ROOT, missing
from tests import realcaffe

T = TypeVar("T")

# The test file that both trees bring: how many tests it has, each in float and double.
TESTS_OF_BVLC = 6
TESTS_OF_FORK = 4

# float32 arithmetic of the stock layer over six elements of order 1, against Python's float64:
# some roundings of 2^-24 each in the log-losses and their sum.
STOCK_TOLERANCE = 2e-6

# Creates the layer by its type's name, as Net does, whatever the class behind it is.
REGISTRY_TEST = """
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "caffe/layer_factory.hpp"

TEST(Registry, ListsTheType) {
  bool found = false;
  for (const std::string& type : caffe::LayerRegistry<float>::LayerTypeList()) {
    found = found || type == "SigmoidCrossEntropyLoss";
  }
  EXPECT_TRUE(found);
  caffe::LayerParameter parameter;
  parameter.set_type("SigmoidCrossEntropyLoss");
  EXPECT_STREQ("SigmoidCrossEntropyLoss",
               caffe::LayerRegistry<double>::CreateLayer(parameter)->type());
}
"""

# A net as text, run forward and backward; the results come back as JSON.
NET_SCRIPT = """
import json, sys, tempfile
import numpy as np
import caffe

net_text, data = json.loads(sys.argv[1])
with tempfile.NamedTemporaryFile("w", suffix=".prototxt") as file:
    file.write(net_text)
    file.flush()
    net = caffe.Net(file.name, caffe.TRAIN)
for name, values in data.items():
    net.blobs[name].data[...] = np.reshape(values, net.blobs[name].data.shape)
out = net.forward()
net.backward()
print(json.dumps({
    "types": list(caffe.layer_type_list()),
    "version": caffe.__version__,
    "loss": float(out["loss"]),
    "gradient": net.blobs["scores"].diff.ravel().tolist(),
}))
"""

NET = """
force_backward: true
layer { name: "data" type: "Input" top: "scores" top: "targets"
        input_param { shape { dim: 2 dim: 3 } shape { dim: 2 dim: 3 } } }
layer { name: "loss" type: "SigmoidCrossEntropyLoss" bottom: "scores" bottom: "targets"
        top: "loss" loss_weight: 2 loss_param { ignore_label: -1 normalization: VALID } }
"""

SCORES = [0.5, -1.25, 3.0, -2.0, 0.0, 1.5]
TARGETS = [1.0, 0.0, 0.25, 1.0, -1.0, 0.0]
LOSS_WEIGHT = 2.0

PYTHON_LAYER = """
import caffe, sys, numpy

class Doubled(caffe.Layer):
    def setup(self, bottom, top):
        print("layer of Python", "%d.%d" % sys.version_info[:2], self.param_str, file=sys.stderr)
    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].data.shape)
    def forward(self, bottom, top):
        top[0].data[...] = 2 * bottom[0].data
    def backward(self, top, propagate_down, bottom):
        bottom[0].diff[...] = 2 * top[0].diff
"""


def required(get: Callable[[], T]) -> T:
    """What get() returns; where something is missing, a skip, or a failure with CI=true."""
    try:
        return get()
    except realcaffe.Missing as reason:
        missing(str(reason))
        raise


@pytest.fixture(scope="session")
def stock() -> realcaffe.CaffeBuild:
    return required(realcaffe.stock)


@pytest.fixture(scope="session")
def fork() -> Path:
    return required(realcaffe.fork_source)


@pytest.fixture
def registry_test(tmp_path: Path) -> Path:
    path = tmp_path / "registry_test.cpp"
    path.write_text(REGISTRY_TEST)
    return path


@pytest.fixture
def same_overlay(stock: realcaffe.CaffeBuild, tmp_path: Path) -> Path:
    """An overlay of the stock layer's own files, with one more function in a file of its own."""
    overlay = tmp_path / "overlay"
    for file in (
        f"include/caffe/layers/{realcaffe.LAYER}.hpp",
        f"src/caffe/layers/{realcaffe.LAYER}.cpp",
        realcaffe.LAYER_TEST,
    ):
        (overlay / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(stock.source / file, overlay / file)
    # A new header and a new source, of which the layer's object takes note.
    header = overlay / "include/caffe/util/overlay_mark.hpp"
    header.parent.mkdir()
    header.write_text("namespace caffe { int overlay_mark(); }\n")
    source = overlay / "src/caffe/util/overlay_mark.cpp"
    source.parent.mkdir()
    source.write_text(
        '#include "caffe/util/overlay_mark.hpp"\nint caffe::overlay_mark() { return 42; }\n'
    )
    layer = overlay / f"src/caffe/layers/{realcaffe.LAYER}.cpp"
    layer.write_text(
        layer.read_text()
        + '#include "caffe/util/overlay_mark.hpp"\n'
        + 'extern "C" int mark_of_overlay() { return caffe::overlay_mark(); }\n'
    )
    return overlay


def run_net(caffe: realcaffe.CaffeBuild) -> dict[str, object]:
    data = json.dumps([NET, {"scores": SCORES, "targets": TARGETS}])
    found: dict[str, object] = json.loads(caffe.python(NET_SCRIPT, data).stdout)
    return found


def expected() -> tuple[float, list[float]]:
    """Loss and gradient of NET in float64, by the definition."""
    valid = [t != -1 for t in TARGETS]
    losses = [
        max(x, 0) - x * t + math.log1p(math.exp(-abs(x))) if v else 0.0
        for x, t, v in zip(SCORES, TARGETS, valid, strict=True)
    ]
    gradient = [
        LOSS_WEIGHT * (1 / (1 + math.exp(-x)) - t) / sum(valid) if v else 0.0
        for x, t, v in zip(SCORES, TARGETS, valid, strict=True)
    ]
    # The loss that a net reports is not multiplied by loss_weight.
    return sum(losses) / sum(valid), gradient


def check_net(found: dict[str, object]) -> None:
    loss, gradient = expected()
    assert found["loss"] == pytest.approx(loss, abs=STOCK_TOLERANCE)
    assert found["gradient"] == pytest.approx(gradient, abs=STOCK_TOLERANCE)
    assert "SigmoidCrossEntropyLoss" in found["types"]  # type: ignore[operator]


def test_command_line_runs(stock: realcaffe.CaffeBuild) -> None:
    done = stock.run("--version")
    assert "caffe version 1.0.0" in done.stdout


def test_command_line_times_a_net(stock: realcaffe.CaffeBuild, tmp_path: Path) -> None:
    net = tmp_path / "net.prototxt"
    net.write_text(NET)
    done = stock.run("time", f"--model={net}", "--iterations=2")
    assert "Average Forward-Backward" in done.stderr


def test_pycaffe_computes_loss_and_gradient(stock: realcaffe.CaffeBuild) -> None:
    if stock.pycaffe is None:
        missing(f"pycaffe ({stock.no_pycaffe})")
    found = run_net(stock)
    check_net(found)
    assert found["version"] == "1.0.0"


def test_command_line_runs_python_layers(stock: realcaffe.CaffeBuild, tmp_path: Path) -> None:
    """Its interpreter is another than pycaffe's, and finds the modules of the running Python."""
    if stock.pycaffe is None:
        missing(f"pycaffe ({stock.no_pycaffe})")
    (tmp_path / "doubled.py").write_text(PYTHON_LAYER)
    net = tmp_path / "net.prototxt"
    net.write_text(
        'layer { name: "data" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }\n'
        'layer { name: "twice" type: "Python" bottom: "x" top: "y"\n'
        '        python_param { module: "doubled" layer: "Doubled" param_str: "hello" } }\n'
    )
    path = f"{stock.env()['PYTHONPATH']}:{tmp_path}"
    done = stock.run("time", f"--model={net}", "--iterations=1", env={"PYTHONPATH": path})
    assert "layer of Python {}.{} hello".format(*sys.version_info[:2]) in done.stderr


def test_stock_layer_passes_its_own_tests(stock: realcaffe.CaffeBuild, registry_test: Path) -> None:
    assert realcaffe.run_tests(realcaffe.gtest_program(stock)) == TESTS_OF_BVLC
    program = realcaffe.gtest_program(stock, [registry_test])
    assert realcaffe.run_tests(program, "Registry.*") == 1


def test_fork_layer_passes_its_own_tests(fork: Path, registry_test: Path) -> None:
    program = required(lambda: realcaffe.gtest_alone(fork))
    assert realcaffe.run_tests(program) == TESTS_OF_FORK
    assert (
        realcaffe.run_tests(realcaffe.gtest_alone(fork, tests=[registry_test]), "Registry.*") == 1
    )


def test_a_wrong_layer_fails_its_tests(
    stock: realcaffe.CaffeBuild, same_overlay: Path, fork: Path, tmp_path: Path
) -> None:
    """The tests do run the overlay's layer, in both ways of linking it."""
    name = f"src/caffe/layers/{realcaffe.LAYER}.cpp"
    layer = same_overlay / name
    text = layer.read_text()
    assert text.count("loss / normalizer_") == 1
    layer.write_text(text.replace("loss / normalizer_", "loss * 1.5 / normalizer_"))
    program = realcaffe.gtest_program(realcaffe.with_overlay(same_overlay, stock))
    with pytest.raises(realcaffe.BuildError, match="FAILED"):
        realcaffe.run_tests(program)

    layer = tmp_path / "fork" / name
    layer.parent.mkdir(parents=True)
    text = (fork / name).read_text()
    assert text.count("loss / num;") == 1
    layer.write_text(text.replace("loss / num;", "loss * 1.5 / num;"))
    program = realcaffe.gtest_alone(fork, tmp_path / "fork")
    with pytest.raises(realcaffe.BuildError, match="FAILED"):
        realcaffe.run_tests(program)


def test_overlay_takes_the_place_of_the_layer(
    stock: realcaffe.CaffeBuild, same_overlay: Path
) -> None:
    caffe = realcaffe.with_overlay(same_overlay, stock)
    for library, marked in ((caffe.library, True), (stock.library, False)):
        symbols = subprocess.run(
            ["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True
        )
        assert (" mark_of_overlay" in symbols.stdout) == marked
    assert realcaffe.run_tests(realcaffe.gtest_program(caffe)) == TESTS_OF_BVLC
    assert "caffe version 1.0.0" in caffe.run("--version").stdout
    if caffe.pycaffe is not None:
        check_net(run_net(caffe))
        loaded = caffe.python("import caffe; print(open('/proc/self/maps').read())").stdout
        assert str(caffe.library.parent) in loaded
        assert str(stock.library.parent) not in loaded


def test_stock_sources_follow_a_replaced_header(
    stock: realcaffe.CaffeBuild, tmp_path: Path
) -> None:
    """A header of another layer, which a stock source includes, is compiled in; one that pycaffe
    includes needs a whole build."""
    overlay = tmp_path / "overlay"
    name = "include/caffe/layers/sigmoid_layer.hpp"
    (overlay / name).parent.mkdir(parents=True)
    text = (stock.source / name).read_text()
    assert text.count('return "Sigmoid"') == 1
    (overlay / name).write_text(text.replace('return "Sigmoid"', 'return "Sigmoid of overlay"'))
    caffe = realcaffe.with_overlay(overlay, stock)
    assert b"Sigmoid of overlay" in caffe.library.read_bytes()
    assert b"Sigmoid of overlay" not in stock.library.read_bytes()

    layer = "include/caffe/layer.hpp"
    shutil.copyfile(stock.source / layer, overlay / layer)
    with pytest.raises(ValueError, match=r"layer\.hpp, which the overlay replaces"):
        realcaffe.with_overlay(overlay, stock)


def test_overlay_with_proto_needs_a_whole_build(
    stock: realcaffe.CaffeBuild, tmp_path: Path
) -> None:
    (tmp_path / "src/caffe/proto").mkdir(parents=True)
    (tmp_path / "src/caffe/proto/caffe.proto").write_text("")
    with pytest.raises(ValueError, match=r"has a \.proto file"):
        realcaffe.with_overlay(tmp_path, stock)


def test_interrupted_entry_is_made_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tests.realcaffe.cache import entry, prune

    monkeypatch.setenv("SIGMOID_CE_CACHE", str(tmp_path))

    def interrupted(folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        entry("thing-1", interrupted)
    made: list[Path] = []
    folder = entry("thing-1", made.append)
    assert not (folder / "half").exists()
    assert entry("thing-1", made.append) == folder
    assert made == [folder]
    entry("thing-2", made.append)
    os.utime(folder / "complete", (0, 0))
    prune("thing-*", keep=1)
    assert sorted(p.name for p in tmp_path.glob("thing-*")) == ["thing-2"]


def test_failed_command_shows_the_end_of_its_log(tmp_path: Path) -> None:
    from tests.realcaffe.cache import execute

    with pytest.raises(realcaffe.BuildError, match="last words"):
        execute(
            [sys.executable, "-c", "print('last words'); raise SystemExit(3)"], tmp_path / "log"
        )


def test_own_tree_and_missing_tree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """SIGMOID_CE_CAFFE_SRC wins over Debian's package, and a wrong folder is said to be wrong."""
    script = "from tests import realcaffe; print(realcaffe.bvlc_source())"
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("SIGMOID_CE_CAFFE_SRC", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert f"SIGMOID_CE_CAFFE_SRC={tmp_path}" in done.stderr
    (tmp_path / "src/caffe/proto").mkdir(parents=True)
    (tmp_path / "src/caffe/proto/caffe.proto").touch()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path)
