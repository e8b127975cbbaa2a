"""The command `sigmoid-ce`: the bits of arrays in memory, one clear line for what is wrong,
gradient files that are whole or not there, little memory, and help that reads well."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pty
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import sigmoid_ce as sce
from sigmoid_ce import cli, stream
from sigmoid_ce.caffe.cli import caffe

BLOCK = 4096  # for many blocks of few elements
MODES = ("full", "valid", "batch_size", "none")
DTYPES = ("float32", "float64")
TARGETS = ("float", "bool", "uint8", "int8", "int32", "int64")
# For a child to end: far above what it takes, so that a hang is a failure and not a stuck run.
PATIENCE = 120


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BLOCK", BLOCK)


class Done(NamedTuple):
    status: int
    out: str
    err: str


Call = Callable[..., Done]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs the command line in this process."""

    def run(*arguments: object) -> Done:
        capsys.readouterr()
        try:
            status = cli.run([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse, in `bench`
            status = int(end.code or 0)
        return Done(status, *capsys.readouterr())

    return run


def start(*arguments: object, code: str = "", **options: Any) -> subprocess.Popen[str]:
    """Starts the command line in a process, after some Python code."""
    program = ["-m", "sigmoid_ce"]
    if code:
        program = ["-c", f"{code}\nfrom sigmoid_ce.cli import main\nmain()"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.Popen([sys.executable, *program, *map(str, arguments)], **options)


def execute(*arguments: object, **options: Any) -> Done:
    with start(*arguments, **options) as child:
        out, err = child.communicate(timeout=PATIENCE)
    return Done(child.returncode, out, err)


def save(path: Path, array: Any) -> Path:
    np.save(path, array, allow_pickle=False)
    return path


def sparse(path: Path, shape: tuple[int, ...], dtype: str) -> Path:
    """A .npy file of zeros that takes no space on disk."""
    with path.open("wb") as file:
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + math.prod(shape) * np.dtype(dtype).itemsize)
    return path


def strict(text: str) -> Any:
    """JSON, without the NaN and Infinity that Python would take."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def number(value: float | str) -> float:
    assert isinstance(value, float) or value in ("nan", "inf", "-inf")
    return float(value)


def same(a: float, b: float) -> bool:
    """Equal bits; any NaN for NaN."""
    return np.array_equal(a, b, equal_nan=True) and math.copysign(1, a) == math.copysign(1, b)


def file_bytes(array: Any, folder: Path) -> bytes:
    return save(folder / "wanted.npy", array).read_bytes()


def data(shape: tuple[int, ...], dtype: str, target: str, seed: int = 0) -> tuple[Any, Any]:
    """Scores of all sizes; targets of which some are 7, for ignore_label, but in bool."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 4, shape).astype(dtype)
    if target == "float":
        targets = np.where(rng.random(shape) < 0.1, 7.0, rng.random(shape)).astype(dtype)
    elif target == "bool":
        targets = np.asarray(rng.random(shape) < 0.5)
    else:
        targets = rng.choice([0, 1, 1, 0, 7], shape).astype(target)
    return np.asarray(scores), np.asarray(targets)


def check_bits(
    call: Call,
    folder: Path,
    scores: Any,
    targets: Any,
    arguments: tuple[object, ...] = (),
    **options: Any,
) -> dict[str, Any]:
    """Loss, counts and gradient file of the command against those in memory. Returns the JSON."""
    loss_weight = options.pop("loss_weight", 1.0)
    for key in ("normalization", "ignore_label"):
        if key in options:
            arguments = (*arguments, f"--{key.replace('_', '-')}", options[key])
    arguments = ("--loss-weight", loss_weight, *arguments)
    files = save(folder / "scores.npy", scores), save(folder / "targets.npy", targets)
    gradient = folder / "gradient.npy"
    done = call("loss", *files, "--json", "-", "--grad-out", gradient, *arguments)
    assert done.status == 0, done.err
    assert done.err == ""
    facts: dict[str, Any] = strict(done.out)
    per_element = {k: v for k, v in options.items() if k != "normalization"}
    part = sce.partial(scores, targets, **per_element)
    assert same(number(facts["loss"]), sce.forward(scores, targets, **options))
    assert same(number(facts["sum"]), part.sum)
    assert (facts["n_total"], facts["n_valid"]) == (part.n_total, part.n_valid)
    assert facts["shape"] == list(scores.shape)
    assert facts["dtype"] == str(scores.dtype)
    wanted = sce.backward(scores, targets, loss_weight=loss_weight, **options)
    assert gradient.read_bytes() == file_bytes(wanted, folder)
    # One pass alone has the same result.
    alone = call("loss", *files, "--json", "-", *arguments)
    assert {**strict(alone.out), "gradient": str(gradient)} == facts
    return facts


# ---- The bits of arrays in memory ----


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("mode", [*MODES, 12.5])
def test_bits(call: Call, tmp_path: Path, dtype: str, target: str, mode: str | float) -> None:
    scores, targets = data((30, 3, 13, 11), dtype, target)
    options: dict[str, Any] = {"normalization": mode, "loss_weight": -0.3}
    if target != "bool":
        options["ignore_label"] = 7
    facts = check_bits(call, tmp_path, scores, targets, **options)
    assert facts["normalization"] == mode
    assert number(facts["loss"]) == number(facts["sum"]) / facts["divisor"]


SHAPES = [
    (),
    (1,),
    (0,),
    (4, 0),
    (0, 4),
    (1, 1),
    (BLOCK - 1,),
    (BLOCK,),
    (BLOCK + 1,),
    (3 * BLOCK,),
    (2, BLOCK),
    (2 * BLOCK + 1, 1),
    (2, 3, 37, 41),
]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(call: Call, tmp_path: Path, shape: tuple[int, ...]) -> None:
    for mode in MODES:
        scores, targets = data(shape, "float32", "uint8")
        check_bits(call, tmp_path, scores, targets, normalization=mode, ignore_label=7)


@pytest.mark.usefixtures("small_blocks")
def test_axes_of_length_1(call: Call, tmp_path: Path) -> None:
    scores, targets = data((50, 1, 200, 1), "float64", "int8")
    for shape in ((50, 200), (1, 50, 200), (50, 1, 200, 1)):
        check_bits(call, tmp_path, scores, targets.reshape(shape), ignore_label=7)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", DTYPES)
def test_pos_weight(call: Call, tmp_path: Path, dtype: str) -> None:
    scores, targets = data((7, 3, 900), dtype, "uint8")
    flat = scores.ravel(), targets.ravel()
    check_bits(call, tmp_path, *flat, ("--pos-weight", 2.5), pos_weight=2.5)
    p = np.array([0.5, 2.0, 3.25])
    for argument in ("0.5,2,3.25", " 0.5, 2.0 ,325e-2"):
        check_bits(call, tmp_path, scores, targets, ("--pos-weight", argument), pos_weight=p)
    for array in (p, p.astype("float32"), p[:, None], np.array([1, 2, 3])):
        file = save(tmp_path / "p.npy", array)
        check_bits(call, tmp_path, scores, targets, ("--pos-weight", file), pos_weight=array)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", DTYPES)
def test_weight(call: Call, tmp_path: Path, dtype: str) -> None:
    shape = (7, 3, 900)
    scores, targets = data(shape, dtype, "uint8")
    check_bits(call, tmp_path, scores, targets, ("--weight", 0.1), weight=0.1)
    rng = np.random.default_rng(1)
    weights = [
        rng.random(shape).astype(dtype),
        rng.random((3, 1)).astype(dtype),
        rng.random((7, 1, 900)).astype(dtype),
        rng.random(()).astype(dtype),
        rng.integers(0, 3, shape).astype(np.uint8),
        rng.integers(0, 2, shape).astype(bool),
        rng.integers(0, 2, (1, 3, 1)).astype(np.int8),
    ]
    for weight in weights:
        file = save(tmp_path / "w.npy", weight)
        arguments = ("--weight", file, "--check")
        check_bits(
            call, tmp_path, scores, targets, arguments, weight=weight, ignore_label=7,
            normalization="valid",
        )  # fmt: skip


# No deadline: each gradient file waits for the disk.
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=24),
    dtype=st.sampled_from(DTYPES),
    target=st.sampled_from(TARGETS),
    mode=st.sampled_from([*MODES, 0.25]),
    label=st.sampled_from([None, 0, 7, -1]),
    seed=st.integers(0, 2**32 - 1),
)
@pytest.mark.usefixtures("small_blocks")
def test_random_shapes(
    call: Call,
    tmp_path: Path,
    shape: tuple[int, ...],
    dtype: str,
    target: str,
    mode: str | float,
    label: int | None,
    seed: int,
) -> None:
    scores, targets = data(shape, dtype, target, seed)
    options: dict[str, Any] = {"normalization": mode}
    arguments: tuple[object, ...] = ()
    if label is not None:
        options["ignore_label"] = label
    if len(shape) >= 2:
        options["pos_weight"] = np.random.default_rng(seed).random(shape[1])
        file = save(tmp_path / "p.npy", options["pos_weight"])
        arguments = ("--pos-weight", file)
    check_bits(call, tmp_path, scores, targets, arguments, **options)


