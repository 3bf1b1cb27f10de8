"""Latencies: JSON, and ties between intervals."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_artifacts.records import BatchTiming, Clock, Link, Load, fastest_links
from tests.support.loads import LOAD, WON
from tests.support.records import FINITE, reread

_TIMINGS = st.builds(
    BatchTiming,
    batch=st.integers(1, 10**6),
    clock=st.sampled_from(Clock),
    runs=st.integers(1, 10**6),
    p50_ms=FINITE,
    p90_ms=FINITE,
    p99_ms=FINITE,
    throughput_per_s=FINITE,
    speedup=st.none() | FINITE,
    enqueue_us=st.none() | FINITE,
)


@given(_TIMINGS)
@settings(deadline=None)
def test_timing_is_the_same_after_json(timing: BatchTiming) -> None:
    """No latency loses a digit on disk."""
    assert reread(timing) == timing


def timing(p50: float, low: float | None = None, high: float | None = None) -> BatchTiming:
    """Return a latency with its interval."""
    return BatchTiming(
        batch=1, runs=1, p50_ms=p50, p90_ms=p50, p99_ms=p50, p50_low_ms=low, p50_high_ms=high,
        throughput_per_s=1.0, speedup=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (timing(1.0, 0.9, 1.1), timing(1.2, 1.1, 1.3), True),
        (timing(1.0, 0.9, 1.1), timing(1.2, 1.15, 1.3), False),
        (timing(1.0, 0.9, 1.1), timing(1.05), True),
        (timing(1.0), timing(1.0), True),
        (timing(1.0), timing(1.1), False),
    ],
)
def test_overlapping_intervals_are_ties(one: BatchTiming, other: BatchTiming, *, alike: bool) -> None:
    """Latencies whose intervals overlap are ties, in either order."""
    assert one.ties_with(other) is other.ties_with(one) is alike


@pytest.mark.parametrize(("bound", "kept"), [(None, 2), (2, 2), (9.9, 2), (10, 10), (500, 10), (1.9, None)], ids=str)
def test_server_is_that_of_the_bound(bound: float | None, kept: float | None) -> None:
    """A caller's bound takes the loosest result within it; without one it is the strictest that was kept."""
    found = LOAD.server(bound)
    assert (found.p99_bound_ms if found else None) == kept


def test_load_without_a_server_has_none() -> None:
    """Results of other scenarios keep no bound."""
    only = Load(device="", loadgen="", results=LOAD.results[:1])
    assert only.server() is only.server(10) is None
    assert LOAD.results[1].settings == WON


def link(gpu: str, rate: float) -> Link:
    """Return the rates of a GPU's link, half as fast to the host."""
    return Link(gpu=gpu, to_gpu_bytes_per_s=rate, to_host_bytes_per_s=rate / 2, copied_bytes=100, copies=20)


def test_the_floor_of_copies_is_their_time_one_after_the_other() -> None:
    """30 bytes at 10 a second and 5 at 5 a second take 4 seconds."""
    assert link("a", 10).floor_ms(to_gpu_bytes=30, to_host_bytes=5) == pytest.approx(4000)


def test_each_gpu_has_its_fastest_rates() -> None:
    """They are sorted by the name of the GPU."""
    assert fastest_links([link("b", 3), link("a", 1), link("a", 2), link("b", 1)]) == (link("a", 2), link("b", 3))
    assert fastest_links([]) == ()


@pytest.mark.parametrize("clock", Clock)
def test_a_clock_of_several_batches_is_no_latency(clock: Clock) -> None:
    """Each clock says whether it is one, and which clock of eager FP32 it is compared with."""
    assert clock.is_latency is (clock not in {Clock.STREAMS, Clock.OVERLAPPED})
    assert clock.of_eager.is_latency
    assert clock.of_eager.counts_copies is clock.counts_copies
