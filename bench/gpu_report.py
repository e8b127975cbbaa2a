"""From measurements on the GPU to a report: a dict that is written as JSON, and its tables."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from .backends.gpu import PEERS
from .gpu_plan import BEST_COMPILED, COMPILE, OURS, TRITON, GpuGroup
from .measure import Entry
from .plan import LIMIT, Aim, size_name
from .report import spread

# Raised when a key of the JSON changes its meaning or goes.
SCHEMA = 1

_NONE = "-"


def group_report(group: GpuGroup, entries: dict[str, Entry]) -> dict[str, Any]:
    """What was measured in a group: all values, so that other figures can be worked out later."""
    case = group.case
    return {
        "name": case.name,
        "work": case.work.value,
        "dtype": case.dtype,
        "elements": case.elements,
        "targets": case.targets or case.dtype,
        "options": case.options or None,
        "timed": case.timed.value,
        "reduced": group.reduced,
        "loss_weight": case.loss_weight,
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


def row_report(group: GpuGroup, entries: dict[str, Entry]) -> dict[str, Any]:
    """The line of the report for a group."""
    case = group.case
    ours = entries[OURS]
    seconds = np.array(ours.seconds)
    total = case.elements * case.bytes_per_element

    def ratio(name: str | None) -> dict[str, float] | None:
        """Their time over ours, round by round. More is better for us."""
        other = entries.get(name) if name else None
        if other is None or not other.seconds or not ours.seconds:
            return None
        rounds = min(len(other.seconds), len(ours.seconds))
        return spread(np.array(other.seconds[:rounds]) / seconds[:rounds])

    ratios = {name: figure for name in group.peers if (figure := ratio(name))}
    limit = ratio(group.limit)
    compiled = [ratios[name] for name in (COMPILE, TRITON) if name in ratios]
    # Only where both were measured: else a missing peer would make an aim easier.
    best = min(compiled, key=lambda figure: figure["median"]) if len(compiled) == 2 else None
    figures = {**ratios, LIMIT: limit, BEST_COMPILED: best}
    return {
        "name": case.name,
        "group": case.name,
        "entry": OURS,
        "work": case.work.value,
        "dtype": case.dtype,
        "elements": case.elements,
        "targets": case.targets or case.dtype,
        "options": case.options or None,
        "timed": case.timed.value,
        "bytes_per_element": case.bytes_per_element,
        "problem": ours.problem,
        "seconds": spread(seconds) if ours.seconds else None,
        "gigabytes_per_second": spread(total / seconds / 1e9) if ours.seconds else None,
        "ratios": ratios,
        "fastest_peer": min(ratios, key=lambda name: ratios[name]["median"], default=None),
        "limit": group.limit,
        "of_the_limit": limit,
        "aims": [_aim_report(aim, figures.get(aim.other), group) for aim in group.aims],
    }


def _aim_report(aim: Aim, figure: dict[str, float] | None, group: GpuGroup) -> dict[str, Any]:
    value = figure["median"] if figure else None
    return {
        "text": aim.text,
        "factor": aim.factor,
        "other": aim.other,
        "value": value,
        "holds": None if value is None or group.reduced else value >= aim.factor,
    }


def tables(report: dict[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """Titles and cells; the first line of each table holds its headings."""
    head = ["work", "scores", "targets", "elements", "options", "timed by", "time", "GB/s"]
    rows = [[*head, "of the limit", *(f"vs {name}" for name in PEERS)]]
    aims = [["row", "aim", "found", ""]]
    limits = [["limit", "measured beside", "GB/s", "p20..p80", "form"]]
    forms = [["peer", "measured in", "form", "first call, s", "other forms"]]
    for row in report["rows"]:
        rows.append(
            [
                row["work"],
                row["dtype"],
                row["targets"],
                size_name(row["elements"]),
                row["options"] or _NONE,
                row["timed"],
                _time(row["seconds"]) if row["seconds"] else row["problem"] or _NONE,
                _rate(row),
                _share(row["of_the_limit"]),
                *(_ratio(row, name, report) for name in PEERS),
            ]
        )
        aims += [[row["name"], aim["text"], *_aim_cells(aim)] for aim in row["aims"]]
    for group in report["groups"]:
        for name, entry in group["entries"].items():
            if name.endswith(" limit"):
                figure = None
                if entry["seconds"]:
                    figure = spread(entry["bytes"] / np.array(entry["seconds"]) / 1e9)
                limits.append(
                    [
                        name,
                        group["name"],
                        f"{figure['median']:.0f}" if figure else entry["problem"] or _NONE,
                        f"{figure['p20']:.0f}..{figure['p80']:.0f}" if figure else _NONE,
                        entry.get("form", _NONE),
                    ]
                )
            elif name != OURS and entry.get("form"):
                forms.append([name, group["name"], *_form_cells(entry)])
    return [
        ("Ours on the GPU against the peers and the limits", rows),
        ("Aims", aims),
        ("Limits", limits),
        ("How the peers were called", forms),
    ]


def remarks(report: dict[str, Any]) -> list[str]:
    """Sentences that belong beside the tables."""
    device, settings = report["device"], report["settings"]
    versions = "; ".join(
        f"{name}: {about['version'] or about['problem']}"
        for name, about in report["backends"].items()
    )
    lines = [
        f"{device['name']}, driver {device['driver'] or 'unknown'}, CUDA "
        f"{device['torch_cuda'] or 'unknown'} (PyTorch), {device['nvcc'] or 'no'} nvcc, L2 cache "
        f"{device['l2_bytes'] / 2**20:.3g} MiB, {report['date']}.",
        f"{settings['rounds']} rounds; medians of per-round ratios, p20..p80 in parentheses.",
        "Cold cache: calls go in turn over sets of arrays of "
        f"{settings['span_bytes'] / 2**20:.0f} MiB together, {settings['l2_times']} times the L2 "
        "cache or more (of small arrays: no set twice in a measurement), and other data is read "
        "before each measurement.",
        "Timed by events: calls launched directly, queued behind a kernel that waits, so that the "
        "device never waits for the host. By wall clock: calls from Python, which wait for the "
        "device once at the end. Graph replay: calls captured into one CUDA graph.",
        "GB/s count each array of the caller read or written once.",
        f"Ours {report['ours']['version']}; {versions}.",
    ]
    if device["rehearsal"]:
        lines.append("A rehearsal on the CPU: no figure here means anything.")
    if any(group["reduced"] for group in report["groups"]):
        lines.append("Some sizes are smaller than planned; the aims are not judged there.")
    if not report["complete"]:
        lines.append("The run did not come to its end.")
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
    """All tables and the remarks."""
    parts = []
    for title, cells in tables(report):
        lines = ["| " + " | ".join(line) + " |" for line in cells]
        lines.insert(1, "|" + " --- |" * len(cells[0]))
        parts.append("\n".join([f"## {title}", "", *lines]))
    parts.append("\n".join(f"- {remark}" for remark in remarks(report)))
    return "\n\n".join(parts) + "\n"


def _time(figure: dict[str, float]) -> str:
    seconds = figure["median"]
    return f"{seconds * 1e3:.3f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.2f} us"


def _rate(row: dict[str, Any]) -> str:
    figure = row["gigabytes_per_second"]
    return f"{figure['median']:.0f}" if figure else _NONE


def _share(figure: dict[str, float] | None) -> str:
    if figure is None:
        return _NONE
    return f"{figure['median']:.1%} ({figure['p20']:.1%}..{figure['p80']:.1%})"


def _ratio(row: dict[str, Any], name: str, report: dict[str, Any]) -> str:
    figure = row["ratios"].get(name)
    if figure is not None:
        text = f"{figure['median']:.2f}x ({figure['p20']:.2f}..{figure['p80']:.2f})"
        return text + " fastest" if name == row["fastest_peer"] else text
    group = next(g for g in report["groups"] if g["name"] == row["group"])
    problem = group["entries"].get(name, {}).get("problem")
    return re.split(r"[:(]", problem)[0].strip() if problem else _NONE


def _aim_cells(aim: dict[str, Any]) -> list[str]:
    value = aim["value"]
    if value is None:
        return ["not measured", "not judged"]
    found = f"{value:.1%}" if aim["other"] == LIMIT else f"{value:.2f}x"
    return [found, {True: "met", False: "missed", None: "not judged"}[aim["holds"]]]


def _form_cells(entry: dict[str, Any]) -> list[str]:
    forms = dict(entry["forms"])
    chosen = forms.pop(entry["form"])
    first = chosen.get("first_call_seconds")
    others = [
        f"{label}: {figures['trial_seconds'] / chosen['trial_seconds']:.2f}x the time"
        for label, figures in forms.items()
        if "trial_seconds" in figures and "trial_seconds" in chosen
    ]
    return [
        entry["form"],
        f"{first:.2f}" if first is not None else _NONE,
        "; ".join(others) or _NONE,
    ]
