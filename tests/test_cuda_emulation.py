"""The CUDA kernels as C++ on the CPU, with the emulation of tests/native/emulation: the CPU's bits.

It shows that the kernels compute what they should in any order of threads and blocks. It says
nothing about the device compiler (test_cuda_kernels.py) or a GPU (test_gpu.py).
"""

from __future__ import annotations

import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from conftest import ROOT, missing, tool

KERNELS = ROOT / "cuda" / "kernels.cuh"
DIGESTS = (ROOT / "tests" / "digests.txt").read_text().splitlines()

# Cases per pair of types, of which there are 27; `make test-long` has more.
CASES = 32
LONG_SEEDS = range(2, 40)


@pytest.fixture(scope="module")
def programs(native_tests: Path) -> Path:
    if not (native_tests / "cuda_digest").exists():
        pytest.skip("this build has no emulated GPU")
    return native_tests


def environment(**settings: object) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("SIGMOID_CE_")}
    return env | {f"SIGMOID_CE_{name}": str(value) for name, value in settings.items()}


def digest_lines(program: Path, **settings: object) -> list[str]:
    done = subprocess.run(
        [str(program)], env=environment(**settings), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.splitlines()


def compare(lines: list[str], what: str) -> None:
    wrong = [line for line, wanted in zip(lines, DIGESTS, strict=True) if line != wanted]
    assert wrong == [], f"{what}: {len(wrong)} digests differ"


SETTINGS: list[dict[str, object]] = [
    {},
    {"DIGEST_OFFSET": 1},
    {"DIGEST_OFFSET": 3, "EMULATED_ORDER": 2},
    # One block of the grid per piece of work.
    {"EMULATED_ORDER": 3, "EMULATED_MULTIPROCESSORS": 132},
]


def test_digests(programs: Path) -> None:
    """Every line of tests/digests.txt: aligned or not, in any order of threads, for any grid."""
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(digest_lines, programs / "cuda_digest", **s) for s in SETTINGS]
        for settings, run in zip(SETTINGS, runs, strict=True):
            compare(run.result(), str(settings))


