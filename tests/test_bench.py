"""The benchmark: every row comes out, a wrong result has no time, the figures are worked out right.

Nothing here depends on how long anything takes.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bench.__main__
import bench.backends
from bench import compare, machine, measure, plan, summary
from bench.backends.base import Form, Timer
from bench.backends.numpy_layer import NumpyLayer
from bench.backends.ours import Ours
from bench.data import Data, aligned_empty
from bench.limits import Limits, LimitsUnavailable
from bench.measure import Entry, limit_names, measure_group, measure_rounds, not_measured
from bench.plan import (
    AVX2,
    LIMIT,
    OURS,
    UINT8,
    Aim,
    Case,
    Gradient,
    Group,
    Option,
    Row,
    Shape,
    Work,
)
from bench.report import SCHEMA, row_reports, spread, terminal

_ROOT = Path(__file__).parents[1]
_NO_LIMITS = LimitsUnavailable("not needed here")


# ---- The command ----


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, str]:
    """JSON, Markdown and text of a run on small arrays, with one peer."""
    folder = tmp_path_factory.mktemp("bench")
    command = "-m bench --quick --max-elements 4096 --rounds 2 --threads 1 --no-figures".split()
    command += ["--backends", "NumPy"]
    files = ["--json", str(folder / "out.json"), "--markdown", str(folder / "out.md")]
    done = subprocess.run(
        [sys.executable, *command, *files], cwd=_ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((folder / "out.json").read_text())
    return report, (folder / "out.md").read_text(), done.stdout


def test_report_has_every_row(run: tuple[dict[str, Any], str, str]) -> None:
    report, markdown, text = run
    assert report["schema"] == SCHEMA
    assert report["failures"] == []
    groups = plan.reduced(plan.plan("quick", threads=1), 4096)
    expected = [plan.row_name(group.case, row.variant) for group in groups for row in group.rows]
    assert [row["name"] for row in report["rows"]] == expected
    both = "forward + backward"
    assert set(expected) >= {
        "forward float32 2^12",
        "forward float32 2^12, soft targets",
        "forward float32 2^12, uint8 targets",
        "forward float32 2^12, avx2",
        "forward float32 2^12, scalar",
        "forward float32 2^10",
        f"{both} reused float32 2^12",
        f"{both} reused float32 2^12, soft targets",
        f"{both} reused float32 2^12, avx2",
        f"{both} reused float32 2^10",
        f"{both} fresh float32 2^12",
        f"{both} fresh float32 2^10",
        "backward reused float32 2^12",
        "forward float64 2^12",
        f"{both} reused float64 2^12",
        "elementwise reused float32 2^12",
        f"{both} reused bfloat16 2^12",
        "forward float32 2^12 pos_weight",
        "forward float32 edge maps of 4 sizes",
    }
    assert markdown.count("\n| forward") >= len(expected) - 1
    assert "Ours against the peers and the limits" in text


def test_entries_are_measured_or_say_why_not(run: tuple[dict[str, Any], str, str]) -> None:
    report = run[0]
    for group in report["groups"]:
        for name, entry in group["entries"].items():
            if entry["problem"]:
                assert entry["seconds"] == []
            else:
                assert len(entry["seconds"]) == report["settings"]["rounds"], name
                assert min(entry["seconds"]) > 0, name
        assert group["entries"]["ours"]["problem"] is None
        problem = group["entries"]["NumPy"]["problem"] or ""
        assert problem.startswith(f"not able ({group['dtype']}") == ("float16" in group["name"])
        for peer in ("PyTorch", "torch.compile", "JAX"):
            assert group["entries"][peer]["problem"] == "left out (--backends)"
    for row in report["rows"]:
        if not row["problem"]:
            assert set(row["ratios"]) >= (set() if "float16" in row["dtype"] else {"NumPy"})
            assert all(figure["median"] > 0 for figure in row["ratios"].values())


def test_facts_of_the_machine(run: tuple[dict[str, Any], str, str]) -> None:
    report = run[0]
    assert report["machine"]["cpu"]
    assert len(report["machine"]["cpus_used"]) == report["settings"]["threads"] == 1
    assert report["ours"]["version"]
    assert report["backends"]["NumPy"]["version"] == f"numpy {np.__version__}"
    assert report["complete"]
    settings = report["settings"]
    assert (settings["max_elements"], settings["backends"]) == (4096, ["NumPy"])
    assert settings["figures"] is False
    assert isinstance(report["machine"]["gpus"], list)
    assert "measured by `python -m bench.gpu`" in run[2]


# ---- Wrong results ----

_CASE = Case(Work.BOTH, "float32", 1000, Gradient.REUSED)


class _Spoiled(NumpyLayer):
    """Right but for what `spoil` does to the result."""

    def __init__(self, spoil: Callable[[Any], Any]) -> None:
        super().__init__(1)
        self._spoil = spoil

    def forms(self, *arguments: Any) -> list[Form]:
        (form,) = super().forms(*arguments)
        return [Form(form.label, lambda: self._spoil(form.run()), form.unpack)]


def _measured(spoil: Callable[[Any], Any]) -> Entry:
    group = Group(_CASE, (Row(OURS),), limits=False)
    peers = {"peer": _Spoiled(spoil)}
    return measure_group(group, Ours(1), peers, _NO_LIMITS, rounds=1)["peer"]


def _with_element(value: float) -> Callable[[Any], Any]:
    def spoil(result: Any) -> Any:
        result[1][7] = value
        return result

    return spoil


def test_right_result_is_timed() -> None:
    entry = _measured(lambda result: result)
    assert entry.problem is None
    assert len(entry.seconds) == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda result: (result[0] * 1.0001, result[1]), "relative error 0.0001"),
        (lambda result: (float("nan"), result[1]), "relative error nan"),
        (lambda result: (result[0], result[1] * 1.001), "elements of the gradient are wrong"),
        (_with_element(0.0), "1 of 1000 elements of the gradient are wrong; at 7"),
        (_with_element(float("nan")), "1 of 1000 elements of the gradient are wrong; at 7"),
        (lambda result: (result[0], result[1][1:]), "another shape"),
        (lambda result: 1 / 0, "failed: ZeroDivisionError"),
    ],
)
def test_wrong_result_is_not_timed(spoil: Callable[[Any], Any], message: str) -> None:
    entry = _measured(spoil)
    assert entry.failed
    assert entry.problem is not None
    assert message in entry.problem
    assert entry.seconds == []


def test_a_gradient_left_by_another_backend_does_not_pass() -> None:
    class Idle(NumpyLayer):
        def forms(self, case: Case, *arrays: np.ndarray) -> list[Form]:
            loss = float(NumpyLayer.forms(self, case, *arrays)[0].run()[0])
            return [Form("idle", lambda: (loss, arrays[2]), lambda result: result)]

    group = Group(_CASE, (Row(OURS),), limits=False)
    peers = {"right": NumpyLayer(1), "idle": Idle(1)}
    entries = measure_group(group, Ours(1), peers, _NO_LIMITS, rounds=1)
    assert entries["right"].seconds
    assert entries["idle"].problem is not None
    assert "1000 of 1000 elements" in entries["idle"].problem


def test_missing_peer_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench.backends.PEERS, "peer", ("no_such_module", "None"))
    missing = bench.backends.load("peer", 1)
    assert isinstance(missing, bench.backends.Missing)
    group = Group(_CASE, (Row(OURS),), limits=False)
    entries = measure_group(group, Ours(1), {"peer": missing}, _NO_LIMITS, rounds=1)
    assert (entries["peer"].problem or "").startswith("not installed")
    assert not entries["peer"].failed


# ---- Rounds and figures ----


@pytest.mark.parametrize(
    ("length", "calibrating", "first_round"),
    [
        # One call that long is certainly enough, and none goes before it to warm up.
        (1.0, "abc", "abc"),
        # An interruption may have made it that long: three times. It needs no warm-up either.
        (0.05, "aaabbbccc", "abc"),
        (0.015, "aaabbbccc", "aabbcc"),
    ],
)
def test_rounds_alternate(length: float, calibrating: str, first_round: str) -> None:
    order = []

    def entry(name: str) -> Entry:
        def seconds(calls: int, before: int) -> float:
            order.extend([name] * (before + calls))
            return length  # so that one call is a measurement

        return Entry(name, 1, time=seconds)

    entries = [entry(name) for name in "abc"]
    measure_rounds(entries, 3)
    warmed_up = len(first_round) > 3
    others = "ccbbaa" + "aabbcc" if warmed_up else "cba" + "abc"
    assert order == list(calibrating + first_round + others)
    assert all(len(e.seconds) == 3 for e in entries)


def _entry(name: str, seconds: list[float]) -> Entry:
    return Entry(name, 1000, seconds=seconds)


def _row(row: Row, *entries: Entry, reduced: bool = False) -> dict[str, Any]:
    group = Group(Case(Work.FORWARD, "float32", 1000), (row,), reduced=reduced)
    read_limit = Entry("read limit", 1000, problem="not available here")
    by_name = {entry.name: entry for entry in (read_limit, *entries)}
    (report,) = row_reports(group, by_name)
    return report


def test_ratios_are_per_round() -> None:
    # The machine became 10 times slower after the first round: both did, so the ratio stays 2.
    report = _row(Row(OURS), _entry("ours", [1, 10, 10]), _entry("JAX", [2, 20, 20]))
    assert report["ratios"]["JAX"] == {"median": 2, "p20": 2, "p80": 2}
    # Ratios 4, 1, 1: their median is not the ratio 2 of the medians.
    report = _row(Row(OURS), _entry("ours", [1, 4, 2]), _entry("JAX", [4, 4, 2]))
    assert report["ratios"]["JAX"]["median"] == 1


def test_fastest_peer_and_limit() -> None:
    aims = (Aim(2.0, plan.FASTEST_PEER), Aim(3.0, "NumPy"), Aim(0.5, LIMIT), Aim(2.0, "PyTorch"))
    report = _row(
        Row(OURS, aims),
        _entry("ours", [1.0]),
        _entry("JAX", [1.5]),
        _entry("NumPy", [3.0]),
        _entry("read limit", [0.5]),
    )
    assert report["fastest_peer"] == "JAX"
    assert report["limit"] == "read limit"
    assert [aim["value"] for aim in report["aims"]] == [1.5, 3.0, 0.5, None]
    assert [aim["holds"] for aim in report["aims"]] == [False, True, True, None]


def test_reduced_sizes_are_not_judged() -> None:
    row = Row(OURS, (Aim(2.0, "JAX"),))
    report = _row(row, _entry("ours", [1.0]), _entry("JAX", [9.0]), reduced=True)
    assert report["aims"][0]["value"] == 9.0
    assert report["aims"][0]["holds"] is None


def test_spread() -> None:
    assert spread(np.arange(11.0)) == {"median": 5, "p20": 2, "p80": 8}


# ---- The plan ----


def test_reduced_plan_has_each_case_once() -> None:
    groups = plan.reduced(plan.plan(), 2**16)
    cases = [group.case for group in groups]
    assert len(cases) == len(set(cases))
    assert max(case.elements for case in cases) == 2**16
    planned = {group.case for group in plan.plan()}
    assert all(group.reduced or group.case in planned for group in groups)
    assert all(group.reduced for group in groups if group.case not in planned)


def test_reduced_shapes() -> None:
    case = Case(Work.FORWARD, "float32", plan.SEGMENTATION.elements, shape=plan.SEGMENTATION)
    (group,) = plan.reduced([Group(case)], 2**16)
    assert group.reduced
    shape = group.case.shape
    assert shape is not None
    assert group.case.elements == shape.elements <= 2**16 < 2 * shape.elements
    assert shape.name == "segmentation 8x1x64x128"
    ragged = Case(Work.FORWARD, "float32", plan.EDGE_MAPS.elements, shape=plan.EDGE_MAPS)
    (group,) = plan.reduced([Group(ragged)], 1000)
    parts = list(group.case.parts())
    assert len(parts) == len(plan.EDGE_MAPS.parts)
    assert sum(part.elements for part in parts) == group.case.elements <= 1000


@pytest.mark.parametrize("profile", list(plan.PROFILES))
def test_profiles_have_all_work(profile: str) -> None:
    groups = plan.plan(profile, threads=4)
    cases = [group.case for group in groups]
    assert len(set(cases)) == len(cases)
    assert len({case.name for case in cases}) == len(cases)
    if profile == "family":
        return  # test_bench_output.py has its plan
    assert {case.work for case in cases} == set(Work)
    assert {case.dtype for case in cases} == {"float16", "bfloat16", "float32", "float64"}
    assert {case.option for case in cases} == set(Option) - set(plan.FAMILY)
    assert {case.shape.label for case in cases if case.shape} == {s.label for s in plan.SHAPES}
    variants = {row.variant for group in groups for row in group.rows}
    assert {variant.isa for variant in variants} >= {"avx512", "avx2", "neon", "scalar"}
    assert {variant.threads for variant in variants} >= {1, 2, 3}
    # Each gradient, and each array of losses, is there reused and freshly allocated.
    by_rest: dict[Case, set[Gradient]] = {}
    for case in cases:
        if case.gradient is not Gradient.NONE:
            rest = replace(case, gradient=Gradient.NONE)
            by_rest.setdefault(rest, set()).add(case.gradient)
    judged = [rest for rest, kinds in by_rest.items() if len(kinds) == 1]
    # Those that are only for the plots against the size, and those of half types, go by one.
    assert all(
        case.work in (Work.BOTH, Work.BACKWARD)
        and case.shape is None
        and case.option is Option.NONE
        for case in judged
    )
    assert max(case.elements for case in cases) <= plan.PROFILES[profile].max_elements


def test_sizes_of_the_sweep() -> None:
    for profile, step in (("default", 2), ("full", 1)):
        for work in (Work.FORWARD, Work.BOTH):
            sizes = {
                group.case.elements
                for group in plan.plan(profile)
                if group.case.work is work and group.case.dtype == "float32"
            }
            assert sizes >= {2**k for k in range(8, 27, step)}


def test_shapes_by_name() -> None:
    assert [shape.name for shape in plan.SHAPES] == [
        "multi-label 256x1000",
        "segmentation 8x1x1024x1024",
        "detection 1x200000x80",
        "edge maps of 4 sizes",
    ]


def test_profiles_end_in_time() -> None:
    """What is left of 3 and 10 minutes is for loading, the group that runs, and the figures, which
    take 104 to 132 seconds of the default profile."""
    assert plan.PROFILES["quick"].seconds <= 100
    assert plan.PROFILES["default"].seconds <= 410


def test_chosen_rows_keep_ours() -> None:
    group = plan.chosen(plan.plan(), "2^24, uint8")[0]
    assert group.variants == (OURS, UINT8)
    assert plan.chosen(plan.plan(), "no such row") == []


def test_what_a_group_has_that_is_not_measured() -> None:
    group = plan.plan()[0]
    peers = {"peer": NumpyLayer(1), "gone": bench.backends.Missing("not installed")}
    entries = not_measured(group, peers, _NO_LIMITS, "no time")
    assert set(entries) >= {"peer", "gone", "read limit", *(v.entry for v in group.variants)}
    assert entries["gone"].problem == "not installed"
    assert entries["ours"].problem == entries["peer"].problem == "no time"
    (first, *_) = row_reports(group, entries)
    assert first["problem"] == "no time"


@pytest.mark.parametrize("compiling", [False, True])
def test_too_slow_is_listed(compiling: bool) -> None:
    class Slow(NumpyLayer):
        compiles = compiling

        def timer(self, forms: Sequence[Form]) -> Timer:
            return lambda calls, before: 2.0 * calls

    group = Group(_CASE, (Row(OURS),), limits=False)
    peers = {"slow": Slow(1)}
    # A limit of 0 s, which the first call exceeds. Where that one compiles, the second counts.
    entries = measure_group(group, Ours(1), peers, _NO_LIMITS, rounds=1, call_seconds=0)
    assert entries["slow"].seconds == []
    assert not entries["slow"].failed
    problem = entries["slow"].problem or ""
    assert problem.startswith("too slow for this profile (a call took ")
    assert ("took 2 s" in problem) == compiling


class _SlowAtFirst(NumpyLayer):
    """Its first call seems to take `first` seconds, the others what `later` says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, first: float, later: float) -> None:
        super().__init__(1)
        self.first, self.later = first, later
        self.runs: list[int] = []
        self.ahead = 0.0
        monkeypatch.setattr(measure, "perf_counter", lambda: time.perf_counter() + self.ahead)

    def forms(self, *arguments: Any) -> list[Form]:
        (form,) = super().forms(*arguments)

        def run() -> Any:
            self.runs.append(0)
            self.ahead += self.first
            return form.run()

        return [Form(form.label, run, form.unpack)]

    def timer(self, forms: Sequence[Form]) -> Timer:
        def timed(calls: int, before: int) -> float:
            self.runs.append(calls)
            return self.later * calls

        return timed


