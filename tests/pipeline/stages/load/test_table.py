"""The table of results under load."""

from __future__ import annotations

import io

from pipeline.records import LoadReport, Outcome
from pipeline.stages.load.table import print_load
from tests.support.loads import LOAD
from tests.support.records import KEY, NOW


def test_results_have_the_settings_that_won() -> None:
    """Each scenario has a row with its rate, its latencies and its settings; what has no result has a reason."""
    notes = ("offline: it was too short",)
    report = LoadReport(key=KEY, built_at=NOW, variant_id="m/t/v", outcome=Outcome.DONE, load=LOAD, notes=notes)
    stream = io.StringIO()
    print_load(report, stream)
    title, headings, *rows, note = stream.getvalue().splitlines()
    assert title == "m/t/v under load on a GPU, driver 580, 0 runs of LoadGen 6.0.17"
    assert headings.split() == ["images/s", "p50", "ms", "p99", "ms", "contexts", "batch", "delay", "ms", "scenario"]
    assert [row.split() for row in rows] == [
        ["1,234.5", "0.5", "1", "1", "1", "0", "single_stream"],
        ["1,234.5", "0.5", "1", "3", "4", "0.5", "server,", "p99", "≤", "2", "ms"],
        ["4,321.0", "0.5", "1", "2", "8", "1", "server,", "p99", "≤", "10", "ms"],
    ]
    assert note == "no result: offline: it was too short"


def test_report_without_results_prints_nothing() -> None:
    """A skip has its reason elsewhere."""
    stream = io.StringIO()
    print_load(LoadReport(key=KEY, built_at=NOW, variant_id="m/t/v", outcome=Outcome.SKIPPED), stream)
    assert stream.getvalue() == ""
