"""The lines of a search: at most 80 columns, with the values, the reasons and the choices."""

from __future__ import annotations

import io
from datetime import datetime, timezone

import pytest
from hypothesis import given

from model_artifacts.records import Clock, Key, Precision
from pipeline.records import LayerProfile, LayerTime, Outcome
from pipeline.tune.explain import LayerFloor
from pipeline.tune.frontier import frontier_of
from pipeline.tune.records import Answer, Effect, Peer, ScreenedRule, Standing, StreamRate, TrialVerdict, TuneRecord
from pipeline.tune.table import (
    answer_lines,
    effect_lines,
    floor_lines,
    frontier_lines,
    rule_lines,
    summary_line,
    trial_lines,
    unproven_lines,
    write,
)
from tests.support.searches import LEVEL, OBJECTIVES, WORLDS, World, contender, trial_of

POINT = contender("int8-b1").point
NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
STANDING = Standing(
    point=POINT.with_choice(LEVEL), trial=1, batch=1, clock=Clock.GPU_GRAPH, value=0.1, low=0.09, high=0.11,
    drop=0.0, restarts=3,
)  # fmt: skip


EAGER = Peer(
    subject="m/gpu/eager-fp32", clock=Clock.GPU, winner_clock=Clock.GPU_GRAPH, ratio=12.0, least=11.0, most=13.0
)


def record_of(*answers: Answer, effects: tuple[Effect, ...] = (), complete: bool = False) -> TuneRecord:
    """Return an answer."""
    return TuneRecord(
        key=Key(fields=()), built_at=NOW, budget_seconds=600, spent_seconds=590, complete=complete, trials=9, passed=4,
        answers=answers, effects=effects,
    )  # fmt: skip


@given(world=WORLDS)
def test_no_line_is_wider_than_80_columns(world: World) -> None:
    """Whatever was found."""
    trials = world.run(world.search(), [])
    frontier = frontier_of(trials, OBJECTIVES)
    stream = io.StringIO()
    for trial in trials:
        write(stream, *trial_lines(trial.model_copy(update={"reason": "a long reason " * 20}), frontier, 100.0))
    write(stream, *frontier_lines(frontier, OBJECTIVES))
    assert max(map(len, stream.getvalue().splitlines()), default=0) <= 80


def test_a_trial_shows_its_choices_its_values_and_the_time_left() -> None:
    """A star marks the frontier."""
    trial = trial_of(1, POINT.with_choice(LEVEL), 0.5, drop=0.002, memory=3_000_000)
    assert trial_lines(trial, [trial], 42.0) == [
        f"{'  1  gpu/int8-b1':<65}10 s, 42 s left",
        "     + tensorrt.optimization_level: 5",
        "   * b1 0.5 ms, b64 4 ms, drop 0.20%, 3.0 MB",
    ]
    twin = trial.model_copy(update={"number": 2, "same_as": 1})
    assert trial_lines(twin, [trial], 42.0)[-1].endswith("; the same engine as 1")


def test_a_trial_that_did_not_pass_shows_its_reason() -> None:
    """In place of values."""
    trial = trial_of(1, POINT, verdict=TrialVerdict.REJECTED).model_copy(update={"reason": "too far off"})
    assert trial_lines(trial, [], -1.0)[-1] == "     rejected: too far off"
    assert "0 s left" in trial_lines(trial, [], -1.0)[0]


def test_the_frontier_is_a_table() -> None:
    """A batch size that a trial does not take is empty."""
    lines = frontier_lines([trial_of(1, POINT.with_choice(LEVEL), 0.5, batches=(1,))], OBJECTIVES)
    assert lines[1].split() == ["variant", "b1", "ms", "b64", "ms", "drop", "kB"]
    assert lines[2].split() == ["1", "int8-b1", "+1", "0.5", "0.00%", "1.0"]
    (_, head, row) = frontier_lines([trial_of(1, POINT, 0.5, memory=54_500_000)], OBJECTIVES)
    assert (head.split()[-1], row.split()[-1]) == ("MB", "54.5")


