"""The layer's GPU code without a GPU: on one that is emulated, and compiled by nvcc.

Emulated: Caffe's sources with GPU code, our .cu files and the tests, all compiled for the CPU
(tests/native/emulation). Nothing here has run on a GPU: tests/realcaffe/cuda.py makes what does.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, missing
from sigmoid_ce.caffe import build_plugin
from tests.realcaffe import (
    CUDA_LIBRARIES,
    GPU_TESTS,
    LAYER_TEST,
    BuildError,
    bvlc_source,
    cache_root,
    fork_source,
    generated_headers,
    gtest_alone,
    run_tests,
    stock,
)
from tests.realcaffe.cuda import cuda_build, prepare
from tests.test_caffe_layer import OVERLAY, OWN_TEST, built
from tests.test_cuda_toolkits import OLD_HOST, old_compiler

TREES = {"bvlc": bvlc_source, "fork": fork_source}
LAYER = "src/caffe/layers/sigmoid_cross_entropy_loss_layer"
KERNELS = "src/caffe/util/sigmoid_ce_cuda.cu"

trees = pytest.mark.parametrize("tree", ["bvlc", pytest.param("fork", marks=pytest.mark.long)])


@pytest.fixture(scope="module")
def nvcc() -> str:
    found = shutil.which("nvcc")
    if found is None:
        # Also where CI=true: a machine for Caffe need not have CUDA.
        pytest.skip("no nvcc")
    return found


# On an emulated GPU.


def emulated(tree: str, test: Path, overlay: Path = OVERLAY) -> Path:
    source = built(TREES[tree])
    return built(lambda: gtest_alone(source, overlay, [test], emulated_gpu=True))


def on_gpu(program: Path, which: str = GPU_TESTS, **settings: str) -> int:
    """Where host and device memory are apart, as on most GPUs."""
    env = {**os.environ, "SIGMOID_CE_EMULATED_MEMORY": "own", **settings}
    return run_tests(program, which, env=env)


@trees
def test_published_tests(tree: str) -> None:
    program = emulated(tree, built(TREES[tree]) / LAYER_TEST)
    assert on_gpu(program) == {"bvlc": 6, "fork": 4}[tree]


@trees
def test_own_tests(tree: str) -> None:
    """CPU and GPU give the same bits, among others. Tests of the CPU alone have no part here."""
    program = emulated(tree, OWN_TEST)
    # The layer sees nothing more of the tree than in the other tests: those bits are compared once.
    which = GPU_TESTS if tree == "bvlc" else f"{GPU_TESTS}-*SameBits*:*ManyElements"
    assert on_gpu(program, which) >= 50


def test_without_a_gpu() -> None:
    """GPU code and no GPU: the CPU's tests pass, and the GPU's end with a message."""
    program = emulated("bvlc", OWN_TEST)
    none = {"SIGMOID_CE_EMULATED_GPU": "none"}
    assert on_gpu(program, "*/0.TestPosWeight:*/1.TestDivisors", **none) == 2
    with pytest.raises(BuildError, match="an error of the emulation"):
        on_gpu(program, "*/2.TestPosWeight", **none)


@pytest.mark.long
@pytest.mark.parametrize("order", ["2", "3"])
def test_order_of_threads_and_blocks(order: str) -> None:
    assert on_gpu(emulated("bvlc", OWN_TEST), SIGMOID_CE_EMULATED_ORDER=order) >= 54


# What a mistake in the layer does: each is found by a test that names it, or ends the program.
MISTAKES = {
    "the host's values": ("channel_pos_weight_.gpu_data()", "channel_pos_weight_.cpu_data()"),
    "the host's weights of channels": ("channel_weight_.gpu_data()", "channel_weight_.cpu_data()"),
    "no weights of the classes": ("results.class_weights =", "double* unused ="),
    "classes counted again": (
        """    options.device_class_weights =
        static_cast<const double*>(class_weights_->gpu_data());""",
        "",
    ),
    "the losses on the host": ("top[1]->mutable_gpu_data()", "top[1]->mutable_cpu_data()"),
    "the host's weights": ("bottom[2]->gpu_data()", "bottom[2]->cpu_data()"),
    "the host's gradient": ("bottom[0]->mutable_gpu_diff()", "bottom[0]->mutable_cpu_diff()"),
    "no divisor": (
        "options.gradient_divisor = static_cast<const double*>(divisor_->gpu_data());",
        "",
    ),
    "loss on the host": (
        "results.loss = top[0]->mutable_gpu_data();",
        "results.loss = top[0]->mutable_gpu_data(); top[0]->cpu_data();",
    ),
    "a diff of the targets": ("CheckForwardDone();", "CheckForwardDone(); bottom[1]->gpu_diff();"),
}


@pytest.mark.long
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_found(mistake: str, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay"
    for name in ("include", "src"):
        shutil.copytree(OVERLAY / name, overlay / name)
    path = overlay / f"{LAYER}.cu"
    right, wrong = MISTAKES[mistake]
    text = path.read_text()
    assert text.count(right) == 1
    path.write_text(text.replace(right, wrong))
    program = emulated("bvlc", OWN_TEST, overlay)
    with pytest.raises(BuildError, match=r"FAILED|exit status -"):
        on_gpu(program, f"{GPU_TESTS}-*ManyElements:*Threads:*Gradient")


# Compiled by nvcc.


def compile_cu(nvcc: str, source: Path, out: Path, *flags: str | Path) -> None:
    """Any warning is an error."""
    strict = ["-Werror", "all-warnings", "-Xcompiler", "-Wall", "-Wno-deprecated-gpu-targets"]
    command = [nvcc, *strict, *flags, f"-I{OVERLAY}/include", "-c", source, "-o", out]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "warning" not in done.stderr


def headers(tree: str) -> list[Path]:
    source = built(TREES[tree])
    # The generated ones first: the fork carries a caffe.pb.h of another protobuf.
    return [CUDA_LIBRARIES, built(lambda: generated_headers(source)), source / "include"]


@pytest.mark.parametrize("standard", ["c++11", "c++17"])
def test_kernels_compile(nvcc: str, standard: str, tmp_path: Path) -> None:
    """Without a header of Caffe but ours; C++11 is what old trees may ask nvcc for."""
    compile_cu(nvcc, OVERLAY / KERNELS, tmp_path / "out.o", f"-std={standard}", "-arch=sm_90")


@pytest.mark.long
def test_kernels_compile_for_every_gpu(nvcc: str, tmp_path: Path) -> None:
    compile_cu(nvcc, OVERLAY / KERNELS, tmp_path / "out.o", "-arch=all")
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout
    assert listed
    for name in listed.split():
        assert name.encode() in (tmp_path / "out.o").read_bytes()


@pytest.mark.long
def test_kernels_compile_with_an_older_nvcc(tmp_path: Path) -> None:
    """For what it knows beyond today's: the GPUs that old lists of architectures name."""
    nvcc = old_compiler(cache_root()) / "bin/nvcc"
    if shutil.which(OLD_HOST) is None:
        missing(OLD_HOST)
    flags = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in (35, 37, 50, 52, 53, 60, 61, 62)]
    flags += ["-ccbin", OLD_HOST, "-std=c++11"]
    compile_cu(str(nvcc), OVERLAY / KERNELS, tmp_path / "out.o", *flags)


