"""Makes every allocation of each operation fail in turn; run by test_hard_cases.py.

    LD_PRELOAD=failing_malloc.so python tests/allocations.py failing_malloc.so [CASE ...]

For n = 1, 2, ... a forked child makes the n-th allocation of one call fail, until a call needs
fewer. The call must raise MemoryError, or do without and give the right bits; the next call, where
memory is to be had again, must give the right bits; and no reference to an argument may be left
over. `cold` children have never called before: they start the threads and look up what is looked up
once. In `warm` ones only the allocations of every call are left. `burst` is warm, and the
allocations after the n-th fail as well (100 of them: Python itself needs some to go on).

Under PYTHONMALLOC=malloc the objects of Python count as well. There, where it cannot make a frame
for a traceback, Python 3.11 loses the exception and says so itself, in a SystemError; this is let
pass, and counted.

Prints one line per case: name, kind, allocations; how many raised, did without, and lost.
Exit status 1 where a child did anything else.

Not here: check=True, which runs NumPy's iterator (it raises SystemError where memory runs out),
keyword arguments of sigmoid_ce.cpu (pybind11 reads a null pointer there), and what info() asks the
CUDA runtime (which reads one while it starts).
"""

from __future__ import annotations

import copy
import ctypes
import gc
import hashlib
import importlib
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

import sigmoid_ce as sce

# As in a build without CUDA; and imports are Python's own.
sys.modules["sigmoid_ce._cuda"] = None  # type: ignore[assignment]
importlib.import_module("sigmoid_ce.cuda")

N = 40_000  # more than 32768 elements, from which on threads share the work
CHANNELS = 5
HANG_S = 60
MAX_ALLOCATIONS = 3000  # of one call: far above what any needs
BURST = 100
PYTHON_ALLOCATES = os.environ.get("PYTHONMALLOC") == "malloc"
LOST_BY_PYTHON = "error return without exception set"

DONE, RAISED, WITHOUT, LOST, WRONG = range(5)  # exit status of a child; DONE: the call needed fewer

