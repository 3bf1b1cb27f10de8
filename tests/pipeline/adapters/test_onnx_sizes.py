"""Arithmetic on sizes is told from arithmetic on images."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.adapters.onnx_sizes import size_nodes, size_operands


def made(nodes: list[onnx.NodeProto], **weights: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> onnx.GraphProto:
    """Return a graph from `image` to `out`."""
    return helper.make_graph(
        nodes,
        "sizes",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [onnx.ValueInfoProto(name="out")],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )


def names_of(graph: onnx.GraphProto) -> list[str]:
    """Return the first outputs of the nodes that compute sizes."""
    return [graph.node[number].output[0] for number in sorted(size_nodes(graph))]


FACTOR = np.array([1, 1, 1.1, 1.1], np.float32)


def test_what_becomes_a_size_is_exact_from_its_shape_on() -> None:
    """The factor, its product with the height, and the whole number that it becomes."""
    graph = made(
        [
            helper.make_node("Relu", ["image"], ["positive"]),
            helper.make_node("Shape", ["positive"], ["shape"]),
            helper.make_node("Cast", ["shape"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["wide", "factor"], ["grown"]),
            helper.make_node("Floor", ["grown"], ["down"]),
            helper.make_node("Cast", ["down"], ["sizes"], to=TensorProto.INT64),
            helper.make_node("Resize", ["positive", "", "", "sizes"], ["resized"]),
            helper.make_node("Mul", ["resized", "factor"], ["out"]),
        ],
        factor=FACTOR,
    )
    assert names_of(graph) == ["wide", "grown", "down", "sizes"]


def test_scales_are_sizes() -> None:
    """They are floating point, and never become whole numbers in the graph."""
    graph = made(
        [
            helper.make_node("Shape", ["image"], ["shape"]),
            helper.make_node("Cast", ["shape"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["target", "wide"], ["scales"]),
            helper.make_node("Resize", ["image", "", "scales"], ["out"]),
        ],
        target=FACTOR,
    )
    assert names_of(graph) == ["wide", "scales"]


def test_numbers_of_sizes_that_meet_the_image_are_none() -> None:
    """A mean's divisor and a grid of places are rounded as the image is; the length of the grid is exact."""
    graph = made(
        [
            helper.make_node("Shape", ["image"], ["shape"]),
            helper.make_node("Gather", ["shape", "two"], ["height"]),
            helper.make_node("Cast", ["height"], ["limit"], to=TensorProto.FLOAT),
            helper.make_node("Range", ["start", "limit", "step"], ["places"]),
            helper.make_node("Div", ["places", "limit"], ["shares"]),
            helper.make_node("Add", ["image", "shares"], ["out"]),
        ],
        two=np.array(2),
        start=np.array(0, np.float32),
        step=np.array(1, np.float32),
    )
    assert names_of(graph) == ["height", "limit"]


def test_a_size_that_is_computed_of_the_image_is_none() -> None:
    """Such as the number of the largest entries: what comes before it is the network itself, which is rounded."""
    graph = made(
        [
            helper.make_node("ReduceMax", ["image"], ["largest"], keepdims=0),
            helper.make_node("Cast", ["largest"], ["count"], to=TensorProto.INT64),
            helper.make_node("Unsqueeze", ["count", "zero"], ["counts"]),
            helper.make_node("TopK", ["image", "counts"], ["out", "numbers"]),
        ],
        zero=np.array([0]),
    )
    assert names_of(graph) == []


@pytest.mark.parametrize(
    ("node", "places"),
    [
        (helper.make_node("Reshape", ["image", "sizes"], ["out"]), (1,)),
        (helper.make_node("Conv", ["image", "weights"], ["out"]), ()),
        (helper.make_node("Reshape", ["image", "sizes"], ["out"], domain="own"), ()),
    ],
    ids=["reshape", "conv", "another domain"],
)
def test_operands_are_known_by_operator(node: onnx.NodeProto, places: tuple[int, ...]) -> None:
    """An operator of another domain may have the name of one of ONNX's."""
    assert size_operands(node) == places
