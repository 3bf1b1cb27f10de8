"""The layers that lose most accuracy by quantisation, and variants that leave them in floating point."""

from __future__ import annotations

import os
import shutil
import signal
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_artifacts.errors import QuantizeError
from model_artifacts.records import Graph, Precision
from model_artifacts.sessions.onnx import run_stand_in
from pipeline.adapters.onnx_graph import layer_shares
from pipeline.cli.main import main
from pipeline.planning.freshness import is_current
from pipeline.planning.project import Project
from pipeline.planning.steps import Step
from pipeline.stages import STAGES
from pipeline.stages.common.samples import to_batch
from pipeline.stages.quantize.bias_correction import centre_outputs, output_shifts
from pipeline.stages.quantize.calibration import Images
from pipeline.stages.quantize.rewriting import quantized_layers, quantized_nodes
from pipeline.stages.quantize.stage import calibrate, make_quantized
from pipeline.stages.sensitivity.stage import Ranked, halves, measure_sensitivity, propose
from tests.support.parts import long_test
from tests.support.quantized_graphs import load, read_by, residual_graph
from tests.support.sensitive import off_by

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.records import Sensitivity
    from pipeline.stages.quantize.calibrated import Calibrated
    from pipeline.stages.sensitivity.judging import Judged


# Pure.


def near(judged: Judged) -> bool:
    """Return True within half of the reference."""
    return judged.distance < 0.5


@given(st.integers(0, 6), st.integers(1, 6))
def test_the_fewest_layers_are_proposed(needed: int, count: int) -> None:
    """Just as many of the most sensitive are left as the gate needs, but never all."""
    ranked = tuple(f"layer{number}" for number in range(count))
    layers = frozenset(ranked)
    asked: list[tuple[str, ...]] = []

    def judged_of(left: tuple[str, ...]) -> Judged:
        asked.append(left)
        return off_by(0.1 if len(left) >= needed else 0.9)

    left, judged = propose(Ranked(ranked, layers), judged_of(()), judged_of, near)
    assert left == ranked[: min(needed, count - 1)]
    assert near(judged) == (needed <= count - 1)
    assert len(asked) == len(left) + 1


def test_a_layer_stays_quantised() -> None:
    """Sums and pools may be all that a proposal has left, but then no layer would be quantised."""
    ranked = Ranked(("layer0", "sum", "layer1", "pool"), frozenset({"layer0", "layer1"}))

    left, _ = propose(ranked, off_by(0.9), lambda _: off_by(0.9), near)

    assert left == ("layer0", "sum")


@given(st.integers(1, 9))
def test_other_images_judge_than_those_that_give_the_ranges(count: int) -> None:
    """Every image has one of both tasks; a single one has both."""
    ranging, judging = halves(np.arange(count, dtype=np.uint8))

    if count > 1:
        assert not {*ranging.tolist()} & {*judging.tolist()}
    assert {*ranging.tolist()} | {*judging.tolist()} == {*range(count)}
    assert 0 <= len(ranging) - len(judging) <= 1


# On the tiny network.


def calibrated_of(project: Project) -> Calibrated:
    """Return a project's int8 graph, calibrated with every second image."""
    data = project.data()
    return calibrate(project, Graph.INT8, Images(project.pixels(data.calibration)[::2], data.preprocessing))


def configured(folder: Path, text: str) -> Project:
    """Add to the tiny project's configuration."""
    config = folder / "pipeline.yaml"
    config.write_text(config.read_text() + text)
    return Project.load(config, STAGES)


@pytest.fixture(scope="module")
def measured(built_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Sensitivity]:
    """The tiny project's sensitivity to int8, with a gate that plain int8 misses; to be read only."""
    folder = tmp_path_factory.mktemp("sensitive") / "project"
    shutil.copytree(built_folder, folder)
    plain = measure_sensitivity(Project.load(folder / "pipeline.yaml", STAGES), Graph.INT8).plain.relative_l2
    gate = f"gates: {{int8: {{cosine: 0.5, relative_l2: {0.9 * plain:.9f}, top1_agreement: 0.5, top1_drop: 0.5}}}}\n"
    project = configured(folder, gate)
    return project, measure_sensitivity(project, Graph.INT8)


