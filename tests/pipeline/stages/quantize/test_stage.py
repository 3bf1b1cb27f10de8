"""The quantised graphs: what TensorRT takes, in int8 and fp8, and what x86 accelerates."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from model_artifacts.errors import ArtifactError, QuantizeError
from model_artifacts.records import Graph
from pipeline.adapters.onnx_graph import opset_of, to_opset
from pipeline.planning.project import Project
from pipeline.records import TensorCast
from pipeline.stages.quantize.stage import make_quantized
from tests.support.logits import distance, images, reference

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BOTH = [Graph.INT8, Graph.INT8_CPU]
TENSORRT = [Graph.INT8, Graph.FP8]


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    """Keep the root logger's level as it is for other tests."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


def load(project: Project, graph: Graph) -> onnx.ModelProto:
    """Return a graph of a finished project."""
    return onnx.load(project.file(project.onnx(graph).file))


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """Return a graph's initialisers by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def nodes(model: onnx.ModelProto, *kinds: str) -> list[onnx.NodeProto]:
    """Return a graph's nodes of these operators, in order."""
    return [node for node in model.graph.node if node.op_type in kinds]


def source_of(model: onnx.ModelProto, name: str) -> str:
    """Return the operator that makes a value; nothing for an input or a weight."""
    return next((node.op_type for node in model.graph.node if name in node.output), "")


def with_fp8(built_folder: Path, folder: Path) -> Project:
    """Return a copy of the finished tiny project that asks for fp8, too."""
    shutil.copytree(built_folder, folder)
    config = folder / "pipeline.yaml"
    config.write_text(config.read_text().replace("int8]", "int8, fp8]"))
    return Project.load(config)


