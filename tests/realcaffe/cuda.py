"""BVLC Caffe with GPU code: built on a machine that has nvcc, run on one that has a GPU.

`cuda_build(overlay)` is Caffe's own CMake build with the overlay's files in the tree; the stock one
is made first and kept, and only what the overlay changes is compiled after that. cuBLAS and cuRAND
come from Python's package index, as `pip download` gets them, and are joined with the toolkit of
the nvcc on the PATH. `prepare(folder)` puts together what a machine with a GPU needs; see there.

    python -m tests.realcaffe cuda FOLDER
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .builds import (
    LAYER,
    LAYER_TEST,
    OPTIONS,
    PORTS,
    Port,
    _digest_of_tree,
    _machine,
    _need,
    _overlay_files,
    check_machine,
    copy_tree,
)
from .cache import BuildError, Missing, digest, entry, execute, jobs, lock
from .fetch import bvlc_source

# Increase when this file makes something else of the same tree.
RECIPE = 1
# What the GPUs at hand take: machine code for Hopper, and PTX of it for what comes after.
ARCHITECTURE = "90"

# Of Python's package index, by the CUDA that nvcc is of.
LIBRARIES = {"13.0": ("nvidia-cublas==13.0.*", "nvidia-curand==10.4.0.35")}

CUDA_PORTS = (
    *PORTS,
    Port(
        "src/caffe/common.cpp",
        r'(?m)^  LOG\(INFO\) << "(?:Clock rate|Concurrent copy and execution|Kernel execution '
        r"timeout)[^;]*;\n",
        "",
        "CUDA 13 dropped clockRate, deviceOverlap and kernelExecTimeoutEnabled",
    ),
    Port(
        "src/caffe/util/math_functions.cu",
        r"(?m)^#include <math_functions.h>.*\n",
        "",
        "CUDA has it in cuda_runtime.h now",
    ),
    Port(
        "src/caffe/net.cpp",
        r"(?m)^  if \((H5Fis_hdf5.*)\) \{\n(.*)\n  \} else \{\n",
        r"#ifdef USE_HDF5\n  if (\1) {\n\2\n  } else  // NOLINT\n#endif\n  {\n",
        "a guard that builds without HDF5 lack",
    ),
    Port(
        "src/caffe/CMakeLists.txt",
        r"target_compile_definitions\(caffe \$\{Caffe_DEFINITIONS\}\)",
        "target_compile_definitions(caffe PUBLIC ${Caffe_DEFINITIONS})",
        "without the libraries below there may be none, which CMake refuses",
    ),
)


@dataclass(frozen=True)
class CudaBuild:
    """A Caffe with GPU code. Paths are absolute, and belong to the cache: read them only."""

    root: Path
    source: Path
    # For -I: generated headers, the tree's, and those of CUDA, cuBLAS and cuRAND.
    includes: tuple[Path, ...]
    library: Path
    binary: Path
    test: Path
    # Libraries to load these with: of the toolkit.
    toolkit: Path


def nvcc() -> str:
    found = shutil.which("nvcc")
    if found is None:
        raise Missing("nvcc (the CUDA compiler; on the PATH)")
    return found


def _version() -> str:
    asked = subprocess.run([nvcc(), "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+\.\d+)", asked)
    assert found, asked
    return found[1]


def _folders() -> tuple[list[Path], list[Path]]:
    """The toolkit's own folders of headers and of libraries, as nvcc says them."""
    asked = subprocess.run([nvcc(), "--dryrun", "x.cu"], capture_output=True, text=True).stderr
    found = []
    for name, flag in (("INCLUDES", "I"), ("LIBRARIES", "L")):
        line = re.search(rf"^#\$ {name}=(.*)$", asked, re.MULTILINE)
        assert line, asked
        found.append([Path(path).resolve() for path in re.findall(rf'"-{flag}([^"]+)"', line[1])])
    return found[0], [path for path in found[1] if path.name != "stubs"]


def toolkit() -> Path:
    """A folder like a CUDA toolkit's, with cuBLAS and cuRAND. Raises Missing."""
    version = _version()
    packages = LIBRARIES.get(version)
    if packages is None:
        raise Missing(f"cuBLAS and cuRAND for CUDA {version} (known: those for {list(LIBRARIES)})")

    def make(folder: Path) -> None:
        log = folder / "log"
        wheels = folder / "wheels"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
        execute([*command, wheels, *packages], log)
        for path in wheels.iterdir():
            with zipfile.ZipFile(path) as packed:
                packed.extractall(folder / "unpacked")
        shutil.rmtree(wheels)
        includes, libraries = _folders()
        # FindCUDA looks for bin/nvcc, include and lib64.
        (folder / "bin").mkdir()
        (folder / "bin/nvcc").symlink_to(nvcc())
        unpacked = next((folder / "unpacked/nvidia").iterdir())
        for name, sources in (
            ("include", [*includes, unpacked / "include"]),
            ("lib64", [*libraries, unpacked / "lib"]),
        ):
            (folder / name).mkdir()
            for source in sources:
                for path in source.iterdir():
                    # Wheels have no unversioned names for the linker.
                    for file in (path.name, re.sub(r"\.so\.\d+$", ".so", path.name)):
                        link = folder / name / file
                        if not link.is_symlink():
                            link.symlink_to(path)

    name = digest(RECIPE, version, packages, [str(path) for paths in _folders() for path in paths])
    return entry(f"cuda-toolkit-{name}", make)


