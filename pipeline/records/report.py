"""Records: the frozen, validated types that cross modules and that JSON files hold.

A record refuses unknown fields, is checked once when it is made, and round-trips through JSON. Units are in the names.
"""

from __future__ import annotations

from model_artifacts.records import FileRecord, StageRecord
from pipeline.records.outcome import Outcome


class ReportRecord(StageRecord):
    """The report for people: `artifacts/report.json` beside `report.html`."""

    outcome: Outcome
    """FAILED where the build breaks a bound that the configuration sets against a released one."""
    reason: str = ""
    file: FileRecord

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """The page."""
        return (self.file,)