@pytest.mark.usefixtures("small_blocks")
def test_threads_and_instruction_sets(call: Call, tmp_path: Path) -> None:
    scores, targets = data((5 * BLOCK + 3,), "float32", "float")
    for isa in sce.available_isas():
        for threads in (1, 2, 7):
            arguments = ("--isa", isa, "--threads", threads)
            check_bits(call, tmp_path, scores, targets, arguments)
            assert sce.get_isa() == isa
            assert sce.get_num_threads() == threads


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("scores", "loss"),
    [([math.nan, 1], "nan"), ([math.inf, 1], "inf"), ([math.inf, -math.inf], "nan")],
)
def test_sums_that_are_not_finite(call: Call, tmp_path: Path, scores: Any, loss: str) -> None:
    """Strings in JSON, which has no such numbers, and words in the text."""
    x = np.zeros(2 * BLOCK)
    x[[1, -1]] = scores
    t = np.zeros(2 * BLOCK)
    t[-1] = 2 if loss == "nan" and math.isinf(scores[0]) else 0  # -inf of a loss, far from +inf
    if t[-1] == 2:
        x[-1] = math.inf
    facts = check_bits(call, tmp_path, x, t)
    assert facts["loss"] == facts["sum"] == loss
    text = call("loss", tmp_path / "scores.npy", tmp_path / "targets.npy").out
    assert f"loss      {loss}\nsum       {loss}\n" in text


