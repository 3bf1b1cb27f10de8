"""The lines in which a stage reports its outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.records import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.planning.spec import Console
    from pipeline.records import TensorCast


def say_outcome(console: Console, outcome: Outcome, reason: str, done: str) -> int:
    """Print the outcome of a step, and return its exit status.

    Args:
        console: the place for the lines.
        outcome: the outcome; only a failure gives exit status 1.
        reason: the reason of a skip or a failure.
        done: the text for a success.
    """
    if outcome is Outcome.DONE:
        console.say(done)
    elif outcome is Outcome.SKIPPED:
        console.say(f"skipped: {reason}")
    else:
        console.error(f"error: {reason}")
    return 1 if outcome is Outcome.FAILED else 0


def say_casts(console: Console, casts: Sequence[TensorCast]) -> None:
    """Print the number of values that a cast to a smaller type loses; nothing if it loses none."""
    lost = [sum(counts) for counts in zip(*((c.underflow, c.subnormal, c.overflow) for c in casts), strict=True)]
    if any(lost):
        console.say(f"cast: {lost[0]:,} values underflow to zero, {lost[1]:,} become subnormal, {lost[2]:,} overflow")
