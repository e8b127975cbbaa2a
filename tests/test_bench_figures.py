"""The benchmark's accuracy, scaling, memory and comparison: made-up figures and small real runs.

Nothing here depends on how long anything takes.
"""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bench.__main__
from bench import accuracy, compare, memory, scaling
from bench.backends import PEERS, Missing, load
from bench.backends.base import Form
from bench.backends.numpy_layer import NumpyLayer
from bench.children import NOT_QUICK, ChildFailed, run_child
from bench.data import aligned_empty
from bench.plan import Case, Gradient, Work
from conftest import missing
from sigmoid_ce import reference

# ---- Accuracy ----

# The bound of docs/numerics.md for an element, in ulp.
_OUR_BOUND = 2.0


def test_errors_are_in_ulp_of_the_exact_value() -> None:
    right = np.array([1.0, 1.5, 2.0, 2.0**-149, 3e-45, 1.0, 1.0], np.longdouble)
    got = np.array([1 + 2.0**-23, 1.5, 2.0 - 2.0**-22, 0, 3e-45, np.nan, np.inf], np.float32)
    found = accuracy.errors(got, right)
    # 2^-22 is one spacing above 2; 3e-45 is two spacings of subnormal numbers, give or take.
    np.testing.assert_allclose(found[:4], [1, 0, 1, 1])
    assert found[4] < 0.5
    assert list(found[5:]) == [np.inf, np.inf]
    wide = accuracy.errors(np.array([1 + 2.0**-52]), np.ones(1, np.longdouble), "float64")
    assert list(wide) == [1]


def test_a_result_of_zero_is_off_by_the_whole_mantissa() -> None:
    found = accuracy.errors(np.zeros(1, np.float32), np.array([1.5], np.longdouble))
    assert found[0] == 1.5 * 2**23


def test_ours_is_within_its_bound_and_caffes_formula_is_not() -> None:
    x = accuracy.scores(2**14, "float32")
    ours = accuracy.measure(accuracy.SYSTEMS[0].function, x)
    assert accuracy.SYSTEMS[0].name == accuracy.OURS
    caffe = next(s for s in accuracy.SYSTEMS if s.name == accuracy.CAFFE)
    theirs = accuracy.measure(caffe.function, x)
    for key in ("loss_ulp", "gradient_ulp"):
        assert 0.5 < max(ours[key].values()) < _OUR_BOUND
        # The largest over the bins is the largest over both targets.
        assert max(ours["curve"][key]) == max(ours[key].values())
        assert max(theirs[key].values()) > 2**22
    assert len(ours["curve"]["score"]) == accuracy.BINS
    assert ours["curve"]["score"][0] == -accuracy.LARGEST_SCORE + 1


def _system(name: str) -> accuracy.System:
    return next(system for system in accuracy.SYSTEMS if system.name == name)


@pytest.mark.filterwarnings("default")  # peers warn of what they will change
@pytest.mark.parametrize(
    "name", ["PyTorch", "torch.compile", "JAX", "TensorFlow", "Numba", "NumPy"]
)
def test_accuracy_judges_what_is_timed(name: str) -> None:
    """Losses bit for bit; gradients of a mean over 2^10 up to the compiler's roundings."""
    backend = load(name, 1)
    if isinstance(backend, Missing):
        missing(f"{name} ({backend.reason})")
    else:
        x = aligned_empty(2**10, np.float32)
        t, out = np.empty_like(x), np.empty_like(x)
        x[:] = np.linspace(-80, 80, x.size)
        t[:] = np.arange(x.size) % 3 == 0
        with np.errstate(over="ignore"):
            losses, gradients = _system(name).function(x, t)
            for work, found, factor in (
                (Work.ELEMENTWISE, losses, 1),
                (Work.BACKWARD, gradients, x.size),
            ):
                case = Case(work, "float32", x.size, Gradient.FRESH)
                backend.begin(case)
                form = backend.forms(case, x, t, out)[0]
                timed = form.unpack(form.run())[1]
                assert timed is not None
                # Products with a power of two are exact, but for what is subnormal then.
                np.testing.assert_allclose(timed * factor, found, rtol=3e-7, atol=1e-34)


