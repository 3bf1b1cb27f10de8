"""Records of the sensitivity stage."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt

from model_artifacts.records import Accuracy, Count, Graph, Record, Sha256, StageRecord, Task


class LayerSensitivity(Record):
    """Effect on the logits of quantising the inputs of one node alone: of a layer, a sum, a pool or another."""

    name: str
    """Name of the node, as in `leave_unquantized` of pipeline.yaml."""
    kind: str
    """ONNX operator of the node."""
    weights: Count
    """Number of weight values; 0 for a node without."""
    distance: Annotated[float, Field(ge=0)]
    """Relative L2 distance of the outputs to those without quantisation; of tensors, that of the farthest part."""
    cosine: Annotated[float, Field(ge=-1, le=1)]
    """Mean cosine between the two rows of a sample's values."""
    loss: Annotated[float, Field(ge=0)]
    """Share of answers that are others than without quantisation; of tensors, which give none, the distance of the
    farthest part beyond the tolerance."""


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
    task: Task
    """Task of the model, which decides what a loss is."""
    layers: tuple[LayerSensitivity, ...]
    """All nodes that read quantised tensors, the most sensitive first."""
    plain: Accuracy
    """Accuracy with every node quantised, against the graph without quantisation."""
    plain_loss: Annotated[float, Field(ge=0)]
    """Loss with every node quantised."""
    proposal: tuple[str, ...]
    """The fewest of the most sensitive nodes that must stay unquantised to keep the gate with a reserve."""
    proposed: Accuracy
    """Accuracy with the proposed nodes left unquantised."""
    proposed_loss: Annotated[float, Field(ge=0)]
    """Loss with the proposed nodes left unquantised."""
    kept: bool
    """True if that accuracy keeps the gate with a reserve."""

    @property
    def measure(self) -> str:
        """The name of the measure that people read a loss by."""
        names = {
            Task.CLASSIFICATION: "agreement",
            Task.TENSORS: "farthest part",
            Task.DETECTION: "mAP drop of an image",
        }
        return names.get(self.task, "other answers")

    def measured(self, loss: float) -> str:
        """Return a loss in that measure."""
        if self.task is Task.TENSORS:
            return f"{loss:.1e}"
        return f"{1 - loss if self.task is Task.CLASSIFICATION else loss:.1%}"
