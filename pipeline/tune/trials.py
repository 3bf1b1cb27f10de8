"""Point → `Trial`: build, gate, and only then a cheap timing. Each step is the normal one, and runs if it is stale.

Nothing that missed its gate is ever timed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from model_artifacts.errors import ArtifactError, RecordError, StorageError, UsageError
from model_artifacts.host.environment import now
from model_artifacts.records import CLOCKS, Backend, Clock, Layout
from pipeline.planning.freshness import is_current
from pipeline.planning.keys import key_of, make_key
from pipeline.planning.steps import Step
from pipeline.records import Outcome
from pipeline.stages.benchmark.spec import restart_key
from pipeline.stages.benchmark.timing import time_together
from pipeline.tune.records import ScreenedBatch, Trial, TrialVerdict
from pipeline.tune.space import is_of_graph
from pipeline.tune.steps.limits import Rest
from pipeline.tune.steps.running import ensure, reason_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from model_artifacts.records import Key
    from pipeline.config.settings import Config
    from pipeline.planning.project import Project
    from pipeline.records import AccuracyReport, Artifact
    from pipeline.stages.benchmark.results import Measured
    from pipeline.tune.records import Choice, Point
    from pipeline.tune.setups import Place, Setups
    from pipeline.tune.steps.limits import Waits

VERSION = 2
"""Raise it when a trial judges or times a point in another way, or records more of it.

