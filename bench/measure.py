"""Measures one group: all its entries in the same rounds, in alternating order."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import numpy as np

from .backends import Missing
from .backends.base import Backend, Form, Tolerance
from .backends.ours import settings
from .data import Data, Reference
from .limits import Limits, LimitsUnavailable
from .plan import CACHE_ELEMENTS, OURS, Case, Gradient, Group, Variant, Work

# One measurement repeats its call until it lasts about so long: 10^5 times what the clock resolves.
_MEASUREMENT_SECONDS = 8e-3
# Calls that warm the caches up last so long, unless one call alone takes longer than the second
# figure: then it drives its own data out of the caches, and one before it would change nothing.
_WARM_UP_SECONDS = 2e-3
_NO_WARM_UP_SECONDS = 20e-3
# Threads of the entry before, which wait actively for more work, go to sleep meanwhile.
_PAUSE_SECONDS = 5e-3
_CALIBRATIONS = 3
# Rounds of the trial that picks a backend's fastest form.
_TRIAL_ROUNDS = 5


class WrongResult(Exception):
    """A backend's result is outside its tolerance. Its time does not count."""


@dataclass
class Entry:
    """One thing that is measured in a group, and what was found.

    elements: that one call handles; for a run that stands for several threads, theirs together.
    seconds: of one call, a value per round. Empty: see `problem`.
    details: what else the report should list, such as the form that was chosen.
    """

    name: str
    elements: int = 0
    seconds: list[float] = field(default_factory=list)
    problem: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    failed: bool = False  # it should have worked here
    # Makes so many calls; returns the seconds they took.
    time: Callable[[int], float] | None = None
    context: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def rates(self) -> np.ndarray:
        """Elements per second, round by round."""
        return self.elements / np.array(self.seconds)


def measure_group(
    group: Group,
    ours: Backend,
    peers: Mapping[str, Backend | Missing],
    limits: Limits | LimitsUnavailable,
    rounds: int,
    *,
    all_forms: bool = True,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Entry]:
    """Every entry of the group by name, in the order of the report."""
    data = Data(group.case)
    entries = []
    for variant in group.variants:
        progress(f"preparing {variant.entry}")
        entries.append(_ours_entry(ours, variant, data, data.case.elements, ours.threads))
    for name, peer in peers.items():
        progress(f"preparing {name}")
        entries.append(_peer_entry(name, peer, data, all_forms=all_forms))
    if group.limits:
        entries += _limit_entries(group, data, limits)
        # Arithmetic has its limit too: the rate where no memory is waited for.
        elements = min(CACHE_ELEMENTS, data.case.elements)
        for variant in group.variants:
            entry = _ours_entry(ours, variant, data, elements, 1)
            entry.name = cache_entry(variant)
            entry.elements *= ours.threads
            entries.append(entry)
    measure_rounds([entry for entry in entries if entry.time], rounds, progress)
    return {entry.name: entry for entry in entries}


def measure_rounds(
    entries: list[Entry], rounds: int, progress: Callable[[str], None] = lambda text: None
) -> None:
    """Adds a value to each entry's `seconds` per round; every second round runs backwards."""
    with _no_garbage_collection():
        repetitions = {entry.name: _calibrate(entry) for entry in entries}
        for index in range(rounds):
            progress(f"round {index + 1} of {rounds}")
            for entry in entries if index % 2 == 0 else reversed(entries):
                entry.seconds.append(_measure(entry, repetitions[entry.name]))
    for entry in entries:
        entry.details["calls_per_round"] = repetitions[entry.name]


def limit_names(group: Group, variant: Variant) -> list[str]:
    """The limits that hold for a variant; of several, the best one counts."""
    if not group.limits:
        return []
    if group.case.work is Work.FORWARD:
        return ["read limit" + (", uint8 targets" if variant.targets == "uint8" else "")]
    return ["write limit, ordinary stores", "write limit, streaming stores"]


def cache_entry(variant: Variant) -> str:
    """Name of the entry that shows a variant's rate on data in cache."""
    return variant.entry.replace("ours", "ours in cache", 1)


def check(
    found: tuple[float | None, np.ndarray | None],
    expected: Reference,
    tolerance: Tolerance,
) -> None:
    """Raises WrongResult when what was found is missing or outside its tolerance."""
    loss, gradient = found
    if expected.loss is not None:
        if loss is None:
            raise WrongResult("no loss")
        error = abs(loss - expected.loss) / abs(expected.loss)
        if not error <= tolerance.loss:
            raise WrongResult(
                f"loss {loss!r}, expected {expected.loss!r}: "
                f"relative error {error:.2g}, allowed {tolerance.loss:.2g}"
            )
    if expected.gradient is not None:
        if gradient is None or gradient.shape != expected.gradient.shape:
            raise WrongResult("no gradient, or one of another shape")
        count = gradient.size
        error = np.abs(gradient - expected.gradient) * count
        allowed = tolerance.gradient + tolerance.gradient_relative * count * np.abs(
            expected.gradient
        )
        # Written so that NaN is wrong.
        wrong = np.flatnonzero(~(error <= allowed))
        if wrong.size:
            at = int(wrong[0])
            raise WrongResult(
                f"{wrong.size} of {count} elements of the gradient are wrong; at {at}: "
                f"{gradient[at]!r}, expected {expected.gradient[at]!r}"
            )


