"""Progress of long work: one bar per phase on a terminal, an occasional line elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from model_artifacts.host.terminal import escaped, plain, progress_line, silent_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

    from rich.progress import TaskID
    from typing_extensions import Self

_QUIET_SECONDS = 5.0
"""Seconds between two lines; shorter work writes none."""
_SILENT_SECONDS = 60.0
"""Seconds without a finished step after which a log says so: CI services end jobs that write nothing for minutes."""


class Bars:
    """Display of phases, open as a context manager; several threads may report to it."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Create an empty display.

        Args:
            stream: the output, None for standard output; a terminal shows bars, other streams get lines.
        """
        self._stream = stream or sys.stdout
        self._lock = threading.Lock()
        self._last_line = self._last_step = time.monotonic()
        self._latest = ""
        self._closed = threading.Event()
        self._watch = threading.Thread(target=self._tell_silence, daemon=True)
        self._steps: dict[str, int] = {}
        self._begun: dict[str, float] = {}
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        """Start the bars, if the stream is a terminal, else the watch for work that says nothing."""
        if self._stream.isatty():
            times = (TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn(elapsed_when_finished=True))
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), *times)
            self._bars = Progress(*columns, console=Console(file=plain(self._stream)), transient=True)
            self._bars.start()
        else:
            self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the bars, or end the watch."""
        if self._bars:
            self._bars.stop()
        else:
            self._closed.set()
            self._watch.join()

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
            elif not self._bars:
                now = self._last_step = time.monotonic()
                steps = self._steps.get(phase, done)
                self._latest = f"{phase}: {done} of {steps}"
                if now - self._last_line >= _QUIET_SECONDS:
                    self._write(progress_line(phase, done, steps, now - self._begun.get(phase, now)), now)

    def _write(self, line: str, now: float) -> None:
        self._last_line = now
        self._stream.write(f"{escaped(line)}\n")
        self._stream.flush()

    def _tell_silence(self) -> None:
        """Say so in the log, again and again, as long as a phase has begun and no step ends."""
        while not self._closed.wait(_SILENT_SECONDS / 10):
            with self._lock:
                now = time.monotonic()
                if self._latest and now - max(self._last_line, self._last_step) >= _SILENT_SECONDS:
                    self._write(silent_line(self._latest, now - self._last_step), now)

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
