"""An ONNX file becomes the model's source, or is refused by what running it shows."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import helper

from model_artifacts.errors import SourceError
from model_artifacts.records import WeightsOrigin
from pipeline.planning.freshness import is_current
from pipeline.planning.project import Project
from pipeline.planning.steps import Step
from pipeline.stages import STAGES
from pipeline.stages.source.stage import make_source
from tests.support.onnx_models import CLASSES, SIZE, configuration, make, project_of, weights_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    import numpy.typing as npt

    Write = Callable[[str], Path]

SOURCE = Step("source", "tiny")


def test_the_record_has_the_files_facts(tmp_path: Path, write_config: Write) -> None:
    """Names that not every runtime takes are changed; types and shapes are those of the file."""
    project = project_of(make(opset=13), tmp_path, write_config)
    record = make_source(project)
    assert (record.origin, record.origin_detail, record.factory) == (WeightsOrigin.ONNX, "own.onnx", "")
    assert (record.inputs[0].name, record.inputs[0].shape) == ("pixels_in_0", ("batch", 3, SIZE, SIZE))
    assert (record.outputs[0].name, record.outputs[0].shape, record.classes) == (
        "scores_0",
        ("batch", CLASSES),
        CLASSES,
    )
    assert record.onnx is not None
    assert (record.onnx.opset, record.onnx.batch) == (13, None)
    assert record.parameters == 8 * 27 + 4 * 8 + 9 * CLASSES
    assert is_current(project, SOURCE)


@pytest.mark.parametrize("file", ["own.onnx", "own.data"])
def test_every_byte_is_in_the_key(tmp_path: Path, write_config: Write, file: str) -> None:
    """A change of the file, or of the data beside it, makes the source stale."""
    onnx.save(make(), tmp_path / "own.onnx", save_as_external_data=True, location="own.data", size_threshold=0)
    project = Project.load(write_config(configuration(tmp_path / "own.onnx")), STAGES)
    record = make_source(project)
    assert record.origin_detail == "own.onnx with own.data"
    assert is_current(project, SOURCE)
    data = bytearray((tmp_path / file).read_bytes())
    data[-1] ^= 1
    (tmp_path / file).write_bytes(data)
    assert not is_current(Project.load(tmp_path / "pipeline.yaml", STAGES), SOURCE)


def test_a_softmax_is_cut_and_said(tmp_path: Path, write_config: Write, caplog: pytest.LogCaptureFixture) -> None:
    """A classifier's artifacts give logits; other tasks take what the file gives."""
    caplog.set_level(logging.INFO)
    record = make_source(project_of(make(softmax=True), tmp_path, write_config))
    assert record.origin_detail == "own.onnx, in front of its softmax"
    assert "ends in a softmax" in caplog.text
    tensors = make_source(project_of(make(softmax=True), tmp_path, write_config, task="tensors"))
    assert tensors.origin_detail == "own.onnx"


def test_a_softmax_over_something_else_is_refused(tmp_path: Path, write_config: Write) -> None:
    """Its logits would give other scores than the file: this one is over each half of the values."""
    tail = [
        helper.make_node("Reshape", ["logits", "halves"], ["apart"]),
        helper.make_node("Softmax", ["apart"], ["shares"], axis=2),
        helper.make_node("Flatten", ["shares"], ["scores:0"]),
    ]
    extra: list[tuple[str, npt.NDArray[Any]]] = [
        ("halves", np.array([-1, 2, 3], np.int64)),
        ("matrix", weights_of(8, 6)),
        ("bias", np.zeros(6, np.float32)),
    ]
    model = make(tail=tail, extra=extra)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("scores:0", onnx.TensorProto.FLOAT, ["batch", 6]))
    with pytest.raises(SourceError, match=r"(?s)a softmax that is not over the classes.*apart \(relative L2\)"):
        make_source(project_of(model, tmp_path, write_config))


def test_a_dynamic_batch_that_is_none_is_found(
    tmp_path: Path, write_config: Write, caplog: pytest.LogCaptureFixture
) -> None:
    """Many exporters write a name for an axis that a constant shape has fixed."""
    record = make_source(project_of(make(flat=[1, 8]), tmp_path, write_config))
    assert record.onnx is not None
    assert record.onnx.batch == 1
    assert "has a dynamic batch, but takes one image alone" in caplog.text


def test_images_that_change_each_other_are_seen(tmp_path: Path, write_config: Write) -> None:
    """A mean over the batch gives other outputs beside other images: the file is run one image at a time."""
    tail = [
        helper.make_node("ReduceMean", ["logits"], ["mean_of_all"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["logits", "mean_of_all"], ["apart"]),
        helper.make_node("Add", ["apart", "bias"], ["scores:0"]),
    ]
    record = make_source(project_of(make(tail=tail), tmp_path, write_config))
    assert record.onnx is not None
    assert record.onnx.batch == 1


def test_outputs_of_nothing_are_no_difference(tmp_path: Path, write_config: Write) -> None:
    """A detector's probabilities on images that show nothing are the rounding of 1, beside any other image."""
    tail = [
        helper.make_node("Mul", ["logits", "faint"], ["low"]),
        helper.make_node("Sub", ["low", "far"], ["lower"]),
        helper.make_node("Sigmoid", ["lower"], ["scores:0"]),
    ]
    extra = [("faint", np.array(0.1, np.float32)), ("far", np.array(16, np.float32))]
    record = make_source(project_of(make(tail=tail, extra=extra), tmp_path, write_config, task="tensors"))
    assert record.onnx is not None
    assert record.onnx.batch is None


def test_probabilities_are_refused(tmp_path: Path, write_config: Write) -> None:
    """A sigmoid at the end of a classifier is no logit."""
    project = project_of(make(tail=[helper.make_node("Sigmoid", ["logits"], ["scores:0"])]), tmp_path, write_config)
    with pytest.raises(SourceError, match=r"(?s)instead of logits.*extract_model"):
        make_source(project)
    assert not project.paths.source.exists()
    assert not project.paths.source_onnx.exists()


def test_whole_numbers_are_refused(tmp_path: Path, write_config: Write) -> None:
    """The number of a class is no logit."""
    model = make(tail=[helper.make_node("ArgMax", ["logits"], ["scores:0"], axis=1)])
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("scores:0", onnx.TensorProto.INT64, ["batch", 1]))
    with pytest.raises(SourceError, match=r"(?s)does not return logits.*int64"):
        make_source(project_of(model, tmp_path, write_config))


def test_a_graph_that_is_not_valid_is_refused(tmp_path: Path, write_config: Write) -> None:
    """ONNX's checker names the fault."""
    model = make()
    model.graph.node[1].input[0] = "nowhere"
    with pytest.raises(SourceError, match=r"(?s)is not valid.*nowhere"):
        make_source(project_of(model, tmp_path, write_config))


def test_a_graph_that_cannot_run_is_refused(tmp_path: Path, write_config: Write) -> None:
    """A product of matrices that do not fit passes the checker alone."""
    model = make(extra=[("matrix", np.ones((9, CLASSES), np.float32))])
    with pytest.raises(SourceError, match="last"):
        make_source(project_of(model, tmp_path, write_config))
