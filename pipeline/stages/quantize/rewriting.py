"""Rewriting of QDQ graphs, ONNX Runtime's → TensorRT's: other types and scales, moved and removed Q/DQ pairs.

Scales are rounded to fp16 first and weights quantised with the rounded scales, so that a graph's fp16 and FP32 forms
hold the same numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.quant_utils import TENSOR_NAME_QUANT_SUFFIX

from model_artifacts.records import Precision
from pipeline.adapters.onnx_graph import replace_tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Any

    import numpy.typing as npt

    Weights = dict[str, npt.NDArray[np.float32]]


_INT8_LIMIT = 127
"""Largest int8 magnitude; TensorRT's int8 is symmetric and has no -128."""


class _Kind(NamedTuple):
    """A type of quantised values."""

    onnx_type: int
    """`TensorProto` data type."""
    limit: int
    """Largest magnitude in use."""
    scales: tuple[float, ...] = (1.0,)
    """Factors of a weight's scale among which the smallest squared error decides; 1 maps the largest to `limit`."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type as numpy's dtype."""
        dtype: np.dtype[Any] = helper.tensor_dtype_to_np_dtype(self.onnx_type)
        return dtype


QUANTIZED_TYPES = {
    Precision.INT8: _Kind(TensorProto.INT8, _INT8_LIMIT),
    # The largest E4M3 value (Micikevicius et al. 2022, table 1). Its error repeats with each power of two of the scale.
    Precision.FP8: _Kind(TensorProto.FLOAT8E4M3FN, 448, tuple(2.0 ** (eighths / 8) for eighths in range(8))),
}
"""Type of the quantised values of each precision."""
QUANTIZED_OPERATORS = {"Conv", "Gemm", "MatMul"}
"""Operators that multiply by weights."""
MEANS = ("GlobalAveragePool", "ReduceMean")
"""Operators of a global pooling."""
ACTIVATIONS = ("Relu", "Clip")
"""Activations that TensorRT's int8 kernels of convolutions and sums end with."""


def quantized_layers(model: onnx.ModelProto) -> tuple[onnx.NodeProto, ...]:
    """Return the layers of a QDQ graph whose input or weights are quantised, in the graph's order."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    layers = [node for node in model.graph.node if node.op_type in QUANTIZED_OPERATORS]
    producers = [[made_by[name] for name in node.input[:2] if name in made_by] for node in layers]
    return tuple(node for node, makers in zip(layers, producers, strict=True) if any(map(_is_dequantized, makers)))


def quantized_nodes(model: onnx.ModelProto) -> tuple[onnx.NodeProto, ...]:
    """Return the nodes of a QDQ graph that read quantised tensors, in the graph's order: layers, sums, pools, others.

    Leaving all of them leaves no Q/DQ pair.
    """
    made_by = {output: node for node in model.graph.node for output in node.output}
    return tuple(
        node
        for node in model.graph.node
        if node.op_type not in {"QuantizeLinear", "DequantizeLinear"}
        and any(name in made_by and _is_dequantized(made_by[name]) for name in node.input)
    )


def _is_dequantized(node: onnx.NodeProto) -> bool:
    return bool(node.op_type == "DequantizeLinear")


def leave_outputs(model: onnx.ModelProto) -> None:
    """Let the graph's outputs be unquantised tensors, in place.

    The quantiser puts a pair in front of all readers of a tensor that a layer reads, and gives the pair's result the
    name of an output. Nothing is gained by rounding what leaves the graph.
    """
    made_by = {output: node for node in model.graph.node for output in node.output}
    for value in model.graph.output:
        plain = _behind_pair(made_by, value.name)
        if plain is None:
            continue
        names = {value.name: f"{value.name}_rounded", plain: value.name}
        for node in model.graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]


def leave(model: onnx.ModelProto, weights: Weights, names: Collection[str]) -> onnx.ModelProto:
    """Return a copy of a QDQ graph in which some nodes read unquantised tensors.

    Args:
        model: a graph with Q/DQ pairs; it is not changed.
        weights: the FP32 graph's initialisers, by name.
        names: the names of the nodes; names of Q/DQ nodes are ignored.
    """
    return _without(model, weights, lambda name, _input: name in names)


def keep_pairs(model: onnx.ModelProto, weights: Weights, kept: Collection[tuple[str, int]]) -> onnx.ModelProto:
    """Return a copy of a QDQ graph in which some inputs alone read quantised tensors.

    Args:
        model: a graph with Q/DQ pairs; it is not changed.
        weights: the FP32 graph's initialisers, by name.
        kept: these inputs: the name of the node, and the place among its inputs.
    """
    return _without(model, weights, lambda name, place: (name, place) not in kept)


def quantized_inputs(model: onnx.ModelProto) -> set[tuple[str, int]]:
    """Return the inputs that read quantised tensors: the name of the node, and the place among its inputs."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    return {
        (node.name, place)
        for node in quantized_nodes(model)
        for place, name in enumerate(node.input)
        if name in made_by and _is_dequantized(made_by[name])
    }


