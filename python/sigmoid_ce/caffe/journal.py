"""Changes several files of a folder so that all are changed or none, whenever the process ends.

All new contents, and copies of the old, are first written below a folder of our own; then a
journal that lists them takes its name. From there on the changes can be completed by anyone:
`recover` does so when it finds a journal. Without a journal nothing was changed, and what was
written is removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, cast

# Hidden, and beside the folders where Caffe's Makefile and CMake look for sources.
FOLDER = ".sigmoid_ce"
_JOURNAL = f"{FOLDER}/journal.json"
_WORK = f"{FOLDER}/work"
_FORMAT = 1
# Another run takes well under a second.
_LOCK_SECONDS = 10.0


class Change(NamedTuple):
    path: str  # relative to the tree
    content: bytes | None  # None: the file is removed
    mode: int  # permission bits


class State(NamedTuple):
    """A file as it is; of a file that is not there there is none."""

    sha256: str
    mode: int


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def state(path: Path) -> State | None:
    """Raises ValueError for what is no plain file."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(mode):
        kind = "a symbolic link" if stat.S_ISLNK(mode) else "no plain file"
        raise ValueError(f"{path} is {kind}")
    return State(digest(path.read_bytes()), stat.S_IMODE(mode))


def check_path(tree: Path, name: str) -> Path:
    """The path of a file in the tree. Raises ValueError for one that would lie elsewhere."""
    parts = PurePosixPath(name).parts
    if not parts or parts[0] not in ("include", "src", FOLDER) or ".." in parts:
        raise ValueError(f"{name} is no path that sigmoid_ce uses in a tree")
    path = tree.joinpath(*parts)
    for parent in [*path.parents][: len(parts) - 1]:
        if parent.is_symlink():
            target = parent.resolve()
            if parts[0] == FOLDER or not target.is_relative_to(tree.resolve()):
                raise ValueError(f"{parent} is a symbolic link to {target}, outside the tree")
        elif parent.exists() and not parent.is_dir():
            raise ValueError(f"{parent} is no folder")
    return path


@contextlib.contextmanager
def locked(tree: Path) -> Iterator[None]:
    """One run at a time per tree. Raises RuntimeError when another one does not end."""
    # The folder itself is locked: no file that would have to be removed, or could not be made.
    handle = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    try:
        give_up = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise RuntimeError(f"cannot lock {tree}: {error.strerror}") from error
            if time.monotonic() > give_up:
                raise RuntimeError(f"another run of sigmoid-ce is at work on {tree}")
            time.sleep(0.05)
        yield
    finally:
        os.close(handle)


def unfinished(tree: Path) -> str | None:
    """What an interrupted run was doing, if one left something."""
    journal = tree / _JOURNAL
    if os.path.lexists(journal):
        return str(_load(tree)["what"])
    if os.path.lexists(tree / _WORK) or _is_empty(tree / FOLDER):
        return "a run that had changed nothing yet"
    return None


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())


def recover(tree: Path) -> str | None:
    """Completes what an interrupted run had begun to change; removes what it had only prepared.

    To be called with the lock. Returns a sentence about what was done, if anything. Raises
    RuntimeError where a file has been changed by others in between.
    """
    what = unfinished(tree)
    if what is None:
        return None
    journal = tree / _JOURNAL
    if not journal.exists():
        _clean(tree)
        return "an interrupted run had changed nothing; its leftovers are removed"
    plan = _load(tree)
    for change in plan["changes"]:
        found = state(check_path(tree, change["path"]))
        known = [None if s is None else s["sha256"] for s in (change["before"], change["after"])]
        if (None if found is None else found.sha256) not in known:
            raise RuntimeError(
                f"{tree / change['path']} was changed after a run was interrupted ({what}): put it "
                f"back as it is in {_WORK}/before or {_WORK}/after, and run the command again"
            )
    _redo(tree, plan)
    return f"an interrupted run is completed: {what}"


def apply(tree: Path, what: str, changes: Sequence[Change], rmdir: Sequence[str] = ()) -> None:
    """Makes the changes, all or none. To be called with the lock, after `recover`.

    `rmdir` are folders to remove afterwards where they are empty. On any error the tree is as
    before.
    """
    device = tree.stat().st_dev
    check_path(tree, f"{_WORK}/before/0")
    check_path(tree, f"{_WORK}/after/0")
    listed: list[dict[str, Any]] = []
    mkdir: list[str] = []
    for change in changes:
        path = check_path(tree, change.path)
        before = state(path)
        after = None if change.content is None else State(digest(change.content), change.mode)
        listed.append(
            {
                "path": change.path,
                "before": before and before._asdict(),
                "after": after and after._asdict(),
            }
        )
        folder = path.parent
        while not folder.exists():
            name = folder.relative_to(tree).as_posix()
            if name not in mkdir and name != FOLDER:
                mkdir.append(name)
            folder = folder.parent
        if folder.stat().st_dev != device:
            raise ValueError(f"{folder} is on another file system than {tree}")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "no permission to write", str(folder))
    plan = {
        "format": _FORMAT,
        "what": what,
        "changes": listed,
        "mkdir": sorted(mkdir),
        "rmdir": sorted(rmdir, reverse=True),
    }
    try:
        for name in (FOLDER, _WORK, f"{_WORK}/before", f"{_WORK}/after"):
            _mkdir(tree / name)
        for i, change in enumerate(changes):
            if listed[i]["before"] is not None:
                copy = check_path(tree, change.path).read_bytes()
                _write(tree / _WORK / "before" / str(i), copy)
            if change.content is not None:
                _write(tree / _WORK / "after" / str(i), change.content)
        for folder in (tree / _WORK / "before", tree / _WORK / "after", tree / _WORK):
            _sync_folder(folder)
        new = tree / _WORK / "journal.json"
        _write(new, json.dumps(plan, indent=1).encode())
        _rename(new, tree / _JOURNAL)
    except BaseException:
        if not (tree / _JOURNAL).exists():
            _clean(tree)
            raise
        _undo(tree, plan)
        raise
    try:
        _sync_folder(tree / FOLDER)
        _sync_folder(tree)
        _redo(tree, plan)
    except BaseException:
        # Without a journal all is done, but for leftovers.
        if (tree / _JOURNAL).exists():
            _undo(tree, plan)
        raise


