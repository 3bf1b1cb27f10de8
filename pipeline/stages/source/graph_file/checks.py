"""Refusals of an ONNX file as a model, by its ends, types, operators and weights. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper

from model_artifacts.errors import SourceError, listed
from pipeline.adapters.onnx_files import tensors_of
from pipeline.adapters.onnx_rewrites import nodes_of, suppressing_nodes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import onnx.onnx_ml_pb2 as pb

    from model_artifacts.records import Task

_FLOAT = onnx.TensorProto.FLOAT
_BYTES = {kind for name, kind in onnx.TensorProto.DataType.items() if name.startswith(("FLOAT8", "FLOAT4"))}
"""Floating-point types of a byte or less."""
_QUANTIZING = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"}
_RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
_EXTRACT = "keep a part of the graph: onnx.utils.extract_model(FILE, NEW, [INPUT], [OUTPUT])"
_NCHW = 4
_NAMED = 3


class Ends(NamedTuple):
    """The inputs and the outputs of a graph."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    batch: int | None
    """The size of the batch that the inputs are written for; None if their axis is dynamic."""


def ends_of(graph: onnx.GraphProto, shape: tuple[int, int, int] | None, task: Task, where: str) -> Ends:
    """Return the ends of a graph that takes images, or the arrays of `data.tensors`.

    Args:
        graph: the graph, without inputs that have a default value.
        shape: (channels, height, width) of the preprocessed images; None for arrays, which are compared later.
        task: the task of the model. The tasks `tensors` and `detection` take several outputs.
        where: the file, for messages.

    Raises:
        SourceError: the graph has several inputs or outputs, or its input takes no such images.
    """
    allowed = {"input": shape is None, "output": task.takes_several}
    for role, values, only in (("input", graph.input, "the images"), ("output", graph.output, "one for each image")):
        if len(values) != 1 and not (values and allowed[role]):
            several = "; `data.tensors` fills several"
            if role == "output":
                several = "; the tasks `tensors` and `detection` take several"
            raise SourceError(
                f"the ONNX file has {len(values)} {role}s",
                where=where,
                expected=f"one {role}, {only}{several}",
                got=listed([_shown(value) for value in values]) or "none",
                fix=_EXTRACT,
            )
    if shape is None:
        return Ends(tuple(value.name for value in graph.input), _names(graph.output), _batch_of(graph, where))
    (image,) = graph.input
    if image.type.tensor_type.elem_type != _FLOAT:
        raise SourceError(
            "the ONNX file's input takes no float32",
            where=where,
            expected="float32 images (batch, channels, height, width), normalised by `preprocessing`",
            got=_shown(image),
            fix="export the network without its own scaling of pixels, or as a graph in float32",
        )
    dims = image.type.tensor_type.shape.dim
    if len(dims) != _NCHW or any(
        dim.dim_value > 0 and dim.dim_value != size for dim, size in zip(dims[1:], shape, strict=False)
    ):
        raise SourceError(
            "the ONNX file's input takes other images than `preprocessing` makes",
            where=where,
            expected=f"(batch, {', '.join(map(str, shape))}): channels, height and width of `preprocessing`",
            got=_shown(image),
            fix=_fix_of_shape([dim.dim_value for dim in dims], shape[0]),
        )
    return Ends((image.name,), _names(graph.output), _batch_of(graph, where))


def _names(values: Iterable[pb.ValueInfoProto]) -> tuple[str, ...]:
    return tuple(value.name for value in values)


def _batch_of(graph: onnx.GraphProto, where: str) -> int | None:
    """Return the one size of the inputs' first axis; None if it is dynamic.

    Raises:
        SourceError: an input has no axes, or the inputs have several sizes.
    """
    firsts = [next(iter(value.type.tensor_type.shape.dim), None) for value in graph.input]
    sizes = {dim.dim_value if dim is not None and dim.dim_value > 0 else None for dim in firsts}
    if None in firsts or len(sizes) > 1:
        raise SourceError(
            "the ONNX file's inputs have no batch in common",
            where=where,
            expected="the same batch as the first axis of every input",
            got=listed([_shown(value) for value in graph.input]),
            fix="export the network with a dynamic first axis of every input",
        )
    return sizes.pop()


