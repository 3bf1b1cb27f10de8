"""A CUDA whose streams run their work as late as they may, and in any order that events allow.

What only works because copies and kernels happen to be fast gives wrong results here.
"""
# ruff: noqa: N802 - the methods are CUDA's functions

from __future__ import annotations

from collections import Counter, deque
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.support.fake_cuda import OK, FakeRuntime

if TYPE_CHECKING:
    from collections.abc import Callable


class Step(NamedTuple):
    """Work on a stream, or the mark of an event, or a wait for one."""

    work: Callable[[], None] | None = None
    marks: int = 0
    waits: tuple[int, int] = (0, 0)
    """An event and its mark's number; 0 waits for nothing."""


class LazyRuntime(FakeRuntime):
    """Runs steps only when the host waits, in an order drawn by a seed."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = Random(seed)  # noqa: S311 - no secret
        self._queues: dict[int, deque[Step]] = {}
        self._recorded: Counter[int] = Counter()
        self._passed: Counter[int] = Counter()

    def do(self, work: Callable[[], None], stream: int = 0) -> None:
        """Put work on a stream, or record it for a graph."""
        if int(stream) in self._recorded_on:
            self._recorded_on[int(stream)].append(work)
        else:
            self._queue(stream).append(Step(work))

    def _queue(self, stream: int) -> deque[Step]:
        return self._queues.setdefault(int(stream), deque())

    def cudaGraphLaunch(self, executable: int, stream: int) -> tuple[Any]:
        """Replay later."""
        for work in self._graphs[executable]:
            self._queue(stream).append(Step(work))
        return (OK,)

    def cudaEventRecord(self, event: int, stream: int) -> tuple[Any]:
        """Mark the moment after the stream's present work."""
        self._recorded[event] += 1
        self._queue(stream).append(Step(marks=event))
        return (OK,)

    def cudaStreamWaitEvent(self, *arguments: Any) -> tuple[Any]:
        """Wait for the event's last mark; without one there is nothing to wait for."""
        stream, event, _ = arguments
        self._queue(stream).append(Step(waits=(event, self._recorded[event])))
        return (OK,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any]:
        """Run until the stream is empty."""
        while self._queue(stream):
            self._advance()
        return (OK,)

    def cudaEventSynchronize(self, event: int) -> tuple[Any]:
        """Run until the event's last mark has passed."""
        while self._passed[event] < self._recorded[event]:
            self._advance()
        return (OK,)

    def _advance(self) -> None:
        """Run the next step of any stream that may go on."""
        able = [queue for queue in self._queues.values() if queue and self._may(queue[0])]
        step = self._random.choice(able).popleft()
        if step.work is not None:
            step.work()
        self._passed[step.marks] += bool(step.marks)

    def _may(self, step: Step) -> bool:
        event, number = step.waits
        return not event or self._passed[event] >= number
