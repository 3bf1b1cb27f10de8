"""Standings of the finals, the winner beside its peers, and its rates by the number of streams."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING

import pytest

from model_artifacts.records import Clock, Key
from pipeline.tune.finals.standings import eager_of, peers_of, rates_of, standings_of, tied
from pipeline.tune.records import STREAM_SETTING, Choice, FinalRestart, FinalSet, Point, TrialVerdict
from tests.support.searches import OBJECTIVES, contender, trial_of

if TYPE_CHECKING:
    from collections.abc import Sequence

INT8, FP16 = contender("int8-b1", 0), contender("fp16-b1", 1)
LATENCY, BIG, THROUGHPUT, MEMORY = OBJECTIVES


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
    eager = eager_of(LATENCY, winner, FP16.subject, restarts)
    assert eager
    assert (eager.least, eager.clock, eager.winner_clock) == (4.0, Clock.GPU_GRAPH, Clock.GPU_GRAPH)
    rate = standings_of(THROUGHPUT, TRIALS, restarts)[0]
    eager = eager_of(THROUGHPUT, rate, FP16.subject, restarts)
    assert eager
    assert eager.least == 4.0
    noisy = eager_of(LATENCY, winner, FP16.subject, [restart(1, 1.0, 4.0), restart(2, 1.0, 8.0)])
    assert noisy
    assert (noisy.least or 0) < 4.0
    assert eager_of(LATENCY, winner, FP16.subject, restarts[:1]) is None
    assert eager_of(LATENCY, winner, "m/gpu/none", restarts) is None
    assert eager_of(MEMORY, winner, FP16.subject, restarts) is None


EIGHT = INT8.point.with_choice(Choice(setting=STREAM_SETTING, value=8))


def timed(finalists: Sequence[Point], *sets: tuple[int, Clock, float, int | None]) -> list[FinalRestart]:
    """Return two restarts, with the times for a batch of 64: finalist, clock, milliseconds, streams."""
    found = [
        FinalSet(finalist=index, batch=64, clock=clock, rounds_ms=(time, time), streams=streams)
        for index, clock, time, streams in sets
    ]
    plain = restart(1).model_copy(update={"finalists": tuple(finalists), "sets": tuple(found)})
    return [plain, plain.model_copy(update={"restart": 2})]


STREAMED = timed(
    (INT8.point, FP16.point, EIGHT),
    (0, Clock.GPU_GRAPH, 0.64, None),
    (0, Clock.STREAMS, 0.4, 4),
    (1, Clock.GPU_GRAPH, 1.28, None),
    (2, Clock.GPU_GRAPH, 0.5, None),
    (2, Clock.STREAMS, 0.32, 8),
)


def test_the_number_of_streams_that_won_is_told() -> None:
    """A finalist stands once, with its best; one that was timed with eight streams is the same engine."""
    standings = standings_of(THROUGHPUT, TRIALS, STREAMED)
    assert [(item.point, item.trial, item.streams, item.value) for item in standings] == [
        (EIGHT, 1, 8, 200_000.0),
        (FP16.point, 2, None, 50_000.0),
    ]
    rates = [(item.streams, item.batch, item.rate) for item in rates_of(THROUGHPUT, standings[0], STREAMED)]
    assert rates == [(1, 64, 100_000.0), (4, 64, 160_000.0), (8, 64, 200_000.0)]
    assert rates_of(BIG, standings_of(BIG, TRIALS, STREAMED)[0], STREAMED) == []


def test_other_numbers_of_streams_are_no_latency() -> None:
    """The second process of the same engine stands for no latency, though it was the faster one."""
    assert [(item.point, item.value) for item in standings_of(BIG, TRIALS, STREAMED)] == [
        (INT8.point, 0.64),
        (FP16.point, 1.28),
    ]


def test_peers_are_the_best_of_each_other_backend() -> None:
    """By the clock that both have in common: ONNX Runtime's CUDA provider has the host's alone."""
    names = ("onnxruntime-fp32", "onnxruntime-fp16", "inductor-fp16", "eager-fp32")
    finalists = (INT8.point, *(Point(subject=f"m/gpu/{name}") for name in names))
    restarts = timed(
        finalists,
        (0, Clock.GPU_GRAPH, 1.0, None),
        (0, Clock.HOST, 3.0, None),
        (1, Clock.HOST, 12.0, None),
        (2, Clock.HOST, 6.0, None),
        (3, Clock.GPU_GRAPH, 0.5, None),
        (4, Clock.GPU, 20.0, None),
    )
    backends = {0: "tensorrt", 1: "onnxruntime", 2: "onnxruntime", 3: "inductor"}
    winner = standings_of(BIG, TRIALS, restarts)[0]
    found = {peer.subject.rpartition("/")[2]: peer for peer in peers_of(BIG, winner, backends, restarts)}
    assert {name: (peer.clock, peer.ratio, peer.least, peer.most) for name, peer in found.items()} == {
        "onnxruntime-fp16": (Clock.HOST, 2.0, 2.0, 2.0),
        "inductor-fp16": (Clock.GPU_GRAPH, 0.5, 0.5, 0.5),
    }
    rate = standings_of(THROUGHPUT, TRIALS, restarts)[0]
    assert [peer.ratio for peer in peers_of(THROUGHPUT, rate, backends, restarts)] == [2.0, 0.5]
    (single,) = (peer for peer in peers_of(BIG, winner, backends, restarts[:1]) if peer.ratio == 2.0)
    assert (single.least, single.most) == (None, None)
    assert peers_of(MEMORY, standings_of(MEMORY, TRIALS, [])[0], backends, restarts) == []


def test_a_winner_of_the_host_s_clock_meets_its_peers_by_that_clock() -> None:
    """A call of ONNX Runtime beside the engine's work on the GPU alone would be another comparison."""
    engine = Point(subject="m/gpu/fp32-b64")
    restarts = timed(
        (INT8.point, engine), (0, Clock.HOST, 2.0, None), (1, Clock.GPU_GRAPH, 3.0, None), (1, Clock.HOST, 5.0, None)
    )
    winner = standings_of(BIG, TRIALS, restarts)[0]
    (peer,) = peers_of(BIG, winner, {0: "onnxruntime", 1: "tensorrt"}, restarts)
    assert (peer.clock, peer.ratio, peer.least, peer.most) == (Clock.HOST, 2.5, 2.5, 2.5)
    eager = eager_of(BIG, winner, engine.subject, restarts)
    assert eager
    assert (eager.least, eager.clock, eager.winner_clock) == (2.5, Clock.HOST, Clock.HOST)


