"""A network of several labels goes through the whole pipeline: judged by sets of labels, loaded as sets of labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import model_artifacts
from model_artifacts.errors import DataError, SourceError
from model_artifacts.records import Question, Status, Task
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.common.model import restore_model
from pipeline.stages.data.stage import make_data
from pipeline.stages.release.texts import model_card
from pipeline.stages.source.stage import make_source
from tests.support.tables import COLUMNS, labels_configuration, write_images
from tests.support.tasks import ENGINE, FP16, FP32, made_in

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A network of two labels with a table, whose ONNX files are validated, and whose engine is built."""
    folder = tmp_path_factory.mktemp("multilabel")
    write_images(folder, 80)
    return made_in(folder, labels_configuration(folder))


def test_labels_are_in_the_order_of_the_network(project: Project) -> None:
    """The table's columns may have any order; the names are those of `data.classes`."""
    data = project.data()
    assert (project.source().task, data.class_names, data.reference_top1) == (Task.MULTILABEL, COLUMNS, None)
    assert data.labels is not None
    truth, logits = np.load(project.file(data.labels)), np.load(project.file(data.reference))
    assert (truth.shape, truth.dtype) == ((60, 2), np.uint8)
    assert ((logits > 0) == truth).mean() > 0.95


def test_sets_of_labels_make_an_artifact_deployable(project: Project) -> None:
    """No top-1 takes part: the sets, F1 and mAP do."""
    entries = {entry.id: entry for entry in project.manifest().artifacts}
    assert entries[ENGINE].status is Status.BUILT
    for name in (FP32, FP16):
        entry = entries[name]
        assert entry.status is Status.DEPLOYABLE, entry.reason
        questions = {check.metric: check.question for check in entry.checks}
        enough = {metric for metric, question in questions.items() if question is Question.GOOD_ENOUGH}
        assert enough == {
            "drop of the Jaccard index of an image's labels",
            "F1 drop over all images",
            "mAP drop over all images",
        }
        assert questions["reference: mAP"] is Question.REFERENCE
        assert entry.accuracy is not None
        assert [score.metric for score in entry.accuracy.scores] == ["mAP", "F1", "label agreement"]
        assert entry.accuracy.scores[0].value > 0.95
        assert entry.accuracy.top1 is None


def test_pictures_become_labels(project: Project) -> None:
    """`predict` names every label that reaches the threshold, none for an image without any."""
    pixels = np.asarray(project.pixels(project.data().validation))
    logits = np.load(project.file(project.data().reference))
    with model_artifacts.load(project.paths.root) as model:
        found = model.predict(list(pixels))
    want = [{name for name, logit in zip(COLUMNS, row, strict=True) if logit >= 0} for row in logits]
    assert [{item.name for item in prediction.top} for prediction in found] == want
    assert {len(names) for names in want} == {0, 1, 2}
    assert found[0].top == tuple(sorted(found[0].top, key=lambda item: -item.score))


def test_the_card_and_the_report_say_map(project: Project) -> None:
    """People read the measures that they judge by."""
    card = model_card("tiny", project.manifest(), None)
    assert "| mAP |" in card
    assert "(multilabel of 2 classes: red, green)" in card
    assert "mAP" in project.paths.report.read_text()


def test_without_a_table_sets_are_compared_with_the_reference(tmp_path: Path) -> None:
    """Labels that are near-ties do not count."""
    write_images(tmp_path, 80)
    project = made_in(tmp_path, labels_configuration(tmp_path, table=False))
    report = project.accuracy(project.plan.variant(FP16))
    assert report.passed, report.reason
    assert "other labels of an image, without near-ties" in {check.metric for check in report.checks}


def test_sigmoids_are_refused(tmp_path: Path) -> None:
    """The threshold is applied to the sigmoid of the logits; a sigmoid of a sigmoid has no meaning."""
    write_images(tmp_path, 2)
    (tmp_path / "pipeline.yaml").write_text(labels_configuration(tmp_path, "Sigmoids"))
    with pytest.raises(SourceError, match="between 0 and 1, instead of logits"):
        make_source(Project.load(tmp_path / "pipeline.yaml", STAGES))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("image,green,red", "image,green,blue", r"(?s)other columns.*labels.csv:1.*red, green.*green, blue"),
        (",1\n", ",2\n", r"(?s)neither 0 nor 1.*2"),
    ],
    ids=["columns", "value"],
)
def test_a_table_of_other_labels_is_refused(project: Project, tmp_path: Path, old: str, new: str, message: str) -> None:
    """The error has the file, and what the network has."""
    write_images(tmp_path, 80)
    table = tmp_path / "labels.csv"
    table.write_text(table.read_text().replace(old, new))
    (tmp_path / "pipeline.yaml").write_text(labels_configuration(tmp_path))
    broken = Project.load(tmp_path / "pipeline.yaml", STAGES)
    make_source(broken)
    with pytest.raises(DataError, match=message):
        make_data(broken, restore_model(project))
    assert not broken.paths.data.exists()
