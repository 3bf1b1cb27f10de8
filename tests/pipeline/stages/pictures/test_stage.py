"""Answers to pictures that torch decodes, on the processor in the place of a GPU."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from model_artifacts.errors import RunError, UnreadableError
from model_artifacts.host.environment import now
from model_artifacts.records import EngineFlavour, GpuPictures, Question
from model_artifacts.sessions.gpu_pictures import TorchPictures
from model_artifacts.sessions.gpu_pictures.torch_pictures import PlacedPixels
from pipeline.cli.main import main
from pipeline.config.settings import Executor, FarmConfig, FarmTarget
from pipeline.planning.plan import Plan
from pipeline.planning.project import Project
from pipeline.planning.steps import Step
from pipeline.records import Outcome, PicturesReport
from pipeline.stages import STAGES
from pipeline.stages.pictures import stage
from pipeline.stages.pictures.spec import pictures_key
from pipeline.stages.pictures.stage import compare_answers, judge_pictures, show_pictures
from tests.support.hosts import H100, host, workers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.records import Artifact

CONFIGURATION = """\
model: {{name: tiny, factory: "tests.support.tiny_model:make", weights: sample}}
preprocessing: {{resize: 32, crop: 32, interpolation: bilinear, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}
data: {{images: {folder}, calibration: 32, validation: 200}}
precisions: [fp32]
profiles: [1]
workspaces: [16MiB]
gates: {{margin: 0.03}}
"""
CPU = "tiny/cpu-x86_64/onnxruntime-fp32"
ENGINE = "tiny/rtx-sm80+/fp32-b1-ws16MiB"


def write_digits(folder: Path, count: int) -> None:
    """Write digits as JPEG files of 96 × 96, one folder a class."""
    bunch = load_digits()
    for number, (values, label) in enumerate(zip(bunch.images[:count], bunch.target[:count], strict=True)):
        place = folder / str(label)
        place.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray((values * (255 / 16)).round().astype("uint8"))
        small.resize((96, 96), Image.Resampling.NEAREST).convert("RGB").save(place / f"{number}.jpg", quality=95)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A validated ONNX file of a classifier of digits, whose validation pictures are JPEG files."""
    folder = tmp_path_factory.mktemp("pictures")
    write_digits(folder / "images", 300)
    file = folder / "pipeline.yaml"
    file.write_text(CONFIGURATION.format(folder=folder / "images"))
    found = Project.load(file, STAGES)
    for step in found.schedule.steps:
        first = step.stage in {"source", "data", "export", "rounding"}
        if first or (step.stage in {"build", "validate"} and step.subject == CPU):
            assert main([step.stage, step.subject, "--config", str(file)]) == 0, step
    return found


def names_of(project: Project) -> list[str]:
    """Return the paths of the validation pictures."""
    record = project.data().names
    assert record is not None
    names: list[str] = json.loads(project.file(record).read_text())
    return names


def artifact_of(project: Project) -> Artifact:
    """Return the validated ONNX file."""
    return project.artifact(project.plan.variant(CPU))


def test_answers_are_those_of_the_processor_s_pictures(project: Project) -> None:
    """Pixels are a level apart at most, and every check of the gate passes."""
    artifact = artifact_of(project)
    shown = show_pictures(project, artifact, names_of(project), "cpu")
    assert shown.pixels.largest <= 1
    judged = compare_answers(project, artifact.variant, shown)
    deciding = [check for check in judged.checks if check.question is Question.GOOD_ENOUGH]
    assert deciding
    assert all(check.passed for check in deciding)
    assert judged.accuracy.top1_agreement is not None
    assert judged.accuracy.top1_agreement > 0.98


def test_decoder_that_shows_other_pictures_is_rejected(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not turn pictures, say: here all stand on their heads."""
    read = TorchPictures.read

    def upside_down(self: TorchPictures, pictures: Sequence[Path]) -> PlacedPixels:
        places, pixels = read(self, pictures)
        return PlacedPixels(places, pixels.flip(1))

    monkeypatch.setattr(TorchPictures, "read", upside_down)
    artifact = artifact_of(project)
    shown = show_pictures(project, artifact, names_of(project), "cpu")
    assert shown.pixels.mean > 10
    judged = compare_answers(project, artifact.variant, shown)
    assert "labelled top-1 drop" in stage.reason_of_answers(judged.checks)


def test_outputs_that_are_no_numbers_are_a_fault(project: Project) -> None:
    """No share of answers says so."""
    artifact = artifact_of(project)
    shown = show_pictures(project, artifact, names_of(project), "cpu")
    broken = shown._replace(logits=np.full_like(shown.logits, np.nan))
    with pytest.raises(RunError, match="not finite"):
        compare_answers(project, artifact.variant, broken)


def test_picture_that_has_gone_is_named(project: Project) -> None:
    """The folder must still hold the pictures of the validation."""
    with pytest.raises(UnreadableError, match=r"(?s)cannot be read.*gone\.jpg"):
        show_pictures(project, artifact_of(project), ["3/gone.jpg"], "cpu")


def test_step_is_of_gpus_alone(project: Project) -> None:
    """A processor decodes by Pillow, as the validation did."""
    subjects = {step.subject for step in project.schedule.of("pictures")}
    assert ENGINE in subjects
    assert CPU not in subjects


def test_host_without_a_gpu_skips_it(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """And says why; the next run tries it again."""
    config = ["--config", str(project.config_file)]
    for name in ("build", "validate"):
        assert main([name, ENGINE, *config]) == 0
    capsys.readouterr()
    assert main(["pictures", ENGINE, *config]) == 0
    assert "skipped: not deployable" in capsys.readouterr().out
    report = Project.load(project.config_file, STAGES).read(
        project.paths.pictures(project.plan.variant(ENGINE)), PicturesReport
    )
    assert (report.outcome, report.verdict) == (Outcome.SKIPPED, None)


def test_gpu_of_a_farm_is_proven_by_no_other_machine(project: Project) -> None:
    """The step runs on this machine and would name the worker's GPU, so that it is skipped with that reason."""
    for name in ("build", "validate"):
        assert main([name, ENGINE, "--config", str(project.config_file)]) == 0
    farm = FarmConfig(targets=(FarmTarget(flavour=EngineFlavour.TENSORRT_RTX, accelerator="H100"),))
    config = project.config.model_copy(update={"executor": Executor.RAY, "farm": farm})
    plan = Plan(config, host(H100), (workers("H100 with tensorrt_rtx", host(H100)),))
    on_farm = replace(project, plan=plan)
    variant = plan.variant(ENGINE)
    assert plan.gpu(variant.target) == H100
    assert on_farm.schedule.workers(Step("pictures", ENGINE)) is None, "it runs here"
    assert on_farm.schedule.spec("pictures").lacks_hardware(plan, variant)
    report = judge_pictures(on_farm, variant)
    assert (report.outcome, report.verdict) == (Outcome.SKIPPED, None)
    assert report.reason.startswith("the GPU of H100 with tensorrt_rtx decodes on no other machine")
    local = replace(project, plan=Plan(project.config, host(H100)))
    assert pictures_key(local, variant) != report.key, "proofs of before, which named the worker's GPU, hold no more"


def test_manifest_has_the_verdict(project: Project) -> None:
    """Of a record whose key holds; without one, the entry's JSON does not name it."""
    variant = project.plan.variant(ENGINE)
    config = ["--config", str(project.config_file)]
    for name in ("build", "validate"):
        assert main([name, ENGINE, *config]) == 0
    verdict = GpuPictures(passed=True, gpu="a GPU", decoder="torchvision 1, torch 2", samples=200)
    report = PicturesReport(
        key=pictures_key(project, variant),
        built_at=now(),
        toolchain=(),
        variant_id=ENGINE,
        outcome=Outcome.DONE,
        verdict=verdict,
    )
    project.write(project.paths.pictures(variant), report)
    assert main(["manifest", "tiny", *config]) == 0
    by_id = {entry.id: entry for entry in project.manifest().artifacts}
    assert by_id[ENGINE].gpu_pictures == verdict
    assert "gpu_pictures" not in by_id[CPU].model_dump_json()