def test_each_node_is_quantised_alone(measured: tuple[Project, Sensitivity]) -> None:
    """Every node that reads a pair has its distance, the most sensitive first; none is as far as all together."""
    project, found = measured
    calibrated = calibrated_of(project)
    assert {layer.name for layer in found.layers} == {node.name for node in quantized_nodes(calibrated.model)}
    assert (found.samples, found.calibrated_on) == (16, 16)
    distances = [layer.distance for layer in found.layers]
    assert distances == sorted(distances, reverse=True)
    assert min(distances) > 0
    assert max(distances) < 1.1 * found.plain.relative_l2
    assert all((layer.weights > 0) == (layer.kind in {"Conv", "Gemm"}) for layer in found.layers)
    for layer in found.layers:
        assert [node.name for node in quantized_nodes(calibrated.quantizing(layer.name))] == [layer.name]


def test_graphs_are_judged_with_centred_outputs(measured: tuple[Project, Sensitivity]) -> None:
    """A shift of all logits alike is taken away, as in the graph that is built, so that it ranks no node."""
    project, found = measured
    calibrated, data = calibrated_of(project), project.data()
    pixels = np.asarray(project.pixels(data.calibration))
    whole = calibrated.leaving([node.name for node in calibrated.model.graph.node])
    judging = to_batch(halves(pixels)[1], data.preprocessing)

    def distance(model: onnx.ModelProto) -> float:
        got, want = (run_stand_in(item.SerializeToString(), judging, 16) for item in (model, whole))
        assert isinstance(got, np.ndarray)
        assert isinstance(want, np.ndarray)
        return float(np.linalg.norm(got - want) / np.linalg.norm(want))

    plain = calibrated.leaving(())
    shifted = distance(plain)
    centred = distance(centre_outputs(plain, output_shifts(plain, whole, Images(pixels[::2], data.preprocessing))))
    assert found.plain.relative_l2 == pytest.approx(centred, rel=1e-3)
    assert abs(shifted - centred) > 0.01 * centred


def test_the_proposal_keeps_a_gate_that_plain_int8_misses(measured: tuple[Project, Sensitivity]) -> None:
    """The proposal has the fewest, most sensitive layers, and their result."""
    project, found = measured
    bound = project.config.gates.int8.relative_l2
    assert bound is not None
    assert found.plain.relative_l2 > bound >= found.proposed.relative_l2
    assert found.kept
    assert found.proposal == tuple(layer.name for layer in found.layers[: len(found.proposal)])
    assert found.calibration_sha256 == project.data().calibration.sha256
    assert is_current(project, Step("sensitivity", "tiny/int8"))


