"""Facts about ONNX graphs: inputs, outputs, operator sets, losses of casts, layers, and digests of the computation."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import numpy_helper, version_converter

from model_artifacts.errors import one_line
from model_artifacts.records import Precision, TensorSpec
from model_artifacts.tensorrt.inspector import count_by_type
from pipeline.records import TensorCast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    import numpy.typing as npt
    import onnx.onnx_ml_pb2 as pb
    from google.protobuf.message import Message

    from model_artifacts.records import LayerShare


_SMALL = 1024
"""Most values of an initialiser that checks and conversions read: axes, shapes, scales. Larger ones are weights."""


def check(model: onnx.ModelProto) -> None:
    """Run the ONNX checker in full, shape inference included.

    Raises:
        onnx.checker.ValidationError: the graph is not valid.
        onnx.shape_inference.InferenceError: the graph's shapes contradict each other.
    """
    onnx.checker.check_model(without_weights(model), full_check=True)


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of a model's default operator set."""
    return next(int(entry.version) for entry in model.opset_import if entry.domain in {"", "ai.onnx"})


def reason_of(exc: Exception) -> str:
    """Return the reason that ONNX's C++ code gives, without the place in its source: `No Previous Version of Mish`."""
    return one_line(exc).rpartition("failed: ")[2]


def to_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Return a copy of the model in another version of the default operator set; see `convert`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    convert(copy, opset)
    return copy


def convert(model: onnx.ModelProto, opset: int) -> None:
    """Bring a model to another version of the default operator set, in place.

    It gets the oldest IR version that holds the operator set, and loses the exporter's notes on nodes, such as stack
    traces. The weights are neither copied nor read. After an exception the model is as before.

    Raises:
        onnx.version_converter.ConvertError: an operator has no counterpart in the version.
        RuntimeError: an operator has no counterpart; another part of the converter noticed it.
        onnx.checker.ValidationError: the result is not valid, because the converter skips unknown operators.
        onnx.shape_inference.InferenceError: the result's shapes contradict each other, for the same reason.
    """
    plain = without_weights(model)
    for node in plain.graph.node:
        _drop_default_noop(node)
    converted = version_converter.convert_version(plain, opset)
    use_oldest_ir(converted)
    onnx.checker.check_model(converted, full_check=True)
    graph = model.graph
    for tensor in [item for item in graph.initializer if _is_small(item)]:
        graph.initializer.remove(tensor)
    graph.initializer.extend(converted.graph.initializer)
    for mine, new in ((graph.node, converted.graph.node), (graph.value_info, converted.graph.value_info)):
        del mine[:]
        mine.extend(new)
    del model.opset_import[:]
    model.opset_import.extend(converted.opset_import)
    model.ir_version = converted.ir_version


def use_oldest_ir(model: onnx.ModelProto) -> None:
    """Give a model the oldest IR version that holds its operator sets, which the most runtimes read."""
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)


def save(model: onnx.ModelProto, file: Path) -> None:
    """Write a model to a file, one weight after the other.

    Protobuf's own writer takes up to four times the memory of the whole message. The file is an ordinary message: the
    graph is one field, in which the weights stand last.
    """
    light, weights = _apart(model)
    graph = light.graph.SerializeToString()
    light.ClearField("graph")
    heads = [_head(onnx.GraphProto, "initializer", tensor.ByteSize()) for tensor in weights]
    size = len(graph) + sum(map(len, heads)) + sum(tensor.ByteSize() for tensor in weights)
    with file.open("wb") as stream:
        stream.write(light.SerializeToString() + _head(onnx.ModelProto, "graph", size) + graph)
        for head, tensor in zip(heads, weights, strict=True):
            stream.write(head)
            stream.write(tensor.SerializeToString())


