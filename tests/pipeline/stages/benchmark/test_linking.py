"""Sessions of a benchmark, compared through eager FP32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from model_artifacts.records import Clock
from pipeline.stages.benchmark.gpu_watch import Reading
from pipeline.stages.benchmark.linking import disagreement, sessions_of
from pipeline.stages.benchmark.messages import Samples, SampleSet
from pipeline.stages.benchmark.results import Measured, Taken, widening_of

if TYPE_CHECKING:
    from collections.abc import Sequence

BOOST, SLOW = Reading(1980, 2600, 50, 300, 0), Reading(1500, 2600, 50, 300, 0)
CAPPED = Reading(1980, 2600, 50, 700, 0x04)
HOST = SampleSet(Clock.HOST, 1)


def timed(*names: str, baseline: Sequence[float] = (), reading: Reading | None = None) -> Measured:
    """Return a variant with its runs and rounds, as in a1, and with the medians of eager FP32 in them."""
    beside = Measured(cast("Any", None))
    for restart, value in enumerate(baseline):
        beside.keep(restart, 1, Samples(Clock.HOST, (value,)))
    found = Measured(cast("Any", None), baseline=beside if baseline else None)
    found.taken = tuple(Taken(name[0], name) for name in names)
    found.readings.extend([reading] if reading else [])
    return found


def test_variants_of_the_same_rounds_are_one_session() -> None:
    """Each session is named once, by a variant that has the baseline if one has it."""
    lone, one, two = timed("a", "b"), timed("a", "b", baseline=(1.0, 1.0)), timed("a", "c", baseline=(1.0, 1.0))
    assert sessions_of([lone, one, two]) == [one, two]


def test_one_session_agrees_with_itself() -> None:
    """Nothing is asked of variants that were always timed together, before an interruption and after it."""
    assert disagreement([timed("a", "b"), timed("a", "b")]) == ""


@pytest.mark.parametrize(
    ("before", "now", "reason"),
    [
        (timed("a", "b", baseline=(1.0, 1.01)), timed("c", "d", baseline=(1.0, 1.01)), ""),
        (timed("a", "b", baseline=(1.0, 1.0)), timed("c", "d", baseline=(1.03, 1.03)), ""),
        (timed("a", "b", baseline=(1.0, 1.0)), timed("c", "d", baseline=(1.06, 1.06)), "may have changed by 6%"),
        (timed("a", "b", baseline=(1.0, 1.1)), timed("c", "d", baseline=(1.0, 1.1)), "may have changed by 29%"),
        (timed("a", baseline=(1.0,)), timed("c", baseline=(1.0,)), "so few restarts do not tell"),
        (timed("a", "b"), timed("c", "d", baseline=(1.0, 1.0)), "eager FP32 was not timed beside both"),
        (
            timed("a", "b", baseline=(1.0, 1.0), reading=BOOST),
            timed("c", "d", baseline=(1.0, 1.0), reading=SLOW),
            "the GPU's SM clock reached 1980 MHz then and 1500 MHz now",
        ),
        (
            timed("a", "b", baseline=(1.0, 1.0), reading=BOOST),
            timed("c", "d", baseline=(1.0, 1.0), reading=CAPPED),
            "the GPU's clocks were held down (power cap)",
        ),
    ],
)
def test_sessions_are_compared_only_if_the_baseline_allows_it(before: Measured, now: Measured, reason: str) -> None:
    """The bound of eager FP32's difference, the clocks, and their throttling decide, and the reason is named."""
    found = disagreement([before, now])
    assert reason in found
    assert bool(found) == bool(reason)


def test_groups_of_one_run_are_not_held_against_each_other() -> None:
    """Groups that are timed one after the other in the same run are compared, however far the baseline has moved."""
    groups = [timed("a1", "b1", baseline=(1.0, 1.0)), timed("a2", "b2", baseline=(2.0, 2.0))]
    assert disagreement(groups) == ""


def test_intervals_of_two_sessions_hold_their_difference() -> None:
    """Each of both takes half of the bound; 5 % are assumed where no baseline tells; one session alone takes none."""
    before, now = timed("a", "b", baseline=(1.0, 1.0)), timed("c", "d", baseline=(1.0201, 1.0201))
    assert widening_of(before, HOST, [before, now]) == pytest.approx(0.00995, rel=1e-3)
    assert widening_of(now, HOST, [before, now]) == pytest.approx(0.00995, rel=1e-3)
    assert widening_of(before, HOST, [before]) == 0
    assert widening_of(before, HOST, [before, timed("e")]) == 0.025
