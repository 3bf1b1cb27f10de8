"""Validation of variants: verdicts, subsets and skipped variants."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model_artifacts.host.environment import now
from model_artifacts.host.record_files import read_record
from model_artifacts.records import Graph, Status
from pipeline.cli.main import main
from pipeline.planning.keys import make_key
from pipeline.planning.project import Project
from pipeline.planning.steps import Step
from pipeline.records import AccuracyReport, Outcome, PlacedPair, Proposal
from pipeline.stages import STAGES
from pipeline.stages.quantize.stage import fp32_of
from pipeline.stages.validate.stage import validate_variant
from pipeline.stages.validate.yardsticks import is_spared_by_proposal
from pipeline.tune.steps.limits import Rest
from pipeline.tune.steps.running import ensure
from tests.support.model_optimizer import placed_by_it

if TYPE_CHECKING:
    from pathlib import Path


FP16 = "tiny/cpu-x86_64/onnxruntime-fp16"


def test_every_cpu_variant_of_the_tiny_model_keeps_its_gate(built: Project) -> None:
    """Real ONNX Runtime and reference evaluations pass on a real model."""
    reports = [built.accuracy(variant) for variant in built.plan.variants if variant.target == "cpu-x86_64"]
    assert [report.variant_id for report in reports if not report.passed] == []
    assert [report.accuracy.samples for report in reports if report.accuracy] == [100, 100, 100, 8, 64, 100]


def test_the_subset_is_said(built: Project) -> None:
    """A report on a part of the validation set says so."""
    variant = built.plan.variant("tiny/cpu-x86_64/onnx-reference-bf16")
    assert built.accuracy(variant).evaluator.endswith("on 8 of 100 samples")
    stand_in = built.accuracy(built.plan.variant("tiny/cpu-x86_64/onnxruntime-int8"))
    assert stand_in.evaluator.endswith(", CPU on 64 of 100 samples")
    assert (stand_in.rows, stand_in.proven) == ((), False)


def test_a_stand_in_sees_as_many_samples_as_its_setting_says(copied: Path) -> None:
    """More than there are means all of them; then the report names no part."""
    config = copied / "pipeline.yaml"
    config.write_text(config.read_text() + "\nvalidation: {stand_in_samples: 1000}\n")
    project = Project.load(config, STAGES)
    report = validate_variant(project, project.plan.variant("tiny/cpu-x86_64/onnxruntime-int8"))
    assert report.accuracy is not None
    assert (report.accuracy.samples, report.evaluator.endswith(", CPU")) == (100, True)


def test_what_may_be_deployed_is_judged_on_every_sample(built: Project) -> None:
    """No artifact that was judged on a part of the validation set is deployable."""
    every = built.data().validation_samples
    ready = [entry for entry in built.manifest().artifacts if entry.status is Status.DEPLOYABLE]
    assert len(ready) > 3
    assert {entry.accuracy.samples for entry in ready if entry.accuracy} == {every}
    assert all(not built.plan.variant(entry.id).stands_in for entry in ready)


def test_too_few_quantised_layers_are_the_proposals(built_folder: Path, tmp_path: Path) -> None:
    """Model Optimizer's places leave two of three layers in FP16: no library, build or host has done that."""
    project = placed_by_it(built_folder, tmp_path / "project")
    second = [node for node in fp32_of(project).graph.node if node.op_type == "Conv"][1]
    pairs = tuple(
        PlacedPair(node=second.name, kind="Conv", input=place, tensor=second.input[place]) for place in (0, 1)
    )
    proposal = Proposal(
        key=make_key(),
        built_at=now(),
        graph=Graph.INT8,
        structure_sha256=project.onnx(Graph.FP32).structure_sha256,
        model_optimizer="0.47.0",
        pairs=pairs,
    )
    project.write(project.paths.proposal(Graph.INT8), proposal)
    variant = project.plan.variant("tiny/cpu-x86_64/onnxruntime-int8")
    ensure(project, Step("validate", variant.id), Rest())
    report = project.accuracy(variant)
    assert report.reason.startswith(
        "near enough to the network, but the places that Model Optimizer proposed leave too"
    )
    assert "precision in the graph 33.3%" in report.reason
    engine = project.plan.variant("tiny/rtx-sm80+/int8-b1-ws16MiB")
    assert is_spared_by_proposal(project, engine)
    assert not is_spared_by_proposal(project, project.plan.variant("tiny/cpu-x86_64/onnxruntime-int8-cpu"))
    project.file(project.onnx(Graph.INT8).file).unlink()  # as on a machine that has the record alone
    assert not is_spared_by_proposal(project, engine)


def test_engines_wait_for_a_gpu(built: Project) -> None:
    """An engine is not judged where no driver is; the report says why."""
    report = built.accuracy(built.plan.variant("tiny/rtx-sm80+/fp16-b1-ws16MiB"))
    assert (report.outcome, report.reason, report.passed) == (Outcome.SKIPPED, "no NVIDIA driver found", False)


def test_what_was_not_built_is_not_judged(copied: Path) -> None:
    """Validating a variant whose build was skipped says that, rather than failing."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    report = validate_variant(project, project.plan.variant("tiny/gpu/dynamo-fp16-b1-ws16MiB"))
    assert (report.outcome, report.reason) == (Outcome.SKIPPED, "not built: no NVIDIA driver found")


def test_an_artifact_that_does_not_load_is_a_failure(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An ONNX file that ONNX Runtime cannot read fails its variant, with exit status 1 and a record."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    project.paths.onnx(Graph.FP16).write_bytes(b"not a model")
    assert main(["validate", FP16, "--config", str(copied / "pipeline.yaml")]) == 1
    assert "ONNX Runtime cannot load" in capsys.readouterr().err
    report = read_record(project.paths.accuracy(project.plan.variant(FP16)), AccuracyReport)
    assert report.outcome is Outcome.FAILED


@pytest.mark.parametrize(
    ("variant_id", "package"), [(FP16, "onnxruntime"), ("tiny/cpu-x86_64/eager-fp32", "safetensors")]
)
def test_a_signal_is_a_record(
    variant_id: str, package: str, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that ends its process by SIGSEGV fails one variant on the CPU, with the signal as the reason."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    (tmp_path / "first" / package).mkdir(parents=True)
    crash = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"
    (tmp_path / "first" / package / "__init__.py").write_text(crash)
    monkeypatch.syspath_prepend(tmp_path / "first")  # new processes take it from here

    report = validate_variant(project, project.plan.variant(variant_id))

    assert report.outcome is Outcome.FAILED
    assert "its process was killed by SIGSEGV" in report.reason
    assert f"python -m pipeline validate {variant_id}" in report.reason
