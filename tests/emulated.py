"""A package whose _cuda is compiled for the GPU of tests/native/emulation; the build is kept."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import sigmoid_ce as sce
from conftest import NATIVE_BUILD, NATIVE_OPTIONS, ROOT, build_lock, missing, tool
from instrumented import run


def build_module() -> Path:
    cmake = tool("cmake")
    if cmake is None:
        missing("cmake")
    assert cmake is not None
    pybind11 = run([sys.executable, "-m", "pybind11", "--cmakedir"]).strip()
    run(
        [
            cmake,
            *("-S", str(ROOT)),
            *("-B", str(NATIVE_BUILD)),
            *NATIVE_OPTIONS,
            "-DSIGMOID_CE_PYTHON=ON",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11}",
        ]
    )
    run([cmake, "--build", str(NATIVE_BUILD), "--target", "_cuda", "--parallel", "2"])
    # As the programs' own configuration has it: an installation would want all of the module.
    run([cmake, "-S", str(ROOT), "-B", str(NATIVE_BUILD), "-DSIGMOID_CE_PYTHON=OFF"])
    (module,) = NATIVE_BUILD.glob("_cuda*.so")
    return module


def package(target: Path) -> Path:
    """What PYTHONPATH needs for a sigmoid_ce with that module, and the installed one of the CPU."""
    folder = target / "sigmoid_ce"
    shutil.copytree(
        ROOT / "python" / "sigmoid_ce", folder, ignore=shutil.ignore_patterns("__pycache__")
    )
    (cpu,) = Path(sce.cpu.__file__).parent.glob("_cpu*.so")
    with build_lock(NATIVE_BUILD):
        for module in (cpu, build_module()):
            shutil.copy(module, folder)
    return target
