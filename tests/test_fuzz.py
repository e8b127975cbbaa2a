"""The fuzzers of tests/fuzz: their cases and a few made-up inputs here; longer when asked for.

Long: make test-long ARGS="-k fuzz" gives each a minute; CONTRIBUTING.md has the commands for ten.
What they find is fixed, and the input goes to tests/fuzz/cases, or becomes a test below.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import instrumented
import sigmoid_ce as sce
from conftest import ROOT, missing

FUZZ = ROOT / "tests" / "fuzz"
CASES = sorted(str(p) for p in (FUZZ / "cases").iterdir())
SOURCE = str(FUZZ / "fuzz_api.cpp")
FLAGS = ["-std=c++14", "-O1", "-Wall", "-Wextra", f"-I{ROOT / 'cpp' / 'include'}"]
SECONDS = 60


def compiler(*names: str) -> str:
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        missing(names[0])
    assert found is not None
    return found


@pytest.fixture(scope="module")
def fuzz_api(native_tests: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The fuzzer of the C++ API as a plain program."""
    program = str(tmp_path_factory.mktemp("fuzz") / "fuzz_api")
    library = str(native_tests / "libsigmoid_ce.a")
    command = [compiler("c++", "g++", "clang++"), *FLAGS, "-DFUZZ_MAIN", SOURCE, library]
    instrumented.run([*command, "-pthread", "-o", program])
    return program


def test_native_cases(fuzz_api: str) -> None:
    instrumented.run([fuzz_api, *CASES])


@pytest.mark.parametrize("seed", [1, 2])
def test_native_random(seed: int, fuzz_api: str) -> None:
    """Made-up inputs; --random N SEED of the program runs others."""
    assert instrumented.run([fuzz_api, "--random", "400", str(seed)]) == "400 inputs\n"


@pytest.mark.parametrize("seed", [1, 2])
def test_python_random(seed: int) -> None:
    command = [sys.executable, str(FUZZ / "fuzz_python.py"), "--random", "1000", str(seed)]
    assert instrumented.run(command) == "1000 inputs\n"


# ---------------------------------------------------------------- found by the fuzzers


@pytest.mark.parametrize("name", ["\ud800", "scalar\0", "scalar\0avx2"])
def test_isa_that_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"^name: "):
        sce.set_isa(name)


@pytest.mark.parametrize(
    ("label", "error"),
    [(np.array([1, 2]), TypeError), (object(), TypeError), (2**70, ValueError)],
    ids=["array", "object", "large"],
)
def test_check_with_a_label_that_is_none(label: object, error: type[Exception]) -> None:
    x = np.zeros(3)
    with pytest.raises(error, match=r"^ignore_label: "):
        sce.forward(x, x, ignore_label=label, check=True)


@pytest.mark.parametrize("label", [None, 1])
def test_check_with_a_signalling_nan(label: int | None) -> None:
    """A NaN of any bits is outside [0, 1], and no reason for a warning."""
    t = np.array([0x7FA00000], np.uint32).view(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"^targets: "):
            sce.forward(np.zeros(1, np.float32), t, ignore_label=label, check=True)


@pytest.mark.skipif(
    np.finfo(np.longdouble).max == np.finfo(np.float64).max, reason="long double is float64"
)
def test_warning_made_an_error_by_the_caller() -> None:
    """What NumPy says of a pos_weight that float64 does not hold comes through as it is."""
    p = np.array([np.longdouble("1e4000")])
    x = np.zeros(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="overflow"):
            sce.forward(x, x, pos_weight=p)
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=r"^pos_weight: "):
            sce.forward(x, x, pos_weight=p)


def test_reference_of_many_axes() -> None:
    if np.lib.NumpyVersion(np.__version__) < "2.0.0":
        pytest.skip("NumPy 1 has at most 32 axes")
    x = np.zeros((1,) * 40)
    assert sce.reference.forward(x, x) == pytest.approx(np.log(2))


def test_reference_of_a_sum_beyond_float64() -> None:
    x = np.full(4, 1e308)
    assert sce.reference.forward(x, np.zeros(4)) == sce.forward(x, np.zeros(4)) == np.inf
    t = np.array([0.0, 0.0, 2.0, 2.0])  # and one that comes back
    assert sce.reference.forward(x, t) == sce.forward(x, t) == 0


# ---------------------------------------------------------------- long


@pytest.mark.long
def test_libfuzzer(tmp_path: Path) -> None:
    """libFuzzer with the address and undefined behaviour sanitizers, for a minute."""
    clang = compiler("clang++")
    probe = [clang, "-fsanitize=fuzzer,address,undefined", "-x", "c++", "-", "-o", "/dev/null"]
    entry = 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }'
    if subprocess.run(probe, input=entry, capture_output=True, text=True).returncode != 0:
        missing("libFuzzer (libclang-rt-dev)")
    build = instrumented.build("fuzz", python=False)
    program = str(build / "fuzz_api")
    sanitize = ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all", "-g"]
    library = str(build / "libsigmoid_ce.a")
    instrumented.run([clang, *FLAGS, *sanitize, SOURCE, library, "-pthread", "-o", program])
    (build / "corpus").mkdir(exist_ok=True)
    limits = [f"-max_total_time={SECONDS}", "-max_len=400", "-len_control=0", "-verbosity=0"]
    where = [f"-artifact_prefix={tmp_path}/", str(build / "corpus"), str(FUZZ / "cases")]
    instrumented.run([program, *limits, *where])


@pytest.mark.long
def test_atheris(tmp_path: Path) -> None:
    """atheris on the Python API, for a minute."""
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris has no wheel for this Python or machine")
    corpus = ROOT / "build" / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    limits = [f"-max_total_time={SECONDS}", "-max_len=300", "-len_control=0", "-verbosity=0"]
    command = [sys.executable, str(FUZZ / "fuzz_python.py"), "--atheris", *limits]
    instrumented.run([*command, f"-artifact_prefix={tmp_path}/", str(corpus)])
