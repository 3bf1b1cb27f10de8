"""Graphs in other floating-point types become graphs in float32 that compute the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession
from onnxruntime.transformers.float16 import convert_float_to_float16

from pipeline.adapters.onnx_files import tensors_of
from pipeline.adapters.onnx_rewrites import nodes_of
from pipeline.adapters.onnx_widening import types_of, widen
from tests.support.onnx_models import SIZE, in_bfloat16, in_double, make

if TYPE_CHECKING:
    import numpy.typing as npt


def run(model: onnx.ModelProto, dtype: type[np.floating]) -> npt.NDArray[np.float32]:
    """Run a model on images drawn at random."""
    images = np.random.default_rng(0).standard_normal((3, 3, SIZE, SIZE)).astype(dtype)
    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: npt.NDArray[np.float32] = session.run(None, {"pixels/in:0": images})[0]
    return found


def in_half(*, keep_io_types: bool = False) -> onnx.ModelProto:
    """Return a classifier in float16."""
    made: onnx.ModelProto = convert_float_to_float16(make(), keep_io_types=keep_io_types)
    return made


def test_a_graph_in_float32_has_no_other_types() -> None:
    """A lone double is a usual constant, and a cast to it a usual step of a shape's computation."""
    model = make(extra=[("two", np.array(2.0))])
    model.graph.node.append(helper.make_node("Cast", ["logits"], ["exact"], to=TensorProto.DOUBLE))
    assert types_of(model) == ()


@pytest.mark.parametrize("keeps", [True, False], ids=["float32 ends", "float16 ends"])
def test_float16_becomes_float32_with_the_same_values(*, keeps: bool) -> None:
    """Each weight is the stated one, and the outputs are apart by the rounding of float16 alone."""
    model = in_half(keep_io_types=keeps)
    own = run(model, np.float32 if keeps else np.float16)
    weights = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    assert types_of(model) == ("float16",)
    assert widen(model) == ()
    assert types_of(model) == ()
    for item in model.graph.initializer:
        assert item.data_type == TensorProto.FLOAT
        np.testing.assert_array_equal(numpy_helper.to_array(item), weights[item.name].astype(np.float32))
    np.testing.assert_allclose(run(model, np.float32), own, atol=5e-3)
    assert not np.array_equal(run(model, np.float32), own)


def test_bfloat16_becomes_float32_with_the_same_values() -> None:
    """Eight bits of the fraction, which float32 holds."""
    model = in_bfloat16(make())
    weights = {item.name: numpy_helper.to_array(item).astype(np.float32) for item in model.graph.initializer}
    assert types_of(model) == ("bfloat16",)
    assert widen(model) == ()
    for item in model.graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(item), weights[item.name])
    assert np.isfinite(run(model, np.float32)).all()


def test_float64_becomes_the_nearest_float32() -> None:
    """ONNX Runtime has no convolution in float64 on a processor to compare with."""
    model = in_double(make())
    weights = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    assert types_of(model) == ("float64",)
    assert widen(model) == ()
    for item in model.graph.initializer:
        np.testing.assert_allclose(numpy_helper.to_array(item), weights[item.name], rtol=6e-8)
    np.testing.assert_allclose(run(model, np.float32), run(make(), np.float32), atol=1e-5)


def test_a_number_beyond_float32_is_named() -> None:
    """It would become infinite. An infinity of the file's own is one in float32, too."""
    model = make(extra=[("large", np.array([1.0, 1e300])), ("mask", np.array([-np.inf, 0.0]))])
    assert widen(model) == ("large",)


def test_types_in_inner_graphs_and_functions_are_changed() -> None:
    """A branch's constant, its output and its cast; a function's constant."""
    half = numpy_helper.from_array(np.ones(4, np.float16), "half")
    then = helper.make_graph(
        [
            helper.make_node("Constant", [], ["ones"], value=half),
            helper.make_node("Cast", ["ones"], ["out"], to=TensorProto.FLOAT16),
        ],
        "then",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT16, [4])],
    )
    model = make()
    model.graph.node.append(helper.make_node("If", ["flag"], ["chosen"], then_branch=then, else_branch=then))
    node = helper.make_node("Constant", [], ["value"], value=half)
    opsets = [helper.make_opsetid("", 13)]
    model.functions.append(helper.make_function("own", "Ones", [], ["value"], [node], opsets))
    assert types_of(model) == ("float16",)
    assert widen(model) == ()
    assert types_of(model) == ()
    inner = model.graph.node[-1].attribute[0].g
    assert inner.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert {tensor.data_type for tensor in tensors_of(model.graph)} == {TensorProto.FLOAT}
    assert model.functions[0].node[0].attribute[0].t.data_type == TensorProto.FLOAT
    assert [item.i for node in nodes_of(inner) if node.op_type == "Cast" for item in node.attribute] == [1]
