"""Records: the frozen, validated types that cross modules and that JSON files hold.

A record refuses unknown fields, is checked once when it is made, and round-trips through JSON. Units are in the names.
"""

from __future__ import annotations

from pydantic import PositiveInt

from model_artifacts.records import Count, FileRecord, Graph, Record, Sha256, StageRecord, TensorSpec


class TensorCast(Record):
    """What casting one tensor to a narrower type does to its values."""

    name: str
    elements: Count
    underflow: Count
    """Non-zero values that become zero."""
    subnormal: Count
    """Values that stay non-zero below the type's smallest normal number."""
    overflow: Count
    """Finite values that become infinite."""


class OnnxRecord(StageRecord):
    """An ONNX file: `<model>/onnx/<graph>.json`."""

    graph: Graph
    file: FileRecord
    canonical_sha256: Sha256
    """Digest of what the graph computes: see `onnx_graph.canonical_digest`."""
    structure_sha256: Sha256
    """Digest of the same but for the weights' values: see `onnx_graph.structure_digest`."""
    opset: PositiveInt
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    folded_batch_norms: Count
    casts: tuple[TensorCast, ...]
    calibration_sha256: Sha256 | None = None
    left_unquantized: tuple[str, ...] = ()
    """Layers that the configuration leaves in floating point."""
    opset17: FileRecord | None = None
    """The same QDQ graph for TensorRT 8.6, whose parser ends at opset 17: FP32 instead of FP16 around what is
    quantised, and weights in FP32 behind Q/DQ pairs. None where `file` itself is of opset 17, or the FP32 graph is
    not."""

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """The ONNX files."""
        return (self.file, self.opset17) if self.opset17 else (self.file,)
