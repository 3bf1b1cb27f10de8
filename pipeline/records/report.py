"""Record of the report stage."""

from __future__ import annotations

from model_artifacts.records import FileRecord, StageRecord
from pipeline.records.outcome import Outcome


class ReportRecord(StageRecord):
    """Record of the report for people: `report.json` beside `report.html`."""

    outcome: Outcome
    """FAILED if the build exceeds the configuration's bounds for a comparison with a release."""
    reason: str = ""
    """The exceeded bounds; empty if there are none."""
    file: FileRecord
    """The page, `report.html`."""

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """The page."""
        return (self.file,)
