"""A network of numbers goes through the whole pipeline: judged by its tolerances, loaded as numbers with names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import model_artifacts
from model_artifacts.errors import RunError, UsageError
from model_artifacts.records import Question, Status, Task
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.common.model import restore_model
from pipeline.stages.data.stage import make_data
from pipeline.stages.release.texts import model_card
from pipeline.stages.source.stage import make_source
from pipeline.stages.validate.stage import validate_variant
from tests.support.tables import COLUMNS, numbers_configuration, write_images
from tests.support.tasks import ENGINE, FP16, FP32, made_in, with_another_end

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A network of two numbers with labels, whose ONNX files are validated, and whose engine is built."""
    folder = tmp_path_factory.mktemp("regression")
    write_images(folder, 80)
    return made_in(folder, numbers_configuration(folder))


def test_numbers_make_an_artifact_deployable(project: Project) -> None:
    """Each number has a bound of its own rounding, and the tolerance of the configuration."""
    source, data = project.source(), project.data()
    (output,) = source.outputs
    assert (source.task, source.sample_shape, output.name) == (Task.REGRESSION, (2,), "areas")
    assert data.class_names == COLUMNS
    entries = {entry.id: entry for entry in project.manifest().artifacts}
    assert entries[ENGINE].status is Status.BUILT
    for name in (FP32, FP16):
        entry = entries[name]
        assert entry.status is Status.DEPLOYABLE, entry.reason
        questions = {check.metric: check.question for check in entry.checks}
        assert questions["images with a number beyond its tolerance"] is Question.GOOD_ENOUGH
        assert questions["drop of images within tolerance of their labels"] is Question.GOOD_ENOUGH
        assert any(metric.startswith("rise of the MAE of ") for metric in questions)
        assert any(metric.startswith("relative L2 of axis 1, entry") for metric in questions)
        assert entry.accuracy is not None
        within, error = entry.accuracy.scores
        assert (within.metric, within.is_share, error.is_share) == ("within tolerance", True, False)
        assert within.reference is not None
        assert within.reference > 0.9


def test_pictures_become_numbers_with_names(project: Project) -> None:
    """`predict` gives the numbers by the names of the table's columns, and no class."""
    pixels = np.asarray(project.pixels(project.data().validation)[:3])
    want = np.load(project.file(project.data().reference))[:3]
    with model_artifacts.load(project.paths.root) as model:
        found = model.predict(list(pixels))
    assert [tuple(item.name for item in prediction.values) for prediction in found] == [COLUMNS] * 3
    np.testing.assert_allclose([[item.value for item in row.values] for row in found], want, rtol=0.01, atol=0.05)
    with pytest.raises(UsageError, match=r"(?s)no class.*2 numbers.*values"):
        _ = found[0].name


def test_a_small_number_that_is_wrong_is_rejected(project: Project, tmp_path: Path) -> None:
    """A share beside a percentage is judged apart: the norm of both does not show it."""
    broken = with_another_end(project, tmp_path / "copy", "Add", np.array([[0, 0.06]], np.float32))

    report = validate_variant(broken, broken.plan.variant(FP16))

    failed = {check.metric for check in report.checks if not check.passed}
    assert {
        "images with a number beyond its tolerance",
        "drop of images within tolerance of their labels",
        "rise of the MAE of green, in tolerances",
        "relative L2 of axis 1, entry 1",
    } <= failed


def test_the_card_says_within_tolerance(project: Project) -> None:
    """People read the measures that they judge by."""
    card = model_card("tiny", project.manifest(), None)
    assert "| within tolerance |" in card
    assert "areas: float32, (batch, 2) (regression)" in card
    assert "within tolerance" in project.paths.report.read_text()


def test_without_a_table_numbers_are_compared_with_the_reference(tmp_path: Path) -> None:
    """The tolerance holds against FP32 alone."""
    write_images(tmp_path, 80)
    project = made_in(tmp_path, numbers_configuration(tmp_path, "0.5", table=False))
    report = project.accuracy(project.plan.variant(FP16))
    assert report.passed, report.reason
    assert report.accuracy is not None
    assert report.accuracy.scores[0].metric == "within tolerance of FP32"


def test_tolerances_of_other_numbers_are_refused(project: Project, tmp_path: Path) -> None:
    """Three tolerances are not those of two numbers."""
    write_images(tmp_path, 80)
    (tmp_path / "pipeline.yaml").write_text(numbers_configuration(tmp_path, "[1, 2, 3]"))
    broken = Project.load(tmp_path / "pipeline.yaml", STAGES)
    make_source(broken)
    with pytest.raises(RunError, match=r"(?s)`model.tolerance`.*or 2, one for each.*got: +3"):
        make_data(broken, restore_model(project))