@pytest.mark.parametrize(
    ("first", "later", "slow", "calls"),
    [
        (150, 0.001, False, 8),  # page faults, or a gradient sent here: the second call decides
        (150, 101.0, True, None),
        (500, 0.001, True, None),  # beyond hope: no second call
    ],
)
def test_a_second_call_decides_what_is_too_slow(
    monkeypatch: pytest.MonkeyPatch, first: float, later: float, slow: bool, calls: int | None
) -> None:
    peer = _SlowAtFirst(monkeypatch, first, later)
    group = Group(_CASE, (Row(OURS),), limits=False)
    entry = measure_group(group, Ours(1), {"peer": peer}, _NO_LIMITS, rounds=1, call_seconds=100)
    assert ("too slow" in (entry["peer"].problem or "")) == slow
    assert entry["peer"].details.get("calls_per_round") == calls
    if slow:
        assert peer.runs == ([0] if first > 400 else [0, 1])


@pytest.mark.parametrize(
    ("seconds", "factor", "tried"),
    [
        (3.0, 4, True),  # 12 s, and 10 are allowed
        (6.0, 4, False),
        (30.0, 2, False),
        (30.0, 0.5, True),  # smaller arrays
    ],
)
@pytest.mark.parametrize("other_option", [False, True])
def test_what_smaller_arrays_show_too_slow_is_not_tried(
    monkeypatch: pytest.MonkeyPatch, seconds: float, factor: float, tried: bool, other_option: bool
) -> None:
    peer = _SlowAtFirst(monkeypatch, first=seconds, later=seconds)
    times = measure.CallTimes()

    def one(case: Case) -> Entry:
        group = Group(case, (Row(OURS),), limits=False)
        return measure_group(
            group, Ours(1), {"peer": peer}, _NO_LIMITS, 1, call_seconds=10, call_times=times
        )["peer"]

    first = one(_CASE)
    assert (first.problem is None) == (seconds < 10)
    peer.runs.clear()
    larger = replace(_CASE, elements=int(_CASE.elements * factor))
    second = one(replace(larger, option=Option.POS_WEIGHT) if other_option else larger)
    assert bool(peer.runs) == (tried or other_option)
    if not (tried or other_option):
        assert (second.problem or "").startswith("too slow for this profile (a call would take ")
        assert not second.failed


