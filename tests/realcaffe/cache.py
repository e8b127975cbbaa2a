"""A folder outside the repository for what is slow to get or build, made whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

STAMP = "complete"
# No step of a build takes this long, in seconds, on a machine where the tests are of use.
TIME_LIMIT = 3600
# Enough of a log to hold a compiler's first error, in characters.
LOG_TAIL = 6000


class Missing(Exception):
    """Something this machine lacks or cannot reach. The text reads on before "is missing"."""


class BuildError(Exception):
    """A command failed. The text ends with the tail of its output."""


def once(function: Callable[[], T]) -> Callable[[], T]:
    """Runs the function once in this process: a failure too is not tried again by each test."""
    outcome: list[tuple[T | None, Exception | None]] = []

    @wraps(function)
    def remembered() -> T:
        if not outcome:
            try:
                outcome.append((function(), None))
            except (Missing, BuildError) as error:
                outcome.append((None, error))
        value, failure = outcome[0]
        if failure is not None:
            raise failure
        return value  # type: ignore[return-value]

    return remembered


def cache_root() -> Path:
    """The folder of all this, from SIGMOID_CE_CACHE, XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("SIGMOID_CE_CACHE")
    if own:
        return Path(own).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base).absolute() / "sigmoid_ce"


def digest(*parts: object) -> str:
    """16 hexadecimal digits that differ when any of the parts differs."""
    hashed = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        hashed.update(b"%d:" % len(data))
        hashed.update(data)
    return hashed.hexdigest()[:16]


def digest_of_files(folder: Path, files: Sequence[Path]) -> str:
    """A digest of the files' contents and of their paths relative to `folder`."""
    return digest(*(x for f in files for x in (f.relative_to(folder).as_posix(), f.read_bytes())))


@contextmanager
def lock(name: str) -> Iterator[None]:
    """Other processes that take the lock of the same name wait here."""
    folder = cache_root() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def entry(name: str, make: Callable[[Path], None]) -> Path:
    """The cache's folder `name`, filled by make(folder) where it is not there yet.

    Compilers and CMake write a folder's path into what they make, so it is made in its place. A
    stamp written last tells a whole one from the rest of an interrupted one, which is made anew.
    After a failure the folder stays, with its log, until the next try.
    """
    final = cache_root() / name
    stamp = final / STAMP
    if not stamp.exists():
        with lock(name):
            if not stamp.exists():
                shutil.rmtree(final, ignore_errors=True)
                final.mkdir(parents=True)
                make(final)
                stamp.touch()
    os.utime(stamp)
    return final


def prune(pattern: str, keep: int) -> None:
    """Removes the whole entries that match, but for the `keep` used last."""
    stamps = [folder / STAMP for folder in cache_root().glob(pattern)]
    whole = sorted((s for s in stamps if s.exists()), key=lambda s: s.stat().st_mtime)
    for stamp in whole[: max(0, len(whole) - keep)]:
        # Without its stamp it counts as not made, even if the removal is interrupted.
        stamp.unlink(missing_ok=True)
        shutil.rmtree(stamp.parent, ignore_errors=True)


def execute(
    command: Sequence[str | Path],
    log: Path,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> None:
    """Runs a command, its output appended to `log`; BuildError when it fails."""
    line = " ".join(map(str, command))
    with open(log, "a") as out:
        out.write(f"$ {line}\n")
        out.flush()
        done = subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            timeout=TIME_LIMIT,
        )
    if done.returncode != 0:
        tail = log.read_text(errors="replace")[-LOG_TAIL:]
        raise BuildError(
            f"exit status {done.returncode} of: {line[:400]}\nThe end of {log}:\n{tail}"
        )


def jobs() -> int:
    """Compilers to run at once: Caffe's sources need about half a GB each."""
    return min(8, len(os.sched_getaffinity(0)))
