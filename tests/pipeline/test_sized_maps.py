"""A segmenter of images of any size goes through the whole pipeline, and its maps are proven at every size."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

import model_artifacts
from model_artifacts.errors import DataError, ExportError
from model_artifacts.records import Graph, Question, Status
from pipeline.cli.main import main
from pipeline.planning.project import Project
from pipeline.records import Outcome
from pipeline.stages import STAGES
from pipeline.stages.build.stage import build_variant
from pipeline.stages.common.model import restore_model
from pipeline.stages.export.stage import make_onnx
from pipeline.stages.source.stage import make_source
from pipeline.stages.validate.stage import validate_variant
from tests.support.segments import configuration, write_images
from tests.support.small_projects import exported, with_data
from tests.support.tasks import FP16

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from model_artifacts.records import ManifestEntry

ENGINE = "tiny/rtx-sm80+/fp16-b1-2-2-height24-32-48-width24-40-64-ws16MiB"
FIXED_ENGINE = "tiny/rtx-sm80+/fp16-b1-ws16MiB"
AXES = "height: {min: 24, opt: 32, max: 48}, width: {min: 24, opt: 40, max: 64}"
CHECKED = [(24, 24), (32, 40), (48, 64), (37, 45), (24, 64), (48, 24)]


def project_of(folder: Path, network: str) -> Project:
    """Return the project of a segmenter of `sized_segmenters`, with images and masks."""
    write_images(folder, 40)
    text = configuration(folder).replace(
        "tests.support.segments:Segmenter", f"tests.support.sized_segmenters:{network}"
    )
    text = re.sub(r" classes: \[.*?\],", "", text)  # one network has others
    text = re.sub(r"profiles: .*", f"profiles: [1, {{batch: {{min: 1, opt: 2, max: 2}}, {AXES}}}]", text)
    file = folder / "pipeline.yaml"
    file.write_text(text.replace("validation: 40", "validation: 24"))
    return Project.load(file, STAGES)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A segmenter whose FP16 file is validated, and whose FP16 engines are built ahead of time."""
    project = project_of(tmp_path_factory.mktemp("maps"), "Resized")
    wanted = {"source": "", "data": "", "export": "", "rounding": "fp", "build": "", "validate": ""}
    for step in project.schedule.steps:
        of_variant = step.stage not in {"build", "validate"} or step.subject in {FP16, ENGINE, FIXED_ENGINE}
        if step.stage in wanted and wanted[step.stage] in step.subject and of_variant:
            assert main([step.stage, step.subject, "--config", str(project.config_file)]) == 0, step
    assert main(["manifest", "tiny", "--config", str(project.config_file)]) == 0
    return project


def entry_of(project: Project, name: str) -> ManifestEntry:
    """Return the manifest's entry of a variant."""
    return next(entry for entry in project.manifest().artifacts if entry.id == name)


def test_maps_have_the_axes_of_their_images(project: Project) -> None:
    """An ONNX file and an engine of the ranges name them alike; an engine of one size has its numbers."""
    for name in (FP16, ENGINE):
        (given,), (maps,) = entry_of(project, name).inputs, entry_of(project, name).outputs
        assert given.shape == ("batch", 3, "height", "width")
        assert maps.shape == ("batch", 3, "height", "width")
    assert entry_of(project, FIXED_ENGINE).outputs[0].shape == (1, 3, 32, 32)
    assert entry_of(project, ENGINE).status is Status.BUILT, "nothing here runs it"


def test_maps_are_judged_at_every_size(project: Project) -> None:
    """Each size has its distance and its mIoU, by masks of that size, in the smallest and in the largest batch."""
    entry = entry_of(project, FP16)
    assert entry.status is Status.DEPLOYABLE, entry.reason
    judged = {check.metric: check for check in entry.checks if " at height " in check.metric}
    assert judged.keys() == {
        f"{metric} at height {height}, width {width} in batches of {batch}"
        for metric in ("relative L2", "drop of an image's mIoU")
        for height, width in CHECKED
        for batch in (1, 32)
    }
    questions = {check.question for metric, check in judged.items() if "mIoU" in metric}
    assert questions == {Question.GOOD_ENOUGH}
    for sized in project.data().sizes:
        assert sized.shapes == ((3, *(size for _, size in sized.sizes)),)


def test_a_loaded_model_gives_maps_of_every_size(project: Project) -> None:
    """They are those of the network, also at sizes that no check has seen; `predict` masks the images' own size."""
    network = restore_model(project)
    with model_artifacts.load(project.paths.root) as model:
        for height, width in [(24, 24), (48, 64), (33, 41), (32, 32)]:
            batch = np.random.default_rng(height).normal(size=(2, 3, height, width)).astype(np.float32)
            with torch.no_grad():
                wanted = network(torch.from_numpy(batch))
            found = model(batch)
            assert found.shape == (2, 3, height, width)
            np.testing.assert_allclose(found, wanted, rtol=0.02, atol=0.02)
        (prediction,) = model.predict(np.zeros((90, 70, 3), dtype=np.uint8))
        assert prediction.mask is not None
        assert prediction.mask.shape == (32, 32)
        assert model.outputs([]).shape == (0, 3, 0, 0)


