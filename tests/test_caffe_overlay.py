"""The overlay's files by themselves: fresh, clean under Caffe's lint, and fit for old compilers."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import ROOT, missing, tool
from tests.realcaffe import (
    CaffeBuild,
    Missing,
    bvlc_source,
    gtest_program,
    run_tests,
    stock,
    with_overlay,
)
from tests.test_caffe_layer import cases, run_float

OVERLAY = ROOT / "caffe"
# What goes over a tree; beside it are things that do not.
FILES = sorted(
    path
    for folder in ("include", "src")
    for path in (OVERLAY / folder).rglob("*")
    if path.suffix in (".hpp", ".cpp", ".cu")
)

# Caffe's script is Python 2, but for these names its text is Python 3 as well.
RUN_LINT = """
import builtins, sys, warnings
warnings.simplefilter("ignore")
builtins.xrange, builtins.unicode = range, str
path, *sys.argv[1:] = sys.argv[1:]
text = open(path, encoding="utf-8").read()
# A view cannot be sorted in place.
text = text.replace("= include_state.keys()", "= list(include_state.keys())")
sys.argv[0] = path
exec(compile(text, path, "exec"), {"__name__": "__main__"})
"""


def test_generated_files_are_fresh() -> None:
    if tool("clang-format") is None:
        missing("clang-format")
    command = [sys.executable, ROOT / "tools/make_overlay.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"run tools/make_overlay.py\n{done.stdout[:4000]}{done.stderr}"


def lint(tree: Path, files: list[Path], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN_LINT, tree / "scripts/cpp_lint.py", *files]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


def test_caffes_lint(tmp_path: Path) -> None:
    try:
        tree = bvlc_source()
    except Missing as error:
        missing(str(error))
    assert len(FILES) >= 9, FILES  # kernels, layer and test
    # Header guards are named by the path below the root of a repository.
    for path in FILES:
        copy = tmp_path / path.relative_to(OVERLAY)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    (tmp_path / ".git").mkdir()
    copies = [path.relative_to(OVERLAY) for path in FILES]
    done = lint(tree, copies, tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr.count("Done processing") == len(FILES)

    # It does find faults.
    faulty = tmp_path / "src/caffe/faulty.cpp"
    faulty.write_text("#include <string>\nvoid f(void* a, void* b) { memcpy(a, b, 1); }\n")
    done = lint(tree, [faulty.relative_to(tmp_path)], tmp_path)
    assert done.returncode != 0
    assert "caffe/alt_fn" in done.stderr


@pytest.fixture(scope="module")
def caffe() -> CaffeBuild:
    try:
        return stock()
    except Missing as error:
        missing(str(error))
        raise


@pytest.mark.long
@pytest.mark.parametrize("standard", ["c++14", "c++17"])
@pytest.mark.parametrize("compiler", ["g++-11", "clang++-14"])
def test_compilers(compiler: str, standard: str, caffe: CaffeBuild, tmp_path: Path) -> None:
    """No warning; the layer's test passes; the same bits as from the default compiler."""
    if shutil.which(compiler) is None:
        missing(compiler)
    # Warnings as in Caffe's Makefile.
    flags = [f"-std={standard}", "-Wall", "-Wno-sign-compare", "-Werror"]
    built = with_overlay(OVERLAY, caffe, cxx=compiler, flags=flags)
    program = gtest_program(built, cxx=compiler, flags=flags)
    if compiler.startswith("clang"):
        # Its programs do not share a registry of layers with a libcaffe of GCC.
        program = gtest_program(built)
    assert run_tests(program) >= 40
    if caffe.pycaffe is None:
        missing(caffe.no_pycaffe)
    nets = cases(np.float32)
    usual = run_float(with_overlay(OVERLAY, caffe), nets, tmp_path)
    assert usual.tobytes() == run_float(built, nets, tmp_path).tobytes()


# What Caffe's headers ask of cuBLAS and cuRAND, which nvcc does not bring.
CUDA_LIBRARIES = {
    "cublas_v2.h": "#pragma once\ntypedef int cublasStatus_t;\ntypedef void* cublasHandle_t;\n",
    "curand.h": "#pragma once\ntypedef int curandStatus_t;\ntypedef void* curandGenerator_t;\n",
}


@pytest.mark.long
def test_gpu_build_has_our_layer_or_none(tmp_path: Path) -> None:
    """Compiled with GPU code, never run: the built-in .cu does not fit our class, and without ours
    the functions are missing, so that nothing else can run in their place."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")
    try:
        caffe = stock()
    except Missing as reason:
        missing(str(reason))
        raise
    for name, text in CUDA_LIBRARIES.items():
        (tmp_path / name).write_text(text)
    folders = [tmp_path, OVERLAY / "include", *caffe.includes]
    include = [f"-I{folder}" for folder in folders]
    layer = "src/caffe/layers/sigmoid_cross_entropy_loss_layer"

    def compiles(source: Path) -> subprocess.CompletedProcess[str]:
        out = tmp_path / "out.o"
        out.unlink(missing_ok=True)
        command = [nvcc, "-std=c++17", *include, "-c", source, "-o", out]
        return subprocess.run(command, capture_output=True, text=True)

    def gpu_symbols() -> dict[str, set[str]]:
        done = subprocess.run(["nm", "-C", tmp_path / "out.o"], capture_output=True, text=True)
        found = re.findall(
            r" (\w) caffe::\w+<(?:float|double)>::((?:For|Back)ward_gpu)\(.*\)$",
            done.stdout,
            re.MULTILINE,
        )
        return {kind: {name for k, name in found if k == kind} for kind, _ in found}

    both = {"Forward_gpu", "Backward_gpu"}
    ours = compiles(OVERLAY / f"{layer}.cu")
    assert ours.returncode == 0, ours.stderr[-3000:]
    assert gpu_symbols()["W"] == both
    built_in = compiles(caffe.source / f"{layer}.cu")
    assert built_in.returncode != 0
    assert "sigmoid_bottom_vec_" in built_in.stderr
    alone = compiles(OVERLAY / f"{layer}.cpp")
    assert alone.returncode == 0, alone.stderr[-3000:]
    assert gpu_symbols()["U"] == both
    plugin = compiles(OVERLAY / "plugin" / "sigmoid_ce_plugin.cpp")
    assert plugin.returncode == 0, plugin.stderr[-3000:]
    assert gpu_symbols()["W"] == both
