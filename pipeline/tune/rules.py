"""Rules for the ranges of activations, judged without a build, in the record of a search."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from model_artifacts.errors import RecordError
from model_artifacts.host.environment import now
from pipeline.config.quantization import QuantizationConfig
from pipeline.planning.keys import make_key
from pipeline.system.locks import working
from pipeline.tune.records import RuleScreening, ScreenedRule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model_artifacts.records import Graph
    from pipeline.planning.project import Project
    from pipeline.stages.sensitivity.ranges import JudgedRule

RULES = tuple(
    QuantizationConfig.model_validate({"calibration": text}).calibration
    for text in ("max", "entropy", "mse", "99.9%", "99.99%", "99.999%")
)
"""The rules for ranges that int8 and fp8 which miss their gate could have instead."""
VERSION = 1
"""Raise it when the same rules are judged in another way."""


def screened_rules(project: Project, graph: Graph, timeout_seconds: float = math.inf) -> tuple[ScreenedRule, ...]:
    """Return the rules for the ranges of a quantised graph, judged without a build, the graph's own first.

    They are read from the record of an earlier run where that still holds.

    Args:
        project: the project.
        graph: the quantised graph.
        timeout_seconds: the time limit.

    Raises:
        ArtifactError: the graph cannot be quantised or run, or not in time; or the record cannot be written.
    """
    from pipeline.stages.quantize.placing import takes  # noqa: PLC0415 - a repair is rare
    from pipeline.stages.quantize.rules import rule_of  # noqa: PLC0415 - the same
    from pipeline.stages.sensitivity.ranges import judge_rules  # noqa: PLC0415 - the same
    from pipeline.stages.sensitivity.spec import sensitivity_key  # noqa: PLC0415 - the same

    path = project.paths.tune / f"ranges-{graph.value}.json"
    own = rule_of(project.config.quantization, graph)
    rules = [own, *(rule for rule in RULES if rule != own and takes(rule))]
    # They are judged as the sensitivities are: by the same code, gate and settings of answers.
    key = make_key(tune=VERSION, judged=sensitivity_key(project, graph).digest, rules=[rule.text for rule in rules])
    try:
        found = project.read(path, RuleScreening)
        if found.key == key:
            return found.rules
    except RecordError:
        pass  # none yet, or a damaged one
    with working(alone=False):
        judged = judge_rules(project, graph, rules, timeout_seconds)
    return project.write(path, RuleScreening(key=key, built_at=now(), graph=graph, rules=screened_of(judged))).rules


def screened_of(judged: Sequence[JudgedRule]) -> tuple[ScreenedRule, ...]:
    """Return the rules whose outputs are finite, the graph's own first; none if its own are not. Pure.

    Args:
        judged: the rules as they were judged, the graph's own first.
    """
    found = [item for item in judged if math.isfinite(item.distance) and math.isfinite(item.loss)]
    if not found or found[0] is not judged[0]:
        return ()
    return tuple(
        ScreenedRule(rule=item.rule.text, kept=item.kept, loss=max(item.loss, 0.0), distance=item.distance)
        for item in found
    )
