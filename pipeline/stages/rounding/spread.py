"""Emulated logits and the reference's → the spread of the distance that a precision's rounding makes. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.stages.common.margins import margins

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
    margin_noise: float


def spread_of(logits: Logits, reference: Logits) -> Spread | None:
    """Return the spread of the distances to the reference; None if a logit is not finite.

    Args:
        logits: the emulated logits (samples, classes).
        reference: those of FP32.
    """
    if not np.isfinite(logits).all():
        return None
    want = reference.astype(np.float64)
    errors, sizes = (np.square(array).sum(axis=1) for array in (logits - want, want))
    draws = np.random.default_rng(0).integers(len(errors), size=(_DRAWS, len(errors)))
    tiny = np.finfo(float).tiny
    shares = np.sqrt(errors[draws].sum(axis=1) / np.maximum(sizes[draws].sum(axis=1), tiny))
    moved = np.abs(margins(logits.astype(np.float64), want) - margins(want, want))
    return Spread(
        relative_l2=float(np.sqrt(errors.sum() / max(float(sizes.sum()), tiny))),
        relative_l2_high=float(np.quantile(shares, _QUANTILE)),
        sample_l2_high=float(np.sqrt(errors.max() / max(float(sizes.mean()), tiny))),
        margin_noise=float(np.quantile(moved, _MARGIN_QUANTILE)),
    )


def widest(spreads: Sequence[Spread | None]) -> Spread | None:
    """Return the largest of each distance over emulations; None if there is none, or if one is not finite."""
    finite = [spread for spread in spreads if spread is not None]
    if not finite or len(finite) < len(spreads):
        return None
    return Spread(*map(max, zip(*finite, strict=True)))
