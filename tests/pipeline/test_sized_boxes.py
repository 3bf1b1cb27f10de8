"""Outputs of detectors, and tensors, that follow the size of the image: named, and proven at every size."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import model_artifacts
from model_artifacts.records import Graph, Question, Status, Task
from pipeline.cli.main import main
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.common.model import restore_model
from pipeline.stages.export.stage import make_onnx
from pipeline.stages.validate.stage import validate_variant
from tests.support.detectors import configuration, trained, write_images
from tests.support.sized_detectors import OfOneWidth, Sized
from tests.support.tasks import FP16, configuration_of

if TYPE_CHECKING:
    from pathlib import Path

    from model_artifacts.records import ManifestEntry

SIZES = "height48-64-96-width48-64-80"
ENGINE = f"tiny/rtx-sm80+/fp16-b1-2-2-{SIZES}-ws16MiB"
AXES = "height: {min: 48, opt: 64, max: 96}, width: {min: 48, opt: 64, max: 80}"
CHECKED = [(48, 48), (96, 80), (73, 65), (48, 80), (96, 48)]


def made(folder: Path, text: str) -> Project:
    """Return a project with dynamic axes whose FP16 file is validated, and whose FP16 engine is built."""
    file = folder / "pipeline.yaml"
    file.write_text(re.sub(r"profiles: .*", f"profiles: [{{batch: {{min: 1, opt: 2, max: 2}}, {AXES}}}]", text))
    project = Project.load(file, STAGES)
    wanted = {"source": "", "data": "", "export": "", "rounding": "fp", "build": "", "validate": ""}
    for step in project.schedule.steps:
        of_variant = step.stage not in {"build", "validate"} or step.subject in {FP16, ENGINE}
        if step.stage in wanted and wanted[step.stage] in step.subject and of_variant:
            assert main([step.stage, step.subject, "--config", str(file)]) == 0, step
    assert main(["manifest", "tiny", "--config", str(file)]) == 0
    return project


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A detector in pixels, with labels."""
    folder = tmp_path_factory.mktemp("boxes")
    write_images(folder, 60)
    torch.save(trained().state_dict(), folder / "w.pth")
    text = configuration(folder).replace("tests.support.detectors:Detector", "tests.support.sized_detectors:Sized")
    return made(folder, text.replace("validation: 60", "validation: 24"))


def entry_of(project: Project, name: str) -> ManifestEntry:
    """Return the manifest's entry of a variant."""
    return next(entry for entry in project.manifest().artifacts if entry.id == name)


@pytest.mark.parametrize("name", [FP16, ENGINE])
def test_boxes_have_an_axis_of_their_own(detector: Project, name: str) -> None:
    """The number of cells is no axis of the image, so that graph and engine name it after the outputs."""
    shapes = {spec.name: spec.shape for spec in entry_of(detector, name).outputs}
    assert shapes == {"boxes": ("batch", "boxes_axis_1", 4), "scores": ("batch", "scores_axis_1", 2)}


def test_detections_are_judged_at_every_size(detector: Project) -> None:
    """Each output has its distance there, and the boxes are scored against the labels, which grow with the image."""
    entry = entry_of(detector, FP16)
    assert entry.status is Status.DEPLOYABLE, entry.reason
    judged = {check.metric: check.question for check in entry.checks if " at height " in check.metric}
    assert judged.keys() == {
        f"{metric} at height {height}, width {width} in batches of {batch}"
        for metric in ("boxes: relative L2", "scores: relative L2", "drop of an image's mAP")
        for height, width in CHECKED
        for batch in (1, 32)
    }
    assert {kind for metric, kind in judged.items() if "mAP" in metric} == {Question.GOOD_ENOUGH}
    sized = next(item for item in detector.data().sizes if dict(item.sizes) == {"height": 96, "width": 80})
    assert sized.shapes == ((120, 4), (120, 2))


def test_a_loaded_detector_gives_boxes_of_every_size(detector: Project) -> None:
    """They are those of the network, also at sizes that no check has seen; `predict` finds boxes at the own size."""
    network = restore_model(detector)
    with model_artifacts.load(detector.paths.root) as model:
        for height, width in [(48, 48), (96, 80), (50, 71)]:
            batch = np.random.default_rng(height).normal(size=(2, 3, height, width)).astype(np.float32)
            with torch.no_grad():
                wanted = network(torch.from_numpy(batch))
            found = model(batch)
            for name, want in zip(("boxes", "scores"), wanted, strict=True):
                np.testing.assert_allclose(found[name], want, rtol=0.02, atol=0.1)
        images = np.asarray(detector.pixels(detector.data().validation)[:8])
        assert any(prediction.boxes for prediction in model.predict(list(images)))


def test_a_grid_of_one_width_is_rejected(detector: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph whose cells lie as in an image of the traced width has boxes of the right number in wrong places."""
    shutil.copytree(detector.config_file.parent, tmp_path / "broken")
    broken = Project.load(tmp_path / "broken" / "pipeline.yaml", STAGES)
    monkeypatch.setattr(Sized, "places", OfOneWidth.places)
    make_onnx(broken, restore_model(broken), Graph.FP16)
    report = validate_variant(broken, broken.plan.variant(FP16))
    failed = {check.metric for check in report.checks if not check.passed}
    assert failed
    assert all(" at height " in metric for metric in failed), "at the network's own size it is right"
    assert any(metric.startswith("boxes: relative L2 at height 96, width 80") for metric in failed)
    assert any(metric.startswith("drop of an image's mAP at height 96, width 80") for metric in failed)


def test_tensors_may_follow_the_image(tmp_path: Path) -> None:
    """Maps of a meaning of the user's own are judged by the distance of each part, at every size."""
    text = configuration_of(
        "tests.support.sized_networks:make_maps", Task.TENSORS, "{images: digits, calibration: 8, validation: 24}"
    ).replace("resize: 32, crop: 32", "resize: 64, crop: 64")
    project = made(tmp_path, text)
    entry = entry_of(project, FP16)
    assert entry.status is Status.DEPLOYABLE, entry.reason
    assert entry.outputs[0].shape == ("batch", 64, "output_0_axis_2", "output_0_axis_3")
    assert entry_of(project, ENGINE).outputs[0].shape == entry.outputs[0].shape
    judged = [check.question for check in entry.checks if " at height 73, width 65 in batches of 1" in check.metric]
    assert {Question.FAITHFUL, Question.GOOD_ENOUGH} == {*judged}
