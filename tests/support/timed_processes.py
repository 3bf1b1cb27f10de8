"""Stand-ins for the processes of a benchmark: they answer at once, with times that a test chooses."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from model_artifacts.records import Clock, ColdStart
from pipeline.stages.benchmark.messages import Ask, Ready, Samples, Started, Warm
from pipeline.stages.benchmark.timing import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

    from pipeline.planning.project import Project
    from pipeline.records import Artifact
    from pipeline.stages.common.outcomes import Ending


def steady(name: str, batch: int, _turn: int) -> float:
    """Return a latency in milliseconds that depends on the variant and the batch size alone."""
    return (len(name) + batch) / 10


class Processes:
    """The processes of all variants, and the requests to them in order."""

    def __init__(self) -> None:
        """Answer with steady times until told otherwise."""
        self.asked: list[tuple[str, str]] = []
        self.loading: list[str] = []
        """The begins and ends of loading, in order, with the variants' names."""
        self.milliseconds: Callable[[str, int, int], float] = steady
        """The latency for a variant's name, a batch size, and the number of processes of that name so far."""
        self.before: Callable[[str, int], Ending | None] = lambda _name, _turn: None
        """Called before each timed round. An ending is given in place of an answer."""

    @property
    def opened(self) -> list[str]:
        """The names of the variants that were opened, in order."""
        return [name for name, what in self.asked if what.startswith("opened")]

    @contextmanager
    def worker(self, _project: Project, artifact: Artifact, *, first: bool) -> Iterator[Worker]:
        """Stand in for `timing._worker`."""
        name = artifact.variant.name
        self.asked.append((name, f"opened{' first' if first else ''}"))
        answers = _Answers(self, name, self.opened.count(name), first=first)
        yield Worker(cast("Any", SimpleNamespace(pid=1)), cast("Any", answers))


class _Answers:
    """The end of a pipe to a variant's process that answers at once."""

    def __init__(self, processes: Processes, name: str, turn: int, *, first: bool) -> None:
        self._processes, self._name, self._turn, self._first = processes, name, turn, first
        self._waiting: list[object] = [Started()]

    def send(self, message: object) -> None:
        """Take a question, and have its answer ready."""
        if isinstance(message, Started):
            self._processes.loading.append(f"open {self._name}")
            self._waiting.append(Ready(ColdStart(seconds=0.5 if self._first else 0.1, cached_seconds=None)))
        elif isinstance(message, Ask):
            self._processes.asked.append(
                (self._name, f"{'warm up' if message.warm_up_seconds else 'time'} {message.batch}")
            )
            self._waiting.append(self._answer(message))

    def _answer(self, ask: Ask) -> object:
        if ask.warm_up_seconds:
            return Warm(settled=True)
        if ending := self._processes.before(self._name, self._turn):
            return ending
        value = self._processes.milliseconds(self._name, ask.batch, self._turn)
        return (Samples(Clock.HOST, tuple(value * (1 + step / 1000) for step in range(ask.runs))),)

    def poll(self, _seconds: float) -> bool:
        """Say whether there is an answer."""
        return bool(self._waiting)

    def recv(self) -> object:
        """Give the answer."""
        answer = self._waiting.pop(0)
        if isinstance(answer, Ready):
            self._processes.loading.append(f"ready {self._name}")
        return answer


def stand_in(monkeypatch: pytest.MonkeyPatch) -> Processes:
    """Start no process of a variant until the test ends, and return what stands in."""
    processes = Processes()
    monkeypatch.setattr("pipeline.stages.benchmark.timing._worker", processes.worker)
    return processes
