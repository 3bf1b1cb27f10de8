"""Steps of the plan, run where they are stale, as `doit` would."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.errors import ArtifactError, RunError, SourceError, shortened
from pipeline.planning.freshness import is_current, is_reused

if TYPE_CHECKING:
    from pipeline.planning.project import Project
    from pipeline.planning.steps import Step
    from pipeline.tune.steps.limits import Rest


_MOST = 200
"""The most characters of a library's own message in a reason."""


def reason_of(error: ArtifactError) -> str:
    """Return an error as a reason: the failure, and what a library or another program has said."""
    return f"{error.what}{': ' if error.got else ''}{shortened(error.got, _MOST)}"


class Quiet:
    """A console that keeps the last error of a step."""

    def __init__(self) -> None:
        self.last_error = ""

    def say(self, text: str) -> None:
        """Print nothing: a search prints a line for each trial."""

    def error(self, text: str) -> None:
        """Keep a line."""
        self.last_error = text


def ensure(project: Project, step: Step, rest: Rest, done: dict[Step, ArtifactError | None] | None = None) -> None:
    """Run a step and those that it requires, as far as they are stale, each within what is left of the budget.

    A build or a validation that fails leaves its record, which tells; a failure of what it is made from is an error.

    Args:
        project: the project.
        step: the step.
        rest: what is left of the budget.
        done: the steps that were run or found current, each with its error, which is raised again; those of this call
            are added.

    Raises:
        RunError: a step that this one requires has failed.
        SourceError: a step needs torch, which is not installed.
        ArtifactError: what a step raises.
    """
    seen = {} if done is None else done
    if step in seen:
        if error := seen[step]:
            raise error
        return
    try:
        for earlier in project.schedule.dependencies(step).requires:
            ensure(project, earlier, rest, seen)
        _run_if_stale(project, step, rest)
    except ArtifactError as exc:
        seen[step] = exc
        raise
    seen[step] = None


def _run_if_stale(project: Project, step: Step, rest: Rest) -> None:
    if is_current(project, step):
        return
    if is_reused(project, step):
        raise SourceError(
            f"{step.name} needs torch, which is not installed here; its result is missing or stale",
            fix=f"run `{project.command(step)}` where torch is, and copy {project.paths.folder} from there",
        )
    spec = project.schedule.spec(step.stage)
    console = Quiet()
    with rest.waits.turn(alone=spec.alone), rest.limiting(project, step) as inside:
        status = spec.load()(inside, project.schedule.subject(step), console)
    if status and not spec.in_manifest:
        raise RunError(f"{step.name} failed: {console.last_error.removeprefix('error: ')}".rstrip(": "))