def _options(kit: Path) -> list[str]:
    changed = {"CPU_ONLY", "BLAS", "BUILD_docs", "CMAKE_BUILD_TYPE"}
    kept = [o for o in OPTIONS if o[2:].partition("=")[0] not in changed]
    return [
        *kept,
        "-DCMAKE_BUILD_TYPE=Release",
        "-DBUILD_docs=OFF",
        "-DBUILD_python=OFF",
        "-DBLAS=Open",
        "-DUSE_HDF5=OFF",
        "-DUSE_CUDNN=OFF",
        "-DUSE_NCCL=OFF",
        "-DCUDA_ARCH_NAME=Manual",
        f"-DCUDA_ARCH_BIN={ARCHITECTURE}",
        f"-DCUDA_ARCH_PTX={ARCHITECTURE}",
        f"-DCUDA_TOOLKIT_ROOT_DIR={kit}",
        f"-DCUDA_NVCC_EXECUTABLE={kit}/bin/nvcc",
        f"-DBUILD_only_tests={LAYER}",
        # What CMake lists and nothing uses, HDF5 above all, stays at home.
        "-DCMAKE_SHARED_LINKER_FLAGS=-Wl,--as-needed",
        "-DCMAKE_EXE_LINKER_FLAGS=-Wl,--as-needed",
    ]


TARGETS = ("caffe", "caffe.bin", "test.testbin")


def _make(root: Path, kit: Path, targets: Sequence[str] = TARGETS) -> None:
    made = root / "build"
    made.mkdir(exist_ok=True)
    log = root / "log"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(kit / "lib64")}
    command: list[str | Path] = [_need("cmake"), "-G", "Ninja", *_options(kit), root / "source"]
    execute(command, log, cwd=made, env=environment)
    run = [_need("ninja"), "-j", str(jobs()), *targets]
    execute(run, log, cwd=made, env=environment)


def cuda_build(overlay: Path | None = None, *, published_test: bool = False) -> CudaBuild:
    """BVLC Caffe 1.0 with GPU code, without cuDNN, NCCL and pycaffe, with an overlay if given.

    The stock one takes ten minutes the first time. An overlay's files are copied over the same
    tree, as a user does, so that a later call with another overlay, or none, changes what is built.
    With `published_test` the tree's own test of the layer stays in its place.
    Raises Missing where the machine lacks what it takes, BuildError when it fails.
    """
    check_machine()
    kit = toolkit()
    tree = bvlc_source()

    def make(root: Path) -> None:
        _copy_ported(tree, root / "source")
        _make(root, kit)

    name = digest(RECIPE, _digest_of_tree(tree), CUDA_PORTS, _options(kit), _machine(), _version())
    root = entry(f"cuda-{name}", make)
    with lock(f"{root.name}-overlay"):
        _put(root, tree, overlay, {LAYER_TEST} if published_test else set())
        _make(root, kit)
    built = root / "build"
    return CudaBuild(
        root=root,
        source=root / "source",
        includes=(built / "include", built, root / "source/include", kit / "include"),
        library=(built / "lib/libcaffe.so").resolve(),
        binary=(built / "tools/caffe").resolve(),
        test=built / "test/test.testbin",
        toolkit=kit,
    )


def _copy_ported(tree: Path, to: Path) -> None:
    copy_tree(tree, to)
    for port in CUDA_PORTS:
        path = to / port.path
        text = path.read_text()
        ported = re.sub(port.pattern, port.replacement, text)
        if ported != text:
            path.write_text(ported)


def _put(root: Path, tree: Path, overlay: Path | None, without: set[str]) -> None:
    """The overlay's files over the tree, and the tree's own where an earlier overlay's were. Files
    that stay the same keep their times, and are not compiled again."""
    listed = root / "overlaid"
    before = listed.read_text().splitlines() if listed.exists() else []
    files = {}
    if overlay is not None:
        files = {path.relative_to(overlay).as_posix(): path for path in _overlay_files(overlay)}
    files = {name: path for name, path in files.items() if name not in without}
    listed.write_text("\n".join(sorted({*before, *files})))
    for name in {*before, *files}:
        source = files.get(name, tree / name)
        target = root / "source" / name
        if not source.exists():
            target.unlink(missing_ok=True)
        elif not target.exists() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    listed.write_text("\n".join(sorted(files)))


