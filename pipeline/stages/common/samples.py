"""Validation images as batches for timing and profiling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from model_artifacts.sessions.preprocessing import to_feed

if TYPE_CHECKING:
    import numpy.typing as npt

    from model_artifacts.records import Variant
    from pipeline.planning.project import Project


def images_of(project: Project, batch: int, variant: Variant) -> npt.NDArray[Any]:
    """Return validation images as a variant takes them, repeated if there are too few.

    Returns:
        float32 (batch, channels, height, width), preprocessed, or what else the variant takes.
    """
    data = project.data()
    pixels = project.pixels(data.validation)
    images = np.resize(pixels[:batch], (batch, *pixels.shape[1:]))
    return to_feed(images, data.preprocessing, variant.io.input)
