"""Records of the export and quantize stages."""

from __future__ import annotations

from pydantic import PositiveInt

from model_artifacts.records import Count, FileRecord, Graph, Record, Sha256, StageRecord, TensorSpec


class TensorCast(Record):
    """Losses from the cast of one tensor to a narrower type."""

    name: str
    """Name of the tensor."""
    elements: Count
    """Number of values."""
    underflow: Count
    """Number of non-zero values that become zero."""
    subnormal: Count
    """Number of values that stay non-zero, but below the type's smallest normal number."""
    overflow: Count
    """Number of finite values that become infinite."""


class OnnxRecord(StageRecord):
    """An ONNX file: `<model>/onnx/<graph>.json`."""

    graph: Graph
    """The graph in the file."""
    file: FileRecord
    """The ONNX file."""
    canonical_sha256: Sha256
    """Digest of the graph's computation: see `onnx_graph.canonical_digest`."""
    structure_sha256: Sha256
    """Digest of the computation without the weights' values: see `onnx_graph.structure_digest`."""
    opset: PositiveInt
    """Version of ONNX's operator set."""
    inputs: tuple[TensorSpec, ...]
    """The graph's inputs."""
    outputs: tuple[TensorSpec, ...]
    """The graph's outputs."""
    folded_batch_norms: Count
    """Number of batch-norms folded into convolutions."""
    casts: tuple[TensorCast, ...]
    """Losses from the casts of weights to a narrower type."""
    calibration_sha256: Sha256 | None = None
    """Digest of the calibration images; None for a graph without quantisation."""
    left_unquantized: tuple[str, ...] = ()
    """Layers, sums, pools and other nodes that the configuration leaves in floating point."""
    left_layers: Count = 0
    """Number of convolutions and matrix products among them; in mixed graphs also of those without proposed Q/DQ pairs,
    and in fp8 of those without FP8 kernels in TensorRT."""
    opset17: FileRecord | None = None
    """The same QDQ graph for TensorRT 8.6, whose parser ends at opset 17. The layers around the quantised ones are in
    FP32 instead of FP16, and the weights are in FP32 behind Q/DQ pairs. None if `file` itself has opset 17, or if the
    FP32 graph has a later one."""

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """The ONNX files."""
        return (self.file, self.opset17) if self.opset17 else (self.file,)
