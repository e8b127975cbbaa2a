"""Two reports of the benchmark side by side.

    python -m bench compare A.json B.json [--json FILE] [--fail-on-slower]

Prints B's throughput over A's for each row that both have, and how the ratios to the peers changed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NoReturn

RULE = (
    "A difference exceeds the noise where the ranges p20..p80 of the rounds of both files do not "
    "overlap."
)
_HARDWARE = ("cpu", "architecture", "cpus_online", "last_level_cache_bytes", "memory_bytes")
_SURROUNDINGS = ("system", "python", "transparent_hugepages")
_SETTINGS = ("threads", "rounds")

Report = dict[str, Any]
Spread = dict[str, float]


class NotAReport(ValueError):
    """The file holds something else. The message says what."""


def read(path: Path) -> Report:
    """A report of `python -m bench --json`, of schema 1 or 2.

    Raises NotAReport, and OSError where the file cannot be read.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise NotAReport(f"{path}: not JSON ({error})") from error
    if not isinstance(report, dict) or report.get("schema") not in (1, 2):
        found = report.get("schema") if isinstance(report, dict) else type(report).__name__
        raise NotAReport(f"{path}: not a report of the benchmark (schema: {found!r})")
    missing = {"rows", "groups", "machine", "settings", "backends"} - set(report)
    if missing:
        raise NotAReport(f"{path}: no report of the benchmark on a CPU ({sorted(missing)} missing)")
    return report


def compare(a: Report, b: Report) -> Report:
    """What the command prints, as a dict (bench/README.md describes it)."""
    rows_a, rows_b = _rows(a), _rows(b)
    common = [name for name in rows_a if name in rows_b]
    return {
        "rule": RULE,
        "a": _about(a),
        "b": _about(b),
        "machines_differ": _differences(a["machine"], b["machine"], _HARDWARE),
        "surroundings_differ": {
            **_differences(a["machine"], b["machine"], _SURROUNDINGS),
            **_differences(a["settings"], b["settings"], _SETTINGS),
            **_differences(_versions(a), _versions(b)),
        },
        "rows": [_row(rows_a[name], rows_b[name]) for name in common],
        "only_in_a": [name for name in rows_a if name not in rows_b],
        "only_in_b": [name for name in rows_b if name not in rows_a],
    }


def change(a: Spread, b: Spread) -> dict[str, Any]:
    """The ratio of the medians, B over A, and whether it exceeds the noise: see RULE.

    verdict: "higher", "lower" or "within the noise".
    """
    verdict = "within the noise"
    if b["p20"] > a["p80"]:
        verdict = "higher"
    elif b["p80"] < a["p20"]:
        verdict = "lower"
    return {"a": a, "b": b, "ratio": b["median"] / a["median"], "verdict": verdict}


def _row(a: Report, b: Report) -> Report:
    problem = a["problem"] or b["problem"]
    throughput = None
    if a["gelem_per_second"] and b["gelem_per_second"]:
        throughput = change(a["gelem_per_second"], b["gelem_per_second"])
    elif not problem:
        problem = "not measured"
    return {
        "name": a["name"],
        "problem": problem,
        "throughput": throughput,
        "ratios": {
            name: change(a["ratios"][name], b["ratios"][name])
            for name in a["ratios"]
            if name in b["ratios"]
        },
    }


def _rows(report: Report) -> dict[str, Report]:
    return {row["name"]: row for row in report["rows"]}


def _about(report: Report) -> Report:
    return {
        "date": report["date"],
        "machine": report["machine"]["cpu"],
        "version": report["ours"]["version"],
        "profile": report.get("profile"),
    }


def _versions(report: Report) -> dict[str, Any]:
    return {
        "sigmoid_ce": report["ours"]["version"],
        "isa": report["ours"]["info"].get("isa"),
        "compiler": report["ours"]["info"].get("compiler"),
        **{name: about["version"] for name, about in report["backends"].items()},
    }


def _differences(
    a: dict[str, Any], b: dict[str, Any], keys: tuple[str, ...] | None = None
) -> dict[str, list[Any]]:
    names = list(dict.fromkeys([*a, *b])) if keys is None else keys
    return {name: [a.get(name), b.get(name)] for name in names if a.get(name) != b.get(name)}


# ---- As text ----


