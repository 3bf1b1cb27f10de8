"""Casts of a graph to fp16 and bf16."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.adapters import onnx_graph
from pipeline.adapters.onnx_casts import cast
from tests.support.onnx_models import SIZE, make
from tests.support.sized_files import grown

KINDS = {TensorProto.FLOAT16: 17, TensorProto.BFLOAT16: 22}
KIND = pytest.mark.parametrize("kind", KINDS, ids=["fp16", "bf16"])


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Return the type of each value that inference knows."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    return {item.name: item.type.tensor_type.elem_type for item in (*graph.value_info, *graph.input, *graph.output)}


@KIND
def test_everything_between_the_ends_is_narrow(kind: int) -> None:
    """The ends keep float32, as those of exported networks of torch."""
    narrowed = cast(make(opset=KINDS[kind]), kind)
    onnx.checker.check_model(narrowed.model, full_check=True)
    types = types_of(narrowed.model)
    assert types["pixels/in:0"] == types["scores:0"] == TensorProto.FLOAT
    assert {types[name] for name in ("convolved", "normal", "pooled", "logits")} == {kind}
    assert {item.data_type for item in narrowed.model.graph.initializer} == {kind}


@KIND
def test_weights_are_rounded_to_the_nearest(kind: int) -> None:
    """Lost values are counted, and not kept from becoming zero or infinite."""
    model = make(opset=KINDS[kind], extra=[("scale", np.array([1e-9, 7e4, 1e-40, 1, 1, 1, 1, 1.001], np.float32))])
    narrowed = cast(model, kind)
    (scale,) = (item for item in narrowed.casts if item.name == "scale")
    expected = (2, 0, 1) if kind == TensorProto.FLOAT16 else (0, 1, 0)
    assert (scale.underflow, scale.subnormal, scale.overflow) == expected
    values = {item.name: numpy_helper.to_array(item) for item in narrowed.model.graph.initializer}
    assert float(values["scale"][-1]) == pytest.approx(1.001, rel=4e-3)
    assert cast(model, kind, ["scale"]).casts[0].name != "scale"
    assert "scale" not in {item.name for item in cast(model, kind, ["scale"]).casts}


def test_an_operator_without_the_type_stays_wide() -> None:
    """ONNX has no NonMaxSuppression in float16: casts stand around it."""
    nodes = [
        helper.make_node("Relu", ["boxes"], ["positive"]),
        helper.make_node("Slice", ["positive", "zero", "one", "two"], ["scores"]),
        helper.make_node("NonMaxSuppression", ["positive", "scores", "most"], ["chosen"], name="nms"),
        helper.make_node("Cast", ["chosen"], ["numbers"], to=TensorProto.FLOAT),
    ]
    arrays = {
        "zero": np.array([0], np.int64),
        "one": np.array([1], np.int64),
        "two": np.array([1], np.int64),
        "most": np.array([3], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "nms",
        [helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, 4, 4])],
        [helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    narrowed = cast(model, TensorProto.FLOAT16).model
    (node,) = (item for item in narrowed.graph.node if item.op_type == "NonMaxSuppression")
    types = types_of(narrowed)
    assert {types[name] for name in node.input[:2]} == {TensorProto.FLOAT}
    assert types["positive"] == TensorProto.FLOAT16


def test_fp16_runs_near_to_fp32() -> None:
    """The cast graph computes the network's own function."""
    images = np.random.default_rng(0).standard_normal((3, 3, SIZE, SIZE)).astype(np.float32)
    found = []
    for model in (make(opset=17), cast(make(opset=17), TensorProto.FLOAT16).model):
        onnx_graph.use_oldest_ir(model)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        found.append(np.asarray(session.run(None, {"pixels/in:0": images})[0]))
    wide, narrow = found
    assert 0 < np.linalg.norm(narrow - wide) / np.linalg.norm(wide) < 5e-3


