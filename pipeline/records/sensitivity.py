"""Records: the frozen, validated types that cross modules and that JSON files hold.

A record refuses unknown fields, is checked once when it is made, and round-trips through JSON. Units are in the names.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt

from model_artifacts.records import Accuracy, Count, Graph, Record, Sha256, Share, StageRecord


class LayerSensitivity(Record):
    """What quantising one layer, and no other, does to the logits."""

    name: str
    """What `leave_unquantized` in pipeline.yaml calls it."""
    kind: str
    """Its ONNX operator."""
    weights: Count
    """How many values."""
    relative_l2: Annotated[float, Field(ge=0)]
    cosine: Annotated[float, Field(ge=-1, le=1)]
    top1_agreement: Share


class Sensitivity(StageRecord):
    """How much each layer minds being quantised: `<model>/onnx/<graph>.sensitivity.json`."""

    graph: Graph
    samples: PositiveInt
    """Calibration images; those of validation stay unseen."""
    calibration_sha256: Sha256
    layers: tuple[LayerSensitivity, ...]
    """The most sensitive first."""
    plain: Accuracy
    """With every layer quantised."""
    proposal: tuple[str, ...]
    """The layers to leave unquantised for the gate to be kept: the fewest of the most sensitive."""
    proposed: Accuracy
    """With those left."""
    kept: bool
    """Whether the gate is kept then."""
