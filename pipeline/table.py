"""The manifest as a table in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.records import CLOCKS, Status

if TYPE_CHECKING:
    from typing import TextIO

    from pipeline.records import BatchTiming, Manifest, ManifestEntry

_COLOURS = {
    Status.DEPLOYABLE: "green",
    Status.BUILT: "cyan",
    Status.REJECTED: "yellow",
    Status.FAILED: "red",
    Status.SKIPPED: "bright_black",
}
_WIDE = 160
"""Columns for a log file, which has no terminal to ask."""


def print_manifest(manifest: Manifest, stream: TextIO) -> None:
    """Print every artifact: variant, size, accuracy, latency, speed-up, status; then the reasons, each once."""
    console = Console(file=stream, highlight=False, width=None if stream.isatty() else _WIDE)
    batches = sorted({timing.batch for entry in manifest.artifacts for timing in entry.timings})
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("variant", no_wrap=True)
    table.add_column("size", justify="right")
    table.add_column("top-1" if manifest.model and manifest.model.labelled else "agreement", justify="right")
    table.add_column("rel. L2", justify="right")
    for batch in batches:
        table.add_column(f"b{batch} p50", justify="right")
        table.add_column("speed-up", justify="right")
    table.add_column("status")
    notes: dict[str, int] = {}
    for entry in manifest.artifacts:
        mark = ""
        if entry.reason:
            mark = f" [{notes.setdefault(entry.reason, len(notes) + 1)}]"
        if entry.executed and entry.executed is not entry.precision:
            mark += f" ({entry.executed.value})"
        if entry.smallest_workspace == entry.id:
            mark += " *"
        status = Text(entry.status.value + mark, style=_COLOURS[entry.status])
        table.add_row(entry.id.split("/", 1)[1], _size(entry), *_accuracy(entry), *_timings(entry, batches), status)
    if manifest.model:
        model = manifest.model
        console.print(Text(f"\n{model.name}: {model.weights_detail}; images: {model.images}"))
    console.print(table)
    if any(entry.smallest_workspace == entry.id for entry in manifest.artifacts):
        console.print(Text("* the smallest workspace within 1 % of the best latency", style="dim"))
    for reason, number in notes.items():
        console.print(Text(f"[{number}] {reason}", style="dim"))


def _size(entry: ManifestEntry) -> str:
    if entry.file is None:
        return ""
    shared = "=" if entry.equals and not entry.file.path.startswith(f"{entry.id}/") else ""
    return f"{shared}{entry.file.bytes / 1e6:.1f} MB"


def _accuracy(entry: ManifestEntry) -> tuple[str, str]:
    if entry.accuracy is None:
        return "", ""
    shown = entry.accuracy.top1_agreement if entry.accuracy.top1 is None else entry.accuracy.top1
    return f"{shown:.1%}", f"{entry.accuracy.relative_l2:.1e}"


def preferred(entry: ManifestEntry, batch: int) -> BatchTiming | None:
    """Return the timing that a table shows: on a GPU, the CUDA graph's."""
    found = [timing for timing in entry.timings if timing.batch == batch]
    return min(found, key=lambda timing: CLOCKS.index(timing.clock), default=None)


def _timings(entry: ManifestEntry, batches: list[int]) -> list[str]:
    cells = []
    for batch in batches:
        timing = preferred(entry, batch)
        digits = 3 if timing and timing.p50_ms < 1 else 2
        cells.append(f"{timing.p50_ms:.{digits}f} ms" if timing else "")
        cells.append(f"{timing.speedup:.2f}×" if timing and timing.speedup else "")
    return cells