def test_stable_and_unstable_formula_of_the_blogs() -> None:
    x = np.linspace(-110, 110, 1001, dtype=np.float32)
    stable, weighted = (
        accuracy.measure(_system(name).function, x)["loss_ulp"]
        for name in ("NumPy (blog)", "NumPy (blog, class-weighted)")
    )
    assert all(math.isfinite(float(value)) for value in stable.values())
    assert "inf" in weighted.values()
    # What is no backend's first form is no backend's name.
    first = {system.name for system in accuracy.SYSTEMS if system.name in PEERS}
    others = {system.name: system.backend for system in accuracy.SYSTEMS if system.backend}
    assert not first & set(others)
    assert set(others.values()) <= set(PEERS)


def test_errors_fall_into_the_bins_of_their_scores() -> None:
    def off_at_ten(x: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        losses, gradients = accuracy.exact(x, float(t[0]))
        wrong = np.abs(x - 10) < 0.5
        return np.where(wrong, np.inf, losses).astype(np.float32), gradients.astype(np.float32)

    x = np.linspace(-109.9, 109.9, 2000, dtype=np.float32)
    found = accuracy.measure(off_at_ten, x)
    bad = [
        s
        for s, e in zip(found["curve"]["score"], found["curve"]["loss_ulp"], strict=True)
        if e == "inf"
    ]
    assert bad == [9.0, 11.0]
    # Rounding the exact value to float32 is off by half an ulp, and by a little with its ties.
    assert max(found["gradient_ulp"].values()) <= 0.51


def test_exact_mean_and_its_error() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(0, 3, 5000).astype(np.float32)
    t = (rng.random(5000) < 0.5).astype(np.float32)
    right = accuracy.exact_mean(x, t)
    wide = reference.forward(x.astype(float), t.astype(float), normalization="full")
    assert right == pytest.approx(wide, rel=1e-15)  # two float64 roundings
    found = accuracy.mean_error(right * (1 + 2e-3), right, 5000)
    assert found["relative"] == pytest.approx(2e-3)
    assert found["float32_ulp"] == pytest.approx(
        right * 2e-3 / float(np.spacing(np.float32(right)))
    )
    assert accuracy.mean_error(math.nan, right, 5000)["relative"] == "inf"


def test_accuracy_report(monkeypatch: pytest.MonkeyPatch) -> None:
    numpy_system, caffe = (
        next(s for s in accuracy.SYSTEMS if s.name == name) for name in ("NumPy", accuracy.CAFFE)
    )
    monkeypatch.setattr(
        accuracy,
        "SYSTEMS",
        [
            accuracy.SYSTEMS[0],
            accuracy.System("gone", "no_such_module", caffe.function),
            accuracy.System("broken", "numpy", lambda x, t: (x / x[:0], t)),
            accuracy.System("slow", "numpy", caffe.function, slow_start=True),
            accuracy.System("compiled", "numpy", numpy_system.function, compiles=True),
            numpy_system,
            caffe,
        ],
    )
    monkeypatch.setitem(accuracy._SAMPLES, "quick", {"float32": 4096, "float64": 1024})
    monkeypatch.setitem(accuracy._MEAN_ELEMENTS, "quick", 2**14)
    told: list[str] = []
    found = accuracy.report("quick", 1, told.append, backends=["NumPy"])
    json.dumps(found, allow_nan=False)
    by_name = {(entry["backend"], entry["dtype"]): entry for entry in found}
    assert by_name["gone", "float32"]["problem"] == "not installed"
    assert by_name["slow", "float32"]["problem"] == "not in the quick profile"
    assert by_name["broken", "float32"]["problem"].startswith("failed: ValueError")
    for name in ("compiled", accuracy.OURS, "NumPy", accuracy.CAFFE):
        entry = by_name[name, "float32"]
        assert (entry["compiling_seconds"] > 0) == (name == "compiled")
        assert entry["problem"] is None
        assert set(entry["loss_ulp"]) == set(entry["gradient_ulp"]) == {"0", "1"}
        assert entry["mean_error"]["elements"] == 2**14
        assert by_name[name, "float64"]["mean_error"] is None
    # Ours is rounded once, after an exact sum; Caffe's adds up in float32.
    assert by_name[accuracy.OURS, "float32"]["mean_error"]["float32_ulp"] <= 0.51
    assert by_name[accuracy.CAFFE, "float32"]["mean_error"]["float32_ulp"] > 1
    assert f"accuracy: {accuracy.CAFFE}" in told


# ---- Scaling ----


def test_thread_counts() -> None:
    assert scaling.thread_counts(1, "default") == [1]
    assert scaling.thread_counts(6, "quick") == [1, 6]
    assert scaling.thread_counts(6, "default") == [1, 2, 4, 6]
    assert scaling.thread_counts(6, "full") == [1, 2, 3, 4, 5, 6]
    assert scaling.thread_counts(40, "full")[-4:] == [15, 16, 32, 40]


def test_scaling_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scaling._ELEMENTS, "quick", (2**12,))
    found = scaling.report("quick", 1, backends=["NumPy", "torch.compile"])
    assert [entry["backend"] for entry in found] == ["ours", "torch.compile", "NumPy"]
    by_name = {entry["backend"]: entry for entry in found}
    assert by_name["torch.compile"]["problem"] == NOT_QUICK
    for name in ("ours", "NumPy"):
        entry = by_name[name]
        assert (entry["work"], entry["dtype"]) == ("forward", "float32")
        assert (entry["elements"], entry["threads"]) == (2**12, 1)
        assert 0 < entry["gelem_per_second"]["p20"] <= entry["gelem_per_second"]["p80"]
        assert entry["compiling_seconds"] == 0


