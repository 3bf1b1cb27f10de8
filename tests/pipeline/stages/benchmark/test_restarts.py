"""Benchmarks that are interrupted, extended, damaged or joined by a new variant: the restarts on disk."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from model_artifacts.host.record_files import write_record
from model_artifacts.records import GitState, Key, KeyField
from pipeline.cli.main import main
from pipeline.planning.plan import Plan
from pipeline.planning.project import Project
from pipeline.records import Outcome, RestartRecord
from pipeline.stages import STAGES
from pipeline.stages.benchmark.restarts import remove_restarts
from pipeline.stages.benchmark.stage import benchmark_target
from pipeline.stages.common.outcomes import Ending
from tests.conftest import REPOSITORY
from tests.support.configs import rewrite
from tests.support.parts import long_test
from tests.support.timed_processes import Processes, stand_in, steady

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CPU = "cpu-x86_64"
NAMES = ("eager-fp32", "onnxruntime-fp16", "onnxruntime-fp32", "onnxruntime-int8-cpu")

CLEAN, DIRTY = GitState(commit="c" * 40, dirty=False), GitState(commit="c" * 40, dirty=True)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Processes:
    """Stand-ins for the processes of variants, which keep the requests in order."""
    caplog.set_level(logging.INFO, "pipeline")
    return stand_in(monkeypatch)


@pytest.fixture
def untimed(copied: Path) -> Project:
    """A project with three restarts, whose CPU target was never timed."""
    config = copied / "pipeline.yaml"
    config.write_text(config.read_text().replace("restarts: 2", "restarts: 3"))
    project = Project.load(config, STAGES)
    variants = project.plan.variants_on(CPU)
    remove_restarts(project, variants)
    for variant in variants:
        project.paths.benchmark(variant).unlink()
    return project


def results(project: Project) -> dict[str, Any]:
    """Return the records of a target without the times of their writing."""
    found = {}
    for variant in project.plan.variants_on(CPU):
        found[variant.name] = project.benchmark(variant).model_dump(mode="json")
        del found[variant.name]["built_at"]
    return found


def opened_since(processes: Processes, count: int) -> list[str]:
    """Return the sorted names of the processes after the first `count`."""
    return sorted(processes.opened[count:])


def stopping_at(name: str, turn: int) -> Callable[[str, int], None]:
    """Return a function that interrupts the benchmark in a restart of a variant."""

    def stop(asked: str, number: int) -> None:
        if (asked, number) == (name, turn):
            raise KeyboardInterrupt

    return stop


def drifting(name: str, batch: int, turn: int) -> float:
    """Return a latency that depends on the number of the restart, too."""
    return steady(name, batch, turn) * (1 + turn / 500)


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_an_interrupted_benchmark_goes_on_and_ends_the_same(
    untimed: Project, processes: Processes, tmp_path: Path, caplog: pytest.LogCaptureFixture, turn: int
) -> None:
    """Its reports and samples are equal to those of an uninterrupted run, and no complete restart is taken twice."""
    shutil.copytree(untimed.config_file.parent, tmp_path / "whole")
    whole = Project.load(tmp_path / "whole/pipeline.yaml", STAGES)
    processes.milliseconds = drifting
    benchmark_target(whole, CPU)
    assert opened_since(processes, 0) == sorted(NAMES * 3)

    processes.asked.clear()
    processes.before = stopping_at("onnxruntime-fp32", turn)
    with pytest.raises(KeyboardInterrupt):
        benchmark_target(untimed, CPU)
    processes.before = lambda _name, _turn: None
    caplog.clear()
    again = len(processes.opened)
    kept = turn - 1
    processes.milliseconds = lambda name, batch, number: drifting(name, batch, number - (number > turn))
    benchmark_target(untimed, CPU)
    assert opened_since(processes, again) == sorted(NAMES * (3 - kept))
    assert (f"going on from restart {turn} of 3" in caplog.text) == (kept > 0)
    assert results(untimed) == results(whole)


def test_more_restarts_extend_a_benchmark(untimed: Project, processes: Processes) -> None:
    """Only the new restarts are taken; fewer restarts take none, and the reports are those of the first ones."""
    three = results_with(untimed, 3, processes)
    count = len(processes.opened)
    five = results_with(untimed, 5, processes)
    assert opened_since(processes, count) == sorted(NAMES * 2)
    count = len(processes.opened)
    assert results_with(untimed, 3, processes) == three
    assert processes.opened[count:] == []
    (timing, *_) = five["onnxruntime-fp32"]["timings"]
    assert (five["onnxruntime-fp32"]["restarts"], timing["runs"]) == (5, 5 * 2)


def results_with(project: Project, restarts: int, processes: Processes) -> dict[str, Any]:
    """Benchmark a target with a number of restarts, and return its records."""
    processes.milliseconds = drifting
    settings = project.config.benchmark.model_copy(update={"restarts": restarts})
    plan = Plan(project.config.model_copy(update={"benchmark": settings}), project.plan.host)
    other = Project(plan, project.paths, STAGES, project.config_file)
    benchmark_target(other, CPU)
    return results(other)


def test_a_current_benchmark_is_taken_anew_if_asked_for(
    untimed: Project, processes: Processes, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody who runs the step of a noisy result gets new latencies, not the old ones once more."""
    benchmark_target(untimed, CPU)
    count = len(processes.opened)
    processes.milliseconds = lambda name, batch, turn: 2 * steady(name, batch, turn)
    before, _ = results(untimed), benchmark_target(untimed, CPU)
    assert opened_since(processes, count) == sorted(NAMES * 3)
    assert "timing them anew, as the step was asked for" in caplog.text
    old, new = (found["onnxruntime-fp32"]["timings"][0]["p50_ms"] for found in (before, results(untimed)))
    assert new == pytest.approx(2 * old, abs=2e-4)


