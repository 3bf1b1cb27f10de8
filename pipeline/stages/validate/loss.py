"""Answers that an artifact lost and won → the verdict on its loss at a margin. Pure.

The test is a paired one of non-inferiority: the drop of the share of right answers must lie below the margin with its
whole interval. The interval is Tango's score interval for a difference of paired shares (T. Tango, Statistics in
Medicine 17, 1998), one-sided at 95 %. It is exact enough for counts of zero, where Wald's and Newcombe's have no width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipeline.records import Loss, Verdict

if TYPE_CHECKING:
    from pipeline.stages.validate.metrics import Answers

_Z95 = 1.6448536269514722
"""The standard normal's 95 % quantile."""
_HALVINGS = 50
_MOST_SAMPLES = 10_000_000
"""Nobody validates more."""


def largest_drop(samples: int, lost: float, won: float) -> float:
    """Return the upper end of Tango's interval of the drop (lost - won) / samples.

    Args:
        samples: at least 1.
        lost: answers that only the reference has right.
        won: answers that only the artifact has right.
    """
    low, high = max((lost - won) / samples, -1.0), 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _score(samples, lost, won, middle) > -_Z95 else (low, middle)
    return high


def _score(samples: int, lost: float, won: float, drop: float) -> float:
    """Return Tango's score statistic of a drop; its distribution is the standard normal one if the drop is true."""
    leading = 2.0 * samples
    linear = -lost - won + (2 * samples - lost + won) * drop
    constant = -won * drop * (1 - drop)
    share = (math.sqrt(max(linear**2 - 4 * leading * constant, 0.0)) - linear) / (2 * leading)
    variance = samples * (2 * share + drop * (1 - drop))
    return (lost - won - samples * drop) / math.sqrt(variance) if variance > 0 else 0.0


def smallest_drop(samples: int, lost: float, won: float) -> float:
    """Return the lower end of the interval of the drop: with the sides exchanged, it is the upper end of the gain."""
    return -largest_drop(samples, won, lost)


def judge_drop(answers: Answers, margin: float, *, is_part: bool = False) -> Loss:
    """Return the verdict on a loss.

    Args:
        answers: the answers lost and won, of at least one sample.
        margin: the largest acceptable drop; 0.01 is one percentage point.
        is_part: True for an artifact that is never deployed, on a part of the samples. Its loss fails if the whole
            interval lies above the margin: of 64 samples, one lost answer is more than a point, and shows nothing.
    """
    samples, lost, won, near_ties = answers
    drop, high = (lost - won) / samples, largest_drop(samples, lost, won)
    fails = (smallest_drop(samples, lost, won) if is_part else drop) > margin
    verdict = Verdict.PASSES if high <= margin else Verdict.FAILS if fails else Verdict.NOT_PROVEN
    provable = verdict is Verdict.NOT_PROVEN and drop <= margin
    more = _needed(samples, lost, won, margin) - samples if provable else 0
    return Loss(
        samples=samples, near_ties=near_ties, lost=lost, won=won, drop=drop, drop_high=high, verdict=verdict, more=more
    )


def _needed(samples: int, lost: float, won: float, margin: float) -> int:
    """Return the number of samples that would prove the margin with the same shares of lost and won answers."""
    low, high = samples, _MOST_SAMPLES
    while low < high:
        middle = (low + high) // 2
        factor = middle / samples
        if largest_drop(middle, lost * factor, won * factor) <= margin:
            high = middle
        else:
            low = middle + 1
    return low
