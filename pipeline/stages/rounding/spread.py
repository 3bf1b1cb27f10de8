"""Emulated logits and the reference's → the spread of the distance that a precision's rounding makes. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.special import fdtri

from model_artifacts.records import Task
from pipeline.stages.common.rows import moved_answers, part_squares

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    Logits = npt.NDArray[np.float32]

_DRAWS = 1000
"""Resampled sets of samples."""
_QUANTILE = 0.975
"""Upper end of a two-sided interval at 95 %."""
_FREEDOM = 2.0
"""Degrees of freedom of a sample's error in a part, a choice. The logarithm of the factor between two builds' errors
has a standard deviation of 0.9 to 1.2 over the samples and parts of PP-OCRv4's detector, and of 0.5 over nudenet's.
F has 0.91 for two degrees, and 1.57 for one."""
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
    """Of each part of a tensor, as the next two."""
    part_l2_redrawn: tuple[float, ...] = ()
    part_sizes: tuple[float, ...] = ()
    relative_l2_low: float = 0.0


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
    low = float(np.quantile(shares, 1 - _QUANTILE)) / float(redrawn(errors[:, None], _QUANTILE)[0])
    spread = Spread(
        relative_l2=float(np.sqrt(errors.sum() / max(float(sizes.sum()), tiny))),
        relative_l2_high=float(np.quantile(shares, _QUANTILE)),
        sample_l2_high=float(np.sqrt(errors.max() / max(float(sizes.mean()), tiny))),
        margin_noise=noise,
        relative_l2_low=low,
    )
    return spread if shape is None else _with_parts(spread, logits - want, want, shape, draws)


def _with_parts(
    spread: Spread,
    errors: npt.NDArray[np.float64],
    want: npt.NDArray[np.float64],
    shape: Sequence[int],
    draws: npt.NDArray[np.int64],
) -> Spread:
    """Return a spread with the distances of each part, over resampled samples and over rounding that is drawn anew.

    The quantiles leave as much beyond them for all parts together as that of the whole leaves (Bonferroni's
    correction): one of hundreds is always at its worst, above all a part that few samples fill.
    """
    wrong, sizes = part_squares(errors, shape), part_squares(want, shape)
    if not (count := wrong.shape[1]):
        return spread
    tiny = np.finfo(float).tiny
    times = np.stack([np.bincount(draw, minlength=len(wrong)) for draw in draws])  # (draws, samples)
    shares = np.sqrt((times @ wrong) / np.maximum(times @ sizes, tiny))
    quantile = 1 - (1 - _QUANTILE) / count
    found = (
        np.quantile(shares, quantile, axis=0),
        np.sqrt(wrong.sum(axis=0) / np.maximum(sizes.sum(axis=0), tiny)) * redrawn(wrong, quantile),
        np.sqrt(sizes.mean(axis=0)),
    )
    high, anew, usual = (tuple(float(value) for value in values) for values in found)
    return spread._replace(part_l2_high=high, part_l2_redrawn=anew, part_sizes=usual)


def redrawn(squares: npt.NDArray[np.float64], quantile: float) -> npt.NDArray[np.float64]:
    """Return the factor between two distances of the same samples, whose rounding is drawn twice, as a quantile.

    Resampling shows what another choice of samples makes. It does not show that each error is a draw as well: other
    kernels round the same image otherwise. A sum of squares has as many degrees of freedom as samples that count,
    (sum of squares)² / sum of their squares (Satterthwaite, Biometrics Bulletin 2, 1946), times those of one sample.
    The ratio of two such sums is distributed as Fisher's F. At 97.5 %, one sample makes 6, and 64 even ones 1.2.

    Args:
        squares: (samples, parts), the squared errors.
        quantile: the probability of a smaller factor, above 0.5.

    Returns:
        (parts,), at least 1.
    """
    total = np.square(squares.sum(axis=0)) / np.maximum(np.square(squares).sum(axis=0), np.finfo(float).tiny)
    freedom = _FREEDOM * np.maximum(total, 1.0)
    factors: npt.NDArray[np.float64] = np.sqrt(fdtri(freedom, freedom, quantile))
    return factors


def farthest(spreads: Sequence[Spread | None]) -> Spread | None:
    """Return the spread of the output with the largest distances; None if there is none, or if one is not finite."""
    finite = [spread for spread in spreads if spread is not None]
    if not finite or len(finite) < len(spreads):
        return None
    far = max(finite, key=lambda spread: spread.relative_l2_high)
    return far._replace(sample_l2_high=max(spread.sample_l2_high for spread in finite))


def widest(spreads: Sequence[Spread | None]) -> Spread | None:
    """Return the largest of each distance over emulations, but the least low one; None if none, or one not finite."""
    finite = [spread for spread in spreads if spread is not None]
    if not finite or len(finite) < len(spreads):
        return None
    noises = [spread.margin_noise for spread in finite if spread.margin_noise is not None]
    return Spread(
        relative_l2=max(spread.relative_l2 for spread in finite),
        relative_l2_high=max(spread.relative_l2_high for spread in finite),
        sample_l2_high=max(spread.sample_l2_high for spread in finite),
        margin_noise=max(noises, default=None),
        part_l2_high=_largest(spread.part_l2_high for spread in finite),
        part_l2_redrawn=_largest(spread.part_l2_redrawn for spread in finite),
        part_sizes=_largest(spread.part_sizes for spread in finite),
        relative_l2_low=min(spread.relative_l2_low for spread in finite),
    )


def _largest(parts: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(max(values) for values in zip(*parts, strict=True))
