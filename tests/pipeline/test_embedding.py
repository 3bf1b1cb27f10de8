"""An embedding goes through the whole pipeline: vectors of a name, judged by their neighbours, loaded as vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

import model_artifacts
from model_artifacts.errors import ConfigError, UsageError
from model_artifacts.records import Backend, Graph, Question, Status, Task
from model_artifacts.releases.triton import make_repositories
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.release.texts import model_card
from tests.support.embeddings import LENGTH, configuration
from tests.support.logits import images, reference
from tests.support.tasks import ENGINE, FP16, assert_shows_the_cosine, made_in, sensitivity_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MOVED = "vectors that moved half way to their nearest neighbour"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """An embedding whose ONNX files are validated, and whose FP16 engine is built ahead of time."""
    return made_in(tmp_path_factory.mktemp("embedding"), configuration("Named"))


def test_vectors_have_their_name_in_every_record(project: Project) -> None:
    """The graph, the engine and the manifest name the output, whatever the network's mapping calls it."""
    source = project.source()
    assert (source.task, source.classes, source.class_names) == (Task.EMBEDDING, LENGTH, None)
    assert source.logits == "features"
    for graph in (Graph.FP32, Graph.FP16):
        (output,) = onnx.load(project.paths.onnx(graph)).graph.output
        assert output.name == "embedding"
    entries = {entry.id: entry for entry in project.manifest().artifacts}
    for name in (FP16, ENGINE):
        (spec,) = entries[name].outputs
        assert (spec.name, spec.shape, spec.dtype) == ("embedding", ("batch", LENGTH), "float32"), name
    assert entries[ENGINE].status is Status.BUILT


def test_an_embedding_is_deployable_by_its_distances(project: Project) -> None:
    """No label and no class takes part: distances are judged, and the neighbours."""
    assert project.data().labels is None
    entry = next(entry for entry in project.manifest().artifacts if entry.id == FP16)
    assert entry.status is Status.DEPLOYABLE, entry.reason
    assert entry.accuracy is not None
    assert (entry.accuracy.top1, entry.accuracy.top1_agreement) == (None, None)
    metrics = {check.metric: check.question for check in entry.checks}
    assert metrics[MOVED] is Question.GOOD_ENOUGH
    assert not [metric for metric in metrics if "top-1" in metric or "answers" in metric]
    assert "share of the vectors" in " ".join(metrics)


def test_another_task_is_another_key(project: Project, tmp_path: Path) -> None:
    """The same network as a classifier is made and judged again; the key of a classifier has no task."""
    file = tmp_path / "pipeline.yaml"
    file.write_text(project.config_file.read_text().replace(", task: embedding", ""))
    other = Project.load(file, STAGES)
    spec = project.schedule.spec("source")
    names = [{field.name for field in spec.key(item, "tiny").fields} for item in (project, other)]
    assert names[0] - names[1] == {"task"}


def test_vectors_are_loaded_as_vectors(project: Project) -> None:
    """`outputs` gives the vectors of pictures, and `predict` refuses them: there are no classes."""
    pixels = np.asarray(project.pixels(project.data().validation)[:3])
    with model_artifacts.load(project.paths.root) as model:
        assert model.entry.backend is Backend.ONNXRUNTIME
        vectors = model.outputs(list(pixels))
        np.testing.assert_array_equal(vectors, model(images(project, 3)))
        np.testing.assert_allclose(vectors, reference(project, 3), atol=5e-3)
        assert model.outputs([]).shape == (0, LENGTH)
        with pytest.raises(UsageError, match=r"(?s)`predict`.*task is classification.*got: +embedding.*outputs"):
            model.predict(list(pixels))


def test_the_report_and_the_table_show_the_cosine(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """An embedding has no top-1, and no agreement: the mean cosine stands in its place."""
    assert_shows_the_cosine(project, capsys)


def test_triton_serves_vectors(project: Project, tmp_path: Path) -> None:
    """Triton's configuration names the output, and has no labels."""
    repositories = make_repositories(project.paths.root, tmp_path / "triton")
    configs = sorted(repositories.folder.rglob("config.pbtxt"))
    assert configs
    for config in configs:
        assert 'name: "embedding"' in config.read_text()
        assert "label_filename" not in config.read_text()


def test_the_card_says_vectors(project: Project) -> None:
    """The model card names the output and the method that gives it."""
    card = model_card("tiny", project.manifest(), None)
    assert f"| output | embedding: float32, (batch, {LENGTH}) (embedding) |" in card
    assert "model.outputs(" in card
    assert "top-1" not in card


def test_classes_of_the_images_judge_the_recall(tmp_path: Path) -> None:
    """With `labels: classes` the nearest neighbours' classes count, in both galleries, and everything says so."""
    project = made_in(tmp_path, configuration().replace("images: digits", "images: digits, labels: classes"))
    data = project.data()
    assert data.labels is not None
    assert (np.load(project.file(data.labels)).shape, data.reference_top1, data.class_names) == ((60,), None, None)
    report = project.accuracy(project.plan.variant(FP16))
    assert report.passed, report.reason
    metrics = {check.metric for check in report.checks}
    assert {"reference: recall@1", "drop of recall@1", "drop of recall@1 in FP32's gallery"} <= metrics
    assert MOVED not in metrics
    assert report.accuracy is not None
    first = report.accuracy.scores[0]
    assert first.metric == "recall@1"
    assert first.reference is not None
    assert first.reference > 0.3
    assert "By these labels the FP32 network has recall@1" in model_card("tiny", project.manifest(), None)


def test_layers_are_ranked_by_the_vectors(project: Project) -> None:
    """`sensitivity` counts vectors that left their place among the neighbours."""
    found = sensitivity_of(project)
    assert (found.task, found.measure) == (Task.EMBEDDING, "other answers")
    assert found.plain.top1_agreement is None
    assert found.layers[0].distance <= 1.1 * found.plain.relative_l2
    assert found.kept == (found.proposed_loss <= 0.008)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("weights: factory", "weights: sample", "the sample model is a classifier"),
        ("data: {", "data: {classes: [a, b], ", "`model.task: embedding` has no classes"),
        (
            "workspaces",
            "gates: {fp16: {top1_drop: 0.1}}\nworkspaces",
            "`gates.fp16.top1_drop`: `model.task: embedding` has no top-1",
        ),
        ("task: embedding", "task: detection", "model.task"),
    ],
)
def test_settings_of_classes_are_refused(write_config: Callable[[str], Path], old: str, new: str, problem: str) -> None:
    """A setting that would have no effect is an error with its place."""
    with pytest.raises(ConfigError, match=problem):
        Project.load(write_config(configuration().replace(old, new)), STAGES)
