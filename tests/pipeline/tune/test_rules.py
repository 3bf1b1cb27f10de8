"""Rules for ranges, judged without a build, and kept beside the search."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from model_artifacts.host.environment import missing_driver
from model_artifacts.records import Graph
from pipeline.stages.sensitivity.ranges import JudgedRule
from pipeline.tune.records import ScreenedRule
from pipeline.tune.rules import RULES, screened_of, screened_rules

if TYPE_CHECKING:
    from pipeline.config.quantization import RangeRule
    from pipeline.planning.project import Project

pytestmark = pytest.mark.skipif(not missing_driver(), reason="a search on a GPU is in tests/gpu")


def test_judged_rules_are_kept(copied_search: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search has judged them; another gate, or another meaning of answers, judges them again."""
    monkeypatch.setattr("pipeline.stages.sensitivity.ranges.judge_rules", None)
    found = screened_rules(copied_search, Graph.INT8_CPU)
    assert [item.rule for item in found] == ["max", "entropy", "mse", "99.9%", "99.99%", "99.999%"]
    config = copied_search.config
    gates = config.gates.model_copy(update={"margin": 0.5})
    model = config.model.model_copy(update={"tolerance": (0.5,)})
    for changed in ({"gates": gates}, {"model": model}):
        other = replace(copied_search, plan=replace(copied_search.plan, config=config.model_copy(update=changed)))
        with pytest.raises(TypeError, match="not callable"):
            screened_rules(other, Graph.INT8_CPU)


def test_only_rules_that_this_onnx_runtime_takes_are_judged(
    copied_search: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.10 has no ranges from files: entropy would fail, and no other rule would be judged."""
    judged: list[str] = []

    def judge(_project: Project, _graph: Graph, rules: list[RangeRule], seconds: float) -> list[JudgedRule]:
        assert seconds == 60.0
        judged.extend(rule.text for rule in rules)
        return [JudgedRule(rule, kept=False, loss=0.0, distance=0.1) for rule in rules]

    monkeypatch.setattr("pipeline.stages.quantize.placing.TAKES_RANGES", False)
    monkeypatch.setattr("pipeline.stages.sensitivity.ranges.judge_rules", judge)
    found = screened_rules(copied_search, Graph.INT8_CPU, 60.0)
    assert [item.rule for item in found] == judged == ["max", "99.9%", "99.99%", "99.999%"]


def test_outputs_that_are_not_finite_are_no_rule() -> None:
    """Nothing is nearer or farther than they are; without the graph's own there is nothing to compare with."""
    own, wild = (
        JudgedRule(RULES[0], kept=False, loss=-0.01, distance=0.1),
        JudgedRule(RULES[1], kept=False, loss=1.0, distance=math.nan),
    )
    assert screened_of([own, wild]) == (ScreenedRule(rule="max", kept=False, loss=0.0, distance=0.1),)
    assert screened_of([wild, own]) == screened_of([]) == ()
