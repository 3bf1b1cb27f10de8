"""`python -m pipeline COMMAND`: one step of a stage, or a look at the whole plan."""

from __future__ import annotations

import logging
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from model_artifacts.cli.boundary import guarded
from model_artifacts.cli.parser import CommandLine
from model_artifacts.cli.process import end_like_ctrl_c, ignore_further_signals
from model_artifacts.errors import SourceError
from model_artifacts.host.terminal import steady_output
from pipeline.cli.options import ARTIFACTS, CONFIG, subject_of
from pipeline.cli.plan_commands import add_plan_commands
from pipeline.planning.folder.owner import check_owner, claim
from pipeline.planning.folder.projects import load_projects, project_of
from pipeline.planning.freshness import is_reused
from pipeline.planning.steps import Step
from pipeline.stages import STAGES
from pipeline.system.nvtx import nvtx_range

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from multiprocessing.connection import Connection
    from pathlib import Path
    from typing import NoReturn

    from pipeline.planning.project import Project
    from pipeline.planning.spec import StageSpec

_REMEDY = "install the building stack: `uv sync`"


class Terminal:
    """Standard output and standard error."""

    def say(self, text: str) -> None:
        """Print a line; an empty text prints nothing."""
        if text:
            print(text, flush=True)

    def error(self, text: str) -> None:
        """Print a line to standard error."""
        print(text, file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0 done or skipped with a reason, 1 failed, 2 wrong usage or configuration, 137 if a worker
        process was killed, 143 after SIGTERM.
    """
    with steady_output():
        return _run(sys.argv[1:] if arguments is None else arguments)


def run_and_end(arguments: Sequence[str]) -> NoReturn:
    """Run one command in a process that is there for it alone, and end the process with its exit status."""
    end_like_ctrl_c()
    status = main(arguments)
    ignore_further_signals()
    sys.exit(status)


def run_forked(_connection: Connection, arguments: Sequence[str]) -> NoReturn:
    """Run one command in a child of a fork server."""
    run_and_end(arguments)


class _NoRepeats(logging.Filter):
    """A filter that leaves out a message equal to the one before it, as of a model that is restored for each size."""

    def __init__(self) -> None:
        super().__init__()
        self._last = ""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True for a message that differs from the last one."""
        last, self._last = self._last, record.getMessage()
        return last != self._last


def _run(arguments: Sequence[str]) -> int:
    line = command_line()
    if not arguments:
        line.parser.print_help(sys.stderr)
        return 2
    options = line.parse(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stdout, force=True)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_NoRepeats())
    for package in ("pipeline", "model_artifacts"):
        logging.getLogger(package).setLevel(logging.INFO)
    subject = getattr(options, "subject", None)
    return guarded(
        f"{options.command} {subject}" if subject else options.command,
        lambda: int(options.run(options)),
        debug=options.debug,
        remedy=options.remedy,
        may_be_cut_short=options.only_prints,
    )


def command_line() -> CommandLine:
    """Return the commands of the build half: one for each stage, and those that look at the plan."""
    line = CommandLine(
        "python -m pipeline", "Run one step of the pipeline, or look at its plan. `doit` runs every step that is stale."
    )
    for spec in STAGES:
        _add_stage(line, spec)
    add_plan_commands(line, _REMEDY)
    return line


def _add_stage(line: CommandLine, spec: StageSpec[Any]) -> None:
    parser = line.add(spec.name, spec.sentence.rstrip("."), example=spec.subjects.example, remedy=_REMEDY)
    for option in (subject_of(spec.subjects.noun), CONFIG, ARTIFACTS):
        option.add_to(parser)
    parser.set_defaults(
        only_prints=False,
        run=lambda options: _run_step(Step(spec.name, options.subject), options.config, options.artifacts),
    )


def _run_step(step: Step, config: Path, artifacts: Path | None) -> int:
    project = project_of(load_projects(config, STAGES, artifacts), step)
    subject = project.schedule.subject(step)
    if not project.on_worker:
        check_owner(project)
    if is_reused(project, step):
        raise SourceError(
            f"{step.stage} needs torch, which is not installed here; its result in artifacts/ is missing or stale",
            expected="the folders source/, data/ and onnx/ of this configuration, made on a host with torch",
            fix=f"run `{project.command(step)}` there, and copy {project.paths.folder} from it",
        )
    if project.schedule.workers(step) and not project.on_worker:
        return _run_on_farm(project, step)
    spec = project.schedule.spec(step.stage)
    if not project.on_worker:
        claim(project)
    _ = project.git  # the step's record names the commit of now, not one that is made meanwhile
    with _turn_of(spec), nvtx_range(f"{step.stage} {step.subject}"):
        if project.config.cache is None or project.on_worker:  # the farm's driver has looked into the cache
            return spec.load()(project, subject, Terminal())
        return _run_or_fetch(project, step, project.config.cache)


def _run_or_fetch(project: Project, step: Step, url: str) -> int:
    """Take a step's result from the shared cache, or make it and leave it there for other machines."""
    from pipeline.planning.shared_cache import SharedCache

    cache, terminal = SharedCache(url), Terminal()
    if origin := cache.fetch(project, step):
        terminal.say(f"taken from {origin}")
        return 0
    status = project.schedule.spec(step.stage).load()(project, project.schedule.subject(step), terminal)
    if status == 0:
        cache.offer(project, step)
    return status


def _run_on_farm(project: Project, step: Step) -> int:
    from pipeline.farm.executor import Farm

    return Farm(project).run(
        step, lambda line: print(line.line, file=sys.stderr if line.error else sys.stdout, flush=True)
    )


def _turn_of(spec: StageSpec[Any]) -> AbstractContextManager[None]:
    """Wait until a stage may run: nothing else of this project works on the host while something is timed."""
    if spec.last:
        return nullcontext()
    from pipeline.system.locks import working

    return working(alone=spec.alone)