def test_blocks_of_the_real_size(tmp_path: Path) -> None:
    """In a process of its own, with the text output."""
    rng = np.random.default_rng(2)
    scores = rng.normal(0, 3, 2 * stream.BLOCK + 5).astype(np.float32)
    targets = rng.integers(0, 3, scores.size).astype(np.uint8)
    files = save(tmp_path / "x.npy", scores), save(tmp_path / "t.npy", targets)
    gradient, facts = tmp_path / "g.npy", tmp_path / "facts.json"
    options: dict[str, Any] = {"ignore_label": 2, "normalization": "valid"}
    done = execute(
        "loss", *files, "--grad-out", gradient, "--json", facts, "--ignore-label", 2,
        "--normalization", "valid",
    )  # fmt: skip
    assert (done.status, done.err) == (0, "")
    loss, wanted = sce.forward_backward(scores, targets, **options)
    part = sce.partial(scores, targets, ignore_label=2)
    assert done.out.splitlines() == [
        f"loss      {loss!r}",
        f"sum       {part.sum!r}",
        f"divisor   {part.n_valid} (valid)",
        f"elements  {scores.size}, {part.n_valid} not ignored",
        f"gradient  {gradient}",
    ]
    assert strict(facts.read_text())["loss"] == loss
    assert gradient.read_bytes() == file_bytes(wanted, tmp_path)


def test_text_of_a_number(call: Call, tmp_path: Path) -> None:
    x = save(tmp_path / "x.npy", np.zeros(3))
    for argument, shown in (("3.1", "3.1"), ("4", "4"), ("1e30", "1e+30")):
        out = call("loss", x, x, "--normalization", argument).out
        assert f"divisor   {shown}\n" in out
    assert "elements  3\n" in out


def test_files_of_other_versions(call: Call, tmp_path: Path) -> None:
    """Version 2, and one axis in Fortran order, which is C order as well."""
    scores, targets = data((1, 5000), "float64", "float")
    version_2 = tmp_path / "x2.npy"
    with version_2.open("wb") as file:
        np.lib.format.write_array(file, scores, version=(2, 0))
    one_axis = tmp_path / "t1.npy"
    header = {"descr": "<f8", "fortran_order": True, "shape": targets.shape}
    with one_axis.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.write(targets.tobytes())
    done = call("loss", version_2, one_axis, "--json", "-")
    assert strict(done.out)["loss"] == sce.forward(scores, targets)


# ---- --check ----


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("mode", ["valid", "full"])
@pytest.mark.parametrize("target", ["float", "int8", "int64"])
def test_check_of_targets(call: Call, tmp_path: Path, target: str, mode: str, grad: bool) -> None:
    shape = (30, 3, 100)
    scores, _ = data(shape, "float32", "float")
    targets = np.zeros(shape, "float32" if target == "float" else target)
    targets[25, 2, 31] = 3
    targets[25, 2, 33] = -2
    targets[0, 0, 5] = 7
    files = save(tmp_path / "x.npy", scores), save(tmp_path / "t.npy", targets)
    gradient = tmp_path / "g.npy"
    arguments = ["--ignore-label", 7, "--normalization", mode]
    arguments += ["--grad-out", gradient] * grad
    done = call("loss", *files, "--check", *arguments)
    value = "3.0" if target == "float" else "3"
    assert done == (
        1,
        "",
        "Error: targets: expected values in [0, 1] with check=True, got "
        f"{value} at index (25, 2, 31)\n",
    )
    assert not gradient.exists()
    assert call("loss", *files, *arguments).status == 0
    done = call("loss", *files, "--check", *arguments, "--ignore-label", 3)
    assert "at index (0, 0, 5)" in done.err


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("bad", [-1.0, math.inf, math.nan])
def test_check_of_weights(call: Call, tmp_path: Path, bad: float) -> None:
    shape = (30, 3, 100)
    scores, _ = data(shape, "float64", "float")
    files = save(tmp_path / "x.npy", scores), save(tmp_path / "t.npy", np.zeros(shape))
    for where in ((0, 0, 0), (25, 2, 31)):
        weight = np.ones(shape)
        weight[where] = bad
        file = save(tmp_path / "w.npy", weight)
        done = call("loss", *files, "--check", "--weight", file)
        assert done.status == 1
        assert done.err == (
            f"Error: weight: expected finite values >= 0 with check=True, got {bad} at index "
            f"{where}\n"
        )
        assert call("loss", *files, "--weight", file).status == 0


# ---- Bad files ----


def npy(header: str, content: bytes = bytes(64), version: int = 1) -> bytes:
    text = header.encode() + b"\n"
    length = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + content


