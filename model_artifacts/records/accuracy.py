"""Records of an artifact's accuracy against the FP32 reference."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from pydantic import Field, PositiveInt, SerializerFunctionWrapHandler, model_serializer

from model_artifacts.records.base import Count, Record, Share, without_defaults


class Question(str, Enum):
    """Question that a check answers."""

    FAITHFUL = "faithful"
    """Does the artifact compute what its precision must give in this network? A failure is a fault of the library, the
    build or the host."""
    GOOD_ENOUGH = "good enough"
    """Is the precision's loss acceptable? A failure belongs to the network."""
    REFERENCE = "reference"
    """Is the FP32 reference worth a comparison?"""


class GateCheck(Record):
    """A measured value and its bound in a precision's gate."""

    metric: str
    """Name of the metric, such as `relative L2`."""
    bound: str
    """The bound as text, such as `≤ 0.002`."""
    value: str
    """The measured value as text."""
    passed: bool
    """True if the value keeps the bound."""
    question: Question = Question.FAITHFUL
    """Question that the check answers."""


class ClassDrop(Record):
    """A class and its drop in recognition against the reference."""

    name: str
    """The model's name for the class, or its number."""
    samples: PositiveInt
    """Number of labelled samples of the class."""
    drop: float
    """The reference's share of correct answers minus the artifact's."""


class RowCheck(Record):
    """Dependence of a row's logits on the other rows of its batch, at one batch size."""

    output: str | None = None
    """Name of the output, of a model with several. The JSON of one output leaves it out."""
    batch: PositiveInt
    """Number of rows in a batch."""
    reference_l2: Annotated[float, Field(ge=0)]
    """Relative L2 distance to the reference of the first samples' logits, run in batches of this size."""
    relative_l2: Annotated[float, Field(ge=0)]
    """Largest ‖a - b‖ / ‖a‖ of a row, where a and b are its logits beside different rows. The row is run at another
    place of the batch, and beside copies of one image."""
    part_l2: Annotated[float, Field(ge=0)] | None = None
    """Largest relative L2 of a part of a tensor to the reference, in the same runs; None for other outputs."""

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        return without_defaults(self, serialize(self), {"output", "part_l2"})


class Score(Record):
    """A measure of the task, by which users judge its answers."""

    metric: str
    """Name of the measure, such as `mIoU`."""
    value: float
    """The artifact's."""
    reference: float | None = None
    """The FP32 reference's, by the same labels; None if the value itself compares both."""
    is_share: bool = True
    """True for a share from 0 to 1, of which more is better; False for an error in the output's own unit."""

    @property
    def text(self) -> str:
        """The value as people read it."""
        return self._text_of(self.value)

    @property
    def reference_text(self) -> str:
        """The reference's value as people read it; empty without one."""
        return "" if self.reference is None else self._text_of(self.reference)

    def _text_of(self, value: float) -> str:
        return f"{value:.2%}" if self.is_share else f"{value:.4g}"


class Accuracy(Record):
    """Distance of an artifact's logits, vectors or tensors to the FP32 reference's, for one output."""

    output: str | None = None
    """Name of the output, of a model with several. The JSON of one output leaves it out."""
    samples: PositiveInt
    """Number of samples."""
    finite: bool
    """True if no logit is NaN or infinite."""
    cosine: float
    """Mean over the samples of the cosine between the two rows of logits."""
    cosine_min: float
    """Smallest cosine of a sample."""
    relative_l2: float
    """‖logits - reference‖ / ‖reference‖, over all samples (Frobenius norm)."""
    max_abs: float
    """Largest absolute difference of a logit to the reference's."""
    top1_agreement: Share | None
    """Share of samples with the same predicted class as the reference; None for other tasks, which predict none."""
    top1_agreement_low: Share | None
    """Lower end of the agreement's Wilson score interval at 95 %; None for other tasks."""
    top1_agreement_high: Share | None
    """Upper end of that interval; None for other tasks."""
    top1: Share | None
    """Share of samples whose label is predicted; None without labels."""
    top1_drop: float | None
    """The reference's `top1` minus the artifact's; None without labels."""
    top5: Share | None = None
    """Share of samples whose label is among the five largest logits. None without labels, or with five classes or
    fewer."""
    top5_drop: float | None = None
    """The reference's `top5` minus the artifact's; None if `top5` is."""
    worst_class: ClassDrop | None = None
    """The class with the largest drop, among the classes with enough samples."""
    worst_sample: Count
    """Index of the sample with the largest distance to the reference."""
    scores: tuple[Score, ...] = ()
    """Measures of the task, the one that people judge by first. The JSON of tasks without any leaves them out."""

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        return without_defaults(self, serialize(self), {"output", "scores"})
