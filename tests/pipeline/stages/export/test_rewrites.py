"""Rewrites of exported graphs, of networks and of ONNX files, and the refusal of those that have nothing to rewrite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import pytest

from model_artifacts.errors import ExportError
from model_artifacts.records import Graph
from pipeline.planning.keys import key_of
from pipeline.planning.project import Project
from pipeline.planning.steps import Step
from pipeline.stages import STAGES
from pipeline.stages.common.model import restore_model
from pipeline.stages.export.rewrites import rewritten
from pipeline.stages.export.stage import make_onnx
from pipeline.stages.source.stage import make_source
from tests.support.onnx_models import configuration, make
from tests.support.plans import config_of
from tests.support.pooled import operators
from tests.support.quantized_graphs import residual_graph

if TYPE_CHECKING:
    from pathlib import Path


def test_without_rewrites_a_graph_is_the_given_one() -> None:
    """It is not even copied."""
    model = residual_graph()
    assert rewritten(model, config_of().rewrites) is model


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        ({"product": "convolution"}, r"rewrites\.product: no product of a global pool's output"),
        ({"product": "pooled"}, r"rewrites\.product: no product by constants of the mean over an image"),
        ({"channels": 4}, r"rewrites\.channels: no first convolution of an image reads fewer channels"),
    ],
    ids=["product", "pooled", "channels"],
)
def test_a_graph_with_nothing_to_rewrite_is_refused(settings: dict[str, object], refusal: str) -> None:
    """The residual network's last product reads an activation. Its first convolution is made to read four channels."""
    model = residual_graph()
    weight = next(item for item in model.graph.initializer if item.name == "first.weight")
    weight.dims[1] = 4
    with pytest.raises(ExportError, match=rf"(?s){refusal}.*remove `{next(iter(settings))}` from `rewrites`"):
        rewritten(model, config_of(rewrites=settings).rewrites)


@pytest.mark.parametrize("graph", [Graph.FP32, Graph.FP16, Graph.BF16])
@pytest.mark.parametrize(
    ("product", "head"), [("convolution", ["GlobalAveragePool", "Conv"]), ("pooled", ["Conv"])], ids=lambda item: item
)
def test_a_users_onnx_file_is_rewritten_in_each_precision(
    product: str, head: list[str], graph: Graph, tmp_path: Path
) -> None:
    """The FP32 graph is compared with the file; batch ranges and names stay."""
    onnx.save(make(), tmp_path / "own.onnx")
    file = tmp_path / "pipeline.yaml"
    file.write_text(configuration(tmp_path / "own.onnx") + f"rewrites: {{product: {product}, channels: 8}}\n")
    project = Project.load(file, STAGES)
    make_source(project)
    record = make_onnx(project, restore_model(project), graph)
    kinds = [item for item in operators(onnx.load(project.file(record.file))) if item != "Cast"]
    assert kinds == ["Pad", "Conv", "Relu", *head, "Flatten"]
    assert [spec.shape for spec in (*record.inputs, *record.outputs)] == [("batch", 3, 16, 16), ("batch", 5)]


def test_rewrites_are_in_the_key_and_their_absence_is_not(copied: Path) -> None:
    """`auto` is the key of old."""
    config = copied / "pipeline.yaml"
    text, found = config.read_text(), {}
    for channels in ("", "auto", "4", "8"):
        config.write_text(text + (f"rewrites: {{channels: {channels}}}\n" if channels else ""))
        fields = key_of(Project.load(config, STAGES), Step("export", "tiny/fp32")).fields
        found[channels] = {field.name: field.value for field in fields}
    assert found["auto"] == found[""]
    assert found["4"] == {**found[""], "rewrites": '[1,{"channels":4}]'}
    assert found["8"] == {**found[""], "rewrites": '[1,{"channels":8}]'}