def test_scaling_tells_how_long_it_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scaling._ELEMENTS, "default", (2**12,))
    _, entry = scaling.report("default", 1, backends=["Numba"])
    if entry["problem"]:
        missing(entry["problem"])
    assert entry["compiling_seconds"] > 0


def test_a_child_that_fails_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    too_many = len(os.sched_getaffinity(0)) + 1
    monkeypatch.setattr(scaling, "thread_counts", lambda threads, profile: [too_many])
    (entry,) = scaling.report("quick", 1, backends=[])
    assert entry["threads"] == too_many
    assert "this process may use" in entry["problem"]
    with pytest.raises(ChildFailed, match="exit status 1"):
        run_child("memory", {})


# ---- Memory ----


class _Greedy(NumpyLayer):
    """Takes so many bytes for the time of a call, and returns a gradient where it should."""

    def __init__(self, extra: int) -> None:
        super().__init__(1)
        self.extra = extra

    def forms(self, case: Case, scores: np.ndarray, *arrays: Any) -> list[Form]:
        def run() -> Any:
            result = np.ones_like(scores) if case.gradient is Gradient.FRESH else None
            scratch = np.ones(1 + (self.extra if scores.size > 2**10 else 0), np.uint8)
            return result, int(scratch[0])

        return [Form("greedy", run, lambda result: (0.0, result[0]))]


@pytest.mark.skipif(not memory.can_reset_peak(), reason="no clear_refs in /proc")
@pytest.mark.parametrize("extra", [0, 2**24, 3 * 2**24])
@pytest.mark.parametrize("gradient", [Gradient.NONE, Gradient.FRESH])
def test_extra_bytes(extra: int, gradient: Gradient) -> None:
    work = Work.FORWARD if gradient is Gradient.NONE else Work.BOTH
    found = memory.extra_bytes(_Greedy(extra), Case(work, "float32", 2**22, gradient))
    assert abs(found - extra) <= memory.RESOLUTION_BYTES


@pytest.mark.skipif(not memory.can_reset_peak(), reason="no clear_refs in /proc")
@pytest.mark.parametrize("compiling", [False, True])
def test_every_backend_has_had_a_call_of_the_full_size(compiling: bool) -> None:
    class Workspace(_Greedy):
        """Keeps what its first call of the full size took, as compilers do."""

        compiles = compiling
        kept: np.ndarray | None = None

        def forms(self, case: Case, scores: np.ndarray, *arrays: Any) -> list[Form]:
            (form,) = super().forms(case, scores, *arrays)

            def run() -> Any:
                if self.kept is None and scores.size > 2**10:
                    self.kept = np.ones(2**25, np.uint8)
                return form.run()

            return [Form("workspace", run, form.unpack)]

    case = Case(Work.FORWARD, "float32", 2**20)
    assert memory.extra_bytes(Workspace(0), case) <= memory.RESOLUTION_BYTES


