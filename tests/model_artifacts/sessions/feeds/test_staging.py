"""Copies in pieces: every byte once, by one thread or several, and none after an error."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_artifacts.errors import RunError
from model_artifacts.sessions.feeds import staging
from model_artifacts.sessions.feeds.staging import Copiers, Piece, copier_threads, pieces_of, pieces_of_several

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt


@given(st.integers(0, 5000), st.integers(1, 700))
def test_pieces_cover_every_byte_once(size: int, most: int) -> None:
    """The pieces follow each other without a gap, none is larger than asked, and none is empty."""
    pieces = pieces_of(size, most)
    assert [byte for part in pieces for byte in range(part.start, part.stop)] == list(range(size))
    assert all(0 < part.stop - part.start <= most for part in pieces)


@given(st.lists(st.integers(0, 900), max_size=9), st.integers(1, 700))
def test_pieces_of_several_arrays_follow_each_other(sizes: list[int], most: int) -> None:
    """Every byte of every array has its own place in the target, and small arrays share a piece."""
    sources = [
        np.arange(size, dtype=np.uint16).astype(np.uint8) + np.uint8(number) for number, size in enumerate(sizes)
    ]
    pieces = pieces_of_several(sources, most)
    ends = [piece.part.stop for piece in pieces]
    assert [piece.part.start for piece in pieces] == [0, *ends][: len(pieces)]
    assert [sum(map(len, piece.sources)) for piece in pieces] == [
        piece.part.stop - piece.part.start for piece in pieces
    ]
    target = np.zeros(sum(sizes), np.uint8)
    for piece in pieces:
        piece.copy(target)
    np.testing.assert_array_equal(target, np.concatenate([*sources, target[:0]]))
    assert all(most <= piece.part.stop - piece.part.start < 2 * most for piece in pieces[:-1])


@pytest.mark.parametrize("count", [0, 3])
def test_arrays_are_gathered(count: int) -> None:
    """They lie one after another in the target, whoever copies them; each piece is there when it is reported."""
    sources = [large(pieces) for pieces in (0.3, 0.3, 0.3, 2.7, 0.01, 6, 0.4)]
    whole = np.concatenate(sources)
    target, seen = np.zeros_like(whole), []

    def arrived(part: slice) -> None:
        np.testing.assert_array_equal(target[part], whole[part])
        seen.append(part.stop - part.start)

    with closing(Copiers(count)) as copiers:
        copiers.gather(target, sources, arrived)
    assert sum(seen) == len(whole)
    np.testing.assert_array_equal(target, whole)


@pytest.mark.parametrize(("cores", "count"), [(1, 0), (2, 0), (3, 0), (4, 1), (8, 3), (200, 4)])
def test_half_of_the_cores_copy(cores: int, count: int) -> None:
    """Others have work, too; the caller's own thread is one of them."""
    assert copier_threads(cores) == count


def large(pieces: float) -> npt.NDArray[np.uint8]:
    """Return an array of so many pieces."""
    return np.random.default_rng(0).integers(0, 255, int(staging.PIECE_BYTES * pieces), np.uint8)


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("pieces", [0.1, 1, 2.5, 9, 11.2])
def test_an_array_is_copied(count: int, pieces: float) -> None:
    """All of it is there at the end, and each piece when it is reported."""
    source, seen = large(pieces), []
    target = np.zeros_like(source)

    def arrived(part: slice) -> None:
        np.testing.assert_array_equal(target[part], source[part])
        seen.append(part.start)

    with closing(Copiers(count)) as copiers:
        copiers.copy(target, source, arrived)
    np.testing.assert_array_equal(target, source)
    most = staging.PIECE_BYTES if count and pieces > 1 else staging.ALONE_BYTES
    assert sorted(seen) == [part.start for part in pieces_of(source.nbytes, most)]


def test_the_caller_waits_for_no_thread_to_wake_up() -> None:
    """It copies everything by itself, if it must."""
    source, seen = large(9), []
    target = np.zeros_like(source)
    with closing(Copiers(2)) as copiers:
        copiers._work = lambda: None  # type: ignore[method-assign]  # noqa: SLF001 - threads that never help
        copiers.copy(target, source, lambda part: seen.append(part.start))
    np.testing.assert_array_equal(target, source)
    assert seen == [part.start for part in pieces_of(source.nbytes, staging.PIECE_BYTES)]


