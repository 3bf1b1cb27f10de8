"""Entrants of the finals beside the finalists, as far as there is time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from model_artifacts.records import Backend, Clock, Host
from pipeline.planning.plan import Plan
from pipeline.tune.finals.entrants import NOBODY, entrants_of
from pipeline.tune.records import STREAM_SETTING, Choice, ScreenedBatch, Trial
from pipeline.tune.search import Search
from pipeline.tune.space import Contender, Space
from tests.support.hosts import H100, TRT10, host
from tests.support.plans import config_of
from tests.support.searches import BATCHES, OBJECTIVES, contender, trial_of

INT8, FP16 = contender("int8-b1", 0), contender("fp16-b1", 1)
MODULE = Contender("m/gpu/dynamo-fp16", "dynamo", BATCHES, (2,))
LISTED = {"baselines": ["inductor", "onnxruntime", "onnxruntime_tensorrt"]}
PLAN = Plan(config_of(precisions=["fp16", "int8"], profiles=[1, 64], benchmark=LISTED), host(H100, flavours=(TRT10,)))


ROOM = 40


def streamed(number: int, of: Contender, milliseconds: float) -> Trial:
    """Return a trial that was screened with several streams."""
    found = trial_of(number, of.point, milliseconds)
    screened = (
        *found.screened[:-1],
        ScreenedBatch(batch=64, clock=Clock.GPU_GRAPH, p50_ms=9.0, streams_ms=milliseconds),
    )
    return found.model_copy(update={"screened": screened})


TRIALS = [streamed(1, INT8, 1.0), streamed(2, FP16, 2.0), trial_of(3, MODULE.point, 3.0)]
SEARCH = Search(Space((INT8, FP16, MODULE), BATCHES), OBJECTIVES, 10_000.0, streams=4)


def test_all_take_part_with_time_enough() -> None:
    """Other numbers of streams, the best of other backends, and the baselines that the configuration lists."""
    found = entrants_of(SEARCH, TRIALS, PLAN, ROOM)
    assert [(point.built, point.streams) for point in found.streams] == [
        (item.point, number) for item in (INT8, FP16) for number in (2, 8)
    ]
    assert [trial.number for trial in found.rivals] == [3]
    names = [PLAN.variant(point.subject) for point in found.baselines]
    assert [(item.backend, item.precision.value) for item in names] == [
        (Backend.ONNXRUNTIME_TENSORRT, "int8"),
        (Backend.ONNXRUNTIME_TENSORRT, "int8"),
        (Backend.INDUCTOR, "fp16"),
    ]
    assert [trial.number for trial in found.finalists] == [1, 2]
    assert found.left == found.crowded == ()


def test_what_there_is_no_time_for_is_named() -> None:
    """The two finalists and eager FP32 come first; two more entries end in time, each three restarts long."""
    spent = sum(trial.seconds for trial in TRIALS)
    seconds = SEARCH.final_seconds(TRIALS, 1)
    assert seconds == pytest.approx(3 * 1.5 * 2.5)
    search = replace(SEARCH, budget_seconds=spent + 5 * seconds)
    found = entrants_of(search, TRIALS, PLAN, ROOM)
    assert [point.streams for point in found.streams] == [2, 8]
    assert (found.rivals, found.baselines) == ((), ())
    assert found.left[:3] == ("2 streams", "8 streams", "dynamo-fp16")
    assert entrants_of(replace(search, budget_seconds=spent + 3 * seconds), TRIALS, PLAN, ROOM).streams == ()


def test_no_more_take_part_than_the_host_has_memory_for() -> None:
    """All have a process at once; finalists are never left out for others."""
    found = entrants_of(SEARCH, TRIALS, PLAN, 4)
    assert len(found.finalists) == 2
    assert ([point.streams for point in found.streams], found.rivals, found.left) == ([2, 8], (), ())
    assert found.crowded[:3] == ("2 streams", "8 streams", "dynamo-fp16")
    assert entrants_of(SEARCH, TRIALS, PLAN, 2).streams == ()


def test_finalists_have_room_the_best_of_each_objective_first() -> None:
    """The fastest for one image and the smallest come before the second for one image."""
    small = trial_of(9, contender("int8-b64").point, 8.0, memory=10)
    trials = [*TRIALS, small]
    assert [trial.number for trial in SEARCH.finalists(trials)] == [1, 9, 2]
    found = entrants_of(SEARCH, trials, PLAN, 2)
    assert ([trial.number for trial in found.finalists], found.crowded[0]) == ([1, 9], "gpu/fp16-b1")
    assert {"2 streams", "dynamo-fp16"} <= {*found.crowded}
    assert found.left == ()
    assert [trial.number for trial in entrants_of(SEARCH, trials, PLAN, 1).finalists] == [1]


def test_without_finalists_nothing_takes_part() -> None:
    """Nothing has passed; or the host has no GPU, whose baselines could."""
    assert entrants_of(SEARCH, [], PLAN, ROOM) == NOBODY
    processor = Plan(config_of(precisions=["fp16", "int8"], benchmark=LISTED), Host())
    assert entrants_of(SEARCH, TRIALS, processor, ROOM).baselines == ()


def test_streams_are_tried_for_throughput_alone() -> None:
    """Not for latencies, not where the configuration times none, and not for what has no streams."""
    latency = replace(SEARCH, objectives=OBJECTIVES[:1])
    assert latency.stream_points(TRIALS) == replace(SEARCH, streams=1).stream_points(TRIALS) == []
    assert SEARCH.stream_points(TRIALS[2:]) == []
    own = Choice(setting=STREAM_SETTING, value=8)
    assert [item.streams for item in replace(SEARCH, streams=2).stream_points(TRIALS[:1])] == [4, 8]
    assert INT8.point.with_choice(own).built == INT8.point


def test_a_backend_with_a_finalist_has_no_rival() -> None:
    """Its best is in the finals already."""
    assert SEARCH.rivals(TRIALS[:2]) == []
    assert [trial.number for trial in SEARCH.finalists(TRIALS[2:])] == [3]
    assert SEARCH.rivals(TRIALS[2:]) == []
