"""A bounded pool of runners: each runs one batch at a time, and callers wait for one in the order in which they came.

A semaphore or a queue of Python's library is not fair: a thread that arrives while another one wakes up may overtake
it. Here a runner is handed to the one that has waited longest. Calls stay on their own threads, because arrays on the
GPU are ordered by the calling thread's stream.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from model_artifacts.errors import BusyError, RunError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Runner = Callable[[Any], Any]


def closed(got: str) -> RunError:
    """Return the error of a call that a closed model cannot answer.

    Args:
        got: the call, as a phrase.
    """
    return RunError(
        "the model is closed",
        expected="a call inside of its `with` block",
        got=got,
        fix="call it inside the block: `with load(…) as model:`",
    )


AFTER_THE_END = "a call after its end"
"""A call of a model that was closed before."""
WAITED = "a call that still waited at its end"
"""A call of a model that was closed meanwhile."""


class _Waiter:
    """A call that waits for a runner."""

    def __init__(self) -> None:
        self.woken = threading.Event()
        self.runner: Runner | None = None


class Pool:
    """Runners that threads share. Each call borrows one; calls beyond their number wait, first come, first served."""

    def __init__(self, runners: Sequence[Runner], wait_seconds: float | None = None) -> None:
        """Share runners.

        Args:
            runners: functions from a batch to its outputs, at least one; each is called by one thread at a time.
            wait_seconds: the longest time that a call waits for one; None has no limit.
        """
        self.wait_seconds = wait_seconds
        """The longest time that a call waits for a runner; None has no limit."""
        self._size = len(runners)
        self._free = list(runners)
        self._waiting: deque[_Waiter] = deque()
        self._closed = False
        self._lock = threading.Lock()
        self._returned = threading.Condition(self._lock)

    def __len__(self) -> int:
        """The number of runners: that many calls run at once."""
        return self._size

    @property
    def idle(self) -> int:
        """The number of runners that no call has."""
        return len(self._free)

    @property
    def waiting(self) -> int:
        """The number of calls that wait for a runner."""
        return len(self._waiting)

    def __call__(self, batch: Any) -> Any:  # noqa: ANN401 - an array or arrays by name, as the artifact takes them
        """Run a batch in the first runner that is free.

        Raises:
            RunError: the batch cannot be run, or the pool is closed.
            BusyError: no runner was free in time.
        """
        runner = self._take(self.wait_seconds)
        try:
            return runner(batch)
        finally:
            with self._lock:
                self._give(runner)

    @contextmanager
    def borrowed(self) -> Iterator[Runner]:
        """Lend a runner for a block, however long it takes until one is free.

        Raises:
            RunError: the pool is closed, or was closed during the wait.
        """
        runner = self._take(None)
        try:
            yield runner
        finally:
            with self._lock:
                self._give(runner)

    def busy(self) -> BusyError:
        """Return the error of a call that waited as long as it may."""
        return BusyError(
            "the model is busy",
            expected=f"a free context within {self.wait_seconds or 0:g} s",
            got="earlier calls in all of them" if self._size > 1 else "an earlier call in its one context",
            fix="try it again later, raise `contexts` or `wait_seconds` of `load`, or call it less often",
        )

    def check_open(self) -> None:
        """Check that the pool takes calls.

        Raises:
            RunError: it is closed.
        """
        if self._closed:
            raise closed(AFTER_THE_END)

    def close(self) -> None:
        """Refuse all calls from now on, those that wait included, and wait for the batches that run."""
        with self._lock:
            self._closed = True
            for waiter in self._waiting:
                waiter.woken.set()
            self._waiting.clear()
            while len(self._free) < self._size:
                self._returned.wait()

    def _take(self, wait_seconds: float | None) -> Runner:
        with self._lock:
            self.check_open()
            if self._free:  # then nobody waits
                return self._free.pop()  # the one that ran last, whose memory is warm
            waiter = _Waiter()
            self._waiting.append(waiter)
        try:
            waiter.woken.wait(wait_seconds)
        except BaseException:  # an interrupt: what was handed over meanwhile goes to the next one
            with self._lock:
                self._leave(waiter)
                if waiter.runner is not None:
                    self._give(waiter.runner)
            raise
        with self._lock:
            self._leave(waiter)
            if waiter.runner is not None:
                return waiter.runner
            if self._closed:
                raise closed(WAITED)
        raise self.busy()

    def _leave(self, waiter: _Waiter) -> None:
        if waiter in self._waiting:
            self._waiting.remove(waiter)

    def _give(self, runner: Runner) -> None:
        """Hand a runner to the one that has waited longest; the lock is held."""
        if self._waiting:
            waiter = self._waiting.popleft()
            waiter.runner = runner
            waiter.woken.set()
        else:
            self._free.append(runner)
            if self._closed:
                self._returned.notify_all()
