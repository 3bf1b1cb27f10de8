"""A deployment on a GPU takes an engine, and gets the logits that were validated."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import model_artifacts as pipeline
from model_artifacts.deployment.loading import read_manifest
from model_artifacts.host.record_files import write_record
from model_artifacts.records import Backend, EngineFlavour, Precision
from model_artifacts.sessions.arithmetic import settings
from model_artifacts.sessions.preprocessing import to_input
from pipeline.cli.main import main
from tests.gpu.conftest import TINY_ON_A_GPU, needs_torch_tensorrt
from tests.support.logits import FP16, distance, reference

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.planning.project import Project


def test_the_driver_runs_the_cuda_of_what_is_installed() -> None:
    """This host's driver reports its CUDA version, which covers that of every installed TensorRT."""
    here = pipeline.this_host()
    assert here.driver_cuda is not None
    for tool in here.host.flavours:
        assert here.cuda_that_the_driver_lacks(EngineFlavour(tool.name)) is None


def distance_of_what_is_loaded(project: Project, artifacts: Path, kind: Backend) -> float:
    """Return the relative L2 of the logits of an fp16 artifact, which is to be of this kind, by the manifest alone.

    Other threads, and a batch on the GPU, get the same logits, and the process keeps its settings of torch.
    """
    pixels = project.pixels(project.data().validation)[:8]
    with pipeline.load(artifacts, pipeline.Requirements(precision=Precision.FP16)) as model:
        assert model.entry.backend is kind
        images = to_input(pixels, model.preprocessing)
        profile = model.entry.profile
        step = profile.max if profile else 1
        before = settings()
        logits = np.concatenate([model(images[start : start + step]) for start in range(0, 8, step)])
        with ThreadPoolExecutor(4) as pool:
            for other in pool.map(model, [images[:step]] * 16):
                assert distance(other, logits[:step]) < FP16
        given: Any = torch.from_numpy(images[:step]).cuda()
        found = model(given)
        assert isinstance(found, np.ndarray)
        assert distance(found, logits[:step]) < FP16
        assert settings() == before
        assert not torch.is_inference_mode_enabled()
    return distance(logits, reference(project, 8))


def test_an_engine_is_resolved_verified_and_run(project: Project) -> None:
    """An engine is resolved by the manifest alone, and its logits stay within the gate of the reference."""
    assert distance_of_what_is_loaded(project, project.paths.root, Backend.TENSORRT) < FP16


@needs_torch_tensorrt
@pytest.mark.parametrize("kind", [Backend.DYNAMO, Backend.TORCH_COMPILE])
def test_a_module_is_loaded_where_there_is_no_engine(modules: Project, kind: Backend, tmp_path: Path) -> None:
    """A dynamo module and a torch_compile recipe load by the manifest alone, and stay within the gate."""
    (tmp_path / "pipeline.yaml").write_text(TINY_ON_A_GPU)
    artifacts = tmp_path / "artifacts"
    shutil.copytree(modules.paths.root, artifacts)
    assert main(["manifest", modules.plan.model, "--config", str(tmp_path / "pipeline.yaml")]) == 0
    manifest = read_manifest(artifacts)
    entries = tuple(entry for entry in manifest.artifacts if entry.backend is kind)
    write_record(artifacts / "manifest.json", manifest.model_copy(update={"artifacts": entries}))
    assert distance_of_what_is_loaded(modules, artifacts, kind) < FP16
