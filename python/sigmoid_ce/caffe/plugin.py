"""The layer as a shared library for a Caffe that is built already."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from sigmoid_ce.caffe.paths import data_folder
from sigmoid_ce.stream import refuse_same

BUILT_IN = "SigmoidCrossEntropyLoss"

_QUIET = "SIGMOID_CE_PLUGIN_QUIET"
_TYPE = "SIGMOID_CE_PLUGIN_TYPE"
# caffe_gpu_memcpy(size_t, const void*, void*): in every Caffe with GPU code, and in no other.
_GPU_SYMBOL = "_ZN5caffe16caffe_gpu_memcpyEmPKvPv"
_LAYER_SYMBOL = "_ZN5caffe5LayerIfE"  # the beginning of the names of Layer<float>'s members


class Plugin(NamedTuple):
    """What `build_plugin` made."""

    path: Path
    cpu_only: bool


def build_plugin(
    include: Sequence[Path],
    library: Path,
    output: Path,
    *,
    cpu_only: bool | None = None,
    compiler: str | None = None,
    flags: Sequence[str] = (),
    nvcc: str | None = None,
    architectures: Sequence[str] = (),
) -> Plugin:
    """Compiles the layer for the Caffe of `library` into the shared library `output`.

    Takes half a minute. The result is loaded in a process of its own before it gets its name. For a
    Caffe with GPU code the plugin has CUDA kernels, and a CUDA runtime of its own, linked in.

    Parameters
    ----------
    include : folders for #include: of Caffe and of the generated caffe/proto/caffe.pb.h, in
        that order of priority; where Caffe has GPU code and nvcc's own folder lacks them, those of
        cuBLAS and cuRAND (and cuDNN where Caffe has it) too
    library : libcaffe.so, or the _caffe.so of a pycaffe that has everything in it
    output : the file to write
    cpu_only : whether Caffe was built with CPU_ONLY. None: found out from the library
    compiler : GCC's C++ compiler. None: CXX of the environment, else g++
    flags : more flags for it, such as -std=c++17 where Caffe's headers ask for more than C++14
    nvcc : CUDA's compiler, where Caffe has GPU code. None: NVCC of the environment, else bin/nvcc
        in CUDA_HOME, else nvcc on the PATH
    architectures : of the GPUs to compile for, such as "90"; each as machine code and as what a
        driver compiles for later ones. Empty: those of this machine's GPUs, or nvcc's default,
        which drivers compile for any that is newer, where there is none

    Raises
    ------
    ValueError
        For an argument that does not fit, naming it; no nvcc where it is needed.
    RuntimeError
        Where compiling or loading fails, with the end of the output.
    """
    include = [Path(folder).resolve() for folder in include]
    for header in ("caffe/layer_factory.hpp", "caffe/proto/caffe.pb.h"):
        if not any((folder / header).is_file() for folder in include):
            where = ", ".join(map(str, include)) or "no folder"
            raise ValueError(f"include: expected a folder with {header} in it, got {where}")
    library = Path(library).resolve()
    host_is_cpu_only = _is_cpu_only(library)
    if cpu_only is None:
        cpu_only = host_is_cpu_only
    elif cpu_only != host_is_cpu_only:
        has = "no GPU code" if host_is_cpu_only else "GPU code"
        raise ValueError(
            f"cpu_only: {library} has {has}, so the plugin needs cpu_only={host_is_cpu_only}"
        )
    cuda = None if cpu_only else _find_cuda(nvcc, architectures, library)
    output = Path(output).absolute()
    refuse_same(output, "output", {"library": library})
    if not output.parent.is_dir():
        raise ValueError(f"output: {output.parent} is no folder")
    own = ["-std=c++14", "-O2", "-Dsigmoid_ce=sigmoid_ce_plugin", f"-I{data_folder() / 'include'}"]
    command = [*_compiler(compiler), *own, "-fPIC"]
    command += [
        *(["-DCPU_ONLY"] if cpu_only else []),
        *flags,
        *(f"-I{folder}" for folder in include),
    ]
    kernels = data_folder() / "src" / "caffe" / "util"
    sources = [data_folder() / "plugin" / "sigmoid_ce_plugin.cpp"]
    sources += sorted(kernels.glob("sigmoid_ce*.cpp"))
    by_nvcc: list[str] = []
    libraries: list[str] = []
    if cuda is not None:
        command += [f"-I{folder}" for folder in cuda.include]
        sources += sorted(kernels.glob("sigmoid_ce*.cu"))
        by_nvcc = [*cuda.command, *own, "-Xcompiler", "-fPIC"]
        if len(_compiler(compiler)) == 1:
            by_nvcc += ["-ccbin", *_compiler(compiler)]
        # The runtime's functions stay inside: others of that name are the host's.
        libraries = [f"-L{path}" for path in cuda.libraries]
        libraries += ["-lcudart_static", "-Wl,--exclude-libs,libcudart_static.a"]
        libraries += ["-lpthread", "-lrt"]
    with tempfile.TemporaryDirectory(prefix=".sigmoid_ce-", dir=output.parent) as folder:
        objects = [Path(folder) / f"{source.stem}.o" for source in sources]
        compilers = [by_nvcc if source.suffix == ".cu" else command for source in sources]
        _run_all(
            [
                [*compile_, "-c", str(source), "-o", str(made)]
                for compile_, source, made in zip(compilers, sources, objects, strict=True)
            ]
        )
        finished = Path(folder) / output.name
        link = [*_compiler(compiler), "-shared", *map(str, objects), "-o", str(finished)]
        link += [f"-L{library.parent}", f"-l:{library.name}", f"-Wl,-rpath,{library.parent}"]
        _run_all([[*link, *flags, "-lglog", *libraries, "-ldl"]])
        _try(finished, library)
        finished.replace(output)
    return Plugin(output, cpu_only)


def load_plugin(path: str | os.PathLike[str], type_name: str = BUILT_IN) -> None:
    """Loads a plugin beside pycaffe: layers of the type `type_name` are ours from now on.

    The built-in type is replaced; another name is added to the types that there are. (For the
    command line the environment variable SIGMOID_CE_PLUGIN_TYPE says it.) Nets made before keep
    their layers. Loading one file twice does nothing.

    Raises
    ------
    ImportError
        Where pycaffe is not to be had.
    OSError
        Where the file cannot be loaded.
    RuntimeError
        Where it is no plugin, does not fit the Caffe that is loaded, or was loaded before under
        another name.
    ValueError
        Where type_name is empty.
    """
    if not hasattr(importlib.import_module("caffe"), "Net"):  # any folder of that name imports
        raise ImportError("the caffe that is imported here is not pycaffe; put it on PYTHONPATH")
    if not type_name:
        raise ValueError("type_name: expected the name of a layer type, got an empty one")
    _load(os.fspath(path), type_name)


def _load(path: str, type_name: str) -> None:
    settings = {_QUIET: "1", _TYPE: type_name}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        library = ctypes.CDLL(str(Path(path).resolve()))
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    try:
        error, kind = library.sigmoid_ce_plugin_error, library.sigmoid_ce_plugin_type
    except AttributeError:
        raise RuntimeError(f"{path} is not a plugin of sigmoid_ce") from None
    error.restype = kind.restype = ctypes.c_char_p
    message: str = error().decode()
    if message:
        raise RuntimeError(f"{path}: {message}")
    loaded: str = kind().decode()
    if loaded != type_name:
        raise RuntimeError(f"{path} was loaded before, as {loaded}; copy it to load it once more")


def _compiler(compiler: str | None) -> list[str]:
    command = shlex.split(compiler or os.environ.get("CXX") or "g++")
    if shutil.which(command[0]) is None:
        raise ValueError(f"compiler: {command[0]} is not there; install it, or name another")
    return command


class _Cuda(NamedTuple):
    command: list[str]  # nvcc, and what to compile for
    include: list[str]
    libraries: list[str]


def _find_cuda(nvcc: str | None, architectures: Sequence[str], library: Path) -> _Cuda:
    home = os.environ.get("CUDA_HOME")
    beside = str(Path(home) / "bin" / "nvcc") if home else "nvcc"
    command = shlex.split(nvcc or os.environ.get("NVCC") or beside)
    if shutil.which(command[0]) is None:
        raise ValueError(
            f"nvcc: {library} has GPU code, for which the plugin needs CUDA's compiler, and "
            f"{command[0]} is not there; name it by --nvcc, NVCC or CUDA_HOME"
        )
    for name in architectures:
        if re.fullmatch(r"\d+[af]?", name) is None:
            raise ValueError(f"architectures: expected numbers such as 90, got {name!r}")
    targets = [f"-gencode=arch=compute_{n},code=[sm_{n},compute_{n}]" for n in architectures]
    # What it would do, with the toolkit's folders. Those before 11.5 do not know `native`.
    done = None
    for asked in [targets] if targets else [["-arch=native"], []]:
        done = subprocess.run(
            [*command, *asked, "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull],
            capture_output=True,
            text=True,
            errors="replace",
        )
        targets = asked
        if done.returncode == 0:
            break
    assert done is not None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        fault = next((line for line in lines if "fatal" in line or "error" in line), lines[-1])
        raise ValueError(f"nvcc: {fault.strip()} ({shlex.join([*command, *targets])})")

    def folders(name: str, flag: str) -> list[str]:
        found = re.findall(rf"^#\$ {name}=(.*)$", done.stderr, re.MULTILINE)
        return [path for line in found for path in re.findall(rf'"-{flag}([^"]+)"', line)]

    return _Cuda([*command, *targets], folders("INCLUDES", "I"), folders("LIBRARIES", "L"))


def _is_cpu_only(library: Path) -> bool:
    if not library.is_file():
        raise ValueError(f"library: {library} is not there")
    if shutil.which("nm") is None:
        raise ValueError("library: nm is needed to look into it; install binutils")
    done = subprocess.run(
        ["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True
    )
    if done.returncode != 0 or _LAYER_SYMBOL not in done.stdout:
        raise ValueError(
            f"library: expected libcaffe.so, or the _caffe.so that has Caffe in it, got {library}"
        )
    return _GPU_SYMBOL not in done.stdout


def _run_all(commands: list[list[str]]) -> None:
    """As many at a time as there are CPUs. Where one fails, or Ctrl-C comes, all end at once."""
    waiting = list(reversed(commands))
    running: list[tuple[subprocess.Popen[str], list[str], IO[str]]] = []
    try:
        while waiting or running:
            while waiting and len(running) < (os.cpu_count() or 1):
                command = waiting.pop()
                # To a file: nobody reads a pipe while another process is waited for. In a session
                # of its own, so that what the compiler starts can be ended with it.
                output: IO[str] = tempfile.TemporaryFile("w+", errors="replace")
                # A stop between its start and the list would leave it behind.
                with _stops_later():
                    process = subprocess.Popen(
                        command,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        text=True,
                        start_new_session=True,
                    )
                    running.append((process, command, output))
            with contextlib.suppress(subprocess.TimeoutExpired):
                running[0][0].wait(0.1)
            for entry in [entry for entry in running if entry[0].poll() is not None]:
                running.remove(entry)
                _check(*entry)
    finally:
        for started, _, its_output in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
            started.wait()
            its_output.close()


@contextlib.contextmanager
def _stops_later() -> Iterator[None]:
    """Signals that end this process do so after the block.

    A mask would not do: another thread takes the signal then, and Python's handler runs in the main
    one all the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # no handler runs here
        return
    came: list[int] = []
    handlers = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Not what ignores it, which the new process is to inherit, nor what is not Python's.
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            handlers[number] = signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for caught in came:
            signal.raise_signal(caught)


def _check(process: subprocess.Popen[str], command: list[str], output: IO[str]) -> None:
    with output:
        if process.returncode == 0:
            return
        output.seek(0)
        lines = output.read().strip().splitlines() or [f"status {process.returncode}"]
    first = next((line for line in lines if "error" in line), lines[-1])
    raise RuntimeError(f"compiling failed: {first.strip()} ({shlex.join(command)})")


def _try(plugin: Path, library: Path) -> None:
    """Loads it as pycaffe's user will, where a crash does no harm."""
    code = (
        "import ctypes, sys; from sigmoid_ce.caffe import plugin; "
        "ctypes.CDLL(sys.argv[1]); plugin._load(sys.argv[2], plugin.BUILT_IN)"
    )
    command = [sys.executable, "-c", code, str(library), str(plugin)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        end = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise RuntimeError(f"the plugin was built, and does not load: {end}")
