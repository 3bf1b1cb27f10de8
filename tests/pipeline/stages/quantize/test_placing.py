"""Calibrated graphs by each rule for ranges, and with pairs that were proposed, on small networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from model_artifacts.errors import MissingRecordError, QuantizeError
from model_artifacts.host.environment import now
from model_artifacts.records import Graph
from pipeline.config.quantization import QuantizationConfig
from pipeline.planning.freshness import is_current
from pipeline.planning.keys import make_key
from pipeline.planning.project import Project
from pipeline.planning.steps import Step
from pipeline.records import PlacedPair, Proposal
from pipeline.stages import STAGES
from pipeline.stages.quantize import placing
from pipeline.stages.quantize.calibration import Calibration, Images, Kept
from pipeline.stages.quantize.placing import check_placed, place_pairs, proposed_pairs
from pipeline.stages.quantize.rewriting import keep_pairs, quantized_inputs
from pipeline.stages.quantize.stage import calibrate, fp32_of, make_quantized
from tests.support.model_optimizer import placed_by_it
from tests.support.quantized_graphs import TENSORRT, Given, load, relative_error, residual_graph, weights

if TYPE_CHECKING:
    from pathlib import Path

IMAGES = np.random.default_rng(1).standard_t(3, size=(16, 3, 32, 32)).astype(np.float32)


def settings_of(rule: str) -> QuantizationConfig:
    """Return the settings with a rule."""
    return QuantizationConfig.model_validate({"calibration": rule})


def range_of_image(graph: Graph, rule: str, folder: Path, kept: Kept | None = None) -> float:
    """Return the largest value of the quantised image."""
    file = folder / "placed.onnx"
    place_pairs(Given(IMAGES), graph, residual_graph(), file, kept=kept, settings=settings_of(rule))
    tensors = {item.name: numpy_helper.to_array(item) for item in onnx.load(file).graph.initializer}
    scale, zero = float(tensors["image_scale"]), int(tensors["image_zero_point"])
    return scale * (255 - zero) if graph.for_x86 else scale * 127


@pytest.mark.parametrize("graph", [Graph.INT8, Graph.INT8_CPU], ids=["int8", "x86"])
def test_each_rule_has_its_own_range(graph: Graph, tmp_path: Path) -> None:
    """The maximum takes every value of an image with long tails, and all others clip it, each at another place."""
    rules = ("max", "99%", "99.9%", "entropy", "mse")
    found = {rule: range_of_image(graph, rule, tmp_path) for rule in rules}
    largest = float(IMAGES.max() if graph.for_x86 else np.abs(IMAGES).max())
    assert found["max"] == pytest.approx(largest, rel=0.01)
    assert found["99%"] == pytest.approx(np.percentile(np.abs(IMAGES), 99), rel=0.02)
    assert found["99%"] < found["99.9%"] < found["max"]
    assert found["entropy"] < 0.9 * found["max"]
    assert found["mse"] < 1.01 * found["max"]  # uint8 has twice as many steps, and clips least
    assert len({*found.values()}) == len(rules)


def test_fitted_ranges_are_kept_for_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second graph of the same key looks at no image."""
    kept = Kept(make_key(calibration="a"), tmp_path / "ranges.npz")
    before = range_of_image(Graph.INT8, "mse", tmp_path, kept)
    monkeypatch.setattr(Calibration, "run", None)
    monkeypatch.setattr(Calibration, "histograms", None)
    assert range_of_image(Graph.INT8, "mse", tmp_path, kept) == before


def test_an_onnx_runtime_that_takes_no_ranges_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It calibrates by itself, and knows percentiles, but no squared error."""
    expected = range_of_image(Graph.INT8, "99%", tmp_path)
    monkeypatch.setattr(placing, "TAKES_RANGES", False)
    assert range_of_image(Graph.INT8, "99%", tmp_path) == expected
    with pytest.raises(QuantizeError, match=r"quantization\.calibration: mse needs an ONNX Runtime"):
        range_of_image(Graph.INT8, "mse", tmp_path)


def proposed(graph: onnx.ModelProto, *places: tuple[str, int]) -> tuple[PlacedPair, ...]:
    """Return pairs at inputs of a graph's nodes."""
    nodes = {node.name: node for node in graph.graph.node}
    return tuple(
        PlacedPair(node=name, kind=nodes[name].op_type, input=place, tensor=nodes[name].input[place])
        for name, place in places
    )


