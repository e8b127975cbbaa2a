"""Long: the CUDA part by other toolkits than the one on the PATH, newer and older.

The newest comes from NVIDIA's packages on PyPI, as docs/cpp.md says. Of the older ones PyPI has
headers and an assembler; the compiler is that of Debian 12 (component non-free), which is unpacked,
not installed.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cuda_code
from conftest import ROOT, missing, tool
from test_packaging import check_cuda_consumer

pytestmark = pytest.mark.long

NEWEST = [
    "nvidia-cuda-nvcc",
    "nvidia-cuda-runtime",
    "nvidia-cuda-crt",
    "nvidia-cuda-cccl",
    "nvidia-nvvm",
]
OLD = "11.8.89"
# What CUDA 11.8 knows. It takes no host compiler after GCC 11.
OLD_ARCHITECTURES = ["75", "80", "86", "89", "90"]
OLD_HOST = "g++-11"
# Stack, stores and loads of all kernels, in bytes: one double of the general forward_backward of
# float64 scores and float32 targets, for sm_90 alone. Newer compilers need none.
OLD_SPILLS = {"kernels_float64": 3 * 8}
DEBIAN_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
OLD_PROFILE = """\
TOP = $(_HERE_)/..
NVVMIR_LIBRARY_DIR = $(TOP)/libdevice
PATH += $(_HERE_):
INCLUDES += "-I$(TOP)/include" $(_SPACE_)
"""


def run(command: list[str], **options: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    output: str = done.stdout + done.stderr
    assert done.returncode == 0, " ".join(command) + "\n" + output[-4000:]
    return output


def pip(target: Path, *names: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    done = subprocess.run([*command, str(target), *names], capture_output=True, text=True)
    if done.returncode != 0:
        missing(f"{' '.join(names)} from a package index")


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="packages for x86_64")
def test_compiler_from_pypi(tmp_path: Path) -> None:
    """Another version of the toolkit, without one on the machine: builds, links, and starts."""
    document = (ROOT / "docs" / "cpp.md").read_text()
    assert all(f" {name} " in document.replace("\n", " ") for name in NEWEST)
    pip(tmp_path / "site", *(f"{name}>=13" for name in NEWEST))
    (cuda,) = (tmp_path / "site" / "nvidia").glob("cu*")
    cmake = tool("cmake")
    if cmake is None:
        missing("cmake")
    assert cmake is not None
    print(run([str(cuda / "bin" / "nvcc"), "--version"]))
    library = tmp_path / "library"
    environment = {**os.environ, "CUDACXX": str(cuda / "bin" / "nvcc")}
    options = ["-DSIGMOID_CE_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=90"]
    run([cmake, "-S", str(ROOT), "-B", str(library), *options], env=environment)
    run([cmake, "--build", str(library), "--parallel", "2"])
    # A consumer's CMake must find the toolkit by itself.
    (runtime,) = (cuda / "lib").glob("libcudart.so.*")
    assert "-DCUDAToolkit_ROOT=$CUDA -DCUDA_CUDART=$(echo $CUDA/lib/libcudart.so.*)" in document
    names = [f"-DCUDAToolkit_ROOT={cuda}", f"-DCUDA_CUDART={runtime}"]
    said = check_cuda_consumer(library, tmp_path, *names)
    print(said)
    assert "devices" in said


def old_compiler(cache: Path) -> Path:
    """nvcc 11.8: put together once, and kept."""
    folder = cache / f"cuda-{OLD}"
    if (folder / "bin" / "nvcc").exists():
        return folder
    for name in ("apt-get", "dpkg-deb"):
        if shutil.which(name) is None:
            pytest.skip(f"no {name}, which unpacks Debian's compiler")
    work = cache / "cuda-work"
    shutil.rmtree(work, ignore_errors=True)
    (work / "lists" / "partial").mkdir(parents=True)
    (work / "archives" / "partial").mkdir(parents=True)
    # The machine's own source of packages, with a component more.
    query = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)"]
    lines = run([*query, "Created-By: Packages"]).splitlines()
    found = [line for line in lines if line.endswith(" bookworm")]
    if not found:
        pytest.skip("not Debian 12, whose compiler is CUDA 11.8")
    (work / "sources.list").write_text(
        f"deb [signed-by={DEBIAN_KEYS}] {found[0]} main contrib non-free\n"
    )
    (work / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{work}/sources.list";\nDir::Etc::sourceparts "-";\n'
        f'Dir::State::lists "{work}/lists";\nDir::Cache "{work}";\n'
    )
    environment = {**os.environ, "APT_CONFIG": str(work / "apt.conf")}
    for command in (["update"], ["download", "nvidia-cuda-toolkit"]):
        done = subprocess.run(
            ["apt-get", *command], capture_output=True, text=True, env=environment, cwd=work
        )
        if done.returncode != 0:
            missing("CUDA 11.8 among Debian's packages")
    (package,) = work.glob("nvidia-cuda-toolkit_11.8*.deb")
    run(["dpkg-deb", "-x", str(package), str(work / "root")])
    pip(work / "site", f"nvidia-cuda-nvcc-cu11=={OLD}", f"nvidia-cuda-runtime-cu11=={OLD}")

    made, usr = work / "made", work / "root" / "usr"
    toolkit = usr / "lib" / "nvidia-cuda-toolkit"
    shutil.copytree(toolkit / "libdevice", made / "libdevice")
    (made / "bin").mkdir()
    for name in ("nvcc", "cicc"):
        shutil.copy(toolkit / "bin" / name, made / "bin")
    for name in ("cudafe++", "ptxas", "fatbinary", "nvlink", "bin2c"):
        shutil.copy(usr / "bin" / name, made / "bin")
    (made / "bin" / "nvcc.profile").write_text(OLD_PROFILE)
    for part in ("cuda_runtime", "cuda_nvcc"):
        include = work / "site" / "nvidia" / part / "include"
        shutil.copytree(include, made / "include", dirs_exist_ok=True)
    made.rename(folder)
    shutil.rmtree(work)
    return folder


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="packages for x86_64")
@pytest.mark.parametrize("source", sorted(p.stem for p in (ROOT / "cuda").glob("*.cu")))
def test_older_compiler(source: str, tmp_path: Path) -> None:
    """C++14 that CUDA 11 takes, without a warning or a spill but one."""
    cache = os.environ.get("SIGMOID_CE_CACHE") or Path.home() / ".cache" / "sigmoid_ce"
    nvcc = old_compiler(Path(cache)) / "bin" / "nvcc"
    if shutil.which(OLD_HOST) is None:
        missing(OLD_HOST)
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in OLD_ARCHITECTURES]
    said = run(
        [
            *(str(nvcc), "-ccbin", OLD_HOST, "-std=c++14", "-O3", "-Xptxas=-v"),
            *("-Xcompiler=-Wall,-Wextra", "-Werror=all-warnings"),
            *(*targets, *cuda_code.includes()),
            *("-c", "-o", str(tmp_path / "object.o"), str(ROOT / "cuda" / f"{source}.cu")),
        ]
    )
    kernels = len(re.findall(r"Compiling entry function", said))
    used = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill", said)
    print(f"{source}: {kernels} kernels")
    assert len(used) == said.count("bytes stack frame") >= kernels
    assert sum(map(int, itertools.chain(*used))) <= OLD_SPILLS.get(source, 0)
    assert kernels > 0 or source == "launch"
