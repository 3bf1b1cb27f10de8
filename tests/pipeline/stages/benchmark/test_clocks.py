"""The clocks: how often and how long they time, on a GPU with memory in the host."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from model_artifacts.errors import RunError
from model_artifacts.records import BatchRange, Clock
from model_artifacts.sessions.engine import Engine
from pipeline.stages.benchmark import clocks
from pipeline.stages.benchmark.clocks import measured_link, timed, timed_overlapped, timed_pinned
from pipeline.stages.benchmark.messages import Ask
from tests.support.fake_cuda import OK, FakeEngine, FakeRuntime
from tests.support.hosts import H100

RANGE = BatchRange(min=1, opt=4, max=12)
ASK = Ask(batch=2, runs=5, milliseconds=0.0)


@pytest.fixture
def engine(gpu: FakeRuntime) -> Engine:
    """An engine for 1 to 12 images."""
    stand_in: Any = FakeEngine(gpu, RANGE)
    return Engine(stand_in, H100)


def test_calls_are_timed_as_often_and_as_long_as_asked() -> None:
    """A round has at least so many runs, and goes on for at least so long."""
    often = timed(Clock.HOST, Ask(batch=1, runs=3, milliseconds=0.0), lambda: None)
    long = timed(Clock.HOST, Ask(batch=1, runs=1, milliseconds=20.0), lambda: time.sleep(0.001))
    assert len(often.milliseconds) == 3
    assert sum(long.milliseconds) >= 15
    assert len(long.milliseconds) > 1


def test_a_pinned_call_copies_runs_and_waits(gpu: FakeRuntime, engine: Engine) -> None:
    """Each timed call has both copies, and ends when the stream has."""
    with engine.session() as run:
        run.prepare(2)
        before, copies = len(gpu.waits), []
        copy = gpu.cudaMemcpyAsync
        gpu.cudaMemcpyAsync = lambda *args: copies.append(args[2]) or copy(*args)  # type: ignore[method-assign,func-returns-value]
        samples = timed_pinned(ASK, run)
        assert (samples.clock, len(samples.milliseconds)) == (Clock.PINNED, 5)
        assert copies == [2 * 3 * 4 * 4 * 4, 2 * 10 * 4] * 6  # the first call is not timed
        assert len(gpu.waits) - before == 6


@pytest.mark.parametrize("buffers", [2, 3, 4])
def test_overlapped_batches_are_timed_without_filling_and_emptying(engine: Engine, buffers: int) -> None:
    """A sample is a share of several batches; a second request finds the images there, and nothing is left over."""
    images = np.ones((2, 3, 4, 4), np.float32)
    with engine.overlap(buffers) as overlap:
        for _ in range(2):
            samples = timed_overlapped(ASK, overlap, images)
            assert (samples.clock, len(samples.milliseconds)) == (Clock.OVERLAPPED, 5)
            assert len(overlap) == 0
        for _ in range(buffers):
            np.testing.assert_array_equal(overlap.feed()["image"], images)
            overlap.start()
            overlap.result()
        larger = timed_overlapped(Ask(batch=5, runs=1, milliseconds=0.0), overlap, np.ones((5, 3, 4, 4), np.float32))
        assert (overlap.size, len(larger.milliseconds)) == (5, 1)


def test_rates_of_copies_are_medians(gpu: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate is the size of a copy by its median time, in each direction."""
    monkeypatch.setattr(clocks, "_LINK_BYTES", 1000)
    times = [0.2] * 15 + [7.0] * 5 + [0.5] * 11 + [0.1] * 9
    monkeypatch.setattr(gpu, "cudaEventElapsedTime", lambda *_: (OK, times.pop(0)), raising=False)
    link = measured_link(H100)
    assert (link.gpu, link.to_gpu_bytes_per_s, link.to_host_bytes_per_s) == (H100.name, 5e6, 2e6)
    assert link.floor_ms(to_gpu_bytes=10_000, to_host_bytes=1_000) == pytest.approx(2.5)
    assert not times


def test_no_room_for_a_copy_is_an_error(gpu: FakeRuntime) -> None:
    """A GPU whose memory others have taken has no rates, and nothing stays open."""
    gpu.total = 1000
    with pytest.raises(RunError, match="too little free memory"):
        measured_link(H100)
