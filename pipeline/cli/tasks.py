"""Steps of the plan → doit tasks, and the `doit run` that runs them.

doit stops at a failed dependency. Here some tasks come after others whether or not those succeeded: the benchmark and
the manifest tell of what did succeed, too. That is the one thing this `Run` adds; it also turns what can go wrong
before a task runs into one message.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from doit import get_var
from doit.action import BaseAction, CmdAction
from doit.cmd_run import Run as DoitRun
from doit.cmd_run import opt_always, opt_continue, opt_num_process, opt_verbosity
from doit.cmdparse import CmdParseError
from doit.control import TaskControl
from doit.exceptions import InvalidCommand, InvalidDodoFile, InvalidTask, TaskFailed, UnmetDependency
from doit.reporter import ConsoleReporter
from doit.runner import MThreadRunner, Runner
from doit.task import Stream

from model_artifacts.errors import PipelineError, ReleaseError, UnknownFarmError, storage_errors
from model_artifacts.records import CPU_TARGET, Backend
from pipeline.planning.freshness import NOT_MADE, status_of, taken_as_given
from pipeline.planning.project import Project
from pipeline.planning.steps import Stage
from pipeline.system.isolation import step_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from doit.exceptions import BaseFail
    from doit.task import Task

    from pipeline.farm.executor import Farm
    from pipeline.farm.parcels import Said
    from pipeline.planning.steps import Step

    TaskDict = dict[str, Any]
    """What doit takes for a task."""

_TABLES = {Stage.MANIFEST, Stage.REPORT, Stage.PROFILE, Stage.SENSITIVITY}
"""What a step of these prints has its own shape."""

CONFIG_VARIABLE = "config"
"""`doit config=other.yaml` builds another configuration."""

_MAY_FAIL = "dependencies that may fail"
_GIVEN = "made elsewhere"
_WHY = "why it is not up to date"
_SINCE = "since when it is up to date"
_STATE = Path("artifacts")
"""Where the lock lies that one doit at a time holds."""


class Tasks:
    """The plan's steps as doit tasks. Only names and commands: nothing here imports torch or tensorrt."""

    def __init__(self, config: Path, project: Project) -> None:
        self._config = config
        self._project = project
        self._farm = _Farm(project)
        self._held: set[Step] = set()

    @classmethod
    def load(cls) -> Tasks:
        """Read the configuration that the command line names; wrong ones end the process with their message."""
        config = Path(get_var(CONFIG_VARIABLE, "pipeline.yaml"))
        try:
            return cls(config, _planned(config))
        except PipelineError as exc:
            sys.stderr.write(f"error: {exc}\n")
            raise SystemExit(exc.exit_code) from None

    def of(self, stage: Stage) -> Iterator[TaskDict]:
        """Yield one doit task a step of `stage`, named by the step's subject."""
        plan = self._project.plan
        action = CmdAction if stage in _TABLES else _Command
        environment = step_environment(timed=stage is Stage.BENCHMARK)
        for step in (*plan.steps, *plan.on_demand):
            if step.stage is stage:
                needs, follows = plan.dependencies(step)
                names = {other: f"{other.stage.value}:{other.subject}" for other in (*needs, *follows)}
                command = self._command(step.stage.value, step.subject)
                here = action(command, shell=False, env=environment)
                yield {
                    "name": step.subject,
                    "actions": [self._elsewhere(step) or here],
                    "task_dep": list(names.values()),
                    "uptodate": [_Current(self._project, step, self._held)],
                    "meta": {_MAY_FAIL: [names[other] for other in follows], _GIVEN: taken_as_given(step)},
                }

    def _elsewhere(self, step: Step) -> BaseAction | None:
        """Return what is done instead of a step's command: it runs on the farm, or is known to be skipped."""
        if self._project.plan.workers(step):
            return _OnFarm(self._farm, step)
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
        command = [sys.executable, "-m", "pipeline", "triton", str(root), "--output", str(root / "triton")]
        return {"actions": [CmdAction(command, shell=False)], "task_dep": [Stage.MANIFEST.value]}

    def _verify_command(self, key: str, path: str) -> list[str]:
        release = path or str(self._newest_release())
        return [sys.executable, "-m", "pipeline", "verify", release, *(["--key", key] if key else [])]

    def _newest_release(self) -> Path:
        from model_artifacts.releases.verification import latest_release  # noqa: PLC0415 - listing needs none of it

        try:
            return latest_release(self._project.paths)
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
        status = status_of(self._project, self._step, self._held)
        if status.is_current and status.since:
            self._held.add(self._step)
            if task.meta is not None:
                task.meta[_SINCE] = status.since
        if task.meta is not None and status.reasons != (NOT_MADE,):
            task.meta[_WHY] = status.reasons
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
        from pipeline.stages.build.stage import build_variant  # noqa: PLC0415 - listing needs none of it
        from pipeline.stages.validate.stage import validate_variant  # noqa: PLC0415 - the same

        del err
        make = build_variant if self._step.stage is Stage.BUILD else validate_variant
        try:
            made = make(self._project, self._project.plan.variant(self._step.subject))
        except PipelineError as exc:
            return TaskFailed(str(exc), report=True)
        if out:
            out.write(f"{self._name}: {made.outcome.value}: {made.reason}\n")
        return None


