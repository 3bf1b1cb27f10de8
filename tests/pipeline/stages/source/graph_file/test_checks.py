"""What keeps an ONNX file from being a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from model_artifacts.errors import SourceError
from model_artifacts.records import Task
from pipeline.stages.source.graph_file.checks import ends_of, require_reference
from tests.support.onnx_models import SIZE, make

if TYPE_CHECKING:
    from typing import Any

    import numpy.typing as npt

SHAPE = (3, SIZE, SIZE)


def test_the_ends_are_read() -> None:
    """Names and the size of the batch."""
    assert ends_of(make().graph, SHAPE, Task.CLASSIFICATION, "own.onnx") == (("pixels/in:0",), ("scores:0",), None)
    assert ends_of(make(batch=4).graph, SHAPE, Task.CLASSIFICATION, "own.onnx").batch == 4


def test_height_and_width_may_be_dynamic() -> None:
    """They are those of the preprocessing then."""
    assert ends_of(make(side="side").graph, (3, 20, 20), Task.CLASSIFICATION, "own.onnx").batch is None


def test_two_inputs_and_two_outputs_are_refused() -> None:
    """No other one would be given, or proven; the message lists them with types and shapes."""
    model = make()
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.INT64, ["batch", 4]))
    with pytest.raises(SourceError, match=r"(?s)2 inputs.*'mask', int64 \(batch, 4\).*extract_model"):
        ends_of(model.graph, SHAPE, Task.CLASSIFICATION, "own.onnx")
    model = make()
    model.graph.output.append(helper.make_tensor_value_info("positive", TensorProto.FLOAT, ["batch", 8, 16, 16]))
    assert ends_of(model.graph, SHAPE, Task.TENSORS, "own.onnx").outputs == ("scores:0", "positive")
    with pytest.raises(SourceError, match=r"(?s)2 outputs.*`tensors` and `detection` take several.*'positive', float"):
        ends_of(model.graph, SHAPE, Task.CLASSIFICATION, "own.onnx")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 32, 32), r"crop: \[16, 16\]"),
        ((1, SIZE, SIZE), "one mean for each of its channels"),
    ],
    ids=["size", "channels"],
)
def test_other_images_are_refused(shape: tuple[int, int, int], message: str) -> None:
    """The line to write is in the message."""
    with pytest.raises(SourceError, match=message):
        ends_of(make().graph, shape, Task.CLASSIFICATION, "own.onnx")


def test_channels_last_and_other_types_are_refused() -> None:
    """Pixels as tf2onnx lays them, and in bytes."""
    model = make()
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, SIZE, SIZE, 3]))
    with pytest.raises(SourceError, match="inputs-as-nchw"):
        ends_of(model.graph, SHAPE, Task.CLASSIFICATION, "own.onnx")
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("image", TensorProto.UINT8, [1, *SHAPE]))
    with pytest.raises(SourceError, match=r"(?s)takes no float32.*uint8 \(1, 3, 16, 16\)"):
        ends_of(model.graph, SHAPE, Task.CLASSIFICATION, "own.onnx")
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("row", TensorProto.FLOAT, [1, 8]))
    with pytest.raises(SourceError, match="export a network of images"):
        ends_of(model.graph, SHAPE, Task.CLASSIFICATION, "own.onnx")


def tail(*nodes: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return nodes from the logits to the output."""
    return [*nodes, helper.make_node("Identity", [nodes[-1].output[0]], ["scores:0"])]


def with_bytes() -> onnx.ModelProto:
    """Return a classifier with a further tensor in fp8."""
    model = make()
    tensor = numpy_helper.from_array(np.ones((2, 2), onnx.helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT8E4M3FN)))
    tensor.name = "scaled"
    model.graph.initializer.append(tensor)
    return model


PAIR = [
    helper.make_node("QuantizeLinear", ["logits", "step", "zero"], ["small"], name="q"),
    helper.make_node("DequantizeLinear", ["small", "step", "zero"], ["again"], name="dq"),
]
STEPS: list[tuple[str, npt.NDArray[Any]]] = [("step", np.array(0.1, np.float32)), ("zero", np.array(0, np.int8))]
FAULTS = {
    "quantised": (make(tail=tail(*PAIR), extra=STEPS), "quantised already"),
    "bytes": (with_bytes(), r"(?s)weights are quantised.*'scaled' of float8e4m3fn"),
    "nan": (make(extra=[("kernel", np.full((8, 3, 3, 3), np.nan, np.float32))]), r"(?s)hold NaN.*'kernel'"),
    "random": (
        make(tail=tail(helper.make_node("RandomNormalLike", ["logits"], ["noise"], name="noise"))),
        r"(?s)draws random numbers.*RandomNormalLike 'noise'",
    ),
}


@pytest.mark.parametrize(("model", "message"), FAULTS.values(), ids=FAULTS)
def test_a_file_that_is_no_reference_is_refused(model: onnx.ModelProto, message: str) -> None:
    """The node or the tensor is named."""
    with pytest.raises(SourceError, match=message):
        require_reference(model, "own.onnx")


def test_masks_and_scalars_of_other_types_are_none_of_these() -> None:
    """Minus infinity is a usual mask, and a lone double a usual constant."""
    model = make(extra=[("mask", np.full(4, -np.inf, np.float32)), ("two", np.array(2.0))])
    require_reference(model, "own.onnx")


def test_nan_in_a_constant_node_is_found() -> None:
    """Weights need not be initialisers."""
    model = make()
    value = numpy_helper.from_array(np.array([np.nan], np.float32), "weight")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["weight"], value=value))
    with pytest.raises(SourceError, match="hold NaN"):
        require_reference(model, "own.onnx")
