"""Model → ONNX: one form of graph in every precision, and the losses of a cast."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from onnxscript import ir
from torch import nn

from model_artifacts.errors import ExportError
from model_artifacts.records import Graph
from model_artifacts.sessions.torch_model import DTYPES
from pipeline.adapters.onnx_graph import canonical_digest, opset_of
from pipeline.planning.project import Project
from pipeline.records import TensorCast
from pipeline.stages import STAGES
from pipeline.stages.common.model import restore_model
from pipeline.stages.export import stage as export
from pipeline.stages.export.stage import count_casts, make_onnx
from pipeline.stages.source.stage import make_source
from tests.support import factories

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

EXPORTED = [Graph.FP32, Graph.FP16, Graph.BF16]
TYPES = {
    Graph.FP32: onnx.TensorProto.FLOAT,
    Graph.FP16: onnx.TensorProto.FLOAT16,
    Graph.BF16: onnx.TensorProto.BFLOAT16,
}


class Values(nn.Module):
    """Holds one tensor."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.register_buffer("values", torch.tensor(values))


def padded() -> nn.Module:
    """Return a network that pads, which opset 18 does in a form of its own."""
    return nn.Sequential(nn.ZeroPad2d(1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3))


def load(project: Project, graph: Graph) -> onnx.ModelProto:
    """Return a graph of a finished project."""
    return onnx.load(project.file(project.onnx(graph).file))


@pytest.fixture
def three(write_config: Callable[[str], Path]) -> Project:
    """A project that has the weights of a very small network, and nothing else."""
    return sourced(write_config, "tests.support.factories:three_classes")


def sourced(write_config: Callable[[str], Path], factory: str) -> Project:
    """Return a project that has been through the source stage."""
    project = Project.load(write_config(factories.configuration(factory)), STAGES)
    make_source(project)
    return project


@pytest.mark.parametrize("graph", EXPORTED)
def test_batch_is_dynamic(built: Project, graph: Graph) -> None:
    """The batch axis of the input and of the output is the same dynamic one."""
    record = built.onnx(graph)

    assert (record.inputs[0].shape, record.outputs[0].shape) == (("batch", 3, 32, 32), ("batch", 10))


@pytest.mark.parametrize("graph", EXPORTED)
def test_input_and_output_are_float32(built: Project, graph: Graph) -> None:
    """Every precision is called with float32 and gives float32, under the same names."""
    record = built.onnx(graph)

    assert [(spec.name, spec.dtype) for spec in (*record.inputs, *record.outputs)] == [
        ("image", "float32"),
        ("logits", "float32"),
    ]


@pytest.mark.parametrize("graph", EXPORTED)
def test_weights_have_the_graphs_type(built: Project, graph: Graph) -> None:
    """Every weight is of the graph's own type: mixed graphs are refused by TensorRT."""
    types = {tensor.data_type for tensor in load(built, graph).graph.initializer} - {onnx.TensorProto.INT64}

    assert types == {TYPES[graph]}


@pytest.mark.parametrize("graph", EXPORTED)
def test_batch_norms_are_folded(built: Project, graph: Graph) -> None:
    """No graph has a batch-norm left, and the record counts those folded."""
    assert "BatchNormalization" not in {node.op_type for node in load(built, graph).graph.node}
    assert built.onnx(graph).folded_batch_norms == 2


@pytest.mark.parametrize(
    ("graph", "opset", "ir_version"), [(Graph.FP32, 17, 8), (Graph.FP16, 17, 8), (Graph.BF16, 22, 10)]
)
def test_opset(built: Project, graph: Graph, opset: int, ir_version: int) -> None:
    """TensorRT 8.6 reads opset 17 in IR version 8 at most; operators take bfloat16 from opset 22 on."""
    model = load(built, graph)

    assert (built.onnx(graph).opset, opset_of(model), model.ir_version) == (opset, opset, ir_version)


