"""Image → the network's input, with Pillow and numpy alone, as a deployment needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from model_artifacts.errors import DataError, UnreadableError, one_line
from model_artifacts.records import Fit
from model_artifacts.sessions.pictures import to_colours

if TYPE_CHECKING:
    import os

    import numpy.typing as npt
    from PIL import Image

    from model_artifacts.records import Preprocessing


def read_pixels(file: str | os.PathLike[str], spec: Preprocessing) -> npt.NDArray[np.uint8]:
    """Open an image file, and prepare it like `to_pixels`. The build and the deployment both read files by it.

    Returns:
        uint8 pixels (height, width, channels) of the crop.

    Raises:
        UnreadableError: the file is missing, damaged or of no format that Pillow knows.
        DataError: the image's mode does not fit the preprocessing.
    """
    from PIL import Image  # noqa: PLC0415 - hosts that only run batches have no Pillow

    try:
        with Image.open(file) as image:
            return to_pixels(image, spec)
    except DataError:
        raise
    except Exception as exc:  # Pillow's decoders raise almost anything, SyntaxError included
        raise UnreadableError("the image cannot be read", where=str(file), got=one_line(exc)) from exc


def to_pixels(image: Image.Image, spec: Preprocessing) -> npt.NDArray[np.uint8]:
    """Convert the colours, resize, then crop the centre.

    The arithmetic is torchvision's (`Resize` of the short side with the long one truncated, `CenterCrop` with rounded
    offsets), so that weights trained behind its transforms get the pixels that they were trained on. `fit: cover` and
    `fit: border` give the sizes and the offsets of timm's transforms.

    Returns:
        uint8 pixels (height, width, channels) of the crop.

    Raises:
        DataError: the image's mode does not fit the preprocessing.
    """
    image = to_colours(image, spec)
    size = _resized(image.width, image.height, spec)
    placed = _resize_and_crop(image, size, spec)
    return np.asarray(placed, dtype=np.uint8).reshape(spec.height, spec.width, spec.channels)


class _Pixels(NamedTuple):
    """A size in pixels."""

    width: int
    height: int


def _resized(width: int, height: int, spec: Preprocessing) -> _Pixels:
    """Return the size of the whole resized image."""
    if isinstance(spec.resize, int):
        short = min(width, height)
        return _Pixels(int(spec.resize * width / short), int(spec.resize * height / short))
    to_height, to_width = spec.resize
    if spec.fit is Fit.SQUASH:
        return _Pixels(to_width, to_height)
    ratios = height / to_height, width / to_width
    ratio = min(ratios) if spec.fit is Fit.COVER else max(ratios)
    return _Pixels(max(1, round(width / ratio)), max(1, round(height / ratio)))


_MOST_PIXELS = 2**24
"""Pixels of a whole resized image above which only its crop is computed: 64 MiB in Pillow.

A picture of 1×16,000 pixels would take 3.7 GB. The crop's pixels are those of the whole resize to one step of 255,
because Pillow keeps the crop's place in single precision.
"""


def _resize_and_crop(image: Image.Image, size: _Pixels, spec: Preprocessing) -> Image.Image:
    """Return the centre of an image after its resize to `size`, on the mean's colour where the image is smaller."""
    from PIL.Image import Resampling, new  # noqa: PLC0415 - hosts that only run batches have no Pillow

    resampling = Resampling[spec.interpolation.name]
    crop = _Pixels(min(spec.width, size.width), min(spec.height, size.height))
    left, top = round((size.width - crop.width) / 2), round((size.height - crop.height) / 2)
    if size.width * size.height > _MOST_PIXELS:
        across, down = image.width / size.width, image.height / size.height
        columns = (left * across, 0, (left + crop.width) * across, image.height)
        image = image.resize((crop.width, image.height), resampling, columns)
        rows = (0, top * down, crop.width, (top + crop.height) * down)
        image = image.resize(crop, resampling, rows)  # after the columns, as in a whole resize: both passes round
    else:
        image = image.resize(size, resampling).crop((left, top, left + crop.width, top + crop.height))
    if crop == (spec.width, spec.height):
        return image
    fill = [round(255 * min(1, max(0, value))) for value in spec.mean]
    canvas = new(image.mode, (spec.width, spec.height), fill[0] if spec.channels == 1 else tuple(fill))
    canvas.paste(image, ((spec.width - crop.width) // 2, (spec.height - crop.height) // 2))
    return canvas


def to_input(pixels: npt.NDArray[np.uint8], spec: Preprocessing) -> npt.NDArray[np.float32]:
    """Scale to [0, 1], normalise, and put channels first.

    Args:
        pixels: uint8 (batch, height, width, channels).
        spec: the means and standard deviations.

    Returns:
        float32 (batch, channels, height, width), contiguous.
    """
    mean = np.asarray(spec.mean, dtype=np.float32)
    std = np.asarray(spec.std, dtype=np.float32)
    normal = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(normal.transpose(0, 3, 1, 2))
