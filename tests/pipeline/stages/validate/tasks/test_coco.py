"""COCO's average precision, of all images and of each."""

from __future__ import annotations

import numpy as np
import pytest

from model_artifacts.deployment.detections import NONE, Detections
from pipeline.records import BoxKind
from pipeline.stages.validate.tasks.coco import average_precision, mean_precision

NOTHING = np.zeros((0, 6))


def found(*rows: tuple[float, float, float, float, int, float]) -> Detections:
    """Return detections of left, top, right, bottom, class and score."""
    table = np.array(rows, dtype=np.float64)
    return Detections(table[:, :4].astype(np.float32), table[:, 5].astype(np.float32), table[:, 4].astype(np.int64))


def true(*rows: tuple[float, float, float, float, int, int]) -> np.typing.NDArray[np.float64]:
    """Return true boxes of left, top, right, bottom, class and kind."""
    return np.array(rows, dtype=np.float64)


def test_what_is_right_scores_1() -> None:
    """Also an image without boxes, in which nothing is found."""
    boxes = [true((0, 0, 10, 10, 0, 0), (20, 20, 30, 34, 1, 0)), NOTHING]
    result = average_precision([found((0, 0, 10, 10, 0, 0.9), (20, 20, 30, 34, 1, 0.4)), NONE], boxes, 100)
    assert result.mean == pytest.approx(1)
    assert result.half == pytest.approx(1)
    assert result.images == pytest.approx([1, 1])


def test_half_a_box_counts_at_the_lowest_threshold_alone() -> None:
    """An intersection over union of 0.52 passes one of ten thresholds."""
    result = average_precision([found((0, 0, 10, 5.2, 0, 0.9))], [true((0, 0, 10, 10, 0, 0))], 100)
    assert result.mean == pytest.approx(0.1)
    assert result.half == pytest.approx(1)
    assert result.images == pytest.approx([0.1])


def test_wrong_boxes_weigh_by_their_score() -> None:
    """A class that the image has not is one more that is missed; an empty image counts as one class."""
    wrong = found((0, 0, 10, 10, 1, 0.5))
    result = average_precision([wrong, wrong], [NOTHING, true((0, 0, 10, 10, 0, 0))], 100)
    assert result.images == pytest.approx([1 / 1.5, 0])
    assert result.mean == 0
    right = found((0, 0, 10, 10, 1, 0.5), (0, 0, 10, 10, 0, 0.9))
    assert average_precision([right], [true((0, 0, 10, 10, 0, 0))], 100).images == pytest.approx([1 / 1.5])


@pytest.mark.parametrize("kind", [BoxKind.IGNORED, BoxKind.CROWD])
def test_ignored_boxes_may_be_found_or_not(kind: BoxKind) -> None:
    """What lies in them is neither right nor wrong."""
    boxes = [true((0, 0, 10, 10, 0, kind), (20, 20, 30, 30, 0, 0))]
    right = (20, 20, 30, 30, 0, 0.5)
    for detections in (found(right), found((0, 0, 10, 10, 0, 0.9), right)):
        result = average_precision([detections], boxes, 100)
        assert result.mean == pytest.approx(1)
        assert result.images == pytest.approx([1])
    small = average_precision([found((2, 2, 4, 4, 0, 0.9), right)], boxes, 100)
    assert small.mean == pytest.approx(1 if kind is BoxKind.CROWD else 0.5)


def test_without_any_box_there_is_nothing_to_measure() -> None:
    """Neither true nor found."""
    result = average_precision([NONE, NONE], [NOTHING, NOTHING], 100)
    assert (result.mean, result.half, mean_precision([NONE], [NOTHING], 100)) == (0, 0, 0)
    assert result.images.tolist() == [1, 1]


def test_many_images_are_scored_as_each_alone() -> None:
    """In parts or at once."""
    random = np.random.default_rng(0)
    truth: list[np.typing.NDArray[np.float64]] = []
    detections = []
    for _ in range(300):
        corner = random.uniform(0, 40, (3, 2))
        rows = np.column_stack([corner, corner + random.uniform(5, 20, (3, 2)), random.integers(0, 3, 3), np.zeros(3)])
        truth.append(rows.astype(np.float64))
        moved = rows[:, :4] + random.normal(0, 1, (3, 4))
        detections.append(found(*np.column_stack([moved, rows[:, 4], random.uniform(0, 1, 3)])))
    whole = average_precision(detections, truth, 100)
    for place in (0, 255, 256, 299):
        alone = average_precision([detections[place]], [truth[place]], 100)
        assert alone.images[0] == pytest.approx(alone.mean)
        assert alone.images[0] == pytest.approx(whole.images[place])
    assert 0.2 < whole.mean < whole.half < 1
    assert mean_precision(detections, truth, 100) == whole.mean
