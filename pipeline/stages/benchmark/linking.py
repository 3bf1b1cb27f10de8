"""Sessions of a target: variants that were timed at another time, compared through the baseline beside both. Pure.

Variants of one session were timed against each other in every restart. A session begins with a variant that is new, or
that failed before, and with each group of a host that has no room for all.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from model_artifacts.records import Layout, ranking_clock
from pipeline.stages.benchmark.statistics import UNKNOWN_SHIFT, shift_of, slowed_by

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.stages.benchmark.messages import SampleSet
    from pipeline.stages.benchmark.results import Measured, Taken

_CLOCKS_DIFFER = 0.02
"""The largest relative difference of the highest clocks of a GPU in two comparable sessions."""


def sessions_of(measured: Sequence[Measured]) -> list[Measured]:
    """Return one variant of each session, preferably one with a baseline."""
    found: dict[tuple[Taken, ...], Measured] = {}
    for item in measured:
        known = found.get(item.taken)
        if known is None or (item.baseline and not known.baseline):
            found[item.taken] = item
    return list(found.values())


def disagreement(measured: Sequence[Measured]) -> str:
    """Return the reason why samples of different runs cannot be compared; empty if they can.

    Groups of one run are not held against each other: timing them again would separate them as much.

    Args:
        measured: the variants with all of their restarts.
    """
    for before, now in combinations(sessions_of(measured), 2):
        if any(old.run != new.run for old, new in zip(before.taken, now.taken, strict=True)):
            for reason in _differences(before, now):
                return reason
    return ""


def _differences(before: Measured, now: Measured) -> Iterator[str]:
    """Yield the reasons why two sessions cannot be compared."""
    if before.baseline is None or now.baseline is None:
        yield "eager FP32 was not timed beside both"
        return
    for item in (before, now):
        if slow := slowed_by(item.conditions):
            yield f"the GPU's clocks were held down ({', '.join(slow)})"
    yield from _clocks_apart(before, now)
    for what in _ranking_sets(before.baseline):
        if what not in now.baseline.rounds:
            yield f"eager FP32 was not timed at batch {what.batch} beside both"
            continue
        medians = [item.medians_of_restarts(what) for item in (before.baseline, now.baseline)]
        bound = shift_of(*medians)
        if bound is None:
            yield "so few restarts do not tell whether the machine's speed has changed"
        elif bound > UNKNOWN_SHIFT:
            old, new = (sorted(values)[len(values) // 2] for values in medians)
            yield (
                f"eager FP32 took {old:.4g} ms at batch {what.batch} then and {new:.4g} ms now, so the machine's speed "
                f"may have changed by {bound:.0%}; at most {UNKNOWN_SHIFT:.0%} can be compared"
            )


def _clocks_apart(before: Measured, now: Measured) -> Iterator[str]:
    """Yield a reason if a GPU reached other clocks."""
    first, second = before.conditions, now.conditions
    if first is None or second is None:
        return
    for name, old, new in (
        ("SM", first.sm_clock_mhz.high, second.sm_clock_mhz.high),
        ("memory", first.memory_clock_mhz.high, second.memory_clock_mhz.high),
    ):
        if abs(new - old) > _CLOCKS_DIFFER * old:
            yield f"the GPU's {name} clock reached {old:.0f} MHz then and {new:.0f} MHz now"


def _ranking_sets(baseline: Measured) -> list[SampleSet]:
    """Return the baseline's sample sets by the clock that compares variants."""
    ranking = ranking_clock({what.clock for what in baseline.rounds})
    return [what for what in baseline.rounds if what.clock is ranking and what.layout is Layout.CONTIGUOUS]
