"""The machine code of the CUDA kernels: found or built, and read with NVIDIA's disassembler."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
import shutil
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from conftest import ROOT, build_lock, missing, tool

BUILD = ROOT / "build" / "cuda-kernels"


def run(command: list[str], **options: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, " ".join(command) + "\n" + done.stderr[-4000:]
    output: str = done.stdout
    return output


def nvcc() -> str:
    """The compiler that CMake takes; without one the test is skipped, on any machine."""
    found = os.environ.get("CUDACXX") or shutil.which("nvcc")
    if not found:
        pytest.skip("nvcc is neither on the PATH nor named in CUDACXX")
    return found


@functools.cache
def binary_tool(name: str) -> str:
    """cuobjdump or nvdisasm: beside nvcc, on the PATH, or from NVIDIA's package on PyPI."""
    candidates = [Path(nvcc()).resolve().parent / name]
    if found := shutil.which(name):
        candidates.append(Path(found))
    try:
        distribution = importlib.metadata.distribution(f"nvidia-cuda-{name}")
        files = [f for f in distribution.files or [] if f.name == name]
        candidates += [Path(str(distribution.locate_file(f))) for f in files]
    except importlib.metadata.PackageNotFoundError:
        pass
    for candidate in candidates:
        if candidate.exists():
            return str(candidate)
    missing(f"{name} (the package nvidia-cuda-{name})")
    raise AssertionError


def is_current(library: Path) -> bool:
    """Whether it was built with CUDA, from the sources as they are."""
    cache = (library.parent / "CMakeCache.txt").read_text()
    if not re.search(r"^SIGMOID_CE_CUDA:\w+=(AUTO|ON)$", cache, re.M):
        return False
    sources = [p for folder in ("cpp", "cuda") for p in (ROOT / folder).rglob("*") if p.is_file()]
    newest = max(p.stat().st_mtime for p in sources)
    both = (library, library.parent / "libsigmoid_ce.a")
    return all(p.exists() and p.stat().st_mtime >= newest for p in both)


@functools.cache
def build_folder() -> Path:
    """A build of the C++ library with its CUDA part: the package's, or one that is made here."""
    nvcc()
    for library in ROOT.glob("build/*/libsigmoid_ce_cuda.a"):
        if is_current(library):
            return library.parent
    cmake = tool("cmake")
    if cmake is None:
        missing("cmake")
    assert cmake is not None
    options = ["-DSIGMOID_CE_CUDA=ON", "-DSIGMOID_CE_PYTHON=OFF"]
    with build_lock(BUILD):
        run([cmake, "-S", str(ROOT), "-B", str(BUILD), *options])
        run([cmake, "--build", str(BUILD), "--parallel", "2", "--target", "sigmoid_ce_cuda"])
    return BUILD


@functools.cache
def compiled() -> Path:
    """A file with all kernels: what the installed module was linked from."""
    return build_folder() / "libsigmoid_ce_cuda.a"


def cuobjdump(*arguments: str) -> str:
    # It calls nvdisasm by name.
    folder = str(Path(binary_tool("nvdisasm")).parent)
    path = os.pathsep.join([folder, os.environ.get("PATH", "")])
    return run([binary_tool("cuobjdump"), *arguments], env={**os.environ, "PATH": path})


@functools.cache
def architectures() -> list[str]:
    """Those with machine code in the file, such as 90."""
    listed = cuobjdump("--list-elf", str(compiled()))
    return sorted(set(re.findall(r"\.sm_(\d+)\.cubin", listed)), key=int)


class Kernel(NamedTuple):
    """A kernel by its types, in the words of its mangled name."""

    scores: str  # float16, bfloat16, float32, float64; "" for those that read targets alone
    targets: str  # the same, "integer", "any", or the type that is counted
    operation: str  # of OPERATIONS, or count, or class_weights
    kind: str  # of KINDS


NAMES = {"f": "float32", "d": "float64", "h": "uint8", "a": "int8", "i": "int32", "l": "int64"}
KINDS = ["plain", "general", "focal"]
NAMES |= {
    "NS_4math7Float16E": "float16",
    "NS_4math8Bfloat16E": "bfloat16",
    "NS_4math4BoolE": "bool",
    "NS0_7IntegerE": "integer",
    "NS0_3AnyE": "any",
}
TYPE = r"([fdhail]|N\w+?E(?=[NLSfdE]))"
OPERATIONS = [
    "forward",
    "elementwise",
    "backward",
    "forward_backward",
    "hessian",
    "backward_targets",
]


def kernel(mangled: str) -> Kernel:
    """Of a mangled name as g++ and nvcc make it; S3_ stands for the first type once more."""
    match = re.search(rf"pass_kernelI{TYPE}({TYPE}|S\d_)Li(\d)ELi(\d)E", mangled)
    if match:
        scores = NAMES[match[1]]
        again = match[2].startswith("S") or match[2] == match[1]
        targets = scores if again else NAMES[match[2]]
        return Kernel(scores, targets, OPERATIONS[int(match[4])], KINDS[int(match[5])])
    if "13class_weights" in mangled:
        return Kernel("", "", "class_weights", "plain")
    match = re.search(rf"count_targetsI{TYPE}", mangled)
    assert match, mangled
    return Kernel("", NAMES[match[1]], "count", "plain")


class Resources(NamedTuple):
    registers: int
    stack: int
    shared: int
    local: int


@functools.cache
def all_resources() -> dict[str, dict[Kernel, Resources]]:
    """By architecture."""
    found: dict[str, dict[Kernel, Resources]] = {}
    arch, name = "", ""
    for line in cuobjdump("--dump-resource-usage", str(compiled())).splitlines():
        if match := re.match(r"arch = sm_(\d+)", line):
            arch = match[1]
        elif match := re.match(r" Function (\w+):", line):
            name = match[1]
        elif match := re.match(r"  REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            found.setdefault(arch, {})[kernel(name)] = Resources(*map(int, match.groups()))
    return found


INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")


def count_instructions(text: str) -> dict[str, Counter[str]]:
    """Instructions with their suffixes, by the mangled name of the function."""
    found: dict[str, Counter[str]] = {}
    counts: Counter[str] = Counter()
    for line in text.splitlines():
        if match := INSTRUCTION.match(line):
            counts[match[1]] += 1
        elif match := re.match(r"\s+Function : (\w+)", line):
            counts = found[match[1]] = Counter()
    return found


@functools.cache
def all_instructions() -> dict[str, dict[Kernel, Counter[str]]]:
    """By architecture; two at a time, since the disassembler takes seconds for each."""

    def of(arch: str) -> dict[Kernel, Counter[str]]:
        text = cuobjdump("-arch", f"sm_{arch}", "-sass", str(compiled()))
        return {kernel(name): counts for name, counts in count_instructions(text).items()}

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(architectures(), pool.map(of, architectures()), strict=True))


def includes() -> list[str]:
    return ["-I", str(ROOT / "cpp"), "-I", str(ROOT / "cpp" / "include"), "-I", str(ROOT / "cuda")]