@trees
def test_layer_compiles(nvcc: str, tree: str, tmp_path: Path) -> None:
    include = [f"-isystem={folder}" for folder in headers(tree)]
    out = tmp_path / "out.o"
    compile_cu(nvcc, OVERLAY / f"{LAYER}.cu", out, "-arch=sm_90", *include)
    assert gpu_functions(out)["W"] == {"Forward_gpu", "Backward_gpu"}


def gpu_functions(compiled: Path) -> dict[str, set[str]]:
    """Names by what nm says of them."""
    done = subprocess.run(["nm", "-C", compiled], capture_output=True, text=True)
    pattern = r" (\w) caffe::\w+<(?:float|double)>::((?:For|Back)ward_gpu)\(.*\)$"
    found = re.findall(pattern, done.stdout, re.MULTILINE)
    return {kind: {name for k, name in found if k == kind} for kind, _ in found}


@pytest.mark.long
def test_gpu_build_has_our_layer_or_none(nvcc: str, tmp_path: Path) -> None:
    """The built-in .cu does not fit our class, and without ours the functions are missing, so that
    nothing else can run in their place."""
    caffe = built(stock)
    folders = [CUDA_LIBRARIES, OVERLAY / "include", *caffe.includes]
    include = [f"-I{folder}" for folder in folders]
    out = tmp_path / "out.o"

    def compiles(source: Path) -> subprocess.CompletedProcess[str]:
        command = [nvcc, *include, "-c", source, "-o", out]
        return subprocess.run(command, capture_output=True, text=True)

    built_in = compiles(caffe.source / f"{LAYER}.cu")
    assert built_in.returncode != 0
    assert "sigmoid_bottom_vec_" in built_in.stderr
    alone = compiles(OVERLAY / f"{LAYER}.cpp")
    assert alone.returncode == 0, alone.stderr[-3000:]
    assert gpu_functions(out)["U"] == {"Forward_gpu", "Backward_gpu"}


# A whole Caffe with GPU code, by its CMake: minutes.