def _edit_record(project: Project, path: Path, _samples: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"restart": 2', b'"restart": 3'))
    assert project.paths.root in path.parents


def _cut_samples(_project: Project, _path: Path, samples: Path) -> None:
    samples.write_bytes(samples.read_bytes()[:-7])


def _lose_samples(_project: Project, _path: Path, samples: Path) -> None:
    samples.unlink()


def _make_foreign(project: Project, path: Path, _samples: Path) -> None:
    record = project.read(path, RestartRecord)
    others = (item for item in record.key.fields if item.name != "processor")
    key = Key(fields=(*others, KeyField(name="processor", value='"a Pentium"')))
    write_record(path, record.model_copy(update={"key": key}))


def _take_the_first(project: Project, path: Path, _samples: Path) -> None:
    shutil.copy(path.with_name(path.name.replace("restart-2", "restart-1")), path)
    assert project.paths.root in path.parents


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_edit_record, "was changed after it was written"),
        (_cut_samples, "is not what was made"),
        (_lose_samples, "is missing, or is not what was made"),
        (_make_foreign, "processor changed"),
        (_take_the_first, "is the record of restart 1 of"),
    ],
)
def test_a_damaged_or_foreign_restart_is_taken_again(
    untimed: Project,
    processes: Processes,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Project, Path, Path], None],
    reason: str,
) -> None:
    """A restart counts as a whole: it is taken again for all, with a line that says why, and the others are not."""
    benchmark_target(untimed, CPU)
    expected, count = results(untimed), len(processes.opened)
    variant = untimed.plan.variant(f"tiny/{CPU}/onnxruntime-int8-cpu")
    damage(untimed, untimed.paths.restart(variant, 2), untimed.paths.restart_samples(variant, 2))
    untimed.paths.benchmark(variant).unlink()  # a benchmark whose reports are current starts anew
    caplog.clear()
    benchmark_target(untimed, CPU)
    assert opened_since(processes, count) == sorted(NAMES)
    assert reason in caplog.text
    assert "3 restarts of an earlier run are taken again: the samples of other variants" in caplog.text
    assert "going on from restart 2 of 3" in caplog.text
    assert results(untimed) == expected


