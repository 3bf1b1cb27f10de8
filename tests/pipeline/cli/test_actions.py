"""Actions of doit's tasks: steps that are known to be skipped."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest

from model_artifacts.host.environment import missing_driver
from pipeline.cli.actions import SkippedStep
from pipeline.planning.project import Project
from pipeline.planning.steps import Step
from pipeline.stages import STAGES

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.skipif(not missing_driver(), reason="there is a GPU here")
def test_a_reason_is_said_once_for_all_steps_that_share_it(copied: Path) -> None:
    """Fifty variants of a GPU that is not there give one line, and a record each."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    variants = [variant for variant in project.plan.variants if variant.target == "gpu"]
    assert len(variants) > 1
    out, said = io.StringIO(), set[str]()
    for variant in variants:
        project.paths.artifact(variant).unlink()
        assert SkippedStep(project, Step("build", variant.id), said).execute(out) is None
        assert project.paths.artifact(variant).is_file()
    assert out.getvalue() == f"build:{variants[0].id}: skipped: no NVIDIA driver found\n"
