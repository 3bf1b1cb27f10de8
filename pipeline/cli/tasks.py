"""Steps of the plan → doit tasks, and the `doit run` that runs them.

doit stops at a failed dependency. Here some tasks come after others whether or not those succeeded: the benchmark and
the manifest tell of what did succeed, too. That is the one thing this `Run` adds; it also turns what can go wrong
before a task runs into one message.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from doit import get_var
from doit.action import BaseAction, CmdAction
from doit.exceptions import TaskFailed

from model_artifacts.errors import ArtifactError, ReleaseError, UnknownFarmError
from model_artifacts.records import CPU_TARGET, Backend
from pipeline.planning.freshness import NOT_MADE, freshness_of, is_reused
from pipeline.planning.project import Project
from pipeline.planning.steps import Stage
from pipeline.system.isolation import step_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TextIO

    from doit.exceptions import BaseFail
    from doit.task import Task

    from pipeline.farm.executor import Farm
    from pipeline.farm.parcels import PrintedLine
    from pipeline.planning.steps import Step

    TaskDict = dict[str, Any]


_TABLES = {Stage.MANIFEST, Stage.REPORT, Stage.PROFILE, Stage.SENSITIVITY}
"""What a step of these prints has its own shape."""

CONFIG_VARIABLE = "config"
"""`doit config=other.yaml` builds another configuration."""

MAY_FAIL = "dependencies that may fail"
REUSED = "made elsewhere"
WHY = "why it is not up to date"
SINCE = "since when it is up to date"


class Tasks:
    """The plan's steps as doit tasks. Only names and commands: nothing here imports torch or tensorrt."""

    def __init__(self, config: Path, project: Project) -> None:
        self._config = config
        self._project = project
        self._farm = LazyFarm(project)
        self._held: set[Step] = set()

    @classmethod
    def load(cls) -> Tasks:
        """Read the configuration that the command line names; wrong ones end the process with their message."""
        config = Path(get_var(CONFIG_VARIABLE, "pipeline.yaml"))
        try:
            return cls(config, _planned(config))
        except ArtifactError as exc:
            sys.stderr.write(f"error: {exc}\n")
            raise SystemExit(exc.exit_code) from None

    def of(self, stage: Stage) -> Iterator[TaskDict]:
        """Yield one doit task a step of `stage`, named by the step's subject."""
        plan = self._project.plan
        action = CmdAction if stage in _TABLES else _Command
        environment = step_environment(timed=stage is Stage.BENCHMARK)
        for step in (*plan.steps, *plan.on_demand):
            if step.stage is stage:
                required, follows = plan.dependencies(step)
                names = {other: f"{other.stage.value}:{other.subject}" for other in (*required, *follows)}
                command = self._command(step.stage.value, step.subject)
                here = action(command, shell=False, env=environment)
                yield {
                    "name": step.subject,
                    "actions": [self._elsewhere(step) or here],
                    "task_dep": list(names.values()),
                    "uptodate": [_Current(self._project, step, self._held)],
                    "meta": {MAY_FAIL: [names[other] for other in follows], REUSED: is_reused(step)},
                }

    def _elsewhere(self, step: Step) -> BaseAction | None:
        """Return what is done instead of a step's command: it runs on the farm, or is known to be skipped."""
        if self._project.plan.workers(step):
            return FarmAction(self._farm, step)
        return _Skip(self._project, step) if self._is_skipped(step) else None

    def _is_skipped(self, step: Step) -> bool:
        """Return whether it is known already that a step lacks its GPU; some engines are built without one."""
        if step.stage not in {Stage.BUILD, Stage.VALIDATE}:
            return False
        variant = self._project.plan.variant(step.subject)
        if variant.target == CPU_TARGET or self._project.plan.gpu(variant.target):
            return False
        return step.stage is Stage.VALIDATE or variant.backend is not Backend.TENSORRT

    def prune(self) -> TaskDict:
        """Return the task that lists, or deletes, what is left of variants that were taken out of the configuration."""
        return {
            "actions": [CmdAction(self._prune_command, shell=False)],
            "params": [{"name": "delete", "long": "delete", "type": bool, "default": False, "help": "not only list"}],
        }

    def release(self) -> TaskDict:
        """Return the task that makes a release of what may be deployed."""
        flags = [("keyless", "sign as CI's identity"), ("allow-dirty", "although files differ from the commit")]
        return {
            "actions": [CmdAction(self._release_command, shell=False)],
            "task_dep": [Stage.REPORT.value],
            "params": [
                {"name": "key", "long": "key", "type": str, "default": "", "help": "a private key to sign with, PEM"},
                *(
                    {"name": name.replace("-", "_"), "long": name, "type": bool, "default": False, "help": text}
                    for name, text in flags
                ),
            ],
        }

    def _release_command(self, key: str, keyless: bool, allow_dirty: bool) -> list[str]:  # noqa: FBT001 - the same
        options = [*(["--key", key] if key else []), *(["--keyless"] if keyless else [])]
        return self._command("release", *options, *(["--allow-dirty"] if allow_dirty else []))

    def verify(self) -> TaskDict:
        """Return the task that checks a release."""
        return {
            "actions": [CmdAction(self._verify_command, shell=False)],
            "params": [
                {"name": "key", "long": "key", "type": str, "default": "", "help": "whose signature is demanded, PEM"},
                {"name": "path", "long": "path", "type": str, "default": "", "help": "default: the newest one here"},
            ],
        }

    def triton(self) -> TaskDict:
        """Return the task that writes a model repository for Triton."""
        root = self._project.paths.root
        command = [sys.executable, "-m", "model_artifacts", "triton", str(root), "--output", str(root / "triton")]
        return {"actions": [CmdAction(command, shell=False)], "task_dep": [Stage.MANIFEST.value]}

    def _verify_command(self, key: str, path: str) -> list[str]:
        release = path or str(self._newest_release())
        return [sys.executable, "-m", "model_artifacts", "verify", release, *(["--key", key] if key else [])]

    def _newest_release(self) -> Path:
        from model_artifacts.releases.verification import latest_release

        try:
            return latest_release(self._project.paths.releases)
        except ReleaseError:
            return self._project.paths.releases  # of which `verify` says what it lacks

    def _prune_command(self, delete: bool) -> list[str]:  # noqa: FBT001 - doit passes it by name
        return self._command("prune", *(["--delete"] if delete else []))

    def _command(self, *arguments: str) -> list[str]:
        default = [] if self._config == Path("pipeline.yaml") else ["--config", str(self._config)]
        return [sys.executable, "-m", "pipeline", *arguments, *default]


