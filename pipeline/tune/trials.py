"""Point → `Trial`: build, gate, and only then a cheap timing. Each step is the normal one, and runs if it is stale.

Nothing that missed its gate is ever timed.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from model_artifacts.errors import ArtifactError, RecordError, RunError, SourceError, UsageError
from model_artifacts.host.environment import now
from model_artifacts.records import CLOCKS, Backend, Clock, Layout
from pipeline.planning.freshness import is_current, is_reused
from pipeline.planning.keys import key_of, make_key
from pipeline.planning.steps import Step
from pipeline.records import Outcome
from pipeline.stages.benchmark.spec import restart_key
from pipeline.stages.benchmark.timing import time_together
from pipeline.system.locks import exclusive, working
from pipeline.tune.records import ScreenedBatch, Trial, TrialVerdict
from pipeline.tune.space import is_of_graph

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from model_artifacts.records import Gpu, Key
    from pipeline.config.settings import Config
    from pipeline.planning.project import Project
    from pipeline.records import AccuracyReport, Artifact
    from pipeline.stages.benchmark.results import Measured
    from pipeline.tune.records import Choice, Point
    from pipeline.tune.setups import Place, Setups

VERSION = 2
"""Raise it when a trial judges or times a point in another way, or records more of it.

2 has the distance to FP32 and the graph.
"""

_SCREENING = {"restarts": 1, "rounds": 1, "warmup_seconds": 0.3}
"""The settings of the benchmark in which screening is cheaper than the finals."""
_MADE = {TrialVerdict.UNSUPPORTED: ("build",), TrialVerdict.UNCHANGED: ()}
"""The stages of a variant that a trial of a verdict has run; both for all others."""
_LEAST_SECONDS = 30.0
"""The least time limit of a build and of a validation: a short rest of the budget is no reason to record a failure."""


class Quiet:
    """A console that keeps the last error of a step."""

    def __init__(self) -> None:
        self.last_error = ""

    def say(self, text: str) -> None:
        """Print nothing: a search prints a line for each trial."""

    def error(self, text: str) -> None:
        """Keep a line."""
        self.last_error = text


class Waits:
    """The time for which a search has waited for its turn on the host: no part of any budget."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def turn(self, gpu: Gpu | None = None, *, alone: bool) -> Iterator[None]:
        """Wait for the turn of a step, and count that; timed work is alone, and holds its GPU."""
        began = time.monotonic()
        with working(alone=alone), exclusive(gpu):
            self.seconds += time.monotonic() - began
            yield


