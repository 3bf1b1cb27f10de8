"""Rules for the ranges of activations, judged without a build, in the record of a search."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from model_artifacts.errors import OverdueError, RecordError
from model_artifacts.host.environment import now
from pipeline.config.quantization import QuantizationConfig
from pipeline.planning.keys import make_key
from pipeline.system.locks import working
from pipeline.tune.records import RuleScreening, ScreenedRule

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from model_artifacts.records import Graph, Key
    from pipeline.planning.project import Project
    from pipeline.stages.sensitivity.ranges import JudgedRule

RULES = tuple(
    QuantizationConfig.model_validate({"calibration": text}).calibration
    for text in ("max", "entropy", "mse", "99.9%", "99.99%", "99.999%")
)
"""The rules for ranges that int8 and fp8 which miss their gate could have instead."""
VERSION = 2
"""Raise it when the same rules are judged in another way, or more is recorded of them.

2 has the rules that are left.
"""


def screened_rules(project: Project, graph: Graph, timeout_seconds: float = math.inf) -> RuleScreening:
    """Return the rules for the ranges of a quantised graph, judged without a build, the graph's own first.

    They are read from the record of an earlier run where that still holds, which may have judged a part of them.

    Args:
        project: the project.
        graph: the quantised graph.
        timeout_seconds: the time limit. What is judged when it ends is returned.

    Raises:
        ArtifactError: the graph cannot be quantised or run, or the time has ended before its own rule was judged; or
            the record cannot be written.
    """
    from pipeline.stages.quantize.placing import takes  # noqa: PLC0415 - a repair is rare
    from pipeline.stages.quantize.rules import rule_of  # noqa: PLC0415 - the same
    from pipeline.stages.sensitivity.ranges import judge_rules  # noqa: PLC0415 - the same
    from pipeline.stages.sensitivity.spec import sensitivity_key  # noqa: PLC0415 - the same

    path = project.paths.tune / f"ranges-{graph.value}.json"
    own = rule_of(project.config.quantization, graph)
    rules = [own, *(rule for rule in RULES if rule != own and takes(rule))]
    texts = tuple(rule.text for rule in rules)
    # They are judged as the sensitivities are: by the same code, gate and settings of answers.
    key = make_key(tune=VERSION, judged=sensitivity_key(project, graph).digest, rules=texts)
    none = RuleScreening(key=key, built_at=now(), graph=graph, rules=(), left=texts)
    before = _known(project, path, key) or none
    left = [rule for rule in rules if rule.text in before.left]
    if not left:
        return before
    try:
        with working(alone=False):
            judge_rules(project, graph, left, timeout_seconds, partial(_keep, project, path, before, own.text))
    except OverdueError:
        found = _known(project, path, key)
        if not (found and found.rules):
            raise
        return found
    return project.read(path, RuleScreening)


def _known(project: Project, path: Path, key: Key) -> RuleScreening | None:
    """Return the record of an earlier run; None if there is none that holds, or a damaged one."""
    try:
        found = project.read(path, RuleScreening)
    except RecordError:
        return None
    return found if found.key == key else None


def _keep(project: Project, path: Path, before: RuleScreening, own: str, judged: Sequence[JudgedRule]) -> None:
    """Record the rules that are judged so far, in the process that judges them."""
    project.write(path, with_judged(before, own, judged))


def with_judged(before: RuleScreening, own: str, judged: Sequence[JudgedRule]) -> RuleScreening:
    """Return a record with the rules that were judged since, behind its own. Pure.

    Args:
        before: the record.
        own: the graph's own rule, which is judged first.
        judged: the rules, in their order.
    """
    done = {item.rule.text for item in judged}
    left = tuple(text for text in before.left if text not in done)
    more = screened_of(judged) if own in before.left else _finite(judged) if before.rules else ()
    return before.model_copy(update={"built_at": now(), "rules": (*before.rules, *more), "left": left})


def screened_of(judged: Sequence[JudgedRule]) -> tuple[ScreenedRule, ...]:
    """Return the rules whose outputs are finite, the graph's own first; none if its own are not. Pure.

    Args:
        judged: the rules as they were judged, the graph's own first.
    """
    found = _finite(judged)
    return found if found and found[0].rule == judged[0].rule.text else ()


def _finite(judged: Sequence[JudgedRule]) -> tuple[ScreenedRule, ...]:
    return tuple(
        ScreenedRule(rule=item.rule.text, kept=item.kept, loss=max(item.loss, 0.0), distance=item.distance)
        for item in judged
        if math.isfinite(item.distance) and math.isfinite(item.loss)
    )
