"""Records of the validate stage, and of pictures that a GPU decodes."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from pydantic import Field, PositiveInt, SerializerFunctionWrapHandler, model_serializer

from model_artifacts.records import (
    Accuracy,
    Count,
    GateCheck,
    GpuPictures,
    LayerShare,
    Precision,
    Record,
    RowCheck,
    VariantRecord,
    without_defaults,
)
from pipeline.records.outcome import Outcome


class Verdict(str, Enum):
    """Verdict on a loss at a margin."""

    PASSES = "passes"
    """The whole interval of the drop lies below the margin."""
    FAILS = "fails"
    """The drop itself is larger than the margin; on a part of the samples, its whole interval."""
    NOT_PROVEN = "not proven"
    """The interval has the margin inside: there are too few samples."""


class Loss(Record):
    """Answers that an artifact lost and won against the reference.

    An embedding loses a vector that moved by half the distance to its nearest neighbour, or more. An image of many
    answers, such as the pixels of a mask, loses and wins shares of itself.
    """

    samples: PositiveInt
    """Number of judged samples: all with labels; without labels, those that are no near-ties."""
    near_ties: Count = 0
    """Number of samples whose answer rounding alone may change; they are judged with labels only. Of an embedding,
    samples whose image is there twice."""
    lost: Count | Annotated[float, Field(ge=0)]
    """Number of answers that only the reference has right; without labels, of answers unlike the reference's."""
    won: Count | Annotated[float, Field(ge=0)]
    """Number of answers that only the artifact has right; 0 without labels."""
    drop: Annotated[float, Field(ge=-1, le=1)]
    """(lost - won) / samples."""
    drop_high: Annotated[float, Field(ge=-1, le=1)]
    """Upper end of the drop's interval (Tango, one-sided at 95 %)."""
    verdict: Verdict
    """Verdict at the margin of pipeline.yaml."""
    more: Count = 0
    """Number of further samples that would prove the margin, with the same shares; 0 if none would, or none need."""


class AccuracyReport(VariantRecord):
    """Verdict of a precision's gate on a variant: `accuracy.json` beside the artifact."""

    outcome: Outcome
    """Outcome of the validation."""
    reason: str = ""
    """Reason for a skipped, failed or rejected variant; empty if it passed."""
    retryable: bool = Field(default=False, alias="mendable")
    """True if the variant was skipped, but the next run tries it again, because this host may change."""
    evaluator: str = ""
    """Library and version that ran the artifact; empty if it was not run."""
    accuracy: Accuracy | None = None
    """Accuracy against the FP32 reference, of several outputs the one that is farthest off; None if the artifact was
    not run."""
    accuracies: tuple[Accuracy, ...] = ()
    """Accuracy of each output, of a model with several. The JSON of one output leaves it out."""
    checks: tuple[GateCheck, ...] = ()
    """Checks of the precision's gate."""
    proven: bool = False
    """True if the loss is proven to lie below the margin."""
    loss: Loss | None = None
    """Answers lost and won, of several profiles those with the largest drop; None if the artifact was not run, or gives
    tensors."""
    executed: Precision | None = None
    """Precision that the artifact computed in; None if unknown. An fp32 engine that multiplied in TF32 has tf32 here,
    and must pass tf32's gate."""
    layers: tuple[LayerShare, ...] = ()
    """Types of an engine's convolutions and matrix products, from its inspector."""
    rows: tuple[RowCheck, ...] = ()
    """Dependence on other rows at the smallest, the best, the largest and an odd batch size of the artifact."""
    device: str = ""
    """GPU and driver that ran the artifact; empty on a processor."""

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        return without_defaults(self, serialize(self), {"accuracies"})

    @property
    def passed(self) -> bool:
        """True if the artifact was run and passed every check of the gate."""
        return self.outcome is Outcome.DONE and all(check.passed for check in self.checks)


class PixelDistance(Record):
    """Distance of pixels that a GPU decoded from those of the processor, in levels of 255."""

    mean: float
    """Mean of the absolute differences."""
    largest: Count
    """The largest difference."""


class PicturesReport(VariantRecord):
    """An artifact's answers to pictures that its GPU decoded and resized: `pictures.json` beside the artifact."""

    outcome: Outcome
    """Outcome of the comparison."""
    reason: str = ""
    """Reason for a skipped, failed or rejected comparison; empty if it passed."""
    retryable: bool = Field(default=False, alias="mendable")
    """True if the variant was skipped, but the next run tries it again, because this host may change."""
    verdict: GpuPictures | None = None
    """The verdict, as the manifest has it; None if the pictures were not run."""
    pixels: PixelDistance | None = None
    """Distance of the pixels from those of the processor."""
    accuracy: Accuracy | None = None
    """Accuracy against the FP32 reference on the processor's pixels, of several outputs the one that is farthest."""
    checks: tuple[GateCheck, ...] = ()
    """Checks of the precision's gate. Those of faithfulness are shown, and decide nothing: another decoder is another
    input."""
