"""Preprocessing: accepted settings and contradictions."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from model_artifacts.records import ChannelOrder, Fit, Interpolation, Preprocessing
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
        ({"mean": (0.5,), "std": (0.5,), "order": "bgr"}, "`order` only with three means"),
        ({"levels": (1.0, 0.0)}, r"`levels` in ascending order, got \[1\.0, 0\.0\]"),
        ({"input_range": (1.0, 1.0)}, r"`input_range` in ascending order, got \[1\.0, 1\.0\]"),
        ({"fit": "cover"}, r"`fit` with a height and a width, such as resize: \[32, 32\]"),
        (
            {"resize": (32, 32), "crop": (16, 33)},
            r"crop ≤ resize, got crop \[16, 33\], resize \[32, 32\]; write the `resize` and the `crop`",
        ),
        ({"crop": (16, 64)}, r"got crop \[16, 64\], resize 32; write resize: \[32, 64\] to squash, with fit: cover"),
        (
            {"resize": (32, 32, 3)},
            r"expected a whole number of pixels above 0, or \[height, width\], got \(32, 32, 3\)",
        ),
        ({"resize": True}, "expected a whole number of pixels above 0, or .* got true"),
        ({"crop": (0, 3)}, r"expected a whole number of pixels above 0, or .* got \(0, 3\)"),
    ],
)
def test_preprocessing_that_contradicts_itself_is_refused(change: dict[str, object], message: str) -> None:
    """Each contradiction has a message with both of its sides."""
    with pytest.raises(ValidationError, match=message):
        Preprocessing.model_validate(RGB.model_dump() | change)


def test_rectangle_has_its_height_first() -> None:
    """A height and a width make the shape of the input."""
    wide = RGB.model_copy(update={"resize": (192, 256), "crop": (192, 256)})
    assert wide.input_shape == (3, 192, 256)


def test_later_fields_are_in_the_json_only_if_they_say_something() -> None:
    """Old readers and old keys see no fields that change nothing; all others come back as they were."""
    assert list(RGB.model_dump(mode="json")) == ["resize", "crop", "interpolation", "mean", "std"]
    full = RGB.model_copy(
        update={"resize": (32, 32), "fit": Fit.BORDER, "order": ChannelOrder.BGR, "levels": (0.0, 4095.0)}
    )
    assert Preprocessing.model_validate_json(full.to_json()) == full
    assert set(full.model_dump(mode="json")) >= {"fit", "order", "levels"}


def test_reach_of_the_inputs() -> None:
    """The inputs reach from the black of the brightest channel to the white of the darkest."""
    spec = RGB.model_copy(update={"mean": (0.5, 0.4, 0.2), "std": (0.25, 0.2, 0.4)})
    assert spec.reach == pytest.approx((-2, 3))
