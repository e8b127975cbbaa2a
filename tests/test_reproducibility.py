"""The same bits: whatever the threads, instruction set, address, layout, pass, cut and compiler."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import digest
import sigmoid_ce as sce
from conftest import ROOT, missing, tool
from sigmoid_ce import bounds

DTYPES = [np.float32, np.float64]
ISAS = sce.available_isas()
BLOCK = 4096

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


def bits(array: Any) -> Any:
    """The bits of an array as integers, with all NaNs alike."""
    array = np.ascontiguousarray(array)
    integer = np.uint32 if array.dtype == np.float32 else np.uint64
    out = array.view(integer).copy()
    out[np.isnan(array)] = np.array(np.nan, dtype=array.dtype).view(integer)
    return out


def same(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and bool(np.array_equal(bits(a), bits(b)))


def data(shape: tuple[int, ...], dtype: Any, kind: str = "float") -> tuple[Any, Any]:
    count = int(np.prod(shape))
    x = digest.make_scores(count, dtype, kind == "anybits").reshape(shape)
    return x, digest.make_targets(count, kind, dtype).reshape(shape)


def option_sets(dtype: Any, channels: int) -> dict[str, dict[str, Any]]:
    rng = np.random.default_rng(3)
    weight = (rng.integers(0, 64, (1, channels, 1)) / 16).astype(dtype)
    return {
        "plain": {},
        "all": {
            "pos_weight": np.linspace(0.1, 3, channels),
            "weight": weight,
            "ignore_label": 1,
            "normalization": "valid",
        },
    }


def results(x: Any, t: Any, **options: Any) -> list[Any]:
    """Every result of every operation."""
    elementwise = {k: v for k, v in options.items() if k != "normalization"}
    part = sce.partial(x, t, **elementwise)
    loss, gradient = sce.forward_backward(x, t, **options)
    return [
        np.float64(sce.forward(x, t, **options)),
        np.float64(loss),
        np.float64(part.sum),
        np.int64(part.n_valid),
        np.asarray(gradient),
        np.asarray(sce.backward(x, t, **options)),
        np.asarray(sce.elementwise(x, t, **elementwise)),
    ]


def assert_same(got: list[Any], wanted: list[Any], what: str) -> None:
    names = [
        "forward",
        "loss of both",
        "sum",
        "valid",
        "gradient of both",
        "backward",
        "elementwise",
    ]
    for name, a, b in zip(names, got, wanted, strict=True):
        if np.asarray(a).dtype.kind == "i":
            assert a == b, f"{what}: {name}"
        else:
            assert same(a, b), f"{what}: {name}"


@dtypes
@pytest.mark.parametrize("option", ["plain", "all"])
def test_threads(dtype: Any, option: str) -> None:
    x, t = data((7, 5, 20011), dtype)  # 700 385 elements: enough for every thread count to be used
    options = option_sets(dtype, 5)[option]
    sce.set_num_threads(1)
    wanted = results(x, t, **options)
    for threads in (2, 3, 7):
        sce.set_num_threads(threads)
        assert sce.get_num_threads() == threads
        assert_same(results(x, t, **options), wanted, f"{threads} threads")


@dtypes
@pytest.mark.parametrize("option", ["plain", "all"])
@pytest.mark.parametrize("kind", ["float", "anybits", "bool", "uint8", "int8", "int32", "int64"])
def test_instruction_sets(dtype: Any, option: str, kind: str) -> None:
    options = option_sets(dtype, 5)[option]
    x, t = data((3, 5, 1117), dtype, kind)
    sce.set_isa("scalar")
    wanted = results(x, t, **options)
    for isa in ISAS:
        sce.set_isa(isa)
        assert sce.get_isa() == isa
        assert_same(results(x, t, **options), wanted, isa)


@pytest.mark.parametrize("isa", ISAS)
@dtypes
def test_value_does_not_depend_on_its_place(dtype: Any, isa: str) -> None:
    """Each element alone, in every lane and in tails of every length, gives the same bits."""
    sce.set_isa(isa)
    x, t = data((200,), dtype, "anybits")
    losses = sce.elementwise(x, t)
    gradients = sce.backward(x, t, normalization="none")
    for k in range(x.size):
        assert same(sce.elementwise(x[k : k + 1], t[k : k + 1]), losses[k : k + 1])
        assert same(sce.elementwise(x[k:], t[k:]), losses[k:])
        assert same(sce.backward(x[:k], t[:k], normalization="none"), gradients[:k])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["float", "int32", "int64"])
@dtypes
def test_every_offset_in_memory(dtype: Any, kind: str, isa: str) -> None:
    """Arrays at each of 64 byte offsets, multiples of the item size or not."""
    sce.set_isa(isa)
    x, t = data((4500,), dtype, kind)
    weight = (digest.draw(digest.WEIGHTS, x.size) % 64 / 16).astype(dtype)
    wanted = results(x, t)
    weighted = results(x, t, weight=weight, ignore_label=1)
    size = x.itemsize

    def moved(array: Any, offset: int) -> Any:
        raw = np.zeros(array.nbytes + 192, dtype=np.uint8)
        start = -raw.ctypes.data % 64 + offset
        out = raw[start : start + array.nbytes].view(array.dtype)
        out[...] = array
        assert out.ctypes.data % 64 == offset
        return out

    for offset in range(64):
        other = (offset * 7 + 13) % 64
        scores, targets = moved(x, offset), moved(t, other)
        assert_same(results(scores, targets), wanted, f"offset {offset}")
        again = results(moved(x, other), moved(t, offset), weight=moved(weight, (5 * offset) % 64),
                        ignore_label=1)  # fmt: skip
        assert_same(again, weighted, f"targets at offset {offset}, weighted")
        again = results(scores, targets, weight=moved(weight, offset), ignore_label=1)
        assert_same(again, weighted, f"weights at offset {offset}")
        out = moved(np.zeros_like(x), (offset * 5) % 64 // size * size)
        sce.backward(moved(x, other), moved(t, offset), out=out)
        assert same(out, wanted[5]), f"out at offset {offset}"


@dtypes
@pytest.mark.parametrize("option", ["plain", "all"])
def test_in_place(dtype: Any, option: str) -> None:
    options = option_sets(dtype, 5)[option]
    elementwise = {k: v for k, v in options.items() if k != "normalization"}
    x, t = data((3, 5, 1117), dtype)
    wanted = results(x, t, **options)
    out = x.copy()
    assert sce.backward(out, t, out=out, **options) is out
    assert same(out, wanted[5])
    out = x.copy()
    loss, gradient = sce.forward_backward(out, t, out=out, **options)
    assert gradient is out
    assert same(out, wanted[4])
    assert same(np.float64(loss), wanted[1])
    out = x.copy()
    sce.elementwise(out, t, out=out, **elementwise)
    assert same(out, wanted[6])


@dtypes
@pytest.mark.parametrize("option", ["plain", "all"])
@pytest.mark.parametrize("kind", ["float", "uint8", "int64"])
def test_forward_alone_or_in_one_pass(dtype: Any, option: str, kind: str) -> None:
    options = option_sets(dtype, 5)[option]
    x, t = data((3, 5, 1117), dtype, kind)
    forward, both, _, _, gradient, backward, _ = results(x, t, **options)
    assert same(forward, both)
    assert same(gradient, backward)


@dtypes
@pytest.mark.parametrize("option", ["plain", "all"])
def test_cut_at_blocks(dtype: Any, option: str) -> None:
    """Chunks of whole blocks, with channels and weights that go on across the cuts."""
    shape = (3, 5, 2999)
    options = option_sets(dtype, 5)[option]
    elementwise = {k: v for k, v in options.items() if k != "normalization"}
    x, t = data(shape, dtype)
    whole = sce.partial(x, t, **elementwise)
    for step in (BLOCK, 3 * BLOCK, 5 * BLOCK):
        parts = [
            sce.partial(
                x.ravel()[start : start + step],
                t.ravel()[start : start + step],
                first_index=start,
                shape=shape,
                **elementwise,
            )
            for start in range(0, x.size, step)
        ]
        assert len(parts) > 1
        for ordered in (parts, parts[::-1]):
            joined = sce.combine(ordered)
            assert joined == whole
            assert joined.n_total == x.size
            assert joined.n_valid == whole.n_valid
            assert same(np.float64(joined.sum), np.float64(whole.sum))
            mode = options.get("normalization", "batch_size")
            loss = joined.loss(mode, batch_size=shape[0] if mode == "batch_size" else None)
            assert same(np.float64(loss), np.float64(sce.forward(x, t, **options)))
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        assert total == whole


@dtypes
def test_cut_elsewhere(dtype: Any) -> None:
    """Other cuts change the blocks: the rounding inside them moves, within a stated bound."""
    x, t = data((100_003,), dtype)
    whole = sce.partial(x, t).sum
    ulp, bound = (
        (float(np.spacing(np.float32(whole))), bounds.CUT_FLOAT32_ULP)
        if dtype == np.float32
        else (float(np.spacing(whole)), bounds.CUT_FLOAT64_ULP)
    )
    for step in (1, 7, 1000, 4095, 4097, 50_000):
        size = x.size if step > 1 else 5000
        wanted = whole if size == x.size else sce.partial(x[:size], t[:size]).sum
        joined = sce.combine(
            [sce.partial(x[k : min(k + step, size)], t[k : min(k + step, size)], first_index=k,
                         shape=(size,)) for k in range(0, size, step)]
        )  # fmt: skip
        assert joined.n_total == size
        assert abs(joined.sum - wanted) <= bound * ulp


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "transposed": lambda a: np.ascontiguousarray(a.transpose(2, 0, 1)).transpose(1, 2, 0),
    "every other": lambda a: np.repeat(a, 2, axis=2)[:, :, ::2],
    "reversed": lambda a: np.ascontiguousarray(a[::-1, :, ::-1])[::-1, :, ::-1],
    "fortran": np.asfortranarray,
    "padded": lambda a: np.pad(a, ((0, 0), (0, 0), (3, 5)))[:, :, 3:-5],
}


@dtypes
@pytest.mark.parametrize("option", ["plain", "all"])
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_non_contiguous(dtype: Any, option: str, layout: str) -> None:
    options = option_sets(dtype, 5)[option]
    move = LAYOUTS[layout]
    for kind in ("float", "uint8", "int64"):
        x, t = data((3, 5, 1117), dtype, kind)
        wanted = results(x, t, **options)
        assert not move(x).flags.c_contiguous
        assert_same(results(move(x), move(t), **options), wanted, "both")
        assert_same(results(move(x), t, **options), wanted, "scores")
        assert_same(results(x, move(t), **options), wanted, "targets")
        out = move(np.zeros_like(x))
        sce.backward(x, t, out=out, **options)
        assert same(out, wanted[5])
        out = move(x.copy())
        sce.backward(out, t, out=out, **options)
        assert same(out, wanted[5])


@dtypes
def test_broadcast_targets_are_as_their_copy(dtype: Any) -> None:
    x, t = data((3, 5, 1117), dtype)
    spread = np.broadcast_to(t[:1, :1], t.shape)
    assert_same(results(x, spread), results(x, np.ascontiguousarray(spread)), "stride 0")


# ---------------------------------------------------------------- the caller's floating-point mode

# FE_TONEAREST, FE_DOWNWARD, FE_UPWARD, FE_TOWARDZERO of x86-64.
ROUNDING = {"nearest": 0, "down": 0x400, "up": 0x800, "zero": 0xC00}


def rounding_seen() -> tuple[bool, bool, bool]:
    """How this thread rounds: differs for all four modes. fegetround looks only at the x87's."""
    one, small = float("1"), float("1e-30")
    return one + small > one, -one - small < -one, one - small < one


