"""The benchmark on a GPU: `python -m bench.gpu --help`."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .gpu_measure import Device

_QUICK_ROUNDS = 3
_QUICK_ELEMENTS = 2**20


def main(arguments: list[str] | None = None) -> int:
    """Measures and reports. Returns 1 when a result was wrong or something failed to run, 3 when
    there is no GPU or no PyTorch that sees it."""
    options = _parse(arguments)
    problem = _no_gpu() if not options.rehearse else None
    if problem:
        print(f"bench.gpu: {problem}", file=sys.stderr)
        return 3
    # Else compile times would depend on what was compiled before, on another day.
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", folder)
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
        os.environ.setdefault("TRITON_CACHE_DIR", str(Path(folder) / "triton"))
        report = _run(options)

    from .gpu_report import markdown, terminal

    print(terminal(report))
    if options.markdown:
        options.markdown.write_text(markdown(report), encoding="utf-8")
    return 1 if report["failures"] else 0


def _no_gpu() -> str | None:
    """Why nothing can be measured here, in one line."""
    try:
        import torch
    except ImportError as error:
        return f"PyTorch, whose events and memory it uses, is not installed ({error})"
    if not torch.cuda.is_available():
        return f"no GPU that PyTorch {torch.__version__} can use"
    import sigmoid_ce

    about = sigmoid_ce.info().get("cuda") or {}
    if not about.get("devices"):
        return f"sigmoid_ce: {about.get('reason') or 'this build has no CUDA kernels'}"
    return None


def _run(options: argparse.Namespace) -> dict[str, Any]:
    import sigmoid_ce

    from . import gpu_plan
    from .backends import Missing
    from .backends.gpu import PEERS, load
    from .backends.gpu.ours import Ours
    from .gpu_measure import L2_TIMES, Clock, Gpu, Rehearsal, measure_group, span_bytes
    from .gpu_report import SCHEMA, group_report, row_report

    device: Device = Rehearsal() if options.rehearse else Gpu()
    groups = gpu_plan.reduced(gpu_plan.plan(), options.max_elements)
    groups = [group for group in groups if options.only in group.case.name]
    left_out = set(PEERS) - set(options.backends)
    peers = {
        name: Missing("left out (--backends)") if name in left_out else load(name) for name in PEERS
    }
    ours = Ours()
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "gpu",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": device_facts(device),
        "settings": {
            "rounds": options.rounds,
            "seconds": options.seconds,
            "quick": options.quick,
            "only": options.only,
            "span_bytes": span_bytes(device),
            "l2_times": L2_TIMES,
        },
        "ours": {"version": ours.version, "info": sigmoid_ce.info()},
        "backends": {
            name: {"version": None, "problem": peer.reason}
            if isinstance(peer, Missing)
            else {"version": peer.version, "problem": None}
            for name, peer in peers.items()
        },
        "complete": False,
        "groups": [],
        "rows": [],
        "failures": [],
    }
    start = time.monotonic()
    clock = Clock(start + options.seconds)
    for index, group in enumerate(groups):

        def progress(text: str, index: int = index, name: str = group.case.name) -> None:
            if sys.stderr.isatty():
                line = f"{index + 1} of {len(groups)}  {name}  {text}"
                print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

        if not sys.stderr.isatty():
            seconds = time.monotonic() - start
            print(f"{seconds:5.0f} s  {group.case.name}", file=sys.stderr, flush=True)
        entries = measure_group(
            group, ours, peers, device, options.rounds, clock, progress=progress
        )
        report["groups"].append(group_report(group, entries))
        report["rows"].append(row_report(group, entries))
        report["failures"] += [
            f"{group.case.name}: {entry.name}: {entry.problem}"
            for entry in entries.values()
            if entry.failed
        ]
        report["complete"] = index + 1 == len(groups)
        if options.json:  # what there is, should the run be ended
            options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    return report


def device_facts(device: Device) -> dict[str, Any]:
    """What describes the device in a report."""
    import torch

    from .machine import cpu_model

    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    release = re.search(r"release ([\d.]+)", _output("nvcc", "--version"))
    facts: dict[str, Any] = {
        "name": device.name,
        "rehearsal": device.torch.type != "cuda",
        "driver": driver.splitlines()[0].strip() if driver else None,
        "torch_cuda": torch.version.cuda,
        "nvcc": release[1] if release else None,
        "l2_bytes": device.l2_bytes,
        "memory_bytes": device.memory_bytes,
        "cpu": cpu_model(),
        "python": sys.version.split()[0],
    }
    if device.torch.type == "cuda":
        properties = torch.cuda.get_device_properties(device.torch)
        facts["compute_capability"] = f"{properties.major}.{properties.minor}"
        facts["multiprocessors"] = properties.multi_processor_count
    return facts


def _output(*command: str) -> str:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=30
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description="Measures this project on a GPU beside its peers and the limits of the memory.",
    )
    parser.add_argument("--rounds", type=int, help="measurements of each entry (15)")
    parser.add_argument(
        "--seconds", type=float, default=200.0, help="no group begins after so long (%(default)s)"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name holds TEXT")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"does it all work? {_QUICK_ROUNDS} rounds, small sizes, no torch.compile",
    )
    parser.add_argument("--max-elements", type=int, metavar="N", help="no array larger than this")
    parser.add_argument("--backends", metavar="A;B", help="peers to measure, by their names")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables")
    # Everything but the GPU, on the CPU: for tests.
    parser.add_argument("--rehearse", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)

    from .gpu_plan import CAFFE, COMPILE, COMPILE_BY_HAND, CUPY, PYTORCH, TRITON

    names = [PYTORCH, COMPILE, COMPILE_BY_HAND, TRITON, CUPY, CAFFE]
    if options.backends is None:
        slow = {COMPILE, COMPILE_BY_HAND} if options.quick else set()
        options.backends = [name for name in names if name not in slow]
    else:
        options.backends = [name for name in options.backends.split(";") if name]
        unknown = set(options.backends) - set(names)
        if unknown:
            parser.error(f"--backends: {sorted(unknown)} are none of {'; '.join(names)}")
    for file in filter(None, (options.json, options.markdown)):
        if file.is_dir() or not file.absolute().parent.is_dir():
            parser.error(f"{file} cannot be written")
    options.rounds = options.rounds or (_QUICK_ROUNDS if options.quick else 15)
    options.max_elements = options.max_elements or (_QUICK_ELEMENTS if options.quick else 2**62)
    return options


if __name__ == "__main__":
    sys.exit(main())
