"""Backends in a process of their own: other libraries, or another environment, than this one has.

The process loads the backend, keeps its forms, and makes the calls that it is asked for, so that
its measurements take their turn in the rounds like all others. It times them itself: what it takes
to ask is not in the figures.

Requests and answers are pickled objects, each after its length, over the process's standard input
and what was its standard output; what libraries print goes to standard error. Started as

    python -m bench.backends.remote MODULE CLASS THREADS
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import struct
import subprocess
import sys
import tempfile
import weakref
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..data import aligned_empty
from ..plan import Case
from .base import Backend, Form, NotAvailable, Timer, Tolerance, Unsupported

_LENGTH = struct.Struct("<Q")
# What the errors of a process that ended may have to say.
_TAIL_CHARACTERS = 2000


class RemoteError(RuntimeError):
    """The other process ended, or failed in a way that it has told of."""


class RemoteBackend(Backend):
    """A backend whose class is loaded in a process of its own.

    The process is started by the constructor, and anew by `begin` or `forms` when it has ended.
    """

    # Module of this package, and class in it: what the process loads.
    worker: tuple[str, str]
    in_process = False

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self._environment = dict(self.environment())
        self._process: _Process | None = None
        facts = self._ask("about")
        self._version: str = facts["version"]
        self.compiles = facts["compiles"]

    @abstractmethod
    def environment(self) -> Mapping[str, str]:
        """Variables that the process has in addition, or others. Raises NotAvailable."""

    @property
    def version(self) -> str:
        return self._version

    @property
    def process_id(self) -> int | None:
        """Of the process, while it is there."""
        alive = self._process is not None and self._process.alive
        return self._process.child.pid if alive and self._process else None

    def begin(self, case: Case) -> None:
        self._ask("begin", case)

    def give_back_memory(self) -> None:
        self._ask("give back")

    def forms(
        self,
        case: Case,
        scores: np.ndarray,
        targets: np.ndarray,
        gradient: np.ndarray,
        weight: np.ndarray | None = None,
    ) -> list[Form]:
        # Its values do not matter, but its shape and type do.
        empty = (gradient.shape, gradient.dtype)
        names = self._ask("forms", case, scores, targets, empty, weight)
        process = self._process
        assert process is not None
        return [_form(process, key, label) for key, label in names]

    def timer(self, forms: Sequence[Form]) -> Timer:
        # Held on to: the process forgets forms that nobody has.
        kept = [form for form in forms if isinstance(form, _RemoteForm)]
        (process,) = {form.process for form in kept}

        def timed(calls: int, before: int) -> float:
            # One question: having waited for a second one, threads may share a CPU again.
            seconds: float = process.ask("time", [form.key for form in kept], calls, before)
            return seconds

        return timed

    def tolerance(self, case: Case, targets: str) -> Tolerance:
        tolerance: Tolerance = self._ask("tolerance", case, targets)
        return tolerance

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.end()
            self._process = None

    def _ask(self, *request: Any) -> Any:
        if self._process is None or not self._process.alive:
            self._process = _Process(self.worker, self.threads, self._environment)
        return self._process.ask(*request)


@dataclass(frozen=True)
class _RemoteForm(Form):
    """A form that lives in the process, until nobody here knows its `run` any more."""

    process: _Process
    key: int


def _form(process: _Process, key: int, label: str) -> _RemoteForm:
    def run() -> Any:
        return process.ask("run", key)

    weakref.finalize(run, process.drop, key)
    return _RemoteForm(label, run, lambda result: result, process, key)


class _Process:
    """The other process, seen from here."""

    def __init__(self, worker: tuple[str, str], threads: int, environment: Mapping[str, str]):
        package = __package__ or "bench.backends"
        env = {**os.environ, **environment}
        # This copy of the benchmark, before any other.
        root = str(Path(__file__).resolve().parents[1 + package.count(".")])
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [root, env.get("PYTHONPATH", "")]))
        self._errors = tempfile.TemporaryFile()
        self.child = subprocess.Popen(
            [sys.executable, "-m", f"{package}.remote", *worker, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=env,
        )
        self._dropped: list[int] = []
        # Not at the exit only: a backend that nobody uses has no process.
        self._finish = weakref.finalize(self, _end, self.child, self._errors)

    @property
    def alive(self) -> bool:
        return self.child.poll() is None

    def ask(self, *request: Any) -> Any:
        """The answer; what the backend raised is raised here. RemoteError when the process ends."""
        assert self.child.stdin
        assert self.child.stdout
        dropped, self._dropped = self._dropped, []
        try:
            _send(self.child.stdin, (dropped, request))
            kind, value = _receive(self.child.stdout)
        except (OSError, EOFError, ValueError) as error:
            raise RemoteError(self._last_words()) from error
        except BaseException:  # interrupted between question and answer: they would no longer match
            self.end()
            raise
        if kind == "unsupported":
            raise Unsupported(value)
        if kind == "import error":
            raise ImportError(value)
        if kind == "not available":
            raise NotAvailable(value)
        if kind == "error":
            raise RemoteError(value)
        return value

    def drop(self, key: int) -> None:
        """Tells the process, with the next question, to forget a form."""
        self._dropped.append(key)

    def end(self) -> None:
        self._finish()

    def _last_words(self) -> str:
        try:
            status = self.child.wait(10)
        except subprocess.TimeoutExpired:
            self.child.kill()
            status = self.child.wait()
        how = f"exit status {status}"
        if status < 0:
            how = f"signal {signal.Signals(-status).name}"
        text = ""
        if not self._errors.closed:
            self._errors.seek(0)
            text = self._errors.read().decode(errors="replace").strip()[-_TAIL_CHARACTERS:]
        return f"its process ended ({how}){': ' if text else ''}{text}"


def _end(child: subprocess.Popen[bytes], errors: Any) -> None:
    for pipe in (child.stdin, child.stdout):
        try:
            if pipe:
                pipe.close()
        except OSError:
            pass
    # It ends by itself when its input does, unless it is in a long call.
    try:
        child.wait(1)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    errors.close()


# ---- The protocol ----


def _send(stream: BinaryIO | Any, value: Any) -> None:
    buffers: list[pickle.PickleBuffer] = []
    # Large arrays go as they are, after the object, without a copy.
    data = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    raws = [buffer.raw() for buffer in buffers]
    stream.write(_LENGTH.pack(len(raws)))
    for piece in (data, *raws):
        stream.write(_LENGTH.pack(len(piece)))
        stream.write(piece)
    stream.flush()


def _receive(stream: BinaryIO | Any) -> Any:
    (count,) = _LENGTH.unpack(_read(stream, _LENGTH.size))
    data, *buffers = [
        _read(stream, _LENGTH.unpack(_read(stream, _LENGTH.size))[0]) for _ in range(count + 1)
    ]
    return pickle.loads(data, buffers=buffers)


def _read(stream: BinaryIO | Any, size: int) -> memoryview:
    # Aligned, as backends expect of arrays.
    buffer = aligned_empty(size, np.uint8)
    view = memoryview(buffer)
    done = 0
    while done < size:
        count = stream.readinto(view[done:])
        if not count:
            raise EOFError("the other end is closed")
        done += count
    return view


# ---- In the other process ----


class _Worker:
    """Answers requests."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.forms: dict[int, Form] = {}
        self.keys = 0

    def about(self) -> Any:
        return {"version": self.backend.version, "compiles": self.backend.compiles}

    def begin(self, case: Case) -> None:
        self.backend.begin(case)

    def make_forms(self, case: Case, scores: Any, targets: Any, empty: Any, weight: Any) -> Any:
        shape, dtype = empty
        gradient = aligned_empty(int(np.prod(shape)), dtype).reshape(shape)
        gradient.view(np.uint8).fill(0xFF)  # NaN
        names = []
        for form in self.backend.forms(case, scores, targets, gradient, weight):
            self.keys += 1
            self.forms[self.keys] = form
            names.append((self.keys, form.label))
        return names

    def run(self, key: int) -> Any:
        form = self.forms[key]
        return form.unpack(form.run())

    def time(self, keys: list[int], calls: int, before: int) -> float:
        return self.backend.timer([self.forms[key] for key in keys])(calls, before)

    def answer(self, dropped: list[int], name: str, *arguments: Any) -> tuple[str, Any]:
        for key in dropped:
            self.forms.pop(key, None)
        ways = {
            "about": self.about,
            "begin": self.begin,
            "forms": self.make_forms,
            "run": self.run,
            "time": self.time,
            "tolerance": self.backend.tolerance,
            "give back": self.backend.give_back_memory,
        }
        try:
            return "value", ways[name](*arguments)
        except Unsupported as error:
            return "unsupported", str(error)
        except Exception as error:  # the other side lists it
            return "error", f"{type(error).__name__}: {error}"


def _serve(module: str, class_name: str, threads: int) -> None:
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    # What a library prints must not come between the answers, nor may it read the requests.
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        backend: Backend = getattr(import_module(f".{module}", __package__), class_name)(threads)
        refusal = None
    except ImportError as error:
        refusal = ("import error", str(error))
    except NotAvailable as error:
        refusal = ("not available", str(error))
    worker = None if refusal else _Worker(backend)
    # What is loaded by now stays: collections, which are between measurements only, are short.
    gc.collect()
    gc.freeze()
    gc.disable()
    while True:
        try:
            dropped, request = _receive(requests)
        except EOFError:
            return
        _send(answers, refusal if worker is None else worker.answer(dropped, *request))
        if request[0] == "begin":
            gc.collect()


if __name__ == "__main__":
    # The classes of this module, not a copy of them under another name, are what others import.
    served = import_module(f"{__package__}.remote")
    served._serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
