"""Builds of a real Caffe: whole ones, ones with an overlay's files linked in, and single tests.

`build(tree)` runs Caffe's own CMake. `with_overlay` compiles only the overlay's sources, and those
stock sources that include a header which the overlay replaces, and links them with the stock
build's other object files into another libcaffe.so: seconds instead of minutes.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from .cache import (
    TIME_LIMIT,
    BuildError,
    Missing,
    digest,
    digest_of_files,
    entry,
    execute,
    jobs,
    lock,
    once,
    prune,
)
from .fetch import bvlc_source

LAYER = "sigmoid_cross_entropy_loss_layer"
LAYER_TEST = f"src/caffe/test/test_{LAYER}.cpp"
# The bundled gtest knows no [01]: float and double on the CPU, and the same on the GPU.
CPU_TESTS = "*/0.*:*/1.*"
GPU_TESTS = "*/2.*:*/3.*"
# What the layer and its test need of src/caffe.
SOURCES_OF_LAYER = (
    "blob.cpp",
    "common.cpp",
    "layer.cpp",
    "syncedmem.cpp",
    "util/math_functions.cpp",
    "layers/loss_layer.cpp",
    "layers/neuron_layer.cpp",
    "layers/sigmoid_layer.cpp",
    f"layers/{LAYER}.cpp",
    "test/test_caffe_main.cpp",
)
# Of these, what our layer does not need: their CUDA sources would be needed too.
SOURCES_OF_BUILT_IN = ("layers/neuron_layer.cpp", "layers/sigmoid_layer.cpp")
REPOSITORY = Path(__file__).resolve().parents[2]
# A GPU made of the CPU, what Caffe asks of it beyond that, and of CUDA's libraries; see the files.
EMULATION = REPOSITORY / "tests/native/emulation"
CAFFES_EMULATION = REPOSITORY / "tests/native/caffe/emulation"
CUDA_LIBRARIES = REPOSITORY / "tests/native/caffe/cuda_libraries"
# What test programs use of Caffe's own libraries.
LIBRARIES = (
    "glog",
    "gflags",
    "protobuf",
    "boost_system",
    "boost_thread",
    "boost_filesystem",
    "pthread",
)
# Increase when this file makes something else of the same tree.
RECIPE = 2

OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DCPU_ONLY=ON",
    "-DUSE_OPENCV=OFF",
    "-DUSE_LEVELDB=OFF",
    "-DUSE_LMDB=OFF",
    "-DBLAS=Open",
    "-DBUILD_docs=OFF",
    # Caffe asks for CMake 2.8, which CMake 4 no longer imitates.
    "-DCMAKE_POLICY_VERSION_MINIMUM=3.5",
)

# What Debian's packages are seen by: a program, or a header that the compiler finds.
NEEDED_PROGRAMS = {"cmake": "cmake", "ninja": "ninja-build", "protoc": "protobuf-compiler"}
NEEDED_HEADERS = {
    "google/protobuf/message.h": "libprotobuf-dev",
    "glog/logging.h": "libgoogle-glog-dev",
    "gflags/gflags.h": "libgflags-dev",
    "boost/system/error_code.hpp": "libboost-system-dev",
    "boost/thread.hpp": "libboost-thread-dev",
    "boost/filesystem.hpp": "libboost-filesystem-dev",
    "hdf5.h": "libhdf5-dev",
    "cblas.h": "libopenblas-dev",
}
# Where Debian puts headers that the compiler does not find by itself.
HEADER_FOLDERS = ("/usr/include/hdf5/serial",)
# What pycaffe imports.
NEEDED_MODULES = {
    "numpy": "numpy",
    "google.protobuf": "protobuf",
    "scipy": "scipy",
    "six": "six",
    "skimage": "scikit-image",
}


@dataclass(frozen=True)
class Port:
    """An edit without which today's compilers and libraries refuse the tree."""

    path: str
    pattern: str
    replacement: str
    reason: str


PORTS = (
    Port(
        "src/caffe/util/io.cpp",
        r"SetTotalBytesLimit\((\w+), *\w+\)",
        r"SetTotalBytesLimit(\1)",
        "protobuf 3.11 dropped the second argument, the size at which it warned",
    ),
)


