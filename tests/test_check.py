"""`sigmoid-ce check`: it passes here, its table is that of the documentation, and it can fail."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sigmoid_ce as sce
from sigmoid_ce import bounds, check, cli

_ROOT = Path(__file__).resolve().parents[1]
_SIZE = 1 << 14


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cli.run(["check", "--size", str(_SIZE), *arguments])
    return (status, *capsys.readouterr())


# ---- It passes ----


def test_passes(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "--json", "-")
    assert (status, err) == (0, "")
    facts = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert facts["good"] is True
    assert facts["scores"] == _SIZE
    kinds = {(dtype, isa) for dtype in ("float32", "float64") for isa in sce.available_isas()}
    for rows in (facts["errors"], facts["special"], facts["bits"]):
        assert {(row["dtype"], row["isa"]) for row in rows} == kinds
        assert all(row["good"] for row in rows)
    assert len(facts["errors"]) == len(kinds) * 4  # loss and gradient, targets 0 and 1
    bound = {"float32": bounds.FLOAT32_ULP, "float64": bounds.FLOAT64_ULP}
    for row in facts["errors"]:
        assert row["bound"] == bound[row["dtype"]]
        if row["ulp"] is not None:  # where longdouble is wider
            # Results are rounded, so some of 2^14 errors are near half an ulp.
            assert 0.4 < row["ulp"] <= row["bound"]
            assert math.isfinite(row["score"])
    assert len(facts["special"]) == len(kinds) * len(check._SPECIAL + check._SPECIAL_OPTIONS)
    for dtype in ("float32", "float64"):
        assert len({row["digest"] for row in facts["bits"] if row["dtype"] == dtype}) == 1


def test_text(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "check.json"
    status, out, err = run(capsys, "--json", str(file))
    assert (status, err) == (0, "")
    assert json.loads(file.read_text())["good"]
    lines = out.splitlines()
    assert max(map(len, lines)) <= 100
    for dtype in ("float32", "float64"):
        for isa in sce.available_isas():
            rows = [line for line in lines if re.match(rf"{dtype}  {isa} ", line)]
            assert len(rows) == 2  # errors and bits
            assert all(row.endswith((" ok", "no wider type here")) for row in rows)
    for case, _, _ in check._SPECIAL + check._SPECIAL_OPTIONS:
        count = 2 * len(sce.available_isas())
        (row,) = (line for line in lines if line.startswith(f"{case}  "))
        assert row.endswith(f"ok, {count} of {count}")


def test_instruction_set_is_put_back() -> None:
    for isa in sce.available_isas():
        sce.set_isa(isa)
        seen: list[str] = []
        check.run(1024, progress=seen.append)
        assert sce.get_isa() == isa
    assert seen[0] == "float32, exact values"
    assert f"float64, {isa}" in seen


def test_same_scores_each_time() -> None:
    assert check.run(1024).bits == check.run(1024).bits
    assert check.run(1024).bits != check.run(1025).bits


# ---- The table of special values ----


def rule(given: dict[str, Any]) -> int:
    """The number in docs/numerics.md of the rule that a case falls under."""
    if "ignore_label" in given and given["t"] == given["ignore_label"]:
        return 1
    w = given.get("weight", 1)
    if w == 0:
        return 2
    if any(math.isnan(value) for value in (given["x"], given["t"], w)) or math.isinf(given["t"]):
        return 3
    return 4


def test_special_table_is_that_of_the_documentation() -> None:
    text = (_ROOT / "docs" / "numerics.md").read_text()
    section = text.partition("### Special values, in this order")[2].partition("\n## ")[0]
    numbers = [int(number) for number in re.findall(r"^(\d)\. ", section, re.MULTILINE)]
    assert numbers == [1, 2, 3, 4]
    rules = [rule(given) for _, given, _ in check._SPECIAL]
    assert rules == sorted(rules)
    assert set(rules) == set(numbers)
    by_rule: dict[int, list[Any]] = {number: [] for number in numbers}
    for number, (_, given, expected) in zip(rules, check._SPECIAL, strict=True):
        by_rule[number].append((given, expected))
    assert all(expected == (0, 0) for _, expected in by_rule[1] + by_rule[2])
    assert all(math.isnan(value) for _, expected in by_rule[3] for value in expected)
    # Each of x, t and w is the NaN, and t the infinity.
    culprits = {
        name
        for given, _ in by_rule[3]
        for name, value in given.items()
        if math.isnan(value) or (name == "t" and math.isinf(value))
    }
    assert culprits == {"x", "t", "weight"}
    # Both infinities, with u above, at and below 0.
    infinite = {
        (given["x"], np.sign(1 - given["t"] if given["x"] > 0 else given["t"])): expected[0]
        for given, expected in by_rule[4]
        if math.isinf(given["x"])
    }
    assert infinite == {
        (x, sign): sign * math.inf if sign else 0
        for x in (math.inf, -math.inf)
        for sign in (1, 0, -1)
    }


CASES = check._SPECIAL + check._SPECIAL_OPTIONS


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_special_values_are_those_of_the_reference(case: Any) -> None:
    _, given, expected = case
    options = dict(given)
    x, t = np.array([options.pop("x")], float), np.array([options.pop("t")], float)
    if "weight" in options:
        options["weight"] = np.array([options["weight"]], float)
    loss = sce.reference.elementwise(x, t, **options)
    gradient = sce.reference.backward(x, t, normalization="none", **options)
    assert np.array_equal([loss[0], gradient[0]], expected, equal_nan=True)


# ---- It can fail ----


def spoil(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Any, Any], Any]) -> None:
    """In scalar code the native function gives what `change` makes of scores and result."""
    native = getattr(sce._cpu, name)

    def spoiled(x: Any, *arguments: Any, **options: Any) -> Any:
        result = native(x, *arguments, **options)
        return change(x, result) if sce.get_isa() == "scalar" else result

    monkeypatch.setattr(sce._cpu, name, spoiled)


def failed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    status, out, err = run(capsys)
    assert status == 1
    assert err == ("Error: this machine or build does not keep what docs/numerics.md says\n")
    return out.splitlines()


def test_bound_exceeded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(check._BOUND, "float32", 0.7)
    rows = [line for line in failed(capsys) if "EXCEEDED" in line]
    assert len(rows) == len(sce.available_isas())
    assert all(row.startswith("float32") for row in rows)


@pytest.mark.parametrize("name", ["elementwise", "backward"])
def test_one_wrong_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """One of 2^14 is 4 ulp off: found, with its score. The special values stay right."""

    def change(x: Any, values: Any) -> Any:
        if x.size == _SIZE:
            values[77] += 4 * np.spacing(values[77])
        return values

    spoil(monkeypatch, name, change)
    report = check.run(_SIZE)
    assert not report.good
    bad = [row for row in report.errors if not row.good]
    result = "loss" if name == "elementwise" else "gradient"
    assert {(row.isa, row.dtype, row.result) for row in bad} == {
        ("scalar", dtype, result) for dtype in check.DTYPES
    }
    # 4, and what the result was off before; half as many ulp in the binade below, at most twice.
    assert all(row.ulp is not None and 4 - 2 <= row.ulp <= 8 + 2 for row in bad)
    assert {row.score for row in bad} == {
        float(check._scores(_SIZE, dtype)[77]) for dtype in check.DTYPES
    }
    assert all(row.good for row in report.special)
    lines = failed(capsys)
    assert sum("EXCEEDED" in line for line in lines) == 2
    # Nothing to differ from where scalar is the only one.
    other = 2 if len(sce.available_isas()) > 1 else 0
    assert sum("OTHER" in line for line in lines) == other


def test_bit_that_differs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Within the bound, but not the same bits."""
    if len(sce.available_isas()) == 1:
        pytest.skip("needs a second instruction set")

    def change(x: Any, values: Any) -> Any:
        if x.size == _SIZE:
            values[77] = np.nextafter(values[77], np.inf, dtype=values.dtype)
        return values

    monkeypatch.setitem(check._BOUND, "float32", 10.0)
    monkeypatch.setitem(check._BOUND, "float64", 10.0)
    spoil(monkeypatch, "elementwise", change)
    lines = failed(capsys)
    assert sum("EXCEEDED" in line for line in lines) == 0
    assert [line.split()[:2] for line in lines if "OTHER" in line] == [
        ["float32", "scalar"],
        ["float64", "scalar"],
    ]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("elementwise", lambda v: v + 1),
        ("backward", lambda v: v + 1),
        ("elementwise", np.negative),
        ("backward", np.negative),
    ],
)
def test_wrong_special_value(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    wrong: Callable[[Any], Any],
) -> None:
    """-0 for +0 as well, which a sum or a product would show."""
    spoil(monkeypatch, name, lambda x, v: v if x.size == _SIZE else wrong(v))
    lines = failed(capsys)
    ignored = next(line for line in lines if line.startswith("ignored, score NaN"))
    assert "WRONG float32 scalar: " in ignored
    assert "; float64 scalar: " in ignored
    assert "avx" not in ignored
    nan = next(line for line in lines if line.startswith("score NaN"))
    assert nan.endswith(f"ok, {2 * len(sce.available_isas())} of {2 * len(sce.available_isas())}")


def test_nan_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(x: Any, values: Any) -> Any:
        if x.size == _SIZE:
            values[5] = np.nan
        return values

    spoil(monkeypatch, "elementwise", change)
    bad = [row for row in check.run(_SIZE).errors if not row.good]
    assert bad
    assert {row.ulp for row in bad} == {math.inf}
