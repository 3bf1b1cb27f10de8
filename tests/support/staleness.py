"""Stale steps of a project on disk, and changes of its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.planning.freshness import is_current
from pipeline.planning.project import Project
from pipeline.stages import STAGES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Change = Callable[[str], str]


def stale(folder: Path) -> set[str]:
    """Return the steps that have something to do, but for the manifest."""
    project = Project.load(folder / "pipeline.yaml", STAGES)
    steps = [step for step in project.schedule.steps if step.stage != "manifest"]
    return {f"{step.stage}:{step.subject}" for step in steps if not is_current(project, step)}


def rewrite(folder: Path, change: Change) -> None:
    """Change the configuration's text."""
    file = folder / "pipeline.yaml"
    before = file.read_text()
    file.write_text(change(before))
    assert file.read_text() != before
