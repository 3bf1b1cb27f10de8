"""Groups of nodes with Q/DQ pairs: what they are, and graphs in which they are left out or added."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from model_artifacts.errors import QuantizeError
from model_artifacts.records import Graph
from pipeline.config.quantization import GROUPS, QuantizationConfig
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.quantize.groups import is_pooling, left_by, members
from pipeline.stages.quantize.placing import place_pairs
from pipeline.stages.quantize.rewriting import quantized_nodes
from pipeline.stages.quantize.spec import quantize_key, ranges_key
from pipeline.stages.quantize.stage import make_quantized
from tests.support.quantized_graphs import Given, load, nodes, residual_graph, weights

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.records import OnnxRecord

MEMBERS = {
    "first": ["first"],
    "last": ["last"],
    "sums": ["identity", "projection", "neither"],
    "pools": ["pooled"],
    "concats": [],
}
"""Of the residual graph."""


def settings_of(**groups: bool) -> QuantizationConfig:
    """Return the settings with groups that are placed or left out."""
    return QuantizationConfig.model_validate(groups)


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_has_all_nodes_of_its_kind(group: str) -> None:
    """Of a network with three sums, a pool, and products at its end."""
    assert members(residual_graph(), group) == MEMBERS[group]


def test_a_bias_is_no_sum_of_activations() -> None:
    """A product with a bias of its own has a sum with a constant behind it."""
    model = residual_graph()
    model.graph.node.append(helper.make_node("Add", ["last", "bias"], ["biased"], name="biased"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(10, np.float32), "bias"))
    assert members(model, "sums") == MEMBERS["sums"]


@pytest.mark.parametrize(("axes", "pools"), [([2, 3], True), ([-1, -2], True), ([1], False)])
def test_a_mean_pools_over_height_and_width(axes: list[int], *, pools: bool) -> None:
    """A mean of the channels is another thing, as in a layer's normalisation."""
    node = helper.make_node("ReduceMean", ["x"], ["y"], name="mean", axes=axes)
    assert is_pooling(residual_graph(), node) == pools


@given(st.sets(st.sampled_from(["first", "last", "sums", "pools"])))
def test_the_groups_that_are_left_out_are_left_together(groups: set[str]) -> None:
    """Each node once, whatever others are left with it."""
    found = left_by(settings_of(**dict.fromkeys(sorted(groups), False)), residual_graph())
    assert sorted(found) == sorted(name for group in groups for name in MEMBERS[group])


def test_a_group_that_the_graph_lacks_is_refused() -> None:
    """Nothing could be left out."""
    with pytest.raises(QuantizeError, match="the graph has no concats, so that none can be left out"):
        left_by(settings_of(concats=False), residual_graph())


def rounded_names(settings: QuantizationConfig, folder: Path) -> set[str]:
    """Return the names of the nodes of x86's residual graph whose results are rounded to eight bits."""
    images = np.random.default_rng(1).normal(size=(4, 3, 32, 32)).astype(np.float32)
    place_pairs(Given(images), Graph.INT8_CPU, residual_graph(), folder / "placed.onnx", settings=settings)
    model = onnx.load(folder / "placed.onnx")
    rounded = {node.input[0] for node in nodes(model, "QuantizeLinear")}
    return {node.name for node in model.graph.node if node.output[0] in rounded}


@pytest.mark.parametrize(
    ("groups", "gone", "come"),
    [
        ({"first": False}, {"first"}, set()),
        ({"sums": False}, {"identity", "projection"}, set()),
        ({"pools": False}, {"pooled"}, set()),
        ({"last": True}, set(), {"last"}),
        ({"last": True, "pools": False}, {"pooled"}, {"last"}),
    ],
    ids=["first", "sums", "pools", "last", "two"],
)
def test_x86_leaves_groups_out_and_adds_them(
    groups: dict[str, bool], gone: set[str], come: set[str], tmp_path: Path
) -> None:
    """Their results are not rounded; the sum that a pool reads is, by the pool. All others stay as they are."""
    known = {name for names in MEMBERS.values() for name in names}
    before = rounded_names(QuantizationConfig(), tmp_path)
    after = rounded_names(settings_of(**groups), tmp_path)
    assert ((before - after) & known, (after - before) & known) == (gone, come)


