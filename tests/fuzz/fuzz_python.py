"""Fuzzer of the Python API: the bytes of an input become one call with arbitrary objects.

Arrays of every dtype, shape, stride, byte order and alignment, read-only, masked, subclassed, of
zero size; lists, numbers, None and objects that are none of these; every option. A call gives a
result of the right type and shape, which `sigmoid_ce.reference`
confirms, or raises TypeError or ValueError whose message starts with the name of an argument.
Anything else, warnings included, is a finding.

    python tests/fuzz/fuzz_python.py PATH...              run the inputs in these files
    python tests/fuzz/fuzz_python.py --random N SEED      run N made-up inputs
    python tests/fuzz/fuzz_python.py --atheris [FLAG...]  let atheris make them, with libFuzzer's
                                                          flags: -max_total_time=600 FOLDER
"""

from __future__ import annotations

import copy
import ctypes
import operator
import pickle
import random
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ARGUMENTS = {
    "scores",
    "targets",
    "pos_weight",
    "weight",
    "ignore_label",
    "normalization",
    "normalize",
    "loss_weight",
    "uncertain",
    "label_smoothing",
    "balance",
    "balance_per_channel",
    "negative_scale",
    "gamma",
    "alpha",
    "hessian",
    "out",
    "first_index",
    "shape",
    "divisor",
    "batch_size",
    "words",
    "parts",
    "name",
    "n",
}

MAX_ELEMENTS = 1 << 13
NATIVE_TARGETS = ["bool", "uint8", "int8", "int32", "int64"]
DTYPES = [
    *("float32", "float64", *NATIVE_TARGETS),
    *("float16", "longdouble", "complex64", "uint16", "uint32", "uint64", "int16"),
    *("S3", "U2", "object", "M8[s]", "m8[ms]", "V5", "f4,i4", ">f4", ">f8", ">i4", ">i8", ">i2"),
]

# The reference is float64 throughout; float32 results differ from it by their rounding. The
# terms may cancel for soft targets: hence relative to the largest of them. Layouts and pairings
# are what is looked at here; the bounds of docs/numerics.md are held by test_accuracy.py.
TOLERANCE = {
    np.dtype(np.float16): 2e-3,
    np.dtype(np.float32): 1e-5,
    np.dtype(np.float64): 1e-12,
}


class Bytes:
    """Choices from the bytes of an input; zeros where they end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def below(self, n: int) -> int:
        return self.byte() % n

    def one_in(self, n: int) -> bool:
        return self.below(n) == n - 1

    def word(self) -> int:
        return int.from_bytes(bytes(self.byte() for _ in range(8)), "little", signed=True)

    def pick(self, choices: Any) -> Any:
        return choices[self.below(len(choices))]


class Index:
    """Only __index__."""

    def __index__(self) -> int:
        return 1


class Buffer:
    """An array through the array interface alone, which is not read."""

    def __init__(self, array: Any) -> None:
        self.__array_interface__ = array.__array_interface__


class Dlpack:
    """An array through DLPack alone."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


class SubArray(np.ndarray[Any, Any]):
    pass


def any_shape(source: Bytes, most: int = MAX_ELEMENTS) -> tuple[int, ...]:
    lengths = [1, 2, 3, 4, 5, 7, 16, 17, 64, 65, 1, 2, 3, 100, 1000, 4096, 4100, 0]
    shape: list[int] = []
    total = 1
    for _ in range(source.below(6)):
        n = source.pick(lengths)
        if total * n > most:
            n = 1
        total *= max(n, 1)
        shape.append(n)
    if source.one_in(16):
        shape += [1] * source.below(60)
    return tuple(shape)


