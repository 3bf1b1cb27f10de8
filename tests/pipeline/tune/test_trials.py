"""One point: built, judged, and timed only if it passed; what ends it otherwise, and which records still hold."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import NewerRecordError, RunError, StorageError
from model_artifacts.host.environment import missing_driver
from model_artifacts.records import SCHEMA_VERSION, Setting
from pipeline.records import Outcome
from pipeline.stages.validate import stage as validation
from pipeline.tune.records import Choice, Point, Trial, TrialVerdict
from pipeline.tune.setups import Setups
from pipeline.tune.trials import Trials, drop_of, refusal_of, screening_of
from tests.support.records import with_digest
from tests.support.searches import LEVEL, STREAMS, never_ends

if TYPE_CHECKING:
    from pipeline.planning.project import Project

pytestmark = pytest.mark.skipif(not missing_driver(), reason="a search on a GPU is in tests/gpu")
ENGINE, INT8 = "tiny/rtx-sm80+/fp32-b1-ws16MiB", "tiny/cpu-x86_64/onnxruntime-int8-cpu"
FP32 = "tiny/cpu-x86_64/onnxruntime-fp32"


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
    assert trial.graph == ""
    assert store.read() == before


def test_groups_of_pairs_and_ranges_are_built_and_judged(copied_search: Project) -> None:
    """Each is a graph of its own in a folder of its own; for an unchanged graph nothing is built."""
    store = Trials(Setups(copied_search))
    found = []
    for setting, value in (("quantization.last", True), ("quantization.calibration", "max")):
        choice = Choice(setting=setting, value=value)
        found.append(store.make(Point(subject=INT8, choices=(choice,)), store.read(), 600.0))
    base = store.read()[0]
    last, own = found
    assert {trial.verdict for trial in (base, last)} == {TrialVerdict.REJECTED}  # by the gate of this search
    assert base.graph == own.graph != last.graph  # x86's own rule is the maximum
    assert (own.verdict, own.same_as) == (TrialVerdict.UNCHANGED, base.number)
    assert own.reason == f"its graph is that of trial {base.number}; nothing was built"
    place = store.setups.place(own.point)
    assert not place.project.paths.artifact(place.variant).exists()
    assert store.read()[-1] == own


def test_the_same_graph_with_another_setting_of_the_builder_is_built(copied_search: Project) -> None:
    """It is another engine, unless a point has that setting, too."""
    store = Trials(Setups(copied_search))
    rule, int8 = Choice(setting="quantization.calibration", value="99.995%"), ENGINE.replace("fp32", "int8")
    plain = next(trial for trial in store.read() if trial.point.subject == int8)
    found = [plain]
    for choices in ((STREAMS,), (STREAMS, rule), (rule,)):
        ordered = tuple(sorted(choices, key=lambda item: item.setting))
        found.append(store.make(Point(subject=int8, choices=ordered), found, 600.0))
    assert {trial.graph for trial in found} == {plain.graph}
    assert [(trial.verdict, trial.same_as) for trial in found[1:]] == [
        (TrialVerdict.SKIPPED, None),
        (TrialVerdict.UNCHANGED, found[1].number),
        (TrialVerdict.UNCHANGED, plain.number),
    ]


def test_a_group_that_the_network_lacks_fails_alone(copied_search: Project) -> None:
    """The network has no concatenation; the record says so."""
    choice = Choice(setting="quantization.concats", value=False)
    store = Trials(Setups(copied_search))
    trial = store.make(Point(subject=INT8, choices=(choice,)), store.read(), 600.0)
    assert trial.verdict is TrialVerdict.FAILED
    assert "the graph has no concats" in trial.reason


def test_what_was_taken_from_a_trial_ends_with_it(copied_search: Project) -> None:
    """Nothing of its own says how fast it is: without the other trial, its point is tried again."""
    store = Trials(Setups(copied_search))
    base, *others = store.read()
    own = base.model_copy(update={"number": others[-1].number + 1, "same_as": base.number})
    path = store.folder / f"{own.number:04}.json"
    copied_search.write(path, own)
    assert store.read() == [base, *others, own]
    (store.folder / f"{base.number:04}.json").unlink()
    assert store.read() == others
    assert not path.exists()


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


def test_a_validation_that_hangs_ends_with_the_budget_and_is_tried_again(
    copied_search: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a processor, too, where `doit` gives it all the time that it takes. No loss is recorded, and none is timed.

    The same budget, or a smaller one, has spent its time on it once and for all.
    """
    point, store = Point(subject=FP32), Trials(Setups(copied_search), budget_seconds=60.0)
    kept = [trial for trial in store.read() if trial.point != point]
    place = store.setups.place(point)
    accuracy = place.project.paths.accuracy(place.variant)
    before = place.project.accuracy(place.variant)
    accuracy.unlink()
    with monkeypatch.context() as hanging:
        hanging.setattr(validation, "_run_onnx_or_on_cpu", never_ends)
        hanging.setattr("pipeline.tune.steps.limits._LEAST_SECONDS", 1.0)
        cut = store.make(point, kept, 0.0)
    assert (cut.verdict, cut.cut, cut.screened, cut.drop) == (TrialVerdict.FAILED, True, (), None)
    assert cut.reason == "the budget ended its validation after 1 s; a larger --budget tries it again"
    assert cut.seconds >= 1.0
    assert place.project.accuracy(place.variant).outcome is Outcome.FAILED
    assert cut in store.read()
    assert cut in replace(store, budget_seconds=30.0).read()
    more = replace(store, budget_seconds=61.0)
    assert [trial.point for trial in more.read()].count(point) == 0
    again = more.make(point, kept, 600.0)
    assert (again.verdict, again.cut, again.budget_seconds) == (TrialVerdict.PASSED, False, 0.0)
    assert place.project.accuracy(place.variant).accuracy == before.accuracy