@pytest.fixture(scope="module")
def quantized(built_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The finished tiny project with fp8 as well, to be read only."""
    folder = tmp_path_factory.mktemp("fp8") / "project"
    project = with_fp8(built_folder, folder)
    make_quantized(project, Graph.FP8)
    return project


def residual_graph() -> onnx.ModelProto:
    """Return a network with sums of every kind.

    The first is of a convolution and what the block began with, the second of two convolutions, the third of neither.
    """
    random = np.random.default_rng(0)
    shapes = {
        "first": (8, 3, 3, 3),
        "a": (8, 8, 3, 3),
        "b": (8, 8, 3, 3),
        "c": (8, 8, 3, 3),
        "d": (8, 8, 1, 1),
        "hidden": (16, 8),
        "last": (10, 16),
    }
    values = {name: random.normal(0, np.prod(shape[1:]) ** -0.5, shape) for name, shape in shapes.items()}

    def node(kind: str, name: str, *inputs: str, **attributes: object) -> onnx.NodeProto:
        given = [*inputs, *([f"{name}.weight"] if name in shapes else [])]
        return helper.make_node(kind, given, [name], name=name, **attributes)

    body = [
        node("Conv", "first", "image", strides=[2, 2], pads=[1] * 4),
        node("Relu", "begun", "first"),
        node("Conv", "a", "begun", pads=[1] * 4),
        node("Relu", "middle", "a"),
        node("Conv", "b", "middle", pads=[1] * 4),
        node("Add", "identity", "b", "begun"),
        node("Relu", "again", "identity"),
        node("Conv", "c", "again", pads=[1] * 4),
        node("Conv", "d", "again"),
        node("Add", "projection", "c", "d"),
        node("Relu", "ended", "projection"),
        node("Sigmoid", "gate", "ended"),
        node("Add", "neither", "gate", "ended"),
        node("GlobalAveragePool", "pooled", "neither"),
        node("Flatten", "flat", "pooled"),
        node("Gemm", "hidden", "flat", transB=1),
        node("Relu", "positive", "hidden"),
        node("Gemm", "last", "positive", transB=1),
        helper.make_node("Identity", ["last"], ["logits"]),
    ]
    return helper.make_model(
        helper.make_graph(
            body,
            "residual",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 32, 32])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
            [numpy_helper.from_array(value.astype(np.float32), f"{name}.weight") for name, value in values.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def short_graph(*layers: str) -> onnx.ModelProto:
    """Return a network of a convolution and, where that is asked for, a product."""
    body = [
        helper.make_node("Conv", ["image", "conv.weight"], ["conv"], name="conv"),
        helper.make_node("GlobalAveragePool", ["conv"], ["pooled"], name="pooled"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flat"),
        helper.make_node("Gemm", ["flat", "product.weight"], ["product"], name="product"),
    ]
    values = {"conv.weight": np.linspace(-1, 1, 270), "product.weight": np.linspace(-1, 1, 100)}
    shapes = {"conv.weight": (10, 3, 3, 3), "product.weight": (10, 10)}
    last = "product" if "product" in layers else "flat"
    return helper.make_model(
        helper.make_graph(
            [
                *(node for node in body if node.name in {*layers, "pooled", "flat"}),
                helper.make_node("Identity", [last], ["logits"]),
            ],
            "short",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 32, 32])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
            [
                numpy_helper.from_array(values[name].reshape(shape).astype(np.float32), name)
                for name, shape in shapes.items()
                if name.partition(".")[0] in layers
            ],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def mean_graph(opset: int, axes: tuple[int, ...]) -> onnx.ModelProto:
    """Return a network of a convolution and a mean over some axes, given as that opset has it."""
    as_input = opset >= 18
    mean = helper.make_node(
        "ReduceMean",
        ["conv", *(["axes"] if as_input else [])],
        ["mean"],
        name="mean",
        keepdims=1,
        **({} if as_input else {"axes": axes}),
    )
    weight = np.linspace(-1, 1, 270).reshape(10, 3, 3, 3).astype(np.float32)
    return helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Conv", ["image", "weight"], ["conv"], name="conv"),
                mean,
                helper.make_node("Identity", ["mean"], ["logits"]),
            ],
            "mean",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 32, 32])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
            [
                numpy_helper.from_array(weight, "weight"),
                *([numpy_helper.from_array(np.array(axes, np.int64), "axes")] if as_input else []),
            ],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )


@pytest.fixture(scope="module")
def residual(built_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose FP32 graph is the residual one, quantised to int8 and fp8; to be read only."""
    folder = tmp_path_factory.mktemp("residual") / "project"
    project = with_fp8(built_folder, folder)
    onnx.save(residual_graph(), project.paths.onnx(Graph.FP32))
    for graph in TENSORRT:
        make_quantized(project, graph)
    return project


@pytest.fixture(params=["int8", "fp8", "opset17"])
def summed(residual: Project, request: pytest.FixtureRequest) -> onnx.ModelProto:
    """Every form of the residual graph that TensorRT takes."""
    return opset17(residual) if request.param == "opset17" else load(residual, Graph(request.param))


def read_by(model: onnx.ModelProto, name: str) -> list[str]:
    """Return what a node reads, with a `*` where that goes through a Q/DQ pair."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    (reader,) = (node for node in model.graph.node if node.name == name)
    found = []
    for given in reader.input:
        if given in made_by and made_by[given].op_type == "DequantizeLinear":
            quantize = made_by[made_by[given].input[0]]
            assert quantize.op_type == "QuantizeLinear"
            found.append(f"{quantize.input[0]}*")
        else:
            found.append(given)
    return found


def opset17(project: Project) -> onnx.ModelProto:
    """Return the int8 graph for TensorRT 8.6."""
    file = project.onnx(Graph.INT8).opset17
    assert file is not None
    return onnx.load(project.file(file))


def scales(model: onnx.ModelProto) -> list[np.ndarray[Any, np.dtype[Any]]]:
    """Return the scales of a graph's Q/DQ nodes, in order."""
    values = weights(model)
    return [values[node.input[1]] for node in nodes(model, "QuantizeLinear", "DequantizeLinear")]


def run(model: onnx.ModelProto, images: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    """Return a graph's logits as ONNX Runtime computes them without rewriting the graph."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": images})[0])


def relative_error(project: Project, model: onnx.ModelProto) -> float:
    """Return how far a graph's logits on the validation images are from the reference, relative L2."""
    return distance(run(model, images(project)), reference(project))


@pytest.mark.parametrize(("graph", "kind"), [(Graph.INT8, TensorProto.INT8), (Graph.FP8, TensorProto.FLOAT8E4M3FN)])
def test_tensorrt_form_is_symmetric(quantized: Project, graph: Graph, kind: int) -> None:
    """Every zero point is a zero of the graph's type, of weights and of activations."""
    model = load(quantized, graph)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    points = [tensors[node.input[2]] for node in nodes(model, "QuantizeLinear", "DequantizeLinear")]
    assert {point.data_type for point in points} == {kind}
    assert not any(numpy_helper.to_array(point).astype(np.float32).any() for point in points)


@pytest.mark.parametrize("graph", TENSORRT)
def test_tensorrt_form_is_fp16_around_what_is_quantized(quantized: Project, graph: Graph) -> None:
    """Biases, the last product and scales are FP16, in the first opset whose Q/DQ takes that."""
    model = load(quantized, graph)
    values = weights(model)

    floating = [values[node.input[2]] for node in nodes(model, "Conv", "Gemm")]
    floating += [values[nodes(model, "Gemm")[-1].input[1]], *scales(model)]
    assert {value.dtype for value in floating} == {np.dtype(np.float16)}
    assert (opset_of(model), model.ir_version, quantized.onnx(graph).opset) == (19, 9, 19)


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


def test_int8_has_the_pooling_before_the_last_product(residual: Project) -> None:
    """Global pooling reads a Q/DQ pair, so that what stands before it ends in int8."""
    assert read_by(load(residual, Graph.INT8), "pooled") == ["neither*"]


def test_fp8_leaves_pooling(residual: Project) -> None:
    """In fp8 what global pooling reads is FP16."""
    assert read_by(load(residual, Graph.FP8), "pooled") == ["neither"]


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize(("axes", "quantized"), [((-1, -2), True), ((2, 3), True), ((-1,), False), ((1, 2, 3), False)])
def test_int8_has_means_over_a_map_only(copied: Path, opset: int, axes: tuple[int, ...], *, quantized: bool) -> None:
    """A mean over height and width is pooling; one over anything else stays in floating point."""
    project = Project.load(copied / "pipeline.yaml")
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
    """What gives the logits multiplies what it is given, by its own weights."""
    model = load(residual, graph)
    last = nodes(model, "Gemm")[-1]

    assert [source_of(model, name) for name in last.input] == ["Relu", ""]


@pytest.mark.parametrize("layers", [("conv",), ("conv", "product")], ids=len)
def test_network_without_layers_in_between_is_quantized(
    built_folder: Path, tmp_path: Path, layers: tuple[str, ...]
) -> None:
    """Where the first convolution and the last product are all that there is, fp8 has them, too."""
    project = with_fp8(built_folder, tmp_path / "project")
    onnx.save(short_graph(*layers), project.paths.onnx(Graph.FP32))

    make_quantized(project, Graph.FP8)

    found = nodes(load(project, Graph.FP8), "Conv", "Gemm")
    assert [node.name for node in found] == list(layers)
    assert {source_of(load(project, Graph.FP8), name) for node in found for name in node.input} == {"DequantizeLinear"}


@pytest.mark.parametrize("graph", TENSORRT)
def test_tensorrt_form_leaves_outputs(quantized: Project, graph: Graph) -> None:
    """The logits come out of the last layer as they are, not quantised."""
    model = load(quantized, graph)
    (cast,) = (node for node in model.graph.node if "logits" in node.output)

    assert (cast.op_type, source_of(model, cast.input[0])) == ("Cast", "Gemm")


@pytest.mark.parametrize("graph", TENSORRT)
def test_layers_keep_their_names(quantized: Project, graph: Graph) -> None:
    """Convolutions and matrix products are called as in the FP32 graph."""
    assert [node.name for node in nodes(load(quantized, graph), "Conv", "Gemm")] == [
        node.name for node in nodes(load(quantized, Graph.FP32), "Conv", "Gemm")
    ]


def test_sum_reads_its_convolution_directly(summed: onnx.ModelProto) -> None:
    """Between a convolution and the sum of its block there is no pair; what the block began with comes through one."""
    assert read_by(summed, "identity") == ["b", "begun*"]


def test_skip_connection_shares_the_pair_of_the_convolution(summed: onnx.ModelProto) -> None:
    """What a block begins with is quantised once, for its first convolution and for its sum."""
    (pair,) = (node for node in nodes(summed, "QuantizeLinear") if node.input[0] == "begun")
    (narrow,) = (node for node in nodes(summed, "DequantizeLinear") if node.input[0] == pair.output[0])

    assert [node.name for node in summed.graph.node if narrow.output[0] in node.input] == ["a", "identity"]


def test_sum_of_two_convolutions_reads_one_directly(summed: onnx.ModelProto) -> None:
    """Where the skip connection is a convolution, too, that one comes through a pair."""
    assert read_by(summed, "projection") == ["c", "d*"]


def test_sum_of_neither_is_left_alone(summed: onnx.ModelProto) -> None:
    """A sum without a convolution is none of a residual block, and stays in floating point."""
    assert read_by(summed, "neither") == ["gate", "ended"]


def test_nothing_unread_is_left(summed: onnx.ModelProto) -> None:
    """Pairs that nothing reads any more are gone, and so are their scales and zero points."""
    read = {name for node in summed.graph.node for name in node.input} | {"logits"}

    assert {tensor.name for tensor in summed.graph.initializer} <= read
    assert {output for node in summed.graph.node for output in node.output} <= read


def test_residual_graph_computes_what_it_did(residual: Project, summed: onnx.ModelProto) -> None:
    """The logits are those of FP32 but for what quantising loses."""
    given = images(residual)
    exact = run(residual_graph(), given)

    assert distance(run(summed, given), exact) < 0.06


@pytest.mark.parametrize(("graph", "bound"), [(Graph.INT8, 0.03), (Graph.FP8, 0.06)])
def test_tensorrt_form_is_close_to_the_reference(quantized: Project, graph: Graph, bound: float) -> None:
    """The logits are the FP32 reference's but for what quantising the type loses."""
    assert relative_error(quantized, load(quantized, graph)) < bound


def test_fp8_weights_are_the_models(quantized: Project) -> None:
    """An E4M3 weight is the FP32 one to half a unit of its three bits, or to half the smallest step near zero."""
    values, exact = weights(load(quantized, Graph.FP8)), weights(load(quantized, Graph.FP32))
    scale = values["body.3.weight_scale"].astype(np.float32).reshape(-1, 1, 1, 1)
    kernel = values["body.3.weight_quantized"].astype(np.float32)

    error = np.abs(kernel * scale - exact["body.3.weight"])

    assert 440 < np.abs(kernel).max() <= 448
    assert (error <= np.maximum(np.abs(exact["body.3.weight"]) / 16, scale * 2.0**-10) * 1.001).all()


def test_fp8_has_one_form(quantized: Project) -> None:
    """TensorRT 8.6 knows no float8, so there is no graph for it."""
    assert quantized.onnx(Graph.FP8).opset17 is None
    assert not quantized.paths.onnx_opset17(Graph.FP8).exists()


def test_opset17_form_is_fp32(built: Project) -> None:
    """What TensorRT 8.6 reads is of opset 17 and IR version 8, with every weight in FP32."""
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


def test_scales_survive_fp16(built: Project) -> None:
    """Scales of the FP32 form are numbers that fp16 holds exactly."""
    assert all((scale == scale.astype(np.float16)).all() for scale in scales(opset17(built)))


@pytest.mark.parametrize("graph", TENSORRT)
def test_casts_to_fp16_are_counted(quantized: Project, graph: Graph) -> None:
    """The record counts the weights that become FP16, and of the quantised ones only the scales."""
    casts = {cast.name: cast.elements for cast in quantized.onnx(graph).casts}

    assert casts.items() >= {"body.0.bias": 32, "body.3.bias": 64, "body.8.bias": 10}.items()
    assert casts["body.3.weight_scale"] == 64
    assert not {"body.3.weight", "body.3.weight_quantized"} & casts.keys()


def test_values_beyond_fp16_are_counted(copied: Path) -> None:
    """A bias that fp16 cannot hold becomes infinite, as in the FP16 graph, and the record says so."""
    project = Project.load(copied / "pipeline.yaml")
    model = load(project, Graph.FP32)
    (bias,) = (tensor for tensor in model.graph.initializer if tensor.name == "body.8.bias")
    bias.CopyFrom(numpy_helper.from_array(np.array([1e5, 1e-9, 1e-5, *[0] * 7], np.float32), bias.name))
    onnx.save(model, project.paths.onnx(Graph.FP32))

    record = make_quantized(project, Graph.INT8)

    assert TensorCast(name="body.8.bias", elements=10, underflow=1, subnormal=1, overflow=1) in record.casts
    assert np.isinf(weights(load(project, Graph.INT8))["body.8.bias"][0])


def test_fp32_graph_of_a_later_opset(copied: Path) -> None:
    """Where the FP32 graph could not be lowered there is no opset 17 form, and the other is made all the same."""
    project = Project.load(copied / "pipeline.yaml")
    onnx.save(to_opset(load(project, Graph.FP32), 18), project.paths.onnx(Graph.FP32))

    record = make_quantized(project, Graph.INT8)

    assert (record.opset, record.opset17) == (19, None)


def test_record_vouches_for_both_files(built: Project) -> None:
    """The record of int8 has the file for TensorRT 8.6 beside the other."""
    assert [file.path for file in built.onnx(Graph.INT8).files] == [
        "tiny/onnx/int8.onnx",
        "tiny/onnx/int8.opset17.onnx",
    ]


def test_cpu_form_has_uint8_activations(built: Project) -> None:
    """Activations are uint8 everywhere, as VNNI wants them."""
    model = load(built, Graph.INT8_CPU)
    values = weights(model)

    assert {values[node.input[2]].dtype for node in nodes(model, "QuantizeLinear")} == {np.dtype(np.uint8)}


def test_cpu_form_overflows_on_no_processor(built: Project) -> None:
    """Weights have seven bits: a processor without VNNI adds two products with uint8 in 16 bits."""
    values = weights(load(built, Graph.INT8_CPU))
    kernels = [value for name, value in values.items() if name.endswith("weight_quantized")]
    assert kernels
    largest = max(int(np.abs(kernel.astype(np.int32)).max()) for kernel in kernels)
    assert 2 * 255 * largest <= np.iinfo(np.int16).max


def test_cpu_form_quantizes_all_but_the_logits(built: Project) -> None:
    """Every convolution is quantised, the first one too; the last product writes the logits in floating point."""
    model = load(built, Graph.INT8_CPU)

    assert {source_of(model, name) for node in nodes(model, "Conv") for name in node.input[:2]} == {"DequantizeLinear"}
    (last,) = nodes(model, "Gemm")
    assert not source_of(model, last.input[1])
    assert last.output[0] == model.graph.output[0].name


@pytest.mark.parametrize("graph", BOTH)
def test_weights_are_int8_per_channel(built: Project, graph: Graph) -> None:
    """Weights are symmetric int8 with a scale an output channel, and none of them is -128."""
    values = weights(load(built, graph))

    kernel = values["body.3.weight_quantized"]
    assert (kernel.dtype, kernel.min() >= -127) == (np.dtype(np.int8), True)
    assert values["body.3.weight_scale"].shape == (64,)
    assert not values["body.3.weight_zero_point"].any()


@pytest.mark.parametrize("graph", BOTH)
def test_quantized_weights_are_the_models(built: Project, graph: Graph) -> None:
    """A quantised weight is the FP32 one, to half a step."""
    quantized, exact = weights(load(built, graph)), weights(load(built, Graph.FP32))
    scale = quantized["body.3.weight_scale"].astype(np.float32).reshape(-1, 1, 1, 1)

    error = np.abs(quantized["body.3.weight_quantized"] * scale - exact["body.3.weight"])

    assert (error <= scale * 0.51).all()


@pytest.mark.parametrize("graph", BOTH)
def test_input_and_output_are_those_of_fp32(built: Project, graph: Graph) -> None:
    """Quantised graphs are called like the others: float32, with a dynamic batch."""
    record, fp32 = built.onnx(graph), built.onnx(Graph.FP32)

    assert (record.inputs, record.outputs) == (fp32.inputs, fp32.outputs)


@pytest.mark.parametrize("graph", BOTH)
def test_record_names_the_calibration_set(built: Project, graph: Graph) -> None:
    """The record says on which images the graph was calibrated."""
    assert built.onnx(graph).calibration_sha256 == built.data().calibration.sha256


def test_quantizing_twice_gives_the_same_graph(copied: Path) -> None:
    """The same calibration gives the same graph."""
    project = Project.load(copied / "pipeline.yaml")
    before = project.onnx(Graph.INT8).canonical_sha256

    assert make_quantized(project, Graph.INT8).canonical_sha256 == before


def test_quantizing_says_nothing(copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The quantiser's own advice does not reach the terminal."""
    make_quantized(Project.load(copied / "pipeline.yaml"), Graph.INT8)

    assert capfd.readouterr() == ("", "")


def test_quantizing_leaves_logging_as_it_is(copied: Path) -> None:
    """The level of the root logger, which is everybody's, is what it was."""
    logging.getLogger().setLevel(logging.WARNING)

    make_quantized(Project.load(copied / "pipeline.yaml"), Graph.INT8_CPU)

    assert logging.getLogger().level == logging.WARNING


def test_two_quantizations_at_once(copied: Path) -> None:
    """Two processes that quantise into one folder give what one after the other gives, and leave no other files."""
    project = Project.load(copied / "pipeline.yaml")
    folder = project.paths.onnx(Graph.INT8).parent
    files = sorted(path.name for path in folder.iterdir())
    before = {graph: project.onnx(graph).canonical_sha256 for graph in BOTH}
    for graph in BOTH:
        project.paths.onnx(graph).unlink()
        project.paths.onnx_record(graph).unlink()
    command, config = [sys.executable, "-m", "pipeline", "quantize"], ["--config", str(copied / "pipeline.yaml")]

    processes = [subprocess.Popen([*command, f"tiny/{graph.value}", *config]) for graph in BOTH]  # noqa: S603 - ours

    assert [process.wait(120) for process in processes] == [0, 0]
    assert {graph: project.onnx(graph).canonical_sha256 for graph in BOTH} == before
    assert sorted(path.name for path in folder.iterdir()) == files


def broken_graph(dtype: int) -> onnx.ModelProto:
    """Return a convolution in a type that ONNX Runtime has none for on a CPU."""
    kernel = helper.make_tensor("w", dtype, [4, 3, 3, 3], np.zeros(108).tolist())
    return helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Cast", ["image"], ["x"], to=dtype),
                helper.make_node("Conv", ["x", "w"], ["y"], name="conv"),
                helper.make_node("Cast", ["y"], ["logits"], to=TensorProto.FLOAT),
            ],
            "graph",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 32, 32])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4, 30, 30])],
            [kernel],
        ),
        opset_imports=[helper.make_opsetid("", 22)],
        ir_version=10,
    )