def test_several_callers_share_the_threads() -> None:
    """Each caller gets its own array, in its own thread."""
    sources = [large(9) + number for number in range(4)]
    targets = [np.zeros_like(source) for source in sources]
    with closing(Copiers(2)) as copiers:

        def work(number: int) -> None:
            for _ in range(5):
                targets[number][:] = 0
                copiers.copy(targets[number], sources[number], lambda _: None)

        callers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert len([thread for thread in threading.enumerate() if thread.name.startswith("copier-")]) == 2
    for source, target in zip(sources, targets, strict=True):
        np.testing.assert_array_equal(target, source)


def test_nothing_is_written_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller whose copy to the GPU fails may free the memory: the threads have left it."""
    under_way: set[int] = set()
    copy = Piece.copy

    def watched(piece: Piece, target: npt.NDArray[np.uint8]) -> None:
        under_way.add(piece.part.start)
        copy(piece, target)
        under_way.discard(piece.part.start)

    monkeypatch.setattr(Piece, "copy", watched)
    source = large(12)

    def fail(_: slice) -> None:
        raise RunError("a CUDA call failed")

    with closing(Copiers(3)) as copiers:
        with pytest.raises(RunError, match="a CUDA call failed"):
            copiers.copy(np.zeros_like(source), source, fail)
        assert not under_way
        target = np.zeros_like(source)
        copiers.copy(target, source, lambda _: None)
        np.testing.assert_array_equal(target, source)


class Watched:
    """A queue that does something after each put."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._then = then
        self.get = self._queue.get

    def put(self, item: Any) -> None:
        """Put it, and do something."""
        self._queue.put(item)
        if item is not None:
            self._then()


def test_an_interrupt_leaves_no_thread_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while a copy begins ends it like any other error: nothing is written afterwards."""
    copy = Piece.copy
    started = threading.Event()

    def slow(piece: Piece, target: npt.NDArray[np.uint8]) -> None:
        started.set()
        time.sleep(0.05)
        copy(piece, target)

    def interrupt() -> None:
        started.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(Piece, "copy", slow)
    source = large(9) | 1
    target = np.zeros_like(source)
    with closing(Copiers(2)) as copiers:
        copiers._tasks = Watched(interrupt)  # type: ignore[assignment]  # noqa: SLF001 - as above
        with pytest.raises(KeyboardInterrupt):
            copiers.copy(target, source, lambda _: None)
        before = target.copy()
        time.sleep(0.2)
        np.testing.assert_array_equal(target, before)


def test_closing_waits_for_a_copy_that_begins() -> None:
    """The threads end only after the pieces of a copy that they were promised to."""
    source = large(12)
    target = np.zeros_like(source)
    copiers = Copiers(3)
    closers: list[threading.Thread] = []

    def close() -> None:
        if not closers:
            closers.append(threading.Thread(target=copiers.close, daemon=True))
            closers[0].start()
            closers[0].join(0.1)

    copiers._tasks = Watched(close)  # type: ignore[assignment]  # noqa: SLF001 - put between start and copy
    copying = threading.Thread(target=copiers.copy, args=(target, source, lambda _: None), daemon=True)
    copying.start()
    copying.join(10)
    assert not copying.is_alive()
    closers[0].join(10)
    assert not closers[0].is_alive()
    np.testing.assert_array_equal(target, source)


def test_threads_start_late_and_end() -> None:
    """An engine of small batches has none; closed ones copy nothing any more."""
    before: Any = set(threading.enumerate())
    copiers = Copiers(2)
    small, source = large(1), large(1.1)
    copiers.copy(np.zeros_like(small), small, lambda _: None)
    assert set(threading.enumerate()) == before
    copiers.copy(np.zeros_like(source), source, lambda _: None)
    assert len(set(threading.enumerate()) - before) == 2
    copiers.close()
    assert set(threading.enumerate()) == before
    with pytest.raises(RunError, match="closed"):
        copiers.copy(np.zeros_like(source), source, lambda _: None)
