"""Rows of outputs → the margin of each answer, and the sums of squares of each part. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

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


_MOST_PARTS = 256
"""The most parts of an axis. A longer one, of places or of flattened channels, is cut into runs of neighbours."""


class Parts(NamedTuple):
    """The parts of an output, for distances that no other part hides."""

    shape: tuple[int, ...]
    """The shape of one sample."""
    weights: npt.NDArray[np.float64]
    """By which each part's relative L2 is multiplied, to be held to the bound of the whole."""


def parts_of(shape: Sequence[int]) -> tuple[str, ...]:
    """Return the names of an output's parts: each entry of each axis, or each run of entries of a long one.

    A norm over all of an output hides an error in what is small, such as scores beside boxes in pixels. Which axis
    holds what belongs together is unknown, so every axis is cut apart.

    Args:
        shape: the shape of one sample, without the batch.
    """
    names = []
    for axis, size in enumerate(shape, start=1):  # the batch is axis 0
        starts = _starts(size)
        for first, last in zip(starts, [*(starts[1:] - 1), size - 1], strict=True) if size > 1 else ():
            names.append(f"axis {axis}, " + (f"entry {first}" if first == last else f"entries {first} to {last}"))
    return tuple(names)


def part_squares(rows: npt.NDArray[np.float64], shape: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return the sum of squares of each part, for each sample.

    Args:
        rows: (samples, values), the flattened samples.
        shape: the shape of one sample.

    Returns:
        (samples, parts), in the order of `parts_of`.
    """
    axes = [axis for axis, size in enumerate(shape) if size > 1]
    found = np.empty((len(rows), len(parts_of(shape))))
    for number, row in enumerate(rows):  # one at a time: a map's squares in float64 are large
        squares = np.square(row.reshape(shape))
        sums = [squares.sum(axis=tuple(other for other in range(len(shape)) if other != axis)) for axis in axes]
        cut = [np.add.reduceat(part, _starts(len(part))) for part in sums]
        found[number] = np.concatenate(cut) if cut else []
    return found


def _starts(size: int) -> npt.NDArray[np.int64]:
    """Return the first entries of an axis's parts, which are nearly equally long."""
    parts = min(size, _MOST_PARTS)
    return np.arange(parts, dtype=np.int64) * size // parts