def test_large_arrays_are_not_copied_to_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = _SlowAtFirst(monkeypatch, first=0, later=1e-3)
    group = Group(_CASE, (Row(OURS),), limits=False)
    for remote, most, tried in (
        (True, _CASE.elements, True),
        (True, _CASE.elements - 1, False),
        (False, _CASE.elements - 1, True),
    ):
        monkeypatch.setattr(peer, "in_process", not remote)
        peer.runs.clear()
        entry = measure_group(group, Ours(1), {"peer": peer}, _NO_LIMITS, 1, remote_elements=most)
        assert bool(peer.runs) == tried
        if not tried:
            assert (entry["peer"].problem or "").startswith("not in this profile (it has ")
            assert not entry["peer"].failed
    assert plan.PROFILES["full"].remote_elements == math.inf


def test_a_call_of_little_work_does_not_stand_for_much() -> None:
    times = measure.CallTimes()
    assert times.expected("peer", _CASE) == 0
    for elements, seconds in [(1, 0.5), (100, 0.5), (500, 0.75), (1001, 1e-3)]:
        entry = Entry("peer", elements, [2 * seconds, seconds])
        times.add(replace(_CASE, elements=elements), {"peer": entry})
    assert times.expected("peer", _CASE) == 1.5
    assert times.expected("peer", replace(_CASE, dtype="float64")) == 0