def test_a_variant_that_failed_is_timed_with_the_baseline_alone(
    untimed: Project, processes: Processes, caplog: pytest.LogCaptureFixture
) -> None:
    """The crash of one variant in the second restart costs the others nothing, and itself two restarts."""
    crash = Ending(Outcome.FAILED, "its process was killed by SIGSEGV")
    processes.before = lambda name, turn: crash if (name, turn) == ("onnxruntime-int8-cpu", 2) else None
    benchmark_target(untimed, CPU)
    failed = results(untimed)
    assert failed["onnxruntime-int8-cpu"]["reason"] == crash.reason
    count = len(processes.opened)
    assert processes.opened.count("onnxruntime-int8-cpu") == 2
    processes.before = lambda _name, _turn: None
    benchmark_target(untimed, CPU)
    assert opened_since(processes, count) == sorted(("eager-fp32", "onnxruntime-int8-cpu") * 2)
    assert "1 of 4 variants have restarts to take: onnxruntime-int8-cpu; others keep their samples" in caplog.text
    now = results(untimed)
    assert now.pop("onnxruntime-int8-cpu")["outcome"] == "done"
    del failed["onnxruntime-int8-cpu"]
    assert now == failed


def without_int8(project: Project) -> None:
    """Time a target before one of its variants is built, then put its build into its place."""
    record = project.paths.artifact(project.plan.variant(f"tiny/{CPU}/onnxruntime-int8-cpu"))
    kept = record.read_bytes()
    record.unlink()
    benchmark_target(project, CPU)
    record.write_bytes(kept)


def intervals(project: Project, name: str) -> tuple[float, float, float]:
    """Return the median of a variant's first sample set, with the ends of its interval."""
    timing = project.benchmark(project.plan.variant(f"tiny/{CPU}/{name}")).timings[0]
    return timing.p50_ms, *timing.interval_ms


def test_a_new_variant_is_compared_through_the_baseline(untimed: Project, processes: Processes) -> None:
    """Only it and eager FP32 are timed; every interval grows by half of the sessions' difference."""
    without_int8(untimed)
    count = len(processes.opened)
    alone = intervals(untimed, "onnxruntime-fp32")
    processes.milliseconds = lambda name, batch, turn: 1.02 * steady(name, batch, turn)
    benchmark_target(untimed, CPU)
    assert opened_since(processes, count) == sorted(("eager-fp32", "onnxruntime-int8-cpu") * 3)
    p50, low, high = intervals(untimed, "onnxruntime-fp32")
    assert p50 == alone[0]
    assert (low / alone[1], high / alone[2]) == pytest.approx((1.02**-0.5, 1.02**0.5), rel=2e-3)
    speedup = untimed.benchmark(untimed.plan.variant(f"tiny/{CPU}/onnxruntime-int8-cpu")).timings[0].speedup
    assert speedup == pytest.approx(steady("eager-fp32", 1, 0) / steady("onnxruntime-int8-cpu", 1, 0), rel=1e-3)


def test_all_are_timed_again_if_the_baseline_has_changed(
    untimed: Project, processes: Processes, caplog: pytest.LogCaptureFixture
) -> None:
    """A machine that is 20 % slower by now would make the new variant look slow: nothing earlier is kept."""
    without_int8(untimed)
    count = len(processes.opened)
    processes.milliseconds = lambda name, batch, turn: 1.2 * steady(name, batch, turn)
    benchmark_target(untimed, CPU)
    assert opened_since(processes, count) == sorted((*("eager-fp32", "onnxruntime-int8-cpu") * 3, *NAMES * 3))
    assert "timing all variants again, because earlier samples cannot be compared with new ones" in caplog.text
    assert "the machine's speed may have changed by 18%" in caplog.text
    names = {name: project_taken(untimed, name) for name in NAMES}
    assert len(set(names.values())) == 1


