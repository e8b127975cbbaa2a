"""The tables and pictures of README.md and docs/dropin.md, from the results in bench/results.

    python -m bench.summary            # says what differs; exit status 1 if anything does
    python -m bench.summary --write    # writes it all

Taken are the newest result of the CPU, of Caffe's layers and of a GPU. What is between two markers
of a page is replaced, and nothing around it.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import gpu_summary, plots
from .plan import PROFILES

ROOT = Path(__file__).resolve().parents[1]

BEGIN = "<!-- speed: python -m bench.summary -->"
END = "<!-- end of speed -->"
_MARKERS = {
    "speed": (BEGIN, END),
    **{
        name: (f"<!-- {name}: python -m bench.summary -->", f"<!-- end of {name} -->")
        for name in ("pictures", "accuracy", "caffe", "family")
    },
    "gpu": (gpu_summary.BEGIN, gpu_summary.END),
}

# Columns, where a result has them.
PEERS = (
    "PyTorch",
    "PyTorch (trim raised)",
    "torch.compile",
    "JAX",
    "TensorFlow",
    "Numba",
    "scikit-learn",
    "NumPy",
    "Caffe built-in",
)
# Sizes of the table; the pictures have the others.
_SIZES = {"float32": (2**24, 2**20, 2**16, 2**10), "float64": (2**23,)}
# At sizes that stay in cache the limit of the memory says nothing.
_LEAST_OF_MEMORY = 2**22
_NONE = "-"


# ---- Results ----


@dataclass(frozen=True)
class Results:
    """The newest ones. None: there is none.

    cpu: of the speed. accuracy: the newest that has it.
    """

    cpu: dict[str, Any] | None
    accuracy: dict[str, Any] | None
    caffe: dict[str, Any] | None
    family: dict[str, Any] | None
    gpu: dict[str, Any] | None

    @property
    def pictures(self) -> dict[str, Any] | None:
        """What the pictures are drawn from."""
        if self.cpu is None:
            return None
        found = self.accuracy["accuracy"] if self.accuracy else None
        return {**self.cpu, "accuracy": found}


def read_results(folder: Path) -> Results:
    """From a folder such as bench/results. Quick runs and runs of a part do not count."""
    whole = [result for result in _read(folder) if _is_whole(result)]
    family = [result for result in whole if result.get("profile") == "family"]
    cpu = [result for result in whole if result.get("profile") != "family"]
    with_accuracy = [result for result in cpu if result.get("accuracy")]
    return Results(
        cpu[-1] if cpu else None,
        with_accuracy[-1] if with_accuracy else None,
        next(iter(reversed(_read(folder / "caffe"))), None),
        family[-1] if family else None,
        next(iter(reversed(_read(folder / "gpu"))), None),
    )


def _read(folder: Path) -> list[dict[str, Any]]:
    """By date, which the names of the files begin with where the results have none."""
    found = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in folder.glob("*.json")]
    found.sort(key=lambda item: (item[1].get("date") or item[0].name, item[0].name))
    return [result for _, result in found]


def _is_whole(result: dict[str, Any]) -> bool:
    """Whether all of a profile was measured, to its end, on its sizes and beside its peers.

    What a result of former versions does not say is taken to be so.
    """
    settings = result["settings"]
    profile = PROFILES[result.get("profile") or "default"]
    return (
        result.get("complete", True)
        and not settings.get("quick")
        and result.get("profile") != "quick"
        and not settings.get("only")
        and (settings.get("max_elements") or math.inf) >= profile.max_elements
        and settings.get("backends") is None
        and settings.get("figures", True)
    )


# ---- The table of speed ----


def summary(result: dict[str, Any]) -> str:
    """A Markdown table of ratios (medians over the rounds), and a line on the machine."""
    peers = [peer for peer in PEERS if any(peer in row["ratios"] for row in result["rows"])]
    head = ["work", "scores", "elements", *(f"vs {peer}" for peer in peers)]
    lines = [[*head, "GB/s", "of the limit", "arithmetic"]]
    lines += [_cells(row, peers) for row in result["rows"] if _is_in_table(row)]
    machine, settings = result["machine"], result["settings"]
    versions = ", ".join(
        dict.fromkeys(
            about["version"].split(",")[0]
            for name, about in result["backends"].items()
            if about["version"] and name in peers
        )
    )
    cache = machine["last_level_cache_bytes"]
    in_cache = f"{cache // 2**20} MiB of cache, " if cache else ""
    return (
        f"{_markdown(lines)}\n\n{machine['cpu']}, {settings['threads']} threads, {in_cache}"
        f"{result['ours']['info']['isa']}, {result['ours']['info']['compiler']}; {versions}; "
        f"up to {settings['rounds']} rounds, {result['date'][:10]}."
    )


def _is_in_table(row: dict[str, Any]) -> bool:
    """Not the sizes in between, nor what is measured for other questions."""
    if not row["seconds"] or row.get("threads") or row["isa"] not in (None, "avx2"):
        return False
    plain = not row.get("option") and not row.get("shape")
    if plain and row["work"] != "elementwise" and row["dtype"] in _SIZES:
        return row["elements"] in _SIZES[row["dtype"]]
    # Of options, shapes, half types and losses of elements, one way each.
    if row["work"] == "elementwise":
        return plain and row["gradient"] == "reused" and row["dtype"] == "float32"
    return row["work"] == "forward + backward" and row["gradient"] == "reused"


def _cells(row: dict[str, Any], peers: list[str]) -> list[str]:
    work = row["work"]
    if row["gradient"] == "fresh":
        work += ", new gradient array"
    if row["targets"] != "hard":
        work += f", {row['targets']} targets"
    if row["isa"]:
        work += f", {row['isa']} forced"
    if row.get("option"):
        work += f", {row['option']}"
    cells = [work, row["dtype"], row.get("shape") or _size(row["elements"])]
    for peer in peers:
        ratio = row["ratios"].get(peer)
        cells.append(f"{ratio['median']:.1f}x" if ratio else _NONE)
    rate = row["gelem_per_second"]["median"]
    cells.append(f"{rate * row['bytes_per_element']:.1f}")
    limit = row["limits"].get(row["limit"]) if row["limit"] else None
    if limit is None or row["elements"] < _LEAST_OF_MEMORY:
        return [*cells, _NONE, _NONE]
    cells.append(f"{limit['median']:.0%}")
    cached = row["in_cache_gelem_per_second"]
    if cached is None:
        return [*cells, _NONE]
    return [*cells, f"{cached['median'] * limit['median'] / rate:.0%}"]


# ---- The other tables ----


def accuracy(result: dict[str, Any]) -> str:
    """A Markdown table of the largest errors in float32, and of the error of the mean."""
    entries = [
        entry
        for entry in result["accuracy"]
        if entry["dtype"] == "float32" and (entry["loss_ulp"] or entry["mean_error"])
    ]
    sizes = {entry["mean_error"]["elements"] for entry in entries if entry["mean_error"]}
    lines = [
        [
            "largest error, ulp",
            *(f"{kind}, t = {t}" for kind in ("loss", "gradient") for t in (0, 1)),
            f"mean of {' or '.join(map(_size, sorted(sizes)))}",
        ]
    ]
    for entry in entries:
        version = (entry["version"] or "").split(",")[0]
        ours = entry["backend"] == "sigmoid_ce"
        mean = entry["mean_error"]
        lines.append(
            [
                entry["backend"] if ours else f"{entry['backend']} ({version})",
                *(
                    f"{float(entry[key][t]):.3g}" if entry[key] else _NONE
                    for key in ("loss_ulp", "gradient_ulp")
                    for t in ("0", "1")
                ),
                f"{float(mean['float32_ulp']):.2g}" if mean else _NONE,
            ]
        )
    return _markdown(lines)


def caffe(result: dict[str, Any]) -> str:
    """A Markdown table of a real Caffe's layers: medians over the rounds."""
    lines = [
        ["elements", "work", "built-in / ours", "by `caffe time`", "ours / kernels called directly"]
    ]
    for row, timed in zip(result["rows"], result["caffe_time"], strict=True):
        for passes in (("forward",), ("backward",), ("forward", "backward")):
            by_caffe = sum(timed["built-in"][one] for one in passes) / sum(
                timed["ours"][one] for one in passes
            )
            lines.append(
                [
                    _size(row["elements"]),
                    " + ".join(passes),
                    f"{_caffe_ratio(row, passes, 'built-in', 'ours'):.3g}x",
                    f"{by_caffe:.3g}x",
                    f"{_caffe_ratio(row, passes, 'ours', 'kernels'):.2f}",
                ]
            )
    return _markdown(lines)