def test_first_call_does_not_say_how_many_make_a_measurement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peer = _SlowAtFirst(monkeypatch, first=1.0, later=0.001)
    group = Group(_CASE, (Row(OURS),), limits=False)
    entry = measure_group(group, Ours(1), {"peer": peer}, _NO_LIMITS, rounds=1)["peer"]
    assert entry.details["calls_per_round"] == 8


def test_several_arrays_are_one_entry() -> None:
    shape = Shape("maps", ((1, 1, 3, 5), (1, 1, 4, 7)))
    case = Case(Work.BOTH, "float32", shape.elements, Gradient.FRESH, shape=shape)
    group = Group(case, (Row(OURS),), limits=False)
    sizes: list[int] = []

    class Counting(NumpyLayer):
        def forms(self, case: Case, *arrays: np.ndarray) -> list[Form]:
            (form,) = NumpyLayer.forms(self, case, *arrays)

            def run() -> Any:
                sizes.append(arrays[0].size)
                return form.run()

            return [Form(form.label, run, form.unpack)]

    entries = measure_group(group, Ours(1), {"peer": Counting(1)}, _NO_LIMITS, rounds=1)
    assert entries["peer"].problem is entries["ours"].problem is None
    assert entries["peer"].elements == 15 + 28
    assert sizes[:4] == [15, 28, 15, 28]


