"""Steps of the schedule → doit tasks."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doit import doit_cmd, get_var
from doit.action import CmdAction
from doit.exceptions import TaskFailed

from model_artifacts.cli.options import MODEL, VERIFY_KEY, VERIFY_PATH
from model_artifacts.errors import ArtifactError, ReleaseError, UnknownFarmError, UsageError
from model_artifacts.host.terminal import COLUMNS_VARIABLE, escaped
from pipeline.cli.actions import FarmAction, ForkedStep, LazyFarm, PrefixedCommand, SkippedStep
from pipeline.cli.options import (
    ALLOW_DIRTY,
    BUDGET,
    KEYLESS,
    MAX_DROP,
    OBJECTIVE,
    PRUNE_DELETE,
    RELEASE_KEY,
    RELEASE_MODEL,
)
from pipeline.cli.order import SECONDS
from pipeline.config.settings import Executor
from pipeline.planning.folder.owner import check_owner
from pipeline.planning.folder.projects import load_projects
from pipeline.planning.freshness import NOT_MADE, freshness_of, is_reused
from pipeline.system.forks import ForkServer
from pipeline.system.isolation import step_environment
from pipeline.system.processes import PARENT_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from doit.action import BaseAction
    from doit.task import Task

    from model_artifacts.cli.options import Option
    from pipeline.planning.project import Project
    from pipeline.planning.spec import StageSpec
    from pipeline.planning.steps import Step

    TaskDict = dict[str, Any]
    """doit's form of a task."""

CONFIG_VARIABLE = "config"
"""The doit variable of another configuration: `doit config=other.yaml`."""

# Keys of a task's `meta`, which doit passes on.
MAY_FAIL = "dependencies that may fail"
REUSED = "made elsewhere"
WHY = "why it is not up to date"
SINCE = "since when it is up to date"
VERDICT = "where the verdict is"
ALONE = "no other step works beside it"
SCREEN = "the folder of artifacts that the last screen shows, the command that builds them, and their model"


