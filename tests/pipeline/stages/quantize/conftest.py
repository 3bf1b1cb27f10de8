"""Projects with quantised graphs, to be read only."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import onnx
import pytest

from model_artifacts.records import Graph
from pipeline.stages.quantize.stage import make_quantized
from tests.support.quantized_graphs import TENSORRT, residual_graph, with_fp8

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.planning.project import Project


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    """Keep the root logger's level as it is for other tests."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


@pytest.fixture(scope="session")
def quantized(built_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The finished tiny project with fp8 as well, to be read only."""
    folder = tmp_path_factory.mktemp("fp8") / "project"
    project = with_fp8(built_folder, folder)
    make_quantized(project, Graph.FP8)
    return project


@pytest.fixture(scope="session")
def residual(built_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose FP32 graph is the residual one, quantised to int8 and fp8; to be read only."""
    folder = tmp_path_factory.mktemp("residual") / "project"
    project = with_fp8(built_folder, folder)
    onnx.save(residual_graph(), project.paths.onnx(Graph.FP32))
    for graph in TENSORRT:
        make_quantized(project, graph)
    return project
