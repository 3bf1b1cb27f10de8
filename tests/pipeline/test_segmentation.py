"""A segmenter goes through the whole pipeline: judged by its masks, loaded as masks with the names of classes."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

import model_artifacts
from model_artifacts.errors import ConfigError, DataError, SourceError
from model_artifacts.records import Question, Status, Task
from model_artifacts.releases.triton import make_repositories
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.common.model import restore_model
from pipeline.stages.data.stage import make_data
from pipeline.stages.release.texts import model_card
from pipeline.stages.source.stage import make_source
from pipeline.stages.validate.stage import validate_variant
from tests.support.segments import CLASSES, SIZE, configuration, write_images
from tests.support.tasks import ENGINE, FP16, FP32, made_in, sensitivity_of, with_another_end

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = (len(CLASSES), SIZE, SIZE)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A segmenter with masks, whose ONNX files are validated, and whose FP16 engine is built ahead of time."""
    folder = tmp_path_factory.mktemp("segmentation")
    write_images(folder, 60)
    return made_in(folder, configuration(folder))


def test_masks_and_names_stand_in_the_records(project: Project) -> None:
    """The masks moved with their images, and the output keeps its name and shape everywhere."""
    source, data = project.source(), project.data()
    (output,) = source.outputs
    assert (source.task, source.sample_shape, output.name) == (Task.SEGMENTATION, SHAPE, "out")
    assert data.class_names == CLASSES
    assert data.labels is not None
    masks = np.load(project.file(data.labels))
    assert (masks.shape, masks.dtype) == ((40, SIZE, SIZE), np.uint8)
    assert set(np.unique(masks)) <= {0, 1, 2, 255}
    pixels = np.asarray(project.pixels(data.validation))
    assert pixels[masks == 1].mean(axis=0)[0] > 150 > pixels[masks == 0].mean()
    entries = {entry.id: entry for entry in project.manifest().artifacts}
    assert entries[ENGINE].status is Status.BUILT
    assert [spec.name for spec in entries[ENGINE].outputs] == ["out"]


def test_a_segmenter_is_deployable_by_its_miou(project: Project) -> None:
    """Each part is faithful, and the mIoU does not drop: of an image, and of all of them."""
    for name in (FP32, FP16):
        entry = next(entry for entry in project.manifest().artifacts if entry.id == name)
        assert entry.status is Status.DEPLOYABLE, entry.reason
        questions = {check.metric: check.question for check in entry.checks}
        assert questions["drop of an image's mIoU"] is Question.GOOD_ENOUGH
        assert questions["mIoU drop over all images"] is Question.GOOD_ENOUGH
        assert questions["reference: mIoU"] is Question.REFERENCE
        assert any("of axis" in metric for metric in questions)
        assert entry.accuracy is not None
        first, second = entry.accuracy.scores
        assert (first.metric, second.metric) == ("mIoU", "pixel agreement")
        assert first.reference is not None
        assert first.reference > 0.8
        assert abs(first.value - first.reference) < 0.01


def test_pictures_become_masks_with_names(project: Project) -> None:
    """`predict` gives the class of each pixel, and the classes by their share."""
    data = project.data()
    pixels = np.asarray(project.pixels(data.validation)[:3])
    want = np.load(project.file(data.reference))[:3].reshape(3, *SHAPE).argmax(axis=1)
    with model_artifacts.load(project.paths.root) as model:
        found = model.predict(list(pixels))
        one = model.predict(pixels[0], top=1)
    for prediction, mask in zip(found, want, strict=True):
        assert prediction.mask is not None
        assert (prediction.mask == mask).mean() > 0.99
        assert prediction.name in CLASSES
        assert sum(item.score for item in prediction.top) == pytest.approx(1)
        assert prediction.top[0].score == pytest.approx((prediction.mask == prediction.index).mean())
    assert len(one[0].top) == 1


