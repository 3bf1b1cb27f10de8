"""Tables for the terminal: the manifest's artifacts, the reasons of those that may not be deployed, its milestones."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from itertools import compress
from typing import TYPE_CHECKING

from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from model_artifacts.cli.console import SteadyConsole
from model_artifacts.deployment.choices import compares, is_by_another_clock, latency_of, speedup_of, ties_of, timing_of
from model_artifacts.host.terminal import COLUMNS_VARIABLE, size_phrase
from model_artifacts.records import Status, Task

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
ORDER = (Status.FAILED, Status.REJECTED, Status.BUILT, Status.SKIPPED, Status.DEPLOYABLE)
"""The statuses that need attention come first."""
_WIDE = 160
"""Columns of a log file, which has no terminal to ask."""
_ON_FEWER = "† "
"""The mark of an accuracy that does not compare with the others of its column."""
_BY_ANOTHER_CLOCK = "‡ "
"""The mark of a latency that does not compare with the others of its device."""
_NAME_WIDTH = 32
"""Columns of a variant's name in a terminal of 80 that its whole name leaves no room for."""
_UNBOUNDED = 10_000
"""More columns than any table takes."""


def console_for(stream: TextIO) -> Console:
    """Return a console that is as wide as the terminal that shows it, or 160 columns where there is none."""
    told = os.environ.get(COLUMNS_VARIABLE, "")
    return SteadyConsole(stream, None if stream.isatty() else int(told) if told.isdecimal() else _WIDE)


def print_table(manifest: Manifest, stream: TextIO) -> None:
    """Print a row for each artifact, then each reason once, then the milestones.

    A row has the variant, its size, accuracy, latency and speed-up by batch size, and its status.
    """
    console = console_for(stream)
    batches = sorted({timing.batch for entry in manifest.artifacts for timing in entry.timings})
    notes: dict[str, int] = {}
    ties = {batch: ties_of(manifest.artifacts, batch) for batch in batches}
    _print_artifacts(console, manifest, ties, notes)
    if any(entry.smallest_workspace == entry.id for entry in manifest.artifacts):
        console.print(Text("* the smallest workspace within 1 % of the best latency", style="dim"))
    if any(ties.values()):
        console.print(
            Text(
                "≈ not told apart from the fastest that may be deployed on its device: their 95 % intervals overlap\n"
                "≥ the least speed-up over eager FP32 that the intervals allow; empty: not told apart from eager FP32",
                style="dim",
            )
        )
    clocks = _other_clocks(manifest)
    if clocks:
        said = " or ".join(clocks)
        console.print(
            Text(f"{_BY_ANOTHER_CLOCK.strip()} measured {said}, so not comparable with the others", style="dim")
        )
    if any(entry.accuracy and not compares(entry, manifest.artifacts) for entry in manifest.artifacts):
        console.print(
            Text(f"{_ON_FEWER.strip()} judged on fewer images than the others, so not comparable", style="dim")
        )
    doubts = Counter(doubt.what for entry in manifest.artifacts for doubt in entry.noise)
    if doubts:
        counts = (f"{doubt} ({count} of {len(manifest.artifacts)} artifacts)" for doubt, count in doubts.items())
        console.print(Text(f"a noisy run: {', '.join(counts)}; the report says how much", style="dim"))
    _print_reasons(console, manifest, notes)
    _print_milestones(console, manifest)


def _other_clocks(manifest: Manifest) -> list[str]:
    """Return the phrases of the clocks of latencies that do not compare with the others of their device."""
    found = (
        timing.clock.phrase
        for entry in manifest.artifacts
        for batch in sorted({timing.batch for timing in entry.timings})
        if (timing := latency_of(entry, batch)) and is_by_another_clock(entry, timing, manifest.artifacts)
    )
    return list(dict.fromkeys(found))


def _print_reasons(console: Console, manifest: Manifest, notes: Mapping[str, int]) -> None:
    """Print each reason once, with the number of its artifacts: those that failed first, those that were skipped last.

    Args:
        console: The place to print.
        manifest: The artifacts.
        notes: The number of each reason, as the table's rows give it.
    """
    counts = Counter((entry.status, entry.reason) for entry in manifest.artifacts if entry.reason)
    for status, reason in sorted(counts, key=lambda key: (ORDER.index(key[0]), notes[key[1]])):
        said = reason.removeprefix(f"{status.value}, ")
        console.print(Text(f"[{notes[reason]}] {counts[status, reason]} {status.value}: {said}", style="dim"))


