"""Measures one group on the GPU: all its entries in the same rounds, in alternating order."""

from __future__ import annotations

import gc
import math
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from .backends import Missing
from .backends.gpu.base import GpuBackend, NotHere
from .backends.gpu.limits import Limits
from .gpu_data import Data, WrongResult
from .gpu_plan import ITEMSIZE, OURS, GpuCase, GpuGroup, Timed
from .measure import Entry

# One measurement on the device lasts about so long: many times what events resolve (0.5 us).
_MEASUREMENT_SECONDS = 2e-3
# Calls of one measurement. Few enough that the queue of launches, 1024 deep, holds them all.
_LEAST_CALLS, _MOST_CALLS = 4, 32
# The sets of arrays together are so many times the L2 cache, and at least so many bytes.
L2_TIMES = 8
_LEAST_SPAN = 2**29
# Calls of a measurement by the wall clock, and those captured into a graph.
_PYTHON_CALLS = 300
_GRAPH_CALLS = 20
_TRIAL_ROUNDS = 3
# The part of the memory that a group may take: peers allocate temporaries beside its arrays.
_MEMORY_SHARE = 0.25


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class OutOfTime(Exception):
    """The time for the whole is over. What is missing is listed as not measured."""


class Device(ABC):
    """Takes times. One is a GPU; another, for rehearsals of everything else, is the CPU."""

    name: str
    l2_bytes: int
    memory_bytes: int

    def __init__(self, device: torch.device) -> None:
        self.torch = device

    @abstractmethod
    def synchronize(self) -> None: ...

    @abstractmethod
    def back_to_back(self, run: Callable[[int], Any], sets: int, calls: int) -> float:
        """Seconds of one of so many calls on the sets in turn, none of them waiting for the
        host, with nothing of the arrays in cache."""

    @abstractmethod
    def captured(self, run: Callable[[int], Any], sets: int, calls: int) -> Callable[[], float]:
        """The same for calls in a graph that is captured here, each time it is replayed."""

    def from_python(self, run: Callable[[int], Any], sets: int, calls: int) -> float:
        """Seconds of one of so many calls until all are done, by the wall clock."""
        self.synchronize()
        with no_garbage_collection():
            start = perf_counter()
            for i in range(calls):
                run(i % sets)
            self.synchronize()
            return (perf_counter() - start) / calls


class Gpu(Device):
    """PyTorch's current CUDA device."""

    # Cycles per second of the kernel that waits, at the highest clock of any GPU of today: too
    # many cycles only cost time.
    _CYCLES = 2.2e9
    _LEAST_WAIT = 50e-6
    _MOST_WAIT = 50e-3

    def __init__(self) -> None:
        super().__init__(torch.device("cuda", torch.cuda.current_device()))
        properties = torch.cuda.get_device_properties(self.torch)
        self.name = properties.name
        self.l2_bytes = int(getattr(properties, "L2_cache_size", 0)) or 2**26
        self.memory_bytes = int(properties.total_memory)
        self._other = torch.randn(4 * self.l2_bytes // 4, device=self.torch)
        self._wait: dict[int, float] = {}

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.torch)

    def back_to_back(self, run: Callable[[int], Any], sets: int, calls: int) -> float:
        """A kernel that waits goes first, and lasts until all calls are in the queue; where they
        were not, it waits longer in another try."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        wait = self._wait.get(id(run), self._LEAST_WAIT)
        while True:
            self._other.sum()  # other data into the cache; read, so that nothing is written back
            torch.cuda._sleep(int(wait * self._CYCLES))
            start.record()
            with no_garbage_collection():
                for i in range(calls):
                    run(i % sets)
            in_time = not start.query()
            end.record()
            end.synchronize()
            if in_time or wait >= self._MOST_WAIT:
                self._wait[id(run)] = wait
                return start.elapsed_time(end) / 1e3 / calls
            wait *= 2

    def captured(self, run: Callable[[int], Any], sets: int, calls: int) -> Callable[[], float]:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # what is done only once, and allocations
            for i in range(min(sets, calls)):
                run(i)
        torch.cuda.current_stream().wait_stream(aside)
        self.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = [run(i % sets) for i in range(calls)]

        def replay() -> float:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._other.sum()
            torch.cuda._sleep(int(self._LEAST_WAIT * self._CYCLES))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            assert len(kept) == calls  # the graph writes there
            return start.elapsed_time(end) / 1e3 / calls

        return replay


class Rehearsal(Device):
    """The CPU in place of a GPU: its times mean nothing."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.name = "a rehearsal on the CPU"
        self.l2_bytes = 2**16
        self.memory_bytes = 2**32

    def synchronize(self) -> None:
        pass

    def back_to_back(self, run: Callable[[int], Any], sets: int, calls: int) -> float:
        return self.from_python(run, sets, calls)

    def captured(self, run: Callable[[int], Any], sets: int, calls: int) -> Callable[[], float]:
        return lambda: self.from_python(run, sets, calls)


@dataclass
class Clock:
    """When the whole has to end."""

    end: float

    def check(self) -> None:
        if time.monotonic() > self.end:
            raise OutOfTime


def span_bytes(device: Device) -> int:
    """What the sets of arrays have together, where they are not limited in number."""
    return max(L2_TIMES * device.l2_bytes, _LEAST_SPAN)


def number_of_sets(case: GpuCase, device: Device) -> int:
    """Enough that the sets together are much larger than the cache, or, of small arrays, that no
    measurement comes to the same set twice."""
    size = case.elements * case.bytes_per_element
    return max(2, min(_MOST_CALLS, math.ceil(span_bytes(device) / max(size, 1))))