class _Current:
    """doit asks this whether a task is up to date."""

    def __init__(self, project: Project, step: Step, held: set[Step]) -> None:
        self._project = project
        self._step = step
        self._held = held
        """Which steps' results this run has found to be current: all tasks share it."""

    def __call__(self, task: Task, values: object) -> bool:
        del values  # the records on disk know
        status = freshness_of(self._project, self._step, self._held)
        if status.is_current and status.since:
            self._held.add(self._step)
            if task.meta is not None:
                task.meta[SINCE] = status.since
        if task.meta is not None and status.reasons != (NOT_MADE,):
            task.meta[WHY] = status.reasons
        return status.is_current


class _WithoutProcess(BaseAction):
    """A step for which doit starts no process of its own."""

    def __init__(self, step: Step) -> None:
        self.task: Task | None = None  # which doit sets
        self.err = self.out = ""
        self.result: str | None = None
        self.values: dict[str, object] = {}
        self._step = step
        self._name = f"{step.stage.value}:{step.subject}"


class _Skip(_WithoutProcess):
    """Records that a step is skipped, for which a process would take a second: a plan may have hundreds of them."""

    def __init__(self, project: Project, step: Step) -> None:
        super().__init__(step)
        self._project = project

    def execute(self, out: TextIO | None = None, err: TextIO | None = None) -> BaseFail | None:
        from pipeline.stages.build.stage import build_variant
        from pipeline.stages.validate.stage import validate_variant

        del err
        make = build_variant if self._step.stage is Stage.BUILD else validate_variant
        try:
            made = make(self._project, self._project.plan.variant(self._step.subject))
        except ArtifactError as exc:
            return TaskFailed(str(exc), report=True)
        if out:
            out.write(f"{self._name}: {made.outcome.value}: {made.reason}\n")
        return None


class LazyFarm:
    """The farm, which is joined by the first step that runs there."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._lock = threading.Lock()
        self._open: Farm | None = None

    def run(self, step: Step, say: Callable[[PrintedLine], None]) -> int:
        from pipeline.farm.executor import Farm

        with self._lock:
            self._open = self._open or Farm(self._project)
        return self._open.run(step, say)

    def stop(self) -> None:
        if self._open:
            self._open.stop()


class FarmAction(_WithoutProcess):
    """Runs a step on the farm; what it says is shown as its command would say it."""

    def __init__(self, farm: LazyFarm, step: Step) -> None:
        super().__init__(step)
        self.farm = farm

    def execute(self, out: TextIO | None = None, err: TextIO | None = None) -> BaseFail | None:
        def write(line: str, *, error: bool) -> None:
            if stream := err if error else out:
                stream.write(f"{self._name}: {line}\n")
                stream.flush()
            self.err += line if error else ""

        try:
            status = self.farm.run(self._step, lambda said: write(said.line, error=said.error))
        except ArtifactError as exc:
            write(f"error: {exc}", error=True)
            return TaskFailed(str(exc), report=True)
        except Exception as exc:  # noqa: BLE001 - of this step alone, as a command's would be: the others go on
            write(f"error: unexpected {type(exc).__name__}: {exc}", error=True)
            return TaskFailed(str(exc), report=True)
        return TaskFailed(f"exit status {status}", report=True) if status else None


class _Command(CmdAction):
    """A step's command, whose every line is shown as it comes, with the step's name before it."""

    def execute(self, out: TextIO | None = None, err: TextIO | None = None) -> BaseFail | None:
        return super().execute(*(stream and _Prefixed(stream, f"{self.task.name}: ") for stream in (out, err)))


class _Prefixed:
    """A stream for whole lines."""

    def __init__(self, stream: TextIO, prefix: str) -> None:
        self._stream = stream
        self._prefix = prefix

    def write(self, line: str) -> None:
        self._stream.write(self._prefix + line)

    def flush(self) -> None:
        self._stream.flush()


def _planned(config: Path) -> Project:
    """Read the configuration; where nobody has looked at its farm yet, do."""
    try:
        return Project.load(config)
    except UnknownFarmError:
        from pipeline.farm.inspection import look_at_farm

        sys.stderr.write("looking at the farm, on which this builds; the next time it is known\n")
        look_at_farm(config)
        return Project.load(config)
