"""Last products as convolutions of the whole image: the same numbers, and all that must stay as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import numpy_helper

from pipeline.adapters import onnx_graph
from pipeline.adapters.onnx_rewrites import lift_constants
from pipeline.adapters.rewrites.pools import with_pools
from pipeline.adapters.rewrites.products import as_convolutions, is_product
from tests.support.pooled import drawn, graph_of, node, operators, run

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx

    from pipeline.adapters.rewrites.common import Rewritten

POOL = [node("GlobalAveragePool", "image", "pooled"), node("Flatten", "pooled", "flat", axis=1)]
"""(batch, 3, 6, 5) → `flat`, (batch, 3)."""
GEMM = node("Gemm", "flat weights bias", "logits", transB=1)
CONSTANTS = {"weights": drawn(4, 3), "bias": drawn(4, seed=1)}
FLAT = {"logits": ("batch", 4)}


def test_a_pool_and_a_product_are_one_convolution() -> None:
    """Its kernel is as large as the image, and each place has an equal share; names and ends stay."""
    model = graph_of([*POOL, GEMM], CONSTANTS, FLAT)
    before = model.SerializeToString()
    found = with_pools(model)
    assert found.nodes == ("node_logits",)
    assert operators(found.model) == ["Conv", "Flatten"]
    assert (found.model.graph.input, found.model.graph.output) == (model.graph.input, model.graph.output)
    onnx_graph.check(found.model)
    assert model.SerializeToString() == before
    convolution, tensors = found.model.graph.node[0], {item.name: item for item in found.model.graph.initializer}
    assert (convolution.name, [*convolution.input]) == ("node_logits", ["image", *tensors])
    assert is_product(convolution)
    kernel = numpy_helper.to_array(tensors[convolution.input[1]])
    assert kernel.shape == (4, 3, 6, 5)
    np.testing.assert_allclose(kernel, np.broadcast_to(CONSTANTS["weights"][:, :, None, None] / 30, kernel.shape))


_SIZE = [
    node("Shape", "pooled", "sizes"),
    node("Gather", "sizes zero", "rows"),
    node("Concat", "rows rest", "shape", axis=0),
    node("Reshape", "pooled shape", "flat"),
]
_FORMS: dict[str, list[onnx.NodeProto]] = {
    "flatten": POOL,
    "squeeze": [POOL[0], node("Squeeze", "pooled axes", "flat")],
    "two moves": [POOL[0], node("Identity", "pooled", "same"), node("Reshape", "same shape", "flat")],
    "mean": [node("ReduceMean", "image", "pooled", axes=[2, 3], keepdims=1), POOL[1]],
    "mean without axes": [node("ReduceMean", "image", "flat", axes=[-1, -2], keepdims=0)],
    "window": [node("AveragePool", "image", "pooled", kernel_shape=[6, 5], pads=[0, 0, 0, 0], strides=[6, 5]), POOL[1]],
    "computed shape": [POOL[0], *_SIZE],
}
_SHAPES: dict[str, Any] = {
    "axes": np.array([2, 3]),
    "shape": np.array([-1, 3]),
    "zero": np.array([0]),
    "rest": np.array([3]),
}


@pytest.mark.parametrize("form", _FORMS)
def test_each_form_of_the_mean_is_known(form: str) -> None:
    """Nothing of it is left, neither its axes nor the arithmetic of its shape."""
    nodes = [*_FORMS[form], GEMM]
    ends = {name for item in nodes for name in item.input} - {name for item in nodes for name in item.output}
    model = graph_of(nodes, CONSTANTS | {name: value for name, value in _SHAPES.items() if name in ends}, FLAT)
    found = with_pools(model)
    assert operators(found.model) == ["Conv", "Flatten"]
    assert len(found.model.graph.initializer) == 2
    onnx_graph.check(found.model)
    image = drawn(5, 3, 6, 5, seed=2)
    np.testing.assert_allclose(run(found.model, image)[0], run(model, image)[0], rtol=1e-5, atol=1e-6)


def test_axes_that_are_an_input_are_read() -> None:
    """As operator set 18 has them."""
    nodes = [node("ReduceMean", "image", "flat", axes=[2, 3], keepdims=0), GEMM]
    model = lift_constants(onnx_graph.to_opset(graph_of(nodes, CONSTANTS, FLAT), 18))
    assert [len(item.input) for item in model.graph.node] == [2, 3]
    found = with_pools(model)
    assert operators(found.model) == ["Conv", "Flatten"]
    assert len(found.model.graph.initializer) == 2
    image = drawn(2, 3, 6, 5, seed=2)
    np.testing.assert_allclose(run(found.model, image)[0], run(model, image)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        ([node("GlobalMaxPool", "image", "pooled"), POOL[1]], (6, 5)),
        ([node("AveragePool", "image", "pooled", kernel_shape=[4, 5], strides=[6, 5]), POOL[1]], (6, 5)),
        (
            [node("AveragePool", "image", "pooled", kernel_shape=[6, 5], pads=[1, 0, 0, 0], strides=[2, 1]), POOL[1]],
            (6, 5),
        ),
        ([node("ReduceMean", "image", "pooled", axes=[2], keepdims=1), node("Squeeze", "pooled axes", "flat")], (6, 1)),
        ([POOL[0], node("Relu", "pooled", "positive"), node("Flatten", "positive", "flat")], (6, 5)),
        ([node("Flatten", "image", "flat")], (1, 1)),
        (POOL, ("height", 5)),
        (POOL, (6, "width")),
    ],
    ids=["largest", "window", "padding", "one axis", "activation", "no pool", "height varies", "width varies"],
)
def test_a_product_of_anything_else_stays(nodes: list[onnx.NodeProto], shape: tuple[int | str, int | str]) -> None:
    """It is not of the mean over an image of a known size."""
    constants = CONSTANTS | ({"axes": _SHAPES["axes"]} if "axes" in nodes[-1].input else {})
    model = graph_of([*nodes, GEMM], constants, FLAT, ("batch", 3, *shape))
    found = with_pools(model)
    assert found.nodes == ()
    assert found.model == model


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("rewrite", [with_pools, as_convolutions], ids=["whole image", "pixel"])
def test_rows_of_a_part_of_the_channels_stay(rewrite: Callable[[onnx.ModelProto], Rewritten], keepdims: int) -> None:
    """The reshaping makes two rows of each image, so that the weights have fewer channels than the mean."""
    nodes = [node("ReduceMean", "image", "mean", axes=[2, 3], keepdims=keepdims), node("Reshape", "mean shape", "flat")]
    constants = CONSTANTS | {"shape": _SHAPES["shape"]}
    model = graph_of([*nodes, GEMM], constants, {"logits": ("rows", 4)}, ("batch", 6, 6, 5))
    assert rewrite(model).nodes == ()


def test_several_heads_and_other_readers_keep_the_mean() -> None:
    """Each head has the pool in it; what else reads the mean, or is an output, has it still."""
    nodes = [*POOL, GEMM, node("MatMul", "flat square", "product"), node("Add", "shift product", "two")]
    constants = CONSTANTS | {"square": drawn(3, 3, seed=3), "shift": drawn(3, seed=4)}
    model = graph_of(nodes, constants, {**FLAT, "two": ("batch", 3), "flat": ("batch", 3)})
    found = with_pools(model)
    assert found.nodes == ("node_logits", "node_product")
    assert operators(found.model) == ["GlobalAveragePool", "Flatten", "Conv", "Flatten", "Conv", "Flatten"]
    image = drawn(2, 3, 6, 5, seed=5)
    for got, want in zip(run(found.model, image), run(model, image), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