def mode_cases(dtype: Any) -> list[tuple[Any, Any, dict[str, Any]]]:
    """Enough elements for two threads; ordinary ones, and ones of subnormal results and inputs."""
    x, t = data((50_000,), dtype)
    edge = (88, 103) if dtype == np.float32 else (709, 745)
    deep = np.linspace(*edge, 600).astype(dtype)
    tiny = np.finfo(dtype).smallest_subnormal
    x[5000:5600], t[5000:5600] = -deep, 0
    x[9000:9600], t[9000:9600] = deep, 1
    x[:64] = tiny * np.arange(64, dtype=dtype)
    t[64:128] = tiny * np.arange(64, dtype=dtype)
    x[64:128] = 0.1 * np.finfo(dtype).max
    weight = (digest.draw(digest.WEIGHTS, x.size) % 64 / 16).astype(dtype)
    weight[::7] = 3 * tiny
    byte = np.asarray(digest.make_targets(x.size, "uint8", dtype))
    # 0.1 and 0.3 are no float32: they are rounded on the way.
    return [
        (x, t, {}),
        (x, t, {"weight": 0.1, "pos_weight": 0.1, "loss_weight": 0.3, "normalization": 0.7}),
        (x, t, {"weight": weight, "normalization": "full", "loss_weight": 0.3}),
        (x, byte, {"weight": np.array(0.1, dtype), "ignore_label": 2, "normalization": "valid"}),
        (x, t, {"weight": float(5 * tiny), "pos_weight": float(3 * tiny)}),
        (x, t, {"normalization": "none", "loss_weight": 1e-40}),
    ]


