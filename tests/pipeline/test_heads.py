"""A network of several outputs goes through the whole pipeline: each is named, stored, judged and given apart."""

from __future__ import annotations

import json
import shutil
import sys
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch.fx import symbolic_trace

import model_artifacts
from model_artifacts.errors import RunError, SourceError, UsageError
from model_artifacts.host.record_files import read_record, write_record
from model_artifacts.records import Graph, Question, Recipe, Status
from model_artifacts.releases.triton import make_repositories
from model_artifacts.sessions.factory_call import OutputsOf
from model_artifacts.sessions.module import open_session
from pipeline.cli.main import main
from pipeline.planning.plan import Plan
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.common.modules import load_module
from pipeline.stages.release.texts import model_card
from pipeline.stages.sensitivity.table import print_sensitivity
from pipeline.stages.source.network import output_names
from pipeline.stages.source.stage import make_source
from pipeline.stages.validate.stage import validate_variant
from tests.support.heads import SHAPES, Heads, InADataclass, InANamedTuple, InATuple, Nested, configuration
from tests.support.hosts import H100, host
from tests.support.logits import distance, images
from tests.support.modules import IMAGES
from tests.support.tasks import ENGINE, FP16, FP32, made_in, sensitivity_of
from tests.support.torch_modules import artifact_of, made, named
from tests.support.torch_tensorrt_stub import Library, use

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from torch import nn

    from pipeline.records import AccuracyReport

EAGER = "tiny/cpu-x86_64/eager-fp32"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A network of four outputs whose ONNX files are validated, and whose FP16 engine is built ahead of time."""
    return made_in(tmp_path_factory.mktemp("heads"), configuration())


def test_every_output_keeps_its_name_and_shape(project: Project) -> None:
    """The network's own names stand in the record, the graphs, the engine and the manifest, in its order."""
    expected = [(name, ("batch", *shape), "float32") for name, shape in SHAPES.items()]
    source = project.source()
    assert [(spec.name, spec.shape, spec.dtype) for spec in source.outputs] == expected
    for graph in (Graph.FP32, Graph.FP16):
        assert [output.name for output in onnx.load(project.paths.onnx(graph)).graph.output] == [*SHAPES]
    entries = {entry.id: entry for entry in project.manifest().artifacts}
    for name in (FP16, ENGINE):
        found = [(spec.name, spec.shape, spec.dtype) for spec in entries[name].outputs]
        assert sorted(found) == sorted(expected), name
    assert entries[ENGINE].status is Status.BUILT


def test_the_reference_has_an_array_for_each_output(project: Project) -> None:
    """Each output of the FP32 network is stored in its own shape."""
    data = project.data()
    with np.load(project.file(data.reference)) as arrays:
        assert {name: arrays[name].shape for name in arrays} == {
            name: (data.validation_samples, *shape) for name, shape in SHAPES.items()
        }
    assert not project.paths.reference.exists()


def test_each_output_has_its_own_bounds_and_checks(project: Project) -> None:
    """No norm holds two outputs: each has a distance of its own rounding, an accuracy and checks of both questions."""
    rounding = project.rounding(next(item for item in project.plan.arithmetics if item.precision.value == "fp16"))
    assert [item.name for item in rounding.outputs] == [*SHAPES]
    assert len({item.relative_l2_high for item in rounding.outputs}) == len(SHAPES)
    entry = next(entry for entry in project.manifest().artifacts if entry.id == FP16)
    assert entry.status is Status.DEPLOYABLE, entry.reason
    assert [item.output for item in entry.accuracies] == [*SHAPES]
    assert entry.accuracy == max(entry.accuracies, key=lambda item: item.relative_l2)
    assert {row.output for row in entry.rows} == {*SHAPES}
    for name in SHAPES:
        own = [check for check in entry.checks if check.metric.startswith(f"{name}: ")]
        assert {check.question for check in own} == {*Question}, name
        assert f"{name}: relative L2" in {check.metric for check in own}


@pytest.fixture
def broken(project: Project, tmp_path: Path) -> Project:
    """A copy of the project, whose artifacts a test may damage."""
    shutil.copytree(project.config_file.parent, tmp_path / "copy")
    return Project.load(tmp_path / "copy" / "pipeline.yaml", STAGES)


