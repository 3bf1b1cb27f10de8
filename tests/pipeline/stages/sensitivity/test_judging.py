"""Outputs of a quantised graph, judged as the model's task does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from model_artifacts.records import Task
from pipeline.config.settings import Gate
from pipeline.stages.common.rows import Span
from pipeline.stages.sensitivity.judging import Judged, Meaning, judge, keeps
from tests.support.sensitive import agreeing, off_by

if TYPE_CHECKING:
    import numpy.typing as npt

    Rows = npt.NDArray[np.float32]


@pytest.mark.parametrize(
    ("judged", "gate", "kept"),
    [
        pytest.param(off_by(0.39), Gate(relative_l2=0.5, top1_agreement=0.0), True, id="near"),
        pytest.param(off_by(0.45), Gate(relative_l2=0.5, top1_agreement=0.0), False, id="far"),
        pytest.param(agreeing(985), Gate(), True, id="within-two-margins"),
        pytest.param(agreeing(983), Gate(), False, id="beyond-two-margins"),
        pytest.param(agreeing(925), Gate(top1_agreement=0.9), True, id="within-the-gate"),
        pytest.param(agreeing(915), Gate(top1_agreement=0.9), False, id="beyond-the-gate"),
    ],
)
def test_a_proposal_takes_four_fifths_of_what_the_gate_allows(judged: Judged, gate: Gate, *, kept: bool) -> None:
    """Other images than these are to pass. Without a bound on the agreement, two margins of one point may differ."""
    assert keeps(judged, gate, 0.01) == kept


def test_scores_do_not_hide_beside_boxes() -> None:
    """The distance is that of the farthest part: here of one score in two, beside boxes in pixels."""
    reference = np.array([[[300.0, 200.0, 0.9], [100.0, 400.0, 0.1]]], np.float32)
    rows = reference.copy()
    rows[0, :, 2] *= 1.05
    tensors = Meaning(Task.TENSORS, (Span("", (2, 3), slice(None)),))

    judged = judge(rows.reshape(1, -1), reference.reshape(1, -1), tensors)

    assert judged.accuracy.relative_l2 < 1e-4
    assert judged.loss == judged.distance == pytest.approx(0.05, rel=1e-3)
    assert not keeps(judged, Gate(), 0.05, Task.TENSORS)
    assert keeps(judged, Gate(), 0.07, Task.TENSORS)


@pytest.mark.parametrize(
    ("tolerance", "loss"), [pytest.param((), 0.05, id="none"), pytest.param((0.05,), 0.0, id="within")]
)
def test_scores_within_the_tolerance_are_no_loss(tolerance: tuple[float, ...], loss: float) -> None:
    """The rank is by the distance all the same."""
    reference = np.array([[[300.0, 0.9], [100.0, 0.1]]], np.float32)
    rows = reference.copy()
    rows[0, :, 1] *= 1.05
    meaning = Meaning(Task.TENSORS, (Span("", (2, 2), slice(None)),), tolerance=tolerance)

    judged = judge(rows.reshape(1, -1), reference.reshape(1, -1), meaning)

    assert judged.distance == pytest.approx(0.05, rel=1e-3)
    assert judged.loss == pytest.approx(loss, rel=1e-3)


def test_the_farthest_of_several_outputs_counts() -> None:
    """Each output is compared apart, and ranked by its own distance."""
    spans = (Span("boxes", (2,), slice(0, 2)), Span("scores", (2,), slice(2, 4)))
    reference = np.array([[300.0, 200.0, 0.9, 0.1]], np.float32)
    rows = np.array([[300.0, 200.0, 0.99, 0.11]], np.float32)

    judged = judge(rows, reference, Meaning(Task.TENSORS, spans))

    assert judged.accuracy.output == "scores"
    assert judged.distance == pytest.approx(0.1, rel=1e-3)


def _pixels(other: int) -> tuple[Rows, Rows]:
    """Return maps of two classes and 100 pixels, `other` of which answer otherwise, and the reference's."""
    reference = np.zeros((1, 2, 100), np.float32)
    reference[0, 0] = 1
    rows = reference.copy()
    rows[0, :, :other] = rows[0, ::-1, :other]
    return rows.reshape(1, -1), reference.reshape(1, -1)


@pytest.mark.parametrize(("other", "kept"), [pytest.param(8, True, id="8"), pytest.param(9, False, id="9")])
def test_other_pixels_are_lost_by_their_share(other: int, *, kept: bool) -> None:
    """A segmenter may change four fifths of the margin's pixels, here of 10 %."""
    judged = judge(*_pixels(other), Meaning(Task.SEGMENTATION, (Span("", (2, 10, 10), slice(None)),)))

    assert judged.loss == pytest.approx(other / 100)
    assert keeps(judged, Gate(), 0.1001, Task.SEGMENTATION) == kept


def test_labels_are_lost_by_their_threshold() -> None:
    """One of two labels is below its threshold: half of the image's set is lost."""
    reference, rows = np.array([[2.0, 2.0]], np.float32), np.array([[2.0, 1.0]], np.float32)

    losses = [
        judge(rows, reference, Meaning(Task.MULTILABEL, (Span("", (2,), slice(None)),), cut)) for cut in (0.5, 0.8)
    ]

    assert [judged.loss for judged in losses] == [0.0, 0.5]


def test_numbers_are_lost_beyond_their_tolerance() -> None:
    """One of four images has a number that is off by more."""
    reference = np.zeros((4, 1), np.float32)
    rows = np.array([[0.1], [0.4], [0.6], [-0.4]], np.float32)
    meaning = Meaning(Task.REGRESSION, (Span("", (1,), slice(None)),), tolerance=(0.5,))

    assert judge(rows, reference, meaning).loss == 0.25


def test_values_that_are_not_finite_keep_no_gate() -> None:
    """However near the others are."""
    reference = np.ones((4, 2), np.float32)
    rows = reference.copy()
    rows[0, 0] = np.nan

    judged = judge(rows, reference, Meaning(Task.TENSORS, (Span("", (2,), slice(None)),)))

    assert not keeps(judged, Gate(), 1.0, Task.TENSORS)