def test_what_has_no_older_form_stays(write_config: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    """A model with an operator that the converter cannot lower keeps the exporter's opset, and that is said."""
    project = sourced(write_config, "tests.pipeline.stages.export.test_stage:padded")

    with caplog.at_level(logging.INFO, "pipeline.stages.export"):
        record = make_onnx(project, restore_model(project), Graph.FP32)

    model = load(project, Graph.FP32)
    assert (record.opset, opset_of(model), model.ir_version) == (18, 18, 8)
    (line,) = [each for each in caplog.messages if "stays at opset 18, which TensorRT 8.6 cannot read" in each]
    assert "/" not in line


def test_digest_is_of_what_is_written(built: Project) -> None:
    """The record's digest is that of the converted graph in the file, not of the exporter's graph."""
    assert built.onnx(Graph.FP32).canonical_sha256 == canonical_digest(load(built, Graph.FP32))


def test_layers_keep_the_exporters_names(built: Project) -> None:
    """Convolutions and matrix products are called alike in every precision, in their own order."""
    names = {
        graph: [node.name for node in load(built, graph).graph.node if node.op_type in {"Conv", "Gemm"}]
        for graph in EXPORTED
    }

    assert (
        names[Graph.FP32] == names[Graph.FP16] == names[Graph.BF16] == ["node_conv2d", "node_conv2d_1", "node_linear"]
    )


def test_exporting_twice_gives_the_same_graph(copied: Path) -> None:
    """Two exports of one model have the same digest and the same names of nodes."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    before, names = project.onnx(Graph.FP16), [node.name for node in load(project, Graph.FP16).graph.node]

    after = make_onnx(project, restore_model(project), Graph.FP16)

    assert after.canonical_sha256 == before.canonical_sha256
    assert [node.name for node in load(project, Graph.FP16).graph.node] == names


@pytest.mark.parametrize("name", ["closing_layer", "closing_forward"])
def test_functions_that_close_over_the_network_are_cast_with_it(write_config: Callable[[str], Path], name: str) -> None:
    """A forward that calls the network's own layers keeps no weights in FP32, although it takes any type."""
    project = sourced(write_config, f"tests.support.odd_networks:{name}")

    make_onnx(project, restore_model(project), Graph.FP16)

    graph = load(project, Graph.FP16).graph
    wide = [tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    assert not wide
    assert {"Conv", "Gemm"} <= {node.op_type for node in graph.node}


def test_export_leaves_one_file_and_its_record(three: Project) -> None:
    """Nothing but the graph and its record is left in the folder."""
    make_onnx(three, restore_model(three), Graph.FP32)

    assert sorted(path.name for path in three.paths.onnx(Graph.FP32).parent.iterdir()) == ["fp32.json", "fp32.onnx"]


def test_fp32_casts_nothing(built: Project) -> None:
    """The FP32 graph has no casts to count."""
    assert built.onnx(Graph.FP32).casts == ()


def test_casts_are_counted_for_every_tensor(built: Project) -> None:
    """The record of a narrower graph counts every tensor of the folded model."""
    casts = {cast.name: cast.elements for cast in built.onnx(Graph.FP16).casts}

    assert casts == {
        "0.weight": 864,
        "0.bias": 32,
        "3.weight": 18432,
        "3.bias": 64,
        "8.weight": 10240,
        "8.bias": 10,
    }


@pytest.mark.parametrize(
    ("values", "dtype", "underflow", "subnormal", "overflow"),
    [
        ((0.0, 1.0, -2.0), torch.float16, 0, 0, 0),
        ((1e-8, -1e-9, 1.0), torch.float16, 2, 0, 0),
        ((1e-5, -6e-8, 1.0), torch.float16, 0, 2, 0),
        ((6.104e-5, 1.0), torch.float16, 0, 0, 0),
        ((65504.0, 65520.0, -1e9), torch.float16, 0, 0, 2),
        ((float("inf"), float("-inf"), float("nan")), torch.float16, 0, 0, 0),
        ((1e-8, 1e-5, 1e9, 1e38), torch.bfloat16, 0, 0, 0),
        ((1e-45, -1e-39, 3.38e38), torch.bfloat16, 1, 1, 0),
        ((3.4028235e38, 1.0), torch.bfloat16, 0, 0, 1),
    ],
)
def test_casts_are_counted(
    values: tuple[float, ...], dtype: torch.dtype, underflow: int, subnormal: int, overflow: int
) -> None:
    """Values that become zero, subnormal or infinite are counted; those that already were are not."""
    assert count_casts(Values(*values), dtype) == (
        TensorCast(name="values", elements=len(values), underflow=underflow, subnormal=subnormal, overflow=overflow),
    )


def test_whole_numbers_are_not_cast() -> None:
    """A counter of batches is no weight."""
    assert "num_batches_tracked" not in {cast.name for cast in count_casts(nn.BatchNorm2d(3), torch.float16)}


def test_data_dependent_control_flow(write_config: Callable[[str], Path]) -> None:
    """A model with control flow that depends on tensors is refused, and the message describes the cause."""
    project = sourced(write_config, "tests.support.factories:DataDependent")

    with pytest.raises(ExportError, match=r"(?s)torch cannot export.*control flow that depends.*data-dependent"):
        make_onnx(project, restore_model(project), Graph.FP32)

    assert not project.paths.onnx(Graph.FP32).exists()


def test_fixed_batch(write_config: Callable[[str], Path]) -> None:
    """A model with other code for a batch of two is refused: its graph would have no dynamic batch axis."""
    project = sourced(write_config, "tests.support.factories:OtherCodeForTwo")

    with pytest.raises(ExportError, match="batch"):
        make_onnx(project, restore_model(project), Graph.FP32)


def test_model_too_large_for_one_file(three: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights beyond the limit of a protobuf message are refused before the export, with their size."""
    monkeypatch.setattr(export, "_EXTERNAL_DATA_BYTES", 500)

    with pytest.raises(ExportError, match=r"(?s)too large for one ONNX file.*got: +588 bytes"):
        make_onnx(three, restore_model(three), Graph.FP32)


def test_exporter_gives_nothing(three: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter that returns nothing is an error."""

    def nothing(*_: object, **__: object) -> None:
        return None

    monkeypatch.setattr(torch.onnx, "export", nothing)

    with pytest.raises(ExportError, match="returned nothing"):
        make_onnx(three, restore_model(three), Graph.FP32)


def test_invalid_graph_is_not_kept(three: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that ONNX's checker refuses is an error, and no file is left."""

    class Program(NamedTuple):
        """An exporter's result."""

        model: ir.Model
        exported_program: torch.export.ExportedProgram

    node = onnx.helper.make_node("NoSuchOperator", ["image"], ["logits"])
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("image", "logits")]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:])
    traced = torch.export.export(torch.nn.ReLU(), (torch.zeros(1),))
    program = Program(ir.from_proto(onnx.helper.make_model(graph, ir_version=8)), traced)
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: program)

    with pytest.raises(ExportError, match=r"(?s)not valid ONNX.*NoSuchOperator"):
        make_onnx(three, restore_model(three), Graph.FP32)

    assert not three.paths.onnx(Graph.FP32).exists()


