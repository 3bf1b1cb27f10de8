"""Global pool and last product → one convolution with a kernel as large as the image.

The mean over an image and the product behind it are one sum, over c, i and j: logit[o] = bias[o] + sum of
W[o, c] / (H · W) · x[c, i, j]. So the kernel is W[o, c] / (H · W) at each place. In FP32 the result is the same up to
the order of the sum and the rounding of the quotient. The weights are H · W times as many.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from onnx import helper

from pipeline.adapters.rewrites.common import Rewritten, ancestors, copy_of, drop_unread, makers_of, shapes_of
from pipeline.adapters.rewrites.products import MOVES, is_over_image, last_products, replace_product, times

if TYPE_CHECKING:
    import onnx

    from pipeline.adapters.rewrites.common import Shapes
    from pipeline.adapters.rewrites.products import Product


class _Image(NamedTuple):
    """The tensor that a global pool in front of a product takes the mean of."""

    name: str
    height: int
    width: int
    besides: frozenset[str]
    """The other tensors that the pool and the flattening read, constant or computed: axes and shapes."""


def with_pools(model: onnx.ModelProto) -> Rewritten:
    """Return a graph whose last products behind the mean over an image are one convolution with it.

    A node keeps its name. The output of the graph keeps name and shape. A constant that is added to the result becomes
    the bias. Other readers of the mean keep it. `W / (H · W)` is rounded to the type of the graph, once.

    Args:
        model: the graph; it is not changed. Products whose image has no known height and width stay.
    """
    model = copy_of(model)
    graph, shapes = model.graph, shapes_of(model)
    found = [(item, image) for item in last_products(model) if (image := _image(graph, shapes, item)) is not None]
    for product, image in found:
        outputs, channels = product.weights.shape
        shares = times(product.weights, 1 / (image.height * image.width))[:, :, None, None]
        kernel = np.ascontiguousarray(np.broadcast_to(shares, (outputs, channels, image.height, image.width)))
        replace_product(graph, product, image.name, kernel)
        drop_unread(graph, image.besides)
    return Rewritten(model, tuple(product.node.name for product, _ in found))


def _image(graph: onnx.GraphProto, shapes: Shapes, product: Product) -> _Image | None:
    """Return the image that a product reads the mean of; None for another pool, or an image of unknown size."""
    makers, name, besides = makers_of(graph), product.node.input[0], list[str]()
    while (node := makers.get(name)) is not None and node.op_type in MOVES:
        name = node.input[0]
        besides += node.input[1:]
    shape = shapes.get(node.input[0], ()) if node is not None else ()
    if node is None or node.domain or len(shape) != len("NCHW"):
        return None
    _, channels, height, width = shape
    if channels != product.weights.shape[1] or not height or not width or not _is_mean(graph, node, (height, width)):
        return None
    return _Image(node.input[0], height, width, frozenset(ancestors(graph, [*besides, *node.input[1:]])))


def _is_mean(graph: onnx.GraphProto, node: onnx.NodeProto, size: tuple[int, int]) -> bool:
    """Return True if a node takes the mean over a whole image of this height and width."""
    if node.op_type == "AveragePool":  # a window as large as the image has one place, and no padding but its own
        given = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        return tuple(given["kernel_shape"]) == size and not any(given.get("pads", ()))
    return node.op_type == "GlobalAveragePool" or (node.op_type == "ReduceMean" and is_over_image(graph, node))
