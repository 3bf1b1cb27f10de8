"""Quantisation: the forms of int8 and fp8 graphs, their records, and failures."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from model_artifacts.errors import ArtifactError, QuantizeError
from model_artifacts.records import Graph
from pipeline.adapters.onnx_graph import opset_of
from pipeline.planning.project import Project
from pipeline.records import TensorCast
from pipeline.stages import STAGES
from pipeline.stages.common.model import restore_model
from pipeline.stages.data.stage import make_data
from pipeline.stages.export.stage import make_onnx
from pipeline.stages.quantize import placing, stage
from pipeline.stages.quantize.stage import make_quantized, measure_shifts
from pipeline.stages.source.stage import make_source
from tests.support import factories
from tests.support.quantized_graphs import (
    TENSORRT,
    load,
    nodes,
    opset17,
    relative_error,
    residual_graph,
    scales,
    source_of,
    weights,
    with_fp8,
)

if TYPE_CHECKING:
    from collections.abc import Callable

BOTH = [Graph.INT8, Graph.INT8_CPU]


@pytest.mark.parametrize(("graph", "kind"), [(Graph.INT8, TensorProto.INT8), (Graph.FP8, TensorProto.FLOAT8E4M3FN)])
def test_tensorrt_form_is_symmetric(quantized: Project, graph: Graph, kind: int) -> None:
    """Every zero point is a zero of the graph's type, of weights and of activations."""
    model = load(quantized, graph)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    points = [tensors[node.input[2]] for node in nodes(model, "QuantizeLinear", "DequantizeLinear")]
    assert {point.data_type for point in points} == {kind}
    assert not any(numpy_helper.to_array(point).astype(np.float32).any() for point in points)


@pytest.mark.parametrize(("graph", "around"), [(Graph.INT8, np.float32), (Graph.FP8, np.float16)])
def test_tensorrt_form_around_what_is_quantized(quantized: Project, graph: Graph, around: type[np.floating]) -> None:
    """Biases, the last product and scales are FP32 around int8, and FP16 around fp8."""
    model = load(quantized, graph)
    values = weights(model)

    floating = [values[node.input[2]] for node in nodes(model, "Conv", "Gemm")]
    floating += [values[nodes(model, "Gemm")[-1].input[1]], *scales(model)]
    assert {value.dtype for value in floating} == {np.dtype(around)}
    assert (opset_of(model), model.ir_version, quantized.onnx(graph).opset) == (19, 9, 19)


@pytest.mark.parametrize("graph", TENSORRT)
def test_tensorrt_form_leaves_outputs(quantized: Project, graph: Graph) -> None:
    """The logits come out of the last layer as they are, not quantised."""
    model = load(quantized, graph)
    (last,) = (node for node in model.graph.node if "logits" in node.output)

    assert (source_of(model, last.input[0]) if last.op_type == "Cast" else last.op_type) == "Gemm"


@pytest.mark.parametrize("graph", TENSORRT)
def test_layers_keep_their_names(quantized: Project, graph: Graph) -> None:
    """Convolutions and matrix products are called as in the FP32 graph."""
    assert [node.name for node in nodes(load(quantized, graph), "Conv", "Gemm")] == [
        node.name for node in nodes(load(quantized, Graph.FP32), "Conv", "Gemm")
    ]


@pytest.mark.parametrize(("graph", "bound"), [(Graph.INT8, 0.03), (Graph.FP8, 0.06)])
def test_tensorrt_form_is_close_to_the_reference(quantized: Project, graph: Graph, bound: float) -> None:
    """The logits differ from the FP32 reference's by the loss of quantisation alone."""
    assert relative_error(quantized, load(quantized, graph)) < bound


@pytest.mark.parametrize("graph", BOTH)
def test_outputs_of_int8_are_centred(quantized: Project, graph: Graph) -> None:
    """On the calibration images the mean of each logit is that of FP32."""
    shifts = measure_shifts(quantized, quantized.file(quantized.onnx(graph).file))

    assert shifts.keys() == {"logits"}
    assert np.abs(shifts["logits"]).max() < 1e-4


def test_both_forms_of_int8_have_the_same_corrected_biases(quantized: Project) -> None:
    """The expected shift of a convolution is taken from its bias in the form for TensorRT 8.6 as well."""
    new, old, exact = load(quantized, Graph.INT8), opset17(quantized), load(quantized, Graph.FP32)
    biases = [node.input[2] for node in nodes(exact, "Conv", "Gemm")]

    assert all((weights(new)[name] == weights(old)[name]).all() for name in biases)
    assert all((weights(new)[name] != weights(exact)[name]).any() for name in biases)