class _Farm:
    """The farm, which is joined by the first step that runs there."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._lock = threading.Lock()
        self._open: Farm | None = None

    def run(self, step: Step, say: Callable[[Said], None]) -> int:
        from pipeline.farm.executor import Farm  # noqa: PLC0415 - listing needs none of it

        with self._lock:
            self._open = self._open or Farm(self._project)
        return self._open.run(step, say)

    def stop(self) -> None:
        if self._open:
            self._open.stop()


class _OnFarm(_WithoutProcess):
    """Runs a step on the farm; what it says is shown as its command would say it."""

    def __init__(self, farm: _Farm, step: Step) -> None:
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
        except PipelineError as exc:
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


class Reporter(ConsoleReporter):
    """Leaves the talking to the steps; at the end says what failed and how to rerun it."""

    def initialize(self, tasks: dict[str, Task], selected_tasks: list[str]) -> None:
        """Begin with nothing done."""
        del tasks
        self._idle = True
        self._asked_for = selected_tasks

    def execute_task(self, task: Task) -> None:
        """Say why something is made again; the task will say what it makes."""
        self._idle = self._idle and not task.actions
        if reasons := (task.meta or {}).get(_WHY):
            self.write(f"{task.name}: stale: {'; '.join(reasons)}\n")

    def skip_uptodate(self, task: Task) -> None:
        """Say nothing, but of what this host could not have made, and of what was asked for alone."""
        if self._asked_for == [task.name] and (since := (task.meta or {}).get(_SINCE)):
            self.write(f"{task.name}: up to date since {since:%Y-%m-%d %H:%M} UTC\n")
        if (task.meta or {}).get(_GIVEN):
            self.write(f"{task.name}: taken as given: torch is not installed here, and the digests hold\n")

    def add_failure(self, task: Task, fail: BaseFail) -> None:
        """Keep it for the end; a group fails because a member did, which says nothing new."""
        if task.actions:
            self.failures.append({"task": task, "exception": fail})
            if not isinstance(fail, UnmetDependency) and not any(action.err for action in task.actions):
                self.write(f"{task.name}: error: {fail.get_msg()}")  # it died without a word

    def complete_run(self) -> None:
        """List the failures with the commands that repeat them."""
        failed = [item["task"] for item in self.failures if not isinstance(item["exception"], UnmetDependency)]
        unmet = [item for item in self.failures if isinstance(item["exception"], UnmetDependency)]
        if failed:
            self.write(f"\n{len(failed)} failed; run again, each by itself, with:\n")
            for task in failed:
                self.write(f"  doit {task.name}\n")
        if unmet:
            self.write(f"{len(unmet)} not run, because what they build on failed\n")
        if self.runtime_errors:
            self.write("\n".join(["", *self.runtime_errors, ""]))
        elif self._idle and not self.failures:
            self.write("everything is up to date\n")


class _Tolerant:
    """A runner's mixin: lets a task that only follows others run although some of them failed."""

    def select_task(self, node: Any, tasks_dict: Any) -> bool:  # noqa: ANN401 - doit is untyped
        may_fail = (node.task.meta or {}).get(_MAY_FAIL, ())
        node.bad_deps = [bad for bad in node.bad_deps if bad.task.name not in may_fail]
        return bool(super().select_task(node, tasks_dict))  # type: ignore[misc]  # doit's runner comes after this class


class _SequentialRunner(_Tolerant, Runner):
    pass


class _ParallelRunner(_Tolerant, MThreadRunner):
    pass


_ON_FARM = 256
"""How many steps may be under way where a farm runs most of them; the cluster queues what finds no worker."""


class _FarmRunner(_ParallelRunner):
    """Has many steps under way at once; those of this machine are no more than without a farm."""

    def __init__(self, *arguments: Any, here: int) -> None:  # noqa: ANN401 - doit's own
        super().__init__(*arguments, _ON_FARM)
        self._here = threading.BoundedSemaphore(here)

    def execute_task(self, task: Task) -> BaseFail | None:
        if any(isinstance(action, _OnFarm) for action in task.actions):
            return super().execute_task(task)
        with self._here:
            return super().execute_task(task)