def _fix_of_shape(sizes: Sequence[int], channels: int) -> str:
    if len(sizes) == _NCHW and sizes[-1] == channels and sizes[1] != channels:
        return "export it with the channels first (tf2onnx: `--inputs-as-nchw`)"
    if len(sizes) == _NCHW and sizes[2] > 0 and sizes[3] > 0:
        return f"set `preprocessing.crop: [{sizes[2]}, {sizes[3]}]`, with one mean for each of its channels"
    return "export a network of images"


def _shown(value: pb.ValueInfoProto) -> str:
    kind = value.type.tensor_type
    name = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
    sizes = [dim.dim_param or (str(dim.dim_value) if dim.dim_value > 0 else "?") for dim in kind.shape.dim]
    return f"{value.name!r}, {name} ({', '.join(sizes)})"


def require_reference(model: onnx.ModelProto, where: str) -> None:
    """Refuse a graph that cannot be the FP32 reference.

    Args:
        model: the model, with its external data taken in.
        where: the file, for messages.

    Raises:
        SourceError: it is quantised, or computes at random, or its weights hold NaN.
    """
    nodes = list(nodes_of(model.graph)) + [node for function in model.functions for node in function.node]
    quantizing = [node for node in nodes if node.op_type in _QUANTIZING or node.op_type.startswith("QLinear")]
    if quantizing:
        raise SourceError(
            "the ONNX file is quantised already, so that there is no FP32 reference to judge artifacts by",
            where=where,
            expected="the graph in float32; the pipeline quantises it itself (`precisions: [int8]`)",
            got=_listed(quantizing),
            fix="name the file from before its quantisation",
        )
    if random := [node for node in nodes if node.op_type in _RANDOM]:
        raise SourceError(
            "the ONNX file draws random numbers, so that it gives no reference",
            where=where,
            expected="the same output in every run",
            got=_listed(random),
            fix="export the network in evaluation mode",
        )
    _require_no_bytes(model, where)
    for tensor in tensors_of(model.graph):
        if tensor.data_type == _FLOAT and np.isnan(numpy_helper.to_array(tensor)).any():
            raise SourceError(
                "the ONNX file's weights hold NaN",
                where=f"{where}, tensor {tensor.name!r}",
                expected="numbers",
                fix="export the network of a training that has not diverged",
            )


def require_raw_boxes(model: onnx.ModelProto, where: str) -> None:
    """Refuse a detector that suppresses overlapping boxes inside of its graph.

    Its rows are in the order of their scores, which rounding exchanges, so that no distance says what moved. Their
    number depends on the image, too.

    Args:
        model: the model.
        where: the file, for messages.

    Raises:
        SourceError: it does.
    """
    if found := suppressing_nodes(model):
        raise SourceError(
            "the ONNX file suppresses overlapping boxes itself, and rounding exchanges the rows of what is left",
            where=where,
            expected="a detector's raw boxes and scores, which `model.decoding` decodes in every deployment alike",
            got=_listed(found),
            fix="cut the graph in front of it: onnx.utils.extract_model(FILE, NEW, [INPUT], [BOXES, SCORES])",
        )


def _require_no_bytes(model: onnx.ModelProto, where: str) -> None:
    """Refuse floating-point types of a byte or less: they are quantised weights, whose scales lie elsewhere."""
    found = [
        f"tensor {tensor.name!r} of {onnx.TensorProto.DataType.Name(tensor.data_type).lower()}"
        for tensor in tensors_of(model.graph)
        if tensor.data_type in _BYTES and len(tensor.dims) and np.prod(tensor.dims) > 1
    ]
    if found:
        raise SourceError(
            "the ONNX file's weights are quantised, so that there is no FP32 reference to judge artifacts by",
            where=where,
            expected="weights in float32, float16, bfloat16 or float64; the pipeline quantises them itself",
            got=listed(found, most=_NAMED),
            fix="name the file from before its quantisation",
        )


def _listed(nodes: Sequence[onnx.NodeProto]) -> str:
    return listed([f"{node.op_type} {node.name or node.output[0]!r}" for node in nodes], most=_NAMED)
