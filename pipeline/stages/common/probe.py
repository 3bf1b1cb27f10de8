"""Images that show how a network computes, for stages that run before the user's images are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from model_artifacts.sessions.preprocessing import to_input

if TYPE_CHECKING:
    import numpy.typing as npt

    from model_artifacts.records import Preprocessing

_COARSE = 8
"""Patches along each axis: noise of single pixels alone would leave pooled features of all images nearly alike."""


def probe_images(spec: Preprocessing, count: int) -> npt.NDArray[np.float32]:
    """Return seeded images of coarse patches with fine noise, each of another brightness, as the network's input.

    Args:
        spec: the preprocessing.
        count: the number of images; the first ones are the same for any number.

    Returns:
        float32 (count, channels, height, width), preprocessed.
    """
    channels, height, width = spec.input_shape
    rng = np.random.default_rng(0)
    images = []
    for _ in range(count):
        patches = rng.integers(0, 256, (_COARSE, _COARSE, channels))
        rows, columns = np.arange(height) * _COARSE // height, np.arange(width) * _COARSE // width
        fine = rng.integers(0, 256, (height, width, channels))
        light = rng.uniform(0.3, 1.0, channels)
        images.append((0.75 * patches[rows][:, columns] + 0.25 * fine) * light)
    return to_input(np.stack(images).astype(np.uint8), spec)
