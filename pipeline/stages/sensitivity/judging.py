"""Outputs of a quantised graph beside those of the same graph without quantisation, and the verdict. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.errors import RunError
from model_artifacts.records import Task
from pipeline.stages.validate.metrics import largest_part
from pipeline.stages.validate.outputs import Ran, compare, farthest
from pipeline.stages.validate.tasks import detection
from pipeline.stages.validate.tasks.case import Case
from pipeline.stages.validate.tasks.registry import JUDGES

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from model_artifacts.records import Accuracy
    from pipeline.config.settings import Gate
    from pipeline.stages.common.rows import Span
    from pipeline.stages.validate.detections import Detector
    from pipeline.stages.validate.outputs import Compared

    Rows = npt.NDArray[np.float32]

_SHARE = 0.8
"""The share of what a gate allows that a proposal may take: a choice. The validation has other images, and a library
rounds at other places."""


class Meaning(NamedTuple):
    """The outputs of a model, and all that decides which of their answers are lost."""

    task: Task = Task.CLASSIFICATION
    spans: tuple[Span, ...] = ()
    """The columns of each output."""
    threshold: float = 0.5
    """The least sigmoid of a class that is an answer, of several labels."""
    tolerance: tuple[float, ...] = ()
    """The largest acceptable error of a regression's numbers; of tensors that of each output."""
    detector: Detector | None = None
    """The step from a detector's outputs to boxes; None for other tasks."""


class Judged(NamedTuple):
    """A quantised graph beside the same graph without quantisation."""

    accuracy: Accuracy
    """Of the output that is farthest away."""
    distance: float
    """The relative L2 by which nodes are ranked: of tensors, that of the farthest part of any output."""
    loss: float
    """The share of answers that are others; of tensors, which give none, the distance of parts beyond the tolerance;
    of a detector the drop of an image's average precision."""


def judge(rows: Rows, reference: Rows, meaning: Meaning) -> Judged:
    """Compare the outputs, each apart.

    Args:
        rows: (samples, values of all outputs).
        reference: the same without quantisation.
        meaning: the outputs and their task.

    Raises:
        RunError: a detector finds nothing in these images, so that nothing can be lost.
    """
    task = meaning.task
    compared = compare(Ran(rows), reference, meaning.spans, None, None, task)
    worst = farthest(compared).accuracy
    if task is Task.TENSORS:
        none = (0.0,) * len(compared)
        return Judged(worst, _farthest_part(compared, none), _farthest_part(compared, meaning.tolerance or none))
    if meaning.detector is not None:
        return Judged(
            worst, _farthest_part(compared, (0.0,) * len(compared)), _lost_boxes(rows, reference, meaning.detector)
        )
    if task not in JUDGES:
        return Judged(worst, worst.relative_l2, 1 - (worst.top1_agreement or 0.0))
    (item,) = compared  # these tasks have one output
    case = Case(
        rows=item.ran.logits,
        reference=item.reference,
        shape=item.span.shape or item.reference.shape[1:],
        threshold=meaning.threshold,
        tolerance=meaning.tolerance,
    )
    loss = JUDGES[task](case).loss
    return Judged(worst, worst.relative_l2, loss.drop if loss else 0.0)


def _lost_boxes(rows: Rows, reference: Rows, detector: Detector) -> float:
    """Return the drop of the images' mean average precision, against the boxes that the reference is sure of."""
    case = detector.case(rows, reference)
    if not any((found.scores > case.sure).any() for found in case.reference):
        raise RunError(
            "the detector finds nothing in the calibration images, so that no layer can lose a box",
            expected=f"a detection with a score above {case.sure:.3g}",
            got=f"none in {len(case.reference)} images",
            fix="take calibration images with things to find, or a lower `model.decoding.score_threshold`",
        )
    loss = detection.judge(case).loss
    return max(0.0, loss.drop) if loss else 0.0


def _farthest_part(compared: Sequence[Compared], tolerances: Sequence[float]) -> float:
    """Return the relative L2 of the farthest part of any output, of parts with an error beyond its tolerance."""
    return max(
        largest_part(item.ran.logits, item.reference, item.span.shape or item.reference.shape[1:], tolerance)
        for item, tolerance in zip(compared, tolerances, strict=True)
    )


def keeps(judged: Judged, gate: Gate, margin: float, task: Task = Task.CLASSIFICATION) -> bool:
    """Return True if a graph keeps a gate with some reserve.

    The margin bounds the loss. Of a classifier without a bound on the agreement, twice the margin of answers may
    differ, because as many are won as are lost by chance.

    Args:
        judged: the graph beside the one without quantisation.
        gate: the precision's own bounds.
        margin: the largest acceptable drop, or distance of a part.
        task: the task of the model.
    """
    allowed = margin
    if task is Task.CLASSIFICATION:
        allowed = 2 * margin if gate.top1_agreement is None else 1 - gate.top1_agreement
    accuracy = judged.accuracy
    return (
        accuracy.finite
        and judged.loss <= _SHARE * allowed
        and (gate.relative_l2 is None or accuracy.relative_l2 <= _SHARE * gate.relative_l2)
        and (gate.cosine is None or 1 - accuracy.cosine <= _SHARE * (1 - gate.cosine))
    )