def measure_group(
    group: GpuGroup,
    ours: GpuBackend,
    peers: Mapping[str, GpuBackend | Missing],
    device: Device,
    rounds: int,
    clock: Clock,
    *,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Entry]:
    """Every entry of the group by name. Where the time is over, the rest has that problem."""
    case = group.case
    entries: dict[str, Entry] = {name: Entry(name, case.elements) for name in (OURS, *group.peers)}
    if group.limit:
        entries[group.limit] = Entry(group.limit, case.elements)
    try:
        clock.check()
        _fill(group, entries, ours, peers, device, clock, progress)
        measured = [entry for entry in entries.values() if entry.time]
        for index in range(rounds):
            clock.check()
            progress(f"round {index + 1} of {rounds}")
            for entry in measured if index % 2 == 0 else reversed(measured):
                assert entry.time is not None
                entry.seconds.append(entry.time(0))
    except OutOfTime:
        for entry in entries.values():
            if not entry.seconds and entry.problem is None:
                entry.problem = "not measured (out of time)"
    finally:
        for entry in entries.values():
            entry.time = None
        gc.collect()
        if device.torch.type == "cuda":
            torch.cuda.empty_cache()
    return entries


def _fill(
    group: GpuGroup,
    entries: dict[str, Entry],
    ours: GpuBackend,
    peers: Mapping[str, GpuBackend | Missing],
    device: Device,
    clock: Clock,
    progress: Callable[[str], None],
) -> None:
    case = group.case
    sets = number_of_sets(case, device)
    scores = ITEMSIZE[case.dtype]
    one_set = case.elements * (2 * scores + ITEMSIZE[case.targets or case.dtype])
    if sets * one_set > _MEMORY_SHARE * device.memory_bytes:
        for entry in entries.values():
            entry.problem = "not measured (not enough memory)"
        return
    progress("arrays")
    data = Data(case, sets, device.torch)
    backends = {OURS: ours, **{name: peers[name] for name in group.peers}}
    for name, backend in backends.items():
        clock.check()
        progress(f"preparing {name}")
        _prepare(entries[name], backend, data, device)
    if group.limit:
        progress(f"preparing the {group.limit}")
        entry = entries[group.limit]
        try:
            limits = Limits(case, sets, device.torch)
            entry.details["bytes"] = limits.bytes
            runs = limits.forms(group.limit)
            _choose(entry, runs, {label: {} for label in runs}, case, sets, device)
        except Exception as error:  # listed; the others go on
            entry.problem = f"failed: {_line(error)}"
            entry.failed = True


def _prepare(entry: Entry, backend: GpuBackend | Missing, data: Data, device: Device) -> None:
    """Checks the backend's forms and gives the entry the fastest."""
    if isinstance(backend, Missing):
        entry.problem = backend.reason
        return
    try:
        case = data.case
        tolerance = backend.tolerance(case)
        listed: dict[str, dict[str, float]] = {}
        runs = {}
        for form in backend.forms(case, data.sets):
            data.poison()
            start = perf_counter()
            result = form.run(0)
            device.synchronize()
            listed[form.label] = {}
            if backend.compiles:
                listed[form.label]["first_call_seconds"] = perf_counter() - start
            loss, gradient = form.unpack(result)
            if gradient is not None:
                gradient = gradient.reshape(data.sets[0].scores.shape)
            data.check(loss, gradient, tolerance)
            del result, loss, gradient
            runs[form.label] = form.run
        _choose(entry, runs, listed, case, len(data.sets), device)
    except NotHere as error:
        entry.problem = f"not here ({error})"
    except WrongResult as error:
        entry.problem = f"wrong result: {error}"
        entry.failed = True
    except Exception as error:  # a peer's failure, whatever it is, is listed, and the others go on
        entry.problem = f"failed: {_line(error)}"
        entry.failed = True


def _choose(
    entry: Entry,
    runs: Mapping[str, Callable[[int], Any]],
    listed: dict[str, dict[str, float]],
    case: GpuCase,
    sets: int,
    device: Device,
) -> None:
    """Gives the entry the fastest way's timer. One call counts one measurement."""
    timers = {}
    for label, run in runs.items():
        calls = _calls(run, case, sets, device)
        timers[label] = (_timer(run, case, sets, calls, device), calls)
    if len(timers) > 1:
        for label, (timer, _) in timers.items():
            trials = [timer(0) for _ in range(_TRIAL_ROUNDS)]
            listed[label]["trial_seconds"] = statistics.median(trials)
    best = min(timers, key=lambda label: listed[label].get("trial_seconds", 0.0))
    entry.time, entry.details["calls_per_round"] = timers[best]
    entry.details["sets"] = sets
    entry.details["form"] = best
    entry.details["forms"] = listed


def _calls(run: Callable[[int], Any], case: GpuCase, sets: int, device: Device) -> int:
    """How many calls a measurement makes. This also warms everything up, on every set."""
    for i in range(sets):
        run(i)
    device.synchronize()
    if case.timed is Timed.PYTHON:
        return _PYTHON_CALLS
    if case.timed is Timed.GRAPH:
        return _GRAPH_CALLS
    seconds = device.back_to_back(run, sets, _LEAST_CALLS)
    calls = round(_MEASUREMENT_SECONDS / max(seconds, 1e-9))
    return max(_LEAST_CALLS, min(_MOST_CALLS, calls))


def _timer(
    run: Callable[[int], Any], case: GpuCase, sets: int, calls: int, device: Device
) -> Callable[[int], float]:
    if case.timed is Timed.PYTHON:
        return lambda _: device.from_python(run, sets, calls)
    if case.timed is Timed.GRAPH:
        replay = device.captured(run, sets, calls)
        return lambda _: replay()
    return lambda _: device.back_to_back(run, sets, calls)


def _line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}"[:300]
