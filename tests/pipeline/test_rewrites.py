"""A rewritten network goes through the pipeline: quantised as convolutions are, judged, and built by TensorRT-RTX."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

from model_artifacts.errors import QuantizeError
from model_artifacts.records import EngineFlavour, Graph
from model_artifacts.tensorrt.flavour import BuildLog, load_flavour, make_logger
from pipeline.adapters.tensorrt_builder import parse
from pipeline.cli.main import main
from pipeline.planning.project import Project
from pipeline.records import Outcome
from pipeline.stages import STAGES
from pipeline.stages.quantize.rewriting import quantized_nodes
from pipeline.stages.quantize.stage import make_quantized
from tests.support.pooled import POOLED, operators
from tests.support.quantized_graphs import load, nodes, read_by, weights

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

CONFIGURATION = f"""{POOLED}\
precisions: [fp32, fp16, int8, fp8]
profiles: [{{min: 1, opt: 2, max: 4}}]
io: [{{}}, {{input: uint8}}]
rewrites: {{product: convolution, channels: 4}}
leave_unquantized: {{int8: [node_conv2d]}}
"""
CPU, RTX = "pooled/cpu-x86_64/onnxruntime-", "pooled/rtx-sm80+/"
JUDGED = {f"{CPU}{name}" for name in ("fp32", "fp16", "fp16-uint8", "int8", "int8-mixed", "int8-cpu")}
ENGINES = {f"{RTX}{name}" for name in ("fp16-b1-2-4-ws32MiB", "fp16-b1-2-4-ws32MiB-uint8")}


def made(folder: Path, text: str, *stages: str, subjects: set[str]) -> Project:
    """Return a project of which these stages ran, and builds and validations of these subjects."""
    file = folder / "pipeline.yaml"
    file.write_text(text)
    project = Project.load(file, STAGES)
    for step in project.schedule.steps:
        own = step.stage == "build" and step.subject in subjects
        judged = step.stage == "validate" and step.subject in subjects & JUDGED
        if step.stage in stages or own or judged:
            assert main([step.stage, step.subject, "--config", str(file)]) == 0, step
    return project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The rewritten network, of which the last product stays in floating point by itself."""
    folder = tmp_path_factory.mktemp("rewritten")
    stages = ("source", "data", "export", "quantize", "rounding")
    return made(folder, CONFIGURATION, *stages, subjects=JUDGED | ENGINES)


