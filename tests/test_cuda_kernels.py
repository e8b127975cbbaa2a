"""The machine code of the CUDA kernels, for every architecture that is built: no GPU is needed.

What the compiler reports and what the disassembler shows. Nothing here says how fast or how right
the kernels are on a GPU.
"""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import cuda_code
from cuda_code import Kernel

FLOATS = ["float16", "bfloat16", "float32"]
HALVES = ["float16", "bfloat16"]
SUMS = ["forward", "forward_backward", "hessian"]
GRADIENTS = ["backward", "forward_backward", "hessian", "backward_targets"]

THREADS = 256
LEAST_OCCUPANCY = 0.5
# Of a focal loss in double precision, whose operations take longer than they wait.
LEAST_OCCUPANCY_FOCAL64 = 0.25
# A wheel with them stays below what package indexes take.
MODULE_LIMIT = 40_000_000

# ---- What a block sum may cost in double precision (cpp/math/block_sum.h) ----

# 64 accumulators of 16 values each by the 32 threads of a warp, then 64 -> 32 -> 1.
REDUCTION = 2 * 16 + 1 + 5
# A sum with infinities: the counts of +inf, -inf and NaN become numbers and are added.
SPECIAL = 4
# Elements of one thread in flight: two rows of 4 float32 or one of 8 halves, or twice that; and
# one on the path for odd addresses.
IN_FLIGHT = 16 + 1


class Limits(NamedTuple):
    """Of a multiprocessor (CUDA C++ Programming Guide, "Technical Specifications")."""

    threads: int
    blocks: int
    shared: int  # bytes, the largest carve-out
    reserved: int  # bytes of it that the system takes for each block


REGISTERS = 65536
LIMITS = {
    "75": Limits(1024, 16, 64 * 1024, 0),
    "80": Limits(2048, 32, 164 * 1024, 1024),
    "86": Limits(1536, 16, 100 * 1024, 1024),
    "89": Limits(1536, 24, 100 * 1024, 1024),
    "90": Limits(2048, 32, 228 * 1024, 1024),
    "100": Limits(2048, 32, 228 * 1024, 1024),
    "120": Limits(1536, 24, 100 * 1024, 1024),
}

architectures = pytest.mark.parametrize("arch", list(LIMITS))


@pytest.fixture(autouse=True)
def needs_nvcc() -> None:
    cuda_code.nvcc()


def code(arch: str) -> dict[Kernel, Counter[str]]:
    if arch not in cuda_code.architectures():
        pytest.skip(f"this build has no machine code for sm_{arch}")
    return cuda_code.all_instructions()[arch]


def expected_kernels() -> set[Kernel]:
    """cuda/table.cuh, and those of kernels_valid.cu."""
    found = set()
    for scores in [*FLOATS, "float64"]:
        for targets in {scores, "float32", "integer"}:
            for operation in cuda_code.OPERATIONS[:4]:
                for kind in ("plain", "general"):
                    found.add(Kernel(scores, targets, operation, kind))
        found |= {Kernel(scores, "any", o, "focal") for o in cuda_code.OPERATIONS}
    found.add(Kernel("", "", "class_weights", "plain"))
    integers = ["bool", "uint8", "int8", "int32", "int64"]
    return found | {Kernel("", t, "count", "plain") for t in [*FLOATS, "float64", *integers]}


def name(kernel: Kernel, arch: str) -> str:
    types = f"{kernel.scores or 'any'}, {kernel.targets}, {kernel.kind}"
    return f"sm_{arch}: {kernel.operation} of {types}"


def total(counts: Counter[str], pattern: str) -> int:
    return sum(n for opcode, n in counts.items() if re.fullmatch(pattern, opcode))


def test_architectures() -> None:
    """Every architecture of the table is built, unless the toolkit or the user has other plans."""
    built = cuda_code.architectures()
    print(f"{cuda_code.compiled()}: {', '.join(built)}")
    assert set(built) <= set(LIMITS)
    assert built
    text = (cuda_code.ROOT / "cmake" / "cuda.cmake").read_text()
    listed = re.findall(r"(?:set\(CMAKE_CUDA_ARCHITECTURES |[.\d]+:|-real )(\d+)", text)
    assert set(listed) == set(LIMITS), "another architecture needs its line in LIMITS"


