"""An ONNX file in float16, with names of classes, goes through the whole pipeline up to a release."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnxruntime.transformers.float16 import convert_float_to_float16

import model_artifacts
from model_artifacts.cli.main import main as deploy
from model_artifacts.records import Graph, Precision, Status
from pipeline.cli.main import main
from pipeline.planning.plan import Arithmetic
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.release.stage import make_release
from tests.support.onnx_models import SIZE, configuration, make
from tests.support.tasks import ENGINE, FP16, FP32

NAMES = ("ant", "bee", "cat", "dog", "eel")
FP8, FP8_ENGINE = FP16.replace("fp16", "fp8"), ENGINE.replace("fp16", "fp8")
RUN = {FP32, FP16, FP8, ENGINE, FP8_ENGINE}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project, with every stage run."""
    folder = tmp_path_factory.mktemp("half")
    model = convert_float_to_float16(make(batch=1, opset=11, flat=[1, 8], softmax=True))
    onnx.helper.set_model_props(model, {"names": str(dict(enumerate(NAMES)))})
    onnx.save(model, folder / "own.onnx")
    file = folder / "pipeline.yaml"
    file.write_text(configuration(folder / "own.onnx").replace("[fp32, fp16, bf16, int8]", "[fp32, fp16, fp8]"))
    project = Project.load(file, STAGES)
    whole = {"source", "data", "export", "quantize", "rounding"}
    for step in project.schedule.steps:
        if step.stage in whole or (step.subject in RUN and step.stage in {"build", "validate"}):
            assert main([step.stage, step.subject, "--config", str(file)]) == 0, step
    for command in (
        "benchmark tiny/cpu-x86_64",
        f"profile {FP16}",
        f"profile {ENGINE}",
        "manifest tiny",
        "report tiny",
    ):
        assert main([*command.split(), "--config", str(file)]) == 0, command
    return project


def test_its_fp32_run_is_the_reference(project: Project) -> None:
    """The stated weights are the reference's, and what was in float16 is said wherever the model is described."""
    source = project.source()
    assert source.onnx is not None
    assert source.onnx.widened == ("float16",)
    manifest = project.manifest()
    assert manifest.model is not None
    assert source.onnx.own_distance
    assert "uncompared" not in project.paths.manifest.read_text()
    assert manifest.model.weights_detail == "own.onnx, in front of its softmax, its float16 in float32"
    assert "its float16 in float32" in project.paths.report.read_text()
    entries = {entry.id: entry for entry in manifest.artifacts}
    for name in (FP32, FP16):
        assert entries[name].status is Status.DEPLOYABLE, entries[name].reason
    assert entries[ENGINE].status is Status.BUILT


def test_fp8_is_quantised_and_judged(project: Project) -> None:
    """ONNX Runtime stands in for TensorRT; TensorRT-RTX says why it has no engine, or builds one."""
    assert {node.op_type for node in onnx.load(project.paths.onnx(Graph.FP8)).graph.node} >= {"QuantizeLinear"}
    assert project.rounding(Arithmetic(Graph.FP8, Precision.FP8)).relative_l2_high
    entries = {entry.id: entry for entry in project.manifest().artifacts}
    assert entries[FP8].status is Status.BUILT, entries[FP8].reason
    assert all(check.passed for check in project.accuracy(project.plan.variant(FP8)).checks)
    assert entries[FP8_ENGINE].status in {Status.SKIPPED, Status.BUILT}
    assert entries[FP8_ENGINE].reason


def test_its_layers_are_profiled(project: Project) -> None:
    """ONNX Runtime's nodes have times; an engine needs its GPU."""
    assert project.layers(project.plan.variant(FP16)).layers
    engine = project.layers(project.plan.variant(ENGINE))
    assert engine.layers or engine.reason


def test_its_release_answers_with_the_files_names(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """The release has the deployable files, is verified, and `predict` names the exporter's classes."""
    made = make_release(project, allow_dirty=True)
    assert {entry.id for entry in made.manifest.artifacts} == {FP32, FP16}
    assert deploy(["verify", str(made.folder)]) == 0
    assert "2 artifacts" in capsys.readouterr().out
    with model_artifacts.load(made.folder) as model:
        assert model.class_names == NAMES
        (answer,) = model.predict(np.zeros((SIZE, SIZE, 3), np.uint8))
        assert answer.name in NAMES