def values(source: Bytes, count: int, dtype: Any) -> Any:
    """`count` elements of a dtype, by one of a few kinds."""
    kind = source.below(5)
    rng = np.random.default_rng(source.byte())
    if dtype.kind == "O":
        return np.array([rng.integers(0, 2) for _ in range(count)], dtype=object)
    if kind == 4 and dtype.kind in "fiub":  # any bits
        return np.frombuffer(rng.bytes(count * dtype.itemsize), dtype=dtype).copy()
    if kind == 3:
        special = [0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 30.0, -120.0, 800.0, np.inf, -np.inf, np.nan]
        made = rng.choice(special, count)
        if dtype.kind != "f":
            made = np.nan_to_num(made, posinf=100.0, neginf=-100.0)
    elif kind == 2:
        made = rng.normal(0, 20, count)
    elif kind == 1:
        made = rng.random(count)
    else:
        made = rng.integers(0, 3, count).astype(np.float64)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dtype.kind in "iu":
            made = np.trunc(made).astype(np.int64)
        if dtype.names is not None or dtype.kind in "VMm":
            return np.zeros(count, dtype)
        return made.astype(dtype)


def any_array(source: Bytes, shape: tuple[int, ...], dtype: Any) -> Any:
    """An array of the shape, with any strides, at any address."""
    count = int(np.prod(shape))
    flat = values(source, count, dtype)
    layout = source.below(8)
    array = flat.reshape(shape)
    if layout == 1:
        order = list(range(len(shape)))
        random.Random(source.byte()).shuffle(order)
        array = array.transpose(order).copy(order="C").transpose(np.argsort(order).tolist())
    elif layout == 2:
        array = array[tuple(slice(None, None, -1) for _ in shape)]
    elif layout == 3:
        wide = np.zeros(tuple(2 * n if n > 1 else n for n in shape), dtype)
        every_other = tuple(slice(None, None, 2) for _ in shape)
        wide[every_other] = array
        array = wide[every_other]
    elif layout == 4:  # broadcast
        small = tuple(n if source.below(2) else min(n, 1) for n in shape)
        array = np.broadcast_to(values(source, int(np.prod(small)), dtype).reshape(small), shape)
    elif layout == 5 and not dtype.hasobject:  # odd addresses
        offset = source.below(9)
        memory = np.zeros(offset + count * dtype.itemsize, np.uint8)
        odd = np.ndarray(shape, dtype, memory.data, offset)
        odd[...] = array
        array = odd
    elif layout == 6 and not dtype.hasobject:  # odd strides: a field of a record
        record = np.zeros(shape, np.dtype([("pad", "V3"), ("x", dtype)]))
        record["x"] = array
        array = record["x"]
    elif layout == 7:
        choice = source.below(4)
        if choice == 0:
            array = array.copy()
            array.flags.writeable = False
        elif choice == 1 and dtype.names is None:
            array = np.ma.masked_array(array, mask=np.zeros(shape, bool))
        elif choice == 2:
            array = array.view(SubArray)
    return array


def any_object(source: Bytes, shape: tuple[int, ...], dtypes: list[str]) -> Any:
    """Mostly an array of one of `dtypes` and of the shape; else anything."""
    if not source.one_in(12):
        names = DTYPES if source.one_in(8) else dtypes
        if source.one_in(12):
            shape = any_shape(source)
        return any_array(source, shape, np.dtype(source.pick(names)))
    array = any_array(source, shape, np.dtype(source.pick(["float32", "float64"])))
    return source.pick(
        [
            None,
            0,
            1.5,
            True,
            array.tolist(),
            tuple(array.ravel().tolist()),
            np.float32(0.5),
            np.float16(1),
            np.longdouble(1),
            np.complex64(1),
            10**400,
            -(2**63),
            float("nan"),
            [[1.0], [1.0, 2.0]],
            ["a"],
            [None],
            [object()],
            "text",
            b"bytes",
            {},
            object(),
            Index(),
            np.float64,
            Dlpack(np.ascontiguousarray(array)),
            Buffer(array),
            memoryview(np.ascontiguousarray(array)),
            memoryview(b"abcd"),
            (ctypes.c_float * 4)(),
            [np.zeros(2), np.zeros(2)],
            np.datetime64(0, "s"),
            slice(None),
            [1, 2, 3j],
        ]
    )


