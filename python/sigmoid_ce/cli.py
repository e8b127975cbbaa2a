"""The command `sigmoid-ce`."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from sigmoid_ce import _cpu, api, check, stream
from sigmoid_ce.caffe.cli import caffe
from sigmoid_ce.console import failures, json_option, print_result, table

_MODES = ("full", "valid", "batch_size", "none")
# Whether a file can be read is found when it is opened, with a message as for all other reasons.
_PATH = click.Path(readable=False, path_type=Path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits, with the status of `run`, or 128 + the signal's number."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _stop)
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line. What is wrong is one line on stderr.

    Returns the exit status: 0 done, 1 failed, 2 wrong usage, 130 ended with Ctrl-C.
    """
    try:
        status = cli.main(arguments, prog_name="sigmoid-ce", standalone_mode=False)
    except click.UsageError as error:
        command = "sigmoid-ce" if error.ctx is None else error.ctx.command_path
        return _failed(f"{error.format_message()} ('{command} --help' shows the usage)", 2)
    except click.ClickException as error:
        return _failed(error.format_message(), error.exit_code)
    except click.Abort:
        return _failed("interrupted", 128 + signal.SIGINT)
    except OSError as error:  # not of a command's files: see console.failures
        return _failed(f"stdout: {error.strerror or error}", 1)
    return status or 0


def _failed(message: str, status: int) -> int:
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    return status


def _stop(number: int, frame: object) -> None:
    """Ends as an exception does, so that unfinished files are removed."""
    sys.exit(128 + number)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
)
@click.version_option(_cpu.version, prog_name="sigmoid_ce")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Sigmoid cross-entropy loss (binary cross-entropy with logits) and its gradient."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)


cli.add_command(caffe)


# ---- loss ----


