"""Faults that have shipped elsewhere, seeded one at a time: the gate that should reject each does; good builds pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from model_artifacts.host.hashes import describe_file
from model_artifacts.host.record_files import read_record, write_record
from model_artifacts.records import Graph
from pipeline.planning.project import Project
from pipeline.records import Artifact, OnnxRecord
from pipeline.stages import STAGES
from pipeline.stages.common.model import restore_model
from pipeline.stages.data.stage import reference_logits
from pipeline.stages.export.stage import make_onnx
from pipeline.stages.validate.stage import validate_variant
from tests.support.tiny_model import make

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

    from pipeline.records import AccuracyReport

    Edit = Callable[[onnx.ModelProto], None]

VARIANT = "tiny/cpu-x86_64/onnxruntime-fp16"


def validated(copied: Path, edit: Edit) -> AccuracyReport:
    """Edit the fp16 graph, keep the records true, and return its validation, as of a faulty build."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    file = project.paths.onnx(Graph.FP16)
    model = onnx.load(file)
    edit(model)
    onnx.checker.check_model(model)
    onnx.save(model, file)
    record = read_record(project.paths.onnx_record(Graph.FP16), OnnxRecord)
    changed = record.model_copy(update={"file": describe_file(file, project.paths.root)})
    write_record(project.paths.onnx_record(Graph.FP16), changed)
    variant = project.plan.variant(VARIANT)
    artifact = read_record(project.paths.artifact(variant), Artifact)
    write_record(project.paths.artifact(variant), artifact.model_copy(update={"file": changed.file}))
    return validate_variant(project, variant)


def constant(model: onnx.ModelProto, name: str, value: npt.NDArray[np.generic]) -> str:
    """Add an initializer and return its name."""
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def before_input(model: onnx.ModelProto, *nodes: onnx.NodeProto) -> None:
    """Put nodes in front: the first takes `image`, the last gives `image_changed`, which everything else reads now."""
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == "image":
                node.input[index] = "image_changed"
    for index, node in enumerate(nodes):
        model.graph.node.insert(index, node)


def after_output(model: onnx.ModelProto, *nodes: onnx.NodeProto) -> None:
    """Put nodes behind: they take `logits_before` (and `image`), and the last gives `logits`."""
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name == "logits":
                node.output[index] = "logits_before"
    model.graph.node.extend(nodes)


def scaled(model: onnx.ModelProto, *, rank: int, factor: float) -> None:
    """Multiply the first weight of this rank."""
    tensor = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == rank)
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((values * factor).astype(values.dtype), tensor.name))


def wrong_mean(model: onnx.ModelProto) -> None:
    """Images come in with ImageNet's mean and std although the model was fitted with others."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    scale, shift = 0.25 / std, (0.5 - mean) / std  # (x * 0.25 + 0.5 - mean) / std
    shape = (1, 3, 1, 1)
    scale_name = constant(model, "fault_scale", scale.reshape(shape).astype(np.float32))
    shift_name = constant(model, "fault_shift", shift.reshape(shape).astype(np.float32))
    before_input(
        model,
        helper.make_node("Mul", ["image", scale_name], ["image_scaled"]),
        helper.make_node("Add", ["image_scaled", shift_name], ["image_changed"]),
    )


def swapped_channels(model: onnx.ModelProto) -> None:
    """BGR instead of RGB."""
    order = constant(model, "fault_order", np.array([2, 1, 0]))
    before_input(model, helper.make_node("Gather", ["image", order], ["image_changed"], axis=1))


def colour(copied: Path) -> None:
    """Give the grey digits a colour, so that the channels differ, and have the reference see them so."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    data = project.data()
    pixels = (project.pixels(data.validation) * np.array([1.0, 0.7, 0.4])).astype(np.uint8)
    np.save(project.paths.validation, pixels)
    np.save(project.paths.reference, reference_logits(restore_model(project), pixels, data.preprocessing))
    files = {
        name: describe_file(path, project.paths.root)
        for name, path in (("validation", project.paths.validation), ("reference", project.paths.reference))
    }
    write_record(project.paths.data, data.model_copy(update=files))


def lost_bias(model: onnx.ModelProto) -> None:
    """The folded batch-norm's bias did not make it into the graph."""
    scaled(model, rank=1, factor=0.0)


def mixed_rows(model: onnx.ModelProto) -> None:
    """In batches, the first row gets a fiftieth of the last one: too little for all samples together to show."""
    first = constant(model, "fault_first", np.array([0]))
    last = constant(model, "fault_last", np.array([-1]))
    share = constant(model, "fault_share", np.array([0.02], np.float32))
    rest = constant(model, "fault_rest", np.array([1]))
    end = constant(model, "fault_end", np.array([2**31 - 1]))
    axis = constant(model, "fault_axis", np.array([0]))
    after_output(
        model,
        helper.make_node("Gather", ["logits_before", first], ["row_first"], axis=0),
        helper.make_node("Gather", ["logits_before", last], ["row_last"], axis=0),
        helper.make_node("Slice", ["logits_before", rest, end, axis], ["rows_rest"]),
        helper.make_node("Mul", ["row_last", share], ["row_share"]),
        helper.make_node("Add", ["row_first", "row_share"], ["row_spoilt"]),
        helper.make_node("Concat", ["row_spoilt", "rows_rest"], ["logits"], axis=0),
    )


