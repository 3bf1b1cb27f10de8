"""Artifacts with another input or output than the network's own: built, judged through the bytes, timed and loaded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import model_artifacts
from model_artifacts import Requirements
from model_artifacts.errors import ResolveError, RunError, UsageError
from model_artifacts.records import Status
from pipeline.records import Outcome
from pipeline.stages.validate.stage import validate_variant
from tests.support.ends import (
    ENGINE,
    FP32_TOP5,
    MODULE,
    PLAIN_FP16,
    PROBABILITIES,
    TOP5,
    broken_in,
    made_in,
    set_constant,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import onnx.onnx_ml_pb2 as pb

    from pipeline.planning.project import Project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A classifier with three kinds of ends."""
    return made_in(tmp_path_factory.mktemp("io"))


def test_other_ends_are_deployable_by_the_same_gates(project: Project) -> None:
    """The checks are those of logits, and so are their questions."""
    entries = {entry.id: entry for entry in project.manifest().artifacts}
    wanted = [check.metric for check in entries[PLAIN_FP16].checks]
    for name in (TOP5, PROBABILITIES, FP32_TOP5):
        assert entries[name].status is Status.DEPLOYABLE, entries[name].reason
        if name != FP32_TOP5:
            assert [check.metric for check in entries[name].checks] == wanted
        assert entries[name].timings


def test_the_manifest_says_what_to_feed_and_what_comes_out(project: Project) -> None:
    """Type, layout, range and colours, in words; an entry with the network's own ends has none of these fields."""
    document = json.loads(project.paths.manifest.read_text())
    entries = {entry["id"]: entry for entry in document["artifacts"]}
    assert entries[TOP5]["io"] == {"input": "uint8", "output": "top", "top": 5}
    assert entries[TOP5]["inputs"] == [
        {
            "name": "pixels",
            "shape": ["batch", 32, 32, 3],
            "dtype": "uint8",
            "layout": "NHWC",
            "meaning": "pixels from 0 to 255 as decoded, resized and cropped, not normalised; "
            "channels: red, green, blue",
        }
    ]
    values, places = entries[TOP5]["outputs"]
    assert (values["name"], values["dtype"], values["shape"]) == ("probabilities", "float32", ["batch", 5])
    assert (places["name"], places["dtype"], places["shape"]) == ("indices", "int32", ["batch", 5])
    assert "io" not in entries[PLAIN_FP16]
    assert "meaning" not in entries[PLAIN_FP16]["inputs"][0]


def test_an_engine_has_the_ends_of_its_graph(project: Project) -> None:
    """TensorRT-RTX takes uint8 pixels, normalises them and chooses classes, built without a GPU."""
    artifact = project.artifact(project.plan.variant(ENGINE))
    assert artifact.outcome is Outcome.DONE
    assert [(spec.name, spec.dtype, spec.shape) for spec in (*artifact.inputs, *artifact.outputs)] == [
        ("pixels", "uint8", ("batch", 32, 32, 3)),
        ("probabilities", "float32", ("batch", 5)),
        ("indices", "int32", ("batch", 5)),
    ]


def test_modules_are_skipped_with_the_reason(project: Project) -> None:
    """Torch-TensorRT compiles the network itself."""
    artifact = project.artifact(project.plan.variant(MODULE))
    assert artifact.outcome is Outcome.SKIPPED
    assert "float32 images" in artifact.reason


def test_predict_gives_the_same_answers(project: Project) -> None:
    """The same images have the same classes by every input and output, with the same scores up to rounding."""
    pixels = list(np.asarray(project.pixels(project.data().validation)[:7]))
    found = {}
    for requirements in (
        Requirements(precision="fp16"),
        Requirements(precision="fp16", input="uint8", output="top5"),
        Requirements(precision="fp16", input="float16", output="probabilities"),
    ):
        with model_artifacts.load(project.paths.root, requirements) as model:
            found[requirements.output] = model.predict(pixels, top=5)
            if requirements.output == "top5":
                outputs = model.outputs(pixels)
                assert {name: (array.dtype.name, array.shape) for name, array in outputs.items()} == {
                    "probabilities": ("float32", (7, 5)),
                    "indices": ("int32", (7, 5)),
                }
                with pytest.raises(UsageError, match=r"(?s)ranks fewer classes.*at most 5"):
                    model.predict(pixels, top=6)
    scores = {name: np.array([[item.score for item in row.top] for row in rows]) for name, rows in found.items()}
    for name, rows in found.items():
        assert [row.index for row in rows] == [row.index for row in found["logits"]]
        assert [row.name for row in rows] == [row.name for row in found["logits"]]
        np.testing.assert_allclose(scores[name], scores["logits"], atol=5e-3)