@dataclass(frozen=True)
class CaffeBuild:
    """A built Caffe. Paths are absolute, and belong to the cache: read them only."""

    # The build's folder in the cache, and the folder of the whole build that it starts from.
    root: Path
    stock: Path
    # The source tree as built, which is the original with the ports.
    source: Path
    # For -I, in this order: an overlay's, the generated headers, the tree's.
    includes: tuple[Path, ...]
    # -DCPU_ONLY and the like, as this Caffe was compiled.
    defines: tuple[str, ...]
    library: Path
    binary: Path
    # A folder for PYTHONPATH with the package caffe; None where `no_pycaffe` says why.
    pycaffe: Path | None
    no_pycaffe: str = ""
    overlay: Path | None = None

    def env(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Environment for programs of this build and for Python with its pycaffe.

        The modules of the running Python are on the path too, for Python layers in the command
        line's own interpreter. Logs go to stderr only, not to files in /tmp.
        """
        paths = [str(self.pycaffe)] if self.pycaffe else []
        packages = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
        paths += dict.fromkeys(packages)
        libraries = [str(self.library.parent), os.environ.get("LD_LIBRARY_PATH", "")]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
            "GLOG_logtostderr": "1",
            **(extra or {}),
        }

    def run(
        self,
        *arguments: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """`caffe ARGUMENTS`; BuildError with the end of its output when it fails and check."""
        return _run([self.binary, *arguments], self.env(env), cwd, check)

    def python(
        self,
        code: str,
        *arguments: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Runs code, as `python -c`, that can import this build's pycaffe.

        In a process of its own: two Caffes, or a Caffe and another library that brings its own
        protobuf, do not go into one. Raises Missing where there is no pycaffe.
        """
        if self.pycaffe is None:
            raise Missing(f"pycaffe ({self.no_pycaffe})")
        return _run([sys.executable, "-c", code, *arguments], self.env(env), cwd, check)


def _run(
    command: Sequence[str | Path], env: Mapping[str, str], cwd: Path | None, check: bool
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
    )
    if check and done.returncode != 0:
        raise BuildError(
            f"exit status {done.returncode} of {command[0]}\n{done.stdout[-3000:]}"
            f"{done.stderr[-3000:]}"
        )
    return done


# What a build needs of the machine.


def _tool(name: str) -> str | None:
    """A program on the PATH or beside the interpreter, where pip puts cmake."""
    beside = str(Path(sys.executable).parent)
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), beside]))


def _need(name: str) -> str:
    found = _tool(name)
    if found is None:
        raise Missing(f"{name} (Debian's package {NEEDED_PROGRAMS.get(name, name)})")
    return found


@functools.cache
def compiler() -> str:
    """The system's C++ compiler, which made the libraries that Caffe is linked with; not CXX."""
    for name in ("c++", "g++", "clang++"):
        found = shutil.which(name)
        if found:
            return found
    raise Missing("a C++ compiler (Debian's package g++)")


def _compiler_finds(file: str) -> str | None:
    """The path of a library file among those the compiler links by themselves."""
    asked = [compiler(), f"-print-file-name={file}"]
    answer = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    # The name itself comes back when nothing was found.
    return str(Path(answer).resolve()) if os.path.isabs(answer) else None


@once
def check_machine() -> None:
    """Raises Missing, with the names of Debian's packages, where Caffe cannot be built."""
    packages = [p for name, p in NEEDED_PROGRAMS.items() if _tool(name) is None]
    probe = [compiler(), *(f"-I{folder}" for folder in HEADER_FOLDERS), "-fsyntax-only", "-xc++"]
    for header, package in NEEDED_HEADERS.items():
        code = f"#if !__has_include(<{header}>)\n#error\n#endif\n"
        done = subprocess.run([*probe, "-"], input=code, capture_output=True, text=True)
        if done.returncode != 0:
            packages.append(package)
    if packages:
        raise Missing(
            f"what a build of Caffe needs (`sh tools/setup.sh caffe`, or as root "
            f"`apt-get install {' '.join(packages)}`)"
        )