def mode_results(x: Any, t: Any, options: dict[str, Any]) -> list[Any]:
    loss_options = {k: v for k, v in options.items() if k != "loss_weight"}
    element_options = {k: v for k, v in loss_options.items() if k != "normalization"}
    part = sce.partial(x, t, **element_options)
    loss, gradient = sce.forward_backward(x, t, **options)
    return [
        sce.forward(x, t, **loss_options),
        loss,
        part.sum,
        part.loss("full"),
        gradient,
        sce.backward(x, t, **options),
        sce.elementwise(x, t, **element_options),
    ]


def check_mode(got: list[list[Any]], wanted: list[list[Any]], what: str) -> None:
    names = ["forward", "loss of both", "partial.sum", "partial.loss", "gradient of both",
             "backward", "elementwise"]  # fmt: skip
    for k, (a, b) in enumerate(zip(got, wanted, strict=True)):
        for name, u, v in zip(names, a, b, strict=True):
            assert same(u, v), f"{what}, case {k}: {name}"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="values of fesetround on x86-64")
@dtypes
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("isa", ISAS)
def test_rounding_mode_of_the_caller(dtype: Any, threads: int, isa: str) -> None:
    """Not seen in the results, and left as it was."""
    libm = ctypes.CDLL("libm.so.6")
    sce.set_isa(isa)
    sce.set_num_threads(threads)
    cases = mode_cases(dtype)
    wanted = [mode_results(*case) for case in cases]
    seen = set()
    before = libm.fegetround()
    for name, mode in ROUNDING.items():
        got, after = [], []
        try:
            assert libm.fesetround(mode) == 0
            how = rounding_seen()
            for case in cases:
                got.append(mode_results(*case))
                after.append((rounding_seen(), libm.fegetround()))
        finally:
            libm.fesetround(before)
        seen.add(how)
        assert after == [(how, mode)] * len(cases), f"{name} was changed"
        check_mode(got, wanted, name)
    assert len(seen) == 4  # the modes were in force


