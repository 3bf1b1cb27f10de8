"""Tables for the terminal: a profile, a sensitivity measurement, and the changes since the released build."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from model_artifacts.cli.tables import console_for
from pipeline.stages.report.comparison import Turn, worth_telling

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

    from model_artifacts.records import Accuracy
    from pipeline.records import LayerProfile, Sensitivity
    from pipeline.stages.report.comparison import Change

_HOTTEST = 10
_COLUMN = 40
"""Characters of a name that are shown; the record has all."""


def print_profile(profile: LayerProfile, stream: TextIO) -> None:
    """Print what takes an artifact's time, the hottest layers and functions first."""
    console = console_for(stream)
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
    console = console_for(stream)
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


def print_changes(changes: Sequence[Change], stream: TextIO) -> None:
    """Print what differs from the released build beyond noise."""
    console = console_for(stream)
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
