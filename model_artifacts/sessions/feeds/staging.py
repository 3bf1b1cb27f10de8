"""Arrays in ordinary memory → pinned memory, from which the GPU copies while later pieces still come.

A call with arrays in ordinary memory took 6.5 ms at batch 64 where the network took 0.5 (docs/performance.md): one
thread copied everything before the GPU began. Here the caller and several threads copy pieces, and each goes on to the
GPU as soon as it is there.
"""

from __future__ import annotations

import threading
from collections import deque
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from model_artifacts.errors import RunError
from model_artifacts.host.environment import threads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]

PIECE_BYTES = 2**21
"""The size of a piece for threads. 1 MiB took 1.06 to 1.08 times as long (docs/performance.md, H200)."""
GATHERED_BYTES = 2**22
"""The size of a piece of several arrays, each of which makes a thread wait for Python's lock once more."""
ALONE_BYTES = 2**18
"""The size of a piece for the caller's own thread. The first goes on early; smaller ones cost more than they win."""
MOST_THREADS = 4
"""The most threads beside the caller's. More were slower: `benchmarks/host_to_host.py` times other numbers."""


def pieces_of(size: int, most: int) -> tuple[slice, ...]:
    """Return consecutive parts of an array, in bytes, all but the last one of the same size.

    Args:
        size: the array's bytes.
        most: the bytes of a piece.
    """
    return tuple(slice(start, min(start + most, size)) for start in range(0, size, most))


def copier_threads(cores: int) -> int:
    """Return the number of threads beside the caller's: together half of a host's cores, for others have work, too."""
    return min(MOST_THREADS, max(cores // 2 - 1, 0))


def bytes_of(array: npt.NDArray[Any]) -> Bytes:
    """Return a contiguous array's own memory as bytes."""
    return array.reshape(-1).view(np.uint8)


class Piece(NamedTuple):
    """Bytes that are copied by one thread, and reported together."""

    part: slice
    """Their place in the target."""
    sources: Sequence[Bytes]
    """The bytes, which follow each other there."""

    def copy(self, target: Bytes) -> None:
        """Copy the bytes in one call of NumPy, which leaves Python's lock to other threads meanwhile.

        With a call for each small array, threads would wait for that lock more often, and each wait is a short sleep.
        """
        np.concatenate(self.sources, out=target[self.part])


def pieces_of_several(sources: Sequence[Bytes], most: int) -> list[Piece]:
    """Return the pieces of arrays that follow each other in the target. Small arrays share a piece. Pure.

    Args:
        sources: the bytes of each array.
        most: the bytes after which a piece ends.
    """
    found: list[Piece] = []
    joined: list[Bytes] = []
    begin = end = 0
    for source in sources:
        for part in pieces_of(source.size, most):
            joined.append(source[part])
            end += part.stop - part.start
            if end - begin >= most:
                found.append(Piece(slice(begin, end), joined))
                joined, begin = [], end
    return [*found, Piece(slice(begin, end), joined)] if joined else found


class _Job:
    """The copy of one array, whose pieces all take. A lock for each piece would cost more than a small copy."""

    def __init__(self, target: Bytes, pieces: Sequence[Piece]) -> None:
        self._target = target
        self._count = len(pieces)
        self._arrived: SimpleQueue[slice] = SimpleQueue()
        self._pieces = deque(pieces)
        self._inside: list[threading.Lock] = []  # one of each thread, which it holds until it takes no further piece

    def lead(self, arrived: Callable[[slice], None]) -> None:
        """Copy pieces in the caller's thread, which no other has to wake first, and report those of all threads."""
        reported = 0
        while reported < self._count:
            if (piece := self._take()) is not None:
                piece.copy(self._target)
                arrived(piece.part)
                reported += 1
            while reported < self._count and (piece is None or not self._arrived.empty()):
                arrived(self._arrived.get())
                reported += 1

    def help(self) -> None:
        """Copy pieces in a thread of its own until none is left."""
        leaving = threading.Lock()
        with leaving:
            self._inside.append(leaving)  # before it takes a piece, so that `end` knows of it
            while (piece := self._take()) is not None:
                piece.copy(self._target)
                self._arrived.put(piece.part)

    def end(self) -> None:
        """Take away the pieces that no thread has begun, and wait for the others."""
        self._pieces.clear()
        for leaving in [*self._inside]:
            with leaving:
                pass

    def _take(self) -> Piece | None:
        try:
            return self._pieces.popleft()  # each thread gets another one
        except IndexError:
            return None


class Copiers:
    """Threads that copy arrays for all sessions of an engine. They start with the first large array."""

    def __init__(self, count: int | None = None) -> None:
        """Start nothing yet.

        Args:
            count: the number of threads beside the caller's; 0 lets it copy alone; None takes what suits this host.
        """
        self._count = copier_threads(threads()) if count is None else count
        self._tasks: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._closed = False

    def copy(self, target: npt.NDArray[Any], source: npt.NDArray[Any], arrived: Callable[[slice], None]) -> None:
        """Copy an array, and return when all of it is there. Several threads may call this at once.

        Args:
            target: as many bytes as `source`, contiguous.
            source: the array, contiguous.
            arrived: called in the caller's thread with each piece, in bytes, once it is there; in any order.

        Raises:
            RunError: the threads have ended.
        """
        if self._is_alone(source.nbytes, PIECE_BYTES):  # at once, and with no more lists
            there, here = bytes_of(target), bytes_of(source)
            for part in pieces_of(here.size, ALONE_BYTES):
                there[part] = here[part]
                arrived(part)
        else:
            self.gather(target, (source,), arrived)

    def gather(
        self, target: npt.NDArray[Any], sources: Sequence[npt.NDArray[Any]], arrived: Callable[[slice], None]
    ) -> None:
        """Copy arrays one after another to one, as `copy` does.

        Args:
            target: as many bytes as all `sources`, contiguous.
            sources: the arrays, each contiguous.
            arrived: as for `copy`.

        Raises:
            RunError: the threads have ended.
        """
        most = PIECE_BYTES if len(sources) == 1 else GATHERED_BYTES
        alone = self._is_alone(sum(source.nbytes for source in sources), most)
        pieces = pieces_of_several([*map(bytes_of, sources)], ALONE_BYTES if alone else most)
        there = bytes_of(target)
        if alone:
            for piece in pieces:
                piece.copy(there)
                arrived(piece.part)
            return
        job = _Job(there, pieces)
        try:
            self._start(job, len(pieces) - 1)
            job.lead(arrived)
        finally:  # after an error, too, nothing is written to or read from memory that the caller may free
            job.end()

    def close(self) -> None:
        """End the threads. No copy is under way any more."""
        with self._lock:
            self._closed = True
            for _ in self._threads:
                self._tasks.put(None)
            for thread in self._threads:
                thread.join()
            self._threads.clear()

    def _is_alone(self, size: int, most: int) -> bool:
        """Return True if the caller's own thread copies so many bytes: a single piece, or what has no threads."""
        return self._count < 1 or size <= most

    def _start(self, job: _Job, most: int) -> None:
        """Give a job to all threads, or as many as it has pieces for. Nothing begins once `close` has."""
        with self._lock:
            if self._closed:
                raise RunError("the engine is closed, and copies no arrays any more")
            while len(self._threads) < self._count:
                thread = threading.Thread(target=self._work, name=f"copier-{len(self._threads)}", daemon=True)
                thread.start()
                self._threads.append(thread)
            for _ in self._threads[:most]:
                self._tasks.put(job)

    def _work(self) -> None:
        while (job := self._tasks.get()) is not None:
            job.help()
