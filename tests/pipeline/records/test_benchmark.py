"""The files of a benchmark's record."""

from __future__ import annotations

import pytest

from pipeline.records import BenchmarkReport, Outcome
from tests.support.records import KEY, NOW, file_record


@pytest.mark.parametrize(
    ("samples", "cache", "paths"),
    [(None, None, []), ("s", None, ["s"]), ("s", "c", ["s", "c"]), (None, "c", ["c"])],
)
def test_benchmark_report_vouches_for_samples_and_kernels(
    samples: str | None, cache: str | None, paths: list[str]
) -> None:
    """The raw latencies and the compiled kernels, where there are any."""
    report = BenchmarkReport(
        key=KEY,
        built_at=NOW,
        variant_id="m/t/v",
        outcome=Outcome.DONE,
        samples=file_record(samples) if samples else None,
        runtime_cache=file_record(cache) if cache else None,
    )
    assert [file.path for file in report.files] == paths
