"""Projects of a configuration's text, and their first steps, which tests of several sizes share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.records import Graph
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.common.model import restore_model
from pipeline.stages.data.stage import make_data
from pipeline.stages.export.stage import make_onnx

if TYPE_CHECKING:
    from pathlib import Path


def project_of(folder: Path, text: str) -> Project:
    """Return a project with this configuration."""
    file = folder / "pipeline.yaml"
    file.write_text(text)
    return Project.load(file, STAGES)


def exported(project: Project) -> None:
    """Export a project's FP32 graph."""
    make_onnx(project, restore_model(project), Graph.FP32)


def with_data(project: Project) -> None:
    """Make a project's data."""
    make_data(project, restore_model(project))