@pytest.mark.parametrize("graph", BOTH)
def test_graph_that_cannot_be_calibrated(copied: Path, graph: Graph) -> None:
    """A graph that ONNX Runtime cannot run cannot be calibrated: a quantisation error, and the earlier file stays."""
    project = Project.load(copied / "pipeline.yaml")
    onnx.save(broken_graph(TensorProto.BFLOAT16), project.paths.onnx(Graph.FP32))
    before = project.paths.onnx(graph).read_bytes()

    with pytest.raises(QuantizeError, match="cannot be quantised"):
        make_quantized(project, graph)

    assert project.paths.onnx(graph).read_bytes() == before


def test_quantizer_that_fails(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quantiser's own complaint is passed on in one line, and leaves no files."""

    def fail(*_: object, **__: object) -> None:
        raise ValueError("Invalid model\nsecond line")

    monkeypatch.setattr("pipeline.stages.quantize.stage.quantize_static", fail)
    project = Project.load(copied / "pipeline.yaml")
    files = sorted(project.paths.onnx(Graph.INT8).parent.iterdir())

    with pytest.raises(QuantizeError, match=r"(?s)cannot be quantised.*got: +ValueError: Invalid model$"):
        make_quantized(project, Graph.INT8)

    assert sorted(project.paths.onnx(Graph.INT8).parent.iterdir()) == files


def test_damaged_fp32_graph(copied: Path) -> None:
    """An FP32 graph that is no ONNX file is an error of the pipeline's own."""
    project = Project.load(copied / "pipeline.yaml")
    project.paths.onnx(Graph.FP32).write_bytes(b"no graph")

    with pytest.raises(ArtifactError):
        make_quantized(project, Graph.INT8)