def test_pairs_stand_where_they_were_proposed(tmp_path: Path) -> None:
    """On one side of a sum, on a pool, and not at other readers of the same tensors, nor on weights by themselves."""
    model, file = residual_graph(), tmp_path / "placed.onnx"
    values = weights(model)
    places = {("b", 0), ("b", 1), ("identity", 1), ("projection", 0), ("pooled", 0), ("flat", 0), ("hidden", 1)}
    pairs = proposed(model, *sorted(places))
    place_pairs(Given(IMAGES), Graph.INT8, model, file, pairs=pairs)
    kept = keep_pairs(onnx.load(file), values, places)
    check_placed(kept, pairs)
    assert quantized_inputs(kept) == places


def test_pairs_that_the_quantiser_does_not_place_are_refused(tmp_path: Path) -> None:
    """Of an activation, whose input it takes only behind a quantised node."""
    model, file = residual_graph(), tmp_path / "placed.onnx"
    values = weights(model)
    pairs = proposed(model, ("b", 0), ("middle", 0))
    place_pairs(Given(IMAGES), Graph.INT8, model, file, pairs=pairs)
    kept = keep_pairs(onnx.load(file), values, {("b", 0), ("middle", 0)})
    with pytest.raises(QuantizeError, match="does not place the proposed Q/DQ pairs") as caught:
        check_placed(kept, pairs)
    assert "input 0 of middle (Relu)" in str(caught.value)
    assert "1 of them are missing" in str(caught.value)


def recorded(project: Project, graph: Graph, *places: tuple[str, int]) -> Proposal:
    """Write a proposal."""
    record = Proposal(
        key=make_key(),
        built_at=now(),
        graph=graph,
        structure_sha256=project.onnx(Graph.FP32).structure_sha256,
        model_optimizer="0.47.0",
        pairs=proposed(fp32_of(project), *places),
    )
    return project.write(project.paths.proposal(graph), record)


@pytest.fixture
def tiny(built_folder: Path, tmp_path: Path) -> Project:
    """The tiny project with fp8 and Model Optimizer's places in its configuration, and no proposal."""
    return placed_by_it(built_folder, tmp_path / "project")


def convolutions(project: Project) -> tuple[str, str]:
    """Return the names of the two convolutions."""
    first, second = (node.name for node in fp32_of(project).graph.node if node.op_type == "Conv")
    return first, second


@pytest.mark.parametrize("graph", TENSORRT, ids=lambda graph: graph.value)
def test_the_stage_takes_the_proposal(tiny: Project, graph: Graph) -> None:
    """The graph has the proposed pairs alone; a layer without them is in FP16, and is no reason for a weaker gate."""
    first, second = convolutions(tiny)
    (pool,) = (node.name for node in fp32_of(tiny).graph.node if node.op_type == "AveragePool")
    places = ((second, 0), (second, 1), (pool, 0))
    recorded(tiny, graph, *places)
    record = make_quantized(tiny, graph)
    model = load(tiny, graph)
    assert quantized_inputs(model) == {*places}
    assert record.left_layers == 0
    weight = next(node.input[1] for node in model.graph.node if node.name == first)
    assert weights(model)[weight].dtype == np.float16
    assert relative_error(tiny, model) < 0.06
    assert is_current(tiny, Step("quantize", f"tiny/{graph.value}"))
    other = tiny.proposal(graph).model_copy(update={"model_optimizer": "0.48.0"})
    tiny.write(tiny.paths.proposal(graph), other)
    assert not is_current(tiny, Step("quantize", f"tiny/{graph.value}"))


