"""Trials so far → the point to try next, and the finalists. Pure, so that a search that was killed goes on as it would.

Successive halving with three rungs (K. Jamieson, A. Talwalkar, AISTATS 2016), whose first is the gate: every point is
built and validated; those that pass are timed in one restart; the best third of each objective meet in the finals, in
interleaved rounds of all restarts. Between the rungs, the points to try come from the best of each objective: one more
choice at a time, those first that have helped most. docs/design.md says why this is no sampler of a library's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.records import Backend
from pipeline.tune.records import STREAM_SETTING, Choice, Point, Trial, TrialVerdict
from pipeline.tune.repair import Repair, Screen, repair_of
from pipeline.tune.space import PARTS, is_of_graph

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.tune.repair import Ranking
    from pipeline.tune.space import Contender, Mixed, Option, Space

_STARTS = 0.5
"""The share of the budget after which no more variants are begun with, if one of each objective has passed."""
_RESERVE = 0.25
"""The share of the budget that is kept for the finals while nothing was timed, …"""
_MOST_RESERVE = 0.4
"""… and the most of it that is kept afterwards."""
_FINAL_ROUNDS = 1.5
"""The duration of a restart of the finals for one point, as a multiple of its screening's."""
_COMPILED = {Backend.DYNAMO.value, Backend.DYNAMO_AOTI.value, Backend.TORCH_COMPILE.value}
_COMPILE_SECONDS = 60.0
"""The probable seconds of the first module of its kind: a guess; an engine's first trial may always begin."""
_TURN = 4
"""After the first variants every fourth trial begins with one more, such as a module, if its time is left."""
_KEPT = 3
"""The share of points that a rung keeps, as a divisor."""
_LEAST_FINALISTS, _MOST_FINALISTS = 2, 3
"""The finalists of one objective."""
_STREAMS = (2, 4, 8)
"""The numbers of streams that the finals try for throughput, …"""
_STREAMED = 2
"""… and the finalists that they are tried with."""
_ENDS = ("profile", "io")
"""The traits that say how large the inputs and outputs of a variant are."""
MEMORY = "memory"
THROUGHPUT = "throughput"
LATENCY = "latency"
OBJECTIVES = (LATENCY, THROUGHPUT, MEMORY)


class Objective(NamedTuple):
    """A question that the search answers."""

    kind: str
    """`latency`, `throughput` or `memory`."""
    batch: int | None = None
    """The batch size, of a latency."""

    @property
    def name(self) -> str:
        """The objective as a phrase: `latency at batch 1`."""
        return f"{self.kind} at batch {self.batch}" if self.batch else self.kind

    def score(self, trial: Trial) -> float | None:
        """Return a trial's screened value, the smaller the better; None if it has none."""
        if not trial.passed:
            return None
        if self.kind == MEMORY:
            return None if trial.memory_bytes is None else float(trial.memory_bytes)
        if self.kind == THROUGHPUT:
            return min((item.image_ms for item in trial.screened), default=None)
        screened = trial.screening(self.batch or 0)
        return screened.p50_ms if screened else None


