"""Image → the network's input, with Pillow and numpy alone, as a deployment needs it."""

from __future__ import annotations

import io
import math
import os
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from model_artifacts.errors import DataError, UnreadableError, one_line, out_of_memory
from model_artifacts.records import Fit, ImageInput, Orientation
from model_artifacts.sessions.pictures import to_colours

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    import numpy.typing as npt
    from PIL import Image

    from model_artifacts.records import Preprocessing

    Picture: TypeAlias = Image.Image | str | os.PathLike[str] | bytes
    Boxes: TypeAlias = npt.NDArray[np.float64]

T = TypeVar("T")


def read_pixels(picture: Picture, spec: Preprocessing) -> npt.NDArray[np.uint8]:
    """Open a picture, and prepare it like `to_pixels`. The build and the deployment both read pictures by it.

    Args:
        picture: the path of an image file, the bytes of one, or Pillow's image.
        spec: the preprocessing.

    Returns:
        uint8 pixels (height, width, channels) of the crop.

    Raises:
        UnreadableError: the file is missing, damaged or of no format that Pillow knows.
        DataError: the image's mode does not fit the preprocessing.
        MemoryShortageError: the machine ran out of memory.
    """
    return read_with(picture, lambda image: to_pixels(image, spec))


def read_placed(picture: Picture, spec: Preprocessing) -> Placed:
    """Return what `read_pixels` returns, and the way there from the picture's own pixels, with the same errors."""
    return read_with(picture, lambda image: Placed(placement(*upright_size(image, spec), spec), to_pixels(image, spec)))


def read_with(picture: Picture, function: Callable[[Image.Image], T]) -> T:
    """Return a function's result of a picture that Pillow has opened, with the errors of `read_pixels`."""
    from PIL import Image  # noqa: PLC0415 - hosts that only run batches have no Pillow

    try:
        if isinstance(picture, Image.Image):
            picture.getpixel((0, 0))  # raises for an image that is closed, empty or cut off
            return function(picture)
        with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as image:
            return function(image)
    except DataError:
        raise
    except Exception as exc:  # Pillow's decoders raise almost anything, SyntaxError included
        if memory := out_of_memory(exc):
            raise memory from exc
        raise UnreadableError(
            "the image cannot be read",
            where=_place(picture),
            expected="an image of at least one pixel, in a format that Pillow reads",
            got=one_line(exc),
            fix=(
                "name a file that is there"
                if isinstance(exc, FileNotFoundError)
                else "open it in a viewer, and save it again as PNG or JPEG"
            ),
        ) from exc


def _place(picture: Picture) -> str:
    """Return a picture as messages name it."""
    if isinstance(picture, bytes):
        return f"an image of {len(picture):,} bytes in memory"
    if isinstance(picture, (str, os.PathLike)):
        return str(picture)
    return str(getattr(picture, "filename", "")) or f"Pillow's image of {picture.width}×{picture.height} pixels"


def to_pixels(image: Image.Image, spec: Preprocessing) -> npt.NDArray[np.uint8]:
    """Convert the colours, resize, then crop the centre.

    The arithmetic is torchvision's (`Resize` of the short side with the long one truncated, `CenterCrop` with rounded
    offsets), so that weights trained behind its transforms get the pixels that they were trained on. `fit: cover` and
    `fit: border` give the sizes and the offsets of timm's transforms, `offset: down` those of transformers.

    Returns:
        uint8 pixels (height, width, channels) of the crop.

    Raises:
        DataError: the image's mode does not fit the preprocessing.
    """
    image = to_colours(image, spec)
    fill = tuple(round(255 * min(1, max(0, value))) for value in spec.mean)
    size = _resized(image.width, image.height, spec)
    placed = _resize_and_crop(image, size, spec, spec.interpolation.name, fill)
    return np.asarray(placed, dtype=np.uint8).reshape(spec.height, spec.width, spec.channels)


def to_mask(mask: Image.Image, spec: Preprocessing, fill: int) -> npt.NDArray[np.uint8]:
    """Move a mask as `to_pixels` moves its image: each pixel keeps the value of the nearest one.

    Args:
        mask: the classes of the image's pixels, in mode L.
        spec: the image's preprocessing.
        fill: the value where a border surrounds the image.

    Returns:
        uint8 values (height, width) of the crop.
    """
    placed = _resize_and_crop(mask, _resized(mask.width, mask.height, spec), spec, "NEAREST", (fill,))
    return np.asarray(placed, dtype=np.uint8)