2 has the distance to FP32 and the graph.
"""

_SCREENING = {"restarts": 1, "rounds": 1, "warmup_seconds": 0.3}
"""The settings of the benchmark in which screening is cheaper than the finals."""
_MADE = {TrialVerdict.UNSUPPORTED: ("build",), TrialVerdict.UNCHANGED: ()}
"""The stages of a variant that a trial of a verdict has run; both for all others."""


@dataclass(frozen=True)
class Trials:
    """The trials of a search on disk."""

    setups: Setups
    max_drop: float | None = None
    budget_seconds: float = 0.0
    """The budget of the search. A trial that it has cut is tried again with a larger one alone."""
    unmade: Mapping[str, str] = field(default_factory=dict)
    """The variants whose own graph could not be made in this run, with the reasons."""

    @property
    def folder(self) -> Path:
        """Their folder."""
        return self.setups.base.paths.tune / "trials"

    def read(self) -> list[Trial]:
        """Return the trials that still hold, in their order, and remove the others.

        A trial holds while its key is that of now, and it did not fail. A failure is tried again in the next run; one
        that the budget has cut only with a larger budget, or if `doit` has validated the point since. What was taken
        from another trial, as that of the same graph, holds as long as that one.

        Raises:
            StorageError: a file cannot be removed.
            NewerRecordError: a newer version of this package wrote a trial, which is kept for it.
        """
        found: list[Trial] = []
        for path in sorted(self.folder.glob("*.json")):
            trial = self._current(path)
            if trial and (trial.same_as is None or trial.same_as in {earlier.number for earlier in found}):
                found.append(trial)
            else:
                path.unlink()
        return found

    def _current(self, path: Path) -> Trial | None:
        base = self.setups.base
        try:
            trial = base.read(path, Trial)
            place = self.setups.place(trial.point)
            return trial if self._holds(trial, place) else None
        except (RecordError, UsageError):  # the record is damaged, or the configuration has no such point any more
            return None

    def _holds(self, trial: Trial, place: Place) -> bool:
        if trial.key != self._key(place, trial.point):
            return False
        stages = _MADE.get(trial.verdict, ("build", "validate"))
        is_done = all(is_current(place.project, Step(stage, place.variant.id)) for stage in stages)
        if trial.verdict is not TrialVerdict.FAILED:
            return is_done
        return trial.cut and self.budget_seconds <= trial.budget_seconds and not is_done

    def _key(self, place: Place, point: Point) -> Key:
        """Return the key of a trial: the build, its judgement, and the circumstances of its timing."""
        project, variant = place
        return make_key(
            tune=VERSION,
            point=point,
            max_drop=self.max_drop,
            build=_digest(project, Step("build", variant.id)),
            accuracy=_digest(project, Step("validate", variant.id)),
            timing=restart_key(project, variant.target, variant).digest,
        )

    def make(self, point: Point, trials: Sequence[Trial], seconds_left: float, spent: float = 0.0) -> Trial:
        """Build, judge and time a point, and record it.

        Args:
            point: the point.
            trials: all trials so far.
            seconds_left: what is left of the budget, which limits each step of the trial.
            spent: seconds that were spent for this point before, on the layers' sensitivities.

        Raises:
            StorageError: a file cannot be written.
        """
        rest = Rest(seconds_left)
        number = max((trial.number for trial in trials), default=0) + 1
        place = self.setups.place(point)
        plain = Trial(
            key=make_key(), built_at=now(), number=number, point=point, verdict=TrialVerdict.FAILED, seconds=0.0
        )
        found = self._tried(place, plain, trials, rest)
        if found.cut:
            found = found.model_copy(update={"budget_seconds": self.budget_seconds})
        trial = found.model_copy(update={"seconds": round(rest.spent + spent, 2), "key": self._key(place, point)})
        return self.setups.base.write(self.folder / f"{number:04}.json", trial)

    def _tried(self, place: Place, plain: Trial, trials: Sequence[Trial], rest: Rest) -> Trial:
        """Return the trial; one that has failed if a step that the point needs cannot be done."""
        if not plain.point.choices and (reason := self.unmade.get(plain.point.subject)):
            return _failed(plain, _headline(reason), rest)
        try:
            plain = plain.model_copy(update={"graph": _graph_of(place, rest)})
            return self._judged(place, plain, trials, rest)
        except StorageError:  # of the disk, not of the point
            raise
        except ArtifactError as exc:
            return _failed(plain, _headline(reason_of(exc)), rest)

    def _judged(self, place: Place, plain: Trial, trials: Sequence[Trial], rest: Rest) -> Trial:
        project, variant = place
        if twin := _same_graph(plain, trials):
            reason = f"its graph is that of trial {twin.number}; nothing was built"
            unchanged = {"verdict": TrialVerdict.UNCHANGED, "same_as": twin.number, "reason": reason}
            return plain.model_copy(update=unchanged)
        ensure(project, Step("build", variant.id), rest)
        artifact = project.artifact(variant)
        if artifact.outcome is not Outcome.DONE:
            return _ended(plain, artifact.outcome, artifact.reason, rest)
        if refused := refusal_of(artifact, plain.point):
            setting, reason = refused
            unsupported = {"verdict": TrialVerdict.UNSUPPORTED, "reason": reason, "refused": setting}
            return plain.model_copy(update=unsupported)
        ensure(project, Step("validate", variant.id), rest)
        report = project.accuracy(variant)
        distance = report.accuracy.relative_l2 if report.accuracy else None
        judged = plain.model_copy(
            update={"drop": drop_of(report), "relative_l2": distance, "engine": _work_of(artifact)}
        )
        if not report.passed:
            return _rejected_or_ended(judged, report, rest)
        if self.max_drop is not None and judged.drop is not None and judged.drop > self.max_drop:
            reason = f"it loses {judged.drop:.2%} of the answers; --max-drop accepts {self.max_drop:.2%}"
            return judged.model_copy(update={"verdict": TrialVerdict.REJECTED, "reason": reason})
        if same := _same_engine(judged, trials):
            timed = {"screened": same.screened, "memory_bytes": same.memory_bytes, "same_as": same.number}
            return judged.model_copy(update={"verdict": TrialVerdict.PASSED, **timed})
        return _screened(judged, place, artifact, rest.waits)


def _graph_of(place: Place, rest: Rest) -> str:
    """Return the digest of a point's ONNX graph, which is made here if it is stale; empty if it has none."""
    project, variant = place
    if variant.graph is None:
        return ""
    ensure(project, project.plan.graph_step(variant.graph), rest)
    return project.onnx(variant.graph).canonical_sha256


def _same_graph(trial: Trial, trials: Sequence[Trial]) -> Trial | None:
    """Return the first trial of the same variant, graph and settings of the builder, if its result is known.

    A point without choices of its own graph is built in any case.
    """
    builder = _of_builder(trial.point)
    if not trial.graph or builder == trial.point.choices:
        return None
    known = {TrialVerdict.PASSED, TrialVerdict.REJECTED, TrialVerdict.SKIPPED, TrialVerdict.UNSUPPORTED}
    return next(
        (
            other
            for other in trials
            if other.point.subject == trial.point.subject
            and other.graph == trial.graph
            and other.verdict in known
            and _of_builder(other.point) == builder
        ),
        None,
    )


def _of_builder(point: Point) -> tuple[Choice, ...]:
    return tuple(choice for choice in point.choices if not is_of_graph(choice))


def _digest(project: Project, step: Step) -> str | None:
    """Return the digest of a step's key; None while what the step is made from is missing."""
    try:
        return key_of(project, step).digest
    except RecordError:
        return None


