"""int8 or fp8 that misses its gate → the rule for its ranges, or the fewest layers in FP16, to try next. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.tune.records import ScreenedRule

_TRIES = 6
"""The most numbers of layers that are tried for one variant: each is a graph, a build and a validation."""

_BUILDS = 2
"""The most rules that are built for one variant. Another rule costs no speed, so that they come before the layers."""


def promising_rules(screened: Sequence[ScreenedRule]) -> tuple[str, ...]:
    """Return the rules that are worth a build: those nearer to FP32 on calibration images than the graph's own.

    Args:
        screened: the rules as they were judged without a build, the graph's own first.

    Returns:
        the promising ones: those that keep the gate first, the nearest of each first.
    """
    if not screened:
        return ()
    own, *others = screened
    better = [item for item in others if item.distance < own.distance or item.loss < own.loss]
    ordered = sorted(better, key=lambda item: (not item.kept, item.distance, item.loss))
    return tuple(item.rule for item in ordered)


def next_rule(promising: Sequence[str], verdicts: Mapping[str, bool]) -> str | None:
    """Return the rule to build next; None if one passed, or if none of the best is left.

    Args:
        promising: the rules that are worth a build, the best first.
        verdicts: the rules built so far, with true for those that passed.
    """
    if any(verdicts.values()):
        return None
    return next((rule for rule in promising[:_BUILDS] if rule not in verdicts), None)


def next_count(most: int, proposed: int, verdicts: Mapping[int, bool]) -> int | None:
    """Return the number of layers to leave in FP16 next: the most sensitive ones.

    The first is the proposed number. It doubles until one passes, and is halved towards the largest that failed. That
    finds the fewest if more layers in FP16 never lose accuracy.

    Args:
        most: the number of layers in all.
        proposed: the number by which the sensitivities keep the gate on calibration images.
        verdicts: the numbers tried so far, with true for those that passed. None in FP16 has failed already.

    Returns:
        the number; None if the fewest are known, or nothing helps.
    """
    if most < 1 or len(verdicts) >= _TRIES:
        return None
    passed = [count for count, good in verdicts.items() if good]
    failed = [count for count, good in verdicts.items() if not good]
    if not verdicts:
        return min(max(proposed, 1), most)
    if not passed:
        following = min(2 * max(failed), most)
        return None if following in verdicts else following
    least = min(passed)
    below = max((count for count in failed if count < least), default=0)
    return (below + least) // 2 if least - below > 1 else None