_PATIENCE_SECONDS = 10.0
"""How long steps may take to end when asked to; then they are killed."""


def _end_steps() -> None:
    """End the steps that are running, and see that they have: a signal to doit alone has not reached them."""
    steps = [pid for thread in Path("/proc/self/task").glob("*") for pid in _children(thread)]
    deadline = time.monotonic() + _PATIENCE_SECONDS
    _send(steps, signal.SIGTERM)
    while any(map(_runs, steps)) and time.monotonic() < deadline:
        time.sleep(0.05)
    _send([pid for pid in steps if _runs(pid)], signal.SIGKILL)


def _children(thread: Path) -> list[int]:
    """Return the processes that a thread has started; none of one that has ended by now."""
    try:
        return [int(pid) for pid in (thread / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _send(processes: list[int], how: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, how)


def _runs(process: int) -> bool:
    """Return whether a process still does something; one that nobody has waited for yet does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in {"Z", "X"}


class Run(DoitRun):
    """`doit run`: exit status 0 when all is well, 1 when work failed, 2 for wrong usage or configuration."""

    cmd_options = (opt_always, opt_continue, opt_verbosity, opt_num_process)

    def parse_execute(self, in_args: list[str]) -> int:
        """Read the options, then run."""
        try:
            return int(super().parse_execute(in_args))
        except CmdParseError as exc:
            sys.stderr.write(f"error: {str(exc).split(' (parsing')[0].removeprefix('Error parsing Command: ')}\n")
            return 2

    def execute(self, params: Any, args: list[str]) -> int:  # noqa: ANN401 - doit is untyped
        """Run the selected tasks."""
        from filelock import FileLock, Timeout  # noqa: PLC0415 - 0.1 s that `doit list` saves

        lock = FileLock(_STATE / ".doit.lock")
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with storage_errors("preparing artifacts/"):
                _STATE.mkdir(exist_ok=True)
                with suppress(Timeout):  # which is an OSError
                    lock.acquire(timeout=0)
            if lock.is_locked:
                return int(super().execute(params, args))
            message = "error: another doit is running in this folder\n  fix:      wait for it, or stop it\n"
            status = 1
        except (InvalidCommand, InvalidDodoFile, InvalidTask) as exc:
            if isinstance(exc, InvalidCommand):
                exc.cmd_used, exc.bin_name = None, "doit"
            message, status = f"error: {exc}\n", 2
        except PipelineError as exc:
            message, status = f"error: {exc}\n", exc.exit_code
        except KeyboardInterrupt:
            with suppress(KeyboardInterrupt):  # whoever asks twice does not want to wait for it
                _end_steps()
                for farm in self._farms():
                    farm.stop()
            message, status = "\ninterrupted; run `doit` again to go on from here\n", 1
        finally:
            lock.release()
        sys.stderr.write(message)
        return status

    def _execute(
        self,
        verbosity: int | None = None,
        always: bool = False,  # noqa: FBT001,FBT002 - doit passes options by these names
        continue_: bool = True,  # noqa: FBT001,FBT002 - the same
        num_process: int = 0,
        force_verbosity: bool = False,  # noqa: FBT001,FBT002 - the same
    ) -> int:
        self.control = TaskControl(self.task_list)
        self.control.process(self.sel_tasks)
        reporter = Reporter(sys.stdout, {})
        arguments = (self.dep_manager, reporter, continue_, always, Stream(verbosity, force_verbosity))
        if self._farms():
            runner = _FarmRunner(*arguments, here=max(num_process, 1))
        else:
            runner = _ParallelRunner(*arguments, num_process) if num_process > 1 else _SequentialRunner(*arguments)
        return min(int(runner.run_all(self.control.task_dispatcher())), 1)

    def _farms(self) -> set[_Farm]:
        """Return the farm, where one of the tasks runs there."""
        actions = [action for task in self.task_list for action in task.actions]
        return {action.farm for action in actions if isinstance(action, _OnFarm)}


def _planned(config: Path) -> Project:
    """Read the configuration; where nobody has looked at its farm yet, do."""
    try:
        return Project.load(config)
    except UnknownFarmError:
        from pipeline.farm.inspection import look_at_farm  # noqa: PLC0415 - only once

        sys.stderr.write("looking at the farm, on which this builds; the next time it is known\n")
        look_at_farm(config)
        return Project.load(config)
