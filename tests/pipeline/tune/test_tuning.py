"""A whole search of a small network: on the processor, with a repair, and engines that this host can only build."""

from __future__ import annotations

import io
import math
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import ArtifactError, QuantizeError, RunError, StorageError, UsageError
from model_artifacts.host.environment import missing_driver
from model_artifacts.records import Graph
from pipeline.config.settings import Executor
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.validate import stage as validation
from pipeline.tune.records import Trial, TrialVerdict, TuneRecord
from pipeline.tune.repair import RULE
from pipeline.tune.search import Search
from pipeline.tune.steps.limits import Rest
from pipeline.tune.tuning import Wishes, tune
from tests.conftest import REPOSITORY
from tests.pipeline.tune.conftest import HOUR
from tests.support.searches import never_ends

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not missing_driver(), reason="a search on a GPU is in tests/gpu")
INT8, FP32 = "tiny/cpu-x86_64/onnxruntime-int8-cpu", "tiny/cpu-x86_64/onnxruntime-fp32"


def trials_of(project: Project) -> list[Trial]:
    """Return the trials on disk, in their order."""
    return [project.read(path, Trial) for path in sorted((project.paths.tune / "trials").glob("*.json"))]


def record_of(project: Project) -> TuneRecord:
    """Return the answer on disk."""
    return project.read(project.paths.tune / "tune.json", TuneRecord)


def test_int8_missed_its_gate_and_was_repaired(searched: Project) -> None:
    """Other ranges are nearer and miss it, too; the nearest passes with a layer in floating point, and is timed."""
    trials = trials_of(searched)
    missed = trials[:3]
    assert {(trial.point.subject, trial.verdict) for trial in missed} == {(INT8, TrialVerdict.REJECTED)}
    assert [trial.screened for trial in missed] == [(), (), ()]
    assert "relative L2" in missed[0].reason
    assert [[choice.setting for choice in trial.point.choices] for trial in missed] == [[], [RULE], [RULE]]
    assert missed[0].relative_l2 is not None
    (nearest,) = min(missed, key=lambda trial: trial.relative_l2 or math.inf).point.choices
    repaired = trials[3]
    assert repaired.point.subject == "tiny/cpu-x86_64/onnxruntime-int8-mixed-cpu"
    assert [len(choice.value) for choice in repaired.point.choices if isinstance(choice.value, tuple)] == [1]
    assert [choice for choice in repaired.point.choices if choice.setting == RULE] == [nearest]
    assert repaired.passed


def test_engines_are_built_and_skipped_with_the_reason(searched: Project) -> None:
    """A host without a GPU cannot prove them."""
    engines = [trial for trial in trials_of(searched) if "/rtx-" in trial.point.subject]
    assert {trial.verdict for trial in engines} == {TrialVerdict.SKIPPED}
    assert "no NVIDIA driver found" in {trial.reason for trial in engines}
    variant = searched.plan.variant("tiny/rtx-sm80+/fp32-b1-ws16MiB")
    assert searched.paths.engine(variant).is_file()


def test_winners_passed_their_gates(searched: Project) -> None:
    """Each objective has one, with its interval of two restarts."""
    passed = {trial.number for trial in trials_of(searched) if trial.passed}
    record = record_of(searched)
    assert [answer.objective for answer in record.answers] == ["latency at batch 1", "throughput", "memory"]
    assert {standing.trial for answer in record.answers for standing in answer.standings} <= passed
    assert {answer.standings[0].restarts for answer in record.answers} == {2, 0}
    assert record.complete
    assert {*record.frontier} <= passed


def test_the_screen_is_80_columns_wide_and_says_what_happened(searched_folder: Path) -> None:
    """Trials as they end, the frontier, the choices, the winners, and the snippets."""
    printed = (searched_folder / "printed.txt").read_text()
    assert max(map(len, printed.splitlines())) <= 80
    for text in (
        "rejected: ",
        "leave_unquantized.int8: 1 layers",
        "int8-cpu missed its gate: judging rules for its ranges",
        "  max       relative L2 ",
        "the frontier",
        "to rebuild it: tiny/tune/",
        "skipped",
    ):
        assert text in printed


