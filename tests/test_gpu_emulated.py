"""What is to run on a GPU one day has run before, on the emulated one: test_gpu.py, and the
programs of tools/gpu_verify.sh.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import emulated
from conftest import NATIVE_BUILD, ROOT, missing, tool


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return emulated.package(tmp_path_factory.mktemp("emulated"))


def run(package: Path, *arguments: str, gpu: str = "emulated") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "tests/test_gpu.py", "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(package), "SIGMOID_CE_GPU": gpu}
    return subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_the_gpu_tests_pass_on_the_emulated_gpu(package: Path) -> None:
    done = run(package)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    counts = re.search(r"(\d+) passed, (\d+) skipped", done.stdout)
    assert counts, done.stdout[-2000:]
    # What is skipped is only what needs PyTorch on a GPU.
    assert int(counts[1]) > 500
    reasons = set(re.findall(r"SKIPPED \[\d+\] [^:]+:\d+: (.*)", done.stdout))
    assert reasons == {"streams and graphs are a GPU's"}


@pytest.mark.parametrize("gpu", ["", "1"])
def test_without_a_gpu(package: Path, gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skipped with the reason; a failure where a GPU is promised."""
    monkeypatch.setenv("SIGMOID_CE_EMULATED_GPU", "none")
    done = run(package, "-k", "empty or info", gpu=gpu)
    assert "no GPU that CUDA can use" in done.stdout
    assert "passed" not in done.stdout
    if gpu:
        assert done.returncode == 1
    else:
        assert done.returncode == 0
        assert re.search(r"^\d+ skipped", done.stdout, re.MULTILINE)


# ---- The programs ----

NATIVE = ROOT / "tests" / "native"


@pytest.fixture(scope="module")
def gpu_small(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = tool(os.environ.get("CXX", "c++"))
    if compiler is None:
        missing("a C++ compiler")
    program = tmp_path_factory.mktemp("programs") / "gpu_small"
    folders = [ROOT / "cpp", ROOT / "cpp/include", NATIVE, NATIVE / "emulation"]
    libraries = [NATIVE_BUILD / f"lib{name}.a" for name in ("sigmoid_ce_cuda", "sigmoid_ce")]
    command = [str(compiler), "-std=c++14", "-O2", "-Wall", "-Wextra", "-Werror"]
    command += [f"-I{folder}" for folder in folders]
    command += ["-xc++", str(NATIVE / "gpu_small.cu"), "-xnone", *map(str, libraries)]
    done = subprocess.run(
        [*command, "-pthread", "-o", str(program)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return program


@pytest.mark.parametrize("offset", ["0", "1"])
def test_small_inputs(gpu_small: Path, offset: str) -> None:
    environment = {**os.environ, "SIGMOID_CE_DIGEST_OFFSET": offset}
    done = subprocess.run([gpu_small], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    # Four passes of 27 pairs of types, two variants and four layouts.
    assert done.stdout == "ok 864\n"


def test_small_inputs_without_a_gpu(gpu_small: Path) -> None:
    environment = {**os.environ, "SIGMOID_CE_EMULATED_GPU": "none"}
    done = subprocess.run([gpu_small], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "no GPU that CUDA can use\n"


@pytest.mark.parametrize("name", ["gpu_small", "gpu_planted"])
def test_programs_compile_with_nvcc(name: str, tmp_path: Path) -> None:
    nvcc = tool("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is missing")
    command = [nvcc, "-std=c++14", "-Xcompiler", "-Wall,-Wextra,-Werror", "-Werror=all-warnings"]
    command += ["-I", str(ROOT / "cpp"), "-I", str(ROOT / "cpp/include"), "-c"]
    done = subprocess.run(
        [*command, str(NATIVE / f"{name}.cu"), "-o", str(tmp_path / "object.o")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
