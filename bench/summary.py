"""The README's speed table, from a result file of the benchmark.

    python -m bench.summary bench/results/FILE.json [--write README.md]

Prints the table, or puts it between the two markers of the file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

BEGIN = "<!-- speed: python -m bench.summary -->"
END = "<!-- end of speed -->"
PEERS = ("PyTorch", "torch.compile", "JAX", "NumPy")


def summary(result: dict[str, Any]) -> str:
    """A Markdown table of ratios (medians over the rounds), and a line on the machine."""
    head = ["work", "scores", "elements", *(f"vs {p}" for p in PEERS), "of the limit", "arithmetic"]
    lines = [head, ["---"] * len(head)]
    lines += [_cells(row) for row in result["rows"]]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    machine, settings = result["machine"], result["settings"]
    versions = ", ".join(dict.fromkeys(e["version"] for e in result["backends"].values()))
    cache = machine["last_level_cache_bytes"] // 2**20
    return (
        f"{table}\n\n{machine['cpu']}, {settings['threads']} threads, {cache} MiB of cache, "
        f"{result['ours']['info']['isa']}, {result['ours']['info']['compiler']}; {versions}; "
        f"{settings['rounds']} rounds, {result['date'][:10]}."
    )


def _cells(row: dict[str, Any]) -> list[str]:
    work = row["work"]
    if row["gradient"] == "fresh":
        work += ", new gradient array"
    if row["targets"] != "hard":
        work += f", {row['targets']} targets"
    if row["isa"]:
        work += f", {row['isa']} forced"
    cells = [work, row["dtype"], f"2^{row['elements'].bit_length() - 1}"]
    for peer in PEERS:
        ratio = row["ratios"].get(peer)
        cells.append(f"{ratio['median']:.1f}x" if ratio else "-")
    limit = row["limits"].get(row["limit"]) if row["limit"] else None
    # At sizes that stay in cache the limit of the memory says nothing.
    if limit is None or row["elements"] < 2**22:
        return [*cells, "-", "-"]
    cells.append(f"{limit['median']:.0%}")
    cached = row["in_cache_gelem_per_second"]
    if cached is None:
        return [*cells, "-"]
    limit_rate = row["gelem_per_second"]["median"] / limit["median"]
    return [*cells, f"{cached['median'] / limit_rate:.0%}"]


def insert(text: str, table: str) -> str:
    """`text` with the table between the markers."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.summary", description=__doc__.split("\n", 1)[0])
    parser.add_argument("result", type=Path, help="a file that python -m bench --json wrote")
    parser.add_argument("--write", type=Path, help="the file to put the table into")
    arguments = parser.parse_args()
    table = summary(json.loads(arguments.result.read_text()))
    if arguments.write is None:
        print(table)
    else:
        arguments.write.write_text(insert(arguments.write.read_text(), table))


if __name__ == "__main__":
    main()
