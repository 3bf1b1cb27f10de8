"""The rule for ranges: the configuration's, or the graph's own; and the keys that it is in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model_artifacts.records import Graph
from pipeline.config.quantization import QuantizationConfig
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.quantize.rules import default_rule, rule_of
from pipeline.stages.quantize.spec import quantize_key, ranges_key

if TYPE_CHECKING:
    from pathlib import Path

OWN = {Graph.INT8: "99.995%", Graph.INT8_CPU: "max", Graph.FP8: "max", Graph.INT8_MIXED: "99.995%"}


@pytest.mark.parametrize(("graph", "text"), OWN.items(), ids=[graph.value for graph in OWN])
def test_auto_is_the_graphs_own_rule(graph: Graph, text: str) -> None:
    """Another one holds for all graphs."""
    assert rule_of(QuantizationConfig(), graph) == default_rule(graph)
    assert default_rule(graph).text == text
    assert rule_of(QuantizationConfig.model_validate({"calibration": "mse"}), graph).text == "mse"


def test_a_graphs_own_rule_is_in_no_key(copied: Path) -> None:
    """Written or not, the keys are those of projects that are older than the setting; another rule changes them."""
    config = copied / "pipeline.yaml"
    before = Project.load(config, STAGES)
    text = config.read_text()
    found = {}
    for rule in ("99.995%", "mse"):
        config.write_text(f"{text}quantization: {{calibration: {rule}}}\n")
        found[rule] = Project.load(config, STAGES)
    own, other = found["99.995%"], found["mse"]
    assert quantize_key(own, Graph.INT8) == quantize_key(before, Graph.INT8)
    assert quantize_key(own, Graph.INT8_CPU) != quantize_key(before, Graph.INT8_CPU)
    names = {field.name for field in quantize_key(other, Graph.INT8).fields}
    assert names - {field.name for field in quantize_key(before, Graph.INT8).fields} == {"ranges"}
    assert ranges_key(before, Graph.INT8) == ranges_key(before, Graph.INT8_CPU) == ranges_key(own, Graph.INT8)
    assert ranges_key(other, Graph.INT8) != ranges_key(other, Graph.INT8_CPU)
