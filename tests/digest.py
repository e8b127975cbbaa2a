"""The digests of tests/digests.txt, computed through the Python package.

    python tests/digest.py            print the lines `name digest`
    python tests/digest.py --check    compare them with tests/digests.txt
    python tests/digest.py --write    write tests/digests.txt

tests/native/digest.cpp prints the same lines from C++ alone. Inputs and digest are made of integer
operations, so that neither NumPy's random streams nor a math library can change them. The file is
written only when results are meant to change; docs/numerics.md says what the bits promise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import sigmoid_ce as sce

DIGESTS = Path(__file__).with_name("digests.txt")
SHAPE = (3, 5, 1117)
POS_WEIGHTS = [0.001, 0.5, 1.0, 2.5, 1000.0]
SIZES = (0, 1, 2, 63, 64, 65, 255, 256, 257, 4095, 4096, 4097, 40961)
SCORES, TARGETS, WEIGHTS = 1, 2, 3

U64 = np.uint64


def mix(v: Any) -> Any:
    """The finaliser of splitmix64 on an array of uint64 (arithmetic modulo 2^64)."""
    with np.errstate(over="ignore"):
        v = v + U64(0x9E3779B97F4A7C15)
        v = (v ^ (v >> U64(30))) * U64(0xBF58476D1CE4E5B9)
        v = (v ^ (v >> U64(27))) * U64(0x94D049BB133111EB)
        return v ^ (v >> U64(31))


def draw(stream: int, count: int) -> Any:
    return mix(U64(stream << 40) + np.arange(count, dtype=U64))


def signed_unit(u: Any, dtype: Any) -> Any:
    """Signed 24 (float32) or 53 (float64) random bits: exact in the type, in [-1, 1)."""
    signed = u.view(np.int64)
    if dtype == np.float32:
        return (signed >> 40).astype(np.float32) / np.float32(2**23)
    return (signed >> 11).astype(np.float64) / np.float64(2**52)


def any_bits(u: Any, dtype: Any) -> Any:
    return u.astype(np.uint32).view(np.float32) if dtype == np.float32 else u.view(np.float64)


def make_scores(count: int, dtype: Any, anything: bool = False) -> Any:
    u = draw(SCORES, count)
    if anything:
        return any_bits(u, dtype)
    return signed_unit(u, dtype) * np.where((u & U64(7)) == 0, dtype(128), dtype(16))


def make_targets(count: int, kind: str, dtype: Any) -> Any:
    u = draw(TARGETS, count)
    if kind in ("float", "anybits"):
        t = np.abs(signed_unit(u, dtype))
        t[(u & U64(3)) == 0] = 0
        t[(u & U64(3)) == 1] = 1
        if kind == "anybits":
            t = np.where((u & U64(0xF0)) == 0, any_bits(mix(u), dtype), t)
        return t
    if kind == "bool":
        byte = np.where(u & U64(1) != 0, u >> U64(16), U64(0)).astype(np.uint8)
        return byte.view(np.bool_)
    small = (u >> U64(8)) & U64(3)
    if kind == "uint8":
        return small.astype(np.uint8)
    if kind == "int8":
        return small.astype(np.int8) - np.int8(1)
    wide = (u & U64(0xF0)) == 0
    if kind == "int32":
        return np.where(
            wide,
            (u >> U64(32)).astype(np.uint32).view(np.int32),
            small.astype(np.int32) - np.int32(1),
        )
    return np.where(wide, mix(u).view(np.int64), small.astype(np.int64) - 1)


def digest_words(words: Any) -> int:
    index = np.arange(words.size, dtype=U64)
    return int(np.sum(mix(words ^ mix(index)), dtype=U64))


def digest_array(values: Any) -> int:
    """NaNs count as one value, whatever their sign and payload."""
    values = np.ascontiguousarray(values).ravel()
    if values.dtype == np.float32:
        words = values.view(np.uint32).astype(U64)
        words[np.isnan(values)] = 0x7FC00000
    else:
        words = values.view(U64).copy()
        words[np.isnan(values)] = 0x7FF8000000000000
    return digest_words(words)


def digest_forward(total: float, n_valid: int, n_total: int, loss: float) -> int:
    words = np.array([total, np.nan, np.nan, loss]).view(U64)
    words[np.isnan([total, np.nan, np.nan, loss])] = 0x7FF8000000000000
    words[1], words[2] = n_valid, n_total
    return digest_words(words)


def option_sets(dtype: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    count = int(np.prod(SHAPE))
    u = draw(WEIGHTS, count)
    full = np.where((u & U64(7)) == 0, dtype(0), np.abs(signed_unit(u, dtype)) * dtype(4))
    byte = ((u >> U64(13)) & U64(3)).astype(np.uint8)
    channel = full[:5].reshape(1, 5, 1)
    yield "plain", {}
    yield "pos_weight", {"pos_weight": 2.5, "normalization": "full"}
    yield "pos_weight_channel", {"pos_weight": POS_WEIGHTS, "normalization": "full"}
    number = {"normalization": 0.3}
    yield "weight_full", {"weight": full.reshape(SHAPE), **number}
    yield "weight_sample", {"weight": full[:3].reshape(3, 1, 1), **number}
    yield "weight_channel", {"weight": channel, **number}
    yield "weight_bool", {"weight": byte[:1117].view(np.bool_), **number}
    yield "weight_uint8", {"weight": byte.reshape(SHAPE), **number}
    yield "weight_int8", {"weight": byte.view(np.int8).reshape(SHAPE), **number}
    for label in (-1, 0, 1):
        mode = "none" if label == 0 else "valid"
        yield f"ignore{label}", {"ignore_label": label, "normalization": mode}
    yield (
        "all",
        {
            "ignore_label": 1,
            "normalization": "valid",
            "pos_weight": POS_WEIGHTS,
            "weight": channel,
            "loss_weight": 0.37,
        },
    )


def family_sets(dtype: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Options for unbalanced and dense targets."""
    yield "none", {}
    yield "smoothing", {"label_smoothing": 0.1}
    uncertain = {"uncertain": "ignore", "normalization": "valid"}
    yield "uncertain", uncertain
    yield "uncertain_ignore1", {"ignore_label": 1, **uncertain}
    yield "alpha", {"alpha": 0.25, "negative_scale": 1.1, "normalization": "foreground"}
    for balance in ("image", "batch", "batch_mean"):
        yield balance, {"balance": balance}
        yield (
            f"{balance}_channel",
            {
                "balance": balance,
                "balance_per_channel": True,
                "ignore_label": 2,
                "normalization": "valid",
            },
        )
    for gamma in (0.5, 1.0, 2.0, 5.0):
        yield f"gamma{gamma}", {"gamma": gamma}
    u = draw(WEIGHTS, int(np.prod(SHAPE)))
    full = np.where((u & U64(7)) == 0, dtype(0), np.abs(signed_unit(u, dtype)) * dtype(4))
    yield (
        "family",
        {
            "gamma": 1.5,
            "alpha": 0.75,
            "negative_scale": 0.9,
            "balance": "image",
            "balance_per_channel": True,
            "label_smoothing": 0.2,
            "ignore_label": 2,
            "pos_weight": POS_WEIGHTS,
            "weight": full.reshape(SHAPE),
            "loss_weight": 0.37,
            "normalization": "foreground",
        },
    )


