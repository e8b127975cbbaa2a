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
from .backends.base import Backend, Form, Timer, Tolerance, Unsupported
from .backends.ours import settings
from .data import Data, DtypeUnavailable, Reference
from .limits import Limits, LimitsUnavailable
from .machine import level2_cache_bytes
from .plan import (
    OURS,
    PROFILES,
    Case,
    Gradient,
    Group,
    Option,
    Variant,
    Work,
    cache_elements,
    of_variant,
    size_name,
    targets_kind,
)

# One measurement repeats its call until it lasts about so long, unless a profile says otherwise.
_MEASUREMENT_SECONDS = PROFILES["default"].measurement_seconds
# So many times the calls of a measurement are made before it: data are in the caches then, and the
# system has given each thread a CPU of its own, which takes it some ms. But where one call alone
# takes longer than the second figure, it drives its own data out of the caches, and one before it
# would change nothing.
_WARM_UP = 1.5
_NO_WARM_UP_SECONDS = 20e-3
# Threads of the entry before, which wait actively for more work, go to sleep meanwhile.
_PAUSE_SECONDS = 5e-3
_CALIBRATIONS = 3
# A call of so many times what a measurement needs is taken for what it is: no interruption makes
# it look as if one call were enough.
_CERTAIN = 10
# A first call of so many times what a profile allows is too slow without a second one: neither page
# faults nor starting threads, nor sending the result to this process, take most of it.
_HOPELESS = 4
# A peer is not tried where it would take so many times what a profile allows, by smaller arrays:
# most of them take even longer per element with larger ones.
_SURELY = 2
# Rounds of the trial that picks a backend's fastest form.
_TRIAL_ROUNDS = 5
# Elements that are checked at a time, so that the temporaries stay in the cache.
_PIECE = 2**15


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
    call_seconds: float = 0.0  # of a call that was timed; 0: none was yet
    time: Timer | None = None
    context: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def rates(self) -> np.ndarray:
        """Elements per second, round by round."""
        return self.elements / np.array(self.seconds)

    @property
    def compiling_seconds(self) -> float:
        """Of the first calls of all forms, where the backend compiles in them."""
        forms = self.details.get("forms", {}).values()
        return sum(form.get("first_call_seconds", 0.0) for form in forms)


