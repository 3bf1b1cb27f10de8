"""A network that gives a tensor of any shape goes through the whole pipeline, each of its parts judged apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

import model_artifacts
from model_artifacts.errors import ConfigError, UsageError
from model_artifacts.records import Graph, Question, Status, Task
from model_artifacts.releases.triton import make_repositories
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.validate.stage import validate_variant
from tests.support.logits import images
from tests.support.tasks import ENGINE, FP16, FP32, assert_shows_the_cosine, made_in, with_another_end
from tests.support.tensors import SHAPE, configuration

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A network whose ONNX files are validated, and whose FP16 engine is built ahead of time."""
    return made_in(tmp_path_factory.mktemp("tensors"), configuration())


def test_the_output_keeps_its_name_and_shape(project: Project) -> None:
    """The network's own name of its output stands in the record, the graphs, the engine and the manifest."""
    source = project.source()
    assert (source.task, source.sample_shape) == (Task.TENSORS, SHAPE)
    assert [spec.name for spec in source.outputs] == ["out"]
    for graph in (Graph.FP32, Graph.FP16):
        (output,) = onnx.load(project.paths.onnx(graph)).graph.output
        assert output.name == "out"
    entries = {entry.id: entry for entry in project.manifest().artifacts}
    for name in (FP16, ENGINE):
        (spec,) = entries[name].outputs
        assert (spec.name, spec.shape, spec.dtype) == ("out", ("batch", *SHAPE), "float32"), name
    assert entries[ENGINE].status is Status.BUILT


def test_tensors_are_deployable_by_the_distances_of_their_parts(project: Project) -> None:
    """Both questions have a check of the parts, and nothing counts answers."""
    entries = {entry.id: entry for entry in project.manifest().artifacts}
    for name in (FP16, FP32):
        entry = entries[name]
        assert entry.status is Status.DEPLOYABLE, entry.reason
        parts = [check for check in entry.checks if "axis" in check.metric or "a part" in check.metric]
        assert [check.question for check in parts] == [Question.FAITHFUL, Question.GOOD_ENOUGH, Question.GOOD_ENOUGH]
        assert not entry.proven
    rounding = project.rounding(next(item for item in project.plan.arithmetics if item.precision.value == "fp16"))
    assert len(rounding.part_l2_high) == sum(SHAPE)
    assert rounding.margin_noise is None


def test_scores_that_are_wrong_are_rejected(project: Project, tmp_path: Path) -> None:
    """An artifact whose scores are wrong by 5 % is rejected, though boxes in pixels make up all of the norm."""
    factors = np.array([1, 1, 1, 1, 1.05], np.float32).reshape(1, 5, 1, 1)
    broken = with_another_end(project, tmp_path / "copy", "Mul", factors)

    report = validate_variant(broken, broken.plan.variant(FP16))

    assert not report.passed
    assert report.accuracy is not None
    failed = [check.metric for check in report.checks if not check.passed]
    assert "relative L2 of axis 1, entry 4" in failed
    assert "largest relative L2 of a part" in failed
    assert "relative L2 at every batch size" in failed
    assert "relative L2" not in failed  # the norm of all values sees nothing


def test_tensors_are_loaded_as_they_are(project: Project) -> None:
    """`outputs` and the model itself give the tensors, and `predict` refuses them."""
    pixels = np.asarray(project.pixels(project.data().validation)[:3])
    expected = np.load(project.file(project.data().reference))[:3].reshape(3, *SHAPE)
    with model_artifacts.load(project.paths.root) as model:
        found = model.outputs(list(pixels))
        np.testing.assert_array_equal(found, model(images(project, 3)))
        np.testing.assert_allclose(found, expected, rtol=0.02, atol=1)
        assert model.outputs([]).shape == (0, *SHAPE)
        with pytest.raises(UsageError, match=r"(?s)`predict`.*got: +tensors.*outputs"):
            model.predict(list(pixels))


def test_the_report_and_the_table_show_the_cosine(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """Tensors have no top-1, and no agreement: the mean cosine stands in its place."""
    assert_shows_the_cosine(project, capsys)


def test_triton_serves_tensors(project: Project, tmp_path: Path) -> None:
    """Triton's configuration has the output with its name and shape."""
    repositories = make_repositories(project.paths.root, tmp_path / "triton")
    for config in sorted(repositories.folder.rglob("config.pbtxt")):
        assert 'name: "out"' in config.read_text()
        assert config.read_text().count("dims: 16") >= 2


METRIC = "tests.support.tensors:found_boxes"


def with_metric(metric: str) -> str:
    """Return the configuration of boxes that a metric of the user's own judges."""
    return configuration().replace("task: tensors", f'task: tensors, metric: "{metric}"')


def test_a_metric_of_the_users_own_judges(tmp_path: Path) -> None:
    """It stands in the place of the parts' distances, which bound faithfulness all the same."""
    made = made_in(tmp_path, with_metric(METRIC))
    report = made.accuracy(made.plan.variant(FP16))
    assert report.passed, report.reason
    metrics = {check.metric: check.question for check in report.checks}
    assert metrics[f"drop of {METRIC}"] is Question.GOOD_ENOUGH
    assert metrics[f"reference: {METRIC}"] is Question.REFERENCE
    assert not [metric for metric in metrics if "largest relative L2 of a part" in metric]
    assert report.accuracy is not None
    (score,) = report.accuracy.scores
    assert (score.metric, score.reference) == (METRIC, 1.0)
    assert report.loss is not None
    fields = {field.name for field in report.key.fields}
    assert {"metric", "metric_code"} <= fields
    text = made.config_file.read_text().replace(METRIC, "tests.support.tensors:no_scores")
    made.config_file.write_text(text)
    other = Project.load(made.config_file, STAGES)
    failed = validate_variant(other, other.plan.variant(FP16))
    assert failed.outcome.value == "failed"
    assert "no score of each image" in failed.reason
    assert "float" in failed.reason


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("task: tensors", "task: embedding", r"\d+:\d+: `model.metric` is for `task: tensors`"),
        ("tensors:found_boxes", "tensors", r"expected package.module:function"),
    ],
    ids=["task", "name"],
)
def test_a_metric_that_cannot_be_applied_is_refused(
    write_config: Callable[[str], Path], old: str, new: str, problem: str
) -> None:
    """The message has the place."""
    with pytest.raises(ConfigError, match=problem):
        Project.load(write_config(with_metric(METRIC).replace(old, new)), STAGES)


def test_a_proof_is_not_for_distances(write_config: Callable[[str], Path]) -> None:
    """A setting that would have no effect is refused."""
    text = configuration().replace("workspaces", "gates: {require_proof: true}\nworkspaces")
    with pytest.raises(ConfigError, match="proven by no number of samples"):
        Project.load(write_config(text), STAGES)
