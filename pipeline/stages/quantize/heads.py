"""Last products of an int8 graph in FP16, with the pools in front of them, where all else around int8 is FP32."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from pipeline.adapters.onnx_casts import Narrowed
from pipeline.adapters.onnx_graph import count_cast
from pipeline.adapters.rewrites.common import add_constant, copy_of, drop_unread, free_name, makers_of, read_names
from pipeline.adapters.rewrites.products import is_product

if TYPE_CHECKING:
    from collections.abc import Collection

    import onnx

    from pipeline.records import TensorCast

_MOVES = {"Identity", "Flatten", "Reshape", "Squeeze"}
"""Operators that leave the values as they are."""
_SMALLEST_NORMAL = 2.0**-14
"""The smallest normal number of FP16."""


class _Head(NamedTuple):
    """A product with what stands in front of it, and has no other reader."""

    product: onnx.NodeProto
    first: onnx.NodeProto
    """The first of these nodes; the product itself if it is alone."""


def half_heads(model: onnx.ModelProto, names: Collection[str], pools: Collection[str]) -> Narrowed:
    """Return a graph whose last products are in FP16, between casts, and the losses of their constants.

    Pools, and what only moves values, are in FP16 with them, as far as nothing else reads these tensors. Behind a Q/DQ
    pair its second half gives FP16, whose scales hold the same numbers; else the tensor is cast.

    Args:
        model: the graph, with FP32 around the quantised layers; it is not changed.
        names: the names of the products. One that reads quantised weights stays.
        pools: the names of the pools, and of means over height and width.
    """
    model = copy_of(model)
    graph = model.graph
    casts: list[TensorCast] = []
    for product in [node for node in graph.node if node.name in names and is_product(node)]:
        constants = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
        if any(name and name not in constants for name in product.input[1:]):
            continue
        head = _head(graph, product, pools)
        _narrow_input(graph, head)
        unread = [*product.input[1:]]
        for place, name in enumerate(product.input):
            if place and name:
                wide = numpy_helper.to_array(constants[name])
                with np.errstate(over="ignore"):
                    half = wide.astype(np.float16)
                casts.append(count_cast(name, wide, half.astype(np.float32), _SMALLEST_NORMAL))
                product.input[place] = add_constant(graph, f"{name}_half", half)
        _widen_output(graph, product)
        drop_unread(graph, unread)
    if casts:
        del graph.value_info[:]  # notes on these tensors have the other type
    return Narrowed(model, tuple(casts))


def _head(graph: onnx.GraphProto, product: onnx.NodeProto, pools: Collection[str]) -> _Head:
    """Return a product with the pools and the moves in front of it."""
    makers, read, first = makers_of(graph), read_names(graph), product
    while (node := makers.get(first.input[0])) is not None and read.count(first.input[0]) == 1:
        if node.op_type not in _MOVES and node.name not in pools:
            break
        first = node
    return _Head(product, first)


def _narrow_input(graph: onnx.GraphProto, head: _Head) -> None:
    """Let the first node read FP16, in place."""
    name = head.first.input[0]
    half = free_name(graph, f"{name}_half")
    pair = makers_of(graph).get(name)
    if pair is not None and pair.op_type == "DequantizeLinear":
        tensors = {tensor.name: tensor for tensor in graph.initializer}
        steps = numpy_helper.to_array(tensors[pair.input[1]]).astype(np.float16)  # exact: `requantize` has rounded them
        scale = add_constant(graph, f"{pair.input[1]}_half", steps)
        made = helper.make_node("DequantizeLinear", [pair.input[0], scale, *pair.input[2:]], [half], f"{half}_pair")
        made.attribute.extend(pair.attribute)
    else:
        made = helper.make_node("Cast", [name], [half], f"{half}_cast", to=TensorProto.FLOAT16)
    graph.node.insert(list(graph.node).index(head.first), made)
    head.first.input[0] = half
    drop_unread(graph, [name])


def _widen_output(graph: onnx.GraphProto, product: onnx.NodeProto) -> None:
    """Cast the result of a product to FP32, in place; it keeps its name."""
    name = product.output[0]
    product.output[0] = free_name(graph, f"{name}_half")
    cast = helper.make_node("Cast", [product.output[0]], [name], f"{name}_cast", to=TensorProto.FLOAT)
    graph.node.insert(list(graph.node).index(product) + 1, cast)