class Tasks:
    """The steps as doit tasks: names and commands only, without an import of torch or tensorrt."""

    def __init__(self, config: Path, projects: tuple[Project, ...]) -> None:
        """Take the projects of a configuration, one for each of its models; they have one artifacts folder."""
        self._config = config
        self._projects = projects
        self._first = projects[0]
        self._farms = {project.plan.model: LazyFarm(project) for project in projects}
        self._server = ForkServer(step_environment(timed=False))
        self._current: set[Step] = set()
        self._said: set[str] = set()

    @classmethod
    def load(cls, stages: tuple[StageSpec[Any], ...]) -> Tasks:
        """Read the configuration that the command line names; an error in it ends the process with its message."""
        config = Path(get_var(CONFIG_VARIABLE, "pipeline.yaml"))
        if sys.stdout.isatty():  # which the steps write to through a pipe
            os.environ[COLUMNS_VARIABLE] = str(shutil.get_terminal_size().columns)
        try:
            _check_variables()
            projects = _planned(config, stages)
            for project in projects:
                check_owner(project)
            return cls(config, projects)
        except ArtifactError as exc:
            sys.stderr.write(escaped(f"error: {exc}\n"))
            raise SystemExit(exc.exit_code) from None

    @property
    def artifacts(self) -> Path:
        """The folder that the configuration puts all results into."""
        return self._first.paths.root

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders that no other doit may work in: the models', and with a farm that of its machines' record."""
        on_farm = self._first.config.executor is Executor.RAY
        return (
            *(project.paths.folder for project in self._projects),
            *([self._first.paths.farm.parent] if on_farm else []),
        )

    def of(self, spec: StageSpec[Any]) -> Iterator[TaskDict]:
        """Yield one doit task for each step of a stage, with the step's subject as its name."""
        for project in self._projects:
            yield from self._of(spec, project)

    def _of(self, spec: StageSpec[Any], project: Project) -> Iterator[TaskDict]:
        schedule = project.schedule
        verdict: dict[str, object] = {VERDICT: self._verdict(project)} if spec.last else {}
        shown_last = spec.name == "manifest"  # in the terminal's colours and width, which a step does not know
        if shown_last:
            verdict[SCREEN] = (project.paths.root, project.doit, project.plan.model)
        for step in schedule.of(spec.name):
            requires, follows = schedule.dependencies(step)
            yield {
                "basename": spec.name,
                "name": step.subject,
                "actions": [self._action(spec, step, project)],
                "task_dep": [other.name for other in (*requires, *follows)],
                "verbosity": 1 if shown_last else None,
                "uptodate": [_UpToDate(project, step, self._current)],
                "meta": {
                    MAY_FAIL: [other.name for other in follows],
                    REUSED: is_reused(project, step),
                    SECONDS: spec.seconds,
                    ALONE: spec.alone,
                    **verdict,
                },
            }

    def _verdict(self, project: Project) -> str:
        """Return the place of the table with a model's verdict, and of its report if there is one."""
        paths, name = project.paths, shlex.quote(project.plan.model)
        page = f"{paths.report}, and on the terminal " if paths.report.is_file() else ""
        whose, option = (f" of {name}", f" --model {name}") if paths.of_several else ("", "")
        return f"the verdict{whose}: {page}`model-artifacts show {shlex.quote(str(paths.root))}{option}`"

    def _action(self, spec: StageSpec[Any], step: Step, project: Project) -> BaseAction:
        """Return the action of a step: on the farm, known to be skipped, in a process of its own, or forked."""
        if project.schedule.workers(step):
            return FarmAction(self._farms[project.plan.model], step)
        if spec.lacks_hardware(project.plan, project.schedule.subject(step)):
            return SkippedStep(project, step, self._said)
        if spec.alone:  # what it times must be as in a user's process
            action = CmdAction if spec.prints_a_table else PrefixedCommand
            environment = {**step_environment(timed=spec.timed), PARENT_VARIABLE: str(os.getpid())}
            return action(self._command(step.stage, step.subject), shell=False, env=environment)
        return ForkedStep(self._server, step, [step.stage, step.subject, *self._configuration()], spec)

    def tune(self) -> TaskDict:
        """Return the task that searches for the fastest variants; its process is like a user's, since it times."""
        environment = {**step_environment(timed=True), PARENT_VARIABLE: str(os.getpid())}
        return {
            "actions": [CmdAction(self._tune_command, shell=False, env=environment)],
            "params": [_parameter(option) for option in (BUDGET, MAX_DROP, OBJECTIVE)],
        }

    def _tune_command(self, budget: str, max_drop: str, objective: str) -> list[str]:
        chosen: dict[Option, str | bool] = {BUDGET: budget, MAX_DROP: max_drop, OBJECTIVE: objective}
        return self._command("tune", *_arguments(chosen))

    def prune(self) -> TaskDict:
        """Return the task that lists, or deletes, the files of variants that left the configuration."""
        return {
            "actions": [CmdAction(self._prune_command, shell=False)],
            "params": [_parameter(PRUNE_DELETE)],
        }

    def _prune_command(self, delete: bool) -> list[str]:  # noqa: FBT001 - doit passes it by name
        return self._command("prune", *_arguments({PRUNE_DELETE: delete}))

    def release(self) -> TaskDict:
        """Return the task that makes a release of the deployable artifacts."""
        return {
            "actions": [CmdAction(self._release_command, shell=False)],
            "task_dep": [spec.name for spec in self._first.stages if spec.last],
            "params": [_parameter(option) for option in (RELEASE_KEY, KEYLESS, ALLOW_DIRTY, RELEASE_MODEL)],
        }

    def _release_command(self, key: str, keyless: bool, allow_dirty: bool, model: str) -> list[str]:  # noqa: FBT001 - the same
        chosen: dict[Option, str | bool] = {
            RELEASE_KEY: key,
            KEYLESS: keyless,
            ALLOW_DIRTY: allow_dirty,
            RELEASE_MODEL: model,
        }
        return self._command("release", *_arguments(chosen))

    def verify(self) -> TaskDict:
        """Return the task that checks a release."""
        return {
            "actions": [self._check_release, CmdAction(self._verify_command, shell=False)],
            "params": [
                _parameter(VERIFY_KEY),
                _parameter(MODEL),
                {**_parameter(VERIFY_PATH), "help": "default: the newest release here"},
            ],
        }

    def _check_release(self, path: str, model: str) -> TaskFailed | None:
        """Return a failure, with the command of this configuration, if there is no release to verify."""
        from model_artifacts.releases.verification import latest_release

        if path:
            return None
        try:
            latest_release(self.artifacts / "release", self._verified(model) or None)
        except ReleaseError as exc:
            return TaskFailed(str(ReleaseError(exc.what, fix=f"run `{self._first.doit} release` first")), report=True)
        except ArtifactError as exc:
            return TaskFailed(str(exc), report=True)
        return None

    def _verified(self, model: str) -> str:
        """Return the model whose newest release is verified: that of a configuration of one model, if none is named."""
        return model or (self._first.plan.model if len(self._projects) == 1 else "")

    def _verify_command(self, key: str, path: str, model: str) -> list[str]:
        """Return the command; of a configuration of one model the newest release is that model's."""
        named = model if path else self._verified(model)
        release = [path] if path else ["--artifacts", str(self._first.paths.root)]
        release += ["--model", named] if named else []
        return [sys.executable, "-m", "model_artifacts", "verify", *release, *_arguments({VERIFY_KEY: key})]

    def triton(self) -> TaskDict:
        """Return the task that writes model repositories for Triton."""
        root = self._first.paths.root
        command = [sys.executable, "-m", "model_artifacts", "triton", str(root), "--output", str(root / "triton")]
        return {"actions": [CmdAction(command, shell=False)], "task_dep": ["manifest"]}

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "pipeline", *arguments, *self._configuration()]

    def _configuration(self) -> list[str]:
        return [] if self._config == Path("pipeline.yaml") else ["--config", str(self._config)]