def test_a_small_memory_is_not_told_as_none() -> None:
    """A file of a tiny network has kilobytes."""
    trial = trial_of(1, POINT, 0.5, memory=12_345)
    assert trial_lines(trial, [], 42.0)[-1].endswith(", 12.3 kB")
    least = STANDING.model_copy(update={"value": 12_345.0, "clock": None, "batch": None, "restarts": 0})
    assert "    12.3 kB" in answer_lines(record_of(Answer(objective="memory", standings=(least,))))


def test_the_answer_names_the_winner_its_choices_and_ties() -> None:
    """With the file that rebuilds it."""
    answer = Answer(
        objective="latency at batch 1",
        standings=(STANDING, STANDING),
        tied=1,
        eager=EAGER,
        snippet="m/tune/x.yaml",
    )
    assert answer_lines(record_of(answer)) == [
        "latency at batch 1:",
        "  m/gpu/int8-b1",
        "    + tensorrt.optimization_level: 5",
        "    0.1 ms (95 %: 0.09 to 0.11), on the GPU, as a CUDA graph",
        "    at least 11.00 times as fast as eager FP32 in the same rounds; the winner on",
        "      the GPU, as a CUDA graph, the other on the GPU, without a CUDA graph",
        "    1 of 1 others tie: the intervals overlap",
        "    to rebuild it: m/tune/x.yaml",
    ]


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ({"ratio": 2.0, "least": 1.9, "most": 2.1}, "2.00 times as fast as inductor-fp16 (at least 1.90)"),
        (
            {"ratio": 1.0, "least": 0.9, "most": 1.1},
            "not told apart from inductor-fp16: the intervals of the two overlap",
        ),
        (
            {"ratio": 0.5, "least": 0.4, "most": 0.8},
            "inductor-fp16 is faster: at least 1.25 times as fast as the winner",
        ),
        ({"ratio": 2.0}, "2.00 times as fast as inductor-fp16, after one restart"),
    ],
    ids=["slower", "alike", "faster", "one restart"],
)
def test_a_peer_has_its_ratio(peer: dict[str, float], expected: str) -> None:
    """A peer that is faster is said to be, and no ratio is claimed that the intervals do not allow."""
    beside = Peer.model_validate(
        {"subject": "m/gpu/inductor-fp16", "clock": Clock.HOST, "winner_clock": Clock.HOST, **peer}
    )
    lines = answer_lines(record_of(Answer(objective="latency at batch 1", standings=(STANDING,), peers=(beside,))))
    assert f" {expected}, by the host's clock " in " ".join(line.strip() for line in lines)
    assert max(map(len, lines)) <= 80


def test_those_of_another_clock_are_told() -> None:
    """No tie is told of a call by the host's clock beside work on the GPU."""
    other = STANDING.model_copy(update={"clock": Clock.HOST})
    for standings, by in (((STANDING, other), "that of the host"), ((other, STANDING), "the GPU's")):
        lines = answer_lines(record_of(Answer(objective="latency at batch 1", standings=standings)))
        assert f"1 of 1 others are ranked by another clock, {by}" in " ".join(line.strip() for line in lines)
        assert max(map(len, lines)) <= 80


def test_times_by_the_host_s_clock_are_marked() -> None:
    """In a trial's line always, and in the frontier beside others."""
    times = trial_of(1, POINT, 0.5)
    called = times.model_copy(
        update={
            "number": 2,
            "screened": tuple(item.model_copy(update={"clock": Clock.HOST}) for item in times.screened),
        }
    )
    assert trial_lines(called, [], 42.0)[-1].endswith(", by the host's clock")
    lines = frontier_lines([times, called], OBJECTIVES)
    assert [line.split()[2:4] for line in lines[2:4]] == [["0.5", "4"], ["0.5h", "4h"]]
    assert lines[4] == "h: by the host's clock, which counts copies; all others on the GPU alone"
    assert "0.5h" not in " ".join(frontier_lines([called], OBJECTIVES))


def test_rates_have_their_number_of_streams() -> None:
    """The one that won is in the winner's own line."""
    rates = tuple(StreamRate(streams=number, batch=64, rate=1000.0 * number) for number in (1, 2, 8))
    winner = STANDING.model_copy(update={"batch": 64, "clock": Clock.STREAMS, "value": 8000.0, "streams": 8})
    lines = answer_lines(record_of(Answer(objective="throughput", standings=(winner,), streams=rates)))
    assert "    images/s by the number of streams: 1: 1,000, 2: 2,000, 8: 8,000" in lines
    assert "    8,000 images/s (95 %: 0 to 0), batch 64, 8 streams" in lines