def family(result: dict[str, Any]) -> str:
    """Two Markdown tables: the time of options over that of the plain loss, and the peers."""
    costs = [["work", "option", "time / plain", "bytes / plain"]]
    plain: dict[str, Any] = {}
    for row in result["rows"]:
        if row["option"] or not row["seconds"]:
            continue
        if row["entry"] == "ours":
            plain[row["group"]] = row
            continue
        option = row["variant_option"] or "plain"
        kind = "" if row["targets"] == "hard" else f", {row['targets']} targets"
        bytes_ratio = row["bytes_per_element"] / plain[row["group"]]["bytes_per_element"]
        costs.append(
            [
                row["work"],
                option + kind,
                f"{1 / row['ratios']['ours']['median']:.2f}",
                f"{bytes_ratio:.2f}",
            ]
        )
    peers = ["PyTorch", "torch.compile"]
    others = [["work", "option", *(f"vs {peer}" for peer in peers)]]
    for row in result["rows"]:
        if not row["option"] or not row["seconds"]:
            continue
        work = row["work"] + (", new gradient array" if row["gradient"] == "fresh" else "")
        ratios = [row["ratios"].get(peer) for peer in peers]
        cells = [f"{ratio['median']:.1f}x" if ratio else _NONE for ratio in ratios]
        others.append([work, row["option"], *cells])
    machine, settings = result["machine"], result["settings"]
    sizes = sorted({_size(row["elements"]) for row in result["rows"]})
    return (
        f"{_markdown(costs)}\n\n{_markdown(others)}\n\nfloat32, {' and '.join(sizes)} elements; "
        f"{machine['cpu']}, "
        f"{settings['threads']} threads, {result['ours']['info']['isa']}, {result['date'][:10]}."
    )


