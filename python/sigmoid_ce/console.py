"""What the commands of `sigmoid-ce` share: output as text or JSON, and failures as one line."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def json_option(command: _Command) -> _Command:
    return click.option(
        "json_out",
        "--json",
        metavar="FILE",
        callback=_json_file,
        help="Write the result as JSON to FILE; '-': to stdout, instead of the text.",
    )(command)


def _json_file(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Refuses at once what would be refused when all the work is done."""
    if value is not None and value != "-":
        path = Path(value)
        if path.is_dir():
            raise click.BadParameter(f"{path} is a directory")
        if not path.parent.is_dir():
            raise click.BadParameter(f"{path.parent} is no directory")
    return value


@contextlib.contextmanager
def failures() -> Iterator[None]:
    """What is wrong with files and options becomes one line."""
    try:
        yield
    except MemoryError:
        raise click.ClickException("out of memory") from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise click.ClickException(f"{where}{error.strerror or error}") from None
    except (RuntimeError, TypeError, ValueError) as error:  # RuntimeError: environment variables
        raise click.ClickException(str(error)) from None


def print_result(lines: Sequence[str], facts: dict[str, Any], json_out: str | None) -> None:
    text = ""
    if json_out is not None:
        text = json.dumps(_finite(facts), indent=1, allow_nan=False)
        if json_out != "-":
            Path(json_out).write_text(text + "\n", encoding="utf-8")
    try:
        click.echo(text if json_out == "-" else "\n".join(lines))
    except OSError as error:
        raise click.ClickException(f"stdout: {error.strerror}") from None


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: strings instead."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