@dataclass(frozen=True)
class Search:
    """A search with its limits."""

    space: Space
    objectives: tuple[Objective, ...]
    budget_seconds: float
    rankings: Mapping[Repair, Ranking] = field(default_factory=dict)
    """The layers by their sensitivity, as far as they were measured."""
    rules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The rules for ranges that are worth a build, by quantised graph, as far as they were judged."""
    mixed: Mapping[str, Mixed] = field(default_factory=dict)
    """The quantised variants with layers left in FP16, by the subject of the plain one."""
    final_restarts: int = 3
    streams: int = 1
    """The number of streams that screening times an engine with; 1 times none."""
    pending_seconds: float = 0.0
    """The time that was spent on a repair, and is not yet counted with a trial."""
    cut: bool = False
    """True if the budget has ended a trial or a look at rules or layers, so that a larger one would go on there."""

    def next(self, trials: Sequence[Trial]) -> Point | Repair | Screen | None:
        """Return the next move; None if the budget or the points are used up.

        Args:
            trials: all trials so far, in their order.
        """
        left = self.seconds_left(trials)
        if left <= 0:
            return None
        starts = self._starts(trials)
        quick = [point for point in starts if not self._compiles(point)]
        answered = all(best_of(objective, trials) for objective in self.objectives)
        spent = self.spent(trials)
        if quick and not (answered and spent >= _STARTS * self.budget_seconds):
            if move := repair_of(trials, self.mixed, self.rules, self.rankings):
                return move
            if point := self._affordable(quick, trials, left):
                return point
        moves = [repair_of(trials, self.mixed, self.rules, self.rankings), *self._improvements(trials)]
        found = next((move for move in moves if isinstance(move, (Repair, Screen))), None)
        points = [move for move in moves if isinstance(move, Point)]
        is_turn = len(trials) % _TURN == _TURN - 1
        return found or self._affordable([*starts, *points] if is_turn else [*points, *starts], trials, left)

    def seconds_left(self, trials: Sequence[Trial]) -> float:
        """Return the part of the budget that is left for trials: what is not spent, and not kept for the finals."""
        return self.budget_seconds - self.spent(trials) - self.reserve(trials)

    def spent(self, trials: Sequence[Trial]) -> float:
        """Return the seconds that were spent so far, but those of the finals."""
        return sum(trial.seconds for trial in trials) + self.pending_seconds

    def repair_seconds(self, trials: Sequence[Trial]) -> float:
        """Return the time limit of a look at rules or layers: half of what is left while nothing has passed."""
        left = self.seconds_left(trials)
        return left if any(trial.passed for trial in trials) else left / 2

    def reserve(self, trials: Sequence[Trial]) -> float:
        """Return the seconds that are kept for the finals, by the time that screening took."""
        entries = len(self.finalists(trials)) + 1 + len(self.stream_points(trials)) + len(self.rivals(trials))
        wanted = self.final_seconds(trials, entries)
        return min(wanted, _MOST_RESERVE * self.budget_seconds) if wanted else _RESERVE * self.budget_seconds

    def final_seconds(self, trials: Sequence[Trial], entries: int) -> float:
        """Return the probable seconds of all restarts of the finals, by the time that screening took; 0 without any."""
        timed = [trial.screening_seconds for trial in trials if trial.passed and trial.same_as is None]
        return self.final_restarts * entries * _FINAL_ROUNDS * fmean(timed) if timed else 0.0

    def finalists(self, trials: Sequence[Trial]) -> list[Trial]:
        """Return the trials for the finals: the best third of each objective, the best of each first, then the second.

        With a place for each in this order, none is without its best while another has two.
        """
        found: list[tuple[int, Trial]] = []
        for objective in self.objectives:
            ranked = ranking_of(objective, trials)
            own = [trial for trial in ranked if trial.same_as is None]  # an equal engine is no second finalist
            number = min(max(-(-len(own) // _KEPT), _LEAST_FINALISTS), _MOST_FINALISTS)
            found += enumerate(own[:number])
        return list({trial.number: trial for _, trial in sorted(found, key=lambda item: item[0])}.values())

    def stream_points(self, trials: Sequence[Trial]) -> list[Point]:
        """Return the best finalists of throughput with other numbers of streams than they were screened with."""
        objective = next((item for item in self.objectives if item.kind == THROUGHPUT), None)
        if objective is None or self.streams == 1:
            return []
        own = [
            trial
            for trial in ranking_of(objective, trials)
            if trial.same_as is None and any(item.streams_ms is not None for item in trial.screened)
        ]
        numbers = [number for number in _STREAMS if number != self.streams]
        return [
            trial.point.with_choice(Choice(setting=STREAM_SETTING, value=number))
            for trial in own[:_STREAMED]
            for number in numbers
        ]

    def rivals(self, trials: Sequence[Trial]) -> list[Trial]:
        """Return the best trial of each backend without a finalist: the answers are shown beside these."""
        there = {self._kind(trial.point) for trial in self.finalists(trials)}
        found: dict[str, Trial] = {}
        for objective in self.objectives:
            for trial in ranking_of(objective, trials):
                kind = self._kind(trial.point)
                if objective.kind != MEMORY and kind not in there:
                    found.setdefault(kind, trial)
        return list(found.values())

    def _kind(self, point: Point) -> str:
        contender = self.contender(point)
        return contender.kind if contender else ""

    def _starts(self, trials: Sequence[Trial]) -> list[Point]:
        tried = {trial.point for trial in trials}
        return [item.point for item in self.space.contenders if item.point not in tried]

    def _compiles(self, point: Point) -> bool:
        """Return whether a point is a module, which compiles for a minute or two."""
        contender = self.contender(point)
        return contender is not None and contender.kind in _COMPILED

    def _affordable(self, points: Sequence[Point], trials: Sequence[Trial], left: float) -> Point | None:
        """Return the first point whose trial will probably end in time."""
        return next((point for point in points if self.estimate(point, trials) <= left), None)

    def estimate(self, point: Point, trials: Sequence[Trial]) -> float:
        """Return the probable seconds of a trial, by those of its kind; without one a minute for modules, else 0."""
        kind = self._kind(point)
        like = [
            trial.seconds / self._cost(trial.point)
            for trial in trials
            if trial.passed and trial.same_as is None and self._kind(trial.point) == kind
        ]
        if like:
            return fmean(like) * self._cost(point)
        return _COMPILE_SECONDS if kind in _COMPILED else 0.0

    def _cost(self, point: Point) -> float:
        contender = self.contender(point)
        options = contender.options if contender else ()
        return max((item.cost for item in options if item.choice in point.choices), default=1.0)

    def contender(self, point: Point) -> Contender | None:
        """Return the contender of a point, one with layers left in FP16 included; None for a point of no plan."""
        own = self.space.contender(point)
        mixed = (item.contender for item in self.mixed.values())
        return own or next((item for item in mixed if item.subject == point.subject), None)

    def _improvements(self, trials: Sequence[Trial]) -> list[Point]:
        """Return the best point of each objective with one more choice, the objectives taking turns.

        A choice that has changed nothing elsewhere comes behind those that were not tried at all.
        """
        tried = {trial.point for trial in trials}
        seen = [gains_of(objective, trials) for objective in self.objectives]
        known = {choice for gains in seen for choice in gains}
        found: list[list[Point]] = []
        for objective, gains in zip(self.objectives, seen, strict=True):
            best = best_of(objective, trials)
            contender = self.contender(best.point) if best else None
            if best is None or contender is None:
                continue
            fitting = [item for item in contender.options if self._fits(item, best.point, contender.kind, trials)]
            promises = {item: (_promise(item.choice, best.point, gains), item.choice in known) for item in fitting}
            points = [best.point.with_choice(item.choice) for item in sorted(fitting, key=promises.__getitem__)]
            found.append([point for point in points if point not in tried])
        turn = len(trials) % max(len(found), 1)
        turns = [*found[turn:], *found[:turn]]
        longest = max(map(len, turns), default=0)
        return [points[index] for index in range(longest) for points in turns if index < len(points)]

    def _fits(self, item: Option, point: Point, kind: str, trials: Sequence[Trial]) -> bool:
        """Return True if a choice can be added to a point: it is not made, not refused, and stands beside the others.

        Nor has it cost the same variant its gate, or left its graph as it was, or been of a graph that cannot be made.
        It is made if the point has a value of its setting, unless it may take that value's place.
        """
        made, refused = {choice.setting for choice in point.choices}, self._refused(point, kind, trials)
        if item.choice in _spoiling(point.subject, trials) | self._idle(point, trials):
            return False
        if self._is_unmade(point.with_choice(item.choice), trials):
            return False
        beside = (not item.needs or item.needs in made) and made.isdisjoint(item.excludes)
        is_free = item.replaces or item.choice.setting not in made
        return beside and is_free and item.choice.setting not in refused

    def _refused(self, point: Point, kind: str, trials: Sequence[Trial]) -> set[str]:
        """Return the settings that the library has refused for a kind.

        Whether a batch has parts depends on the tensors of an engine: another batch size or `io` may have them.
        """
        return {
            trial.refused
            for trial in trials
            if trial.verdict is TrialVerdict.UNSUPPORTED
            and (known := self.contender(trial.point))
            and known.kind == kind
            and (trial.refused != PARTS or self._traits(trial.point, _ENDS) == self._traits(point, _ENDS))
        }

    def _idle(self, point: Point, trials: Sequence[Trial]) -> set[Choice]:
        """Return the choices that have left the graph of a point as it was, whatever the batch range."""
        by_number = {trial.number: trial for trial in trials}
        found: set[Choice] = set()
        for trial in trials:
            twin = by_number.get(trial.same_as or 0)
            if trial.verdict is TrialVerdict.UNCHANGED and twin and self._graph(trial.point) == self._graph(point):
                found |= {*trial.point.choices} - {*twin.point.choices}
        return found

    def _is_unmade(self, point: Point, trials: Sequence[Trial]) -> bool:
        """Return True if a graph could not be made with the choices of this one, or with a part of them.

        A graph that the budget has ended is none of these.
        """
        own = {choice for choice in point.choices if is_of_graph(choice)}
        failed = (
            {choice for choice in trial.point.choices if is_of_graph(choice)}
            for trial in trials
            if trial.verdict is TrialVerdict.FAILED and not (trial.cut or trial.graph)
            if self._graph(trial.point) == self._graph(point)
        )
        return any(choices and choices <= own for choices in failed)

    def _graph(self, point: Point) -> tuple[object, ...]:
        """Return what says which graph a point is made from: its backend's and its precision's."""
        return self._traits(point, ("backend", "precision"))

    def _traits(self, point: Point, names: Sequence[str]) -> tuple[object, ...]:
        """Return some traits of a point's variant; None for each that it lacks."""
        contender = self.contender(point)
        traits = dict(contender.traits) if contender else {}
        return tuple(traits.get(name) for name in names)


