"""A detector goes through the whole pipeline: judged by its boxes, and loaded as boxes with the names of classes."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import model_artifacts
from model_artifacts.errors import ConfigError, SourceError, UsageError
from model_artifacts.records import Graph, Question, Status
from pipeline.cli.main import main
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.release.texts import model_card
from pipeline.stages.source.stage import make_source
from pipeline.stages.validate.stage import validate_variant
from tests.support.detectors import BOXES, CLASSES, configuration, trained, write_images
from tests.support.tasks import ENGINE, FP16, FP32, made_in, sensitivity_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.records import AccuracyReport


@pytest.fixture(scope="module")
def trained_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the images, the labels and the weights of a detector."""
    folder = tmp_path_factory.mktemp("detector")
    write_images(folder, 120)
    torch.save(trained().state_dict(), folder / "w.pth")
    return folder


@pytest.fixture(scope="module")
def project(trained_in: Path) -> Project:
    """A detector with labels, whose ONNX files are validated, and whose FP16 engine is built ahead of time."""
    return made_in(trained_in, configuration(trained_in))


def made_elsewhere(folder: Path, source: Path, text: str) -> Project:
    """Return a project of another configuration of the same images and weights, in a folder of its own."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("artifacts", "pipeline.yaml"), dirs_exist_ok=True)
    return made_in(folder, text)


def judged(project: Project, folder: Path, change: Callable[[onnx.ModelProto], None]) -> AccuracyReport:
    """Return the verdict on the FP16 graph after a change: a fault."""
    shutil.copytree(project.config_file.parent, folder)
    broken = Project.load(folder / "pipeline.yaml", STAGES)
    path = broken.file(broken.artifact(broken.plan.variant(FP16)).files[0])
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    return validate_variant(broken, broken.plan.variant(FP16))


def test_a_detector_is_judged_by_its_boxes(project: Project) -> None:
    """MAP against the labels judges; each output is faithful by its own bounds."""
    for name in (FP16, FP32):
        report = project.accuracy(project.plan.variant(name))
        assert report.passed, report.reason
        assert report.loss is not None
        assert report.loss.samples == 60
        metrics = {check.metric: check.question for check in report.checks}
        assert metrics["drop of an image's mAP"] is Question.GOOD_ENOUGH
        assert metrics["mAP drop over all images"] is Question.GOOD_ENOUGH
        assert {"boxes: relative L2", "scores: relative L2", "reference: detections", "reference: mAP"} <= {*metrics}
        assert [item.output for item in report.accuracies] == ["boxes", "scores"]
        assert report.accuracy is not None
        score, half = report.accuracy.scores
        assert (score.metric, half.metric) == ("mAP", "mAP at IoU 0.5")
        assert score.reference is not None
        assert 0.5 < score.value < half.value <= 1
        assert abs(score.value - score.reference) < 0.01


def test_manifest_and_records_have_the_decoding(project: Project) -> None:
    """The settings travel with the artifacts, and the labels are named by COCO's categories."""
    manifest = project.manifest()
    assert manifest.model is not None
    assert manifest.model.decoding == project.config.model.decoding
    assert manifest.model.class_names == CLASSES
    entries = {entry.id: entry for entry in manifest.artifacts}
    assert entries[ENGINE].status is Status.BUILT
    assert entries[FP16].status is Status.DEPLOYABLE
    assert {spec.name: spec.shape[1:] for spec in entries[ENGINE].outputs} == {
        "boxes": (BOXES, 4),
        "scores": (BOXES, 2),
    }
    data = project.data()
    assert data.labels is not None
    assert np.load(project.file(data.labels)).shape[0] == 60


