"""Draws the pictures of docs/losses.md: what each option makes of loss and gradient.

Every line comes from the functions of the package, in float64, without a divisor. The script writes
docs/losses_<group>.svg and .png; `--check` says which of them are not what it would write. Each
file has the digest of the figures that it shows, so that one of another version of matplotlib is
told from one of other figures.

    python tools/plot_losses.py [--check] [FOLDER]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import sigmoid_ce as sce

ROOT = Path(__file__).resolve().parents[1]

# An odd number of points, one of them 0; few enough for small files.
SCORES = np.linspace(-6.0, 6.0, 41)
TARGETS = (0.0, 0.3, 1.0)

# What `balance` counts beside the scores of the lines: one positive among eight.
_POSITIVES, _NEGATIVES = 1, 7

_PLAIN: dict[str, Any] = {}
# By picture: the options of each column, by title; and the rows.
PICTURES: dict[str, tuple[tuple[str, ...], dict[str, dict[str, Any]]]] = {
    "losses_classes": (
        ("loss", "gradient"),
        {
            "pos_weight = 3": {"pos_weight": 3.0},
            "balance, P : M = 1 : 7": {"balance": "batch"},
            "negative_scale = 2": {"negative_scale": 2.0},
            "alpha = 0.25": {"alpha": 0.25},
        },
    ),
    "losses_focal": (
        ("loss", "gradient"),
        {
            "gamma = 0.5": {"gamma": 0.5},
            "gamma = 2": {"gamma": 2.0},
            "gamma = 5": {"gamma": 5.0},
            "gamma = 2, alpha = 0.25": {"gamma": 2.0, "alpha": 0.25},
        },
    ),
    "losses_targets": (
        ("loss", "gradient"),
        {
            "no option": _PLAIN,
            "label_smoothing = 0.2": {"label_smoothing": 0.2},
            'uncertain = "ignore"': {"uncertain": "ignore"},
        },
    ),
    "losses_derivatives": (
        ("Hessian", "target gradient"),
        {
            "no option": _PLAIN,
            "pos_weight = 3": {"pos_weight": 3.0},
            "gamma = 2": {"gamma": 2.0},
        },
    ),
}

# Okabe and Ito's colours, which the colour-blind can tell apart; the lines differ as well.
_STYLES = {0.0: ("#0072B2", "-"), 0.3: ("#009E73", "--"), 1.0: ("#D55E00", "-.")}


# ---- The figures ----


def data(name: str) -> dict[str, Any]:
    """What a picture shows, in as many digits as can be seen."""
    rows, columns = PICTURES[name]
    shown = {
        title: {f"{target:g}": _lines(rows, target, options) for target in TARGETS}
        for title, options in columns.items()
    }
    plain = {f"{target:g}": _lines(rows, target, _PLAIN) for target in TARGETS}
    return {"scores": SCORES.tolist(), "rows": rows, "columns": shown, "plain": plain}


def _lines(rows: tuple[str, ...], target: float, options: dict[str, Any]) -> dict[str, list[float]]:
    """One line for each row, by the score."""
    n = len(SCORES)
    ours = (target == 1) * n, (target == 0) * n
    # With the scores of the line, the numbers of positives and negatives have the wanted ratio.
    more = [share * n - own for share, own in zip((_POSITIVES, _NEGATIVES), ours, strict=True)]
    scores = np.concatenate([SCORES, np.zeros(sum(more))])
    targets = np.repeat([target, 1.0, 0.0], [n, *more])
    options = options | {"normalization": "none"}
    _, gradient, hessian = sce.forward_backward(scores, targets, **options, hessian=True)
    found = {
        "gradient": gradient,
        "Hessian": hessian,
        "target gradient": sce.backward_targets(scores, targets, **options),
    }
    del options["normalization"]
    found["loss"] = sce.elementwise(scores, targets, **options)
    return {row: [float(f"{value:.4g}") for value in found[row][:n]] for row in rows}


def digest(name: str) -> str:
    text = json.dumps(data(name), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


# ---- The pictures ----


def _draw(shown: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure

    rows, columns = shown["rows"], shown["columns"]
    figure = Figure(figsize=(2.45 * len(columns) + 1.1, 4.4), layout="constrained")
    panels = figure.subplots(len(rows), len(columns), sharex=True, sharey="row", squeeze=False)
    for column, (title, lines) in enumerate(columns.items()):
        panels[0, column].set_title(title, fontsize=10)
        panels[-1, column].set_xlabel("score", fontsize=9)
        for row, what in enumerate(rows):
            axes = panels[row, column]
            for target, (color, style) in _STYLES.items():
                key = f"{target:g}"
                without = shown["plain"][key][what]
                axes.plot(shown["scores"], without, color=color, lw=2.6, alpha=0.2)
                axes.plot(
                    shown["scores"],
                    lines[key][what],
                    color=color,
                    ls=style,
                    lw=1.4,
                    label=f"target {key}",
                )
            axes.grid(alpha=0.25, lw=0.6)
            axes.set_xticks([-5, 0, 5])
            axes.locator_params(axis="y", nbins=5)
            axes.tick_params(labelsize=8)
            if column == 0:
                axes.set_ylabel(what, fontsize=9)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=9, frameon=False)
    return figure


def write_one(name: str, path: Path) -> None:
    import matplotlib

    creator, description = describe(name)
    # Names of elements in the SVG are random without the salt; glyphs as paths look alike anywhere.
    fixed: Any = {
        "svg.hashsalt": "sigmoid_ce",
        "svg.fonttype": "path",
        "font.family": "DejaVu Sans",
    }
    metadata: dict[str, Any] = {"Software": creator, "Description": description}
    if path.suffix == ".svg":
        metadata = {"Date": None, "Creator": creator, "Description": description}
    # Not what a user's matplotlibrc says.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(fixed)
        _draw(data(name)).savefig(path, dpi=75, metadata=metadata, facecolor="white")


def describe(name: str) -> tuple[str, str]:
    """What a file says of itself: the version of matplotlib, and the digest of its figures."""
    import matplotlib

    return f"matplotlib {matplotlib.__version__}", f"data sha256 {digest(name)}"


# ---- Files ----


def files(folder: Path) -> list[Path]:
    return [folder / f"{name}.{kind}" for name in PICTURES for kind in ("svg", "png")]


def write(folder: Path) -> None:
    """Every picture, in the folder, which is made if need be. Raises ImportError: no matplotlib."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in files(folder):
        write_one(path.stem, path)


def differences(folder: Path) -> list[str]:
    """One line for each file that is missing or does not show what the functions give now."""
    found = []
    for path in files(folder):
        if not path.exists():
            found.append(f"{path.name}: missing")
        elif digest(path.stem).encode() not in path.read_bytes():
            found.append(f"{path.name}: drawn from other figures")
    known = {path.name for path in files(folder)}
    for path in sorted(folder.glob("losses_*.*")):
        if path.name not in known:
            found.append(f"{path.name}: drawn by nothing")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "docs")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if not current")
    arguments = parser.parse_args()
    if not arguments.check:
        write(arguments.folder)
    wrong = differences(arguments.folder)
    print("\n".join(wrong) if wrong else "all pictures are current")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
