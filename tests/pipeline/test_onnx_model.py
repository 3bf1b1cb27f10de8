"""A model that is an ONNX file goes through the whole pipeline, with a real engine."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import helper

import model_artifacts
from model_artifacts.errors import ConfigError
from model_artifacts.records import Backend, Graph, Precision, Status, WeightsOrigin
from model_artifacts.releases.triton import make_repositories
from pipeline.cli.main import main
from pipeline.planning.plan import Arithmetic
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.build.stage import build_variant
from pipeline.stages.validate.stage import validate_variant
from tests.support.logits import images
from tests.support.onnx_models import CLASSES, SIZE, configuration, make, project_of
from tests.support.tasks import ENGINE, FP16, FP32, made_in

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

INT8, EAGER = "tiny/cpu-x86_64/onnxruntime-int8", "tiny/cpu-x86_64/eager-fp32"
BF16 = "tiny/cpu-x86_64/onnx-reference-bf16"
VARIANTS = {FP16, FP32, INT8, BF16, EAGER, ENGINE}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A classifier in opset 11 for one image, with its weights beside it: its variants are validated where they run."""
    folder = tmp_path_factory.mktemp("onnx")
    model = make(batch=1, opset=11, flat=[1, 8], softmax=True)
    onnx.save(model, folder / "own.onnx", save_as_external_data=True, location="own.data", size_threshold=0)
    file = folder / "pipeline.yaml"
    file.write_text(configuration(folder / "own.onnx"))
    project = Project.load(file, STAGES)
    for step in project.schedule.steps:
        whole = step.stage in {"source", "data", "export", "quantize", "rounding"}
        if whole or (step.subject in VARIANTS and step.stage in {"build", "validate"}):
            assert main([step.stage, step.subject, "--config", str(file)]) == 0, step
    assert main(["benchmark", "tiny/cpu-x86_64", "--config", str(file)]) == 0
    for stage in ("manifest", "report"):
        assert main([stage, "tiny", "--config", str(file)]) == 0
    return project


def test_its_variants_are_deployable(project: Project) -> None:
    """The ONNX files pass their gates, the engine is built, and the manifest says what the model is."""
    manifest = project.manifest()
    entries = {entry.id: entry for entry in manifest.artifacts}
    for name in (FP16, FP32):
        assert entries[name].status is Status.DEPLOYABLE, entries[name].reason
    for name in (INT8, BF16, ENGINE):
        assert entries[name].status is Status.BUILT, entries[name].reason
    assert all(check.passed for check in project.accuracy(project.plan.variant(BF16)).checks)
    assert manifest.model is not None
    assert (manifest.model.weights_origin, manifest.model.factory) == (WeightsOrigin.ONNX, "")
    assert manifest.model.network == "an ONNX file"
    assert manifest.model.weights_detail == "own.onnx with own.data, in front of its softmax"
    (image,), (output,) = entries[ENGINE].inputs, entries[ENGINE].outputs
    assert (image.name, output.name, output.shape) == ("pixels_in_0", "scores_0", ("batch", CLASSES))


def test_what_needs_a_network_of_torch_is_skipped(project: Project) -> None:
    """Eager and Torch-TensorRT have the reason; there is no baseline, and no speed-up over one."""
    for variant in project.plan.variants:
        if variant.backend.is_module:
            assert "PyTorch runs none" in build_variant(project, variant).reason
    entries = {entry.id: entry for entry in project.manifest().artifacts}
    assert entries[EAGER].status is Status.SKIPPED
    assert entries[FP16].timings
    assert all(timing.speedup is None for timing in entries[FP16].timings)
    assert {project.plan.baseline(target) for target in project.plan.targets} == {None}


def test_the_reference_is_the_file_itself(project: Project) -> None:
    """The data's record names ONNX Runtime, and the emulation both libraries."""
    assert "onnxruntime-gpu" in {tool.name for tool in project.data().toolchain}
    for precision, graph in ((Precision.FP32, Graph.FP32), (Precision.TF32, Graph.FP32), (Precision.BF16, Graph.BF16)):
        rounding = project.rounding(Arithmetic(graph, precision))
        assert "ONNX Runtime" in rounding.emulator
        assert not rounding.trouble
        assert rounding.relative_l2_high
        assert rounding.repeatable


def test_another_artifact_is_rejected(project: Project, tmp_path: Path) -> None:
    """A weight that is wrong by 3 % does not pass the emulated bound."""
    shutil.copytree(project.config_file.parent, tmp_path / "copy")
    broken = Project.load(tmp_path / "copy" / "pipeline.yaml", STAGES)
    path = broken.paths.onnx(Graph.FP16)
    model = onnx.load(path)
    matrix = next(item for item in model.graph.initializer if item.name == "matrix")
    values = onnx.numpy_helper.to_array(matrix)
    matrix.CopyFrom(onnx.numpy_helper.from_array((values * np.float16(1.03)).astype(np.float16), matrix.name))
    onnx.save(model, path)
    report = validate_variant(broken, broken.plan.variant(FP16))
    assert not report.passed
    assert "not faithful" in report.reason


