"""`sigmoid_ce` for arrays on a GPU, on machines without one: the emulated GPU, and no kernels."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import emulated
import sigmoid_ce as sce
from conftest import ROOT, missing


def environment(package: Path) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("SIGMOID_CE_")}
    paths = [str(package), env.get("PYTHONPATH", "")]
    return env | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def test_on_the_emulated_gpu(tmp_path: Path) -> None:
    """cuda_python_cases.py, in a process where sigmoid_ce is the package with that GPU."""
    for name in ("cuda.core.utils", "ml_dtypes"):
        try:
            importlib.import_module(name)
        except ImportError:
            missing(name)
    package = emulated.package(tmp_path)
    cases = ROOT / "tests" / "cuda_python_cases.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)],
        env=environment(package),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]


WITHOUT_KERNELS = """
import json, sys
import numpy as np
import sigmoid_ce as sce

class Plain:
    __cuda_array_interface__ = {}

assert "sigmoid_ce.cuda" not in sys.modules, "imported when it has a use"
x = Plain()
messages = []
for call in (sce.forward, sce.cuda.backward, sce.partial):
    try:
        call(x, x)
    except RuntimeError as error:
        assert type(error) is RuntimeError
        messages.append(str(error))
assert len(set(messages)) == 1, messages
print(messages[0])
try:
    sce.forward(np.zeros(3), x)
except TypeError as error:
    print(error)
info = sce.info()
assert info["devices"] == ["cpu"]
print(json.dumps(info["cuda"]))
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"torch", "jax", "cupy", "numba", "cuda"}, loaded
from sigmoid_ce import cli
cli.run(["info"])
"""


def test_without_kernels(tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "python" / "sigmoid_ce",
        tmp_path / "sigmoid_ce",
        ignore=shutil.ignore_patterns("__pycache__", "_cuda*.so"),
    )
    (cpu,) = Path(sce.cpu.__file__).parent.glob("_cpu*.so")
    shutil.copy(cpu, tmp_path / "sigmoid_ce")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_KERNELS],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    why = "this build of sigmoid_ce has no CUDA kernels (No module named 'sigmoid_ce._cuda')"
    refusal, mixed, facts, *lines = done.stdout.splitlines()
    assert refusal == (
        f"{why}; install it where nvcc is found, with pip install -C "
        "cmake.define.SIGMOID_CE_CUDA=ON, or copy the arrays to the CPU"
    )
    assert mixed.startswith("targets: expected an array on the CPU, as scores are, got ")
    assert facts == (
        '{"built": false, "runtime": null, "driver": null, "devices": [], "reason": '
        "\"this build has no CUDA kernels (No module named 'sigmoid_ce._cuda')\"}"
    )
    (line,) = [line for line in lines if line.startswith("cuda ")]
    assert line.split(maxsplit=1)[1] == (
        "this build has no CUDA kernels (No module named 'sigmoid_ce._cuda')"
    )


def test_info_agrees_with_itself() -> None:
    """Whatever this build and this machine have."""
    info = sce.info()
    facts = info["cuda"]
    assert info["devices"][0] == "cpu"
    assert len(info["devices"]) == 1 + len(facts["devices"])
    assert (facts["reason"] is None) == bool(facts["devices"])
    if facts["built"]:
        assert facts["runtime"]
    if not facts["devices"]:
        with pytest.raises(RuntimeError):
            sce.cuda.forward(OnAGpu(), OnAGpu())


class OnAGpu:
    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0
