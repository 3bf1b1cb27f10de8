"""A profile as tables in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from model_artifacts.cli.tables import console_for
from pipeline.stages.common.tables import without_empty_columns

if TYPE_CHECKING:
    from typing import TextIO

    from pipeline.records import LayerProfile


_HOTTEST = 10
"""The number of rows that are shown."""


def print_profile(profile: LayerProfile, stream: TextIO) -> None:
    """Print the layers and functions that take the most time of an artifact, hottest first."""
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
        console.print(
            without_empty_columns(("share", "us"), ("layer", "type", "computes in", "output", "tactic"), rows)
        )
        copies = f"{profile.copy_share:.1%} of their time is spent on copies and conversions"
        console.print(Text(f"{len(profile.layers)} layers; {copies}", style="dim"))
    if profile.functions:
        calls = [(f"{item.share:.1%}", f"{item.total_us:,.1f}", str(item.calls)) for item in profile.functions]
        named = [(*numbers, item.name) for numbers, item in zip(calls, profile.functions, strict=True)]
        console.print(without_empty_columns(("share", "us in all", "calls"), ("function",), named[:_HOTTEST]))
    tools = ", ".join(f"{tool.name} {tool.version}" for tool in profile.profilers)
    console.print(
        Text("; ".join(part for part in (f"by {tools}" if tools else "", profile.reason) if part), style="dim")
    )
