"""Correction of biases for the mean error of quantisation (Nagel et al. 2019, "Data-free quantization", 4.2).

A convolution with quantised weights shifts the mean of each output channel, because the rounding errors of its weights
meet inputs whose mean is not zero. The expected shift is taken from the bias. Borders count as if the image went on.

Measured with fp8 on 96 held-out digits of the sample model, under ONNX Runtime: relative L2 0.160 without it, 0.125
with it, and 0.112 together with scales of the least squared error. Its int8 has half the error, and gains nothing
(0.070 and 0.073); others gain, as efficientnet-lite0 does (docs/accuracy.md, "int8, by network").

What is left is a shift of the outputs themselves, alike for all images, which decides near answers all in one way. It
is measured by running the graph on calibration images, and taken from the bias of the last product, which stays in
floating point.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime import InferenceSession
from onnxruntime.quantization.quant_utils import TENSOR_NAME_QUANT_SUFFIX

from model_artifacts.sessions.feeds.batches import feed_of
from model_artifacts.sessions.onnx import run_stand_in
from pipeline.adapters.rewrites.products import is_product
from pipeline.stages.quantize.calibration import batch_size

if TYPE_CHECKING:
    import numpy.typing as npt

    from model_artifacts.sessions.feeds.batches import Batch
    from model_artifacts.sessions.onnx import Outputs
    from pipeline.stages.quantize.calibration import Images

    Means = dict[str, npt.NDArray[np.float32]]
    Weights = dict[str, npt.NDArray[np.float32]]

_SHIFTED = 128
"""The most images that measure a shift of the outputs: a choice. Their mean is far more exact than one image."""
_BATCH = 16


def input_means(fp32: onnx.ModelProto, images: Images) -> Means:
    """Return the mean input of every convolution, by its node's name: one value for each input channel.

    Args:
        fp32: the graph; it is not changed.
        images: the calibration images. Each batch counts by its size.
    """
    model = onnx.ModelProto()
    model.CopyFrom(fp32)
    given = [value.name for value in model.graph.input]
    read = {node.name: node.input[0] for node in model.graph.node if node.op_type == "Conv"}
    computed = sorted({*read.values()} - {*given})
    already = {value.name for value in model.graph.output}  # a convolution may read an output
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in computed if name not in already)
    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    sums: dict[str, npt.NDArray[np.float64]] = {}
    for batch in images.batches(batch_size(session, computed, images) if computed else 1):
        feed = feed_of(given, batch)
        values = dict(zip(computed, session.run(computed, feed), strict=True)) if computed else {}
        for name, value in {**values, **feed}.items():
            if name not in {*read.values()}:
                continue
            total = value.mean(axis=tuple(range(2, value.ndim)), dtype=np.float64).sum(axis=0)
            sums[name] = sums.get(name, np.zeros_like(total)) + total
    return {node: (sums[name] / len(images)).astype(np.float32) for node, name in read.items()}


class _Graph:
    """The parts of a quantised graph, by name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._made_by = {output: node for node in model.graph.node for output in node.output}
        self._read = Counter(name for node in model.graph.node for name in node.input)

    def weight(self, name: str) -> tuple[str, npt.NDArray[np.float32]] | None:
        """Return the FP32 name and the values of a quantised weight that a node reads; None of any other tensor."""
        pair = self._made_by.get(name)
        if pair is None or pair.op_type != "DequantizeLinear":
            return None
        plain = pair.input[0].removesuffix(TENSOR_NAME_QUANT_SUFFIX)
        if pair.input[0] in self._tensors:
            return plain, self._values(pair)
        return (plain, numpy_helper.to_array(self._tensors[plain])) if plain in self._tensors else None

    def shift(self, name: str, shift: npt.NDArray[np.float32]) -> None:
        """Take a shift from a bias: in floating point, or int32 behind a DequantizeLinear.

        One that several nodes read stays, and so does one that is computed.
        """
        pair = self._made_by.get(name)
        stored = name if pair is None else pair.input[0]
        tensor = self._tensors.get(stored)
        if tensor is None or self._read[name] > 1 or self._read[stored] > 1:
            return
        values = numpy_helper.to_array(tensor)
        if pair is None:
            found = values - shift.reshape(values.shape).astype(values.dtype)
        else:
            steps = shift.astype(np.float64) / numpy_helper.to_array(self._tensors[pair.input[1]])
            ends = np.iinfo(values.dtype)
            found = np.clip(np.rint(values - steps), ends.min, ends.max).astype(values.dtype)
        tensor.CopyFrom(numpy_helper.from_array(found, stored))

    def _values(self, pair: onnx.NodeProto) -> npt.NDArray[np.float32]:
        """Return the values of a quantised weight whose output channels come first, as those of a convolution do."""
        quantized = numpy_helper.to_array(self._tensors[pair.input[0]]).astype(np.float32)
        step = numpy_helper.to_array(self._tensors[pair.input[1]])
        steps = step.reshape(-1, *[1] * (quantized.ndim - 1)) if step.size > 1 else step
        values: npt.NDArray[np.float32] = quantized * steps
        return values