@KIND
def test_a_shared_scale_stays_exact(kind: int) -> None:
    """Two resizes and a product share one tensor: the scales stay in float32, the factor becomes narrow."""
    nodes = [
        helper.make_node("Resize", ["image", "", "scales"], ["once"], mode="nearest"),
        helper.make_node("Resize", ["once", "", "scales"], ["twice"], mode="nearest"),
        helper.make_node("Mul", ["twice", "scales"], ["product"]),
    ]
    scales = numpy_helper.from_array(np.array([1, 1, 2.001, 2.001], np.float32), "scales")
    graph = helper.make_graph(
        nodes,
        "resizes",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 1])],
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, [1, 3, 32, 4])],
        [scales],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", KINDS[kind])], ir_version=10)
    narrowed = cast(model, kind).model
    onnx.checker.check_model(narrowed)
    types = {item.name: item.data_type for item in narrowed.graph.initializer}
    scaled = [node.input[2] for node in narrowed.graph.node if node.op_type == "Resize"]
    assert len(set(scaled)) == 2
    assert {types[name] for name in scaled} == {TensorProto.FLOAT}
    (product,) = (node for node in narrowed.graph.node if node.op_type == "Mul")
    assert types[product.input[1]] == kind


@KIND
@pytest.mark.parametrize("by_scales", [False, True], ids=["sizes", "scales"])
def test_arithmetic_on_sizes_stays_exact(kind: int, *, by_scales: bool) -> None:
    """No cast stands between its nodes; what meets the image is narrow."""
    narrowed = cast(grown(KINDS[kind], by_scales=by_scales), kind).model
    onnx.checker.check_model(narrowed, full_check=True)
    types = {item.name: item.data_type for item in narrowed.graph.initializer}
    makers = {name: node for node in narrowed.graph.node for name in node.output}
    (product,) = (
        node for node in narrowed.graph.node if node.op_type == "Mul" and "shape" in makers[node.input[0]].input
    )
    assert types[product.input[1]] == TensorProto.FLOAT
    (resize,) = (node for node in narrowed.graph.node if node.op_type == "Resize")
    last = makers[resize.input[2 if by_scales else 3]]
    assert (last.op_type, last.input[0]) == ("Div" if by_scales else "Cast", product.output[0])
    assert types["height"] == kind


@pytest.mark.parametrize("by_scales", [False, True], ids=["sizes", "scales"])
def test_sizes_in_float16_are_those_of_float32(*, by_scales: bool) -> None:
    """50 × 1.1 is 55 in float32, and 54.97 in float16."""
    for height, width in [(50, 100), (37, 64)]:
        images = np.ones((1, 3, height, width), np.float32)
        found = []
        for model in (grown(17, by_scales=by_scales), cast(grown(17, by_scales=by_scales), TensorProto.FLOAT16).model):
            model.ir_version = 8
            session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
            found.append(np.asarray(session.run(None, {"image": images})[0]))
        assert found[0].shape == found[1].shape
        np.testing.assert_allclose(found[1], found[0], rtol=2e-3)


def test_two_operators_in_float32_share_a_cast() -> None:
    """The converter gives the cast of a shared input one name twice, which is no valid graph."""
    arrays = {"start": np.array(0, np.float32), "step": np.array(1, np.float32)}
    nodes = [
        helper.make_node("ReduceMax", ["row"], ["most"], keepdims=0),
        helper.make_node("Range", ["start", "most", "step"], ["one"]),
        helper.make_node("Range", ["start", "most", "step"], ["other"]),
        helper.make_node("Add", ["one", "other"], ["sum"]),
    ]
    graph = helper.make_graph(
        nodes,
        "ranges",
        [helper.make_tensor_value_info("row", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )
    narrowed = cast(model, TensorProto.FLOAT16).model
    onnx.checker.check_model(narrowed, full_check=True)
    session = onnxruntime.InferenceSession(narrowed.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"row": np.array([1, 2, 3, 0], np.float32)})
    np.testing.assert_array_equal(found, [0, 2, 4])
