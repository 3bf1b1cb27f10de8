"""Images that are alike, answers at chance, and channels in the other order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from model_artifacts.errors import DataError
from pipeline.stages.data.checks import chance_warning, require_different, require_order, several_labels_warning

if TYPE_CHECKING:
    import numpy.typing as npt


def images(*values: int) -> npt.NDArray[np.uint8]:
    """Return images of one value each."""
    return np.stack([np.full((4, 4, 1), value, dtype=np.uint8) for value in values])


def test_images_that_are_all_the_same_are_refused() -> None:
    """Images that were all read as white are no data, wherever they lie in their file."""
    with pytest.raises(DataError, match=r"(?s)all 70 images are the same.*pixels from 255 to 255"):
        require_different(images(*[255] * 70))


def test_one_other_image_is_enough() -> None:
    """A single image that differs, behind the first batch, makes data."""
    assert require_different(images(*[0] * 70, 200)) == ""
    assert require_different(images(7)) == ""


def test_faint_images_are_said() -> None:
    """Images within a few steps of 255, as of 12-bit values in 16 bits, get a warning."""
    assert require_different(images(2, 5, 13)) == "no pixel differs by more than 11 of 255 among 3 images"


@pytest.mark.parametrize(
    ("top1", "samples", "classes", "warns"),
    [(0.5, 40, 2, True), (0.6, 40, 2, True), (0.9, 40, 2, False), (0.1, 500, 10, True), (0.2, 500, 10, False)],
)
def test_answers_at_chance_are_said(top1: float, samples: int, classes: int, warns: bool) -> None:  # noqa: FBT001 - a case
    """A top-1 that guessing may reach gets a warning that names the order of the classes."""
    warning = chance_warning(top1, samples, classes)
    assert bool(warning) == warns
    assert not warns or ("no better than chance" in warning and "data.classes" in warning)


def answers(right: list[bool]) -> npt.NDArray[np.float32]:
    """Return logits of two classes, of which class 0 is right."""
    return np.array([[1, 0] if each else [0, 1] for each in right], dtype=np.float32)


def test_other_order_of_channels_that_is_better_is_refused() -> None:
    """A network that is right more often with red and blue exchanged takes blue first."""
    labels = np.zeros(100, dtype=np.int64)
    ours, theirs = answers([True] * 60 + [False] * 40), answers([True] * 90 + [False] * 10)
    with pytest.raises(DataError, match=r"(?s)red and blue exchanged.*90\.0%.*60\.0% of 100.*`order: bgr`"):
        require_order(ours, theirs, labels)


@pytest.mark.parametrize("better", [0, 5, 13])
def test_accident_is_no_order(better: int) -> None:
    """Equal answers, and a few more right ones, say nothing (13 of 13 has a probability of 1.2e-4)."""
    labels = np.zeros(100, dtype=np.int64)
    require_order(
        answers([True] * 50 + [False] * 50), answers([True] * (50 + better) + [False] * (50 - better)), labels
    )


def test_14_of_14_is_no_accident() -> None:
    """14 of 14 has a probability of 6e-5."""
    labels = np.zeros(100, dtype=np.int64)
    with pytest.raises(DataError, match="red and blue"):
        require_order(answers([True] * 70 + [False] * 30), answers([True] * 84 + [False] * 16), labels)


def test_network_at_chance_proves_no_order() -> None:
    """A network that guesses, as an untrained one, gets a warning instead of a refusal."""
    labels = np.zeros(100, dtype=np.int64)
    warning = require_order(answers([True] * 50 + [False] * 50), answers([True] * 90 + [False] * 10), labels)
    assert "top-1 of 90.0% against 50.0%" in warning
    assert "`order: bgr`" in warning


def test_logits_of_several_labels_are_told_from_those_of_one() -> None:
    """Sigmoids of two labels are both near 1; of one label a softmax decides, however large its logits are."""
    random = np.random.default_rng(0)
    truth = random.random((300, 20)) < 0.1
    labels = (np.where(truth, 5, -5) + random.normal(size=truth.shape)).astype(np.float32)
    assert "`model.task: multilabel`" in several_labels_warning(labels)
    one = (np.eye(20)[random.integers(20, size=300)] * 14 - 3 + 2 * random.normal(size=truth.shape)).astype(np.float32)
    assert several_labels_warning(one) == ""
    assert several_labels_warning(labels[:, :2]) == ""
    assert several_labels_warning(labels - 5) == ""  # nothing is likely
