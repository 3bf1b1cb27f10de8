"""`StageSpec`: everything that the pipeline knows of a stage, without importing the code that does its work."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from pipeline.config.values import QUANTIZED_PRECISIONS
from pipeline.planning.plan import QDQ, find_named

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from pathlib import Path

    from model_artifacts.records import FileRecord, Graph, Key, StageRecord, Variant
    from pipeline.planning.paths import Paths
    from pipeline.planning.plan import Arithmetic, Plan
    from pipeline.planning.project import Project
    from pipeline.planning.schedule import Schedule
    from pipeline.planning.steps import Step

S = TypeVar("S")


@dataclass(frozen=True)
class Subjects(Generic[S]):
    """The things of a plan that a stage is applied to, one step each."""

    noun: str
    """One of them, for messages."""
    example: str
    """The name of one, for help texts."""
    named: Callable[[Plan], Mapping[str, S]]
    """All of a plan, by name and in the order of their steps."""
    target: Callable[[S], str | None] = lambda _: None
    """The target whose hardware a subject's steps run on; None for any machine."""

    def find(self, plan: Plan, name: str) -> S:
        """Return the subject of a name.

        Raises:
            UsageError: the plan has no such subject; the message lists the closest names.
        """
        return find_named(name, self.named(plan), self.noun)


def _graphs(keep: Callable[[Graph], bool]) -> Callable[[Plan], Mapping[str, Graph]]:
    return lambda plan: {f"{plan.model}/{graph.value}": graph for graph in plan.graphs if keep(graph)}


MODEL: Subjects[str] = Subjects("model", "resnet18", lambda plan: {plan.model: plan.model})
EXPORTED: Subjects[Graph] = Subjects(
    "graph", "resnet18/fp16", _graphs(lambda graph: graph.precision not in QUANTIZED_PRECISIONS)
)
QUANTIZED: Subjects[Graph] = Subjects(
    "graph", "resnet18/int8", _graphs(lambda graph: graph.precision in QUANTIZED_PRECISIONS)
)
WHOLE_QDQ: Subjects[Graph] = Subjects("quantised graph", "resnet18/int8", _graphs(QDQ.__contains__))
"""Graphs whose every layer is quantised, in the form that TensorRT takes."""
ARITHMETIC: Subjects[Arithmetic] = Subjects(
    "precision", "resnet18/fp16", lambda plan: {f"{plan.model}/{item.name}": item for item in plan.arithmetics}
)
VARIANT: Subjects[Variant] = Subjects(
    "variant", "resnet18/rtx-sm80+/fp16-b1-ws1GiB", lambda plan: plan.variants_by_id, lambda variant: variant.target
)
TARGET: Subjects[str] = Subjects(
    "target", "resnet18/cpu-x86_64", lambda plan: plan.targets_by_subject, lambda target: target
)


class Console(Protocol):
    """The place for the lines of a step."""

    def say(self, text: str) -> None:
        """Print text to standard output; an empty text prints nothing."""

    def error(self, text: str) -> None:
        """Print text to standard error."""


@dataclass(frozen=True)
class Input:
    """A record that a step reads on a worker, with the files that travel beside it."""

    path: Path
    files: tuple[FileRecord, ...]


def _nothing(*_: Any) -> tuple[()]:  # noqa: ANN401 - stands in for functions of several signatures
    return ()


@dataclass(frozen=True, kw_only=True)
class StageSpec(Generic[S]):
    """One stage: doit's tasks, the help, dependencies, keys, places and freshness are derived from it.

    A spec names the functions of its stage as `module:function` and imports them on use, since torch takes seconds.
    """

    name: str
    sentence: str
    """The stage in one sentence: for `doit list`, `--help` and the README."""
    subjects: Subjects[S]
    version: int
    """The version of the stage's code: raise it when the same inputs give another result."""
    record: type[StageRecord]
    """The record that the stage leaves."""
    records: Callable[[Paths, Plan, S], tuple[Path, ...]]
    """The places of a step's records."""
    key: Callable[[Project, S], Key]
    """The staleness key of a step's result.

    Raises:
        RecordError: a record that the key is made from is missing.
    """
    run: str
    """The function that does a step and prints its outcome: (project, subject, console) → exit status."""

    key_beside: Callable[[Project, Collection[Step]], Key] | None = None
    """The same key, where it depends on the freshness of other steps; these steps are known to be current."""
    files: Callable[[Paths, Plan, S], tuple[Path, ...]] = _nothing
    """The places of all other files that a step may write."""
    replaced: Callable[[Paths, S], tuple[Path, ...]] = _nothing
    """Files of an earlier result that a new result removes unless it has them too."""
    requires: Callable[[Schedule, S], tuple[Step, ...]] = _nothing
    """The steps that must succeed before a step."""
    follows: Callable[[Schedule, S], tuple[Step, ...]] = _nothing
    """The steps that must end before a step, with or without success."""
    inputs: Callable[[Project, S], Iterator[Input]] | None = None
    """The inputs that travel to a worker of the farm; None for a stage that runs on this machine only."""
    retried: Callable[[Project, Any], Iterator[str]] = lambda _project, _record: iter(())
    """The reasons to make a result again although its key holds: failures are never cached."""
    is_shared: Callable[[Plan, S], bool] = lambda _plan, _subject: False
    """True for results that are equal on every machine with the same key, and go into the shared cache."""
    lacks_hardware: Callable[[Plan, S], bool] = lambda _plan, _subject: False
    """True for steps that this host is known to skip for want of a GPU: doit runs them without a process."""
    maker_fields: frozenset[str] = frozenset()
    """Key fields that describe the host that made a result; without torch, results of other hosts are reused."""
    worker_fields: frozenset[str] = frozenset()
    """Key fields that describe one of several equal workers."""

    seconds: float = 1.0
    """Rough duration of a step on a processor, by which steps that could run at the same time are ordered."""
    on_demand: bool = False
    """True for a stage that `doit` runs only by its name."""
    last: bool = False
    """True for a stage that summarizes all others."""
    in_manifest: bool = False
    """True if the manifest reads the stage's records of variants."""
    needs_build: bool = False
    """True for a stage that has nothing to do for a variant whose build was skipped."""
    needs_torch: bool = False
    """True for a stage whose results a host without torch takes from another host."""
    alone: bool = False
    """True for a stage that times: nothing else of this project works on the host meanwhile."""
    timed: bool = False
    """True for a stage whose process must be like a user's: the allocator keeps its defaults."""
    tunes: bool = False
    """True for a stage whose TensorRT times tactics on the GPU, which it then needs for itself."""
    prints_a_table: bool = False
    """True for a stage whose output is a table, which doit shows without the step's name on each line."""

    def __reduce__(self) -> tuple[Callable[[str], StageSpec[Any]], tuple[str]]:
        """Travel to a worker process by the name of the stage's package: its functions cannot be pickled."""
        return _spec_in, (self.run.partition(":")[0].rpartition(".")[0],)

    def load(self) -> Callable[[Project, S, Console], int]:
        """Import the function that runs a step."""
        module, _, function = self.run.partition(":")
        return getattr(import_module(module), function)  # type: ignore[no-any-return]


def _spec_in(package: str) -> StageSpec[Any]:
    return import_module(f"{package}.spec").SPEC  # type: ignore[no-any-return]