# ---- What goes to a machine with a GPU ----

# Of the system there; CUDA's come with its own toolkit, or with the wheels of PyTorch or CuPy.
NOT_TAKEN = re.compile(r"(ld-linux.*|lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s|cu\w+))\.so.*")

NET = """\
force_backward: true
layer { name: "data" type: "DummyData" top: "scores" top: "targets"
  dummy_data_param { shape { dim: %(count)d } shape { dim: %(count)d }
    data_filler { type: "constant" value: 0.5 } data_filler { type: "constant" value: 1 } } }
layer { name: "loss" type: "SigmoidCrossEntropyLoss"
  bottom: "scores" bottom: "targets" top: "loss" }
"""
COUNTS = (20, 24, 26)  # powers of 2

RUN = Path(__file__).with_name("run_on_gpu.sh")


def prepare(folder: Path, overlay: Path) -> Path:
    """Fills a new folder with what a machine with a GPU needs to run the layer in a real Caffe:

    run.sh                runs all of it there, says what passed and how long the layer takes; exit
                          status 0: all passed. `run.sh cpu`: what of it needs no GPU
    bin/test_published    Caffe's own test of the layer, on ours
    bin/test_own          ours
    bin/caffe             the command line
    lib/                  libcaffe.so with our layer, and what it needs beside CUDA
    lib/stock/            libcaffe.so with the built-in layer, for the times
    nets/                 what is timed

    The machine: x86-64 Linux with a C library no older than here, a GPU of ARCHITECTURE or later,
    and the libraries cudart and cuBLAS of nvcc's CUDA, and cuRAND, which the wheels of PyTorch and
    CuPy bring too. Not there: a compiler, Python packages, a network. Fifteen minutes the first
    time, then two.
    """
    folder.mkdir(parents=True)
    for name in ("bin", "lib/stock", "nets"):
        (folder / name).mkdir(parents=True)
    strip = shutil.which("strip")
    if strip is None:
        raise Missing("strip (Debian's package binutils)")

    def take(source: Path, target: Path) -> None:
        shutil.copy2(source.resolve(), target)
        subprocess.run([strip, "--strip-unneeded", target], check=True)

    # The library as it is called by those that need it.
    built = cuda_build(None)
    name = built.library.name
    take(built.library, folder / "lib/stock" / name)
    built = cuda_build(overlay, published_test=True)
    take(built.test, folder / "bin/test_published")
    built = cuda_build(overlay)
    take(built.test, folder / "bin/test_own")
    take(built.binary, folder / "bin/caffe")
    take(built.library, folder / "lib" / name)
    programs = [folder / "bin/test_own", folder / "bin/caffe"]
    libraries = {name: path for p in programs for name, path in _needed(p, built).items()}
    small = _reference_blas()
    if small is not None:
        # In OpenBLAS's place: the GPU computes here.
        libraries = {n: path for n, path in libraries.items() if not n.startswith("libopenblas")}
        libraries |= _needed(small, built) | {"libopenblas.so.0": small}
    for name, path in libraries.items():
        if not (folder / "lib" / name).exists():
            take(path, folder / "lib" / name)
    for power in COUNTS:
        (folder / f"nets/{2**power}.prototxt").write_text(NET % {"count": 2**power})
    run = folder / "run.sh"
    shutil.copyfile(RUN, run)
    run.chmod(0o755)
    return folder


def _reference_blas() -> Path | None:
    """Debian's libblas, a fiftieth of OpenBLAS; None where it cannot be had."""

    def make(folder: Path) -> None:
        log = folder / "log"
        execute(["apt-get", "-q", "download", "libblas3"], log, cwd=folder)
        (package,) = folder.glob("libblas3_*.deb")
        execute(["dpkg", "-x", package, folder / "unpacked"], log)

    try:
        folder = entry("libblas3", make)
    except (BuildError, OSError):
        return None
    return next(folder.glob("unpacked/usr/lib/*/blas/libblas.so.3"), None)


def _needed(program: Path, built: CudaBuild) -> dict[str, Path]:
    """The shared libraries that a program loads, by name."""
    paths = f"{built.library.parent}:{built.toolkit / 'lib64'}"
    asked = subprocess.run(
        ["ldd", str(program)],
        capture_output=True,
        text=True,
        env={**os.environ, "LD_LIBRARY_PATH": paths},
    )
    found = re.findall(r"^\s+(\S+) => (/\S+)", asked.stdout, re.MULTILINE)
    return {name: Path(path) for name, path in found if NOT_TAKEN.fullmatch(name) is None}
