"""Engines that take pixels and give classes on a real GPU: built, proven through the bytes, timed and opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import model_artifacts
from model_artifacts import Requirements
from model_artifacts.host.environment import installed
from model_artifacts.records import Backend, Clock, Status
from pipeline.cli.main import main
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.common.samples import images_of
from tests.gpu.conftest import doit
from tests.support.ends import CONFIGURATION

if TYPE_CHECKING:
    from model_artifacts.records import ManifestEntry

pytestmark = pytest.mark.skipif(not installed("torch"), reason="torch is not installed here")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A classifier whose engines have the network's own ends, or pixels and a top 5, or halves and probabilities."""
    file = tmp_path_factory.mktemp("io") / "pipeline.yaml"
    file.write_text(CONFIGURATION.replace("precisions: [fp32, fp16]", "precisions: [fp16, int8]"))
    found = Project.load(file, STAGES)
    doit(file, *(f"validate:{item.id}" for item in found.plan.variants if item.backend is Backend.TENSORRT))
    assert main(["manifest", found.plan.model, "--config", str(file)]) == 0
    return found


def engines(project: Project) -> list[ManifestEntry]:
    """Return the engines that this GPU can have."""
    entries = [entry for entry in project.manifest().artifacts if entry.backend is Backend.TENSORRT]
    return [entry for entry in entries if entry.status is not Status.SKIPPED]


def test_engines_are_deployable_by_the_same_gates(project: Project) -> None:
    """Each kind of ends passes, in each precision that the library has."""
    found = engines(project)
    assert {entry.io.answer for entry in found} == {"logits", "top5", "probabilities"}
    for entry in found:
        assert entry.status is Status.DEPLOYABLE, (entry.id, entry.reason)


def test_predict_gives_the_same_answers(project: Project) -> None:
    """Pixels go in as they are, and the classes are those of the logits of an engine beside it."""
    pixels = list(np.asarray(project.pixels(project.data().validation)[:4]))
    answers = []
    for requirements in (
        Requirements(precision="fp16"),
        Requirements(precision="fp16", input="uint8", output="top5"),
        Requirements(precision="fp16", input="float16", output="probabilities"),
    ):
        with model_artifacts.load(project.paths.root, requirements) as model:
            assert model.entry.backend is Backend.TENSORRT
            answers.append(model.predict(pixels))
    for found in answers[1:]:
        assert [item.index for item in found] == [item.index for item in answers[0]]
        np.testing.assert_allclose([item.score for item in found], [item.score for item in answers[0]], atol=1e-2)


def test_a_batch_in_the_gpu_s_memory_is_taken_where_it_lies(project: Project) -> None:
    """Torch's uint8 tensors are pixels, too."""
    import torch  # noqa: PLC0415 - only where it is installed

    entry = next(item for item in engines(project) if item.io.answer == "top5")
    variant = project.plan.variant(entry.id)
    batch = images_of(project, 2, variant)
    there: Any = torch.from_numpy(batch).cuda()
    wanted = Requirements(precision=entry.precision, input="uint8", output="top5")
    with model_artifacts.load(project.paths.root, wanted) as model:
        near, far = model(there), model(batch)
    for name, values in far.items():
        np.testing.assert_array_equal(near[name], values)


def test_engines_are_timed_with_their_own_input(project: Project) -> None:
    """The benchmark feeds uint8 pixels, by every clock."""
    target = engines(project)[0].target
    assert main(["benchmark", f"{project.plan.model}/{target}", "--config", str(project.config_file)]) == 0
    entry = next(item for item in engines(project) if item.io.answer == "top5")
    report = project.benchmark(project.plan.variant(entry.id))
    assert {timing.clock for timing in report.timings} >= {Clock.GPU, Clock.COPIES, Clock.HOST}