def test_the_loader_checks_the_artifact_s_own_input(project: Project) -> None:
    """Pixels are taken as they are, and normalised images are refused, with what to do."""
    pixels = np.ascontiguousarray(project.pixels(project.data().validation)[:2])
    with model_artifacts.load(project.paths.root, Requirements(input="uint8", output="top5")) as model:
        assert model(pixels)["indices"].shape == (2, 5)
        for wrong in (pixels.astype(np.float32), pixels.transpose(0, 3, 1, 2)):
            with pytest.raises(RunError, match=r"(?s)uint8 \(batch, 32, 32, 3\).*channels last"):
                model(wrong)


def test_nobody_gets_other_ends_without_asking(project: Project) -> None:
    """A caller who feeds float32 and reads logits gets what it got before, whatever else is faster."""
    resolution = model_artifacts.resolve(project.paths.root)
    assert resolution.entry.io.is_plain
    reasons = {item.id: item.reason for item in resolution.rejected}
    assert reasons[TOP5] == "takes uint8 images, required float32"
    with pytest.raises(ResolveError, match="gives top5, required top3"):
        model_artifacts.resolve(project.paths.root, Requirements(input="uint8", output="top3"))


def _mean(graph: pb.GraphProto) -> None:
    set_constant(graph, "ends/mean", np.array([0.5, 0.41, 0.6], np.float32).reshape(1, -1, 1, 1))


def _std(graph: pb.GraphProto) -> None:
    set_constant(graph, "ends/std", np.array([0.25, 0.3, 0.21], np.float32).reshape(1, -1, 1, 1))


def _swapped(graph: pb.GraphProto) -> None:
    """BGR is read as RGB."""
    graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0], np.int64), "order"))
    cast = next(node for node in graph.node if node.op_type == "Cast" and node.input[0] == "pixels")
    cast.input[0] = "turned"
    graph.node.insert(0, helper.make_node("Gather", ["pixels", "order"], ["turned"], axis=3))


def _planes(graph: pb.GraphProto) -> None:
    """The bytes of NHWC are read as NCHW."""
    graph.initializer.append(numpy_helper.from_array(np.array([0, 3, 32, 32], np.int64), "planes"))
    transpose = next(node for node in graph.node if node.name.startswith("ends/Transpose"))
    transpose.CopyFrom(helper.make_node("Reshape", [transpose.input[0], "planes"], list(transpose.output)))


def _shifted(graph: pb.GraphProto) -> None:
    """Every index is that of the next class."""
    graph.initializer.append(numpy_helper.from_array(np.array(1, np.int64), "one"))
    graph.initializer.append(numpy_helper.from_array(np.array(10, np.int64), "ten"))
    cast = next(node for node in graph.node if node.output[0] == "indices")
    graph.node.extend(
        [
            helper.make_node("Add", ["ends/places", "one"], ["next"]),
            helper.make_node("Mod", ["next", "ten"], ["wrapped"]),
        ]
    )
    cast.input[0] = "wrapped"
    graph.node.append(type(cast).FromString(cast.SerializeToString()))
    graph.node.remove(cast)


def _outside(graph: pb.GraphProto) -> None:
    """One index counts from one."""
    graph.initializer.append(numpy_helper.from_array(np.array(1, np.int64), "one"))
    cast = next(node for node in graph.node if node.output[0] == "indices")
    cast.input[0] = "next"
    graph.node.append(helper.make_node("Add", ["ends/places", "one"], ["next"]))
    graph.node.append(type(cast).FromString(cast.SerializeToString()))
    graph.node.remove(cast)


def _other_row(graph: pb.GraphProto) -> None:
    """The probabilities are those of the next image of the batch."""
    for name, value in (("zero", 0), ("one", 1), ("end", 2**31)):
        graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
    gather = next(node for node in graph.node if node.output[0] == "probabilities")
    gather.output[0] = "right"
    graph.node.extend(
        [
            helper.make_node("Slice", ["right", "one", "end", "zero"], ["later"]),
            helper.make_node("Slice", ["right", "zero", "one", "zero"], ["first"]),
            helper.make_node("Concat", ["later", "first"], ["probabilities"], axis=0),
        ]
    )


