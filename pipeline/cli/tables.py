"""The manifest as a table in the terminal."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from model_artifacts.records import Status
from pipeline.stages.report.choices import latency_of, ties_of
from pipeline.stages.report.comparison import Turn, worth_telling

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TextIO

    from model_artifacts.records import Accuracy, Manifest, ManifestEntry, Milestone
    from pipeline.records import LayerProfile, Sensitivity
    from pipeline.stages.report.comparison import Change

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
    ties = {batch: ties_of(manifest.artifacts, batch) for batch in batches}
    skipped = _skipped_targets(manifest.artifacts)
    for entry in manifest.artifacts:
        if entry.target not in skipped:
            status = Text(entry.status.value + _marks(entry, notes), style=_COLOURS[entry.status])
            table.add_row(entry.id.split("/", 1)[1], _size(entry), *_accuracy(entry), *_timings(entry, ties), status)
    for target, entries in skipped.items():
        status = Text(entries[0].status.value + _marks(entries[0], notes), style=_COLOURS[entries[0].status])
        table.add_row(f"{target}/* ({len(entries)} variants)", *[""] * (3 + 2 * len(batches)), status)
    if manifest.model:
        model = manifest.model
        console.print(Text(f"\n{model.name}: {model.weights_detail}; images: {model.images}"))
    console.print(table)
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
        told = ", ".join(f"{what} ({count} of {len(manifest.artifacts)} artifacts)" for what, count in doubts.items())
        console.print(Text(f"a noisy run: {told}; the report says how much", style="dim"))
    for reason, number in notes.items():
        console.print(Text(f"[{number}] {reason}", style="dim"))
    _print_milestones(console, manifest.milestones)


def _marks(entry: ManifestEntry, notes: dict[str, int]) -> str:
    """Return what stands behind a status: the number of its reason, which is noted, and what else is to be known."""
    mark = f" [{notes.setdefault(entry.reason, len(notes) + 1)}]" if entry.reason else ""
    if entry.executed and entry.executed is not entry.precision:
        mark += f" ({entry.executed.value})"
    return mark + (" *" if entry.smallest_workspace == entry.id else "")


def _skipped_targets(entries: Sequence[ManifestEntry]) -> dict[str, list[ManifestEntry]]:
    """Return the targets of which every artifact was skipped for one and the same reason: a row tells it all."""
    by_target: dict[str, list[ManifestEntry]] = {}
    for entry in entries:
        by_target.setdefault(entry.target, []).append(entry)
    return {
        target: found
        for target, found in by_target.items()
        if len(found) > 1 and {(entry.status, entry.reason) for entry in found} == {(Status.SKIPPED, found[0].reason)}
    }


_HOTTEST = 10
_COLUMN = 40
"""Characters of a name that are shown; the record has all."""


def print_profile(profile: LayerProfile, stream: TextIO) -> None:
    """Print what takes an artifact's time, the hottest layers and functions first."""
    console = Console(file=stream, highlight=False, width=None if stream.isatty() else _WIDE)
    console.print(Text(f"{profile.variant_id}, batch {profile.batch}, {profile.runs} runs on {profile.device}"))
    if profile.layers:
        rows = [
            (
                f"{layer.share:.1%}",
                f"{layer.median_us:,.1f}",
                layer.name,
                layer.kind,
                layer.precision.value if layer.precision else "",
                layer.shape,
                layer.tactic,
            )
            for layer in profile.layers[:_HOTTEST]
        ]
        console.print(_hottest(("share", "us"), ("layer", "type", "computes in", "output", "tactic"), rows))
        copies = f"{profile.copy_share:.1%} of their time is spent on copies and conversions"
        console.print(Text(f"{len(profile.layers)} layers; {copies}", style="dim"))
    if profile.functions:
        calls = [(f"{item.share:.1%}", f"{item.total_us:,.1f}", str(item.calls)) for item in profile.functions]
        found = [(*told, item.name) for told, item in zip(calls, profile.functions, strict=True)]
        console.print(_hottest(("share", "us in all", "calls"), ("function",), found[:_HOTTEST]))
    told = ", ".join(f"{tool.name} {tool.version}" for tool in profile.profilers)
    console.print(Text("; ".join(part for part in (f"by {told}" if told else "", profile.reason) if part), style="dim"))


