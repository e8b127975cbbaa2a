"""The machine: which CPUs the benchmark may use, and the facts that stand beside its figures."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

_CPU_FOLDER = Path("/sys/devices/system/cpu")


def restrict_to_cpus(threads: int) -> list[int]:
    """Keeps this process on `threads` CPUs, one per core as far as there are cores; returns them.

    One measure that every peer respects, also those whose number of threads has no setting: XLA's
    pool has one thread per CPU that the process may use. OpenMP reads its variable when it is
    loaded: call this before the peers are imported.

    Raises ValueError when the process may not use so many CPUs.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if not hasattr(os, "sched_setaffinity"):
        return list(range(threads))
    allowed = sorted(os.sched_getaffinity(0))
    if not 1 <= threads <= len(allowed):
        raise ValueError(f"threads: got {threads}, but this process may use {len(allowed)} CPUs")
    first_of_core: list[int] = []
    siblings: list[int] = []
    cores: set[str] = set()
    for cpu in allowed:
        core = _read(_CPU_FOLDER / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu)
        (siblings if core in cores else first_of_core).append(cpu)
        cores.add(core)
    cpus = (first_of_core + siblings)[:threads]
    os.sched_setaffinity(0, cpus)
    return cpus


def last_level_cache_bytes(cpu: int = 0) -> int | None:
    """Size of the largest cache that `cpu` uses, in bytes. None: unknown here."""
    return max((size for _, size in _caches(cpu)), default=None)


def level2_cache_bytes(cpu: int = 0) -> int | None:
    """Size of the second-level cache that `cpu` uses, in bytes. None: unknown here, or none."""
    return max((size for level, size in _caches(cpu) if level == "2"), default=None)


def _caches(cpu: int) -> Iterator[tuple[str, int]]:
    """Level and bytes of each cache of a CPU."""
    for folder in _CPU_FOLDER.glob(f"cpu{cpu}/cache/index*"):
        match = re.fullmatch(r"(\d+)([KMG]?)", _read(folder / "size"))
        if match:
            size = int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]
            yield _read(folder / "level"), size


def gpus() -> list[str]:
    """The names of NVIDIA GPUs, as their driver tells them."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def facts(cpus: list[int]) -> dict[str, object]:
    """What describes the machine in a report."""
    return {
        "cpu": cpu_model(),
        "architecture": platform.machine(),
        "cpus_online": os.cpu_count(),
        "cpus_used": cpus,
        "last_level_cache_bytes": last_level_cache_bytes(cpus[0]),
        "level2_cache_bytes": level2_cache_bytes(cpus[0]),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "transparent_hugepages": _selected(
            _read(Path("/sys/kernel/mm/transparent_hugepage/enabled"))
        ),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": load(),
        "gpus": gpus(),
    }


def load() -> float | None:
    """Processes that wanted a CPU, on average over the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def cpu_model() -> str:
    """As the system names it."""
    match = re.search(r"^model name\s*:\s*(.+)$", _read(Path("/proc/cpuinfo")), re.MULTILINE)
    if match:
        return match[1]
    try:  # ARM kernels name no model there
        listed = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return platform.processor() or "unknown"
    match = re.search(r"^Model name:\s*(.+)$", listed, re.MULTILINE)
    return match[1] if match else "unknown"


def _selected(text: str) -> str:
    match = re.search(r"\[(\w+)\]", text)
    return match[1] if match else "unknown"


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
