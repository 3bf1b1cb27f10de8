"""The contents of a folder of artifacts: records, and files that should not be there."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from pipeline.planning.freshness import freshness_of

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.planning.project import Project
    from pipeline.planning.steps import Step


def unwhole(project: Project) -> list[str]:
    """Return the damage on disk, without missing and stale results."""
    found = []
    for path in project.paths.root.rglob("*.json"):
        with contextlib.suppress(FileNotFoundError):
            json.loads(path.read_bytes())
    for step in project.schedule.steps:
        reasons = freshness_of(project, step).reasons
        found += [f"{step}: {reason}" for reason in reasons if "not what was made" in reason or "not a valid" in reason]
    return found


def temporaries(folder: Path) -> list[Path]:
    """Return the files that were being written."""
    return [path for path in folder.rglob("*") if path.name.startswith(".writing-")]


def record_paths(project: Project, step: Step) -> list[Path]:
    """Return where a step's records lie."""
    spec, subject = project.schedule.spec(step.stage), project.schedule.subject(step)
    return [*spec.records(project.paths, project.plan, subject)]
