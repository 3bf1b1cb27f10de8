"""Image → 8-bit pixels in the network's colours, with Pillow: orientation, transparency and levels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from model_artifacts.errors import DataError
from model_artifacts.records import ChannelOrder, Orientation, Transparency

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL import Image

    from model_artifacts.records import Preprocessing


def to_colours(image: Image.Image, spec: Preprocessing) -> Image.Image:
    """Return an image in 8 bits: mode L for a greyscale network, else RGB, or BGR under the name RGB.

    Four channels are RGBA, or BGRA under that name: an image without transparency is opaque.

    Colours are converted by Pillow, as torchvision's `ImageFolder` does it: palettes are looked up, CMYK and YCbCr are
    computed without a colour profile, and 16-bit colours keep their upper 8 bits. 16-bit, 32-bit and float greyscale
    has no black and white of its own. It needs `levels`, between which it is scaled.

    Raises:
        DataError: the image needs `levels`, has values that are no numbers, or its mode cannot be converted.
    """
    from PIL import ImageOps  # noqa: PLC0415 - hosts that only run batches have no Pillow

    if spec.orientation is Orientation.EXIF:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _between_levels(image, spec)
    if spec.transparency is not Transparency.DROPPED and image.has_transparency_data:
        image = _on(spec.transparency.value, image)
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[spec.channels]
    try:
        converted = (image.convert("RGB") if image.mode == "LAB" else image).convert(mode)
    except ValueError as exc:
        raise DataError(
            f"Pillow cannot convert images of mode {image.mode} to {mode}",
            where=_name(image),
            expected=f"a mode that Pillow converts to {mode}",
            got=str(exc),
            fix="save the image in RGB or greyscale",
        ) from exc
    if spec.order is ChannelOrder.BGR:
        from PIL import Image as PillowImage  # noqa: PLC0415 - the same

        red, green, blue, *alpha = converted.split()
        converted = PillowImage.merge(mode, (blue, green, red, *alpha))
    return converted


_STRIP = 2**20
"""Pixels of an image of more than 8 bits that are scaled at once: 8 MiB in double precision."""


def _between_levels(image: Image.Image, spec: Preprocessing) -> Image.Image:
    """Return an image of more than 8 bits in mode L: the lower level is black, the upper one white."""
    from PIL import Image as PillowImage  # noqa: PLC0415 - hosts that only run batches have no Pillow

    step = max(1, _STRIP // image.width)
    strips = [(top, min(top + step, image.height)) for top in range(0, image.height, step)]
    values = (np.asarray(image.crop((0, top, image.width, end)), dtype=np.float64) for top, end in strips)
    if spec.levels is None:
        _check_numbers(image, extent := [_extent(strip) for strip in values])
        raise DataError(
            f"the image has more than 8 bits a pixel (Pillow's mode {image.mode}), and nothing says which values are "
            "black and white",
            where=_name(image),
            expected="8 bits a pixel, or `levels` in the preprocessing",
            got=f"values from {min(part.low for part in extent):g} to {max(part.high for part in extent):g}",
            fix="add `levels` to `preprocessing` in pipeline.yaml, with the values that became 0 and 1 in training: "
            "levels: [0, 65535] for 16 bits, [0, 4095] for 12, [0, 1] for float",
        )
    low, high = spec.levels
    scaled = np.empty((image.height, image.width), dtype=np.uint8)
    extent = []
    for (top, end), strip in zip(strips, values, strict=True):
        extent.append(_extent(strip))
        if not extent[-1].broken:
            np.rint(np.clip((strip - low) / (high - low), 0, 1) * 255, out=scaled[top:end], casting="unsafe")
    _check_numbers(image, extent)
    return PillowImage.fromarray(scaled)


class _Extent(NamedTuple):
    """The smallest and the largest value of some pixels, and the number of those that are NaN or infinite."""

    low: float
    high: float
    broken: int


def _extent(values: npt.NDArray[np.float64]) -> _Extent:
    low, high = float(values.min()), float(values.max())
    broken = 0 if math.isfinite(low) and math.isfinite(high) else int((~np.isfinite(values)).sum())
    return _Extent(low, high, broken)


def _check_numbers(image: Image.Image, extent: list[_Extent]) -> None:
    """Raise `DataError` for an image with pixels that are no numbers."""
    if broken := sum(part.broken for part in extent):
        raise DataError(
            "the image has pixels that are no numbers",
            where=_name(image),
            expected="finite values",
            got=f"NaN or infinity in {broken} of {image.width * image.height} pixels",
            fix="replace these pixels before the image is saved",
        )


def _on(colour: str, image: Image.Image) -> Image.Image:
    """Return an image with transparency on a background of one colour, in mode RGB."""
    from PIL import Image as PillowImage  # noqa: PLC0415 - hosts that only run batches have no Pillow

    above = image.convert("RGBA")
    return PillowImage.alpha_composite(PillowImage.new("RGBA", above.size, colour), above).convert("RGB")


def _name(image: Image.Image) -> str:
    """Return the name of the image's file; empty for an image from memory."""
    return str(getattr(image, "filename", ""))
