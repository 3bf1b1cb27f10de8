"""Tables for the terminal: the manifest's artifacts, its milestones, and the artifacts to deploy."""

from __future__ import annotations

from collections import Counter
from itertools import compress
from typing import TYPE_CHECKING

from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from model_artifacts.cli.console import SteadyConsole
from model_artifacts.deployment.choices import latency_of, ties_of, verdict_of
from model_artifacts.records import Status

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from typing import TextIO

    from rich.console import Console

    from model_artifacts.records import Manifest, ManifestEntry, Milestone

    Ties = Mapping[int, frozenset[str]]

_COLOURS = {
    Status.DEPLOYABLE: "green",
    Status.BUILT: "cyan",
    Status.REJECTED: "yellow",
    Status.FAILED: "red",
    Status.SKIPPED: "bright_black",
}
_WIDE = 160
"""Columns of a log file, which has no terminal to ask."""
_UNBOUNDED = 10_000
"""More columns than any table takes."""


def console_for(stream: TextIO) -> Console:
    """Return a console that is as wide as the terminal, or 160 columns where the stream is no terminal."""
    return SteadyConsole(stream, None if stream.isatty() else _WIDE)


def print_manifest(manifest: Manifest, stream: TextIO) -> None:
    """Print a row for each artifact, then each reason once, then the milestones.

    A row has the variant, its size, accuracy, latency and speed-up by batch size, and its status.
    """
    console = console_for(stream)
    batches = sorted({timing.batch for entry in manifest.artifacts for timing in entry.timings})
    notes: dict[str, int] = {}
    ties = {batch: ties_of(manifest.artifacts, batch) for batch in batches}
    if manifest.model:
        model = manifest.model
        console.print(Text(f"\n{model.name}: {model.weights_detail}; images: {model.images}"))
    _print_artifacts(console, manifest, ties, notes)
    if any(entry.smallest_workspace == entry.id for entry in manifest.artifacts):
        console.print(Text("* the smallest workspace within 1 % of the best latency", style="dim"))
    if any(ties.values()):
        console.print(
            Text(
                "≈ not told apart from the fastest that may be deployed on its device: their 95 % intervals overlap",
                style="dim",
            )
        )
    doubts = Counter(doubt.what for entry in manifest.artifacts for doubt in entry.noise)
    if doubts:
        counts = (f"{doubt} ({count} of {len(manifest.artifacts)} artifacts)" for doubt, count in doubts.items())
        console.print(Text(f"a noisy run: {', '.join(counts)}; the report says how much", style="dim"))
    for reason, number in notes.items():
        console.print(Text(f"[{number}] {reason}", style="dim"))
    _print_milestones(console, manifest.milestones)


def print_verdict(manifest: Manifest, stream: TextIO) -> None:
    """Print the artifacts to deploy on each device: for latency, for throughput and for memory."""
    console = console_for(stream)
    verdict = verdict_of(manifest)
    if not verdict:
        console.print(Text("\nto deploy: nothing; no artifact was built, validated and timed"))
    for device, choices in verdict.items():
        console.print(Text(f"\nto deploy on {device}:"))
        for choice in choices:
            artifact = choice.entry.id.split("/", 1)[1] if choice.entry else "none"
            console.print(Text(f"  {choice.goal}: ").append(artifact, style="green" if choice.entry else ""))
            ties = f"; ties with {len(choice.ties)} more" if choice.ties else ""
            console.print(Padding(Text(f"{choice.why}{ties}", style="dim"), (0, 0, 0, 4), expand=False))


def _print_artifacts(console: Console, manifest: Manifest, ties: Ties, notes: dict[str, int]) -> None:
    """Print the table of the artifacts, on a narrow terminal without the columns that matter least."""
    removable = [*(["speed-up"] if ties else []), "rel. L2", *map(_latency_heading, reversed(list(ties)[1:]))]
    unbounded = console.options.update(max_width=_UNBOUNDED)
    hidden: list[str] = []
    table = whole = _artifact_table(manifest, ties, notes, hidden)
    while console.is_terminal and Measurement.get(console, unbounded, table).maximum > console.width:
        if hidden == removable:  # the variants alone are too wide
            table, hidden = whole, []
            break
        hidden = removable[: len(hidden) + 1]
        table = _artifact_table(manifest, ties, notes, hidden)
    console.print(table)
    if hidden:
        console.print(Text(f"columns that a wider terminal shows: {', '.join(hidden)}", style="dim"))


