"""Networks and graphs that end in a global pool and a product."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from pipeline.adapters import onnx_graph

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    Arrays = Mapping[str, npt.NDArray[Any]]

POOLED = """\
model: {name: pooled, factory: "tests.support.pooled:make", weights: sample}
preprocessing: {resize: 32, crop: 32, interpolation: bilinear, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}
data: {calibration: 32, validation: 100}
workspaces: [32MiB]
"""
"""The configuration of `make`, without precisions and profiles."""


def make() -> nn.Module:
    """Return a network of two convolutions, a global pool and a product, for images in 10 classes."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    constants: Arrays,
    outputs: Mapping[str, Sequence[int | str]],
    image: Sequence[int | str] = ("batch", 3, 6, 5),
) -> onnx.ModelProto:
    """Return a checked model of opset 17 with an input `image` in float32.

    Args:
        nodes: the nodes, in order.
        constants: the initialisers by name; all weights are of the type of the first of them.
        outputs: the shapes of the outputs by name.
        image: the shape of the input.
    """
    floats = [values.dtype for values in constants.values() if values.dtype != np.int64]
    kind = helper.np_dtype_to_tensor_dtype(floats[0]) if floats else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", kind, image)],
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onnx_graph.use_oldest_ir(model)
    onnx_graph.check(model)
    return model


def node(operator: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    """Return a node of these tensors, separated by spaces, that is named after its first output."""
    made = outputs.split()
    return helper.make_node(operator, inputs.split(), made, f"node_{made[0]}", **attributes)


def run(model: onnx.ModelProto, image: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Return the outputs of a graph on the processor, as it is: ONNX Runtime optimises nothing."""
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, ["CPUExecutionProvider"])
    found: list[npt.NDArray[Any]] = session.run(None, {"image": image})
    return found


def operators(model: onnx.ModelProto) -> list[str]:
    """Return the operators of a graph, in order."""
    return [item.op_type for item in model.graph.node]


def drawn(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Return numbers around zero."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