class CallTimes:
    """How long calls of the peers have taken, and would take with larger arrays."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, Case], list[tuple[int, float]]] = {}

    def add(self, case: Case, entries: Mapping[str, Entry]) -> None:
        for name, entry in entries.items():
            # Of the fastest form, which need not be the one that is too slow.
            forms = entry.details.get("forms", {}).values()
            slow = [form["call_seconds"] for form in forms if "call_seconds" in form]
            times = list(entry.seconds) or slow
            if times:
                self._known.setdefault(self._key(name, case), []).append(
                    (case.elements, min(times))
                )

    def expected(self, name: str, case: Case) -> float:
        """Seconds that a call takes at least; 0 where nothing is known.

        In proportion to the fastest elements: of small arrays, most of the time is the call's own.
        """
        known = self._known.get(self._key(name, case), [])
        return min((s * case.elements / n for n, s in known if n <= case.elements), default=0.0)

    @staticmethod
    def _key(name: str, case: Case) -> tuple[str, Case]:
        return name, replace(case, elements=0, shape=None)


def measure_group(
    group: Group,
    ours: Backend,
    peers: Mapping[str, Backend | Missing],
    limits: Limits | LimitsUnavailable,
    rounds: int,
    *,
    all_forms: bool = True,
    call_seconds: float = math.inf,
    remote_elements: float = math.inf,
    measurement_seconds: float = _MEASUREMENT_SECONDS,
    call_times: CallTimes | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Entry]:
    """Every entry of the group by name, in the order of the report.

    A peer of which one call takes longer than `call_seconds` is listed as too slow. So is one that
    would take far longer by the `call_times` of groups before; this group's are added to them. A
    peer with a process of its own gets `remote_elements` at most.
    """
    call_times = call_times or CallTimes()
    try:
        datas = [Data(case) for case in group.case.parts()]
    except DtypeUnavailable as error:
        return not_measured(group, peers, limits, f"not available here ({error})")
    threads = ours.threads
    entries = []
    for variant in group.variants:
        progress(f"preparing {variant.entry}")
        entries.append(_ours_entry(ours, variant, datas, group.case.elements, threads))
    for name, peer in peers.items():
        expected = call_times.expected(name, group.case)
        if expected > _SURELY * call_seconds:
            problem = f"too slow for this profile (a call would take {expected:.2g} s at least, "
            problem += f"by smaller arrays, allowed are {call_seconds:g})"
            entries.append(Entry(name, group.case.elements, problem=problem))
            continue
        remote = isinstance(peer, Backend) and not peer.in_process
        if remote and group.case.elements > remote_elements:
            most = size_name(int(remote_elements))
            problem = "not in this profile (it has a process of its own, which gets no more than "
            problem += f"{most} elements)"
            entries.append(Entry(name, group.case.elements, problem=problem))
            continue
        progress(f"preparing {name}")
        entries.append(
            _peer_entry(name, peer, datas, all_forms=all_forms, call_seconds=call_seconds)
        )
    if group.limits:
        (data,) = datas
        entries += _limit_entries(group, data, limits)
        # Arithmetic has its limit too: the rate where no memory is waited for.
        level2 = level2_cache_bytes()
        for variant in group.variants:
            if variant.threads or variant.option is not Option.NONE:
                continue
            elements = min(cache_elements(data.case, variant, level2), data.case.elements)
            entry = _ours_entry(ours, variant, datas, elements, 1)
            entry.name = cache_entry(variant)
            entry.elements *= threads
            entries.append(entry)
    measure_rounds(
        [entry for entry in entries if entry.time], rounds, progress, measurement_seconds
    )
    measured = {entry.name: entry for entry in entries}
    call_times.add(group.case, {name: measured[name] for name in peers})
    return measured


def not_measured(
    group: Group,
    peers: Mapping[str, Backend | Missing],
    limits: Limits | LimitsUnavailable,
    problem: str,
) -> dict[str, Entry]:
    """The group's entries, none of them measured, for one reason."""
    names = [variant.entry for variant in group.variants]
    names += peers
    for variant in group.variants if group.limits else ():
        names += limit_names(group, variant)
    entries = {name: Entry(name, group.case.elements, problem=problem) for name in names}
    for name, peer in peers.items():
        if isinstance(peer, Missing):
            entries[name].problem = peer.reason
    return entries


def measure_rounds(
    entries: list[Entry],
    rounds: int,
    progress: Callable[[str], None] = lambda text: None,
    measurement_seconds: float = _MEASUREMENT_SECONDS,
) -> None:
    """Adds a value to each entry's `seconds` per round; every second round runs backwards."""
    with _no_garbage_collection():
        repetitions: dict[str, int] = {}
        for entry in entries:
            with _listing_failure(entry):
                repetitions[entry.name] = _calibrate(entry, measurement_seconds)
        for index in range(rounds):
            progress(f"round {index + 1} of {rounds}")
            for entry in entries if index % 2 == 0 else reversed(entries):
                if entry.problem is None:
                    with _listing_failure(entry):
                        entry.seconds.append(_measure(entry, repetitions[entry.name]))
    for entry in entries:
        if entry.problem is None:
            entry.details["calls_per_round"] = repetitions[entry.name]


@contextmanager
def _listing_failure(entry: Entry) -> Iterator[None]:
    """An entry that worked at first and then fails has no figures; the others go on."""
    try:
        yield
    except Exception as error:  # a peer's failure, whatever it is
        entry.problem = f"failed: {type(error).__name__}: {error}"
        entry.failed = True
        entry.seconds.clear()


def limit_names(group: Group, variant: Variant) -> list[str]:
    """The limits that hold for a variant; of several, the best one counts.

    With uint8 targets there is none of work that writes: its loop reads two arrays as wide as the
    one that it writes, which are 12 bytes per element where 9 move.
    """
    if not group.limits or variant.option is not Option.NONE:
        return []
    narrow = targets_kind(group.case, variant) == "uint8"
    if group.case.work is Work.FORWARD:
        return ["read limit" + (", uint8 targets" if narrow else "")]
    if narrow:
        return []
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
    if expected.losses is not None:
        _check_elements(gradient, expected.losses, 1, 1, tolerance, "losses")
    if expected.gradient is not None:
        # The derivative before the mean, in units of which the tolerance is.
        count = expected.gradient.size
        _check_elements(
            gradient, expected.gradient, count, 0, tolerance, "elements of the gradient"
        )


