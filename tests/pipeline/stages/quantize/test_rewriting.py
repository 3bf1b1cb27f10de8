"""Rewriting of quantised graphs: layers left alone, skip connections, and fp32 graphs with pairs on weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from model_artifacts.records import Graph, Precision
from pipeline.adapters.onnx_graph import opset_of, to_opset
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.quantize.rewriting import QUANTIZED_TYPES, requantize
from pipeline.stages.quantize.stage import make_quantized
from tests.support.logits import distance, images
from tests.support.quantized_graphs import (
    TENSORRT,
    load,
    mean_graph,
    nodes,
    opset17,
    read_by,
    relative_error,
    residual_graph,
    run,
    short_graph,
    source_of,
    weights,
    with_fp8,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(params=["int8", "fp8", "opset17"])
def summed(residual: Project, request: pytest.FixtureRequest) -> onnx.ModelProto:
    """Every form of the residual graph that TensorRT takes."""
    return opset17(residual) if request.param == "opset17" else load(residual, Graph(request.param))


def test_int8_has_the_first_convolution(quantized: Project) -> None:
    """The first convolution takes the image quantised, and its own weights."""
    first = nodes(load(quantized, Graph.INT8), "Conv")[0]

    assert [source_of(load(quantized, Graph.INT8), name) for name in first.input] == [*["DequantizeLinear"] * 2, ""]


def test_fp8_leaves_the_first_convolution(quantized: Project) -> None:
    """The first convolution sees the image itself, which a cast alone stands before; its weights are FP16."""
    model = load(quantized, Graph.FP8)
    first = nodes(model, "Conv")[0]

    assert [source_of(model, name) for name in first.input] == ["Cast", "", ""]
    assert weights(model)[first.input[1]].dtype == np.float16


def test_int8_leaves_pooling_behind_another_sum(residual: Project) -> None:
    """The input of global pooling is in floating point if no convolution and no residual sum can end in int8."""
    assert read_by(load(residual, Graph.INT8), "pooled") == ["neither"]


def test_fp8_leaves_pooling(residual: Project) -> None:
    """The input of global pooling is FP16 in fp8."""
    assert read_by(load(residual, Graph.FP8), "pooled") == ["neither"]


@pytest.mark.part(3)
@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize(("axes", "quantized"), [((-1, -2), True), ((2, 3), True), ((-1,), False), ((1, 2, 3), False)])
def test_int8_has_means_over_a_map_only(copied: Path, opset: int, axes: tuple[int, ...], *, quantized: bool) -> None:
    """A mean over height and width is pooling; one over anything else stays in floating point."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    onnx.save(mean_graph(opset, axes), project.paths.onnx(Graph.FP32))

    make_quantized(project, Graph.INT8)

    assert read_by(load(project, Graph.INT8), "mean")[0] == ("conv*" if quantized else "conv")


@pytest.mark.parametrize("graph", TENSORRT)
def test_tensorrt_form_quantizes_what_follows(residual: Project, graph: Graph) -> None:
    """Every convolution and matrix product in between takes quantised activations and quantised weights."""
    model = load(residual, graph)

    between = nodes(model, "Conv", "Gemm")[1:-1]
    assert [node.name for node in between] == ["a", "b", "c", "d", "hidden"]
    assert {source_of(model, name) for node in between for name in node.input[:2]} == {"DequantizeLinear"}


@pytest.mark.parametrize("graph", TENSORRT)
def test_tensorrt_form_keeps_the_last_product(residual: Project, graph: Graph) -> None:
    """The last product reads its inputs directly, with its own weights."""
    model = load(residual, graph)
    last = nodes(model, "Gemm")[-1]

    assert [source_of(model, name) for name in last.input] == ["Relu", ""]


@pytest.mark.parametrize("layers", [("conv",), ("conv", "product")], ids=len)
def test_network_without_layers_in_between_is_quantized(
    built_folder: Path, tmp_path: Path, layers: tuple[str, ...]
) -> None:
    """A network with only a first convolution and a last product has both quantised in fp8."""
    project = with_fp8(built_folder, tmp_path / "project")
    onnx.save(short_graph(*layers), project.paths.onnx(Graph.FP32))

    make_quantized(project, Graph.FP8)

    found = nodes(load(project, Graph.FP8), "Conv", "Gemm")
    assert [node.name for node in found] == list(layers)
    assert {source_of(load(project, Graph.FP8), name) for node in found for name in node.input} == {"DequantizeLinear"}


