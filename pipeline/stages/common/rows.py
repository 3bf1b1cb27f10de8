"""Rows of outputs → the margin of each answer, and the sums of squares of each part. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from model_artifacts.records import Task

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


def pixel_margins(logits: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the difference between the logits of the reference's two first classes, for each pixel of an image.

    Args:
        logits: (classes, pixels), of two classes or more.
        reference: (classes, pixels); it decides which two classes.
    """
    first, second = np.argpartition(-reference, 1, axis=0)[:2]
    places = np.arange(reference.shape[1])
    apart: npt.NDArray[np.float32] = logits[first, places] - logits[second, places]
    return apart


def moved_answers(
    logits: npt.NDArray[np.float32], reference: npt.NDArray[np.float32], shape: Sequence[int] | None, task: Task
) -> npt.NDArray[np.float32] | npt.NDArray[np.float64] | None:
    """Return how far each answer moved towards a change, in units of the logits; None for tasks without such answers.

    Args:
        logits: flattened outputs (samples, values).
        reference: those of FP32.
        shape: the shape of a sample; None for logits and vectors.
        task: the task: the margin of a sample or of a pixel moves, or the logit of a label.
    """
    if task is Task.SEGMENTATION and shape is not None:
        pairs = (
            (got.reshape(shape[0], -1), want.reshape(shape[0], -1)) for got, want in zip(logits, reference, strict=True)
        )
        moved = np.concatenate([pixel_margins(got, want) - pixel_margins(want, want) for got, want in pairs])
        return np.asarray(np.abs(moved), dtype=np.float32)
    if task is Task.MULTILABEL:
        return np.abs(logits.astype(np.float64) - reference).ravel()
    if shape is not None:
        return None
    wide = reference.astype(np.float64)
    return np.abs(margins(logits.astype(np.float64), wide) - margins(wide, wide))


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