def test_a_speed_up_that_noise_could_make_is_not_claimed() -> None:
    """Nothing is claimed if the intervals of the winner and of eager FP32 overlap, or eager FP32 is the faster one."""
    eager = EAGER.model_copy(update={"least": 0.9, "winner_clock": Clock.GPU})
    lines = answer_lines(record_of(Answer(objective="throughput", standings=(STANDING,), eager=eager)))
    assert "    not proven faster than eager FP32 by the intervals of the same rounds, on" in lines


def test_one_restart_claims_no_interval() -> None:
    """And tells of no tie."""
    once = STANDING.model_copy(update={"restarts": 1})
    lines = answer_lines(record_of(Answer(objective="throughput", standings=(once, once))))
    assert any("one restart, no interval" in line for line in lines)
    assert any("tells of no tie" in line for line in lines)


@pytest.mark.parametrize(
    ("effect", "expected"),
    [
        (Effect(what="x: 1", compared=4, helped=3, ratio=0.9), "3 of 4, time ×0.900"),
        (Effect(what="x: 1", compared=1, helped=0, ratio=1.0, lost=2), "0 of 1, time ×1.000, 2 missed the gate"),
        (Effect(what="x: 1", compared=0, helped=0, note="it has none"), "never compared: it has none"),
        (Effect(what="x: 1", compared=0, helped=0, rescued=1), "1 passed by it alone"),
        (Effect(what="x: 1", compared=2, helped=0, ratio=1.0, rescued=1), "0 of 2, time ×1.000, 1 passed by it alone"),
    ],
    ids=["helped", "lost", "refused", "rescued", "rescued and compared"],
)
def test_each_choice_has_a_line(effect: Effect, expected: str) -> None:
    """How often it helped, by how much, and how often it missed the gate."""
    name, counts = "  x: 1", effect_lines(record_of(effects=(effect,)))[1:]
    assert counts == ([f"{name:<50} {expected}"] if len(expected) < 30 else [name, f"{expected:>80}"])
    assert effect_lines(record_of()) == []


def test_rules_that_were_judged_without_a_build_have_lines() -> None:
    """The graph's own first, then those that are nearer; none is said as well."""
    own = ScreenedRule(rule="max", kept=False, loss=0.02, distance=0.1)
    other = ScreenedRule(rule="99.99%", kept=True, loss=0.0, distance=0.05)
    assert rule_lines([own, other], ["99.99%"]) == [
        "  max       relative L2 1.00e-01, loss 2.00%: its own",
        "  99.99%    relative L2 5.00e-02, loss 0.00%: these images keep the gate",
    ]
    assert rule_lines([own, other], [])[1:] == ["  no other rule is nearer"]


def test_the_end_says_why_it_stopped() -> None:
    """The budget, or nothing left."""
    assert summary_line(record_of()) == "9 trials, 4 passed, 590 s of 600 s: more --budget goes on from here"
    assert summary_line(record_of(complete=True)).endswith("nothing is left to try")
    skipped = trial_of(1, POINT, verdict=TrialVerdict.SKIPPED).model_copy(update={"reason": "no driver"})
    assert unproven_lines([skipped, skipped]) == ["2 skipped:", "     no driver"]
    assert unproven_lines([]) == []


def test_floors_and_strangers_have_lines() -> None:
    """The layer with most time above its floor, and the kernel of one in another type."""
    layer = LayerTime(name="conv1", kind="conv", precision=Precision.FP16, tactic="kernel", median_us=10.0, share=1.0)
    profile = LayerProfile(key=Key(fields=()), built_at=NOW, variant_id="m/gpu/x", outcome=Outcome.DONE, batch=64)
    lines = floor_lines(profile, [LayerFloor(layer, 4.0, "bytes")], [layer])
    assert lines[0] == "layers, batch 64, timed one by one: 10.0 us; their floors 4.0 us"
    assert lines[2].split() == ["10.0", "4.00", "6.0", "bytes", "fp16", "conv1"]
    assert lines[3] == "in fp16, not as asked: conv1 (kernel)"