class _Number(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from 8.4 on
    """A number, a file, or one of some words."""

    def __init__(
        self, words: Sequence[str] = (), *, file: bool = False, many: bool = False
    ) -> None:
        self._words, self._file, self._many = words, file, many
        self.name = "|".join((*words, "NUMBER" + (",..." if many else ""), *(["FILE"] * file)))
        self._expected = f"expected {', '.join(words)}{' or ' if words else ''}a number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str) or value in self._words:
            return value
        try:
            numbers = [float(text) for text in value.split(",")]
        except ValueError:
            if self._file:
                return Path(value)
            self.fail(f"{self._expected}, got {value!r}", param, ctx)
        if len(numbers) == 1:
            return numbers[0]
        if not self._many:
            self.fail(f"{self._expected}, got {value!r}", param, ctx)
        return np.array(numbers)


@cli.command()
@click.argument("scores", type=_PATH)
@click.argument("targets", type=_PATH)
@click.option(
    "--pos-weight",
    type=_Number(file=True, many=True),
    help="Factor on the positive part: a number, one per channel (axis 1) with commas between, or "
    "a .npy file of those.",
)
@click.option(
    "--weight",
    type=_Number(file=True),
    help="Factor per element: a number, or a .npy file that broadcasts to SCORES.",
)
@click.option(
    "--ignore-label", type=int, metavar="INT", help="Leave out elements whose target is INT."
)
@click.option(
    "--uncertain",
    type=click.Choice(["soft", "ignore"]),
    default="soft",
    show_default=True,
    help="Targets other than 0 and 1: between the classes, or left out.",
)
@click.option(
    "--label-smoothing",
    type=float,
    metavar="S",
    default=0.0,
    help="Targets t become t (1 - S) + S / 2.",
)
@click.option(
    "--negative-scale",
    type=float,
    metavar="NUMBER",
    default=1.0,
    help="Factor on the weight of targets of 0.",
)
@click.option(
    "--gamma", type=float, metavar="NUMBER", default=0.0, help="Power of the focal factor."
)
@click.option(
    "--alpha",
    type=float,
    metavar="NUMBER",
    help="Weight of targets of 1, with 1 - NUMBER for those of 0, as in the focal loss.",
)
@click.option(
    "--normalization",
    type=_Number(_MODES),
    metavar="MODE|NUMBER",
    default="batch_size",
    show_default=True,
    help="What the sum is divided by. full: all elements, valid: those not ignored, batch_size: "
    "rows (the length of axis 0), none: 1; or NUMBER.",
)
@click.option(
    "--loss-weight",
    type=float,
    default=1.0,
    show_default=True,
    help="Factor on the gradient, not on the loss.",
)
@click.option(
    "--grad-out",
    type=_PATH,
    metavar="FILE",
    help="Write the gradient with respect to the scores to this .npy file: whole or not at all.",
)
@click.option(
    "--check",
    "check_values",
    is_flag=True,
    help="Refuse targets outside [0, 1] and weights that are negative, infinite or NaN.",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 65536),
    metavar="N",
    help="Number of threads.  [default: one per CPU that this process may use]",
)
@click.option(
    "--isa",
    type=click.Choice(_cpu.available_isas()),
    help="Instruction set.  [default: the first of these]",
)
@json_option
def loss(
    scores: Path,
    targets: Path,
    pos_weight: Any,
    weight: Any,
    ignore_label: int | None,
    uncertain: str,
    label_smoothing: float,
    negative_scale: float,
    gamma: float,
    alpha: float | None,
    normalization: str | float,
    loss_weight: float,
    grad_out: Path | None,
    check_values: bool,
    threads: int | None,
    isa: str | None,
    json_out: str | None,
) -> None:
    """Print the loss of SCORES and TARGETS, two .npy files of any size.

    SCORES are float16, float32 or float64 logits. TARGETS have the same shape, and the same type or
    bool, uint8, int8, int32 or int64 (float32 beside float16). The files are read in blocks, so
    they may be larger than memory; the result has the bits of sigmoid_ce.forward. A loss that is
    not finite is a string in JSON.

    Ended with Ctrl-C or SIGTERM, it removes the unfinished gradient; after SIGKILL that stays,
    named .FILE.PROCESS.unfinished.

    \b
    Example:
      sigmoid-ce loss x.npy t.npy --ignore-label 255 --normalization valid
    """
    inputs = {"scores": scores, "targets": targets, "weight": weight, "pos_weight": pos_weight}
    with failures(), _Bar() as bar:
        if threads is not None:
            _cpu.set_num_threads(threads)
        if isa is not None:
            _cpu.set_isa(isa)
        if json_out not in (None, "-"):
            stream.refuse_same(Path(json_out), "json", {**inputs, "grad_out": grad_out})
        result = stream.run(
            scores,
            targets,
            pos_weight=pos_weight,
            weight=weight,
            ignore_label=ignore_label,
            uncertain=uncertain,
            label_smoothing=label_smoothing,
            negative_scale=negative_scale,
            gamma=gamma,
            alpha=alpha,
            normalization=normalization,
            loss_weight=loss_weight,
            check=check_values,
            grad_out=grad_out,
            progress=bar.advance,
        )
        facts = {
            "loss": result.loss,
            "sum": result.part.sum,
            "divisor": result.divisor,
            "normalization": normalization,
            "n_total": result.part.n_total,
            "n_valid": result.part.n_valid,
            "shape": result.shape,
            "dtype": str(result.dtype),
            "gradient": None if grad_out is None else str(grad_out),
        }
        ignores = ignore_label is not None or uncertain == "ignore"
        mode = f" ({normalization})" if isinstance(normalization, str) else ""
        lines = [
            f"loss      {result.loss!r}",
            f"sum       {result.part.sum!r}",
            f"divisor   {repr(result.divisor).removesuffix('.0')}{mode}",
            f"elements  {result.part.n_total}"
            + (f", {result.part.n_valid} not ignored" if ignores else ""),
        ]
        if grad_out is not None:
            lines.append(f"gradient  {grad_out}")
        bar.close()
        print_result(lines, facts, json_out)


# ---- check ----


@cli.command("check")
@click.option(
    "--size",
    type=click.IntRange(1024),
    metavar="N",
    default=1 << 18,
    show_default=True,
    help="Scores per type, 1024 at least; time and memory are proportional.",
)
@json_option
def check_command(size: int, json_out: str | None) -> None:
    """Check this machine: accuracy, special values and equal bits.

    Takes every instruction set, for float32 and float64. Errors are in ulp of the type, against
    NumPy's longdouble. The exit status is 1 where a bound is exceeded or a value is wrong.
    """
    with failures():
        report = check.run(size)
        lines = [*_error_table(report), "", *_special_table(report), "", *_bits_table(report)]
        facts = {
            "good": report.good,
            "scores": report.scores,
            "errors": [{**row._asdict(), "good": row.good} for row in report.errors],
            "special": [{**row._asdict(), "good": row.good} for row in report.special],
            "bits": [row._asdict() for row in report.bits],
        }
        print_result(lines, facts, json_out)
    if not report.good:
        raise click.ClickException("this machine or build does not keep what docs/numerics.md says")


