"""Trains a small U-net in a real Caffe, with the loss layer that comes with it and with ours.

    python examples/demo_caffe.py [--iterations N] [--quick] [--out demo_caffe.png] [--json FILE]

The program is stock `caffe train` (BVLC Caffe 1.0; tests/realcaffe gets and builds it once). Our
layer joins it as a plugin, LD_PRELOAD=plugin caffe train ..., under the built-in one's type name:
both train the same examples/caffe/unet.prototxt from the same solver, seed and data.

The data are those of demo_coins.py, a photograph with the labels "coin" and "outline", with noise
added as of a poor camera: where an outline runs is then uncertain to a pixel or so. The U-net is
trained on patches of the left half, and judged on the right one. Three things are shown:

- the curves of both layers are the same, and so are the predictions;
- training goes on from a snapshot as if it had never stopped: the same losses, the same weights;
- outlines are rare (one pixel in forty). Unsure of them, the net says no too often. With
  pos_weight, which the built-in layer has not, their F1 is better.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import matplotlib as mpl
import numpy as np
from demo_coins import CHANNELS, labels
from PIL import Image
from scipy.special import expit
from skimage import data
from sklearn.metrics import precision_recall_fscore_support

ROOT = Path(__file__).resolve().parents[1]
NET = ROOT / "examples" / "caffe" / "unet.prototxt"

sys.path.insert(0, str(ROOT / "tests"))
import realcaffe  # noqa: E402

BATCH = 6  # batch_size of the prototxt
EPOCH = 20  # iterations
PATCH = 64  # pixels
NOISE = 0.5  # standard deviations of the photograph's brightness
# A snapshot holds no place in the data: Caffe reads a file from its start when it resumes. The
# snapshot is taken halfway, and this makes it fall on the end of an epoch.
STEP = 2 * EPOCH
ITERATIONS = 240
QUICK_ITERATIONS = 80

# The built-in layer adds the terms of a batch one after another in float32. That alone costs up to
# half a unit in the last place of the sum for each term, 2^-24 relative to it; small terms are
# indeed lost in a big sum. The log has six digits, which is less than a hundredth of this.
TERMS = BATCH * len(CHANNELS) * PATCH * PATCH
STOCK_ERROR = TERMS * 2.0**-24

# One thread for BLAS: the same sums on any number of cores.
SAME_SUMS = {"OPENBLAS_NUM_THREADS": "1"}

SOLVER = """\
net: "../unet.prototxt"
type: "SGD"
base_lr: 0.2
lr_policy: "poly"
power: 1
momentum: 0.9
max_iter: {iterations}
snapshot: {half}
snapshot_prefix: "{prefix}"
random_seed: 1
display: 1
solver_mode: CPU
"""

Array = np.ndarray[Any, Any]


class Data(NamedTuple):
    image: Array  # (H, W) float32: the noisy photograph, mean about 0
    truth: Array  # (H, W, 2) uint8


@dataclass
class Training:
    """What came out of `caffe train`, and of the net on the whole photograph."""

    curve: list[float]  # the loss of each iteration
    resumed: list[float] | None  # the second half of it again, from the snapshot
    same_weights: bool | None  # whether that ended in the same file of weights
    seconds: float  # of training, start of the program included
    scores: Array  # (H, W, 2) float32
    accuracy: dict[str, float] = field(default_factory=dict)  # by channel, right half
    f1: dict[str, float] = field(default_factory=dict)

    @property
    def last_loss(self) -> float:
        """Mean over the last epoch."""
        return float(np.mean(self.curve[-EPOCH:]))


def read_data() -> Data:
    photograph = data.coins()
    image = (photograph - photograph.mean()) / photograph.std()
    noise = NOISE * np.random.default_rng(0).standard_normal(image.shape)
    return Data((image + noise).astype(np.float32), labels(photograph))


def write_data(folder: Path, given: Data) -> None:
    """train.h5: turned and mirrored patches of the left half; test.h5: the whole photograph."""
    random = np.random.default_rng(1)
    both = np.dstack([given.image, given.truth]).astype(np.float32)
    height, width = given.image.shape
    patches = []
    for _ in range(BATCH * EPOCH):
        row = random.integers(height - PATCH + 1)
        column = random.integers(width // 2 - PATCH + 1)
        patch = np.rot90(both[row : row + PATCH, column : column + PATCH], random.integers(4))
        patches.append(patch[:, :: random.choice([1, -1])])
    # The net halves the picture twice.
    whole = np.pad(both, ((0, -height % 4), (0, -width % 4), (0, 0)), mode="reflect")
    for name, pictures in (("train", np.stack(patches)), ("test", whole[np.newaxis])):
        channels_first = np.moveaxis(pictures, -1, 1)
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["image"] = channels_first[:, :1]
            file["target"] = channels_first[:, 1:]


def losses(log: str) -> list[float]:
    """The loss of each iteration in the log of `caffe train`, in order.

    As the layer gives it: the loss in the line above it, "Iteration 7 ..., loss = ...", is a
    running mean, in which the errors of its updates stay.
    """
    pattern = r"Iteration (\d+) \(.*\n.*Train net output #0: loss = (\S+)"
    found = re.findall(pattern, log)
    first = int(found[0][0]) if found else 0
    if [int(k) for k, _ in found] != list(range(first, first + len(found))):
        raise realcaffe.BuildError(f"iterations are missing in Caffe's log:\n{log[-3000:]}")
    return [float(loss) for _, loss in found]


class Trainer:
    """Runs Caffe's command line in a folder that has the net and the data."""

    def __init__(self, folder: Path, caffe: realcaffe.CaffeBuild, plugin: Path, iterations: int):
        self.folder, self.caffe, self.plugin = folder, caffe, plugin
        self.iterations, self.half = iterations, iterations // 2
        shutil.copy(NET, folder)

    def __call__(
        self, name: str, *, ours: bool, stage: str | None = None, resume: bool = False
    ) -> Training:
        folder = self.folder / name
        folder.mkdir()
        (folder / "train.txt").write_text("../train.h5\n")
        (folder / "test.txt").write_text("../test.h5\n")
        env = {**SAME_SUMS, **({"LD_PRELOAD": str(self.plugin)} if ours else {})}
        stages = [f"--stage={stage}"] if stage else []

        def train(prefix: str, *arguments: str) -> list[float]:
            solver = folder / f"{prefix}.prototxt"
            solver.write_text(
                SOLVER.format(iterations=self.iterations, half=self.half, prefix=prefix)
            )
            command = ["train", f"--solver={solver.name}", *stages, *arguments]
            return losses(self.caffe.run(*command, cwd=folder, env=env).stderr)

        began = time.perf_counter()
        curve = train("straight")
        seconds = time.perf_counter() - began

        weights = folder / f"straight_iter_{self.iterations}.caffemodel"
        resumed, same_weights = None, None
        if resume:
            resumed = train("resumed", f"--snapshot=straight_iter_{self.half}.solverstate")
            again = folder / f"resumed_iter_{self.iterations}.caffemodel"
            same_weights = again.read_bytes() == weights.read_bytes()

        net = ["--model=../unet.prototxt", f"--weights={weights.name}", "--iterations=1"]
        self.caffe.run("test", *net, cwd=folder, env=env)
        with h5py.File(folder / "scores.h5", "r") as file:
            scores = np.moveaxis(file["data"][0], 0, -1)
        return Training(curve, resumed, same_weights, seconds, scores)


