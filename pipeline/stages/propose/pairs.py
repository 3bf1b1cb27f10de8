"""The ONNX file of Model Optimizer → the inputs of the FP32 graph's nodes with Q/DQ pairs. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.errors import QuantizeError
from pipeline.records import PlacedPair
from pipeline.stages.quantize.rewriting import QUANTIZED_OPERATORS

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

_PAIR = {"QuantizeLinear", "DequantizeLinear"}
_PASSED = {*_PAIR, "Cast"}
"""Operators between a tensor and its reader that are no part of the FP32 graph."""
_FIX = "leave `quantization.placement` at auto"


def pairs_of(theirs: onnx.ModelProto, fp32: onnx.ModelProto) -> tuple[PlacedPair, ...]:
    """Return the inputs of the FP32 graph's nodes that read a Q/DQ pair in Model Optimizer's graph.

    Both graphs have the same names of nodes and tensors, because Model Optimizer was given this FP32 graph.

    Args:
        theirs: Model Optimizer's graph.
        fp32: the FP32 graph.

    Returns:
        the pairs in the order of the FP32 graph's nodes.

    Raises:
        QuantizeError: a pair stands where the FP32 graph has no such node, input or tensor; a pair reads a tensor that
            the graph lacks; or no convolution or product has a pair.
    """
    known = {node.name: node for node in fp32.graph.node}
    found = {(pair.node, pair.input): pair for pair in _mapped(theirs, known, {item.name for item in _weights(fp32)})}
    pairs = tuple(
        found[node.name, index]
        for node in fp32.graph.node
        for index in range(len(node.input))
        if (node.name, index) in found
    )
    if not any(pair.kind in QUANTIZED_OPERATORS for pair in pairs):
        raise QuantizeError(
            "Model Optimizer quantises no layer of the graph",
            expected=f"a Q/DQ pair in front of a {', '.join(sorted(QUANTIZED_OPERATORS))}",
            got=f"pairs in front of {', '.join(pair.node for pair in pairs)} alone" if pairs else "no pairs",
            fix=_FIX,
        )
    return pairs


def _weights(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return list(model.graph.initializer)


def _mapped(theirs: onnx.ModelProto, known: dict[str, onnx.NodeProto], weights: set[str]) -> Iterator[PlacedPair]:
    made_by = {output: node for node in theirs.graph.node for output in node.output}
    given = {item.name for item in (*_weights(theirs), *theirs.graph.input)}
    for node in theirs.graph.node:
        if node.op_type in _PASSED:
            continue
        for index, name in enumerate(node.input):
            behind = _quantized(made_by, given, name)
            if behind is None:
                continue
            own = known.get(node.name)
            place = f"input {index} of {node.name} ({node.op_type})"
            if own is None or own.op_type != node.op_type or index >= len(own.input):
                raise _unknown(place, "a node and an input of the FP32 graph", "no such node or input there")
            tensor = own.input[index]
            # A weight may be stored quantised, under another name.
            if tensor != behind and not (tensor in weights and behind in given):
                raise _unknown(place, f"a pair on {tensor}, which the FP32 graph's node reads", f"a pair on {behind}")
            yield PlacedPair(node=node.name, kind=node.op_type, input=index, tensor=tensor)


def _quantized(made_by: dict[str, onnx.NodeProto], given: set[str], name: str) -> str | None:
    """Return the tensor in front of the pair that gives a tensor, casts aside; None if no pair does.

    Raises:
        QuantizeError: the pair reads a tensor that the graph lacks.
    """
    node, in_pair = made_by.get(name), False
    while node is not None and node.op_type in _PASSED:
        in_pair = in_pair or node.op_type in _PAIR
        name = node.input[0]
        node = made_by.get(name)
    if in_pair and node is None and name not in given:
        raise _unknown(f"a pair on {name}", "a tensor of the graph", "no node, weight or input of this name")
    return name if in_pair else None


def _unknown(place: str, expected: str, got: str) -> QuantizeError:
    what = "the graph of Model Optimizer does not fit the FP32 graph that it was given"
    return QuantizeError(what, where=place, expected=expected, got=got, fix=_FIX)
