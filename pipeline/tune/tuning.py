"""`doit tune`: the moves of the search, one after the other, until the budget or the points are used up."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.errors import ArtifactError, StorageError, UsageError, storage_errors
from model_artifacts.host.environment import host_memory_bytes, now
from model_artifacts.host.files import write_bytes
from model_artifacts.records import Backend, Graph
from pipeline.config.settings import Executor
from pipeline.planning.freshness import is_current
from pipeline.planning.keys import make_key
from pipeline.planning.steps import Step
from pipeline.records import Outcome
from pipeline.stages.benchmark.stage import room_of
from pipeline.system.locks import working
from pipeline.tune.finals.entrants import entrants_of
from pipeline.tune.finals.restarts import Finals
from pipeline.tune.finals.snippet import file_of, snippet_of
from pipeline.tune.finals.standings import eager_of, peers_of, rates_of, standings_of, tied
from pipeline.tune.foresight import foresight_of, left_lines
from pipeline.tune.frontier import effects_of, frontier_of
from pipeline.tune.records import Answer, Choice, Point, TuneRecord
from pipeline.tune.repair import RULE, Ranking, Repair, Screen, promising_rules
from pipeline.tune.rules import screened_rules
from pipeline.tune.search import LATENCY, Objective, Search
from pipeline.tune.setups import Setups
from pipeline.tune.space import mixed_of, space_of
from pipeline.tune.steps.limits import Rest
from pipeline.tune.steps.running import ensure, reason_of
from pipeline.tune.table import (
    answer_lines,
    effect_lines,
    floor_lines,
    frontier_lines,
    rule_lines,
    summary_line,
    trial_lines,
    unproven_lines,
    wrapped,
    write,
)
from pipeline.tune.trials import VERSION, Trials

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from typing import TextIO

    from pipeline.planning.project import Project
    from pipeline.tune.records import FinalRestart, Trial
    from pipeline.tune.space import Contender

_ENDLESS = 1e12
"""Seconds of a budget that ends nothing."""


class Wishes(NamedTuple):
    """Limits and aims of a search."""

    budget_seconds: float
    max_drop: float | None = None
    """The largest accepted drop, beside the gates; None leaves it to them."""
    objectives: tuple[str, ...] = ()
    """The kinds of objectives; none is all of them."""


def tune(project: Project, wishes: Wishes, stream: TextIO) -> TuneRecord:
    """Search for the best variants that pass their gates, and record the answer. Print each trial as it ends.

    Raises:
        UsageError: the configuration builds on a farm, or has nothing to search.
        ArtifactError: what all points are made from cannot be made.
        StorageError: a record cannot be written.
    """
    if project.config.executor is Executor.RAY:
        raise UsageError(
            "`doit tune` times on this machine, and the configuration builds on a farm",
            expected="executor: local",
            got="executor: ray",
            fix="run it on a machine with the GPU, with a configuration without `executor: ray`",
        )
    return _Tuning(project, wishes, stream).run()


@dataclass(frozen=True)
class _Tuning:
    """One run of a search."""

    project: Project
    wishes: Wishes
    stream: TextIO

    def run(self) -> TuneRecord:
        setups = Setups(self.project)
        contenders = self._contenders()
        unmade = self._prepare(contenders)
        search = self._search(unmade)
        store = Trials(setups, self.wishes.max_drop, self.wishes.budget_seconds, unmade)
        trials = store.read()
        if trials:
            write(self.stream, f"going on after {len(trials)} trials of an earlier run")
        search = self._explore(replace(search, cut=any(trial.cut for trial in trials)), store, trials)
        finals = self._entered(setups, search, trials)
        restarts = self._finals(finals, search.spent(trials))
        record = self._record(finals, search, trials, restarts)
        self._show(setups, record, search, trials)
        return record

    def _contenders(self) -> tuple[Contender, ...]:
        found = space_of(self.project.plan).contenders
        if not found:
            raise UsageError(
                "nothing to search: the matrix has no variant that this host could run and deploy",
                fix=f"`{self.project.command_of('plan')}` lists every step",
            )
        return found

    def _search(self, unmade: Collection[str]) -> Search:
        plan = self.project.plan
        foresight = foresight_of(self.project, unmade)
        space = space_of(plan, foresight.refusal, foresight.routes)
        for line in (*foresight.remarks, *left_lines(space.left)):
            write(self.stream, *wrapped(line, indent=0))
        wanted = self.wishes.objectives
        kinds = [Objective(LATENCY, batch) for batch in space.batches]
        objectives = [*kinds, Objective("throughput"), Objective("memory")]
        chosen = tuple(item for item in objectives if not wanted or item.kind in wanted)
        benchmark = self.project.config.benchmark
        return Search(
            space,
            chosen,
            self.wishes.budget_seconds,
            mixed=mixed_of(plan, space),
            final_restarts=benchmark.restarts,
            streams=benchmark.streams,
        )

    def _prepare(self, contenders: Sequence[Contender]) -> dict[str, str]:
        """Make what the points are made from: it is the same for `doit`, and counts for no budget.

        Returns:
            the variants whose graph cannot be made, or its rounding not be emulated, with the reasons.

        Raises:
            ArtifactError: no variant has what it is made from.
            StorageError: the disk is full, or a file cannot be written.
        """
        project, done, rest = self.project, dict[Step, ArtifactError | None](), Rest()
        write(self.stream, "preparing the model, its images and its graphs, as far as they are stale")
        variants = [project.plan.variant(item.subject) for item in contenders]
        errors: dict[str, ArtifactError] = {}
        for variant in variants:
            needed = project.schedule.dependencies(Step("validate", variant.id)).requires
            graph = (project.plan.graph_step(variant.graph),) if variant.graph else ()
            try:
                for step in (*(step for step in needed if step.stage != "build"), *graph):
                    ensure(project, step, rest, done)
            except StorageError:  # of the disk, not of the variant
                raise
            except ArtifactError as exc:
                errors[variant.id] = exc
        if len(errors) == len(variants):
            raise next(iter(errors.values()))
        for target in dict.fromkeys(variant.target for variant in variants):
            if baseline := project.plan.baseline(target):
                ensure(project, Step("build", baseline.id), rest, done)
        return {subject: reason_of(error) for subject, error in errors.items()}

    def _explore(self, search: Search, store: Trials, trials: list[Trial]) -> Search:
        """Make the moves of the search, and append each trial. Return the search with all that it has learnt."""
        while (move := search.next(trials)) is not None:
            began, limit = time.monotonic(), search.repair_seconds(trials)
            if isinstance(move, Screen):
                search = replace(search, rules={**search.rules, move.graph: self._rules(Graph(move.graph), limit)})
            elif isinstance(move, Repair):
                ranking = self._ranking(store.setups, move, limit)
                search = replace(search, rankings={**search.rankings, move: ranking})
            if not isinstance(move, Point):
                took = time.monotonic() - began
                search = replace(search, pending_seconds=search.pending_seconds + took, cut=search.cut or took >= limit)
                continue
            trials.append(store.make(move, trials, search.seconds_left(trials), search.pending_seconds))
            search = replace(search, pending_seconds=0.0, cut=search.cut or trials[-1].cut)
            frontier = frontier_of(trials, search.objectives)
            write(self.stream, *trial_lines(trials[-1], frontier, search.seconds_left(trials)))
        return search

    def _rules(self, graph: Graph, seconds: float) -> tuple[str, ...]:
        """Return the rules for ranges that are worth a build; none if they cannot be judged, or not in time."""
        write(self.stream, f"{graph.value} missed its gate: judging rules for its ranges on calibration images")
        try:
            screened = screened_rules(self.project, graph, seconds)
        except ArtifactError as exc:
            write(self.stream, f"  no other ranges of {graph.value}: {exc.what}")
            return ()
        promising = promising_rules(screened.rules)
        write(self.stream, *rule_lines(screened.rules, promising))
        if screened.left:
            write(self.stream, *wrapped(f"the budget ended it before {', '.join(screened.left)}", indent=2))
        return promising

    def _ranking(self, setups: Setups, need: Repair, seconds: float) -> Ranking:
        """Return the layers by their sensitivity; none, so that nothing is repaired, if that fails or takes long."""
        from pipeline.stages.sensitivity.stage import measure_sensitivity  # noqa: PLC0415 - a repair is rare

        graph = Graph(need.graph)
        step = Step("sensitivity", f"{self.project.plan.model}/{graph.value}")
        nearest = f" with {need.rule}, the nearest," if need.rule else ""
        write(self.stream, f"{graph.value}{nearest} missed its gate: measuring each layer's sensitivity")
        try:
            project = setups.project((Choice(setting=RULE, value=need.rule),) if need.rule else ())
            if not is_current(project, step):
                with working(alone=False):
                    measure_sensitivity(project, graph, seconds)
            found = project.sensitivity(graph)
        except ArtifactError as exc:
            write(self.stream, f"  no repair of {graph.value}: {exc.what}")
            return Ranking((), 0)
        others = [layer.name for layer in found.layers if layer.weights and layer.name not in found.proposal]
        layers = (*found.proposal, *others)[:-1]  # with all of them in FP16 nothing would be quantised
        return Ranking(layers, len(found.proposal))

    def _entered(self, setups: Setups, search: Search, trials: Sequence[Trial]) -> Finals:
        """Return the finals with all that takes part, whose baselines are built. Say what is left out."""
        plan = self.project.plan
        gpu = next((gpu for target in plan.targets if (gpu := plan.gpu(target))), None)
        room = room_of(gpu, host_memory_bytes())
        found, there = entrants_of(search, trials, plan, room), list[Point]()
        for point in found.baselines:
            place = setups.place(point)
            try:
                ensure(place.project, Step("build", point.subject), Rest())
                artifact = place.project.artifact(place.variant)
                reason = "" if artifact.outcome is Outcome.DONE else artifact.reason
            except ArtifactError as exc:  # nothing that answers needs it
                reason = exc.what
            there += [] if reason else [point]
            if reason:
                write(self.stream, *wrapped(f"no peer: {point.text}: {reason}", indent=0))
        places = f", which have {room} {'place' if room == 1 else 'places'} (4 GiB of memory each, 12 at most)"
        for names, why in ((found.left, " for want of time"), (found.crowded, places)):
            if names:
                write(self.stream, *wrapped(f"not in the finals{why}: {', '.join(names)}", indent=0))
        return Finals(setups, found._replace(baselines=tuple(there)))

    def _finals(self, finals: Finals, before: float) -> list[FinalRestart]:
        """Take the restarts of the finals that the budget allows after what was spent before; the first one always."""
        if not finals.finalists:
            return []
        restarts = finals.read()
        wanted = self.project.config.benchmark.restarts
        while len(restarts) < wanted:
            spent = before + sum(restart.seconds for restart in restarts)
            if restarts and spent + restarts[-1].seconds > self.wishes.budget_seconds:
                write(self.stream, f"the budget ends the finals after {len(restarts)} of {wanted} restarts")
                break
            number = len(restarts) + 1
            write(self.stream, f"finals, restart {number} of {wanted}: {len(finals.points)} take turns")
            restarts.append(finals.take(number))
            write(self.stream, *(f"  left out: {reason}" for reason in restarts[-1].failures))
        return restarts

    def _record(
        self, finals: Finals, search: Search, trials: Sequence[Trial], restarts: Sequence[FinalRestart]
    ) -> TuneRecord:
        answers, setups = [], finals.setups
        for old in sorted(self.project.paths.tune.glob("*.yaml")):  # a winner of other gates, perhaps
            with storage_errors(f"deleting {old}"):
                old.unlink()
        for objective in search.objectives:
            standings = standings_of(objective, trials, restarts)
            if standings:
                path = self.project.paths.tune / file_of(objective.name)
                name = path.relative_to(self.project.paths.root).as_posix()
                baseline = setups.baseline(standings[0].point)
                answer = Answer(
                    objective=objective.name,
                    standings=tuple(standings),
                    tied=tied(standings),
                    eager=eager_of(objective, standings[0], baseline, restarts),
                    streams=tuple(rates_of(objective, standings[0], restarts)),
                    peers=tuple(peers_of(objective, standings[0], finals.backends(), restarts)),
                    snippet=name,
                )
                write_bytes(path, snippet_of(setups, answer).encode())
                answers.append(answer)
        endless = replace(search, budget_seconds=_ENDLESS)
        record = TuneRecord(
            key=make_key(tune=VERSION, trials=[trial.key.digest for trial in trials], max_drop=self.wishes.max_drop),
            built_at=now(),
            budget_seconds=self.wishes.budget_seconds,
            spent_seconds=round(search.spent(trials) + sum(restart.seconds for restart in restarts), 2),
            max_drop=self.wishes.max_drop,
            complete=not search.cut and endless.next(trials) is None and self._is_timed(finals, restarts),
            trials=len(trials),
            passed=sum(trial.passed for trial in trials),
            answers=tuple(answers),
            frontier=tuple(trial.number for trial in frontier_of(trials, search.objectives)),
            effects=tuple(
                effects_of(trials, search.objectives, lambda subject: search.contender(Point(subject=subject)))
            ),
        )
        return self.project.write(self.project.paths.tune / "tune.json", record)

    def _is_timed(self, finals: Finals, restarts: Sequence[FinalRestart]) -> bool:
        """Return whether the finals have all of their restarts, if there is anything to compare."""
        return not finals.finalists or len(restarts) >= self.project.config.benchmark.restarts

    def _show(self, setups: Setups, record: TuneRecord, search: Search, trials: Sequence[Trial]) -> None:
        frontier = frontier_of(trials, search.objectives)
        lines = ["", *frontier_lines(frontier, search.objectives)] if frontier else []
        lines += ["", *effect_lines(record)] if record.effects else []
        lines += ["", *answer_lines(record), *self._explained(setups, record), summary_line(record)]
        write(self.stream, *lines, *unproven_lines(trials))

    def _explained(self, setups: Setups, record: TuneRecord) -> list[str]:
        """Return each layer's time beside its floor, of the first engine that wins a latency on a known GPU."""
        for answer in record.answers:
            place = setups.place(answer.standings[0].point)
            gpu = place.project.plan.gpu(place.variant.target)
            if answer.objective.startswith(LATENCY) and gpu and place.variant.backend is Backend.TENSORRT:
                from pipeline.stages.profile.stage import profile_variant  # noqa: PLC0415 - only on a GPU
                from pipeline.stages.report.floors import peak_of  # noqa: PLC0415 - onnx is slow
                from pipeline.tune.explain import floors_of, strangers_of  # noqa: PLC0415 - the same

                if not is_current(place.project, Step("profile", place.variant.id)):
                    with working(alone=True):
                        profile_variant(place.project, place.variant)
                profile, peak = place.project.layers(place.variant), peak_of(gpu.name)
                if profile.outcome is not Outcome.DONE or not profile.layers:
                    return [f"no layers: {profile.reason}", ""]
                if peak is None:
                    return [f"no floors: the peak rates of {gpu.name} are unknown", ""]
                strangers = strangers_of(profile, place.variant.precision)
                return ["", *floor_lines(profile, floors_of(profile, peak), strangers), ""]
        return []