def test_aims_name_what_is_measured() -> None:
    known = {*bench.backends.PEERS, OURS.entry, plan.FASTEST_PEER, LIMIT}
    for group in plan.plan():
        assert OURS in group.variants
        for row in group.rows:
            assert {aim.other for aim in row.aims} <= known
            assert group.limits or all(aim.other != LIMIT for aim in row.aims)


def test_row_names() -> None:
    case = Case(Work.BOTH, "float64", 3 * 2**20, Gradient.FRESH)
    assert plan.row_name(case, AVX2) == "forward + backward fresh float64 3145728, avx2"


def test_data_in_cache_fill_most_of_it() -> None:
    forward, both = (
        Case(work, "float32", 2**24, gradient)
        for work, gradient in ((Work.FORWARD, Gradient.NONE), (Work.BOTH, Gradient.REUSED))
    )
    for mebibyte in (2**20, None):  # which is also what is assumed
        assert plan.cache_elements(forward, OURS, mebibyte) == 2**16
        assert plan.cache_elements(both, OURS, mebibyte) == 2**16
        assert plan.cache_elements(replace(both, dtype="float64"), OURS, mebibyte) == 2**15
    assert plan.cache_elements(both, OURS, 2**18) == 2**14
    level2 = machine.level2_cache_bytes()
    assert level2 is None or level2 <= (machine.last_level_cache_bytes() or 0)
    group = Group(replace(forward, elements=2**18), (Row(OURS),))
    entries = measure_group(group, Ours(2), {}, _NO_LIMITS, rounds=1)
    elements = min(2**18, plan.cache_elements(forward, OURS, level2))
    assert entries["ours in cache"].elements == 2 * elements


