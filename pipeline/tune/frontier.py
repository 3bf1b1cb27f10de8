"""Trials and finals → standings, the frontier, and how often each choice helped. Pure."""

from __future__ import annotations

import math
from itertools import combinations
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.records import CLOCKS, Clock
from pipeline.stages.benchmark.statistics import interval_of_median
from pipeline.tune.records import Effect, Standing, TrialVerdict
from pipeline.tune.search import LATENCY, MEMORY, ranking_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pipeline.tune.records import FinalRestart, FinalSet, Trial
    from pipeline.tune.search import Objective
    from pipeline.tune.space import Contender

    Find = Callable[[str], Contender | None]

_HELPS = 0.98
"""The largest ratio of two screened latencies that counts as help. Screening is one restart, and differs by 1 %."""


def standings_of(objective: Objective, trials: Sequence[Trial], restarts: Sequence[FinalRestart]) -> list[Standing]:
    """Return the finalists of an objective that were timed in every restart, the best first.

    Args:
        objective: the objective.
        trials: all trials.
        restarts: the finals' restarts, which all have the same finalists.
    """
    passed = {trial.point: trial for trial in reversed(trials) if trial.passed}
    if objective.kind == MEMORY:
        return [_by_memory(trial) for trial in ranking_of(objective, trials)[:3]]
    finalists = restarts[0].finalists if restarts else ()
    found = [
        standing
        for index, point in enumerate(finalists)
        if point in passed and (standing := _standing(objective, index, passed[point], restarts))
    ]
    best = (lambda item: item.value) if objective.kind == LATENCY else (lambda item: -item.value)
    return sorted(found, key=best)


def _by_memory(trial: Trial) -> Standing:
    size = float(trial.memory_bytes or 0)
    return Standing(
        point=trial.point, trial=trial.number, value=size, low=size, high=size, drop=trial.drop or 0.0, restarts=0
    )


class Measured(NamedTuple):
    """The value of a finalist."""

    batch: int
    clock: Clock
    value: float
    low: float
    high: float


def _standing(objective: Objective, index: int, trial: Trial, restarts: Sequence[FinalRestart]) -> Standing | None:
    found = measured_of(objective, index, restarts)
    if found is None:
        return None
    return Standing(
        point=trial.point,
        trial=trial.number,
        batch=found.batch,
        clock=found.clock,
        value=found.value,
        low=found.low,
        high=found.high,
        drop=trial.drop or 0.0,
        restarts=len(restarts),
    )


def measured_of(objective: Objective, index: int, restarts: Sequence[FinalRestart]) -> Measured | None:
    """Return the value of a finalist by its best clock, of a throughput at its best batch size.

    Returns:
        the value; None if a restart lacks it.
    """
    sets = [[item for item in restart.sets if item.finalist == index] for restart in restarts]
    clocks = {(item.batch, item.clock) for item in sets[0]} if sets else set()
    whole = [key for key in clocks if all(any(_is(item, key) for item in own) for own in sets)]
    found: list[Measured] = []
    for batch, clock in sorted(_ranked(objective, whole)):
        rounds = [item.rounds_ms for own in sets for item in own if _is(item, (batch, clock))]
        middle = median(time for own in rounds for time in own)
        low, high = interval_of_median(rounds)
        found.append(Measured(batch, clock, middle, min(low, middle), max(high, middle)))
    if not found:
        return None
    best = min(found, key=lambda item: item.value / item.batch)
    times = (best.value, best.low, best.high)
    if objective.kind != LATENCY:
        value, high, low = (_rate(best.batch, time) for time in times)
        times = (value, low, high)
    return Measured(best.batch, best.clock, *(round(time, 4) for time in times))


def least_speedup_of(
    objective: Objective, winner: Standing, baseline: str | None, restarts: Sequence[FinalRestart]
) -> float | None:
    """Return how many times as fast as eager FP32 the winner is at least, by the ends of both intervals.

    Args:
        objective: the objective.
        winner: the best standing.
        baseline: the subject of eager FP32; None if the model has none.
        restarts: the finals' restarts, in which it took turns with all others.

    Returns:
        the ratio; None for memory, without eager FP32, or after one restart, which has no interval.
    """
    finalists = restarts[0].finalists if len(restarts) > 1 else ()
    index = next((place for place, point in enumerate(finalists) if point.subject == baseline), None)
    found = None if index is None or objective.kind == MEMORY else measured_of(objective, index, restarts)
    if found is None:
        return None
    slow, fast = (found.low, winner.high) if objective.kind == LATENCY else (winner.low, found.high)
    return round(slow / fast, 3) if fast else None


def _is(item: FinalSet, key: tuple[int, Clock]) -> bool:
    return (item.batch, item.clock) == key


def _rate(batch: int, milliseconds: float) -> float:
    return batch / max(milliseconds, 1e-6) * 1e3