def header(descr: str = "'<f4'", fortran: str = "False", shape: str = "(4,)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}}}"


GOOD = npy(header())

BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is not a .npy file; EOF"),
    "text": (b"0.5 0.25\n" * 9, "is not a .npy file; the magic string is not correct"),
    "another magic": (b"\x93NUMPX" + GOOD[6:], "is not a .npy file; the magic string is not"),
    "zip": (b"PK\x03\x04" + bytes(60), "is not a .npy file; the magic string is not correct"),
    "ends in the magic": (GOOD[:5], "is not a .npy file; EOF"),
    "ends in the version": (GOOD[:7], "is not a .npy file; EOF"),
    "ends in the header": (GOOD[:30], "is not a .npy file; EOF"),
    "ends in the data": (GOOD[:-50], "bytes, expected"),
    "version 3": (npy(header(), version=3), "is not a .npy file; unknown version (3, 0)"),
    "version 9": (npy(header(), version=9), "is not a .npy file; "),
    "no header": (npy(""), "is not a .npy file; "),
    "no dictionary": (npy("[1]"), "is not a .npy file; "),
    "bracket missing": (npy(header(shape="(2")), "is not a .npy file; "),
    "code": (npy(header(shape="(4,)*1")), "is not a .npy file; "),
    "keys of two types": (npy("{b'descr': 1, 'shape': 2}"), "is not a .npy file; "),
    "deep": (npy("{1:" * 1000), "is not a .npy file; "),
    "negative": (npy(header(shape="(-1,)")), "is not a .npy file; shape (-1,) is negative"),
    "negative twice": (npy(header(shape="(-2, -2)")), "is not a .npy file; shape"),
    "huge": (npy(header(shape=f"({2**61},)")), "bytes, expected 92233720368547"),
    "beyond 64 bits": (npy(header(shape=f"({2**70},)")), "bytes, expected"),
    "long axis without elements": (npy(header(shape=f"(0, {2**70})")), "has shape (0, "),
    "many axes": (npy(header(shape=f"({'1,' * 70})")), "has shape (1, "),
    "objects": (npy(header("'|O'")), "holds object, expected an array of numbers"),
    "record": (npy(header("[('a', '<f4')]")), "holds [('a', '<f4')], expected an array of"),
    "record of objects": (npy(header("[('a', '|O')]")), "holds [('a', 'O')], expected an"),
    "array of arrays": (npy(header("('<f4', (2,))")), "holds ('<f4', (2,)), expected an array"),
    "no dtype": (npy(header("'zz'")), "is not a .npy file; descr is not a valid dtype"),
    "strings": (npy(header("'<U2'")), "holds <U2, expected an array of numbers"),
    "empty strings": (npy(header("'|S0'")), "holds |S0, expected an array of numbers"),
    "dates": (npy(header("'<M8[s]'")), "holds datetime64[s], expected an array of numbers"),
    "Fortran order": (npy(header(fortran="True", shape="(2, 2)")), "is in Fortran order"),
}
BAD_FILES = {name: (raw, " " + text) for name, (raw, text) in BAD_FILES.items()}
# Refused later, where the message does not know the file.
BAD_FILES |= {
    "float16": (npy(header("'<f2'")), ": expected {floats}, got float16"),
    "complex": (npy(header("'<c8'")), ": expected {floats}, got complex64"),
    "int16": (npy(header("'<i2'")), ": expected {floats}, got int16"),
    "other byte order": (npy(header("'>f4'")), ": expected native byte order, got >f4"),
}


@pytest.mark.parametrize("role", ["scores", "targets", "weight", "pos_weight"])
@pytest.mark.parametrize("case", list(BAD_FILES))
def test_bad_files(call: Call, tmp_path: Path, case: str, role: str) -> None:
    raw, message = BAD_FILES[case]
    if role == "pos_weight" and case in ("float16", "int16", "other byte order"):
        pytest.skip("those are read: its numbers become float64")
    if role == "scores" and case == "float16":
        pytest.skip("those are read")
    good = save(tmp_path / "good.npy", np.zeros(4, np.float32))
    bad = tmp_path / "bad.npy"
    bad.write_bytes(raw)
    arguments: dict[str, object] = {"scores": good, "targets": good}
    arguments[role] = bad
    command = ["loss", arguments.pop("scores"), arguments.pop("targets")]
    for name, path in arguments.items():
        command += [f"--{name.replace('_', '-')}", path]
    gradient = tmp_path / "g.npy"
    done = call(*command, "--grad-out", gradient)
    assert done.status == 1
    assert done.out == ""
    assert done.err.count("\n") == 1
    assert done.err.endswith("\n")
    start = f"Error: {role}: {bad}" if message.startswith(" ") else f"Error: {role}"
    assert done.err.startswith(start)
    found = done.err.removeprefix("Error: ")
    text, _, rest = message.partition("{floats}")
    if role == "pos_weight" and rest:
        text, rest = ": expected real numbers", ", got complex64"
    assert text in found
    assert rest in found
    assert list(tmp_path.glob(".*")) == []
    assert not gradient.exists()


def test_damaged_headers(call: Call, tmp_path: Path) -> None:
    """Whatever the header says: read, or one line."""
    rng = np.random.default_rng(3)
    text = np.frombuffer(b"(){}[]',:0123456789-truefalsFTOL<>|bixf\n\0\x80\" ", np.uint8)
    bad = tmp_path / "bad.npy"
    refused = 0
    for _ in range(600):
        raw = bytearray(GOOD)
        for place in rng.integers(8, 70, rng.integers(1, 4)):
            raw[place] = rng.choice(text)
        bad.write_bytes(raw)
        done = call("loss", bad, bad)
        assert done.status in (0, 1)
        if done.status == 1:
            refused += 1
            assert done.out == ""
            assert re.fullmatch(r"Error: (scores|targets): .*\n", done.err), raw
    assert 300 < refused < 600


