"""The command line: `python -m bench --help`."""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from . import machine, plan

if TYPE_CHECKING:
    from .backends import Missing
    from .backends.base import Backend

# The peers are imported once the number of threads is fixed: some read it when they are loaded.

# What is worked out after the groups: keys of the report and modules of this package.
_FIGURES = ("accuracy", "scaling", "memory")


def main(arguments: list[str] | None = None, prog: str = "python -m bench") -> int:
    """Measures and reports. Returns 1 when a result was wrong or something failed to run."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["compare"]:
        from . import compare

        return compare.main(arguments[1:], prog=f"{prog} compare")
    options = _parse(arguments, prog)
    groups = plan.plan(options.profile, options.threads)
    groups = plan.chosen(plan.reduced(groups, options.max_elements), options.only)
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
        try:
            report = _run(groups, cpus, options)
        except KeyboardInterrupt:
            print(_interrupted(options.json), file=sys.stderr)
            return 130

    from .report import markdown, terminal

    print(_text(report) if options.json == Path("-") else terminal(report) + "\n", end="")
    if options.markdown:
        options.markdown.write_text(markdown(report))
    if options.plots:
        from . import plots

        try:
            plots.write(report, options.plots)
        except ImportError as error:
            print(f"--plots: {error}", file=sys.stderr)
            return 1
    return 1 if report["failures"] else 0


def _interrupted(path: Path | None) -> str:
    saved = path is not None and path.is_file()
    return "\nInterrupted." + (f" {path} has what was measured before." if saved else "")


def _run(groups: list[plan.Group], cpus: list[int], options: argparse.Namespace) -> dict[str, Any]:
    try:
        import sigmoid_ce
    except ImportError as error:
        sys.exit(f"{error}\nThe package is not installed: pip install .")
    from .backends import PEERS, Missing, load
    from .backends.ours import Ours
    from .backends.remote import RemoteBackend
    from .limits import Limits, LimitsUnavailable
    from .measure import CallTimes, measure_group, not_measured
    from .report import SCHEMA, group_report, row_reports

    start = time.monotonic()
    facts = machine.facts(cpus)
    cache_bytes = machine.last_level_cache_bytes(cpus[0])
    ours = Ours(options.threads)
    sigmoid_ce.set_num_threads(options.threads)
    peers: dict[str, Backend | Missing] = {}
    progress = _Progress(len(groups), options.figures)
    for name in PEERS:
        progress.show(f"loading {name}")
        peers[name] = (
            load(name, options.threads)
            if name in options.backends
            else Missing("left out (--backends)")
        )
    limits: Limits | LimitsUnavailable
    try:
        limits = Limits(cpus)
    except LimitsUnavailable as error:
        limits = error
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "profile": options.profile,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": facts,
        "settings": {
            "threads": options.threads,
            "rounds": options.rounds,
            "quick": options.profile == "quick",
            "only": options.only,
            "max_elements": options.max_elements,
            "call_seconds": _finite(options.call_seconds),
            "seconds": _finite(options.seconds),
            "backends": options.chosen_backends,
            "figures": options.figures_wanted,
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
        "complete": False,
        "groups": [],
        "rows": [],
        "failures": [],
        **dict.fromkeys(_FIGURES),
        "duration_seconds": {},
    }
    seconds = {"loading": time.monotonic() - start, "compiling": 0.0}
    gc.collect()
    gc.freeze()  # what the peers have loaded: each group collects, which takes long with it
    call_times = CallTimes()
    start = time.monotonic()
    for group in groups:
        progress.start(group.case.name)
        if time.monotonic() - start - seconds["compiling"] > options.seconds:
            problem = f"not measured (the profile's {options.seconds:g} s were over)"
            entries = not_measured(group, peers, limits, problem)
        else:
            entries = measure_group(
                group,
                ours,
                peers,
                limits,
                min(options.rounds, group.rounds or options.rounds),
                all_forms=options.all_forms and group.all_forms,
                call_seconds=options.call_seconds,
                remote_elements=plan.PROFILES[options.profile].remote_elements,
                measurement_seconds=plan.PROFILES[options.profile].measurement_seconds,
                call_times=call_times,
                progress=progress.show,
            )
        report["groups"].append(group_report(group, entries, cache_bytes))
        report["rows"] += row_reports(group, entries)
        report["failures"] += [
            f"{group.case.name}: {entry.name}: {entry.problem}"
            for entry in entries.values()
            if entry.failed
        ]
        seconds["compiling"] += sum(entry.compiling_seconds for entry in entries.values())
        _save(report, options.json)
    seconds["measuring"] = time.monotonic() - start - seconds["compiling"]
    for peer in peers.values():
        if isinstance(peer, RemoteBackend):
            peer.close()
    for name in _FIGURES:
        start = time.monotonic()
        if name in options.figures:
            progress.start(name)
            module = importlib.import_module(f".{name}", __package__)
            report[name] = module.report(
                options.profile, options.threads, progress.show, backends=options.backends
            )
            compiling = sum(entry.get("compiling_seconds", 0.0) for entry in report[name])
            seconds["compiling"] += compiling
            seconds[name] = time.monotonic() - start - compiling
            _save(report, options.json)
    report["complete"] = True
    report["duration_seconds"] = {name: round(value, 1) for name, value in seconds.items()}
    progress.end()
    _save(report, options.json)
    return report


def _save(report: dict[str, Any], path: Path | None) -> None:
    """What there is, should the run be ended. The file is never there in part."""
    if path is None or path == Path("-"):
        return
    text = _text(report)
    if path.exists() and not path.is_file():  # such as /dev/stdout: it gets the whole alone
        if report["complete"]:
            path.write_text(text)
        return
    path = path.resolve()  # where it is a link, that stays
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        partial.write_text(text)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _text(report: dict[str, Any]) -> str:
    return json.dumps(report, indent=1) + "\n"


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None


class _Progress:
    """A bar on a terminal, written over; elsewhere a line per group. On stderr."""

    def __init__(self, groups: int, figures: Sequence[str]) -> None:
        self._steps = groups + len(figures)
        self._done = 0
        self._name = ""
        self._terminal = sys.stderr.isatty()
        self._bar = click.progressbar(
            length=self._steps,
            file=sys.stderr,
            label="benchmark",
            item_show_func=lambda text: text,
            show_eta=False,
            show_percent=False,
            show_pos=True,
            width=24,
        )

    def start(self, name: str) -> None:
        """The next step begins."""
        self._name = name
        self._done += 1
        if not self._terminal:
            print(f"{self._done} of {self._steps}  {name}", file=sys.stderr, flush=True)
        elif self._done > 1:
            self._bar.update(1)

    def show(self, text: str) -> None:
        """What the step does now."""
        if self._terminal:
            self._bar.update(0, "  ".join(part for part in (self._name, text) if part))
            # It draws when a step is done, and not in between.
            self._bar.render_progress()

    def end(self) -> None:
        if self._terminal:
            self._bar.update(1)
            self._bar.render_finish()


def _parse(arguments: list[str], prog: str) -> argparse.Namespace:
    from .backends import PEERS

    parser = _Parser(
        prog=prog,
        description="Measures this project beside its peers and the limits.",
        epilog=f"'{prog} compare A.json B.json' compares two results.",
    )
    group = parser.add_mutually_exclusive_group()
    for name, text in (
        ("quick", "does it all work? small arrays, one form per peer; under 3 minutes"),
        ("default", "under 10 minutes; this is what happens without an option"),
        ("family", "what the options for unbalanced and dense targets cost, at 2^24; minutes"),
        ("full", "each size, options in float64 too, all passes of each, and what is slow"),
    ):
        group.add_argument(f"--{name}", dest="profile", action="store_const", const=name, help=text)
    parser.set_defaults(profile="default")
    parser.add_argument(
        "--rounds",
        type=_positive,
        help="measurements of each entry, at most "
        f"({', '.join(f'{name}: {one.rounds}' for name, one in plan.PROFILES.items())})",
    )
    parser.add_argument("--threads", type=_positive, default=2, help="for everything (2)")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name holds TEXT")
    parser.add_argument("--list", action="store_true", help="print the rows' names and stop")
    parser.add_argument(
        "--max-elements", type=_positive, metavar="N", help="no array larger than this"
    )
    parser.add_argument(
        "--backends",
        type=lambda text: [name for name in text.split(",") if name],
        metavar="A,B",
        help=f"peers to measure ({','.join(PEERS)})",
    )
    parser.add_argument(
        "--no-figures",
        dest="figures",
        action="store_const",
        const=(),
        default=_FIGURES,
        help=f"leave out {', '.join(_FIGURES)}; as --only does",
    )
    parser.add_argument(
        "--json",
        type=_file,
        metavar="FILE",
        help="write all figures ('-': to stdout, instead of the table)",
    )
    parser.add_argument("--markdown", type=_file, metavar="FILE", help="write the table")
    parser.add_argument(
        "--plots", type=Path, metavar="FOLDER", help="draw pictures (SVG, PNG; by matplotlib)"
    )
    options = parser.parse_args(arguments)
    profile = plan.PROFILES[options.profile]
    # As they were given: results of a part of a profile are known by them.
    options.chosen_backends = options.backends
    options.figures_wanted = bool(options.figures)
    if options.backends is None:
        options.backends = list(profile.backends or PEERS)
    unknown = set(options.backends) - set(PEERS)
    if unknown:
        parser.error(f"--backends: {sorted(unknown)} are none of {', '.join(PEERS)}")
    if options.only or not profile.figures:
        options.figures = ()
    options.rounds = options.rounds or profile.rounds
    options.max_elements = options.max_elements or profile.max_elements
    options.all_forms = profile.all_forms
    options.call_seconds = profile.call_seconds
    options.seconds = profile.seconds
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
