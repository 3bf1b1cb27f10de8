"""ONNX graph of normalised images and logits → the same with another input and output. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model_artifacts.errors import UnsupportedError, listed
from model_artifacts.records import ImageInput, OutputForm, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx.onnx_ml_pb2 as pb

    from model_artifacts.records import Io, Preprocessing

VERSION = 1
"""Raise it when the same input and output give another graph."""
_PREFIX = "ends/"
"""The start of the names of everything that is added."""
PROBABILITIES, INDICES = "probabilities", "indices"
"""The names of the outputs."""
_INPUTS = {ImageInput.UINT8: "pixels", ImageInput.FLOAT16: "images_float16"}
"""The names of the inputs."""
_ROW_AXES = 2


def with_ends(model: onnx.ModelProto, io: Io, spec: Preprocessing | None) -> onnx.ModelProto:
    """Return a copy of a graph that takes another input and gives another output.

    Pixels become the network's own input by the very operations of `to_input`, in FP32. Nothing is folded into the
    first convolution: it pads with zeros, which are normalised values and no pixels. The softmax is in FP32.

    Args:
        model: float32 (batch, channels, height, width) → floating-point logits (batch, classes).
        io: the input and the output.
        spec: the preprocessing, with the means and standard deviations; None for a model of tensors.

    Raises:
        UnsupportedError: the graph has several inputs or outputs, or no logits, or fewer classes than the output.
    """
    own = {PROBABILITIES, INDICES, *_INPUTS.values()}
    names = {value for node in model.graph.node for value in (*node.input, *node.output)}
    names |= {item.name for item in model.graph.input}
    if taken := sorted(name for name in names if name.startswith(_PREFIX) or name in own):
        raise UnsupportedError(f"`io`: the graph has a tensor of this name already: {taken[0]}")
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    if io.input is not ImageInput.FLOAT32:
        if spec is None:
            raise UnsupportedError("`io`: the model takes tensors, and these are no images")
        _take(changed.graph, io.input, spec)
    if io.output is not OutputForm.LOGITS:
        _answer(changed.graph, io.top)
    return changed


def inputs_of(io: Io, spec: Preprocessing | None, plain: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """Return the input of a graph with this input, in words.

    Args:
        io: the input and the output.
        spec: the preprocessing.
        plain: the input of the graph without it.
    """
    if io.input is ImageInput.FLOAT32 or spec is None:
        return plain
    batch, (channels, height, width) = plain[0].shape[0], spec.input_shape
    if io.input is ImageInput.FLOAT16:
        shape: tuple[int | str, ...] = (batch, channels, height, width)
        meaning = "the normalised image in half precision"
        return (TensorSpec(name=_INPUTS[io.input], shape=shape, dtype="float16", layout="NCHW", meaning=meaning),)
    order = "grey" if channels == 1 else {"rgb": "red, green, blue", "bgr": "blue, green, red"}[spec.order.value]
    if channels == len("RGBA"):
        order += ", opacity"
    return (
        TensorSpec(
            name=_INPUTS[io.input],
            shape=(batch, height, width, channels),
            dtype="uint8",
            layout="NHWC",
            meaning=f"pixels from 0 to 255 as decoded, resized and cropped, not normalised; channels: {order}",
        ),
    )


def outputs_of(io: Io, plain: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """Return the outputs of a graph with this output, in words.

    Args:
        io: the input and the output.
        plain: the outputs of the graph without it.
    """
    if io.output is OutputForm.LOGITS:
        return plain
    batch, classes = plain[0].shape
    if io.top is None:
        meaning = "the softmax of the logits over all classes, in the order of the class names"
        return (TensorSpec(name=PROBABILITIES, shape=(batch, classes), dtype="float32", layout="NC", meaning=meaning),)
    shape: tuple[int | str, ...] = (batch, io.top)
    return (
        TensorSpec(
            name=PROBABILITIES,
            shape=shape,
            dtype="float32",
            layout="NC",
            meaning=f"the {io.top} largest values of the softmax over all classes, the largest first",
        ),
        TensorSpec(
            name=INDICES,
            shape=shape,
            dtype="int32",
            layout="NC",
            meaning="the numbers of these classes: their places among the class names, from 0 on",
        ),
    )


def _take(graph: pb.GraphProto, kind: ImageInput, spec: Preprocessing) -> None:
    """Put the way from another input before a graph, whose old input becomes an inner tensor."""
    weights = {item.name for item in graph.initializer}
    inputs = [item for item in graph.input if item.name not in weights]
    if len(inputs) != 1:
        raise UnsupportedError(f"`io` is for graphs of one input, got {listed([item.name for item in inputs])}")
    own = inputs[0]
    sizes = own.type.tensor_type.shape.dim
    sample = tuple(int(size.dim_value) for size in sizes[1:])
    if own.type.tensor_type.elem_type != TensorProto.FLOAT or sample != spec.input_shape:
        raise UnsupportedError(f"`io` is for graphs of float32 images {spec.input_shape}, got {sample}")
    batch = sizes[0].dim_param or sizes[0].dim_value
    channels, height, width = sample
    name = _INPUTS[kind]
    if kind is ImageInput.FLOAT16:
        given = helper.make_tensor_value_info(name, TensorProto.FLOAT16, (batch, *sample))
        nodes = [_node("Cast", [name], own.name, to=TensorProto.FLOAT)]
    else:
        given = helper.make_tensor_value_info(name, TensorProto.UINT8, (batch, height, width, channels))
        constants = {
            "largest": np.float32(255),
            "mean": np.asarray(spec.mean, dtype=np.float32).reshape(1, -1, 1, 1),
            "std": np.asarray(spec.std, dtype=np.float32).reshape(1, -1, 1, 1),
        }
        graph.initializer.extend(_constant(label, value) for label, value in constants.items())
        wide, planes, scaled, centred = (_PREFIX + label for label in ("wide", "planes", "scaled", "centred"))
        nodes = [
            _node("Cast", [name], wide, to=TensorProto.FLOAT),
            _node("Transpose", [wide], planes, perm=[0, 3, 1, 2]),
            _node("Div", [planes, f"{_PREFIX}largest"], scaled),
            _node("Sub", [scaled, f"{_PREFIX}mean"], centred),
            _node("Div", [centred, f"{_PREFIX}std"], own.name),
        ]
    kept = [*nodes, *graph.node]
    inner = [given if item.name == own.name else item for item in graph.input]
    _replace(graph.input, inner)
    _replace(graph.node, kept)


def _answer(graph: pb.GraphProto, top: int | None) -> None:
    """Put the softmax behind a graph's logits, and the choice of the largest."""
    if len(graph.output) != 1:
        raise UnsupportedError(f"`io` is for graphs of one output, got {listed([item.name for item in graph.output])}")
    logits = graph.output[0]
    sizes = logits.type.tensor_type.shape.dim
    if len(sizes) != _ROW_AXES or not sizes[1].dim_value:
        raise UnsupportedError(f"`io` is for a row of logits for each image, got {len(sizes)} axes")
    classes = int(sizes[1].dim_value)
    batch = sizes[0].dim_param or sizes[0].dim_value
    if top is not None and top > classes:
        raise UnsupportedError(f"the network has {classes} classes, and the output is the top {top}")
    wide = _PREFIX + "logits"
    graph.node.append(_node("Cast", [logits.name], wide, to=TensorProto.FLOAT))
    if top is None:
        graph.node.append(_node("Softmax", [wide], PROBABILITIES, axis=1))
        outputs = [helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, (batch, classes))]
    else:
        every, largest, places = (_PREFIX + label for label in ("probabilities", "largest_logits", "places"))
        graph.initializer.append(_constant("k", np.array([top], dtype=np.int64)))
        # The logits decide the order: probabilities round to equal ones, and to zero.
        choice = helper.make_node("TopK", [wide, f"{_PREFIX}k"], [largest, places], name=f"{_PREFIX}TopK", axis=1)
        graph.node.extend(
            [
                _node("Softmax", [wide], every, axis=1),
                choice,
                _node("GatherElements", [every, places], PROBABILITIES, axis=1),
                _node("Cast", [places], INDICES, to=TensorProto.INT32),
            ]
        )
        outputs = [
            helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, (batch, top)),
            helper.make_tensor_value_info(INDICES, TensorProto.INT32, (batch, top)),
        ]
    _replace(graph.output, outputs)


def _node(operator: str, inputs: Sequence[str], output: str, **attributes: int | list[int]) -> pb.NodeProto:
    node: pb.NodeProto = helper.make_node(
        operator, inputs, [output], name=f"{_PREFIX}{operator}/{output}", **attributes
    )
    return node


def _constant(label: str, value: object) -> pb.TensorProto:
    tensor: pb.TensorProto = numpy_helper.from_array(np.asarray(value), _PREFIX + label)
    return tensor


def _replace(field: object, items: Sequence[object]) -> None:
    """Put other messages into a repeated field."""
    copies = [type(item).FromString(item.SerializeToString()) for item in items]  # type: ignore[attr-defined]  # protobuf's
    del field[:]  # type: ignore[attr-defined]  # a repeated field is no list
    field.extend(copies)  # type: ignore[attr-defined]  # as above
