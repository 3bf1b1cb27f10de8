"""Records of the sensitivity stage."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt

from model_artifacts.records import Accuracy, Count, Graph, Record, Sha256, Share, StageRecord


class LayerSensitivity(Record):
    """Effect on the logits of quantising one layer alone."""

    name: str
    """Name of the layer, as in `leave_unquantized` of pipeline.yaml."""
    kind: str
    """ONNX operator of the layer."""
    weights: Count
    """Number of weight values."""
    relative_l2: Annotated[float, Field(ge=0)]
    """Relative L2 distance of the logits to those without quantisation."""
    cosine: Annotated[float, Field(ge=-1, le=1)]
    """Mean cosine between the two rows of logits of a sample."""
    top1_agreement: Share
    """Share of samples with the same predicted class as without quantisation."""


class Sensitivity(StageRecord):
    """Sensitivity of each layer to quantisation: `<model>/onnx/<graph>.sensitivity.json`."""

    graph: Graph
    """The quantised graph, int8 or fp8."""
    samples: PositiveInt
    """Number of calibration images; the validation images are not used."""
    calibration_sha256: Sha256
    """Digest of the calibration images."""
    layers: tuple[LayerSensitivity, ...]
    """Layers, the most sensitive first."""
    plain: Accuracy
    """Accuracy with every layer quantised, against the graph without quantisation."""
    proposal: tuple[str, ...]
    """The fewest of the most sensitive layers that must stay unquantised to keep the gate."""
    proposed: Accuracy
    """Accuracy with the proposed layers left unquantised."""
    kept: bool
    """True if that accuracy keeps the gate."""
