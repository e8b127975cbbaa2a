"""Trains a model that finds coins and their outlines in a photograph, with the native loss.

    python examples/demo_coins.py [--out demo_coins.png]

The photograph (303 x 384 pixels, Greek coins from Pompeii) ships inside scikit-image. The labels of
each pixel, "coin" and "outline", come from a classical segmentation: a watershed on the Sobel
gradient. The model is linear in 47 filter responses of the pixel's surroundings; loss and gradient
come from sigmoid_ce.forward_backward with float32 scores and uint8 targets, and SciPy's L-BFGS
drives them.

Trained on the left half of the picture and judged on the right one. Outlines are rare (one pixel in
forty), so the model is trained twice: without and with pos_weight, one value per channel.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from scipy import ndimage
from scipy.optimize import minimize
from scipy.special import expit
from skimage import data, filters, segmentation
from sklearn.metrics import log_loss, precision_recall_fscore_support

import sigmoid_ce as sce

CHANNELS = ("coin", "outline")
SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)  # pixels
RIDGE = 1e-4  # keeps the weights of filters that say the same from growing
ITERATIONS = 150

Array = np.ndarray[Any, Any]


def labels(image: Array) -> Array:
    """(H, W, 2) uint8: is the pixel part of a coin, is it on a coin's outline."""
    markers = np.zeros(image.shape, dtype=np.int32)
    markers[image < 30] = 1
    markers[image > 150] = 2
    coin = segmentation.watershed(filters.sobel(image), markers) == 2
    coin = ndimage.binary_fill_holes(coin)
    pieces, count = ndimage.label(coin)
    sizes = ndimage.sum_labels(coin, pieces, np.arange(count + 1))
    coin = sizes[pieces] >= 200  # smaller pieces are specks of the background
    outline = segmentation.find_boundaries(coin, mode="inner")
    return np.stack([coin, outline], axis=-1).astype(np.uint8)


def features(image: Array) -> Array:
    """(H, W, F) float32: brightness, gradient and curvature at several scales, and a constant."""
    picture = image.astype(np.float64) / 255
    maps = [picture]
    for scale in SCALES:
        smooth = ndimage.gaussian_filter(picture, scale)
        rows, columns = np.gradient(smooth)
        row_row, row_column = np.gradient(rows)
        column_column = np.gradient(columns)[1]
        spread = np.hypot((row_row - column_column) / 2, row_column)
        middle = (row_row + column_column) / 2
        maps += [
            smooth,
            scale * np.hypot(rows, columns),
            scale**2 * (middle + spread),
            scale**2 * (middle - spread),
            np.sqrt(np.maximum(ndimage.gaussian_filter(picture**2, scale) - smooth**2, 0)),
        ]
    stacked = np.stack(maps, axis=-1)
    stacked = (stacked - stacked.mean(axis=(0, 1))) / stacked.std(axis=(0, 1))
    constant = np.ones((*image.shape, 1))
    return np.concatenate([stacked, constant], axis=-1).astype(np.float32)


class Fit(NamedTuple):
    weights: Array  # (F, 2)
    curve: list[float]  # the objective after each iteration


def train(inputs: Array, targets: Array, pos_weight: Array | None) -> Fit:
    """Logistic regression of all channels at once: inputs (N, F), targets (N, 2)."""
    shape = (inputs.shape[1], targets.shape[1])
    gradient = np.empty(targets.shape, dtype=np.float32)  # one array for every step
    curve: list[float] = []

    def objective(flat: Array) -> tuple[float, Array]:
        weights = flat.reshape(shape)
        scores = inputs @ weights.astype(np.float32)
        loss, slope = sce.forward_backward(
            scores, targets, pos_weight=pos_weight, normalization="full", out=gradient
        )
        ridge = 0.5 * RIDGE * float(np.sum(weights**2))
        return loss + ridge, (inputs.T @ slope).ravel().astype(np.float64) + RIDGE * flat

    start = np.zeros(shape).ravel()
    curve.append(objective(start)[0])
    result = minimize(
        objective,
        start,
        jac=True,
        method="L-BFGS-B",
        callback=lambda flat: curve.append(objective(flat)[0]),
        options={"maxiter": ITERATIONS},
    )
    return Fit(result.x.reshape(shape), curve)


def report(name: str, scores: Array, targets: Array) -> dict[str, float]:
    """Prints precision, recall and F1 of each channel; returns the recalls."""
    recalls = {}
    for channel, label in enumerate(CHANNELS):
        precision, recall, f1, _ = precision_recall_fscore_support(
            targets[:, channel], scores[:, channel] > 0, average="binary", zero_division=0
        )
        print(
            f"  {name:<18} {label:<8} precision {precision:.3f}  recall {recall:.3f}  F1 {f1:.3f}"
        )
        recalls[label] = float(recall)
    return recalls


