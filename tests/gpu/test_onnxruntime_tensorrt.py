"""ONNX Runtime's TensorRT provider, the baseline, on a real GPU."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from model_artifacts.host.environment import installed
from model_artifacts.records import Backend
from pipeline.cli.main import main
from pipeline.planning.project import Project
from pipeline.records import Outcome
from pipeline.stages import STAGES
from tests.gpu.conftest import TINY_ON_A_GPU

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.skipif(
    not (installed("torch") and installed("tensorrt")), reason="torch or tensorrt is not installed here"
)
def test_the_provider_runs_the_whole_graph(project: Project, tmp_path: Path) -> None:
    """The provider's engines agree with the reference; the built engines are kept for the benchmark's processes."""
    config = tmp_path / "pipeline.yaml"
    config.write_text(TINY_ON_A_GPU.replace("[inductor, onnxruntime]", "[onnxruntime_tensorrt]"))
    shutil.copytree(project.paths.root, tmp_path / "artifacts")
    copy = Project.load(config, STAGES)
    variants = [item for item in copy.plan.variants if item.backend is Backend.ONNXRUNTIME_TENSORRT]
    assert variants
    for variant in variants:
        for stage in ("build", "validate"):
            main([stage, variant.id, "--config", str(config)])
        report, record = copy.accuracy(variant), copy.artifact(variant).file
        if report.outcome is Outcome.SKIPPED:
            pytest.skip(report.reason)
        assert report.outcome is Outcome.DONE, report.reason
        assert report.passed, report.reason
        assert record is not None
        assert list(copy.paths.provider_cache(variant, record).rglob("*.engine"))