def renamed(model: onnx.ModelProto, names: dict[str, str]) -> None:
    """Give tensors of a graph other names, wherever they stand."""
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in model.graph.output:
        value.name = names.get(value.name, value.name)


def judged(broken: Project, change: Callable[[onnx.ModelProto], None], name: str = FP16) -> AccuracyReport:
    """Return the verdict on a variant whose graph was changed."""
    path = broken.paths.onnx(broken.plan.variant(name).graph or Graph.FP16)
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    return validate_variant(broken, broken.plan.variant(name))


def failing_outputs(report: AccuracyReport) -> set[str]:
    """Return the names of the outputs whose checks failed."""
    return {check.metric.partition(":")[0] for check in report.checks if not check.passed}


def test_swapped_outputs_of_one_shape_are_rejected(broken: Project) -> None:
    """The names of two outputs are exchanged: both are wrong, and the reason names both."""
    swap = {"boxes": "mirror", "mirror": "boxes"}
    report = judged(broken, lambda model: renamed(model, swap))
    assert not report.passed
    assert failing_outputs(report) == {"boxes", "mirror"}
    assert "boxes: relative L2" in report.reason
    assert "mirror: relative L2" in report.reason


def test_another_order_of_the_outputs_is_none_of_the_graphs_faults(broken: Project) -> None:
    """Names decide, not places: a graph that lists them the other way round passes as before."""

    def turn(model: onnx.ModelProto) -> None:
        turned = [*model.graph.output][::-1]
        del model.graph.output[:]
        model.graph.output.extend(turned)

    report = judged(broken, turn)
    assert report.passed, report.reason


@pytest.mark.parametrize("name", [*SHAPES])
def test_one_wrong_output_is_rejected_by_its_name(broken: Project, name: str) -> None:
    """An output that is wrong by 2 % is rejected, while the others are right, whichever of them is the largest."""

    def scale(model: onnx.ModelProto) -> None:
        value = next(value for value in model.graph.output if value.name == name)
        last = next(node for node in model.graph.node if name in node.output)
        last.output[[*last.output].index(name)] = "right"
        model.graph.initializer.append(numpy_helper.from_array(np.array([1.02], np.float32), "factor"))
        model.graph.node.append(helper.make_node("Mul", ["right", "factor"], [value.name]))
        for node in model.graph.node:
            if node.output[0] != name:
                node.input[:] = ["right" if item == name else item for item in node.input]

    report = judged(broken, scale)
    assert not report.passed
    assert failing_outputs(report) == {name}
    assert f"{name}: relative L2" in report.reason
    assert f"{name}: worst sample" in report.reason


@pytest.mark.parametrize("missing", [False, True], ids=["one more", "one less"])
def test_other_outputs_than_the_models_are_no_result(broken: Project, *, missing: bool) -> None:
    """An artifact without one of the outputs, or with another one, is not judged by the rest."""

    def change(model: onnx.ModelProto) -> None:
        if missing:
            model.graph.output.pop()
            return
        extra = helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, ["batch", 4, 16, 16])
        model.graph.output.append(extra)
        model.graph.node.append(helper.make_node("Neg", ["boxes"], ["more"]))

    report = judged(broken, change)
    assert report.accuracy is None
    assert "other outputs than the model" in report.reason


def test_a_torch_module_gives_every_output(project: Project) -> None:
    """Eager FP32 on the processor passes, output by output."""
    for stage in ("build", "validate"):
        assert main([stage, EAGER, "--config", str(project.config_file)]) == 0
    report = project.accuracy(project.plan.variant(EAGER))
    assert report.passed, report.reason
    assert [item.output for item in report.accuracies] == [*SHAPES]