def compare_with_sklearn(scores: Array, targets: Array, pos_weight: Array) -> float:
    """Largest relative difference from log_loss, which sees pos_weight as sample weights."""
    worst = 0.0
    for channel, label in enumerate(CHANNELS):
        x = scores[:, channel].astype(np.float64)
        t = np.ascontiguousarray(targets[:, channel])
        p = float(pos_weight[channel])
        sample_weight = np.where(t == 1, p, 1.0)
        ours = sce.forward(x, t, pos_weight=p, normalization=float(sample_weight.sum()))
        theirs = float(log_loss(t, expit(x), sample_weight=sample_weight, labels=[0, 1]))
        difference = abs(ours - theirs) / theirs
        print(f"  {label:<8} ours {ours:.12f}  log_loss {theirs:.12f}  difference {difference:.1e}")
        worst = max(worst, difference)
    return worst


def draw(path: Path, image: Array, truth: Array, maps: Array, plain: Fit, weighted: Fit) -> None:
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(13, 8), constrained_layout=True)
    half = image.shape[1] // 2
    panels = [
        ("input (trained left of the line)", image, "gray"),
        ("labels: coin, outline", truth[..., 0] * 0.4 + truth[..., 1] * 0.6, "gray"),
        ("predicted: coin", maps[1][..., 0], "magma"),
        ("predicted: outline, no pos_weight", maps[0][..., 1], "magma"),
        ("predicted: outline, pos_weight", maps[1][..., 1], "magma"),
    ]
    for axis, (title, picture, colours) in zip(axes.flat, panels, strict=False):
        axis.imshow(picture, cmap=colours, vmin=0, vmax=255 if picture is image else 1)
        axis.axvline(half, color="deepskyblue", linewidth=1)
        axis.set_title(title)
        axis.set_axis_off()
    axis = axes[1, 2]
    axis.semilogy(plain.curve, label="no pos_weight")
    axis.semilogy(weighted.curve, label="pos_weight")
    axis.set_title("training loss")
    axis.set_xlabel("iteration of L-BFGS")
    axis.set_ylabel("mean loss")
    axis.legend()
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


def run(out: Path) -> dict[str, float]:
    """The whole demo; returns the figures that it prints, for the test."""
    began = time.perf_counter()
    image = data.coins()
    truth, inputs = labels(image), features(image)
    half = image.shape[1] // 2
    train_x = np.ascontiguousarray(inputs[:, :half]).reshape(-1, inputs.shape[2])
    train_t = np.ascontiguousarray(truth[:, :half]).reshape(-1, 2)
    test_x = np.ascontiguousarray(inputs[:, half:]).reshape(-1, inputs.shape[2])
    test_t = np.ascontiguousarray(truth[:, half:]).reshape(-1, 2)

    positives = train_t.mean(axis=0, dtype=np.float64)
    pos_weight = (1 - positives) / positives
    shares = ", ".join(
        f"{label} {share:.1%} (pos_weight {p:.2f})"
        for label, share, p in zip(CHANNELS, positives, pos_weight, strict=True)
    )
    print(f"{image.shape[0]} x {image.shape[1]} pixels, {inputs.shape[2]} features; {shares}")
    print(f"kernels: {sce.get_isa()}, {sce.get_num_threads()} threads")

    plain = train(train_x, train_t, None)
    weighted = train(train_x, train_t, pos_weight)
    print("training loss")
    for name, fit in (("no pos_weight", plain), ("pos_weight", weighted)):
        steps = sorted({0, 1, 2, 5, 10, 20, 50, 100, len(fit.curve) - 1})
        shown = "  ".join(f"{k}: {fit.curve[k]:.5f}" for k in steps if k < len(fit.curve))
        print(f"  {name:<18} {shown}")

    print("right half, which the model has not seen")
    scores = {
        name: test_x @ fit.weights.astype(np.float32)
        for name, fit in (("no pos_weight", plain), ("pos_weight", weighted))
    }
    before = report("no pos_weight", scores["no pos_weight"], test_t)
    after = report("pos_weight", scores["pos_weight"], test_t)

    print("mean weighted loss there, and scikit-learn's log_loss of the same")
    difference = compare_with_sklearn(scores["pos_weight"], test_t, pos_weight)

    flat = inputs.reshape(-1, inputs.shape[2])
    maps = np.stack(
        [
            expit(flat @ fit.weights.astype(np.float32)).reshape(truth.shape)
            for fit in (plain, weighted)
        ]
    )
    draw(out, image, truth, maps, plain, weighted)
    print(f"picture: {out}   ({time.perf_counter() - began:.1f} s)")
    return {
        "first_loss": weighted.curve[0],
        "last_loss": weighted.curve[-1],
        "log_loss_difference": difference,
        "outline_recall_before": before["outline"],
        "outline_recall_after": after["outline"],
        "coin_recall_after": after["coin"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Finds coins and their outlines in a photograph.")
    parser.add_argument(
        "--out", type=Path, default=Path("demo_coins.png"), help="the picture to write"
    )
    run(parser.parse_args().out)


if __name__ == "__main__":
    main()
