"""A console of rich whose own colours reach the terminal, and whose texts are escaped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console

from model_artifacts.host.terminal import escaped, plain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.text import Text


_PLAIN = str.maketrans("≈×≥≤†‡…\u2013→≠", "~x><+#.->!")
"""Signs of a terminal without Unicode, as wide as ours: an escape such as `\\u2248` would move the columns."""


class SteadyConsole(Console):
    """A console that takes texts as they are: neither markup, nor names of emoji, nor controls."""

    def __init__(self, stream: TextIO, width: int | None = None) -> None:
        """Create a console.

        Args:
            stream: The output.
            width: The number of columns. None asks the terminal.
        """
        super().__init__(file=plain(stream), highlight=False, markup=False, emoji=False, width=width)

    def show_cursor(self, show: bool = True) -> bool:  # noqa: FBT001,FBT002 - rich's own
        """Leave the cursor as it is: after a kill nobody would bring a hidden one back."""
        del show
        return False

    def render_str(self, text: str, **settings: Any) -> Text:  # noqa: ANN401 - rich's own
        """Return a text of a cell, escaped before its width is measured."""
        return super().render_str(escaped(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the parts of what is printed."""
        signs = {} if self.encoding.startswith("utf") else _PLAIN
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=escaped(segment.text).translate(signs))
