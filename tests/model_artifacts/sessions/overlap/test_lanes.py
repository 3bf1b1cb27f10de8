"""Overlapped batches on a CUDA that runs in any order that events allow: results, sizes, and what is given back."""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from model_artifacts.errors import RunError
from model_artifacts.host import cuda
from model_artifacts.records import AxisRange, BatchRange, TensorSpec
from model_artifacts.sessions.engine import Engine
from model_artifacts.sessions.feeds.staging import Copiers
from tests.support.fake_cuda import FakeEngine
from tests.support.hosts import H100
from tests.support.lazy_cuda import LazyRuntime

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from model_artifacts.sessions.overlap.lanes import Overlap

RANGE = BatchRange(min=1, opt=4, max=12)


@pytest.fixture(params=range(12), ids=lambda seed: f"seed-{seed}")
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[LazyRuntime]:
    """The GPU; at the end of every test, nothing on it may still be open."""
    fake = LazyRuntime(request.param)
    monkeypatch.setattr(cuda, "runtime", fake)
    yield fake
    assert fake.idle


@pytest.fixture
def loaded(gpu: LazyRuntime) -> Any:
    """An engine for 1 to 12 images, and two outputs."""
    return FakeEngine(gpu, RANGE, outputs=("logits", "more"))


def images(count: int, start: int) -> npt.NDArray[np.float32]:
    """Return images, each of one value: `start`, and the numbers after it."""
    values = np.arange(start, start + count, dtype=np.float32)
    return np.array(np.broadcast_to(values[:, None, None, None], (count, 3, 4, 4)), order="C")


def logits(count: int, start: int) -> npt.NDArray[np.float32]:
    """Return the network's logits for these images."""
    return (np.arange(start, start + count)[:, None] + np.arange(10)[None]).astype(np.float32)


def check(found: Any, count: int, start: int) -> None:
    """Both outputs are those of these images."""
    assert list(found) == ["logits", "more"]
    np.testing.assert_array_equal(found["logits"], logits(count, start))
    np.testing.assert_array_equal(found["more"], logits(count, start) + 100)


@pytest.mark.parametrize("streams_weights", [False, True], ids=["graphs", "no-graphs"])
@pytest.mark.parametrize("buffers", [2, 3, 4])
def test_each_batch_has_its_own_logits(loaded: Any, buffers: int, *, streams_weights: bool) -> None:
    """Results come in order and stay, whatever the GPU does first; sizes may change in between."""
    loaded.streams_weights = streams_weights
    sizes = [3, 3, 3, 3, 3, 3, 3, 1, 1, 12, 12, 12, 12, 12, 3]
    starts = [100 * number for number in range(len(sizes))]
    with Engine(loaded, H100).overlap(buffers) as overlap:
        found = list(overlap.map(images(size, start) for size, start in zip(sizes, starts, strict=True)))
    for outputs, size, start in zip(found, sizes, starts, strict=True):
        check(outputs, size, start)


def test_a_batch_between_profiles_is_filled_up(gpu: LazyRuntime) -> None:
    """The next size that the engine is tuned for runs, with the batch's own rows repeated, and is cut again."""
    loaded: Any = FakeEngine(gpu, BatchRange(min=1, opt=8, max=8, tuned=(2, 8)))
    with Engine(loaded, H100).overlap(2) as overlap:
        found = list(overlap.map([images(8, 50), images(3, 7), images(3, 20), images(1, 9)]))
    for got, (size, start) in zip(found, ((8, 50), (3, 7), (3, 20), (1, 9)), strict=True):
        np.testing.assert_array_equal(got, logits(size, start))
    assert {*loaded.contexts[0].ran} == {2, 8}


def test_images_of_several_sizes_have_their_own_logits(gpu: LazyRuntime) -> None:
    """Buffers belong to a batch's shape, not to its size alone; `prepare` takes the size in the middle."""
    ranges = (AxisRange(name="height", min=2, opt=4, max=8), AxisRange(name="width", min=2, opt=4, max=6))
    shape = ("batch", 3, "height", "width")
    loaded: Any = FakeEngine(gpu, RANGE)
    loaded.inputs = (TensorSpec(name="image", shape=shape, dtype="float32", layout="NCHW", ranges=ranges),)
    pixels = [(4, 4), (4, 4), (8, 6), (2, 6), (4, 4)]
    batches = [
        np.ascontiguousarray(np.broadcast_to(images(3, 10 * number)[:, :, :1, :1], (3, 3, *size)))
        for number, size in enumerate(pixels)
    ]
    with Engine(loaded, H100).overlap(3) as overlap:
        overlap.prepare(3)
        assert (overlap.size, overlap.feed()["image"].shape) == (3, (3, 3, 4, 4))
        found = list(overlap.map(batches))
    for number, got in enumerate(found):
        np.testing.assert_array_equal(got, logits(3, 10 * number))


def test_a_loop_that_is_left_leaves_no_batch_under_way(loaded: Any) -> None:
    """The next loop gives its own results, after a break and after a refusal."""
    with Engine(loaded, H100).overlap(3) as overlap:
        for found in overlap.map(images(2, start) for start in range(0, 60, 10)):
            check(found, 2, 0)
            break
        assert len(overlap) == 0
        with pytest.raises(RunError, match="other batches"):
            list(overlap.map([images(2, 70), images(2, 80).astype(np.float64)]))
        assert len(overlap) == 0
        check(next(overlap.map([images(2, 90)])), 2, 90)
        overlap.put(images(2, 5))
        with pytest.raises(RunError, match="under way"):
            next(overlap.map([images(2, 90)]))
        check(overlap.result(), 2, 5)