@dataclass(frozen=True)
class PythonForCaffe:
    """CMake's options for pycaffe in the running Python, or why it cannot have one."""

    options: tuple[str, ...]
    library_folder: str
    reason: str = ""
    numpy_headers: tuple[str, ...] = ()


@once
def python_for_caffe() -> PythonForCaffe:
    """Raises Missing where pycaffe is possible but for packages that can be installed."""
    number = "{}.{}".format(*sys.version_info[:2])
    boost = _compiler_finds(f"libboost_python{number.replace('.', '')}.so")
    if boost is None:
        if number == _system_python():
            raise Missing("Boost.Python (Debian's package libboost-python-dev)")
        return PythonForCaffe((), "", f"no Boost.Python for Python {number} on this machine")
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return PythonForCaffe((), "", "Boost.Python cannot be used from a free-threaded Python")
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        name = str(sysconfig.get_config_var("LDLIBRARY"))
        library = str(Path(str(sysconfig.get_config_var("LIBDIR"))) / name)
    else:
        # A Python linked statically exports the same functions, which win over the library's; only
        # `caffe` on the command line runs the library's own interpreter.
        library = _compiler_finds(f"libpython{number}.so") or ""
    if not os.path.exists(library):
        raise Missing(f"the shared library of Python {number} (Debian's package python3-dev)")
    include = sysconfig.get_path("include")
    if not os.path.exists(os.path.join(include, "Python.h")):
        raise Missing(f"Python.h of Python {number} (Debian's package python3-dev)")
    modules = [name for module, name in NEEDED_MODULES.items() if not _has_module(module)]
    if modules:
        raise Missing(f"what pycaffe imports (pip install {' '.join(modules)})")
    return PythonForCaffe(
        (
            "-DBUILD_python=ON",
            f"-Dpython_version={number}",
            f"-DPYTHON_EXECUTABLE={sys.executable}",
            f"-DPYTHON_INCLUDE_DIR={include}",
            f"-DPYTHON_LIBRARY={library}",
        ),
        str(Path(library).parent),
        numpy_headers=(_numpy_headers(),),
    )


def _numpy_headers() -> str:
    import numpy

    return numpy.get_include()


def _has_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _system_python() -> str:
    asked = ["/usr/bin/python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        return subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def _machine() -> tuple[str, ...]:
    """What changes the result of compiling the same files with the same options."""

    def first_line(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True).stdout.partition("\n")[0]

    try:
        numpy = version("numpy")
    except PackageNotFoundError:
        numpy = "none"
    compiled = first_line(compiler(), "--version")
    # Not the path of this Python: virtual environments of one Python and NumPy share a build.
    python = (sys.version, sys.base_prefix, numpy)
    return (compiled, first_line(_need("protoc"), "--version"), *python)


# Whole builds.


def copy_tree(tree: Path, to: Path, overlay: Path | None = None) -> Path:
    """A copy of a Caffe tree that one may change, ported, with an overlay's files copied over."""
    shutil.copytree(tree, to, symlinks=True, ignore=shutil.ignore_patterns(".git", "build"))
    for port in PORTS:
        path = to / port.path
        if path.exists():
            text = path.read_text()
            ported = re.sub(port.pattern, port.replacement, text)
            if ported != text:
                path.write_text(ported)
    if overlay is not None:
        for file in _overlay_files(overlay):
            target = to / file.relative_to(overlay)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    return to


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)


def _overlay_files(overlay: Path) -> list[Path]:
    """What an overlay puts into a tree; its folder may hold other things too."""
    return [*_files(overlay / "include"), *_files(overlay / "src")]


def _digest_of_tree(tree: Path) -> str:
    """Of what a build reads; documents, examples and models do not count."""
    files = [tree / "CMakeLists.txt"]
    for name in ("cmake", "include", "python", "src", "tools"):
        files += _files(tree / name)
    return digest_of_files(tree, [f for f in files if f.is_file() and f.suffix != ".pyc"])


@once
def stock() -> CaffeBuild:
    """BVLC Caffe 1.0 as published: library, command line and pycaffe. Minutes the first time."""
    return build(bvlc_source())


