"""Groups of a graph's nodes that get Q/DQ pairs or not, together: the first and last layers, sums, pools, concats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import numpy_helper

from model_artifacts.errors import QuantizeError
from pipeline.config.quantization import GROUPS
from pipeline.stages.quantize.rewriting import QUANTIZED_OPERATORS

if TYPE_CHECKING:
    import onnx

    from pipeline.config.quantization import QuantizationConfig

_POOLS = ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReduceMean")


def members(model: onnx.ModelProto, group: str) -> list[str]:
    """Return the names of the nodes of a group in an FP32 graph, in its order; none if the graph has no such nodes.

    Args:
        model: the graph.
        group: one of `GROUPS`: `first`, the first convolution or product; `last`, the last one in front of each output;
            `sums` of two activations; `pools`, with means over height and width; `concats`.
    """
    nodes = model.graph.node
    if group == "first":
        return [node.name for node in nodes if node.op_type in QUANTIZED_OPERATORS][:1]
    if group == "last":
        return [node.name for node in last_layers(model)]
    if group == "sums":
        constant = {tensor.name for tensor in model.graph.initializer}
        return [node.name for node in nodes if node.op_type == "Add" and not constant & {*node.input}]
    if group == "pools":
        return [node.name for node in nodes if node.op_type in _POOLS and is_pooling(model, node)]
    return [node.name for node in nodes if node.op_type == "Concat"]


def left_by(settings: QuantizationConfig, model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the names of the nodes that get no Q/DQ pairs because the settings leave out their group.

    Raises:
        QuantizeError: the graph has no node of a group that is left out.
    """
    found: list[str] = []
    for group in GROUPS:
        if settings.of(group) is False:
            names = members(model, group)
            if not names:
                raise QuantizeError(
                    f"quantization.{group}: the graph has no {group}, so that none can be left out",
                    expected="auto",
                    got="false",
                    fix=f"remove `{group}` from `quantization`",
                )
            found += names
    return tuple(dict.fromkeys(found))


def last_layers(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the convolutions and products that are the last layer in front of an output, in the graph's order."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    order = {node.name: place for place, node in enumerate(model.graph.node)}
    found = {}
    for value in model.graph.output:
        ahead, seen = [value.name], set[str]()
        layers: dict[int, onnx.NodeProto] = {}
        while ahead:
            node = made_by.get(ahead.pop())
            if node is None or node.name in seen:
                continue
            seen.add(node.name)
            if node.op_type in QUANTIZED_OPERATORS:
                layers[order[node.name]] = node
            ahead += node.input
        if layers:
            found[max(layers)] = layers[max(layers)]
    return [found[place] for place in sorted(found)]


def is_pooling(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Return True if a node pools; of a mean, if it is over the height and width of NCHW.

    A mean's axes are an attribute until opset 17, and an input since.
    """
    if node.op_type != "ReduceMean":
        return True
    reduced = [attribute.ints for attribute in node.attribute if attribute.name == "axes"]
    reduced += [numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name in node.input[1:]]
    return any({int(axis) % len("NCHW") for axis in axes} == {2, 3} for axes in reduced)