def test_a_search_that_has_ended_is_answered_at_once(searched_folder: Path, tmp_path: Path) -> None:
    """All of it is cached: no trial is made again, and no restart taken; a lost trial is, and the answer stays."""
    shutil.copytree(searched_folder, tmp_path / "copy", symlinks=True)
    project = Project.load(tmp_path / "copy" / "pipeline.yaml", STAGES)
    before, answer = trials_of(project), record_of(project)
    stream = io.StringIO()
    again = tune(project, HOUR, stream)
    kept = [trial for trial in before if trial.verdict is not TrialVerdict.SKIPPED]
    assert [trial for trial in trials_of(project) if trial.verdict is not TrialVerdict.SKIPPED] == kept
    assert "finals, restart" not in stream.getvalue()
    assert again.answers == answer.answers


def test_a_drop_that_is_accepted_is_a_bound_of_its_own(searched_folder: Path, tmp_path: Path) -> None:
    """A search with another bound judges all points anew, and takes the artifacts that are there."""
    shutil.copytree(searched_folder, tmp_path / "copy", symlinks=True)
    project = Project.load(tmp_path / "copy" / "pipeline.yaml", STAGES)
    for path in (project.paths.tune / "trials").iterdir():
        trial = project.read(path, Trial)
        assert trial.drop is None or trial.drop <= 0.05
    stream = io.StringIO()
    record = tune(project, Wishes(3600.0, max_drop=-1.0, objectives=("memory",)), stream)
    assert (record.passed, record.answers) == (0, ())
    assert "--max-drop accepts" in stream.getvalue()
    assert sorted(project.paths.tune.glob("*.yaml")) == []  # no winner of the former bound is left