def correct_biases(model: onnx.ModelProto, weights: Weights, means: Means) -> onnx.ModelProto:
    """Take the expected shift of each quantised convolution from its bias. The graph is changed in place and returned.

    Args:
        model: a graph whose quantised weights are FP32 tensors behind Q/DQ pairs, or int8 ones behind their second
            half. Their zero points are zero.
        weights: the FP32 graph's initialisers, by name.
        means: the result of `input_means`. A convolution without a bias stays as it is.
    """
    graph = _Graph(model)
    for node in model.graph.node:
        found = graph.weight(node.input[1]) if node.op_type == "Conv" and len(node.input) > 2 else None  # noqa: PLR2004 - input, weights, bias
        if found is None or found[0] not in weights:
            continue
        name, values = found
        error = values - weights[name]  # (outputs, inputs of a group, *kernel)
        shares = error.sum(axis=tuple(range(2, error.ndim)))
        groups = means[node.name].reshape(-1, shares.shape[1])
        graph.shift(node.input[2], (shares * groups.repeat(len(shares) // len(groups), axis=0)).sum(axis=1))
    return model


class Centre(NamedTuple):
    """Calibration images, and the outputs that the FP32 graph gives for them."""

    images: Batch
    outputs: Means
    """By their names, those alone that a product in floating point ends; empty without any."""

    @classmethod
    def of(cls, fp32: onnx.ModelProto, images: Images) -> Centre:
        """Run the FP32 graph on the first `_SHIFTED` images, if there is an output to centre.

        Raises:
            RunError: the graph cannot be run.
        """
        names = [name for name, _ in _last_products(fp32)]
        batch = next(images.batches(min(_SHIFTED, len(images))))
        found = _by_name(fp32, run_stand_in(fp32.SerializeToString(), batch, _BATCH)) if names else {}
        return cls(batch, {name: found[name] for name in names})

    def shifts(self, model: onnx.ModelProto) -> Means:
        """Return the mean error of each output that a product in floating point ends, one value for each column.

        Args:
            model: a quantised graph, with the FP32 graph's names of outputs.

        Raises:
            RunError: the graph cannot be run.
        """
        names = [name for name, _ in _last_products(model) if name in self.outputs]
        if not names:
            return {}
        got = _by_name(model, run_stand_in(model.SerializeToString(), self.images, _BATCH))
        shifts = {
            name: (got[name] - self.outputs[name]).mean(axis=0, dtype=np.float64).astype(np.float32) for name in names
        }
        return {name: shift for name, shift in shifts.items() if np.isfinite(shift).all()}

    def centred(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Take a quantised graph's own shifts from its outputs. The graph is changed in place and returned.

        Raises:
            RunError: the graph cannot be run.
        """
        return centre_outputs(model, self.shifts(model))


def output_shifts(model: onnx.ModelProto, fp32: onnx.ModelProto, images: Images) -> Means:
    """Return the mean error of each output that a product in floating point ends, one value for each column.

    Args:
        model: the quantised graph.
        fp32: the FP32 graph, with the same names of outputs.
        images: the calibration images, of which the first `_SHIFTED` are run.

    Raises:
        RunError: a graph cannot be run.
    """
    return Centre.of(fp32, images).shifts(model)


def centre_outputs(model: onnx.ModelProto, shifts: Means) -> onnx.ModelProto:
    """Take the mean error of each output from the bias of its last product. The graph is changed in place and returned.

    Args:
        model: the graph that `output_shifts` has run, in any form.
        shifts: its result.
    """
    graph = _Graph(model)
    for name, bias in _last_products(model):
        if name in shifts:
            graph.shift(bias, shifts[name])
    return model


def _last_products(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """Return the outputs that a product with a bias of one value a column makes, and the names of these biases.

    A product that was rewritten as a convolution is one, in front of the flattening that the rewrite adds.
    """
    made_by = {output: node for node in model.graph.node for output in node.output}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    found = []
    for value in model.graph.output:
        node = made_by.get(value.name)
        ahead = made_by.get(node.input[0]) if node is not None and node.op_type == "Flatten" else None
        if ahead is not None and ahead.op_type == "Conv" and is_product(ahead):
            node = ahead
        elif node is None or node.op_type != "Gemm":
            continue
        if len(node.input) < 3:  # noqa: PLR2004 - input, weights, bias
            continue
        scaled = any(item.name == "beta" and item.f != 1 for item in node.attribute)
        bias, sizes = tensors.get(node.input[2]), value.type.tensor_type.shape.dim
        if bias is not None and sizes and math.prod(bias.dims) == sizes[-1].dim_value and not scaled:
            found.append((value.name, bias.name))
    return found


def _by_name(model: onnx.ModelProto, outputs: Outputs) -> Means:
    """Return the outputs of a run by their names."""
    return outputs if isinstance(outputs, dict) else {model.graph.output[0].name: outputs}
