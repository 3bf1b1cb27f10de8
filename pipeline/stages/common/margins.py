"""Logits → the margin of each answer. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt


def margins(logits: npt.NDArray[np.float64], reference: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the difference between the logits of the reference's two first classes, for each sample.

    Args:
        logits: (samples, classes).
        reference: (samples, classes); it decides which two classes. With one class the margin is infinite.
    """
    if reference.shape[1] < 2:  # noqa: PLR2004 - two classes make a margin
        return np.full(len(reference), np.inf)
    first = np.argsort(-reference, axis=1)[:, :2]
    pair = np.take_along_axis(logits, first, axis=1)
    return pair[:, 0] - pair[:, 1]
