"""Standings of the finals, the frontier, and how often each choice helped."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from hypothesis import given

from model_artifacts.records import Clock
from pipeline.tune.frontier import effects_of, frontier_of
from pipeline.tune.records import Choice, Point, Trial, TrialVerdict
from pipeline.tune.repair import RULE
from tests.support.searches import LEVEL, OBJECTIVES, STREAMS, WORLDS, World, contender, trial_of

if TYPE_CHECKING:
    from pipeline.tune.space import Contender

INT8, FP16 = contender("int8-b1", 0), contender("fp16-b1", 1)
LATENCY = OBJECTIVES[0]


def find(subject: str) -> Contender | None:
    """Return one of the two contenders."""
    return next((item for item in (INT8, FP16) if item.subject == subject), None)


TRIALS = [trial_of(1, INT8.point, 1.0, memory=30), trial_of(2, FP16.point, 2.0, memory=20)]


@given(world=WORLDS)
def test_the_frontier_holds_what_nothing_beats(world: World) -> None:
    """All of it passed, and each trial outside is beaten by one of its members."""
    trials = world.run(world.search(), [])
    frontier = frontier_of(trials, OBJECTIVES)
    assert all(trial.passed for trial in frontier)
    assert bool(frontier) == any(trial.passed for trial in trials)
    for one, other in combinations(frontier, 2):
        assert measures(one) != measures(other)


def measures(trial: Trial) -> tuple[float, ...]:
    """Return what the frontier compares."""
    return (*(item.p50_ms for item in trial.screened), trial.drop or 0.0, trial.memory_bytes or 0.0)


def test_a_trade_of_latency_for_memory_is_on_the_frontier() -> None:
    """A slower one with more of both is not."""
    worse = trial_of(3, FP16.point.with_choice(LEVEL), 3.0, memory=40)
    assert [trial.number for trial in frontier_of([*TRIALS, worse], OBJECTIVES)] == [1, 2]


def test_a_choice_is_counted_against_the_same_point_without_it() -> None:
    """At both batch sizes; a setting that the library refused has its reason, and a missed gate is counted."""
    refused = trial_of(5, INT8.point.with_choice(STREAMS), verdict=TrialVerdict.UNSUPPORTED, refused=STREAMS.setting)
    trials = [
        *TRIALS,
        trial_of(3, INT8.point.with_choice(LEVEL), 0.9),
        trial_of(4, FP16.point.with_choice(LEVEL), verdict=TrialVerdict.REJECTED),
        refused.model_copy(update={"reason": "it has none"}),
    ]
    effects = {item.what: item for item in effects_of(trials, OBJECTIVES, find)}
    level, streams = effects[LEVEL.text], effects[STREAMS.text]
    assert (level.compared, level.helped, level.ratio, level.lost) == (2, 2, 0.9, 1)
    assert (streams.compared, streams.note) == (0, "it has none")
    assert effects["int8 in place of fp16"].ratio == 0.5


def test_a_call_by_the_host_s_clock_is_no_ratio_to_work_on_the_gpu() -> None:
    """It counts copies, too: nothing says how often int8 in place of fp16 helped."""
    called = [item.model_copy(update={"clock": Clock.HOST}) for item in TRIALS[0].screened]
    mixed = [TRIALS[0].model_copy(update={"screened": tuple(called)}), TRIALS[1]]
    assert effects_of(mixed, OBJECTIVES, find) == []
    assert [item.what for item in effects_of(TRIALS, OBJECTIVES, find)] == ["int8 in place of fp16"]


def test_a_choice_that_saves_the_gate_is_counted() -> None:
    """The same point without it missed the gate, so that there is no latency to compare with."""
    rule = Choice(setting=RULE, value="mse")
    trials = [
        trial_of(1, INT8.point, verdict=TrialVerdict.REJECTED),
        trial_of(2, INT8.point.with_choice(rule), 1.0),
        trial_of(3, FP16.point.with_choice(rule), 1.0),
    ]
    (effect,) = effects_of(trials, OBJECTIVES, lambda _: None)
    assert (effect.what, effect.compared, effect.rescued) == ("quantization.calibration: mse", 0, 1)


def test_a_trial_that_ended_tells_of_the_choice_that_ended_it() -> None:
    """Neither of those that the other trial has, too, nor of those that the library could apply."""
    rule = Choice(setting=RULE, value="mse")
    ruled = trial_of(3, INT8.point.with_choice(rule), verdict=TrialVerdict.REJECTED)
    same = trial_of(4, ruled.point.with_choice(STREAMS), verdict=TrialVerdict.UNCHANGED)
    same = same.model_copy(update={"same_as": 3, "reason": "its graph is that of trial 3"})
    lacking = trial_of(5, ruled.point.with_choice(LEVEL), verdict=TrialVerdict.UNSUPPORTED, refused=LEVEL.setting)
    lacking = lacking.model_copy(update={"reason": "the library lacks it"})
    notes = {item.what: item.note for item in effects_of([ruled, same, lacking], OBJECTIVES, find)}
    assert notes == {rule.text: "", STREAMS.text: same.reason, LEVEL.text: lacking.reason}


def test_a_difference_of_one_percent_is_no_help() -> None:
    """Screening is one restart."""
    trials = [TRIALS[0], trial_of(2, INT8.point.with_choice(LEVEL), 0.99)]
    assert [item.helped for item in effects_of(trials, OBJECTIVES, find)] == [0]


def test_a_point_of_no_plan_has_no_traits() -> None:
    """It is compared with nothing."""
    trials = [trial_of(1, Point(subject="m/gpu/other"), 1.0), TRIALS[1]]
    assert effects_of(trials, OBJECTIVES, find) == []