def test_a_peer_without_a_time_in_common_is_left_out() -> None:
    """It has died in a restart, or the winner has none by its clock."""
    finalists = (INT8.point, Point(subject="m/gpu/onnxruntime-fp16"))
    restarts = timed(finalists, (0, Clock.GPU_GRAPH, 1.0, None), (1, Clock.HOST, 6.0, None))
    winner = standings_of(BIG, TRIALS, restarts)[0]
    assert peers_of(BIG, winner, {0: "tensorrt", 1: "onnxruntime"}, restarts) == []


def test_two_clocks_on_the_gpu_are_both_told() -> None:
    """Eager FP32 has no CUDA graph, and its ratio to an engine that has one says so."""
    restarts = timed((INT8.point, FP16.point), (0, Clock.GPU_GRAPH, 1.0, None), (1, Clock.GPU, 4.0, None))
    eager = eager_of(BIG, standings_of(BIG, TRIALS, restarts)[0], FP16.subject, restarts)
    assert eager
    assert (eager.least, eager.winner_clock, eager.clock) == (4.0, Clock.GPU_GRAPH, Clock.GPU)


@pytest.mark.parametrize(
    ("host_ms", "winner"), [(1.0, 1), (1.2, 2)], ids=["shorter with its copies", "longer with its copies"]
)
def test_the_host_s_clock_wins_only_if_even_that_is_shorter(host_ms: float, winner: int) -> None:
    """And ties with no work on the GPU, though the intervals overlap: they are of different intervals of time."""
    sets = (
        (0, Clock.HOST, host_ms, host_ms),
        (1, Clock.GPU_GRAPH, 1.1, 0.9),
    )
    plain = restart(1).model_copy(update={"finalists": (INT8.point, FP16.point)})
    restarts = [
        plain.model_copy(
            update={
                "restart": number + 1,
                "sets": tuple(
                    FinalSet(finalist=index, batch=64, clock=clock, rounds_ms=(times[number], times[number], 1.1))
                    for index, clock, *times in sets
                ),
            }
        )
        for number in (0, 1)
    ]
    standings = standings_of(BIG, TRIALS, restarts)
    assert standings[0].trial == winner
    low, high = (max(item.low for item in standings), min(item.high for item in standings))
    assert low <= high
    assert tied(standings) == 0
