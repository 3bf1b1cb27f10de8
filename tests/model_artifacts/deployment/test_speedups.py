"""Speed-ups over eager FP32."""

from __future__ import annotations

import pytest

from model_artifacts.deployment.choices import choices_of, timing_of
from model_artifacts.deployment.speedups import Speedup, speedup_of
from model_artifacts.records import Backend, BatchTiming, Clock, ManifestEntry, Milestone, Precision, Status
from tests.support.manifests import entry, timing


def _eager(*timings: BatchTiming, **changes: object) -> ManifestEntry:
    return entry("eager-fp32", *timings, backend=Backend.EAGER, precision=Precision.FP32, **changes)


def _faster(p50: float, spread: float, factor: float, clock: Clock = Clock.HOST) -> BatchTiming:
    return timing(1, p50, spread, clock).model_copy(update={"speedup": factor})


def test_a_clear_winner_has_the_factor_of_the_medians() -> None:
    """Two decimals, where nothing ties."""
    eager, fast = _eager(timing(1, 10.0)), _faster(2.0, 0.01, 5.0)
    found = speedup_of(entry("fast"), fast, [eager])
    assert found == Speedup(5.0)
    assert (found.short, found.phrase) == ("5.00×", "5.00× eager FP32")


@pytest.mark.parametrize(
    ("spread", "factor", "least"), [(0.0, 5.0, 5.0), (0.25, 5.0, 4.0), (0.1, 12.9, 11.0), (0.0, 9.99, 9.9)]
)
def test_a_tie_has_the_least_factor_that_the_intervals_allow(spread: float, factor: float, least: float) -> None:
    """It is rounded down, so that it is never claimed too much."""
    eager = _eager(timing(1, 2.0 * factor, 0.0))
    found = speedup_of(entry("fast"), _faster(2.0, spread, factor), [eager], tied=True)
    assert found == Speedup(least, at_least=True)


def test_the_interval_of_eager_counts_as_well() -> None:
    """The least factor is of the fastest eager FP32 and the slowest artifact."""
    found = speedup_of(entry("fast"), _faster(2.0, 0.0, 5.0), [_eager(timing(1, 10.0, 0.2))], tied=True)
    assert found == Speedup(4.0, at_least=True)
    assert (found.short, found.phrase) == ("≥4.0×", "at least 4.0× eager FP32")


def test_an_overlap_with_eager_is_no_speedup() -> None:
    """Whatever the medians say."""
    found = speedup_of(entry("fast"), _faster(2.0, 0.5, 5.0), [_eager(timing(1, 10.0, 0.8))])
    assert found == Speedup(None)
    assert (found.short, found.phrase) == ("", "not told apart from eager FP32")


def test_a_graph_is_compared_with_eager_without_a_graph() -> None:
    """Eager FP32 on another device, at another batch or by another clock says nothing."""
    graph = _faster(2.0, 0.5, 5.0, Clock.GPU_GRAPH)
    others = [
        _eager(timing(1, 2.0, 0.5, Clock.GPU_GRAPH), timing(8, 2.0, 0.5, Clock.GPU)),
        _eager(timing(1, 2.0, 0.5, Clock.GPU), device="another"),
    ]
    assert speedup_of(entry("fast"), graph, others) == Speedup(5.0)
    assert speedup_of(entry("fast"), graph, [*others, _eager(timing(1, 2.5, 0.1, Clock.GPU))]) == Speedup(None)


def test_without_a_baseline_there_is_none() -> None:
    """A timing without a factor has no speed-up, and eager FP32 is itself."""
    plain = timing(1, 1.0).model_copy(update={"speedup": None})
    assert speedup_of(entry("fast"), plain, []) is None
    assert speedup_of(_eager(), _faster(1.0, 0.1, 1.0), []) == Speedup(1.0)


def test_the_choice_claims_no_more_than_the_intervals() -> None:
    """A choice among ties has the least factor, also where eager FP32 may not be deployed."""
    eager = _eager(timing(1, 10.0, 0.0), status=Status.REJECTED)
    first, second = entry("a", _faster(2.0, 0.25, 5.0)), entry("b", _faster(2.1, 0.25, 4.76))
    assert choices_of([eager, first, second])[0].why.endswith(", at least 4.0× eager FP32")
    near = eager.model_copy(update={"timings": (timing(1, 2.2, 0.2),)})
    assert choices_of([near, first])[0].why.endswith(", not told apart from eager FP32")


def test_a_milestone_belongs_to_the_timing_that_it_shows() -> None:
    """The faster of its two latencies; nothing without an artifact."""
    graph, launched = timing(1, 0.2, clock=Clock.GPU_GRAPH), timing(1, 0.3, clock=Clock.GPU)
    fast = entry("fast", launched, graph, timing(8, 0.1, clock=Clock.GPU))
    row = Milestone(
        gpu="a GPU", batch=1, label="x", id=fast.id, status=Status.DEPLOYABLE, p50_ms=0.3, graph_ms=0.2, speedup=2.0,
        relative_l2=None,
    )  # fmt: skip
    assert timing_of(row, [fast]) == (graph, fast)
    assert timing_of(row.model_copy(update={"graph_ms": None}), [fast]) == (launched, fast)
    assert timing_of(row.model_copy(update={"id": None}), [fast]) == (None, None)
