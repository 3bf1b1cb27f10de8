"""Standings of the finals, the frontier, and how often each choice helped."""

from __future__ import annotations

from datetime import datetime, timezone
from itertools import combinations
from typing import TYPE_CHECKING

import pytest
from hypothesis import given

from model_artifacts.records import Clock, Key
from pipeline.tune.frontier import effects_of, frontier_of, least_speedup_of, standings_of, tied
from pipeline.tune.records import Choice, FinalRestart, FinalSet, Point, Trial, TrialVerdict
from pipeline.tune.repair import RULE
from tests.support.searches import LEVEL, OBJECTIVES, STREAMS, WORLDS, World, contender, trial_of

if TYPE_CHECKING:
    from pipeline.tune.space import Contender

INT8, FP16 = contender("int8-b1", 0), contender("fp16-b1", 1)
LATENCY, BIG, THROUGHPUT, MEMORY = OBJECTIVES


def find(subject: str) -> Contender | None:
    """Return one of the two contenders."""
    return next((item for item in (INT8, FP16) if item.subject == subject), None)


def restart(number: int, *times: float, streams: float | None = None) -> FinalRestart:
    """Return a restart in which the finalists took these times, at both batch sizes."""
    sets = [
        FinalSet(finalist=index, batch=batch, clock=Clock.GPU_GRAPH, rounds_ms=(time * batch, time * batch))
        for index, time in enumerate(times)
        for batch in (1, 64)
    ]
    if streams:
        sets.append(FinalSet(finalist=0, batch=64, clock=Clock.STREAMS, rounds_ms=(streams,)))
    return FinalRestart(
        key=Key(fields=()),
        built_at=datetime(2026, 1, 1, tzinfo=timezone.utc),
        restart=number,
        finalists=(INT8.point, FP16.point)[: len(times)],
        sets=tuple(sets),
        seconds=1.0,
    )


TRIALS = [trial_of(1, INT8.point, 1.0, memory=30), trial_of(2, FP16.point, 2.0, memory=20)]


def test_the_fastest_wins_with_its_interval() -> None:
    """The interval holds the medians of all restarts."""
    standings = standings_of(LATENCY, TRIALS, [restart(1, 1.0, 2.0), restart(2, 1.1, 2.1)])
    assert [item.trial for item in standings] == [1, 2]
    first = standings[0]
    assert (first.batch, first.clock, first.value, first.restarts) == (1, Clock.GPU_GRAPH, 1.05, 2)
    assert first.low <= 1.0
    assert first.high >= 1.1


def test_a_throughput_takes_the_best_batch_and_several_streams() -> None:
    """Its interval is that of the time, turned round."""
    standings = standings_of(THROUGHPUT, TRIALS, [restart(1, 1.0, 2.0, streams=32.0)])
    assert (standings[0].clock, standings[0].batch, standings[0].value) == (Clock.STREAMS, 64, 2000.0)
    assert standings[0].low <= standings[0].value <= standings[0].high


def test_a_latency_is_never_that_of_several_streams() -> None:
    """Though the time for a batch would be shorter."""
    assert standings_of(BIG, TRIALS, [restart(1, 1.0, 2.0, streams=32.0)])[0].value == 64.0


def test_memory_needs_no_finals() -> None:
    """The least memory of all that passed."""
    assert [item.trial for item in standings_of(MEMORY, TRIALS, [])] == [2, 1]


def test_what_missed_its_gate_never_stands() -> None:
    """A finalist that another run's gate rejects has no place, however fast it was."""
    missed = trial_of(1, INT8.point, verdict=TrialVerdict.REJECTED)
    assert [item.trial for item in standings_of(LATENCY, [missed, TRIALS[1]], [restart(1, 1.0, 2.0)])] == [2]


def test_a_finalist_that_one_restart_lacks_is_left_out() -> None:
    """Its process died there."""
    assert [item.trial for item in standings_of(LATENCY, TRIALS, [restart(1, 1.0, 2.0), restart(2, 1.0)])] == [1]


@pytest.mark.parametrize(("second", "expected"), [(1.02, 1), (2.0, 0)], ids=["overlapping", "apart"])
def test_overlapping_intervals_tie(second: float, expected: int) -> None:
    """Two medians that may be equal are not told apart."""
    restarts = [restart(1, 1.0, second), restart(2, 1.05, second + 0.01)]
    assert tied(standings_of(LATENCY, TRIALS, restarts)) == expected


def test_one_restart_says_nothing_of_ties() -> None:
    """It has no interval."""
    assert tied(standings_of(LATENCY, TRIALS, [restart(1, 1.0, 1.0)])) == 0
    assert tied([]) == 0


def test_a_speed_up_is_what_the_intervals_allow_at_least() -> None:
    """The second finalist stands for eager FP32. One restart has no interval, and memory no speed-up."""
    restarts = [restart(1, 1.0, 4.0), restart(2, 1.0, 4.0)]
    winner = standings_of(LATENCY, TRIALS, restarts)[0]
    assert least_speedup_of(LATENCY, winner, FP16.subject, restarts) == 4.0
    rate = standings_of(THROUGHPUT, TRIALS, restarts)[0]
    assert least_speedup_of(THROUGHPUT, rate, FP16.subject, restarts) == 4.0
    noisy = [restart(1, 1.0, 4.0), restart(2, 1.0, 8.0)]
    assert (least_speedup_of(LATENCY, winner, FP16.subject, noisy) or 0) < 4.0
    assert least_speedup_of(LATENCY, winner, FP16.subject, restarts[:1]) is None
    assert least_speedup_of(LATENCY, winner, "m/gpu/none", restarts) is None
    assert least_speedup_of(MEMORY, winner, FP16.subject, restarts) is None


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


def test_a_difference_of_one_percent_is_no_help() -> None:
    """Screening is one restart."""
    trials = [TRIALS[0], trial_of(2, INT8.point.with_choice(LEVEL), 0.99)]
    assert [item.helped for item in effects_of(trials, OBJECTIVES, find)] == [0]


def test_a_point_of_no_plan_has_no_traits() -> None:
    """It is compared with nothing."""
    trials = [trial_of(1, Point(subject="m/gpu/other"), 1.0), TRIALS[1]]
    assert effects_of(trials, OBJECTIVES, find) == []
