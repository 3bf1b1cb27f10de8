"""Pictures that the GPU decodes and resizes: proven by the stage, then read by a deployment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import model_artifacts
from model_artifacts import Requirements
from model_artifacts.host.environment import installed
from pipeline.cli.main import main
from pipeline.planning.project import Project
from pipeline.records import PicturesReport
from pipeline.stages import STAGES
from tests.gpu.conftest import doit
from tests.pipeline.stages.pictures.test_stage import CONFIGURATION, write_digits

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not installed("torchvision"), reason="torchvision is not installed here")


def test_proven_pictures_are_read_on_the_gpu(tmp_path: Path) -> None:
    """The GPU's pictures are near Pillow's, the engine's answers stay, and `load` gives the same classes."""
    write_digits(tmp_path / "images", 300)
    file = tmp_path / "pipeline.yaml"
    io = "io: [{}, {input: uint8}]\n"
    file.write_text(CONFIGURATION.format(folder=tmp_path / "images").replace("[fp32]", "[fp16]") + io)
    project = Project.load(file, STAGES)
    engines = [item for item in project.plan.variants if item.backend.value == "tensorrt"]
    doit(file, *(f"validate:{item.id}" for item in engines), *(f"pictures:{item.id}" for item in engines))
    assert main(["manifest", "tiny", "--config", str(file)]) == 0
    pictures = sorted((tmp_path / "images").rglob("*.jpg"))[:70]
    for variant in engines:
        report = project.read(project.paths.pictures(variant), PicturesReport)
        assert report.verdict is not None, report.reason
        assert report.verdict.passed, report.reason
        assert report.pixels is not None
        assert report.pixels.mean < 3
        wanted = Requirements(precision="fp16", input=variant.io.input)
        with model_artifacts.load(project.paths.root, wanted) as model:
            expected = model.predict(pictures)
        with model_artifacts.load(project.paths.root, wanted, pictures="gpu") as model:
            found = model.predict(pictures)
        assert sum(a.name != b.name for a, b in zip(expected, found, strict=True)) <= 1
