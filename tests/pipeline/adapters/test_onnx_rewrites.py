"""Rewrites of a user's graph leave what it computes as it is."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch.nn import functional

from pipeline.adapters import onnx_rewrites
from tests.support.onnx_models import CLASSES, SIZE, make

IMAGES = np.random.default_rng(0).standard_normal((3, 3, SIZE, SIZE)).astype(np.float32)


def run(
    model: onnx.ModelProto, images: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return the output of a model's one input."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images})
    return np.asarray(found)


def test_ends_are_renamed_everywhere() -> None:
    """The graph computes the same under other names."""
    model = make()
    before = run(model, IMAGES)
    onnx_rewrites.rename(model.graph, "pixels/in:0", "pixels")
    onnx_rewrites.rename(model.graph, "scores:0", "scores")
    assert (model.graph.input[0].name, model.graph.output[0].name) == ("pixels", "scores")
    np.testing.assert_array_equal(run(model, IMAGES), before)


@pytest.mark.parametrize("behind", [False, True], ids=["last", "before-identity"])
def test_a_softmax_at_the_end_is_cut(*, behind: bool) -> None:
    """The logits' softmax is what the file gave."""
    tail = [helper.make_node("Softmax", ["logits"], ["shares"]), helper.make_node("Identity", ["shares"], ["scores:0"])]
    model = make(tail=tail if behind else (), softmax=True)
    shares = run(model, IMAGES)
    assert onnx_rewrites.cut_softmax(model.graph)
    logits = run(model, IMAGES)
    np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), shares, rtol=1e-5)
    assert not onnx_rewrites.cut_softmax(model.graph)


def test_weights_among_the_inputs_are_none() -> None:
    """Files of IR version 3 list every weight as an input."""
    model = make()
    model.graph.input.extend(
        helper.make_tensor_value_info(item.name, item.data_type, item.dims) for item in model.graph.initializer
    )
    onnx_rewrites.drop_initialised_inputs(model.graph)
    assert [item.name for item in model.graph.input] == ["pixels/in:0"]


def test_constants_become_initialisers_and_nodes_get_names() -> None:
    """Paddle writes each weight as a node; names are unique then."""
    model = make()
    kernel = model.graph.initializer[0]
    model.graph.initializer.remove(kernel)
    nodes = [helper.make_node("Constant", [], ["kernel"], value=kernel), *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    before = run(model, IMAGES)
    model.graph.node[-1].name = "first"
    lifted = onnx_rewrites.lift_constants(model)
    names = [node.name for node in lifted.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    assert "Constant" not in {node.op_type for node in lifted.graph.node}
    assert "kernel" in {item.name for item in lifted.graph.initializer}
    np.testing.assert_array_equal(run(lifted, IMAGES), before)


@pytest.mark.parametrize("flat", [[1, 8], [1, -1]], ids=["written", "inferred"])
def test_a_fixed_batch_varies(flat: list[int]) -> None:
    """A reshape takes the size of the batch from its input, and every image keeps its output."""
    model = make(batch=1, flat=flat, opset=17)
    expected = np.concatenate([run(model, IMAGES[at : at + 1]) for at in range(3)])
    lifted = onnx_rewrites.lift_constants(model)
    assert onnx_rewrites.let_batch_vary(lifted, 1) == 1
    onnx_rewrites.set_shapes(lifted.graph, [(3, SIZE, SIZE)], [(CLASSES,)])
    assert lifted.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    np.testing.assert_allclose(run(lifted, IMAGES), expected, rtol=1e-5, atol=1e-6)


def test_sizes_of_a_resize_take_the_batch() -> None:
    """`sizes` hold the batch, too."""
    nodes = [helper.make_node("Resize", ["image", "", "", "sizes"], ["large"], name="up", mode="nearest")]
    sizes = numpy_helper.from_array(np.array([1, 3, 32, 32], np.int64), "sizes")
    ends = [helper.make_tensor_value_info(name, 1, [1, 3, side, side]) for name, side in (("image", 16), ("large", 32))]
    graph = helper.make_graph(nodes, "up", ends[:1], ends[1:], [sizes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    expected = np.concatenate([run(model, IMAGES[at : at + 1]) for at in range(3)])
    assert onnx_rewrites.let_batch_vary(model, 1) == 1
    onnx_rewrites.set_shapes(model.graph, [(3, 16, 16)], [(3, 32, 32)])
    np.testing.assert_array_equal(run(model, IMAGES), expected)


def test_shapes_of_constants_stay() -> None:
    """A reshape of a weight has nothing to do with the batch."""
    nodes = [
        helper.make_node("Reshape", ["vector", "shape"], ["row"], name="row"),
        helper.make_node("Add", ["image", "row"], ["sum"]),
    ]
    arrays = {"vector": np.ones(16, np.float32), "shape": np.array([1, 16], np.int64)}
    ends = [helper.make_tensor_value_info(name, 1, [1, 3, 16, 16]) for name in ("image", "sum")]
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "sum", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert onnx_rewrites.let_batch_vary(model, 1) == 0


def pooled(kernel: int, pads: int, *, ceil: bool, included: bool) -> onnx.ModelProto:
    """Return a mean over windows."""
    node = helper.make_node(
        "AveragePool",
        ["image"],
        ["means"],
        kernel_shape=[kernel] * 2,
        strides=[2, 2],
        pads=[pads] * 4,
        ceil_mode=int(ceil),
        count_include_pad=int(included),
    )
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("image", "means")]
    ends[0] = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])
    graph = helper.make_graph([node], "means", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("kernel", [2, 3, 4, 5])
def test_means_without_padding_count_none(kernel: int) -> None:
    """TensorRT divides by the whole window otherwise, and ONNX Runtime and PyTorch by the values within the input."""
    model = pooled(kernel, 0, ceil=True, included=True)
    before = run(model, IMAGES)
    assert onnx_rewrites.count_no_padding(model.graph) == 1
    assert model.graph.node[0] == pooled(kernel, 0, ceil=True, included=False).graph.node[0]
    np.testing.assert_allclose(run(model, IMAGES), before, rtol=1e-4, atol=1e-6)  # the order of a sum is free
    wanted = functional.avg_pool2d(torch.from_numpy(IMAGES), kernel, 2, ceil_mode=True)
    np.testing.assert_allclose(before, wanted.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("pads", "ceil", "included"),
    [(1, True, True), (0, False, True), (0, True, False)],
    ids=["padded", "rounded-down", "not-counted"],
)
def test_other_means_stay_as_they_are(pads: int, *, ceil: bool, included: bool) -> None:
    """With padding, the attribute says whether its zeros count."""
    model = pooled(3, pads, ceil=ceil, included=included)
    assert onnx_rewrites.count_no_padding(model.graph) == 0
    assert model == pooled(3, pads, ceil=ceil, included=included)