@pytest.mark.skipif(not memory.can_reset_peak(), reason="no clear_refs in /proc")
def test_memory_report() -> None:
    found = memory.report("quick", 1, backends=["NumPy", "Numba", "Caffe plugin"])
    assert len(found) == 8
    by_key = {(entry["backend"], entry["work"]): entry for entry in found}
    works = "forward", "forward + backward"
    for work in works:
        ours = by_key["ours", work]
        assert ours["problem"] is None
        assert ours["extra_bytes"] <= memory.RESOLUTION_BYTES
        # As NumPy evaluates the expression, two temporaries at least are there at a time.
        numpy = by_key["NumPy", work]
        assert 7.5 < numpy["bytes_per_element"] < 20.5
        assert numpy["extra_bytes"] == numpy["bytes_per_element"] * numpy["elements"]
        assert by_key["Numba", work]["problem"] == NOT_QUICK
        assert by_key["Caffe plugin", work]["extra_bytes"] is None


def test_no_process_starts_after_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []

    def child(module: str, task: dict[str, Any]) -> Any:
        begun.append(task["backend"])
        time.sleep(0.2)
        return []

    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(memory, "run_child", child)
    monkeypatch.setattr(memory, "_PROCESSES", 1)
    with pytest.raises(KeyboardInterrupt):
        memory.report("default", 1, interrupt)
    assert begun == [memory.OURS]


# ---- Comparison ----


def _spread(median: float, width: float = 0.05) -> dict[str, float]:
    return {"median": median, "p20": median * (1 - width), "p80": median * (1 + width)}


def _row(name: str, rate: float | None, ratios: dict[str, float]) -> dict[str, Any]:
    return {
        "name": name,
        "problem": None if rate else "failed: made up",
        "gelem_per_second": _spread(rate) if rate else None,
        "ratios": {peer: _spread(ratio) for peer, ratio in ratios.items()},
    }


def _report(*rows: dict[str, Any], schema: int = 2) -> dict[str, Any]:
    report = {
        "schema": schema,
        "date": "2026-01-02T03:04:05+00:00",
        "machine": {"cpu": "made up", "cpus_online": 2, "python": "3.11"},
        "settings": {"threads": 2, "rounds": 25},
        "ours": {"version": "1", "info": {"isa": "avx2"}},
        "backends": {"NumPy": {"version": "numpy 2", "problem": None}},
        "groups": [],
        "rows": list(rows),
    }
    return report | ({"profile": "default"} if schema == 2 else {})


def test_ranges_that_overlap_are_noise() -> None:
    a = {"median": 1.0, "p20": 0.9, "p80": 1.1}
    for b, verdict in (
        ({"median": 1.15, "p20": 1.1, "p80": 1.2}, "within the noise"),  # they touch
        ({"median": 1.15, "p20": 1.11, "p80": 1.2}, "higher"),
        ({"median": 0.8, "p20": 0.7, "p80": 0.9}, "within the noise"),
        ({"median": 0.8, "p20": 0.7, "p80": 0.89}, "lower"),
    ):
        found = compare.change(a, b)
        assert found["verdict"] == verdict
        assert found["ratio"] == b["median"]


