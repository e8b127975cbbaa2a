"""The benchmark's backends: each is right on small data in every case that it claims.

Nothing here depends on how long anything takes. Cases that compile for long are marked so.
"""

from __future__ import annotations

import gc
import itertools
import os
import signal
from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from bench.backends import OURS_ELSEWHERE, PEERS, Missing, load
from bench.backends.base import Backend, NotAvailable, Unsupported
from bench.backends.ours import Ours
from bench.backends.remote import RemoteBackend, RemoteError
from bench.data import Data, DtypeUnavailable
from bench.limits import LimitsUnavailable
from bench.measure import Entry, WrongResult, check, measure_group, measure_rounds
from bench.plan import (
    FAMILY,
    HALVES,
    OURS,
    Case,
    Gradient,
    Group,
    Option,
    Row,
    Shape,
    Work,
    targets_kind,
)
from conftest import missing

DTYPES = ("float32", "float64", *HALVES)
SMALL = 1000
# A shape with more than one axis, none of which is the whole.
SHAPE = Shape("maps", ((2, 1, 5, 7),))
# First calls that take a second or so for each case.
SLOW = ("torch.compile", "TensorFlow", "Numba", "JAX")
CAFFE = tuple(name for name in PEERS if name.startswith("Caffe"))


def gradients(work: Work) -> tuple[Gradient, ...]:
    return (Gradient.NONE,) if work is Work.FORWARD else (Gradient.REUSED, Gradient.FRESH)


ALL_CASES = [
    Case(work, dtype, SMALL, gradient, option)
    for work, dtype, option in itertools.product(Work, DTYPES, Option)
    for gradient in gradients(work)
] + [
    Case(work, "float32", SHAPE.elements, gradient, option, SHAPE)
    for work, option in itertools.product(Work, Option)
    for gradient in gradients(work)
]
# Each work, dtype and option at least once.
FEW_CASES = [
    Case(Work.BOTH, "float32", SHAPE.elements, Gradient.REUSED, shape=SHAPE),
    Case(Work.FORWARD, "float64", SMALL, option=Option.IGNORE),
    Case(Work.FORWARD, "bfloat16", SMALL),
]


def get(name: str) -> Backend:
    backend = Ours(1) if name == "ours" else load(name, 1)
    if isinstance(backend, Missing):
        missing(f"{name} ({backend.reason})")
        raise AssertionError("missing() does not return")
    return backend


