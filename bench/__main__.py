"""The command line: `python -m bench --help`."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

from . import machine, plan

# The peers are imported once the number of threads is fixed: some read it when they are loaded.

_QUICK_ROUNDS = 5
_QUICK_ELEMENTS = 2**16


def main(arguments: list[str] | None = None, prog: str = "python -m bench") -> int:
    """Measures and reports. Returns 1 when a result was wrong or something failed to run."""
    options = _parse(arguments, prog)
    groups = plan.reduced(plan.plan(), options.max_elements)
    groups = plan.chosen(groups, options.only)
    if not groups:
        print(f"--only {options.only!r} matches no row; --list shows them", file=sys.stderr)
        return 2
    if options.list:
        for group in groups:
            print(*(plan.row_name(group.case, row.variant) for row in group.rows), sep="\n")
        return 0
    try:
        cpus = machine.restrict_to_cpus(options.threads)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    # Else compile times would depend on what was compiled before, on another day.
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", folder)
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
        report = _run(groups, cpus, options)

    from .report import markdown, terminal

    text = json.dumps(report, indent=1) + "\n"
    if options.json == Path("-"):
        print(text, end="")
    else:
        print(terminal(report))
        if options.json:
            options.json.write_text(text)
    if options.markdown:
        options.markdown.write_text(markdown(report))
    return 1 if report["failures"] else 0


def _run(groups: list[plan.Group], cpus: list[int], options: argparse.Namespace) -> dict[str, Any]:
    try:
        import sigmoid_ce
    except ImportError as error:
        sys.exit(f"{error}\nThe package is not installed: pip install .")
    from .backends import PEERS, Missing, load
    from .backends.ours import Ours
    from .limits import Limits, LimitsUnavailable
    from .measure import measure_group
    from .report import SCHEMA, group_report, row_reports

    facts = machine.facts(cpus)
    cache_bytes = machine.last_level_cache_bytes(cpus[0])
    ours = Ours(options.threads)
    sigmoid_ce.set_num_threads(options.threads)
    peers = {
        name: load(name, options.threads)
        if name in options.backends
        else Missing("left out (--backends)")
        for name in PEERS
    }
    limits: Limits | LimitsUnavailable
    try:
        limits = Limits(cpus)
    except LimitsUnavailable as error:
        limits = error
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": facts,
        "settings": {
            "threads": options.threads,
            "rounds": options.rounds,
            "quick": options.quick,
            "only": options.only,
        },
        "ours": {"version": ours.version, "info": sigmoid_ce.info()},
        "backends": {
            name: {"version": None, "problem": peer.reason}
            if isinstance(peer, Missing)
            else {"version": peer.version, "problem": None}
            for name, peer in peers.items()
        },
        "limits": {"compiler": None, "problem": str(limits)}
        if isinstance(limits, LimitsUnavailable)
        else {"compiler": limits.compiler, "problem": None},
        "groups": [],
        "rows": [],
        "failures": [],
    }
    progress = _Progress(len(groups))
    for group in groups:
        progress.start(group.case.name)
        entries = measure_group(
            group,
            ours,
            peers,
            limits,
            options.rounds,
            all_forms=not options.quick,
            progress=progress.show,
        )
        report["groups"].append(group_report(group, entries, cache_bytes))
        report["rows"] += row_reports(group, entries)
        report["failures"] += [
            f"{group.case.name}: {entry.name}: {entry.problem}"
            for entry in entries.values()
            if entry.failed
        ]
    progress.end()
    return report


class _Progress:
    """One line on a terminal that is written over; elsewhere a line per group. On stderr."""

    def __init__(self, groups: int) -> None:
        self._groups = groups
        self._index = 0
        self._name = ""
        self._start = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def start(self, name: str) -> None:
        self._index += 1
        self._name = name
        if not self._terminal:
            print(self._line(""), file=sys.stderr, flush=True)

    def show(self, text: str) -> None:
        if self._terminal:
            print(f"\r\x1b[K{self._line(text)}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _line(self, text: str) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        parts = [f"{minutes}:{seconds:02}", f"{self._index} of {self._groups}", self._name, text]
        return "  ".join(part for part in parts if part)


def _parse(arguments: list[str] | None, prog: str) -> argparse.Namespace:
    from .backends import PEERS

    parser = _Parser(
        prog=prog, description="Measures this project beside its peers and the limits."
    )
    parser.add_argument("--rounds", type=_positive, help="measurements of each entry (25)")
    parser.add_argument("--threads", type=_positive, default=2, help="for everything (2)")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name holds TEXT")
    parser.add_argument("--list", action="store_true", help="print the rows' names and stop")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"does it all work? {_QUICK_ROUNDS} rounds, small sizes, one form per peer",
    )
    parser.add_argument(
        "--max-elements", type=_positive, metavar="N", help="no array larger than this"
    )
    parser.add_argument(
        "--backends",
        type=lambda text: [name for name in text.split(",") if name],
        default=list(PEERS),
        metavar="A,B",
        help=f"peers to measure ({','.join(PEERS)})",
    )
    parser.add_argument(
        "--json",
        type=_file,
        metavar="FILE",
        help="write all figures ('-': to stdout, instead of the table)",
    )
    parser.add_argument("--markdown", type=_file, metavar="FILE", help="write the table")
    options = parser.parse_args(arguments)
    unknown = set(options.backends) - set(PEERS)
    if unknown:
        parser.error(f"--backends: {sorted(unknown)} are none of {', '.join(PEERS)}")
    options.rounds = options.rounds or (_QUICK_ROUNDS if options.quick else 25)
    options.max_elements = options.max_elements or (_QUICK_ELEMENTS if options.quick else 2**62)
    return options


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"Error: {message} ('{self.prog} --help' shows the usage)\n")


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text!r}")
    return value


def _file(text: str) -> Path:
    """Refuses at once what would be refused when all is measured."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"expected the name of a file, got {text!r}")
    return path


if __name__ == "__main__":
    sys.exit(main())
