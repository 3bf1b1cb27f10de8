"""Engines with replaced weights on a real GPU equal engines that were built from those weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from model_artifacts.errors import RunError
from model_artifacts.records import BatchRange, Graph
from model_artifacts.sessions.engine import open_engine
from model_artifacts.tensorrt.flavour import BuildLog
from model_artifacts.tensorrt.refitter import refit_engine
from pipeline.adapters.tensorrt_builder import EngineRequest, build_engine, graph_file
from pipeline.config.tensorrt import TensorRTConfig
from tests.support.logits import FP16, distance, images

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from model_artifacts.tensorrt.flavour import Flavour
    from pipeline.adapters.tensorrt_builder import BuiltEngine
    from pipeline.planning.project import Project


@pytest.fixture(scope="module")
def request_of(project: Project) -> EngineRequest:
    """The request for the FP16 graph's refittable engine of batch 2."""
    record = project.onnx(Graph.FP16)
    return EngineRequest(
        onnx=project.file(record.file),
        onnx_opset17=project.file(record.opset17) if record.opset17 else None,
        precision=Graph.FP16.precision,
        profile=BatchRange(min=2, opt=2, max=2),
        workspace_bytes=2**26,
        compute_capabilities=(),
        gpu=project.plan.host.gpus[0],
        settings=TensorRTConfig(refit=True),
    )


def trained_on(file: Path, folder: Path) -> Path:
    """Write a graph of the same structure whose weights are others: every matrix's rows the other way round."""
    model = onnx.load(file)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim > 1 and values.dtype.kind == "f":
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values[::-1]), tensor.name))
    path = folder / file.name
    onnx.save(model, path)
    return path


def logits(project: Project, flavour: Flavour, engine: BuiltEngine, plan: bytes) -> npt.NDArray[np.float32]:
    """Return the logits of a plan for two images."""
    with open_engine(flavour, plan, engine.built_for, project.plan.host.gpus[0]) as opened, opened.session() as run:
        return np.array(run(images(project, 2)))


def test_a_refitted_engine_gives_what_a_new_one_gives(
    project: Project, flavour: Flavour, request_of: EngineRequest, tmp_path: Path
) -> None:
    """A refitted engine gives the logits of a new one, and both differ from the old one's."""
    old = build_engine(flavour, request_of, BuildLog())
    other = trained_on(graph_file(flavour, request_of), tmp_path)
    new = build_engine(flavour, replace(request_of, onnx=other, onnx_opset17=None), BuildLog())
    refitted = refit_engine(flavour, old.plan, other, BuildLog())
    wanted = logits(project, flavour, new, new.plan)
    assert distance(logits(project, flavour, old, refitted), wanted) < FP16
    assert distance(logits(project, flavour, old, old.plan), wanted) > 10 * FP16


def test_an_engine_that_was_not_built_for_it_is_not_refitted(
    project: Project, flavour: Flavour, request_of: EngineRequest
) -> None:
    """Refitting an engine that was not built for it is an error, on which the caller builds it again."""
    assert project.plan.host.gpus
    plain = replace(request_of, settings=TensorRTConfig())
    engine = build_engine(flavour, plain, BuildLog())
    with pytest.raises(RunError):
        refit_engine(flavour, engine.plan, graph_file(flavour, plain), BuildLog())
