"""Correction of biases for the mean error of quantised weights (Nagel et al. 2019, "Data-free quantization", 4.2).

A convolution with quantised weights shifts the mean of each output channel, because the rounding errors of its weights
meet inputs whose mean is not zero. The expected shift is taken from the bias. Borders count as if the image went on.

Measured with fp8 on 96 held-out digits of the sample model, under ONNX Runtime: relative L2 0.160 without it, 0.125
with it, and 0.112 together with scales of the least squared error. For int8, whose error is half as large, it changes
nothing (0.070 and 0.073).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime import InferenceSession
from onnxruntime.quantization.quant_utils import TENSOR_NAME_QUANT_SUFFIX

from model_artifacts.sessions.feeds.batches import feed_of
from pipeline.stages.quantize.calibration import batch_size

if TYPE_CHECKING:
    import numpy.typing as npt

    from pipeline.stages.quantize.calibration import Images

    Means = dict[str, npt.NDArray[np.float32]]
    Weights = dict[str, npt.NDArray[np.float32]]


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


def correct_biases(model: onnx.ModelProto, weights: Weights, means: Means) -> onnx.ModelProto:
    """Take the expected shift of each quantised convolution from its bias. The graph is changed in place and returned.

    Args:
        model: a graph whose quantised weights are FP32 tensors behind Q/DQ pairs.
        weights: the FP32 graph's initialisers, by name.
        means: the result of `input_means`. A convolution without a bias stays as it is.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    made_by = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        pair = made_by.get(node.input[1]) if node.op_type == "Conv" and len(node.input) > 2 else None  # noqa: PLR2004 - input, weights, bias
        name = pair.input[0].removesuffix(TENSOR_NAME_QUANT_SUFFIX) if pair is not None else ""
        if name not in tensors or name not in weights:
            continue
        error = numpy_helper.to_array(tensors[name]) - weights[name]  # (outputs, inputs of a group, *kernel)
        shares = error.sum(axis=tuple(range(2, error.ndim)))
        groups = means[node.name].reshape(-1, shares.shape[1])
        shift = (shares * groups.repeat(len(shares) // len(groups), axis=0)).sum(axis=1)
        bias = tensors[node.input[2]]
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) - shift.astype(np.float32), bias.name))
    return model
