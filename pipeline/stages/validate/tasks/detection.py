"""Detections of images → the average precision that an artifact keeps. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from model_artifacts.records import Question, Score
from pipeline.records import BoxKind
from pipeline.stages.validate.gates import at_most
from pipeline.stages.validate.metrics import Answers
from pipeline.stages.validate.tasks.case import TaskVerdict, beats_shuffles, judge_answers, reference_check
from pipeline.stages.validate.tasks.coco import average_precision, mean_precision

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from model_artifacts.deployment.detections import Detections
    from model_artifacts.records import GateCheck
    from pipeline.stages.validate.tasks.case import Truth

    Rows = npt.NDArray[np.floating]

_SURE = 0.25
"""The share of the way from the score threshold to 1 above which a detection of the reference is one to find: a choice.

Nearer to the threshold, rounding alone takes detections away and adds others.
"""
NEAR = 0.75
"""The share of the score threshold down to which a detection of the reference may be found by an artifact: a choice."""


class DetectionCase(NamedTuple):
    """The detections of an artifact, and everything that they are judged by."""

    found: Sequence[Detections]
    """The artifact's, of each image."""
    reference: Sequence[Detections]
    """The FP32 network's, also those with scores down to `NEAR` of the threshold."""
    truth: Truth | None = None
    """The labels (images, boxes, 6): left, top, right, bottom, class, `BoxKind`; None without."""
    threshold: float = 0.0
    """The score above which a box is a detection; 0 if a function of the user's own decides."""
    most: int = 100
    """The largest number of detections of an image."""
    margin: float = 0.01
    """The largest acceptable drop."""
    is_part: bool = False
    """True for an artifact that is never deployed, on a part of the samples."""
    require_proof: bool = False
    """True fails a loss that is not proven."""

    @property
    def before(self) -> list[Detections]:
        """The reference's detections above the threshold."""
        return [found.above(self.threshold) for found in self.reference]

    @property
    def sure(self) -> float:
        """The score above which the reference's detections are boxes to find, if there are no labels."""
        return self.threshold + _SURE * (1 - self.threshold)

    @property
    def labels(self) -> list[Rows] | None:
        """The true boxes of each image; None without labels, or without a box to find in any image."""
        if self.truth is None or not (np.asarray(self.truth)[..., 5] == BoxKind.JUDGED).any():
            return None
        return _rows(self.truth)


def judge(case: DetectionCase) -> TaskVerdict:
    """Judge detections: by the labels if there are any, else by those that the reference is sure of.

    An image loses the drop of its own score (see `average_precision`). COCO's mAP over all images must not drop by
    more than the margin either.

    Args:
        case: the detections.
    """
    labels = case.labels
    truth = labels if labels is not None else [_as_truth(found, case.sure) for found in case.reference]
    after, before = (average_precision(found, truth, case.most) for found in (case.found, case.before))
    drops = before.images - after.images
    answers = Answers(len(drops), float(drops.clip(0).sum()), float((-drops).clip(0).sum()))
    name = "mAP" if labels is not None else "mAP against FP32"
    check, loss = judge_answers(case, answers, f"drop of an image's {name}")
    checks = [check]
    if not case.is_part:  # too few images for rare classes
        whole = f"{name} drop over all images"
        checks.append(at_most(whole, before.mean - after.mean, case.margin, question=Question.GOOD_ENOUGH))
    pairs = ((name, after.mean, before.mean), (f"{name} at IoU 0.5", after.half, before.half))
    scores = tuple(
        Score(metric=metric, value=value, reference=other if labels is not None else None)
        for metric, value, other in pairs
    )
    return TaskVerdict(scores, tuple(checks), loss)


def deserving(case: DetectionCase) -> tuple[GateCheck, ...]:
    """Check that the reference detects anything, differs between images, and finds the boxes of its images.

    Args:
        case: the reference's own detections, as artifact and as reference.
    """
    sure = [found.above(case.sure) for found in case.before]
    filled = sum(len(found.scores) > 0 for found in sure)
    value = f"{sum(len(found.scores) for found in sure)} in {filled} of {len(sure)} images"
    bound = f"one or more with a score above {case.sure:.3g}"
    checks = [reference_check("detections", bound, value, passed=filled > 0)]
    if len(sure) > 1:
        first = case.before[0].boxes
        alike = all(np.array_equal(found.boxes, first) for found in case.before)
        value = "the same for all images" if alike else "different"
        checks.append(reference_check("boxes", "different for different images", value, passed=not alike))
    if case.labels is not None and case.truth is not None:
        own = case.before

        def score(truth: Truth, count: int) -> float:
            return mean_precision(own[:count], _rows(truth), case.most)

        compared = beats_shuffles("mAP", score, case.truth)
        checks += compared or (_finds_any(score(case.truth, len(own)), len(own)),)
    return tuple(checks)


def _finds_any(precision: float, images: int) -> GateCheck:
    """Check a reference on too few images for a comparison: with an mAP of 0 no artifact could lose anything."""
    return reference_check("mAP", "> 0", f"{precision:.4g} of {images}", passed=precision > 0)


def _rows(truth: Truth) -> list[Rows]:
    """Return the true boxes of each image, without the rows that fill it up."""
    rows = np.asarray(truth, dtype=np.float64)
    return [own[own[:, 5] != BoxKind.NONE] for own in rows]


def _as_truth(found: Detections, sure: float) -> Rows:
    """Return an image's detections as boxes to find, and those of low scores as boxes that may be found."""
    kinds = np.where(found.scores > sure, BoxKind.JUDGED, BoxKind.IGNORED)
    return np.column_stack([found.boxes, found.labels, kinds]).astype(np.float64)
