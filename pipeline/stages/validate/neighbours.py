"""Embeddings → the vectors that an artifact keeps nearest to the reference's own. Pure.

A search by cosine finds an image's own vector as long as the artifact's has moved by less than half the distance to the
nearest other one, on the sphere of directions: that is the triangle inequality. So no neighbour is needed on the
artifact's side, and a gallery that FP32 has indexed may be searched with the artifact's vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.stages.validate.metrics import Answers

if TYPE_CHECKING:
    import numpy.typing as npt

    Vectors = npt.NDArray[np.float32]

GALLERY = 8192
"""The first samples, among which each sample's nearest neighbour is looked for. All 50,000 would take minutes."""
_AT_ONCE = 1024
_SAME = 1e-3
"""The distance of directions below which two images count as the same one: FP32's own rounding makes about 1e-6."""


def compare_neighbours(vectors: Vectors, reference: Vectors) -> Answers:
    """Count the vectors that moved by half the distance to their nearest neighbour, or more, as lost.

    Args:
        vectors: the artifact's (samples, length); a vector that is not finite is lost.
        reference: the FP32 network's (samples, length). A sample whose image is there twice is a near-tie.
    """
    moved, apart = [], []
    gallery = _directions(reference[:GALLERY])
    for start in range(0, len(reference), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        own = _directions(reference[part])
        moved.append(np.linalg.norm(_directions(vectors[part]) - own, axis=1))
        apart.append(_distances_to_nearest(own, gallery, start))
    moves, distances = np.concatenate(moved), np.concatenate(apart)
    clear = distances > _SAME
    if not clear.any():  # nothing is left to judge, so every vector counts
        clear[:] = True
    kept = (moves < distances / 2) & np.isfinite(vectors).all(axis=1)
    return Answers(int(clear.sum()), int((clear & ~kept).sum()), 0, int((~clear).sum()))


def nearest(vectors: Vectors, gallery: Vectors) -> npt.NDArray[np.int64]:
    """Return the number of each vector's nearest one in a gallery by the cosine, but of the same number.

    Args:
        vectors: (samples, length), of two samples or more.
        gallery: the vectors of the same images, by this network or by another; the first 8,192 are looked at.
    """
    others = _directions(gallery[:GALLERY])
    found = []
    for start in range(0, len(vectors), _AT_ONCE):
        cosines = _directions(vectors[start : start + _AT_ONCE]) @ others.T
        _leave_out_own(cosines, start)
        found.append(cosines.argmax(axis=1))
    return np.concatenate(found)


def _leave_out_own(cosines: npt.NDArray[np.float64], start: int) -> None:
    """Put minus infinity for each sample's own vector in the gallery; `start` is the number of the first sample."""
    rows = np.arange(len(cosines))
    inside = rows + start < cosines.shape[1]
    cosines[rows[inside], rows[inside] + start] = -np.inf


def _distances_to_nearest(
    own: npt.NDArray[np.float64], gallery: npt.NDArray[np.float64], start: int
) -> npt.NDArray[np.float64]:
    """Return each direction's distance to the nearest one of the gallery, but itself; infinity if there is none.

    Args:
        own: directions (samples, length).
        gallery: directions (others, length).
        start: the number of the first sample; the gallery has the first ones.
    """
    cosines = own @ gallery.T
    _leave_out_own(cosines, start)
    largest = cosines.max(axis=1)
    # Of unit vectors, ‖a - b‖² is 2 - 2 a·b. A vector of zeros has no direction, and a cosine of 0.
    return np.where(np.isfinite(largest), np.sqrt(np.maximum(2 - 2 * largest, 0)), np.inf)


def _directions(vectors: Vectors) -> npt.NDArray[np.float64]:
    """Return unit vectors in float64; zeros for a vector without length, or with a NaN or an infinity."""
    wide = np.where(np.isfinite(vectors).all(axis=1, keepdims=True), vectors, 0.0).astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    directions: npt.NDArray[np.float64] = np.divide(wide, norms, out=np.zeros_like(wide), where=norms > 0)
    return directions