rng = np.random.default_rng(0)
X32 = rng.normal(0, 3, (N // 50, CHANNELS, 10)).astype(np.float32)
X64 = X32.astype(np.float64)
BYTE = rng.integers(0, 3, X32.shape).astype(np.uint8)
SOFT32 = rng.random(X32.shape).astype(np.float32)
SOFT64 = SOFT32.astype(np.float64)
MASK = rng.integers(0, 2, (CHANNELS, 1)).astype(np.int8)
WEIGHT = rng.random(X32.shape).astype(np.float32)
POS = np.array([0.5, 1.0, 2.0, 3.0, 0.0])
OUT32 = np.zeros_like(X32)
STRIDED_OUT = np.zeros((*X32.shape, 2), np.float32)[..., 0]
TRANSPOSED = np.ascontiguousarray(X32.transpose(2, 1, 0)).transpose(2, 1, 0)
SMALL = X32[:3]
PARTS = [sce.Partial() for _ in range(3)]
WORDS = np.arange(73, dtype=np.int64)
WORDS[68:] = (1, 0, 0, 50, 60)
LIST = [[0.5, -1.0], [2.0, 3.0]]
X16 = X32.astype(np.float16)
XB16 = (X32.view(np.uint32) >> 16).astype(np.uint16).view([("bfloat16", np.uint16)])
WRONG_DTYPE = X32.astype(np.int16)


def layer() -> Any:
    made = sce.SigmoidCrossEntropyLoss(pos_weight=2.0, normalization="full")
    return made.forward(X32, BYTE), made.backward(out=OUT32)


def refusal(call: Callable[[], Any]) -> Any:
    """The message of a TypeError or ValueError: it must come whole, or be a MemoryError."""
    try:
        call()
    except (TypeError, ValueError) as error:
        return str(error)
    raise AssertionError("no refusal")


def settings() -> Any:
    for name in sce.available_isas():
        sce.set_isa(name)
    sce.set_isa(None)
    sce.set_num_threads(sce.get_num_threads() + 1)  # the next call starts a thread
    loss = sce.forward(X32, BYTE)
    sce.set_num_threads(0)
    return loss, sce.get_isa()


ALL: dict[str, Any] = {"pos_weight": POS, "weight": MASK, "ignore_label": 2}

CASES: dict[str, Callable[[], Any]] = {
    "forward": lambda: sce.forward(X32, BYTE),
    "forward float64": lambda: sce.forward(X64, SOFT64, normalization="full"),
    "forward all": lambda: sce.forward(X32, BYTE, **ALL, normalization="valid"),
    "forward numbers": lambda: sce.forward(X32, BYTE, pos_weight=np.float32(2), weight=0.5),
    "forward strided": lambda: sce.forward(TRANSPOSED, BYTE, weight=WEIGHT),
    "forward lists": lambda: sce.forward(LIST, LIST, pos_weight=[1.0, 2.0], weight=LIST),
    "forward small": lambda: sce.forward(SMALL, SMALL),
    "backward": lambda: sce.backward(X32, BYTE),
    "backward out": lambda: sce.backward(X32, BYTE, out=OUT32),
    "backward valid": lambda: sce.backward(X32, BYTE, ignore_label=2, normalize=True),
    "backward all": lambda: sce.backward(X32, SOFT32, **ALL, normalization=7, loss_weight=0.5),
    "backward strided": lambda: sce.backward(TRANSPOSED, BYTE, out=STRIDED_OUT),
    "chunked gradient": lambda: sce.partial_backward(
        X32.ravel()[4096:], BYTE.ravel()[4096:], 9.0, first_index=4096, shape=X32.shape
    ),
    "both": lambda: sce.forward_backward(X32, BYTE, **ALL),
    "both strided": lambda: sce.forward_backward(TRANSPOSED, BYTE, **ALL, out=STRIDED_OUT),
    "elementwise": lambda: sce.elementwise(X64, SOFT64, weight=2.0),
    "elementwise strided": lambda: sce.elementwise(TRANSPOSED, SOFT32, **ALL, out=STRIDED_OUT),
    "balanced": lambda: sce.forward_backward(
        X32, SOFT32, balance="image", balance_per_channel=True, gamma=2.0, hessian=True
    ),
    "targets": lambda: sce.backward_targets(X64, SOFT64, normalization="foreground"),
    "half": lambda: sce.backward(X16, BYTE, out=OUT32, weight=0.5),
    "bfloat16": lambda: sce.backward(XB16, XB16).view(np.uint16),
    "layer": layer,
    "partial": lambda: sce.partial(X32, BYTE, **ALL),
    "partial chunk": lambda: sce.partial(
        X32.ravel()[4096:], BYTE.ravel()[4096:], **ALL, first_index=4096, shape=X32.shape
    ),
    "combine list": lambda: sce.combine(PARTS),
    "combine generator": lambda: sce.combine(part for part in PARTS),
    "add": lambda: PARTS[0] + PARTS[1],
    "add to 0": lambda: sum(PARTS),
    "equal": lambda: (PARTS[0] == PARTS[1], PARTS[0] == 1),
    "attributes": lambda: (PARTS[0].sum, PARTS[0].n_valid, PARTS[0].n_total, repr(PARTS[0])),
    "loss of partial": lambda: (PARTS[0].loss("full"), PARTS[0].loss(batch_size=8)),
    "to_words": lambda: PARTS[0].to_words(),
    "from_words": lambda: sce.Partial.from_words(WORDS),
    "pickle": lambda: pickle.loads(pickle.dumps(PARTS[0])),
    "copies": lambda: (copy.copy(PARTS[0]), copy.deepcopy(PARTS[1])),
    "settings": settings,
    "info": lambda: str(sce.info()),
    "refused dtype": lambda: refusal(lambda: sce.forward(WRONG_DTYPE, BYTE)),
    "refused shape": lambda: refusal(lambda: sce.forward(X32, BYTE[:3])),
    "refused option": lambda: refusal(lambda: sce.backward(X32, BYTE, normalization="mean")),
    "refused balance": lambda: refusal(lambda: sce.forward(X32, BYTE, balance="imag")),
    "refused isa": lambda: refusal(lambda: sce.set_isa("pentium")),
    "refused words": lambda: refusal(lambda: sce.Partial.from_words(WORDS[:72])),
    "refused part": lambda: refusal(lambda: sce.combine([1])),
}

ARGUMENTS = (X32, X64, BYTE, SOFT32, SOFT64, MASK, WEIGHT, POS, OUT32, STRIDED_OUT, TRANSPOSED,
             SMALL, WORDS, X16, XB16, WRONG_DTYPE, LIST, *PARTS, None)  # fmt: skip


def digest(result: Any) -> str:
    """Of all bits."""
    if isinstance(result, tuple):
        return " ".join(map(digest, result))
    if isinstance(result, sce.Partial):
        result = result.to_words()
    if isinstance(result, np.ndarray):
        return hashlib.sha256(result.tobytes()).hexdigest()
    return repr(result)


def references() -> list[int]:
    return [sys.getrefcount(a) for a in ARGUMENTS[:-1]]


def child(library: Any, call: Callable[[], Any], wanted: str, kind: str, n: int) -> int:
    if kind != "cold":
        assert digest(call()) == wanted
    OUT32.fill(0)
    STRIDED_OUT.fill(0)
    before = references()
    result = raised = lost = None
    seen = 0
    library.arm_memory(n, BURST if kind == "burst" else 1)
    try:
        result = call()
    except MemoryError:
        raised = True
    except SystemError as error:
        lost = PYTHON_ALLOCATES and str(error) == LOST_BY_PYTHON
        if not lost:
            raise
    finally:
        while True:
            try:
                seen = library.disarm_memory()
                break
            except MemoryError:  # in the call of disarm_memory
                raised = raised or result is None
    if not raised and not lost:
        assert result is not None
        assert digest(result) == wanted, "wrong result where an allocation failed"
    result = None
    gc.collect()
    assert references() == before, f"references: {before} before, {references()} after"
    OUT32.fill(0)
    assert digest(call()) == wanted, "wrong result after an allocation failed"
    return DONE if seen < n else LOST if lost else RAISED if raised else WITHOUT


def forked(work: Callable[[], int]) -> int:
    """The exit status of a child that does this work; minus the signal that ended it."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = WRONG
    try:
        signal.alarm(HANG_S)
        status = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def right_bits(call: Callable[[], Any]) -> str:
    """From another process, since this one never calls."""
    read, write = os.pipe()

    def work() -> int:
        os.write(write, digest(call()).encode())
        return DONE

    assert forked(work) == DONE
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        return pipe.read().decode()


def main() -> int:
    gc.disable()  # a collection in the middle of a call would come at another place each time
    path, *arguments = sys.argv[1:]
    library = ctypes.CDLL(path)
    library.arm_memory.argtypes = [ctypes.c_long, ctypes.c_long]
    library.arm_memory.restype = None
    library.disarm_memory.restype = ctypes.c_long
    faults = 0
    for name in arguments or CASES:
        call = CASES[name]
        wanted = right_bits(call)
        for kind in ("cold", "warm", "burst"):
            counts = [0] * 5
            n = 1
            while n < MAX_ALLOCATIONS:
                status = forked(lambda n=n: child(library, call, wanted, kind, n))  # noqa: B023
                if status not in (DONE, RAISED, WITHOUT, LOST):
                    print(f"{name}, {kind}, allocation {n}: status {status}", file=sys.stderr)
                    status = WRONG
                counts[status] += 1
                if status == DONE:
                    break
                n += 1
            faults += counts[WRONG] + (counts[DONE] == 0)
            print(f"{name}: {kind}: {n - 1} {counts[RAISED]} {counts[WITHOUT]} {counts[LOST]}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
