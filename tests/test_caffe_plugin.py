"""The plugin in a real Caffe that was built without us, and what can go wrong with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sigmoid_ce as sce
from conftest import ROOT, missing, tool
from sigmoid_ce.caffe import build_plugin
from sigmoid_ce.caffe import plugin as builder
from tests import realcaffe
from tests.realcaffe.layer_plugin import FACTS

NET = """
    name: "n"
    layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 4 dim: 3 dim: 50 } } }
    layer { name: "t" type: "Input" top: "t" input_param { shape { dim: 4 dim: 3 dim: 50 } } }
    layer { name: "%(name)s" type: "%(type)s" bottom: "x" bottom: "t" top: "l" loss_weight: 1
            %(more)s }
    force_backward: true
"""


@pytest.fixture(scope="session")
def stock() -> realcaffe.CaffeBuild:
    try:
        return realcaffe.stock()
    except realcaffe.Missing as error:
        missing(str(error))
        raise AssertionError from error


@pytest.fixture(scope="session")
def plugin(stock: realcaffe.CaffeBuild) -> Path:
    """Built by the command, as a user does."""
    out = realcaffe.plugin(stock)
    facts = json.loads((out.parent / FACTS).read_text())
    assert facts == {"path": str(out), "cpu_only": True}
    return out


def net(folder: Path, kind: str = "SigmoidCrossEntropyLoss", more: str = "") -> Path:
    path = folder / f"{kind}-{len(list(folder.iterdir()))}.prototxt"
    path.write_text(NET % {"name": "loss", "type": kind, "more": more})
    return path


# In a process of its own: prints loss and gradient, or the error of loading, as JSON.
PYCAFFE = textwrap.dedent(
    """
    import json, sys
    import numpy as np
    import caffe
    import sigmoid_ce.caffe

    plugins, path, data = json.loads(sys.argv[1]), sys.argv[2], np.load(sys.argv[3])
    try:
        for plugin in plugins:
            sigmoid_ce.caffe.load_plugin(*plugin)
    except (OSError, RuntimeError, ValueError) as error:
        print(json.dumps({"error": str(error)}))
        sys.exit()
    net = caffe.Net(path, caffe.TRAIN)
    net.blobs["x"].data[...] = data["x"]
    net.blobs["t"].data[...] = data["t"]
    loss = float(net.forward()["l"])
    net.backward()
    gradient = net.blobs["x"].diff.tolist()
    print(json.dumps({"loss": loss, "gradient": gradient}))
    """
)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    x = rng.normal(0, 3, (4, 3, 50)).astype(np.float32)
    x[0, 0, 0] = 20  # where the built-in layer's gradient for t = 1 is 0
    t = (rng.random(x.shape) < 0.3).astype(np.float32)
    t[0, 0, 0] = 1
    path = tmp_path_factory.mktemp("plugin") / "data.npz"
    np.savez(path, x=x, t=t)
    return path


def run(
    stock: realcaffe.CaffeBuild,
    plugins: list[Path],
    path: Path,
    data: Path,
    types: tuple[str, ...] = (),
    **env: str,
) -> dict[str, object]:
    """`types`: the name to load each plugin as; none: the built-in one."""
    names = json.dumps([[str(file), *types[i : i + 1]] for i, file in enumerate(plugins)])
    done = stock.python(PYCAFFE, names, path, data, env={"GLOG_minloglevel": "2", **env})
    result: dict[str, object] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("pos_weight", [None, 100.0, [1.0, 2.0, 0.5]])
def test_pycaffe(
    stock: realcaffe.CaffeBuild, plugin: Path, data: Path, tmp_path: Path, pos_weight: object
) -> None:
    """Our bits, float32 rounding of the loss aside; the options reach the layer."""
    more = ""
    if pos_weight is not None:
        more = f"python_param {{ param_str: '{json.dumps({'pos_weight': pos_weight})}' }}"
    result = run(stock, [plugin], net(tmp_path, more=more), data)
    arrays = np.load(data)
    loss, gradient = sce.forward_backward(arrays["x"], arrays["t"], pos_weight=pos_weight)
    assert np.float32(result["loss"]) == np.float32(loss)
    assert np.array_equal(np.array(result["gradient"], np.float32), gradient)
    assert gradient[0, 0, 0] < 0


def test_without_it_the_built_in_layer_runs(
    stock: realcaffe.CaffeBuild, data: Path, tmp_path: Path
) -> None:
    """So that the tests above cannot pass by a stock layer that is as exact."""
    result = run(stock, [], net(tmp_path), data)
    assert np.array(result["gradient"])[0, 0, 0] == 0


def test_loading_twice(
    stock: realcaffe.CaffeBuild, plugin: Path, data: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.so"
    copy.write_bytes(plugin.read_bytes())
    result = run(stock, [plugin, plugin, copy], net(tmp_path), data)
    assert np.array(result["gradient"])[0, 0, 0] < 0


def test_new_name(stock: realcaffe.CaffeBuild, plugin: Path, data: Path, tmp_path: Path) -> None:
    """It is a layer beside the built-in one, which stays."""
    types = ("BalancedLoss",)
    ours = run(stock, [plugin], net(tmp_path, "BalancedLoss"), data, types)
    assert np.array(ours["gradient"])[0, 0, 0] < 0
    built_in = run(stock, [plugin], net(tmp_path), data, types)
    assert np.array(built_in["gradient"])[0, 0, 0] == 0


def test_names_that_do_not_fit(
    stock: realcaffe.CaffeBuild, plugin: Path, data: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.so"
    copy.write_bytes(plugin.read_bytes())
    path = net(tmp_path, "BalancedLoss")
    twice = run(stock, [plugin, copy], path, data, ("BalancedLoss", "BalancedLoss"))
    assert "BalancedLoss is registered already" in str(twice["error"])
    taken = run(stock, [plugin], path, data, ("InnerProduct",))
    assert "InnerProduct is registered already" in str(taken["error"])
    again = run(stock, [plugin, plugin], path, data, ("BalancedLoss", "OtherLoss"))
    assert "was loaded before, as BalancedLoss" in str(again["error"])
    empty = run(stock, [plugin], path, data, ("",))
    assert "type_name: " in str(empty["error"])


def test_preloaded_into_the_command_line(
    stock: realcaffe.CaffeBuild, plugin: Path, tmp_path: Path
) -> None:
    """`caffe time` and `caffe train` run ours: it alone refuses an option that there is not."""
    good = tmp_path / "good.prototxt"
    layers = """
        layer { name: "d" type: "DummyData" top: "x" top: "t" dummy_data_param {
          shape { dim: 8 dim: 5 } shape { dim: 8 dim: 5 }
          data_filler { type: "gaussian" } data_filler { type: "constant" value: 1 } } }
        layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y"
                inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
        layer { name: "loss" type: "SigmoidCrossEntropyLoss" bottom: "y" bottom: "t" top: "l"
                python_param { param_str: '%s' } }
    """
    good.write_text(layers % '{"pos_weight": 3}')
    env = {"LD_PRELOAD": str(plugin)}
    timed = stock.run("time", "-model", good, "-iterations", "3", env=env)
    assert "Average Forward-Backward" in timed.stderr
    solver = tmp_path / "solver.prototxt"
    solver.write_text(
        f'net: "{good}" base_lr: 0.1 lr_policy: "fixed" max_iter: 20 display: 1 '
        f'snapshot_prefix: "{tmp_path}/snap" solver_mode: CPU random_seed: 1 '
        "snapshot_after_train: false"
    )
    trained = stock.run("train", "-solver", solver, env=env)
    assert "Optimization Done" in trained.stderr
    bad = tmp_path / "bad.prototxt"
    bad.write_text(layers % '{"pos_wait": 3}')
    stock.run("time", "-model", bad, "-iterations", "1")  # the built-in one reads no param_str
    refused = stock.run("time", "-model", bad, "-iterations", "1", env=env, check=False)
    assert refused.returncode != 0
    assert 'layer "loss": param_str: unknown option "pos_wait"' in refused.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_it_compiles(
    stock: realcaffe.CaffeBuild, tmp_path: Path, number: signal.Signals
) -> None:
    """The compilers end with it, and nothing is left behind. They would take ten minutes."""
    compiler, started = tmp_path / "slow", tmp_path / "started"
    compiler.write_text(f"#!/bin/sh\necho $$ >> {started}\nsleep 600\n")
    compiler.chmod(0o755)
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, "-m", "sigmoid_ce", "caffe", "plugin", "--compiler", str(compiler)]
    for include in stock.includes:
        command += ["--include", str(include)]
    command += ["--lib", str(stock.library), "-o", str(out / "p.so")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not started.exists() or not started.read_text().endswith("\n"):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert list(out.iterdir()) == []
    for pid in started.read_text().split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_stopped_while_a_compiler_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal is taken by another thread, and its handler run while Popen is not done."""
    started: list[subprocess.Popen[str]] = []
    now = threading.Event()

    def stop() -> None:
        now.wait()
        signal.raise_signal(signal.SIGINT)

    # From before anything is blocked, as the threads of libraries are.
    other = threading.Thread(target=stop)
    other.start()

    class Popen(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            started.append(self)
            now.set()
            other.join()
            done.append(True)

    done: list[bool] = []
    monkeypatch.setattr(subprocess, "Popen", Popen)
    with pytest.raises(KeyboardInterrupt):
        builder._run_all([["sleep", "20"]])
    assert done == [True]
    assert started[0].returncode == -signal.SIGKILL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_outputs_that_would_replace_something(stock: realcaffe.CaffeBuild) -> None:
    with pytest.raises(ValueError, match=r"^output: .* is the file of library"):
        build_plugin(stock.includes, stock.library, stock.library)


@pytest.mark.long
def test_hidden_registry(stock: realcaffe.CaffeBuild, data: Path, tmp_path: Path) -> None:
    """With a registry of its own the plugin would change nothing, in silence."""
    out = tmp_path / "hidden.so"
    with pytest.raises(RuntimeError, match="layer registry of Caffe was not reached"):
        build_plugin(stock.includes, stock.library, out, flags=["-O0", "-fvisibility=hidden"])
    assert not out.exists()


def test_host_with_gpu_code(
    stock: realcaffe.CaffeBuild, plugin: Path, data: Path, tmp_path: Path
) -> None:
    """A Caffe with GPU code is told by a function, which a library stands in for here."""
    source, gpu = tmp_path / "gpu.cpp", tmp_path / "gpu.so"
    source.write_text(
        "namespace caffe { void caffe_gpu_memcpy(unsigned long, const void*, void*) {} }"
    )
    subprocess.run(["c++", "-shared", "-fPIC", source, "-o", gpu], check=True)
    result = run(stock, [plugin], net(tmp_path), data, LD_PRELOAD=str(gpu))
    assert "built CPU_ONLY, and this Caffe has GPU code" in str(result["error"])
    ended = stock.run("device_query", env={"LD_PRELOAD": f"{gpu}:{plugin}"}, check=False)
    assert ended.returncode == 1
    assert "sigmoid_ce plugin: it was built CPU_ONLY" in ended.stderr


def test_preloaded_into_another_program(plugin: Path) -> None:
    """It brings libcaffe along by itself, and changes nothing."""
    done = subprocess.run(
        ["cat", "/dev/null"],
        env={**os.environ, "LD_PRELOAD": str(plugin)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_not_a_plugin(stock: realcaffe.CaffeBuild, data: Path, tmp_path: Path) -> None:
    result = run(stock, [stock.library], net(tmp_path), data)
    assert "is not a plugin of sigmoid_ce" in str(result["error"])
    text = tmp_path / "text.so"
    text.write_text("no library")
    assert "text.so" in str(run(stock, [text], net(tmp_path), data)["error"])


def test_arguments_that_do_not_fit(stock: realcaffe.CaffeBuild, tmp_path: Path) -> None:
    includes, library, out = stock.includes, stock.library, tmp_path / "p.so"
    with pytest.raises(ValueError, match=r"^include: .*caffe/layer_factory\.hpp"):
        build_plugin([tmp_path], library, out)
    with pytest.raises(ValueError, match=r"^include: .*caffe/proto/caffe\.pb\.h"):
        build_plugin([stock.source / "include"], library, out)
    with pytest.raises(ValueError, match=r"^library: .* is not there"):
        build_plugin(includes, tmp_path / "libcaffe.so", out)
    with pytest.raises(ValueError, match=r"^library: expected libcaffe\.so"):
        build_plugin(includes, Path(sys.executable).resolve(), out)
    with pytest.raises(ValueError, match=r"^cpu_only: .* has no GPU code"):
        build_plugin(includes, library, out, cpu_only=False)
    with pytest.raises(ValueError, match=r"^compiler: "):
        build_plugin(includes, library, out, compiler="no-such-compiler")
    with pytest.raises(ValueError, match=r"^output: "):
        build_plugin(includes, library, tmp_path / "none" / "p.so")
    assert list(tmp_path.iterdir()) == []


def test_compiler_that_fails(stock: realcaffe.CaffeBuild, tmp_path: Path) -> None:
    """The end of the compiler's output, and nothing left behind."""
    with pytest.raises(RuntimeError, match="no-such-flag"):
        build_plugin(stock.includes, stock.library, tmp_path / "p.so", flags=["--no-such-flag"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_plugin_for_a_caffe_with_the_layer_in_its_tree(
    plugin: Path, data: Path, tmp_path: Path
) -> None:
    """Kernels of two builds in one process, which share no symbol."""
    inside = realcaffe.with_overlay(ROOT / "caffe")
    result = run(inside, [plugin], net(tmp_path), data)
    arrays = np.load(data)
    assert np.array_equal(
        np.array(result["gradient"], np.float32), sce.backward(arrays["x"], arrays["t"])
    )


@pytest.mark.long
def test_cmake_target(stock: realcaffe.CaffeBuild, data: Path, tmp_path: Path) -> None:
    cmake = tool("cmake")
    if cmake is None:
        missing("cmake")
    assert cmake is not None
    options = [
        f"-DSIGMOID_CE_CAFFE_LIBRARY={stock.library}",
        f"-DSIGMOID_CE_CAFFE_INCLUDE_DIRS={';'.join(map(str, stock.includes))}",
    ]
    build = tmp_path / "build"
    subprocess.run([cmake, "-S", ROOT, "-B", build, *options], check=True)
    target = ["--target", "sigmoid_ce_caffe_plugin", "--parallel", "2"]
    subprocess.run([cmake, "--build", build, *target], check=True)
    result = run(stock, [build / "sigmoid_ce_caffe_plugin.so"], net(tmp_path), data)
    assert np.array(result["gradient"])[0, 0, 0] < 0
    wrong = subprocess.run(
        [cmake, "-S", ROOT, "-B", tmp_path / "wrong", options[0]], capture_output=True, text=True
    )
    assert wrong.returncode != 0
    assert "SIGMOID_CE_CAFFE_INCLUDE_DIRS: no caffe/layer_factory.hpp" in wrong.stderr
