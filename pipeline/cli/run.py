"""`doit run` with tasks that follow others, whether or not those succeeded.

doit stops at a failed dependency. The benchmark and the manifest must run after failures, too: they cover the variants
that succeeded. This `Run` adds that, and turns every error before the first task into one message.
"""

from __future__ import annotations

import re
import shlex
import signal
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

from doit import get_var
from doit.cmd_run import Run as DoitRun
from doit.cmd_run import opt_always, opt_continue, opt_num_process, opt_verbosity
from doit.cmdparse import CmdParseError
from doit.control import TaskControl
from doit.exceptions import InvalidCommand, InvalidDodoFile, InvalidTask, UnmetDependency
from doit.reporter import ConsoleReporter
from doit.runner import MThreadRunner, Runner
from doit.task import Stream

from model_artifacts.errors import ArtifactError, closest, storage_errors
from model_artifacts.host.terminal import steady_output
from pipeline.cli.actions import FarmAction, ForkedStep, SkippedStep
from pipeline.cli.live import Live
from pipeline.cli.order import SECONDS, LongestFirst
from pipeline.cli.progress import Planned, Progress, add_durations, read_durations
from pipeline.cli.tasks import ALONE, CONFIG_VARIABLE, MAY_FAIL, REUSED, SCREEN, SINCE, VERDICT, WHY
from pipeline.system.processes import end_children

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from types import FrameType
    from typing import Any, NoReturn, TextIO

    from doit.exceptions import BaseFail
    from doit.task import Task

    from pipeline.cli.actions import LazyFarm
    from pipeline.cli.tasks import Tasks


T = TypeVar("T")

DURATIONS = ".durations.json"
"""The file in the artifacts folder with the durations of the steps in earlier runs, for the time that a run takes."""

_LINES_OF_A_REASON = 6
"""Lines of an error that the end of a run shows again: what, where, expected, got and fix."""
_COMMANDS = ("list", "help", "info")
"""Commands of doit's own, beside `run`, that tell about tasks."""


class Reporter(ConsoleReporter):
    """A reporter that leaves the output to the steps, and lists the failures at the end with their commands.

    In a terminal it shows the steps at work.
    """

    def __init__(self, live: Live, progress: Progress) -> None:
        """Create a reporter.

        Args:
            live: the display of the steps at work.
            progress: the progress of the run.
        """
        super().__init__(sys.stdout, {})
        self._live = live
        self._progress = progress

    def initialize(self, tasks: dict[str, Task], selected_tasks: list[str]) -> None:
        """Start a run."""
        self._idle = True
        self._verdicts: dict[str, str] = {}
        self._screens: dict[str, tuple[Path, str, str]] = {}
        self._planned = tuple(tasks)
        self._asked_for = selected_tasks

    def execute_task(self, task: Task) -> None:
        """Print why a task is stale; its step prints the rest."""
        self._idle = self._idle and not task.actions
        if reasons := (task.meta or {}).get(WHY):
            self.write(f"{task.name}: stale: {'; '.join(reasons)}\n")
        self._progress.begin(task.name, time.monotonic())
        if not task.actions or isinstance(task.actions[0], SkippedStep):
            return
        if _is_step(task):
            self._live.show()
        else:
            self._live.hide()  # a command may ask for a password
            self._print_screen()

    def add_success(self, task: Task) -> None:
        """Take a step off the display."""
        self._end(task, done=True)
        if SCREEN in (task.meta or {}):
            self._screens[task.name] = task.meta[SCREEN]

    def _end(self, task: Task, *, done: bool) -> None:
        self._progress.end(task.name, time.monotonic(), done=done)

    def skip_uptodate(self, task: Task) -> None:
        """Print a line only for a reused result, and for a task that was asked for by name."""
        self._end(task, done=False)
        if VERDICT in (task.meta or {}):
            self._verdicts[task.name] = task.meta[VERDICT]
        if self._asked_for == [task.name] and (since := (task.meta or {}).get(SINCE)):
            self.write(f"{task.name}: up to date since {since:%Y-%m-%d %H:%M} UTC\n")
        if (task.meta or {}).get(REUSED):
            self.write(f"{task.name}: reused: torch is not installed here, and the digests hold\n")

    def add_failure(self, task: Task, fail: BaseFail) -> None:
        """Keep a failure for the end; the failure of a group only repeats that of its member."""
        self._end(task, done=False)
        if task.actions:
            self.failures.append({"task": task, "exception": fail})
            if not isinstance(fail, UnmetDependency) and not any(action.err for action in task.actions):
                self.write(f"{task.name}: error: {fail.get_msg()}")  # it died without a word

    def complete_run(self) -> None:
        """List the failures with the commands that repeat them."""
        self._live.hide()
        closing = self._print_screen()
        failed = [item["task"] for item in self.failures if not isinstance(item["exception"], UnmetDependency)]
        unmet = [item for item in self.failures if isinstance(item["exception"], UnmetDependency)]
        if failed:
            self.write(f"\n{len(failed)} failed; run again, each by itself, with:\n")
            said: list[list[str]] = []
            for task in failed:
                reason = _reason_of(task) if closing else []  # without the screen it stands just above
                self.write("\n".join([f"  {_command_of(task)}", *(reason if reason not in said else []), ""]))
                said.append(reason)
        if unmet:
            self.write(f"{len(unmet)} not run, because what they build on failed\n")
        if self.runtime_errors:
            self.write("\n".join(["", *self.runtime_errors, ""]))
        elif self._idle and not self.failures:
            lines = dict.fromkeys(self._in_order(self._verdicts))  # a model's manifest and report have the same
            self.write("\n".join(["everything is up to date", *lines, ""]))
        if closing:
            self.write(f"\n{closing}\n")

    def _print_screen(self) -> str:
        """Print what this run has made, and return the lines that end the run; empty if it has made no manifest."""
        screens, self._screens = self._screens, {}
        return "\n".join(_last_screen(*screen, self._live.stream) for screen in self._in_order(screens))

    def _in_order(self, by_task: dict[str, T]) -> list[T]:
        """Return what tasks have said, in the order of the configuration, whichever ended first."""
        return [by_task[name] for name in self._planned if name in by_task]