def test_work_that_writes_has_no_limit_with_uint8_targets() -> None:
    both = Group(Case(Work.BOTH, "float32", 2**12, Gradient.REUSED), (Row(OURS), Row(UINT8)))
    assert len(limit_names(both, OURS)) == 2
    assert limit_names(both, UINT8) == []
    forward = Group(Case(Work.FORWARD, "float32", 2**12), (Row(OURS), Row(UINT8)))
    assert limit_names(forward, UINT8) == ["read limit, uint8 targets"]
    entries = measure_group(both, Ours(1), {}, _NO_LIMITS, rounds=1)
    _, narrow = row_reports(both, entries)
    assert narrow["of_the_limit"] is narrow["limit"] is None
    assert narrow["seconds"] is not None


# ---- Data and limits ----


def test_data() -> None:
    data = Data(Case(Work.BOTH, "float32", 2**16, Gradient.REUSED))
    hard, soft, uint8 = (data.targets(kind) for kind in ("hard", "soft", "uint8"))
    assert set(np.unique(hard)) == {0, 1}
    np.testing.assert_array_equal(hard, uint8)
    assert uint8.dtype == np.uint8
    assert 0 <= soft.min() < 0.01 < 0.99 < soft.max() < 1
    # Four standard errors of the mean and of the deviation at this size.
    assert abs(float(data.scores.mean())) < 4 * 3 / 2**8
    assert abs(float(data.scores.std()) - 3) < 4 * 3 / 2**8.5
    assert data.reference("uint8", 2**10) is data.reference("hard", 2**10)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("words", [1, 63, 64, 1000, 2**14 + 5])
def test_limits_read_and_write_everything(threads: int, words: int) -> None:
    limits = Limits(sorted(os.sched_getaffinity(0))[:1] * threads)
    generator = np.random.default_rng(words)
    a, b = aligned_empty(words, np.float32), aligned_empty(words, np.float32)
    for array in (a, b):
        array.view(np.uint32)[:] = generator.integers(0, 2**32, words, np.uint32)
    limits.check(a, b)
    narrow = aligned_empty(4 * words, np.uint8)
    narrow[:] = generator.integers(0, 256, 4 * words, np.uint8)
    wide = aligned_empty(4 * words, np.float32)
    wide.fill(1.5)
    limits.check(wide, narrow)
    with pytest.raises(ValueError, match="sizes in bytes differ"):
        limits.write(wide, a, wide, 1, streaming=False)