class Rest:
    """What is left of the budget while a trial runs."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._began, self.waits = seconds, time.monotonic(), Waits()

    @property
    def seconds(self) -> float:
        """Time limit of what begins now."""
        return max(self._seconds - self.spent, _LEAST_SECONDS)

    @property
    def spent(self) -> float:
        """The seconds since its start, but those of waits."""
        return time.monotonic() - self._began - self.waits.seconds


def ensure(project: Project, step: Step, waits: Waits, done: set[Step] | None = None) -> None:
    """Run a step and those that it requires, as far as they are stale.

    A build or a validation that fails leaves its record, which tells; a failure of what it is made from is an error.

    Raises:
        RunError: a step that this one requires has failed.
        SourceError: a step needs torch, which is not installed.
        ArtifactError: what a step raises.
    """
    seen = set() if done is None else done
    if step in seen:
        return
    seen.add(step)
    for earlier in project.schedule.dependencies(step).requires:
        ensure(project, earlier, waits, seen)
    if is_current(project, step):
        return
    if is_reused(project, step):
        raise SourceError(
            f"{step.name} needs torch, which is not installed here; its result is missing or stale",
            fix=f"run `{project.command(step)}` where torch is, and copy {project.paths.folder} from there",
        )
    spec = project.schedule.spec(step.stage)
    console = Quiet()
    with waits.turn(alone=spec.alone):
        status = spec.load()(project, project.schedule.subject(step), console)
    if status and not spec.in_manifest:
        raise RunError(f"{step.name} failed: {console.last_error.removeprefix('error: ')}".rstrip(": "))


@dataclass(frozen=True)
class Trials:
    """The trials of a search on disk."""

    setups: Setups
    max_drop: float | None = None

    @property
    def folder(self) -> Path:
        """Their folder."""
        return self.setups.base.paths.tune / "trials"

    def read(self) -> list[Trial]:
        """Return the trials that still hold, in their order, and remove the others.

        A trial holds while its key is that of now, and it did not fail. A failure is tried again in the next run. What
        was taken from another trial, as that of the same graph, holds as long as that one.

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
            held = trial.verdict is not TrialVerdict.FAILED and trial.key == self._key(place, trial.point)
            steps = [Step(stage, place.variant.id) for stage in _MADE.get(trial.verdict, ("build", "validate"))]
            return trial if held and all(is_current(place.project, step) for step in steps) else None
        except (RecordError, UsageError):  # the record is damaged, or the configuration has no such point any more
            return None

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
            seconds_left: what is left of the budget, which limits the build and the validation.
            spent: seconds that were spent for this point before, on the layers' sensitivities.

        Raises:
            ArtifactError: what the point is made from cannot be made, or the record cannot be written.
        """
        rest = Rest(seconds_left)
        number = max((trial.number for trial in trials), default=0) + 1
        place = self.setups.place(point)
        found = self._tried(place, point, number, trials, rest)
        trial = found.model_copy(update={"seconds": round(rest.spent + spent, 2), "key": self._key(place, point)})
        return self.setups.base.write(self.folder / f"{number:04}.json", trial)

    def _tried(self, place: Place, point: Point, number: int, trials: Sequence[Trial], rest: Rest) -> Trial:
        (project, variant), waits = place, rest.waits
        plain = Trial(
            key=make_key(), built_at=now(), number=number, point=point, verdict=TrialVerdict.FAILED, seconds=0.0
        )
        try:
            plain = plain.model_copy(update={"graph": _graph_of(place, waits)})
            if twin := _same_graph(plain, trials):
                reason = f"its graph is that of trial {twin.number}; nothing was built"
                unchanged = {"verdict": TrialVerdict.UNCHANGED, "same_as": twin.number, "reason": reason}
                return plain.model_copy(update=unchanged)
            cut = _in_time(project, Step("build", variant.id), rest)
        except ArtifactError as exc:
            if not point.choices:
                raise  # all other points are made from the same
            return plain.model_copy(update={"reason": _headline(exc.what)})
        artifact = project.artifact(variant)
        if artifact.outcome is not Outcome.DONE:
            return _ended(plain, artifact.outcome, artifact.reason, cut)
        if refused := refusal_of(artifact, point):
            setting, reason = refused
            unsupported = {"verdict": TrialVerdict.UNSUPPORTED, "reason": reason, "refused": setting}
            return plain.model_copy(update=unsupported)
        cut = _in_time(project, Step("validate", variant.id), rest)
        report = project.accuracy(variant)
        distance = report.accuracy.relative_l2 if report.accuracy else None
        judged = plain.model_copy(
            update={"drop": drop_of(report), "relative_l2": distance, "engine": _work_of(artifact)}
        )
        if not report.passed:
            return _rejected_or_ended(judged, report, cut)
        if self.max_drop is not None and judged.drop is not None and judged.drop > self.max_drop:
            reason = f"it loses {judged.drop:.2%} of the answers; --max-drop accepts {self.max_drop:.2%}"
            return judged.model_copy(update={"verdict": TrialVerdict.REJECTED, "reason": reason})
        if same := _same_engine(judged, trials):
            timed = {"screened": same.screened, "memory_bytes": same.memory_bytes, "same_as": same.number}
            return judged.model_copy(update={"verdict": TrialVerdict.PASSED, **timed})
        return _screened(judged, place, artifact, waits)


def _graph_of(place: Place, waits: Waits) -> str:
    """Return the digest of a point's ONNX graph, which is made here if it is stale; empty if it has none."""
    project, variant = place
    if variant.graph is None:
        return ""
    ensure(project, project.plan.graph_step(variant.graph), waits)
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


def _in_time(project: Project, step: Step, rest: Rest) -> str:
    """Run a build or a validation, and return the reason if the budget has ended it; empty if it ended by itself."""
    done: set[Step] = set()
    for earlier in project.schedule.dependencies(step).requires:
        ensure(project, earlier, rest.waits, done)
    limit, before = rest.seconds, rest.spent
    ensure(_limited(project, limit), step, rest.waits, done)
    work = "validation" if step.stage == "validate" else step.stage
    cut = f"the budget ended its {work} after {limit:.0f} s; a larger --budget tries it again"
    return cut if rest.spent - before >= limit else ""


def _limited(project: Project, seconds: float) -> Project:
    """Return a project whose builds and validations end in time; their limits are in no key."""
    config = project.config
    limits = {
        name: settings.model_copy(update={"build_timeout_seconds": min(settings.build_timeout_seconds, seconds)})
        for name, settings in (("tensorrt", config.tensorrt), ("torch_tensorrt", config.torch_tensorrt))
    }
    plan = replace(project.plan, config=config.model_copy(update=limits))
    return replace(project, plan=plan, run_seconds=seconds)


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


def _ended(plain: Trial, outcome: Outcome, reason: str, cut: str) -> Trial:
    """Return the trial of a build or a validation that was not done, with the reason if the budget has ended it."""
    if outcome is Outcome.SKIPPED:
        return plain.model_copy(update={"verdict": TrialVerdict.SKIPPED, "reason": _headline(reason)})
    return plain.model_copy(update={"reason": cut or _headline(reason), "cut": bool(cut)})


def _rejected_or_ended(judged: Trial, report: AccuracyReport, cut: str) -> Trial:
    if report.outcome is not Outcome.DONE:
        return _ended(judged, report.outcome, report.reason, cut)
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