def build(tree: Path, overlay: Path | None = None) -> CaffeBuild:
    """A whole build of a tree by its CMake, with an overlay's files copied over it if given.

    Raises Missing where the machine lacks what it takes, BuildError when it fails.
    """
    check_machine()
    python = python_for_caffe()
    contents = [_digest_of_tree(tree), _digest_of_overlay(overlay)]
    name = digest(RECIPE, contents, PORTS, OPTIONS, python.reason, _machine())
    root = entry(f"caffe-{name}", functools.partial(_build, tree, overlay, python))
    flags = _compile_command(root, "src/caffe/blob.cpp")
    return CaffeBuild(
        root=root,
        stock=root,
        source=root / "source",
        includes=(root / "build/include", root / "build", root / "source/include"),
        defines=tuple(w for w in flags if w.startswith("-D") and w != "-Dcaffe_EXPORTS"),
        library=root / "lib/libcaffe.so",
        binary=root / "bin/caffe",
        pycaffe=root / "python" if python.options else None,
        no_pycaffe=python.reason,
    )


def _build(tree: Path, overlay: Path | None, python: PythonForCaffe, root: Path) -> None:
    source = copy_tree(tree, root / "source", overlay)
    made = root / "build"
    made.mkdir()
    log = root / "log"
    # Found from where the files are put below, which an overlay's build copies.
    paths = ["$ORIGIN/../lib", "$ORIGIN/../../lib", python.library_folder]
    rpath = f"-Wl,-rpath,'{':'.join(filter(None, paths))}'"
    command: list[str | Path] = [_need("cmake"), "-G", "Ninja", *OPTIONS]
    command += python.options or ("-DBUILD_python=OFF",)
    command += [
        f"-DCMAKE_MAKE_PROGRAM={_need('ninja')}",
        "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON",
        "-DCMAKE_SKIP_RPATH=ON",
        f"-DCMAKE_SHARED_LINKER_FLAGS={rpath}",
        f"-DCMAKE_EXE_LINKER_FLAGS={rpath}",
        str(source),
    ]
    # Flags from the environment are not in the name under which the build is kept.
    env = {k: v for k, v in os.environ.items() if k not in ("CFLAGS", "CXXFLAGS", "LDFLAGS")}
    # CMake takes arguments of the compiler from CXX, and puts them before all others: Debian's
    # Python has the headers of Debian's NumPy among its own, which must not come before ours.
    env["CXX"] = shlex.join([compiler(), *(f"-I{folder}" for folder in python.numpy_headers)])
    execute(command, log, cwd=made, env=env)
    targets = ["caffe", "caffe.bin", "gtest", *(["pycaffe"] if python.options else [])]
    ninja = _need("ninja")
    execute([ninja, "-j", str(jobs()), *targets], log, cwd=made)

    (real,) = (p for p in (made / "lib").glob("libcaffe.so*") if not p.is_symlink())
    # What a relink starts from, asked of ninja while its record is fresh.
    for file, question in (
        ("link.txt", ["-t", "commands", "-s", f"lib/{real.name}"]),
        ("deps.txt", ["-t", "deps"]),
    ):
        answer = subprocess.run([ninja, *question], cwd=made, capture_output=True, text=True)
        if answer.returncode != 0:
            raise BuildError(f"ninja {' '.join(question)}: {answer.stderr}")
        (root / file).write_text(answer.stdout)

    (root / "lib").mkdir()
    shutil.copy2(real, root / "lib" / real.name)
    if real.name != "libcaffe.so":
        (root / "lib/libcaffe.so").symlink_to(real.name)
    (root / "bin").mkdir()
    shutil.copy2(made / "tools/caffe", root / "bin/caffe")
    if python.options:
        shutil.copytree(
            source / "python/caffe",
            root / "python/caffe",
            ignore=shutil.ignore_patterns("*.so", "*.cpp", "__pycache__"),
        )
        shutil.copy2(made / "lib/_caffe.so", root / "python/caffe/_caffe.so")


# The fast way: an overlay's objects linked with the stock ones.


def _digest_of_overlay(overlay: Path | None) -> str:
    return "" if overlay is None else digest_of_files(overlay, _overlay_files(overlay))