def _ranked(objective: Objective, keys: Sequence[tuple[int, Clock]]) -> Iterator[tuple[int, Clock]]:
    """Yield the batch sizes and clocks that count for an objective: a latency is never that of several streams."""
    for size in sorted({batch for batch, _ in keys}):
        if objective.batch not in {None, size}:
            continue
        clocks = [clock for batch, clock in keys if batch == size]
        alone = [clock for clock in clocks if clock is not Clock.STREAMS]
        if alone:
            yield size, min(alone, key=CLOCKS.index)
        if objective.kind != LATENCY and Clock.STREAMS in clocks:
            yield size, Clock.STREAMS


def tied(standings: Sequence[Standing]) -> int:
    """Return how many of those behind the winner may be as good: their intervals overlap its own.

    One restart has no interval, and says nothing of ties.
    """
    if not standings or standings[0].restarts == 1:
        return 0
    first = standings[0]
    return sum(max(first.low, item.low) <= min(first.high, item.high) for item in standings[1:])


def frontier_of(trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[Trial]:
    """Return the trials that no other beats in every latency, in the drop and in the memory at once.

    A batch size that a point does not take counts as an endless latency. Of equal points the earliest stays.
    """
    passed = [trial for trial in trials if trial.passed]
    measures = {trial.number: _measures(trial, objectives) for trial in passed}
    return [trial for trial in passed if not any(_beats(other, trial, measures) for other in passed)]


def _measures(trial: Trial, objectives: Sequence[Objective]) -> tuple[float, ...]:
    scores = [objective.score(trial) for objective in objectives if objective.kind == LATENCY]
    values = [*scores, trial.drop, trial.memory_bytes]
    return tuple(math.inf if value is None else float(value) for value in values)


def _beats(one: Trial, other: Trial, measures: dict[int, tuple[float, ...]]) -> bool:
    mine, theirs = measures[one.number], measures[other.number]
    if mine == theirs:
        return one.number < other.number
    return all(own <= their for own, their in zip(mine, theirs, strict=True))


def effects_of(trials: Sequence[Trial], objectives: Sequence[Objective], find: Find) -> list[Effect]:
    """Return how often each choice helped, and each precision, backend and workspace in place of another.

    Args:
        trials: all trials.
        objectives: those of the search: a pair is compared by each latency that both have.
        find: the contender of a subject.
    """
    names = dict.fromkeys(choice.text for trial in trials for choice in trial.point.choices)
    return [*(_effect(name, trials, objectives) for name in names), *_trait_effects(trials, objectives, find)]


def _effect(name: str, trials: Sequence[Trial], objectives: Sequence[Objective]) -> Effect:
    by_point = {trial.point: trial for trial in trials}
    ratios: list[float] = []
    lost, rescued, notes = 0, 0, []
    for trial in trials:
        choice = next((item for item in trial.point.choices if item.text == name), None)
        if choice is None:
            continue
        lost += trial.verdict is TrialVerdict.REJECTED
        if trial.verdict in {TrialVerdict.UNSUPPORTED, TrialVerdict.UNCHANGED, TrialVerdict.FAILED}:
            notes.append(trial.reason)
        before = by_point.get(trial.point.without_choice(choice))
        ratios += _ratios(trial, before, objectives) if before else []
        rescued += trial.passed and before is not None and before.verdict is TrialVerdict.REJECTED
    found = _summary(name, ratios, lost, "" if ratios else next(iter(notes), ""))
    return found.model_copy(update={"rescued": rescued})


def _trait_effects(trials: Sequence[Trial], objectives: Sequence[Objective], find: Find) -> Iterator[Effect]:
    """Yield the comparisons of points that differ in one trait alone, such as int8 in place of fp16."""
    found: dict[str, list[float]] = {}
    known = [(trial, contender) for trial in trials if (contender := find(trial.point.subject))]
    for pair in combinations(known, 2):
        (first, mine), (second, theirs) = sorted(pair, key=lambda item: item[1].prior)
        values, others = dict(mine.traits), dict(theirs.traits)
        differing = [name for name in values if values[name] != others[name]]
        if first.point.choices == second.point.choices and len(differing) == 1 and differing != ["profile"]:
            name = f"{values[differing[0]]} in place of {others[differing[0]]}"
            found.setdefault(name, []).extend(_ratios(first, second, objectives))
    return (_summary(name, ratios, 0, "") for name, ratios in found.items() if ratios)


def _ratios(trial: Trial, before: Trial, objectives: Sequence[Objective]) -> list[float]:
    """Return the ratios of the latencies of two trials, one for each batch size that both were timed at."""
    scores = [(item.score(trial), item.score(before)) for item in objectives if item.kind == LATENCY]
    return [mine / theirs for mine, theirs in scores if mine is not None and theirs]


def _summary(name: str, ratios: Sequence[float], lost: int, note: str) -> Effect:
    return Effect(
        what=name,
        compared=len(ratios),
        helped=sum(ratio <= _HELPS for ratio in ratios),
        ratio=round(median(ratios), 4) if ratios else None,
        lost=lost,
        note=note,
    )
