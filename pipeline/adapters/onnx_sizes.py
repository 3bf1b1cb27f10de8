"""Arithmetic on sizes in an ONNX graph: the nodes that say how large a tensor becomes, or which entries it takes. Pure.

It is exact in every artifact: a size that was rounded is another size. Exporters write some of it in floating point,
such as half of a height, rounded down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import TensorProto, helper

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx

_OPERANDS = {
    "AffineGrid": (1,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "MaxUnpool": (2,),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}
"""The inputs that are sizes or places, by operator (ONNX, Operators.md)."""
_MEASURING = {"Shape", "Size"}
_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
_RANDOM = {"RandomNormal", "RandomUniform"}


def size_operands(node: onnx.NodeProto) -> tuple[int, ...]:
    """Return the places of a node's inputs that are sizes or places of entries, such as the scales of a `Resize`."""
    return () if node.domain else _OPERANDS.get(node.op_type, ())


def size_nodes(graph: onnx.GraphProto) -> frozenset[int]:
    """Return the numbers of the nodes that compute sizes: of shapes and constants alone, and for what needs a size.

    A number that is computed of sizes, and multiplied with an image, is no size: it is rounded as an image is.

    Args:
        graph: the graph, its nodes in the order in which they run.
    """
    known = {tensor.name for tensor in graph.initializer}
    fixed = []
    for number, node in enumerate(graph.node):
        alone = all(name in known for name in node.input if name) and not _has_graph(node)
        if node.op_type in _MEASURING or (alone and node.op_type not in _RANDOM):
            known.update(filter(None, node.output))
            fixed.append(number)
    needed = {name for node in graph.node for name in _needed(node)}
    found = set()
    for number in reversed(fixed):
        node = graph.node[number]
        if needed & {*node.output} and node.op_type not in _MEASURING:
            found.add(number)
            needed.update(node.input)
    return frozenset(found)


def _needed(node: onnx.NodeProto) -> Iterable[str]:
    """Return the inputs of a node that must be exact: its sizes, and what becomes a whole number."""
    if not node.domain and node.op_type == "Cast":
        (kind,) = [helper.get_attribute_value(item) for item in node.attribute if item.name == "to"]
        return () if kind in _FLOATS else node.input
    return [node.input[place] for place in size_operands(node) if place < len(node.input)]


def _has_graph(node: onnx.NodeProto) -> bool:
    return any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)
