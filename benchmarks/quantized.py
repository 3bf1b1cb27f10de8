"""Quantised graphs of the networks for `quantized_gates.py`, made by the pipeline's own functions."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
import onnxruntime
from gates import EMULATED, Subject, yardstick_of
from networks import BATCH, parts
from onnx import numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from model_artifacts.records import FileRecord, Graph, Precision
from model_artifacts.sessions.onnx import run_stand_in
from pipeline.adapters.onnx_graph import to_opset
from pipeline.stages.quantize.bias_correction import centre_outputs, correct_biases, input_means, output_shifts
from pipeline.stages.quantize.calibration import Images
from pipeline.stages.quantize.placing import place_pairs
from pipeline.stages.quantize.rewriting import (
    QUANTIZED_TYPES,
    carry_skips_in_int8,
    leave_idle,
    put_pairs_on_weights,
    requantize,
)
from pipeline.stages.quantize.stage import OPSET
from pipeline.stages.rounding.spread import spread_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    import torch
    from faults import Logits

    from model_artifacts.sessions.onnx import Outputs
    from pipeline.stages.validate.judgement import Yardstick

    Weights = dict[str, npt.NDArray[np.float32]]

CALIBRATION, CALIBRATION_BATCH = 256, 16
"""Digits of a calibration, and digits at once."""
GRAPHS = {Precision.INT8: Graph.INT8, Precision.FP8: Graph.FP8}


class Quantized(NamedTuple):
    """A network with its quantised graph, and the yardstick of that."""

    subject: Subject
    precision: Precision
    fp32: onnx.ModelProto
    weights: Weights
    calibration: torch.Tensor
    graph: onnx.ModelProto
    emulated: Logits
    yardstick: Yardstick


class Prepared(Images):
    """Calibration images that are prepared already."""

    def __init__(self, values: torch.Tensor) -> None:
        """Take float32 (images, channels, height, width)."""
        self._values = values

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._values)

    def batches(self, size: int = CALIBRATION_BATCH) -> Iterator[npt.NDArray[np.float32]]:
        """Yield batches of this size; the last may be smaller."""
        for part in parts(self._values, size):
            yield part.numpy()


def quantize(fp32: onnx.ModelProto, weights: Weights, images: torch.Tensor, precision: Precision) -> onnx.ModelProto:
    """Return the quantised graph with FP32 around, as `pipeline/stages/quantize` makes it."""
    given = Prepared(images)
    means = input_means(fp32, given)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder) / "placed.onnx"
        place_pairs(given, GRAPHS[precision], copied(fp32), scratch)
        placed = onnx.load(scratch)
    if precision is Precision.INT8:
        carry_skips_in_int8(placed)
    wide = requantize(to_opset(leave_idle(placed, weights), OPSET), weights, QUANTIZED_TYPES[precision])
    if precision is Precision.INT8:
        correct_biases(wide, weights, means)
        return centre_outputs(wide, output_shifts(wide, fp32, given))
    return correct_biases(put_pairs_on_weights(wide), weights, means)


def quantized_of(subject: Subject, precision: Precision, fp32: onnx.ModelProto, calibration: torch.Tensor) -> Quantized:
    """Quantise a network, and measure its own rounding."""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in fp32.graph.initializer}
    graph = quantize(fp32, weights, calibration, precision)
    emulated = run_graph(graph, subject.images)
    found = spread_of(emulated[:EMULATED], subject.reference[:EMULATED])
    if found is None:
        sys.exit(f"{subject.name}: {precision.value} does not hold its values")
    kept = FileRecord(path="emulated.npy", bytes=0, sha256="0" * 64)
    yardstick = yardstick_of(found, GRAPHS[precision], precision, f"onnxruntime {onnxruntime.__version__}", kept)
    return Quantized(subject, precision, fp32, weights, calibration, graph, emulated, yardstick)


def run_graph(graph: onnx.ModelProto, images: torch.Tensor) -> Logits:
    """Run a graph as the step `rounding` does."""
    return rows_together(run_stand_in(graph.SerializeToString(), images.numpy(), BATCH))


def rows_together(outputs: Outputs) -> Logits:
    """Return one row a sample: the output, or the values of several one after the other."""
    found = [*outputs.values()] if isinstance(outputs, dict) else [outputs]
    return np.concatenate([output.reshape(len(output), -1) for output in found], axis=1)


def run_fused(graph: onnx.ModelProto, images: torch.Tensor) -> Logits:
    """Run a graph with ONNX Runtime's own optimisations: its integer kernels, where it has them."""
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"], disabled_optimizers=["WeightBiasQuantization"]
    )
    name = session.get_inputs()[0].name
    found = [session.run(None, {name: part.numpy()}) for part in parts(images, BATCH)]
    return np.concatenate([np.concatenate([output.reshape(len(output), -1) for output in batch], 1) for batch in found])


def honest(item: Quantized) -> Iterator[tuple[str, Logits]]:
    """Yield honest builds of a quantised graph."""
    if item.precision is Precision.INT8:  # of fp8 it makes operators that take no fp8
        yield "fused kernels", run_fused(item.graph, item.subject.images)
    narrow = OnnxModel(convert_float_to_float16(copied(item.graph), keep_io_types=True, op_block_list=[]))
    narrow.topological_sort(is_deterministic=True)
    yield "FP16 around", run_graph(narrow.model, item.subject.images)
    alone = run_stand_in(item.graph.SerializeToString(), item.subject.images.numpy(), 1)
    yield "one image at a time", rows_together(alone)


def copied(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a graph."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    return copy
