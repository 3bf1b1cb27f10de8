"""Pictures → pixels on a GPU: nvJPEG decodes them, and torch resizes, crops and normalises.

The sizes and offsets are those of `preprocessing`. The decoder and the arithmetic of the resize are others: a level of
255 differs here and there, and more where nvJPEG enlarges the colours of a JPEG in another way than libjpeg.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from model_artifacts.errors import RunError, UnsupportedError, one_line
from model_artifacts.host.environment import installed, version
from model_artifacts.records import ChannelOrder, ImageInput, Interpolation
from model_artifacts.sessions.pictures import to_colours
from model_artifacts.sessions.preprocessing import (
    MOST_PIXELS,
    orientation_of,
    placement,
    read_with,
    to_pixels,
    upright_size,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from PIL import Image

    from model_artifacts.records import Preprocessing
    from model_artifacts.sessions.preprocessing import Picture, Placement

log = logging.getLogger(__name__)

_MODES = {Interpolation.BILINEAR: "bilinear", Interpolation.BICUBIC: "bicubic"}
"""Torch's filters with Pillow's weights. Its nearest pixel is another one where two are equally near."""
_DECODED_AT_ONCE = 2**26
"""The most pixels of pictures that are decoded at once: 200 MB at three bytes each, and five photographs of 12 MP."""
_END = b"\xff\xd9"
"""JPEG's end of an image. Pillow refuses a file without it, which is cut off."""
_TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
"""EXIF's orientations: rows and columns exchanged, then the rows and the columns in reverse."""


class _Way(NamedTuple):
    """The way of one picture to its crop."""

    placed: Placement
    jpeg: bytes | None = None
    """The file, if nvJPEG decodes it."""
    orientation: int = 1
    """EXIF's orientation, to apply after nvJPEG."""
    colours: Any = None
    """Pixels (height, width, channels) that Pillow decoded; None of a JPEG."""
    finished: Any = None
    """The crop's pixels, of a picture that only Pillow can resize."""


class PlacedPixels(NamedTuple):
    """Pixels of pictures, and the way of each to the network's input."""

    places: tuple[Placement, ...]
    pixels: Any
    """Torch's uint8 tensor (pictures, height, width, channels)."""


def decoder() -> str:
    """Return the libraries that decode and resize, as records name them."""
    return f"torchvision {version('torchvision')}, torch {version('torch')}"


