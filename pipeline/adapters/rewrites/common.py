"""The tools of all rewrites: layers, readers, shapes, constants and free names of a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import onnx
from onnx import helper, numpy_helper

from pipeline.adapters.onnx_graph import without_weights
from pipeline.adapters.onnx_rewrites import nodes_of, values_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    import numpy as np
    import numpy.typing as npt

    Shapes = Mapping[str, tuple[int | None, ...]]

LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
"""Operators that multiply by weights."""
FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
"""Types of weights that a rewrite may change."""


class Rewritten(NamedTuple):
    """A rewritten graph."""

    model: onnx.ModelProto
    """A graph of its own; the given one is not changed."""
    nodes: tuple[str, ...]
    """The names of the layers that were rewritten, in the graph's order; empty if it has none."""


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def makers_of(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Return the node that makes each tensor."""
    return {name: node for node in graph.node for name in node.output}


def read_names(graph: onnx.GraphProto) -> list[str]:
    """Return the name of each read tensor, once for each reader; a graph's output is one."""
    return [name for node in nodes_of(graph) for name in node.input] + [value.name for value in graph.output]


def ancestors(graph: onnx.GraphProto, names: Iterable[str]) -> set[str]:
    """Return the tensors that some tensors are computed from, with these themselves."""
    makers, ahead, seen = makers_of(graph), [*names], set[str]()
    while ahead:
        name = ahead.pop()
        if name and name not in seen:
            seen.add(name)
            node = makers.get(name)
            ahead += [] if node is None else [value for item in _with_inner(node) for value in item.input]
    return seen


def _with_inner(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return a node with those of the graphs in its attributes."""
    return [*nodes_of(onnx.GraphProto(node=[node]))]


def number_of(node: onnx.NodeProto, name: str, default: float) -> float:
    """Return a number among a node's attributes."""
    found = [helper.get_attribute_value(item) for item in node.attribute if item.name == name]
    return float(found[0]) if found else default


def shapes_of(model: onnx.ModelProto) -> Shapes:
    """Return the shapes of all tensors that are known; None stands for a size that is not."""
    graph = onnx.shape_inference.infer_shapes(without_weights(model), data_prop=True).graph
    return {
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim
        )
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }


def weights_of(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return the floating-point initialisers that no caller can replace, by name."""
    given = {value.name for value in graph.input}
    found = [tensor for tensor in graph.initializer if tensor.data_type in FLOATS]
    return {tensor.name: tensor for tensor in found if tensor.name not in given}


def free_name(graph: onnx.GraphProto, wanted: str) -> str:
    """Return a name that no tensor of the graph has: the wanted one, or with underscores behind it."""
    taken = values_of(graph)
    while wanted in taken:
        wanted += "_"
    return wanted


def free_node_name(graph: onnx.GraphProto, wanted: str) -> str:
    """Return a name that no node of the graph has: the wanted one, or with underscores behind it."""
    taken = {node.name for node in nodes_of(graph)}
    while wanted in taken:
        wanted += "_"
    return wanted


def add_constant(graph: onnx.GraphProto, wanted: str, values: npt.NDArray[np.generic]) -> str:
    """Add an initialiser, and return its name."""
    name = free_name(graph, wanted)
    graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def drop_unread(graph: onnx.GraphProto, names: Collection[str]) -> None:
    """Remove tensors that nothing reads any more: the nodes that make them, or initialisers.

    Args:
        graph: the graph, which is changed in place.
        names: the tensors, in any order. All others stay.
    """
    while True:
        read = {*read_names(graph)}
        unread = {*names} - read
        idle = [node for node in graph.node if {*node.output} & unread and not {*node.output} & read]
        if not idle:
            break
        for node in idle:
            graph.node.remove(node)
    for parts in (graph.initializer, graph.value_info):
        for part in [item for item in parts if item.name in unread]:
            parts.remove(part)
