"""What the benchmark writes: report, pictures, and the pages made from bench/results.

All figures are made up, but for those of the last part: the repository's own pages and results.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import gpu_summary, plan, plots, summary
from bench.backends import OURS_ELSEWHERE
from bench.measure import Entry
from bench.plan import OURS, UINT8, Case, Gradient, Group, Option, Row, Variant, Work
from bench.report import (
    SCHEMA,
    group_report,
    markdown,
    not_able,
    not_installed,
    row_reports,
    tables,
    terminal,
)

_ROOT = Path(__file__).resolve().parents[1]
_READ = "read limit"


def _entry(name: str, case: Case, seconds: float, **more: Any) -> Entry:
    # 5 rounds, of which the middle one is the median.
    return Entry(
        name, case.elements, seconds=[seconds * f for f in (0.9, 1.0, 1.1, 0.95, 1.05)], **more
    )


def _missing(name: str, problem: str) -> Entry:
    return Entry(name, problem=problem)


def _measured() -> list[tuple[Group, dict[str, Entry]]]:
    """Groups of made-up times: ours needs 1 ns per element, others more."""
    found = []
    for work, gradient in ((Work.FORWARD, Gradient.NONE), (Work.BOTH, Gradient.REUSED)):
        for k in (10, 16, 20, 24):
            case = Case(work, "float32", 2**k, gradient)
            group = Group(case, (Row(OURS),), limits=k > 10)
            ns = 1e-9 * case.elements
            entries = [
                _entry("ours", case, ns),
                _entry("PyTorch", case, 4 * ns),
                _entry("NumPy", case, 8 * ns),
                _entry("Caffe plugin", case, 1.1 * ns),
                _missing("JAX", "not installed (No module named 'jax')"),
                _missing("scikit-learn", "not able (log_loss has no gradient)")
                if gradient is Gradient.REUSED
                else _entry("scikit-learn", case, 20 * ns),
            ]
            if group.limits and work is Work.FORWARD:
                entries.append(_entry(_READ, case, 0.5 * ns))
            elif group.limits:
                entries.append(_entry("write limit, ordinary stores", case, 0.8 * ns))
                entries.append(_missing("write limit, streaming stores", "not available here"))
            found.append((group, {entry.name: entry for entry in entries}))
    case = Case(Work.BOTH, "float16", 2**20, Gradient.REUSED, Option.POS_WEIGHT)
    found.append((Group(case, limits=False), {"ours": _missing("ours", "not able (float16)")}))
    return found


def _report() -> dict[str, Any]:
    curve = {
        "score": [-100.0, 0.0, 100.0],
        "loss_ulp": [0.5, 1.0, 0.5],
        "gradient_ulp": [1.0, 1.5, 1.0],
    }
    ours = {
        "backend": "sigmoid_ce",
        "version": "sigmoid_ce 1",
        "dtype": "float32",
        "loss_ulp": {"0": 1.0, "1": 1.25},
        "gradient_ulp": {"0": 1.5, "1": 1.5},
        "curve": curve,
        "mean_error": {"elements": 2**24, "relative": 1e-10, "float32_ulp": 0.002},
        "problem": None,
    }
    blog = ours | {
        "backend": "NumPy (blog)",
        "version": "numpy 2, log(1 + exp(-x))",
        "loss_ulp": {"0": "inf", "1": 1.7e7},
        "curve": curve | {"loss_ulp": ["inf", 1.7e7, 1.0]},
        "mean_error": None,
    }
    jax = dict.fromkeys(ours) | {
        "backend": "JAX",
        "dtype": "float32",
        "problem": "not installed",
    }
    spread = {"median": 1.0, "p20": 0.9, "p80": 1.1}
    double = {"median": 1.75, "p20": 1.7, "p80": 1.8}
    scaling = [
        {
            "backend": name,
            "work": "forward",
            "dtype": "float32",
            "elements": 2**24,
            "threads": threads,
            "gelem_per_second": rate,
            "limit_gelem_per_second": double,
            "problem": None if rate else "too slow (made up)",
        }
        for threads in (1, 2)
        for name, rate in (("ours", double if threads == 2 else spread), ("NumPy", None))
    ]
    memory = [
        {
            "backend": name,
            "work": "forward",
            "dtype": "float32",
            "elements": 2**20,
            "extra_bytes": extra,
            "bytes_per_element": None if extra is None else extra / 2**20,
            "problem": None if extra is not None else "not able (made up)",
        }
        for name, extra in (("ours", 0), ("PyTorch", 2**23), ("NumPy", None))
    ]
    measured = _measured()
    return {
        "schema": SCHEMA,
        "profile": "default",
        "date": "2026-01-02T03:04:05+00:00",
        "machine": {
            "cpu": "made up",
            "cpus_used": [0, 1],
            "last_level_cache_bytes": 2**25,
            "memory_bytes": 2**34,
            "load_before": 0.0,
        },
        "settings": {"threads": 2, "rounds": 5, "quick": False, "only": ""},
        "ours": {"version": "1", "info": {"isa": "avx2", "compiler": "gcc 12"}},
        "backends": {
            name: {
                "version": None if name == "JAX" else f"{name.lower()} 1",
                "problem": "not installed (No module named 'jax')" if name == "JAX" else None,
            }
            for name in ("PyTorch", "JAX", "scikit-learn", "NumPy", "Caffe plugin")
        },
        "limits": {"compiler": "g++ 12", "problem": None},
        "groups": [group_report(group, entries, 2**25) for group, entries in measured],
        "rows": [row for group, entries in measured for row in row_reports(group, entries)],
        "failures": [],
        "accuracy": [ours, blog, jax],
        "scaling": scaling,
        "memory": memory,
    }


# ---- The report ----


def test_rows_have_bandwidth_and_share() -> None:
    case = Case(Work.FORWARD, "float32", 1000)
    entries = {
        name: Entry(name, 1000, seconds=[seconds])
        for name, seconds in (
            ("ours", 1e-6),
            ("ours, uint8 targets", 1e-6),
            (_READ, 0.5e-6),
            (f"{_READ}, uint8 targets", 0.25e-6),
            ("NumPy", 3e-6),
            ("Caffe plugin", 1.5e-6),
        )
    }
    plain, narrow = row_reports(Group(case, (Row(OURS), Row(UINT8))), entries)
    # 8 bytes of float32 scores and targets per element, 5 with uint8 targets; 1 element per ns.
    assert plain["gigabytes_per_second"]["median"] == pytest.approx(8)
    assert narrow["gigabytes_per_second"]["median"] == pytest.approx(5)
    assert plain["of_the_limit"]["median"] == pytest.approx(0.5)
    assert narrow["of_the_limit"]["median"] == pytest.approx(0.25)
    assert narrow["limit"] == f"{_READ}, uint8 targets"
    # Our own kernels in another place are no peer to be faster than.
    assert "Caffe plugin" in OURS_ELSEWHERE
    assert plain["ratios"]["Caffe plugin"]["median"] == pytest.approx(1.5)
    assert plain["fastest_peer"] == "NumPy"


def test_row_says_option_and_shape() -> None:
    (group, entries) = _measured()[-1]
    (row,) = row_reports(group, entries)
    assert (row["option"], row["shape"], row["threads"]) == ("pos_weight", None, None)
    assert row["problem"] == "not able (float16)"
    assert row["gigabytes_per_second"] is row["of_the_limit"] is None


def test_what_was_not_measured_is_listed() -> None:
    report = _report()
    assert list(not_installed(report)) == ["JAX"]
    able = not_able(report)
    assert len(able["scikit-learn", "not able (log_loss has no gradient)"]) == 4
    assert not any(name == "JAX" for name, _ in able)
    cells = dict(tables(report))["Not measured"]
    lines = {(line[0], line[1]): line[2] for line in cells[1:]}
    assert lines["JAX", "everything"] == "not installed (No module named 'jax')"
    both = "forward + backward reused float32 2^"
    assert (
        lines["scikit-learn", f"{both}10, {both}16, {both}20 and 1 more"]
        == "not able (log_loss has no gradient)"
    )
    assert lines["NumPy", "scaling"] == "too slow (made up)"
    assert lines["NumPy", "memory"] == "not able (made up)"


def test_tables() -> None:
    found = dict(tables(_report()))
    head, *lines = found["Ours against the peers and the limits"]
    (line,) = (line for line in lines if line[:3] == ["forward", "float32", "2^24"])
    row = dict(zip(head, line, strict=True))
    assert row["Gelem/s"].startswith("1 (")
    assert row["GB/s"] == "8"
    assert row["of the limit"] == "50% (50%..50%)"
    assert row["fastest peer"] == "PyTorch"
    assert row["vs it"].startswith("4.00x (4.00..4.00)")
    assert row["data"] == "128 MiB, memory"
    # A column for what was measured, and none for what is not installed.
    assert found["Ours over each backend"][0][3:] == [
        "vs PyTorch",
        "vs scikit-learn",
        "vs NumPy",
        "vs Caffe plugin",
        "vs ours",
    ]
    accuracy = found["Largest errors of an element, in ulp, and error of the mean"]
    assert [line[0] for line in accuracy[1:]] == ["sigmoid_ce", "NumPy (blog)", "JAX"]
    assert accuracy[2][3] == "inf"
    threads = found["Threads"]
    assert threads[1:] == [
        ["ours", "forward", "2^24", "1", "1.75", "1.75x"],
        ["the limit", "forward", "2^24", "1.75", "1.75", "1.00x"],
    ]
    memory = found["Memory beyond the inputs and the returned gradient"]
    assert [line[-2:] for line in memory[1:]] == [["0.0 MiB", "0.0"], ["8.0 MiB", "8.0"]]


def test_text_and_markdown() -> None:
    report = _report()
    text, page = terminal(report), markdown(report)
    for title, cells in tables(report):
        assert title in text
        # All lines of a table have as many cells.
        assert {len(line) for line in cells} == {len(cells[0])}
    assert "### Threads" in page
    assert "### Limits" not in page
    assert "made up, 2 threads on CPUs [0, 1]" in page


def test_a_report_without_figures_beside_the_rows() -> None:
    report = _report() | {"accuracy": None, "scaling": None, "memory": None}
    titles = [title for title, _ in tables(report)]
    assert "Threads" not in titles
    assert plots.names(report) == ["bench_throughput", "bench_speedup"]


# ---- Pictures ----


def test_throughput_data() -> None:
    data = plots.throughput_data(_report())
    assert data is not None
    forward, both = data["panels"]
    assert forward["lines"]["ours"] == [[2**k, 1.0] for k in (10, 16, 20, 24)]
    assert forward["lines"]["PyTorch"][-1] == [2**24, 0.25]
    assert forward["limit"] == [[2**k, 2.0] for k in (16, 20, 24)]
    assert both["limit"] == [[2**k, 1.25] for k in (16, 20, 24)]
    assert "scikit-learn" in forward["lines"]
    assert not {"scikit-learn", "JAX", "Caffe plugin"} & set(both["lines"])


def test_speedup_data() -> None:
    data = plots.speedup_data(_report())
    assert data is not None
    assert [(panel["work"], panel["elements"]) for panel in data["panels"]] == [
        ("forward", 2**24),
        ("forward", 2**16),
        ("forward + backward", 2**24),
        ("forward + backward", 2**16),
    ]
    assert data["panels"][0]["bars"]["NumPy"] == [8, 8, 8]


def test_accuracy_data() -> None:
    data = plots.accuracy_data(_report())
    assert data is not None
    assert set(data["lines"]) == {"ours", "NumPy (blog)"}
    assert data["lines"]["NumPy (blog)"]["loss_ulp"] == [plots._INFINITE_ULP, 1.7e7, 1.0]


def test_pictures_are_the_same_again(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = _report()
    first = plots.write(report, tmp_path / "first")
    assert sorted(path.name for path in first) == sorted(
        f"{name}.{kind}" for name in plots.ALT_TEXTS for kind in ("svg", "png")
    )
    again = tmp_path / "again.svg"
    for path in first:
        name = path.stem
        assert plots.digest(report, name).encode() in path.read_bytes()
        if path.suffix == ".png":
            assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
            continue
        if name == "bench_speedup":  # one: drawing takes a second
            plots.write_one(report, name, again, "svg")
            assert again.read_bytes() == path.read_bytes()
        assert report["date"][:4] not in path.read_text().split("<defs>")[0]  # no time of drawing


def test_reports_without_what_a_picture_shows() -> None:
    report = _report() | {"accuracy": []}
    report["groups"] = [g for g in report["groups"] if g["elements"] == 2**24]
    assert plots.names(report) == ["bench_speedup"]
    assert plots.names(report | {"groups": [], "rows": []}) == []


def test_digest_follows_the_figures() -> None:
    report = _report()
    before = {name: plots.digest(report, name) for name in plots.names(report)}
    assert len(set(before.values())) == 3
    report["groups"][0]["entries"]["ours"]["seconds"] = [1.0]
    report["accuracy"][0]["curve"]["loss_ulp"][0] = 0.75
    report["rows"][3]["ratios"]["NumPy"]["median"] *= 2
    assert all(plots.digest(report, name) != before[name] for name in before)


# ---- Pages ----


def test_speed_table() -> None:
    table = summary.summary(_report())
    lines = table.splitlines()
    assert lines[0] == (
        "| work | scores | elements | vs PyTorch | vs scikit-learn | vs NumPy "
        "| GB/s | of the limit | arithmetic |"
    )
    assert lines[2:6] == [
        "| forward | float32 | 2^10 | 4.0x | 20.0x | 8.0x | 8.0 | - | - |",
        "| forward | float32 | 2^16 | 4.0x | 20.0x | 8.0x | 8.0 | - | - |",
        "| forward | float32 | 2^20 | 4.0x | 20.0x | 8.0x | 8.0 | - | - |",
        "| forward | float32 | 2^24 | 4.0x | 20.0x | 8.0x | 8.0 | 50% | - |",
    ]
    assert lines[9].startswith(
        "| forward + backward | float32 | 2^24 | 4.0x | - | 8.0x | 12.0 | 80%"
    )
    assert lines[10] == ""  # the row that could not be measured is not in it
    assert lines[-1].endswith("pytorch 1, scikit-learn 1, numpy 1; up to 5 rounds, 2026-01-02.")


def test_sizes_in_between_are_left_to_the_pictures() -> None:
    (row,) = (row for row in _report()["rows"] if row["name"] == "forward float32 2^20")
    assert summary._is_in_table(row)
    assert not summary._is_in_table(row | {"elements": 2**18})
    assert not summary._is_in_table(row | {"threads": 1})
    assert not summary._is_in_table(row | {"isa": "scalar"})
    assert not summary._is_in_table(row | {"option": "pos_weight"})
    both = row | {"work": "forward + backward", "gradient": "reused"}
    assert summary._is_in_table(both | {"option": "pos_weight"})
    assert summary._is_in_table(both | {"shape": "segmentation 8x1x1024x1024"})
    assert summary._is_in_table(both | {"dtype": "float16"})


def test_accuracy_table() -> None:
    assert summary.accuracy(_report()).splitlines() == [
        "| largest error, ulp | loss, t = 0 | loss, t = 1 | gradient, t = 0 | gradient, t = 1 "
        "| mean of 2^24 |",
        "| --- | --- | --- | --- | --- | --- |",
        "| sigmoid_ce | 1 | 1.25 | 1.5 | 1.5 | 0.002 |",
        "| NumPy (blog) (numpy 2) | inf | 1.7e+07 | 1.5 | 1.5 | - |",
    ]


def test_caffe_table() -> None:
    passes = {"forward": (6.0, 3.0, 2.0), "backward": (4.0, 2.0, 2.0)}
    seconds = {
        f"{name}, {one}": [value] * 3
        for one, values in passes.items()
        for name, value in zip(("built-in", "ours", "kernels"), values, strict=True)
    }
    timed = {"built-in": {"forward": 30.0, "backward": 10.0}, "ours": dict.fromkeys(passes, 10.0)}
    result = {"rows": [{"elements": 2**20, "seconds": seconds}], "caffe_time": [timed]}
    assert summary.caffe(result).splitlines()[2:] == [
        "| 2^20 | forward | 2x | 3x | 1.50 |",
        "| 2^20 | backward | 2x | 1x | 1.00 |",
        "| 2^20 | forward + backward | 2x | 2x | 1.25 |",
    ]


def test_newest_whole_result_counts(tmp_path: Path) -> None:
    (tmp_path / "caffe").mkdir()
    old = _report() | {"date": "2026-01-01T00:00:00+00:00"}
    new = _report() | {"date": "2026-02-01T00:00:00+00:00", "accuracy": None}
    quick = _report() | {"date": "2026-03-01T00:00:00+00:00", "profile": "quick"}
    some = _report() | {"date": "2026-04-01T00:00:00+00:00"}
    some["settings"] = some["settings"] | {"only": "2^24"}
    for name, result in (("z", old), ("a", new), ("b", quick), ("c", some)):
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    for name in ("2026-01-01", "2026-05-01"):
        (tmp_path / "caffe" / f"{name}.json").write_text(json.dumps({"rows": [], "name": name}))
    found = summary.read_results(tmp_path)
    assert found.cpu == new
    assert found.accuracy == old
    assert found.caffe is not None
    assert found.caffe["name"] == "2026-05-01"
    assert found.gpu is None
    assert summary.read_results(tmp_path / "none") == summary.Results(*[None] * 5)


@pytest.mark.parametrize(
    "change",
    [
        {"complete": False},
        {"settings": {"max_elements": 2**20}},
        {"settings": {"backends": ["NumPy"]}},
        {"settings": {"figures": False}},
    ],
)
def test_results_of_a_part_do_not_count(change: dict[str, Any]) -> None:
    whole = {"max_elements": 2**26, "backends": None, "figures": True}
    report = _report() | {"complete": True}
    report["settings"] = report["settings"] | whole
    assert summary._is_whole(report)
    report |= change | {"settings": report["settings"] | change.get("settings", {})}
    assert not summary._is_whole(report)


def test_the_report_names_the_gpu() -> None:
    report = _report()
    assert "measured by `python -m bench.gpu`.\n" in terminal(report) + "\n"
    report["machine"]["gpus"] = []
    assert "`python -m bench.gpu`. None is here." in markdown(report)
    report["machine"]["gpus"] = ["NVIDIA H200"]
    assert "`python -m bench.gpu`. Here: NVIDIA H200." in terminal(report)


def test_insert_needs_its_markers() -> None:
    text = f"a\n{summary.BEGIN}\nformer\n{summary.END}\nb\n"
    inserted = summary.insert(text, "| new |")
    assert inserted == f"a\n{summary.BEGIN}\n\n| new |\n\n{summary.END}\nb\n"
    assert summary.insert(inserted, "| new |") == inserted
    for broken in ("", text.replace(summary.END, ""), text + text):
        with pytest.raises(ValueError, match="expected one"):
            summary.insert(broken, "x")


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """A repository of pages, made from made-up results."""
    (tmp_path / "bench" / "results").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "bench" / "results" / "a.json").write_text(json.dumps(_report()))
    regions = "".join(
        f"<!-- {name}: python -m bench.summary -->\n<!-- end of {name} -->\n\n"
        for name in ("accuracy", "speed", "pictures")
    )
    (tmp_path / "README.md").write_text(f"# Title\n\n{regions}The end.\n")
    (tmp_path / "docs" / "dropin.md").write_text("No table yet.\n")
    return tmp_path


def test_write_makes_pages_that_do_not_differ(pages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    # One picture: drawing takes a second.
    monkeypatch.setattr(plots, "_PICTURES", {"bench_speedup": plots._PICTURES["bench_speedup"]})
    assert summary.differences(pages)
    written = {path.relative_to(pages).as_posix() for path in summary.write(pages)}
    assert written == {"README.md", "docs/bench_speedup.svg", "docs/bench_speedup.png"}
    assert summary.differences(pages) == []
    assert summary.write(pages) == []
    readme = (pages / "README.md").read_text()
    assert readme.startswith("# Title\n")
    assert readme.endswith("The end.\n")
    assert readme.count("](docs/bench_speedup.svg)") == 1

    # Each thing that may differ is found.
    monkeypatch.setattr(summary, "_drawn_by_the_same", lambda svg: False)
    changed = readme.replace("| 8.0x |", "| 9.0x |", 1)
    (pages / "README.md").write_text(changed)
    assert summary.differences(pages) == ["README.md: the part 'speed' differs from the results"]
    (pages / "README.md").write_text(readme.replace("| 1.25 |", "| 1.2 |"))
    assert summary.differences(pages) == ["README.md: the part 'accuracy' differs from the results"]
    (pages / "README.md").write_text(readme.replace("bench_speedup.svg", "other.svg"))
    assert summary.differences(pages) == ["README.md: the part 'pictures' differs from the results"]
    (pages / "README.md").write_text(readme)
    monkeypatch.undo()
    monkeypatch.setattr(plots, "_PICTURES", {"bench_speedup": plots._PICTURES["bench_speedup"]})
    svg = pages / "docs" / "bench_speedup.svg"
    drawn = svg.read_text()
    svg.write_text(drawn.replace("#D55E00".lower(), "#ff0000", 1))
    assert svg.read_text() != drawn
    assert summary.differences(pages) == ["docs/bench_speedup.svg: drawn otherwise now"]
    # By another version of matplotlib, the digest of the figures counts.
    other = drawn.replace("matplotlib ", "matplotlib 0", 1)
    svg.write_text(other)
    assert summary.differences(pages) == []
    svg.write_text(other.replace("data sha256 ", "data sha256 0"))
    assert summary.differences(pages) == []
    svg.write_text(other.replace(plots.digest(_report(), "bench_speedup"), "0" * 64))
    assert summary.differences(pages) == ["docs/bench_speedup.svg: drawn from other figures"]
    svg.unlink()
    assert summary.differences(pages) == ["docs/bench_speedup.svg: missing"]
    svg.write_text(drawn)
    monkeypatch.setattr(summary, "_drawn_by_the_same", lambda svg: False)
    shutil.copy(svg, pages / "docs" / "bench_former.svg")
    assert summary.differences(pages) == ["docs/bench_former: drawn from no result"]
    summary.write(pages)
    assert summary.differences(pages) == []


def test_page_without_markers(pages: Path) -> None:
    readme = pages / "README.md"
    readme.write_text("nothing\n")
    missing = [line for line in summary.differences(pages) if line.startswith("README.md")]
    assert len(missing) == 3
    assert all("no place for" in line for line in missing)
    with pytest.raises(ValueError, match=r"README\.md: expected one"):
        summary.write(pages)


def test_first_result_of_a_gpu_makes_its_place(pages: Path) -> None:
    folder = pages / "bench" / "results" / "gpu"
    folder.mkdir()
    result = {
        "date": "2026-01-02T00:00:00+00:00",
        "rows": [],
        "device": {"name": "made up", "driver": "1", "nvcc": "13"},
        "settings": {"rounds": 15},
        "backends": {},
    }
    (folder / "a.json").write_text(json.dumps(result))
    text = (pages / "README.md").read_text()
    assert any("no place for gpu" in line for line in summary.differences(pages))
    results = summary.read_results(pages / "bench" / "results")
    filled = summary._filled(text, summary.page_parts(results)["README.md"])
    assert filled.count(gpu_summary.BEGIN) == filled.count(gpu_summary.END) == 1
    assert "made up, driver 1" in filled
    assert filled.index("end of pictures") < filled.index(gpu_summary.BEGIN)


# ---- The repository's own ----


def test_pages_and_pictures_are_what_the_results_give() -> None:
    # python -m bench.summary --write
    assert summary.differences(_ROOT) == []


# ---- What options cost ----


def test_tables_of_the_family() -> None:
    """Times over that of the plain loss, and rates over the peers'."""
    case = Case(Work.BOTH, "float32", 2**20, Gradient.REUSED)
    slow = Variant(option=Option.FOCAL)
    entries = {
        "ours": _entry("ours", case, 1e-3),
        slow.entry: _entry(slow.entry, case, 2e-3),
        "PyTorch": _entry("PyTorch", case, 1e-2),
    }
    rows = row_reports(Group(case, (Row(OURS), Row(slow)), limits=False), entries)
    balanced = replace(case, option=Option.BALANCE)
    rows += row_reports(Group(balanced, limits=False), entries)
    text = summary.family(_report() | {"rows": rows})
    assert "| forward + backward | focal | 2.00 | 1.00 |" in text
    assert "| forward + backward | balance | 10.0x | - |" in text
    assert "2^20 elements" in text


def test_plan_of_the_family() -> None:
    """Each option beside the plain loss in the same group, and beside the peers, with its aim."""
    groups = plan.plan("family")
    assert {group.case.elements for group in groups} == {2**24}
    variants = {v.option for group in groups if not group.case.option.value for v in group.variants}
    assert variants == set(Option) - {Option.UINT8}
    judged = {
        group.case.option
        for group in groups
        for row in group.rows
        if {"PyTorch", "torch.compile"} <= {aim.other for aim in row.aims}
    }
    assert judged == variants - {Option.NONE}