def test_samples_that_nobody_compared_are_not_accepted_later(untimed: Project, processes: Processes) -> None:
    """A run that ends between its last restart and the comparison leaves that to the next one."""
    without_int8(untimed)
    processes.milliseconds = lambda name, batch, turn: 1.2 * steady(name, batch, turn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.stages.benchmark.stage.disagreement", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            benchmark_target(untimed, CPU)
    count = len(processes.opened)
    benchmark_target(untimed, CPU)
    assert opened_since(processes, count) == sorted(NAMES * 3)


def _interrupt(_measured: object) -> str:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("states", "kept"),
    [
        ((DIRTY, CLEAN), False),
        ((None, CLEAN), False),
        ((CLEAN, CLEAN), True),
        ((DIRTY, DIRTY), True),
        ((DIRTY, None), True),
    ],
)
def test_samples_of_uncommitted_code_do_not_become_a_commits(
    untimed: Project,
    processes: Processes,
    monkeypatch: pytest.MonkeyPatch,
    states: tuple[GitState | None, GitState | None],
    *,
    kept: bool,
) -> None:
    """A clean checkout takes the restarts of a dirty one again; else its report would name a commit without them."""
    monkeypatch.setattr("pipeline.planning.project.git_state", lambda _: states[0])
    processes.before = stopping_at("onnxruntime-fp32", 3)
    with pytest.raises(KeyboardInterrupt):
        benchmark_target(untimed, CPU)
    processes.before = lambda _name, _turn: None
    count = len(processes.opened)
    monkeypatch.setattr("pipeline.planning.project.git_state", lambda _: states[1])
    benchmark_target(Project.load(untimed.config_file, STAGES), CPU)
    assert opened_since(processes, count) == sorted(NAMES * (1 if kept else 3))


def project_taken(project: Project, name: str) -> tuple[str, ...]:
    """Return the names of the rounds of a variant's restarts."""
    paths = [project.paths.restart(project.plan.variant(f"tiny/{CPU}/{name}"), number) for number in (1, 2, 3)]
    return tuple(json.loads(path.read_text())["taken"] for path in paths)


@long_test
def test_a_killed_benchmark_goes_on(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With real processes: what SIGKILL leaves of the first restart is kept as it is, and the others follow."""
    rewrite(copied, "restarts: 2", "restarts: 3")
    config = rewrite(copied, "[fp32, fp16, bf16, int8]", "[fp32]")
    project = Project.load(copied / "pipeline.yaml", STAGES)
    variants = [project.plan.variant(f"tiny/{CPU}/{name}") for name in ("eager-fp32", "onnxruntime-fp32")]
    assert [*project.plan.variants_on(CPU)] == variants
    whole = [project.benchmark(variant) for variant in variants]
    remove_restarts(project, variants)
    first = [project.paths.restart(variant, 1) for variant in variants]
    command = [sys.executable, "-m", "pipeline", "benchmark", f"tiny/{CPU}", "--config", config]
    with subprocess.Popen(  # noqa: S603 - this project's own command
        command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 120
        while not all(path.exists() for path in first) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
    kept = [path.read_bytes() for path in first]
    assert main(["benchmark", f"tiny/{CPU}", "--config", config]) == 0
    assert "going on from restart 2 of 3" in capsys.readouterr().out
    assert [path.read_bytes() for path in first] == kept
    for variant, report in zip(variants, map(project.benchmark, variants), strict=True):
        assert report.restarts == 3
        assert len(set(project_taken(project, variant.name))) == 3
        shapes = [[(item.clock, item.batch, item.layout) for item in found.timings] for found in (report, *whole)]
        assert shapes[0] == shapes[1] == shapes[2]
        assert {item.runs for item in report.timings} == {3 * 2}
