"""The progress of long work: a bar a phase on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

    from rich.progress import TaskID
    from typing_extensions import Self

_QUIET_SECONDS = 5.0
"""Work that takes no longer says nothing; longer work says a line as often."""


class Bars:
    """Shows phases, which it may be told of by several threads. A context manager."""

    def __init__(self, stream: TextIO = sys.stdout) -> None:
        """Begin with nothing shown; bars appear where `stream` is a terminal."""
        self._stream = stream
        self._lock = threading.Lock()
        self._said = time.monotonic()
        self._steps: dict[str, int] = {}
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        """Show bars, on a terminal."""
        if self._stream.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bars = Progress(*columns, console=Console(file=self._stream), transient=True)
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take the bars away."""
        if self._bars:
            self._bars.stop()

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase of so many steps begins."""
        with self._lock:
            self._steps[phase] = steps
            if self._bars:
                self._tasks[phase] = self._bars.add_task(f"  {phase}" if parent else phase, total=steps)

    def step(self, phase: str, done: int) -> None:
        """A step of it is done."""
        with self._lock:
            if self._bars and phase in self._tasks:
                self._bars.update(self._tasks[phase], completed=done)
            elif not self._bars and time.monotonic() - self._said >= _QUIET_SECONDS:
                self._said = time.monotonic()
                self._stream.write(f"{phase}: {done} of {self._steps.get(phase, done)}\n")
                self._stream.flush()

    def finish(self, phase: str) -> None:
        """It is over."""
        with self._lock:
            if self._bars and phase in self._tasks:
                self._bars.remove_task(self._tasks.pop(phase))

    def told(self, phase: str) -> Callable[[int, int], None]:
        """Return what a phase tells how many of how many are done."""

        def seen(done: int, total: int) -> None:
            if phase not in self._steps:
                self.start(phase, None, total)
            self.step(phase, done)
            if done == total:
                self.finish(phase)

        return seen
