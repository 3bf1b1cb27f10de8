"""Placement of Q/DQ pairs: the quantiser's settings for TensorRT and for x86, and the layers in floating point."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from onnxruntime.quantization import CalibrationMethod, QuantType

from model_artifacts.records import Precision
from pipeline.adapters.rewrites.products import is_product
from pipeline.config.quantization import QuantizationConfig, RangeMethod
from pipeline.stages.quantize.groups import is_pooling, last_layers, members
from pipeline.stages.quantize.rewriting import ACTIVATIONS, MEANS, QUANTIZED_OPERATORS
from pipeline.stages.quantize.rules import rule_of

if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

    import onnx

    from model_artifacts.records import Graph
    from pipeline.records import PlacedPair

AUTO = QuantizationConfig()
"""The settings of a graph without any of the configuration."""
_FP8_FILTER = 32
"""Values of the largest filter that FP8 kernels have."""


def quantizer_settings(graph: Graph, model: onnx.ModelProto, settings: QuantizationConfig = AUTO) -> dict[str, Any]:
    """Return the quantiser's keyword arguments for a graph.

    TensorRT takes symmetric values and no quantised bias. It needs Q/DQ pairs in front of convolutions and matrix
    products, not behind every operator (TensorRT's documentation, "Recommended QDQ layer placements").

    TensorRT's int8 also quantises the first convolution and the global pooling. The largest tensor, the first
    convolution's output, is then written once in int8. Otherwise it is written in FP16, and a second kernel only
    quantises it (95 of 746 us on an H100 with TensorRT 8.6, batch 64). The last sum, which the pooling reads, then ends
    in int8 like every other sum. Means of anything else get no pair, because no kernel could end in int8 for them: a
    squeeze-excite shares its input with a product, which would read the rounded values, too.

    TensorRT's fp8 has one scale for each weight tensor. With one for each channel its fused kernels gave no numbers
    (TensorRT 10.6, H100) or lost the gain that ONNX Runtime shows. Both inputs of a residual sum are quantised: the
    convolution then writes fp8 instead of FP16 (batch 64: 0.718 ms, against 0.798 with the skip connection alone in
    fp8, 0.846 with neither, and 0.738 of the FP16 engine).

    x86 multiplies uint8 by int8, with every operator quantised. Its weights have seven bits: processors without VNNI
    add two products in 16 bits, which eight-bit weights overflow (ONNX Runtime's quantiser, `reduce_range`). An
    artifact must give the same numbers on every processor that may run it.
    """
    rule = rule_of(settings, graph)
    # Ranges that clip have the form of percentiles, whatever has made them.
    calibration = CalibrationMethod.MinMax if rule.method is RangeMethod.MAX else CalibrationMethod.Percentile
    percentile = {} if rule.percentile is None else {"CalibPercentile": rule.percentile}
    if graph.for_x86:
        return {
            "per_channel": True,
            "activation_type": QuantType.QUInt8,
            "calibrate_method": calibration,
            "nodes_to_exclude": outer_layers(model, graph, settings),
            "extra_options": {"ActivationSymmetric": False, "WeightSymmetric": True, **percentile},
            "reduce_range": True,
        }
    fp8 = graph.precision is Precision.FP8
    kinds = ["Conv", "Gemm", "MatMul", "Add", *(() if fp8 else MEANS)]
    return {
        "per_channel": not fp8,
        "activation_type": QuantType.QInt8,
        "calibrate_method": calibration,
        "op_types_to_quantize": kinds,
        "nodes_to_exclude": _without_pairs(model, graph, settings),
        "extra_options": {
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": kinds,
            **percentile,
        },
    }


def proposed_settings(
    graph: Graph, model: onnx.ModelProto, settings: QuantizationConfig, pairs: Collection[PlacedPair]
) -> dict[str, Any]:
    """Return the quantiser's keyword arguments for pairs that were proposed: its own but for the places.

    It then puts a pair on each input of these nodes, and in front of all readers of a tensor. `keep_pairs` takes away
    those that were not proposed.
    """
    kinds, names = sorted({pair.kind for pair in pairs}), {pair.node for pair in pairs}
    found = quantizer_settings(graph, model, settings)
    options = {
        **found["extra_options"],
        "OpTypesToExcludeOutputQuantization": kinds,
        "ForceQuantizeNoInputCheck": True,  # pools and reshapes have pairs of their own
    }
    excluded = [node.name for node in model.graph.node if node.name not in names]
    return {**found, "op_types_to_quantize": kinds, "nodes_to_exclude": excluded, "extra_options": options}


def left_by_proposal(
    graph: Graph, model: onnx.ModelProto, settings: QuantizationConfig, pairs: Collection[PlacedPair]
) -> tuple[str, ...]:
    """Return the names of the layers without proposed pairs; not those that have none by this project's own places.

    Args:
        graph: the quantised graph.
        model: the FP32 graph.
        settings: those of the configuration.
        pairs: the proposed pairs; empty for this project's own places.
    """
    if not pairs:
        return ()
    known = {*(pair.node for pair in pairs), *outer_layers(model, graph, settings)}
    return tuple(
        node.name for node in model.graph.node if node.op_type in QUANTIZED_OPERATORS and node.name not in known
    )


def _without_pairs(model: onnx.ModelProto, graph: Graph, settings: QuantizationConfig) -> list[str]:
    """Return the names of the nodes that get no pairs in TensorRT's graph.

    Groups that the configuration leaves out are no such nodes: they would read the pairs in front of their neighbours.
    """
    fp8 = graph.precision is Precision.FP8
    made_by = {output: node.op_type for node in model.graph.node for output in node.output}
    sums = {
        node.name: [made_by.get(name) == "Conv" for name in node.input]
        for node in model.graph.node
        if node.op_type == "Add"
    }
    # For fp8 both inputs of a residual sum get pairs. In int8 a skip connection that is also a convolution's input gets
    # its pair from there (`carry_skips_in_int8`).
    residual = any if fp8 else all
    known = [name for name, convolved in sums.items() if not residual(convolved)]
    means = [node.name for node in model.graph.node if node.op_type in MEANS and not _ends_in_int8(model, node)]
    return [*outer_layers(model, graph, settings), *(without_fp8_kernels(model) if fp8 else ()), *known, *means]


def moves_pairs(graph: Graph, model: onnx.ModelProto, group: str, *, placed: bool) -> bool:
    """Return False if a group's setting is known to leave a graph as it is; without a calibration, so not all are.

    Args:
        graph: the quantised graph.
        model: the FP32 graph.
        group: one of `GROUPS`.
        placed: the setting: true adds the group's pairs, false leaves them out.
    """
    names = {*members(model, group)}
    auto = quantizer_settings(graph, model)
    excluded = {*auto["nodes_to_exclude"]}
    if placed:
        settings = QuantizationConfig.model_validate({group: True})
        return bool(names & (excluded - {*quantizer_settings(graph, model, settings)["nodes_to_exclude"]}))
    kinds = auto.get("op_types_to_quantize")
    if kinds is None or (group == "sums" and graph.precision is Precision.INT8):
        return bool(names - excluded if kinds is None else names)  # `carry_skips_in_int8` gives sums pairs afterwards
    return any(node.name in names - excluded and node.op_type in kinds for node in model.graph.node)


def without_fp8_kernels(model: onnx.ModelProto) -> list[str]:
    """Return the names of the convolutions for which TensorRT has no FP8 kernels: grouped ones, and large filters.

    "There are no optimized FP8 Convolutions for Group Convolutions and Depthwise Convolutions", and none for filters of
    more than 32 values, such as 7×7 (release notes of TensorRT 10, limitations). With pairs in front of its depthwise
    convolutions efficientnet-lite0 was not built after 10 minutes (10.6, H200; int8: 2). Model Optimizer leaves such
    layers in floating point, too.
    """
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv"
        if _groups(node) > 1 or math.prod(shapes.get(node.input[1], ())[2:]) > _FP8_FILTER
    ]


def left_for_kernels(graph: Graph, model: onnx.ModelProto) -> list[str]:
    """Return the names of the layers that a graph leaves in floating point for want of kernels.

    A last product that was rewritten as a convolution is none of them: it stays so by itself.
    """
    products = {node.name for node in model.graph.node if is_product(node)}
    lacking = without_fp8_kernels(model) if graph.precision is Precision.FP8 else []
    return [name for name in lacking if name not in products]


def _groups(convolution: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in convolution.attribute if attribute.name == "group"), 1)


def outer_layers(model: onnx.ModelProto, graph: Graph, settings: QuantizationConfig = AUTO) -> list[str]:
    """Return the names of the layers that stay in floating point; empty if the graph has no others.

    The last matrix product stays, because eight-bit logits tie; of several outputs, that of each which ends in one. For
    fp8 the first convolution stays, too, because three bits of mantissa are too few for the image. The settings may
    quantise both.
    """
    layers = [node for node in model.graph.node if node.op_type in QUANTIZED_OPERATORS]
    outer = [node.name for node in layers if is_product(node)][-1:]
    if len(model.graph.output) > 1:
        outer = _last_products(model)
    if settings.last:
        outer = []
    if graph.precision is Precision.FP8 and not settings.first:
        outer += [node.name for node in layers if node.op_type == "Conv"][:1]
    return outer if len(layers) > len(outer) else []


def _last_products(model: onnx.ModelProto) -> list[str]:
    """Return the names of the products that are the last layer in front of an output, in the graph's order.

    An output whose last layer is a convolution has none, whatever products lie further in front of it. A product that
    was rewritten as a convolution stays one.
    """
    return [node.name for node in last_layers(model) if is_product(node)]


def _ends_in_int8(model: onnx.ModelProto, mean: onnx.NodeProto) -> bool:
    """Return True if a mean over height and width alone reads a sum or a convolution, through a ReLU at most."""
    if mean.op_type == "ReduceMean" and not is_pooling(model, mean):
        return False
    made_by = {output: node for node in model.graph.node for output in node.output}
    read = [name for node in model.graph.node for name in node.input] + [value.name for value in model.graph.output]
    name = mean.input[0]
    while name in made_by and made_by[name].op_type in ACTIVATIONS and read.count(name) == 1:
        name = made_by[name].input[0]
    return name in made_by and made_by[name].op_type in {"Add", "Conv"} and read.count(name) == 1
