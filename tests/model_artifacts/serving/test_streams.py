"""Streams: results in order, errors in their place, and nothing left of a stream that ends early."""

from __future__ import annotations

import gc
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from model_artifacts.errors import RunError
from model_artifacts.serving.pool import Pool
from model_artifacts.serving.streams import Streams, ahead, in_turn

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Array = npt.NDArray[np.float32]

WAYS = pytest.mark.parametrize("way", [in_turn, ahead], ids=["in-turn", "ahead"])


def numbers(start: int, count: int, size: int = 2) -> Iterator[Array]:
    """Yield batches of one number each, in one array that is filled again."""
    batch = np.empty((size, 3), np.float32)
    for number in range(start, start + count):
        batch[...] = number
        yield batch


def same(batch: Any) -> Any:
    """Return a batch as it is, for the check of every batch."""
    return batch


def doubled(batch: Array) -> Array:
    """Return new outputs, or refuse a batch of a 13."""
    if batch[0, 0] == 13:
        raise RunError("thirteen")
    return batch * 2


def threads_of_streams() -> list[threading.Thread]:
    """Return the threads of streams that do not end once their batch has run."""
    found = [thread for thread in threading.enumerate() if thread.name.startswith("stream")]
    for thread in found:
        thread.join(30)
    return [thread for thread in found if thread.is_alive()]


@WAYS
@pytest.mark.parametrize("buffers", [2, 3, 4])
@pytest.mark.parametrize("count", [0, 1, 9])
def test_results_come_in_order(way: Any, buffers: int, count: int) -> None:
    """Each batch has its own result, which stays, though the caller fills the same array for the next one."""
    streams = Streams(doubled, way(doubled))
    found = list(streams.results(numbers(0, count), same, buffers))
    assert [float(outputs[0, 0]) for outputs in found] == [2.0 * number for number in range(count)]
    assert len(streams) == 0
    assert threads_of_streams() == []


def test_the_next_batch_is_made_while_one_runs() -> None:
    """Both sides meet: the run waits for the caller's code, and that for the run."""
    meeting = threading.Barrier(2, timeout=30)

    def run(batch: Array) -> Array:
        if batch[0, 0]:  # the first one is over when the second one is made
            meeting.wait()
        return doubled(batch)

    def made() -> Iterator[Array]:
        for number, batch in enumerate(numbers(0, 6)):
            if number > 1:
                meeting.wait()
            yield batch
        meeting.wait()

    assert len(list(Streams(run, ahead(run)).results(made(), same, 2))) == 6


@WAYS
def test_a_result_comes_before_more_batches_are_asked_for_than_there_are_buffers(way: Any) -> None:
    """A source that lives waits for no more batches than that."""
    taken: list[int] = []

    def made() -> Iterator[Array]:
        for batch in numbers(0, 9):
            taken.append(int(batch[0, 0]))
            yield batch

    with closing(Streams(doubled, way(doubled)).results(made(), same, 3)) as found:
        next(found)
        assert len(taken) == (1 if way is in_turn else 3)


@WAYS
@pytest.mark.parametrize("place", ["batches", "check", "run"])
def test_an_error_comes_in_its_place(way: Any, place: str) -> None:
    """The results of the batches before are given first, and the stream is over after it."""

    def made() -> Iterator[Array]:
        yield from numbers(0, 5)
        if place == "batches":
            raise RunError("thirteen")
        yield from numbers(13, 5)

    def checked(batch: Array) -> Array:
        if place == "check" and batch[0, 0] == 13:
            raise RunError("thirteen")
        return batch

    streams = Streams(doubled, way(doubled))
    results = streams.results(made(), checked, 4)
    assert [float(next(results)[0, 0]) for _ in range(5)] == [0, 2, 4, 6, 8]
    with pytest.raises(RunError, match="thirteen"):
        next(results)
    assert next(results, None) is None
    assert len(streams) == 0
    assert threads_of_streams() == []


@WAYS
def test_a_check_that_stops_does_not_end_the_stream(way: Any) -> None:
    """An array of a library that raises `StopIteration` is an error, or the batches after it would be lost."""

    def checked(batch: Array) -> Array:
        return next(iter(())) if batch[0, 0] == 1 else batch

    results = Streams(doubled, way(doubled)).results(numbers(0, 3), checked, 2)
    assert next(results)[0, 0] == 0
    with pytest.raises(RuntimeError, match="StopIteration"):
        next(results)


