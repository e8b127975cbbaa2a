"""From measurements to a report: a dict that is written as JSON, and the tables drawn from it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from .backends import OURS_ELSEWHERE, PEERS
from .measure import Entry, cache_entry, limit_names
from .plan import (
    FASTEST_PEER,
    LIMIT,
    OURS,
    Aim,
    Group,
    Row,
    bytes_per_element,
    row_name,
    size_name,
)

# Raised when a key of the JSON changes its meaning or goes. 2: more cases, so `option` and `shape`
# beside `elements`; `profile`, `accuracy`, `scaling` and `memory`.
SCHEMA = 2

_NONE = "-"
_LIMITS = "Limits"
_FORMS = "How the peers were called"


def group_report(
    group: Group, entries: dict[str, Entry], cache_bytes: int | None
) -> dict[str, Any]:
    """What was measured in a group: all values, so that other figures can be worked out later."""
    case = group.case
    working_set = case.elements * bytes_per_element(case, OURS)
    return {
        "name": case.name,
        "work": case.work.value,
        "dtype": case.dtype,
        "elements": case.elements,
        "gradient": case.gradient.value or None,
        "option": case.option.value or None,
        "shape": case.shape.name if case.shape else None,
        "reduced": group.reduced,
        "working_set_bytes": working_set,
        "working_set_fits_in_cache": None if cache_bytes is None else working_set <= cache_bytes,
        "entries": {
            name: {
                "elements": entry.elements,
                "problem": entry.problem,
                "failed": entry.failed,
                **entry.details,
                "seconds": entry.seconds,
            }
            for name, entry in entries.items()
        },
    }


def row_reports(group: Group, entries: dict[str, Entry]) -> list[dict[str, Any]]:
    """The lines of the report for one group."""
    return [_row_report(group, row, entries) for row in group.rows]


def _row_report(group: Group, row: Row, entries: dict[str, Entry]) -> dict[str, Any]:
    case, variant = group.case, row.variant
    entry = entries[variant.entry]
    count = bytes_per_element(case, variant)
    report: dict[str, Any] = {
        "name": row_name(case, variant),
        "group": case.name,
        "entry": entry.name,
        "work": case.work.value,
        "dtype": case.dtype,
        "elements": case.elements,
        "gradient": case.gradient.value or None,
        "option": case.option.value or None,
        "shape": case.shape.name if case.shape else None,
        "targets": variant.targets,
        "variant_option": variant.option.value or None,
        "isa": variant.isa,
        "threads": variant.threads,
        "bytes_per_element": count,
        "problem": entry.problem,
    }
    ratios = {
        name: spread(entry.rates / entries[name].rates)
        for name in [*PEERS, *([OURS.entry] if variant != OURS else [])]
        if entry.seconds and name in entries and entries[name].seconds
    }
    peers = [name for name in ratios if name in PEERS and name not in OURS_ELSEWHERE]
    fastest = min(peers, key=lambda name: ratios[name]["median"], default=None)
    shares = {
        name: spread(entry.rates / entries[name].rates)
        for name in limit_names(group, variant)
        if entry.seconds and name in entries and entries[name].seconds
    }
    binding = min(shares, key=lambda name: shares[name]["median"], default=None)
    cache = entries.get(cache_entry(variant))
    report |= {
        "seconds": spread(np.array(entry.seconds)) if entry.seconds else None,
        "gelem_per_second": spread(entry.rates / 1e9) if entry.seconds else None,
        "gigabytes_per_second": spread(count * entry.rates / 1e9) if entry.seconds else None,
        "ratios": ratios,
        "fastest_peer": fastest,
        "limits": shares,
        "limit": binding,
        "of_the_limit": shares[binding] if binding else None,
        "in_cache_gelem_per_second": (
            spread(cache.rates / 1e9) if cache and cache.seconds else None
        ),
    }
    figures = ratios | {
        FASTEST_PEER: ratios.get(fastest) if fastest else None,
        LIMIT: shares.get(binding) if binding else None,
    }
    report["aims"] = [_aim_report(aim, figures.get(aim.other), group) for aim in row.aims]
    return report


def _aim_report(aim: Aim, figure: dict[str, float] | None, group: Group) -> dict[str, Any]:
    value = figure["median"] if figure else None
    judged = value is not None and not group.reduced
    return {
        "text": aim.text,
        "factor": aim.factor,
        "other": aim.other,
        "value": value,
        "holds": value >= aim.factor if judged and value is not None else None,
    }


def spread(values: np.ndarray) -> dict[str, float]:
    """Median, and what 20 and 80 percent of the rounds stay below."""
    p20, median, p80 = (float(value) for value in np.percentile(values, [20, 50, 80]))
    return {"median": median, "p20": p20, "p80": p80}


Table = tuple[str, list[list[str]]]


def tables(report: dict[str, Any]) -> list[Table]:
    """Titles and cells; the first line of each table holds its headings."""
    found = [
        _speed(report),
        _ratios(report),
        _aims(report),
        _accuracy(report),
        _scaling(report),
        _memory(report),
        _limits(report),
        _forms(report),
        _not_measured(report),
    ]
    return [(title, cells) for title, cells in found if len(cells) > 1]


def _about(row: dict[str, Any]) -> list[str]:
    return [_work(row), row["dtype"], row.get("shape") or size_name(row["elements"])]


def _speed(report: dict[str, Any]) -> Table:
    cells = [
        [
            "work",
            "dtype",
            "size",
            "data",
            "time",
            "Gelem/s",
            "GB/s",
            "of the limit",
            "in cache, Gelem/s",
            "fastest peer",
            "vs it",
        ]
    ]
    for row in report["rows"]:
        fastest = row["fastest_peer"]
        cells.append(
            [
                *_about(row),
                _data(row, report),
                _time(row["seconds"]),
                _number(row["gelem_per_second"], row["problem"]),
                _number(row.get("gigabytes_per_second"), None, spread_too=False),
                _share(row),
                _number(row["in_cache_gelem_per_second"], None, spread_too=False),
                fastest or _NONE,
                _ratio(row, fastest, report) if fastest else _NONE,
            ]
        )
    return "Ours against the peers and the limits", cells


def _ratios(report: dict[str, Any]) -> Table:
    """A column for each backend that was measured somewhere."""
    measured = [
        name for name in report["backends"] if any(name in row["ratios"] for row in report["rows"])
    ]
    names = [*measured, OURS.entry]
    cells = [["work", "dtype", "size", *(f"vs {name}" for name in names)]]
    for row in report["rows"]:
        cells.append([*_about(row), *(_ratio(row, name, report) for name in names)])
    return "Ours over each backend", cells


def _aims(report: dict[str, Any]) -> Table:
    cells = [["work", "dtype", "size", "aim", "found", "holds"]]
    for row in report["rows"]:
        cells += [[*_about(row), aim["text"], *_aim_cells(aim)] for aim in row["aims"]]
    return "Aims", cells


def _limits(report: dict[str, Any]) -> Table:
    cells = [["limit", "measured beside", "Gelem/s", "p20..p80"]]
    for group in report["groups"]:
        for name, entry in group["entries"].items():
            if " limit" not in name:
                continue
            figure = None
            if entry["seconds"]:
                figure = spread(entry["elements"] / np.array(entry["seconds"]) / 1e9)
            cells.append(
                [
                    name,
                    group["name"],
                    f"{figure['median']:.2f}" if figure else entry["problem"] or _NONE,
                    f"{figure['p20']:.2f}..{figure['p80']:.2f}" if figure else _NONE,
                ]
            )
    return _LIMITS, cells


def _forms(report: dict[str, Any]) -> Table:
    cells = [["peer", "measured in", "form", "first call, s", "other forms"]]
    for group in report["groups"]:
        for name, entry in group["entries"].items():
            if name in report["backends"] and entry.get("form"):
                cells.append([name, group["name"], *_form_cells(entry)])
    return _FORMS, cells


def _accuracy(report: dict[str, Any]) -> Table:
    cells = [["backend", "version", "dtype", *_ULP, "mean, relative", "mean, float32 ulp", ""]]
    for entry in report.get("accuracy") or []:
        mean = entry["mean_error"]
        cells.append(
            [
                entry["backend"],
                entry["version"] or _NONE,
                entry["dtype"],
                *(
                    f"{float(entry[key][t]):.3g}" if entry[key] else _NONE
                    for key in ("loss_ulp", "gradient_ulp")
                    for t in ("0", "1")
                ),
                f"{float(mean['relative']):.1e}" if mean else _NONE,
                f"{float(mean['float32_ulp']):.3g}" if mean else _NONE,
                _reason(entry["problem"]) if entry["problem"] else "",
            ]
        )
    return "Largest errors of an element, in ulp, and error of the mean", cells


_ULP = ("loss, t = 0", "loss, t = 1", "gradient, t = 0", "gradient, t = 1")


def _scaling(report: dict[str, Any]) -> Table:
    """A line per backend, work and size, and per limit; a column per number of threads."""
    entries = [entry for entry in report.get("scaling") or [] if entry["gelem_per_second"]]
    counts = sorted({entry["threads"] for entry in entries})
    lines: dict[tuple[Any, ...], dict[int, float]] = {}
    limits: dict[tuple[Any, ...], dict[int, float]] = {}
    for entry in entries:
        about = entry["work"], size_name(entry["elements"])
        line = lines.setdefault((entry["backend"], *about), {})
        line[entry["threads"]] = entry["gelem_per_second"]["median"]
        if entry["limit_gelem_per_second"]:
            limit = limits.setdefault(("the limit", *about), {})
            limit[entry["threads"]] = entry["limit_gelem_per_second"]["median"]
    last = counts[-1] if counts else 1
    cells = [["backend", "work", "size", *(f"{n}: Gelem/s" for n in counts), f"{last} over 1"]]
    for key, rates in (lines | limits).items():
        gain = f"{rates[last] / rates[1]:.2f}x" if {1, last} <= set(rates) else _NONE
        figures = (f"{rates[n]:.3g}" if n in rates else _NONE for n in counts)
        cells.append([*key, *figures, gain])
    return "Threads", cells


def _memory(report: dict[str, Any]) -> Table:
    cells = [["backend", "work", "dtype", "size", "peak beyond arrays", "bytes per element"]]
    for entry in report.get("memory") or []:
        if entry["extra_bytes"] is None:
            continue
        cells.append(
            [
                entry["backend"],
                entry["work"],
                entry["dtype"],
                size_name(entry["elements"]),
                f"{entry['extra_bytes'] / 2**20:.1f} MiB",
                f"{entry['bytes_per_element']:.1f}",
            ]
        )
    return "Memory beyond the inputs and the returned gradient", cells


def not_installed(report: dict[str, Any]) -> dict[str, str]:
    """Backends of which nothing was measured, and why."""
    return {
        name: about["problem"] for name, about in report["backends"].items() if about["problem"]
    }


def not_able(report: dict[str, Any]) -> dict[tuple[str, str], list[str]]:
    """By entry and reason, the groups in which an entry has no figure though it is there."""
    missing = not_installed(report)
    found: dict[tuple[str, str], list[str]] = {}
    for group in report["groups"]:
        for name, entry in group["entries"].items():
            if entry["problem"] and name not in missing:
                found.setdefault((name, entry["problem"]), []).append(group["name"])
    return found


def _not_measured(report: dict[str, Any]) -> Table:
    cells = [["not measured", "where", "why"]]
    cells += [
        [name, "everything", _reason(problem)] for name, problem in not_installed(report).items()
    ]
    by_reason: dict[tuple[str, str], list[str]] = {}
    # Reasons that differ in a figure or a detail alone become one line.
    for (name, problem), groups in not_able(report).items():
        by_reason.setdefault((name, _reason(problem)), []).extend(groups)
    for (name, reason), groups in by_reason.items():
        cells.append([name, _few(groups, len(report["groups"])), reason])
    # Of accuracy the table itself says so.
    for where in ("scaling", "memory"):
        lines: dict[tuple[str, str], None] = {}
        for entry in report.get(where) or []:
            if entry["problem"] and entry["backend"] not in not_installed(report):
                lines[entry["backend"], _reason(entry["problem"])] = None
        cells += [[name, where, reason] for name, reason in lines]
    return "Not measured", cells


def _few(names: list[str], total: int) -> str:
    if len(names) == total:
        return "everything"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _reason(problem: str) -> str:
    text = " ".join(problem.split())
    return text if len(text) <= 100 else text[:97] + "..."


def remarks(report: dict[str, Any]) -> list[str]:
    """Sentences that belong beside the tables."""
    machine, settings = report["machine"], report["settings"]
    cache = machine["last_level_cache_bytes"]
    lines = [
        f"{machine['cpu']}, {settings['threads']} threads on CPUs {machine['cpus_used']}, "
        f"last-level cache {_size(cache)}, memory {_size(machine['memory_bytes'])}, "
        f"{report['date']}.",
        f"{settings['rounds']} rounds at most; medians of per-round ratios, p20..p80 in "
        "parentheses. "
        "Gelem/s are for information: machines drift, ratios of one round do not.",
        f"Ours {report['ours']['version']}; "
        + "; ".join(
            f"{name}: {about['version'] or about['problem']}"
            for name, about in report["backends"].items()
        )
        + f"; limits: {report['limits']['compiler'] or report['limits']['problem']}.",
    ]
    lines.append(
        "GB/s: the caller's arrays, each read once or written once. Of the limit: our rate over "
        "that of a loop which only moves these bytes."
    )
    lines.append(
        "Data: bytes of the arrays that a call reads and writes; from memory where they exceed the "
        "last-level cache, else from cache, where repeated calls find them."
    )
    if any(group["reduced"] for group in report["groups"]):
        lines.append("Some sizes are smaller than planned; the aims are not judged there.")
    lines.append(_about_gpus(machine.get("gpus")))
    load = machine["load_before"]
    if load is not None and load > 0.5:
        lines.append(
            f"The machine was not idle before the run (load {load:.2f}): do not trust this."
        )
    lines += [f"FAILED {failure}" for failure in report["failures"]]
    return lines


def _about_gpus(gpus: list[str] | None) -> str:
    """None: a report of before this was recorded."""
    here = ""
    if gpus is not None:
        here = f" Here: {', '.join(gpus)}." if gpus else " None is here."
    return f"On a GPU, ours and its peers are measured by `python -m bench.gpu`.{here}"


def terminal(report: dict[str, Any]) -> str:
    """The report as text."""
    parts = []
    for title, cells in tables(report):
        widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in cells
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        parts.append("\n".join([title, "", *lines]))
    return "\n\n".join([*parts, "\n".join(remarks(report))])


def markdown(report: dict[str, Any]) -> str:
    """All tables but the limits and the forms, and the remarks."""
    parts = []
    for title, cells in tables(report):
        if title in (_LIMITS, _FORMS):
            continue
        parts.append(f"### {title}")
        lines = [
            "| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in cells
        ]
        lines.insert(1, "|" + " --- |" * len(cells[0]))
        parts.append("\n".join(lines))
    parts.append("\n".join(f"- {remark}" for remark in remarks(report)))
    return "\n\n".join(parts) + "\n"


def _work(row: dict[str, Any]) -> str:
    text = row["work"]
    if row["gradient"] == "fresh":
        text += f", {'losses' if text == 'elementwise' else 'gradient'} freshly allocated"
    for key in ("option", "variant_option"):
        if row.get(key):
            text += f", {row[key]}"
    return str(text + row["entry"].removeprefix("ours"))


def _time(figure: dict[str, float] | None) -> str:
    if figure is None:
        return _NONE
    seconds = figure["median"]
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.2f} us"


def _number(
    figure: dict[str, float] | None, problem: str | None, *, spread_too: bool = True
) -> str:
    if figure is None:
        return _short(problem) if problem else _NONE
    text = f"{figure['median']:.3g}"
    return text + f" ({figure['p20']:.3g}..{figure['p80']:.3g})" if spread_too else text


def _ratio(row: dict[str, Any], name: str, report: dict[str, Any]) -> str:
    figure = row["ratios"].get(name)
    if figure is None:
        problem = _group(report, row)["entries"].get(name, {}).get("problem")
        return _short(problem) if problem else _NONE
    digits = 2 if figure["median"] < 10 else 1
    text = (
        f"{figure['median']:.{digits}f}x ({figure['p20']:.{digits}f}..{figure['p80']:.{digits}f})"
    )
    return text + " fastest" if name == row["fastest_peer"] else text


def _short(problem: str) -> str:
    """Without the reason, which the last table has."""
    return re.split(r"[:(]", problem)[0].strip()


def _share(row: dict[str, Any]) -> str:
    figure = row["limits"].get(row["limit"])
    if figure is None:
        return _NONE
    return f"{figure['median']:.0%} ({figure['p20']:.0%}..{figure['p80']:.0%})"


def _aim_cells(aim: dict[str, Any]) -> list[str]:
    value = aim["value"]
    if value is None:
        return ["not measured", "not judged"]
    found = f"{value:.0%}" if aim["other"] == LIMIT else f"{value:.2f}x"
    return [found, {True: "yes", False: "no", None: "not judged"}[aim["holds"]]]


def _data(row: dict[str, Any], report: dict[str, Any]) -> str:
    size = _size(row["elements"] * row["bytes_per_element"])
    fits = _group(report, row)["working_set_fits_in_cache"]
    return size if fits is None else f"{size}, {'cache' if fits else 'memory'}"


def _group(report: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    group: dict[str, Any] = next(g for g in report["groups"] if g["name"] == row["group"])
    return group


def _form_cells(entry: dict[str, Any]) -> list[str]:
    forms = dict(entry["forms"])
    chosen = forms.pop(entry["form"])
    first = chosen.get("first_call_seconds")
    others = []
    for label, figures in forms.items():
        if "trial_seconds" in figures:
            slower = figures["trial_seconds"] / chosen["trial_seconds"]
            others.append(f"{label}: {slower:.2f}x the time")
    return [
        entry["form"],
        f"{first:.2f}" if first is not None else _NONE,
        "; ".join(others) or _NONE,
    ]


def _size(count: int | None) -> str:
    if count is None:
        return "unknown"
    unit, scale = next(
        (unit, scale)
        for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("B", 1))
        if count >= scale or scale == 1
    )
    return f"{count / scale:.3g} {unit}"