@pytest.fixture(params=["int8", "opset17"])
def summed_in_int8(residual: Project, request: pytest.FixtureRequest) -> onnx.ModelProto:
    """Both forms of the residual graph in int8."""
    return opset17(residual) if request.param == "opset17" else load(residual, Graph.INT8)


def test_sum_reads_its_convolution_directly(summed_in_int8: onnx.ModelProto) -> None:
    """A block's sum reads its convolution directly, and its skip connection through a Q/DQ pair."""
    assert read_by(summed_in_int8, "identity") == ["b", "begun*"]


def test_sum_in_fp8_reads_both_through_pairs(residual: Project) -> None:
    """A block's convolution writes fp8 for its sum, too."""
    assert read_by(load(residual, Graph.FP8), "identity") == ["b*", "begun*"]


def test_skip_connection_shares_the_pair_of_the_convolution(summed: onnx.ModelProto) -> None:
    """The input of a block is quantised once, for its first convolution and for its sum."""
    (pair,) = (node for node in nodes(summed, "QuantizeLinear") if node.input[0] == "begun")
    (narrow,) = (node for node in nodes(summed, "DequantizeLinear") if node.input[0] == pair.output[0])

    assert [node.name for node in summed.graph.node if narrow.output[0] in node.input] == ["a", "identity"]


def test_sum_of_two_convolutions_reads_one_directly(summed_in_int8: onnx.ModelProto) -> None:
    """A sum of two convolutions reads one directly, and the skip connection's through a Q/DQ pair."""
    assert read_by(summed_in_int8, "projection") == ["c", "d*"]


def test_sum_of_two_convolutions_in_fp8_reads_both_through_pairs(residual: Project) -> None:
    """Both convolutions of a projected block write fp8."""
    assert read_by(load(residual, Graph.FP8), "projection") == ["c*", "d*"]


def test_sum_of_neither_is_left_alone(summed: onnx.ModelProto) -> None:
    """A sum without a convolution is none of a residual block, and stays in floating point."""
    assert read_by(summed, "neither") == ["gate", "ended"]


def test_nothing_unread_is_left(summed: onnx.ModelProto) -> None:
    """Pairs that nothing reads any more are gone, and so are their scales and zero points."""
    read = {name for node in summed.graph.node for name in node.input} | {"logits"}

    assert {tensor.name for tensor in summed.graph.initializer} <= read
    assert {output for node in summed.graph.node for output in node.output} <= read


def test_residual_graph_computes_what_it_did(residual: Project, summed: onnx.ModelProto) -> None:
    """The logits differ from FP32's by the loss of quantisation alone."""
    given = images(residual)
    exact = run(residual_graph(), given)

    assert distance(run(summed, given), exact) < 0.06


def test_fp8_weights_are_the_models(quantized: Project) -> None:
    """An E4M3 weight is the FP32 one to half a unit of its three bits, or to half the smallest step near zero."""
    values, exact = weights(load(quantized, Graph.FP8)), weights(load(quantized, Graph.FP32))
    scale = values["body.3.weight_scale"].astype(np.float32)
    kernel = as_e4m3(values["body.3.weight"].astype(np.float32) / scale)

    error = np.abs(kernel * scale - exact["body.3.weight"])

    assert 224 < np.abs(kernel).max() <= 448  # one of the scales within a power of two
    assert (error <= np.maximum(np.abs(exact["body.3.weight"]) / 16, scale * 2.0**-10) * 1.001).all()


def test_fp16_weights_in_front_of_fp8_are_exact(quantized: Project) -> None:
    """Quantising the FP16 weights again gives the values that they were written with."""
    values = weights(load(quantized, Graph.FP8))
    steps = values["body.3.weight"].astype(np.float32) / values["body.3.weight_scale"].astype(np.float32)

    np.testing.assert_allclose(steps, as_e4m3(steps), rtol=2.0**-10)


def test_fp8_weights_have_pairs_and_one_scale(residual: Project) -> None:
    """TensorRT fuses fp8 convolutions whose FP16 weights go through a pair with one scale for the whole tensor."""
    model = load(residual, Graph.FP8)
    made_by = {node.output[0]: node for node in model.graph.node}
    values = weights(model)

    for node in nodes(model, "Conv")[1:]:
        quantize = made_by[made_by[node.input[1]].input[0]]
        assert (quantize.op_type, values[quantize.input[0]].dtype) == ("QuantizeLinear", np.dtype(np.float16))
        assert values[quantize.input[1]].shape == ()


