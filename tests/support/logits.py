"""A project's images and the FP32 reference's logits, as input and expectation of runners."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.stages.common.samples import to_batch

if TYPE_CHECKING:
    import numpy.typing as npt

    from pipeline.planning.project import Project

FP16 = 5e-3
"""FP16's gate's bound of the relative L2 distance."""


def images(project: Project, count: int | None = None) -> npt.NDArray[np.float32]:
    """Return the first validation images, or all of them, as the network takes them."""
    data = project.data()
    batch: npt.NDArray[np.float32] = to_batch(project.pixels(data.validation)[:count], data.preprocessing)
    return batch


def reference(project: Project, count: int | None = None) -> npt.NDArray[np.float32]:
    """Return the FP32 reference's logits of the images."""
    logits: npt.NDArray[np.float32] = np.load(project.file(project.data().reference))[:count]
    return logits


def distance(got: npt.NDArray[np.float32], want: npt.NDArray[np.float32]) -> float:
    """Return the relative L2 distance."""
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))