@architectures
def test_all_kernels_are_there(arch: str) -> None:
    found = set(code(arch))
    wanted = expected_kernels()
    assert len(wanted) == 122
    assert found == wanted


@architectures
def test_no_spills_and_occupancy(arch: str) -> None:
    """All in registers, few enough for half of the threads that a multiprocessor can hold."""
    kernels = code(arch)
    limits = LIMITS[arch]
    wrong, lowest = [], 1.0
    for kernel, r in cuda_code.all_resources()[arch].items():
        # By 8 per thread, for warps in fours.
        by_registers = REGISTERS // (-(-r.registers // 8) * 8 * THREADS)
        by_shared = limits.shared // max(1, r.shared + limits.reserved)
        blocks = min(by_registers, by_shared, limits.threads // THREADS, limits.blocks)
        occupancy = blocks * THREADS / limits.threads
        lowest = min(lowest, occupancy)
        spills = total(kernels[kernel], r"(LDL|STL)\b.*")
        is_focal64 = kernel.kind == "focal" and kernel.scores == "float64"
        least = LEAST_OCCUPANCY_FOCAL64 if is_focal64 else LEAST_OCCUPANCY
        if r.stack or r.local or spills or occupancy < least:
            wrong.append(f"{name(kernel, arch)}: {r}, {spills} spills, occupancy {occupancy:.0%}")
    print(f"sm_{arch}: the lowest occupancy is {lowest:.0%}")
    assert wrong == [], "\n".join(wrong)


@architectures
def test_wide_loads_and_stores(arch: str) -> None:
    """16 bytes at once: the scores, targets as wide as them or wider, and the result."""
    wrong = []
    for kernel, counts in code(arch).items():
        loads, stores = total(counts, r"LDG\..*\b128\b.*"), total(counts, r"STG\..*\b128\b.*")
        if kernel.operation == "class_weights":
            wanted_loads, wanted_stores = 0, 0
        elif kernel.operation == "count":
            wanted_loads, wanted_stores = 1, 0
        else:
            alike = kernel.targets != "integer" and not (
                kernel.scores == "float64" and kernel.targets == "float32"
            )
            wanted_loads = 2 if alike else 1
            wanted_stores = {"forward": 0, "hessian": 2}.get(kernel.operation, 1)
        if loads < wanted_loads or stores < wanted_stores:
            wrong.append(f"{name(kernel, arch)}: {loads} loads, {stores} stores of 16 bytes")
    assert wrong == [], "\n".join(wrong)


DOUBLE = r"D(ADD|MUL|FMA|SETP|MNMX)\b.*|.*\bF64\b.*|MUFU\.\w*64H\b.*"
TO_DOUBLE = r"F2F\.F64\.F32"
DIVISION = [r"DFMA\b.*", r"DMUL\b.*", r"MUFU\.RCP64H\b.*", r"DSETP\b.*"]


def one_operation(code: str, folder: Path) -> dict[str, Counter[str]]:
    """The instructions of a kernel of one line, by architecture."""
    (folder / "one.cu").write_text(f"__global__ void one({code} }}\n")
    built = cuda_code.architectures()
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in built]
    command = [cuda_code.nvcc(), *targets, "-c", "-o", str(folder / "one.o"), "one.cu"]
    cuda_code.run(command, cwd=folder)
    found = {}
    for arch in built:
        text = cuda_code.cuobjdump("-arch", f"sm_{arch}", "-sass", str(folder / "one.o"))
        (found[arch],) = cuda_code.count_instructions(text).values()
    return found


@pytest.fixture(scope="session")
def division(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counter[str]]:
    """One division in double precision."""
    folder = tmp_path_factory.mktemp("division")
    return one_operation("double* p) { p[0] = __ddiv_rn(p[1], p[2]);", folder)


@pytest.fixture(scope="session")
def division32(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counter[str]]:
    """One division in single precision, for operands of any size."""
    folder = tmp_path_factory.mktemp("division32")
    return one_operation("float* p) { p[0] = __fdiv_rn(p[1], p[2]);", folder)


