"""Pictures of a report: throughput against size, speed-up, error against score. As SVG and PNG.

    python -m bench.plots FILE.json FOLDER

The same report gives the same SVG, byte for byte, with the same version of matplotlib; each holds
a digest of the figures that it shows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

OURS = "ours"
_TITLE_OF_OURS = "sigmoid_ce"
# The same kernels within Caffe: their lines would lie on ours.
_OURS_TOO = ("Caffe ours in tree", "Caffe plugin", "Caffe Python layer (ours)")

# Okabe and Ito's colours, which the colour-blind can tell apart; line and marker differ as well.
_BLACK = "#000000"
_STYLES: dict[str, tuple[str, str, str]] = {
    OURS: ("#0072B2", "-", "o"),
    "PyTorch": ("#D55E00", "-", "s"),
    "PyTorch (trim raised)": ("#D55E00", ":", "s"),
    "torch.compile": ("#E69F00", "--", "D"),
    "torch.compile, func.grad": ("#E69F00", ":", "D"),
    "JAX": ("#009E73", "-", "^"),
    "JAX, softplus": ("#009E73", ":", "^"),
    "TensorFlow": ("#CC79A7", "-", "v"),
    "TensorFlow, no XLA": ("#CC79A7", ":", "v"),
    "Numba": ("#56B4E9", "--", "P"),
    "scikit-learn": ("#666666", "--", "X"),
    "HalfBinomialLoss": ("#666666", "--", "X"),
    "NumPy": ("#999999", "-", "<"),
    "NumPy (blog)": ("#999999", ":", ">"),
    "NumPy (blog, class-weighted)": ("#999999", "-.", "p"),
    "Caffe built-in": (_BLACK, "-", "*"),
    "Caffe's formula": (_BLACK, "-", "*"),
    "Caffe Python layer (blog)": (_BLACK, ":", "d"),
}
_OTHER = ("#B08D57", "-.", "h")

# One panel each: work, where its gradient goes.
_PANELS = (("forward", None), ("forward + backward", "reused"))
_LARGE, _SMALL = 2**24, 2**16
# The top of the axis of errors: larger ones and results that are not finite.
_INFINITE_ULP = 1e9
_LEAST_ULP = 0.1

Data = dict[str, Any]


# ---- What the pictures show ----


def throughput_data(report: dict[str, Any]) -> Data | None:
    """Gelem/s of each backend and the limit by size, for float32. None: fewer than two sizes."""
    panels: list[Data] = []
    for work, gradient in _PANELS:
        groups = sorted(_plain_groups(report, work, gradient), key=lambda group: group["elements"])
        lines: dict[str, list[list[float]]] = {}
        limit: list[list[float]] = []
        for group in groups:
            rates = _rates(group)
            for name in (OURS, *report["backends"]):
                if name in rates and name not in _OURS_TOO:
                    lines.setdefault(name, []).append([group["elements"], _short(rates[name])])
            best = max((rate for name, rate in rates.items() if " limit" in name), default=None)
            if best is not None:
                limit.append([group["elements"], _short(best)])
        panels.append({"work": work, "lines": lines, "limit": limit})
    lengths = [len(line) for panel in panels for line in panel["lines"].values()]
    if max(lengths, default=0) < 2:
        return None
    cache = report["machine"]["last_level_cache_bytes"]
    return {"panels": panels, "cache_bytes": cache, "machine": _machine(report)}


def speedup_data(report: dict[str, Any]) -> Data | None:
    """Ours over each backend: forward, and both passes, for a large and a small size."""
    panels = []
    for work, gradient in _PANELS:
        rows = [row for row in report["rows"] if _is_plain(row, work, gradient) and row["ratios"]]
        rows = [row for row in rows if row["entry"] == OURS]
        sizes = [row["elements"] for row in rows]
        for elements in _sizes(sizes):
            row = rows[sizes.index(elements)]
            bars = {
                name: [_short(ratio[key]) for key in ("median", "p20", "p80")]
                for name, ratio in row["ratios"].items()
                if name in report["backends"] and name not in _OURS_TOO
            }
            if bars:
                panels.append({"work": work, "elements": elements, "bars": bars})
    return {"panels": panels, "machine": _machine(report)} if panels else None


def accuracy_data(report: dict[str, Any]) -> Data | None:
    """Largest errors in ulp per bin of the score, for float32. None: not in the report."""
    lines = {}
    for entry in report.get("accuracy") or []:
        if entry["dtype"] != "float32" or not entry["curve"]:
            continue
        name = OURS if entry["backend"] == _TITLE_OF_OURS else entry["backend"]
        lines[name] = {
            key: [_short(float(value), 3) for value in entry["curve"][key]]
            for key in ("score", "loss_ulp", "gradient_ulp")
        }
    return {"lines": lines} if lines else None


def _plain_groups(report: dict[str, Any], work: str, gradient: str | None) -> list[Any]:
    return [group for group in report["groups"] if _is_plain(group, work, gradient)]


def _is_plain(about: dict[str, Any], work: str, gradient: str | None) -> bool:
    return (
        about["work"] == work
        and about["gradient"] == gradient
        and about["dtype"] == "float32"
        and not about.get("option")
        and not about.get("shape")
    )


def _rates(group: dict[str, Any]) -> dict[str, float]:
    """Medians in Gelem/s."""
    return {
        name: float(np.median(entry["elements"] / np.array(entry["seconds"]))) / 1e9
        for name, entry in group["entries"].items()
        if entry["seconds"]
    }


def _sizes(sizes: list[int]) -> list[int]:
    """The two to show: 2^24 and 2^16, or what is nearest to them."""
    chosen = (
        [min(sizes, key=lambda size: abs(math.log2(size / wanted))) for wanted in (_LARGE, _SMALL)]
        if sizes
        else []
    )
    return list(dict.fromkeys(chosen))


def _machine(report: dict[str, Any]) -> str:
    threads = report["settings"]["threads"]
    return (
        f"{report['machine']['cpu']}, {threads} thread{'s' if threads != 1 else ''}, "
        f"{report['date'][:10]}"
    )


def _short(value: float, digits: int = 4) -> float:
    """As many digits as a picture shows. Infinity becomes the top of the axis."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else _INFINITE_ULP