def test_predict_gives_boxes_in_pixels_of_the_picture(project: Project, trained_in: Path) -> None:
    """Each box lies where its shape lies in the picture, whatever its size; `top` limits their number."""
    file = trained_in / "images" / "part" / "3.png"
    large = Image.open(file).resize((160, 128), Image.Resampling.NEAREST)
    with model_artifacts.load(project.paths.root) as model:
        one, other, fewer = (*model.predict([file, large]), *model.predict(file, top=1))
    assert one.boxes
    assert len(fewer.boxes) == 1
    assert fewer.boxes[0] == one.boxes[0]
    assert one.name == one.boxes[0].name
    assert one.name in CLASSES
    for small, big in zip(one.boxes, other.boxes, strict=False):
        assert small.name == big.name
        assert np.allclose(np.array(big.box), 2 * np.array(small.box), atol=4)


def test_layers_are_ranked_by_their_outputs_and_judged_by_boxes(project: Project) -> None:
    """`sensitivity` needs no labels: boxes that are no longer found are lost."""
    found = sensitivity_of(project)
    assert found.layers[0].distance > found.layers[-1].distance > 0
    assert found.proposed_loss <= found.plain_loss
    assert found.kept == (found.proposed_loss <= 0.008)
    assert found.measure == "mAP drop of an image"


def test_report_card_and_table_say_map(project: Project) -> None:
    """Everything that people read has the mAP."""
    assert "mAP" in project.paths.report.read_text()
    card = model_card("tiny", project.manifest(), None)
    assert "(detection of 2 classes: square, circle)" in card
    assert "| mAP |" in card
    assert "the FP32 network has mAP" in card


def _shift_boxes(model: onnx.ModelProto) -> None:
    """Move all boxes by 4 pixels."""
    _add(model, "boxes", np.array([4, 0, 0, 0], np.float32))


def _exchange_classes(model: onnx.ModelProto) -> None:
    """Give the first class the logits of the second."""
    _add(model, "scores", np.array([[0.0, 1.0]], np.float32), exchanged=True)


def _add(model: onnx.ModelProto, name: str, values: np.typing.NDArray[np.float32], *, exchanged: bool = False) -> None:
    last = next(node for node in model.graph.node if name in node.output)
    last.output[[*last.output].index(name)] = "right"
    if exchanged:
        indices = onnx.numpy_helper.from_array(np.array([1, 0]), "places")
        model.graph.initializer.append(indices)
        model.graph.node.append(onnx.helper.make_node("Gather", ["right", "places"], [name], axis=2))
        return
    model.graph.initializer.append(onnx.numpy_helper.from_array(values, "values"))
    model.graph.node.append(onnx.helper.make_node("Add", ["right", "values"], [name]))


@pytest.mark.parametrize(
    ("change", "output"),
    [pytest.param(_shift_boxes, "boxes", id="boxes"), pytest.param(_exchange_classes, "scores", id="classes")],
)
def test_a_fault_of_one_output_is_found_by_both_questions(
    project: Project, tmp_path: Path, change: Callable[[onnx.ModelProto], None], output: str
) -> None:
    """The reason names the output, and the mAP drops."""
    report = judged(project, tmp_path / "copy", change)
    failed = {check.metric for check in report.checks if not check.passed}
    assert f"{output}: relative L2" in failed
    assert {"drop of an image's mAP", "mAP drop over all images"} <= failed
    assert report.reason.startswith("not faithful")
    assert report.loss is not None
    assert report.loss.drop > 0.1


def test_without_labels_the_references_boxes_are_the_truth(trained_in: Path, tmp_path: Path) -> None:
    """A network with one map of both is decoded, too."""
    decoding = "decoding: {format: cxcywh, score_threshold: 0.1}"
    text = configuration(trained_in, "OneMap", decoding, labels=False)
    project = made_elsewhere(tmp_path / "map", trained_in, text)
    report = project.accuracy(project.plan.variant(FP16))
    assert report.passed, report.reason
    assert report.accuracy is not None
    assert [score.metric for score in report.accuracy.scores] == ["mAP against FP32", "mAP against FP32 at IoU 0.5"]
    assert report.accuracy.scores[0].value > 0.99
    assert report.accuracy.scores[0].reference is None
    with model_artifacts.load(project.paths.root) as model:
        (found,) = model.predict(trained_in / "images" / "part" / "3.png")
    assert {box.name for box in found.boxes} <= {"0", "1"}
    assert found.boxes


