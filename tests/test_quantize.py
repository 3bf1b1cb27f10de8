"""The two int8 graphs: what TensorRT takes, and what x86 accelerates."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.errors import PipelineError, QuantizeError
from pipeline.project import Project
from pipeline.quantize import make_int8
from pipeline.records import Graph

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BOTH = [Graph.INT8, Graph.INT8_CPU]


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


def test_tensorrt_form_is_symmetric(built: Project) -> None:
    """Every zero point is an int8 zero, of weights and of activations."""
    model = load(built, Graph.INT8)
    values = weights(model)

    points = [values[node.input[2]] for node in nodes(model, "QuantizeLinear", "DequantizeLinear")]
    assert len(points) == 6
    assert all(point.dtype == np.int8 and not point.any() for point in points)


def test_tensorrt_form_keeps_biases(built: Project) -> None:
    """Biases stay in floating point: TensorRT takes no quantised ones."""
    model = load(built, Graph.INT8)
    values = weights(model)

    biases = [values[node.input[2]] for node in nodes(model, "Conv", "Gemm")]
    assert [bias.dtype for bias in biases] == [np.dtype(np.float32)] * 3


def test_tensorrt_form_keeps_the_first_convolution(built: Project) -> None:
    """The first convolution sees the image itself, and its weights are float32."""
    model = load(built, Graph.INT8)
    first = nodes(model, "Conv")[0]

    assert (first.input[0], weights(model)[first.input[1]].dtype) == ("image", np.dtype(np.float32))


def test_tensorrt_form_quantizes_what_follows(built: Project) -> None:
    """Every later convolution and matrix product takes quantised activations and quantised weights."""
    model = load(built, Graph.INT8)

    later = nodes(model, "Conv", "Gemm")[1:]
    assert len(later) == 2
    assert {source_of(model, name) for node in later for name in node.input[:2]} == {"DequantizeLinear"}


def test_tensorrt_form_leaves_outputs(built: Project) -> None:
    """The logits come out of the last layer as they are, not quantised."""
    assert source_of(load(built, Graph.INT8), "logits") == "Gemm"


def test_cpu_form_has_uint8_activations(built: Project) -> None:
    """Activations are uint8 everywhere, as VNNI wants them."""
    model = load(built, Graph.INT8_CPU)
    values = weights(model)

    assert {values[node.input[2]].dtype for node in nodes(model, "QuantizeLinear")} == {np.dtype(np.uint8)}


def test_cpu_form_quantizes_everything(built: Project) -> None:
    """Every convolution and matrix product is quantised, the first one too."""
    model = load(built, Graph.INT8_CPU)

    assert {source_of(model, name) for node in nodes(model, "Conv", "Gemm") for name in node.input[:2]} == {
        "DequantizeLinear"
    }


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
    scale = quantized["body.3.weight_scale"].reshape(-1, 1, 1, 1)

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

    assert make_int8(project, Graph.INT8).canonical_sha256 == before


def test_quantizing_says_nothing(copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The quantiser's own advice does not reach the terminal."""
    make_int8(Project.load(copied / "pipeline.yaml"), Graph.INT8)

    assert capfd.readouterr() == ("", "")


def test_quantizing_leaves_logging_as_it_is(copied: Path) -> None:
    """The level of the root logger, which is everybody's, is what it was."""
    logging.getLogger().setLevel(logging.WARNING)

    make_int8(Project.load(copied / "pipeline.yaml"), Graph.INT8_CPU)

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
        make_int8(project, graph)

    assert project.paths.onnx(graph).read_bytes() == before


def test_quantizer_that_fails(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quantiser's own complaint is passed on in one line, and leaves no files."""

    def fail(*_: object, **__: object) -> None:
        raise ValueError("Invalid model\nsecond line")

    monkeypatch.setattr("pipeline.quantize.quantize_static", fail)
    project = Project.load(copied / "pipeline.yaml")
    files = sorted(project.paths.onnx(Graph.INT8).parent.iterdir())

    with pytest.raises(QuantizeError, match=r"(?s)cannot be quantised.*got: +ValueError: Invalid model$"):
        make_int8(project, Graph.INT8)

    assert sorted(project.paths.onnx(Graph.INT8).parent.iterdir()) == files


def test_damaged_fp32_graph(copied: Path) -> None:
    """An FP32 graph that is no ONNX file is an error of the pipeline's own."""
    project = Project.load(copied / "pipeline.yaml")
    project.paths.onnx(Graph.FP32).write_bytes(b"no graph")

    with pytest.raises(PipelineError):
        make_int8(project, Graph.INT8)