def family(name: str, x: Any, t: Any, options: dict[str, Any]) -> Iterator[str]:
    """The lines of one set of options. The sum is a loss: a Partial has no balance."""
    loss_options = {k: v for k, v in options.items() if k != "loss_weight"}
    part_options = {k: v for k, v in loss_options.items() if k != "normalization"}
    yield f"{name}/elementwise {digest_array(sce.elementwise(x, t, **part_options)):016x}"
    gradient = digest_array(sce.backward(x, t, **options))
    yield f"{name}/backward {gradient:016x}"
    total = sce.forward(x, t, normalization=1.0, **part_options)
    ignored = np.zeros(t.shape, dtype=np.bool_)
    if "ignore_label" in options:
        ignored = np.trunc(t) == options["ignore_label"]
    if options.get("uncertain") == "ignore":
        ignored = ignored | ~np.isin(t, (0, 1))
    loss = sce.forward(x, t, **loss_options)
    forward = digest_forward(total, int(t.size - ignored.sum()), t.size, loss)
    yield f"{name}/forward {forward:016x}"
    loss, both, hessian = sce.forward_backward(x, t, hessian=True, **options)
    again = digest_forward(total, int(t.size - ignored.sum()), t.size, loss)
    if digest_array(both) != gradient or again != forward:
        raise AssertionError(f"{name}: forward_backward differs from forward and backward")
    yield f"{name}/hessian {digest_array(hessian):016x}"
    yield f"{name}/targets {digest_array(sce.backward_targets(x, t, **options)):016x}"


