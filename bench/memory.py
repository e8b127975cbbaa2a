"""Peak memory that a call takes beyond its inputs and the gradient that it returns.

Each backend is measured in a process of its own, with the kernel's count of resident memory
(VmRSS before the call, VmHWM after it, reset in between). A call on 1024 elements goes before it,
which starts threads and loads code, and then one of the full size: where that compiles once more, a
compiler's memory is not the loss's, and the others get the same. What their allocator keeps of it
goes back to the system. The result of the measured call is kept, and the bytes of its gradient are
taken off. Two processes are measured at a time, since nothing is timed here.

The count is in pages, of which the kernel may give 2 MiB at a time, and what the interpreter does
beside the call is in it: figures are good to RESOLUTION_BYTES.
"""

from __future__ import annotations

import gc
import json
import os
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from .children import NOT_QUICK, QUICK_PEERS, ChildFailed, run_child, task_of_this_child

Progress = Callable[[str], None]

RESOLUTION_BYTES = 2**21

_ELEMENTS = {"quick": 2**22, "default": 2**24, "full": 2**24}
_WARM_UP_ELEMENTS = 2**10
_PROCESSES = 2
OURS = "ours"


def report(
    profile: str,
    threads: int,
    progress: Progress | None = None,
    backends: list[str] | None = None,
) -> list[dict[str, Any]]:
    """The entries of "memory" in the JSON: forward, and both with a new gradient, per backend.

    profile: "quick", "default" or "full"; backends: peers to measure, all unless given. The quick
    profile has few of them. What cannot be measured has a problem.
    """
    from .backends import PEERS

    show = progress or (lambda text: None)
    elements = _ELEMENTS[profile]
    found: dict[str, Future[list[dict[str, Any]]] | str] = {}
    with ThreadPoolExecutor(_PROCESSES) as pool:
        for name in [OURS, *(name for name in PEERS if backends is None or name in backends)]:
            if profile == "quick" and name not in (OURS, *QUICK_PEERS):
                found[name] = NOT_QUICK
            elif name.startswith("Caffe"):
                # They are allocated as a net is made, so that a call seems to take nothing.
                found[name] = "blobs stay between calls: see python -m bench.caffe_layers"
            else:
                task = {"backend": name, "threads": threads, "elements": elements}
                found[name] = pool.submit(run_child, "memory", task)
        entries: list[dict[str, Any]] = []
        try:
            for name, result in found.items():
                show(f"memory: {name}")
                if isinstance(result, str):
                    entries += failed(name, elements, result)
                    continue
                try:
                    entries += result.result()
                except ChildFailed as error:
                    entries += failed(name, elements, f"failed: {error}")
        except BaseException:  # such as Ctrl-C: no other process is to start
            pool.shutdown(cancel_futures=True)
            raise
    return entries


def failed(backend: str, elements: int, problem: str) -> list[dict[str, Any]]:
    """The entries of a backend that was not measured."""
    return [
        _entry(backend, work, elements, None, problem) for work in ("forward", "forward + backward")
    ]


def worker(task: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of one backend, in a process that has loaded no other."""
    from . import machine

    machine.restrict_to_cpus(task["threads"])
    from .backends import Missing, load
    from .backends.base import Unsupported
    from .backends.ours import Ours
    from .plan import Case, Gradient, Work

    name, elements = task["backend"], task["elements"]
    if not can_reset_peak():
        return failed(name, elements, "the system does not tell a call's peak memory")
    backend: Any = Ours(task["threads"]) if name == OURS else load(name, task["threads"])
    if isinstance(backend, Missing):
        return failed(name, elements, backend.reason)
    entries = []
    for work in (Work.FORWARD, Work.BOTH):
        gradient = Gradient.NONE if work is Work.FORWARD else Gradient.FRESH
        problem, extra = None, None
        try:
            extra = extra_bytes(backend, Case(work, "float32", elements, gradient))
        except Unsupported as error:
            problem = f"not able ({error})"
        except Exception as error:  # a peer's failure is listed, and its other entry goes on
            problem = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        entries.append(_entry(name, work.value, elements, extra, problem))
    return entries


def extra_bytes(backend: Any, case: Any) -> int:
    """Of one call of a backend's first form: the peak beyond what was there, less the gradient.

    In this process, or in the one that the backend has for itself. Raises what the backend raises.
    """
    from .data import Data
    from .plan import Gradient

    small = Data(replace(case, elements=min(_WARM_UP_ELEMENTS, case.elements)))
    backend.begin(small.case)
    forms = backend.forms(small.case, small.scores, small.targets("hard"), small.gradient)
    forms[0].run()
    data = Data(case)
    data.gradient.fill(0)
    backend.begin(case)
    form = backend.forms(case, data.scores, data.targets("hard"), data.gradient)[0]
    process = getattr(backend, "process_id", None) or os.getpid()
    # Asked for its time, another process does not send the result.
    timed = backend.timer([form])
    timed(1, 0)
    gc.collect()
    backend.give_back_memory()
    reset_peak(process)
    before = _status("VmRSS", process)
    timed(1, 0)
    extra = _status("VmHWM", process) - before
    returned = data.gradient.nbytes if case.gradient is Gradient.FRESH else 0
    return max(0, extra - returned)


def can_reset_peak() -> bool:
    """Linux allows it to every process, unless it is built without /proc/PID/clear_refs."""
    try:
        reset_peak(os.getpid())
        return _status("VmHWM", os.getpid()) > 0
    except OSError:
        return False


def reset_peak(process: int) -> None:
    """The peak of a process starts anew, from what is resident now."""
    Path(f"/proc/{process}/clear_refs").write_text("5")


def _status(key: str, process: int) -> int:
    text = Path(f"/proc/{process}/status").read_text()
    found = re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE)
    if not found:
        raise OSError(f"/proc/{process}/status has no {key}")
    return int(found[1]) * 1024


def _entry(
    backend: str, work: str, elements: int, extra: int | None, problem: str | None
) -> dict[str, Any]:
    return {
        "backend": backend,
        "work": work,
        "dtype": "float32",
        "elements": elements,
        "extra_bytes": extra,
        "bytes_per_element": None if extra is None else extra / elements,
        "problem": problem,
    }


if __name__ == "__main__":
    print(json.dumps(worker(task_of_this_child())))