def test_a_graph_without_a_quantised_layer_is_refused(tmp_path: Path) -> None:
    """The first layer is the only one beside the last."""
    model = residual_graph()
    for name in ("a", "b", "c", "d", "hidden"):
        node = next(item for item in model.graph.node if item.name == name)
        node.op_type = "Identity"
        del node.input[1:], node.attribute[:]
    images = Given(np.zeros((1, 3, 32, 32), np.float32))
    with pytest.raises(QuantizeError, match="leaves out every layer; none would be int8"):
        place_pairs(images, Graph.INT8, model, tmp_path / "placed.onnx", settings=settings_of(first=False))


def residual_of(folder: Path, text: str, *graphs: Graph) -> tuple[Project, list[OnnxRecord]]:
    """Return a project whose FP32 graph is the residual one, and the records of its quantised graphs."""
    config = folder / "pipeline.yaml"
    config.write_text(config.read_text().replace("int8]", "int8, fp8]") + text)
    project = Project.load(config, STAGES)
    onnx.save(residual_graph(), project.paths.onnx(Graph.FP32))
    return project, [make_quantized(project, graph) for graph in graphs]


def test_tensorrts_graphs_leave_groups_out(copied: Path) -> None:
    """Sums and the first layer read unrounded tensors; the rest is FP16, as in mixed graphs, and the record counts."""
    text = "quantization: {first: false, sums: false}\n"
    project, (int8, x86) = residual_of(copied, text, Graph.INT8, Graph.INT8_CPU)
    model = load(project, Graph.INT8)
    assert {node.name for node in quantized_nodes(model)} == {"a", "b", "c", "d", "hidden"}
    assert weights(model)["first.weight"].dtype == np.float16
    assert (int8.left_layers, x86.left_layers) == (1, 1)


def test_outer_layers_are_added(copied: Path) -> None:
    """The last product in int8, and both ends in fp8, which leaves them out by itself."""
    project, records = residual_of(copied, "quantization: {first: true, last: true}\n", Graph.INT8, Graph.FP8)
    for graph in (Graph.INT8, Graph.FP8):
        model = load(project, graph)
        assert {"first", "last"} <= {node.name for node in quantized_nodes(model)}
        assert [item.name for item in nodes(model, "Identity")]  # the logits themselves are not rounded
    assert [record.left_layers for record in records] == [0, 0]


def test_layers_that_stay_by_themselves_are_no_change(copied: Path) -> None:
    """`last: false` says what holds anyway: the gate spares the last product already, and the graph is the same."""
    _, (record,) = residual_of(copied, "quantization: {last: false}\n", Graph.INT8)
    assert record.left_layers == 0
    (copied / "pipeline.yaml").write_text((copied / "pipeline.yaml").read_text().replace("{last: false}", "{}"))
    plain = make_quantized(Project.load(copied / "pipeline.yaml", STAGES), Graph.INT8)
    assert record.canonical_sha256 == plain.canonical_sha256


def test_ends_without_kernels_are_not_added(tmp_path: Path) -> None:
    """No fp8 convolution has a filter of 7×7; int8 and x86 have it by themselves."""
    model = residual_graph()
    weight = next(item for item in model.graph.initializer if item.name == "first.weight")
    weight.CopyFrom(numpy_helper.from_array(np.zeros((8, 3, 7, 7), np.float32), weight.name))
    images = Given(np.zeros((1, 3, 32, 32), np.float32))
    with pytest.raises(QuantizeError, match=r"quantization\.first: TensorRT has no fp8 kernels for first\n"):
        place_pairs(images, Graph.FP8, model, tmp_path / "placed.onnx", settings=settings_of(first=True))


def test_groups_are_in_the_key_of_the_graph_alone(copied: Path) -> None:
    """Without any the key is that of older projects, and the ranges are shared."""
    config = copied / "pipeline.yaml"
    text = config.read_text()
    found = []
    for section in ("", "quantization: {last: auto}\n", "quantization: {last: true}\n"):
        config.write_text(text + section)
        found.append(Project.load(config, STAGES))
    plain, auto, other = found
    assert quantize_key(plain, Graph.INT8) == quantize_key(auto, Graph.INT8)
    names = {field.name for field in quantize_key(other, Graph.INT8).fields}
    assert names - {field.name for field in quantize_key(plain, Graph.INT8).fields} == {"pairs"}
    assert ranges_key(plain, Graph.INT8) == ranges_key(other, Graph.INT8)
