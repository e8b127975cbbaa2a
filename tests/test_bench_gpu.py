"""The GPU benchmark without a GPU: figures, aims and tables from made-up times; what is checked;
the command; and a rehearsal of everything else on the CPU.

Nothing here depends on how long anything takes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from bench import gpu_plan, gpu_report, gpu_summary  # noqa: E402
from bench.backends import Missing  # noqa: E402
from bench.backends.base import Tolerance  # noqa: E402
from bench.backends.gpu import PEERS, load  # noqa: E402
from bench.backends.gpu.base import GpuBackend, GpuForm, NotHere  # noqa: E402
from bench.backends.gpu.limits import Limits  # noqa: E402
from bench.backends.gpu.ours import Ours  # noqa: E402
from bench.backends.gpu.torch_eager import TorchEager  # noqa: E402
from bench.gpu_data import Data, WrongResult  # noqa: E402
from bench.gpu_measure import Clock, Rehearsal, measure_group, number_of_sets  # noqa: E402
from bench.gpu_plan import (  # noqa: E402
    BEST_COMPILED,
    COMPILE,
    COPY_LIMIT,
    OURS,
    PYTORCH,
    READ_LIMIT,
    TRITON,
    GpuCase,
    GpuGroup,
    Timed,
)
from bench.measure import Entry  # noqa: E402
from bench.plan import LIMIT, Aim, Work  # noqa: E402

# The GPU benchmark has no elementwise rows.
WORKS = (Work.FORWARD, Work.BACKWARD, Work.BOTH)

_ROOT = Path(__file__).parents[1]
_CPU = torch.device("cpu")
_FOREVER = Clock(float("inf"))


# ---- The plan ----


def test_judged_groups_are_those_of_the_targets_and_come_first() -> None:
    groups = gpu_plan.plan()
    names = [group.case.name for group in groups]
    assert len(set(names)) == len(names)
    judged = {group.case.name: [aim.text for aim in group.aims] for group in groups if group.aims}
    both = ["93% of the limit", "2x PyTorch", "1.5x torch.compile"]
    expected = {
        "forward float32 2^26": [
            "93% of the limit",
            "0.98x the best of torch.compile and Triton",
            "2.5x PyTorch",
        ],
        "backward float32 2^26": both,
        "forward + backward float32 2^26": both,
        "forward float32 2^10, wall clock": ["1x PyTorch"],
    }
    for scores in (
        "float16 2^26",
        "bfloat16 2^26",
        "float32 2^26, uint8 targets",
        "float16 2^26, uint8 targets",
    ):
        for work in WORKS:
            expected[f"{work.value} {scores}"] = ["85% of the limit"]
    assert judged == expected
    # Nothing that is not judged is measured before the last that is, but its like by graph replay.
    last = max(i for i, group in enumerate(groups) if group.aims)
    before = [group.case for group in groups[:last] if not group.aims]
    assert all(case.timed is not Timed.DEVICE for case in before)


def test_everything_asked_for_is_in_the_plan() -> None:
    cases = {group.case for group in gpu_plan.plan()}
    for work in WORKS:
        for k in (10, 12, 14, 16, 18, 20, 22, 24, 26, 28):
            assert GpuCase(work, "float32", 2**k) in cases
        for dtype in ("float16", "bfloat16"):
            for k in (10, 20, 26, 28):
                assert GpuCase(work, dtype, 2**k) in cases
        assert GpuCase(work, "float64", 2**26) in cases
        for options in ("pos_weight", "ignore_label"):
            assert GpuCase(work, "float32", 2**26, options=options) in cases
        assert GpuCase(work, "float32", 2**26, targets="uint8") in cases
    measured = {peer for group in gpu_plan.plan() for peer in group.peers}
    assert measured == set(PEERS)


def test_aims_name_what_is_measured() -> None:
    for group in gpu_plan.plan():
        for aim in group.aims:
            if aim.other == LIMIT:
                assert group.limit
            elif aim.other == BEST_COMPILED:
                assert {COMPILE, TRITON} <= set(group.peers)
            else:
                assert aim.other in group.peers


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (GpuCase(Work.FORWARD, "float32", 1), 8),
        (GpuCase(Work.BACKWARD, "float32", 1), 12),
        (GpuCase(Work.BOTH, "float16", 1), 6),
        (GpuCase(Work.FORWARD, "bfloat16", 1), 4),
        (GpuCase(Work.BOTH, "float32", 1, targets="uint8"), 9),
        (GpuCase(Work.BOTH, "float64", 1), 24),
        (GpuCase(Work.FORWARD, "float32", 1, options="ignore_label"), 8),
        # The valid elements are counted first: the targets once more.
        (GpuCase(Work.BOTH, "float32", 1, options="ignore_label"), 16),
    ],
)
def test_bytes_that_count(case: GpuCase, expected: int) -> None:
    assert case.bytes_per_element == expected


def test_sizes_can_be_reduced() -> None:
    groups = gpu_plan.reduced(gpu_plan.plan(), 2**12)
    cases = [group.case for group in groups]
    assert len(cases) == len(set(cases))
    assert max(case.elements for case in cases) == 2**12
    for group in groups:
        assert group.reduced or group.case.elements <= 2**12


def test_the_sets_exceed_the_cache() -> None:
    device = Rehearsal()
    device.l2_bytes = 60 * 2**20
    for group in gpu_plan.plan():
        sets = number_of_sets(group.case, device)
        assert sets >= 2
        together = sets * group.case.elements * group.case.bytes_per_element
        # Or no set comes twice in a measurement, before which other data fills the cache.
        assert together >= 8 * device.l2_bytes or sets == 32


# ---- Figures ----


def _entry(name: str, seconds: list[float], **details: Any) -> Entry:
    problem = None if seconds else "not installed (none)"
    return Entry(name, 1000, seconds=seconds, problem=problem, details=details)


def _row(group: GpuGroup, *entries: Entry) -> dict[str, Any]:
    by_name = {name: _entry(name, []) for name in (OURS, *group.peers)}
    if group.limit:
        by_name[group.limit] = _entry(group.limit, [])
    by_name |= {entry.name: entry for entry in entries}
    return gpu_report.row_report(group, by_name)


_LARGE = GpuCase(Work.FORWARD, "float32", 2**26)
_AIMS = (Aim(0.93, LIMIT), Aim(0.98, BEST_COMPILED), Aim(2.5, PYTORCH))
_GROUP = GpuGroup(_LARGE, (PYTORCH, COMPILE, TRITON), _AIMS)


def test_ratios_are_per_round() -> None:
    # The machine became 10 times slower after the first round: both did, so the ratio stays 2.
    row = _row(_GROUP, _entry(OURS, [1, 10, 10]), _entry(PYTORCH, [2, 20, 20]))
    assert row["ratios"] == {PYTORCH: {"median": 2, "p20": 2, "p80": 2}}
    assert row["fastest_peer"] == PYTORCH


def test_rates_and_limits() -> None:
    row = _row(_GROUP, _entry(OURS, [2.0] * 3), _entry(READ_LIMIT, [1.9] * 3))
    assert row["gigabytes_per_second"]["median"] == pytest.approx(2**26 * 8 / 2.0 / 1e9)
    assert row["of_the_limit"]["median"] == pytest.approx(0.95)
    backward = GpuGroup(GpuCase(Work.BACKWARD, "float32", 2**26), ())
    assert backward.limit == COPY_LIMIT
    small = GpuGroup(GpuCase(Work.FORWARD, "float32", 2**10), ())
    assert small.limit is None
    assert _row(small, _entry(OURS, [1.0]))["of_the_limit"] is None


def _holds(row: dict[str, Any]) -> list[tuple[float | None, bool | None]]:
    return [(aim["value"], aim["holds"]) for aim in row["aims"]]


def test_aims_met_and_missed() -> None:
    ours, limit = _entry(OURS, [1.0]), _entry(READ_LIMIT, [0.93])
    compiled, triton = _entry(COMPILE, [1.2]), _entry(TRITON, [0.97])
    row = _row(_GROUP, ours, limit, compiled, triton, _entry(PYTORCH, [2.6]))
    # The best of the two is the faster one.
    assert _holds(row) == [(0.93, True), (0.97, False), (2.6, True)]
    row = _row(_GROUP, ours, _entry(READ_LIMIT, [0.92]), compiled, triton)
    assert _holds(row) == [(0.92, False), (0.97, False), (None, None)]


def test_a_missing_peer_makes_no_aim_easier() -> None:
    row = _row(_GROUP, _entry(OURS, [1.0]), _entry(COMPILE, [1.2]))
    assert _holds(row) == [(None, None)] * 3


def test_reduced_sizes_are_not_judged() -> None:
    group = GpuGroup(_LARGE, (PYTORCH,), (Aim(2.5, PYTORCH),), reduced=True)
    row = _row(group, _entry(OURS, [1.0]), _entry(PYTORCH, [9.0]))
    assert _holds(row) == [(9.0, None)]


def test_ours_without_times() -> None:
    row = _row(_GROUP, _entry(PYTORCH, [1.0]))
    assert row["seconds"] is None
    assert row["ratios"] == {}
    assert row["problem"] == "not installed (none)"


# ---- Tables ----


def _report() -> dict[str, Any]:
    form = {"form": "a", "forms": {"a": {"trial_seconds": 1.0}, "b": {"trial_seconds": 1.5}}}
    entries = {
        OURS: _entry(OURS, [2e-4] * 3),
        PYTORCH: _entry(PYTORCH, [6e-4] * 3, **form),
        COMPILE: _entry(COMPILE, []),
        TRITON: _entry(TRITON, [2.1e-4] * 3),
        READ_LIMIT: _entry(READ_LIMIT, [1.5e-4] * 3, bytes=2**29, form="torch.sum"),
    }
    return {
        "schema": gpu_report.SCHEMA,
        "kind": "gpu",
        "date": "2030-01-02T03:04:05+00:00",
        "device": {
            "name": "NVIDIA H999",
            "rehearsal": False,
            "driver": "580.1",
            "torch_cuda": "13.0",
            "nvcc": "13.0",
            "l2_bytes": 60 * 2**20,
        },
        "settings": {"rounds": 3, "span_bytes": 2**29, "l2_times": 8},
        "ours": {"version": "1", "info": {}},
        "backends": {
            PYTORCH: {"version": "torch 9", "problem": None},
            "CuPy": {"version": None, "problem": "not installed (No module named 'cupy')"},
        },
        "complete": True,
        "groups": [gpu_report.group_report(_GROUP, entries)],
        "rows": [gpu_report.row_report(_GROUP, entries)],
        "failures": ["forward: CuPy: wrong result: loss"],
    }


def test_tables() -> None:
    report = json.loads(json.dumps(_report()))
    for text in (gpu_report.terminal(report), gpu_report.markdown(report)):
        assert "NVIDIA H999, driver 580.1" in text
        assert "512 MiB together, 8 times the L2" in text
        assert "3.00x (3.00..3.00)" in text
        assert "1.05x (1.05..1.05) fastest" in text
        assert "75.0% (75.0%..75.0%)" in text
        assert "200.00 us" in text
        assert "2684" in text  # 2^26 * 8 bytes in 200 us
        assert "3579" in text  # the limit: 2^29 bytes in 150 us
        assert "torch.sum" in text
        assert "b: 1.50x the time" in text
        assert "not installed" in text  # torch.compile in its column
        assert "CuPy: not installed (No module named 'cupy')" in text
        assert "missed" in text
        assert "met" in text
        assert "FAILED forward: CuPy: wrong result: loss" in text
        assert "did not come to its end" not in text
    report["complete"] = False
    assert "did not come to its end" in gpu_report.markdown(report)


def test_summary_for_the_readme() -> None:
    table = gpu_summary.summary(_report())
    assert (
        "| forward | float32 | float32 | 2^26 | 200 us | 2684 | 75% | 3.00x | - | 1.05x |" in table
    )
    assert "NVIDIA H999, driver 580.1, nvcc 13.0; torch 9; 3 rounds" in table
    text = f"a\n{gpu_summary.BEGIN}\nformer\n{gpu_summary.END}\nb\n"
    inserted = gpu_summary.insert(text, table)
    assert table in inserted
    assert "former" not in inserted
    assert gpu_summary.insert(inserted, table) == inserted


def test_readme_table_is_that_of_a_result() -> None:
    readme = (_ROOT / "README.md").read_text()
    results = sorted((_ROOT / "bench" / "results" / "gpu").glob("*.json"))
    if gpu_summary.BEGIN not in readme:
        assert not results, "results of a GPU are there, and no table of theirs in the README"
        return
    tables = [gpu_summary.summary(json.loads(path.read_text())) for path in results]
    assert any(gpu_summary.insert(readme, table) == readme for table in tables)


# ---- What is checked ----


@pytest.mark.parametrize("options", ["", "pos_weight", "ignore_label"])
@pytest.mark.parametrize("targets", ["", "uint8"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_check_agrees_with_the_reference(dtype: str, targets: str, options: str) -> None:
    """The values that results are compared with are those of sigmoid_ce.reference."""
    import numpy as np

    import sigmoid_ce
    from bench.gpu_data import POS_WEIGHT, ignored_label

    case = GpuCase(Work.BOTH, dtype, 5000, targets=targets, options=options)
    data = Data(case, 2, _CPU)
    x, t = data.sets[0].scores.numpy(), data.sets[0].targets.numpy()
    assert np.array_equal(data.sets[1].scores.numpy(), x)
    keys: dict[str, Any] = {"normalization": "full"}
    if options == "pos_weight":
        keys["pos_weight"] = POS_WEIGHT
    elif options:
        keys = {"normalization": "valid", "ignore_label": ignored_label(case)}
        assert 300 < np.count_nonzero(t == ignored_label(case)) < 700
    loss, gradient = sigmoid_ce.reference.forward_backward(x, t, **keys)
    exact = Tolerance(loss=1e-13, gradient=1e-13)
    data.check(loss, torch.from_numpy(gradient), exact)
    for bad_loss, bad in (
        (loss * (1 + 1e-6), gradient),
        (float("nan"), gradient),
        (loss, np.where(np.arange(5000) == 4999, np.nan, gradient)),
        (loss, np.where(np.arange(5000) == 7, gradient + 1e-9, gradient)),
        (loss, gradient * 1.00001),
        (loss, gradient[1:]),
        (loss, None),
        (None, gradient),
    ):
        with pytest.raises(WrongResult):
            data.check(bad_loss, None if bad is None else torch.from_numpy(bad), exact)


class _Spoiled(GpuBackend):
    version = "0"

    def __init__(self, spoil: Callable[[Any], Any]) -> None:
        self._spoil = spoil

    def forms(self, case: GpuCase, sets: list[Any]) -> list[GpuForm]:
        (form,) = TorchEager().forms(case, sets)
        return [GpuForm(form.label, lambda i: self._spoil(form.run(i)), form.unpack)]


def _idle(case: GpuCase, sets: list[Any]) -> list[GpuForm]:
    """Writes nothing: what another left in the gradient must not pass."""
    loss = TorchEager().forms(case, sets)[0].run(0)[0].detach()
    return [GpuForm("idle", lambda i: loss, lambda loss: (loss, sets[0].gradient))]


def _measure(group: GpuGroup, peers: dict[str, Any], clock: Clock = _FOREVER) -> dict[str, Entry]:
    return measure_group(group, Ours(), peers, Rehearsal(), 2, clock)


_SMALL = GpuCase(Work.BOTH, "float32", 1000)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda result: result, None),
        (lambda result: (result[0] * 1.001, result[1]), "relative error 0.001"),
        (lambda result: (result[0], result[1] * 1.001), "elements of the gradient are wrong"),
        (lambda result: (result[0] * float("nan"), result[1]), "relative error nan"),
        (lambda result: (result[0], result[1][1:]), "failed: RuntimeError"),
        (lambda result: 1 / 0, "failed: ZeroDivisionError"),
    ],
)
def test_wrong_results_are_not_timed(spoil: Callable[[Any], Any], message: str | None) -> None:
    entries = _measure(GpuGroup(_SMALL, ("peer",)), {"peer": _Spoiled(spoil)})
    assert len(entries[OURS].seconds) == 2
    entry = entries["peer"]
    if message is None:
        assert entry.problem is None
        assert len(entry.seconds) == 2
        return
    assert entry.failed
    assert message in (entry.problem or "")
    assert entry.seconds == []


def test_a_gradient_left_by_another_does_not_pass() -> None:
    idle = _Spoiled(lambda result: result)
    idle.forms = _idle  # type: ignore[method-assign]
    entries = _measure(GpuGroup(_SMALL, ("idle",)), {"idle": idle})
    assert "1000 of 1000 elements of the gradient are wrong" in (entries["idle"].problem or "")


def test_what_is_missing_or_cannot_state_the_case_is_listed() -> None:
    class Unable(_Spoiled):
        def forms(self, case: GpuCase, sets: list[Any]) -> list[GpuForm]:
            raise NotHere("no such type")

    peers = {"missing": Missing("not installed (x)"), "unable": Unable(lambda result: result)}
    entries = _measure(GpuGroup(_SMALL, ("missing", "unable")), peers)
    assert entries["missing"].problem == "not installed (x)"
    assert entries["unable"].problem == "not here (no such type)"
    assert not entries["missing"].failed
    assert not entries["unable"].failed


def test_a_peer_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEERS, "peer", ("no_such_module", "None"))
    found = load("peer")
    assert isinstance(found, Missing)
    assert found.reason.startswith("not installed")


def test_out_of_time_is_listed() -> None:
    entries = _measure(GpuGroup(_SMALL, (PYTORCH,)), {PYTORCH: TorchEager()}, Clock(0.0))
    for entry in entries.values():
        assert entry.problem == "not measured (out of time)"
        assert not entry.failed
    # In the middle of the rounds: what was measured counts.
    clock = Clock(float("inf"))

    class Ending(TorchEager):
        def forms(self, case: GpuCase, sets: list[Any]) -> list[GpuForm]:
            clock.end = time.monotonic() - 1
            return super().forms(case, sets)

    entries = _measure(GpuGroup(_SMALL, (PYTORCH,)), {PYTORCH: Ending()}, clock)
    assert entries[PYTORCH].problem == "not measured (out of time)"


def test_not_enough_memory_is_listed() -> None:
    group = GpuGroup(GpuCase(Work.BOTH, "float32", 2**28), (PYTORCH,))
    entries = _measure(group, {PYTORCH: TorchEager()})
    assert {entry.problem for entry in entries.values()} == {"not measured (not enough memory)"}


@pytest.mark.parametrize("work", [Work.FORWARD, Work.BOTH])
def test_limits_move_the_bytes_of_the_case(work: Work) -> None:
    case = GpuCase(work, "float32", 2**20)
    limits = Limits(case, 2, _CPU)
    assert limits.bytes == case.elements * case.bytes_per_element
    name = READ_LIMIT if work is Work.FORWARD else COPY_LIMIT
    for run in limits.forms(name).values():
        run(1)


# ---- The command ----


def _bench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.gpu", *arguments],
        cwd=_ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    done = _bench("--json", str(file))
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.startswith("bench.gpu: no GPU")
    assert done.stderr.count("\n") == 1
    assert not file.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backends", "PyTorch;Chainer"], "['Chainer'] are none of PyTorch; torch.compile;"),
        (["--json", "no/such/folder/file"], "cannot be written"),
        (["--seconds", "x"], "--seconds"),
    ],
)
def test_wrong_options(arguments: list[str], message: str) -> None:
    done = _bench(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_rehearsal(tmp_path: Path) -> None:
    """Every backend that the CPU can run gives right results, and the report has all rows."""
    json_file, markdown_file = tmp_path / "out.json", tmp_path / "out.md"
    done = _bench(
        "--rehearse",
        "--quick",
        *("--rounds", "1"),
        *("--max-elements", "1024"),
        *("--only", "float32"),
        *("--json", str(json_file)),
        *("--markdown", str(markdown_file)),
        TRITON_INTERPRET="1",
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads(json_file.read_text())
    assert report["complete"]
    assert report["failures"] == []
    assert report["device"]["rehearsal"]
    names = [row["name"] for row in report["rows"]]
    works = [work.value for work in WORKS]
    assert set(names) == {
        *(f"{work} float32 2^10" for work in works),
        *(f"{work} float32 2^10, uint8 targets" for work in works),
        *(f"{work} float32 2^10, {o}" for work in works for o in ("pos_weight", "ignore_label")),
        *(
            f"{work} float32 2^10, {timed}"
            for work in ("forward", "forward + backward")
            for timed in ("wall clock", "graph replay")
        ),
    }
    expected = {OURS, PYTORCH}
    if importlib.util.find_spec("triton"):
        expected |= {TRITON, "Caffe's operations"}
    for row, group in zip(report["rows"], report["groups"], strict=True):
        assert row["seconds"]
        assert row["problem"] is None
        measured = {name for name, entry in group["entries"].items() if entry["seconds"]}
        if row["timed"] == "events" and not row["options"] and row["targets"] == "float32":
            assert expected <= measured
        assert PYTORCH in measured
    text = markdown_file.read_text()
    assert "A rehearsal on the CPU: no figure here means anything." in text
    assert "not judged" in text
