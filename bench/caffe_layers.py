"""The layer in a real Caffe beside the built-in one, and beside the kernels called directly.

    python -m bench.caffe_layers [--rounds 15] [--threads 2] [--json FILE]

Needs a clone, whose tests know how to get and build a Caffe (docs/dropin.md). One process has the
stock Caffe with our plugin under a second type name, so both layers and the kernels are measured
in the same rounds, on the same blobs, through pycaffe; then `caffe time` measures each layer in its
own way. Each result is compared with float64 before its time counts. Blobs have 16 rows, scores are
N(0, 3), targets 0 or 1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from . import machine
from .backends.base import timer
from .measure import Entry, WrongResult, measure_rounds

SIZES = (2**20, 2**24)
BATCH = 16
OURS, BUILT_IN = "SigmoidCELoss", "SigmoidCrossEntropyLoss"

_NET = """
force_backward: true
layer {{ name: "data" type: "Input" top: "x" top: "t"
        input_param {{ shape {{ dim: {rows} dim: {columns} }}
                       shape {{ dim: {rows} dim: {columns} }} }} }}
layer {{ name: "loss" type: "{type}" bottom: "x" bottom: "t" top: "l" loss_weight: 1 }}
"""
_TIMED_NET = """
force_backward: true
layer {{ name: "data" type: "DummyData" top: "x" top: "t" dummy_data_param {{
        shape {{ dim: {rows} dim: {columns} }} shape {{ dim: {rows} dim: {columns} }}
        data_filler {{ type: "gaussian" std: 3 }} data_filler {{ type: "constant" value: 1 }} }} }}
