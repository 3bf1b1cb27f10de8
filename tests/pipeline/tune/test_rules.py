"""Rules for ranges, judged without a build, and kept beside the search."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import OverdueError
from model_artifacts.host.environment import missing_driver, now
from model_artifacts.records import Graph
from pipeline.planning.keys import make_key
from pipeline.stages.sensitivity.ranges import JudgedRule
from pipeline.tune.records import RuleScreening, ScreenedRule
from pipeline.tune.rules import RULES, screened_of, screened_rules, with_judged

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.config.quantization import RangeRule
    from pipeline.planning.project import Project

    Keep = Callable[[list[JudgedRule]], None]

pytestmark = pytest.mark.skipif(not missing_driver(), reason="a search on a GPU is in tests/gpu")


def test_judged_rules_are_kept(copied_search: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search has judged them; another gate, or another meaning of answers, judges them again."""
    monkeypatch.setattr("pipeline.stages.sensitivity.ranges.judge_rules", None)
    found = screened_rules(copied_search, Graph.INT8_CPU)
    assert found.left == ()
    assert [item.rule for item in found.rules] == ["max", "entropy", "mse", "99.9%", "99.99%", "99.999%"]
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

    def judge(_project: Project, _graph: Graph, rules: list[RangeRule], seconds: float, keep: Keep) -> None:
        assert seconds == 60.0
        judged.extend(rule.text for rule in rules)
        keep([JudgedRule(rule, kept=False, loss=0.0, distance=0.1) for rule in rules])

    monkeypatch.setattr("pipeline.stages.quantize.placing.TAKES_RANGES", False)
    monkeypatch.setattr("pipeline.stages.sensitivity.ranges.judge_rules", judge)
    found = screened_rules(copied_search, Graph.INT8_CPU, 60.0)
    assert [item.rule for item in found.rules] == judged == ["max", "99.9%", "99.99%", "99.999%"]


def test_what_was_judged_when_the_budget_ended_is_kept(copied_search: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the answer, and a larger budget judges the rest alone; a look that has judged nothing is an error."""
    asked: list[list[str]] = []

    def judge(_project: Project, _graph: Graph, rules: list[RangeRule], seconds: float, keep: Keep) -> None:
        asked.append([rule.text for rule in rules])
        number = int(seconds)
        for done in range(1, min(number, len(rules)) + 1):
            keep([JudgedRule(rule, kept=False, loss=0.0, distance=0.1 / len(rules)) for rule in rules[:done]])
        if number < len(rules):
            raise OverdueError(f"no result within the limit of {seconds:g} s")

    (copied_search.paths.tune / "ranges-int8-cpu.json").unlink()
    monkeypatch.setattr("pipeline.stages.sensitivity.ranges.judge_rules", judge)
    with pytest.raises(OverdueError):
        screened_rules(copied_search, Graph.INT8_CPU, 0.0)
    texts = ["max", "entropy", "mse", "99.9%", "99.99%", "99.999%"]
    found = [screened_rules(copied_search, Graph.INT8_CPU, seconds) for seconds in (2.0, 1.0, 60.0, 60.0)]
    assert [[item.rule for item in one.rules] for one in found] == [texts[:2], texts[:3], texts, texts]
    assert [one.left for one in found] == [tuple(texts[2:]), tuple(texts[3:]), (), ()]
    assert asked == [texts, texts, texts[2:], texts[3:]]


def test_rules_behind_an_own_that_is_not_finite_are_none() -> None:
    """Nor those of a later run."""
    texts = tuple(rule.text for rule in RULES)
    none = RuleScreening(key=make_key(), built_at=now(), graph=Graph.INT8_CPU, rules=(), left=texts)
    wild = with_judged(none, "max", [JudgedRule(RULES[0], kept=False, loss=0.0, distance=math.inf)])
    assert (wild.rules, wild.left) == ((), texts[1:])
    later = with_judged(wild, "max", [JudgedRule(RULES[1], kept=True, loss=0.0, distance=0.1)])
    assert (later.rules, later.left) == ((), texts[2:])


def test_outputs_that_are_not_finite_are_no_rule() -> None:
    """Nothing is nearer or farther than they are; without the graph's own there is nothing to compare with."""
    own, wild = (
        JudgedRule(RULES[0], kept=False, loss=-0.01, distance=0.1),
        JudgedRule(RULES[1], kept=False, loss=1.0, distance=math.nan),
    )
    assert screened_of([own, wild]) == (ScreenedRule(rule="max", kept=False, loss=0.0, distance=0.1),)
    assert screened_of([wild, own]) == screened_of([]) == ()