@architectures
def test_double_precision_only_where_it_must_be(
    arch: str, division: dict[str, Counter[str]]
) -> None:
    """In float32 and the half types: the block sum, and the divisor, which is one number.

    The work per element has no double precision but a conversion and an addition where it sums.
    """
    kernels = code(arch)
    one = division[arch]
    assert total(one, DIVISION[0]) > 0
    wrong = []
    for kernel, counts in kernels.items():
        if kernel.scores not in FLOATS:
            continue
        double = Counter({op: n for op, n in counts.items() if re.fullmatch(DOUBLE, op)})
        sums, divides = kernel.operation in SUMS, kernel.operation in GRADIENTS
        divisions = int(sums) + int(divides)
        allowed: list[tuple[str, int, int]] = [
            (r"DADD\b.*", REDUCTION * sums, (REDUCTION + SPECIAL + IN_FLIGHT) * sums),
            (TO_DOUBLE, 1 * sums, IN_FLIGHT * sums),
            # Of the loss and of the factor on the gradient, once per block.
            (r"F2F\.F32\.F64", divisions, divisions),
            # The number of elements, for the divisor.
            (r"I2F\.F64\.[SU]64", 0, int(sums)),
        ]
        # The slow path of two divisions may be shared.
        allowed += [
            (op, min(1, divisions) * total(one, op), divisions * total(one, op)) for op in DIVISION
        ]
        for pattern, least, most in allowed:
            n = total(double, pattern)
            if not least <= n <= most:
                wrong.append(f"{name(kernel, arch)}: {n} of {pattern}, expected {least} to {most}")
        known = [pattern for pattern, _, _ in allowed]
        for opcode in double:
            if not any(re.fullmatch(pattern, opcode) for pattern in known):
                wrong.append(f"{name(kernel, arch)}: {double[opcode]} of {opcode}")
    assert wrong == [], "\n".join(wrong[:40])


@architectures
def test_no_flush_to_zero_and_no_atomics_of_floats(
    arch: str, division32: dict[str, Counter[str]]
) -> None:
    """But for the compiler's IEEE division, in focal losses, which looks at operands that way."""
    wrong = []
    for kernel, counts in code(arch).items():
        in_division = division32[arch] if kernel.kind == "focal" else Counter()
        for opcode in counts:
            if re.search(r"\.FTZ\b", opcode) and opcode not in in_division:
                wrong.append(f"{name(kernel, arch)}: {opcode}")
            if re.match(r"(ATOM[GS]?|REDG?|REDUX)\b", opcode) and re.search(
                r"F16|BF16|F32|F64", opcode
            ):
                wrong.append(f"{name(kernel, arch)}: {opcode}")
    assert wrong == [], "\n".join(wrong)


# ---------------------------------------------------------------- PTX

KERNEL_FILES = ["kernels_float16", "kernels_bfloat16", "kernels_float32", "kernels_float64"]
# A product and a sum may become one operation where neither names its rounding. nvcc leaves it out
# where it sees that there is nothing to fuse.
LOOSE_PRODUCT = re.compile(r"mul\.f(16|32|64)$")
LOOSE_SUM = re.compile(r"(add|sub)\.f(16|32|64)$")
LOOSE_OTHER = re.compile(r"^\s*(?:@\S+\s+)?((?:mad|div|fma)\.(?:ftz\.)?f(?:16|32|64)\b)", re.M)
PASSED_ON = re.compile(r"(mov|neg|selp)\.(f|b)(16|32|64)$")
STATEMENT = re.compile(r"^\s*(?:@\S+\s+)?([a-z][\w.:]*)\s+(%\w+), ([^;]*);", re.M)
ATOMIC = re.compile(r"^\s*(?:@\S+\s+)?((?:atom|red)\.\S+)", re.M)
COMMENT = re.compile(r"^//.*$", re.M)


def ptx(source: str, arch: str, folder: Path, *flags: str) -> str:
    out = folder / f"{source}.{arch}{''.join(flags)}.ptx"
    file = str(cuda_code.ROOT / "cuda" / f"{source}.cu")
    options = ["-std=c++14", "-O3", "-DNDEBUG", f"-arch=compute_{arch}", *flags]
    cuda_code.run([cuda_code.nvcc(), *options, *cuda_code.includes(), "-ptx", "-o", str(out), file])
    return COMMENT.sub("", out.read_text())


