"""The overlay's files by themselves: fresh, clean under Caffe's lint, and fit for old compilers."""

from __future__ import annotations

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
    assert len(FILES) >= 10, FILES  # kernels, layer and test
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