@pytest.fixture(scope="module", autouse=True)
def caffe_is_built() -> Iterator[None]:
    """The benchmark builds no Caffe by itself; these tests do, as all others that want one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIGMOID_CE_BENCH_CAFFE", "build")
        yield


@pytest.fixture(scope="module")
def loaded() -> Iterator[dict[str, Backend]]:
    backends: dict[str, Backend] = {}
    yield backends
    for backend in backends.values():
        if isinstance(backend, RemoteBackend):
            backend.close()


def run(backend: Backend, case: Case) -> str | None:
    """Checks all forms; or the reason why there are none."""
    try:
        data = Data(case)
    except DtypeUnavailable as reason:
        return str(reason)
    arrays = [data.scores, data.targets(), data.gradient]
    arrays += [] if data.weight is None else [data.weight]
    inputs = [array.copy() for array in arrays]
    backend.begin(case)
    try:
        forms = backend.forms(case, *(data.shaped(array) for array in arrays))
    except Unsupported as reason:
        return str(reason)
    assert forms
    tolerance = backend.tolerance(case, targets_kind(case, OURS))
    for form in forms:
        # Twice: a form that keeps something between its calls must not give another result.
        for _ in range(2):
            data.gradient.fill(np.nan)
            check(form.unpack(form.run()), data.reference(None, case.elements), tolerance)
    for array, before in zip(arrays, inputs, strict=True):
        if array is not data.gradient:
            np.testing.assert_array_equal(array.view(np.uint8), before.view(np.uint8))
    return None


def check_cases(backend: Backend, cases: list[Case]) -> dict[str, str]:
    """Reasons by the names of the cases that the backend does not claim."""
    found = {case.name: run(backend, case) for case in cases}
    return {name: reason for name, reason in found.items() if reason is not None}


@pytest.mark.filterwarnings("default")  # peers warn of what they will change
@pytest.mark.parametrize("name", ["ours", *(name for name in PEERS if name not in SLOW)])
def test_right_in_every_case(loaded: dict[str, Backend], name: str) -> None:
    backend = loaded[name] = get(name)
    unable = check_cases(backend, ALL_CASES)
    assert all(unable.values()), "a reason is a text"
    assert len(unable) < len(ALL_CASES)
    # What every backend has: the mean of float32 scores.
    assert f"forward float32 {SMALL}" not in unable


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", [name for name in SLOW if name != "torch.compile"])
def test_right_in_few_cases(loaded: dict[str, Backend], name: str) -> None:
    backend = loaded[name] = get(name)
    unable = check_cases(backend, FEW_CASES)
    assert set(unable) <= {case.name for case in FEW_CASES if case.dtype in HALVES}


@pytest.mark.long
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", SLOW)
def test_slow_ones_right_in_every_case(loaded: dict[str, Backend], name: str) -> None:
    unable = check_cases(get(name), ALL_CASES)
    halves = {case.name for case in ALL_CASES if case.dtype in HALVES}
    family = {case.name for case in ALL_CASES if case.option in FAMILY}
    allowed = {"Numba": halves | family, "torch.compile": set()}
    assert set(unable) <= allowed.get(name, family)


def test_who_is_able() -> None:
    """The reasons why a backend cannot do a case, where they are known."""

    def reason(name: str, case: Case) -> str:
        return run(get(name), case) or ""

    float16 = Case(Work.FORWARD, "float16", SMALL)
    gradient = Case(Work.BACKWARD, "float32", SMALL, Gradient.REUSED)
    ignored = Case(Work.FORWARD, "float32", SMALL, option=Option.IGNORE)
    assert reason("ours", float16) == ""
    assert reason("NumPy", float16).startswith("float16: NumPy adds up in 16 bits")
    assert reason("scikit-learn", gradient) == "log_loss has no gradient"
    assert reason("NumPy (blog)", ignored) == "the layer has no ignore_label"


def test_ours_elsewhere_are_no_peers() -> None:
    assert set(PEERS) > OURS_ELSEWHERE
    assert all("ours" in name or "plugin" in name for name in OURS_ELSEWHERE)
    assert {"Caffe built-in", "Caffe Python layer (blog)"} <= set(PEERS) - OURS_ELSEWHERE


def test_wrong_losses_of_elements_are_found() -> None:
    data = Data(Case(Work.ELEMENTWISE, "float32", SMALL, Gradient.FRESH))
    backend = Ours(1)
    (form,) = backend.forms(data.case, data.scores, data.targets(), data.gradient)
    losses = form.run()
    expected, tolerance = data.reference(None, SMALL), backend.tolerance(data.case, "hard")
    check((None, losses), expected, tolerance)
    losses[7] *= 1.001
    with pytest.raises(WrongResult, match="1 of 1000 losses are wrong; at 7"):
        check((None, losses), expected, tolerance)
    with pytest.raises(WrongResult, match="no losses"):
        check((None, None), expected, tolerance)


# ---- In another process ----


class RemoteNumpy(RemoteBackend):
    worker = ("numpy_layer", "NumpyLayer")

    def environment(self) -> Mapping[str, str]:
        return {"SIGMOID_CE_TEST_REMOTE": "1"}


class Nowhere(RemoteBackend):
    worker = ("no_such_module", "None")

    def environment(self) -> Mapping[str, str]:
        return {}


class Refused(RemoteBackend):
    worker = ("numpy_layer", "NumpyLayer")

    def environment(self) -> Mapping[str, str]:
        raise NotAvailable("not on this machine")


@pytest.fixture
def remote() -> Iterator[RemoteNumpy]:
    backend = RemoteNumpy(1)
    yield backend
    backend.close()


CASE = Case(Work.BOTH, "float32", SMALL, Gradient.REUSED)


def test_remote_backend_is_the_same(remote: RemoteNumpy) -> None:
    assert remote.version == f"numpy {np.__version__}"
    assert remote.process_id not in (None, os.getpid())
    assert not check_cases(remote, [CASE])
    assert "16 bits" in (run(remote, Case(Work.FORWARD, "float16", SMALL)) or "")
    data = Data(CASE)
    (form,) = remote.forms(CASE, data.scores, data.targets(), data.gradient)
    timed = remote.timer([form, form])
    del form
    gc.collect()
    assert timed(3, 2) > 0


def test_remote_forms_are_forgotten(remote: RemoteNumpy) -> None:
    data = Data(CASE)
    (form,) = remote.forms(CASE, data.scores, data.targets(), data.gradient)
    kept = form.run
    process = remote._process
    assert process is not None
    (second,) = remote.forms(CASE, data.scores, data.targets(), data.gradient)
    del second
    gc.collect()
    assert len(process._dropped) == 1
    dropped = process._dropped[0]
    kept()
    assert process._dropped == []
    with pytest.raises(RemoteError, match=f"KeyError: {dropped}"):
        process.ask("run", dropped)


def test_death_of_the_process_is_survived(remote: RemoteNumpy) -> None:
    data = Data(CASE)
    (form,) = remote.forms(CASE, data.scores, data.targets(), data.gradient)
    first = remote.process_id
    assert first is not None
    os.kill(first, signal.SIGKILL)
    with pytest.raises(RemoteError, match=r"its process ended \(signal SIGKILL\)"):
        form.run()
    # What is asked for next gets a new one.
    assert not check_cases(remote, [CASE])
    assert remote.process_id not in (None, first)


def test_death_between_rounds_is_listed(remote: RemoteNumpy) -> None:
    data = Data(CASE)
    (form,) = remote.forms(CASE, data.scores, data.targets(), data.gradient)
    process = remote.process_id
    assert process is not None
    killed_in: list[int] = []

    def killed(calls: int, before: int) -> float:
        if len(killer.seconds) == 1 and killed_in == []:  # in the second round
            killed_in.append(1)
            os.kill(process, signal.SIGKILL)
        return 1.0

    killer = Entry("killer", SMALL, time=killed)
    victim = Entry("victim", SMALL, time=remote.timer([form]))
    other = Entry("other", SMALL, time=lambda calls, before: 1.0)
    measure_rounds([victim, killer, other], 3)
    assert victim.failed
    assert "RemoteError: its process ended" in (victim.problem or "")
    assert victim.seconds == []
    assert len(killer.seconds) == len(other.seconds) == 3
    # And the next group measures it again.
    entries = measure_group(
        Group(CASE, (Row(OURS),), limits=False),
        Ours(1),
        {"remote": remote},
        LimitsUnavailable("not needed here"),
        rounds=1,
        measurement_seconds=1e-4,
    )
    assert entries["remote"].problem is None
    assert len(entries["remote"].seconds) == 1


def test_remote_backends_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImportError, match="no_such_module"):
        Nowhere(1)
    with pytest.raises(NotAvailable):
        Refused(1)
    import bench.backends.numpy_layer as module

    monkeypatch.setattr(module, "Refused", Refused, raising=False)
    monkeypatch.setitem(PEERS, "refused", ("numpy_layer", "Refused"))
    assert load("refused", 1) == Missing("not available here (not on this machine)")


def test_caffe_that_is_not_built_is_listed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    monkeypatch.setenv("SIGMOID_CE_CACHE", str(tmp_path))
    monkeypatch.delenv("SIGMOID_CE_BENCH_CAFFE", raising=False)
    for name in CAFFE:
        found = load(name, 1)
        assert isinstance(found, Missing)
        assert "no Caffe is built" in found.reason
