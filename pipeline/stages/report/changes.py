"""The changes since a release as lines in the terminal."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from rich.text import Text

from model_artifacts.cli.tables import console_for
from model_artifacts.deployment.comparison import Turn, worth_telling

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

    from model_artifacts.deployment.comparison import Change


def print_changes(changes: Sequence[Change], stream: TextIO) -> None:
    """Print the changes from the released build that exceed noise."""
    console = console_for(stream)
    shown = worth_telling(changes)
    if not shown:
        console.print("comparison with the released build: nothing changed beyond noise")
        return
    console.print(Text("comparison with the released build", style="bold"))
    for artifact, facts in groupby(shown, key=lambda change: change.id):
        console.print(Text(artifact.split("/", 1)[1]), soft_wrap=True)
        for change in facts:
            console.print(Text("  ") + _line_of(change), soft_wrap=True)


def _line_of(change: Change) -> Text:
    """Return a change as one line, which no width of a terminal cuts: `p50 at batch 1: 1.2 ms → 1.3 ms, worse`."""
    colour = {Turn.WORSE: "yellow", Turn.BETTER: "green"}.get(change.turn, "")
    bound = f"; broken bound: {change.breach}" if change.breach else ""
    return Text.assemble(
        f"{change.metric}: {change.before} → {change.after}, ", Text(change.turn.value, style=colour), bound
    )
