"""Records of the sensitivity stage."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt

from model_artifacts.records import Accuracy, Count, Graph, Record, Sha256, Share, StageRecord


class LayerSensitivity(Record):
    """Effect on the logits of quantising the inputs of one node alone: of a layer, a sum, a pool or another."""

    name: str
    """Name of the node, as in `leave_unquantized` of pipeline.yaml."""
    kind: str
    """ONNX operator of the node."""
    weights: Count
    """Number of weight values; 0 for a node without."""
    relative_l2: Annotated[float, Field(ge=0)]
    """Relative L2 distance of the logits to those without quantisation."""
    cosine: Annotated[float, Field(ge=-1, le=1)]
    """Mean cosine between the two rows of logits of a sample."""
    top1_agreement: Share
    """Share of samples with the same predicted class as without quantisation."""


class Sensitivity(StageRecord):
    """Sensitivity of each node to quantisation: `<model>/onnx/<graph>.sensitivity.json`."""

    graph: Graph
    """The quantised graph, int8 or fp8."""
    samples: PositiveInt
    """Number of the calibration images that judge; the validation images are not used."""
    calibrated_on: PositiveInt
    """Number of the other calibration images, which give the ranges of the activations."""
    calibration_sha256: Sha256
    """Digest of the calibration images."""
    layers: tuple[LayerSensitivity, ...]
    """All nodes that read quantised tensors, the most sensitive first."""
    plain: Accuracy
    """Accuracy with every node quantised, against the graph without quantisation."""
    proposal: tuple[str, ...]
    """The fewest of the most sensitive nodes that must stay unquantised to keep the gate with a reserve."""
    proposed: Accuracy
    """Accuracy with the proposed nodes left unquantised."""
    kept: bool
    """True if that accuracy keeps the gate with a reserve."""