def test_pickles_are_not_loaded(call: Call, tmp_path: Path) -> None:
    trap = tmp_path / "trap"

    class Evil:
        def __reduce__(self) -> Any:
            return trap.touch, ()

    bad = tmp_path / "bad.npy"
    np.save(bad, np.array([Evil()], object), allow_pickle=True)
    good = save(tmp_path / "good.npy", np.zeros(1))
    for command in (
        (bad, good), (good, bad), (good, good, "--weight", bad), (good, good, "--pos-weight", bad)
    ):  # fmt: skip
        done = call("loss", *command)
        assert done.status == 1
        assert "holds object, expected an array of numbers" in done.err
    assert not trap.exists()
    np.load(bad, allow_pickle=True)  # the trap works
    assert trap.exists()


def test_files_that_cannot_be_opened(call: Call, tmp_path: Path) -> None:
    good = save(tmp_path / "good.npy", np.zeros(4))
    missing = tmp_path / "missing.npy"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    np.savez(tmp_path / "x.npz", np.zeros(4))
    for bad, message in (
        (missing, f"Error: {missing}: No such file or directory\n"),
        (tmp_path, f"Error: {tmp_path}: Is a directory\n"),
        (good / "below", f"Error: {good / 'below'}: Not a directory\n"),
        (pipe, f"{pipe} is no regular file, which can be mapped into memory\n"),
        ("/dev/null", "/dev/null is no regular file, which can be mapped into memory\n"),
        (tmp_path / "x.npz", f"{tmp_path / 'x.npz'} is not a .npy file"),
    ):
        for command in (
            (bad, good),
            (good, bad),
            (good, good, "--weight", bad),
            (good, good, "--pos-weight", bad),
        ):
            done = call("loss", *command)
            assert (done.status, done.out) == (1, "")
            assert done.err.count("\n") == 1
            assert message in done.err


def test_no_permission(call: Call, tmp_path: Path) -> None:
    file = save(tmp_path / "x.npy", np.zeros(4))
    file.chmod(0)
    if os.access(file, os.R_OK):
        pytest.skip("root may read everything")
    assert call("loss", file, file) == (1, "", f"Error: {file}: Permission denied\n")
    file.chmod(0o600)
    tmp_path.chmod(0o500)
    done = call("loss", file, file, "--grad-out", tmp_path / "g.npy")
    tmp_path.chmod(0o700)
    assert (done.status, done.out) == (1, "")
    assert "Permission denied" in done.err


def test_no_traceback_from_a_process(tmp_path: Path) -> None:
    done = execute("loss", tmp_path / "x.npy", tmp_path / "t.npy")
    assert done == (1, "", f"Error: {tmp_path / 'x.npy'}: No such file or directory\n")


def test_shapes_that_do_not_fit(call: Call, tmp_path: Path) -> None:
    x = save(tmp_path / "x.npy", np.zeros((4, 3)))
    other = save(tmp_path / "t.npy", np.zeros((3, 4)))
    done = call("loss", x, other)
    assert done == (
        1,
        "",
        "Error: targets: expected shape (4, 3), the shape of scores (axes of length 1 aside), got "
        "(3, 4)\n",
    )
    for option in ("--weight", "--pos-weight"):
        done = call("loss", x, x, option, other)
        assert (done.status, done.out) == (1, "")
        assert done.err.startswith(f"Error: {option[2:].replace('-', '_')}: expected ")
        assert done.err.count("\n") == 1


# ---- Bad options ----

WRONG_USAGE = {
    "no command": (["lose"], "No such command 'lose'"),
    "no option": (["loss", "x", "t", "--foo"], "No such option"),
    "argument missing": (["loss", "x"], "Missing argument 'TARGETS'"),
    "argument too many": (["info", "x"], "unexpected extra argument"),
    "normalization": (
        ["loss", "x", "t", "--normalization", "mean"],
        "'--normalization': expected full, valid, batch_size, none or a number, got 'mean'",
    ),
    "normalizations": (
        ["loss", "x", "t", "--normalization", "1,2"],
        "'--normalization': expected full, valid, batch_size, none or a number, got '1,2'",
    ),
    "weights": (["loss", "x", "t", "--weight", "1,2"], "'--weight': expected a number, got '1,2'"),
    "loss weight": (["loss", "x", "t", "--loss-weight", "x"], "Invalid value for '--loss-weight'"),
    "label": (["loss", "x", "t", "--ignore-label", "1.5"], "Invalid value for '--ignore-label'"),
    "threads": (["loss", "x", "t", "--threads", "0"], "Invalid value for '--threads'"),
    "isa": (["loss", "x", "t", "--isa", "mmx"], "Invalid value for '--isa'"),
    "json": (["info", "--json", "/no/such/folder/x"], "/no/such/folder is no directory"),
    "json folder": (["check", "--json", "/"], "/ is a directory"),
    "size": (["check", "--size", "7"], "Invalid value for '--size'"),
    "bench option": (["bench", "--foo"], "--foo"),
    "bench number": (["bench", "--rounds", "x"], "expected an integer of at least 1, got 'x'"),
    "bench json": (["bench", "--json", "/no/such/folder/x"], "--json: expected the name of a"),
    "bench peers": (["bench", "--backends", "Chainer"], "--backends: ['Chainer'] are none of"),
}