@dtypes
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("isa", ISAS)
def test_flush_to_zero_of_the_caller(dtype: Any, threads: int, isa: str) -> None:
    """PyTorch can make a thread treat subnormal numbers as 0: ours stay, and so does the mode."""
    try:
        import torch
    except ImportError:
        missing("torch")
    sce.set_isa(isa)
    sce.set_num_threads(threads)
    cases = mode_cases(dtype)
    wanted = [mode_results(*case) for case in cases]
    normal = np.finfo(dtype).smallest_normal
    for values in wanted[0][-2:]:  # gradients and losses
        assert np.count_nonzero((values != 0) & (np.abs(values) < normal)) > 300
    half, least = float("0.5"), sys.float_info.min
    got, after = [], []
    if not torch.set_flush_denormal(True):
        pytest.skip("PyTorch has no such mode on this machine")
    try:
        flushed = half * least
        for case in cases:
            got.append(mode_results(*case))
            after.append((half * least, float(torch.tensor([least], dtype=torch.float64) * half)))
    finally:
        torch.set_flush_denormal(False)
    assert flushed == 0  # the mode was in force
    assert half * least > 0
    assert after == [(0.0, 0.0)] * len(cases)
    check_mode(got, wanted, "flush to zero")


# ---------------------------------------------------------------- one digest file for all


def committed() -> list[str]:
    return digest.DIGESTS.read_text(encoding="ascii").splitlines()


def compare(made: list[str], what: str) -> None:
    wanted = committed()
    wrong = [line for line in made if line not in set(wanted)]
    assert made == wanted, f"{what}: {len(wrong)} of {len(wanted)} digests differ: {wrong[:5]}"


@pytest.mark.parametrize("isa", ISAS)
def test_digests_from_python(isa: str) -> None:
    sce.set_isa(isa)
    compare(list(digest.lines()), isa)