def text(found: Report, name_a: str = "A", name_b: str = "B") -> str:
    """The comparison as a table and remarks."""
    peers = list(dict.fromkeys(name for row in found["rows"] for name in row["ratios"]))
    lines = [["row", "A, Gelem/s", "B, Gelem/s", "B / A", "", *(f"vs {name}" for name in peers)]]
    for row in found["rows"]:
        throughput = row["throughput"]
        if throughput is None:
            cells = ["-", "-", "-", _short(row["problem"])]
        else:
            cells = [
                _range(throughput["a"]),
                _range(throughput["b"]),
                f"{throughput['ratio']:.3f}x",
                {"higher": "FASTER", "lower": "SLOWER"}.get(throughput["verdict"], "noise"),
            ]
        lines.append([row["name"], *cells, *(_peer(row["ratios"].get(name)) for name in peers)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    table.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*table, "", *_remarks(found, name_a, name_b)])


def _remarks(found: Report, name_a: str, name_b: str) -> list[str]:
    lines = [
        f"{letter}: {name}, {about['date'][:10]}, {about['machine']}, "
        f"version {about['version']}"
        + (f", {about['profile']} profile" if about["profile"] else "")
        for letter, name, about in (("A", name_a, found["a"]), ("B", name_b, found["b"]))
    ]
    verdicts = [row["throughput"]["verdict"] for row in found["rows"] if row["throughput"]]
    lines.append(
        f"{len(verdicts)} rows: {verdicts.count('higher')} faster, {verdicts.count('lower')} "
        f"slower, {verdicts.count('within the noise')} within the noise. {found['rule']}"
    )
    lines.append(
        "vs: ours over that backend, in A and in B; + or - where that changed beyond the noise. It "
        "is taken round by round, so it moves less than the throughput when a machine drifts."
    )
    if found["machines_differ"]:
        lines.append(
            "The machines differ, so throughputs do too: " + _listed(found["machines_differ"])
        )
    if found["surroundings_differ"]:
        lines.append("Also different: " + _listed(found["surroundings_differ"]))
    for letter, key in (("A", "only_in_a"), ("B", "only_in_b")):
        lines += [f"Only in {letter}: {name}" for name in found[key]]
    if not found["rows"]:
        lines.append("The files have no row in common.")
    return lines


def _range(figure: Spread) -> str:
    return f"{figure['median']:.3g} ({figure['p20']:.3g}..{figure['p80']:.3g})"


def _peer(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return "-"
    mark = {"higher": " +", "lower": " -"}.get(figure["verdict"], "")
    return f"{figure['a']['median']:.2f}x, {figure['b']['median']:.2f}x{mark}"


def _listed(differences: dict[str, list[Any]]) -> str:
    return "; ".join(f"{name}: {a} and {b}" for name, (a, b) in differences.items()) + "."


def _short(problem: str | None) -> str:
    return (problem or "not measured").splitlines()[0][:60]


# ---- The command ----


def main(arguments: list[str] | None = None, prog: str = "python -m bench compare") -> int:
    """Compares. Returns 0, 1 where --fail-on-slower finds a slower row, 2 for a wrong file."""
    parser = _Parser(prog=prog, description="Compares two reports of the benchmark.", epilog=RULE)
    parser.add_argument("a", type=Path, metavar="A.json", help="the earlier report, or the base")
    parser.add_argument("b", type=Path, metavar="B.json", help="the later one")
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="write the comparison as JSON ('-': to stdout, instead of the table)",
    )
    parser.add_argument(
        "--fail-on-slower",
        action="store_true",
        help="exit status 1 where B's throughput is lower than A's beyond the noise",
    )
    options = parser.parse_args(arguments)
    try:
        found = compare(read(options.a), read(options.b))
        as_json = json.dumps(found, indent=1)
        if options.json and options.json != "-":
            Path(options.json).write_text(as_json + "\n", encoding="utf-8")
    except NotAReport as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}")
    print(as_json if options.json == "-" else text(found, str(options.a), str(options.b)))
    slower = any(
        row["throughput"] and row["throughput"]["verdict"] == "lower" for row in found["rows"]
    )
    return 1 if options.fail_on_slower and slower else 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"Error: {message} ('{self.prog} --help' shows the usage)\n")


if __name__ == "__main__":
    sys.exit(main())
