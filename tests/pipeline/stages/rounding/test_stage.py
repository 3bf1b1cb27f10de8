"""A precision's own rounding on the tiny network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from model_artifacts.records import Graph, Precision
from pipeline.cli.main import main
from pipeline.planning.plan import Arithmetic, arithmetic_of
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.common.model import restore_model
from pipeline.stages.rounding import stage
from pipeline.stages.rounding.stage import measure_rounding

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

FP16, FP32 = Arithmetic(Graph.FP16, Precision.FP16), Arithmetic(Graph.FP32, Precision.FP32)


def test_every_arithmetic_of_the_plan_has_a_record(built: Project) -> None:
    """TF32, too, since a library may choose it in place of FP32; each graph that is quantised has its own."""
    names = [arithmetic.name for arithmetic in built.plan.arithmetics]
    assert names == ["fp32", "tf32", "fp16", "bf16", "int8", "int8-cpu"]
    assert [built.rounding(arithmetic).graph for arithmetic in built.plan.arithmetics][:2] == [Graph.FP32] * 2


def test_coarser_types_are_farther(built: Project) -> None:
    """FP32 is nearest, then fp16 with its 10 bits beside TF32's, bf16 with 7, and int8."""
    high = {item.name: built.rounding(item).relative_l2_high or 0.0 for item in built.plan.arithmetics}
    assert high["fp32"] < 1e-5 < high["tf32"] < high["bf16"] < high["int8"]
    assert high["fp32"] < high["fp16"] < high["bf16"]


def test_variants_lie_within_twice_their_rounding(built: Project) -> None:
    """ONNX Runtime's and the reference evaluator's real results are near to what was emulated."""
    for variant in built.plan.variants:
        report = built.accuracy(variant)
        if report.accuracy is not None:
            high = built.rounding(arithmetic_of(variant)).relative_l2_high
            assert high is not None
            assert report.accuracy.relative_l2 < max(2 * high, 1e-5), variant.id


def test_quantised_graphs_keep_their_logits(built: Project) -> None:
    """An engine is compared with them, sample by sample."""
    int8 = built.rounding(Arithmetic(Graph.INT8, Precision.INT8))
    assert int8.logits is not None
    assert np.load(built.file(int8.logits)).shape == (int8.samples, 10)
    assert built.rounding(FP16).logits is None


def test_fp32_is_repeatable(built: Project) -> None:
    """The tiny network gives the same logits for a batch twice."""
    assert built.rounding(FP32).repeatable


def test_a_network_beyond_fp16_has_no_distance(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first layer gives millions: FP16 has no number for them."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    restored = restore_model(project)
    with torch.no_grad():
        next(restored.parameters()).mul_(1e8)
    monkeypatch.setattr(stage, "restore_model", lambda _: restored)
    record = measure_rounding(project, FP16)
    assert (record.relative_l2_high, record.sample_l2_high, record.margin_noise) == (None, None, None)
    assert all(run.relative_l2 is None for run in record.runs)


def test_a_network_that_cannot_be_emulated_says_what_to_do(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound of one's own stands in place of the emulation."""

    class Broken(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise NotImplementedError("no kernel")

    project = Project.load(copied / "pipeline.yaml", STAGES)
    monkeypatch.setattr(stage, "fold_batch_norms", lambda *_: type("Folded", (), {"model": Broken()}))
    record = measure_rounding(project, FP16)
    assert (record.runs, record.relative_l2_high) == ((), None)
    assert record.trouble.startswith("the rounding of fp16 cannot be emulated")
    assert "gates.fp16.relative_l2" in record.trouble


def test_a_graph_that_cannot_be_run_says_so(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The step ends well, since a gate may have a bound of its own."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    project.paths.onnx(Graph.INT8).write_bytes(b"no graph")
    assert main(["rounding", "tiny/int8", "--config", str(copied / "pipeline.yaml")]) == 0
    assert "not emulated: ONNX Runtime cannot" in capsys.readouterr().out
    assert project.rounding(Arithmetic(Graph.INT8, Precision.INT8)).logits is None


def test_the_step_says_the_distance(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, with the number of samples."""
    assert main(["rounding", "tiny/fp16", "--config", str(copied / "pipeline.yaml")]) == 0
    assert "by rounding alone, on 64 samples" in capsys.readouterr().out