def any_integer(source: Bytes) -> Any:
    choices = [
        *(0, 1, -1, 2, 255, 256, -128, 2**24 + 1, 2**31, -(2**63), 2**63 - 1, 2**63, -(10**30)),
        *(np.int64(1), np.uint8(3), np.int16(-1), Index(), True, 1.0, 0.5),
        *(np.float32(1), "1", None, [], np.array(1), np.array([1]), object(), np.bool_(True)),
    ]
    return source.pick(choices)


def any_number(source: Bytes) -> Any:
    choices = [
        *(1.0, 0.0, 0.5, 2, 1e-30, 1e30, 1e-310, 1e300, -1.0, float("inf"), float("nan"), -0.0),
        *(10**400, np.float32(3), np.int8(2), np.longdouble("1e4000"), True, np.bool_(True), 1j),
        *(None, "1", [1.0], np.array(2.0), np.array([2.0]), np.complex64(1), object(), b"1"),
        np.float16(2),
    ]
    return source.pick(choices)


def any_normalization(source: Bytes) -> Any:
    if source.below(2):
        return source.pick(["full", "valid", "batch_size", "none", "foreground"])
    return source.pick(["Full", "", "\ud800", "valid\0", b"full", [], object(), any_number(source)])


def family_for(source: Bytes, name: str) -> dict[str, Any]:
    """Options for unbalanced and dense targets."""
    options: dict[str, Any] = {}
    if source.one_in(5):
        options["uncertain"] = source.pick(["soft", "ignore", "ignore", "none", None, b"soft", 1])
    if source.one_in(5):
        options["label_smoothing"] = source.pick([0.1, 0.0, 0.75, 1.0, any_number(source)])
    if source.one_in(5):
        options["negative_scale"] = source.pick([1.1, 0.0, 3, any_number(source)])
    if source.one_in(5):
        options["alpha"] = source.pick([0.25, 0.0, 1, None, any_number(source)])
    if source.one_in(4):
        options["gamma"] = source.pick([2.0, 0.5, 1, 5.0, 0.0, any_number(source)])
    if "partial" in name:
        return options
    if source.one_in(4):
        known = ["image", "batch", "batch_mean", "none"]
        options["balance"] = source.pick([*known, *known, None, "Image", "", 0, b"image", []])
        if source.below(2):
            options["balance_per_channel"] = source.pick([True, False, 1, None, np.bool_(True)])
    if name == "forward_backward" and source.one_in(4):
        options["hessian"] = source.pick([True, True, False, None, 1, "yes"])
    return options


def pos_weight_for(source: Bytes, shape: tuple[int, ...]) -> Any:
    if source.one_in(3):
        return any_number(source)
    channels = shape[1] if len(shape) > 1 else 3
    forms = [
        (channels,),
        (channels, *[1] * max(len(shape) - 2, 0)),
        (1, channels, *[1] * max(len(shape) - 2, 0)),
        (1,) * len(shape),
        (channels + 1,),
        shape,
    ]
    dtypes = ["float64", "float32", "int64", "bool", "float16", "longdouble", "uint64"]
    return any_object(source, source.pick(forms), dtypes)


def weight_for(source: Bytes, shape: tuple[int, ...], dtype: str) -> Any:
    if source.one_in(4):
        return any_number(source)
    small = tuple(n if source.below(2) else 1 for n in shape)
    form = source.pick([shape, small, small[source.below(len(small) + 1) :], (2, *shape)])
    return any_object(source, form, [dtype, dtype, "bool", "uint8", "int8"])


def out_for(source: Bytes, scores: Any, targets: Any, dtype: str) -> Any:
    choice = source.below(10)
    shape = scores.shape if isinstance(scores, np.ndarray) else (2, 3)
    if choice == 0:
        return scores
    if choice == 1:
        return targets
    if choice == 2 and isinstance(scores, np.ndarray) and scores.size:
        return scores[tuple(slice(None, None, -1) for _ in shape)]
    if choice == 3 and isinstance(scores, np.ndarray) and scores.ndim:
        return scores[1:]
    return any_object(source, shape, [dtype])


