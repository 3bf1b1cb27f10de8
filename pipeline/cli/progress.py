"""The steps of a run: those at work, those done, and the time that the others take. Pure but for the file of durations.

A step is expected to take as long as it took in an earlier run, else as long as others of its stage. Before a stage's
first step is done, the rough duration of its kind counts, and the time left is called a lower bound.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from model_artifacts.errors import StorageError
from model_artifacts.host.files import write_bytes
from model_artifacts.host.terminal import duration_phrase, is_progress
from pipeline.system.locks import updating

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

_DURATIONS = dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]
"""Seconds by the steps' names."""


class Planned(NamedTuple):
    """A step that is asked for, whether or not it is up to date."""

    stage: str
    alone: bool = False
    """True if no other step works beside it."""
    instant: bool = False
    """True if it is known to be skipped."""
    roughly: float = 0.0
    """The seconds that a step of its kind takes at least, roughly."""


class Working(NamedTuple):
    """A step at work."""

    name: str
    doing: str
    """Its last line; empty before the first one."""
    seconds: float
    """The time since its start."""
    left: float | None
    """The time that it still takes, in seconds; None if nothing like it was done before."""


class Progress:
    """The progress of a run; several threads may report to it."""

    def __init__(self, planned: Mapping[str, Planned], earlier: Mapping[str, float], at_once: int | None) -> None:
        """Begin a run.

        Args:
            planned: all steps that were asked for, by name.
            earlier: the durations of steps in earlier runs, in seconds.
            at_once: the number of steps that work side by side; None if other machines decide it.
        """
        self._planned = dict(planned)
        self._earlier = dict(earlier)
        self._at_once = at_once
        self._lock = threading.Lock()
        self._begun: dict[str, float] = {}
        self._doing: dict[str, str] = {}
        self._left = set(planned)
        self._took: dict[str, float] = {}

    @property
    def took(self) -> dict[str, float]:
        """The durations of the steps that this run has done, in seconds."""
        with self._lock:
            return dict(self._took)

    def begin(self, name: str, now: float) -> None:
        """Begin a step, at a time in seconds."""
        with self._lock:
            if name in self._planned:
                self._begun[name] = now
                self._doing[name] = ""

    def end(self, name: str, now: float, *, done: bool) -> None:
        """End a step.

        Args:
            name: the step.
            now: the time in seconds.
            done: True if its duration tells how long it takes the next time, as that of a failure does not.
        """
        with self._lock:
            begun = self._begun.pop(name, None)
            self._left.discard(name)
            if done and begun is not None and not self._planned[name].instant:
                self._took[name] = now - begun

    def hear(self, line: str) -> bool:
        """Take note of a printed line, which begins with its step's name.

        Returns:
            True if the line only tells how far the step is, and the next one outdates it.
        """
        with self._lock:
            for name in self._begun:
                if line.startswith(f"{name}: "):
                    self._doing[name] = line.removeprefix(f"{name}: ").strip()
                    return is_progress(self._doing[name])
        return False

    def working(self, now: float) -> list[Working]:
        """Return the steps at work, the oldest first."""
        with self._lock:
            expected = self._expected(self._begun.keys())
            return [
                Working(name, self._doing[name], now - begun, _rest(expected[name], now - begun))
                for name, begun in self._begun.items()
            ]

    def summary(self, now: float) -> str:
        """Return how many of the steps are done, and the time that the others take."""
        left, at_least = self._time_left(now)
        count = f"{len(self._planned) - len(self._left)} of {len(self._planned)} steps"
        return f"{count}, {'at least' if at_least else 'about'} {duration_phrase(left)} left" if left >= 1 else count

    def _time_left(self, now: float) -> tuple[float, bool]:
        """Return the time that the run still takes, and True if some steps of it are only known roughly."""
        if self._at_once is None:
            return 0.0, False
        at_work = self.working(now)
        spent = {item.name: item.seconds for item in at_work}
        found = {item.name: item.left for item in at_work}
        with self._lock:
            found |= self._expected(self._left - found.keys())
        rests = {
            name: max(self._planned[name].roughly - spent.get(name, 0.0), 0.0) if rest is None else rest
            for name, rest in found.items()
        }
        alone = sum(rest for name, rest in rests.items() if self._planned[name].alone)
        beside = [rest for name, rest in rests.items() if not self._planned[name].alone]
        together = max(sum(beside) / max(self._at_once, 1), *beside, 0.0)  # no shorter than the longest of them
        return alone + together, None in found.values()

    def _expected(self, names: Collection[str]) -> dict[str, float | None]:
        """Return the durations of steps, in seconds; None for one of whose stage no step was ever done."""
        known = {**self._earlier, **self._took}
        by_stage: dict[str, list[float]] = {}
        for name, seconds in known.items():
            by_stage.setdefault(name.partition(":")[0], []).append(seconds)
        alike = {stage: sum(durations) / len(durations) for stage, durations in by_stage.items()}
        return {
            name: 0.0 if self._planned[name].instant else known.get(name, alike.get(self._planned[name].stage))
            for name in names
        }


def _rest(expected: float | None, seconds: float) -> float | None:
    return None if expected is None else max(expected - seconds, 0.0)


def read_durations(path: Path) -> dict[str, float]:
    """Return the durations of steps in earlier runs, in seconds; none if the file is missing or damaged."""
    try:
        return TypeAdapter(_DURATIONS).validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return {}  # they serve an estimate alone


def add_durations(path: Path, took: Mapping[str, float]) -> None:
    """Add the durations of a run's steps to a file."""
    if took:
        try:
            with updating(path):
                known = {**read_durations(path), **{name: round(seconds, 1) for name, seconds in took.items()}}
                write_bytes(path, TypeAdapter(_DURATIONS).dump_json(known, indent=0))
        except StorageError:
            return  # the next run has a worse estimate; what filled the disk is told by the steps