@pytest.mark.parametrize("case", list(WRONG_USAGE))
def test_wrong_usage(call: Call, case: str) -> None:
    arguments, message = WRONG_USAGE[case]
    done = call(*arguments)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("Error: ")
    assert done.err.count("\n") == 1
    assert message in done.err
    assert "--help' shows the usage)\n" in done.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--normalization", "0"], "normalization: expected "),
        (["--normalization", "nan"], "normalization: expected "),
        (["--pos-weight", "-1"], "pos_weight: expected finite values >= 0, got -1.0"),
        (["--pos-weight", "1,2"], "pos_weight: expected a number, since scores of shape (4,)"),
        (["--weight", "inf"], "weight: expected a finite number >= 0, got inf"),
        (["--ignore-label", str(2**63)], "ignore_label: expected an int of 64 bits"),
        (["--loss-weight", "nan", "--grad-out", "g.npy"], "loss_weight: expected a finite number"),
    ],
)
def test_bad_values(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = save(tmp_path / "x.npy", np.zeros(4))
    done = call("loss", file, file, *options)
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith(f"Error: {message}")
    assert done.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


@pytest.mark.parametrize("variable", ["SIGMOID_CE_ISA", "SIGMOID_CE_NUM_THREADS"])
def test_bad_environment(tmp_path: Path, variable: str) -> None:
    file = save(tmp_path / "x.npy", np.zeros(4))
    for command in (("loss", file, file), ("info",)):
        done = execute(*command, env={**os.environ, variable: "x"})
        assert (done.status, done.out) == (1, "")
        assert re.fullmatch(rf"Error: {variable}: expected .*\n", done.err)


def test_full_stdout(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    file = save(tmp_path / "x.npy", np.zeros(4))
    for command in (("loss", file, file), ("info", "--json", "-"), ("--help",)):
        with Path("/dev/full").open("w") as full:
            done = execute(*command, stdout=full)
        assert (done.status, done.err) == (1, "Error: stdout: No space left on device\n")


# ---- The gradient file: whole or not at all ----


class Pair(NamedTuple):
    scores: Path
    targets: Path
    gradient: Path

    def unfinished(self) -> list[Path]:
        return list(self.gradient.parent.glob(f".{self.gradient.name}.*.unfinished"))


@pytest.fixture
def large(tmp_path: Path) -> Pair:
    """2^29 elements, so that no machine is done before it is stopped; files that take no disk."""
    size = (2**29,)
    scores = sparse(tmp_path / "x.npy", size, "float32")
    return Pair(scores, sparse(tmp_path / "t.npy", size, "uint8"), tmp_path / "g.npy")


def wait_for(child: subprocess.Popen[str], pair: Pair, size: int) -> None:
    """Until the unfinished gradient has more than `size` bytes."""
    end = time.monotonic() + PATIENCE
    while not any(path.stat().st_size > size for path in pair.unfinished()):
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


@contextlib.contextmanager
def in_the_middle(pair: Pair, code: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process that has written a part of the gradient. Killed at the end, if it still runs."""
    command = ("loss", pair.scores, pair.targets, "--grad-out", pair.gradient)
    with start(*command, code=code) as child:
        try:
            wait_for(child, pair, 2**20)
            yield child
        finally:
            child.kill()


@pytest.mark.parametrize("old", [None, b"what was there"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_stopped_in_the_middle(large: Pair, name: str, old: bytes | None) -> None:
    if old is not None:
        large.gradient.write_bytes(old)
    number = getattr(signal, name)
    # As where nobody ignores it, though these tests may run under nohup.
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)"
    with in_the_middle(large, code) as child:
        child.send_signal(number)
        out, err = child.communicate(timeout=PATIENCE)
    assert out == ""
    if name == "SIGKILL":
        assert child.returncode == -number
        assert len(large.unfinished()) == 1
    else:
        assert child.returncode == 128 + number
        assert err.split() == (["Error:", "interrupted"] if name == "SIGINT" else [])
        assert large.unfinished() == []
    assert (large.gradient.read_bytes() if large.gradient.exists() else None) == old


def test_under_nohup(large: Pair) -> None:
    """SIGHUP stays ignored where it was."""
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    with in_the_middle(large, code) as child:
        (unfinished,) = large.unfinished()
        child.send_signal(signal.SIGHUP)
        # Two blocks later it would have ended.
        wait_for(child, large, unfinished.stat().st_size + 2 * 4 * stream.BLOCK)
        child.send_signal(signal.SIGTERM)
        child.communicate(timeout=PATIENCE)
    assert child.returncode == 128 + signal.SIGTERM


def test_file_too_large(large: Pair) -> None:
    """As on a full disk."""
    large.gradient.write_bytes(b"what was there")
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2**24, 2**24))"
    command = ("loss", large.scores, large.targets, "--grad-out", large.gradient)
    done = execute(*command, code=code)
    assert done == (1, "", f"Error: {large.gradient}: File too large\n")
    assert large.gradient.read_bytes() == b"what was there"
    assert large.unfinished() == []


def test_replaces_an_old_gradient(call: Call, tmp_path: Path) -> None:
    """Also what a killed process of the same number left, and not what is another's."""
    x = save(tmp_path / "x.npy", np.zeros(4))
    gradient = tmp_path / "g.npy"
    gradient.write_bytes(b"old")
    mine = tmp_path / f".g.npy.{os.getpid()}.unfinished"
    mine.write_bytes(b"left")
    other = tmp_path / f".g.npy.{os.getpid() + 1}.unfinished"
    other.write_bytes(b"another's")
    assert call("loss", x, x, "--grad-out", gradient).status == 0
    assert gradient.read_bytes() == file_bytes(np.full(4, 0.125), tmp_path)
    assert not mine.exists()
    assert other.read_bytes() == b"another's"


@pytest.mark.usefixtures("small_blocks")
def test_unfinished_file_replaced_by_another(tmp_path: Path) -> None:
    """A process of the same number in another container: its part never becomes the gradient."""
    x = save(tmp_path / "x.npy", np.zeros(3 * BLOCK))
    gradient = tmp_path / "g.npy"

    def interfere(elements: int, total: int) -> None:
        (unfinished,) = tmp_path.glob(".*.unfinished")
        unfinished.unlink()
        unfinished.write_bytes(b"another's")

    with pytest.raises(ValueError, match=r"^grad_out: another process of this number writes"):
        stream.run(x, x, grad_out=gradient, progress=interfere)
    assert not gradient.exists()


@pytest.mark.parametrize("role", ["scores", "targets", "weight", "pos_weight"])
@pytest.mark.parametrize("option", ["--grad-out", "--json"])
@pytest.mark.parametrize("how", ["itself", "symlink", "hard link", "other path"])
def test_inputs_are_not_overwritten(
    call: Call, tmp_path: Path, role: str, option: str, how: str
) -> None:
    files = {
        name: save(tmp_path / f"{name}.npy", np.full(1 if name == "pos_weight" else 4, 0.5))
        for name in ("scores", "targets", "weight", "pos_weight")
    }
    before = {path: path.read_bytes() for path in files.values()}
    out = tmp_path / "out"
    if how == "itself":
        out = files[role]
    elif how == "symlink":
        out.symlink_to(files[role])
    elif how == "hard link":
        out.hardlink_to(files[role])
    else:
        out = tmp_path / ".." / tmp_path.name / files[role].name
    command: list[object] = ["loss", files["scores"], files["targets"]]
    command += ["--weight", files["weight"], "--pos-weight", files["pos_weight"]]
    done = call(*command, option, out)
    name = "json" if option == "--json" else "grad_out"
    assert done == (
        1, "", f"Error: {name}: {out} is the file of {role}; give another name\n"
    )  # fmt: skip
    assert {path: path.read_bytes() for path in files.values()} == before
    assert list(tmp_path.glob(".*")) == []


def test_json_is_not_the_gradient(call: Call, tmp_path: Path) -> None:
    x = save(tmp_path / "x.npy", np.zeros(4))
    out = tmp_path / "out"
    done = call("loss", x, x, "--grad-out", out, "--json", out)
    assert (done.status, done.out) == (1, "")
    assert done.err == f"Error: json: {out} is the file of grad_out; give another name\n"
    assert not out.exists()


def test_gradient_through_a_symlink(call: Call, tmp_path: Path) -> None:
    """The link stays, and its file is written, in its folder."""
    x = save(tmp_path / "x.npy", np.zeros(4))
    link = tmp_path / "link.npy"
    (tmp_path / "folder").mkdir()
    link.symlink_to(tmp_path / "folder" / "g.npy")
    wanted = file_bytes(np.full(4, 0.125), tmp_path)
    for _ in range(2):  # a new file, and one that is there
        assert call("loss", x, x, "--grad-out", link).status == 0
        assert link.is_symlink()
        assert [path.name for path in (tmp_path / "folder").iterdir()] == ["g.npy"]
        assert (tmp_path / "folder" / "g.npy").read_bytes() == wanted


def test_places_where_no_gradient_can_be(call: Call, tmp_path: Path) -> None:
    x = save(tmp_path / "x.npy", np.zeros(4))
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    for out, message in (
        (tmp_path, f"grad_out: expected the name of a file, got {tmp_path}"),
        ("/dev/null", "grad_out: expected the name of a file, got /dev/null"),
        (tmp_path / "no" / "g.npy", f"grad_out: {tmp_path / 'no'} is no directory"),
        (x / "g.npy", f"grad_out: {x} is no directory"),
        (circle, "circle"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        done = call("loss", x, x, "--grad-out", out)
        assert (done.status, done.out) == (1, "")
        assert message in done.err
        assert done.err.count("\n") == 1
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circle", "x.npy"]


# ---- Memory ----

# The child's own peak: ru_maxrss would hold that of the process it was forked from.
_PEAK = """
import atexit
from pathlib import Path

def peak():
    status = Path("/proc/self/status").read_text()
    Path("peak").write_text(status.partition("VmHWM:")[2].split()[0])

atexit.register(peak)
"""
PEAK_BYTES = 200e6


def check_memory(folder: Path, *arguments: object, files: int) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    shape = (2**19, 2**10)
    paths = [sparse(folder / name, shape, "float32") for name in ("x.npy", "t.npy")[:files]]
    pair = paths[0], paths[-1]
    assert sum(path.stat().st_size for path in pair) > 2**32
    options = ("--normalization", "full", "--json", "-")
    done = execute("loss", *pair, *options, *arguments, code=_PEAK, cwd=folder)
    assert (done.status, done.err) == (0, "")
    # The sum of equal losses is exact, so the mean is the loss of any number of zeros.
    few = np.zeros(2**12, np.float32)
    facts = strict(done.out)
    assert facts["loss"] == sce.forward(few, few, normalization="full") == np.log(np.float32(2))
    assert facts["sum"] == facts["loss"] * 2**29
    assert 1024 * int((folder / "peak").read_text()) < PEAK_BYTES


def test_memory(tmp_path: Path) -> None:
    """4 GiB: one file as both, since each mapping counts, and the system caches it once."""
    check_memory(tmp_path, files=1)


@pytest.mark.long
def test_memory_with_gradient_and_weight(tmp_path: Path) -> None:
    """6 GiB of files, and 2 GiB written."""
    weight = tmp_path / "w.npy"
    gradient = tmp_path / "g.npy"
    shape = (2**19, 2**10)
    with sparse(weight, shape, "uint8").open("r+b") as file:
        file.seek(128)
        for _ in range(2**9):
            file.write(b"\1" * 2**20)
    options = ("--weight", weight, "--check", "--grad-out", gradient, "--ignore-label", 5)
    check_memory(tmp_path, *options, files=2)
    written = np.load(gradient, mmap_mode="r")
    assert written.shape == shape
    assert (written == np.float32(0.5 / 2**29)).all()
    del written
    gradient.unlink()


# ---- Terminal ----


def test_progress_on_a_terminal(tmp_path: Path) -> None:
    """Drawn on stderr, and stdout stays what it is. In pipes nothing is drawn."""
    for size in (3 * stream.BLOCK, 0):
        x = save(tmp_path / "x.npy", np.zeros(size, np.float32))
        alone = execute("loss", x, x, "--json", "-")
        master, slave = pty.openpty()
        with start(
            "loss", x, x, "--json", "-", stderr=slave, env={**os.environ, "TERM": "xterm"}
        ) as child:
            os.close(slave)
            out, _ = child.communicate(timeout=PATIENCE)
        drawn = b""
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while piece := os.read(master, 4096):
                drawn += piece
        os.close(master)
        assert child.returncode == 0
        assert out == alone.out
        assert alone.err == ""
        assert b"elements" in drawn
        if size:
            assert b"100%" in drawn


# ---- info, help, version ----


def test_info(call: Call, tmp_path: Path) -> None:
    facts = sce.info()
    done = call("info", "--json", "-")
    assert strict(done.out) == facts
    assert facts["devices"][0] == "cpu"
    assert facts["isa"] in facts["available_isas"]
    assert set(facts["available_isas"]) <= set(facts["compiled_isas"])
    assert facts["compiled_isas"] == sce.compiled_isas()
    text = call("info", "--json", tmp_path / "info.json").out
    assert strict((tmp_path / "info.json").read_text()) == facts
    rows = dict(re.split(r"  +", line, maxsplit=1) for line in text.splitlines())
    cuda = facts.pop("cuda")
    assert [key for key in rows if key.startswith("cuda")] == (
        ["cuda"] * bool(cuda["reason"])
        + ["cuda versions"] * cuda["built"]
        + [f"cuda:{i}" for i in range(len(cuda["devices"]))]
    )
    assert cuda["reason"] == rows.get("cuda")
    assert {key: text for key, text in rows.items() if not key.startswith("cuda")} == {
        key.replace("_", " "): ", ".join(value) if isinstance(value, list) else str(value)
        for key, value in facts.items()
    }
    assert text == call("info").out


def test_version(call: Call) -> None:
    assert call("--version") == (0, f"sigmoid_ce, version {sce.__version__}\n", "")


def test_without_a_command(call: Call) -> None:
    done = call()
    assert (done.status, done.out) == (2, "")
    assert done.err == call("--help").out


@pytest.mark.parametrize("width", [80, 100, 200])
def test_help(call: Call, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    names = ["", *cli.cli.commands, *(f"caffe {name}" for name in caffe.commands)]
    helps = {name: call(*name.split(), "--help") for name in names}
    assert set(helps) >= {"", "bench", "caffe", "caffe install", "check", "info", "loss"}
    for name, (status, out, err) in helps.items():
        assert (status, err) == (0, "")
        if name == "bench" and width > 100:
            continue  # argparse takes all the width there is
        assert max(map(len, out.splitlines())) <= min(width, 100)
        assert "..." not in out.partition("Commands:")[2]  # cut short
    for name, command in cli.cli.commands.items():
        assert f"  {name}" in helps[""].out
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help
                assert all(flag in helps[name].out for flag in option.opts)
    assert call("loss", "-h") == helps["loss"]


def test_module_is_the_command() -> None:
    done = execute("--help")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("Usage: sigmoid-ce [OPTIONS] COMMAND")


def test_import_is_light() -> None:
    code = """
import sys, sigmoid_ce
names = [n for n in sys.modules if n.split(".")[0] in ("click", "bench")]
names += [n for n in sys.modules if n in ("sigmoid_ce.cli", "sigmoid_ce.bench")]
assert not names, names
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)
