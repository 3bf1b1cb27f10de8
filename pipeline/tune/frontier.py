"""Trials → the frontier, and how often each choice helped. Pure."""

from __future__ import annotations

import math
from itertools import combinations
from statistics import median
from typing import TYPE_CHECKING

from pipeline.tune.records import Effect, TrialVerdict, are_of_a_kind
from pipeline.tune.search import LATENCY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pipeline.tune.records import Choice, Trial
    from pipeline.tune.search import Objective
    from pipeline.tune.space import Contender

    Find = Callable[[str], Contender | None]

_HELPS = 0.98
"""The largest ratio of two screened latencies that counts as help. Screening is one restart, and differs by 1 %."""


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
        if _is_ended_by(choice, trial, trials):
            notes.append(trial.reason)
        before = by_point.get(trial.point.without_choice(choice))
        ratios += _ratios(trial, before, objectives) if before else []
        rescued += trial.passed and before is not None and before.verdict is TrialVerdict.REJECTED
    found = _summary(name, ratios, lost, "" if ratios else next(iter(notes), ""))
    return found.model_copy(update={"rescued": rescued})


def _is_ended_by(choice: Choice, trial: Trial, trials: Sequence[Trial]) -> bool:
    """Return True if a trial may have ended because of this one of its choices."""
    if trial.verdict is TrialVerdict.UNSUPPORTED:
        return trial.refused in {"", choice.setting}
    if trial.verdict is TrialVerdict.UNCHANGED:
        twin = next((other for other in trials if other.number == trial.same_as), None)
        return twin is None or choice not in twin.point.choices
    return trial.verdict is TrialVerdict.FAILED


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
    """Return the ratios of the latencies of two trials, one for each batch size that both were timed at.

    A call by the host's clock beside work on the GPU has none.
    """
    batches = [item.batch or 0 for item in objectives if item.kind == LATENCY]
    pairs = [(trial.screening(batch), before.screening(batch)) for batch in batches]
    return [
        mine.p50_ms / theirs.p50_ms
        for mine, theirs in pairs
        if mine and theirs and theirs.p50_ms and are_of_a_kind(mine.clock, theirs.clock)
    ]


def _summary(name: str, ratios: Sequence[float], lost: int, note: str) -> Effect:
    return Effect(
        what=name,
        compared=len(ratios),
        helped=sum(ratio <= _HELPS for ratio in ratios),
        ratio=round(median(ratios), 4) if ratios else None,
        lost=lost,
        note=note,
    )