def _caffe_ratio(row: dict[str, Any], passes: tuple[str, ...], over: str, under: str) -> float:
    def seconds(name: str) -> np.ndarray:
        return np.array([row["seconds"][f"{name}, {one}"] for one in passes]).sum(axis=0)

    return float(np.median(seconds(over) / seconds(under)))


def pictures(names: list[str]) -> str:
    """Markdown that shows them."""
    return "\n\n".join(f"![{plots.ALT_TEXTS[name]}](docs/{name}.svg)" for name in names)


def _markdown(lines: list[list[str]]) -> str:
    rule = ["---"] * len(lines[0])
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])


def _size(elements: int) -> str:
    k = elements.bit_length() - 1
    return f"2^{k}" if elements == 2**k else str(elements)


# ---- Pages ----


def insert(text: str, table: str, name: str = "speed") -> str:
    """`text` with the table between the markers of that name. Raises ValueError without those."""
    begin, end = _MARKERS[name]
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"expected one {begin!r} and one {end!r} after it")
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    return f"{before}{begin}\n\n{table}\n\n{end}{after}"


def page_parts(results: Results) -> dict[str, dict[str, str]]:
    """By page, what belongs between the markers of each name."""
    readme, dropin, losses = {}, {}, {}
    if results.cpu:
        readme["speed"] = summary(results.cpu)
        readme["pictures"] = pictures(_names(results, "bench_throughput", "bench_speedup"))
    if results.accuracy:
        picture = pictures(_names(results, "bench_accuracy"))
        readme["accuracy"] = "\n\n".join(filter(None, [accuracy(results.accuracy), picture]))
    if results.gpu:
        readme["gpu"] = gpu_summary.summary(results.gpu)
    if results.caffe:
        dropin["caffe"] = caffe(results.caffe)
    if results.family:
        losses["family"] = family(results.family)
    return {"README.md": readme, "docs/dropin.md": dropin, "docs/losses.md": losses}


