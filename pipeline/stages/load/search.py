"""The settings to try, and the largest rate that one of them holds. Pure: the runs are a function's."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.records import LoadSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from model_artifacts.records import BatchRange

PRECISION = 0.05
"""The relative step between a rate that holds and one that does not."""
_ABOVE = 1.2
"""Multiple of the offline throughput that no server reaches: its queue grows without an end from 1 on."""
_LEAST = 1 / 64
"""The share of it below which a rate is not worth a search."""
_CONFIRMATIONS = 10


class Found(NamedTuple):
    """A rate, and the settings that hold it."""

    settings: LoadSettings
    rate: float
    """Images per second."""


def choices_of(contexts: Iterable[int], batches: Iterable[int], delays: Iterable[float]) -> tuple[LoadSettings, ...]:
    """Return the settings to try, the plainest first. A batch of one waits for nobody, so that it has no delay."""
    return tuple(
        LoadSettings(contexts=count, batch=batch, max_delay_ms=delay)
        for batch in sorted(set(batches))
        for count in sorted(set(contexts))
        for delay in (sorted(set(delays)) if batch > 1 else (0.0,))
    )


def batches_of(profile: BatchRange | None, configured: Sequence[int] | None, timed: Sequence[int]) -> tuple[int, ...]:
    """Return the batch sizes to try.

    Args:
        profile: the sizes that an artifact takes; None if it takes all.
        configured: the sizes in the configuration; None for those of the artifact.
        timed: the sizes that are timed, for artifacts that take all.

    Returns:
        sizes that the artifact takes, ascending; at least one.
    """
    own = profile.sizes if profile else tuple(sorted({1, *timed}))
    chosen = sorted(set(configured)) if configured else own
    return tuple(size for size in chosen if profile is None or profile.takes(size)) or own


def refused_batches(profile: BatchRange | None, configured: Sequence[int] | None) -> str:
    """Return the note on configured sizes that an artifact does not take; empty if it takes all of them.

    Args:
        profile: the sizes that the artifact takes; None if it takes all.
        configured: the sizes in the configuration; None for those of the artifact.
    """
    sizes = sorted(set(configured or ()))
    left = [str(size) for size in sizes if profile and not profile.takes(size)]
    if profile is None or not left:
        return ""
    taken = f"{profile.min} images" if profile.is_fixed else f"{profile.min} to {profile.max} images"
    own = ", ".join(map(str, profile.sizes))
    instead = f", so that its own sizes were tried: {own}" if len(left) == len(sizes) else ""
    return f"batch {', '.join(left)} of `load.batches`: it takes {taken}{instead}"


def largest_rate(
    choices: Iterable[LoadSettings],
    capacity: Callable[[LoadSettings], float],
    holds: Callable[[LoadSettings, float], bool],
) -> Found | None:
    """Return the largest rate that some settings hold, within 5 %; None if they hold none.

    The first settings are bisected. Others must hold 5 % more than the best so far, which one run tells, before they
    are bisected from there.

    Args:
        choices: the settings.
        capacity: their offline throughput, in images per second.
        holds: true if they hold a rate, by a run.
    """
    best: Found | None = None
    for settings in choices:
        top = _ABOVE * capacity(settings)
        low = best.rate * (1 + PRECISION) if best else 0.0
        if best and (low >= top or not holds(settings, low)):
            continue
        rate = _bisected(low, top, lambda rate: holds(settings, rate))  # noqa: B023 - called at once
        if rate:
            best = Found(settings, rate)
    return best


def _bisected(low: float, high: float, holds: Callable[[float], bool]) -> float:
    """Return the largest rate between one that holds, or 0, and one that does not."""
    least = high * _LEAST
    while high - low > PRECISION * high and high > least:
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def confirmed(rate: float, holds: Callable[[float], bool]) -> float | None:
    """Return the largest rate, from one down in steps of 5 %, that holds once more; None if ten do not.

    A search takes the best of many runs, whose luck is in its result. A run with other arrivals has none of it.
    """
    for _ in range(_CONFIRMATIONS):
        if holds(rate):
            return rate
        rate *= 1 - PRECISION
    return None