def _error_table(report: check.Report) -> Iterator[str]:
    yield f"Largest error over {report.scores} scores per type, in ulp"
    rows: dict[tuple[str, str], list[check.Error]] = {}
    for row in report.errors:
        rows.setdefault((row.dtype, row.isa), []).append(row)
    head = ["", ""]
    cells = []
    for (dtype, isa), errors in rows.items():
        by_result = sorted(errors, key=lambda row: (row.result == "gradient", row.target))
        head = ["type", "isa", *(f"{row.result} t={row.target}" for row in by_result), "bound", ""]
        values = ["-" if row.ulp is None else f"{row.ulp:.3f}" for row in by_result]
        good = "ok" if all(row.good for row in errors) else "EXCEEDED"
        if any(row.ulp is None for row in errors):
            good = "no wider type here"
        cells.append([dtype, isa, *values, f"{errors[0].bound:g}", good])
    yield from table([head, *cells])


def _special_table(report: check.Report) -> Iterator[str]:
    yield "Special values"
    cases: dict[str, list[check.Special]] = {}
    for row in report.special:
        cases.setdefault(row.case, []).append(row)
    cells = [["case", "loss", "gradient", ""]]
    for case, rows in cases.items():
        wrong = [
            f"{row.dtype} {row.isa}: {row.got[0]:g}, {row.got[1]:g}" for row in rows if not row.good
        ]
        expected = rows[0].expected
        state = "WRONG " + "; ".join(wrong) if wrong else f"ok, {len(rows)} of {len(rows)}"
        cells.append([case, f"{expected[0]:.6g}", f"{expected[1]:.6g}", state])
    yield from table(cells)


def _bits_table(report: check.Report) -> Iterator[str]:
    yield "Digest of losses, gradients and sums"
    yield from table(
        [
            [row.dtype, row.isa, row.digest[:16], "ok" if row.good else "OTHER"]
            for row in report.bits
        ]
    )


# ---- info ----


@cli.command()
@json_option
def info(json_out: str | None) -> None:
    """Show version, instruction sets, threads and devices."""
    with failures():
        _cpu.forward(np.zeros(1), np.zeros(1))  # fails where an environment variable is wrong
        facts = api.info()
        lines: list[list[str]] = []
        for key, value in facts.items():
            if key == "cuda":
                lines += _cuda_lines(value)
                continue
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            lines.append([key.replace("_", " "), text])
        print_result(list(table(lines)), facts, json_out)


def _cuda_lines(facts: dict[str, Any]) -> Iterator[list[str]]:
    if facts["reason"]:
        yield ["cuda", facts["reason"]]
    if facts["built"]:
        driver = facts["driver"] or "none"
        yield ["cuda versions", f"built with {facts['runtime']}, driver {driver}"]
    for i, device in enumerate(facts["devices"]):
        memory = f"{device['memory'] / 2**30:.1f} GiB"
        capability = f"compute capability {device['compute_capability']}"
        yield [f"cuda:{i}", f"{capability}, {device['multiprocessors']} SMs, {memory}"]


# ---- bench ----


@cli.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def bench(ctx: click.Context, arguments: tuple[str, ...]) -> None:
    """Measure speed, beside other libraries and the machine's limits.

    `sigmoid-ce bench --help` shows its options. `sigmoid-ce bench compare A.json B.json` compares
    two of its results, and says which differences exceed the noise.
    """
    measure = importlib.import_module("sigmoid_ce.bench.__main__").main
    ctx.exit(measure(list(arguments), prog="sigmoid-ce bench"))


# ---- Progress ----


class _Bar:
    """A progress bar on stderr where that is a terminal, from the first block on."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def advance(self, elements: int, total: int) -> None:
        if self._bar is None and sys.stderr is not None and sys.stderr.isatty():
            self._bar = click.progressbar(length=total, file=sys.stderr, label="elements")
            self._bar.__enter__()
        if self._bar is not None:
            self._bar.update(elements)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None