def judge(training: Training, truth: Array) -> None:
    """Fills in accuracy and F1 of the right half."""
    height, width = truth.shape[:2]
    training.scores = training.scores[:height, :width]
    predicted = training.scores[:, width // 2 :] > 0
    right = truth[:, width // 2 :] == 1
    for channel, label in enumerate(CHANNELS):
        p, t = predicted[..., channel].ravel(), right[..., channel].ravel()
        training.accuracy[label] = float(np.mean(p == t))
        training.f1[label] = float(
            precision_recall_fscore_support(t, p, average="binary", zero_division=0)[2]
        )


def show(trainings: dict[str, Training]) -> None:
    print(
        f"{'layer':<17} {'first loss':>10} {'last loss':>10} {'coin: accuracy':>14} {'F1':>6}"
        f" {'outline: accuracy':>17} {'F1':>6} {'training':>9}"
    )
    for name, t in trainings.items():
        print(
            f"{name:<17} {t.curve[0]:>10.6f} {t.last_loss:>10.6f}"
            f" {t.accuracy['coin']:>14.4f} {t.f1['coin']:>6.3f}"
            f" {t.accuracy['outline']:>17.4f} {t.f1['outline']:>6.3f} {t.seconds:>7.1f} s"
        )


def draw(path: Path, given: Data, trainings: dict[str, Training]) -> None:
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    stock, ours, weighted = trainings.values()
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.4), constrained_layout=True)
    panels = [
        ("input (trained left of the line)", given.image, "gray"),
        ("target: coin, outline", given.truth @ [0.4, 0.6], "gray"),
        ("predicted: coin", expit(ours.scores[..., 0]), "magma"),
        ("predicted: outline, no pos_weight", expit(ours.scores[..., 1]), "magma"),
        ("predicted: outline, pos_weight", expit(weighted.scores[..., 1]), "magma"),
    ]
    for axis, (title, picture, colours) in zip(axes.flat, panels, strict=False):
        low, high = (-2, 2) if picture is given.image else (0, 1)
        axis.imshow(picture, cmap=colours, vmin=low, vmax=high)
        axis.axvline(given.image.shape[1] // 2, color="deepskyblue", linewidth=1)
        axis.set_title(title)
        axis.set_axis_off()
    axis = axes[1, 2]
    axis.semilogy(stock.curve, color="lightgray", linewidth=6, label="Caffe's layer")
    axis.semilogy(ours.curve, color="tab:blue", linewidth=1.5, label="ours")
    half = len(ours.curve) // 2
    axis.semilogy(
        range(half, half + len(ours.resumed or [])),
        ours.resumed or [],
        color="black",
        linestyle=":",
        label="ours, resumed from a snapshot",
    )
    axis.semilogy(weighted.curve, color="tab:orange", linewidth=1, label="ours, pos_weight")
    axis.set_title("training loss")
    axis.set_xlabel("iteration of caffe train")
    axis.set_ylabel("mean loss")
    axis.legend(fontsize="small")
    axis.set_box_aspect(given.image.shape[0] / given.image.shape[1])
    figure.savefig(path, dpi=72, metadata={"Software": None})
    plt.close(figure)
    # PNG does not compress noise: 128 colours are a third of the size.
    with Image.open(path) as drawn:
        few = drawn.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def run(out: Path, iterations: int) -> dict[str, Any]:
    """The whole demo; returns the curves and figures."""
    began = time.perf_counter()
    print("Caffe 1.0 and the plugin (built the first time, which takes minutes)", flush=True)
    caffe = realcaffe.stock()
    plugin = realcaffe.plugin(caffe)
    given = read_data()
    share = given.truth[:, : given.truth.shape[1] // 2].mean(axis=(0, 1))
    print(f"  {caffe.binary}\n  {plugin}")
    print(
        f"{iterations} iterations of {BATCH} patches of {PATCH} x {PATCH} pixels; "
        + ", ".join(f"{label} {s:.1%}" for label, s in zip(CHANNELS, share, strict=True)),
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        write_data(Path(folder), given)
        train = Trainer(Path(folder), caffe, plugin, iterations)
        jobs = {
            "Caffe's": pool.submit(train, "stock", ours=False, resume=True),
            "ours": pool.submit(train, "ours", ours=True, resume=True),
            "ours, pos_weight": pool.submit(train, "weighted", ours=True, stage="pos_weight"),
        }
        trainings = {name: job.result() for name, job in jobs.items()}
    for training in trainings.values():
        judge(training, given.truth)
    show(trainings)

    stock, ours, weighted = trainings.values()
    # Caffe's layer would have passed over pos_weight, and the same weights gave the same loss.
    if weighted.curve[0] == ours.curve[0]:
        raise realcaffe.BuildError("the plugin did not take the place of Caffe's layer")
    difference = np.abs(np.array(ours.curve) / np.array(stock.curve) - 1)
    changed = float(np.mean((ours.scores > 0) != (stock.scores > 0)))
    print(
        f"Caffe's layer against ours: losses differ by {difference.max():.1e} at most (a float32 "
        f"sum of {TERMS} terms may by {STOCK_ERROR:.1e}),\n"
        f"  at the first iteration by {difference[0]:.1e}; "
        f"{changed:.3%} of the predictions change side"
    )
    for name, t in (("Caffe's layer", stock), ("ours", ours)):
        same = t.resumed == t.curve[iterations // 2 :] and t.same_weights
        print(
            f"resumed at iteration {iterations // 2}, {name}: "
            + ("the same losses and weights" if same else "NOT the same losses and weights")
        )
    draw(out, given, trainings)
    print(f"picture: {out}   ({time.perf_counter() - began:.1f} s)")
    return {
        "caffe": str(caffe.binary),
        "plugin": str(plugin),
        "iterations": iterations,
        "difference": difference.tolist(),
        "stock_error": STOCK_ERROR,
        "changed": changed,
        "layers": {
            name: {k: v for k, v in asdict(t).items() if k != "scores"}
            for name, t in trainings.items()
        },
    }


def number_of_iterations(text: str) -> int:
    number = int(text)
    if number <= 0 or number % STEP != 0:
        raise argparse.ArgumentTypeError(f"expected a multiple of {STEP} (two epochs), got {text}")
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains a U-net in Caffe, with our loss layer.")
    parser.add_argument(
        "--iterations",
        type=number_of_iterations,
        default=ITERATIONS,
        help=f"a multiple of {STEP} ({ITERATIONS})",
    )
    parser.add_argument(
        "--quick",
        action="store_const",
        dest="iterations",
        const=QUICK_ITERATIONS,
        help=f"only {QUICK_ITERATIONS} iterations",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("demo_caffe.png"), help="the picture to write"
    )
    parser.add_argument("--json", type=Path, help="write the curves and figures to this file")
    arguments = parser.parse_args()
    try:
        found = run(arguments.out, arguments.iterations)
    except realcaffe.Missing as reason:
        sys.exit(f"{reason} is missing")
    except (realcaffe.BuildError, RuntimeError, ValueError) as error:
        sys.exit(str(error))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
