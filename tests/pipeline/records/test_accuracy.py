"""The verdict of an accuracy report."""

from __future__ import annotations

import pytest

from model_artifacts.records import GateCheck
from pipeline.records import AccuracyReport, Outcome
from tests.support.records import KEY, NOW


@pytest.mark.parametrize(
    ("outcome", "checks", "passed"),
    [
        (Outcome.DONE, [True, True], True),
        (Outcome.DONE, [True, False], False),
        (Outcome.FAILED, [True], False),
        (Outcome.SKIPPED, [], False),
    ],
)
def test_report_passes_when_done_and_every_check_passed(outcome: Outcome, checks: list[bool], *, passed: bool) -> None:
    """Failed and skipped reports, and reports with a failed check, do not pass."""
    report = AccuracyReport(
        key=KEY,
        built_at=NOW,
        variant_id="m/t/v",
        outcome=outcome,
        checks=tuple(GateCheck(metric="x", bound="1", value="1", passed=check) for check in checks),
    )
    assert report.passed is passed