class Finding(Exception):
    pass


def check_refusal(error: Exception) -> None:
    text = str(error)
    first = re.match(r"\w*", text)
    if first is None or first[0] not in ARGUMENTS:
        raise Finding(f"the message names no argument: {type(error).__name__}: {text}") from error


def attempt(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The result, or None where the call was refused as it should be."""
    try:
        return function(*arguments, **options)
    except (TypeError, ValueError) as error:
        check_refusal(error)
        return None


def near(got: Any, wanted: Any, dtype: Any, scale: Any) -> bool:
    """Within the tolerance, relative to `scale`; alike where not finite."""
    got = np.asarray(got, dtype=np.float64)
    wanted = np.asarray(wanted, dtype=np.float64)
    with np.errstate(all="ignore"):
        largest = float(np.finfo(dtype).max) / 64
        unsure = ~(np.abs(scale) < largest) | ~(np.abs(wanted) < largest)  # overflows are early
        good = np.abs(got - wanted) <= TOLERANCE[np.dtype(dtype)] * (np.abs(scale) + 1e-30)
        return bool(np.all(good | unsure))


def compare(
    name: str, result: Any, scores: Any, targets: Any, options: dict[str, Any], sce: Any
) -> None:
    """Against the reference, whose inputs are copies made before the call."""
    options = {k: v for k, v in options.items() if k not in ("out", "check")}
    if options.get("ignore_label") is not None:
        options["ignore_label"] = operator.index(options["ignore_label"])
    for key, value in options.items():
        if isinstance(value, np.floating):
            options[key] = float(value)  # the reference would go on in its precision
        elif isinstance(value, np.ndarray) and value.dtype == np.longdouble:
            options[key] = value.astype(np.float64)  # as pos_weight is
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = getattr(sce.reference, name)(scores, targets, **options)
        x = np.abs(np.asarray(scores, dtype=np.float64))
        t = np.abs(np.asarray(targets, dtype=np.float64).reshape(x.shape))
        p = options.get("pos_weight")
        w = options.get("weight")
        largest_p = 1.0 if p is None else float(np.max(np.asarray(p, np.float64), initial=0.0))
        largest_w = 1.0 if w is None else np.abs(np.asarray(w, np.float64))
        terms = (1 + t) * (1 + largest_p) * (1 + x) * (1 + largest_w)
        if {"alpha", "balance", "negative_scale"} & options.keys():  # t w+ + (1 - t) w-
            terms = terms * (1 + t) * max(float(options.get("negative_scale", 1.0)), 1.0)
        if options.get("balance") == "batch_mean":
            terms = terms * max(x.size, 1)
        gamma = float(options.get("gamma", 0.0))
        terms = terms * (1 + gamma * (2 + x)) * (1 + gamma)
        factor = abs(float(options.get("loss_weight", 1.0)))
        divisor = options.get("normalization")
        if isinstance(divisor, (int, float)):
            factor = max(factor, 1.0) / min(divisor, 1.0)
        terms = terms * max(factor, 1.0)
        dtype = np.asarray(scores).dtype
        pairs = (
            zip(result, wanted, strict=True) if isinstance(result, tuple) else [(result, wanted)]
        )
        for got, want in pairs:
            scale = np.sum(terms) if isinstance(got, float) else terms
            if isinstance(got, float) and not np.all(np.isfinite(terms)):
                continue
            if not near(got, want, dtype, scale):
                raise Finding(f"{name}: {got!r} and not {want!r}")


def deep(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except (TypeError, pickle.PicklingError):
        return value


def fuzz_loss(source: Bytes, sce: Any) -> None:
    """All functions of scores and targets: the package's or the bound ones."""
    names = ["forward", "backward", "forward_backward", "elementwise", "backward_targets"]
    name = source.pick(names)
    bound = source.one_in(3)
    shape = any_shape(source)
    dtype = source.pick(["float32", "float64", "float32", "float64", "float16"])
    scores = any_object(source, shape, [dtype])
    target_shape = shape
    if source.one_in(6):  # axes of length 1 aside
        target_shape = tuple(n for n in shape if n != 1)
    targets = any_object(source, target_shape, [dtype, dtype, *NATIVE_TARGETS])
    options: dict[str, Any] = {}
    if source.one_in(3):
        options["pos_weight"] = pos_weight_for(source, shape)
    if source.one_in(3):
        options["weight"] = weight_for(source, shape, dtype)
    if source.one_in(3):
        options["ignore_label"] = any_integer(source)
    if name != "elementwise":
        if source.one_in(3):
            options["normalization"] = any_normalization(source)
        if source.one_in(4):
            options["normalize"] = source.pick([True, False, None, 1, "yes", np.bool_(True)])
    options.update(family_for(source, name))
    if "backward" in name and source.one_in(3):
        options["loss_weight"] = any_number(source)
    if name != "forward" and source.one_in(3):
        options["out"] = out_for(source, scores, targets, dtype)
    if not bound and source.one_in(4):
        options["check"] = True
    before = deep((scores, targets, options))
    result = attempt(getattr(sce.cpu if bound else sce, name), scores, targets, **options)
    if result is None:
        return
    factors = [options.get("pos_weight"), options.get("weight")]  # bytes, say, are uint8 numbers
    plain_factors = all(f is None or isinstance(f, (float, int, np.ndarray)) for f in factors)
    inputs = [scores, targets, options.get("out", scores)]
    if all(isinstance(a, np.ndarray) for a in inputs) and plain_factors:
        array = result[1] if name == "forward_backward" else result
        kept = dtype == "float16" and "out" in options  # which may be float32
        if name != "forward" and (
            array.shape != scores.shape or (array.dtype != scores.dtype and not kept)
        ):
            raise Finding(f"{name}: {array.dtype} {array.shape} for {scores.dtype} {scores.shape}")
        x, t, plain = before
        compare(name, result, np.asarray(x), np.asarray(t), plain, sce)


def fuzz_partial(source: Bytes, sce: Any) -> None:
    shape = any_shape(source)
    dtype = source.pick(["float32", "float64"])
    options: dict[str, Any] = {}
    whole: Any = shape
    size = int(np.prod(shape))
    if source.below(2):
        whole = (1 + source.below(5), *shape)
        if source.one_in(4):
            bad = [None, 5, "ab", [-1, 2], [2**62, 2**62], (1.5,), ("a",), [None], (0,), [[1]]]
            whole = source.pick([*bad, (1,) * 65, list(shape), np.array(shape)])
        options["shape"] = whole
    if source.below(2):
        row = max(int(np.prod(shape[1:])), 1)
        options["first_index"] = source.pick([row, size, 4096, any_integer(source), 2**60, -1])
    scores = any_object(source, shape, [dtype])
    targets = any_object(source, shape, [dtype, *NATIVE_TARGETS])
    valid = isinstance(whole, tuple) and len(whole) <= 6 and all(type(n) is int for n in whole)
    of = whole if valid else shape
    if source.one_in(3):
        options["pos_weight"] = pos_weight_for(source, of)
    if source.one_in(3):
        options["weight"] = weight_for(source, of, dtype)
    if source.one_in(3):
        options["ignore_label"] = any_integer(source)
    options.update(family_for(source, "partial"))
    if source.below(2) and hasattr(sce, "partial_backward"):
        divisor = any_number(source)
        if source.one_in(3):
            options["loss_weight"] = any_number(source)
        if source.one_in(3):
            options["out"] = out_for(source, scores, targets, dtype)
        pair = attempt(sce.partial_backward, scores, targets, divisor, **options)
        part = None if pair is None else pair[0]
    else:
        part = attempt(sce.partial, scores, targets, **options)
    if part is None:
        return
    count = scores.size if isinstance(scores, np.ndarray) else part.n_total
    if part.n_total != count or not 0 <= part.n_valid <= count:
        raise Finding(f"{part!r} of {count} elements")
    if pickle.loads(pickle.dumps(part)) != part or sce.combine([part, sce.Partial()]) != part:
        raise Finding(f"{part!r} is not itself after pickle or combine")
    attempt(part.loss, any_normalization(source), any_integer(source))


def fuzz_words(source: Bytes, sce: Any) -> None:
    """Partials of any words, and what can be done with them."""
    words = np.zeros(73, np.int64)
    for _ in range(source.below(8)):
        words[source.below(73)] = source.pick(
            [source.word(), 1, -1, 2**32, 2**62, -(2**62), 2**63 - 1, -(2**63), -(2**31)]
        )
    odd = source.pick(
        [
            *[words] * 4,
            words[::-1],
            words[:72],
            words.reshape(1, 73),
            words.astype(">i8"),
            words.astype(np.float64),
            words.astype(np.int32),
            words.tolist(),
            None,
            words.tobytes(),
        ]
    )
    part = attempt(sce.Partial.from_words, odd)
    if part is None:
        return
    other = attempt(sce.Partial.from_words, words[::-1].copy()) or sce.Partial()
    try:
        sums = [part + other, part + part, sce.combine([part, other, part])]
    except OverflowError as error:  # counts beyond 64 bits
        check_refusal(error)
        return
    for made in sums:
        made.sum, repr(made), made.n_total, made.n_valid, made.to_words()
        again = attempt(sce.Partial.from_words, made.to_words())  # refused beyond 2^63 losses
        if again is not None and made != again:
            raise Finding("words there and back")
        attempt(made.loss, any_normalization(source), any_integer(source))
    if part + other != other + part:
        raise Finding("the order of a sum of two")
    attempt(sce.combine, [part, source.pick([None, 1, part, "part", other])])


def fuzz_settings(source: Bytes, sce: Any) -> None:
    attempt(sce.set_num_threads, any_integer(source))
    names = [*sce.available_isas(), "neon", "", "AVX2", "\ud800", "a\0b", None, 5, b"scalar"]
    attempt(sce.set_isa, source.pick(names))
    sce.info()


def run(data: bytes) -> None:
    import sigmoid_ce as sce

    source = Bytes(data)
    work = source.pick([*[fuzz_loss] * 6, *[fuzz_partial] * 2, fuzz_words, fuzz_settings])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # NumPy's own word on a pos_weight that no float64 holds, before it is refused.
            warnings.filterwarnings("ignore", ".* encountered in cast")
            work(source, sce)
    except MemoryError:
        pass  # no input is large; under a fuzzer's memory limit it may still come
    finally:
        sce.set_num_threads(2)
        sce.set_isa(None)


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--atheris"]:
        import atheris

        with atheris.instrument_imports(include=["sigmoid_ce"]):
            import sigmoid_ce  # noqa: F401
        for function in (fuzz_loss, fuzz_partial, fuzz_words, any_array, any_object, out_for):
            globals()[function.__name__] = atheris.instrument_func(function)
        atheris.Setup([sys.argv[0], *arguments[1:]], run)
        atheris.Fuzz()
    elif arguments[:1] == ["--random"]:
        count, seed = map(int, arguments[1:])
        rng = random.Random(seed)
        for i in range(count):
            data = rng.randbytes(rng.randrange(256))
            try:
                run(data)
            except BaseException:
                print(f"input {i} of seed {seed}: {data.hex()}", file=sys.stderr)
                raise
        print(f"{count} inputs")
    else:
        for path in arguments:
            print(path, flush=True)
            run(Path(path).read_bytes())
        print(f"{len(arguments)} inputs")


if __name__ == "__main__":
    main(sys.argv[1:])