def _print_artifacts(console: Console, manifest: Manifest, ties: Ties, notes: dict[str, int]) -> None:
    """Print the table of the artifacts.

    A terminal that is too narrow for it gets the variants below their target, and then no columns of lesser matter.
    Where long names alone are too wide for that, they take several lines.
    """
    latencies = [*map(_latency_heading, reversed(list(ties)[1:]))]
    removable = [*(["speed-up"] if ties else []), "rel. L2", *latencies, "size"]
    whole = _artifact_table(manifest, ties, notes, [])
    grouped = (
        (_artifact_table(manifest, ties, notes, removable[:count], width), removable[:count])
        for width in (_UNBOUNDED, _NAME_WIDTH)
        for count in range(len(removable) + 1)
    )
    candidates = itertools.chain([(whole, [])], grouped)
    table, hidden = next((item for item in candidates if _fits(console, item[0])), (whole, []))
    console.print(table)
    _print_hidden(console, hidden)


def _fits(console: Console, table: Table) -> bool:
    """Return True if no row of a table needs a second line, or if the console is no terminal, which has room."""
    unbounded = console.options.update(max_width=_UNBOUNDED)
    return not console.is_terminal or Measurement.get(console, unbounded, table).maximum <= console.width


def _print_hidden(console: Console, hidden: Sequence[str]) -> None:
    if hidden:
        console.print(Text(f"columns that a wider terminal shows: {', '.join(hidden)}", style="dim"))


def _artifact_table(
    manifest: Manifest, ties: Ties, notes: dict[str, int], hidden: Collection[str], name_width: int | None = None
) -> Table:
    """Return the table of the artifacts, and add their reasons to the notes.

    Args:
        manifest: The artifacts to show.
        ties: By batch size, the ids of the artifacts that tie with the fastest.
        notes: The number of each reason. New reasons are added.
        hidden: The headings of the columns to leave out.
        name_width: The most columns of a variant's name, which stands below that of its target. A longer name takes
            several lines. None puts the target in front of each name.
    """
    headings = ["size", _accuracy_heading(manifest), "rel. L2"]
    for batch in ties:
        headings += [_latency_heading(batch), "speed-up"]
    shown = [heading not in hidden for heading in headings]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("variant", no_wrap=True)
    for heading in compress(headings, shown):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    skipped = _skipped_targets(manifest.artifacts)
    entries = [entry for entry in manifest.artifacts if entry.target not in skipped]
    for entry, above in zip(entries, [None, *entries], strict=False):
        if name_width and (above is None or above.target != entry.target):
            table.add_row(Text(entry.target, style="bold"))
        cells = (_size(entry), *_accuracy(entry, manifest), *_timings(entry, ties, manifest.artifacts))
        name = entry.id.split("/", 1)[1]
        name = _in_lines(f"  {name.removeprefix(f'{entry.target}/')}", name_width) if name_width else name
        table.add_row(Text(name), *compress(cells, shown), _status(entry, notes))
    for target, group in skipped.items():
        table.add_row(f"{target}/* ({len(group)} variants)", *[""] * sum(shown), _status(group[0], notes))
    return table


def _in_lines(name: str, width: int) -> str:
    """Return a name in lines of at most this width, each but the first one indented, which end behind a `-`."""
    lines = [""]
    for part in re.findall(r"[^-]*-|[^-]+", name):
        if len(lines[-1]) + len(part) > width and lines[-1].strip():
            lines.append("    ")
        lines[-1] += part
    return "\n".join(lines)


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


def _print_milestones(console: Console, manifest: Manifest) -> None:
    """Print the steps from eager FP32 to the best engine, one table for each GPU and batch size."""
    removable = ["rel. L2", "status", "p50"]
    for gpu, batch in dict.fromkeys((row.gpu, row.batch) for row in manifest.milestones):
        rows = [row for row in manifest.milestones if (row.gpu, row.batch) == (gpu, batch)]
        hidden: list[str] = []
        table = _milestone_table(manifest, rows, hidden)
        while not _fits(console, table) and hidden != removable:
            hidden = removable[: len(hidden) + 1]
            table = _milestone_table(manifest, rows, hidden)
        console.print(Text(f"\nfrom eager FP32 to the best engine: {gpu}, batch {batch}"))
        console.print(table)
        _print_hidden(console, hidden)