def test_a_function_of_the_users_own_decodes(trained_in: Path, tmp_path: Path) -> None:
    """It judges here, and `predict` refuses, because no artifact holds it."""
    own = "postprocess: 'tests.support.detectors:postprocess'"
    project = made_elsewhere(tmp_path / "own", trained_in, configuration(trained_in, decoding=own))
    report = project.accuracy(project.plan.variant(FP16))
    assert report.passed, report.reason
    assert report.accuracy is not None
    assert report.accuracy.scores[0].value > 0.5
    with (
        model_artifacts.load(project.paths.root) as model,
        pytest.raises(
            UsageError, match=r"(?s)no code of yours.*tests.support.detectors:postprocess.*outputs\(images\)"
        ),
    ):
        model.predict(trained_in / "images" / "part" / "3.png")


def test_a_reference_that_is_sure_of_nothing_deserves_nothing(trained_in: Path, tmp_path: Path) -> None:
    """Without any detection there is nothing to lose, so that no artifact may be deployed."""
    project = made_elsewhere(tmp_path / "silent", trained_in, configuration(trained_in, "Silent"))
    report = project.accuracy(project.plan.variant(FP32))
    assert not report.passed
    assert "the reference is not worth a comparison" in report.reason
    assert "detections 0 in 0 of 60 images" in report.reason


def test_labels_of_other_images_are_found(project: Project, tmp_path: Path) -> None:
    """With the boxes of other images the reference is no better than with shuffled ones."""
    folder = tmp_path / "copy"
    shutil.copytree(project.config_file.parent, folder)
    broken = Project.load(folder / "pipeline.yaml", STAGES)
    labels = broken.data().labels
    assert labels is not None
    truth = np.load(broken.file(labels))
    np.save(broken.file(labels), np.roll(truth, 7, axis=0))
    report = validate_variant(broken, broken.plan.variant(FP32))
    assert "reference: mAP" in {check.metric for check in report.checks if not check.passed}


@pytest.mark.parametrize(
    ("decoding", "problem"),
    [
        ("{boxes: scores, scores: boxes}", r"(?s)does not suit.*scores \(batch, boxes, 4\).*boxes \(batch, 64, 4\)"),
        ("{boxes: where, scores: scores}", r"(?s)does not suit.*where \(batch, boxes, 4\)"),
        ("{}", r"(?s)does not suit.*one output \(batch, 4 \+ classes, boxes\)"),
    ],
    ids=["exchanged", "unknown", "one map"],
)
def test_a_decoding_of_other_outputs_stops_the_data(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str], decoding: str, problem: str
) -> None:
    """The error has the outputs that there are."""
    folder = tmp_path / "copy"
    shutil.copytree(project.config_file.parent, folder)
    text = configuration(project.config_file.parent, decoding=f"decoding: {decoding}")
    (folder / "pipeline.yaml").write_text(text)
    assert main(["data", "tiny", "--config", str(folder / "pipeline.yaml")]) != 0
    assert re.search(problem, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("decoding: {", "threshold: 0.3, decoding: {", r"\d+:\d+: `model.threshold` is for"),
        ("task: detection", "task: tensors", r"\d+:\d+: `model.decoding` is for `task: detection`"),
        ("activation: sigmoid", "activation: tanh", r"\d+:\d+: model.decoding.activation: expected 'none'"),
        ("scores: scores, ", "", r"\d+:\d+: model.decoding: expected `boxes` and `scores`, or neither"),
        ("format: cxcywh", "iou_threshold: 0", r"\d+:\d+: model.decoding.iou_threshold: expected a number above 0"),
        ("decoding: {", "postprocess: 'a:b', decoding: {", r"\d+:\d+: `model.postprocess` decodes.*remove one of them"),
        ("annotations.json", "classes", None),
    ],
    ids=["threshold", "task", "activation", "one of both", "overlap", "two", "labels"],
)
def test_wrong_settings_have_their_place(
    trained_in: Path, tmp_path: Path, old: str, new: str, problem: str | None
) -> None:
    """Each is an error with line and column."""
    text = configuration(trained_in).replace(old, new)
    if problem is None:
        text = configuration(trained_in).replace(str(trained_in / old), new)
        problem = r"\d+:\d+: `data.labels`: `task: detection` needs the path of COCO's JSON file, got classes"
    (tmp_path / "pipeline.yaml").write_text(text)
    with pytest.raises(ConfigError, match=problem):
        Project.load(tmp_path / "pipeline.yaml", STAGES)


