"""Last products as convolutions: the same numbers, and all that must stay as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from pipeline.adapters import onnx_graph
from pipeline.adapters.rewrites.pools import with_pools
from pipeline.adapters.rewrites.products import as_convolutions, is_product
from tests.support.pooled import drawn, graph_of, node, operators, run

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx

    from pipeline.adapters.rewrites.common import Rewritten

POOL = [node("GlobalAveragePool", "image", "pooled"), node("Flatten", "pooled", "flat", axis=1)]
"""(batch, 3, height, width) → `flat`, (batch, 3)."""
FLAT = {"logits": ("batch", 4)}


def gemm(name: str = "logits", **attributes: object) -> onnx.NodeProto:
    """Return a product of `flat` with transposed weights and a bias."""
    return node("Gemm", "flat weights bias", name, **{"transB": 1, **attributes})


CONSTANTS = {"weights": drawn(4, 3), "bias": drawn(4, seed=1)}


def test_a_product_behind_a_global_pool_is_a_convolution() -> None:
    """It keeps its name, the graph keeps its ends, and the old weights are gone."""
    model = graph_of([*POOL, gemm()], CONSTANTS, FLAT)
    before = model.SerializeToString()
    found = as_convolutions(model)
    assert found.nodes == ("node_logits",)
    assert operators(found.model) == ["GlobalAveragePool", "Conv", "Flatten"]
    assert [tensor.name for tensor in found.model.graph.initializer] == ["weights_convolution", "logits_bias"]
    assert (found.model.graph.input, found.model.graph.output) == (model.graph.input, model.graph.output)
    onnx_graph.check(found.model)
    assert model.SerializeToString() == before
    (convolution,) = (item for item in found.model.graph.node if item.op_type == "Conv")
    assert convolution.name == "node_logits"
    assert is_product(convolution)


_FORMS: dict[str, list[onnx.NodeProto]] = {
    "flatten": POOL,
    "reshape": [POOL[0], node("Reshape", "pooled rows", "flat")],
    "squeeze": [POOL[0], node("Squeeze", "pooled axes", "flat")],
    "two squeezes": [POOL[0], node("Squeeze", "pooled last", "line"), node("Squeeze", "line last", "flat")],
    "identity": [*POOL[:1], node("Flatten", "pooled", "same"), node("Identity", "same", "flat")],
    "mean": [node("ReduceMean", "image", "pooled", axes=[2, 3], keepdims=1), POOL[1]],
    "mean without axes": [node("ReduceMean", "image", "flat", axes=[-1, -2], keepdims=0)],
    "largest": [node("GlobalMaxPool", "image", "pooled"), POOL[1]],
    "window": [node("AveragePool", "image", "pooled", kernel_shape=[6, 5]), POOL[1]],
}
_SHAPES: dict[str, Any] = {"rows": np.array([-1, 3]), "axes": np.array([2, 3]), "last": np.array([-1])}


@pytest.mark.parametrize("form", _FORMS)
def test_each_form_of_pooling_and_flattening_is_known(form: str) -> None:
    """The result is that of the product up to the order of the sum."""
    nodes = [*_FORMS[form], gemm()]
    read = {name for item in nodes for name in item.input}
    model = graph_of(nodes, CONSTANTS | {name: value for name, value in _SHAPES.items() if name in read}, FLAT)
    found = as_convolutions(model)
    assert operators(found.model)[1:] == ["Conv", "Flatten"]
    onnx_graph.check(found.model)
    image = drawn(5, 3, 6, 5, seed=2)
    np.testing.assert_allclose(run(found.model, image)[0], run(model, image)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("between", "channels"),
    [
        ([POOL[0], node("Flatten", "pooled", "plain"), node("Relu", "plain", "flat")], 3),
        ([node("Transpose", "image", "turned", perm=[0, 2, 3, 1]), node("Flatten", "turned", "flat")], 90),
        ([node("ReduceMean", "image", "flat", axes=[1, 2], keepdims=0)], 5),
        ([node("Flatten", "image", "flat")], 90),
    ],
    ids=["activation behind the flattening", "transposed", "other axes", "no pool"],
)
def test_a_broken_pattern_is_left_alone(between: list[onnx.NodeProto], channels: int) -> None:
    """Its input has more than one value a channel, or is no output of a pool as it is."""
    model = graph_of([*between, gemm()], CONSTANTS | {"weights": drawn(4, channels)}, FLAT)
    found = as_convolutions(model)
    assert found.nodes == ()
    assert found.model == model


def test_names_of_nodes_stay_unique() -> None:
    """Layers are left out, and proposals are read, by them; a node of the network may have the name already."""
    taken = helper.make_node("Relu", ["image"], ["pooled_image"], "node_logits_flatten")
    mean = node("ReduceMean", "pooled_image", "flat", axes=[2, 3], keepdims=0)
    other = helper.make_node("Relu", ["flat"], ["more"], "node_flat_flatten")
    outputs = {**FLAT, "more": ("batch", 3)}
    found = as_convolutions(graph_of([taken, mean, other, gemm()], CONSTANTS, outputs))
    names = [item.name for item in found.model.graph.node]
    assert found.nodes == ("node_logits",)
    assert len(names) == len({*names}) == 6


def test_an_input_with_one_value_a_channel_needs_no_pool() -> None:
    """No node makes it, so that there are no axes to keep."""
    nodes = [node("Flatten", "image", "flat", axis=1), gemm()]
    model = graph_of(nodes, CONSTANTS, FLAT, image=("batch", 3, 1, 1))
    found = as_convolutions(model)
    assert operators(found.model) == ["Conv", "Flatten"]
    image = drawn(2, 3, 1, 1, seed=2)
    np.testing.assert_allclose(run(found.model, image)[0], run(model, image)[0], rtol=1e-5, atol=1e-5)


def test_an_activation_in_front_of_the_flattening_is_none() -> None:
    """There is one value a channel all the same, as behind a norm of the pooled values."""
    nodes = [POOL[0], node("Relu", "pooled", "positive"), node("Flatten", "positive", "flat"), gemm()]
    found = as_convolutions(graph_of(nodes, CONSTANTS, FLAT))
    assert operators(found.model) == ["GlobalAveragePool", "Relu", "Conv", "Flatten"]


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ([gemm("hidden"), node("Gemm", "hidden last", "logits")], {"last": drawn(4, 4)}),
        ([node("MatMul", "flat weights", "hidden"), node("MatMul", "hidden last", "logits")], {"last": drawn(4, 4)}),
        ([node("Relu", "weights", "computed"), node("Gemm", "flat computed bias", "logits", transB=1)], {}),
        ([node("Relu", "bias", "computed"), node("Gemm", "flat weights computed", "logits", transB=1)], {}),
    ],
    ids=["not the last", "not the last matrix", "computed weights", "computed bias"],
)
def test_other_products_stay(nodes: list[onnx.NodeProto], constants: dict[str, Any]) -> None:
    """They are not the last ones, or hold what a convolution has not as constants."""
    weights = drawn(3, 4) if nodes[0].op_type == "MatMul" else drawn(4, 3)
    model = graph_of([*POOL, *nodes], CONSTANTS | {"weights": weights} | constants, FLAT)
    found = as_convolutions(model)
    assert found.nodes == ()
    assert found.model == model


def test_several_heads_and_other_readers_share_the_pool() -> None:
    """Each head is a convolution; what else reads the flattened tensor, or is an output, keeps it."""
    nodes = [*POOL, gemm("one"), node("MatMul", "flat square", "product"), node("Add", "shift product", "two")]
    outputs = {"one": ("batch", 4), "two": ("batch", 3), "flat": ("batch", 3), "product": ("batch", 3)}
    constants = CONSTANTS | {"square": drawn(3, 3, seed=3), "shift": drawn(3, seed=4)}
    model = graph_of(nodes, constants, outputs)
    found = as_convolutions(model)
    assert found.nodes == ("node_one", "node_product")
    assert operators(found.model).count("Conv") == 2
    assert operators(found.model).count("Add") == 1, "the product without its sum is an output, too"
    image = drawn(2, 3, 6, 5, seed=5)
    for got, want in zip(run(found.model, image), run(model, image), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@given(
    rewrite=st.sampled_from([as_convolutions, with_pools]),
    matrix=st.booleans(),
    transposed=st.booleans(),
    bias=st.sampled_from([None, (4,), (1, 4), (1,), ()]),
    alpha=st.sampled_from([1.0, 0.5, 1.7]),
    beta=st.sampled_from([1.0, 0.0, -2.5]),
    half=st.booleans(),
    form=st.sampled_from(["flatten", "mean without axes", "reshape"]),
    batch=st.sampled_from(["batch", 1, 3]),
    reader=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_such_graph_computes_the_same(  # noqa: PLR0913 - the parts of a graph
    *,
    rewrite: Callable[[onnx.ModelProto], Rewritten],
    matrix: bool,
    transposed: bool,
    bias: tuple[int, ...] | None,
    alpha: float,
    beta: float,
    half: bool,
    form: str,
    batch: int | str,
    reader: bool,
    seed: int,
) -> None:
    """With either rewrite, Gemm or MatMul, each form of a bias, factors, either type, any batch and other readers."""
    dtype = np.float16 if half else np.float32
    constants = {"weights": drawn(*((3, 4) if matrix or not transposed else (4, 3)), seed=seed).astype(dtype)}
    if bias is not None:
        constants["bias"] = drawn(*bias, seed=seed + 1).astype(dtype) if bias else np.array(0.5, dtype)
    shapes = {"rows": _SHAPES["rows"]} if form == "reshape" else {}
    if matrix:
        ends = [node("MatMul", "flat weights", "logits" if bias is None else "product")]
        ends += [] if bias is None else [node("Add", "product bias", "logits")]
    else:
        inputs = "flat weights" if bias is None else "flat weights bias"
        ends = [node("Gemm", inputs, "logits", transB=int(transposed), alpha=alpha, beta=beta)]
    outputs = {"logits": (batch, 4)} | ({"flat": (batch, 3)} if reader else {})
    model = graph_of([*_FORMS[form], *ends], constants | shapes, outputs, (batch, 3, 6, 5))
    found = rewrite(model)
    assert len(found.nodes) == 1
    assert "Gemm" not in operators(found.model)
    assert not {"MatMul", "Add"} & {*operators(found.model)}
    onnx_graph.check(found.model)
    image = drawn(3 if batch == "batch" else int(batch), 3, 6, 5, seed=seed + 2).astype(dtype)
    near = 2e-2 if half else 1e-5
    for got, want in zip(run(found.model, image), run(model, image), strict=True):
        np.testing.assert_allclose(got, want, rtol=near, atol=near)
    assert rewrite(found.model).nodes == ()
