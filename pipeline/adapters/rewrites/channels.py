"""First convolutions of an image → the same with more input channels, which are zeros in the weights and in the image.

Kernels of tensor cores read 4, 8, 16 or 32 channels at once. The added products are 0 · 0, so that in FP32 the result
is the same up to the order of the sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    weights_of,
)

if TYPE_CHECKING:
    import onnx


def first_convolutions(model: onnx.ModelProto, channels: int) -> tuple[onnx.NodeProto, ...]:
    """Return the convolutions of an input of the graph that read fewer channels, in the graph's order.

    No convolution and no product stands in front of them. Their weights are constants, and they have one group.

    Args:
        model: the graph.
        channels: the number of channels.
    """
    graph = model.graph
    constants, makers = weights_of(graph), makers_of(graph)
    inputs = {value.name for value in graph.input}

    def is_first(node: onnx.NodeProto) -> bool:
        tensor = constants.get(node.input[1])
        groups = next((item.i for item in node.attribute if item.name == "group"), 1)
        if tensor is None or groups != 1 or tensor.dims[1] >= channels:
            return False
        before = ancestors(graph, node.input[:1])
        return bool(before & inputs) and not any(makers[name].op_type in LAYERS for name in before if name in makers)

    return tuple(node for node in graph.node if node.op_type == "Conv" and not node.domain and is_first(node))


def padded(model: onnx.ModelProto, channels: int) -> Rewritten:
    """Return a graph whose first convolutions read so many channels; see `first_convolutions`.

    The inputs of the graph stay as they are: a `Pad` in front of each convolution adds the zeros.

    Args:
        model: the graph, of operator set 11 or later; it is not changed.
        channels: the number of channels.
    """
    model = copy_of(model)
    graph, wider = model.graph, dict[tuple[str, int], str]()
    found = first_convolutions(model, channels)
    for node in found:
        weights = numpy_helper.to_array(weights_of(graph)[node.input[1]])
        missing, rank = channels - weights.shape[1], weights.ndim
        image, old = node.input[0], node.input[1]
        if (image, missing) not in wider:
            wider[image, missing] = free_name(graph, f"{image}_padded")
            ends = np.zeros(2 * rank, np.int64)
            ends[rank + 1] = missing
            pads = add_constant(graph, f"{image}_pads", ends)
            name = free_node_name(graph, f"{node.name}_pad")
            pad = helper.make_node("Pad", [image, pads], [wider[image, missing]], name)
            graph.node.insert(list(graph.node).index(node), pad)
        zeros = np.zeros((weights.shape[0], missing, *weights.shape[2:]), weights.dtype)
        node.input[1] = add_constant(graph, f"{old}_padded", np.concatenate([weights, zeros], axis=1))
        node.input[0] = wider[image, missing]
        drop_unread(graph, [old])
    return Rewritten(model, tuple(node.name for node in found))