@long_test
def test_the_proposal_is_a_variant_that_is_nearer_than_plain_int8(
    measured: tuple[Project, Sensitivity], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The printed lines work in pipeline.yaml: only the mixed graphs are new, and they pass."""
    folder = tmp_path / "project"
    shutil.copytree(measured[0].config_file.parent, folder)
    config = str(folder / "pipeline.yaml")
    assert main(["sensitivity", "tiny/int8", "--config", config]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("leave_unquantized:"))
    project = configured(folder, f"{line}\n")
    stale = [step for step in project.schedule.steps if step.stage == "quantize" and not is_current(project, step)]
    assert {step.subject for step in stale} == {"tiny/int8-mixed", "tiny/int8-mixed-cpu"}
    assert {Step("build", "tiny/rtx-sm80+/int8-mixed-b1-ws16MiB")} < set(project.schedule.steps)
    rounding = [Step("rounding", step.subject) for step in stale]
    for step in (*stale, *rounding):
        assert main([step.stage, step.subject, "--config", config]) == 0
    kept = {}
    for name in ("onnxruntime-int8", "onnxruntime-int8-cpu", "onnxruntime-int8-mixed", "onnxruntime-int8-mixed-cpu"):
        for stage in ("build", "validate"):
            assert main([stage, f"tiny/cpu-x86_64/{name}", "--config", config]) == 0
        kept[name] = project.accuracy(project.plan.variant(f"tiny/cpu-x86_64/{name}"))
    assert kept["onnxruntime-int8-mixed"].passed, kept["onnxruntime-int8-mixed"].reason
    distance = {name: report.accuracy.relative_l2 for name, report in kept.items() if report.accuracy}
    assert distance["onnxruntime-int8-mixed"] < distance["onnxruntime-int8"]
    assert distance["onnxruntime-int8-mixed-cpu"] < distance["onnxruntime-int8-cpu"]
    bounds = {check.metric: check.bound for check in kept["onnxruntime-int8-mixed"].checks}
    assert bounds["precision in the graph"] == f"≥ 80% int8 of all but {len(measured[1].proposal)}"


@pytest.mark.parametrize("graph", [Graph.INT8_MIXED, Graph.INT8_MIXED_CPU])
def test_what_is_left_multiplies_in_floating_point(copied: Path, graph: Graph) -> None:
    """The named layer, like others in floating point, is FP16 for TensorRT and FP32 for a processor."""
    name = quantized_layers(calibrated_of(Project.load(copied / "pipeline.yaml", STAGES)).model)[1].name
    project = configured(copied, f"leave_unquantized: {{int8: [{name}]}}\n")
    record = make_quantized(project, graph)
    assert (record.left_unquantized, record.left_layers) == ((name,), 1)
    plain, mixed = (
        {share.precision: share.layers for share in layer_shares(onnx.load(project.file(project.onnx(item).file)))}
        for item in (Graph.INT8_CPU if graph.for_x86 else Graph.INT8, graph)
    )
    kind = Precision.FP32 if graph.for_x86 else Precision.FP16
    assert mixed == {Precision.INT8: plain[Precision.INT8] - 1, kind: plain[Precision.FP32] + 1}


@pytest.mark.parametrize("graph", [Graph.INT8_MIXED, Graph.INT8_MIXED_CPU])
def test_a_sum_may_be_left_beside_a_layer(copied: Path, graph: Graph) -> None:
    """Both names are taken for either graph; the gate's share of int8 spares the convolution alone."""
    project = configured(copied, "leave_unquantized: {int8: [identity, c]}\n")
    onnx.save(residual_graph(), project.paths.onnx(Graph.FP32))

    record = make_quantized(project, graph)

    model = load(project, graph)
    assert (record.left_unquantized, record.left_layers) == (("identity", "c"), 1)
    assert read_by(model, "c")[1] == "c.weight"
    assert read_by(model, "a")[1] == "a.weight_quantized"
    if graph is Graph.INT8_MIXED:
        assert [read_by(model, name)[0] for name in ("c", "a")] == ["again", "begun*"]
        assert (read_by(model, "identity"), read_by(model, "projection")) == (["b", "begun"], ["c", "d"])


def test_fp8_has_its_own_table(copied: Path) -> None:
    """The same is measured of fp8, where the first convolution is in floating point already."""
    config = copied / "pipeline.yaml"
    config.write_text(config.read_text().replace("int8]", "int8, fp8]"))
    found = measure_sensitivity(Project.load(config, STAGES), Graph.FP8)
    whole = {node.name for node in quantized_layers(calibrated_of(Project.load(config, STAGES)).model)}
    assert {layer.name for layer in found.layers} < whole
    assert found.plain.relative_l2 > 0


# Wrong input.


def dies(*_: object) -> None:
    """End the process, as a fault in ONNX Runtime does."""
    os.kill(os.getpid(), signal.SIGSEGV)


def test_a_graph_that_ends_onnx_runtime_is_one_message(
    copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal is the reason, and the step ends in the ordinary way."""
    monkeypatch.setattr("pipeline.stages.sensitivity.stage._measure", dies)
    assert main(["sensitivity", "tiny/int8", "--config", str(copied / "pipeline.yaml")]) == 1
    assert "error: its process was killed by SIGSEGV" in capsys.readouterr().err


def test_a_layer_that_is_not_there_is_named(copied: Path) -> None:
    """The message has the closest names."""
    name = quantized_layers(calibrated_of(Project.load(copied / "pipeline.yaml", STAGES)).model)[0].name
    project = configured(copied, f"leave_unquantized: {{int8: [{name}x]}}\n")
    with pytest.raises(QuantizeError, match=rf"(?s)names '{name}x', which is no quantised.*expected: one of.*{name}"):
        make_quantized(project, Graph.INT8_MIXED)


def test_leaving_every_layer_is_refused(copied: Path) -> None:
    """Nothing would be int8."""
    layers = quantized_layers(calibrated_of(Project.load(copied / "pipeline.yaml", STAGES)).model)
    names = ", ".join(node.name for node in layers)
    project = configured(copied, f"leave_unquantized: {{int8: [{names}]}}\n")
    with pytest.raises(QuantizeError, match="names every layer"):
        make_quantized(project, Graph.INT8_MIXED)


def test_an_unknown_subject_is_one_message(built_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only TensorRT's graphs in int8 and fp8 have a table."""
    assert main(["sensitivity", "tiny/int8-cpu", "--config", str(built_folder / "pipeline.yaml")]) == 2
    assert "no quantised graph 'tiny/int8-cpu'" in capsys.readouterr().err
