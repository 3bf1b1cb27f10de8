"""Batches in a row: several are under way at once, and their results come in order.

Between two results a stream holds no lock and no context of the pool: the caller may call the model, open another
stream, stop for good, or close the model.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from model_artifacts.serving.pool import AFTER_THE_END, closed
from model_artifacts.sessions.feeds.batches import each, values_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from concurrent.futures import Future
    from contextlib import AbstractContextManager

    from model_artifacts.serving.pool import Runner
    from model_artifacts.sessions.feeds.batches import Batch
    from model_artifacts.sessions.onnx import Outputs

    Opening = Callable[[int], AbstractContextManager["UnderWay"]]

BUFFERS = 3
"""The batches under way by default: one is copied in, one computed, one copied out."""
_NO_MORE = object()


class UnderWay(Protocol):
    """Batches that were begun and whose results were not taken, the oldest first. One thread at a time uses it."""

    def __len__(self) -> int:
        """The number of batches."""

    @property
    def full(self) -> bool:
        """True if a result must be taken before another batch may begin."""

    def fits(self, batch: Batch) -> bool:
        """Return True if a batch may begin beside those under way."""

    def put(self, batch: Batch) -> None:
        """Begin a batch, which may change after the call."""

    def result(self) -> Outputs:
        """Wait for the oldest batch, and return its outputs as new arrays."""


class InTurn:
    """Runs each batch on the caller's thread, one after the other."""

    def __init__(self, run: Runner) -> None:
        self._run = run
        self._found: deque[Outputs] = deque()

    def __len__(self) -> int:
        """The number of batches whose results were not taken: at most one."""
        return len(self._found)

    @property
    def full(self) -> bool:
        """True if there is a result."""
        return bool(self._found)

    def fits(self, batch: Batch) -> bool:
        """Return True: nothing is under way beside it."""
        del batch
        return True

    def put(self, batch: Batch) -> None:
        """Run a batch.

        Raises:
            RunError: the batch cannot be run.
        """
        self._found.append(self._run(batch))

    def result(self) -> Outputs:
        """Return the outputs."""
        return self._found.popleft()


class Ahead:
    """Runs batches in order on one thread of its own, while the caller makes the next one."""

    def __init__(self, run: Runner, buffers: int, thread: ThreadPoolExecutor) -> None:
        self._run, self._buffers, self._thread = run, buffers, thread
        self._runs: deque[Future[Outputs]] = deque()

    def __len__(self) -> int:
        """The number of batches."""
        return len(self._runs)

    @property
    def full(self) -> bool:
        """True if as many batches are under way as may be."""
        return len(self._runs) == self._buffers

    def fits(self, batch: Batch) -> bool:
        """Return True: batches of any shapes wait for each other."""
        del batch
        return True

    def put(self, batch: Batch) -> None:
        """Let a copy of a batch run after those before it: the caller may fill its own array again."""
        self._runs.append(self._thread.submit(self._run, each(batch, np.array)))

    def result(self) -> Outputs:
        """Wait for the oldest batch, and return its outputs.

        Raises:
            RunError: the batch cannot be run.
        """
        return self._runs.popleft().result()


def in_turn(run: Runner) -> Opening:
    """Return what opens a stream whose batches run one after the other, on its caller's thread."""

    @contextmanager
    def opened(buffers: int) -> Iterator[InTurn]:
        del buffers
        yield InTurn(run)

    return opened


def ahead(run: Runner) -> Opening:
    """Return what opens a stream whose batches run on a thread of its own.

    The end of a stream does not wait for the batch that runs, after which the thread ends. A garbage collection may end
    it on a thread that has the only runner, for which that batch waits.

    Args:
        run: runs batches on any thread, and refuses them once its own end has begun.
    """

    @contextmanager
    def opened(buffers: int) -> Iterator[Ahead]:
        thread = ThreadPoolExecutor(1, thread_name_prefix="stream")
        try:
            yield Ahead(run, buffers, thread)
        finally:
            thread.shutdown(wait=False, cancel_futures=True)

    return opened


