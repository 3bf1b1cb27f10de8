"""The results of an artifact under load as a table in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from model_artifacts.cli.tables import console_for
from pipeline.stages.common.tables import without_empty_columns

if TYPE_CHECKING:
    from typing import TextIO

    from model_artifacts.records import LoadResult
    from pipeline.records import LoadReport


def print_load(report: LoadReport, stream: TextIO) -> None:
    """Print the results of an artifact under load, with the settings that won."""
    console = console_for(stream)
    if report.load is None:
        return
    runs = f"{len(report.runs)} runs of LoadGen {report.load.loadgen}"
    console.print(Text(f"{report.variant_id} under load on {report.load.device}, {runs}"))
    if report.load.results:
        headings = ("images/s", "p50 ms", "p99 ms", "contexts", "batch", "delay ms")
        rows = [(*_numbers(item), _name(item)) for item in report.load.results]
        console.print(without_empty_columns(headings, ("scenario",), rows))
    for note in report.notes:
        console.print(Text(f"no result: {note}", style="dim"))


def _numbers(item: LoadResult) -> tuple[str, ...]:
    settings = item.settings
    times = (f"{item.p50_ms:.4g}", f"{item.p99_ms:.4g}")
    return f"{item.rate_per_s:,.1f}", *times, str(settings.contexts), str(settings.batch), f"{settings.max_delay_ms:g}"


def _name(item: LoadResult) -> str:
    bound = f", p99 ≤ {item.p99_bound_ms:g} ms" if item.p99_bound_ms is not None else ""
    return f"{item.scenario.value}{bound}"