def _temperature(graph: pb.GraphProto) -> None:
    """The logits are scaled before the softmax: the ranks stay, and the probabilities are others."""
    graph.initializer.append(numpy_helper.from_array(np.array(1.02, np.float32), "warm"))
    softmax = next(node for node in graph.node if node.output[0] == "ends/probabilities")
    index = [*graph.node].index(softmax)
    softmax.input[0] = "warmed"
    graph.node.insert(index, helper.make_node("Mul", ["ends/logits", "warm"], ["warmed"]))


def _one_class(graph: pb.GraphProto) -> None:
    """One class's logit is too small by 3, so that it loses its rank."""
    values = np.zeros((1, 10), np.float32)
    values[0, 3] = -3
    graph.initializer.append(numpy_helper.from_array(values, "bias"))
    cast = next(node for node in graph.node if node.output[0] == "ends/logits")
    index = [*graph.node].index(cast)
    cast.output[0] = "right"
    graph.node.insert(index + 1, helper.make_node("Add", ["right", "bias"], ["ends/logits"]))


FAULTS: dict[str, Callable[[pb.GraphProto], None]] = {
    "wrong-mean": _mean,
    "wrong-std": _std,
    "swapped-channels": _swapped,
    "bytes-as-planes": _planes,
    "shifted-indices": _shifted,
    "index-outside": _outside,
    "another-row": _other_row,
    "temperature": _temperature,
    "one-class": _one_class,
}


@pytest.mark.parametrize("fault", [*FAULTS])
def test_a_fault_at_an_end_is_not_deployable(project: Project, tmp_path: Path, fault: str) -> None:
    """A wrong mean and a swapped channel show through the bytes, and a wrong index or value in the top 5."""
    broken = broken_in(project, tmp_path / "copy", TOP5, FAULTS[fault])
    report = validate_variant(broken, broken.plan.variant(TOP5))
    assert not report.passed
    failed = {check.metric for check in report.checks if not check.passed}
    if fault == "index-outside":
        assert "indices are not those of different classes" in report.reason
    else:
        assert failed & {"relative L2", "relative L2 at every batch size"}, report.reason


@pytest.mark.parametrize("scale", [1.01, 0.99])
def test_probabilities_that_do_not_sum_to_one_are_rejected(project: Project, tmp_path: Path, scale: float) -> None:
    """The ranks are right, and so are all ratios."""

    def scaled(graph: pb.GraphProto) -> None:
        graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), "scale"))
        softmax = next(node for node in graph.node if node.output[0] == "probabilities")
        softmax.output[0] = "right"
        graph.node.append(helper.make_node("Mul", ["right", "scale"], ["probabilities"]))

    broken = broken_in(project, tmp_path / "copy", PROBABILITIES, scaled)
    report = validate_variant(broken, broken.plan.variant(PROBABILITIES))
    assert "relative L2" in {check.metric for check in report.checks if not check.passed}


def test_the_graph_normalises_exactly_as_the_loader_does(project: Project) -> None:
    """Pixels through the graph are bit for bit the logits of normalised images, on ONNX Runtime."""

    def session(name: str) -> Any:
        artifact = project.artifact(project.plan.variant(name))
        assert artifact.file is not None
        return onnxruntime.InferenceSession(project.file(artifact.file), providers=["CPUExecutionProvider"])

    model = onnx.load(project.paths.graph(project.plan.variant(FP32_TOP5)))
    assert [node.op_type for node in model.graph.node][:5] == ["Cast", "Transpose", "Div", "Sub", "Div"]
    pixels = np.ascontiguousarray(project.pixels(project.data().validation)[:8])
    values, places = session(FP32_TOP5).run(None, {"pixels": pixels})
    reference = np.load(project.file(project.data().reference))[:8].astype(np.float64)
    likely = np.exp(reference - reference.max(axis=1, keepdims=True))
    likely /= likely.sum(axis=1, keepdims=True)
    np.testing.assert_array_equal(places, np.argsort(-reference, axis=1, kind="stable")[:, :5])
    np.testing.assert_allclose(values, np.take_along_axis(likely, places.astype(np.int64), axis=1), rtol=1e-5)
