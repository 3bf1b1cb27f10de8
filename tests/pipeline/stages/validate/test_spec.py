"""Keys of validations: what makes a verdict stale."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.records import Graph
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.validate.spec import accuracy_key
from tests.support.model_optimizer import placed_by_it

if TYPE_CHECKING:
    from pathlib import Path

    from model_artifacts.records import Key


def values(key: Key) -> dict[str, str]:
    """Return the fields of a key."""
    return {field.name: field.value for field in key.fields}


def test_a_verdict_on_proposed_places_holds_for_one_number_of_layers(built_folder: Path, tmp_path: Path) -> None:
    """The gate does not count layers that were left out; keys without a proposal are what they were."""
    project = placed_by_it(built_folder, tmp_path / "project")
    plain = Project.load(built_folder / "pipeline.yaml", STAGES)
    variants = {item.graph: item for item in plain.plan.variants if item.target.startswith("cpu")}
    for graph in (Graph.FP32, Graph.INT8_CPU):
        assert values(accuracy_key(project, variants[graph])) == values(accuracy_key(plain, variants[graph]))
    before = values(accuracy_key(plain, variants[Graph.INT8]))
    assert values(accuracy_key(project, variants[Graph.INT8])) == {**before, "left_layers": "0"}
    record = project.onnx(Graph.INT8)
    project.write(project.paths.onnx_record(Graph.INT8), record.model_copy(update={"left_layers": 3}))
    assert values(accuracy_key(project, variants[Graph.INT8])) == {**before, "left_layers": "3"}