def _names(results: Results, *wanted: str) -> list[str]:
    report = results.pictures
    return [name for name in wanted if report is not None and name in plots.names(report)]


def _filled(text: str, parts: dict[str, str]) -> str:
    for name, part in parts.items():
        begin, end = _MARKERS[name]
        if name == "gpu" and begin not in text:
            # The first result of a GPU makes its own place, after the CPU's pictures.
            before = _MARKERS["pictures"][1]
            text = text.replace(before, f"{before}\n\n### On a GPU\n\n{begin}\n\n{end}", 1)
        text = insert(text, part, name)
    return text


# ---- What differs ----


def differences(root: Path = ROOT, results: Results | None = None) -> list[str]:
    """What of the pages and pictures is not what the results give; a line for each."""
    results = results or read_results(root / "bench" / "results")
    found = []
    for page, parts in page_parts(results).items():
        if not parts:
            continue
        text = (root / page).read_text(encoding="utf-8")
        for name, part in parts.items():
            if _MARKERS[name][0] not in text:
                found.append(f"{page}: no place for {name}: {_MARKERS[name][0]}")
            elif insert(text, part, name) != text:
                found.append(f"{page}: the part {name!r} differs from the results")
    report = results.pictures
    expected = plots.names(report) if report else []
    there = {path.stem for path in (root / "docs").glob("bench_*.*")}
    found += [
        f"docs/{name}: drawn from no result" for name in sorted(there) if name not in expected
    ]
    for name in expected:
        found += _picture_differences(root / "docs", report, name)
    return found


def _picture_differences(folder: Path, report: dict[str, Any] | None, name: str) -> list[str]:
    """By the digest in each file; with the same matplotlib, also by what it draws now."""
    assert report is not None
    found = []
    for kind in ("svg", "png"):
        path = folder / f"{name}.{kind}"
        if not path.exists():
            found.append(f"docs/{path.name}: missing")
        elif plots.digest(report, name).encode() not in path.read_bytes():
            found.append(f"docs/{path.name}: drawn from other figures")
    svg = folder / f"{name}.svg"
    if found or not _drawn_by_the_same(svg.read_text(encoding="utf-8")):
        return found
    with tempfile.TemporaryDirectory() as temporary:
        again = Path(temporary) / svg.name
        plots.write_one(report, name, again, "svg")
        if again.read_bytes() != svg.read_bytes():
            found.append(f"docs/{svg.name}: drawn otherwise now")
    return found


def _drawn_by_the_same(svg: str) -> bool:
    try:
        import matplotlib
    except ImportError:
        return False
    made_by = re.search(r"matplotlib ([^\s<]+)", svg)
    return made_by is not None and made_by[1] == matplotlib.__version__


def write(root: Path = ROOT) -> list[Path]:
    """Writes what differs, and returns it. Raises ValueError for a page without markers."""
    results = read_results(root / "bench" / "results")
    written = []
    for page, parts in page_parts(results).items():
        if not parts:
            continue
        path = root / page
        text = path.read_text(encoding="utf-8")
        try:
            filled = _filled(text, parts)
        except ValueError as error:
            raise ValueError(f"{page}: {error}") from None
        if filled != text:
            path.write_text(filled, encoding="utf-8")
            written.append(path)
    report = results.pictures
    names = plots.names(report) if report else []
    for path in sorted((root / "docs").glob("bench_*.*")):
        if path.stem not in names:
            path.unlink()
            written.append(path)
    for name in names:
        if _picture_differences(root / "docs", report, name):
            for kind in ("svg", "png"):
                path = root / "docs" / f"{name}.{kind}"
                plots.write_one(report or {}, name, path, kind)
                written.append(path)
    return written


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.summary", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--write", action="store_true", help="write what differs")
    arguments = parser.parse_args()
    if arguments.write:
        try:
            written = write()
        except ValueError as error:
            print(f"Error: {error}", file=sys.stderr)
            return 1
        for path in written:
            print(path.relative_to(ROOT), "" if path.exists() else "(removed)")
        return 0
    found = differences()
    print("\n".join(found) or "All is what the results give.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
