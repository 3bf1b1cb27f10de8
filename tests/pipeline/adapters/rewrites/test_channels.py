"""First convolutions with more channels: the same numbers, and all that must stay as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from pipeline.adapters import onnx_graph
from pipeline.adapters.rewrites.channels import padded
from tests.support.pooled import drawn, graph_of, node, operators, run

if TYPE_CHECKING:
    import onnx

SHAPE = ("batch", 8, 4, 3)
CONVOLUTION = node("Conv", "image weights", "features")


def test_the_first_convolution_reads_more_channels() -> None:
    """The image stays as it is; the zeros are added in the graph."""
    model = graph_of([CONVOLUTION], {"weights": drawn(8, 3, 3, 3)}, {"features": SHAPE})
    before = model.SerializeToString()
    found = padded(model, 4)
    assert found.nodes == ("node_features",)
    assert operators(found.model) == ["Pad", "Conv"]
    assert {tensor.name: [*tensor.dims] for tensor in found.model.graph.initializer} == {
        "image_pads": [8],
        "weights_padded": [8, 4, 3, 3],
    }
    assert (found.model.graph.input, found.model.graph.output) == (model.graph.input, model.graph.output)
    onnx_graph.check(found.model)
    assert model.SerializeToString() == before


def test_names_of_nodes_stay_unique() -> None:
    """A node of the network may have the pad's name already, as `conv1_pad` of other frameworks."""
    taken = helper.make_node("Relu", ["image"], ["positive"], "node_features_pad")
    model = graph_of(
        [taken, node("Conv", "positive weights", "features")], {"weights": drawn(8, 3, 3, 3)}, {"features": SHAPE}
    )
    assert [item.name for item in padded(model, 4).model.graph.node] == [
        "node_features_pad",
        "node_features_pad_",
        "node_features",
    ]


def test_branches_of_one_image_share_its_zeros() -> None:
    """Weights that both read are padded for each; what stands in front of them stays there."""
    nodes = [
        node("Mul", "image factor", "scaled"),
        node("Conv", "scaled weights", "one"),
        node("Conv", "scaled weights", "two", pads=[1, 1, 1, 1]),
        node("Conv", "one behind", "three"),
    ]
    constants = {"weights": drawn(3, 3, 3, 3), "behind": drawn(2, 3, 1, 1), "factor": drawn(3, 1, 1, seed=1)}
    outputs = {"two": ("batch", 3, 6, 5), "three": ("batch", 2, 4, 3)}
    model = graph_of(nodes, constants, outputs)
    found = padded(model, 8)
    assert found.nodes == ("node_one", "node_two")
    assert operators(found.model) == ["Mul", "Pad", "Conv", "Conv", "Conv"]
    image = drawn(2, 3, 6, 5, seed=2)
    for got, want in zip(run(found.model, image), run(model, image), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("nodes", "constants", "channels"),
    [
        ([CONVOLUTION], {"weights": drawn(8, 3, 3, 3)}, 3),
        ([node("Conv", "image weights", "features", group=3)], {"weights": drawn(9, 1, 3, 3)}, 4),
        (
            [node("Relu", "weights", "computed"), node("Conv", "image computed", "features")],
            {"weights": drawn(8, 3, 3, 3)},
            4,
        ),
        (
            [node("MatMul", "image turned", "mixed"), node("Conv", "mixed weights", "features")],
            {"weights": drawn(8, 3, 3, 3), "turned": drawn(5, 5)},
            4,
        ),
    ],
    ids=["as many", "groups", "computed weights", "behind a product"],
)
def test_other_convolutions_stay(nodes: list[onnx.NodeProto], constants: dict[str, Any], channels: int) -> None:
    """They read enough, or are not the first ones, or have no constants."""
    outputs = constants["weights"].shape[0]
    model = graph_of(nodes, constants, {"features": ("batch", outputs, 4, 3)})
    found = padded(model, channels)
    assert found.nodes == ()
    assert found.model == model


@given(
    given_channels=st.integers(1, 3),
    channels=st.sampled_from([4, 8, 16, 32]),
    half=st.booleans(),
    bias=st.booleans(),
    cast=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_image_gives_the_same(  # noqa: PLR0913 - the parts of a graph
    *, given_channels: int, channels: int, half: bool, bias: bool, cast: bool, seed: int
) -> None:
    """Of one to three channels, in either type, with a bias or without."""
    dtype = np.float16 if half else np.float32
    weights = {"weights": drawn(8, given_channels, 3, 3, seed=seed).astype(dtype)}
    biases = {"bias": drawn(8, seed=seed + 1).astype(dtype)} if bias else {}
    first = [node("Identity", "image", "read")] if cast else []
    inputs = f"{'read' if cast else 'image'} weights{' bias' if bias else ''}"
    model = graph_of(
        [*first, node("Conv", inputs, "features")],
        weights | biases,
        {"features": SHAPE},
        ("batch", given_channels, 6, 5),
    )
    found = padded(model, channels)
    assert len(found.nodes) == 1
    onnx_graph.check(found.model)
    image = drawn(2, given_channels, 6, 5, seed=seed + 2).astype(dtype)
    near = 1e-2 if half else 1e-5
    np.testing.assert_allclose(run(found.model, image)[0], run(model, image)[0], rtol=near, atol=near)
    assert padded(found.model, channels).nodes == ()