def test_comparison() -> None:
    a = _report(
        _row("same", 1.0, {"NumPy": 5.0}),
        _row("faster", 1.0, {"NumPy": 5.0}),
        _row("slower", 1.0, {"NumPy": 5.0, "JAX": 1.0}),
        _row("broken", 1.0, {}),
        _row("gone", 1.0, {}),
        schema=1,
    )
    b = _report(
        _row("same", 1.01, {"NumPy": 5.1}),
        _row("faster", 1.5, {"NumPy": 7.5}),
        _row("slower", 0.5, {"NumPy": 5.0}),
        _row("broken", None, {}),
        _row("new", 1.0, {}),
    )
    b["machine"]["cpu"] = "another"
    b["settings"]["rounds"] = 15
    found = compare.compare(a, b)
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["same", "faster", "slower", "broken"]
    assert rows["same"]["throughput"]["verdict"] == "within the noise"
    assert rows["faster"]["throughput"] == {
        "a": _spread(1.0),
        "b": _spread(1.5),
        "ratio": 1.5,
        "verdict": "higher",
    }
    assert rows["faster"]["ratios"]["NumPy"]["verdict"] == "higher"
    assert rows["slower"]["throughput"]["verdict"] == "lower"
    assert list(rows["slower"]["ratios"]) == ["NumPy"]
    assert rows["slower"]["ratios"]["NumPy"]["verdict"] == "within the noise"
    assert rows["broken"]["throughput"] is None
    assert rows["broken"]["problem"] == "failed: made up"
    assert (found["only_in_a"], found["only_in_b"]) == (["gone"], ["new"])
    assert found["machines_differ"] == {"cpu": ["made up", "another"]}
    assert found["surroundings_differ"] == {"rounds": [25, 15]}
    text = compare.text(found, "a.json", "b.json")
    assert "3 rows: 1 faster, 1 slower, 1 within the noise." in text
    assert "The machines differ, so throughputs do too: cpu: made up and another." in text
    assert "Only in A: gone" in text
    assert "Only in B: new" in text
    assert compare.RULE in text


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    a.write_text(json.dumps(_report(_row("row", 1.0, {}))))
    b.write_text(json.dumps(_report(_row("row", 0.5, {}))))
    return a, b


def test_compare_command(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    a, b = map(str, files)
    assert bench.__main__.main(["compare", a, b]) == 0
    assert "0.500x  SLOWER" in capsys.readouterr().out
    assert bench.__main__.main(["compare", a, b, "--fail-on-slower"]) == 1
    assert bench.__main__.main(["compare", b, a, "--fail-on-slower"]) == 0
    assert bench.__main__.main(["compare", a, a, "--fail-on-slower"]) == 0
    capsys.readouterr()
    assert bench.__main__.main(["compare", a, b, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == compare.compare(
        *(json.loads(path.read_text()) for path in files)
    )
    out = files[0].with_name("out.json")
    assert bench.__main__.main(["compare", a, b, "--json", str(out)]) == 0
    assert json.loads(out.read_text())["rows"][0]["name"] == "row"


def test_compare_refuses_what_is_no_report(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = files[0]
    bad = tmp_path / "bad.json"
    newer = _report() | {"schema": 3}
    gpu = copy.deepcopy(_report())
    del gpu["machine"]
    for text, message in (
        ("{", "not JSON"),
        ("[]", "not a report of the benchmark (schema: 'list')"),
        (json.dumps(newer), "not a report of the benchmark (schema: 3)"),
        (json.dumps(gpu), "no report of the benchmark on a CPU (['machine'] missing)"),
    ):
        bad.write_text(text)
        with pytest.raises(SystemExit) as end:
            bench.__main__.main(["compare", str(good), str(bad)])
        assert end.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert message in err
        assert err.count("\n") == 1
    for arguments in ([str(good)], [str(good), str(tmp_path / "none.json")]):
        with pytest.raises(SystemExit) as end:
            bench.__main__.main(["compare", *arguments])
        assert end.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_sigmoid_ce_bench_compare(files: tuple[Path, Path], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sigmoid_ce", "bench", "compare", *map(str, files)]
    done = subprocess.run(
        [*command, "--fail-on-slower"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "SLOWER" in done.stdout


def test_results_of_the_repository_can_be_compared() -> None:
    folder = Path(__file__).parents[1] / "bench" / "results"
    for path in folder.glob("*.json"):
        report = compare.read(path)
        found = compare.compare(report, report)
        assert len(found["rows"]) == len(report["rows"])
        assert {r["throughput"]["verdict"] for r in found["rows"] if r["throughput"]} == {
            "within the noise"
        }
