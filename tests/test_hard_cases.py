"""Hard surroundings: 64 callers, worker pools, the end of the interpreter, interrupts, memory and
threads that cannot be had, arrays of more than 2^31 elements.

What concerns a whole process runs in a process of its own.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sigmoid_ce as sce
from tests.conftest import missing
from tests.test_partial import HANG_S, output, script

ROOT = Path(__file__).resolve().parents[1]


# ---------------------------------------------------------------- 64 callers

CALLERS = 64


def operations() -> list[Any]:
    """Calls of every kind on their own data, small and large; each returns bytes."""
    rng = np.random.default_rng(0)
    calls = []
    for n in (1, 100, 5000, 40_000, 150_000):
        for dtype in (np.float32, np.float64):
            x = rng.normal(0, 3, (n, 2)).astype(dtype)
            t = rng.random((n, 2)).astype(dtype)
            byte = rng.integers(0, 3, (n, 2)).astype(np.uint8)
            options = {"pos_weight": [0.5, 2.0], "weight": t, "ignore_label": 2}
            turned = np.ascontiguousarray(x.T).T
            calls += [
                lambda x=x, t=t: np.float64(sce.forward(x, t)),
                lambda x=x, t=byte, o=options: np.float64(sce.forward(x, t, **o, normalize=True)),
                lambda x=x, t=byte, o=options: sce.backward(x, t, **o, normalization="valid"),
                lambda x=turned, t=t: sce.forward_backward(x, t)[1],
                lambda x=turned, t=byte, o=options: sce.elementwise(x, t, **o),
                lambda x=x, t=byte, o=options: sce.partial(x, t, **o).to_words(),
            ]
    return calls


@pytest.fixture
def switch_interval(request: Any) -> Iterator[float | None]:
    old = sys.getswitchinterval()
    if request.param is not None:
        sys.setswitchinterval(request.param)
    yield request.param
    sys.setswitchinterval(old)


@pytest.mark.parametrize("switch_interval", [None, 1e-6], indirect=True)
@pytest.mark.parametrize("threads", [1, 3])
def test_64_threads(threads: int, switch_interval: float | None) -> None:
    """Every operation from 64 threads at once, starting together: the bits of one thread alone.

    With the short interval the interpreter changes threads all the time.
    """
    calls = operations()
    sce.set_num_threads(1)
    wanted = [call().tobytes() for call in calls]
    sce.set_num_threads(threads)
    start = threading.Barrier(CALLERS)

    def work(k: int) -> list[int]:
        start.wait(HANG_S)
        order = np.random.default_rng(k).permutation(len(calls))[:20]
        return [int(i) for i in order if calls[i]().tobytes() != wanted[i]]

    with ThreadPoolExecutor(CALLERS) as pool:
        assert list(pool.map(work, range(CALLERS))) == [[]] * CALLERS


# ---------------------------------------------------------------- DataLoader

LOADER = """
import sys
import torch
from torch.utils.data import DataLoader, Dataset
import sigmoid_ce as sce

class Chunks(Dataset):
    # Item i: what a worker computes from a chunk of the data.
    def __init__(self, x, t):
        self.x, self.t = x, t
    def __len__(self):
        return len(self.x)
    def __getitem__(self, i):
        x, t = self.x[i], self.t[i]
        loss, gradient = sce.forward_backward(x, t)
        return i, loss, gradient, torch.from_numpy(sce.partial(x, t).to_words())

def main():
    torch.manual_seed(0)
    x = torch.randn(6, 10, 4096)
    t = torch.rand(6, 10, 4096)
    method = sys.argv[1]
    wanted = [sce.forward_backward(x[i], t[i]) for i in range(6)]  # this process has its threads
    whole = sce.partial(x, t)
    loader = DataLoader(Chunks(x, t), batch_size=2, num_workers=2, multiprocessing_context=method)
    words = torch.zeros(73, dtype=torch.int64)
    seen = []
    for indices, losses, gradients, parts in loader:
        words += parts.sum(0)
        for i, loss, gradient in zip(indices.tolist(), losses.tolist(), gradients):
            seen.append(i)
            assert loss == wanted[i][0] and torch.equal(gradient, wanted[i][1])
            again = sce.forward_backward(x[i], t[i])  # here, while the workers work
            assert again[0] == loss and torch.equal(again[1], gradient)
    assert sorted(seen) == list(range(6))
    assert sce.Partial.from_words(words.numpy()) == whole
    print("good")

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_data_loader(method: str, tmp_path: Path) -> None:
    """Losses and gradients from PyTorch's worker processes, and in the main process beside them."""
    if importlib.util.find_spec("torch") is None:
        missing("torch")
    # Python 3.12 warns of fork beside threads, in the loader's own call.
    environment = {"SIGMOID_CE_NUM_THREADS": "2", "PYTHONWARNINGS": "ignore"}
    assert output(script(tmp_path, LOADER, method, **environment)) == "good"


# ---------------------------------------------------------------- the end of the interpreter

