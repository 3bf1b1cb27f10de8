"""Micro-batches: rows of several callers run as one batch, and each caller gets the outputs of its own rows.

The gates prove that a row's output does not depend on the other rows (`rows` in the manifest). A batch of another size
may run other kernels, so that the last bits of an output depend on who else called.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from concurrent import futures
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from model_artifacts.errors import RunError, UsageError
from model_artifacts.serving.pool import AFTER_THE_END, WAITED, closed
from model_artifacts.sessions.onnx import joined

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from model_artifacts.serving.pool import Pool, Runner

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batching:
    """Joins calls of several threads to one batch, for `load(…, batching=Batching(max_size=16, max_delay_ms=2))`."""

    max_size: int
    """The most images in a joined batch. An artifact whose largest batch is smaller sets the limit itself."""
    max_delay_ms: float = 1.0
    """The longest time in milliseconds that a call waits for others to join it. While every context is busy, calls wait
    and are joined anyway; 0 joins only those."""

    def __post_init__(self) -> None:
        """Check both limits.

        Raises:
            UsageError: one of them is no limit.
        """
        if isinstance(self.max_size, bool) or not isinstance(self.max_size, int) or self.max_size < 1:
            raise UsageError(
                "the batching has no size",
                expected="`max_size`: a whole number above 0",
                got=repr(self.max_size),
                fix="name the most images in a joined batch",
            )
        if isinstance(self.max_delay_ms, bool) or not 0 <= self.max_delay_ms < float("inf"):
            raise UsageError(
                "the batching has no delay",
                expected="`max_delay_ms`: a number of milliseconds, from 0",
                got=repr(self.max_delay_ms),
                fix="name the longest time that a call may wait for others",
            )


@dataclass
class _Call:
    """A batch of one caller, who waits for the answer."""

    batch: Any
    rows: int
    came: float
    answer: futures.Future[Any] = field(default_factory=futures.Future)


class Batcher:
    """Joins the batches of callers, and runs them in a pool. Calls are joined in the order in which they came."""

    def __init__(self, pool: Pool, batching: Batching, largest: int | None) -> None:
        """Start a thread for each of the pool's runners.

        Args:
            pool: the runners; `close` closes it.
            batching: the limits.
            largest: the artifact's largest batch; None if it takes any.
        """
        self.limit = min(batching.max_size, largest or batching.max_size)
        """The most rows in a joined batch."""
        self._pool = pool
        self._delay = batching.max_delay_ms / 1e3
        self._calls: deque[_Call] = deque()
        self._closed = False
        self._process = os.getpid()
        self._has_runner = False
        """True while a thread that has a runner gathers calls."""
        self._came = threading.Condition()
        self._gathering = threading.Lock()
        self._threads = [
            threading.Thread(target=self._work, name=f"batching-{n}", daemon=True) for n in range(len(pool))
        ]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        """The number of batches that run at once."""
        return len(self._pool)

    @property
    def waiting(self) -> int:
        """The number of calls that wait for their batch to run."""
        return len(self._calls)

    def __call__(self, batch: Any) -> Any:  # noqa: ANN401 - an array or arrays by name, as the artifact takes them
        """Run a batch, with those of other callers if they come in time.

        A batch above the limit runs alone, and so does one in a GPU's memory, on its caller's own thread.

        Raises:
            RunError: the batch cannot be run, or the model is closed.
            BusyError: no runner was free in time.
        """
        rows = _rows(batch)
        if rows is None:
            return self._pool(batch)
        call = self._queued(batch, rows)
        try:
            return call.answer.result(self._pool.wait_seconds)
        except futures.TimeoutError:
            if not self._is_next(call) and call.answer.cancel():
                raise self._pool.busy() from None
            return call.answer.result()  # it runs already, or it only waits for others to join it
        except BaseException:
            call.answer.cancel()  # an interrupt of this thread: nobody waits for the rows any more
            raise

    def submit(self, batch: npt.NDArray[Any]) -> futures.Future[Any]:
        """Queue a batch for callers that do not wait on a thread each; there is no limit to their wait.

        Args:
            batch: an array in the host's memory, which is joined with others along its first axis.

        Returns:
            its outputs. A callback of it runs on the thread that ran the batch: it must neither call the model, nor
            close it, nor wait.

        Raises:
            RunError: the model is closed, or the batch is no array in the host's memory.
        """
        rows = _rows(batch)
        if rows is None:
            raise RunError(
                "only batches in the host's memory are joined",
                expected="numpy's array, or a dictionary of them",
                got=type(batch).__name__,
                fix="call the model with it",
            )
        return self._queued(batch, rows).answer

    def _queued(self, batch: Any, rows: int) -> _Call:  # noqa: ANN401 - as above
        call = _Call(batch, rows, time.monotonic())
        with self._came:
            self.check_open()
            self._calls.append(call)
            self._came.notify_all()
        return call

    def check_open(self) -> None:
        """Check that calls are taken.

        Raises:
            RunError: the model is closed, or this process is a fork, in which no thread answers.
        """
        if self._closed:
            raise closed(AFTER_THE_END)
        if os.getpid() != self._process:
            raise RunError(
                "the model was loaded before this process was forked",
                expected="`load` in the process that calls the model: its threads and its GPU are not inherited",
                got=f"process {os.getpid()}, loaded in process {self._process}",
                fix="load it in each worker, such as in gunicorn's `post_fork`, or without `--preload`",
            )

    def close(self) -> None:
        """Refuse all calls from now on, those that wait included; wait for the batches that run; close the pool."""
        with self._came:
            self._closed = True
            waiting = [*self._calls]
            self._calls.clear()
            self._came.notify_all()
        for call in waiting:
            if call.answer.set_running_or_notify_cancel():
                call.answer.set_exception(closed(WAITED))
        for thread in self._threads:
            thread.join()
        self._pool.close()

    def _work(self) -> None:
        """Run batches until the end."""
        while self._run_next():
            pass

    def _run_next(self) -> bool:
        """Gather calls and run them; return False at the end.

        One thread gathers at a time, or they would halve each batch. It has a runner by then, so that calls join it as
        long as all runners are busy.
        """
        with ExitStack() as lent:
            with self._gathering:
                if not self._wait_for_a_call():
                    return False
                run = lent.enter_context(self._pool.borrowed())
                calls = self._gather()
            _answer(run, calls)
        return True

    def _wait_for_a_call(self) -> bool:
        """Wait for a call; return False at the end."""
        with self._came:
            self._came.wait_for(lambda: self._calls or self._closed)
            return not self._closed

    def _gather(self) -> list[_Call]:
        """Return the calls of the next batch, once it is full or its first call has waited long enough."""
        with self._came:
            self._has_runner = True
            while self._calls and not self._closed:
                left = self._calls[0].came + self._delay - time.monotonic()
                if left <= 0 or self._is_full():
                    break
                self._came.wait(left)
            calls: list[_Call] = []
            rows = 0
            while self._calls and (not calls or self._joins(calls[0], rows)):
                call = self._calls.popleft()
                if call.answer.set_running_or_notify_cancel():  # False for a caller that waits no longer
                    calls.append(call)
                    rows += call.rows
            self._has_runner = False
            return calls

    def _joins(self, first: _Call, rows: int) -> bool:
        """Return True if the next call has room in a batch of so many rows, and samples of the same shape."""
        following = self._calls[0]
        return rows + following.rows <= self.limit and _sample_shapes(following.batch) == _sample_shapes(first.batch)

    def _is_next(self, call: _Call) -> bool:
        """Return True if a runner is there for a call that still waits, so that it is not late."""
        with self._came:
            rows = 0
            for other in self._calls:
                rows += min(other.rows, self.limit)  # a larger one runs alone
                if other is call:
                    return rows <= self.limit * (self._pool.idle + self._has_runner)
        return False

    def _is_full(self) -> bool:
        """Return True if the waiting calls fill a batch, or the next one does not fit into it."""
        rows = 0
        for call in self._calls:  # as far as needed: thousands may wait
            rows += call.rows
            if rows >= self.limit:
                return True
        return False


def _rows(batch: Any) -> int | None:  # noqa: ANN401 - the same
    """Return the number of images of a batch in the host's memory; None for one elsewhere."""
    arrays = [*batch.values()] if isinstance(batch, dict) else [batch]
    return len(arrays[0]) if all(isinstance(array, np.ndarray) for array in arrays) else None


