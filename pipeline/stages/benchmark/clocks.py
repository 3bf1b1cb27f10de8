"""The clocks: an open session × a request → samples by one clock, and the rates of copies to and from a GPU."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import numpy as np

from model_artifacts.records import Clock, Link
from pipeline.stages.benchmark.messages import Samples

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from model_artifacts.host import cuda
    from model_artifacts.records import Gpu
    from model_artifacts.sessions.engine import Session
    from model_artifacts.sessions.module import ModuleSession
    from model_artifacts.sessions.overlap.lanes import Overlap
    from pipeline.stages.benchmark.messages import Ask

_DEPTH = 8
"""The number of batches queued on each stream, so that none runs dry; and of overlapped batches for each sample."""
_LINK_BYTES = 2**26
"""The size of a copy whose rate is measured: one of 64 MiB takes a millisecond, and its launch some microseconds."""
_LINK_COPIES = 20
"""Timed copies in each direction, after as many that are not."""


def timed(clock: Clock, ask: Ask, call: Callable[[], object]) -> Samples:
    """Time calls by the host's clock."""
    latencies: list[float] = []
    began = time.perf_counter()
    while _goes_on(ask, latencies, began):
        start = time.perf_counter()
        call()
        latencies.append((time.perf_counter() - start) * 1e3)
    return Samples(clock, tuple(latencies))


def timed_pinned(ask: Ask, session: Session | ModuleSession) -> Samples:
    """Time the prepared batch from pinned memory to pinned memory by the host's clock, one batch at a time."""

    def run() -> None:
        session.enqueue_with_copies()
        session.stream.synchronize()

    run()
    return timed(Clock.PINNED, ask, run)


def timed_overlapped(ask: Ask, overlap: Overlap, images: Any) -> Samples:  # noqa: ANN401 - an array, or several by name
    """Keep all buffers busy, and time a batch: the time from one result to a later one, by the batches in between.

    The time in which the buffers fill is not in it, nor that in which the last of them empty.
    """
    begin = overlap.start if overlap.size == ask.batch else lambda: overlap.put(images)  # or they are there already
    while not overlap.full:
        begin()

    def batches() -> None:
        for _ in range(_DEPTH):
            overlap.result()
            overlap.start()

    batches()
    latencies: list[float] = []
    began = time.perf_counter()
    while _goes_on(ask, latencies, began):
        start = time.perf_counter()
        batches()
        latencies.append((time.perf_counter() - start) * 1e3 / _DEPTH)
    while len(overlap):
        overlap.result()
    return Samples(Clock.OVERLAPPED, tuple(latencies))


def timed_on_gpu(clock: Clock, ask: Ask, session: Session | ModuleSession, enqueue: Callable[[], object]) -> Samples:
    """Time the work between two events on the stream, one batch at a time, and the host's time to enqueue it.

    An untimed batch precedes each timed one, as in trtexec. So the GPU is busy while the host enqueues the timed batch,
    and does not wait for the host between the events. The host's time is reported separately.
    """
    from model_artifacts.host import cuda  # noqa: PLC0415 - only where there is a GPU

    enqueue()
    session.stream.synchronize()
    start, end = cuda.Event(), cuda.Event()
    latencies: list[float] = []
    enqueues: list[float] = []
    began = time.perf_counter()
    while _goes_on(ask, latencies, began):
        enqueue()
        start.record(session.stream)
        before = time.perf_counter()
        enqueue()
        after = time.perf_counter()
        end.record(session.stream)
        end.synchronize()
        latencies.append(end.milliseconds_since(start))
        enqueues.append((after - before) * 1e6)
    start.close()
    end.close()
    return Samples(clock, tuple(latencies), tuple(enqueues))


def timed_on_streams(ask: Ask, sessions: Sequence[Session]) -> Samples:
    """Keep all sessions' streams filled, and time a batch: the total time divided by the number of batches."""
    latencies: list[float] = []
    began = time.perf_counter()
    while _goes_on(ask, latencies, began):
        start = time.perf_counter()
        for _ in range(_DEPTH):
            for session in sessions:
                session.enqueue()
        for session in sessions:
            session.stream.synchronize()
        latencies.append((time.perf_counter() - start) * 1e3 / (_DEPTH * len(sessions)))
    return Samples(Clock.STREAMS, tuple(latencies))


def _goes_on(ask: Ask, latencies: Sequence[float], began: float) -> bool:
    """Return true until there are as many samples as asked for, and they have taken as long."""
    return len(latencies) < ask.runs or (time.perf_counter() - began) * 1e3 < ask.milliseconds


def measured_link(gpu: Gpu) -> Link:
    """Return the rates of copies between pinned memory and a GPU: the medians of large copies, between two events.

    Raises:
        RunError: the GPU or the host has no room, or a copy failed.
    """
    from model_artifacts.host import cuda  # noqa: PLC0415 - only where there is a GPU

    cuda.use(gpu)
    with ExitStack() as stack:
        stream = stack.enter_context(closing(cuda.Stream()))
        shape, dtype = (_LINK_BYTES,), np.dtype(np.uint8)
        there = stack.enter_context(closing(cuda.Memory(_LINK_BYTES))).array(shape, dtype)
        here = stack.enter_context(closing(cuda.PinnedMemory(_LINK_BYTES))).array(shape, dtype)
        events = (stack.enter_context(closing(cuda.Event())), stack.enter_context(closing(cuda.Event())))
        to_gpu = _rate(stream, events, lambda: cuda.copy_to_gpu(there, here, stream))
        to_host = _rate(stream, events, lambda: cuda.copy_to_host(here, there, stream))
    return Link(
        gpu=gpu.name,
        to_gpu_bytes_per_s=to_gpu,
        to_host_bytes_per_s=to_host,
        copied_bytes=_LINK_BYTES,
        copies=_LINK_COPIES,
    )


def _rate(stream: cuda.Stream, events: tuple[cuda.Event, cuda.Event], copy: Callable[[], None]) -> float:
    """Return the median rate of a copy in bytes a second."""
    start, end = events
    taken: list[float] = []
    for number in range(2 * _LINK_COPIES):
        start.record(stream)
        copy()
        end.record(stream)
        end.synchronize()
        if number >= _LINK_COPIES:  # a clock that sleeps needs some copies to wake up
            taken.append(end.milliseconds_since(start))
    return round(_LINK_BYTES / float(np.median(taken)) * 1e3)