def refusal_of(artifact: Artifact, point: Point) -> tuple[str, str] | None:
    """Return the setting among a point's choices that the library could not apply, and why; None if it applied all."""
    notes = {setting.name: setting.note for setting in artifact.settings if not setting.applied}
    names = [(choice.setting, choice.setting.rpartition(".")[2]) for choice in point.choices]
    return next(((setting, notes[name]) for setting, name in names if name in notes), None)


def drop_of(report: AccuracyReport) -> float | None:
    """Return the share of answers lost; of tensors the relative L2 distance; None if the artifact was not run."""
    if report.loss:
        return report.loss.drop
    return report.accuracy.relative_l2 if report.accuracy else None


def _failed(plain: Trial, reason: str, rest: Rest) -> Trial:
    """Return the trial of a point that failed, with the budget as the reason if that has ended its last step."""
    return plain.model_copy(update={"reason": rest.cut or reason, "cut": bool(rest.cut)})


def _ended(plain: Trial, outcome: Outcome, reason: str, rest: Rest) -> Trial:
    """Return the trial of a build or a validation that was not done."""
    if outcome is Outcome.SKIPPED:
        return plain.model_copy(update={"verdict": TrialVerdict.SKIPPED, "reason": _headline(reason)})
    return _failed(plain, _headline(reason), rest)


def _rejected_or_ended(judged: Trial, report: AccuracyReport, rest: Rest) -> Trial:
    if report.outcome is not Outcome.DONE:
        return _ended(judged, report.outcome, report.reason, rest)
    return judged.model_copy(update={"verdict": TrialVerdict.REJECTED, "reason": _headline(report.reason)})


def _headline(reason: str) -> str:
    return next(iter(reason.splitlines()), "")


def _work_of(artifact: Artifact) -> str:
    """Return the digest of an engine's layers, or of the ONNX file that is the artifact; empty for others."""
    if artifact.variant.backend is Backend.ONNXRUNTIME and artifact.file:
        return artifact.file.sha256
    return artifact.layers_sha256 or ""


def _same_engine(trial: Trial, trials: Sequence[Trial]) -> Trial | None:
    """Return the first trial that passed with the same layers, and was timed itself."""
    return next(
        (
            other
            for other in trials
            if trial.engine
            and other.engine == trial.engine
            and other.passed
            and other.same_as is None
            and other.point.subject == trial.point.subject
        ),
        None,
    )


def _screened(judged: Trial, place: Place, artifact: Artifact, waits: Waits) -> Trial:
    project, variant = place
    gpu = project.plan.gpu(variant.target)
    with waits.turn(gpu, alone=True):
        began = time.monotonic()
        (measured,) = time_together(screening_of(project.config), gpu, [(project, artifact)], 1)
    seconds = round(time.monotonic() - began, 2)
    if measured.ending or not measured.rounds:
        reason = measured.ending.reason if measured.ending else "it takes none of the timed batch sizes"
        return judged.model_copy(update={"reason": _headline(reason), "screening_seconds": seconds})
    memory = measured.ready.device_memory_bytes
    return judged.model_copy(
        update={
            "verdict": TrialVerdict.PASSED,
            "screened": tuple(_batch(measured, batch) for batch in sorted({what.batch for what in measured.rounds})),
            "memory_bytes": (artifact.file.bytes if artifact.file else None) if memory is None else memory,
            "screening_seconds": seconds,
        }
    )


def screening_of(config: Config) -> Config:
    """Return the configuration whose benchmark is cheap: one restart, one round, a short warm-up."""
    benchmark = config.benchmark
    shorter = {**_SCREENING, "warmup_seconds": min(benchmark.warmup_seconds, _SCREENING["warmup_seconds"])}
    return config.model_copy(update={"benchmark": benchmark.model_copy(update=shorter)})


def _batch(measured: Measured, batch: int) -> ScreenedBatch:
    medians = {
        (what.clock, what.layout): measured.medians_of_restarts(what)[0]
        for what in measured.rounds
        if what.batch == batch
    }
    clock = min((clock for clock, _ in medians if clock is not Clock.STREAMS), key=CLOCKS.index)
    layouts = [medians[clock, layout] for layout in Layout if (clock, layout) in medians]
    return ScreenedBatch(
        batch=batch, clock=clock, p50_ms=min(layouts), streams_ms=medians.get((Clock.STREAMS, Layout.CONTIGUOUS))
    )