def copied(project: Project, folder: Path) -> Project:
    """Return a copy of a project."""
    shutil.copytree(project.config_file.parent, folder)
    return Project.load(folder / "pipeline.yaml", STAGES)


def with_constant_size(project: Project, *, then_resized: bool) -> None:
    """Let the FP16 graph resize its maps to 8x8 or 32x32, the sizes of a 32x32 image, as a careless trace would."""
    file = project.paths.onnx(Graph.FP16)
    model = onnx.load(file)
    last = next(node for node in model.graph.node if node.op_type == "Resize")
    sizes = np.array([8, 8] if then_resized else [32, 32], dtype=np.int64)
    added = [numpy_helper.from_array(sizes, "constant_sizes"), numpy_helper.from_array(np.array([2, 3]), "both_axes")]
    model.graph.initializer.extend(added)
    place = list(model.graph.node).index(last)
    shape = [
        helper.make_node("Shape", [last.input[0]], ["all_sizes"], start=0, end=2),
        helper.make_node("Concat", ["all_sizes", "constant_sizes"], ["traced_sizes"], axis=0),
    ]
    if then_resized:
        again = helper.make_node(
            "Resize",
            [last.input[0], "", "", "traced_sizes"],
            ["traced"],
            mode="linear",
            coordinate_transformation_mode="half_pixel",
        )
        last.input[0] = "traced"
        shape.append(again)
    else:
        last.input[3] = "traced_sizes"
        for dim, size in zip(list(model.graph.output[0].type.tensor_type.shape.dim)[2:], (32, 32), strict=True):
            dim.dim_value = size
    for node in reversed(shape):
        model.graph.node.insert(place, node)
    onnx.checker.check_model(model)
    onnx.save(model, file)


def test_a_map_of_the_traced_size_is_rejected(project: Project, tmp_path: Path) -> None:
    """A graph that resizes to the size of its trace is right there, and gives no map of another image."""
    broken = copied(project, tmp_path / "broken")
    with_constant_size(broken, then_resized=False)
    report = validate_variant(broken, broken.plan.variant(FP16))
    assert (report.outcome, report.passed) == (Outcome.FAILED, False)
    assert "at height 24, width 24, has another shape of its output" in report.reason
    assert "(3, 24, 24)" in report.reason
    artifact = build_variant(broken, broken.plan.variant(ENGINE))
    assert artifact.outcome is Outcome.FAILED
    assert "one size of an output that follows the input" in artifact.reason


def test_a_map_by_way_of_the_traced_size_is_rejected(project: Project, tmp_path: Path) -> None:
    """Its shape is right at every size, and its values at the traced one alone."""
    broken = copied(project, tmp_path / "broken")
    with_constant_size(broken, then_resized=True)
    report = validate_variant(broken, broken.plan.variant(FP16))
    assert report.outcome is Outcome.DONE
    failed = [check.metric for check in report.checks if not check.passed]
    assert failed
    assert all(" at height " in metric for metric in failed), "at the network's own size it is right"


@pytest.mark.parametrize(("step", "error"), [(with_data, DataError), (exported, ExportError)], ids=["data", "graph"])
@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("Constant", "the height of the network's maps does not follow the image"),
        ("Turned", "the height of the network's maps does not follow the image"),
        ("Rows", "the classes of the network's maps change with the image"),
    ],
)
def test_maps_of_other_places_than_their_images_are_refused(
    tmp_path: Path, network: str, said: str, step: Callable[[Project], None], error: type[Exception]
) -> None:
    """A map of one size, on its side, or with a class for each row, is refused with the sizes that show it."""
    own = project_of(tmp_path, network)
    make_source(own)
    with pytest.raises(error, match=rf"{said}\n(.*\n)*.*for height 24, width 24"):
        step(own)
    assert not own.paths.onnx(Graph.FP32).exists()


def test_a_coarse_map_has_axes_of_its_own(tmp_path: Path) -> None:
    """A quarter, rounded up, is no axis of the image, so that graph and engine name it after the output."""
    own = project_of(tmp_path, "Coarse")
    make_source(own)
    record = make_onnx(own, restore_model(own), Graph.FP16)
    assert record.outputs[0].shape == ("batch", 3, "out_axis_2", "out_axis_3")
    artifact = build_variant(own, own.plan.variant(ENGINE))
    assert artifact.outcome is Outcome.DONE, artifact.reason
    assert artifact.outputs[0].shape == ("batch", 3, "out_axis_2", "out_axis_3")