@pytest.mark.parametrize("isa", ISAS)
def test_digests_from_cpp(isa: str, native_tests: Path) -> None:
    done = subprocess.run(
        [str(native_tests / "digest")],
        env={**os.environ, "SIGMOID_CE_ISA": isa},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    compare(done.stdout.splitlines(), isa)


def test_gradients_in_pieces(native_tests: Path) -> None:
    """Chunks by first_index and count, through the C++ API: the bits of the whole call."""
    for threads in ("1", "3"):
        done = subprocess.run(
            [str(native_tests / "cut")],
            env={**os.environ, "SIGMOID_CE_NUM_THREADS": threads},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        assert re.fullmatch(r"[1-9]\d* cases\n", done.stdout)


def test_digest_program_refuses_an_unknown_isa(native_tests: Path) -> None:
    """An instruction set that is not there must not be tested as another one."""
    done = subprocess.run(
        [str(native_tests / "digest")],
        env={**os.environ, "SIGMOID_CE_ISA": "neon" if "neon" not in ISAS else "avx2"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0


# ---------------------------------------------------------------- other compilers and machines

SOURCES = sorted((ROOT / "cpp").rglob("*.cpp"))
INCLUDES = ["-I", str(ROOT / "cpp" / "include"), "-I", str(ROOT / "cpp")]


def run(command: list[str], **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, " ".join(command) + "\n" + done.stderr[-4000:]
    return done.stdout


def cross_tools(*names: str) -> list[str]:
    """The programs; installed with apt-get where that needs no question, else a skip."""
    packages = ["g++-aarch64-linux-gnu", "qemu-user"]
    found = [shutil.which(name) for name in names]
    if not all(found) and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "update", "-qq"], capture_output=True)
        subprocess.run(
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages],
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            capture_output=True,
        )
        found = [shutil.which(name) for name in names]
    if not all(found):
        missing(" or ".join(name for name, path in zip(names, found, strict=True) if not path))
    return [str(path) for path in found]


@pytest.mark.long
@pytest.mark.parametrize(
    "flags", [["-O2"], ["-O3", "-ffp-contract=fast"]], ids=["O2", "O3 contract"]
)
def test_neon_under_qemu(tmp_path: Path, flags: list[str]) -> None:
    """The digest program, cross-compiled without flags of ours, gives the same lines."""
    compiler, qemu = cross_tools("aarch64-linux-gnu-g++", "qemu-aarch64")
    program = tmp_path / "digest"
    sources = [*SOURCES, ROOT / "tests" / "native" / "digest.cpp"]
    command = [compiler, "-std=c++14", *flags, "-static", "-pthread", *INCLUDES]
    run([*command, *map(str, sources), "-o", str(program)])
    for isa in ("neon", "scalar"):
        compare(
            run([qemu, str(program)], env={**os.environ, "SIGMOID_CE_ISA": isa}).splitlines(), isa
        )


x86_64 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="objects for x86_64")


@x86_64
@pytest.mark.long
@pytest.mark.parametrize(
    ("machine", "isa"), [("Haswell", "avx2"), ("Nehalem", "scalar")], ids=["Haswell", "Nehalem"]
)
def test_older_cpu_under_qemu(machine: str, isa: str, native_tests: Path) -> None:
    """CPUs without AVX-512, or without AVX: nothing of it is run, the next best is chosen."""
    (qemu,) = cross_tools("qemu-x86_64")
    command = [qemu, "-cpu", machine, str(native_tests / "digest")]
    env = {k: v for k, v in os.environ.items() if not k.startswith("SIGMOID_CE_")}
    assert run([*command, "--isa"], env=env) == f"{isa}\n"
    compare(run(command, env=env).splitlines(), machine)
    for absent in {"avx512", "avx2"} - {isa}:
        done = subprocess.run(
            command, env={**env, "SIGMOID_CE_ISA": absent}, capture_output=True, text=True
        )
        assert done.returncode == 3, done.stderr


@pytest.mark.long
@pytest.mark.parametrize(
    ("compiler", "level"), [("g++", "-O0"), ("g++", "-O1"), ("g++", "-O3"), ("clang++", "-O2")]
)
def test_compilers_and_levels(compiler: str, level: str, tmp_path: Path) -> None:
    """No warning, and the same lines, whatever compiles the sources."""
    sources = [*SOURCES, ROOT / "tests" / "native" / "digest.cpp"]
    command = [find_compiler(compiler), "-std=c++14", level, "-Wall", "-Wextra", "-Werror"]
    objects = [str(tmp_path / f"{k}.o") for k in range(len(sources))]

    def build(source: Path, target: str) -> None:
        run([*command, *INCLUDES, "-pthread", "-c", str(source), "-o", target])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(build, sources, objects))
    program = tmp_path / "digest"
    run([*command, "-pthread", *objects, "-o", str(program)])
    for isa in ISAS:
        env = {**os.environ, "SIGMOID_CE_ISA": isa}
        compare(run([str(program)], env=env).splitlines(), f"{compiler} {level} {isa}")


