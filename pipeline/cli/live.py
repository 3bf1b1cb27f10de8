"""The steps at work in the last lines of a terminal, below all that is printed; a log gets the printed lines alone."""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any, TextIO, cast

from model_artifacts.host.terminal import duration_phrase, one_row, plain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.live import Live as RichLive
    from rich.text import Text
    from typing_extensions import Self

    from pipeline.cli.progress import Progress, Working

_COLUMNS = 80
"""The columns that the lines take at most: if a wider terminal is made narrower, it does not break them."""
_SHARE = 2
"""The part of a terminal's rows that the lines take at most: a half."""
_NAME = 40
"""The columns that a name takes at most beside a step's last line."""


class Live:
    """A display of the steps at work, open as a context manager. Any thread may print meanwhile."""

    def __init__(self, progress: Progress) -> None:
        """Create a display, which appears with the first step.

        Args:
            progress: the progress to show.
        """
        self._progress = progress
        self._lock = threading.RLock()
        self.stream = sys.stdout
        """The terminal, or the log."""
        self._redirected = ExitStack()
        self._shown: RichLive | None = None

    def __enter__(self) -> Self:
        """Take what is printed, if standard output is a terminal whose lines can be drawn again."""
        if can_redraw(self.stream):
            out, error = _Above(self, sys.stdout), _Above(self, sys.stderr)
            self._redirected.enter_context(redirect_stdout(cast("TextIO", out)))
            self._redirected.callback(out.finish)
            if sys.stderr.isatty():
                self._redirected.enter_context(redirect_stderr(cast("TextIO", error)))
                self._redirected.callback(error.finish)
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the display. What is printed later is printed as it comes."""
        self.hide()
        self._redirected.close()

    def show(self) -> None:
        """Show the steps at work as they are now, if this is a terminal."""
        with self._lock:
            if self._shown is None and isinstance(sys.stdout, _Above):
                self._shown = self._new()
                self._shown.start(refresh=True)
            elif self._shown:
                self._shown.refresh()

    def hide(self) -> None:
        """Remove the lines, for a command that asks questions, or for the end."""
        with self._lock:
            if self._shown:
                self._shown.stop()
                self._shown = None

    def print(self, lines: Iterable[str], stream: TextIO) -> None:
        """Print lines above the steps; one that only tells how far a step is goes into the step's own line."""
        from rich.text import Text

        with self._lock:
            kept = [line for line in lines if not (self._progress.hear(line) and self._shown)]
            if self._shown is None:
                stream.writelines(f"{line}\n" for line in kept)
                stream.flush()
                return
            for line in kept:
                self._shown.console.print(Text(line), soft_wrap=True)

    def _new(self) -> RichLive:
        from rich.live import Live as RichLive

        from model_artifacts.cli.console import SteadyConsole

        return RichLive(
            get_renderable=self._lines,
            console=SteadyConsole(plain(self.stream)),
            refresh_per_second=1,  # what is timed meanwhile has the processor
            redirect_stdout=False,
            redirect_stderr=False,
            transient=True,
        )

    def _lines(self) -> Text:
        from rich.text import Text

        size = os.get_terminal_size(self.stream.fileno())
        columns = min(size.columns or _COLUMNS, _COLUMNS) - 1
        unicode = (self.stream.encoding or "").lower().startswith("utf")
        now = time.monotonic()
        working = self._progress.working(now)
        most = max((size.lines or 24) // _SHARE - 1, 1)
        lines = [row(item, columns, "…" if unicode else "...") for item in working[:most]]
        more = f" (and {len(working) - most} more at work)" if len(working) > most else ""
        lines.append(f"{self._progress.summary(now)}{more}"[:columns])
        return Text("\n".join(lines), style="dim", no_wrap=True, overflow="crop")


class _Above:
    """A stream whose whole lines are printed above a display; in all else it is another stream."""

    def __init__(self, live: Live, stream: TextIO) -> None:
        self._live = live
        self._stream = stream
        self._begun: dict[int, str] = {}

    def write(self, text: str) -> int:
        """Print the whole lines of a text; the rest waits for its end."""
        thread = threading.get_ident()
        *lines, begun = (self._begun.pop(thread, "") + text).split("\n")
        if begun:
            self._begun[thread] = begun
        if lines:
            self._live.print(lines, self._stream)
        return len(text)

    def finish(self) -> None:
        """Print what still waits for the end of its line."""
        while self._begun:
            _, begun = self._begun.popitem()
            self._live.print([begun], self._stream)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the stream has
        return getattr(self._stream, name)


def can_redraw(stream: TextIO) -> bool:
    """Return True for a terminal that moves its cursor, and that this process is in the foreground of."""
    if not stream.isatty() or os.environ.get("TERM", "dumb") in {"dumb", "unknown", ""}:
        return False
    try:
        return os.tcgetpgrp(stream.fileno()) == os.getpgrp()
    except OSError:
        return True  # it is not the terminal that this process was started from, so that no shell shares it


def row(item: Working, columns: int, dots: str) -> str:
    """Return a step's line: its name, its last line and its times, cut to a number of columns."""
    from rich.cells import cell_len, set_cell_size

    times = duration_phrase(item.seconds)
    times += f", about {duration_phrase(item.left)} left" if item.left and item.left >= 1 else ""
    room = columns - len(times) - 2
    doing = one_row(item.doing)
    name = cut(item.name, max(room - cell_len(doing) - 2, min(room, _NAME)) if doing else room, dots)
    rest = room - len(name) - 2
    doing = doing if cell_len(doing) <= rest else set_cell_size(doing, max(rest - len(dots), 0)) + dots
    text = f"{name}  {doing}" if doing and rest > len(dots) else name
    return f"{set_cell_size(text, room)}  {times}"[:columns]


def cut(name: str, columns: int, dots: str) -> str:
    """Return a name that is cut in its middle, so that its stage and its precision stay."""
    if len(name) <= columns:
        return name
    kept = max(columns - len(dots), 0)
    end = kept * 2 // 3
    return name[: kept - end] + dots + (name[-end:] if end else "")
