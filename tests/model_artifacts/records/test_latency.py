"""Latencies: JSON, and ties between intervals."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_artifacts.records import BatchTiming, Clock, Load
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