def fusable(text: str) -> list[str]:
    """Sums that a product could be fused into, in any function."""
    found = []
    for function in re.split(r"^\.visible .entry |^\.entry |^\.func ", text, flags=re.M):
        made: dict[str, list[tuple[str, list[str]]]] = {}
        for opcode, result, operands in STATEMENT.findall(function):
            made.setdefault(result, []).append((opcode, re.findall(r"%\w+", operands)))

        def is_product(register: str, seen: frozenset[str], made: Any = made) -> bool:
            for opcode, operands in made.get(register, []):
                if LOOSE_PRODUCT.match(opcode):
                    return True
                if PASSED_ON.match(opcode) and register not in seen:
                    if any(is_product(o, seen | {register}) for o in operands):
                        return True
            return False

        for result, ways in made.items():
            for opcode, operands in ways:
                if LOOSE_SUM.match(opcode) and any(is_product(o, frozenset()) for o in operands):
                    found.append(f"{opcode} {result}")
    return found


def without_rounding(text: str) -> str:
    return re.sub(r"\b(mul|add|sub)\.rn\.", r"\1.", text)


@pytest.mark.parametrize("source", [*KERNEL_FILES, "kernels_valid"])
def test_no_contraction(source: str, tmp_path: Path) -> None:
    """Only explicit fused operations, so that no flag of the compiler changes a result."""
    arch = cuda_code.architectures()[-1]
    with ThreadPoolExecutor(2) as pool:
        with_fma, without = pool.map(
            lambda flag: ptx(source, arch, tmp_path, flag), ("-fmad=true", "-fmad=false")
        )
    assert fusable(with_fma) == []
    assert LOOSE_OTHER.findall(with_fma) == []
    assert without_rounding(with_fma) == without_rounding(without)
    # But for the first guess of a reciprocal of a number in [1, 2], which division.h corrects.
    assert not re.search(r"\.ftz\b", with_fma.replace("rcp.approx.ftz.f32", ""))
    assert [a for a in ATOMIC.findall(with_fma) if re.search(r"\.b?f\d|\.cas\b|\.exch\b", a)] == []
    if source != "kernels_valid":
        assert len(re.findall(r"\bfma\.rn\.f(?:32|64)\b", with_fma)) > 100


def test_contraction_is_seen(tmp_path: Path) -> None:
    """The test above can fail."""
    (tmp_path / "a.cu").write_text(
        "__global__ void a(float* p) { p[0] = p[1] * p[2] + p[3]; atomicAdd(p + 4, p[5]); }\n"
    )
    texts = []
    for flag in ("-fmad=true", "-fmad=false"):
        cuda_code.run([cuda_code.nvcc(), flag, "-ptx", "-o", f"{flag}.ptx", "a.cu"], cwd=tmp_path)
        texts.append(COMMENT.sub("", (tmp_path / f"{flag}.ptx").read_text()))
    assert without_rounding(texts[0]) != without_rounding(texts[1])
    assert [a for a in ATOMIC.findall(texts[0]) if re.search(r"\.b?f\d", a)]
    # As nvcc writes it where it leaves the choice to the assembler.
    assert fusable("mul.f32 %f1, %f2, %f3;\nneg.f32 %f4, %f1;\nadd.f32 %f5, %f4, %f6;\n")
    assert not fusable("mul.f32 %f1, %f2, %f3;\nadd.rn.f32 %f5, %f1, %f6;\n")
    assert not fusable("mul.rn.f32 %f1, %f2, %f3;\nadd.f32 %f5, %f1, %f6;\n")


def test_module_size() -> None:
    """Of what goes into a wheel."""
    files = [cuda_code.compiled()]
    spec = importlib.util.find_spec("sigmoid_ce._cuda")
    if spec is not None and spec.origin is not None:
        files.append(Path(spec.origin))
    for file in files:
        print(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB")
        assert file.stat().st_size <= MODULE_LIMIT