def _head(message: type[Message], field: str, size: int) -> bytes:
    """Return the bytes in front of an embedded message: its field and its length, as variable-length numbers.

    protobuf.dev, "Encoding": seven bits a byte, the lowest first; the wire type of embedded messages is 2.
    """
    data = bytearray()
    for number in (message.DESCRIPTOR.fields_by_name[field].number << 3 | 2, size):
        rest = number
        while rest > 0x7F:  # noqa: PLR2004 - seven bits
            data.append(rest & 0x7F | 0x80)
            rest >>= 7
        data.append(rest)
    return bytes(data)


def _apart(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[onnx.TensorProto]]:
    """Return a copy of a model without its weights, and the weights themselves, which are not copied."""
    light = onnx.ModelProto()
    _copy_fields(model, light, "graph")
    _copy_fields(model.graph, light.graph, "initializer")
    light.graph.initializer.extend(filter(_is_small, model.graph.initializer))
    return light, [tensor for tensor in model.graph.initializer if not _is_small(tensor)]


def _copy_fields(source: Message, target: Message, without: str) -> None:
    for field, value in source.ListFields():
        if field.name == without:
            continue
        if hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        else:  # ONNX's models and graphs embed no other message than the graph
            setattr(target, field.name, value)


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose weights are inputs instead of initialisers, so that it is small.

    ONNX's checker, shape inference and converter read types, shapes and small constants only. They copy a whole model
    several times.
    """
    light, weights = _apart(model)
    light.graph.input.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in weights
    )
    return light


def _is_small(tensor: onnx.TensorProto) -> bool:
    return bool(math.prod(tensor.dims) <= _SMALL)  # protobuf counts bytes by writing the whole message


def _drop_default_noop(node: onnx.NodeProto) -> None:
    """Remove the default `noop_with_empty_axes=0`. The converter keeps it, although opset 17 has no such attribute."""
    kept = [item for item in node.attribute if (item.name, item.i) != ("noop_with_empty_axes", 0)]
    if len(kept) < len(node.attribute):
        del node.attribute[:]
        node.attribute.extend(kept)


def replace_tensor(tensor: onnx.TensorProto, values: npt.NDArray[np.generic]) -> None:
    """Replace an initialiser's type, shape and values; its name stays."""
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values).reshape(values.shape), tensor.name))


def count_cast(
    name: str, wide: npt.NDArray[np.floating], narrow: npt.NDArray[np.floating], smallest_normal: float
) -> TensorCast:
    """Count the values of one tensor that a cast loses or makes subnormal.

    Args:
        name: the tensor's name.
        wide: the values before the cast.
        narrow: the values after the cast, of the same shape, in a dtype that numpy compares with `wide`.
        smallest_normal: the smallest normal number of the narrow type; 2⁻¹⁴ for float16.
    """
    return TensorCast(
        name=name,
        elements=wide.size,
        underflow=int(((wide != 0) & (narrow == 0)).sum()),
        subnormal=int(((narrow != 0) & (np.abs(narrow) < smallest_normal)).sum()),
        overflow=int((np.isfinite(wide) & np.isinf(narrow)).sum()),
    )


