"""Lower bounds of a network's latency on a GPU: its arithmetic at the peak rate, its bytes at the bandwidth."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, NamedTuple

import onnx

if TYPE_CHECKING:
    import onnx.onnx_ml_pb2 as pb


class Peak(NamedTuple):
    """A GPU's peak rates."""

    fp16_flops: float
    """Dense FP16 on tensor cores, FLOP/s."""
    bandwidth: float
    """Memory bandwidth, bytes/s."""


_PEAKS = {
    "H200": Peak(989e12, 4.8e12),
    "H100 PCIe": Peak(756e12, 2.0e12),
    "H100 80GB HBM3": Peak(989e12, 3.35e12),
    "A100-SXM4-80GB": Peak(312e12, 2.039e12),
    "A100-SXM4-40GB": Peak(312e12, 1.555e12),
    "A100": Peak(312e12, 1.555e12),
    "A10G": Peak(70e12, 0.6e12),
    "A10": Peak(125e12, 0.6e12),
    "L40S": Peak(362e12, 0.864e12),
    "L4": Peak(121e12, 0.3e12),
    "T4": Peak(65e12, 0.32e12),
    "V100": Peak(125e12, 0.9e12),
    "RTX 6000 Ada": Peak(364e12, 0.96e12),
    "RTX 5090": Peak(419e12, 1.792e12),
    "RTX 4090": Peak(330e12, 1.008e12),
    "RTX 3090": Peak(142e12, 0.936e12),
}
"""Peak rates by a part of the GPU's name; the first match counts.

Sources: NVIDIA's datasheets; for GeForce the whitepapers of Ampere GA102, Ada and Blackwell RTX. The rates are without
sparsity, and accumulate in FP16 where that is faster.
"""


class Work(NamedTuple):
    """The work of one image."""

    macs: int
    """Multiply-adds of the convolutions and matrix products."""
    weight_values: int
    """Number of weights."""
    boundary_values: int
    """Number of values of the input and the outputs."""


class Floor(NamedTuple):
    """Lower bounds of a batch's latency, in ms."""

    arithmetic_ms: float
    bandwidth_ms: float


def peak_of(gpu_name: str) -> Peak | None:
    """Return a GPU's peak rates; None for a GPU that is not in the table."""
    return next(
        (peak for part, peak in _PEAKS.items() if re.search(rf"(?<!\w){re.escape(part)}(?!\w)", gpu_name)), None
    )


def floor_of(work: Work, peak: Peak, batch: int) -> Floor:
    """Return the lower bounds of a batch in FP16.

    A multiply-add counts as two FLOPs. The weights are read once; each image is read and its logits written once.
    """
    moved = 2 * (work.weight_values + batch * work.boundary_values)
    return Floor(2 * work.macs * batch / peak.fp16_flops * 1e3, moved / peak.bandwidth * 1e3)


def work_of(model: onnx.ModelProto) -> Work:
    """Count the work of one image from a graph's shapes.

    Raises:
        onnx.shape_inference.InferenceError: the graph's shapes contradict each other.
    """
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {value.name: _shape(value) for value in (*graph.input, *graph.output, *graph.value_info)}
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    macs = sum(_macs(node, shapes, weights) for node in graph.node)
    boundary = sum(math.prod(shapes[value.name]) for value in (*graph.input, *graph.output))
    return Work(macs, sum(math.prod(shape) for shape in weights.values()), boundary)


def _shape(value: pb.ValueInfoProto) -> tuple[int, ...]:
    """Return a tensor's shape, with 1 for a free size."""
    return tuple(int(dim.dim_value) or 1 for dim in value.type.tensor_type.shape.dim)


def _macs(node: pb.NodeProto, shapes: dict[str, tuple[int, ...]], weights: dict[str, tuple[int, ...]]) -> int:
    """Return a node's multiply-adds: output values × a group's kernel weights, or × the inner length of a product."""
    output = math.prod(shapes.get(node.output[0], ()))
    if node.op_type == "Conv":
        return output * math.prod(weights.get(node.input[1], ())[1:])
    if node.op_type in {"Gemm", "MatMul"}:
        shape = shapes.get(node.input[0], ())
        return output * (shape[-1] if shape else 0)
    return 0