def test_a_point_that_was_cut_is_taken_once_doit_has_validated_it(
    copied_search: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is left that could hang."""
    point, store = Point(subject=FP32), Trials(Setups(copied_search), budget_seconds=60.0)
    place = store.setups.place(point)
    place.project.paths.accuracy(place.variant).unlink()
    with monkeypatch.context() as hanging:
        hanging.setattr(validation, "_run_onnx_or_on_cpu", never_ends)
        hanging.setattr("pipeline.tune.steps.limits._LEAST_SECONDS", 1.0)
        cut = store.make(point, store.read(), 0.0)
    validation.validate_variant(place.project, place.variant)
    assert cut not in store.read()


@pytest.mark.parametrize(
    ("function", "work"),
    [
        ("pipeline.stages.quantize.stage.measure_shifts", "quantisation"),
        ("pipeline.stages.rounding.stage.run_graph", "rounding"),
    ],
    ids=["quantize", "rounding"],
)
def test_a_changed_graph_that_hangs_ends_with_the_budget(
    copied_search: Project, monkeypatch: pytest.MonkeyPatch, function: str, work: str
) -> None:
    """Nothing is recorded of its step, which a larger budget does anew."""
    choice = Choice(setting="quantization.last", value=True)
    store = Trials(Setups(copied_search), budget_seconds=60.0)
    with monkeypatch.context() as hanging:
        hanging.setattr(function, never_ends)
        hanging.setattr("pipeline.tune.steps.limits._LEAST_SECONDS", 3.0)
        cut = store.make(Point(subject=INT8, choices=(choice,)), store.read(), 0.0)
    assert (cut.verdict, cut.cut, cut.budget_seconds) == (TrialVerdict.FAILED, True, 60.0)
    assert cut.reason == f"the budget ended its {work} after 3 s; a larger --budget tries it again"
    assert cut in store.read()
    more = replace(store, budget_seconds=120.0)
    again = more.make(cut.point, more.read(), 600.0)
    assert again.relative_l2 is not None


def test_an_error_in_what_a_validation_requires_fails_the_point_alone(
    copied_search: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the rounding of a changed graph; the search goes on. Only the disk ends it."""

    def failing(*_: object) -> None:
        raise RunError("the emulation is gone")

    def full(*_: object) -> None:
        raise StorageError("the disk is full")

    store = Trials(Setups(copied_search))
    point = Point(subject=INT8, choices=(Choice(setting="quantization.last", value=True),))
    before = store.read()
    monkeypatch.setattr("pipeline.stages.rounding.stage.measure_rounding", failing)
    trial = store.make(point, before, 600.0)
    assert (trial.verdict, trial.reason, trial.cut) == (TrialVerdict.FAILED, "the emulation is gone", False)
    assert trial.graph, "it was made"
    assert store.read() == before
    monkeypatch.setattr("pipeline.stages.rounding.stage.measure_rounding", full)
    with pytest.raises(StorageError, match="the disk is full"):
        store.make(point, before, 600.0)