def operations(name: str, x: Any, t: Any, options: dict[str, Any]) -> Iterator[str]:
    loss_options = {k: v for k, v in options.items() if k != "loss_weight"}
    part_options = {k: v for k, v in loss_options.items() if k != "normalization"}
    yield f"{name}/elementwise {digest_array(sce.elementwise(x, t, **part_options)):016x}"
    gradient = digest_array(sce.backward(x, t, **options))
    yield f"{name}/backward {gradient:016x}"
    part = sce.partial(x, t, **part_options)
    loss = sce.forward(x, t, **loss_options)
    forward = digest_forward(part.sum, part.n_valid, part.n_total, loss)
    yield f"{name}/forward {forward:016x}"
    loss, both = sce.forward_backward(x, t, **options)
    again = digest_forward(part.sum, part.n_valid, part.n_total, loss)
    if digest_array(both) != gradient or again != forward:
        raise AssertionError(f"{name}: forward_backward differs from forward and backward")


def lines() -> Iterator[str]:
    """All lines, in the order of tests/native/digest.cpp."""
    count = int(np.prod(SHAPE))
    for dtype in (np.float32, np.float64):
        prefix = np.dtype(dtype).name
        for kind in ("float", "anybits", "bool", "uint8", "int8", "int32", "int64"):
            x = make_scores(count, dtype, kind == "anybits").reshape(SHAPE)
            t = make_targets(count, kind, dtype).reshape(SHAPE)
            for option, values in option_sets(dtype):
                yield from operations(f"{prefix}/{kind}/{option}", x, t, values)
        for size in SIZES:
            x, t = make_scores(size, dtype), make_targets(size, "float", dtype)
            yield from operations(f"{prefix}/size{size}", x, t, {})
        for kind in ("float", "uint8", "int64"):
            x = make_scores(count, dtype).reshape(SHAPE)
            t = make_targets(count, kind, dtype).reshape(SHAPE)
            for option, values in family_sets(dtype):
                yield from family(f"{prefix}/family/{kind}/{option}", x, t, values)


def main() -> int:
    parser = argparse.ArgumentParser(description="Digests of all results' bits.")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--write", action="store_true", help=f"write {DIGESTS.name}")
    action.add_argument("--check", action="store_true", help=f"compare with {DIGESTS.name}")
    arguments = parser.parse_args()
    made = list(lines())
    if arguments.write:
        DIGESTS.write_text("\n".join(made) + "\n", encoding="ascii")
        print(f"wrote {len(made)} lines to {DIGESTS}")
    elif arguments.check:
        wanted = DIGESTS.read_text(encoding="ascii").split("\n")[:-1]
        wrong = sorted(set(made) ^ set(wanted))
        print(f"isa {sce.get_isa()}: {len(made)} lines, {len(wrong)} differ")
        print("\n".join(wrong[:20]))
        return 1 if wrong else 0
    else:
        print("\n".join(made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