class Placement(NamedTuple):
    """The way from a picture's pixels to the network's input: x × scale_x + left, y × scale_y + top."""

    scale_x: float
    scale_y: float
    left: float
    top: float
    width: int
    """The picture's width in pixels, upright if the preprocessing turns it."""
    height: int
    """Its height."""

    def forward(self, boxes: Boxes) -> Boxes:
        """Return boxes of the picture (boxes, 4), as left, top, right and bottom, in pixels of the input."""
        found: Boxes = boxes * np.tile([self.scale_x, self.scale_y], 2) + np.tile([self.left, self.top], 2)
        return found

    def back(self, boxes: Boxes) -> Boxes:
        """Return boxes of the input in pixels of the picture, cut to it."""
        found = (boxes - np.tile([self.left, self.top], 2)) / np.tile([self.scale_x, self.scale_y], 2)
        cut: Boxes = np.clip(found, 0, np.tile([self.width, self.height], 2))
        return cut


class Placed(NamedTuple):
    """The pixels of a picture as the network takes them, and the way there from its own pixels."""

    place: Placement
    pixels: npt.NDArray[np.uint8]
    """(height, width, channels) of the crop."""


def placement(width: int, height: int, spec: Preprocessing) -> Placement:
    """Return the way from a picture of this size, in pixels, to the network's input."""
    size = _resized(width, height, spec)
    crop = _Pixels(min(spec.width, size.width), min(spec.height, size.height))
    border = (spec.width - crop.width) // 2, (spec.height - crop.height) // 2
    cut = spec.offset.of(size.width - crop.width), spec.offset.of(size.height - crop.height)
    left, top = (float(before - after) for before, after in zip(border, cut, strict=True))
    return Placement(size.width / width, size.height / height, left, top, width, height)


def upright_size(image: Image.Image, spec: Preprocessing) -> tuple[int, int]:
    """Return an image's width and height, turned upright if the preprocessing does it."""
    turned = orientation_of(image, spec) in _LYING
    return (image.height, image.width) if turned else (image.width, image.height)


def orientation_of(image: Image.Image, spec: Preprocessing) -> int:
    """Return EXIF's orientation of an image; 1, which is upright, if the preprocessing leaves images as they lie."""
    orientation: int = image.getexif().get(_ORIENTATION, 1) if spec.orientation is Orientation.EXIF else 1
    return orientation


_ORIENTATION, _LYING = 0x0112, {5, 6, 7, 8}
"""EXIF's tag of the orientation, and its values that exchange width and height."""


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


MOST_PIXELS = 2**24
"""Pixels of a whole resized image above which only its crop is computed: 64 MiB in Pillow.

A picture of 1×16,000 pixels would take 3.7 GB. The crop's pixels are those of the whole resize to one step of 255,
because Pillow keeps the crop's place in single precision.
"""
_REACH = 4
"""Rows beyond the crop that a filter may read, in rows of the larger size: one more than LANCZOS reads."""


def _resize_and_crop(
    image: Image.Image, size: _Pixels, spec: Preprocessing, interpolation: str, fill: tuple[int, ...]
) -> Image.Image:
    """Return the centre of an image after its resize to `size`, on one colour where the image is smaller."""
    from PIL.Image import Resampling, new  # noqa: PLC0415 - hosts that only run batches have no Pillow

    resampling = Resampling[interpolation]
    crop = _Pixels(min(spec.width, size.width), min(spec.height, size.height))
    left, top = spec.offset.of(size.width - crop.width), spec.offset.of(size.height - crop.height)
    if size.width * size.height > MOST_PIXELS:
        across, down = image.width / size.width, image.height / size.height
        upper, lower = top * down, (top + crop.height) * down
        reach = _REACH * max(1, down)
        first, last = max(0, math.floor(upper - reach)), min(image.height, math.ceil(lower + reach))
        columns = (left * across, first, (left + crop.width) * across, last)
        image = image.resize((crop.width, last - first), resampling, columns)
        rows = (0, upper - first, crop.width, lower - first)
        image = image.resize(crop, resampling, rows)  # after the columns, as in a whole resize: both passes round
    else:
        image = image.resize(size, resampling).crop((left, top, left + crop.width, top + crop.height))
    if crop == (spec.width, spec.height):
        return image
    canvas = new(image.mode, (spec.width, spec.height), fill[0] if len(fill) == 1 else fill)
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


def to_feed(pixels: npt.NDArray[np.uint8], spec: Preprocessing, kind: ImageInput) -> npt.NDArray[Any]:
    """Return pixels as an artifact with this input takes them.

    Args:
        pixels: uint8 (batch, height, width, channels).
        spec: the means and standard deviations.
        kind: the input.

    Returns:
        contiguous: the pixels themselves for uint8, else normalised (batch, channels, height, width) of its type.
    """
    if kind is ImageInput.UINT8:
        return np.ascontiguousarray(pixels)
    return to_input(pixels, spec).astype(kind.value, copy=False)


def feed_shape(spec: Preprocessing, kind: ImageInput) -> tuple[int, int, int]:
    """Return the shape of one sample as an artifact with this input takes it."""
    channels, height, width = spec.input_shape
    return (height, width, channels) if kind is ImageInput.UINT8 else spec.input_shape
