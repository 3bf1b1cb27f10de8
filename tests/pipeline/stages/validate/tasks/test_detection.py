"""Detections, judged by labels and by those of the reference."""

from __future__ import annotations

import numpy as np
import pytest

from model_artifacts.deployment.detections import NONE, Detections
from pipeline.records import BoxKind, Verdict
from pipeline.stages.validate.tasks.detection import DetectionCase, deserving, judge

RANDOM = np.random.default_rng(0)
COUNT = 400
CORNERS = RANDOM.uniform(0, 100, (COUNT, 3, 2)) + np.array([[0, 0], [200, 0], [0, 200]])
BOXES = np.concatenate([CORNERS, CORNERS + RANDOM.uniform(20, 60, (COUNT, 3, 2))], axis=2).astype(np.float32)
LABELS = RANDOM.integers(0, 4, (COUNT, 3))
SCORES = np.sort(RANDOM.uniform(0.5, 1, (COUNT, 3)), axis=1)[:, ::-1].astype(np.float32)
TRUTH = np.concatenate([BOXES, LABELS[..., None], np.zeros((COUNT, 3, 1))], axis=2).astype(np.float32)
REFERENCE = [Detections(*parts) for parts in zip(BOXES, SCORES, LABELS, strict=True)]


def changed(count: int, shift: float) -> list[Detections]:
    """Return the reference's detections, with the first box of the first images moved."""
    found = []
    for number, item in enumerate(REFERENCE):
        boxes = item.boxes.copy()
        boxes[0] += shift * (number < count)
        found.append(item._replace(boxes=boxes))
    return found


def case_of(found: list[Detections], *, labels: bool = True) -> DetectionCase:
    """Return the case of detections beside the reference's."""
    return DetectionCase(found, REFERENCE, TRUTH if labels else None, threshold=0.05)


@pytest.mark.parametrize("labels", [True, False], ids=["labels", "without"])
def test_boxes_within_the_rounding_pass(*, labels: bool) -> None:
    """A hundredth of a pixel moves no box over a threshold of its overlap."""
    verdict = judge(case_of(changed(COUNT, 0.01), labels=labels))
    assert verdict.loss is not None
    assert verdict.loss.verdict is Verdict.PASSES
    assert all(check.passed for check in verdict.checks)
    assert verdict.scores[0].metric == ("mAP" if labels else "mAP against FP32")
    assert (verdict.scores[0].reference is not None) is labels


@pytest.mark.parametrize("labels", [True, False], ids=["labels", "without"])
def test_lost_boxes_fail(*, labels: bool) -> None:
    """One of three boxes of each tenth image is lost: a third of a class or more of each."""
    verdict = judge(case_of(changed(40, 80), labels=labels))
    assert verdict.loss is not None
    assert 0.03 < verdict.loss.drop < 0.1
    assert verdict.loss.verdict is Verdict.FAILS
    assert [check.passed for check in verdict.checks] == [False, False]


def test_boxes_near_the_threshold_are_neither_lost_nor_wrong() -> None:
    """Without labels, rounding may take a low score over the threshold, or below it."""
    near = Detections(np.array([[300, 300, 340, 340]], np.float32), np.array([0.06], np.float32), np.array([1]))
    with_it = [
        Detections(
            np.concatenate([item.boxes, near.boxes]),
            np.concatenate([item.scores, near.scores]),
            np.concatenate([item.labels, near.labels]),
        )
        for item in REFERENCE
    ]
    for found, reference in ((REFERENCE, with_it), (with_it, with_it)):
        verdict = judge(DetectionCase(found, reference, None, threshold=0.05))
        assert verdict.loss is not None
        assert verdict.loss.drop == pytest.approx(0)


def test_a_part_is_judged_by_what_it_disproves() -> None:
    """Too few images for the mAP of rare classes."""
    verdict = judge(case_of(changed(40, 80))._replace(is_part=True))
    assert [check.metric for check in verdict.checks] == ["drop of an image's mAP"]


def test_labels_without_any_box_are_none() -> None:
    """Then the reference's own boxes judge."""
    truth = np.full_like(TRUTH, BoxKind.NONE)
    verdict = judge(case_of(REFERENCE)._replace(truth=truth))
    assert verdict.scores[0].metric == "mAP against FP32"
    assert verdict.scores[0].value == pytest.approx(1)


def failed(case: DetectionCase) -> set[str]:
    """Return the checks of a reference that fail."""
    return {check.metric for check in deserving(case) if not check.passed}


def test_a_reference_must_find_the_boxes_of_its_images() -> None:
    """Nothing, the same everywhere, or those of other images deserve no comparison."""
    assert failed(case_of(REFERENCE)) == set()
    empty = case_of(REFERENCE)._replace(reference=[NONE] * COUNT)
    assert {"reference: detections", "reference: boxes", "reference: mAP"} == failed(empty)
    alike = case_of(REFERENCE)._replace(reference=[REFERENCE[0]] * COUNT)
    assert "reference: boxes" in failed(alike)
    other = case_of(REFERENCE)._replace(truth=np.roll(TRUTH, 3, axis=0))
    assert failed(other) == {"reference: mAP"}
    few = case_of(REFERENCE[:5])._replace(reference=REFERENCE[:5], truth=TRUTH[:5])
    assert failed(few) == set()
    assert failed(few._replace(reference=REFERENCE[7:12])) == {"reference: mAP"}
    unsure = [item._replace(scores=item.scores * np.float32(0.2)) for item in REFERENCE]
    assert failed(case_of(REFERENCE, labels=False)._replace(reference=unsure)) == {"reference: detections"}
