"""Partial sums: the bits of the whole from chunks in any order, on threads, in processes, through
an all-reduce; pickles, copies and words.
"""

from __future__ import annotations

import copy
import importlib.util
import itertools
import os
import pickle
import signal
import socket
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sigmoid_ce as sce
from tests.conftest import missing

BLOCK = 4096
SHAPE = (7, 3, 2500)  # 52500 elements: 13 blocks, the last of them not whole
HANG_S = 300
LIMBS, COUNTS = slice(0, 68), ("n_nan", "n_posinf", "n_neginf", "n_valid", "n_total")
MOST_PARTS = 2**30  # whose words may be added without carries

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])


def make(case: str, dtype: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Scores, targets and options."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 4, SHAPE).astype(dtype)
    if case == "plain":
        return x, rng.integers(0, 2, SHAPE).astype(np.uint8), {}
    t = rng.uniform(-3, 4, SHAPE).astype(dtype)  # losses of both signs
    x.flat[::97] *= 1e5
    options: dict[str, Any] = {
        "pos_weight": [0.25, 1.5, 6.0],
        "weight": rng.uniform(0, 2, SHAPE).astype(dtype),
        "ignore_label": 1,
    }
    if case == "broadcast":
        options["weight"] = rng.integers(0, 3, (3, 1)).astype(np.int8)
    elif case == "nan":
        t.flat[[9000, 30000]] = 0  # not ignored
        x.flat[9000], x.flat[30000] = np.nan, np.inf
    elif case == "infinite":
        t.flat[[0, 50000]] = 0
        x.flat[[0, 50000]] = np.inf
    elif case == "both infinities":
        t.flat[[0, 50000]] = 0, 3
        x.flat[[0, 50000]] = np.inf
    return x, t, options


CASES = ("plain", "options", "broadcast", "nan", "infinite", "both infinities")
cases = pytest.mark.parametrize("case", CASES)


def pieces(cuts: list[int]) -> list[slice]:
    """Between the cuts, which need not be in order or distinct."""
    edges = [0, *sorted(cuts), int(np.prod(SHAPE))]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def part_of(x: Any, t: Any, options: dict[str, Any], piece: slice) -> sce.Partial:
    return sce.partial(
        x.ravel()[piece], t.ravel()[piece], **options, first_index=piece.start, shape=SHAPE
    )


def check(got: sce.Partial, whole: sce.Partial) -> None:
    assert got == whole
    assert not got != whole
    assert np.float64(got.sum).tobytes() == np.float64(whole.sum).tobytes()
    assert (got.n_valid, got.n_total) == (whole.n_valid, whole.n_total)
    assert np.array_equal(got.to_words(), whole.to_words())


def whole_of(x: Any, t: Any, options: dict[str, Any]) -> sce.Partial:
    whole = sce.partial(x, t, **options)
    assert whole.n_total == x.size
    label = options.get("ignore_label")
    ignored = 0 if label is None else int((np.trunc(t) == label).sum())
    assert whole.n_valid == x.size - ignored
    assert (ignored > 0) == (label is not None)
    return whole


# ---------------------------------------------------------------- any order, anywhere


@dtypes
@cases
def test_any_chunks_in_any_order(case: str, dtype: Any) -> None:
    x, t, options = make(case, dtype)
    whole = whole_of(x, t, options)
    expected = {"nan": "nan", "infinite": "inf", "both infinities": "nan"}.get(case)
    assert np.isfinite(whole.sum) if expected is None else str(whole.sum) == expected
    assert sce.forward(x, t, **options, normalization="none") == whole.sum or expected == "nan"
    rng = np.random.default_rng(1)
    for _ in range(40):
        cuts = BLOCK * rng.integers(0, 13, rng.integers(0, 14))
        parts = [part_of(x, t, options, piece) for piece in pieces(cuts.tolist())]
        order = rng.permutation(len(parts))
        shuffled = [parts[i] for i in order]
        check(sce.combine(shuffled), whole)
        check(sce.combine(part for part in shuffled), whole)  # a generator
        cut = int(rng.integers(0, len(parts) + 1))
        check(sce.combine(shuffled[:cut]) + sce.combine(shuffled[cut:]), whole)
        check(sum(shuffled, sce.Partial()), whole)
        check(sum(shuffled), whole)


@dtypes
@cases
def test_chunks_on_threads(case: str, dtype: Any) -> None:
    x, t, options = make(case, dtype)
    whole = whole_of(x, t, options)
    chunks = pieces(list(range(BLOCK, x.size, BLOCK)))
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            parts = pool.map(lambda piece: part_of(x, t, options, piece), chunks)
            check(sce.combine(parts), whole)


@dtypes
@cases
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_integer_sum_of_words(count: int, case: str, dtype: Any) -> None:
    """What an all-reduce with SUM does: every word by itself, no carries."""
    x, t, options = make(case, dtype)
    whole = whole_of(x, t, options)
    cuts = [BLOCK * (13 * k // count) for k in range(1, count)]
    parts = [part_of(x, t, options, piece) for piece in pieces(cuts)]
    assert len(parts) == count
    total = np.sum(np.stack([part.to_words() for part in parts]), axis=0)
    assert total.dtype == np.int64
    check(sce.Partial.from_words(total), whole)
    if count == 8 and case == "plain":
        assert not np.array_equal(total, whole.to_words())  # there were carries to be passed on


@dtypes
@cases
def test_words_of_very_many_parts(case: str, dtype: Any) -> None:
    x, t, options = make(case, dtype)
    part = whole_of(x, t, options)
    total = sce.Partial.from_words(part.to_words() * MOST_PARTS)
    assert np.isnan(part.sum) or total.sum == part.sum * MOST_PARTS  # a power of two: exact
    assert (total.n_valid, total.n_total) == (MOST_PARTS * part.n_valid, MOST_PARTS * part.n_total)
    doubled = part
    for _ in range(30):
        doubled = doubled + doubled
    check(doubled, total)


PROCESSES = """
import multiprocessing, sys, warnings
import numpy as np
import sigmoid_ce as sce
from tests import test_partial as tests

def work(job):
    case, dtype, start, stop = job
    part = tests.part_of(*tests.make(case, dtype), slice(start, stop))
    return part, part.to_words().tobytes()

if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Python 3.12 warns of fork beside threads
    for case in ("options", "nan"):
        for dtype in ("float32", "float64"):
            x, t, options = tests.make(case, dtype)
            whole = sce.partial(x, t, **options)  # the parent has started its threads
            jobs = [(case, dtype, p.start, p.stop)
                    for p in tests.pieces(list(range(4096, x.size, 3 * 4096)))]
            if case == "options" and dtype == "float32":
                pool = multiprocessing.get_context(sys.argv[1]).Pool(3)
            results = list(pool.imap_unordered(work, jobs))
            tests.check(sce.combine(part for part, _ in results), whole)
            words = sum(np.frombuffer(w, np.int64) for _, w in results)
            tests.check(sce.Partial.from_words(words), whole)
    pool.close()
    pool.join()
    print("good")
"""


def script(folder: Path, code: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    path = folder / "script.py"
    path.write_text(textwrap.dedent(code))
    env = {k: v for k, v in os.environ.items() if not k.startswith("SIGMOID_CE_")}
    root = str(Path(__file__).resolve().parents[1])
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [root, env.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, str(path), *arguments],
        env={**env, "PYTHONFAULTHANDLER": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and what it printed. Of one that hangs, the line in which each thread is too."""
    try:
        out, error = process.communicate(timeout=HANG_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # for faulthandler
        try:
            out, error = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            out, error = process.communicate()
        error = f"no end after {HANG_S} s\n{error}"
    return process.returncode, (out if process.returncode == 0 else out + error).strip()


def output(process: subprocess.Popen[str]) -> str:
    """What it prints. It has to end well."""
    status, text = ended(process)
    assert status == 0, text
    return text


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes(method: str, tmp_path: Path) -> None:
    """Chunks in a pool of processes; parts and words come back in the order they are ready."""
    if method == "fork" and not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    process = script(tmp_path, PROCESSES, method, SIGMOID_CE_NUM_THREADS="2")
    assert output(process) == "good"


ALL_REDUCE = """
import datetime, sys
import torch
import torch.distributed as distributed
import sigmoid_ce as sce
from tests import test_partial as tests

rank = int(sys.argv[1])
# Not by file://, whose file the first to finish may remove; the others then wait for it.
store = distributed.FileStore(sys.argv[2])
minute = datetime.timedelta(seconds=60)
try:
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=3, timeout=minute)
    groups = [(ranks, distributed.new_group(ranks)) for ranks in ([0, 1, 2], [0, 1])]
except Exception as error:
    sys.exit(f"not met: {error}")
x, t, options = tests.make("options", "float32")
whole = sce.partial(x, t, **options)
for ranks, group in groups:
    if rank not in ranks:
        continue
    cuts = [4096 * (13 * k // len(ranks)) for k in range(1, len(ranks))]
    part = tests.part_of(x, t, options, tests.pieces(cuts)[rank])
    words = torch.from_numpy(part.to_words())
    distributed.all_reduce(words, distributed.ReduceOp.SUM, group)
    tests.check(sce.Partial.from_words(words.numpy()), whole)
distributed.barrier()
distributed.destroy_process_group()
print("good")
"""


def test_all_reduce_of_torch(tmp_path: Path) -> None:
    """torch.distributed over gloo, 3 processes and 2 of them."""
    if importlib.util.find_spec("torch") is None:
        missing("torch")
    environment = {"OMP_NUM_THREADS": "1"}
    for _, name in socket.if_nameindex():
        if name.startswith("lo"):
            environment["GLOO_SOCKET_IFNAME"] = name  # and not that which the host's name leads to
    # On a loaded machine, gloo's processes may miss each other, which says nothing of the sums.
    for attempt in range(3):
        meeting = str(tmp_path / f"meeting{attempt}")
        processes = [
            script(tmp_path, ALL_REDUCE, str(rank), meeting, **environment) for rank in range(3)
        ]
        try:
            ends = [ended(process) for process in processes]
        finally:
            for process in processes:
                process.kill()
        if not any("not met: " in text for _, text in ends):
            break
    assert ends == [(0, "good")] * 3, "\n".join(text for _, text in ends)


# ---------------------------------------------------------------- far out


@dtypes
@pytest.mark.parametrize("rows_before", [2**22, 2**44])
def test_rows_far_out(rows_before: int, dtype: Any) -> None:
    """Whole rows that begin beyond 2^31 and 2^53 elements."""
    x, t, options = make("broadcast", dtype)
    first = rows_before * 7500
    assert first > (2**53 if rows_before > 2**40 else 2**31)
    check(sce.partial(x, t, **options, first_index=first), sce.partial(x, t, **options))


@dtypes
def test_chunk_beyond_2_to_the_53(dtype: Any) -> None:
    """An index that float64 cannot tell from its neighbour: the channel ends inside the chunk."""
    shape = (8, 3, 2**53 - 1)
    x, t, _ = make("plain", dtype)
    x, t = x.ravel()[: 2 * BLOCK], t.ravel()[: 2 * BLOCK]
    p = [0.25, 1.5, 6.0]
    weight = np.array([[[1.0], [2.0], [4.0]]], dtype)
    for channel, after in ((0, 1), (1, 2), (2, 0)):
        for shift in (-1, 0, 1):
            half = BLOCK + shift
            first = (2 * 3 + channel + 1) * (2**53 - 1) - half
            assert 2**53 < first < 2**57
            got = sce.partial(x, t, pos_weight=p, weight=weight, first_index=first, shape=shape)
            # The same elements with the weights of their channel, in an array of two channels.
            p2, w2 = [p[channel], p[after]], [2.0**channel, 2.0**after]
            wide = np.repeat(np.array(w2, dtype), [half, x.size - half])
            near = (1, 2, half) if shift >= 0 else (1, 2, x.size - half)
            start = 0 if shift >= 0 else (x.size - half) - half
            wide = np.concatenate([np.zeros(start, dtype), wide])
            wide = np.concatenate([wide, np.zeros(2 * near[2] - wide.size, dtype)])
            wanted = sce.partial(
                x, t, pos_weight=p2, weight=wide.reshape(near), first_index=start, shape=near
            )
            check(got, wanted)


@pytest.mark.parametrize("first_index", [2**63 - 1, 2**60, 2**61 + 1])
def test_index_that_no_array_has(first_index: int) -> None:
    x, t = np.zeros(5), np.zeros(5)
    with pytest.raises(ValueError, match=r"^(first_index|shape): expected"):
        sce.partial(x, t, first_index=first_index)
    with pytest.raises(ValueError, match=r"^(first_index|shape): "):
        sce.partial(x, t, first_index=first_index, shape=(2**60,))


# ---------------------------------------------------------------- pickles, copies


def some_parts() -> list[sce.Partial]:
    return [sce.Partial(), *(sce.partial(*make(case, np.float64)[:2]) for case in CASES)]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(protocol: int) -> None:
    for part in some_parts():
        check(pickle.loads(pickle.dumps(part, protocol)), part)
    parts = some_parts()
    again = pickle.loads(pickle.dumps({"parts": parts, "first": parts[0]}, protocol))
    check(sce.combine(again["parts"]), sce.combine(parts))
    assert again["first"] is again["parts"][0]


def test_copies() -> None:
    for part in some_parts():
        for duplicate in (copy.copy(part), copy.deepcopy(part), sce.combine([part])):
            check(duplicate, part)


def test_words_are_a_copy() -> None:
    part = sce.partial(*make("plain", np.float32)[:2])
    words = part.to_words()
    before = words.copy()
    words[:] = -1
    assert np.array_equal(part.to_words(), before)
    words[:] = before
    other = sce.Partial.from_words(words)
    words[:] = -1
    check(other, part)


def test_words_of_any_layout() -> None:
    part = sce.partial(*make("options", np.float32)[:2])
    words = part.to_words()
    spread = np.repeat(words, 3)[::3]
    backwards = words[::-1].copy()[::-1]
    swapped = words.astype(words.dtype.newbyteorder())
    constant = words.copy()
    constant.flags.writeable = False
    for form in (spread, backwards, swapped, constant):
        check(sce.Partial.from_words(form), part)


def test_nothing() -> None:
    for nothing in (sce.combine([]), sce.combine(iter(())), sce.partial([], []), sce.Partial()):
        check(nothing, sce.Partial())
        assert (nothing.sum, nothing.n_valid, nothing.n_total) == (0.0, 0, 0)
        assert nothing.loss("full") == nothing.loss("valid") == 0
    part = sce.partial(*make("nan", np.float32)[:2])
    check(sce.Partial() + part, part)


def test_equal_after_carries() -> None:
    """Words before their carries are passed on, and the same number with them."""
    part = sce.partial(*make("options", np.float64)[:2])
    words = part.to_words()
    for k in range(67):
        moved = words.copy()
        moved[k] += 2**32 * 12345
        moved[k + 1] -= 12345
        check(sce.Partial.from_words(moved), part)
        if k:
            moved[k] += 1
            assert sce.Partial.from_words(moved) != part


@pytest.mark.parametrize("index", range(73))
def test_every_word_counts(index: int) -> None:
    part = sce.partial(*make("infinite", np.float64)[:2])
    words = part.to_words()
    words[index] += -1 if index == 71 else 1  # n_valid stays at most n_total
    assert sce.Partial.from_words(words) != part


# ---------------------------------------------------------------- refusals

EXTREMES = (-(2**63), 2**63 - 1, -(2**62) - 1, 2**62 + 1)


def good_words() -> Any:
    return sce.partial(*make("nan", np.float64)[:2]).to_words()


@pytest.mark.parametrize("value", EXTREMES)
def test_words_that_no_sum_has(value: int) -> None:
    """Each word, and all of them, at the ends of int64: refused, not undefined."""
    for index in range(73):
        words = good_words()
        words[index] = value
        with pytest.raises(ValueError, match=r"^words: expected "):
            sce.Partial.from_words(words)
    with pytest.raises(ValueError, match=r"^words: expected "):
        sce.Partial.from_words(np.full(73, value))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_valid": -1}, "counts of 0 or more"),
        ({"n_total": -1}, "counts of 0 or more"),
        ({"n_nan": -1}, "counts of 0 or more"),
        ({"n_posinf": -1}, "counts of 0 or more"),
        ({"n_neginf": -1}, "counts of 0 or more"),
        ({"n_valid": 11, "n_total": 10}, "no more than n_total"),
        ({"n_nan": 11, "n_valid": 10, "n_total": 10}, "no more than n_total"),
        ({"n_nan": 4, "n_posinf": 4, "n_neginf": 4, "n_valid": 0, "n_total": 11}, "no more than"),
        ({"n_nan": 2**61, "n_posinf": 2**61, "n_neginf": 2**61, "n_total": 2**62}, "no more than"),
    ],
)
def test_counts_that_no_sum_has(changes: dict[str, int], message: str) -> None:
    words = np.zeros(73, np.int64)
    for name, value in changes.items():
        words[68 + COUNTS.index(name)] = value
    with pytest.raises(ValueError, match=r"^words: expected .*" + message):
        sce.Partial.from_words(words)


def test_largest_words() -> None:
    """The largest that are taken can be added, rounded and copied."""
    words = np.full(73, 2**62, np.int64)
    words[67] = 2**32 - 2**31
    words[68:] = (0, 0, 0, 2**62, 2**62)
    for sign in (1, -1):
        words[LIMBS] *= sign
        part = sce.Partial.from_words(words)
        assert part.sum == sign * np.inf  # finite elements, and yet beyond float64
        check(pickle.loads(pickle.dumps(part)), part)
        assert (part + sce.Partial()).sum == part.sum


def test_too_many_elements() -> None:
    words = np.zeros(73, np.int64)
    words[71:] = 2**62
    part = sce.Partial.from_words(words)
    with pytest.raises(OverflowError, match="elements"):
        part + part
    with pytest.raises(OverflowError, match="elements"):
        sce.combine([part, part])
    assert sce.combine([part]) == part


@pytest.mark.parametrize(
    "words",
    [
        np.zeros(73, np.uint64),
        np.zeros(73, np.int32),
        np.zeros(73, np.float64),
        np.zeros(73, np.bool_),
        np.zeros(73, object),
        np.zeros(0, np.int64),
        np.zeros(74, np.int64),
        np.zeros((1, 73), np.int64),
        np.zeros((), np.int64),
    ],
    ids=lambda words: f"{words.dtype}-{words.shape}",
)
def test_arrays_that_are_no_words(words: Any) -> None:
    with pytest.raises(ValueError, match=r"^words: expected an int64 array of shape \(73,\), got"):
        sce.Partial.from_words(words)


@pytest.mark.parametrize("words", [None, [0] * 73, b"\0" * 584, 73, memoryview(b"\0" * 584)])
def test_objects_that_are_no_words(words: Any) -> None:
    with pytest.raises(TypeError, match=r"^words: expected a NumPy array, got"):
        sce.Partial.from_words(words)


def test_other_operands() -> None:
    part = sce.partial([0.5], [1.0])
    for other in (1, 0.0, None, "0", part.to_words):
        assert part != other
        with pytest.raises(TypeError):
            part + other
    for parts in ([part, None], [0], None, 5, part):
        with pytest.raises(TypeError):
            sce.combine(parts)
    with pytest.raises(TypeError):
        hash(part)

    def broken() -> Any:
        yield part
        raise KeyError("from the generator")

    with pytest.raises(KeyError, match="from the generator"):
        sce.combine(broken())
