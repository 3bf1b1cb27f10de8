"""Trials of what a TensorRT flavour builds of quantised layers: one small layer of each kind that a graph has."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from model_artifacts.errors import BuildError, one_line
from model_artifacts.records import Precision
from model_artifacts.tensorrt.flavour import BuildLog, make_logger
from pipeline.adapters.tensorrt_settings import joined, network_flags, set_compute_capabilities

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from model_artifacts.tensorrt.flavour import Flavour

_CHANNELS = 16


class QuantizedLayer(str, Enum):
    """A kind of layer with quantised operands, as messages name it."""

    CONVOLUTION = "convolutions"
    TRANSPOSED = "transposed convolutions"
    PRODUCT = "matrix products"
    PAIR = "Q/DQ pairs"
    """Nodes that are neither, such as a pool between pairs."""


_KINDS = {
    "Conv": QuantizedLayer.CONVOLUTION,
    "ConvTranspose": QuantizedLayer.TRANSPOSED,
    "Gemm": QuantizedLayer.PRODUCT,
    "MatMul": QuantizedLayer.PRODUCT,
}


def quantized_layers(graph: Path) -> tuple[QuantizedLayer, ...]:
    """Return the kinds of layers of an ONNX file whose operands are quantised, each once, in the graph's order.

    A graph with Q/DQ pairs around none of these has `PAIR`; one without pairs has none.

    Raises:
        BuildError: the file cannot be read.
    """
    try:
        nodes = onnx.load(graph, load_external_data=False).graph.node
    except (DecodeError, OSError) as exc:
        raise BuildError("the ONNX graph cannot be read", where=str(graph), got=one_line(exc)) from exc
    stored = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
    kinds = [_KINDS[node.op_type] for node in nodes if node.op_type in _KINDS and {*node.input[:2]} <= stored]
    return tuple(dict.fromkeys(kinds or ([QuantizedLayer.PAIR] if stored else [])))


def refused_layers(
    flavour: Flavour,
    precision: Precision,
    layers: tuple[QuantizedLayer, ...],
    capabilities: tuple[int, ...],
    *,
    has_gpu: bool,
) -> str | None:
    """Return the reason if a flavour cannot build one of these layers, by a build of each. It takes a moment.

    TensorRT-RTX 1.4 refuses int8 convolutions for their type. Of all other quantised layers it asks CUDA for a GPU,
    even to build ahead of time for another one; what it builds with one, the trial finds out there.

    Args:
        flavour: a flavour that times nothing, so that such a build takes no time.
        precision: int8 or fp8.
        layers: the kinds of layers that a graph has.
        capabilities: the GPU generations to build for ahead of time. Empty for the current GPU.
        has_gpu: True if this host has a GPU.
    """
    refused: list[str] = []
    alone: list[str] = []
    for layer in layers:
        log = BuildLog()
        if _builds(flavour, precision, layer, capabilities, log):
            continue
        needs_gpu = not has_gpu and any("Cuda Runtime" in error for error in log.errors()[:1])
        (alone if needs_gpu else refused).append(layer.value)
    if not (refused or alone):
        return None
    where = f" for SM {joined(capabilities)}" if capabilities else ""
    without = "" if refused else " without a GPU"
    return f"{flavour} cannot build {precision.value} {' and '.join(refused or alone)}{where}{without}"


def _builds(
    flavour: Flavour, precision: Precision, layer: QuantizedLayer, capabilities: tuple[int, ...], log: BuildLog
) -> bool:
    """Return True if a network of one such layer becomes an engine."""
    trt = flavour.module
    builder = trt.Builder(make_logger(trt, log))
    network = builder.create_network(network_flags(flavour))
    narrow = trt.int8 if precision is Precision.INT8 else trt.fp8
    scale = np.full(1, 0.05, dtype=np.float32)  # the network refers to arrays, which live until it is built
    sides = (3, 3) if layer is QuantizedLayer.CONVOLUTION else (2, 2)
    shape = (_CHANNELS, _CHANNELS) if layer is QuantizedLayer.PRODUCT else (_CHANNELS, _CHANNELS, *sides)
    kernel = np.ones(shape, dtype=np.float32)

    def quantized(tensor: Any) -> Any:  # noqa: ANN401 - TensorRT's bindings are untyped
        factor = network.add_constant((), scale).get_output(0)
        stored = network.add_quantize(tensor, factor, narrow).get_output(0)
        return network.add_dequantize(stored, factor, trt.float32).get_output(0)

    values = quantized(network.add_input("values", trt.float32, _input_shape(layer)))
    if layer is QuantizedLayer.PAIR:
        made = network.add_activation(values, trt.ActivationType.RELU)
    else:
        weights = quantized(network.add_constant(shape, kernel).get_output(0))
        made = _ADD[layer](trt, network, values, weights, sides)
    network.mark_output(made.get_output(0))
    config = builder.create_builder_config()
    set_compute_capabilities(trt, config, capabilities)
    return builder.build_serialized_network(network, config) is not None


def _input_shape(layer: QuantizedLayer) -> tuple[int, ...]:
    return (8, _CHANNELS) if layer is QuantizedLayer.PRODUCT else (1, _CHANNELS, 8, 8)


def _convolution(trt: Any, network: Any, values: Any, weights: Any, sides: tuple[int, int]) -> Any:  # noqa: ANN401
    layer = network.add_convolution_nd(values, _CHANNELS, sides, trt.Weights())
    layer.set_input(1, weights)
    return layer


def _transposed(trt: Any, network: Any, values: Any, weights: Any, sides: tuple[int, int]) -> Any:  # noqa: ANN401
    layer = network.add_deconvolution_nd(values, _CHANNELS, sides, trt.Weights())
    layer.set_input(1, weights)
    return layer


def _product(trt: Any, network: Any, values: Any, weights: Any, _sides: tuple[int, int]) -> Any:  # noqa: ANN401
    plain = trt.MatrixOperation.NONE
    return network.add_matrix_multiply(values, plain, weights, plain)


_ADD: dict[QuantizedLayer, Callable[..., Any]] = {
    QuantizedLayer.CONVOLUTION: _convolution,
    QuantizedLayer.TRANSPOSED: _transposed,
    QuantizedLayer.PRODUCT: _product,
}