def _check_elements(
    found: np.ndarray | None,
    expected: np.ndarray,
    factor: float,
    scale: float,
    tolerance: Tolerance,
    what: str,
) -> None:
    """Both times `factor`; the tolerance is for values of 1, or of the larger of that and `scale`
    times theirs."""
    if found is None or found.size != expected.size:
        raise WrongResult(f"no {what}, or of another shape")
    found = found.reshape(-1)
    wrong, first = 0, ""
    for start in range(0, found.size, _PIECE):
        piece = slice(start, start + _PIECE)
        got = found[piece].astype(np.float64) * factor
        right = expected[piece] * factor
        size = np.abs(right)
        allowed = tolerance.gradient * np.maximum(size * scale, 1)
        allowed += tolerance.gradient_relative * size
        # Written so that NaN is wrong.
        at = np.flatnonzero(~(np.abs(got - right) <= allowed))
        if at.size and not wrong:
            k = int(at[0])
            first = f"at {start + k}: {float(got[k])!r}, expected {float(right[k])!r}"
        wrong += at.size
    if wrong:
        raise WrongResult(f"{wrong} of {found.size} {what} are wrong; {first}")


def _ours_entry(
    ours: Backend, variant: Variant, datas: list[Data], elements: int, threads: int
) -> Entry:
    entry = Entry(variant.entry, elements)

    def context() -> AbstractContextManager[None]:
        return settings(variant.threads or threads, variant.isa)

    try:
        with context():
            _prepare(entry, ours, datas, variant, elements)
    except Unsupported as error:
        entry.problem = f"not able ({error})"
    except ValueError as error:
        if variant.isa is None:
            raise
        entry.problem = f"not available here ({error})"
    entry.context = context
    return entry


def _peer_entry(
    name: str,
    peer: Backend | Missing,
    datas: list[Data],
    *,
    all_forms: bool,
    call_seconds: float,
) -> Entry:
    elements = sum(data.case.elements for data in datas)
    entry = Entry(name, elements)
    if isinstance(peer, Missing):
        entry.problem = peer.reason
        return entry
    try:
        _prepare(entry, peer, datas, OURS, elements, all_forms=all_forms, call_seconds=call_seconds)
    except Unsupported as error:
        entry.problem = f"not able ({error})"
    except Exception as error:  # a peer's failure, whatever it is, is listed, and the others go on
        entry.problem = f"failed: {type(error).__name__}: {error}"
        entry.failed = True
    return entry


@dataclass
class _Way:
    """A backend's form for each array of the case."""

    label: str
    forms: list[Form]
    time: Timer
    call_seconds: float = 0.0  # of a call that was timed; 0: none was yet


