"""Streams that end at any moment, beside captures of CUDA graphs: nothing is left, and no capture is broken."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from model_artifacts.errors import RunError
from model_artifacts.host import cuda
from model_artifacts.records import Backend, BatchRange, BuiltFor, EngineFlavour, Precision, Variant
from model_artifacts.serving.pool import Pool
from model_artifacts.serving.runners import open_serving
from model_artifacts.serving.streams import Streams
from model_artifacts.sessions import engine as engine_sessions
from model_artifacts.sessions.engine import Engine
from model_artifacts.sessions.feeds.staging import Copiers
from model_artifacts.sessions.opening import ArtifactFile
from tests.support.fake_cuda import FakeContext, FakeEngine, FakeRuntime, at
from tests.support.faulty_cuda import FaultyRuntime
from tests.support.hosts import H100

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BUILT = BuiltFor(flavour=EngineFlavour.TENSORRT, version="10.6", compute_capabilities=(90,), gpu=H100.name)
TOKENS = 100
"""The rows of a table; a token beyond it would be read from elsewhere."""


class Table(FakeContext):
    """A context that refuses tokens beyond its table, as a GPU may or may not do."""

    meanwhile: Callable[[], None] | None = None
    """Called once, in the middle of the next capture."""

    def enqueue(self, stream: int) -> None:
        """Look the tokens up, then compute."""
        tokens, pointer = self.tokens, self.addresses["tokens"]

        def look_up() -> None:
            found = at(pointer, tokens, np.ctypeslib.as_ctypes_type(np.int64))
            if not ((found >= 0) & (found < TOKENS)).all():
                raise RunError(f"a token beyond the table: {found.min()} to {found.max()}")

        self._cuda.do(look_up, stream)
        if self._cuda.is_capturing and Table.meanwhile is not None:
            meanwhile, Table.meanwhile = Table.meanwhile, None
            meanwhile()
        super().enqueue(stream)


class TableEngine(FakeEngine):
    """An engine of images and tokens."""

    @contextmanager
    def context(self, _: int, cache: bytes | None, __: object) -> Iterator[FakeContext]:
        """Open a context."""
        del cache
        yield Table(self._cuda, self._classes, tuple(spec.name for spec in self.outputs), self)


def batches(count: int) -> Iterator[Any]:
    """Yield batches whose size changes in the middle."""
    for number in range(count):
        size = 1 + 2 * (number >= 4)
        yield {
            "image": np.full((size, 3, 4, 4), number, np.float32),
            "tokens": np.full((size, 2), number, np.int64),
        }


def wanted(number: int) -> float:
    """Return the first logit of each sample of a batch."""
    return 3.0 * number


def collect() -> None:
    """Collect garbage."""
    gc.collect()


def same(batch: Any) -> Any:
    """Return a batch as it is, for the check of every batch."""
    return batch


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRuntime]:
    """A CUDA with memory in the host, of which nothing is open in the end."""
    runtime = FakeRuntime()
    monkeypatch.setattr(cuda, "runtime", runtime)
    monkeypatch.setattr(Table, "meanwhile", None)
    yield runtime
    assert runtime.idle


@contextmanager
def serving(runtime: FakeRuntime, path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Pool, Streams]]:
    """Open an engine with one context, in the way and with the end of `load`."""
    engine: Any = TableEngine(runtime, BatchRange(min=1, opt=4, max=4), takes_tokens=True)

    @contextmanager
    def opened(*_: object) -> Iterator[Engine]:
        cuda.use(H100)
        with closing(Copiers(2)) as copiers:
            yield Engine(engine, H100, copiers)

    monkeypatch.setattr(engine_sessions, "open_engine", opened)
    monkeypatch.setattr("model_artifacts.tensorrt.flavour.load_flavour", lambda _: None)
    (path / "engine").write_bytes(b"engine")
    variant = Variant(model="m", target="h100", backend=Backend.TENSORRT, precision=Precision.FP16)
    file = ArtifactFile(id="m", variant=variant, path=path / "engine", gpu=H100, fix="", record=None, built_for=BUILT)
    with ExitStack() as stack:
        found = stack.enter_context(open_serving(file))
        assert found.overlap is not None
        pool = Pool(found.runs)
        streams = Streams(pool, found.overlap)
        stack.callback(streams.close)
        stack.callback(pool.close)
        yield pool, streams


@pytest.fixture
def opened(
    fake: FakeRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Pool, Streams, FakeRuntime]]:
    """An engine that is open."""
    with serving(fake, tmp_path, monkeypatch) as (pool, streams):
        yield pool, streams, fake


def test_a_batch_runs_before_a_capture_on_zeros(opened: tuple[Pool, Streams, FakeRuntime]) -> None:
    """Fresh memory holds what other programs left; the run before a capture reads no token from it."""
    pool, streams, _ = opened
    for number, batch in enumerate(batches(6)):
        assert (pool(batch)[:, 0] == wanted(number)).all()
    found = streams.results(batches(6), same, 3)
    assert [float(outputs[0, 0]) for outputs in found] == [wanted(number) for number in range(6)]


@pytest.mark.parametrize("end", ["close", "collect"])
def test_a_stream_that_ends_in_a_capture_does_not_break_it(opened: tuple[Pool, Streams, FakeRuntime], end: str) -> None:
    """A garbage collection comes at any moment, on any thread: here on the one that captures."""
    pool, streams, fake = opened
    held: list[Any] = [streams.results(batches(9), same, 3)]
    next(held[0])
    held.append(held)  # a cycle, which only a collection finds
    Table.meanwhile = held[0].close if end == "close" else collect
    del held
    open_before = len(fake.open)
    (batch,) = batches(1)
    assert pool(batch)[0, 0] == wanted(0)
    assert Table.meanwhile is None
    assert len(streams) == 0
    assert len(fake.open) < open_before


def test_streams_of_other_threads_go_on_in_a_capture(opened: tuple[Pool, Streams, FakeRuntime]) -> None:
    """They allocate, copy and free memory, and capture graphs of their own, while this thread captures."""
    pool, streams, _ = opened
    found: list[float] = []

    def use() -> None:
        found.extend(float(outputs[0, 0]) for outputs in streams.results(batches(6), same, 3))

    def meanwhile() -> None:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(use).result(30)

    Table.meanwhile = meanwhile
    for number, batch in enumerate(batches(6)):
        assert pool(batch)[0, 0] == wanted(number)
    assert found == [wanted(number) for number in range(6)]


def one_life(runtime: FakeRuntime, path: Path, monkeypatch: pytest.MonkeyPatch, taken: int) -> list[float]:
    """Call a model, take some results of a stream, call the model again, and end it."""
    found: list[float] = []
    with serving(runtime, path, monkeypatch) as (pool, streams):
        (batch,) = batches(1)
        pool(batch)
        with suppress(RunError), closing(streams.results(batches(7), same, 3)) as results:
            for outputs in results:
                found.append(float(outputs[0, 0]))
                if len(found) == taken:
                    break
        assert len(streams) == 0
        assert pool(batch)[0, 0] == wanted(0)
        assert pool.idle == 1
    return found


def copying_threads() -> list[threading.Thread]:
    """Return the threads that copy, and those of streams."""
    return [thread for thread in threading.enumerate() if thread.name.startswith(("copier", "stream"))]


@pytest.mark.parametrize("taken", [0, 1, 5], ids=["all", "first", "middle"])
def test_whatever_call_of_cuda_fails_nothing_is_left(
    taken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call of a model's life fails once: there are no threads, buffers, graphs or streams afterwards.

    The results before the failure are right, and in order.
    """
    monkeypatch.setattr(Table, "meanwhile", None)
    whole = FaultyRuntime(fails=0)
    monkeypatch.setattr(cuda, "runtime", whole)
    expected = one_life(whole, tmp_path, monkeypatch, taken)
    assert expected == [wanted(number) for number in range(taken or 7)]
    assert whole.idle
    for number in range(1, whole.calls + 1):
        runtime = FaultyRuntime(fails=number)
        monkeypatch.setattr(cuda, "runtime", runtime)
        found: list[float] = []
        with suppress(RunError):
            found = one_life(runtime, tmp_path, monkeypatch, taken)
        assert runtime.failed, number
        assert runtime.idle, (number, runtime.failed)
        assert found == expected[: len(found)]
        assert copying_threads() == []
