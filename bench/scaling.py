"""Throughput on 1, 2, ... threads, ours and the peers', beside the read limit on as many threads.

Each number of threads is measured in a process of its own, which is kept on so many CPUs before it
loads the peers: the size of some peers' thread pools is fixed then.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from .children import NOT_QUICK, QUICK_PEERS, ChildFailed, run_child, task_of_this_child

Progress = Callable[[str], None]

# Of float32, by profile: from memory, and from cache (1 MiB per array; 256 KiB in the quick one).
_ELEMENTS = {"quick": (2**20, 2**16), "default": (2**24, 2**18), "full": (2**24, 2**18)}
_ROUNDS = {"quick": 3, "default": 3, "full": 15}
_WORKS = {
    "quick": ("forward",),
    "default": ("forward",),
    "full": ("forward", "forward + backward"),
}
# A backend of which one call takes longer, or would by the smaller size, is listed as too slow.
_CALL_SECONDS = 0.2
# Up to this number of threads the full profile takes each, beyond it powers of two.
_EACH = 16


def thread_counts(threads: int, profile: str) -> list[int]:
    """From 1 to `threads`: powers of two and the last; quick: the ends; full: each one up to 16."""
    if profile == "quick":
        return sorted({1, threads})
    powers = {1 << k for k in range(threads.bit_length())}
    each = set(range(1, min(threads, _EACH) + 1)) if profile == "full" else set()
    return sorted(powers | each | {threads})


def report(
    profile: str,
    threads: int,
    progress: Progress | None = None,
    backends: list[str] | None = None,
) -> list[dict[str, Any]]:
    """The entries of "scaling" in the JSON: one per backend, work, size and number of threads.

    profile: "quick", "default" or "full"; backends: peers to measure, all unless given. The quick
    profile has few of them. A process that fails is an entry with a problem.
    """
    from .backends import PEERS

    show = progress or (lambda text: None)
    chosen = [name for name in PEERS if backends is None or name in backends]
    entries: list[dict[str, Any]] = []
    for count in thread_counts(threads, profile):
        show(f"scaling: threads: {count}")
        task = {
            "threads": count,
            "elements": _ELEMENTS[profile],
            "works": _WORKS[profile],
            "rounds": _ROUNDS[profile],
            "backends": chosen,
            "left_out": [name for name in chosen if profile == "quick" and name not in QUICK_PEERS],
        }
        try:
            entries += run_child("scaling", task)
        except ChildFailed as error:
            entries.append(_entry("all", None, None, count, problem=f"failed: {error}"))
    return entries


def worker(task: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries for one number of threads, in a process that has loaded no peer yet."""
    from . import machine

    cpus = machine.restrict_to_cpus(task["threads"])
    from .backends import Missing, load
    from .backends.ours import Ours
    from .limits import Limits, LimitsUnavailable
    from .measure import CallTimes, measure_group
    from .plan import OURS, Case, Gradient, Group, Row, Work

    threads = task["threads"]
    peers: dict[str, Any] = {}
    for name in task["backends"]:
        if name in task["left_out"]:
            peers[name] = Missing(NOT_QUICK)
            continue
        try:
            peers[name] = load(name, threads)
        except Exception as error:  # a peer's failure is listed, and the others go on
            peers[name] = Missing(f"failed: {type(error).__name__}: {error}")
    limits: Limits | LimitsUnavailable
    try:
        limits = Limits(cpus)
    except LimitsUnavailable as error:
        limits = error
    entries = []
    call_times = CallTimes()
    for work in map(Work, task["works"]):
        gradient = Gradient.NONE if work is Work.FORWARD else Gradient.REUSED
        for elements in sorted(task["elements"]):
            case = Case(work, "float32", elements, gradient)
            group = Group(case, (Row(OURS),))
            found = measure_group(
                group,
                Ours(threads),
                peers,
                limits,
                task["rounds"],
                all_forms=False,
                call_seconds=_CALL_SECONDS,
                call_times=call_times,
            )
            limit = _limit(found)
            entries += [
                _entry(
                    name,
                    work.value,
                    elements,
                    threads,
                    rate=_spread(found[name].rates) if found[name].seconds else None,
                    limit=limit,
                    compiling=found[name].compiling_seconds,
                    problem=found[name].problem,
                )
                for name in (OURS.entry, *peers)
                if name in found
            ]
    return entries


def _limit(found: dict[str, Any]) -> dict[str, float] | None:
    """The faster limit, where one was measured."""
    rates = [_spread(entry.rates) for name, entry in found.items() if _is_limit(name, entry)]
    return max(rates, key=lambda rate: rate["median"], default=None)


def _is_limit(name: str, entry: Any) -> bool:
    return " limit" in name and bool(entry.seconds)


def _spread(rates: np.ndarray) -> dict[str, float]:
    from .report import spread

    return spread(rates / 1e9)


def _entry(
    backend: str,
    work: str | None,
    elements: int | None,
    threads: int,
    *,
    rate: dict[str, float] | None = None,
    limit: dict[str, float] | None = None,
    compiling: float = 0.0,
    problem: str | None = None,
) -> dict[str, Any]:
    return {
        "backend": backend,
        "work": work,
        "dtype": "float32",
        "elements": elements,
        "threads": threads,
        "gelem_per_second": rate,
        "limit_gelem_per_second": limit,
        "compiling_seconds": compiling,
        "problem": problem,
    }


if __name__ == "__main__":
    print(json.dumps(worker(task_of_this_child())))