def _spoiling(subject: str, trials: Sequence[Trial]) -> set[Choice]:
    """Return the choices with which a variant missed its gate, and kept it without."""
    own = [trial for trial in trials if trial.point.subject == subject]
    kept = {trial.point for trial in own if trial.passed}
    return {
        choice
        for trial in own
        if trial.verdict is TrialVerdict.REJECTED
        for choice in trial.point.choices
        if trial.point.without_choice(choice) in kept
    }


def ranking_of(objective: Objective, trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that passed, the best of an objective first; of two equal ones the earlier."""
    scored = [(score, trial) for trial in trials if (score := objective.score(trial)) is not None]
    return [trial for _, trial in sorted(scored, key=lambda item: (item[0], item[1].number))]


def best_of(objective: Objective, trials: Sequence[Trial]) -> Trial | None:
    """Return the best trial of an objective that passed; None if none did."""
    return next(iter(ranking_of(objective, trials)), None)


def _promise(choice: Choice, point: Point, gains: Mapping[Choice, float]) -> float:
    """Return the probable ratio of the scores with a choice to those without: 1 for one that was not tried.

    That of a choice that would take another's place is the one to that other.
    """
    if choice not in gains:
        return 1.0
    known = next((gains.get(item) for item in point.choices if item.setting == choice.setting), None)
    return gains[choice] / (known or 1.0)


def gains_of(objective: Objective, trials: Sequence[Trial]) -> dict[Choice, float]:
    """Return the mean ratio of the scores with a choice to those of the same points without it."""
    scores = {trial.point: score for trial in trials if (score := objective.score(trial)) is not None}
    ratios: dict[Choice, list[float]] = {}
    for point, score in scores.items():
        for choice in point.choices:
            before = scores.get(point.without_choice(choice))
            if before:
                ratios.setdefault(choice, []).append(score / before)
    return {choice: fmean(values) for choice, values in ratios.items()}
