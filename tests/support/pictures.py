"""Pictures for tests of predictions."""

from __future__ import annotations

import numpy as np
from PIL import Image


def photographs(count: int) -> list[Image.Image]:
    """Return images of different sizes and modes."""
    noise = np.random.default_rng(0).integers(0, 256, (count, 50, 40, 3), dtype=np.uint8)
    return [
        Image.fromarray(pixels).convert(mode) for pixels, mode in zip(noise, ["RGB", "L", "RGBA"] * count, strict=False)
    ]