def _without(model: onnx.ModelProto, weights: Weights, is_plain: Callable[[str, int], bool]) -> onnx.ModelProto:
    """Return a copy of a QDQ graph in which some inputs of its nodes read unquantised tensors."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = {output: node for node in copy.graph.node for output in node.output}
    tensors = {tensor.name for tensor in copy.graph.initializer}
    for node in copy.graph.node:
        if node.op_type not in {"QuantizeLinear", "DequantizeLinear"}:
            node.input[:] = [
                _before(nodes, tensors, weights, name) if is_plain(node.name, place) else name
                for place, name in enumerate(node.input)
            ]
    restored = _read(copy) & weights.keys() - tensors
    copy.graph.initializer.extend(numpy_helper.from_array(weights[name], name) for name in sorted(restored))
    _drop_unread(copy)
    return copy


def leave_idle(model: onnx.ModelProto, weights: Weights) -> onnx.ModelProto:
    """Return a copy of a QDQ graph in which only those nodes read pairs that TensorRT fuses with quantised layers.

    A sum reads quantised tensors beside a quantised convolution, and a mean behind one. All others read what was not
    rounded: the quantiser puts a pair in front of all readers of a tensor. Concatenations round a second time for the
    next layer (relative L2 of a small DenseNet on digits: 0.038 with such pairs, 0.019 without), as products do.

    Args:
        model: a graph with Q/DQ pairs; it is not changed.
        weights: the FP32 graph's initialisers, by name.
    """
    made_by = {output: node for node in model.graph.node for output in node.output}
    layers = {node.name for node in quantized_layers(model)}

    def is_convolved(name: str) -> bool:
        """Return True if a tensor comes from a quantised convolution, through activations, pairs and a sum."""
        node = made_by.get(_behind_pair(made_by, name) or name)
        while node is not None and node.op_type in ACTIVATIONS:
            node = made_by.get(node.input[0])
        summed = node.input if node is not None and node.op_type == "Add" else ()
        return node is not None and (node.name in layers or any(_ends(made_by, layers, item) for item in summed))

    def is_idle(node: onnx.NodeProto) -> bool:
        if node.op_type == "Add":
            direct = [name for name in node.input if _behind_pair(made_by, name) is None]
            return not any(_ends(made_by, layers, name) for name in direct or node.input)
        return node.op_type not in MEANS or not is_convolved(node.input[0])

    idle = [node.name for node in quantized_nodes(model) if node.op_type not in QUANTIZED_OPERATORS and is_idle(node)]
    return leave(model, weights, idle)


def _ends(made_by: dict[str, onnx.NodeProto], layers: Collection[str], name: str) -> bool:
    """Return True if a quantised convolution makes a tensor, or the one that a Q/DQ pair quantises to it."""
    maker = made_by.get(_behind_pair(made_by, name) or name)
    return maker is not None and maker.op_type == "Conv" and maker.name in layers


def _before(nodes: dict[str, onnx.NodeProto], tensors: set[str], weights: Weights, name: str) -> str:
    """Return the name of the tensor in front of a Q/DQ pair; `name` itself if there is no pair."""
    narrow = nodes.get(name)
    if narrow is None or not _is_dequantized(narrow):
        return name
    if narrow.input[0] in tensors:
        plain = narrow.input[0].removesuffix(TENSOR_NAME_QUANT_SUFFIX)
        return plain if plain in weights else name
    wide = nodes.get(narrow.input[0])
    return wide.input[0] if wide is not None and wide.op_type == "QuantizeLinear" else name


def carry_skips_in_int8(model: onnx.ModelProto) -> None:
    """Quantise skip connections: each sum reads its skip through a Q/DQ pair and its convolution directly.

    TensorRT then fuses convolution, sum, activation and the next quantisation into one int8 kernel (TensorRT's
    documentation, "Quantize the residual input"). It has no such kernel for fp8, whose sums keep both pairs. The graph
    is changed in place.
    """
    made_by = {output: node for node in model.graph.node for output in node.output}
    pairs = {_behind_pair(made_by, node.output[0]): node.output[0] for node in model.graph.node}
    for node in model.graph.node:
        if node.op_type != "Add":
            continue
        plain = [_behind_pair(made_by, name) or name for name in node.input]
        convolved = [name for name in plain if name in made_by and made_by[name].op_type == "Conv"]
        if convolved:
            node.input[:] = [name if name == convolved[0] else pairs.get(name, name) for name in plain]
    _drop_unread(model)


def _drop_unread(model: onnx.ModelProto) -> None:
    """Remove the Q/DQ pairs and initialisers that no node reads."""
    for kind in ("DequantizeLinear", "QuantizeLinear"):
        read = _read(model)
        for node in [item for item in model.graph.node if item.op_type == kind and item.output[0] not in read]:
            model.graph.node.remove(node)
    read = _read(model)
    for tensor in [item for item in model.graph.initializer if item.name not in read]:
        model.graph.initializer.remove(tensor)


def _read(model: onnx.ModelProto) -> set[str]:
    """Return the names of the tensors that a node or the graph's output reads."""
    graph = model.graph
    return {name for node in graph.node for name in node.input} | {value.name for value in graph.output}


