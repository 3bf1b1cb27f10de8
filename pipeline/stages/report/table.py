"""The changes since a release as a table in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
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
    table = Table(
        box=None, pad_edge=False, header_style="bold", title="comparison with the released build", title_justify="left"
    )
    for name, justify in (
        ("artifact", "left"),
        ("fact", "left"),
        ("released", "right"),
        ("this build", "right"),
        ("change", "left"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]  # rich's type is a literal
    table.add_column("broken bound")
    for change in shown:
        colour = {Turn.WORSE: "yellow", Turn.BETTER: "green"}.get(change.turn, "")
        turn = Text(change.turn.value, style=colour)
        table.add_row(change.id.split("/", 1)[1], change.metric, change.before, change.after, turn, change.breach)
    console.print(table)