def check_cases(program: Path, seed: int, n: int, **settings: object) -> None:
    done = subprocess.run(
        [str(program), str(seed), str(n)],
        env=environment(**settings),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    print(done.stdout)
    match = re.fullmatch(r"(\d+) cases, (\d+) elements\n", done.stdout)
    assert match
    assert int(match[1]) == 27 * n + 8


def test_random_calls(programs: Path) -> None:
    """Types, layouts, options, pieces, in place, poisoned memory: tests/native/cuda_cases.cpp."""
    check_cases(programs / "cuda_cases", 1, CASES)


@pytest.mark.long
def test_more_random_calls(programs: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(
            pool.map(
                lambda seed: check_cases(
                    programs / "cuda_cases",
                    seed,
                    2 * CASES,
                    EMULATED_ORDER=seed,
                    EMULATED_MULTIPROCESSORS=1 + seed % 3,
                ),
                LONG_SEEDS,
            )
        )


# ---------------------------------------------------------------- the tests can fail


# By the lines around them. What they guard cannot go wrong here.
AFTER = {
    "__threadfence();": "blocks run one after another",
    "if (k < math::kLimbs) words[k] += carries[k];": "__syncthreads_or of the next turn follows",
}
BEFORE = {"std::int64_t* const words = shared.words[0];": "touches nothing of the loop's"}


def barriers() -> list[int]:
    """The lines of the kernels with a barrier that the emulation can miss."""
    text = [line.strip() for line in KERNELS.read_text().splitlines()]
    return [
        n + 1
        for n, line in enumerate(text)
        if line == "__syncthreads();" and text[n - 1] not in AFTER and text[n + 1] not in BEFORE
    ]


def finds_missing_barrier(programs: Path, line: int) -> bool:
    """Whether some result differs, in some order of the threads, when a barrier does nothing."""
    run = subprocess.Popen(
        [str(programs / "cuda_digest")],
        env=environment(EMULATED_SKIP=line),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert run.stdout is not None
    right = 0
    for got, wanted in zip(run.stdout, DIGESTS, strict=False):
        if got.rstrip("\n") != wanted:
            run.kill()
            break
        right += 1
    run.stdout.close()
    run.wait()
    print(f"line {line}: {right} right digests")
    if right < len(DIGESTS):
        return True
    # The digests have no half types, and no block with several pieces of work.
    for seed in (1, 2):
        done = subprocess.run(
            [str(programs / "cuda_cases"), str(seed), "1"],
            env=environment(EMULATED_SKIP=line, EMULATED_ORDER=seed),
            capture_output=True,
        )
        print(f"line {line}: {done.stderr.splitlines()[-1:]}")
        if done.returncode != 0:
            return True
    return False


def test_a_missing_barrier_is_found(programs: Path) -> None:
    """Without any single one of the kernels' barriers the digests differ."""
    lines = barriers()
    assert len(lines) > 5
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda line: finds_missing_barrier(programs, line), lines))
    assert [line for line, is_found in zip(lines, found, strict=True) if not is_found] == []


@pytest.mark.parametrize("machine", ["none", "no driver", "old driver"])
def test_no_gpu(machine: str, programs: Path) -> None:
    done = subprocess.run(
        [str(programs / "cuda_digest")],
        env=environment(EMULATED_GPU=machine),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""


# ---------------------------------------------------------------- half types


def run_half(programs: Path, what: str, data: bytes) -> bytes:
    done = subprocess.run([str(programs / "half"), what], input=data, capture_output=True)
    assert done.returncode == 0
    return done.stdout


def test_half_types(native_tests: Path) -> None:
    """float16 as NumPy converts it, bfloat16 by its definition: the upper bits, ties to even."""
    halves = np.arange(2**16, dtype=np.uint16)
    floats = np.frombuffer(run_half(native_tests, "widen", halves.tobytes()), np.float32)
    floats = floats.reshape(-1, 2)
    numbers = halves.view(np.float16)
    assert np.array_equal(floats[:, 0], numbers.astype(np.float32), equal_nan=True)
    assert np.array_equal(np.signbit(floats[:, 0]), np.signbit(numbers))
    upper = floats[:, 1].copy().view(np.uint32)
    assert np.array_equal(upper, halves.astype(np.uint32) << 16)

    # Any bits; every float16 and what lies around the middle of two; overflow.
    rng = np.random.default_rng(7)
    finite = numbers[np.isfinite(numbers)].astype(np.float32)
    finite.sort()
    middle = (finite[1:] + finite[:-1]) / 2
    narrow = np.concatenate(
        [
            rng.integers(0, 2**32, 10**6, dtype=np.uint32).view(np.float32),
            finite,
            middle,
            np.nextafter(middle, np.float32(np.inf)),
            np.nextafter(middle, np.float32(-np.inf)),
            np.array([65519.99, 65520, 65536, 3.4e38, -65520, np.inf, -np.inf], np.float32),
            (rng.integers(0, 2**16, 10**5, dtype=np.uint32) << 16 | 0x8000).view(np.float32),
        ]
    )
    got = np.frombuffer(run_half(native_tests, "narrow", narrow.tobytes()), np.uint16)
    got = got.reshape(-1, 2)
    with np.errstate(over="ignore", under="ignore"):
        wanted = narrow.astype(np.float16)
    nan = np.isnan(narrow)
    assert np.array_equal(got[~nan, 0], wanted[~nan].view(np.uint16))
    assert np.isnan(got[nan, 0].copy().view(np.float16)).all()

    bits = narrow.view(np.uint32).astype(np.uint64)
    rest, whole = bits & 0xFFFF, bits >> 16
    up = (rest > 0x8000) | ((rest == 0x8000) & (whole & 1 == 1))
    assert np.array_equal(got[~nan, 1], (whole + up)[~nan].astype(np.uint16))
    brain = (got[:, 1].astype(np.uint32) << 16).view(np.float32)
    assert np.isnan(brain[nan]).all()


# ---------------------------------------------------------------- sanitizers


@pytest.mark.long
def test_under_sanitizers() -> None:
    """No address out of bounds and no undefined behaviour in the kernels or around them."""
    cmake = tool("cmake")
    if cmake is None:
        missing("cmake")
    assert cmake is not None
    build = ROOT / "build" / "asan-emulated"
    options = ["--preset", "asan", "-B", str(build), "-DSIGMOID_CE_CUDA=EMULATED"]
    targets = ["--parallel", "2", "--target", "cuda_digest", "cuda_cases", "plan"]
    for command in ([cmake, *options], [cmake, "--build", str(build), *targets]):
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    with ThreadPoolExecutor(2) as pool:
        lines = pool.submit(digest_lines, build / "cuda_digest", DIGEST_OFFSET=1)
        pool.submit(check_cases, build / "cuda_cases", 1, CASES).result()
        compare(lines.result(), "under the sanitizers")
    for what in ("grid", "divide", "errors"):
        subprocess.run([str(build / "plan"), what], check=True, capture_output=True)
