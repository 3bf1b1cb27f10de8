"""A model that is an ONNX file becomes one form of graph in every precision."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from model_artifacts.errors import ExportError
from model_artifacts.records import Graph
from model_artifacts.sessions.onnx import run_stand_in
from pipeline.stages.common.model import restore_model
from pipeline.stages.common.probe import probe_images
from pipeline.stages.export.stage import make_onnx
from pipeline.stages.source.stage import make_source
from tests.support.onnx_models import CLASSES, SIZE, make, project_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    import numpy.typing as npt

    from pipeline.planning.project import Project

    Write = Callable[[str], Path]

OPSETS = {Graph.FP32: 17, Graph.FP16: 17, Graph.BF16: 22}


def sourced(model: onnx.ModelProto, folder: Path, write_config: Write) -> Project:
    """Return a project that has been through the source stage."""
    project = project_of(model, folder, write_config)
    make_source(project)
    return project


def exported(project: Project, graph: Graph) -> onnx.ModelProto:
    """Export a graph, and return it."""
    make_onnx(project, restore_model(project), graph)
    return onnx.load(project.paths.onnx(graph))


@pytest.mark.parametrize("graph", OPSETS, ids=[graph.value for graph in OPSETS])
@pytest.mark.parametrize("opset", [9, 11, 13, 18, 21])
def test_any_opset_becomes_the_usual_one(tmp_path: Path, write_config: Write, opset: int, graph: Graph) -> None:
    """The graphs have the operator sets of exported networks of torch, folded batch-norms, and the same ends."""
    project = sourced(make(opset=opset), tmp_path, write_config)
    model = exported(project, graph)
    record = project.onnx(graph)
    assert (record.opset, record.folded_batch_norms) == (OPSETS[graph], 1)
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    (image,), (output,) = record.inputs, record.outputs
    assert (image.name, image.shape, image.dtype) == ("pixels_in_0", ("batch", 3, SIZE, SIZE), "float32")
    assert (output.name, output.shape, output.dtype) == ("scores_0", ("batch", CLASSES), "float32")
    assert bool(record.casts) == (graph is not Graph.FP32)


def test_an_opset_without_a_converter_stays(
    tmp_path: Path, write_config: Write, caplog: pytest.LogCaptureFixture
) -> None:
    """`Split` of opset 18 has no way back: the graph stays where it is, which is said."""
    caplog.set_level(logging.INFO)
    tail = [
        helper.make_node("Split", ["logits"], ["left", "right"], axis=1, num_outputs=2),
        helper.make_node("Concat", ["left", "right"], ["scores:0"], axis=1),
    ]
    project = sourced(make(opset=18, tail=tail), tmp_path, write_config)
    exported(project, Graph.FP32)
    assert project.onnx(Graph.FP32).opset == 18
    assert "the graph stays at opset 18; TensorRT 8.6 cannot read it" in caplog.text


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_becomes_dynamic(
    tmp_path: Path, write_config: Write, batch: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Images give what they give one by one, in batches of any size."""
    caplog.set_level(logging.INFO)
    project = sourced(make(batch=batch, flat=[batch, -1]), tmp_path, write_config)
    expected = restore_model(project)
    images = probe_images(project.source().pictures, 5)
    model = exported(project, Graph.FP32)
    assert f"the batch of {batch} becomes dynamic: 1 constant shapes" in caplog.text
    for size in (1, 2, 3, 5):
        found = run_stand_in(model.SerializeToString(), images, size)
        np.testing.assert_allclose(found, expected(torch.from_numpy(images)).numpy(), rtol=1e-4, atol=1e-5)


def test_a_batch_that_cannot_vary_is_refused(tmp_path: Path, write_config: Write) -> None:
    """A constant of one row is joined to the images' rows, as by an exported class token."""
    tail = [
        helper.make_node("Concat", ["logits", "token"], ["longer"], axis=1),
        helper.make_node("Slice", ["longer", "start", "stop", "axis"], ["scores:0"]),
    ]
    extra: list[tuple[str, npt.NDArray[Any]]] = [
        ("token", np.ones((1, 2), np.float32)),
        ("start", np.array([0], np.int64)),
        ("stop", np.array([CLASSES], np.int64)),
        ("axis", np.array([1], np.int64)),
    ]
    project = sourced(make(batch=1, tail=tail, extra=extra), tmp_path, write_config)
    with pytest.raises(ExportError, match=r"(?s)batch cannot be made dynamic.*made for batches of 1.*dynamic_axes"):
        exported(project, Graph.FP32)
    assert not project.paths.onnx(Graph.FP32).exists()


def test_images_that_change_each_other_are_refused(tmp_path: Path, write_config: Write) -> None:
    """No batch of several gives what the file gives one by one."""
    tail = [
        helper.make_node("ReduceMean", ["logits"], ["mean_of_all"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["logits", "mean_of_all"], ["apart"]),
        helper.make_node("Add", ["apart", "bias"], ["scores:0"]),
    ]
    project = sourced(make(tail=tail), tmp_path, write_config)
    with pytest.raises(ExportError, match="batch cannot be made dynamic"):
        exported(project, Graph.FP32)


def test_a_dynamic_height_becomes_the_preprocessings(tmp_path: Path, write_config: Write) -> None:
    """TensorRT gets a graph of one size."""
    project = sourced(make(side="side"), tmp_path, write_config)
    dims = exported(project, Graph.FP32).graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims[1:]] == [3, SIZE, SIZE]


def test_a_graph_that_computes_something_else_is_refused(
    tmp_path: Path, write_config: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a converter or an optimiser does wrong, nothing is built from it."""
    project = sourced(make(), tmp_path, write_config)
    real = onnx.version_converter.convert_version

    def wrong(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
        converted = real(model, opset)
        next(node for node in converted.graph.node if node.op_type == "Relu").op_type = "Sigmoid"
        return converted

    monkeypatch.setattr(onnx.version_converter, "convert_version", wrong)
    with pytest.raises(ExportError, match="upgraded and folded graph computes something else than the ONNX file"):
        exported(project, Graph.FP32)


def test_bf16_needs_its_operator_set(tmp_path: Path, write_config: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that cannot be upgraded has no bf16, and says what to do."""
    project = sourced(make(opset=17), tmp_path, write_config)

    def refuses(*_: object) -> onnx.ModelProto:
        raise onnx.version_converter.ConvertError("failed: No Adapter")

    monkeypatch.setattr(onnx.version_converter, "convert_version", refuses)
    with pytest.raises(ExportError, match=r"(?s)has bfloat16.*opset 22.*No Adapter.*take bf16 out"):
        exported(project, Graph.BF16)
    assert exported(project, Graph.FP16).graph.node
