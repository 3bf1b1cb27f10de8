"""Rows of outputs as detections: the user's own function, and what it may return."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from model_artifacts.errors import RunError
from model_artifacts.records import Decoding
from pipeline.stages.common.rows import Span
from pipeline.stages.validate.detections import Detector

if TYPE_CHECKING:
    from collections.abc import Callable

SPANS = (Span("boxes", (2, 4), slice(0, 8)), Span("scores", (2, 1), slice(8, 10)))
ROWS = np.tile(np.array([0, 0, 8, 8, 8, 8, 16, 16, 0.4, 0.9], np.float32), (40, 1))
BOXES, SCORES, LABELS = np.array([[0, 0, 8, 8], [8, 8, 16, 16]]), np.array([0.4, 0.9]), np.array([0, 0])


def detector(function: Callable[[dict[str, np.typing.NDArray[np.float32]]], object]) -> Detector:
    """Return the step by a function."""
    return Detector(SPANS, (16, 16), None, function, "own:function", 1)


def test_the_settings_and_a_function_give_the_same() -> None:
    """Sorted by the scores; the function gets each output by its name, in batches, and may change it."""
    sizes = []

    def own(outputs: dict[str, np.typing.NDArray[np.float32]]) -> object:
        sizes.append(len(outputs["boxes"]))
        found = [
            (boxes.copy(), scores[:, 0], np.zeros(2, int)) for boxes, scores in zip(*outputs.values(), strict=True)
        ]
        outputs["boxes"][:] = 0
        return found

    decoding = Decoding(boxes="boxes", scores="scores", format="xyxy")
    by_settings = Detector(SPANS, (16, 16), decoding, classes=1).detections(ROWS)
    by_function = detector(own).detections(ROWS)
    assert sizes == [32, 8]
    for one, other in zip(by_settings, by_function, strict=True):
        for left, right in zip(one, other, strict=True):
            np.testing.assert_array_equal(left, right)
    assert by_settings[0].scores.tolist() == pytest.approx([0.9, 0.4])


def test_near_scores_belong_to_the_reference() -> None:
    """A score just below the threshold is seen on demand."""
    decoding = Decoding(boxes="boxes", scores="scores", format="xyxy", score_threshold=0.5)
    own = Detector(SPANS, (16, 16), decoding, classes=1)
    assert [len(own.detections(ROWS, near=near)[0].scores) for near in (False, True)] == [1, 2]
    case = own.case(ROWS, ROWS)
    assert (case.threshold, len(case.found[0].scores), len(case.before[0].scores)) == (0.5, 1, 1)


def test_an_image_that_is_not_finite_does_not_reach_the_function() -> None:
    """It has no detections."""
    rows = ROWS[:3].copy()
    rows[1, 9] = np.nan
    found = detector(lambda outputs: [(BOXES, SCORES, LABELS)] * len(outputs["boxes"])).detections(rows)
    assert [len(item.scores) for item in found] == [2, 0, 2]
    assert len(detector(lambda _: [([], [], [])] * 3).detections(ROWS[:3])[0].scores) == 0


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ((BOXES, SCORES), "boxes, scores and labels"),
        ((BOXES[:1], SCORES, LABELS), r"\(detections, 4\)"),
        ((BOXES.astype(str), SCORES, LABELS), r"\(detections, 4\)"),
        ((BOXES[:, ::-1], SCORES, LABELS), "left, top, right, bottom"),
        ((BOXES * np.nan, SCORES, LABELS), "left, top, right, bottom"),
        ((BOXES, SCORES * 2, LABELS), "scores from 0 to 1"),
        ((BOXES, SCORES, LABELS + 1), "whole numbers from 0 to 0"),
        ((BOXES, SCORES, LABELS * 0.5), "whole numbers"),
    ],
    ids=["two", "count", "text", "order", "nan", "scores", "class", "fraction"],
)
def test_something_else_than_detections_is_an_error(entry: object, message: str) -> None:
    """The message says what is expected."""
    with pytest.raises(RunError, match=rf"(?s)own:function returns no detections.*{message}"):
        detector(lambda outputs: [entry] * len(outputs["boxes"])).detections(ROWS)


@pytest.mark.parametrize("result", [None, [], np.zeros((40, 3))], ids=["none", "fewer", "array"])
def test_another_result_is_an_error(result: object) -> None:
    """It must be a list of all images."""
    with pytest.raises(RunError, match="an entry for each of 32 images"):
        detector(lambda _: result).detections(ROWS)


def test_a_function_that_fails_is_an_error() -> None:
    """With its own message."""
    with pytest.raises(RunError, match=r"(?s)own:function fails.*KeyError.*masks"):
        detector(lambda outputs: outputs["masks"]).detections(ROWS)