def test_another_shape_discards_no_batch_under_way(loaded: Any) -> None:
    """It is refused until the results were taken."""
    with Engine(loaded, H100).overlap(3) as overlap:
        overlap.put(images(2, 5))
        with pytest.raises(RunError, match="batches of another shape are under way"):
            overlap.put(images(3, 50))
        with pytest.raises(RunError, match=r"(?s)batches of another shape are under way.*take their results first"):
            overlap.prepare(3)
        overlap.prepare(2)  # the shape that there is
        check(overlap.result(), 2, 5)
        overlap.put(images(3, 50))
        check(overlap.result(), 3, 50)


def test_calls_out_of_time_are_refused(loaded: Any, gpu: LazyRuntime) -> None:
    """Before `prepare` there is nothing to fill or start; after the end nothing is allocated any more."""
    with Engine(loaded, H100).overlap(2) as overlap:
        for call in (overlap.feed, overlap.start):
            with pytest.raises(RunError, match="no batch is prepared"):
                call()
        overlap.put(images(2, 5))
    for late in (overlap.feed, overlap.start, lambda: overlap.put(images(2, 5)), lambda: overlap.prepare(2)):
        with pytest.raises(RunError, match="has ended"):
            late()
    assert gpu.idle


@pytest.mark.parametrize("threads", [0, 2])
def test_large_batches_go_in_pieces(gpu: LazyRuntime, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """Each piece goes on to the GPU by itself, in any order, and the caller may write to its array at once."""
    for name in ("PIECE_BYTES", "GATHERED_BYTES", "ALONE_BYTES"):
        monkeypatch.setattr(f"model_artifacts.sessions.feeds.staging.{name}", 100)
    loaded: Any = FakeEngine(gpu, BatchRange(min=1, opt=12, max=12, tuned=(6, 12)))
    with closing(Copiers(threads)) as copiers, Engine(loaded, H100, copiers).overlap(3) as overlap:
        batch, found = images(12, 0), []
        for start in range(0, 60, 10):
            batch[...] = images(12, start)
            if overlap.full:
                found.append(np.array(overlap.result()))
            overlap.put(batch)
        found += [np.array(overlap.result()) for _ in range(len(overlap))]
        for number, got in enumerate(found):
            np.testing.assert_array_equal(got, logits(12, 10 * number))
        (padded,) = overlap.map([images(8, 3)])
        np.testing.assert_array_equal(padded, logits(8, 3))


def test_callers_fill_the_pinned_memory_themselves(loaded: Any) -> None:
    """A batch is written where the GPU reads it, while earlier ones are under way."""
    with Engine(loaded, H100).overlap(3) as overlap:
        overlap.prepare(2)
        begun, ended = 0, 0
        while ended < 10:
            if begun < 10 and not overlap.full:
                overlap.feed()["image"][...] = images(2, begun)
                overlap.start()
                begun += 1
            else:
                check(overlap.result(), 2, ended)
                ended += 1


def test_closing_waits_for_what_is_under_way(loaded: Any, gpu: LazyRuntime) -> None:
    """Memory is freed only when nothing on the GPU uses it, also after an error of the caller."""

    def begin(overlap: Overlap) -> None:
        overlap.prepare(4)
        overlap.start()
        overlap.start()
        assert any(gpu._queues.values())  # noqa: SLF001 - the state of the stand-in
        raise KeyError

    with pytest.raises(KeyError), Engine(loaded, H100).overlap(2) as overlap:
        begin(overlap)
    assert not any(gpu._queues.values())  # noqa: SLF001 - as above


@pytest.mark.parametrize("size", [0, 13])
def test_other_batches_are_refused(loaded: Any, size: int) -> None:
    """The message has the sizes that the engine takes."""
    with Engine(loaded, H100).overlap() as overlap:
        with pytest.raises(RunError, match="1 to 12"):
            overlap.prepare(size)
        with pytest.raises(RunError, match="1 to 12"):
            list(overlap.map([images(size, 0)]))


def test_no_room_leaves_nothing_behind(gpu: LazyRuntime, loaded: Any) -> None:
    """Buffers that do not fit are an error, and those that did fit are freed."""
    gpu.total = 3 * 12 * 4 * (48 + 20)
    with Engine(loaded, H100).overlap(4) as overlap:
        with pytest.raises(RunError, match="too little free memory for a buffer"):
            overlap.prepare(12)
        check(next(overlap.map([images(2, 7)])), 2, 7)


def test_a_missing_wait_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in's order shows a computation that does not wait for its copy."""
    wrong = 0
    for seed in range(20):
        fake = LazyRuntime(seed)
        monkeypatch.setattr(cuda, "runtime", fake)
        monkeypatch.setattr(cuda.Stream, "wait", lambda *_: None)
        with ExitStack() as stack:
            overlap = stack.enter_context(Engine(FakeEngine(fake, RANGE), H100).overlap(2))  # type: ignore[arg-type]
            found = list(overlap.map([images(2, start) for start in range(0, 50, 10)]))
        wrong += any(not np.array_equal(got, logits(2, 10 * number)) for number, got in enumerate(found))
    assert wrong
