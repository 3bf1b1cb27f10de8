"""Records of a model's preprocessing, inputs, outputs and weights."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from pydantic import Field, model_validator

from model_artifacts.records.base import Record, Whole


class Interpolation(str, Enum):
    """Filter for resizing an image (Pillow's filter of the same name)."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


class Preprocessing(Record):
    """Steps from an image file to the network's input: resize the short side, centre crop, scale to [0, 1], normalise.

    The input is float32 in NCHW order. One mean makes it greyscale, three make it RGB.
    """

    resize: Whole
    """Length of the short side after resizing, in pixels."""
    crop: Whole
    """Side of the square crop in pixels, at most `resize`."""
    interpolation: Interpolation
    """Filter of the resize."""
    mean: tuple[Annotated[float, Field(strict=True)], ...]
    """Mean of each channel, subtracted after scaling to [0, 1]."""
    std: tuple[Annotated[float, Field(strict=True)], ...]
    """Standard deviation of each channel, the divisor after that."""

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
        """Number of channels: 1 for greyscale, 3 for RGB."""
        return len(self.mean)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one sample: (channels, height, width)."""
        return (self.channels, self.crop, self.crop)


class TensorSpec(Record):
    """An input or output of a model."""

    name: str
    """Name of the tensor."""
    shape: tuple[int | str, ...]
    """Sizes of the axes; a string is a dynamic axis."""
    dtype: str
    """Element type, such as `float32`."""
    layout: str
    """Order of the axes, such as `NCHW`."""


class WeightsOrigin(str, Enum):
    """Origin of a model's weights."""

    IMAGENET1K_V1 = "IMAGENET1K_V1"
    """torchvision's weights of this name."""
    CHECKPOINT = "checkpoint"
    """A file with a state dict."""
    FACTORY = "factory"
    """The weights that the factory itself returns."""
    SAMPLE = "sample"
    """The sample model: a seeded backbone with a head fitted on digits."""