def layer(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """Return a node by its name."""
    return next(node for node in model.graph.node if node.name == name)


def test_every_precision_passes_its_gate(project: Project) -> None:
    """Against the reference, which is not rewritten. Of three layers fp8 quantises too few for its gate."""
    for name in sorted(JUDGED):
        report = project.accuracy(project.plan.variant(name))
        assert report.passed, (name, report.reason)


def test_tensorrt_builds_rewritten_graphs(project: Project) -> None:
    """Ahead of time, with the network's own input and with pixels that the graph normalises in front of the zeros."""
    for name in sorted(ENGINES):
        artifact = project.artifact(project.plan.variant(name))
        assert artifact.outcome is Outcome.DONE, artifact.reason
        assert artifact.outputs[0].shape == ("batch", 10)


@pytest.mark.parametrize("graph", [Graph.INT8, Graph.INT8_MIXED, Graph.FP8, Graph.INT8_CPU])
def test_the_last_product_stays_in_floating_point(project: Project, graph: Graph) -> None:
    """As it does without the rewrite; the layer that is left out keeps its name, too."""
    model = load(project, graph)
    assert operators(model).count("Gemm") == 0
    assert "*" not in "".join(read_by(model, "node_linear"))
    left = graph in {Graph.INT8_MIXED, Graph.FP8}
    assert ("*" in "".join(read_by(model, "node_conv2d"))) != left


def test_first_weights_are_quantised_by_channel_and_their_zeros_stay(project: Project) -> None:
    """Zeros have no part in a scale."""
    found = weights(load(project, Graph.INT8))
    values, scales = found["body.0.weight_padded_quantized"], found["body.0.weight_padded_scale"]
    assert (values.shape, values.dtype.name, scales.shape) == ((16, 4, 3, 3), "int8", (16,))
    assert not values[:, 3].any()
    assert (np.abs(values[:, :3]).max(axis=(1, 2, 3)) == 127).all()


def test_the_product_in_int8_has_a_scale_for_each_class(tmp_path: Path) -> None:
    """Behind pairs in front of the mean and of the product: a global pool and a product in int8."""
    text = CONFIGURATION.replace("precisions: [fp32, fp16, int8, fp8]", "precisions: [int8]")
    text += "quantization: {last: true}\n"
    project = made(tmp_path, text, "source", "data", "export", "quantize", "rounding", subjects={f"{CPU}int8"})
    model = load(project, Graph.INT8)
    assert [node.name for node in quantized_nodes(model)] == [
        "node_conv2d",
        "node_conv2d_1",
        "node_mean",
        "node_linear",
    ]
    values, scales = (weights(model)[f"body.6.weight_convolution_{name}"] for name in ("quantized", "scale"))
    assert (values.shape, values.dtype.name, scales.shape) == ((10, 32, 1, 1), "int8", (10,))
    report = project.accuracy(project.plan.variant(f"{CPU}int8"))
    assert report.passed, report.reason
    assert len(nodes(model, "Pad")) == 1


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The network whose pool and product are one convolution, in int8; fp8 has no kernels for it."""
    text = CONFIGURATION.replace("product: convolution", "product: pooled").replace("int8, fp8]", "int8]")
    text = text.replace("leave_unquantized: {int8: [node_conv2d]}\n", "quantization: {last: true}\n")
    stages = ("source", "data", "export", "quantize", "rounding")
    judged = {f"{CPU}{name}" for name in ("fp32", "fp16", "int8", "int8-cpu")}
    return made(tmp_path_factory.mktemp("pooled"), text, *stages, subjects=judged | ENGINES)


def test_the_pooling_product_reads_the_last_activation_in_int8(pooled: Project) -> None:
    """One pair stands between the ReLU and the convolution, with no pool, and none behind it."""
    model = load(pooled, Graph.INT8)
    assert operators(model)[-5:] == ["Relu", "QuantizeLinear", "DequantizeLinear", "Conv", "Flatten"]
    relu, quantize, dequantize, convolution, flat = model.graph.node[-5:]
    assert (quantize.input[0], dequantize.input[0]) == (relu.output[0], quantize.output[0])
    assert (convolution.name, convolution.input[0]) == ("node_linear", dequantize.output[0])
    assert (flat.input[0], [*flat.output]) == (convolution.output[0], ["logits"])
    assert [node.name for node in quantized_nodes(model)] == ["node_conv2d", "node_conv2d_1", "node_linear"]


def test_the_pooling_product_has_int8_weights_with_a_scale_for_each_class(pooled: Project) -> None:
    """Each place of the image has the same: those of the product, as eight bits hold them."""
    model = load(pooled, Graph.INT8)
    values, scales = (weights(model)[f"body.6.weight_convolution_{name}"] for name in ("quantized", "scale"))
    assert (values.shape, values.dtype.name, scales.shape) == ((10, 32, 8, 8), "int8", (10,))
    assert (values == values[:, :, :1, :1]).all()
    assert (np.abs(values[:, :, 0, 0]).max(axis=1) >= 124).all(), "FP16 holds such small scales in coarser steps"
    exact = weights(load(pooled, Graph.FP32))["body.6.weight_convolution"]
    steps = scales.reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(values * steps, exact, rtol=0, atol=0.5001 * float(steps.max()))


def test_the_pooling_product_passes_every_gate(pooled: Project) -> None:
    """Against the reference, which is not rewritten; of int8 with the last layer in int8, too."""
    for name in ("fp32", "fp16", "int8", "int8-cpu"):
        report = pooled.accuracy(pooled.plan.variant(f"{CPU}{name}"))
        assert report.passed, (name, report.reason)


def test_tensorrt_builds_the_pooling_product(pooled: Project) -> None:
    """TensorRT-RTX builds it in FP16, with pixels, too. It reads the int8 graph, and has no int8 convolutions."""
    for name in sorted(ENGINES):
        artifact = pooled.artifact(pooled.plan.variant(name))
        assert artifact.outcome is Outcome.DONE, artifact.reason
        assert artifact.outputs[0].shape == ("batch", 10)
    flavour = load_flavour(EngineFlavour.TENSORRT_RTX)
    logger = make_logger(flavour.module, BuildLog())
    network = parse(flavour, flavour.module.Builder(logger), logger, pooled.paths.onnx(Graph.INT8))
    layers = {network.get_layer(index).name: network.get_layer(index) for index in range(network.num_layers)}
    found = layers["node_linear"], layers["node_linear_flatten"]
    assert [tuple(item.get_output(0).shape) for item in found] == [(-1, 10, 1, 1), (-1, 10)]


def test_the_pooling_product_stays_in_floating_point_in_fp8(pooled: Project, tmp_path: Path) -> None:
    """As the product does, and as one: the gate counts it among no layers that are left for want of kernels."""
    shutil.copytree(pooled.config_file.parent, tmp_path / "fp8")
    text = pooled.config_file.read_text().replace("int8]", "fp8]").replace("quantization: {last: true}\n", "")
    again = made(tmp_path / "fp8", text, "quantize", subjects=set())
    model = load(again, Graph.FP8)
    assert [node.name for node in quantized_nodes(model)] == ["node_conv2d_1"]
    assert layer(model, "node_linear").op_type == "Conv"
    assert again.onnx(Graph.FP8).left_layers == 0
    again.config_file.write_text(f"{text}quantization: {{last: true}}\n")
    with pytest.raises(QuantizeError, match=r"quantization\.last: TensorRT has no fp8 kernels for node_linear"):
        make_quantized(Project.load(again.config_file, STAGES), Graph.FP8)


def test_the_pool_and_the_product_are_in_half_precision(project: Project, tmp_path: Path) -> None:
    """The pool reads int8 and gives FP16; the rest around int8 stays in FP32, and the gate passes."""
    shutil.copytree(project.config_file.parent, tmp_path / "half")
    text = CONFIGURATION + "quantization: {head: float16}\n"
    again = made(tmp_path / "half", text, "quantize", "rounding", subjects={f"{CPU}int8"})
    model = load(again, Graph.INT8)
    assert operators(model)[-5:] == ["DequantizeLinear", "ReduceMean", "Conv", "Cast", "Flatten"]
    types = {
        name: values.dtype.name for name, values in weights(model).items() if name in layer(model, "node_linear").input
    }
    assert types == {"body.6.weight_convolution_half": "float16", "logits_bias_half": "float16"}
    assert weights(model)["body.0.bias"].dtype == np.float32
    report = again.accuracy(again.plan.variant(f"{CPU}int8"))
    assert report.passed, report.reason


def test_outputs_are_centred_as_those_of_products_are(project: Project, tmp_path: Path) -> None:
    """The bias of the rewritten product takes the mean error of the logits, as that of the product does."""
    plain = made(
        tmp_path,
        CONFIGURATION.replace("product: convolution, ", ""),
        "source",
        "data",
        "export",
        "quantize",
        subjects=set(),
    )
    for graph in (Graph.INT8, Graph.INT8_CPU):
        rewritten, before = weights(load(project, graph)), weights(load(plain, graph))
        np.testing.assert_allclose(rewritten["logits_bias"], before["body.6.bias"], atol=1e-4)
        fp32 = weights(load(project, Graph.FP32))["logits_bias"]
        assert np.abs(rewritten["logits_bias"] - fp32).max() > 1e-4