def _compile_command(root: Path, source: str) -> list[str]:
    """The words with which the whole build at `root` compiled a source, but for -o and -c."""
    wanted = str(root / "source" / source)
    for unit in json.loads((root / "build/compile_commands.json").read_text()):
        if unit["file"] == wanted:
            words: list[str] = shlex.split(unit["command"])
            return words[: words.index("-o")]
    raise BuildError(f"{root}/build does not compile {source}")


@functools.cache
def _dependencies(root: Path) -> dict[str, set[str]]:
    """The files that each object of the whole build at `root` was compiled from."""
    found: dict[str, set[str]] = {}
    # Blocks of "OBJECT: #deps ..." and an indented line for each file.
    for block in (root / "deps.txt").read_text().split("\n\n"):
        first, *files = block.splitlines() or [""]
        found[first.partition(": #deps")[0]] = {file.strip() for file in files}
    return found


@dataclass(frozen=True)
class _Overlay:
    """The files of an overlay, sorted by what is to be done with them."""

    folder: Path
    headers: tuple[Path, ...]
    sources: tuple[Path, ...]

    @property
    def includes(self) -> tuple[Path, ...]:
        return (self.folder / "include", self.folder / "src")


def _overlay(folder: Path, *, cuda: bool = False) -> _Overlay:
    files = _overlay_files(folder)
    if any(f.suffix == ".proto" for f in files):
        raise ValueError(f"{folder} has a .proto file, on which all of Caffe depends: use build()")
    inside = folder / "src/caffe"
    tests = inside / "test"
    return _Overlay(
        folder,
        # CUDA sources have no part in a CPU_ONLY build. Whatever else is not compiled by itself
        # may be included by what is.
        tuple(f for f in files if f.suffix not in (".cpp", ".cu")),
        tuple(
            f
            for f in files
            if f.suffix in ((".cpp", ".cu") if cuda else (".cpp",))
            and f.is_relative_to(inside)
            and not f.is_relative_to(tests)
        ),
    )


@dataclass(frozen=True)
class _Unit:
    """A source to compile with a command, and what else its object depends on."""

    command: tuple[str, ...]
    source: Path
    # The contents of an overlay's headers, and its folder, whose place does not matter.
    inputs: str = ""
    overlay: Path | None = None

    def key(self) -> str:
        words = " ".join(self.command)
        if self.overlay is not None:
            words = words.replace(str(self.overlay), "OVERLAY")
        return digest(words, self.source.read_bytes(), self.inputs)


def _compile(objects: Path, units: Sequence[_Unit], log: Path) -> list[Path]:
    """The units' object files, compiled unless `objects` has them from before."""

    def one(unit: _Unit) -> Path:
        target = objects / f"{unit.source.stem}-{unit.key()}.o"
        listed = target.with_suffix(".d")
        if not (target.exists() and listed.exists()):
            partial = target.with_suffix(".part")
            read = ("-MMD", "-MF", str(listed), "-MT", "object")
            own_log = log / f"{target.stem}.log"
            execute([*unit.command, *read, "-o", partial, "-c", unit.source], own_log)
            os.replace(partial, target)
        os.utime(target)
        return target

    objects.mkdir(parents=True, exist_ok=True)
    log.mkdir(parents=True, exist_ok=True)
    with lock(f"objects-{objects.parent.name}"), ThreadPoolExecutor(jobs()) as pool:
        compiled = list(pool.map(one, units))
        _keep_newest(objects, "*.o", 400)
    return compiled


def _keep_newest(folder: Path, pattern: str, keep: int) -> None:
    """Removes the other files that match: each change of an overlay leaves some behind."""
    files = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True)
    for file in files[keep:]:
        file.unlink()
        file.with_suffix(".d").unlink(missing_ok=True)


def _with_includes(command: Sequence[str], folders: Iterable[Path]) -> tuple[str, ...]:
    """The command with folders that are searched before its own."""
    compiler_, *rest = command
    return (compiler_, *(f"-I{folder}" for folder in folders), *rest)


