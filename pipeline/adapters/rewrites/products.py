"""Last product behind a global pool → a convolution of 1 by 1 in front of the flattening.

TensorRT has more int8 and fp16 kernels for convolutions than for products. The convolution multiplies and sums the same
numbers as the product: in FP32 the result is the same up to the order of the sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from onnx import helper, numpy_helper

from pipeline.adapters.rewrites.common import (
    LAYERS,
    Rewritten,
    add_constant,
    ancestors,
    copy_of,
    drop_unread,
    free_name,
    free_node_name,
    makers_of,
    number_of,
    read_names,
    shapes_of,
    weights_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    import numpy.typing as npt
    import onnx

    from pipeline.adapters.rewrites.common import Shapes

PRODUCT = "a matrix product, written as a convolution"
"""The note on a convolution that was a product, which tells it from those that the network has itself."""
MOVES = {"Identity", "Flatten", "Reshape", "Squeeze"}
"""Operators that leave the order of the values as it is."""
_PIXEL = (1, 1)
"""Height and width of what a global pool gives."""


class Product(NamedTuple):
    """A product that can be a convolution."""

    node: onnx.NodeProto
    pooled: str
    """The tensor of shape (batch, channels, 1, 1), or (batch, channels) of a mean that drops the axes."""
    weights: npt.NDArray[Any]
    """(outputs, channels), in the type of the graph."""
    bias: npt.NDArray[Any] | None
    """(outputs,), or None."""
    result: str
    """The tensor with the bias."""


def is_product(node: onnx.NodeProto) -> bool:
    """Return True for a matrix product, also for one that was rewritten as a convolution."""
    return node.op_type in {"Gemm", "MatMul"} or (node.op_type == "Conv" and node.doc_string == PRODUCT)


def last_products(model: onnx.ModelProto) -> tuple[Product, ...]:
    """Return the products that can be convolutions, in the graph's order.

    Each multiplies the flattened output of a global pool, or another tensor with one value a channel, by constants. No
    convolution and no product reads its result.
    """
    graph = model.graph
    behind = ancestors(graph, [name for node in graph.node if node.op_type in LAYERS for name in node.input])
    candidates = [node for node in graph.node if _is_plain(node) and node.output[0] not in behind]
    if not candidates:
        return ()
    shapes = shapes_of(model)
    found = (_product(graph, shapes, node) for node in candidates)
    return tuple(item for item in found if item is not None)


def as_convolutions(model: onnx.ModelProto) -> Rewritten:
    """Return a graph whose last products behind a global pool are convolutions; see `last_products`.

    A node keeps its name. The output of the graph keeps name and shape. A constant that is added to the result becomes
    the bias. Other readers of the flattened tensor keep it. `alpha` and `beta` other than 1 are multiplied into the
    constants, which are rounded once more by that.

    Args:
        model: the graph; it is not changed.
    """
    model = copy_of(model)
    graph = model.graph
    for name in dict.fromkeys(item.pooled for item in last_products(model)):
        _keep_axes(graph, name)
    found = last_products(model)
    for product in found:
        weights = np.ascontiguousarray(product.weights)[:, :, None, None]
        replace_product(graph, product, product.pooled, weights)
    return Rewritten(model, tuple(product.node.name for product in found))


def _is_plain(node: onnx.NodeProto) -> bool:
    """Return True for a product that reads its first tensor as it is."""
    if node.domain:
        return False
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and not number_of(node, "transA", 0))


def _product(graph: onnx.GraphProto, shapes: Shapes, node: onnx.NodeProto) -> Product | None:
    """Return what a product becomes; None if it must stay."""
    constants = weights_of(graph)
    tensor = constants.get(node.input[1])
    if tensor is None or len(tensor.dims) != 2:  # noqa: PLR2004 - a matrix
        return None
    weights = numpy_helper.to_array(tensor)
    if node.op_type == "MatMul" or not number_of(node, "transB", 0):
        weights = weights.T
    outputs, channels = weights.shape
    pooled = _pooled(graph, shapes, node.input[0], channels)
    if pooled is None:
        return None
    if node.op_type == "MatMul":
        bias, result = _added(graph, node, constants, outputs)
        return Product(node, pooled, weights, bias, result)
    bias, third = None, node.input[2] if len(node.input) > 2 else ""  # noqa: PLR2004 - the optional sum
    if third:
        bias = _as_bias(constants.get(third), outputs)
        if bias is None:
            return None
        bias = times(bias, number_of(node, "beta", 1))
    return Product(node, pooled, times(weights, number_of(node, "alpha", 1)), bias, node.output[0])


def _pooled(graph: onnx.GraphProto, shapes: Shapes, name: str, channels: int) -> str | None:
    """Return the tensor with one value a channel that another one is the flattened form of; None if there is none."""
    if shapes.get(name, ())[1:] != (channels,):
        return None
    makers = makers_of(graph)
    node = makers.get(name)
    while node is not None and node.op_type in MOVES:
        name = node.input[0]
        if shapes.get(name, ())[1:] == (channels, *_PIXEL):
            return name
        node = makers.get(name)
    is_mean = node is not None and _drops_axes(graph, shapes, node)
    return name if is_mean and shapes.get(name, ())[1:] == (channels,) else None


def _drops_axes(graph: onnx.GraphProto, shapes: Shapes, node: onnx.NodeProto) -> bool:
    """Return True for a mean over height and width that leaves out these axes."""
    is_mean = node.op_type == "ReduceMean" and not number_of(node, "keepdims", 1)
    return is_mean and len(shapes.get(node.input[0], ())) == len("NCHW") and is_over_image(graph, node)


def is_over_image(graph: onnx.GraphProto, mean: onnx.NodeProto) -> bool:
    """Return True if a `ReduceMean` of an NCHW tensor is over height and width, and over nothing else."""
    given = [item.ints for item in mean.attribute if item.name == "axes"]
    given += [numpy_helper.to_array(item) for item in graph.initializer if item.name in mean.input[1:]]
    return any({int(axis) % len("NCHW") for axis in axes} == {2, 3} for axes in given)


def _added(
    graph: onnx.GraphProto, node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], outputs: int
) -> tuple[npt.NDArray[Any] | None, str]:
    """Return the constant that the only reader of a product adds to it, and the sum; none, and the product itself."""
    name = node.output[0]
    readers = [item for item in graph.node if name in item.input]
    if read_names(graph).count(name) == 1 and readers and readers[0].op_type == "Add":
        (other,) = (item for item in readers[0].input if item != name)
        bias = _as_bias(constants.get(other), outputs)
        if bias is not None:
            return bias, readers[0].output[0]
    return None, name


def _as_bias(tensor: onnx.TensorProto | None, outputs: int) -> npt.NDArray[Any] | None:
    """Return a constant that is added to each row, of shape (outputs,); None for another one."""
    if tensor is None or len(tensor.dims) > 2:  # noqa: PLR2004 - more axes than the product
        return None
    values = numpy_helper.to_array(tensor)
    if values.size == 1:
        return np.full(outputs, values.reshape(()), values.dtype)
    return values.reshape(outputs) if values.shape[-1:] == (outputs,) and values.size == outputs else None


def times(values: npt.NDArray[Any], factor: float) -> npt.NDArray[Any]:
    """Return values times a factor, in their own type."""
    return values if factor == 1 else (values.astype(np.float64) * factor).astype(values.dtype)


def _keep_axes(graph: onnx.GraphProto, name: str) -> None:
    """Let a mean that leaves out its axes keep them, and flatten its result, in place."""
    node = makers_of(graph).get(name)  # none makes an input of the graph
    if node is None or node.op_type != "ReduceMean" or number_of(node, "keepdims", 1):
        return
    kept = [item for item in node.attribute if item.name != "keepdims"]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("keepdims", 1)])
    node.output[0] = free_name(graph, f"{name}_pixel")
    flat = helper.make_node("Flatten", [node.output[0]], [name], free_node_name(graph, f"{node.name}_flatten"), axis=1)
    graph.node.insert(list(graph.node).index(node) + 1, flat)


def replace_product(graph: onnx.GraphProto, product: Product, image: str, kernel: npt.NDArray[Any]) -> None:
    """Replace a product by a convolution of an image with a kernel as large, in place.

    Args:
        graph: the graph.
        product: one of its products. The new layer has its name.
        image: the tensor that the convolution reads. The first inputs of nodes lead from the product to it.
        kernel: the weights, (outputs, channels, height, width).
    """
    node = product.node
    names = [image, add_constant(graph, f"{node.input[1]}_convolution", kernel)]
    if product.bias is not None:
        names.append(add_constant(graph, f"{product.result}_bias", product.bias))
    pixel = free_name(graph, f"{product.result}_pixel")
    convolution = helper.make_node("Conv", names, [pixel], node.name, PRODUCT, kernel_shape=kernel.shape[2:])
    flat_name = free_node_name(graph, f"{node.name}_flatten")
    flat = helper.make_node("Flatten", [pixel], [product.result], flat_name, axis=1)
    makers, unread, name = makers_of(graph), [node.output[0]], node.input[0]
    while name != image:
        unread += makers[name].output
        name = makers[name].input[0]
    place = list(graph.node).index(node)
    for gone in [item for item in graph.node if {*item.output} & {product.result, node.output[0]}]:
        unread += gone.input
        graph.node.remove(gone)
    graph.node.insert(place, flat)
    graph.node.insert(place, convolution)
    drop_unread(graph, [item for item in unread if item != image])