def _behind_pair(made_by: dict[str, onnx.NodeProto], name: str) -> str | None:
    """Return the name of the computed tensor that a Q/DQ pair quantises to `name`; None without a pair."""
    narrow = made_by.get(name)
    wide = made_by.get(narrow.input[0]) if narrow is not None and narrow.op_type == "DequantizeLinear" else None
    source = wide.input[0] if wide is not None and wide.op_type == "QuantizeLinear" else None
    return source if source in made_by else None


def requantize(placed: onnx.ModelProto, weights: Weights, kind: _Kind) -> onnx.ModelProto:
    """Return a copy of an int8 QDQ graph, quantised to `kind` with scales that fp16 holds exactly.

    Args:
        placed: the quantiser's int8 graph; it is not changed.
        weights: the FP32 graph's initialisers, by name.
        kind: the type of the quantised values; float8 needs a graph of opset 19.
    """
    model = onnx.ModelProto()
    model.CopyFrom(placed)
    del model.graph.value_info[:]  # it names int8 as the type
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    for scale, zero_point in {(node.input[1], node.input[2]) for node in pairs}:
        replace_tensor(tensors[scale], _fp16_scale(numpy_helper.to_array(tensors[scale]) * (_INT8_LIMIT / kind.limit)))
        replace_tensor(tensors[zero_point], np.zeros(tuple(tensors[zero_point].dims), kind.dtype))
    for node in _weight_nodes(model):
        weight, scale = weights[node.input[0].removesuffix(TENSOR_NAME_QUANT_SUFFIX)], tensors[node.input[1]]
        widest = numpy_helper.to_array(scale)
        scales = [_fp16_scale(widest * factor) for factor in kind.scales]
        steps = [_broadcast(item, node, weight.ndim) for item in scales]
        quantized = [_quantize(weight, step, kind) for step in steps]
        errors = [
            float(np.square(values.astype(np.float32) * step - weight).sum())
            for values, step in zip(quantized, steps, strict=True)
        ]
        best = int(np.argmin(errors))
        replace_tensor(scale, scales[best])
        replace_tensor(tensors[node.input[0]], quantized[best])
    return model


def _quantize(weight: npt.NDArray[np.float32], step: npt.NDArray[np.float32], kind: _Kind) -> npt.NDArray[Any]:
    """Return a weight's values in units of its scale, as `kind`."""
    values = weight / step
    whole = np.rint(values) if kind.onnx_type == TensorProto.INT8 else values
    return np.clip(whole, -kind.limit, kind.limit).astype(kind.dtype)


def _fp16_scale(scale: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Round scales up to numbers that fp16 holds exactly: no value leaves the range, and no scale becomes zero."""
    nearest = scale.astype(np.float16)
    above = np.nextafter(nearest, np.float16(np.inf))
    return np.asarray(np.where(nearest < scale, above, nearest), dtype=np.float32)


def _weight_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the nodes that dequantise an initialiser."""
    constant = {tensor.name for tensor in model.graph.initializer}
    return [node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constant]


def _broadcast(scale: npt.NDArray[np.float32], node: onnx.NodeProto, rank: int) -> npt.NDArray[np.float32]:
    """Reshape a weight's scales for numpy's broadcasting along the node's axis; a single scale becomes a scalar."""
    if scale.size == 1:
        return scale.reshape(())
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
    return scale.reshape([-1 if index == axis % rank else 1 for index in range(rank)])


def put_pairs_on_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace quantised weights by FP32 weights with a QuantizeLinear node each.

    TensorRT 8 reads only this form. TensorRT 10 runs fp8 convolutions in fp8 only in this form. The FP32 values are
    those of the quantised weights, so that quantising them again loses nothing. The graph is changed in place and
    returned.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in _weight_nodes(model):
        quantized, scale, _ = node.input  # the quantiser places one node for each weight
        tensor = tensors[quantized]
        values = numpy_helper.to_array(tensor)
        step = _broadcast(numpy_helper.to_array(tensors[scale]), node, values.ndim)
        tensor.name = quantized.removesuffix(TENSOR_NAME_QUANT_SUFFIX)
        replace_tensor(tensor, values * step)
        pair = onnx.NodeProto(op_type="QuantizeLinear", name=f"{tensor.name}_QuantizeLinear", output=[quantized])
        pair.input.extend([tensor.name, *node.input[1:]])
        pair.attribute.extend(node.attribute)
        model.graph.node.insert(0, pair)
    return model