def test_groups_are_added_to_a_proposal_and_left_out_of_it(tiny: Project) -> None:
    """`last: true` quantises the last product, too; `pools: false` takes the pool's pair away."""
    first, second = convolutions(tiny)
    nodes = fp32_of(tiny).graph.node
    (pool,) = (node.name for node in nodes if node.op_type == "AveragePool")
    (last,) = (node.name for node in nodes if node.op_type == "Gemm")
    recorded(tiny, Graph.INT8, (first, 0), (first, 1), (second, 0), (second, 1), (pool, 0))
    text = tiny.config_file.read_text().replace("model_optimizer}", "model_optimizer, last: true, pools: false}")
    tiny.config_file.write_text(text)
    project = Project.load(tiny.config_file, STAGES)
    make_quantized(project, Graph.INT8)
    found = quantized_inputs(load(project, Graph.INT8))
    assert found == {(node, place) for node in (first, second, last) for place in (0, 1)}


def test_a_mixed_graph_is_counted_without_what_the_proposal_leaves_out(tiny: Project) -> None:
    """Its name says that layers are in FP16, as the plain one's does not; its validation knows their number."""
    _, second = convolutions(tiny)
    (last,) = (node.name for node in fp32_of(tiny).graph.node if node.op_type == "Gemm")
    recorded(tiny, Graph.INT8, *((node, place) for node in (second, last) for place in (0, 1)))
    tiny.config_file.write_text(f"{tiny.config_file.read_text()}leave_unquantized: {{int8: [{second}]}}\n")
    project = Project.load(tiny.config_file, STAGES)
    assert [make_quantized(project, graph).left_layers for graph in (Graph.INT8, Graph.INT8_MIXED)] == [0, 2]
    assert quantized_inputs(load(project, Graph.INT8_MIXED)) == {(last, 0), (last, 1)}


def test_graphs_for_x86_keep_their_own_places(tiny: Project) -> None:
    """Model Optimizer places for TensorRT; no proposal is asked for, and the key is what it was."""
    assert is_current(tiny, Step("quantize", "tiny/int8-cpu"))
    settings = tiny.config.quantization
    assert proposed_pairs(tiny, Graph.INT8_CPU, fp32_of(tiny), settings) == ()


def test_a_proposal_that_is_missing_or_of_another_graph_is_told(tiny: Project) -> None:
    """With the command that makes it; the present graph stays."""
    before = tiny.paths.onnx(Graph.INT8).read_bytes()
    with pytest.raises(MissingRecordError, match=r"int8.proposal.json is missing(?s:.*)pipeline propose tiny/int8"):
        make_quantized(tiny, Graph.INT8)
    first, _ = convolutions(tiny)
    record = recorded(tiny, Graph.INT8, (first, 0), (first, 1))
    strange = record.pairs[0].model_copy(update={"node": "renamed"})
    for update in ({"structure_sha256": "0" * 64}, {"pairs": (strange,)}):
        tiny.write(tiny.paths.proposal(Graph.INT8), record.model_copy(update=update))
        with pytest.raises(QuantizeError, match=r"of another FP32 graph(?s:.*)pipeline propose tiny/int8"):
            make_quantized(tiny, Graph.INT8)
    assert tiny.paths.onnx(Graph.INT8).read_bytes() == before


def test_sensitivities_keep_the_proposed_places(tiny: Project) -> None:
    """No other pair is taken away when a layer is left, as those of no use to kernels are."""
    first, second = convolutions(tiny)
    (pool,) = (node.name for node in fp32_of(tiny).graph.node if node.op_type == "AveragePool")
    recorded(tiny, Graph.INT8, (first, 0), (first, 1), (second, 0), (second, 1), (pool, 0))
    data = tiny.data()
    calibrated = calibrate(tiny, Graph.INT8, Images(tiny.pixels(data.calibration)[:8], data.preprocessing))
    assert quantized_inputs(calibrated.leaving([second])) == {(first, 0), (first, 1), (pool, 0)}