def nan_at_large_inputs(model: onnx.ModelProto) -> None:
    """An activation overflows where an image is brighter than any of the validation set."""
    limit = constant(model, "fault_limit", np.array(0.999 * (1 - 0.5) / 0.25, np.float32))
    zero = constant(model, "fault_zero", np.array(0, np.float32))
    nan = constant(model, "fault_nan", np.array(np.nan, np.float32))
    after_output(
        model,
        helper.make_node("ReduceMean", ["image"], ["brightness"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Greater", ["brightness", limit], ["bright"]),
        helper.make_node("Where", ["bright", nan, zero], ["poison"]),
        helper.make_node("Unsqueeze", ["poison", constant(model, "fault_one", np.array([1]))], ["poison_row"]),
        helper.make_node("Add", ["logits_before", "poison_row"], ["logits"]),
    )


class Fault(NamedTuple):
    """A fault, and the metric that must reject it."""

    edit: Edit
    metric: str


FAULTS = {
    "wrong mean and std": Fault(wrong_mean, "relative L2"),
    "channels swapped": Fault(swapped_channels, "relative L2"),
    "one weight times 8": Fault(lambda model: scaled(model, rank=4, factor=8), "relative L2"),
    "a bias lost": Fault(lost_bias, "relative L2"),
    "rows mixed": Fault(mixed_rows, "row beside other rows, relative L2"),
    "NaN at large inputs": Fault(nan_at_large_inputs, "finite outputs of extreme images"),
}


@pytest.mark.part(2)
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_rejected_by_the_gate_that_should(copied: Path, name: str) -> None:
    """The report rejects it, and names the metric, the value, the bound and the worst sample."""
    fault = FAULTS[name]
    colour(copied)
    report = validated(copied, fault.edit)
    assert not report.passed
    assert fault.metric in [check.metric for check in report.checks if not check.passed]
    assert f"{fault.metric} " in report.reason
    assert "gate " in report.reason
    assert "worst sample: " in report.reason


def test_what_hides_from_the_usual_metrics_is_found_by_its_own(copied: Path) -> None:
    """Over all samples it keeps every bound: without the check of extreme images it would be deployed."""
    report = validated(copied, FAULTS["NaN at large inputs"].edit)
    usual = {"finite outputs", "relative L2", "labelled top-1 drop"}
    assert usual <= {check.metric for check in report.checks if check.passed}


def test_coloured_digits_are_no_fault(copied: Path) -> None:
    """The data and graph of the seeded faults pass without a fault."""
    colour(copied)
    assert validated(copied, lambda _: None).passed


def test_an_fp16_graph_left_in_fp32_is_rejected(copied: Path) -> None:
    """A graph in FP32 is rejected as fp16, although its numbers are better."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    wide = onnx.load(project.paths.onnx(Graph.FP32))
    report = validated(copied, lambda model: model.CopyFrom(wide))
    failed = [check.metric for check in report.checks if not check.passed]
    assert failed == ["relative L2 that its type must show", "precision in the graph"]
    assert "precision in the graph 0.0%, beside 3 layers in fp32, gate ≥ 95% fp16" in report.reason


def test_an_engine_of_older_weights_is_rejected(copied: Path) -> None:
    """A build of other weights than the reference's does not pass."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    model = restore_model(project)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    older = project.paths.onnx(Graph.FP16).read_bytes()
    make_onnx(project, model, Graph.FP16)
    changed = onnx.load(project.paths.onnx(Graph.FP16))
    project.paths.onnx(Graph.FP16).write_bytes(older)
    report = validated(copied, lambda graph: graph.CopyFrom(changed))
    assert "relative L2" in [check.metric for check in report.checks if not check.passed]


@pytest.mark.part(2)
@pytest.mark.parametrize("seed", range(10))
def test_good_builds_raise_no_alarm(copied: Path, seed: int) -> None:
    """Ten networks of other weights, cast to fp16 and exported as always, pass all that a validation looks at."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    torch.manual_seed(seed)
    model = make().eval()
    data = project.data()
    reference = reference_logits(model, project.pixels(data.validation), data.preprocessing)
    np.save(project.paths.reference, reference)
    np.save(project.paths.labels, reference.argmax(axis=1))  # which it gets right, all of them
    exported = onnx.load(project.file(make_onnx(project, model, Graph.FP16).file))
    report = validated(copied, lambda graph: graph.CopyFrom(exported))
    assert report.reason == ""
    assert {"labelled top-1 drop", "precision in the graph", "row beside other rows, relative L2"} <= {
        check.metric for check in report.checks
    }