def test_failed_export_keeps_the_earlier_graph(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that fails leaves the earlier file as it was."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    before = project.paths.onnx(Graph.FP16).read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ExportError, match=r"got: +NotImplementedError"):
        make_onnx(project, restore_model(project), Graph.FP16)

    assert project.paths.onnx(Graph.FP16).read_bytes() == before


@pytest.mark.part(3)
@pytest.mark.parametrize("graph", EXPORTED)
@pytest.mark.parametrize("make", ["weight_normed", "spectrally_normed", "pruned", "parametrized"])
def test_computed_weights_are_plain_in_a_graph(write_config: Callable[[str], Path], graph: Graph, make: str) -> None:
    """A parametrised convolution is one node whose weights are baked, folded in FP32, and then cast."""
    project = sourced(write_config, f"tests.support.odd_networks:{make}")
    model = restore_model(project)
    norm = model.get_submodule("body.1")
    with torch.no_grad():
        scale = norm.get_parameter("weight") / (norm.get_buffer("running_var") + 1e-5).sqrt()
        expected = (model.get_parameter("body.0.weight") * scale[:, None, None, None]).to(DTYPES[graph.precision])

    record = make_onnx(project, model, graph)

    found = load(project, graph).graph
    tensors = {tensor.name: tensor for tensor in found.initializer}
    (convolution,) = (node for node in found.node if node.op_type == "Conv")
    weight = torch.tensor(onnx.numpy_helper.to_array(tensors[convolution.input[1]]).astype(np.float32))
    torch.testing.assert_close(weight, expected.float(), rtol=1e-6 if graph is Graph.FP32 else 1e-2, atol=1e-6)
    kinds = [node.op_type for node in found.node if node.op_type != "Cast"]
    assert kinds == ["Conv", "Relu", "ReduceMean", "Gemm"]
    assert (record.folded_batch_norms, tensors[convolution.input[1]].data_type) == (1, TYPES[graph])


def test_half_precision_numbers_are_the_models(built: Project) -> None:
    """The weights of the FP16 graph are the folded FP32 ones, rounded."""
    narrow = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in load(built, Graph.FP16).graph.initializer}
    wide = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in load(built, Graph.FP32).graph.initializer}

    np.testing.assert_array_equal(narrow["body.3.weight"], wide["body.3.weight"].astype(np.float16))


@pytest.mark.part(1)
@pytest.mark.parametrize("graph", EXPORTED)
def test_what_cannot_be_folded_is_exported_with_its_batch_norms(
    write_config: Callable[[str], Path], graph: Graph
) -> None:
    """A model whose convolution is shared keeps its batch-norms, and still is a valid graph in every precision."""
    project = sourced(write_config, "tests.support.factories:SharedConvolution")

    record = make_onnx(project, restore_model(project), graph)

    operators = [node.op_type for node in onnx.load(project.file(record.file)).graph.node]
    assert (record.folded_batch_norms, operators.count("BatchNormalization")) == (0, 2)


@pytest.mark.parametrize("graph", [Graph.FP32, Graph.FP16, Graph.BF16])
def test_a_graph_says_nothing_of_the_machine_that_made_it(built: Project, graph: Graph) -> None:
    """No path of it is in the file, nor a stack: it is shipped, and it is the same wherever it is made."""
    data = built.paths.onnx(graph).read_bytes()
    assert b".py" not in data
    assert b"site-packages" not in data
    assert not any(node.metadata_props for node in onnx.load(built.paths.onnx(graph)).graph.node)
