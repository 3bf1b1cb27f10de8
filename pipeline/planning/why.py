"""Variant → why its results are stale, or since when they are up to date, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.planning.freshness import Freshness, freshness_of
from pipeline.planning.steps import Step

if TYPE_CHECKING:
    from model_artifacts.records import Variant
    from pipeline.planning.project import Project


def explain(project: Project, variant: Variant) -> str:
    """Return in lines what is known of every step that a variant's results come from.

    The first line is about the variant: the first reason on the way from its weights to its validation, which is what
    `doit` would begin with. Steps after a stale one may turn out to have nothing to do, once that has been made again.

    Raises:
        NewerRecordError: a record is there that only a newer version of this package can read.
    """
    steps = _steps_of(project, variant)
    known = {step: freshness_of(project, step) for step in steps}
    lines = []
    for step in steps:
        before = [other for other in project.schedule.dependencies(step).requires if not known[other].is_current]
        lines.append(f"  {step.name:<{_width(steps)}}  {_said(known[step], before)}")
    return "\n".join([f"{variant.id} is {_verdict(known)}", *lines])


def _steps_of(project: Project, variant: Variant) -> list[Step]:
    """Return the steps up to a variant's validation and its target's benchmark, in their order."""
    schedule = project.schedule
    target = f"{variant.model}/{variant.target}"
    ahead = [Step("benchmark", target), Step("validate", variant.id), Step("build", variant.id)]
    found = set(ahead)
    while ahead:
        required = set(schedule.dependencies(ahead.pop()).requires) - found
        found |= required
        ahead += required
    return [step for step in schedule.steps if step in found]


def _verdict(known: dict[Step, Freshness]) -> str:
    """Return what is to be said of the variant; a benchmark's reasons are those of all that it times."""
    own = {step: status for step, status in known.items() if step.stage != "benchmark"}
    for step, status in own.items():
        if not status.is_current:
            return f"stale: {status.reasons[0]} ({step.stage})"
    times = [status.since for status in own.values() if status.since]
    return f"up to date since {max(times):%Y-%m-%d %H:%M} UTC" if times else "up to date"


def _said(status: Freshness, before: list[Step]) -> str:
    if not status.is_current:
        return f"stale: {'; '.join(status.reasons)}"
    since = f"up to date since {status.since:%Y-%m-%d %H:%M} UTC" if status.since else "nothing to do"
    return f"{since}; looked at again after {before[0].name}" if before else since


def _width(steps: list[Step]) -> int:
    return max(len(step.name) for step in steps)
