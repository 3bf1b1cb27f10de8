"""Image → 8-bit pixels in the network's colours, with Pillow: orientation, transparency and levels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from model_artifacts.errors import DataError
from model_artifacts.records import ChannelOrder, Orientation, Transparency

if TYPE_CHECKING:
    from PIL import Image

    from model_artifacts.records import Preprocessing


def to_colours(image: Image.Image, spec: Preprocessing) -> Image.Image:
    """Return an image in 8 bits: mode L for a greyscale network, else RGB, or BGR under the name RGB.

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
    mode = "L" if spec.channels == 1 else "RGB"
    try:
        converted = (image.convert("RGB") if image.mode == "LAB" else image).convert(mode)
    except ValueError as exc:
        raise DataError(
            f"Pillow cannot convert images of mode {image.mode} to {mode}",
            where=_name(image),
            got=str(exc),
            fix="save the image in RGB or greyscale",
        ) from exc
    if spec.order is ChannelOrder.BGR:
        from PIL import Image as PillowImage  # noqa: PLC0415 - the same

        converted = PillowImage.merge("RGB", converted.split()[::-1])
    return converted


def _between_levels(image: Image.Image, spec: Preprocessing) -> Image.Image:
    """Return an image of more than 8 bits in mode L: the lower level is black, the upper one white."""
    from PIL import Image as PillowImage  # noqa: PLC0415 - hosts that only run batches have no Pillow

    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise DataError(
            "the image has pixels that are no numbers",
            where=_name(image),
            expected="finite values",
            got=f"NaN or infinity in {int((~np.isfinite(values)).sum())} of {values.size} pixels",
        )
    if spec.levels is None:
        raise DataError(
            f"the image has more than 8 bits a pixel (Pillow's mode {image.mode}), and nothing says which values are "
            "black and white",
            where=_name(image),
            got=f"values from {values.min():g} to {values.max():g}",
            fix="add `levels` to `preprocessing` in pipeline.yaml, with the values that became 0 and 1 in training: "
            "levels: [0, 65535] for 16 bits, [0, 4095] for 12, [0, 1] for float",
        )
    low, high = spec.levels
    scaled = np.clip((values - low) / (high - low), 0, 1) * 255
    return PillowImage.fromarray(np.rint(scaled).astype(np.uint8))


def _on(colour: str, image: Image.Image) -> Image.Image:
    """Return an image with transparency on a background of one colour, in mode RGB."""
    from PIL import Image as PillowImage  # noqa: PLC0415 - hosts that only run batches have no Pillow

    above = image.convert("RGBA")
    return PillowImage.alpha_composite(PillowImage.new("RGBA", above.size, colour), above).convert("RGB")


def _name(image: Image.Image) -> str:
    """Return the name of the image's file; empty for an image from memory."""
    return str(getattr(image, "filename", ""))
