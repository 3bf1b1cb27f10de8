"""ONNX graphs in float16, bfloat16 or float64 → the same graph in float32, with the values that the file states."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from pipeline.adapters import onnx_graph
from pipeline.adapters.onnx_files import tensors_of
from pipeline.adapters.onnx_rewrites import nodes_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    import onnx.onnx_ml_pb2 as pb

WIDENED = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16", TensorProto.DOUBLE: "float64"}
"""ONNX's types that become float32, with their usual names."""
_NARROW = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
_TYPE_ATTRIBUTES = {"to", "dtype"}
"""Attributes that hold a type: of `Cast`, and of operators that make a tensor."""


def types_of(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the floating-point types beside float32 that a model computes in, by their usual names.

    These are the types of weights of more than one value, of inputs and outputs, and of casts. Scalars and casts in
    float64 do not count: exporters compute shapes in it.
    """
    found = {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    found |= {item.data_type for item in _tensors(model) if len(item.dims) and np.prod(item.dims) > 1}
    casts = {item.i for node in _nodes(model) if node.op_type == "Cast" for item in node.attribute if item.name == "to"}
    found |= casts & _NARROW
    return tuple(name for kind, name in WIDENED.items() if kind in found)


def widen(model: onnx.ModelProto) -> tuple[str, ...]:
    """Let a model compute in float32 where it computes in another floating-point type, in place.

    float32 holds every value of float16 and bfloat16. Of float64 it holds the nearest.

    Returns:
        the names of tensors with numbers that float32 cannot hold; the model is of no use then.
    """
    lost = [tensor.name for tensor in _tensors(model) if not _widen_tensor(tensor)]
    for node in _nodes(model):
        for attribute in node.attribute:
            if attribute.name in _TYPE_ATTRIBUTES and attribute.i in WIDENED:
                attribute.i = TensorProto.FLOAT
    for graph in _graphs(model):
        for value in (*graph.input, *graph.output):
            _widen_type(value.type)
        del graph.value_info[:]
    for function in model.functions:
        del function.value_info[:]
    return tuple(lost)


def _widen_tensor(tensor: onnx.TensorProto) -> bool:
    """Replace a tensor's values by those in float32; return False if one becomes infinite."""
    if tensor.data_type not in WIDENED:
        return True
    own = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        wide: npt.NDArray[np.float32] = own.astype(np.float32)
    finite = bool(np.isfinite(wide[np.isfinite(own.astype(np.float64))]).all())
    onnx_graph.replace_tensor(tensor, wide)
    return finite


def _widen_type(kind: pb.TypeProto) -> None:
    """Write float32 into the type of a value: a tensor, a sequence or an optional one."""
    if kind.HasField("tensor_type") and kind.tensor_type.elem_type in WIDENED:
        kind.tensor_type.elem_type = TensorProto.FLOAT
    elif kind.HasField("sequence_type"):
        _widen_type(kind.sequence_type.elem_type)
    elif kind.HasField("optional_type"):
        _widen_type(kind.optional_type.elem_type)


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    yield from nodes_of(model.graph)
    for function in model.functions:
        yield from nodes_of(function)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from tensors_of(model.graph)
    for node in (node for function in model.functions for node in nodes_of(function)):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    yield model.graph
    for node in _nodes(model):
        for attribute in node.attribute:
            yield from (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)