def test_a_detector_without_a_decoding_is_refused(trained_in: Path, tmp_path: Path) -> None:
    """The message has an example."""
    (tmp_path / "pipeline.yaml").write_text(configuration(trained_in, decoding="threshold: 0.5"))
    with pytest.raises(ConfigError, match=r"\d+:\d+: `model.task: detection` needs `model.decoding`.*such as \{boxes"):
        Project.load(tmp_path / "pipeline.yaml", STAGES)


def test_an_onnx_files_own_names_are_those_of_its_classes(
    project: Project, trained_in: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As exporters of YOLO write them; a decoding that gives another number of classes is refused."""
    model = onnx.load(project.paths.onnx(Graph.FP32))
    onnx.helper.set_model_props(model, {"names": str(dict(enumerate(CLASSES)))})
    onnx.save(model, tmp_path / "net.onnx")
    torch_model = f'factory: "tests.support.detectors:Detector", weights: {trained_in / "w.pth"}'
    text = configuration(trained_in).replace(torch_model, f"onnx: {tmp_path / 'net.onnx'}")
    file = tmp_path / "pipeline.yaml"
    file.write_text(text)
    for stage in ("source", "data"):
        assert main([stage, "tiny", "--config", str(file)]) == 0
    assert Project.load(file, STAGES).data().class_names == CLASSES
    file.write_text(text.replace("activation: sigmoid", "activation: softmax"))
    assert main(["data", "tiny", "--config", str(file)]) != 0
    assert re.search(r"(?s)other classes than the ONNX file names.*2: square, circle", capsys.readouterr().err)


def test_a_graph_that_suppresses_boxes_itself_is_refused(tmp_path: Path) -> None:
    """The rows of an in-graph NonMaxSuppression are exchanged by rounding; the message says where to cut."""
    from onnx import TensorProto, helper  # noqa: PLC0415 - this test alone

    node = helper.make_node("NonMaxSuppression", ["boxes", "scores"], ["kept"], name="suppress")
    ends = [
        helper.make_tensor_value_info(*end)
        for end in (("image", TensorProto.FLOAT, ["batch", 3, 64, 64]), ("kept", TensorProto.INT64, ["found", 3]))
    ]
    values = [
        onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name)
        for name, shape in (("boxes", (1, 8, 4)), ("scores", (1, 2, 8)))
    ]
    graph = helper.make_graph([node], "graph", ends[:1], ends[1:], values)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "net.onnx")
    text = configuration(tmp_path, labels=False).replace(
        f'factory: "tests.support.detectors:Detector", weights: {tmp_path / "w.pth"}', f"onnx: {tmp_path / 'net.onnx'}"
    )
    (tmp_path / "pipeline.yaml").write_text(text)
    with pytest.raises(
        SourceError, match=r"(?s)suppresses overlapping boxes itself.*NonMaxSuppression 'suppress'.*cut"
    ):
        make_source(Project.load(tmp_path / "pipeline.yaml", STAGES))