class _Stream:
    """An open stream. Any thread may close it: it waits for the step that another thread is in."""

    def __init__(self, opened: AbstractContextManager[UnderWay], forget: Callable[[_Stream], None]) -> None:
        self._forget = forget
        self._opened = ExitStack()
        self._batches = self._opened.enter_context(opened)
        self._lock = threading.RLock()  # a garbage collection within `close` may close it again
        self._closed = False
        self._left = 0

    def __len__(self) -> int:
        """The number of results that were not taken. The end discards some, and they are missed all the same."""
        return self._left

    @property
    def full(self) -> bool:
        return self._batches.full

    def fits(self, batch: Batch) -> bool:
        return self._batches.fits(batch)

    def put(self, batch: Batch) -> None:
        with self._lock:
            self._check_open()
            self._batches.put(batch)
            self._left += 1

    def result(self) -> Outputs:
        with self._lock:
            self._check_open()
            found = self._batches.result()
            self._left -= 1
            return found

    def close(self) -> None:
        """Discard what is under way, and give everything back."""
        self._closed = True  # before the lock is there, so that no further step of another thread goes first
        with self._lock:
            self._forget(self)
            self._opened.close()

    def _check_open(self) -> None:
        if self._closed:
            raise closed(AFTER_THE_END)


class Streams:
    """The streams of a model, which end with it."""

    def __init__(self, run: Runner, opening: Opening) -> None:
        """Open nothing yet.

        Args:
            run: runs a batch that lies in a GPU's memory, where there is nothing to copy.
            opening: opens a stream for a number of batches under way.
        """
        self._run, self._opening = run, opening
        self._open: set[_Stream] = set()
        self._closed = False
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """The number of open streams."""
        return len(self._open)

    def results(
        self, batches: Iterator[Any], checked: Callable[[Any], Batch], buffers: int
    ) -> Generator[Outputs, None, None]:
        """Yield the outputs of batches in their order.

        An error comes in place of the result of its batch, after the results of all batches before.

        Args:
            batches: what the caller hands over, which is asked for on the caller's thread.
            checked: returns the batch that the artifact takes, or raises an error.
            buffers: the most batches under way at once.

        Raises:
            RunError: a batch cannot be run, or the model is closed.
        """
        with closing(self._opened(buffers)) as stream:
            failure: Exception | None = None
            while failure is None:
                try:
                    given = next(batches, _NO_MORE)
                    if given is _NO_MORE:
                        break
                    batch = checked(given)
                    copied = _in_host(batch)
                except Exception as exc:  # noqa: BLE001 - whatever the caller's code raises; it is raised below
                    failure = exc
                    break
                while len(stream) and not (copied and stream.fits(batch)):
                    yield stream.result()
                if not copied:
                    yield self._run(batch)
                    continue
                try:
                    stream.put(batch)
                except Exception as exc:  # noqa: BLE001 - the same
                    failure = exc
                while failure is None and stream.full:
                    yield stream.result()
            while len(stream):
                yield stream.result()
            if failure is not None:
                raise failure

    def close(self) -> None:
        """Refuse all further batches and give everything back, after the steps that threads are in.

        The end of `run` waits for its own batches.
        """
        with self._lock:  # none is being opened any more
            self._closed = True
        with ExitStack() as ending:  # all of them, even if one fails
            for stream in [*self._open]:
                ending.callback(stream.close)

    def _opened(self, buffers: int) -> _Stream:
        with self._lock:
            if self._closed:
                raise closed(AFTER_THE_END)
            stream = _Stream(self._opening(buffers), self._open.discard)
            self._open.add(stream)
        return stream


def _in_host(batch: Batch) -> bool:
    return all(isinstance(array, np.ndarray) for array in values_of(batch))