def _last_screen(artifacts: Path, command: str, model: str, stream: TextIO) -> str:
    """Print the artifacts to deploy and the table of all, and return the line that ends a run.

    The table may fill more than a terminal's rows, so that the answer above it has left the screen.
    """
    from model_artifacts.cli.answers import Place, answer_in_short, devices_here, print_manifest
    from model_artifacts.deployment.loading import read_manifest
    from model_artifacts.records import of_model

    whole = read_manifest(artifacts)
    manifest, is_shared = of_model(whole, model), bool(whole.models)
    print_manifest(manifest, Place(artifacts, devices_here(), command, is_shared), stream)
    again = f"model-artifacts show {shlex.quote(str(artifacts))}{f' --model {model}' if is_shared else ''}"
    return f"{f'{model}: ' if is_shared else ''}{answer_in_short(manifest)}\nall of this again: {again}"


def _reason_of(task: Task) -> list[str]:
    """Return the error that a task ended with, as lines below its command: it may have left the screen long ago."""
    _, *errors = re.split(r"^error: ", "".join(action.err or "" for action in task.actions), flags=re.MULTILINE)
    lines = errors[-1].splitlines() if errors else []
    more = ["…"] if len(lines) > _LINES_OF_A_REASON else []
    return [f"      {line}" for line in [*lines[:_LINES_OF_A_REASON], *more]]


def _is_step(task: Task) -> bool:
    """Return True for a step of the pipeline, and not for a group or for a command on demand."""
    return ALONE in (task.meta or {})


def planned_steps(tasks: dict[str, Task], selected: Iterable[str]) -> dict[str, Planned]:
    """Return the steps among the selected tasks, and those that they depend on."""
    found: dict[str, Planned] = {}
    to_see, seen = list(selected), set[str]()
    while to_see:
        task = tasks[to_see.pop()]
        if task.name not in seen:
            seen.add(task.name)
            to_see += task.task_dep
            if _is_step(task):
                skipped = isinstance(task.actions[0], SkippedStep)
                roughly = task.meta.get(SECONDS, 0.0)
                found[task.name] = Planned(task.name.partition(":")[0], task.meta[ALONE], skipped, roughly)
    return found


def _command_of(task: Task) -> str:
    """Return the command line that repeats a task: with its configuration and its options, such as a demanded key."""
    words = [*_doit(), task.name]
    for parameter in task.params:
        value = (task.options or {}).get(parameter["name"], parameter["default"])
        if value != parameter["default"]:
            flag = f"--{parameter['long']}"
            # doit takes a word with an equals sign for a variable, unless it begins with a dash.
            words += [flag] if value is True else [f"{flag}={value}"] if "=" in str(value) else [flag, str(value)]
    return _shell(*words, *(task.pos_arg_val or ()))


def _doit() -> list[str]:
    """Return the first words of a command line of doit: the configuration among them, if one was named."""
    return ["doit", *([f"{CONFIG_VARIABLE}={config}"] if (config := get_var(CONFIG_VARIABLE)) else [])]


def _shell(*words: str) -> str:
    """Return a command line for the shell, without the query of a PKCS #11 URI, which may hold the PIN."""
    return shlex.join(re.sub(r"(pkcs11:[^?]*\?).*", r"\1…", word) for word in words)


class _Tolerant:
    """A mixin for runners: a task that only follows others runs although some of them failed."""

    def select_task(self, node: Any, tasks_dict: Any) -> bool:  # noqa: ANN401 - doit is untyped
        may_fail = (node.task.meta or {}).get(MAY_FAIL, ())
        node.bad_deps = [bad for bad in node.bad_deps if bad.task.name not in may_fail]
        return bool(super().select_task(node, tasks_dict))  # type: ignore[misc]  # doit's runner comes after this class


