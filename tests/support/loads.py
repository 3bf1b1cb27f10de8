"""Results under load, with made-up numbers."""

from __future__ import annotations

from model_artifacts.records import Load, LoadResult, LoadSettings, Scenario

WON = LoadSettings(contexts=3, batch=4, max_delay_ms=0.5)


def result(bound: float | None, settings: LoadSettings = WON, rate: float = 1234.5) -> LoadResult:
    """Return the result of a server within a bound; None makes it one of a single stream."""
    return LoadResult(
        scenario=Scenario.SINGLE_STREAM if bound is None else Scenario.SERVER,
        p99_bound_ms=bound,
        settings=settings,
        samples_per_query=1,
        queries=5000,
        rate_per_s=rate,
        p50_ms=0.5,
        p90_ms=0.75,
        p99_ms=1.0,
    )


LOAD = Load(
    device="a GPU, driver 580",
    loadgen="6.0.17",
    results=(
        result(None, LoadSettings(contexts=1, batch=1, max_delay_ms=0)),
        result(2),
        result(10, LoadSettings(contexts=2, batch=8, max_delay_ms=1), 4321),
    ),
)
"""A single stream, and a server within 2 and 10 ms."""
