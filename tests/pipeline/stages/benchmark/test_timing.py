"""One restart of a group: fresh processes, and rounds in which all take turns."""

from __future__ import annotations

import multiprocessing
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from pipeline.planning.plan import Plan
from pipeline.planning.project import Project
from pipeline.records import Outcome
from pipeline.stages import STAGES
from pipeline.stages.benchmark.gpu_watch import Reading, Watch, conditions_of
from pipeline.stages.benchmark.results import Measured
from pipeline.stages.benchmark.stage import benchmark_target
from pipeline.stages.benchmark.timing import Worker, await_answer, time_restart
from pipeline.stages.common.outcomes import Ending
from tests.support.timed_processes import Processes, stand_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CPU = "cpu-x86_64"
HOT, COOL = Reading(900, 2600, 85, 300, 0x20), Reading(1980, 2600, 50, 300, 0)


def test_a_process_that_does_not_answer_is_ended(built: Project) -> None:
    """A variant whose process says nothing in time fails with that reason, and disturbs the others no longer."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=time.sleep, args=(600,), daemon=True)
    process.start()
    item = Measured(built.plan.variant(f"tiny/{CPU}/eager-fp32"))
    answer = await_answer(Worker(process, ours), item, 0.01)
    process.join(10)
    assert (answer, item.ending) == (None, Ending(Outcome.FAILED, "no answer in 0 s"))
    assert process.exitcode == -signal.SIGKILL
    ours.close()
    theirs.close()


def with_timing(built: Project, *, restarts: int, rounds: int) -> Project:
    """Return the finished tiny project, configured to time more often."""
    settings = built.config.benchmark.model_copy(update={"restarts": restarts, "rounds": rounds})
    return Project(Plan(built.config.model_copy(update={"benchmark": settings}), built.plan.host), built.paths, STAGES)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    """Stand-ins for the processes of variants, which keep the requests in order."""
    return stand_in(monkeypatch)


def test_rounds_are_interleaved_and_every_restart_opens_all_anew(built: Project, processes: Processes) -> None:
    """A B, A B at each batch size, both warmed up before; so that a change of the machine's pace hits all alike."""
    names = ("eager-fp32", "onnxruntime-fp32")
    project = with_timing(built, restarts=2, rounds=3)
    artifacts = [project.artifact(project.plan.variant(f"tiny/{CPU}/{name}")) for name in names]
    settings = project.config.benchmark
    expected = []
    for restart in range(settings.restarts):
        time_restart(project, None, artifacts, restart + 1)
        expected += [(name, "opened first" if restart == 0 else "opened") for name in names]
        for batch in built.config.timed_batches:
            expected += [(name, f"warm up {batch}") for name in names]
            expected += [(name, f"time {batch}") for name in names] * settings.rounds
    assert processes.asked == expected


def test_loading_is_parallel_unless_it_is_timed(built: Project, processes: Processes) -> None:
    """The first restart opens one after the other, for its cold starts; the others open all at once."""
    artifacts = [
        built.artifact(built.plan.variant(f"tiny/{CPU}/{name}")) for name in ("eager-fp32", "onnxruntime-fp32")
    ]
    time_restart(built, None, artifacts, 1)
    assert processes.loading == [
        "open eager-fp32",
        "ready eager-fp32",
        "open onnxruntime-fp32",
        "ready onnxruntime-fp32",
    ]
    processes.loading.clear()
    time_restart(built, None, artifacts, 2)
    assert processes.loading == [
        "open eager-fp32",
        "open onnxruntime-fp32",
        "ready eager-fp32",
        "ready onnxruntime-fp32",
    ]


def test_nothing_is_timed_for_guests_alone(built: Project, processes: Processes) -> None:
    """If a new variant cannot be opened, the baseline that is there for it is not timed either."""
    artifacts = [
        built.artifact(built.plan.variant(f"tiny/{CPU}/{name}")) for name in ("eager-fp32", "onnxruntime-fp32")
    ]
    time_restart(built, None, artifacts, 1, guests={artifact.variant.id for artifact in artifacts})
    assert [what for _, what in processes.asked] == ["opened first", "opened first"]


def test_what_the_sensors_showed_in_any_restart_counts(
    copied: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clocks that were held down in the first restart alone make the run a noisy one."""
    watches = [Watch(readings=[HOT]), *(Watch(readings=[COOL]) for _ in range(9))]

    @contextmanager
    def watching(_gpu: object, _ours: object) -> Iterator[Watch]:
        yield watches.pop(0)

    monkeypatch.setattr("pipeline.stages.benchmark.timing.watching", watching)
    project = with_timing(Project.load(copied / "pipeline.yaml", STAGES), restarts=2, rounds=1)
    found = next(report for report in benchmark_target(project, CPU) if report.variant_id.endswith("/eager-fp32"))
    assert len(processes.opened) == 4 * 2
    assert found.conditions == conditions_of([HOT, COOL])
    assert found.conditions is not None
    assert found.conditions.throttled_by == ("software thermal slowdown",)