@pytest.mark.parametrize("name", ["eager-fp16", "dynamo-fp16-b1-2-4-ws16MiB", "torch_compile-fp16-b1-2-4-ws16MiB"])
def test_modules_for_gpus_give_every_output(broken: Project, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """From a saved module or a recipe, with a stand-in for Torch-TensorRT: each output has the name of the network."""
    use(Library(), monkeypatch)
    on_gpu = Project(Plan(broken.config, host(H100)), broken.paths, STAGES)
    variant = named(on_gpu, name)
    path = on_gpu.file(on_gpu.source().weights)
    artifact = made(on_gpu, name) if variant.backend.is_torch_tensorrt else artifact_of(on_gpu, variant, path)
    with (
        open_session(load_module(on_gpu, artifact, H100), variant, IMAGES, None) as run,
        np.load(on_gpu.file(on_gpu.data().reference)) as arrays,
    ):
        for size in (4, 1):
            found = run(images(on_gpu, size))
            assert [*found] == [*SHAPES]
            for output, values in found.items():
                assert distance(values, arrays[output][:size]) < 5e-3, output


def test_a_recipe_of_other_outputs_is_refused(broken: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe that takes one output fewer would leave it out without a word."""
    use(Library(), monkeypatch)
    on_gpu = Project(Plan(broken.config, host(H100)), broken.paths, STAGES)
    artifact = made(on_gpu, "torch_compile-fp16-b1-2-4-ws16MiB")
    path = on_gpu.paths.recipe(artifact.variant)
    recipe = read_record(path, Recipe, fix="")
    assert recipe.output_names == (*SHAPES,)
    write_record(path, recipe.model_copy(update={"output_names": recipe.output_names[:-1]}))
    with pytest.raises(RunError, match="or with other arguments or outputs"):
        load_module(on_gpu, artifact, H100)


def test_outputs_are_loaded_by_their_names(project: Project) -> None:
    """`outputs` and the model itself give an array for each name, and `predict` refuses them."""
    pixels = np.asarray(project.pixels(project.data().validation)[:3])
    with model_artifacts.load(project.paths.root) as model, np.load(project.file(project.data().reference)) as arrays:
        found, again = model.outputs(list(pixels)), model(images(project, 3))
        assert [*found] == [*again] == [*SHAPES]
        for name, shape in SHAPES.items():
            np.testing.assert_array_equal(found[name], again[name])
            size = np.abs(arrays[name]).max()
            np.testing.assert_allclose(found[name], arrays[name][:3], atol=0.01 * size)
            assert model.outputs([])[name].shape == (0, *shape)
        with pytest.raises(UsageError, match=r"(?s)`predict`.*got: +tensors.*outputs"):
            model.predict(list(pixels))


def test_triton_serves_every_output(project: Project, tmp_path: Path) -> None:
    """Triton's configuration has each output with its name and shape."""
    configs = sorted(make_repositories(project.paths.root, tmp_path / "triton").folder.rglob("config.pbtxt"))
    assert configs
    for config in configs:
        for name in SHAPES:
            assert f'name: "{name}"' in config.read_text()


def test_report_and_card_name_every_output(project: Project) -> None:
    """People see each output with its own distance."""
    report, card = project.paths.report.read_text(), model_card("tiny", project.manifest(), None)
    for name, shape in SHAPES.items():
        assert f"{name}: relative L2" in report
        assert f"{name}: float32, (batch, {', '.join(map(str, shape))})" in card


@pytest.mark.parametrize(
    ("factory", "names"),
    [
        pytest.param("InATuple", ["output_0", "output_1", "output_2", "output_3"], id="tuple"),
        pytest.param("InADataclass", ["boxes", "scores"], id="dataclass"),
        pytest.param("InANamedTuple", ["boxes", "scores"], id="named tuple"),
    ],
)
def test_names_come_from_what_the_network_returns(
    write_config: Callable[[str], Path], factory: str, names: Collection[str]
) -> None:
    """Attributes are names; places in a tuple become names; an entry that is None is no output."""
    record = make_source(Project.load(write_config(configuration(factory)), STAGES))
    assert [spec.name for spec in record.outputs] == names
    assert record.logits is None
    assert json.loads(record.to_json())["named_outputs"][1]["shape"] == ["batch", *SHAPES["scores"]]


def test_nested_outputs_have_the_names_of_their_way(write_config: Callable[[str], Path]) -> None:
    """The graph has each of them, and computes what the network does."""
    file = write_config(configuration("Nested", "[fp32]"))
    project = Project.load(file, STAGES)
    for step in ("source", "export"):
        subject = "tiny/fp32" if step == "export" else "tiny"
        assert main([step, subject, "--config", str(file)]) == 0
    names = ["output_0", "output_1_0", "output_1_1_mirror"]
    assert [spec.name for spec in project.source().outputs] == names
    assert [spec.shape[1:] for spec in project.onnx(Graph.FP32).outputs] == [
        SHAPES[name] for name in ("boxes", "scores", "mirror")
    ]
    assert [spec.name for spec in project.onnx(Graph.FP32).outputs] == names


@pytest.mark.parametrize("network", [Heads, InATuple, InADataclass, InANamedTuple, Nested])
def test_torch_fx_traces_every_way_to_return_outputs(network: type[nn.Module]) -> None:
    """Batch-norms are folded by its trace, and not only by a run."""
    model = network().eval()
    names = output_names(model(torch.zeros(2, 3, 32, 32)), 2)
    traced = symbolic_trace(OutputsOf(model, names))
    assert len(traced(torch.zeros(1, 3, 32, 32))) == len(names) > 1


def test_one_tensor_under_two_names_is_refused(write_config: Callable[[str], Path]) -> None:
    """A graph gives both one name, so that nothing is written."""
    project = Project.load(write_config(configuration("Twice")), STAGES)
    with pytest.raises(SourceError, match=r"(?s)same tensor twice.*'again' and 'boxes'|'boxes' and 'again'"):
        make_source(project)
    assert not project.paths.source.exists()


@pytest.mark.parametrize("task", ["classification", "embedding"])
def test_several_outputs_are_those_of_tensors_alone(write_config: Callable[[str], Path], task: str) -> None:
    """Another task takes one output, and its refusal names this one."""
    text = configuration().replace("task: tensors", f"task: {task}")
    with pytest.raises(SourceError, match=r"(?s)boxes \(2, 4, 16, 16\), scores.*model.task: tensors"):
        make_source(Project.load(write_config(text), STAGES))


def test_quantised_graphs_keep_every_output(tmp_path: Path) -> None:
    """int8 and fp8 graphs have the outputs of the FP32 graph, also one that a quantised layer reads."""
    file = tmp_path / "pipeline.yaml"
    file.write_text(configuration(precisions="[fp32, int8, fp8]"))
    project = Project.load(file, STAGES)
    wanted = {"source", "data", "export", "quantize", "rounding"}
    for step in project.schedule.steps:
        if step.stage in wanted:
            assert main([step.stage, step.subject, "--config", str(file)]) == 0, step
    for graph in (Graph.INT8, Graph.INT8_CPU, Graph.FP8):
        model = onnx.load(project.paths.onnx(graph))
        assert [output.name for output in model.graph.output] == [*SHAPES], graph
        made_by = {name: node for node in model.graph.node for name in node.output}
        cast = made_by["features"]
        maker = made_by[cast.input[0]] if cast.op_type == "Cast" else cast
        rounded = maker.op_type == "DequantizeLinear"
        assert rounded is (graph is Graph.INT8_CPU), graph  # TensorRT's graphs round no output; x86's round all
        assert any(
            made_by[node.input[0]].op_type == "DequantizeLinear"
            for node in model.graph.node
            if node.op_type == "Conv" and node.input[0] in made_by
        )
    for arithmetic in project.plan.arithmetics:
        rounding = project.rounding(arithmetic)
        assert [item.name for item in rounding.outputs] == [*SHAPES], arithmetic
        for item in rounding.outputs:
            assert item.relative_l2_high is not None
            assert item.relative_l2_high < 0.2, (arithmetic, item.name)


def test_the_farthest_output_ranks_the_layers(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """`sensitivity` compares each output and each part of it apart, and its table says so."""
    found = sensitivity_of(project)
    assert found.plain.output in SHAPES
    assert found.plain_loss >= found.plain.relative_l2
    assert [layer.distance for layer in found.layers] == sorted((layer.loss for layer in found.layers), reverse=True)
    print_sensitivity(found, sys.stdout)
    assert f"farthest part {found.plain_loss:.1e}" in capsys.readouterr().out


def test_a_damaged_reference_is_an_error(broken: Project) -> None:
    """A reference without one of the outputs is no judge."""
    path = broken.paths.references
    with np.load(path) as arrays:
        np.savez(path, **{name: arrays[name] for name in [*SHAPES][:-1]})
    report = validate_variant(broken, broken.plan.variant(FP32))
    assert report.accuracy is None
    assert "reference.npz has other outputs than the model" in report.reason
