"""An FP32 graph must give the logits of the network that it was made from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import ExportError
from model_artifacts.records import Graph
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.common.model import restore_model
from pipeline.stages.export.stage import make_onnx
from pipeline.stages.source.stage import make_source
from tests.support import factories

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def sourced(write_config: Callable[[str], Path], factory: str) -> Project:
    """Return a project that has been through the source stage."""
    project = Project.load(write_config(factories.configuration(factory)), STAGES)
    make_source(project)
    return project


def test_a_graph_that_differs_is_refused(write_config: Callable[[str], Path]) -> None:
    """A network that takes another way with stand-ins for tensors gives no graph, and the message names the cause."""
    project = sourced(write_config, "tests.support.odd_networks:KnowsTensors")

    with pytest.raises(
        ExportError,
        match=r"(?s)something else than the network.*batch of 1.*got: +0\.5; .*KnowsTensors.*a branch on types",
    ):
        make_onnx(project, restore_model(project), Graph.FP32)

    assert not project.paths.onnx(Graph.FP32).exists()


@pytest.mark.part(1)
@pytest.mark.parametrize("name", ["root_hook", "layer_hook", "patched_forward", "KnowsExport"])
def test_hooks_and_patches_are_exported(write_config: Callable[[str], Path], name: str) -> None:
    """A network with a hook, a replaced forward or a branch on the export gives a graph that computes the same."""
    project = sourced(write_config, f"tests.support.odd_networks:{name}")

    assert make_onnx(project, restore_model(project), Graph.FP32).graph is Graph.FP32