def test_readme_table_is_that_of_a_result() -> None:
    root = Path(__file__).resolve().parents[1]
    readme = (root / "README.md").read_text()
    tables = [
        summary.summary(json.loads(path.read_text()))
        for path in sorted((root / "bench" / "results").glob("*.json"))
    ]
    assert any(summary.insert(readme, table) == readme for table in tables)
    assert all(summary.insert(readme, table + "x") != readme for table in tables)


def test_documented_rounds_are_those_of_the_plan() -> None:
    table = (_ROOT / "bench" / "README.md").read_text()
    table = table[table.index("| rounds | in the default profile |") :].split("\n\n", 1)[0]
    documented = [int(line.split("|")[1]) for line in table.splitlines()[2:]]
    rounds = plan.PROFILES["default"].rounds
    planned = {group.rounds or rounds for group in plan.plan("default")}
    assert documented == sorted(planned, reverse=True)


# ---- The file, while it runs ----

_INTERRUPTED_RUN = """
import sys
import bench.__main__, bench.measure
whole = bench.measure.measure_group
calls = []
def until_the_third(*arguments, **options):
    calls.append(1)
    if len(calls) == 3:
        raise KeyboardInterrupt
    return whole(*arguments, **options)
bench.measure.measure_group = until_the_third
sys.exit(bench.__main__.main(sys.argv[1:]))
"""


def test_what_was_measured_before_an_interruption_is_there(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    arguments = "--quick --max-elements 1024 --rounds 1 --threads 1 --backends NumPy".split()
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED_RUN, *arguments, "--json", str(path)],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 130, done.stderr
    assert f"Interrupted. {path} has what was measured before." in done.stderr
    report = json.loads(path.read_text())
    assert len(report["groups"]) == 2
    assert report["complete"] is False
    assert not summary._is_whole(report | {"profile": "default"})
    assert terminal(report)
    assert compare.compare(compare.read(path), report)["rows"]
    assert list(tmp_path.iterdir()) == [path]


# ---- sigmoid-ce bench ----


def _sigmoid_ce_bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Outside of the clone, with what is compiled for it in `folder`."""
    return subprocess.run(
        [sys.executable, "-m", "sigmoid_ce", "bench", *arguments],
        cwd=folder,
        env={**os.environ, "XDG_CACHE_HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_installed_bench(tmp_path: Path) -> None:
    quick = ["--quick", "--threads", "1", "--backends", "", "--only", "forward float32 2^10"]
    done = _sigmoid_ce_bench(tmp_path, *quick, "--json", "-")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)  # the whole of stdout
    assert [row["name"] for row in report["rows"]] == ["forward float32 2^10"]
    assert report["failures"] == []
    assert report["settings"]["quick"]
    (entry,) = (group["entries"]["ours"] for group in report["groups"])
    assert len(entry["seconds"]) == report["settings"]["rounds"]


def test_installed_bench_lists_and_helps(tmp_path: Path) -> None:
    done = _sigmoid_ce_bench(tmp_path, "--list")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        plan.row_name(group.case, row.variant) for group in plan.plan() for row in group.rows
    ]
    done = _sigmoid_ce_bench(tmp_path, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: sigmoid-ce bench")
    rounds = ", ".join(f"{name}: {one.rounds}" for name, one in plan.PROFILES.items())
    assert f"at most ({rounds})" in " ".join(done.stdout.split())
    done = _sigmoid_ce_bench(tmp_path, "--only", "no such row")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


def test_options_that_are_wrong_end_at_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for arguments, message in (
        (["--rounds", "x"], "argument --rounds: expected an integer of at least 1, got 'x'"),
        (["--threads", "0"], "argument --threads: expected an integer of at least 1, got '0'"),
        (["--json", str(tmp_path)], "argument --json: expected the name of a file"),
        (["--markdown", str(tmp_path / "a" / "b")], "argument --markdown: expected the name of"),
        (["--backends", "NumPy,Chainer"], "--backends: ['Chainer'] are none of"),
    ):
        with pytest.raises(SystemExit) as end:
            bench.__main__.main(arguments)
        assert end.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"Error: {message}")
        assert err.endswith(" ('python -m bench --help' shows the usage)\n")
        assert err.count("\n") == 1