# ---- The pictures ----


def throughput(data: Data) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.9), layout="constrained")
    panels = figure.subplots(1, len(data["panels"]), sharey=True)
    for axes, panel in zip(panels, data["panels"], strict=True):
        if panel["limit"]:
            sizes, rates = zip(*panel["limit"], strict=True)
            axes.plot(sizes, rates, color=_BLACK, lw=3, alpha=0.25, zorder=1, label="the limit")
        for name, line in panel["lines"].items():
            sizes, rates = zip(*line, strict=True)
            axes.plot(sizes, rates, label=_label(name), **_style(name))
        bytes_per_element = 8 if panel["work"] == "forward" else 12
        if data["cache_bytes"]:
            edge = data["cache_bytes"] / bytes_per_element
            axes.axvline(edge, color="#888888", lw=0.8, ls=(0, (2, 2)), zorder=0)
            axes.annotate(
                "last-level cache",
                (edge, 0.02),
                xycoords=("data", "axes fraction"),
                rotation=90,
                ha="right",
                va="bottom",
                fontsize=8,
                color="#666666",
            )
        axes.set(xscale="log", yscale="log", xlabel="elements", title=panel["work"])
        axes.set_xscale("log", base=2)
        axes.grid(alpha=0.25, lw=0.6)
    panels[0].set_ylabel("billion elements per second")
    _legend(figure, panels)
    figure.suptitle(f"Throughput, float32 ({data['machine']})", fontsize=11)
    return figure


def speedup(data: Data) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    panels = data["panels"]
    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    names = list(dict.fromkeys(name for panel in panels for name in panel["bars"]))
    height = 0.7 + lines * (0.9 + 0.3 * len(names))
    figure = Figure(figsize=(11, height), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, squeeze=False)
    bars_of_all = [bar for panel in panels for bar in panel["bars"].values()]
    # Room for the figures at the ends.
    limits = min(0.8, *(bar[1] for bar in bars_of_all)), 2 * max(bar[2] for bar in bars_of_all)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    # By column: one work each.
    for axes, panel in zip(grid.T.flat, panels, strict=False):
        bars = {name: panel["bars"][name] for name in names if name in panel["bars"]}
        for y, (name, (median, p20, p80)) in enumerate(bars.items()):
            axes.barh(y, median, color=_style(name)["color"], height=0.66, alpha=0.85)
            axes.plot([p20, p80], [y, y], color=_BLACK, lw=1.2)
            axes.text(max(median, p80) * 1.06, y, f"{median:.3g}x", va="center", fontsize=9)
        axes.axvline(1, color=_BLACK, lw=0.8)
        axes.set_yticks(range(len(bars)), list(bars), fontsize=9)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.set_xlim(limits)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(f"{panel['work']}, {_power(panel['elements'])} elements", fontsize=10)
        axes.grid(axis="x", alpha=0.25, lw=0.6)
        axes.set_axisbelow(True)
    figure.suptitle(
        f"How many times as fast as each: medians, p20 to p80; float32 ({data['machine']})",
        fontsize=11,
    )
    return figure


