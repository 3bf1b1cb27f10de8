"""Outputs as the tasks mean them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from model_artifacts.deployment.answers import answers_of, detect, label, name_values, require_answers, segment
from model_artifacts.errors import RunError, UsageError
from model_artifacts.records import BoxFormat, Decoding, Task
from tests.model_artifacts.deployment.test_files import MODEL

if TYPE_CHECKING:
    from model_artifacts.records import ManifestModel

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


def test_a_function_of_the_users_own_is_refused() -> None:
    """No artifact holds it."""
    require_answers(Task.DETECTION)
    with pytest.raises(UsageError, match=r"(?s)no code of yours.*own:decode"):
        require_answers(Task.DETECTION, "own:decode")


def facts(**update: object) -> ManifestModel:
    """Return a detector's facts, of two outputs and two classes."""
    decoding = Decoding(boxes="boxes", scores="scores", format=BoxFormat.XYXY)
    assert MODEL.preprocessing is not None
    spec = MODEL.preprocessing.model_copy(update={"resize": 64, "crop": 48})
    own = {"preprocessing": spec, "task": Task.DETECTION, "decoding": decoding, "class_names": ("cat", "dog"), **update}
    return MODEL.model_copy(update=own)


def test_boxes_have_names_and_scores() -> None:
    """The best box first; the classes, each with its best score."""
    boxes = np.array([[[0, 0, 8, 8], [8, 8, 16, 16], [20, 20, 30, 30]]], np.float32)
    outputs = {"boxes": boxes, "scores": np.array([[[0.0, 0.5], [0.9, 0.0], [0.0, 0.7]]], np.float32)}
    (found,) = detect(outputs, facts())
    assert [(box.name, box.box) for box in found.boxes] == [
        ("cat", (8, 8, 16, 16)),
        ("dog", (20, 20, 30, 30)),
        ("dog", (0, 0, 8, 8)),
    ]
    assert [item.name for item in found.top] == ["cat", "dog"]
    assert [item.score for item in found.top] == pytest.approx([0.9, 0.7])
    assert len(detect(outputs, facts(), 1)[0].boxes) == 1
    assert detect(outputs, facts(class_names=None))[0].boxes[0].name == "0"
    for wrong, message in (
        ({"class_names": ("cat",)}, "1 classes"),
        ({"decoding": None}, "does not say how to decode"),
        ({"decoding": Decoding()}, "does not suit"),
    ):
        with pytest.raises(RunError, match=message):
            detect(outputs, facts(**wrong))
    outputs["scores"][0, 0, 0] = np.inf
    with pytest.raises(RunError, match="not finite"):
        detect(outputs, facts())


def test_other_tasks_have_one_output() -> None:
    """Several are refused, rather than one of them taken."""
    with pytest.raises(RunError, match=r"(?s)has one output.*boxes"):
        answers_of({"boxes": MAPS, "scores": MAPS}, facts(task=Task.SEGMENTATION), None)