def _ours_entry(ours: Backend, variant: Variant, data: Data, elements: int, threads: int) -> Entry:
    entry = Entry(variant.entry, elements)

    def context() -> AbstractContextManager[None]:
        return settings(threads, variant.isa)

    try:
        with context():
            _prepare(entry, ours, data, variant.targets, elements)
    except ValueError as error:
        if variant.isa is None:
            raise
        entry.problem = f"not available here ({error})"
    entry.context = context
    return entry


def _peer_entry(name: str, peer: Backend | Missing, data: Data, *, all_forms: bool) -> Entry:
    entry = Entry(name, data.case.elements)
    if isinstance(peer, Missing):
        entry.problem = peer.reason
        return entry
    try:
        _prepare(entry, peer, data, OURS.targets, data.case.elements, all_forms=all_forms)
    except Exception as error:  # a peer's failure, whatever it is, is listed, and the others go on
        entry.problem = f"failed: {type(error).__name__}: {error}"
        entry.failed = True
    return entry


def _prepare(
    entry: Entry,
    backend: Backend,
    data: Data,
    targets: str,
    elements: int,
    *,
    all_forms: bool = True,
) -> None:
    """Checks the backend's forms and gives the entry the fastest."""
    case = replace(data.case, elements=elements)
    gradient = data.gradient[:elements]
    forms = backend.forms(case, data.scores[:elements], data.targets(targets)[:elements], gradient)
    if not all_forms:
        del forms[1:]
    expected = data.reference(targets, elements)
    tolerance = backend.tolerance(case, targets)
    listed: dict[str, dict[str, float]] = {form.label: {} for form in forms}
    for form in forms:
        gradient.fill(np.nan)  # what another form left there must not pass
        start = perf_counter()
        result = form.run()
        if backend.compiles:
            listed[form.label]["first_call_seconds"] = perf_counter() - start
        try:
            check(form.unpack(result), expected, tolerance)
        except WrongResult as error:
            entry.problem = f"wrong result ({form.label}): {error}"
            entry.failed = True
            return
        del result
    if len(forms) > 1:
        trials = [
            Entry(form.label, elements, time=_timer(form), context=entry.context) for form in forms
        ]
        measure_rounds(trials, _TRIAL_ROUNDS)
        for trial in trials:
            listed[trial.name]["trial_seconds"] = min(trial.seconds)
        forms.sort(key=lambda form: listed[form.label]["trial_seconds"])
    entry.time = _timer(forms[0])
    entry.details["form"] = forms[0].label
    entry.details["forms"] = listed


def _limit_entries(group: Group, data: Data, limits: Limits | LimitsUnavailable) -> list[Entry]:
    entries: dict[str, Entry] = {}
    a = data.scores
    for variant in group.variants:
        b = data.targets(variant.targets)
        for name in limit_names(group, variant):
            if name in entries:
                continue
            entry = entries[name] = Entry(name, a.size)
            if isinstance(limits, LimitsUnavailable):
                entry.problem = f"not available here ({limits})"
                continue
            limits.check(a, b)
            streaming = "streaming" in name
            if streaming and not limits.has_streaming:
                entry.problem = "not available here (no such instruction)"
                continue
            entry.time = _limit_timer(limits, group.case, a, b, data.gradient, streaming)
    return list(entries.values())


def _limit_timer(
    limits: Limits, case: Case, a: np.ndarray, b: np.ndarray, out: np.ndarray, streaming: bool
) -> Callable[[int], float]:
    if case.work is Work.FORWARD:
        return lambda passes: limits.read(a, b, passes)
    if case.gradient is Gradient.FRESH:
        return lambda passes: limits.write_fresh(a, b, passes, streaming=streaming)
    return lambda passes: limits.write(a, b, out, passes, streaming=streaming)


def _timer(form: Form) -> Callable[[int], float]:
    run = form.run

    def timed(calls: int) -> float:
        start = perf_counter()
        for _ in range(calls):
            run()
        return perf_counter() - start

    return timed


def _calibrate(entry: Entry) -> int:
    """How many calls a measurement makes."""
    assert entry.time is not None
    calls = 1
    with entry.context():
        while True:
            # The smallest: an interruption must not make it look as if one call were enough.
            seconds = min(entry.time(calls) for _ in range(_CALIBRATIONS))
            if seconds >= _MEASUREMENT_SECONDS / 2:
                return max(1, round(calls * _MEASUREMENT_SECONDS / seconds))
            missing = _MEASUREMENT_SECONDS / max(seconds, 1e-9)
            calls = math.ceil(calls * min(max(missing, 2), 100))


def _measure(entry: Entry, calls: int) -> float:
    """Seconds per call."""
    assert entry.time is not None
    with entry.context():
        time.sleep(_PAUSE_SECONDS)
        last = entry.seconds[-1] if entry.seconds else 0.0
        if last < _NO_WARM_UP_SECONDS:
            entry.time(max(1, math.ceil(calls * _WARM_UP_SECONDS / _MEASUREMENT_SECONDS)))
        return entry.time(calls) / calls


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