def _prepare(
    entry: Entry,
    backend: Backend,
    datas: list[Data],
    variant: Variant,
    elements: int,
    *,
    all_forms: bool = True,
    call_seconds: float = math.inf,
) -> None:
    """Checks the backend's forms and gives the entry the fastest.

    `elements` is fewer than there are only where there is one array, which is then cut.
    """
    backend.begin(datas[0].case)
    found: list[list[Form]] = []
    for data in datas:
        count = min(elements, data.case.elements)
        cut = count < data.case.elements
        case = replace(data.case, elements=count, shape=None if cut else data.case.shape)
        arrays = [data.scores, data.targets(targets_kind(case, variant)), data.gradient]
        case = of_variant(case, variant)
        weight = data.weight_for(case.option)
        arrays += [] if weight is None else [weight]
        found.append(backend.forms(case, *(data.shaped(array[:count]) for array in arrays)))
    ways = [
        _Way(forms[0].label, list(forms), backend.timer(forms))
        for forms in zip(*found, strict=True)
    ]
    if not all_forms:
        del ways[1:]
    listed: dict[str, dict[str, float]] = {way.label: {} for way in ways}
    fast = []
    for way in ways:
        first = 0.0
        for form, data in zip(way.forms, datas, strict=True):
            count = min(elements, data.case.elements)
            kind = targets_kind(data.case, variant)
            data.gradient[:count].fill(np.nan)  # what another form left there must not pass
            start = perf_counter()
            result = form.run()
            first += perf_counter() - start
            try:
                case = of_variant(replace(data.case, elements=count), variant)
                tolerance = backend.tolerance(case, kind)
                check(form.unpack(result), data.reference(kind, count, case.option), tolerance)
            except WrongResult as error:
                entry.problem = f"wrong result ({way.label}): {error}"
                entry.failed = True
                return
            del result
        if backend.compiles:
            listed[way.label]["first_call_seconds"] = first
        if first > call_seconds:
            # The first may have compiled, have had the pages of its arrays mapped, or have sent
            # its result here from another process.
            hopeless = not backend.compiles and first > _HOPELESS * call_seconds
            way.call_seconds = first if hopeless else way.time(1, 0)
            if way.call_seconds > call_seconds:
                listed[way.label]["call_seconds"] = way.call_seconds
                continue
        fast.append(way)
    entry.details["forms"] = listed
    if not fast:
        least = min(figures["call_seconds"] for figures in listed.values())
        entry.problem = (
            f"too slow for this profile (a call took {least:.2g} s, allowed are {call_seconds:g})"
        )
        return
    if len(fast) > 1:
        trials = [
            Entry(
                way.label,
                elements,
                time=way.time,
                context=entry.context,
                call_seconds=way.call_seconds,
            )
            for way in fast
        ]
        measure_rounds(trials, _TRIAL_ROUNDS)
        for way, trial in zip(fast, trials, strict=True):
            if trial.problem is not None:
                raise RuntimeError(f"{trial.name}: {trial.problem}")
            way.call_seconds = min(trial.seconds)
            listed[trial.name]["trial_seconds"] = way.call_seconds
        fast.sort(key=lambda way: listed[way.label]["trial_seconds"])
    entry.time = fast[0].time
    entry.details["form"] = fast[0].label
    entry.call_seconds = fast[0].call_seconds


def _limit_entries(group: Group, data: Data, limits: Limits | LimitsUnavailable) -> list[Entry]:
    entries: dict[str, Entry] = {}
    a = data.scores
    for variant in group.variants:
        b = data.targets(targets_kind(group.case, variant))
        if data.weight is not None:
            # The loop knows two arrays: the second has the bytes of both.
            b = np.concatenate([b, data.weight])
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
) -> Timer:
    def loop(passes: int) -> float:
        if case.work is Work.FORWARD:
            return limits.read(a, b, passes)
        if case.gradient is Gradient.FRESH:
            return limits.write_fresh(a, b, passes, streaming=streaming)
        return limits.write(a, b, out, passes, streaming=streaming)

    def timed(passes: int, before: int) -> float:
        if before:
            loop(before)
        return loop(passes)

    return timed


def _calibrate(entry: Entry, measurement_seconds: float) -> int:
    """How many calls a measurement makes. Afterwards the entry knows how long a call takes."""
    assert entry.time is not None
    calls = 1
    if entry.call_seconds >= _CERTAIN * measurement_seconds:
        return calls
    with entry.context():
        while True:
            # The smallest: an interruption must not make it look as if one call were enough.
            seconds = entry.time(calls, 0)
            if seconds < _CERTAIN * measurement_seconds:
                more = (entry.time(calls, 0) for _ in range(_CALIBRATIONS - 1))
                seconds = min(seconds, *more)
            if seconds >= measurement_seconds / 2:
                entry.call_seconds = seconds / calls
                return max(1, round(calls * measurement_seconds / seconds))
            missing = measurement_seconds / max(seconds, 1e-9)
            calls = math.ceil(calls * min(max(missing, 2), 100))


def _measure(entry: Entry, calls: int) -> float:
    """Seconds per call."""
    assert entry.time is not None
    with entry.context():
        time.sleep(_PAUSE_SECONDS)
        last = entry.seconds[-1] if entry.seconds else entry.call_seconds
        before = int(_WARM_UP * calls) if last < _NO_WARM_UP_SECONDS else 0
        return entry.time(calls, before) / calls


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
