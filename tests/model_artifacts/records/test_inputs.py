"""Preprocessing: accepted settings and contradictions."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from model_artifacts.records import Interpolation, Preprocessing
from tests.support.records import RGB


def test_preprocessing_of_three_means_is_rgb() -> None:
    """The input's shape follows from the crop and the means."""
    assert (RGB.channels, RGB.input_shape) == (3, (3, 16, 16))


def test_preprocessing_of_one_mean_is_greyscale() -> None:
    """One mean makes one channel."""
    grey = Preprocessing(resize=32, crop=32, interpolation=Interpolation.NEAREST, mean=(0.5,), std=(0.5,))
    assert grey.input_shape == (1, 32, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": 33}, "expected crop ≤ resize, got crop 33, resize 32"),
        ({"mean": (0.5,)}, "expected one mean and one std .* got 1 and 3"),
        ({"mean": (0.5, 0.5), "std": (0.5, 0.5)}, "expected one mean and one std .* got 2 and 2"),
        ({"mean": (), "std": ()}, "expected one mean and one std .* got 0 and 0"),
        ({"std": (0.5, 0.0, 0.5)}, r"expected every std above 0, got \[0\.5, 0\.0, 0\.5\]"),
        ({"std": (0.5, -1.0, 0.5)}, r"expected every std above 0, got \[0\.5, -1\.0, 0\.5\]"),
    ],
)
def test_preprocessing_that_contradicts_itself_is_refused(change: dict[str, object], message: str) -> None:
    """Each contradiction has a message with both of its sides."""
    with pytest.raises(ValidationError, match=message):
        Preprocessing.model_validate(RGB.model_dump() | change)
