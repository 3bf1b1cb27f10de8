"""Faults of quantised graphs for `quantized_gates.py`, each in several sizes of ascending harm."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnxruntime.quantization.quant_utils import TENSOR_NAME_QUANT_SUFFIX
from quantized import Quantized, quantize

from model_artifacts.records import Precision
from pipeline.adapters.onnx_graph import replace_tensor
from pipeline.stages.quantize.rewriting import leave, quantized_layers

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Change = Callable[[Quantized, onnx.ModelProto, float], onnx.ModelProto]
    """A quantised network, a copy of its graph and a size → the faulty graph."""


def _tensors(graph: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in graph.graph.initializer}


def _of_activations(graph: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the nodes that quantise activations."""
    constant = _tensors(graph)
    return [node for node in graph.graph.node if node.op_type == "QuantizeLinear" and node.input[0] not in constant]


def _of_weights(graph: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the nodes that read the weights of layers: DequantizeLinear for int8, QuantizeLinear for fp8."""
    constant = _tensors(graph)
    kinds = {"DequantizeLinear", "QuantizeLinear"}
    found = [node for node in graph.graph.node if node.op_type in kinds and node.input[0] in constant]
    return [node for node in found if len(constant[node.input[0]].dims) > 1]


def _middle(nodes: list[onnx.NodeProto]) -> onnx.NodeProto:
    return nodes[len(nodes) // 2]


def _change(graph: onnx.ModelProto, name: str, change: Callable[[npt.NDArray[np.float32]], object]) -> onnx.ModelProto:
    """Replace an initialiser; float8 is left out."""
    tensor = _tensors(graph)[name]
    values = numpy_helper.to_array(tensor)
    replace_tensor(tensor, np.asarray(change(values)).astype(values.dtype))
    return graph


def _reader(graph: onnx.ModelProto, node: onnx.NodeProto) -> onnx.NodeProto:
    """Return the node that dequantises what a node quantises; a node that dequantises is its own."""
    if node.op_type == "DequantizeLinear":
        return node
    return next(
        item for item in graph.graph.node if item.op_type == "DequantizeLinear" and item.input[0] == node.output[0]
    )


def _replace_input(
    graph: onnx.ModelProto, node: onnx.NodeProto, place: int, change: Callable[[npt.NDArray[np.float32]], object]
) -> onnx.ModelProto:
    """Have one node read another constant, and leave that of all others."""
    values = numpy_helper.to_array(_tensors(graph)[node.input[place]])
    graph.graph.initializer.append(numpy_helper.from_array(np.asarray(change(values), values.dtype), "wrong"))
    node.input[place] = "wrong"
    return graph


def _read_wrongly(_item: Quantized, graph: onnx.ModelProto, size: float) -> onnx.ModelProto:
    """Dequantise the middle activation with another scale than it was quantised with."""
    return _replace_input(graph, _reader(graph, _middle(_of_activations(graph))), 1, lambda scale: scale * size)


def _one_range(_item: Quantized, graph: onnx.ModelProto, size: float) -> onnx.ModelProto:
    return _change(graph, _middle(_of_activations(graph)).input[1], lambda scale: scale * size)


def _all_ranges(_item: Quantized, graph: onnx.ModelProto, size: float) -> onnx.ModelProto:
    for name in sorted({node.input[1] for node in _of_activations(graph)}):
        _change(graph, name, lambda scale: scale * size)
    return graph


def _zero_point(_item: Quantized, graph: onnx.ModelProto, size: float) -> onnx.ModelProto:
    """Dequantise the middle activation with a zero point that it was not quantised with."""
    return _replace_input(graph, _reader(graph, _middle(_of_activations(graph))), 2, lambda point: point + int(size))


def _channel_scale(_item: Quantized, graph: onnx.ModelProto, size: float) -> onnx.ModelProto:
    """Dequantise the middle layer's weights with another scale: a channel of int8, the whole layer of fp8."""

    def change(scale: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        changed = scale.reshape(-1).copy()
        changed[changed.argmax()] *= size
        return changed.reshape(scale.shape)

    return _replace_input(graph, _reader(graph, _middle(_of_weights(graph))), 1, change)


def _swapped(_item: Quantized, graph: onnx.ModelProto, size: float) -> onnx.ModelProto:
    """Exchange pairs of output channels of the middle layer's weights, and not of its scales."""
    node = _middle(_of_weights(graph))
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)

    def change(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        order = np.arange(values.shape[axis])
        last = 2 * int(size)
        order[:last] = order[:last].reshape(-1, 2)[:, ::-1].ravel()
        return values.take(order, axis=axis)

    return _change(graph, node.input[0], change)


def _stale(_item: Quantized, graph: onnx.ModelProto, size: float) -> onnx.ModelProto:
    """Take the middle layer's weights of another training, nearly the same: off by a share of their deviation."""

    def change(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        wide = values.astype(np.float32)
        noise = np.random.default_rng(1).standard_normal(values.shape) * wide.std() * size
        moved: npt.NDArray[np.float32] = wide + noise
        return np.clip(np.rint(moved), -127, 127) if values.dtype == np.int8 else moved

    return _change(graph, _middle(_of_weights(graph)).input[0], change)


def _coarse(_item: Quantized, graph: onnx.ModelProto, size: float) -> onnx.ModelProto:
    """Round all weights to fewer bits."""
    for name in sorted({node.input[0] for node in _of_weights(graph)}):
        step = 2 ** (8 - size)
        _change(graph, name, lambda values: np.clip(np.rint(values / step) * step, -127, 127))  # noqa: B023 - called at once
    return graph


def _in_float(item: Quantized, graph: onnx.ModelProto, size: float) -> onnx.ModelProto:
    """Leave the first layers in float, with their FP32 weights."""
    names = [node.name for node in quantized_layers(graph)]
    left = names[: round(size * len(names))]
    changed = leave(graph, item.weights, left)
    for node in (node for node in changed.graph.node if node.name in left):
        for place, name in enumerate(node.input):
            plain = name.removesuffix(TENSOR_NAME_QUANT_SUFFIX)  # fp8's constants are quantised in front of the pair
            if plain != name and plain in item.weights:
                changed.graph.initializer.append(numpy_helper.from_array(item.weights[plain], f"{plain}_plain"))
                node.input[place] = f"{plain}_plain"
    return changed


def _biases_lost(_item: Quantized, graph: onnx.ModelProto, size: float) -> onnx.ModelProto:
    constant = _tensors(graph)
    layers = [node for node in graph.graph.node if node.op_type in {"Conv", "Gemm"} and len(node.input) > 2]  # noqa: PLR2004 - input, weights, bias
    for node in [node for node in layers if node.input[2] in constant][: int(size)]:
        _change(graph, node.input[2], np.zeros_like)
    return graph


def _calibrated_on(change: Callable[[torch.Tensor, float], torch.Tensor]) -> Change:
    return lambda item, _graph, size: quantize(item.fp32, item.weights, change(item.calibration, size), item.precision)


class Fault(NamedTuple):
    """A fault of a quantised graph, with its sizes in ascending harm."""

    what: str
    sizes: tuple[float, ...]
    change: Change
    only: Precision | None = None
    """The precision that has it; None for both."""


OF_GRAPHS = (
    Fault("one activation read with size × its scale", (1.01, 1.03, 1.1, 1.5, 2), _read_wrongly),
    Fault("its zero point off by size steps", (1, 2, 4, 8), _zero_point, Precision.INT8),
    Fault("one range cut to the share size", (0.9, 0.7, 0.5, 0.25, 0.1), _one_range),
    Fault("all ranges cut to the share size", (0.9, 0.7, 0.5, 0.25, 0.1), _all_ranges),
    Fault("all ranges × size", (1.1, 1.5, 2, 4, 8), _all_ranges, Precision.INT8),
    Fault("weights read with size × their scale", (1.01, 1.1, 1.5, 2, 4), _channel_scale),
    Fault("size pairs of channels swapped", (1, 2, 4, 8), _swapped),
    Fault("a stale weight, off by size deviations", (0.01, 0.03, 0.1, 0.3, 1), _stale),
    Fault("weights of size bits", (7, 6, 5, 4, 3), _coarse, Precision.INT8),
    Fault("the share size of the layers in float", (0.25, 0.5, 0.75, 1), _in_float),
    Fault("the biases of the first layers lost", (1, 2, 3), _biases_lost),
    Fault("calibrated on size × the contrast", (0.9, 0.7, 0.5, 0.25, 0.1), _calibrated_on(torch.mul)),
    Fault(
        "calibrated on the first size digits", (64, 16, 4, 1), _calibrated_on(lambda images, size: images[: int(size)])
    ),
)
OF_IMAGES = ("mean of the images", "their deviation", "channels swapped", "images shifted", "another resize")
