"""From measurements to a report: a dict that is written as JSON, and the tables drawn from it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from .backends import PEERS
from .measure import Entry, cache_entry, limit_names
from .plan import (
    FASTEST_PEER,
    LIMIT,
    OURS,
    Aim,
    Case,
    Group,
    Row,
    Variant,
    Work,
    row_name,
    size_name,
)

# Raised when a key of the JSON changes its meaning or goes.
SCHEMA = 1

_NONE = "-"


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


def bytes_per_element(case: Case, variant: Variant) -> int:
    """That the work has to move at least: each array of the caller read once or written once."""
    scores = np.dtype(case.dtype).itemsize
    targets = 1 if variant.targets == "uint8" else scores
    return scores + targets + (0 if case.work is Work.FORWARD else scores)


def _row_report(group: Group, row: Row, entries: dict[str, Entry]) -> dict[str, Any]:
    case, variant = group.case, row.variant
    entry = entries[variant.entry]
    report: dict[str, Any] = {
        "name": row_name(case, variant),
        "group": case.name,
        "entry": entry.name,
        "work": case.work.value,
        "dtype": case.dtype,
        "elements": case.elements,
        "gradient": case.gradient.value or None,
        "targets": variant.targets,
        "isa": variant.isa,
        "bytes_per_element": bytes_per_element(case, variant),
        "problem": entry.problem,
    }
    ratios = {
        name: spread(entry.rates / entries[name].rates)
        for name in [*PEERS, *([OURS.entry] if variant != OURS else [])]
        if entry.seconds and name in entries and entries[name].seconds
    }
    peers = [name for name in ratios if name in PEERS]
    fastest = min(peers, key=lambda name: ratios[name]["median"], default=None)
    shares = {
        name: spread(entry.rates / entries[name].rates)
        for name in limit_names(group, variant)
        if entry.seconds and entries[name].seconds
    }
    binding = min(shares, key=lambda name: shares[name]["median"], default=None)
    cache = entries.get(cache_entry(variant))
    report |= {
        "seconds": spread(np.array(entry.seconds)) if entry.seconds else None,
        "gelem_per_second": spread(entry.rates / 1e9) if entry.seconds else None,
        "ratios": ratios,
        "fastest_peer": fastest,
        "limits": shares,
        "limit": binding,
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


def tables(report: dict[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """Titles and cells; the first line of each table holds its headings."""
    peers = list(report["backends"])
    rows = [
        [
            "work",
            "dtype",
            "size",
            "data",
            "time",
            "Gelem/s",
            *(f"vs {name}" for name in peers),
            "vs ours",
            "of the limit",
            "in cache, Gelem/s",
        ]
    ]
    aims = [["work", "dtype", "size", "aim", "found", "holds"]]
    for row in report["rows"]:
        about = [_work(row), row["dtype"], size_name(row["elements"])]
        aims += [[*about, aim["text"], *_aim_cells(aim)] for aim in row["aims"]]
        rows.append(
            [
                *about,
                _data(row, report),
                _time(row["seconds"]),
                _number(row["gelem_per_second"], row["problem"]),
                *(_ratio(row, name, report) for name in peers),
                _ratio(row, OURS.entry, report),
                _share(row),
                _number(row["in_cache_gelem_per_second"], None, spread_too=False),
            ]
        )
    limits = [["limit", "measured beside", "Gelem/s", "p20..p80"]]
    forms = [["peer", "measured in", "form", "first call, s", "other forms"]]
    for group in report["groups"]:
        for name, entry in group["entries"].items():
            if " limit" in name:
                figure = None
                if entry["seconds"]:
                    figure = spread(entry["elements"] / np.array(entry["seconds"]) / 1e9)
                limits.append(
                    [
                        name,
                        group["name"],
                        f"{figure['median']:.2f}" if figure else entry["problem"],
                        f"{figure['p20']:.2f}..{figure['p80']:.2f}" if figure else _NONE,
                    ]
                )
            elif name in PEERS and entry.get("form"):
                forms.append([name, group["name"], *_form_cells(entry)])
    return [
        ("Ours against the peers and the limits", rows),
        ("Aims", aims),
        ("Limits", limits),
        ("How the peers were called", forms),
    ]


def remarks(report: dict[str, Any]) -> list[str]:
    """Sentences that belong beside the tables."""
    machine, settings = report["machine"], report["settings"]
    cache = machine["last_level_cache_bytes"]
    lines = [
        f"{machine['cpu']}, {settings['threads']} threads on CPUs {machine['cpus_used']}, "
        f"last-level cache {_size(cache)}, memory {_size(machine['memory_bytes'])}, "
        f"{report['date']}.",
        f"{settings['rounds']} rounds; medians of per-round ratios, p20..p80 in parentheses. "
        "Gelem/s are for information: machines drift, ratios of one round do not.",
        f"Ours {report['ours']['version']}; "
        + "; ".join(
            f"{name}: {about['version'] or about['problem']}"
            for name, about in report["backends"].items()
        )
        + f"; limits: {report['limits']['compiler'] or report['limits']['problem']}.",
    ]
    lines.append(
        "Data: bytes of the arrays that a call reads and writes; from memory where they exceed the "
        "last-level cache, else from cache, where repeated calls find them."
    )
    if any(group["reduced"] for group in report["groups"]):
        lines.append("Some sizes are smaller than planned; the aims are not judged there.")
    load = machine["load_before"]
    if load is not None and load > 0.5:
        lines.append(
            f"The machine was not idle before the run (load {load:.2f}): do not trust this."
        )
    lines += [f"FAILED {failure}" for failure in report["failures"]]
    return lines


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
    """The first two tables and the remarks, for a README."""
    parts = []
    for _, cells in tables(report)[:2]:
        lines = ["| " + " | ".join(line) + " |" for line in cells]
        lines.insert(1, "|" + " --- |" * len(cells[0]))
        parts.append("\n".join(lines))
    parts.append("\n".join(f"- {remark}" for remark in remarks(report)))
    return "\n\n".join(parts) + "\n"


def _work(row: dict[str, Any]) -> str:
    text = row["work"]
    if row["gradient"] == "fresh":
        text += ", gradient freshly allocated"
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
        return problem or _NONE
    text = f"{figure['median']:.2f}"
    return text + f" ({figure['p20']:.2f}..{figure['p80']:.2f})" if spread_too else text


def _ratio(row: dict[str, Any], name: str, report: dict[str, Any]) -> str:
    figure = row["ratios"].get(name)
    if figure is None:
        problem = _group(report, row)["entries"].get(name, {}).get("problem")
        return re.split(r"[:(]", problem)[0].strip() if problem else _NONE
    digits = 2 if figure["median"] < 10 else 1
    text = (
        f"{figure['median']:.{digits}f}x ({figure['p20']:.{digits}f}..{figure['p80']:.{digits}f})"
    )
    return text + " fastest" if name == row["fastest_peer"] else text


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