def with_overlay(
    overlay: Path,
    base: CaffeBuild | None = None,
    *,
    cxx: str | None = None,
    flags: Sequence[str] = (),
) -> CaffeBuild:
    """A Caffe whose library, command line and pycaffe have an overlay's files, in seconds.

    The overlay mirrors a Caffe tree (include/caffe/..., src/caffe/...): its sources outside
    src/caffe/test replace those of the same path or are added, its headers come first, and stock
    sources that include a replaced header are compiled again. `base` is a whole build, stock()
    unless given. `cxx` and `flags` (put last) choose another compiler or standard for these files.
    Raises ValueError where only build(tree, overlay) does: a .proto file, or a replaced header that
    the command line, pycaffe or gtest include.
    """
    base = base or stock()
    overlay = overlay.absolute()
    parts = _overlay(overlay)
    name = digest(RECIPE, base.root.name, _digest_of_overlay(overlay), cxx, tuple(flags))
    make = functools.partial(_link_overlay, parts, base, cxx, tuple(flags))
    root = entry(f"overlay-{name}", make)
    prune("overlay-*", keep=8)
    return replace(
        base,
        root=root,
        includes=(*parts.includes, *base.includes),
        library=root / "lib/libcaffe.so",
        binary=root / "bin/caffe",
        pycaffe=base.pycaffe and root / "python",
        overlay=overlay,
    )


def _link_overlay(
    parts: _Overlay, base: CaffeBuild, cxx: str | None, flags: tuple[str, ...], root: Path
) -> None:
    stock_source = base.source / "src/caffe"
    objects_of_stock = "src/caffe/CMakeFiles/caffe.dir"
    replaced = {str(base.source / h.relative_to(parts.folder)) for h in parts.headers}

    # Object as the link names it: its source.
    units = {
        f"{objects_of_stock}/{s.relative_to(parts.folder / 'src/caffe')}.o": s
        for s in parts.sources
    }
    for name, read in _dependencies(base.root).items():
        if name in units or not replaced & read:
            continue
        if not name.startswith(objects_of_stock + "/"):
            header = sorted(replaced & read)[0]
            raise ValueError(f"{name} includes {header}, which the overlay replaces: use build()")
        units[name] = stock_source / name[len(objects_of_stock) + 1 : -len(".o")]

    command = [*_compile_command(base.root, "src/caffe/blob.cpp"), *flags]
    if cxx is not None:
        command[0] = cxx
    compile_ = _with_includes(command, parts.includes)
    inputs = digest_of_files(parts.folder, parts.headers)
    compiled = _compile(
        base.root / "objects",
        [_Unit(compile_, source, inputs, parts.folder) for source in units.values()],
        root / "logs",
    )
    objects = dict(zip(units, compiled, strict=True))

    # ": && c++ ... -o lib/libcaffe.so.1.0.0 OBJECTS LIBRARIES && :", run in the build's folder.
    words = shlex.split((base.root / "link.txt").read_text())
    words = words[words.index("&&") + 1 : len(words) - words[::-1].index("&&") - 1]
    linked: list[str] = []
    for word in words:
        linked.append(str(objects.pop(word, word)))
    # New sources come right before the first library.
    last = max(i for i, word in enumerate(linked) if word.endswith(".o"))
    linked[last + 1 : last + 1] = [str(path) for path in objects.values()]
    output = linked.index("-o") + 1
    library = root / "lib" / Path(linked[output]).name
    linked[output] = str(library)
    library.parent.mkdir()
    execute(linked, root / "log", cwd=base.root / "build")
    if library.name != "libcaffe.so":
        (library.parent / "libcaffe.so").symlink_to(library.name)

    # These find the library beside them.
    (root / "bin").mkdir()
    shutil.copy2(base.binary, root / "bin/caffe")
    if base.pycaffe is not None:
        shutil.copytree(base.pycaffe, root / "python")


# Tests in C++.


def layer_test(build: CaffeBuild, *, of_stock: bool = False) -> Path:
    """Caffe's own test file for the layer: the overlay's where it has one, unless `of_stock`."""
    folders = [build.source] if of_stock or build.overlay is None else [build.overlay, build.source]
    return next(f / LAYER_TEST for f in folders if (f / LAYER_TEST).exists())


