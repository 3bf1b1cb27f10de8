"""Tables in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

_COLUMN = 40
"""The shown characters of a name; the record has all."""


def without_empty_columns(numbers: Sequence[str], names: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table of numbers and names, without the columns of names that are empty in every row.

    Args:
        numbers: the headings of the first columns, aligned to the right.
        names: the headings of the other columns, which are cut to their width.
        rows: the cells, one for each heading.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in numbers:
        table.add_column(heading, justify="right")
    width = _COLUMN if len(names) > 1 else 2 * _COLUMN
    filled = [index for index, _ in enumerate(names) if any(row[len(numbers) + index] for row in rows)]
    for heading in (names[index] for index in filled):
        table.add_column(heading, overflow="ellipsis", no_wrap=True, max_width=width)
    for row in rows:
        table.add_row(*map(Text, [*row[: len(numbers)], *(row[len(numbers) + index] for index in filled)]))
    return table
