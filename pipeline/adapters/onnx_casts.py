"""Casts of an ONNX graph to float16 or bfloat16, with an input and an output in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnxruntime.transformers.float16 import ALWAYS_FLOAT_INPUTS, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from pipeline.adapters import onnx_graph
from pipeline.adapters.onnx_rewrites import nodes_of
from pipeline.adapters.onnx_sizes import size_nodes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    import numpy.typing as npt
    import onnx.onnx_ml_pb2 as pb

    from pipeline.records import TensorCast

_TEXT = {TensorProto.FLOAT16: "tensor(float16)", TensorProto.BFLOAT16: "tensor(bfloat16)"}
_TYPE_ATTRIBUTES = {"to", "dtype"}


class Narrowed(NamedTuple):
    """A graph in a narrow type."""

    model: onnx.ModelProto
    casts: tuple[TensorCast, ...]
    """Lost values of its weights."""


def cast(model: onnx.ModelProto, kind: int, uncounted: Collection[str] = ()) -> Narrowed:
    """Return a graph in a narrow type.

    Weights are rounded to the nearest number, as by torch's cast: ONNX Runtime's converter, which places the casts,
    would keep values from becoming zero or infinite. An operator that ONNX does not have in the type stays in float32,
    between casts. So does arithmetic on sizes, without casts in between: 50 × 1.1 is 54.97 in float16.

    Args:
        model: the graph in float32, with its weights as initialisers.
        kind: FLOAT16 or BFLOAT16 of ONNX's types; for the latter, the operator set is 22 or later.
        uncounted: weights whose losses are not counted.
    """
    model = _with_own_wide_inputs(model)
    wide = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    blocked = sorted(_without(model, kind))
    sizes = [model.graph.node[number].name for number in sorted(size_nodes(model.graph))]
    converted = OnnxModel(
        convert_float_to_float16(model, keep_io_types=True, op_block_list=blocked, node_block_list=sizes)
    )
    _drop_second_casts(converted.model.graph)
    _join_sizes(converted.model.graph, {*sizes})
    if blocked or sizes:
        del converted.model.graph.value_info[:]  # the converter's notes on these operators have the other type
    converted.topological_sort(is_deterministic=True)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    smallest = 2.0**-14 if kind == TensorProto.FLOAT16 else 2.0**-126
    casts = []
    for tensor in converted.model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16 and wide[tensor.name].dtype == np.float32:
            with np.errstate(over="ignore"):
                narrow: npt.NDArray[np.floating] = wide[tensor.name].astype(dtype)
            onnx_graph.replace_tensor(tensor, narrow)
            if tensor.name not in uncounted:
                # numpy compares no bfloat16 with other types, and float32 holds all of its values
                casts.append(onnx_graph.count_cast(tensor.name, wide[tensor.name], narrow.astype(np.float32), smallest))
    if kind == TensorProto.BFLOAT16:
        _use_bfloat16(converted.model.graph)
    return Narrowed(converted.model, tuple(casts))


def _with_own_wide_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with a weight of its own for each input that stays in float32, such as the scales of a resize.

    The converter casts a weight that another input shares to the narrow type and back, and gives two such casts one
    name. Arithmetic on sizes has weights of its own, too, and names of nodes, which the converter knows it by.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    weights = {tensor.name: tensor for tensor in copy.graph.initializer}
    sizes, owned = size_nodes(copy.graph), set()
    for number, node in enumerate(copy.graph.node):
        is_size = number in sizes
        if is_size and not node.name:
            node.name = f"{node.op_type}_of_sizes_{number}"
        for place in range(len(node.input)) if is_size else ALWAYS_FLOAT_INPUTS.get(node.op_type, []):
            tensor = weights.get(node.input[place]) if place < len(node.input) else None
            if tensor is None or (is_size and tensor.data_type != TensorProto.FLOAT):
                continue
            node.input[place] = f"{tensor.name}_{number}"
            if node.input[place] not in owned:
                owned.add(node.input[place])
                own = copy.graph.initializer.add()
                own.CopyFrom(tensor)
                own.name = node.input[place]
    used = {name for node in nodes_of(copy.graph) for name in node.input}
    kept = [tensor for tensor in copy.graph.initializer if tensor.name in used]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(kept)
    return copy


def _drop_second_casts(graph: onnx.GraphProto) -> None:
    """Remove casts that the converter has placed twice, for two operators in float32 that share an input."""
    seen: set[str] = set()
    for node in list(graph.node):
        if node.op_type == "Cast" and node.output[0] in seen:
            graph.node.remove(node)
        seen.update(node.output)


def _join_sizes(graph: onnx.GraphProto, sizes: Collection[str]) -> None:
    """Remove the converter's casts to the narrow type and back behind arithmetic on sizes.

    Args:
        graph: the converted graph.
        sizes: the names of the nodes of this arithmetic.
    """
    exact = {name for node in graph.node if node.name in sizes for name in node.output}
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast" and node.name not in sizes}
    joined = {}
    for name, node in casts.items():
        narrow = casts.get(node.input[0])
        if narrow is not None and narrow.input[0] in exact and _target(node) == TensorProto.FLOAT:
            joined[name] = narrow.input[0]
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = joined.get(name, name)
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for name in (*joined, *(casts[name].input[0] for name in joined)):
        if name not in used and casts[name] in graph.node:
            graph.node.remove(casts[name])
            used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}


def _target(cast_node: onnx.NodeProto) -> int:
    """Return the type that a `Cast` gives."""
    return next(int(attribute.i) for attribute in cast_node.attribute if attribute.name == "to")


def _without(model: onnx.ModelProto, kind: int) -> Iterator[str]:
    """Yield the operators of a graph that ONNX has in float32, and not in the type."""
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    for domain, name in {(node.domain, node.op_type) for node in nodes_of(model.graph)}:
        try:
            schema = onnx.defs.get_schema(name, opsets.get(domain, 1), domain)
        except onnx.defs.SchemaError:
            continue  # an operator of another domain, whose types ONNX does not know
        fixed = ALWAYS_FLOAT_INPUTS.get(name, [])
        ends = [item for place, item in enumerate(schema.inputs) if place not in fixed] + list(schema.outputs)
        if any("tensor(float)" in item.types and _TEXT[kind] not in item.types for item in ends):
            yield name


def _use_bfloat16(graph: onnx.GraphProto) -> None:
    """Replace float16 by bfloat16, in a graph whose float16 is that of the converter alone."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        tensor = value.type.tensor_type
        if tensor.elem_type == TensorProto.FLOAT16:
            tensor.elem_type = TensorProto.BFLOAT16
    for node in graph.node:
        for attribute in node.attribute:
            _retype(attribute)


def _retype(attribute: pb.AttributeProto) -> None:
    if attribute.name in _TYPE_ATTRIBUTES and attribute.i == TensorProto.FLOAT16:
        attribute.i = TensorProto.BFLOAT16
    for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
        if tensor.data_type == TensorProto.FLOAT16:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            onnx_graph.replace_tensor(tensor, values.astype(onnx.helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)))
    for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
        _use_bfloat16(inner)