@WAYS
def test_a_loop_that_is_left_leaves_nothing(way: Any) -> None:
    """Neither threads nor streams are left; one that was never begun has opened nothing."""
    streams = Streams(doubled, way(doubled))
    never = streams.results(numbers(0, 100), same, 3)
    for outputs in streams.results(numbers(0, 100), same, 3):
        assert outputs[0, 0] == 0
        assert len(streams) == 1
        break
    gc.collect()
    assert len(streams) == 0
    assert threads_of_streams() == []
    never.close()


@WAYS
def test_the_end_of_the_model_ends_its_streams(way: Any) -> None:
    """One that waits in another thread is refused, and the thread that closes does not wait for it."""
    pool = Pool((doubled,))
    streams = Streams(pool, way(pool))
    results = streams.results(numbers(0, 100), same, 3)
    next(results)
    pool.close()
    streams.close()
    assert len(streams) == 0
    assert threads_of_streams() == []
    with pytest.raises(RunError, match="the model is closed"):
        next(results)
    with pytest.raises(RunError, match="the model is closed"):
        next(streams.results(numbers(0, 1), same, 3))


@WAYS
def test_the_end_waits_for_a_batch_that_runs(way: Any) -> None:
    """Its memory would be freed; the thread that runs it gets an error at its next step."""
    begun, go_on, ended = threading.Event(), threading.Event(), []

    def run(batch: Array) -> Array:
        begun.set()
        go_on.wait(30)
        ended.append(1)
        return doubled(batch)

    pool = Pool((run,))
    streams = Streams(pool, way(pool))
    errors: list[Exception] = []

    def close() -> None:
        """End both, in the order of a model."""
        pool.close()
        streams.close()

    def use() -> None:
        try:
            for _ in streams.results(numbers(20, 10**9), same, 2):
                pass
        except RunError as exc:
            errors.append(exc)

    user, closer = threading.Thread(target=use), threading.Thread(target=close)
    user.start()
    assert begun.wait(30)
    closer.start()
    assert not ended
    go_on.set()
    closer.join(30)
    user.join(30)
    assert not closer.is_alive()
    assert ended
    assert ["the model is closed" in str(error) for error in errors] == [True]


def test_the_end_of_a_stream_within_a_call_does_not_wait_for_that_call() -> None:
    """A garbage collection ends it on any thread: here on one with the only context, for which the stream waits."""
    pool, begun, go_on = Pool((doubled,)), threading.Event(), threading.Event()

    def run(batch: Array) -> Any:
        if batch[0, 0]:
            begun.set()
            go_on.wait(30)
        return pool(batch)

    results = Streams(pool, ahead(run)).results(numbers(0, 9), same, 2)
    next(results)
    assert begun.wait(30)
    with pool.borrowed():
        go_on.set()
        ending = threading.Thread(target=results.close)
        ending.start()
        ending.join(30)
        assert not ending.is_alive()
    assert threads_of_streams() == []


@WAYS
def test_streams_and_calls_go_on_beside_each_other(way: Any) -> None:
    """With one context, too: a stream holds none between its steps. Each of two gets its own results."""
    pool = Pool((doubled,))
    streams = Streams(pool, way(pool))
    pairs = zip(streams.results(numbers(0, 5), same, 2), streams.results(numbers(20, 5), same, 3), strict=True)
    for number, (first, second) in enumerate(pairs):
        assert (first[0, 0], second[0, 0]) == (2 * number, 40 + 2 * number)
        assert pool(np.ones((1, 3), np.float32))[0, 0] == 2


@WAYS
def test_a_batch_elsewhere_runs_by_itself_in_its_place(way: Any) -> None:
    """One that is no array in the host's memory is not copied, and follows those before."""
    seen: list[Any] = []

    def run(batch: Any) -> Any:
        seen.append(batch)
        return np.full((1, 1), -1, np.float32)

    mixed: list[Any] = [*map(np.array, numbers(0, 3)), memoryview(b"there"), *map(np.array, numbers(3, 2))]
    found = list(Streams(run, way(doubled)).results(iter(mixed), same, 4))
    assert [float(outputs[0, 0]) for outputs in found] == [0, 2, 4, -1, 6, 8]
    assert seen == [mixed[3]]