layer {{ name: "power" type: "Power" bottom: "x" top: "y" }}
layer {{ name: "loss" type: "{type}" bottom: "y" bottom: "t" top: "l" loss_weight: 1 }}
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.caffe_layers", description="Times the layers of a real Caffe."
    )
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each (15)")
    parser.add_argument("--threads", type=int, default=2, help="for ours; Caffe's has one (2)")
    parser.add_argument("--max-elements", type=int, default=SIZES[-1], help="no blob larger")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--worker", metavar="PLUGIN", help=argparse.SUPPRESS)
    parser.add_argument("--memory", metavar="TYPE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.max_elements < BATCH:
        parser.error(f"--max-elements: expected {BATCH} or more, got {options.max_elements}")
    sizes = [size for size in SIZES if size <= options.max_elements] or [options.max_elements]
    if options.worker:
        cpus = machine.restrict_to_cpus(options.threads)
        _load(options.worker)
        found = (
            {"extra_bytes": _memory(options.memory, sizes[-1])}
            if options.memory
            else {
                "machine": machine.facts(cpus),
                "rows": [_measure(n, options.rounds) for n in sizes],
            }
        )
        print(json.dumps(found))
        return 0
    report = _run(options, sizes)
    _print(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


# ---- In the process with pycaffe ----


def _load(plugin: str) -> None:
    from sigmoid_ce.caffe import load_plugin

    os.environ.setdefault("GLOG_minloglevel", "2")
    load_plugin(plugin, OURS)


def _net(kind: str, elements: int) -> Any:
    import caffe

    with tempfile.NamedTemporaryFile("w", suffix=".prototxt") as file:
        file.write(_NET.format(type=kind, rows=BATCH, columns=elements // BATCH))
        file.flush()
        return caffe.Net(file.name, caffe.TRAIN)


def _fill(net: Any) -> None:
    """The same values for every net."""
    rng = np.random.default_rng(0)
    x, t = net.blobs["x"].data, net.blobs["t"].data
    x[...] = 3 * rng.standard_normal(x.shape, dtype=np.float32)
    t[...] = rng.random(t.shape, dtype=np.float32) < 0.5


def _measure(elements: int, rounds: int) -> dict[str, Any]:
    from sigmoid_ce import cpu, reference

    nets = {"built-in": _net(BUILT_IN, elements), "ours": _net(OURS, elements)}
    for net in nets.values():
        _fill(net)
    x, t = (nets["ours"].blobs[name].data for name in "xt")
    diff = nets["ours"].blobs["x"].diff
    exact_loss, exact = reference.forward_backward(x, t)
    # The built-in layer adds up in float32: 0.07% off at 2^20 elements, 3% at 2^24.
    allowed = {"ours": 1e-7, "built-in": 0.2}
    errors = {}
    for name, net in nets.items():
        loss = float(net.forward()["l"])
        net.backward()
        errors[name] = abs(loss - exact_loss) / exact_loss
        # Both subtract or scale in float32: some ulp of 1, over the batch size.
        worst = float(np.abs(net.blobs["x"].diff - exact).max()) * BATCH
        if not (errors[name] < allowed[name] and worst < 1e-6):
            raise WrongResult(f"{name}: loss off by {errors[name]:.1e}, gradient by {worst:.1e}")

    calls: dict[str, Callable[[], object]] = {
        "kernels, forward": lambda: cpu.forward(x, t),
        "kernels, backward": lambda: cpu.backward(x, t, out=diff),
    }
    for name, net in nets.items():
        calls[f"{name}, forward"] = partial(net._forward, 1, 1)
        calls[f"{name}, backward"] = partial(net._backward, 1, 1)
    entries = [Entry(name, elements, time=timer(call)) for name, call in calls.items()]
    measure_rounds(entries, rounds)
    seconds = {entry.name: entry.seconds for entry in entries}
    return {"elements": elements, "seconds": seconds, "loss_errors": errors}


def _memory(kind: str, elements: int) -> int:
    """Bytes that a forward and a backward pass add to the scores, the targets and the gradient."""
    warm = _net(kind, BATCH)
    warm.forward()
    warm.backward()
    net = _net(kind, elements)
    _fill(net)
    gradient = net.blobs["x"].diff
    gradient[...] = 0
    before = _resident()
    net.forward()
    net.backward()
    return _resident() - before


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


# ---- Around it ----


def _run(options: argparse.Namespace, sizes: list[int]) -> dict[str, Any]:
    try:
        from tests import realcaffe
    except ImportError:
        sys.exit("python -m bench.caffe_layers needs the root of a clone as the current folder")
    from sigmoid_ce.caffe import build_plugin

    try:
        stock = realcaffe.stock()
    except (realcaffe.Missing, realcaffe.BuildError) as error:
        sys.exit(f"no Caffe to measure: {error}")
    with tempfile.TemporaryDirectory() as folder:
        plugin = Path(folder) / "plugin.so"
        build_plugin(stock.includes, stock.library, plugin)
        command = [sys.executable, "-m", "bench.caffe_layers", "--worker", str(plugin)]
        command += ["--rounds", str(options.rounds), "--threads", str(options.threads)]
        command += ["--max-elements", str(sizes[-1])]

        def worker(*more: str) -> Any:
            done = subprocess.run(
                [*command, *more], env=_environment(stock), capture_output=True, text=True
            )
            if done.returncode != 0:
                sys.exit(f"the measuring process failed:\n{done.stderr[-3000:]}")
            return json.loads(done.stdout.splitlines()[-1])

        report: dict[str, Any] = worker()
        report["extra_bytes"] = {
            name: worker("--memory", kind)["extra_bytes"]
            for name, kind in (("built-in", BUILT_IN), ("ours", OURS))
        }
        report["caffe_time"] = [
            _caffe_time(stock, plugin, elements, options.threads) for elements in sizes
        ]
    report["threads"] = options.threads
    report["rounds"] = options.rounds
    return report


def _environment(stock: Any) -> dict[str, str]:
    env: dict[str, str] = stock.env({"GLOG_minloglevel": "2"})
    # This copy of the benchmark, and pycaffe before it.
    root = str(Path(__file__).parents[1])
    return {**env, "PYTHONPATH": os.pathsep.join([root, env["PYTHONPATH"]])}


def _caffe_time(stock: Any, plugin: Path, elements: int, threads: int) -> dict[str, Any]:
    """Milliseconds of the loss layer's forward and backward pass, as `caffe time` prints them."""
    result: dict[str, Any] = {"elements": elements}
    for name, kind in (("built-in", BUILT_IN), ("ours", OURS)):
        with tempfile.NamedTemporaryFile("w", suffix=".prototxt") as file:
            file.write(_TIMED_NET.format(type=kind, rows=BATCH, columns=elements // BATCH))
            file.flush()
            env = {
                "LD_PRELOAD": str(plugin),
                "SIGMOID_CE_PLUGIN_TYPE": OURS,
                "SIGMOID_CE_NUM_THREADS": str(threads),
            }
            done = stock.run("time", "-model", file.name, "-iterations", "10", env=env)
        found = dict(re.findall(r"loss\s+(forward|backward): ([\d.e+-]+) ms", done.stderr))
        result[name] = {key: float(value) for key, value in found.items()}
    return result


def _print(report: dict[str, Any]) -> None:
    def ratio(row: dict[str, Any], a: tuple[str, ...], b: tuple[str, ...]) -> float:
        """Median over the rounds of the seconds of a over those of b."""
        seconds = row["seconds"]
        over = sum(np.array(seconds[name]) for name in a)
        under = sum(np.array(seconds[name]) for name in b)
        return float(np.median(over / under))

    print(
        "| elements | work | built-in / ours | by `caffe time` | ours / kernels called directly |"
    )
    print("| --- | --- | --- | --- | --- |")
    for row, timed in zip(report["rows"], report["caffe_time"], strict=True):
        for label, passes in (
            ("forward", ("forward",)),
            ("backward", ("backward",)),
            ("forward + backward", ("forward", "backward")),
        ):
            built_in, ours, kernels = (
                tuple(f"{name}, {one}" for one in passes)
                for name in ("built-in", "ours", "kernels")
            )
            by_caffe = sum(timed["built-in"][one] for one in passes) / sum(
                timed["ours"][one] for one in passes
            )
            size = f"2^{int(np.log2(row['elements']))}"
            print(
                f"| {size} | {label} | {ratio(row, built_in, ours):.3g}x "
                f"| {by_caffe:.3g}x | {ratio(row, ours, kernels):.2f} |"
            )
    for row in report["rows"]:
        errors = row["loss_errors"]
        print(
            f"\nError of the loss at 2^{int(np.log2(row['elements']))}: built-in "
            f"{errors['built-in']:.2g}, ours {errors['ours']:.2g} (relative)"
        )
    extra = report["extra_bytes"]
    largest = report["rows"][-1]["elements"]
    print(
        f"\nMemory beyond scores, targets and gradient at 2^{int(np.log2(largest))}: built-in "
        f"{extra['built-in'] / (4 * largest):.2f} arrays, ours {extra['ours'] / 1024:.0f} KiB"
    )
    print(f"\n{report['machine']['cpu']}, {report['threads']} threads, {report['rounds']} rounds")


if __name__ == "__main__":
    sys.exit(main())
