"""Settings of the load stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from model_artifacts.records import Record, Scenario
from pipeline.config.values import Count, Number, Seconds, with_defaults

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.config.yaml_source import Location

_LONGEST_MS = 60_000
"""A bound or a delay beyond a minute has another unit."""
_MOST_BATCH = 4096
_MOST_CONTEXTS = 128


class LoadConfig(Record):
    """Settings of `doit load`, which searches over contexts × batches × delays."""

    scenarios: Annotated[tuple[Scenario, ...], Field(min_length=1)] = tuple(Scenario)
    """The patterns of queries."""
    p99_ms: Annotated[tuple[Annotated[Number, Field(gt=0, le=_LONGEST_MS)], ...], Field(min_length=1)] = (2.0, 10.0)
    """The bounds of the 99th percentile of a server's latency, in milliseconds."""
    contexts: Annotated[
        tuple[Annotated[int, Field(strict=True, ge=1, le=_MOST_CONTEXTS)], ...], Field(min_length=1)
    ] = (1, 2, 4)
    """Batches that run at once."""
    batches: Annotated[tuple[Annotated[Count, Field(le=_MOST_BATCH)], ...], Field(min_length=1)] | None = None
    """The most images of joined batches. None takes those that an artifact was tuned for."""
    max_delay_ms: Annotated[tuple[Annotated[Number, Field(ge=0, le=_LONGEST_MS)], ...], Field(min_length=1)] = (
        0.0,
        1.0,
    )
    """Times that a call waits for others to join it, in milliseconds."""
    min_duration_seconds: Seconds = 5.0
    """The shortest run. MLPerf itself asks for 600 s."""
    max_duration_seconds: Seconds = 60.0
    """The time after which a run ends with what it has; too few queries are no result."""
    confirmation_seconds: Seconds = 20.0
    """The shortest run that confirms a server's rate, with other arrivals than those of the search."""
    timeout_seconds: Seconds = 7200.0
    """Time limit of one artifact, in seconds."""

    @property
    def run_settings(self) -> LoadConfig:
        """The settings that change the results. All others have their defaults."""
        return with_defaults(self, "timeout_seconds")


def load_problems(load: LoadConfig) -> Iterator[tuple[Location, str]]:
    """Yield the settings that contradict each other, as pairs of location and text."""
    for name, value in (
        ("min_duration_seconds", load.min_duration_seconds),
        ("confirmation_seconds", load.confirmation_seconds),
    ):
        if value > load.max_duration_seconds:
            longer = f"{value:g} is longer than `load.max_duration_seconds`, {load.max_duration_seconds:g}"
            yield ("load", name), f"`load.{name}`: {longer}; shorten it or raise that"