def print_sensitivity(found: Sensitivity, stream: TextIO) -> None:
    """Print how much each layer minds being quantised, and what to write into pipeline.yaml."""
    console = Console(file=stream, highlight=False, width=None if stream.isatty() else _WIDE)
    kind = found.graph.value
    console.print(Text(f"each layer alone in {kind}, {found.samples} calibration images"))
    rows = [
        (
            f"{layer.relative_l2:.1e}",
            f"{layer.cosine:.6f}",
            f"{layer.top1_agreement:.1%}",
            f"{layer.weights:,}",
            layer.name,
            layer.kind,
        )
        for layer in found.layers
    ]
    console.print(_hottest(("rel. L2", "cosine", "agreement", "weights"), ("layer", "operator"), rows))
    console.print(Text(f"all of them in {kind}: {_told(found.plain)}"))
    if not found.proposal:
        console.print(Text("which keeps the gate on these images: nothing has to stay in floating point"))
        return
    verdict = "which keeps the gate on these images" if found.kept else "which still MISSES the gate: take fp16"
    console.print(Text(f"all but {len(found.proposal)}: {_told(found.proposed)}, {verdict}"))
    if found.kept:
        names = ", ".join(found.proposal)
        stream.write(f"in pipeline.yaml, for variants {kind}-mixed beside {kind}:\n")
        stream.write(f"leave_unquantized: {{{kind}: [{names}]}}\n")


def _told(accuracy: Accuracy) -> str:
    return (
        f"relative L2 {accuracy.relative_l2:.1e}, cosine {accuracy.cosine:.6f}, agreement {accuracy.top1_agreement:.1%}"
    )


def _hottest(numbers: Sequence[str], names: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table without the columns in which no row tells anything."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in numbers:
        table.add_column(heading, justify="right")
    width = _COLUMN if len(names) > 1 else 2 * _COLUMN
    told = [index for index, _ in enumerate(names) if any(row[len(numbers) + index] for row in rows)]
    for heading in (names[index] for index in told):
        table.add_column(heading, overflow="ellipsis", no_wrap=True, max_width=width)
    for row in rows:
        table.add_row(*map(Text, [*row[: len(numbers)], *(row[len(numbers) + index] for index in told)]))
    return table


def _print_milestones(console: Console, milestones: tuple[Milestone, ...]) -> None:
    """Print the way from eager FP32 to the best engine, a table for every GPU and batch size."""
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


def print_changes(changes: Sequence[Change], stream: TextIO) -> None:
    """Print what differs from the released build beyond noise."""
    console = Console(file=stream, highlight=False, width=None if stream.isatty() else _WIDE)
    told = worth_telling(changes)
    if not told:
        console.print("against the released build: nothing changed beyond noise")
        return
    table = Table(
        box=None, pad_edge=False, header_style="bold", title="against the released build", title_justify="left"
    )
    for name, justify in (
        ("artifact", "left"),
        ("what", "left"),
        ("released", "right"),
        ("now", "right"),
        ("", "left"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]  # one of rich's words
    table.add_column("bound broken")
    for change in told:
        colour = {Turn.WORSE: "yellow", Turn.BETTER: "green"}.get(change.turn, "")
        turn = Text(change.turn.value, style=colour)
        table.add_row(change.id.split("/", 1)[1], change.metric, change.before, change.after, turn, change.breach)
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


def _timings(entry: ManifestEntry, ties: Mapping[int, frozenset[str]]) -> list[str]:
    cells = []
    for batch, alike in ties.items():
        timing = latency_of(entry, batch)
        mark = "≈ " if entry.id in alike else ""
        cells.append(mark + _milliseconds(timing.p50_ms if timing else None))
        cells.append(f"{timing.speedup:.2f}×" if timing and timing.speedup else "")
    return cells
