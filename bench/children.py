"""Runs parts of the benchmark in processes of their own, for what a process cannot take back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# What the quick profile measures in children: loading all others takes most of a minute.
QUICK_PEERS = ("PyTorch", "JAX", "NumPy")
NOT_QUICK = "not in the quick profile"

# A child that hangs must not hang the benchmark: torch.compile takes a minute at the most.
_SECONDS = 900


class ChildFailed(RuntimeError):
    """The message holds the end of what the process said."""


def run_child(module: str, task: dict[str, Any]) -> Any:
    """What a module finds for the task, in a new process. All of it is JSON.

    module: of this package; when it is run, it prints what becomes the result on its last line.
    Raises ChildFailed.
    """
    package = __package__ or ""
    root = Path(__file__).resolve().parents[package.count(".") + 1]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            [sys.executable, "-m", f"{package}.{module}", "--worker", json.dumps(task)],
            env={**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"},
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise ChildFailed(f"not done after {_SECONDS} s") from error
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        said = " ".join((done.stderr or done.stdout).split())[-300:]
        raise ChildFailed(f"exit status {done.returncode}: {said}")
    return json.loads(lines[-1])


def task_of_this_child() -> dict[str, Any]:
    """What `run_child` passed to this process."""
    if len(sys.argv) != 3 or sys.argv[1] != "--worker":
        sys.exit("This module is run by `python -m bench`.")
    task: dict[str, Any] = json.loads(sys.argv[2])
    return task