def gtest_program(
    build: CaffeBuild,
    tests: Sequence[Path] = (),
    *,
    cxx: str | None = None,
    flags: Sequence[str] = (),
) -> Path:
    """A gtest program of test files (the layer's own unless given) and the build's library.

    They are compiled as Caffe compiles its tests, with an overlay's headers first, so that their
    class is the one in the library. Run it with `--gtest_filter=` CPU_TESTS.
    """
    tests = list(tests) or [layer_test(build)]
    parts = _overlay(build.overlay) if build.overlay else None
    main = build.source / "src/caffe/test/test_caffe_main.cpp"
    command = [*_compile_command(build.stock, "src/caffe/test/test_caffe_main.cpp")]
    own = [*command, *flags]
    if cxx is not None:
        own[0] = cxx
    if parts:
        own = [*_with_includes(own, parts.includes)]
    inputs = digest_of_files(parts.folder, parts.headers) if parts else ""
    units = [_Unit(tuple(command), main)]
    units += [_Unit(tuple(own), test, inputs, build.overlay) for test in tests]
    with lock(build.root.name):
        objects = _compile(build.stock / "objects", units, build.root / "logs")
        # Python's library, which the linker looks up for the functions that libcaffe wants.
        python = [python_for_caffe().library_folder] if build.pycaffe else []
        return _link_program(
            build.root / "tests",
            [command[0]],
            [*objects, build.stock / "build/lib/libgtest.a", build.library],
            [f"-Wl,-rpath,{build.library.parent}", *(f"-Wl,-rpath-link,{p}" for p in python)],
        )


def _link_program(
    folder: Path, command: Sequence[str], inputs: Sequence[Path], flags: Sequence[str]
) -> Path:
    program = folder / f"test-{digest([path.name for path in inputs])}"
    if not program.exists():
        folder.mkdir(exist_ok=True)
        partial = program.with_suffix(".part")
        libraries = [f"-l{name}" for name in LIBRARIES]
        link: list[str | Path] = [*command, "-o", partial, *inputs, *flags, *libraries]
        execute(link, folder / "link.log")
        os.replace(partial, program)
        _keep_newest(folder, "test-*", 20)
    return program