FUSED = re.compile(r"\b(vfn?m(?:add|sub)\w*|fml[as]|fn?m(?:add|sub))\b")


def count_fused(
    compiler: str, objdump: str, source: Path, flags: list[str], folder: Path
) -> tuple[int, int]:
    """Fused multiply-add instructions in the object of a source: contraction off, and fast."""
    command = [compiler, "-std=c++14", *flags, *INCLUDES, "-c", str(source)]

    def count(mode: str) -> int:
        target = folder / f"{mode}.o"
        run([*command, f"-ffp-contract={mode}", "-o", str(target)])
        return len(FUSED.findall(run([objdump, "-d", "--no-show-raw-insn", str(target)])))

    with ThreadPoolExecutor(2) as pool:
        off, fast = pool.map(count, ("off", "fast"))
    return off, fast


def find_compiler(name: str) -> str:
    versions = [name, *(f"{name}-{k}" for k in range(30, 10, -1))]
    found = next(filter(None, map(shutil.which, versions)), None)
    if found is None:
        missing(name)
    assert found is not None
    return found


def find_objdump(name: str = "objdump") -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} (binutils) is not installed")
    assert found is not None
    return found


def check_no_contraction(compiler: str, kernel: str, flags: list[str], folder: Path) -> None:
    source = ROOT / "cpp" / "cpu" / f"{kernel}.cpp"
    off, fast = count_fused(find_compiler(compiler), find_objdump(), source, flags, folder)
    print(f"{compiler} {kernel} {flags}: {off} fused with contraction off, {fast} with fast")
    assert fast == off
    assert off > 0


@x86_64
def test_no_contraction(tmp_path: Path) -> None:
    """As many fused operations with contraction as without: only the explicit ones are there."""
    check_no_contraction("g++", "kernel_avx2", ["-O2"], tmp_path)


@x86_64
@pytest.mark.long
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
@pytest.mark.parametrize("level", ["-O2", "-O3"])
@pytest.mark.parametrize(
    ("kernel", "machine"),
    [
        ("kernel_avx2", "x86-64"),
        ("kernel_avx512", "x86-64"),
        # As a tree built for its own machine would be.
        ("kernel_scalar", "haswell"),
        ("kernel_avx2", "haswell"),
        ("kernel_avx512", "skylake-avx512"),
    ],
)
def test_no_contraction_other_flags(
    compiler: str, level: str, kernel: str, machine: str, tmp_path: Path
) -> None:
    check_no_contraction(compiler, kernel, [level, f"-march={machine}"], tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("kernel", ["kernel_scalar", "kernel_neon"])
@pytest.mark.parametrize("level", ["-O2", "-O3"])
def test_no_contraction_aarch64(kernel: str, level: str, tmp_path: Path) -> None:
    compiler, objdump = cross_tools("aarch64-linux-gnu-g++", "aarch64-linux-gnu-objdump")
    source = ROOT / "cpp" / "cpu" / f"{kernel}.cpp"
    off, fast = count_fused(compiler, objdump, source, [level], tmp_path)
    assert fast == off
    assert off > 0


def test_contraction_counter_can_fail(tmp_path: Path) -> None:
    """The counter sees a product that the compiler fuses into a sum."""
    source = tmp_path / "fuse.cpp"
    source.write_text("double f(double a, double b, double c) { return a * b + c; }\n")
    flags = ["-O2", *(["-march=haswell"] if os.uname().machine == "x86_64" else [])]
    found = count_fused(find_compiler("g++"), find_objdump(), source, flags, tmp_path)
    assert found == (0, 1)


def test_no_fast_math() -> None:
    """-ffast-math would break every promise, so the sources refuse to compile with it."""
    compiler = tool("g++") or tool("clang++") or tool("c++")
    if compiler is None:
        pytest.skip("no compiler")
    assert compiler is not None
    source = ROOT / "cpp" / "cpu" / "kernel_scalar.cpp"
    command = [compiler, "-std=c++14", *INCLUDES, "-fsyntax-only", str(source)]
    run(command)
    assert subprocess.run([*command, "-ffast-math"], capture_output=True).returncode != 0
