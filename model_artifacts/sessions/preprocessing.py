"""Image → the network's input, with Pillow and numpy alone, as a deployment needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL import Image

    from model_artifacts.records import Preprocessing


def to_pixels(image: Image.Image, spec: Preprocessing) -> npt.NDArray[np.uint8]:
    """Resize the short side, then crop the centre.

    The arithmetic is torchvision's (`Resize` of the short side with the long one truncated, `CenterCrop` with rounded
    offsets), so that weights trained behind its transforms get the pixels that they were trained on.

    Returns:
        uint8 pixels (crop, crop, channels).
    """
    from PIL.Image import Resampling  # noqa: PLC0415 - hosts that only run batches have no Pillow

    image = image.convert("L" if spec.channels == 1 else "RGB")
    width, height = image.size
    short = min(width, height)
    size = (int(spec.resize * width / short), int(spec.resize * height / short))
    image = image.resize(size, Resampling[spec.interpolation.name])
    left = round((size[0] - spec.crop) / 2)
    top = round((size[1] - spec.crop) / 2)
    image = image.crop((left, top, left + spec.crop, top + spec.crop))
    return np.asarray(image, dtype=np.uint8).reshape(spec.crop, spec.crop, spec.channels)


def to_input(pixels: npt.NDArray[np.uint8], spec: Preprocessing) -> npt.NDArray[np.float32]:
    """Scale to [0, 1], normalise, and put channels first.

    Args:
        pixels: uint8 (batch, crop, crop, channels).
        spec: the means and standard deviations.

    Returns:
        float32 (batch, channels, crop, crop), contiguous.
    """
    mean = np.asarray(spec.mean, dtype=np.float32)
    std = np.asarray(spec.std, dtype=np.float32)
    normal = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(normal.transpose(0, 3, 1, 2))
