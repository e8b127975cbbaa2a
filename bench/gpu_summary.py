"""The README's table of speed on a GPU, from a result file of the GPU benchmark.

    python -m bench.gpu_summary bench/results/gpu/FILE.json [--write README.md]

Prints the table, or puts it between the two markers of the file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .plan import size_name

BEGIN = "<!-- GPU speed: python -m bench.gpu_summary -->"
END = "<!-- end of GPU speed -->"
PEERS = ("PyTorch", "torch.compile", "Triton", "CuPy", "Caffe's operations")
_NONE = "-"


def summary(result: dict[str, Any]) -> str:
    """A Markdown table of ratios (medians over the rounds), and a line on the machine."""
    head = ["work", "scores", "targets", "elements", "time", "GB/s", "of the limit"]
    head += [f"vs {peer}" for peer in PEERS]
    lines = [head, ["---"] * len(head)]
    lines += [_cells(row) for row in result["rows"] if row["seconds"]]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    device, settings = result["device"], result["settings"]
    versions = ", ".join(
        dict.fromkeys(e["version"] for e in result["backends"].values() if e["version"])
    )
    return (
        f"{table}\n\n{device['name']}, driver {device['driver']}, nvcc {device['nvcc']}; "
        f"{versions}; {settings['rounds']} rounds, cold cache, {result['date'][:10]}."
    )


def _cells(row: dict[str, Any]) -> list[str]:
    work = row["work"] + (f", {row['options']}" if row["options"] else "")
    if row["timed"] != "events":
        work += f" ({row['timed']})"
    cells = [work, row["dtype"], row["targets"], size_name(row["elements"])]
    cells.append(f"{row['seconds']['median'] * 1e6:.3g} us")
    cells.append(f"{row['gigabytes_per_second']['median']:.0f}")
    limit = row["of_the_limit"]
    cells.append(f"{limit['median']:.0%}" if limit else _NONE)
    for peer in PEERS:
        ratio = row["ratios"].get(peer)
        cells.append(f"{ratio['median']:.2f}x" if ratio else _NONE)
    return cells


def insert(text: str, table: str) -> str:
    """`text` with the table between the markers."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="bench.gpu_summary", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("result", type=Path, help="a file that python -m bench.gpu --json wrote")
    parser.add_argument("--write", type=Path, help="the file to put the table into")
    arguments = parser.parse_args()
    table = summary(json.loads(arguments.result.read_text(encoding="utf-8")))
    if arguments.write is None:
        print(table)
    else:
        text = arguments.write.read_text(encoding="utf-8")
        arguments.write.write_text(insert(text, table), encoding="utf-8")


if __name__ == "__main__":
    main()