def test_it_is_loaded_and_served_as_others(project: Project, tmp_path: Path) -> None:
    """The loader gives the file's own probabilities, and Triton's configuration has the names."""
    reference = np.load(project.file(project.data().reference))[:3]
    with model_artifacts.load(project.paths.root) as model:
        np.testing.assert_allclose(model(images(project, 3)), reference, rtol=0.05, atol=0.05)
        pixels = np.asarray(project.pixels(project.data().validation)[:2])
        assert len(model.predict(list(pixels))) == 2
    repositories = make_repositories(project.paths.root, tmp_path / "triton")
    for config in sorted(repositories.folder.rglob("config.pbtxt")):
        assert 'name: "scores_0"' in config.read_text()
        assert 'name: "pixels_in_0"' in config.read_text()


def test_the_report_names_the_file(project: Project) -> None:
    """There is no call of a factory to show."""
    page = project.paths.report.read_text()
    assert "<code>an ONNX file</code>; own.onnx with own.data" in page


def test_several_outputs_are_proven_apart(tmp_path: Path) -> None:
    """The scores and a map of the same file go into the graphs, the engine and the bounds by their names."""
    model = make(batch=1, flat=[1, 8])
    model.graph.output.append(helper.make_tensor_value_info("positive", onnx.TensorProto.FLOAT, [1, 8, SIZE, SIZE]))
    onnx.save(model, tmp_path / "own.onnx")
    text = configuration(tmp_path / "own.onnx", task="tensors").replace("[fp32, fp16, bf16, int8]", "[fp32, fp16]")
    project = made_in(tmp_path, text)
    names = ["scores_0", "positive"]
    assert [spec.name for spec in project.source().outputs] == names
    assert [spec.name for spec in project.onnx(Graph.FP16).outputs] == names
    assert [item.name for item in project.rounding(Arithmetic(Graph.FP16, Precision.FP16)).outputs] == names
    entries = {entry.id: entry for entry in project.manifest().artifacts}
    assert entries[FP16].status is Status.DEPLOYABLE, entries[FP16].reason
    assert [spec.shape for spec in entries[ENGINE].outputs] == [("batch", CLASSES), ("batch", 8, SIZE, SIZE)]


def test_an_operator_that_tensorrt_lacks_is_listed(tmp_path: Path, write_config: Callable[[str], Path]) -> None:
    """The build fails with the node and what could be done; other variants are built."""
    tail = [helper.make_node("Det", ["square"], ["scores:0"], name="determinant")]
    shape = [("square_shape", np.array([-1, CLASSES, 1, 1], np.int64))]
    tail.insert(0, helper.make_node("Reshape", ["logits", "square_shape"], ["square"], name="square"))
    project = project_of(make(tail=tail, extra=shape), tmp_path, write_config)
    config = str(project.config_file)
    for step in ("source tiny", "export tiny/fp16"):
        assert main([*step.split(), "--config", config]) == 0
    artifact = build_variant(project, project.plan.variant(ENGINE))
    assert artifact.file is None
    assert "Det" in artifact.reason
    assert "determinant" in artifact.reason
    other = next(item for item in project.plan.variants if item.backend is Backend.ONNXRUNTIME and item.id == FP16)
    assert build_variant(project, other).file is not None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "model: {",
            'model: {factory: "torchvision.models:resnet18", ',
            "`model.factory`: the network and its weights",
        ),
        ("model: {", "model: {weights: best.pth, ", "`model.weights`: the network and its weights are `model.onnx`"),
        ("model: {", "model: {arguments: {width: 3}, ", "`model.arguments`"),
        ("\npreprocessing:", "\npreprocessing: auto\nx:", "write `preprocessing`, such as"),
        ("own.onnx", "https://example.org/own.onnx", "expected a path of this machine"),
    ],
    ids=["factory", "weights", "arguments", "preprocessing", "url"],
)
def test_settings_that_have_no_effect_are_refused(
    write_config: Callable[[str], Path], tmp_path: Path, old: str, new: str, message: str
) -> None:
    """A factory beside the file, and images that nobody says how to prepare."""
    text = configuration(tmp_path / "own.onnx") if old != "own.onnx" else configuration(tmp_path / "x")
    if old == "own.onnx":
        text = text.replace(str(tmp_path / "x"), new)
    elif "auto" in new:
        lines = text.splitlines()
        del lines[1:3]
        text = "\n".join(lines)
    else:
        text = text.replace(old, new, 1)
    with pytest.raises(ConfigError, match=message):
        Project.load(write_config(text), STAGES)
