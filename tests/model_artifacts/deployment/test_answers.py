"""Outputs as the tasks mean them."""

from __future__ import annotations

import numpy as np
import pytest

from model_artifacts.deployment.answers import label, name_values, require_answers, segment
from model_artifacts.errors import RunError, UsageError
from model_artifacts.records import Task

MAPS = np.zeros((2, 3, 4, 5), np.float32)
MAPS[0, 1, :, :3] = 1
MAPS[1, 2] = 1


def test_maps_become_masks_and_shares() -> None:
    """The largest logit of a pixel is its class. Absent classes are not named."""
    first, second = segment(MAPS, ["sky", "road", "car"])
    assert first.mask is not None
    assert first.mask.shape == (4, 5)
    assert first.mask.dtype == np.uint8
    assert [(item.name, item.score) for item in first.top] == [("road", 0.6), ("sky", 0.4)]
    assert (second.name, second.score, second.index) == ("car", 1.0, 2)
    assert [item.name for item in segment(MAPS, None, 1)[0].top] == ["1"]


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (MAPS[:, :2], "3 maps for each image"),
        (MAPS[0], "3 maps for each image"),
        (np.full_like(MAPS, np.nan), "not finite"),
    ],
    ids=["classes", "axes", "nan"],
)
def test_other_maps_are_refused(maps: np.typing.NDArray[np.float32], message: str) -> None:
    """They are no masks of these classes."""
    with pytest.raises(RunError, match=message):
        segment(maps, ["sky", "road", "car"])


LOGITS = np.array([[3, -3, 0], [-9, -9, -900]], np.float32)


def test_labels_are_those_that_reach_the_threshold() -> None:
    """The likeliest first, and none for an image without any; a large logit overflows nothing."""
    first, second = label(LOGITS, ["cat", "dog", "bird"], 0.5)
    assert [(item.name, item.index) for item in first.top] == [("cat", 0), ("bird", 2)]
    assert first.top[0].score == pytest.approx(1 / (1 + np.exp(-3)))
    assert second.top == ()
    with pytest.raises(UsageError, match="no class that does"):
        _ = second.name
    assert [item.name for item in label(LOGITS, None, 0.01, 2)[0].top] == ["0", "2"]


def test_numbers_have_names() -> None:
    """Those of the manifest, else their places."""
    first, _ = name_values(LOGITS, ["x", "y", "z"])
    assert [(item.name, item.value) for item in first.values] == [("x", 3.0), ("y", -3.0), ("z", 0.0)]
    assert first.top == ()
    assert [item.name for item in name_values(LOGITS, None)[1].values] == ["0", "1", "2"]


@pytest.mark.parametrize("rows", [LOGITS[:, :2], MAPS, np.full_like(LOGITS, np.inf)], ids=["names", "axes", "inf"])
def test_other_rows_are_refused(rows: np.typing.NDArray[np.float32]) -> None:
    """They are neither these labels nor these numbers."""
    with pytest.raises(RunError, match=r"not its labels|not finite"):
        label(rows, ["a", "b", "c"], 0.5)
    with pytest.raises(RunError, match=r"not its numbers|not finite"):
        name_values(rows, ["a", "b", "c"])


def test_tasks_without_answers_are_refused() -> None:
    """The user's own code knows what tensors mean."""
    require_answers(Task.SEGMENTATION)
    with pytest.raises(
        UsageError, match=r"(?s)classification, segmentation, multilabel, regression.*got: +tensors.*outputs"
    ):
        require_answers(Task.TENSORS)
