"""Rules for ranges, judged on calibration images without a build."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import CrashedError
from model_artifacts.records import Graph
from pipeline.config.quantization import RangeMethod, RangeRule
from pipeline.stages.sensitivity.ranges import judge_rules

if TYPE_CHECKING:
    from pipeline.planning.project import Project

RULES = [
    RangeRule(method=RangeMethod.MAX),
    RangeRule(method=RangeMethod.PERCENTILE, percentile=70.0),  # fewer than a configuration may write
    RangeRule(method=RangeMethod.MSE),
]


@pytest.mark.parametrize("graph", [Graph.INT8, Graph.INT8_CPU], ids=["int8", "x86"])
def test_each_rule_is_judged_beside_fp32(built: Project, graph: Graph) -> None:
    """A rule that clips a third of all values is far off and loses answers; the others are near. All are in order."""
    found = judge_rules(built, graph, RULES)
    assert [item.rule for item in found] == RULES
    most, clipped, least = found
    assert 0 < max(most.distance, least.distance) < 0.1 < clipped.distance
    assert not clipped.kept
    assert clipped.loss >= 0


def test_too_long_is_no_result(built: Project) -> None:
    """The process is ended, and the message says so."""
    with pytest.raises(CrashedError, match=r"no result within the limit of 0\.001 s"):
        judge_rules(built, Graph.INT8, RULES, timeout_seconds=1e-3)
