"""Records of the load stage."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from model_artifacts.records import FileRecord, Load, LoadSettings, Milliseconds, Record, Scenario, VariantRecord
from pipeline.records.outcome import Outcome


class LoadRun(Record):
    """One run of LoadGen."""

    scenario: Scenario
    """Pattern of the queries."""
    settings: LoadSettings
    """Settings of the loader."""
    p99_bound_ms: Milliseconds | None = None
    """Bound of the 99th percentile, of a server; None for other scenarios."""
    target_per_s: Annotated[float, Field(ge=0)] | None = None
    """Images per second that were asked for, of a server, or expected, offline; None for other scenarios."""
    valid: bool
    """LoadGen's own verdict."""
    rate_per_s: Annotated[float, Field(ge=0)]
    """Images per second."""
    p99_ms: Milliseconds
    """99th percentile of the latency of a query."""


class LoadReport(VariantRecord):
    """Results of a variant under load: `load.json` beside the artifact."""

    outcome: Outcome
    """Outcome of the stage."""
    reason: str = ""
    """Reason for missing results."""
    retryable: bool = Field(default=False, alias="mendable")
    """True if the variant was skipped, but the next run tries it again, because this host may change."""
    load: Load | None = None
    """The results; None without any."""
    notes: tuple[str, ...] = ()
    """Scenarios, bounds and batch sizes without a result, and why."""
    runs: tuple[LoadRun, ...] = ()
    """All runs, in their order: the search, and the runs that the results are of."""
    summaries: FileRecord | None = None
    """LoadGen's own summaries of these runs."""

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """The summaries, if there are any."""
        return (self.summaries,) if self.summaries else ()
