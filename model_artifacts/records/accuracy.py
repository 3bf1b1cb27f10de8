"""Records: the frozen, validated types that cross modules and that JSON files hold.

A record refuses unknown fields, is checked once when it is made, and round-trips through JSON. Units are in the names.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt

from model_artifacts.records.base import Count, Record, Share


class GateCheck(Record):
    """One bound of a gate against the value that was measured."""

    metric: str
    bound: str
    value: str
    passed: bool


class ClassDrop(Record):
    """A class, and how much less of it is recognised than by the reference."""

    name: str
    """As the model calls it, or its number."""
    samples: PositiveInt
    drop: float
    """The reference's share of right answers less this one's."""


class RowCheck(Record):
    """How far a row's logits depend on the rows beside it, at one batch size."""

    batch: PositiveInt
    reference_l2: Annotated[float, Field(ge=0)]
    """The distance of the first samples' logits to the reference's, run in batches of this size."""
    relative_l2: Annotated[float, Field(ge=0)]
    """The largest ‖a - b‖ / ‖a‖ of a row's logits a, and b of the same row among others: in another place of the batch,
    and beside copies of one."""


class Accuracy(Record):
    """How close an artifact's logits are to the FP32 reference's."""

    samples: PositiveInt
    finite: bool
    cosine: float
    """Mean over the samples of the cosine between the two rows of logits."""
    cosine_min: float
    relative_l2: float
    """‖logits - reference‖ / ‖reference‖, over all samples (Frobenius norm)."""
    max_abs: float
    top1_agreement: Share
    top1_agreement_low: Share
    """Lower end of the Wilson score interval at 95 %."""
    top1_agreement_high: Share
    top1: Share | None
    """Share of samples whose label is predicted, where there are labels."""
    top1_drop: float | None
    """The reference's top-1 less this one's."""
    top5: Share | None = None
    """Share of samples whose label is among the five largest logits, where there are labels and more classes."""
    top5_drop: float | None = None
    worst_class: ClassDrop | None = None
    """The class whose share of right answers drops most, of those with enough samples."""
    worst_sample: Count
