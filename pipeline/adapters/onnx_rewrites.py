"""Changes to a user's ONNX graph that leave what it computes as it is: names, constants, shapes, the axis of the batch.

Each of them works in place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxscript import ir
from onnxscript.ir.passes.common import LiftConstantsToInitializersPass

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BATCH = "batch"
"""The name of the dynamic axis."""
_MOVING = {"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"}
"""Operators that a softmax may have behind it, and that a row of logits passes unchanged."""


def drop_initialised_inputs(graph: onnx.GraphProto) -> None:
    """Remove inputs that have a default value, which files of IR version 3 list for every weight."""
    weights = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.input if value.name not in weights]
    del graph.input[:]
    graph.input.extend(kept)


def suppressing_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the nodes that suppress overlapping boxes: ONNX's NonMaxSuppression, and TensorRT's plugins for it."""
    nodes = [*nodes_of(model.graph), *(node for function in model.functions for node in function.node)]
    return [node for node in nodes if node.op_type == "NonMaxSuppression" or "NMS" in node.op_type]


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield all nodes of a graph, with those of the graphs in their attributes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from nodes_of(inner)


def rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Give an input or an output of the graph another name, which no other value has."""
    for node in nodes_of(graph):
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.name == old:
            value.name = new


def values_of(graph: onnx.GraphProto) -> set[str]:
    """Return the names of all values in a graph."""
    found = {value.name for value in (*graph.input, *graph.output)} | {tensor.name for tensor in graph.initializer}
    for node in nodes_of(graph):
        found |= {*node.input, *node.output}
    return found


def cut_softmax(graph: onnx.GraphProto) -> bool:
    """Let the graph's one output be the logits in front of a softmax, if it ends in one.

    The output's name stays. A caller's softmax of the logits gives what the file gave.

    Returns:
        True if there was one.
    """
    makers = {name: node for node in graph.node for name in node.output}
    if len(graph.output) > 1:
        return False
    (output,) = graph.output
    behind, name = [], output.name
    while (node := makers.get(name)) is not None and node.op_type in _MOVING and not node.domain:
        behind.append(node)
        name = node.input[0]
    uses = [other for other in nodes_of(graph) if name in other.input]
    if node is None or node.op_type != "Softmax" or node.domain or len(uses) > bool(behind):
        return False
    if behind:
        behind[-1].input[0] = node.input[0]
        graph.node.remove(node)
    else:
        node.op_type = "Identity"
        del node.attribute[:]
        node.name = ""
    return True


def set_shapes(
    graph: onnx.GraphProto,
    input_shapes: Sequence[Sequence[int | str]],
    output_shapes: Sequence[Sequence[int | str]],
    batch: int | None = None,
) -> None:
    """Write the shapes of the inputs and of the outputs, and forget all others.

    Args:
        graph: the graph.
        input_shapes: the shape of a sample's part of each input, which follows the axis of the batch.
        output_shapes: the shape of an image's part of each output.
        batch: the size of the batch; None makes it dynamic.
    """
    for value, shape in zip((*graph.input, *graph.output), (*input_shapes, *output_shapes), strict=True):
        kind = value.type.tensor_type.elem_type
        value.CopyFrom(helper.make_tensor_value_info(value.name, kind, [batch or BATCH, *shape]))
    del graph.value_info[:]


def lift_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the tensors of `Constant` nodes as initialisers, and with a name for every node."""
    loaded = ir.from_proto(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(loaded)
    taken: set[str] = set()
    for number, node in enumerate(loaded.graph.all_nodes()):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{number}"
        while node.name in taken:
            node.name += "_"
        taken.add(node.name)
    return ir.to_proto(loaded)


def let_batch_vary(model: onnx.ModelProto, batch: int) -> int:
    """Replace the sizes of the batch that constants hold, for a graph that was made for one size.

    A constant shape of `Reshape` infers its first entry, or copies it where another one is inferred. Constant `sizes`
    of `Resize` take the first entry from its input. Whether this was all is shown by running the graph alone.

    Args:
        model: the model, of operator set 15 or later, with the constants as initialisers.
        batch: the size that it was made for.

    Returns:
        the number of nodes that were changed.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes, changed = [], 0
    for node in graph.node:
        place = {"Reshape": 1, "Resize": 3}.get(node.op_type)
        name = node.input[place] if place is not None and not node.domain and len(node.input) > place else ""
        shape = numpy_helper.to_array(constants[name]).tolist() if name in constants else []
        if node.input and node.input[0] in constants:
            shape = []  # a constant of its own, whatever the batch
        if node.op_type == "Reshape" and shape and shape[0] > 0:
            inferred = 0 if -1 in shape else -1
            if inferred == -1 or shape[0] == batch:
                node.input[1] = _constant(graph, f"{node.name}_shape", [inferred, *shape[1:]])
                changed += 1
        elif node.op_type == "Resize" and shape and shape[0] == batch:
            node.input[3] = f"{node.name}_sizes"
            rest = _constant(graph, f"{node.name}_rest", shape[1:])
            nodes += [
                helper.make_node(
                    "Shape", [node.input[0]], [f"{node.name}_batch"], f"{node.name}_batch", start=0, end=1
                ),
                helper.make_node("Concat", [f"{node.name}_batch", rest], [node.input[3]], f"{node.name}_sizes", axis=0),
            ]
            changed += 1
        nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    return changed


def _constant(graph: onnx.GraphProto, name: str, values: Sequence[int]) -> str:
    graph.initializer.append(numpy_helper.from_array(np.array(values, dtype=np.int64), name))
    return name


def count_no_padding(graph: onnx.GraphProto) -> int:
    """Let means without padding count their real values alone, and return the number of changed nodes.

    With `ceil_mode` the last window may reach beyond the input. Then ONNX and PyTorch divide by the values within it.
    TensorRT 10.6 and TensorRT-RTX 1.4 divide by the whole window if `count_include_pad` is set: a relative distance of
    0.60 for windows of 4 over 37 by 45 values (H200, 2026-11-29). Without padding the attribute means nothing else.
    """
    changed = 0
    for node in nodes_of(graph):
        given = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type != "AveragePool" or not ("ceil_mode" in given and given["ceil_mode"].i):
            continue
        padded = "pads" in given and any(given["pads"].ints)
        if not padded and "count_include_pad" in given and given["count_include_pad"].i:
            given["count_include_pad"].i = 0
            changed += 1
    return changed