def _artifact_table(manifest: Manifest, ties: Ties, notes: dict[str, int], hidden: Collection[str]) -> Table:
    """Return the table of the artifacts, and add their reasons to the notes.

    Args:
        manifest: The artifacts to show.
        ties: By batch size, the ids of the artifacts that tie with the fastest.
        notes: The number of each reason. New reasons are added.
        hidden: The headings of the columns to leave out.
    """
    headings = ["size", "top-1" if manifest.model and manifest.model.labelled else "agreement", "rel. L2"]
    for batch in ties:
        headings += [_latency_heading(batch), "speed-up"]
    shown = [heading not in hidden for heading in headings]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("variant", no_wrap=True)
    for heading in compress(headings, shown):
        table.add_column(heading, justify="right")
    table.add_column("status")
    skipped = _skipped_targets(manifest.artifacts)
    for entry in manifest.artifacts:
        if entry.target not in skipped:
            cells = (_size(entry), *_accuracy(entry), *_timings(entry, ties))
            table.add_row(entry.id.split("/", 1)[1], *compress(cells, shown), _status(entry, notes))
    for target, entries in skipped.items():
        table.add_row(f"{target}/* ({len(entries)} variants)", *[""] * sum(shown), _status(entries[0], notes))
    return table


def _latency_heading(batch: int) -> str:
    return f"b{batch} p50"


def _status(entry: ManifestEntry, notes: dict[str, int]) -> Text:
    """Return the status with the number of its reason, the precision that was executed, and the workspace's mark."""
    mark = f" [{notes.setdefault(entry.reason, len(notes) + 1)}]" if entry.reason else ""
    if entry.executed and entry.executed is not entry.precision:
        mark += f" ({entry.executed.value})"
    mark += " *" if entry.smallest_workspace == entry.id else ""
    return Text(entry.status.value + mark, style=_COLOURS[entry.status])


def _skipped_targets(entries: Sequence[ManifestEntry]) -> dict[str, list[ManifestEntry]]:
    """Return the targets whose artifacts were all skipped for the same reason, with those artifacts."""
    by_target: dict[str, list[ManifestEntry]] = {}
    for entry in entries:
        by_target.setdefault(entry.target, []).append(entry)
    return {
        target: group
        for target, group in by_target.items()
        if len(group) > 1 and {(entry.status, entry.reason) for entry in group} == {(Status.SKIPPED, group[0].reason)}
    }


def _print_milestones(console: Console, milestones: tuple[Milestone, ...]) -> None:
    """Print the steps from eager FP32 to the best engine, one table for each GPU and batch size."""
    for gpu, batch in dict.fromkeys((row.gpu, row.batch) for row in milestones):
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("", "p50", "with a CUDA graph", "speed-up", "rel. L2"):
            table.add_column(name, justify="right" if name else "left")
        for name in ("status", "artifact"):
            table.add_column(name)
        for row in milestones:
            if (row.gpu, row.batch) == (gpu, batch):
                table.add_row(
                    row.label,
                    _milliseconds(row.p50_ms),
                    _milliseconds(row.graph_ms),
                    f"{row.speedup:.2f}×" if row.speedup else "",
                    "" if row.relative_l2 is None else f"{row.relative_l2:.1e}",
                    Text(row.status.value, style=_COLOURS[row.status]),
                    row.id.split("/", 1)[1] if row.id else "",
                )
        console.print(Text(f"\nfrom eager FP32 to the best engine: {gpu}, batch {batch}"))
        console.print(table)


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.{3 if value < 1 else 2}f} ms"


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


def _timings(entry: ManifestEntry, ties: Ties) -> list[str]:
    cells = []
    for batch, alike in ties.items():
        timing = latency_of(entry, batch)
        mark = "≈ " if entry.id in alike else ""
        cells.append(mark + _milliseconds(timing.p50_ms if timing else None))
        cells.append(f"{timing.speedup:.2f}×" if timing and timing.speedup else "")
    return cells
