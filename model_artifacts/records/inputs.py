"""Records: the frozen, validated types that cross modules and that JSON files hold.

A record refuses unknown fields, is checked once when it is made, and round-trips through JSON. Units are in the names.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from pydantic import Field, model_validator

from model_artifacts.records.base import Record, Whole


class Interpolation(str, Enum):
    """How an image is resized (Pillow's filters of these names)."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


class Preprocessing(Record):
    """From an image file to the network's input: resize the short side, centre crop, scale to [0, 1], normalise.

    The input is float32 in NCHW order; one mean makes it greyscale, three RGB.
    """

    resize: Whole
    crop: Whole
    interpolation: Interpolation
    mean: tuple[Annotated[float, Field(strict=True)], ...]
    std: tuple[Annotated[float, Field(strict=True)], ...]

    @model_validator(mode="after")
    def _consistent(self) -> Preprocessing:
        if self.crop > self.resize:
            raise ValueError(f"expected crop ≤ resize, got crop {self.crop}, resize {self.resize}")
        if len(self.mean) not in {1, 3} or len(self.mean) != len(self.std):
            raise ValueError(
                "expected one mean and one std (greyscale) or three of each (RGB), "
                f"got {len(self.mean)} and {len(self.std)}"
            )
        if min(self.std) <= 0:
            raise ValueError(f"expected every std above 0, got {list(self.std)}")
        return self

    @property
    def channels(self) -> int:
        """1 for greyscale, 3 for RGB."""
        return len(self.mean)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one sample."""
        return (self.channels, self.crop, self.crop)


class TensorSpec(Record):
    """An input or output: a string in the shape is a dynamic axis."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    layout: str


class WeightsOrigin(str, Enum):
    """Where the weights came from."""

    IMAGENET1K_V1 = "IMAGENET1K_V1"
    CHECKPOINT = "checkpoint"
    FACTORY = "factory"
    SAMPLE = "sample"
