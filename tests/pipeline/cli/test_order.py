"""The order of steps that are ready at the same time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from doit.control import TaskControl
from doit.dependency import Dependency, JsonDB
from doit.reporter import ZeroReporter
from doit.runner import MThreadRunner, Runner
from doit.task import Task

from pipeline.cli.order import SECONDS, LongestFirst, chains_of
from pipeline.planning.project import Project
from pipeline.stages import STAGES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SHORT = tuple(f"short{number}" for number in range(8))
WAITS_FOR = {
    "begin": (),
    **dict.fromkeys(SHORT, ("begin",)),
    "long1": ("begin",),
    "long2": ("long1",),
    "end": (*SHORT, "long2"),
}
TAKES = {**dict.fromkeys(WAITS_FOR, 1.0), "long2": 5.0}


def run(names: list[str], folder: Path, processes: int = 1) -> list[str]:
    """Run these tasks with doit's own runner, and return their names in the order of their starts."""
    ran: list[str] = []

    def note(name: str) -> None:
        ran.append(name)

    tasks = [
        Task(
            name,
            [(note, [name])],
            task_dep=[*WAITS_FOR[name]],
            meta={SECONDS: TAKES[name]},
        )
        for name in names
    ]
    control = TaskControl(tasks)
    control.process(None)
    arguments = (Dependency(JsonDB, str(folder / "database")), ZeroReporter(None, {}))
    runner = Runner(*arguments) if processes == 1 else MThreadRunner(*arguments, num_process=processes)
    assert runner.run_all(LongestFirst(control)) == 0
    return ran


def test_a_chain_is_as_long_as_what_waits_for_it() -> None:
    """A task's chain is its own time and that of the longest that waits for it."""
    chains = chains_of(TAKES, WAITS_FOR)
    assert (chains["end"], chains["long2"], chains["long1"], chains["short3"]) == (1, 6, 7, 2)
    assert chains["begin"] == 8


@pytest.mark.parametrize("seed", range(10))
def test_the_longest_chain_comes_first(seed: int, tmp_path: Path) -> None:
    """Of nine tasks that one task makes ready, the one with the long chain runs first, in whatever order they were."""
    names = [*WAITS_FOR]
    rotated = names[seed:] + names[:seed]
    ran = run(rotated, tmp_path)
    assert ran[:3] == ["begin", "long1", "long2"]
    assert sorted(ran) == sorted(names)
    assert ran[-1] == "end"


def test_every_task_runs_once_after_what_it_waits_for(tmp_path: Path) -> None:
    """With several processes, too."""
    ran = run([*WAITS_FOR], tmp_path, processes=3)
    assert sorted(ran) == sorted(WAITS_FOR)
    for name, before in WAITS_FOR.items():
        assert all(ran.index(other) < ran.index(name) for other in before)


def test_a_graph_that_much_waits_for_is_made_first(write_config: Callable[[str], Path]) -> None:
    """Of the default plan's steps int8's quantisation comes before exports and builds: most work waits for it."""
    project = Project.load(write_config("profiles: [1]\nworkspaces: [1GiB]\n"), STAGES)
    schedule = project.schedule
    chains = chains_of(
        {step.name: schedule.spec(step.stage).seconds for step in schedule.steps},
        {
            step.name: [other.name for found in schedule.dependencies(step) for other in found]
            for step in schedule.steps
        },
    )
    order = ("source:resnet18", "data:resnet18", "quantize:resnet18/int8", "rounding:resnet18/int8")
    assert [chains[name] for name in order] == sorted((chains[name] for name in order), reverse=True)
    assert chains["quantize:resnet18/int8"] > chains["rounding:resnet18/fp16"]