def tensor_specs(values: list[pb.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    """Return the specs of a graph's inputs or outputs, with the first axes of NCHW as the layout."""
    specs = []
    for value in values:
        tensor = value.type.tensor_type
        shape = tuple(dim.dim_param or int(dim.dim_value) for dim in tensor.shape.dim)
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
        specs.append(TensorSpec(name=value.name, shape=shape, dtype=dtype, layout="NCHW"[: len(shape)]))
    return tuple(specs)


_MULTIPLIES = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_MULTIPLIED_IN = {
    onnx.TensorProto.FLOAT: Precision.FP32,
    onnx.TensorProto.FLOAT16: Precision.FP16,
    onnx.TensorProto.BFLOAT16: Precision.BF16,
    onnx.TensorProto.INT8: Precision.INT8,
    onnx.TensorProto.UINT8: Precision.INT8,
    onnx.TensorProto.FLOAT8E4M3FN: Precision.FP8,
}


def layer_shares(model: onnx.ModelProto) -> tuple[LayerShare, ...]:
    """Count the convolutions and matrix products by the type of their multiplication, the most frequent first.

    A product of two dequantised tensors counts as one in their stored type, because runtimes execute it so. With one
    operand in floating point, it counts as floating point.

    Raises:
        onnx.shape_inference.InferenceError: the graph's types contradict each other.
    """
    graph = onnx.shape_inference.infer_shapes(model).graph
    known = (*graph.input, *graph.value_info, *graph.output)  # a layer may read an output, too
    types = {value.name: value.type.tensor_type.elem_type for value in known}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    stored = {node.output[0]: types.get(node.input[0]) for node in graph.node if node.op_type == "DequantizeLinear"}
    layers: list[tuple[Precision | None, str]] = []
    for node in graph.node:
        if node.op_type in _MULTIPLIES:
            operands = node.input[:2]
            operand_types = stored if all(name in stored for name in operands) else types
            precisions = {_MULTIPLIED_IN.get(operand_types.get(name) or 0) for name in operands}
            layers.append((precisions.pop() if len(precisions) == 1 else None, node.name))
    return count_by_type(layers)


def forget_origin(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes on its own run: stack traces with paths of this machine, and counters."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


def canonical_digest(model: onnx.ModelProto) -> str:
    """Return the SHA-256 of a graph's computation.

    The digest covers nodes with their attributes, initialisers with their values, inputs, outputs, functions and
    operator sets. It leaves out names of nodes, the producer, documentation, metadata and the encoding of values.

    Args:
        model: the model, with its external data loaded.
    """
    return _digest(model, _graph(model.graph, _tensor))


def structure_digest(model: onnx.ModelProto) -> str:
    """Return the SHA-256 of a graph's computation without its weights.

    Graphs that differ in weights alone have the same digest. The names, types and shapes of initialisers count.
    """
    return _digest(model, _graph(model.graph, _shape))


def _digest(model: onnx.ModelProto, graph: tuple[object, ...]) -> str:
    opsets = sorted((entry.domain, entry.version) for entry in model.opset_import)
    functions = [
        (function.domain, function.name, tuple(function.input), tuple(function.output), _nodes(function.node))
        for function in model.functions
    ]
    return hashlib.sha256(repr((opsets, functions, graph)).encode()).hexdigest()


def _graph(graph: onnx.GraphProto, tensor: Callable[[pb.TensorProto], tuple[object, ...]]) -> tuple[object, ...]:
    values = [(value.name, value.type.SerializeToString(deterministic=True)) for value in (*graph.input, *graph.output)]
    tensors = sorted((item.name, tensor(item)) for item in graph.initializer)
    return len(graph.input), values, tensors, _nodes(graph.node)


def _nodes(nodes: Iterable[pb.NodeProto]) -> list[tuple[object, ...]]:
    return [
        (node.domain, node.op_type, tuple(node.input), tuple(node.output), sorted(map(_attribute, node.attribute)))
        for node in nodes
    ]


def _attribute(attribute: pb.AttributeProto) -> tuple[str, str]:
    if attribute.type == onnx.AttributeProto.TENSOR:
        return attribute.name, repr(_tensor(attribute.t))
    if attribute.type in {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}:
        return attribute.name, repr([_graph(graph, _tensor) for graph in (attribute.g, *attribute.graphs)])
    bare = onnx.AttributeProto()
    bare.CopyFrom(attribute)
    bare.ClearField("doc_string")
    return attribute.name, repr(bare.SerializeToString(deterministic=True))


def _tensor(tensor: pb.TensorProto) -> tuple[object, ...]:
    values = np.ascontiguousarray(numpy_helper.to_array(tensor)).reshape(-1).view(np.uint8)
    return *_shape(tensor), hashlib.sha256(values.data).hexdigest()


def _shape(tensor: pb.TensorProto) -> tuple[object, ...]:
    return tensor.data_type, tuple(tensor.dims)
