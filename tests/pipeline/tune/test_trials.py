"""One point: built, judged, and timed only if it passed; what ends it otherwise, and which records still hold."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import NewerRecordError
from model_artifacts.host.environment import missing_driver
from model_artifacts.records import SCHEMA_VERSION, Graph, Setting
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.sensitivity.ranges import JudgedRule
from pipeline.tune.records import Choice, Point, ScreenedRule, Trial, TrialVerdict
from pipeline.tune.setups import Setups
from pipeline.tune.trials import RULES, Trials, drop_of, refusal_of, screened_of, screened_rules, screening_of
from tests.support.records import with_digest
from tests.support.searches import LEVEL, STREAMS

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.config.quantization import RangeRule

pytestmark = pytest.mark.skipif(not missing_driver(), reason="a search on a GPU is in tests/gpu")
ENGINE, INT8 = "tiny/rtx-sm80+/fp32-b1-ws16MiB", "tiny/cpu-x86_64/onnxruntime-int8-cpu"


@pytest.fixture
def copied_search(searched_folder: Path, tmp_path: Path) -> Project:
    """A copy of the search, to go on with."""
    shutil.copytree(searched_folder, tmp_path / "copy", symlinks=True)
    return Project.load(tmp_path / "copy" / "pipeline.yaml", STAGES)


def test_a_setting_that_the_library_lacks_ends_a_trial_after_the_build(copied_search: Project) -> None:
    """TensorRT-RTX times no tactics: the engine would be another point's, and is neither judged nor timed."""
    store = Trials(Setups(copied_search))
    trial = store.make(Point(subject=ENGINE, choices=(LEVEL,)), store.read(), 600.0, spent=5.0)
    assert (trial.verdict, trial.refused) == (TrialVerdict.UNSUPPORTED, LEVEL.setting)
    assert trial.reason
    assert trial.seconds >= 5.0
    assert (trial.drop, trial.screened) == (None, ())
    assert [item.point for item in store.read()][-1] == trial.point


def test_choices_that_cannot_be_made_fail_alone_and_are_tried_again(copied_search: Project) -> None:
    """A layer that the graph has not is no end of the search, and its failure is not kept."""
    store = Trials(Setups(copied_search))
    before = store.read()
    layers = Choice(setting="leave_unquantized.int8", value=("no_such_layer",))
    mixed = "tiny/cpu-x86_64/onnxruntime-int8-mixed-cpu"
    trial = store.make(Point(subject=mixed, choices=(layers,)), before, 600.0)
    assert trial.verdict is TrialVerdict.FAILED
    assert "no_such_layer" in trial.reason
    assert store.read() == before


def test_groups_of_pairs_and_ranges_are_built_and_judged(copied_search: Project) -> None:
    """Each is a graph of its own in a folder of its own; an unchanged graph is timed once."""
    store = Trials(Setups(copied_search))
    found = []
    for setting, value in (("quantization.last", True), ("quantization.calibration", "max")):
        choice = Choice(setting=setting, value=value)
        found.append(store.make(Point(subject=INT8, choices=(choice,)), store.read(), 600.0))
    base = store.read()[0]
    last, own = found
    assert {trial.verdict for trial in (base, last, own)} == {TrialVerdict.REJECTED}  # by the gate of this search
    assert base.engine == own.engine != last.engine  # x86's own rule is the maximum
    assert own.drop == base.drop


def test_a_group_that_the_network_lacks_fails_alone(copied_search: Project) -> None:
    """The network has no concatenation; the record says so."""
    choice = Choice(setting="quantization.concats", value=False)
    store = Trials(Setups(copied_search))
    trial = store.make(Point(subject=INT8, choices=(choice,)), store.read(), 600.0)
    assert trial.verdict is TrialVerdict.FAILED
    assert "the graph has no concats" in trial.reason


