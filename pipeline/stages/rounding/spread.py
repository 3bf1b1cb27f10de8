"""Emulated logits and the reference's → the spread of the distance that a precision's rounding makes. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from model_artifacts.records import Task
from pipeline.stages.common.rows import moved_answers, part_squares

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Logits = npt.NDArray[np.float32]

_DRAWS = 1000
"""Resampled sets of samples."""
_QUANTILE = 0.975
"""Upper end of a two-sided interval at 95 %."""
_MARGIN_QUANTILE = 0.99
"""One sample in a hundred may be nearer to a tie than it seems."""


class Spread(NamedTuple):
    """The distances of one emulation. See `pipeline.records.Rounding` for their meaning."""

    relative_l2: float
    relative_l2_high: float
    sample_l2_high: float
    margin_noise: float | None
    """None for an output that answers with no class."""
    part_l2_high: tuple[float, ...] = ()
    """Of each part of a tensor."""


def spread_of(
    logits: Logits, reference: Logits, shape: Sequence[int] | None = None, task: Task = Task.CLASSIFICATION
) -> Spread | None:
    """Return the spread of the distances to the reference; None if a logit is not finite.

    Args:
        logits: the emulated logits (samples, classes), or flattened tensors (samples, values).
        reference: those of FP32.
        shape: the shape of a sample's tensor; None for logits and vectors.
        task: the task of the model, which decides what an answer is.
    """
    if not np.isfinite(logits).all():
        return None
    want = reference.astype(np.float64)
    errors, sizes = (np.square(array).sum(axis=1) for array in (logits - want, want))
    draws = np.random.default_rng(0).integers(len(errors), size=(_DRAWS, len(errors)))
    tiny = np.finfo(float).tiny
    shares = np.sqrt(errors[draws].sum(axis=1) / np.maximum(sizes[draws].sum(axis=1), tiny))
    moved = moved_answers(logits, reference, shape, task)
    noise = None if moved is None else float(np.quantile(moved, _MARGIN_QUANTILE))
    return Spread(
        relative_l2=float(np.sqrt(errors.sum() / max(float(sizes.sum()), tiny))),
        relative_l2_high=float(np.quantile(shares, _QUANTILE)),
        sample_l2_high=float(np.sqrt(errors.max() / max(float(sizes.mean()), tiny))),
        margin_noise=noise,
        part_l2_high=() if shape is None else _of_parts(logits - want, want, shape, draws),
    )


def _of_parts(
    errors: npt.NDArray[np.float64],
    want: npt.NDArray[np.float64],
    shape: Sequence[int],
    draws: npt.NDArray[np.int64],
) -> tuple[float, ...]:
    """Return the quantile of each part's relative L2 over resampled samples.

    The quantile leaves as much beyond it for all parts together as that of the whole leaves (Bonferroni's correction):
    one of hundreds is always at its worst, above all a part that few samples fill.
    """
    wrong, sizes = part_squares(errors, shape), part_squares(want, shape)
    times = np.stack([np.bincount(draw, minlength=len(wrong)) for draw in draws])  # (draws, samples)
    shares = np.sqrt((times @ wrong) / np.maximum(times @ sizes, np.finfo(float).tiny))
    if not (count := wrong.shape[1]):
        return ()
    return tuple(float(value) for value in np.quantile(shares, 1 - (1 - _QUANTILE) / count, axis=0))


def farthest(spreads: Sequence[Spread | None]) -> Spread | None:
    """Return the spread of the output with the largest distances; None if there is none, or if one is not finite."""
    finite = [spread for spread in spreads if spread is not None]
    if not finite or len(finite) < len(spreads):
        return None
    far = max(finite, key=lambda spread: spread.relative_l2_high)
    return far._replace(sample_l2_high=max(spread.sample_l2_high for spread in finite))


def widest(spreads: Sequence[Spread | None]) -> Spread | None:
    """Return the largest of each distance over emulations; None if there is none, or if one is not finite."""
    finite = [spread for spread in spreads if spread is not None]
    if not finite or len(finite) < len(spreads):
        return None
    noises = [spread.margin_noise for spread in finite if spread.margin_noise is not None]
    parts = zip(*(spread.part_l2_high for spread in finite), strict=True)
    return Spread(
        relative_l2=max(spread.relative_l2 for spread in finite),
        relative_l2_high=max(spread.relative_l2_high for spread in finite),
        sample_l2_high=max(spread.sample_l2_high for spread in finite),
        margin_noise=max(noises, default=None),
        part_l2_high=tuple(max(values) for values in parts),
    )
