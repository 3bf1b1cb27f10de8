"""Validation images as batches for timing and profiling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from model_artifacts.sessions.preprocessing import to_input

if TYPE_CHECKING:
    import numpy.typing as npt

    from pipeline.planning.project import Project


def images_of(project: Project, batch: int) -> npt.NDArray[np.float32]:
    """Return validation images as the network's input, repeated if there are too few.

    Returns:
        float32 (batch, channels, height, width), preprocessed.
    """
    data = project.data()
    pixels = project.pixels(data.validation)
    return to_input(np.resize(pixels[:batch], (batch, *pixels.shape[1:])), data.preprocessing)
