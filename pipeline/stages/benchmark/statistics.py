"""Samples → percentiles, intervals, ties, and reasons for doubt. Pure."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from model_artifacts.records import BatchTiming, Doubt

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from pipeline.records import Conditions
    from pipeline.stages.benchmark.messages import SampleSet

    Latencies = npt.NDArray[np.float64]

_SETTLED = 0.02
"""Two medians in a row that differ by less are taken for the pace that will stay."""
_RESAMPLES = 2000
_STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""The 97.5 % quantiles of Student's t with 1 to 9 degrees of freedom; with more they are smaller."""
_LARGEST = 700.0
"""The logarithm of nearly the largest float."""
_RESTARTS_DIFFER = 0.05
"""Restarts whose medians differ by more say something of the machine, not of the variant."""
_SLOWED = ("power cap", "slowdown", "power brake")


def settled(medians: Sequence[float]) -> bool:
    """Return whether the last two medians of a warm-up differ by at most 2 %."""
    return any(abs(after - before) <= _SETTLED * before for before, after in [*pairwise(medians)][-1:])


def interval_of_median(restarts: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the 95 % interval of the median: a percentile bootstrap (B. Efron, Annals of Statistics 7, 1979), widened.

    Restarts are resampled, and rounds in each: what is of one restart, or of one round, shares the machine's mood. From
    three restarts a bootstrap cannot tell how much they differ, and would hold the median in three of four cases only;
    so the interval is at least Student's t of the restarts' medians (W. S. Gosset, Biometrika 6, 1908), of their
    logarithms, since machines differ by shares.

    Args:
        restarts: the median of each round, a sequence a restart, at least one of each.
    """
    random = np.random.default_rng(0)
    count, most = len(restarts), max(map(len, restarts))
    values = np.array([np.resize(rounds, most) for rounds in restarts])
    lengths = np.array([len(rounds) for rounds in restarts])
    picks = random.integers(count, size=(_RESAMPLES, count, 1))
    within = (random.random((_RESAMPLES, count, most)) * lengths[picks]).astype(np.intp)
    medians = np.median(values[picks, within], axis=(1, 2))
    low, high = (float(end) for end in np.percentile(medians, (2.5, 97.5)))
    if count == 1:
        return low, high
    logarithms = np.log([max(float(np.median(rounds)), np.finfo(float).tiny) for rounds in restarts])
    middle = float(np.mean(logarithms))
    half = _STUDENT_T[min(count - 1, len(_STUDENT_T)) - 1] * float(np.std(logarithms, ddof=1)) / count**0.5
    return min(low, math.exp(middle - half)), max(high, math.exp(min(middle + half, _LARGEST)))


def summarize(
    restarts: Sequence[Sequence[Latencies]],
    what: SampleSet,
    baseline: Latencies | None,
    enqueue_us: float | None = None,
) -> BatchTiming:
    """Return the percentiles of latencies of whole batches, and the speed-up over the baseline's median.

    Args:
        restarts: milliseconds, an array a round, a sequence of those a restart; at least one of each.
        what: they are of.
        baseline: eager FP32's milliseconds at this batch, measured in the same rounds.
        enqueue_us: the median time that the host takes to enqueue one, in microseconds.
    """
    latencies = np.concatenate([found for rounds in restarts for found in rounds])
    p50, p90, p99 = (float(value) for value in np.percentile(latencies, (50, 90, 99)))
    low, high = interval_of_median([[float(np.median(found)) for found in rounds] for rounds in restarts])
    return BatchTiming(
        batch=what.batch,
        clock=what.clock,
        layout=what.layout,
        runs=len(latencies),
        p50_ms=round(p50, 4),
        p90_ms=round(p90, 4),
        p99_ms=round(p99, 4),
        p50_low_ms=round(min(low, p50), 4),
        p50_high_ms=round(max(high, p50), 4),
        throughput_per_s=round(what.batch / p50 * 1e3, 2),
        speedup=None if baseline is None else round(float(np.median(baseline)) / p50, 3),
        enqueue_us=enqueue_us,
    )


def noise_of(
    restarts: Sequence[Sequence[float]],
    unsettled: Sequence[str],
    strangers: Sequence[str],
    conditions: Conditions | None,
) -> tuple[Doubt, ...]:
    """Return why latencies are not to be trusted to the last digit; nothing where all was quiet.

    Args:
        restarts: for every batch size, the median of each restart by the clock that variants are compared by, in
            milliseconds.
        unsettled: what was still getting faster or slower when its time to warm up was over.
        strangers: other processes on the GPU.
        conditions: what NVML told.
    """
    found = [Doubt(what="others computed on the GPU", detail=", ".join(strangers))] if strangers else []
    apart = max((max(medians) / min(medians) - 1 for medians in restarts if min(medians) > 0), default=0.0)
    if apart > _RESTARTS_DIFFER:
        found.append(Doubt(what="restarts differ", detail=f"by up to {apart:.0%}"))
    if unsettled:
        found.append(Doubt(what="not settled after warming up", detail=", ".join(unsettled)))
    slow = [
        reason for reason in (conditions.throttled_by if conditions else ()) if any(word in reason for word in _SLOWED)
    ]
    if slow:
        found.append(Doubt(what="the GPU's clocks were held down", detail=", ".join(slow)))
    return tuple(found)