class TorchPictures:
    """A reader of pictures for one device. Any thread may use it."""

    def __init__(self, spec: Preprocessing, device: str) -> None:
        """Check that torch can do this preprocessing on the device.

        Args:
            spec: the preprocessing.
            device: torch's name of the device, such as `cuda:0`.

        Raises:
            UnsupportedError: torch or torchvision is missing, or torch has no such filter.
        """
        missing = [name for name in ("torch", "torchvision") if not installed(name)]
        if missing:
            raise UnsupportedError(
                f"pictures are decoded on the GPU by torchvision, and {missing[0]} is not installed here",
                fix="install torch and torchvision of one release, or decode on the processor",
            )
        if spec.interpolation not in _MODES:
            raise UnsupportedError(
                f"torch has no filter {spec.interpolation.value} on a GPU",
                expected=f"`interpolation`: {', '.join(item.value for item in _MODES)}",
                got=spec.interpolation.value,
                fix="decode on the processor",
            )
        self._spec = spec
        self._device = device

    def read(self, pictures: Sequence[Picture]) -> PlacedPixels:
        """Return the pixels of pictures, and the way of each to the network's input.

        A picture that nvJPEG does not decode, such as a PNG, is decoded by Pillow.

        Args:
            pictures: paths, bytes of image files, or Pillow's images.

        Returns:
            pixels (pictures, height, width, channels), contiguous, on the device.

        Raises:
            UnreadableError: a file is missing, damaged or of no format that Pillow knows.
            DataError: an image's mode does not fit the preprocessing.
            RunError: the GPU has no room for the pictures.
        """
        import torch  # noqa: PLC0415 - hosts that decode on the processor have none

        places: list[Placement] = []
        crops: list[Any] = []
        try:
            for group in self._groups(pictures):
                decoded = iter(self._decode([way.jpeg for way in group if way.jpeg is not None]))
                crops += [self._crop(way, next(decoded) if way.jpeg is not None else None) for way in group]
                places += [way.placed for way in group]
            return PlacedPixels(tuple(places), torch.stack(crops))
        except torch.OutOfMemoryError as exc:
            raise RunError(
                "the GPU has no room for the pictures",
                expected=f"memory for pictures of {_DECODED_AT_ONCE:,} pixels together, or for the largest one",
                got=one_line(exc),
                fix="decode on the processor, or take an artifact of smaller batches",
            ) from exc

    def close(self) -> None:
        """Give the memory back that torch keeps for further pictures."""
        import torch  # noqa: PLC0415 - the same

        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()

    def _groups(self, pictures: Sequence[Picture]) -> Iterator[list[_Way]]:
        """Yield pictures that are decoded at once: a batch of photographs would take gigabytes at their own size."""
        group: list[_Way] = []
        pixels = 0
        for picture in pictures:
            way = self._way(picture)
            size = way.placed.width * way.placed.height
            if group and pixels + size > _DECODED_AT_ONCE:
                yield group
                group, pixels = [], 0
            group.append(way)
            pixels += size
        if group:
            yield group

    def feed(self, pixels: Any, kind: ImageInput) -> Any:  # noqa: ANN401 - torch's tensor, without torch's import
        """Return pixels as an artifact with this input takes them, with the arithmetic of `to_feed`.

        Args:
            pixels: the pixels of `read`.
            kind: the input.

        Returns:
            the tensor itself for uint8, else normalised (pictures, channels, height, width) of its type.
        """
        import torch  # noqa: PLC0415 - the same

        if kind is ImageInput.UINT8:
            return pixels
        mean, std = (torch.tensor(values, device=pixels.device) for values in (self._spec.mean, self._spec.std))
        normal = ((pixels.to(torch.float32) / 255 - mean) / std).permute(0, 3, 1, 2)
        return normal.to(getattr(torch, kind.value)).contiguous()

    def _way(self, picture: Picture) -> _Way:
        """Look at a picture's header, and decode it by Pillow if nvJPEG cannot."""
        return read_with(picture, lambda image: self._way_of(image, picture))

    def _way_of(self, image: Image.Image, picture: Picture) -> _Way:
        spec = self._spec
        width, height = upright_size(image, spec)
        placed = placement(width, height, spec)
        if round(placed.scale_x * width) * round(placed.scale_y * height) > MOST_PIXELS:
            return _Way(placed, finished=to_pixels(image, spec))
        if spec.channels == len("RGB") and (jpeg := _whole_jpeg(image, picture)):
            return _Way(placed, jpeg, orientation_of(image, spec))
        colours = np.asarray(to_colours(image, spec), dtype=np.uint8)
        return _Way(placed, colours=colours.reshape(height, width, spec.channels))

    def _decode(self, files: list[bytes]) -> list[Any]:
        """Return the pixels (3, height, width) of JPEG files, as they lie in them."""
        import torch  # noqa: PLC0415 - the same
        from torchvision.io import ImageReadMode, decode_jpeg  # noqa: PLC0415 - the same

        if not files:
            return []
        encoded = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
        try:
            return list(decode_jpeg(encoded, ImageReadMode.RGB, self._device))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as exc:  # one file of them is of a kind that it does not know
            log.warning("Pillow decodes %d JPEG files: %s", len(files), one_line(exc))
        colours = [read_with(file, lambda image: np.asarray(image.convert("RGB"))) for file in files]
        return [torch.from_numpy(found.copy()).permute(2, 0, 1).to(self._device) for found in colours]

    def _crop(self, way: _Way, decoded: Any) -> Any:  # noqa: ANN401 - the same
        """Return the crop (height, width, channels) of a picture, from its pixels (channels, height, width)."""
        import torch  # noqa: PLC0415 - the same

        if way.finished is not None:
            return torch.from_numpy(way.finished.copy()).to(self._device)
        if way.colours is not None:
            planes = torch.from_numpy(way.colours.copy()).permute(2, 0, 1).to(self._device)
        else:
            planes = _turned(decoded, way.orientation)
            planes = planes.flip(0) if self._spec.order is ChannelOrder.BGR else planes
        return self._placed(planes, way.placed).permute(1, 2, 0).contiguous()

    def _placed(self, planes: Any, placed: Placement) -> Any:  # noqa: ANN401 - the same
        """Resize pixels (channels, height, width), cut the crop out, and put it on the mean's colour if it is small."""
        import torch  # noqa: PLC0415 - the same

        spec = self._spec
        size = round(placed.scale_y * placed.height), round(placed.scale_x * placed.width)
        wide = torch.nn.functional.interpolate(
            planes[None].to(torch.float32),
            size=size,
            mode=_MODES[spec.interpolation],
            antialias=True,
            align_corners=False,
        )[0]
        left, top = round(placed.left), round(placed.top)
        cut = wide[:, max(0, -top) :, max(0, -left) :][:, : spec.height, : spec.width].clamp(0, 255).round()
        if cut.shape[1:] == (spec.height, spec.width):
            return cut.to(torch.uint8)
        fill = [round(255 * min(1, max(0, value))) for value in spec.mean]
        canvas = torch.tensor(fill, dtype=torch.uint8, device=cut.device)[:, None, None]
        canvas = canvas.repeat(1, spec.height, spec.width)
        top, left = max(0, top), max(0, left)
        canvas[:, top : top + cut.shape[1], left : left + cut.shape[2]] = cut.to(torch.uint8)
        return canvas


def _turned(planes: Any, orientation: int) -> Any:  # noqa: ANN401 - torch's tensor
    """Return pixels (channels, height, width) upright, by EXIF's orientation."""
    exchanged, rows, columns = _TURNS.get(orientation, _TURNS[1])
    planes = planes.transpose(1, 2) if exchanged else planes
    axes = [axis for axis, reverse in ((1, rows), (2, columns)) if reverse]
    return planes.flip(axes) if axes else planes


def _whole_jpeg(image: Image.Image, picture: Picture) -> bytes | None:
    """Return the bytes of a colour JPEG that is whole; None for other pictures, which Pillow decodes or refuses."""
    if image.format != "JPEG" or image.mode != "RGB" or image.info.get("adobe_transform", 1) != 1:
        return None
    if not isinstance(picture, (bytes, str, os.PathLike)):
        return None
    data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
    return data if data.rstrip(b"\0").endswith(_END) else None