def accuracy(data: Data) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.9), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, key, title in zip(
        panels, ("loss_ulp", "gradient_ulp"), ("loss", "gradient"), strict=True
    ):
        # Ours last, so that it lies on top. Markers at different scores: many lines coincide.
        for index, name in enumerate(sorted(data["lines"], key=lambda name: name == OURS)):
            line = data["lines"][name]
            style = _style(name) | {"markevery": (index % 10, 10), "markersize": 5.5}
            values = np.clip(line[key], _LEAST_ULP, _INFINITE_ULP)
            axes.plot(line["score"], values, label=_label(name), **style)
        axes.axhline(2, color="#888888", lw=0.8, ls=(0, (2, 2)))
        axes.set(
            yscale="log",
            ylim=(_LEAST_ULP, 3 * _INFINITE_ULP),
            xlabel="score",
            title=f"{title}, target 0 or 1",
        )
        axes.grid(alpha=0.25, lw=0.6)
    panels[0].set_ylabel("largest error, ulp of float32")
    panels[1].annotate("2 ulp", (60, 2.4), fontsize=8, color="#666666")
    if any(max(line["loss_ulp"]) >= _INFINITE_ULP for line in data["lines"].values()):
        panels[0].annotate(
            "not finite", (-84, _INFINITE_ULP), fontsize=8, color="#666666", va="center"
        )
    _legend(figure, panels)
    figure.suptitle(
        "Largest error of an element against its score (1.7e7: a result of 0 that should not be)",
        fontsize=11,
    )
    return figure


def _legend(figure: Any, panels: Any) -> None:
    """One for all panels, ours first, beside them."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    order = sorted(found, key=lambda label: label != _TITLE_OF_OURS)
    figure.legend(
        [found[label] for label in order],
        order,
        loc="outside right center",
        fontsize=9,
        frameon=False,
    )


def _style(name: str) -> dict[str, Any]:
    color, line, marker = _STYLES.get(name, _OTHER)
    ours = name == OURS
    return {
        "color": color,
        "ls": line,
        "marker": marker,
        "markersize": 6 if ours else 4.5,
        "lw": 2.6 if ours else 1.4,
        "zorder": 5 if ours else 3,
    }


def _label(name: str) -> str:
    return _TITLE_OF_OURS if name == OURS else name


def _power(elements: int) -> str:
    k = elements.bit_length() - 1
    return f"$2^{{{k}}}$" if elements == 2**k else str(elements)


# ---- Files ----

_PICTURES: dict[str, tuple[Callable[[dict[str, Any]], Data | None], Callable[[Data], Any]]] = {
    "bench_throughput": (throughput_data, throughput),
    "bench_speedup": (speedup_data, speedup),
    "bench_accuracy": (accuracy_data, accuracy),
}
ALT_TEXTS = {
    "bench_throughput": "Throughput against size, with the limit of the memory",
    "bench_speedup": "Speed-up over each backend",
    "bench_accuracy": "Largest error of loss and gradient against the score",
}


def names(report: dict[str, Any]) -> list[str]:
    """The pictures that a report gives."""
    return [name for name, (select, _) in _PICTURES.items() if select(report)]


def digest(report: dict[str, Any], name: str) -> str:
    """Of the figures that a picture shows."""
    data = _PICTURES[name][0](report)
    text = json.dumps(data, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def describe(report: dict[str, Any], name: str) -> tuple[str, str]:
    """What the SVG says of itself: the version of matplotlib, and the digest of its data."""
    import matplotlib

    return f"matplotlib {matplotlib.__version__}", f"data sha256 {digest(report, name)}"


def write_one(report: dict[str, Any], name: str, path: Path, kind: str) -> None:
    """One picture as "svg" or "png"."""
    import matplotlib

    select, draw = _PICTURES[name]
    data = select(report)
    if data is None:
        raise ValueError(f"{name}: the report has no figures for it")
    creator, description = describe(report, name)
    # Names of elements in the SVG are random without the salt; glyphs as paths look alike anywhere.
    fixed: Any = {
        "svg.hashsalt": "sigmoid_ce",
        "svg.fonttype": "path",
        "font.family": "DejaVu Sans",
    }
    metadata: dict[str, Any] = {"Software": creator, "Description": description}
    if kind == "svg":
        metadata = {"Date": None, "Creator": creator, "Description": description}
    # Not what a user's matplotlibrc says.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(fixed)
        draw(data).savefig(path, format=kind, dpi=110, metadata=metadata, facecolor="white")


def write(report: dict[str, Any], folder: Path) -> list[Path]:
    """Every picture that the report gives, in the folder, which is made if need be.

    Raises ImportError without matplotlib.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in names(report):
        for kind in ("svg", "png"):
            path = folder / f"{name}.{kind}"
            write_one(report, name, path, kind)
            written.append(path)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.plots", description=__doc__.split("\n", 1)[0])
    parser.add_argument("result", type=Path, help="a file that python -m bench --json wrote")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    for path in write(json.loads(arguments.result.read_text(encoding="utf-8")), arguments.folder):
        print(path)


if __name__ == "__main__":
    main()