def _load(tree: Path) -> dict[str, Any]:
    path = check_path(tree, _JOURNAL)
    # The folder may have come with the tree, from anyone.
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        written_by_us = plan["format"] == _FORMAT and isinstance(plan["what"], str)
        names = [change["path"] for change in plan["changes"]]
        for change in plan["changes"]:
            for found in (change["before"], change["after"]):
                if found is not None:
                    State(found["sha256"] + "", found["mode"] + 0)
        names += plan["mkdir"] + plan["rmdir"]
    except (KeyError, TypeError, ValueError) as error:
        raise RuntimeError(f"{path} cannot be read ({error!r})") from error
    if not written_by_us:
        raise RuntimeError(f"{path} was written by another version of sigmoid_ce, which can end it")
    for name in names:
        check_path(tree, name)
    return cast("dict[str, Any]", plan)


def _redo(tree: Path, plan: dict[str, Any]) -> None:
    for name in plan["mkdir"]:
        _mkdir(check_path(tree, name))
    for i, change in enumerate(plan["changes"]):
        content = None
        if change["after"] is not None:
            content = (tree / _WORK / "after" / str(i)).read_bytes()
        _put(tree, change["path"], change["after"], content)
    _remove_folders(tree, plan["rmdir"])
    _unlink(tree / _JOURNAL)
    _sync_folder(tree / FOLDER)
    _clean(tree)


def _undo(tree: Path, plan: dict[str, Any]) -> None:
    for i, change in reversed([*enumerate(plan["changes"])]):
        path = check_path(tree, change["path"])
        _mkdir(path.parent)  # may have been removed as empty
        content = None
        if change["before"] is not None:
            content = (tree / _WORK / "before" / str(i)).read_bytes()
        _put(tree, change["path"], change["before"], content)
    _remove_folders(tree, sorted(plan["mkdir"], reverse=True))
    _unlink(tree / _JOURNAL)
    _sync_folder(tree / FOLDER)
    _clean(tree)


def _put(tree: Path, name: str, wanted: dict[str, Any] | None, content: bytes | None) -> None:
    path = check_path(tree, name)
    found = state(path)
    if wanted is None or content is None:
        if found is not None:
            _unlink(path)
            _sync_folder(path.parent)
        return
    if found == State(wanted["sha256"], wanted["mode"]):
        return
    # Times are not kept: the file is new to `make`, also when an original comes back.
    temporary = tree / _WORK / "file"
    _write(temporary, content, wanted["mode"])
    if os.geteuid() == 0:
        # A tree that root works on stays its owner's.
        _give(temporary, path.parent if found is None else path)
    _rename(temporary, path)
    _sync_folder(path.parent)


def _clean(tree: Path) -> None:
    """Removes what is there without a journal."""
    work = tree / _WORK
    if os.path.lexists(work):
        _step()
        shutil.rmtree(work)
    if _is_empty(tree / FOLDER):
        _rmdir(tree / FOLDER)
    _sync_folder(tree)


# ---- every change of the file system goes through one of these ----


def _step() -> None:
    """Called before each change of the file system. Tests end the process here."""


def _mkdir(folder: Path) -> None:
    if not folder.is_dir():
        _step()
        folder.mkdir(parents=True)
        if os.geteuid() == 0:
            _give(folder, folder.parent)
        _sync_folder(folder.parent)


def _give(path: Path, like: Path) -> None:
    """To the owner of another file; some file systems do not let even root do so."""
    owner = like.stat()
    with contextlib.suppress(PermissionError):
        os.chown(path, owner.st_uid, owner.st_gid)


def _write(path: Path, content: bytes, mode: int = 0o644) -> None:
    _step()
    with path.open("wb") as file:
        half = len(content) // 2
        file.write(content[:half])
        file.flush()
        _step()
        file.write(content[half:])
        file.flush()
        os.fchmod(file.fileno(), mode)
        _sync(file.fileno())


def _rename(old: Path, new: Path) -> None:
    _step()
    os.replace(old, new)


def _unlink(path: Path) -> None:
    _step()
    path.unlink()


def _rmdir(folder: Path) -> None:
    _step()
    folder.rmdir()


def _remove_folders(tree: Path, names: Sequence[str]) -> None:
    """Those which are empty; in an order in which a folder comes after what is in it."""
    for name in names:
        folder = check_path(tree, name)
        if _is_empty(folder):
            _rmdir(folder)
            _sync_folder(folder.parent)


def _sync(handle: int) -> None:
    os.fsync(handle)


def _sync_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return
    try:
        _sync(handle)
    finally:
        os.close(handle)
