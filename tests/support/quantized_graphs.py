"""Quantised graphs, and small networks to quantise."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from model_artifacts.records import Graph
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.quantize.calibration import Images
from tests.support.logits import distance, images, reference

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


TENSORRT = [Graph.INT8, Graph.FP8]


class Given(Images):
    """Images that are prepared already, in batches of a size at most."""

    def __init__(self, values: np.ndarray[Any, np.dtype[np.float32]], most: int = 16) -> None:
        self.sizes: list[int] = []
        """The sizes that were asked for."""
        self._values, self._most = values, most

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._values)

    def batches(self, size: int = 16) -> Iterator[np.ndarray[Any, np.dtype[np.float32]]]:
        """Yield the batches."""
        self.sizes.append(size)
        for start in range(0, len(self), min(size, self._most)):
            yield self._values[start : start + min(size, self._most)]


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
    return Project.load(config, STAGES)


def residual_graph() -> onnx.ModelProto:
    """Return a network with three sums: a convolution and the skip, two convolutions, and no convolution.

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


def read_by(model: onnx.ModelProto, name: str) -> list[str]:
    """Return the inputs of a node, with a `*` for each one behind a Q/DQ pair; quantised weights by their name."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    (reader,) = (node for node in model.graph.node if node.name == name)
    found = []
    for given in reader.input:
        if given in made_by and made_by[given].op_type == "DequantizeLinear":
            quantize = made_by.get(made_by[given].input[0])
            if quantize is None:
                found.append(made_by[given].input[0])
                continue
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
