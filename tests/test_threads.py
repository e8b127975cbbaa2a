"""Threads: how many, from many Python threads at once, after a fork, without a global lock.

What changes a whole process (fork, affinity, environment) runs in a process of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sigmoid_ce as sce

# A hang is a failure too; this is far above what any of these processes needs.
HANG_S = 120
FREE_THREADED = "SIGMOID_CE_FREE_THREADED_PYTHON"

SETUP = """
import multiprocessing, os, sys, warnings
import numpy as np
import sigmoid_ce as sce
rng = np.random.default_rng(0)
x = rng.normal(0, 3, (1 << 20,)).astype(np.float32)
t = rng.integers(0, 2, x.shape).astype(np.uint8)
def work():
    loss, gradient = sce.forward_backward(x, t)
    return loss, gradient.tobytes()
"""


def python(code: str, interpreter: str = sys.executable, **environment: str) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith("SIGMOID_CE_")}
    done = subprocess.run(
        [interpreter, "-c", SETUP + textwrap.dedent(code)],
        env={**env, **environment},
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


# ---------------------------------------------------------------- how many


def test_set_num_threads() -> None:
    default = sce.get_num_threads()
    assert default >= 1
    for n in (1, 2, 5, 64):
        sce.set_num_threads(n)
        assert sce.get_num_threads() == n
    sce.set_num_threads(0)
    assert sce.get_num_threads() == default


@pytest.mark.parametrize("n", [-1, -100])
def test_set_num_threads_refuses(n: int) -> None:
    before = sce.get_num_threads()
    with pytest.raises(ValueError, match="n"):
        sce.set_num_threads(n)
    assert sce.get_num_threads() == before


def test_environment_variable() -> None:
    code = "print(sce.get_num_threads())"
    assert python(code, SIGMOID_CE_NUM_THREADS="3") == "3"
    assert python(code, SIGMOID_CE_NUM_THREADS="1") == "1"
    # A call has the last word; 0 goes back to the variable.
    code = "sce.set_num_threads(2); a = sce.get_num_threads(); sce.set_num_threads(0)\n"
    assert python(code + "print(a, sce.get_num_threads())", SIGMOID_CE_NUM_THREADS="5") == "2 5"


@pytest.mark.parametrize("value", ["0", "-4", "many", "3x", "99999999999999999999"])
def test_environment_variable_without_sense(value: str) -> None:
    """A setting that names no number of threads is an error that names it, not a guess."""
    code = """
    try:
        work()
    except ValueError as error:
        print("SIGMOID_CE_NUM_THREADS" in str(error))
    sce.set_num_threads(2)
    print(work()[0] > 0)
    """
    assert python(code, SIGMOID_CE_NUM_THREADS=value).split() == ["True", "True"]


def test_empty_environment_variables_are_as_none() -> None:
    code = "print(sce.get_num_threads(), sce.get_isa())"
    assert python(code, SIGMOID_CE_NUM_THREADS="", SIGMOID_CE_ISA="") == python(code)


def test_environment_isa_that_is_not_there() -> None:
    code = """
    try:
        work()
    except (ValueError, RuntimeError) as error:
        print("SIGMOID_CE_ISA" in str(error))
    """
    assert python(code, SIGMOID_CE_ISA="pentium") == "True"


def test_environment_isa() -> None:
    for isa in sce.available_isas():
        assert python("print(sce.get_isa())", SIGMOID_CE_ISA=isa) == isa


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity on this system")
def test_affinity_is_honoured() -> None:
    allowed = sorted(os.sched_getaffinity(0))
    code = """
    os.sched_setaffinity(0, {wanted})
    print(sce.get_num_threads())
    """
    assert python(code.format(wanted={allowed[0]})) == "1"
    count = int(python(code.format(wanted=set(allowed))))
    assert 1 <= count <= len(allowed)  # a cgroup quota may allow less


def cgroup(program: Path, tree: Path, self: str, files: dict[str, str]) -> int:
    """What the native code reads from a made-up /proc/self/cgroup and /sys/fs/cgroup."""
    root = tree / "cgroup"
    root.mkdir(parents=True)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (tree / "self").write_text(self)
    command = [str(program / "cgroup"), str(tree / "self"), str(root)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


V1 = "12:cpuset:/x\n4:cpu,cpuacct:/x/y\n3:memory:/x\n"
QUOTA, PERIOD = "cpu.cfs_quota_us", "cpu.cfs_period_us"
CGROUPS: list[tuple[str, str, dict[str, str], int]] = [
    # name, /proc/self/cgroup, files under /sys/fs/cgroup, CPUs (0: no limit)
    ("2: rounded up", "0::/a/b\n", {"a/b/cpu.max": "150000 100000\n"}, 2),
    ("2: whole", "0::/a/b\n", {"a/b/cpu.max": "300000 100000\n"}, 3),
    ("2: less than one", "0::/a/b\n", {"a/b/cpu.max": "1000 100000\n"}, 1),
    ("2: max", "0::/a/b\n", {"a/b/cpu.max": "max 100000\n"}, 0),
    (
        "2: tighter parent",
        "0::/a/b\n",
        {"a/b/cpu.max": "800000 100000\n", "a/cpu.max": "200000 50000\n"},
        4,
    ),
    (
        "2: wider parent",
        "0::/a/b\n",
        {"a/b/cpu.max": "200000 100000\n", "a/cpu.max": "800000 100000\n"},
        2,
    ),
    (
        "2: parent of one without limit",
        "0::/a/b\n",
        {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "500000 100000\n"},
        5,
    ),
    ("2: limit at the root", "0::/a/b\n", {"cpu.max": "200000 100000\n"}, 2),
    ("2: in a container", "0::/\n", {"cpu.max": "250000 100000\n"}, 3),
    ("2: of another group", "0::/a/b\n", {"a/c/cpu.max": "100000 100000\n"}, 0),
    ("2: no files", "0::/a/b\n", {}, 0),
    ("2: empty file", "0::/a/b\n", {"a/b/cpu.max": ""}, 0),
    (
        "1: rounded up",
        V1,
        {f"cpu,cpuacct/x/y/{QUOTA}": "250000\n", f"cpu,cpuacct/x/y/{PERIOD}": "100000\n"},
        3,
    ),
    (
        "1: no limit",
        V1,
        {f"cpu,cpuacct/x/y/{QUOTA}": "-1\n", f"cpu,cpuacct/x/y/{PERIOD}": "100000\n"},
        0,
    ),
    (
        "1: tighter parent",
        V1,
        {
            f"cpu,cpuacct/x/y/{QUOTA}": "900000\n",
            f"cpu,cpuacct/x/y/{PERIOD}": "100000\n",
            f"cpu,cpuacct/x/{QUOTA}": "100000\n",
            f"cpu,cpuacct/x/{PERIOD}": "50000\n",
        },
        2,
    ),
    ("1: no period", V1, {f"cpu,cpuacct/x/y/{QUOTA}": "250000\n"}, 0),
    ("1: no files", V1, {}, 0),
    (
        "1: of another controller",
        V1,
        {f"cpuset/x/{QUOTA}": "100000\n", f"cpuset/x/{PERIOD}": "100000\n"},
        0,
    ),
    (
        "both",
        "4:cpu,cpuacct:/x\n0::/a\n",
        {
            f"cpu,cpuacct/x/{QUOTA}": "600000\n",
            f"cpu,cpuacct/x/{PERIOD}": "100000\n",
            "a/cpu.max": "400000 100000\n",
        },
        4,
    ),
    ("nothing listed", "", {"cpu.max": "100000 100000\n"}, 0),
]


@pytest.mark.parametrize(
    ("self", "files", "cpus"), [case[1:] for case in CGROUPS], ids=[case[0] for case in CGROUPS]
)
def test_cgroup_quota(
    self: str, files: dict[str, str], cpus: int, tmp_path: Path, native_tests: Path
) -> None:
    assert cgroup(native_tests, tmp_path, self, files) == cpus


def test_cgroup_without_proc(tmp_path: Path, native_tests: Path) -> None:
    command = [str(native_tests / "cgroup"), str(tmp_path / "none"), str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "0\n"


# ---------------------------------------------------------------- many at once


def test_many_python_threads() -> None:
    """Calls from 16 threads at once, on inputs of all sizes, give what one thread gives."""
    rng = np.random.default_rng(0)
    inputs = []
    for n in (10, 5000, 100_000, 600_000):
        x = rng.normal(0, 3, n).astype(np.float32)
        inputs.append((x, rng.integers(0, 2, n).astype(np.uint8)))
    wanted = [sce.forward_backward(x, t) for x, t in inputs]
    start = threading.Barrier(16)

    def work(k: int) -> bool:
        start.wait(HANG_S)
        for step in range(12):
            i = (k + step) % len(inputs)
            loss, gradient = sce.forward_backward(*inputs[i])
            if loss != wanted[i][0] or not np.array_equal(gradient, wanted[i][1]):
                return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(16)))


def test_settings_change_while_others_compute() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(0, 3, 400_000).astype(np.float32)
    t = rng.integers(0, 2, x.size).astype(np.uint8)
    wanted = sce.forward(x, t)
    stop = threading.Event()

    def change() -> None:
        step = 0
        while not stop.is_set():
            sce.set_num_threads(step % 4)
            sce.set_isa(sce.available_isas()[step % len(sce.available_isas())])
            step += 1

    changer = threading.Thread(target=change)
    changer.start()
    try:
        assert all(sce.forward(x, t) == wanted for _ in range(60))
    finally:
        stop.set()
        changer.join(HANG_S)


def test_gil_is_released() -> None:
    """Another Python thread runs while a kernel does: it answers from inside the call's time.

    One long call in a thread; the main thread counts. With the lock held the counter could move
    only before the call began and after it had ended, and both moments are seen by the events.
    """
    x = np.zeros(1 << 24, np.float32)
    t = np.zeros(1 << 24, np.uint8)
    sce.set_num_threads(1)
    old = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(20):
            begun, ended = threading.Event(), threading.Event()

            def work(begun: Any = begun, ended: Any = ended) -> None:
                begun.set()
                for _ in range(4):
                    sce.forward(x, t)
                ended.set()

            thread = threading.Thread(target=work)
            thread.start()
            begun.wait(HANG_S)
            count = 0
            while not ended.is_set():
                count += 1
            thread.join(HANG_S)
            if count > 1000:  # a held lock lets about one switch pass per call
                return
        pytest.fail("the counter never moved while a kernel ran")
    finally:
        sys.setswitchinterval(old)


# ---------------------------------------------------------------- fork


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("threads", ["1", "2", "4"])
def test_fork_after_use(threads: str) -> None:
    """The child of a parent that has used its threads computes, and so does its own child."""
    code = """
    warnings.simplefilter("ignore")  # Python 3.12 warns of fork beside threads
    wanted = work()
    def child(depth):
        pid = os.fork()
        if pid == 0:
            good = work() == wanted and (depth == 0 or child(depth - 1) == 0)
            os._exit(0 if good else 1)
        good = work() == wanted  # the parent goes on meanwhile
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return status if good else 2
    for _ in range(5):
        status = child(1)
        if status:
            sys.exit(status)
    print("good")
    """
    assert python(code, SIGMOID_CE_NUM_THREADS=threads) == "good"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_fork_while_other_threads_compute() -> None:
    code = """
    import threading
    warnings.simplefilter("ignore")
    wanted = work()
    stop = threading.Event()
    def busy():
        while not stop.is_set():
            work()
    others = [threading.Thread(target=busy) for _ in range(3)]
    for other in others:
        other.start()
    statuses = []
    for _ in range(10):
        pid = os.fork()
        if pid == 0:
            os._exit(0 if sce.forward(x, t) == wanted[0] else 1)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    stop.set()
    for other in others:
        other.join()
    print(statuses)
    """
    assert python(code, SIGMOID_CE_NUM_THREADS="2") == str([0] * 10)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_multiprocessing_fork() -> None:
    code = """
    warnings.simplefilter("ignore")
    wanted = work()
    with multiprocessing.get_context("fork").Pool(3) as pool:
        results = [pool.apply_async(work) for _ in range(6)]
        print(all(r.get(60) == wanted for r in results))
    """
    assert python(code, SIGMOID_CE_NUM_THREADS="2") == "True"


# ---------------------------------------------------------------- free-threaded Python


def test_free_threaded_python() -> None:
    """The module does not bring the global lock back, and computes from 8 threads at once.

    The interpreter, with this package and NumPy, is the one that SIGMOID_CE_FREE_THREADED_PYTHON
    names, or the first on the PATH.
    """
    names = (os.environ.get(FREE_THREADED), "python3.14t", "python3.13t")
    found = [p for p in (shutil.which(name) for name in names if name) if p]
    if not found:
        pytest.skip(f"no python3.14t or python3.13t on the PATH, and no {FREE_THREADED}")
    probe = [found[0], "-c", "import numpy, sigmoid_ce"]
    if subprocess.run(probe, capture_output=True).returncode != 0:
        pytest.skip(f"numpy or sigmoid_ce is not installed for {found[0]}")
    code = """
    from concurrent.futures import ThreadPoolExecutor
    assert not sys._is_gil_enabled()
    wanted = work()
    part = sce.partial(x, t)
    def parts():
        halves = [sce.partial(a, b) for a, b in zip(np.split(x, 2), np.split(t, 2))]
        return sce.combine(halves) == sum(halves) == part
    def both(_):
        return work() == wanted and parts()
    with ThreadPoolExecutor(8) as pool:
        print(all(pool.map(both, range(64))) and not sys._is_gil_enabled())
    """
    assert python(code, interpreter=found[0]) == "True"