def test_judged_rules_are_kept(copied_search: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search has judged them; another gate, or another meaning of answers, judges them again."""
    monkeypatch.setattr("pipeline.stages.sensitivity.ranges.judge_rules", None)
    found = screened_rules(copied_search, Graph.INT8_CPU)
    assert [item.rule for item in found] == ["max", "entropy", "mse", "99.9%", "99.99%", "99.999%"]
    config = copied_search.config
    gates = config.gates.model_copy(update={"margin": 0.5})
    model = config.model.model_copy(update={"tolerance": (0.5,)})
    for changed in ({"gates": gates}, {"model": model}):
        other = replace(copied_search, plan=replace(copied_search.plan, config=config.model_copy(update=changed)))
        with pytest.raises(TypeError, match="not callable"):
            screened_rules(other, Graph.INT8_CPU)


def test_only_rules_that_this_onnx_runtime_takes_are_judged(
    copied_search: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.10 has no ranges from files: entropy would fail, and no other rule would be judged."""
    judged: list[str] = []

    def judge(_project: Project, _graph: Graph, rules: list[RangeRule]) -> list[JudgedRule]:
        judged.extend(rule.text for rule in rules)
        return [JudgedRule(rule, kept=False, loss=0.0, distance=0.1) for rule in rules]

    monkeypatch.setattr("pipeline.stages.quantize.placing.TAKES_RANGES", False)
    monkeypatch.setattr("pipeline.stages.sensitivity.ranges.judge_rules", judge)
    found = screened_rules(copied_search, Graph.INT8_CPU)
    assert [item.rule for item in found] == judged == ["max", "99.9%", "99.99%", "99.999%"]


def test_outputs_that_are_not_finite_are_no_rule() -> None:
    """Nothing is nearer or farther than they are; without the graph's own there is nothing to compare with."""
    own, wild = (
        JudgedRule(RULES[0], kept=False, loss=-0.01, distance=0.1),
        JudgedRule(RULES[1], kept=False, loss=1.0, distance=math.nan),
    )
    assert screened_of([own, wild]) == (ScreenedRule(rule="max", kept=False, loss=0.0, distance=0.1),)
    assert screened_of([wild, own]) == screened_of([]) == ()


def test_a_lost_or_damaged_trial_is_made_again_from_what_is_built(copied_search: Project) -> None:
    """Its number is free again only if it was the last."""
    store = Trials(Setups(copied_search))
    trials = store.read()
    path = store.folder / f"{trials[0].number:04}.json"
    path.write_text(path.read_text().replace('"rejected"', '"passed"'))
    assert store.read() == trials[1:]
    assert not path.exists()
    again = store.make(trials[0].point, trials[1:], 600.0)
    assert (again.verdict, again.drop) == (trials[0].verdict, trials[0].drop)
    assert again.number == trials[-1].number + 1


def test_a_trial_of_a_newer_version_is_left_alone(copied_search: Project) -> None:
    """It is neither read nor deleted: the newer version goes on with it."""
    store = Trials(Setups(copied_search))
    path = store.folder / f"{store.read()[0].number:04}.json"
    version = f'"schema_version": {SCHEMA_VERSION}'
    newer = with_digest(path.read_text().replace(version, f"{version}0"))
    path.write_text(newer)
    with pytest.raises(NewerRecordError):
        store.read()
    assert path.read_text() == newer


def test_another_bound_makes_another_trial(copied_search: Project) -> None:
    """`--max-drop` is in the key; without it all trials hold."""
    assert Trials(Setups(copied_search), max_drop=0.5).read() == []


def test_a_refusal_names_the_setting_with_its_reason(searched: Project) -> None:
    """Among several choices; settings that the point has not chosen do not count."""
    artifact = searched.artifact(searched.plan.variant(ENGINE))
    settings = (
        Setting(name="refit", value="on", applied=False, note="not chosen"),
        Setting(name="max_aux_streams", value="0", applied=True),
        Setting(name="optimization_level", value="5", applied=False, note="it has no tactics"),
    )
    found = artifact.model_copy(update={"settings": settings})
    point = Point(subject=ENGINE, choices=(STREAMS, LEVEL))
    assert refusal_of(found, point) == (LEVEL.setting, "it has no tactics")
    assert refusal_of(found, Point(subject=ENGINE, choices=(STREAMS,))) is None


def test_a_drop_is_of_answers_and_of_tensors_a_distance(searched: Project) -> None:
    """What was not run has none."""
    report = searched.accuracy(searched.plan.variant(INT8))
    assert report.loss
    assert drop_of(report) == report.loss.drop
    assert report.accuracy
    assert drop_of(report.model_copy(update={"loss": None})) == report.accuracy.relative_l2
    assert drop_of(report.model_copy(update={"loss": None, "accuracy": None})) is None


def test_screening_is_cheaper_than_the_benchmark(searched: Project) -> None:
    """And never warms up for longer than the configuration says."""
    benchmark = screening_of(searched.config).benchmark
    assert (benchmark.restarts, benchmark.rounds, benchmark.warmup_seconds) == (1, 1, 0.1)


def test_what_missed_its_gate_has_no_latency(searched: Project) -> None:
    """In any record of the search."""
    records = [searched.read(path, Trial) for path in (searched.paths.tune / "trials").glob("*.json")]
    assert all(bool(trial.screened) == trial.passed for trial in records)