def test_scale_of_fp8_weights_has_the_least_error() -> None:
    """Among the scales of one power of two, the one with the least squared error is taken."""
    weight = np.linspace(0.5, 0.9, 64, dtype=np.float32).reshape(1, 64, 1, 1)  # just above a power of two
    placed = one_convolution(weight, np.float32(0.9 / 127))

    rewritten = weights(requantize(placed, {"weight": weight}, QUANTIZED_TYPES[Precision.FP8]))

    chosen = rewritten["weight_scale"].astype(np.float32)
    widest = np.float32(0.9 / 448)
    errors = {float(step): float(np.square(as_e4m3(weight / step) * step - weight).sum()) for step in (chosen, widest)}
    assert errors[float(chosen)] < errors[float(widest)]


def as_e4m3(values: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    """Return values rounded to E4M3, as float32."""
    rounded: np.ndarray[Any, np.dtype[Any]] = values.astype(QUANTIZED_TYPES[Precision.FP8].dtype).astype(np.float32)
    return rounded


def one_convolution(weight: np.ndarray[Any, np.dtype[Any]], scale: np.float32) -> onnx.ModelProto:
    """Return an int8 graph of one convolution whose weights have one scale."""
    steps = np.clip(np.rint(weight / scale), -127, 127).astype(np.int8)
    tensors = {"weight_quantized": steps, "weight_scale": scale, "weight_zero_point": np.int8(0)}
    names = ["weight_quantized", "weight_scale", "weight_zero_point"]
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", names, ["weight_DequantizeLinear_Output"]),
            helper.make_node("Conv", ["image", "weight_DequantizeLinear_Output"], ["map"], name="conv"),
        ],
        "one",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 64, 4, 4])],
        [helper.make_tensor_value_info("map", TensorProto.FLOAT, ["batch", 1, 4, 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])


def test_opset17_form_is_fp32(built: Project) -> None:
    """The form for TensorRT 8.6 has opset 17, IR version 8 and FP32 weights."""
    model = opset17(built)
    values = weights(model)

    assert (opset_of(model), model.ir_version) == (17, 8)
    assert {values[name].dtype for node in nodes(model, "Conv", "Gemm") for name in node.input if name in values} == {
        np.dtype(np.float32)
    }


def test_opset17_form_has_pairs_on_weights(residual: Project) -> None:
    """Every quantised weight goes through a Q/DQ pair of its own, along the axis of its scales."""
    model = opset17(residual)
    made_by = {node.output[0]: node for node in model.graph.node}
    values = weights(model)

    for node in nodes(model, "Conv", "Gemm")[1:-1]:
        dequantize = made_by[node.input[1]]
        quantize = made_by[dequantize.input[0]]
        assert (quantize.op_type, list(quantize.input[1:])) == ("QuantizeLinear", list(dequantize.input[1:]))
        assert list(quantize.attribute) == list(dequantize.attribute)
        assert values[quantize.input[0]].dtype == np.dtype(np.float32)


def test_both_int8_forms_hold_the_same_weights(residual: Project) -> None:
    """Quantising the weights of the opset 17 form gives those of the other, and their scales are equal."""
    old, new = weights(opset17(residual)), weights(load(residual, Graph.INT8))

    for name in ("a.weight", "d.weight", "hidden.weight"):
        scale = old[f"{name}_scale"].reshape(-1, *[1] * (old[name].ndim - 1))
        np.testing.assert_array_equal(np.rint(old[name] / scale), new[f"{name}_quantized"])
        np.testing.assert_array_equal(old[f"{name}_scale"], new[f"{name}_scale"])


def test_opset17_form_is_close_to_the_reference(built: Project) -> None:
    """The opset 17 form loses no more than the other."""
    assert relative_error(built, opset17(built)) < 0.03


def test_fp32_graph_of_a_later_opset(copied: Path) -> None:
    """Only the other form is written if the FP32 graph cannot be lowered to opset 17."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    onnx.save(to_opset(load(project, Graph.FP32), 18), project.paths.onnx(Graph.FP32))

    record = make_quantized(project, Graph.INT8)

    assert (record.opset, record.opset17) == (19, None)