class _SequentialRunner(_Tolerant, Runner):
    pass


class _ParallelRunner(_Tolerant, MThreadRunner):
    pass


_ON_FARM = 256
"""The steps under way on a farm; the cluster queues those that find no worker."""


class _FarmRunner(_ParallelRunner):
    """A runner with many steps under way at once, of which this machine runs no more than without a farm."""

    def __init__(self, *arguments: Any, here: int) -> None:  # noqa: ANN401 - doit's own
        super().__init__(*arguments, _ON_FARM)
        self._here = threading.BoundedSemaphore(here)

    def execute_task(self, task: Task) -> BaseFail | None:
        if any(isinstance(action, FarmAction) for action in task.actions):
            return super().execute_task(task)
        with self._here:
            return super().execute_task(task)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Work in a folder alone: configurations of other models run side by side, also in one artifacts folder.

    Raises:
        ArtifactError: another doit works there.
        StorageError: the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".doit.lock")
    with storage_errors(f"preparing {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(Timeout):  # which is an OSError
            lock.acquire(timeout=0)
    if not lock.is_locked:
        raise ArtifactError(f"another doit works in {folder}", fix="wait for it, or stop it")
    try:
        yield
    finally:
        lock.release()


_PATIENCE_SECONDS = 10.0
"""The grace period of running steps; after it they are killed."""


class _AskedToEnd:
    """A handler that raises `KeyboardInterrupt`, and remembers that it did.

    An interrupt may come while a queue gives back its lock. Then Python raises "RuntimeError: release unlocked lock" in
    its place, and only this handler knows the cause.
    """

    def __init__(self) -> None:
        self.came = False

    def listen(self) -> None:
        """Handle SIGTERM, and Ctrl-C unless a shell ignores it for work in the background."""
        signal.signal(signal.SIGTERM, self)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self)

    def __call__(self, _number: int, _frame: FrameType | None) -> NoReturn:
        self.came = True
        raise KeyboardInterrupt


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
        with steady_output(), ExitStack() as self._held:
            return self._execute_explained(params, args)

    def _execute_explained(self, params: Any, args: list[str]) -> int:  # noqa: ANN401 - the same
        """Run the selected tasks, and turn what ends the run early into a message."""
        asked = _AskedToEnd()
        asked.listen()
        try:
            return int(super().execute(params, args))
        except (InvalidCommand, InvalidDodoFile, InvalidTask) as exc:
            message, status = f"error: {self._explain(exc)}\n", 2
        except ArtifactError as exc:
            message, status = f"error: {exc}\n", exc.exit_code
        except (KeyboardInterrupt, RuntimeError):
            if not asked.came:
                raise
            self._end_steps()
            again = _shell("doit", *sys.argv[1:])
            message, status = f"\ninterrupted; run `{again}` again to go on from here\n", 1
        sys.stderr.write(message)
        return status

    def _explain(self, exc: Exception) -> str:
        """Return the message of an error of use, with the task that a mistyped name most likely stands for."""
        if not isinstance(exc, InvalidCommand):
            return str(exc)
        exc.cmd_used, exc.bin_name = None, "doit"
        close = closest(exc.not_found or "", [*_COMMANDS, *(task.name for task in self.task_list)])
        return str(exc) + (f"did you mean `{_shell(*_doit(), close)}`?" if close else "")

    def _end_steps(self) -> None:
        with suppress(KeyboardInterrupt):  # whoever asks twice does not want to wait for it
            end_children(_PATIENCE_SECONDS)
            for farm in self._farms():
                farm.stop()

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
        tasks: Tasks = self.loader.namespace["TASKS"]
        durations = tasks.artifacts / DURATIONS
        at_once = None if self._farms() else num_process
        for folder in tasks.folders:
            self._held.enter_context(_alone_in(folder))  # until interrupted steps have ended, too
        steps = planned_steps(self.control.tasks, self.control.selected_tasks)
        progress = Progress(steps, read_durations(durations), at_once)
        try:
            with Live(progress) as live:
                arguments = (self.dep_manager, Reporter(live, progress), continue_, always)
                return self._run_all(num_process, (*arguments, Stream(verbosity, force_verbosity)))
        finally:
            add_durations(durations, progress.took)

    def _run_all(self, num_process: int, arguments: tuple[Any, ...]) -> int:
        if self._farms():
            runner = _FarmRunner(*arguments, here=max(num_process, 1))
        else:
            runner = _ParallelRunner(*arguments, num_process) if num_process > 1 else _SequentialRunner(*arguments)
        status = min(int(runner.run_all(LongestFirst(self.control))), 1)
        for server in {action.server for action in self._actions() if isinstance(action, ForkedStep)}:
            server.close()
        return status

    def _farms(self) -> set[LazyFarm]:
        """Return the farm if one of the tasks runs there."""
        return {action.farm for action in self._actions() if isinstance(action, FarmAction)}

    def _actions(self) -> list[Any]:
        return [action for task in self.task_list for action in task.actions]