def _sample_shapes(batch: Any) -> list[tuple[int, ...]]:  # noqa: ANN401 - the same
    """Return the shape of a sample of each input, which dynamic axes make different from call to call."""
    return [array.shape[1:] for array in (batch.values() if isinstance(batch, dict) else [batch])]


def _answer(run: Runner, calls: Sequence[_Call]) -> None:
    """Run calls as one batch, and give each the outputs of its rows. If that fails, run each of them alone."""
    if len(calls) > 1:
        try:
            outputs = _split(run(joined([call.batch for call in calls])), [call.rows for call in calls])
        except Exception as exc:  # noqa: BLE001 - whatever a runner raises; each caller gets the error of its own rows
            log.info("a batch of %d calls failed, and each of them runs alone: %s", len(calls), exc)
        else:
            for call, found in zip(calls, outputs, strict=True):
                call.answer.set_result(found)
            return
    for call in calls:
        _answer_alone(run, call)


def _answer_alone(run: Runner, call: _Call) -> None:
    try:
        found = run(call.batch)
    except BaseException as exc:  # noqa: BLE001 - the caller's thread raises it
        call.answer.set_exception(exc)
    else:
        call.answer.set_result(found)


def _split(outputs: Any, rows: Sequence[int]) -> list[Any]:  # noqa: ANN401 - an array, or arrays by name
    """Return the outputs of each call, as arrays of their own.

    Raises:
        RunError: the outputs have another number of rows than the batch.
    """
    if isinstance(outputs, dict):
        parts = {name: _split(values, rows) for name, values in outputs.items()}
        return [{name: values[number] for name, values in parts.items()} for number in range(len(rows))]
    if len(outputs) != sum(rows):
        raise RunError("the artifact gives another number of rows", expected=str(sum(rows)), got=str(len(outputs)))
    ends = np.cumsum(rows)
    return [np.array(outputs[end - count : end]) for end, count in zip(ends, rows, strict=True)]
