"""int8 or fp8 that misses its gate → the rule for its ranges, or the fewest layers in FP16, to try next. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pipeline.tune.records import Choice, Point, TrialVerdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.tune.records import ScreenedRule, Trial
    from pipeline.tune.space import Mixed

RULE = "quantization.calibration"
"""The setting of the rule for the ranges of activations."""
_TRIES = 6
"""The most numbers of layers that are tried for one variant and one rule: each is a graph, a build and a validation."""

_BUILDS = 2
"""The most rules that are built for one variant. Another rule costs no speed, so that they come before the layers."""


class Ranking(NamedTuple):
    """Layers by their sensitivity to a precision, from `doit sensitivity`."""

    layers: tuple[str, ...]
    """All of them, the most sensitive first."""
    proposed: int
    """The number of them that keep the gate if they stay in FP16, on calibration images."""


class Screen(NamedTuple):
    """A move that needs the rules for ranges, judged without a build, before it can be made."""

    graph: str
    """The quantised graph: `int8`, `int8-cpu` or `fp8`."""


class Repair(NamedTuple):
    """A move that needs the layers' sensitivities before it can be made."""

    graph: str
    """The quantised graph: `int8` or `fp8`."""
    rule: str = ""
    """The rule for its ranges; empty is the graph's own."""


def repair_of(
    trials: Sequence[Trial],
    mixed: Mapping[str, Mixed],
    rules: Mapping[str, tuple[str, ...]],
    rankings: Mapping[Repair, Ranking],
) -> Point | Repair | Screen | None:
    """Return the repair of a quantised variant that missed its gate; None if there is none to make.

    Another rule for its ranges comes first, which costs no speed; then the fewest layers in FP16, on top of the rule
    that came nearest.

    Args:
        trials: all trials so far, in their order.
        mixed: the quantised variants with layers left in FP16, by the subject of the plain one.
        rules: the rules for ranges that are worth a build, by quantised graph, as far as they were judged.
        rankings: the layers by their sensitivity, as far as they were measured.
    """
    for trial in trials:
        if trial.verdict is TrialVerdict.REJECTED and not trial.point.choices and trial.point.subject in mixed:
            found = _repair(trial.point, trials, mixed, rules, rankings)
            if found is not None:
                return found
    return None


def _repair(
    point: Point,
    trials: Sequence[Trial],
    mixed: Mapping[str, Mixed],
    rules: Mapping[str, tuple[str, ...]],
    rankings: Mapping[Repair, Ranking],
) -> Point | Repair | Screen | None:
    own = mixed[point.subject]
    alike = {subject for subject, item in mixed.items() if item.graph == own.graph}
    ruled = [trial for trial in trials if trial.point.subject in alike and _rule_of(trial.point)]
    verdicts = {_rule_of(trial.point): trial.passed for trial in ruled if trial.point.subject == point.subject}
    if any(verdicts.values()):
        return None
    if own.graph not in rules:
        return Screen(own.graph)
    elsewhere = {_rule_of(trial.point): trial.passed for trial in ruled if trial.point.subject != point.subject}
    if rule := next_rule(rules[own.graph], verdicts, elsewhere):
        return point.with_choice(Choice(setting=RULE, value=rule))
    plain = {trial.point.subject: trial for trial in trials if not trial.point.choices}
    for rule in dict.fromkeys((nearest_rule(plain, ruled), "")):
        need = Repair(own.ranked, rule)
        ranking = rankings.get(need)
        if ranking is None:
            return need
        left = _left_of(need, trials)
        counts = {count: trial.passed for count, trial in left if trial.point.subject == own.contender.subject}
        proposed = min((count for count, trial in left if trial.passed), default=ranking.proposed)
        count = next_count(len(ranking.layers), proposed, counts)
        if count is not None:
            layers = Choice(setting=_setting(need), value=ranking.layers[:count])
            mixed_point = Point(subject=own.contender.subject, choices=(layers,))
            return mixed_point.with_choice(Choice(setting=RULE, value=rule)) if rule else mixed_point
        if any(counts.values()):
            return None
    return None


def _rule_of(point: Point) -> str:
    """Return the rule of a point whose only choice it is; empty for any other."""
    found = [str(choice.value) for choice in point.choices if choice.setting == RULE]
    return found[0] if found and len(point.choices) == 1 else ""


def _setting(need: Repair) -> str:
    return f"leave_unquantized.{need.graph}"


def _left_of(need: Repair, trials: Sequence[Trial]) -> list[tuple[int, Trial]]:
    """Return the trials with layers left in FP16 on top of a rule, and of nothing else, each with the number of them.

    Those of all batch ranges: what has passed for one is where the next begins.
    """
    found = []
    for trial in trials:
        values = {choice.setting: choice.value for choice in trial.point.choices}
        layers, rule = values.pop(_setting(need), None), values.pop(RULE, "")
        if isinstance(layers, tuple) and rule == need.rule and not values:
            found.append((len(layers), trial))
    return found


def nearest_rule(plain: Mapping[str, Trial], ruled: Sequence[Trial]) -> str:
    """Return the rule whose build came nearest to FP32, if any came nearer than the graph's own; empty if none did.

    Nearer is farther in neither measure, the answers lost and the relative L2 distance, and nearer in one.

    Args:
        plain: the trials with the graph's own rule, by subject.
        ruled: the trials with another rule alone.
    """
    nearer: list[tuple[float, float, str]] = []
    for trial in ruled:
        own = plain.get(trial.point.subject)
        if own is None or trial.relative_l2 is None or own.relative_l2 is None:
            continue
        mine, before = (trial.relative_l2, trial.drop or 0.0), (own.relative_l2, own.drop or 0.0)
        if mine != before and all(now <= then for now, then in zip(mine, before, strict=True)):
            nearer.append((*mine, _rule_of(trial.point)))
    return min(nearer)[2] if nearer else ""


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


def next_rule(
    promising: Sequence[str], verdicts: Mapping[str, bool], elsewhere: Mapping[str, bool] | None = None
) -> str | None:
    """Return the rule to build next; None if one passed, or if none of the best is left.

    Args:
        promising: the rules that are worth a build, the best first.
        verdicts: the rules built so far for this variant, with true for those that passed.
        elsewhere: the same for other batch ranges of its graph: what passed there comes first, and what missed the gate
            there is not built again.
    """
    if any(verdicts.values()):
        return None
    known = elsewhere or {}
    left = [rule for rule in promising[:_BUILDS] if rule not in verdicts and known.get(rule, True)]
    return min(left, key=lambda rule: not known.get(rule, False), default=None)


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