@pytest.mark.long
def test_whole_build(nvcc: str, tmp_path: Path) -> None:
    """It links, with machine code of our kernels; what needs no GPU passes. The folder that goes to
    a machine with a GPU has all that its programs load but CUDA."""
    caffe = built(lambda: cuda_build(OVERLAY))
    symbols = subprocess.run(["nm", "-DC", caffe.library], capture_output=True, text=True).stdout
    assert "sigmoid_ce::cuda::forward(" in symbols
    assert "SigmoidCrossEntropyLossLayer<float>::Forward_gpu" in symbols

    folder = prepare(tmp_path / "prepared", OVERLAY)
    command = ["sh", folder / "run.sh"]
    env = {**os.environ, "SIGMOID_CE_CUDA_LIBRARIES": str(caffe.toolkit / "lib64")}
    done = subprocess.run([*command, "cpu"], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    passed = re.findall(r"^(\w+): (\d+) tests passed, exit status 0$", done.stdout, re.MULTILINE)
    assert dict(passed).keys() == {"test_published", "test_own"}
    timed = re.findall(
        r"^time (\S+) 1048576 forward [\d.]+ backward [\d.]+", done.stdout, re.MULTILINE
    )
    assert timed == ["built-in", "ours"]


@pytest.mark.long
def test_plugin_with_gpu_code(nvcc: str, tmp_path: Path) -> None:
    """Loads beside a Caffe with GPU code, and computes on the CPU where there is no GPU."""
    caffe = built(lambda: cuda_build(OVERLAY))
    out = tmp_path / "plugin.so"
    command = [sys.executable, "-m", "sigmoid_ce", "caffe", "plugin", "-o", out, "--arch", "90"]
    for folder in caffe.includes:
        command += ["--include", folder]
    command += ["--lib", caffe.library]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "with GPU code" in done.stdout
    assert b"sm_90" in out.read_bytes()
    # The runtime's own functions are inside, and none is seen from outside.
    symbols = subprocess.run(["nm", "-D", out], capture_output=True, text=True).stdout
    assert not re.search(r" [TWUV] _*cuda[A-Z]", symbols), symbols

    net = tmp_path / "net.prototxt"
    net.write_text(
        """
        force_backward: true
        layer { name: "d" type: "DummyData" top: "x" top: "t" dummy_data_param {
          shape { dim: 8 dim: 5 } shape { dim: 8 dim: 5 }
          data_filler { type: "gaussian" } data_filler { type: "constant" value: 1 } } }
        layer { name: "loss" type: "OurLoss" bottom: "x" bottom: "t" top: "l" loss_weight: 1 }
        """
    )
    paths = [str(caffe.library.parent), str(caffe.toolkit / "lib64")]
    env = {
        **os.environ,
        "LD_PRELOAD": str(out),
        "LD_LIBRARY_PATH": ":".join(paths),
        "SIGMOID_CE_PLUGIN_TYPE": "OurLoss",
    }
    timed = [caffe.binary, "time", "-model", net, "-iterations", "2"]
    done = subprocess.run(timed, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"loss\s+backward: [\d.]+ ms", done.stderr)

    target = tmp_path / "build"
    options = [
        f"-DSIGMOID_CE_CAFFE_LIBRARY={caffe.library}",
        f"-DSIGMOID_CE_CAFFE_INCLUDE_DIRS={';'.join(map(str, caffe.includes))}",
        "-DCMAKE_CUDA_ARCHITECTURES=90",
        "-DSIGMOID_CE_CUDA=OFF",
    ]
    subprocess.run(["cmake", "-S", ROOT, "-B", target, *options], check=True, capture_output=True)
    make = ["cmake", "--build", target, "--target", "sigmoid_ce_caffe_plugin", "--parallel", "2"]
    subprocess.run(make, check=True, capture_output=True)
    env["LD_PRELOAD"] = str(target / "sigmoid_ce_caffe_plugin.so")
    done = subprocess.run(timed, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]


def test_plugin_without_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a Caffe with GPU code, for which a library with its symbols stands in."""
    caffe = built(stock)
    source, library = tmp_path / "gpu.cpp", tmp_path / "libcaffe.so"
    source.write_text(
        "namespace caffe { template <class T> struct Layer { void f(); };"
        "template <class T> void Layer<T>::f() {} template struct Layer<float>;"
        "void caffe_gpu_memcpy(unsigned long, const void*, void*) {} }"
    )
    subprocess.run(["c++", "-shared", "-fPIC", source, "-o", library], check=True)
    out = tmp_path / "p.so"
    with pytest.raises(ValueError, match=r"^nvcc: .* has GPU code, .* no-such-nvcc is not there"):
        build_plugin(caffe.includes, library, out, nvcc="no-such-nvcc")
    for name in ("NVCC", "CUDA_HOME"):
        monkeypatch.setenv(name, "/none")
        with pytest.raises(ValueError, match=r"^nvcc: .* /none.* is not there; .*CUDA_HOME"):
            build_plugin(caffe.includes, library, out)
        monkeypatch.delenv(name)
    # One that says why it does not work.
    broken = tmp_path / "nvcc"
    broken.write_text("#!/bin/sh\necho 'nvcc fatal : no licence' >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(ValueError, match=r"^nvcc: nvcc fatal : no licence"):
        build_plugin(caffe.includes, library, out, nvcc=str(broken))
    with pytest.raises(ValueError, match=r"^architectures: expected numbers .*, got 'sm_9'"):
        build_plugin(caffe.includes, library, out, nvcc=str(broken), architectures=["sm_9"])
    with pytest.raises(ValueError, match=r"^cpu_only: .* has GPU code"):
        build_plugin(caffe.includes, library, out, cpu_only=True)
    assert not out.exists()