def test_fp8_has_one_form(quantized: Project) -> None:
    """TensorRT 8.6 knows no float8, so there is no graph for it."""
    assert quantized.onnx(Graph.FP8).opset17 is None
    assert not quantized.paths.onnx_opset17(Graph.FP8).exists()


def test_scales_survive_fp16(built: Project) -> None:
    """Scales of the FP32 form are numbers that fp16 holds exactly."""
    assert all((scale == scale.astype(np.float16)).all() for scale in scales(opset17(built)))


def test_casts_to_fp16_are_counted(quantized: Project) -> None:
    """The record counts the weights that become FP16, and of the quantised ones only the scales."""
    casts = {cast.name: cast.elements for cast in quantized.onnx(Graph.FP8).casts}

    assert casts.items() >= {"body.0.bias": 32, "body.3.bias": 64, "body.8.bias": 10}.items()
    assert casts["body.3.weight_scale"] == 1
    assert not {"body.3.weight", "body.3.weight_quantized"} & casts.keys()


def test_int8_has_no_casts(quantized: Project) -> None:
    """The graph around int8 stays in FP32, so that nothing is cast."""
    assert quantized.onnx(Graph.INT8).casts == ()


def test_int8_with_layers_in_floating_point_is_fp16_around(copied: Path) -> None:
    """A layer that stays in floating point is FP16, and so is the graph around int8."""
    text = (copied / "pipeline.yaml").read_text()
    first = nodes(load(Project.load(copied / "pipeline.yaml", STAGES), Graph.FP32), "Conv")[0].name
    (copied / "pipeline.yaml").write_text(f"{text}leave_unquantized: {{int8: [{first}]}}\n")
    project = Project.load(copied / "pipeline.yaml", STAGES)

    make_quantized(project, Graph.INT8_MIXED)

    model = load(project, Graph.INT8_MIXED)
    values = weights(model)
    assert {values[node.input[2]].dtype for node in nodes(model, "Conv", "Gemm")} == {np.dtype(np.float16)}


def test_values_beyond_fp16_are_counted(built_folder: Path, tmp_path: Path) -> None:
    """A bias that fp16 cannot hold becomes infinite, as in the FP16 graph, and the record says so."""
    project = with_fp8(built_folder, tmp_path / "project")
    model = load(project, Graph.FP32)
    (bias,) = (tensor for tensor in model.graph.initializer if tensor.name == "body.8.bias")
    bias.CopyFrom(numpy_helper.from_array(np.array([1e5, 1e-9, 1e-5, *[0] * 7], np.float32), bias.name))
    onnx.save(model, project.paths.onnx(Graph.FP32))

    record = make_quantized(project, Graph.FP8)

    assert TensorCast(name="body.8.bias", elements=10, underflow=1, subnormal=1, overflow=1) in record.casts
    assert np.isinf(weights(load(project, Graph.FP8))["body.8.bias"][0])


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
    project = Project.load(copied / "pipeline.yaml", STAGES)
    before = project.onnx(Graph.INT8).canonical_sha256

    assert make_quantized(project, Graph.INT8).canonical_sha256 == before