def test_a_class_that_is_missed_is_rejected(project: Project, tmp_path: Path) -> None:
    """An artifact that answers with less green loses mIoU; the part of green is not faithful either."""
    less = np.array([0, 0, -3], np.float32).reshape(1, 3, 1, 1)
    broken = with_another_end(project, tmp_path / "copy", "Add", less)

    report = validate_variant(broken, broken.plan.variant(FP16))

    failed = {check.metric for check in report.checks if not check.passed}
    assert {"drop of an image's mIoU", "mIoU drop over all images"} <= failed
    assert report.reason.startswith("not faithful")
    assert report.loss is not None
    assert report.loss.drop > 0.01


def test_table_report_card_and_triton_say_miou(project: Project, tmp_path: Path) -> None:
    """Everything that people read has the mIoU, and Triton has no labels of rows."""
    assert "mIoU" in project.paths.report.read_text()
    card = model_card("tiny", project.manifest(), None)
    assert "(segmentation of 3 classes: background, red, green)" in card
    assert "| mIoU |" in card
    assert "the FP32 network has mIoU" in card
    assert "model.predict(" in card
    for config in make_repositories(project.paths.root, tmp_path / "triton").folder.rglob("config.pbtxt"):
        assert "label_filename" not in config.read_text()


def test_layers_are_ranked_by_their_maps(project: Project) -> None:
    """`sensitivity` needs no masks: pixels that answer otherwise are lost."""
    found = sensitivity_of(project)
    assert 0 < found.layers[0].distance <= 1.1 * found.plain.relative_l2
    assert found.proposed_loss <= found.plain_loss
    assert found.kept == (found.proposed_loss <= 0.008)


def test_without_masks_pixels_are_compared_with_the_reference(tmp_path: Path) -> None:
    """The pixels that answer otherwise count, but near-ties."""
    write_images(tmp_path, 60)
    project = made_in(tmp_path, configuration(tmp_path, masks=False))
    report = project.accuracy(project.plan.variant(FP16))
    assert report.passed, report.reason
    assert report.accuracy is not None
    assert [score.metric for score in report.accuracy.scores] == ["pixel agreement"]
    assert "other pixels of an image, without near-ties" in {check.metric for check in report.checks}


def test_probabilities_are_refused(tmp_path: Path) -> None:
    """A softmax over the classes of each pixel is found."""
    write_images(tmp_path, 2)
    (tmp_path / "pipeline.yaml").write_text(configuration(tmp_path, "Probabilities"))
    with pytest.raises(SourceError, match="probabilities instead of logits"):
        make_source(Project.load(tmp_path / "pipeline.yaml", STAGES))


def test_a_missing_mask_stops_the_data(project: Project, tmp_path: Path) -> None:
    """The error has the file, and nothing is written."""
    shutil.copytree(project.config_file.parent, tmp_path / "copy")
    text = (tmp_path / "copy" / "pipeline.yaml").read_text()
    (tmp_path / "copy" / "pipeline.yaml").write_text(
        text.replace(str(project.config_file.parent), str(tmp_path / "copy"))
    )
    for file in (tmp_path / "copy" / "masks" / "part").iterdir():
        file.unlink()
    broken = Project.load(tmp_path / "copy" / "pipeline.yaml", STAGES)
    before = broken.paths.data.read_bytes()
    with pytest.raises(DataError, match=r"(?s)40 of 40 images have no mask.*part/\d+\.png"):
        make_data(broken, restore_model(broken))
    assert broken.paths.data.read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("task: segmentation", "task: tensors", r"\d+:\d+: `data.masks` are for `task: segmentation`"),
        ("task: segmentation", "task: segmentation, threshold: 0.3", r"\d+:\d+: `model.threshold` is for"),
        ("task: segmentation", "task: segmentation, tolerance: 1", r"\d+:\d+: `model.tolerance` is for"),
        ("masks:", "labels:", r"\d+:\d+: `data.labels` is not for `task: segmentation`; set `masks`"),
    ],
    ids=["masks", "threshold", "tolerance", "labels"],
)
def test_settings_of_other_tasks_are_refused(tmp_path: Path, old: str, new: str, problem: str) -> None:
    """A setting that would have no effect is an error with its place."""
    (tmp_path / "pipeline.yaml").write_text(configuration(tmp_path).replace(old, new))
    with pytest.raises(ConfigError, match=problem):
        Project.load(tmp_path / "pipeline.yaml", STAGES)
