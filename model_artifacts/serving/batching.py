"""Micro-batches: rows of several callers run as one batch, and each caller gets the outputs of its own rows.

The gates prove that a row's output does not depend on the other rows (`rows` in the manifest). A batch of another size
may run other kernels, so that the last bits of an output depend on who else called.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from model_artifacts.errors import RunError, UsageError
from model_artifacts.serving.line import Line
from model_artifacts.serving.pool import WAITED, closed
from model_artifacts.serving.runners import run_joined
from model_artifacts.sessions.feeds.batches import each, values_of

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Sequence

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


class _Call:
    """A batch of one caller, who waits for the answer. A lock wakes the caller at less cost than a `Future`."""

    __slots__ = ("_done", "_error", "_outputs", "batch", "came", "rows")

    def __init__(self, batch: Any, rows: int) -> None:  # noqa: ANN401 - an array or arrays by name
        self.batch, self.rows, self.came = batch, rows, time.monotonic()
        self._outputs: Any = None
        self._error: BaseException | None = None
        self._done = threading.Lock()
        self._done.acquire()  # until there is an answer

    def waited(self, seconds: float | None = None) -> bool:
        """Wait for the answer; return False if it did not come in time. True comes once."""
        return self._done.acquire(timeout=-1 if seconds is None else seconds)

    def answer(self, outputs: Any) -> None:  # noqa: ANN401 - as above
        """Wake the caller with the outputs."""
        self._outputs = outputs
        self._done.release()

    def refuse(self, error: BaseException) -> None:
        """Wake the caller with an error."""
        self._error = error
        self._done.release()

    def result(self) -> Any:  # noqa: ANN401 - as above
        """Return the outputs of a call that has its answer, or raise its error."""
        try:
            if self._error is not None:
                raise self._error
            return self._outputs
        finally:
            self._error = None  # its traceback has this frame: a circle, which only a garbage collection would end


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
        self._line: Line[_Call] = Line(pool, self.limit, batching.max_delay_ms, _Calls())

    def __len__(self) -> int:
        """The number of batches that run at once."""
        return len(self._pool)

    @property
    def waiting(self) -> int:
        """The number of calls that wait for their batch to run."""
        return len(self._line)

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
        call = _Call(batch, rows)
        self._line.put((call,), rows)
        try:
            answered = call.waited(self._pool.wait_seconds)
            late = not answered and not self._line.is_next(call, _rows_of) and self._line.withdraw(call, rows)
            if not answered and not late:
                call.waited()  # it runs already, or it only waits for others to join it
        except BaseException:
            self._line.withdraw(call, rows)  # an interrupt of this thread: nobody waits for the rows any more
            raise
        if late:
            raise self._pool.busy()
        return call.result()

    def check_open(self) -> None:
        """Check that calls are taken.

        Raises:
            RunError: the model is closed, or this process is a fork, in which no thread answers.
        """
        self._line.check_open()

    def close(self) -> None:
        """Refuse all calls from now on, those that wait included; wait for the batches that run; close the pool."""
        self._line.close(lambda call: call.refuse(closed(WAITED)))


class _Calls:
    """The joining of calls in a line."""

    def came(self, item: _Call) -> float:
        """Return the moment at which a call came."""
        return item.came

    def take(self, waiting: deque[_Call], limit: int) -> tuple[list[_Call], int]:
        """Remove the next calls whose batches have room in one, and samples of the same shape."""
        calls = [waiting.popleft()]
        rows, shapes = calls[0].rows, _sample_shapes(calls[0].batch)
        while waiting and rows + waiting[0].rows <= limit and _sample_shapes(waiting[0].batch) == shapes:
            calls.append(waiting.popleft())
            rows += calls[-1].rows
        return calls, rows

    def run(self, run: Runner, group: list[_Call]) -> Callable[[], None]:
        """Run calls as one batch; if that fails, each of them alone. Return what gives each its own rows."""
        if len(group) > 1:
            try:
                outputs = _checked(run_joined(run, [call.batch for call in group]), sum(call.rows for call in group))
            except BaseException as exc:  # noqa: BLE001 - whatever a runner raises; each caller gets that of its rows
                log.info("a batch of %d calls failed, and each of them runs alone: %s", len(group), exc)
            else:
                return partial(_share, group, outputs)
        return partial(_tell, [_alone(run, call) for call in group])


def _rows_of(call: _Call) -> int:
    return call.rows


def _rows(batch: Any) -> int | None:  # noqa: ANN401 - the same
    """Return the number of images of a batch in the host's memory; None for one elsewhere."""
    arrays = [*batch.values()] if isinstance(batch, dict) else [batch]
    return len(arrays[0]) if all(isinstance(array, np.ndarray) for array in arrays) else None


def _sample_shapes(batch: Any) -> list[tuple[int, ...]]:  # noqa: ANN401 - the same
    """Return the shape of a sample of each input, which dynamic axes make different from call to call."""
    return [array.shape[1:] for array in (batch.values() if isinstance(batch, dict) else [batch])]


def _alone(run: Runner, call: _Call) -> Callable[[], None]:
    """Run a call by itself, and return what tells its caller."""
    try:
        return partial(call.answer, run(call.batch))
    except BaseException as exc:  # noqa: BLE001 - the caller's thread raises it
        return partial(call.refuse, exc)


def _tell(tells: Sequence[Callable[[], None]]) -> None:
    for tell in tells:
        tell()


def _share(calls: Sequence[_Call], outputs: Any) -> None:  # noqa: ANN401 - an array, or arrays by name
    """Give each call the outputs of its rows, as arrays of its own."""
    end = 0
    for call in calls:
        own = slice(end, end := end + call.rows)
        try:
            found = each(outputs, partial(_rows_in, own))
        except BaseException as exc:  # noqa: BLE001 - no memory: the caller's thread raises it, and would wait for ever
            call.refuse(exc)
        else:
            call.answer(found)


def _rows_in(own: slice, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.array(values[own])


def _checked(outputs: Any, rows: int) -> Any:  # noqa: ANN401 - the same
    """Return the outputs of a joined batch.

    Raises:
        RunError: they have another number of rows than the batch.
    """
    for values in values_of(outputs):
        if len(values) != rows:
            raise RunError("the artifact gives another number of rows", expected=str(rows), got=str(len(values)))
    return outputs
