"""Variant → the reasons why its results are stale, or the time since when they are current, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.errors import RecordError
from pipeline.planning.freshness import Freshness, freshness_of
from pipeline.planning.steps import Step
from pipeline.records import Outcome

if TYPE_CHECKING:
    from model_artifacts.records import Variant
    from pipeline.planning.project import Project


def explain(project: Project, variant: Variant) -> str:
    """Return a line on the variant, and one on each step that its results come from.

    The line on the variant has the first reason from its weights to its validation, with which `doit` would begin.
    Steps after a stale one may have nothing to do after that has run. A rejected variant also has the reason, and the
    layers that computed in another type than its precision.

    Raises:
        NewerRecordError: a record is there that only a newer version of this package can read.
    """
    steps = _steps_of(project, variant)
    known = {step: freshness_of(project, step) for step in steps}
    lines = []
    for step in steps:
        before = [other for other in project.schedule.dependencies(step).requires if not known[other].is_current]
        lines.append(f"  {step.name:<{_width(steps)}}  {_said(known[step], before)}")
    return "\n".join([f"{variant.id} is {_verdict(known)}", *lines, *_rejection(project, variant)])


def _rejection(project: Project, variant: Variant) -> list[str]:
    """Return the reason of a rejection, and the layers that computed in another type; no lines without a rejection."""
    try:
        report = project.accuracy(variant)
    except RecordError:  # the line on the step says so
        return []
    if report.outcome is not Outcome.DONE or report.passed:
        return []
    lines = [f"rejected: {report.reason}"]
    for share in report.layers:
        if share.precision is not variant.precision:
            kind = share.precision.value if share.precision else "an unknown type"
            more = share.layers - len(share.examples)
            names = ", ".join(share.examples) + (f" and {more} more" if more else "")
            lines.append(f"  in {kind}: {names}")
    return lines


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
    """Return the state of the variant, without the benchmark, whose reasons are those of its whole target."""
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
