"""Builds by CMakePresets.json, the Python module included, and a package with that module."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from conftest import ROOT, missing, tool


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout


def build(preset: str, *, python: bool) -> Path:
    """The folder of a preset's build; it is kept between runs."""
    cmake = tool("cmake")
    if cmake is None:
        missing("cmake")
    assert cmake is not None
    options = ["-DSIGMOID_CE_PYTHON=OFF"]
    if python:
        pybind11 = run([sys.executable, "-m", "pybind11", "--cmakedir"]).strip()
        options = [
            "-DSIGMOID_CE_PYTHON=ON",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11}",
        ]
    run([cmake, "--preset", preset, *options])
    run([cmake, "--build", "--preset", preset])
    return ROOT / "build" / preset


def package(folder: Path, target: Path) -> Path:
    """What PYTHONPATH needs for a sigmoid_ce with the module of a build."""
    shutil.copytree(
        ROOT / "python" / "sigmoid_ce",
        target / "sigmoid_ce",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    (module,) = folder.glob("_cpu*.so")
    shutil.copy(module, target / "sigmoid_ce")
    return target