def _milestone_table(manifest: Manifest, rows: Sequence[Milestone], hidden: Collection[str]) -> Table:
    headings = ["p50", "with a CUDA graph", "speed-up", "rel. L2", "status"]
    shown = [heading not in hidden for heading in headings]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for heading in compress(headings, shown):
        table.add_column(heading, justify="left" if heading == "status" else "right", no_wrap=True)
    table.add_column("artifact")
    for row in rows:
        cells: tuple[str | Text, ...] = (
            _milliseconds(row.p50_ms),
            _milliseconds(row.graph_ms),
            _speedup(row, manifest),
            _distance(row, manifest),
            Text(row.status.value, style=_COLOURS[row.status]),
        )
        table.add_row(row.label, *compress(cells, shown), row.id.split("/", 1)[1] if row.id else "")
    return table


def _distance(row: Milestone, manifest: Manifest) -> str:
    """Return a milestone's distance to the reference; empty if it was measured on fewer images than others."""
    _, entry = timing_of(row, manifest.artifacts)
    if row.relative_l2 is None or (entry and not compares(entry, manifest.artifacts)):
        return ""
    return f"{row.relative_l2:.1e}"


def _speedup(row: Milestone, manifest: Manifest) -> str:
    """Return a milestone's speed-up; empty if its artifact is not told apart from eager FP32."""
    timing, entry = timing_of(row, manifest.artifacts)
    found = speedup_of(entry, timing, manifest.artifacts) if entry and timing else None
    return "" if row.speedup is None or (found and found.factor is None) else f"{row.speedup:.2f}×"


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.{3 if value < 1 else 2}f} ms"


def _size(entry: ManifestEntry) -> str:
    if entry.file is None:
        return ""
    if entry.file.path.endswith(".json"):
        return "recipe"  # a few kilobytes, and no engine that its size would say anything of
    shared = "=" if entry.equals and not entry.file.path.startswith(f"{entry.id}/") else ""
    return f"{shared}{size_phrase(entry.file.bytes)}"


def _accuracy(entry: ManifestEntry, manifest: Manifest) -> tuple[str, str]:
    """Return the accuracy that its column is headed by, and the distance.

    For one on fewer images than others it is their number alone.
    """
    if entry.accuracy is None:
        return "", ""
    if not compares(entry, manifest.artifacts):
        return f"{_ON_FEWER}of {entry.accuracy.samples}", ""
    if entry.accuracy.scores:
        return entry.accuracy.scores[0].text, f"{entry.accuracy.relative_l2:.1e}"
    if _has_no_classes(manifest):
        return f"{entry.accuracy.cosine:.4f}", f"{entry.accuracy.relative_l2:.1e}"
    shown = entry.accuracy.top1 if _has_labels(manifest) else entry.accuracy.top1_agreement
    return "" if shown is None else f"{shown:.1%}", f"{entry.accuracy.relative_l2:.1e}"


def _accuracy_heading(manifest: Manifest) -> str:
    scores = (entry.accuracy.scores for entry in manifest.artifacts if entry.accuracy)
    if first := next((found[0].metric for found in scores if found), None):
        return first
    if _has_no_classes(manifest):
        return "cosine"
    return "top-1" if _has_labels(manifest) else "agreement"


def _has_no_classes(manifest: Manifest) -> bool:
    return manifest.model is not None and manifest.model.task is not Task.CLASSIFICATION


def _has_labels(manifest: Manifest) -> bool:
    return manifest.model is not None and manifest.model.labelled


def _timings(entry: ManifestEntry, ties: Ties, entries: Sequence[ManifestEntry]) -> list[str]:
    cells = []
    for batch, alike in ties.items():
        timing = latency_of(entry, batch)
        tied = entry.id in alike
        speedup = speedup_of(entry, timing, entries, tied=tied) if timing else None
        mark = "≈ " if tied else _BY_ANOTHER_CLOCK if timing and is_by_another_clock(entry, timing, entries) else ""
        cells.append(mark + _milliseconds(timing.p50_ms if timing else None))
        cells.append(speedup.short if speedup else "")
    return cells