def test_a_finalist_without_a_place_is_named(copied_search: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host has memory for one, which is the best for latency; the other takes no part."""
    first, other = record_of(copied_search).answers[0].standings
    monkeypatch.setattr("pipeline.tune.tuning.host_memory_bytes", lambda: 4 * 2**30)
    stream = io.StringIO()
    record = tune(copied_search, HOUR._replace(objectives=("latency",)), stream)
    (standing,) = record.answers[0].standings
    (left,) = {first.point, other.point} - {standing.point}
    said = f"not in the finals, which have 1 place (4 GiB of memory each, 12 at most): {left.text}"
    assert "".join(said.split()) in "".join(stream.getvalue().split())  # it is wrapped


def test_a_repair_that_the_budget_ends_is_not_the_end(copied_search: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are tried, the answer is theirs, and the record says that more budget goes on."""
    tuned = copied_search.paths.tune
    for path in (tuned / "trials" / "0004.json", *tuned.glob("ranges-*"), *tuned.rglob("*.sensitivity.json")):
        path.unlink()
    monkeypatch.setattr(Search, "repair_seconds", lambda _search, _trials: 1e-3)
    stream = io.StringIO()
    record = tune(copied_search, HOUR._replace(objectives=("memory",)), stream)
    assert "no other ranges of int8-cpu: no result within the limit of 0.001 s" in stream.getvalue()
    assert "no repair of int8: no result within the limit of 0.001 s" in stream.getvalue()
    assert not record.complete
    assert [standing.point.subject for standing in record.answers[0].standings] == [FP32]


def test_a_validation_that_the_budget_ends_is_not_the_end(
    copied_search: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The screen says so, the answer is another's, and more budget goes on."""
    lost = next(trial for trial in trials_of(copied_search) if trial.point.subject == FP32)
    (copied_search.paths.tune / "trials" / f"{lost.number:04}.json").unlink()
    copied_search.paths.accuracy(copied_search.plan.variant(FP32)).unlink()
    monkeypatch.setattr(validation, "_run_onnx_or_on_cpu", never_ends)
    monkeypatch.setattr(Rest, "seconds", 1.0)
    stream = io.StringIO()
    record = tune(copied_search, HOUR._replace(objectives=("memory",)), stream)
    assert "failed: the budget ended its validation after 1 s; a larger --budget" in stream.getvalue()
    assert not record.complete
    (answer,) = record.answers
    assert {standing.point.subject for standing in answer.standings}.isdisjoint({FP32})
    assert record_of(copied_search) == record


def test_a_graph_that_cannot_be_made_ends_its_own_variants_alone(
    copied_search: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried once, the trial has the reason, and the answer is another's."""
    asked = []

    def failing(_project: Project, graph: Graph) -> None:
        asked.append(graph)
        raise QuantizeError("the graph cannot be quantised", got="a scale is not finite")

    copied_search.paths.onnx_record(Graph.INT8_CPU).unlink()
    monkeypatch.setattr("pipeline.stages.quantize.stage.make_quantized", failing)
    stream = io.StringIO()
    record = tune(copied_search, HOUR._replace(objectives=("memory",)), stream)
    failed = [trial for trial in trials_of(copied_search) if trial.verdict is TrialVerdict.FAILED]
    assert [(trial.point.subject, trial.point.choices) for trial in failed] == [(INT8, ())]
    assert failed[0].reason == "the graph cannot be quantised: a scale is not finite"
    assert "failed: the graph cannot be quantised" in stream.getvalue()
    assert asked == [Graph.INT8_CPU]
    subjects = {standing.point.subject for standing in record.answers[0].standings}
    assert FP32 in subjects
    assert INT8 not in subjects
    monkeypatch.undo()
    monkeypatch.chdir(REPOSITORY)
    tune(copied_search, HOUR._replace(objectives=("memory",)), io.StringIO())
    assert not [trial for trial in trials_of(copied_search) if trial.verdict is TrialVerdict.FAILED]


@pytest.mark.parametrize(
    "error", [RunError("the weights are gone"), StorageError("the disk is full")], ids=["all", "disk"]
)
def test_what_all_points_need_ends_the_search(
    copied_search: Project, monkeypatch: pytest.MonkeyPatch, error: ArtifactError
) -> None:
    """So does the disk, whose variant it meets first; nothing is recorded."""

    def failing(*_: object) -> None:
        raise error

    before = trials_of(copied_search)
    monkeypatch.setattr("pipeline.tune.tuning.ensure", failing)
    with pytest.raises(type(error), match=error.what):
        tune(copied_search, HOUR, io.StringIO())
    assert trials_of(copied_search) == before


def test_finals_that_the_budget_ends_are_not_complete(copied_search: Project) -> None:
    """Nothing is left to try, and more budget takes the restarts that are missing."""
    first, second = sorted((copied_search.paths.tune / "finals").glob("*.json"))
    assert record_of(copied_search).complete
    second.unlink()
    stream = io.StringIO()
    record = tune(copied_search, HOUR._replace(budget_seconds=1.0), stream)
    assert "the budget ends the finals after 1 of 2 restarts" in stream.getvalue()
    assert not record.complete
    assert "more --budget goes on from here" in stream.getvalue()
    assert first.exists()


def test_a_configuration_of_a_farm_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Timing belongs on the machine with the GPU."""
    monkeypatch.chdir(REPOSITORY)
    (tmp_path / "pipeline.yaml").write_text("profiles: [1]\nworkspaces: [1GiB]\n")
    project = Project.load(tmp_path / "pipeline.yaml", STAGES)
    farm = project.config.model_copy(update={"executor": Executor.RAY})
    project = replace(project, plan=replace(project.plan, config=farm))
    with pytest.raises(UsageError, match="builds on a farm"):
        tune(project, HOUR, io.StringIO())
