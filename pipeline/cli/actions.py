"""doit actions: a step's command with prefixed lines, a step on the farm, and a step that is known to be skipped."""

from __future__ import annotations

import os
import shlex
import threading
from typing import TYPE_CHECKING

from doit.action import BaseAction, CmdAction
from doit.exceptions import TaskFailed

from model_artifacts.errors import ArtifactError, out_of_memory
from pipeline.system.forks import SHARED, Surroundings
from pipeline.system.isolation import step_environment
from pipeline.system.processes import describe_exit

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TextIO

    from doit.exceptions import BaseFail
    from doit.task import Task
    from typing_extensions import Self

    from pipeline.farm.executor import Farm
    from pipeline.farm.parcels import PrintedLine
    from pipeline.planning.project import Project
    from pipeline.planning.spec import StageSpec
    from pipeline.planning.steps import Step
    from pipeline.system.forks import ForkedProcess, ForkServer


class PrefixedCommand(CmdAction):
    """The command of a step that is timed; its every line is shown as it comes, with the step's name before it."""

    def execute(self, out: TextIO | None = None, err: TextIO | None = None) -> BaseFail | None:
        """Run the command."""
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


class _WithoutProcess(BaseAction):
    """A step for which doit starts no process of its own."""

    def __init__(self, step: Step) -> None:
        self.task: Task | None = None  # doit sets it
        self.err = self.out = ""
        self.result: str | None = None
        self.values: dict[str, object] = {}
        self._step = step


class ForkedStep(_WithoutProcess):
    """A step in a child of the fork server; its lines are shown as they come."""

    def __init__(self, server: ForkServer, step: Step, arguments: list[str], spec: StageSpec[Any]) -> None:
        """Create the action.

        Args:
            server: the server, which starts with the first step.
            step: the step.
            arguments: those of `python -m pipeline`.
            spec: the step's stage.
        """
        super().__init__(step)
        self.server = server
        self._arguments = arguments
        self._prefix = "" if spec.prints_a_table else f"{step.name}: "
        self._child: ForkedProcess | None = None
        """Kept, since the end of this reference kills the child: after an interrupt it cleans up."""
        self._shared = SHARED if spec.needs_torch else ()

    def execute(self, out: TextIO | None = None, err: TextIO | None = None) -> BaseFail | None:
        """Run the step."""
        try:
            status = self._run(self._lines(out), self._lines(err))
        except ArtifactError as exc:
            return TaskFailed(str(exc), report=True)
        if status:
            return TaskFailed(describe_exit(status) if status < 0 else f"exit status {status}", report=True)
        return None

    def _lines(self, stream: TextIO | None) -> _Lines:
        return _Lines(_Prefixed(stream, self._prefix) if stream else None)

    def _run(self, out: _Lines, err: _Lines) -> int:
        from pipeline.cli.main import run_forked  # which `doit list` does not need

        title = shlex.join(["python", "-m", "pipeline", *self._arguments])
        surroundings = Surroundings.of_step(step_environment(timed=False), title)
        with out, err:
            self._child, connection = self.server.fork(
                run_forked,
                (self._arguments,),
                modules=(run_forked.__module__, *self._shared),
                surroundings=surroundings,
                output=(out.descriptor, err.descriptor),
            )
            connection.close()
        self._child.join()
        status = self._child.exitcode or 0
        self._child.close()
        self.out, self.err = out.text, err.text
        self.result = self.out + self.err
        return status


class _Lines(threading.Thread):
    """A pipe whose lines are passed on and kept, until all processes that write to it have ended."""

    def __init__(self, stream: _Prefixed | None) -> None:
        super().__init__(daemon=True)
        self._stream = stream
        self._source, self.descriptor = os.pipe()
        self.text = ""

    def run(self) -> None:
        with open(self._source, encoding="utf-8", errors="replace") as lines:  # noqa: PTH123 - a descriptor
            for line in lines:
                self.text += line
                if self._stream:
                    self._stream.write(line)
                    self._stream.flush()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close this process's end, and wait for the last line, unless an interrupt ends the run."""
        os.close(self.descriptor)
        if kind is None:
            self.join()


class SkippedStep(_WithoutProcess):
    """A step that this host lacks the hardware for: its record is written here, where a process would take a second."""

    def __init__(self, project: Project, step: Step, said: set[str]) -> None:
        """Create the action.

        Args:
            project: the configuration with its artifacts.
            step: the step.
            said: the lines of all such steps so far. A host without a GPU would say the same fifty times.
        """
        super().__init__(step)
        self._project = project
        self._said = said

    def execute(self, out: TextIO | None = None, err: TextIO | None = None) -> BaseFail | None:
        """Write the record of the skip, and print its reason if that is new."""
        schedule = self._project.schedule
        console = _SaidOnce(f"{self._step.name}: ", out, err, self._said)
        try:
            run = schedule.spec(self._step.stage).load()
            status = run(self._project, schedule.subject(self._step), console)
        except ArtifactError as exc:
            return TaskFailed(str(exc), report=True)
        return TaskFailed(f"exit status {status}", report=True) if status else None


class _SaidOnce:
    """A console on doit's streams that prints each text once, for the first step that says it."""

    def __init__(self, prefix: str, out: TextIO | None, err: TextIO | None, said: set[str]) -> None:
        self._prefix, self._out, self._err, self._said = prefix, out, err, said

    def say(self, text: str) -> None:
        if self._out and text and text not in self._said:
            self._said.add(text)
            self._out.write(f"{self._prefix}{text}\n")

    def error(self, text: str) -> None:
        if self._err:
            self._err.write(f"{self._prefix}{text}\n")


class LazyFarm:
    """The farm, which the first step that runs there joins."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._lock = threading.Lock()
        self._open: Farm | None = None

    def run(self, step: Step, report: Callable[[PrintedLine], None]) -> int:
        """Run a step on a worker, report each line that it prints, and return its exit status."""
        from pipeline.farm.executor import Farm

        with self._lock:
            self._open = self._open or Farm(self._project)
        return self._open.run(step, report)

    def stop(self) -> None:
        """End the steps that run there."""
        if self._open:
            self._open.stop()


class FarmAction(_WithoutProcess):
    """A step on the farm; its lines are shown as those of its command would be."""

    def __init__(self, farm: LazyFarm, step: Step) -> None:
        super().__init__(step)
        self.farm = farm

    def execute(self, out: TextIO | None = None, err: TextIO | None = None) -> BaseFail | None:
        """Run the step."""

        def write(line: str, *, error: bool) -> None:
            if stream := err if error else out:
                stream.write(f"{self._step.name}: {line}\n")
                stream.flush()
            self.err += line if error else ""

        try:
            status = self.farm.run(self._step, lambda line: write(line.line, error=line.error))
        except ArtifactError as exc:
            write(f"error: {exc}", error=True)
            return TaskFailed(str(exc), report=True)
        except Exception as exc:  # noqa: BLE001 - of this step alone, as a command's would be: the others go on
            write(f"error: {out_of_memory(exc) or f'unexpected {type(exc).__name__}: {exc}'}", error=True)
            return TaskFailed(str(exc), report=True)
        return TaskFailed(f"exit status {status}", report=True) if status else None