BUSY = """
import atexit, os, sys, threading, time
import numpy as np
import sigmoid_ce as sce
x = np.linspace(-9, 9, 1 << 21).astype(np.float32)
t = np.zeros(x.size, np.uint8)
turned = np.ascontiguousarray(x.reshape(2, -1).T).T
wanted = sce.forward(x, t)
inside = threading.Barrier(5)

def call(k):
    if k == 0:
        return sce.forward(x, t)
    if k == 1:
        return sce.backward(x, t)
    if k == 2:
        return sce.forward_backward(turned, t.reshape(2, -1), ignore_label=3, normalize=True)
    return sce.partial(x, t, weight=2.0)

def busy(k):
    call(k)
    inside.wait()
    while True:
        call(k)

for k in range(4):
    threading.Thread(target=busy, args=(k,), daemon=True).start()
inside.wait()
"""

ENDINGS = {
    "return": ("", 0),
    "exit": ("sys.exit(0)", 0),
    "status": ("sys.exit(7)", 7),
    "error": ("raise KeyError('the end')", 1),
    "atexit": ("atexit.register(lambda: print(sce.forward(x, t) == wanted))", 0),
    "exit in thread": (
        # The main thread ends while a thread that is no daemon still has calls to make.
        "threading.Thread(target=lambda: [call(k % 4) for k in range(8)]).start()",
        0,
    ),
    "at once": ("sys.stdout.flush(); os._exit(0)", 0),
}


@pytest.mark.parametrize("threads", ["1", "3"])
@pytest.mark.parametrize("ending", list(ENDINGS))
def test_end_with_work_in_flight(ending: str, threads: str, tmp_path: Path) -> None:
    """Four daemon threads are in the middle of calls when the interpreter ends: no crash, no hang,
    no word but what the script itself says."""
    code, status = ENDINGS[ending]
    for _ in range(3):
        process = script(tmp_path, BUSY + code, SIGMOID_CE_NUM_THREADS=threads)
        try:
            out, error = process.communicate(timeout=HANG_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert process.returncode == status, error
        assert out == ("True\n" if ending == "atexit" else "")
        if ending == "error":
            assert error.splitlines()[-1] == "KeyError: 'the end'"
        else:
            assert error == ""


INTERRUPTS = """
import signal, sys
import numpy as np
import sigmoid_ce as sce
rng = np.random.default_rng(0)
x = rng.normal(0, 3, (3, 100_000)).astype(np.float32)
t = rng.integers(0, 2, x.shape).astype(np.uint8)
turned = np.ascontiguousarray(x.T).T
out = np.empty_like(x)
calls = [
    lambda: sce.forward(x, t).hex(),
    lambda: sce.backward(turned, t, out=out).tobytes(),
    lambda: sce.forward_backward(x, t, pos_weight=2.0)[1].tobytes(),
    lambda: sce.combine([sce.partial(x[:1], t[:1]), sce.partial(x[1:], t[1:])]).sum.hex(),
]
wanted = [call() for call in calls]
before = [sys.getrefcount(a) for a in (x, t, turned, out)]
armed = False

def interrupt(*_):
    if armed:
        raise KeyboardInterrupt

def work(k):
    global armed
    armed = True
    signal.setitimer(signal.ITIMER_REAL, 1e-5 + 1e-3 * rng.random())
    for _ in range(100):
        assert calls[k]() == wanted[k]
    armed = False

signal.signal(signal.SIGALRM, interrupt)
interrupted, step = 0, 0
while interrupted < 150:
    try:
        work(step % 4)
    except KeyboardInterrupt:
        armed = False
        interrupted += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    step += 1
assert [call() for call in calls] == wanted
assert [sys.getrefcount(a) for a in (x, t, turned, out)] == before
print("good")
"""


@pytest.mark.parametrize("threads", ["1", "2"])
def test_keyboard_interrupt(threads: str, tmp_path: Path) -> None:
    """150 interrupts at random moments of calls: the results stay right, no reference is lost."""
    assert output(script(tmp_path, INTERRUPTS, SIGMOID_CE_NUM_THREADS=threads)) == "good"


# ---------------------------------------------------------------- no memory, no threads


@pytest.fixture(scope="module")
def failing_malloc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library to preload."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        pytest.skip("the library replaces the allocator of glibc")
    if os.environ.get("LD_PRELOAD"):
        pytest.skip("another library is preloaded, a sanitizer's perhaps")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        missing("a C compiler")
    assert compiler is not None
    library = tmp_path_factory.mktemp("preload") / "failing_malloc.so"
    source = ROOT / "tests" / "native" / "preload" / "failing_malloc.c"
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread"]
    command = [compiler, *flags, str(source), "-o", str(library), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return library


def fail_allocations(library: Path, allocator: str, *cases: str) -> list[list[str]]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("SIGMOID_CE_")}
    env |= {
        "LD_PRELOAD": str(library),
        "PYTHONMALLOC": allocator,
        "MALLOC_PERTURB_": "165",  # what is read before it is written, or after free, is no 0
        "SIGMOID_CE_NUM_THREADS": "3",
    }
    program = str(ROOT / "tests" / "allocations.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", program, str(library), *cases],
        env=env,
        capture_output=True,
        text=True,
        timeout=4 * HANG_S,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-8000:]
    return [line.rsplit(": ", 1)[1].split() for line in done.stdout.splitlines()]


