"""Progress of long work: one bar per phase on a terminal, an occasional line elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from model_artifacts.host.terminal import escaped, plain, progress_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

    from rich.progress import TaskID
    from typing_extensions import Self

_QUIET_SECONDS = 5.0
"""Seconds between two lines; shorter work writes none."""


class Bars:
    """Display of phases, open as a context manager; several threads may report to it."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Create an empty display.

        Args:
            stream: the output, None for standard output; a terminal shows bars, other streams get lines.
        """
        self._stream = stream or sys.stdout
        self._lock = threading.Lock()
        self._last_line = time.monotonic()
        self._steps: dict[str, int] = {}
        self._begun: dict[str, float] = {}
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        """Start the bars, if the stream is a terminal."""
        if self._stream.isatty():
            times = (TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn(elapsed_when_finished=True))
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), *times)
            self._bars = Progress(*columns, console=Console(file=plain(self._stream)), transient=True)
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the bars."""
        if self._bars:
            self._bars.stop()

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """Begin a phase.

        Args:
            phase: name of the phase.
            parent: name of the phase that contains it; None for an outermost phase.
            steps: number of steps of the phase.
        """
        with self._lock:
            self._steps[phase] = steps
            self._begun[phase] = time.monotonic()
            if self._bars:
                shown = escaped(f"  {phase}" if parent else phase)
                self._tasks[phase] = self._bars.add_task(shown, total=steps)

    def step(self, phase: str, done: int) -> None:
        """Show the number of finished steps of a phase.

        Args:
            phase: name of the phase.
            done: number of finished steps.
        """
        with self._lock:
            if self._bars and phase in self._tasks:
                self._bars.update(self._tasks[phase], completed=done)
            elif not self._bars and (now := time.monotonic()) - self._last_line >= _QUIET_SECONDS:
                self._last_line = now
                steps = self._steps.get(phase, done)
                line = progress_line(phase, done, steps, now - self._begun.get(phase, now))
                self._stream.write(f"{escaped(line)}\n")
                self._stream.flush()

    def finish(self, phase: str) -> None:
        """End a phase and remove its bar."""
        with self._lock:
            if self._bars and phase in self._tasks:
                self._bars.remove_task(self._tasks.pop(phase))

    def reporting(self, phase: str) -> Callable[[int, int], None]:
        """Return a function for a phase's progress.

        Args:
            phase: name of the phase.

        Returns:
            (finished steps, all steps) → None; it begins, advances and ends the phase.
        """

        def report(done: int, total: int) -> None:
            if phase not in self._steps:
                self.start(phase, None, total)
            self.step(phase, done)
            if done == total:
                self.finish(phase)

        return report