def gtest_alone(
    tree: Path,
    overlay: Path | None = None,
    tests: Sequence[Path] = (),
    *,
    sources: Sequence[str] = (),
    cxx: str | None = None,
    flags: Sequence[str] = (),
    emulated_gpu: bool = False,
) -> Path:
    """A gtest program of test files and of the few sources of a tree that the layer needs.

    Without a whole build of the tree: no Net, no Solver, and a registry with few types. `tests` is
    the layer's own test file unless given; `sources` adds some of the tree, as paths below
    src/caffe. An overlay's files replace or join those of the tree, as in with_overlay().
    `cxx` and `flags` compile the overlay's files and the tests. With `emulated_gpu` the program has
    Caffe's GPU code, not CPU_ONLY, and the overlay's .cu files, which the C++ compiler takes for a
    GPU that is emulated on the CPU.
    """
    tree = tree.absolute()
    generated = generated_headers(tree)
    root = generated.parent
    # The generated folder first: a fork may carry a caffe.pb.h of another protobuf.
    folders = [generated, tree / "include", tree / "src"]
    options = ("-O2", "-fPIC", "-DNDEBUG", "-DGTEST_USE_OWN_TR1_TUPLE", "-w", "-xc++")
    # For what has nothing to do with GPUs.
    plain = (compiler(), *options, *(f"-I{folder}" for folder in folders))
    mode: tuple[str, ...] = ("-DCPU_ONLY",)
    contents = ""
    if emulated_gpu:
        mode = ()
        stand_ins = [EMULATION, CAFFES_EMULATION, CUDA_LIBRARIES]
        folders += stand_ins
        read = [path for folder in stand_ins for path in _files(folder) if path.suffix == ".h"]
        contents = digest_of_files(REPOSITORY, read)
    command = (compiler(), *options, *mode, *(f"-I{folder}" for folder in folders))
    if overlay is not None:
        overlay = overlay.absolute()
    parts = _Overlay(tree, (), ()) if overlay is None else _overlay(overlay, cuda=emulated_gpu)
    inputs = contents + digest_of_files(parts.folder, parts.headers)
    own = (cxx or command[0], *(word for word in command[1:] if word != "-w"), "-Wall", *flags)
    # For nvcc's #pragma unroll.
    own = (*own, "-Wno-unknown-pragmas")
    if overlay is not None:
        own = _with_includes(own, parts.includes)

    names = [*SOURCES_OF_LAYER, *sources]
    if emulated_gpu:
        names = [name for name in names if name not in SOURCES_OF_BUILT_IN]
    stock_sources = [tree / "src/caffe" / name for name in names]
    overlaid = {tree / source.relative_to(parts.folder) for source in parts.sources}
    stock_units = [
        _Unit(command, s, contents) for s in stock_sources if s.exists() and s not in overlaid
    ]
    general = (tree / "src/gtest/gtest-all.cpp", generated / "caffe/proto/caffe.pb.cc")
    stock_units += [_Unit(plain, s) for s in general]
    if not tests:
        places = [p for p in (overlay, tree) if p is not None and (p / LAYER_TEST).exists()]
        tests = [places[0] / LAYER_TEST]
    own_units = [_Unit(own, source, inputs, overlay) for source in (*parts.sources, *tests)]
    if emulated_gpu:
        folders_of_ours = [REPOSITORY / name for name in ("cpp/include", "cpp", "cuda")]
        emulation = (*command, *(f"-I{folder}" for folder in folders_of_ours))
        read = [path for folder in folders_of_ours for path in _files(folder)]
        with_ours = contents + digest_of_files(REPOSITORY, read)
        stock_units.append(_Unit(emulation, EMULATION / "emulation.cpp", with_ours))
        stock_units.append(_Unit(command, CAFFES_EMULATION / "caffe_gpu.cpp", contents))

    with lock(root.name):
        objects = _compile(root / "objects", stock_units, root / "logs")
        replaced = {str(tree / h.relative_to(parts.folder)) for h in parts.headers}
        kept = []
        for unit, compiled in zip(stock_units, objects, strict=True):
            if replaced & _read_by(compiled):
                again = _with_includes(command, parts.includes)
                own_units.append(_Unit(again, unit.source, inputs, overlay))
            else:
                kept.append(compiled)
        objects = kept + _compile(root / "objects", own_units, root / "logs")
        return _link_program(root / "tests", [command[0]], objects, ["-lopenblas"])


def generated_headers(tree: Path) -> Path:
    """A folder for -I with the caffe/proto/caffe.pb.h of a tree."""
    check_machine()
    tree = tree.absolute()
    make = functools.partial(_generate_proto, tree)
    return entry(f"alone-{digest(RECIPE, _digest_of_tree(tree), _machine())}", make) / "include"


def _read_by(compiled: Path) -> set[str]:
    """The files that an object of _compile() was compiled from."""
    text = compiled.with_suffix(".d").read_text().replace("\\\n", "")
    return {path.replace("\\ ", " ") for path in re.split(r"(?<!\\)\s+", text)}


def _generate_proto(tree: Path, root: Path) -> None:
    to = root / "include/caffe/proto"
    to.mkdir(parents=True)
    folder = tree / "src/caffe/proto"
    protoc: list[str | Path] = [
        _need("protoc"),
        "-I",
        folder,
        f"--cpp_out={to}",
        folder / "caffe.proto",
    ]
    execute(protoc, root / "log")


def run_tests(
    program: Path,
    which: str = CPU_TESTS,
    *,
    timeout: float = 600,
    env: Mapping[str, str] | None = None,
) -> int:
    """Runs a gtest program and returns how many of its tests passed, at least one.

    BuildError, with the end of the output, when a test fails or `which` chooses none.
    """
    done = subprocess.run(
        [str(program), f"--gtest_filter={which}"],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**(os.environ if env is None else env), "GLOG_logtostderr": "1"},
    )
    passed = re.search(r"^\[  PASSED  \] (\d+) test", done.stdout, re.MULTILINE)
    if done.returncode != 0 or passed is None or int(passed[1]) == 0:
        raise BuildError(
            f"{program.name} --gtest_filter={which}: exit status {done.returncode}\n"
            f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
        )
    return int(passed[1])
