"""Projects of a configuration's text, and their first steps, which tests of several sizes share."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from model_artifacts.records import Graph
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.common.model import restore_model
from pipeline.stages.data.stage import make_data
from pipeline.stages.export.stage import make_onnx
from pipeline.stages.source.stage import make_source

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


def graph_of(folder: Path, text: str, graph: Graph) -> Path:
    """Export a graph of a configuration's network into a new folder `twin`, and return its file."""
    other = folder / "twin"
    other.mkdir()
    project = project_of(other, text)
    make_source(project)
    make_onnx(project, restore_model(project), graph)
    return project.paths.onnx(graph)


def with_graph_of(project: Project, folder: Path, text: str, graph: Graph) -> Project:
    """Return a copy of a project whose graph is that of another configuration's network, as of a wrong twin.

    Args:
        project: the project, whose files stay as they are.
        folder: an empty folder for both.
        text: the configuration of the other network.
        graph: the graph to exchange.
    """
    shutil.copytree(project.config_file.parent, folder / "broken")
    broken = Project.load(folder / "broken/pipeline.yaml", STAGES)
    shutil.copyfile(graph_of(folder, text, graph), broken.paths.onnx(graph))
    return broken