def test_quantizing_says_nothing(copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The quantiser's own advice does not reach the terminal."""
    make_quantized(Project.load(copied / "pipeline.yaml", STAGES), Graph.INT8)

    assert capfd.readouterr() == ("", "")


def test_quantizing_leaves_logging_as_it_is(copied: Path) -> None:
    """Quantising restores the level of the root logger."""
    logging.getLogger().setLevel(logging.WARNING)

    make_quantized(Project.load(copied / "pipeline.yaml", STAGES), Graph.INT8_CPU)

    assert logging.getLogger().level == logging.WARNING


def test_two_quantizations_at_once(copied: Path) -> None:
    """Two processes that quantise into one folder give the results of a sequence, and leave no other files."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
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


def test_layers_without_fp8_kernels_are_counted(built_folder: Path, tmp_path: Path) -> None:
    """A depthwise convolution stays in FP16, and the gate does not miss it among the layers in fp8."""
    project = with_fp8(built_folder, tmp_path / "project")
    model = residual_graph()
    (depthwise,) = (node for node in model.graph.node if node.name == "b")
    depthwise.attribute.append(helper.make_attribute("group", 8))
    (kernel,) = (tensor for tensor in model.graph.initializer if tensor.name == "b.weight")
    kernel.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(kernel)[:, :1], "b.weight"))
    onnx.save(model, project.paths.onnx(Graph.FP32))

    records = {graph: make_quantized(project, graph) for graph in TENSORRT}

    assert {graph: record.left_layers for graph, record in records.items()} == {Graph.INT8: 0, Graph.FP8: 1}
    (kept,) = (node for node in load(project, Graph.FP8).graph.node if node.name == "b")
    assert weights(load(project, Graph.FP8))[kept.input[1]].dtype == np.float16


@pytest.mark.part(1)
@pytest.mark.parametrize("make", ["weight_normed", "pruned", "parametrized"])
def test_computed_weights_are_quantised(write_config: Callable[[str], Path], make: str) -> None:
    """A parametrised convolution has int8 weights behind one pair, which are its baked and folded ones."""
    more = "data: {calibration: 4, validation: 6}\nprecisions: [fp32, int8]"
    text = factories.configuration(f"tests.support.odd_networks:{make}", more=more)
    project = Project.load(write_config(text), STAGES)
    make_source(project)
    make_data(project, restore_model(project))
    make_onnx(project, restore_model(project), Graph.FP32)

    make_quantized(project, Graph.INT8)

    model, fp32 = load(project, Graph.INT8), load(project, Graph.FP32)
    values, pairs = weights(model), {node.output[0]: node for node in nodes(model, "DequantizeLinear")}
    (convolution,), (plain,) = nodes(model, "Conv"), nodes(fp32, "Conv")
    weight, scale, _ = (values[name] for name in pairs[convolution.input[1]].input)
    assert weight.dtype == np.int8
    wide = weight.astype(np.float32) * scale.reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(wide, weights(fp32)[plain.input[1]], atol=0.51 * float(scale.max()))


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
    project = Project.load(copied / "pipeline.yaml", STAGES)
    onnx.save(broken_graph(TensorProto.BFLOAT16), project.paths.onnx(Graph.FP32))
    project.paths.ranges.unlink()  # which would do without a run
    before = project.paths.onnx(graph).read_bytes()

    with pytest.raises(QuantizeError, match="cannot be quantised"):
        make_quantized(project, graph)

    assert project.paths.onnx(graph).read_bytes() == before


def fails(*arguments: Any) -> object:
    """Place the pairs with a quantiser that complains, in the process that runs ONNX Runtime."""
    with mock.patch.object(placing, "quantize_static", side_effect=ValueError("Invalid model\nsecond line")):
        return stage.place(*arguments)


def dies(*arguments: Any) -> object:
    """Place the pairs with a quantiser that ends its process by a signal, after it has begun to write."""

    def die(_: onnx.ModelProto, file: str, *__: object, **___: object) -> None:
        Path(file).write_bytes(b"half a graph")
        os.kill(os.getpid(), signal.SIGSEGV)

    with mock.patch.object(placing, "quantize_static", die):
        return stage.place(*arguments)


@pytest.mark.part(2)
@pytest.mark.parametrize("graph", BOTH)
@pytest.mark.parametrize(
    ("place", "message"),
    [
        (fails, r"(?s)cannot be quantised.*got: +ValueError: Invalid model$"),
        (dies, r"(?s)cannot calibrate the graph.*its process was killed by SIGSEGV.*by itself: .*quantize tiny/int8"),
    ],
)
def test_quantizer_that_fails(
    copied: Path,
    monkeypatch: pytest.MonkeyPatch,
    graph: Graph,
    place: Callable[..., object],
    message: str,
) -> None:
    """The quantiser's complaint, or the signal that ended its process, is the reason, and no file is left."""
    monkeypatch.setattr(stage, "place", place)
    project = Project.load(copied / "pipeline.yaml", STAGES)
    files = sorted(project.paths.onnx(graph).parent.iterdir())
    before = project.paths.onnx(graph).read_bytes()

    with pytest.raises(QuantizeError, match=message):
        make_quantized(project, graph)

    assert sorted(project.paths.onnx(graph).parent.iterdir()) == files
    assert project.paths.onnx(graph).read_bytes() == before


def test_damaged_fp32_graph(copied: Path) -> None:
    """An FP32 graph that is no ONNX file is an error of the pipeline's own."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    project.paths.onnx(Graph.FP32).write_bytes(b"no graph")

    with pytest.raises(ArtifactError):
        make_quantized(project, Graph.INT8)
