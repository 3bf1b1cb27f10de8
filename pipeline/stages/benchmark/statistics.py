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
"""The largest relative difference of two medians in a row at a settled speed."""
_RESAMPLES = 2000
_STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""The 97.5 % quantiles of Student's t with 1 to 9 degrees of freedom; with more they are smaller."""
_LARGEST = 700.0
"""The logarithm of nearly the largest float."""
_RESTARTS_DIFFER = 0.05
"""A larger relative difference between the medians of restarts is the machine's doing, not the variant's."""
UNKNOWN_SHIFT = _RESTARTS_DIFFER
"""The assumed bound of the difference between two sessions that no baseline shows, as a logarithm."""
_SLOWED = ("power cap", "slowdown", "power brake")


def settled(medians: Sequence[float]) -> bool:
    """Return true if the last two medians of a warm-up differ by at most 2 %."""
    return any(abs(after - before) <= _SETTLED * before for before, after in [*pairwise(medians)][-1:])


def interval_of_median(restarts: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the 95 % interval of the median: a percentile bootstrap (B. Efron, Annals of Statistics 7, 1979), widened.

    Restarts are resampled, and rounds in each, because samples of one restart or one round are correlated. A bootstrap
    from three restarts underestimates their spread, and would hold the median in three of four cases only. So the
    interval is at least Student's t of the logarithms of the restarts' medians (W. S. Gosset, Biometrika 6, 1908), as
    machines differ by factors.

    Args:
        restarts: the median of each round, one sequence per restart, at least one of each.
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
    half = _student_t(count - 1) * float(np.std(logarithms, ddof=1)) / count**0.5
    return min(low, math.exp(middle - half)), max(high, math.exp(min(middle + half, _LARGEST)))


def _student_t(freedom: int) -> float:
    return _STUDENT_T[min(freedom, len(_STUDENT_T)) - 1]


def shift_of(before: Sequence[float], now: Sequence[float]) -> float | None:
    """Return the 95 % bound of the difference between two sessions, as a logarithm: 0.01 is 1 %.

    The bound is the difference of the means of the logarithms, and Student's t of it with a pooled variance.

    Args:
        before: eager FP32's median in each restart of one session, in milliseconds.
        now: the same of the other session.

    Returns:
        the bound; None if there are too few restarts to tell: fewer than three in both sessions, or none in one.
    """
    freedom = len(before) + len(now) - 2
    if not before or not now or freedom < 1:
        return None
    tiny = np.finfo(float).tiny
    first, second = (np.log(np.maximum(np.array(medians, dtype=np.float64), tiny)) for medians in (before, now))
    squares = float(np.sum((first - first.mean()) ** 2) + np.sum((second - second.mean()) ** 2))
    error = math.sqrt(squares / freedom * (1 / len(before) + 1 / len(now)))
    return abs(float(second.mean() - first.mean())) + _student_t(freedom) * error


def summarize(
    restarts: Sequence[Sequence[Latencies]],
    what: SampleSet,
    baseline: Latencies | None,
    enqueue_us: float | None = None,
    widening: float = 0.0,
) -> BatchTiming:
    """Return the percentiles of latencies of whole batches, and the speed-up over the baseline's median.

    Args:
        restarts: milliseconds, one array per round, one sequence of those per restart; at least one of each.
        what: the sample set's clock, batch size and layout.
        baseline: eager FP32's milliseconds at this batch, measured in the same rounds.
        enqueue_us: the host's median time to enqueue one batch, in microseconds.
        widening: the logarithm by which both ends of the interval move, for variants that were timed at another time.
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
        p50_low_ms=round(min(low, p50) * math.exp(-widening), 4),
        p50_high_ms=round(max(high, p50) * math.exp(min(widening, _LARGEST)), 4),
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
    """Return the reasons to doubt the last digits of latencies; empty after a quiet run.

    Args:
        restarts: for every batch size the median of each restart by the ranking clock, in milliseconds.
        unsettled: batch sizes whose latency had not settled when the warm-up ended.
        strangers: other processes on the GPU.
        conditions: the ranges of NVML's values.
    """
    found = [Doubt(what="others computed on the GPU", detail=", ".join(strangers))] if strangers else []
    apart = max((max(medians) / min(medians) - 1 for medians in restarts if min(medians) > 0), default=0.0)
    if apart > _RESTARTS_DIFFER:
        found.append(Doubt(what="restarts differ", detail=f"by up to {apart:.0%}"))
    if unsettled:
        found.append(Doubt(what="not settled after warming up", detail=", ".join(unsettled)))
    if slow := slowed_by(conditions):
        found.append(Doubt(what="the GPU's clocks were held down", detail=", ".join(slow)))
    return tuple(found)


def slowed_by(conditions: Conditions | None) -> list[str]:
    """Return the reasons for which a GPU's clocks were held down."""
    return [
        reason for reason in (conditions.throttled_by if conditions else ()) if any(word in reason for word in _SLOWED)
    ]
