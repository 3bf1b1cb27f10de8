"""A rewritten network goes through the pipeline: quantised as convolutions are, judged, and built by TensorRT-RTX."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

from model_artifacts.records import Graph
from pipeline.cli.main import main
from pipeline.planning.project import Project
from pipeline.records import Outcome
from pipeline.stages import STAGES
from pipeline.stages.quantize.rewriting import quantized_nodes
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