def _parameter(option: Option) -> dict[str, object]:
    """Return an option of a command as a parameter of a doit task."""
    kind, default = (bool, False) if option.is_switch else (str, "")
    return {"name": option.name, "long": option.long, "type": kind, "default": default, "help": option.help}


def _arguments(chosen: dict[Option, str | bool]) -> list[str]:
    """Return the values of a doit task's parameters as arguments of the command that it runs."""
    given = [(option.flags[0], value) for option, value in chosen.items() if value]
    return [text for flag, value in given for text in ((flag,) if value is True else (flag, str(value)))]


class _UpToDate:
    """doit's question to a task: are its results current?"""

    def __init__(self, project: Project, step: Step, current: set[Step]) -> None:
        self._project = project
        self._step = step
        self._current = current
        """The steps that this run knows to be current, shared by all tasks."""

    def __call__(self, task: Task, values: object) -> bool:
        del values  # the records on disk know
        freshness = freshness_of(self._project, self._step, self._current)
        if freshness.is_current and freshness.since:
            self._current.add(self._step)
            if task.meta is not None:
                task.meta[SINCE] = freshness.since
        if task.meta is not None and freshness.reasons != (NOT_MADE,):
            task.meta[WHY] = freshness.reasons
        return freshness.is_current


def _check_variables() -> None:
    """Check that the command line sets no variable but the configuration; doit takes every `name=value`.

    Raises:
        UsageError: there is another one.
    """
    given: dict[str, str] = doit_cmd._CMDLINE_VARS or {}  # noqa: SLF001 - doit offers no list of its variables
    for name, value in given.items():
        if name != CONFIG_VARIABLE:
            raise UsageError(
                f"doit has no variable {name!r}",
                expected=f"{CONFIG_VARIABLE}=FILE",
                got=f"{name}={value}",
                fix=f"did you mean `{CONFIG_VARIABLE}={value}`? An option's value is a word of its own: `--key FILE`",
            )


def _planned(config: Path, stages: tuple[StageSpec[Any], ...]) -> tuple[Project, ...]:
    """Read the configuration; look at its farm first if there is no record of it."""
    try:
        return load_projects(config, stages)
    except UnknownFarmError:
        from pipeline.farm.inspection import look_at_farm

        sys.stderr.write("looking at the farm, on which this builds; the next time it is known\n")
        look_at_farm(config)
        return load_projects(config, stages)