# The objects of Python go through malloc too: these alone in the usual run, for its time.
WITH_PYTHON = ("forward all", "backward strided", "both", "partial chunk", "add", "combine list",
               "pickle", "from_words")  # fmt: skip


@pytest.mark.parametrize(
    ("allocator", "cases"),
    [
        ("pymalloc", ()),
        ("malloc", WITH_PYTHON),
        pytest.param("malloc", (), marks=pytest.mark.long),
    ],
    ids=["all-pymalloc", "some-malloc", "all-malloc"],
)
def test_every_allocation_fails(
    allocator: str, cases: tuple[str, ...], failing_malloc: Path
) -> None:
    """MemoryError or the right result, and right results afterwards: tests/allocations.py."""
    counts = fail_allocations(failing_malloc, allocator, *cases)
    raised = sum(int(count[1]) for count in counts)
    without = sum(int(count[2]) for count in counts)
    assert raised > 100  # the allocations did fail
    assert without > 0 or cases  # such as those for starting threads


THREADLESS = """
import ctypes, os, sys
import numpy as np
import sigmoid_ce as sce
library = ctypes.CDLL(sys.argv[1])
library.disarm_threads.restype = ctypes.c_long
x = np.linspace(-9, 9, 100_000)
t = np.full(x.size, 0.25)
sce.set_num_threads(1)
wanted = sce.forward_backward(x, t)
sce.set_num_threads(4)  # three more threads
for first, count in ((1, 1), (2, 1), (3, 1), (2, 100), (1, 100)):
    pid = os.fork()
    if pid:
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        continue
    library.arm_threads(ctypes.c_long(first), ctypes.c_long(count))
    good = True
    for _ in range(3):
        loss, gradient = sce.forward_backward(x, t)
        good &= loss == wanted[0] and np.array_equal(gradient, wanted[1])
    asked = library.disarm_threads()
    loss, gradient = sce.forward_backward(x, t)  # starts those that are missing
    good &= loss == wanted[0] and np.array_equal(gradient, wanted[1])
    os._exit(0 if good and asked >= first else 1)
"""


def test_threads_that_cannot_start(failing_malloc: Path, tmp_path: Path) -> None:
    """pthread_create says EAGAIN to one or all: fewer threads, the same bits."""
    library = str(failing_malloc)
    environment = {"LD_PRELOAD": library, "PYTHONWARNINGS": "ignore"}
    assert output(script(tmp_path, THREADLESS, library, **environment)).split() == ["0"] * 5


# ---------------------------------------------------------------- more than 2^31 elements


def available_gigabytes() -> float:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) / 1e6
    except OSError:
        pass
    return 0.0


@pytest.mark.long
def test_outputs_of_more_than_2_to_the_31_elements() -> None:
    """Every element of an output of 8.6 GB: scores are one row, targets one column, broadcast."""
    columns, rows = 1024, 2**21 + 5
    needed = 4 * rows * columns / 1e9 + 2
    if available_gigabytes() < needed:
        pytest.skip(f"{needed:.0f} GB of memory needed, {available_gigabytes():.0f} available")
    rng = np.random.default_rng(0)
    row = rng.normal(0, 3, columns).astype(np.float32)
    column = rng.integers(0, 3, rows).astype(np.uint8)
    column[-5:] = (0, 1, 2, 1, 0)
    x = np.broadcast_to(row, (rows, columns))
    t = np.broadcast_to(column[:, None], (rows, columns))
    assert x.size > 2**31
    out = np.empty((rows, columns), np.float32)
    few = np.broadcast_to(row, (3, columns))
    each = np.repeat(np.arange(3, dtype=np.uint8), columns).reshape(3, columns)

    def check(table: Any, what: str) -> None:
        for begin in range(0, rows, 1 << 14):
            piece = slice(begin, begin + (1 << 14))
            assert np.array_equal(out[piece], table[column[piece]]), f"{what}, rows from {begin}"

    # The number of valid elements is above 2^31 divided by 3/2: none but the label 2 is ignored.
    n_valid = columns * int((column != 2).sum())
    options: dict[str, Any] = {"ignore_label": 2, "weight": 0.5}
    sce.elementwise(x, t, **options, out=out)
    check(sce.elementwise(few, each, **options), "elementwise")
    sce.backward(x, t, **options, normalization="valid", loss_weight=1e9, out=out)
    table = sce.backward(few, each, **options, normalization=n_valid, loss_weight=1e9)
    check(table, "backward")
    loss, _ = sce.forward_backward(x, t, normalization="full", loss_weight=1e9, out=out)
    check(sce.backward(few, each, normalization=x.size, loss_weight=1e9), "forward_backward")
    assert loss == sce.partial(x, t).sum / x.size
