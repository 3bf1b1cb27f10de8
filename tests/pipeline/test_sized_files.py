"""ONNX files of a segmenter, a detector and of features, for images of any size, go through the whole pipeline."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

import model_artifacts
from model_artifacts.errors import DataError, ExportError
from model_artifacts.records import Graph, Precision, Question, Status, Task
from pipeline.cli.main import main
from pipeline.planning.plan import Arithmetic
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.source.stage import make_source
from pipeline.stages.validate.stage import validate_variant
from tests.support import detectors, segments
from tests.support.sized_detectors import Sized
from tests.support.sized_files import Features, Pair, Skipping, write_onnx
from tests.support.sized_segmenters import Constant
from tests.support.small_projects import exported, project_of, with_data
from tests.support.tasks import FP16, configuration_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

    from model_artifacts.records import ManifestEntry

HEIGHT, WIDTH = "height: {min: 32, opt: 64, max: 100}", "width: {min: 40, opt: 64, max: 80}"
HEIGHTS, WIDTHS = [(32, 64), (100, 64), (67, 64)], [(64, 40), (64, 80), (64, 61)]


class Case(NamedTuple):
    """A task, with what its file's images may vary in."""

    axes: str
    label: str
    checked: list[tuple[int, int]]
    outputs: list[tuple[int | str, ...]]

    @property
    def engine(self) -> str:
        """The name of its engine."""
        return f"tiny/rtx-sm80+/fp16-b1-2-2-{self.label}-ws16MiB"


CASES = {
    "segmentation": Case(HEIGHT, "height32-64-100", HEIGHTS, [("batch", 3, "height", 64)]),
    "detection": Case(WIDTH, "width40-64-80", WIDTHS, [("batch", "boxes_axis_1", 4), ("batch", "scores_axis_1", 2)]),
    "tensors": Case(HEIGHT, "height32-64-100", HEIGHTS, [("batch", "features_axis_1", 16)]),
}


def written(folder: Path, task: str) -> tuple[nn.Module, str]:
    """Write the images and the file of a task, and return its network and its configuration."""
    file = folder / "own.onnx"
    if task == "segmentation":
        segments.write_images(folder, 40)
        network: nn.Module = Skipping().eval()
        write_onnx(network, file, ["maps"], 64, traced=True)
        text = segments.configuration(folder)
    elif task == "detection":
        detectors.write_images(folder, 40)
        sized = Sized()
        sized.load_state_dict(detectors.trained().state_dict())
        network = Pair(sized).eval()
        write_onnx(network, file, ["boxes", "scores"], 64, traced=False)
        text = detectors.configuration(folder) + "gates: {margin: 0.05}\n"  # 24 images cannot show a smaller loss
    else:
        network = Features().eval()
        write_onnx(network, file, ["features"], 64, traced=True)
        text = configuration_of("a:b", Task.TENSORS, "{images: digits, calibration: 8, validation: 24}")
    text = re.sub(r'factory: ".*?", weights: [^,}]*', f'onnx: "{file}"', text)
    text = re.sub(r"resize: \d+, crop: \d+", "resize: 64, crop: 64", text)
    return network, re.sub(r"validation: \d+", "validation: 24", text)


class Made(NamedTuple):
    """A network of torch, and the project of its ONNX file."""

    case: Case
    network: nn.Module
    project: Project


@pytest.fixture(scope="module", params=CASES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A file whose FP16 graph is validated, and whose FP16 engine is built ahead of time."""
    case, folder = CASES[request.param], tmp_path_factory.mktemp(request.param)
    network, text = written(folder, request.param)
    file = folder / "pipeline.yaml"
    file.write_text(re.sub(r"profiles: .*", f"profiles: [{{batch: {{min: 1, opt: 2, max: 2}}, {case.axes}}}]", text))
    project = Project.load(file, STAGES)
    wanted = {"source": "", "data": "", "export": "", "rounding": "fp", "build": "", "validate": ""}
    for step in project.schedule.steps:
        of_variant = step.stage not in {"build", "validate"} or step.subject in {FP16, case.engine}
        if step.stage in wanted and wanted[step.stage] in step.subject and of_variant:
            assert main([step.stage, step.subject, "--config", str(file)]) == 0, step
    assert main(["manifest", "tiny", "--config", str(file)]) == 0
    return Made(case, network, project)


def entry_of(project: Project, name: str) -> ManifestEntry:
    """Return the manifest's entry of a variant."""
    return next(entry for entry in project.manifest().artifacts if entry.id == name)


def test_outputs_have_the_axes_that_they_follow(made: Made) -> None:
    """Graph and engine name them alike, whatever the file calls them."""
    for name in (FP16, made.case.engine):
        entry = entry_of(made.project, name)
        assert [axis.name for axis in entry.inputs[0].ranges] == re.findall(r"(\w+): {", made.case.axes)
        assert [spec.shape for spec in entry.outputs] == made.case.outputs
    assert entry_of(made.project, made.case.engine).status is Status.BUILT, "nothing here runs it"


def test_a_file_is_judged_at_every_size(made: Made) -> None:
    """Each size has the distance that the rounding makes there, and what the task loses."""
    entry = entry_of(made.project, FP16)
    assert entry.status is Status.DEPLOYABLE, entry.reason
    for sizes in made.case.checked:
        for batch in (1, 32):
            where = f" at {shown(sizes, made.case)} in batches of {batch}"
            found = {check.question for check in entry.checks if check.metric.endswith(where)}
            assert found == {Question.FAITHFUL, Question.GOOD_ENOUGH}


def shown(sizes: tuple[int, int], case: Case) -> str:
    """Return a size as the checks name it."""
    return ", ".join(
        f"{axis} {size}" for axis, size in zip(("height", "width"), sizes, strict=True) if axis in case.axes
    )


def test_the_rounding_is_measured_at_every_size(made: Made) -> None:
    """Nothing is in trouble, and FP16 rounds at each size about as much as at the images' own."""
    record = made.project.rounding(Arithmetic(Graph.FP16, Precision.FP16))
    assert (record.trouble, len(record.sizes)) == ("", len(made.case.checked))
    own = record.relative_l2_high
    assert own is not None
    for item in record.sizes:
        assert item.trouble == ""
        assert item.relative_l2_high is not None
        assert 0.2 < item.relative_l2_high / own < 5


def test_a_loaded_file_gives_the_outputs_of_its_network(made: Made) -> None:
    """Also at sizes that no check has seen, and where a size in float16 would be another one: 50 × 1.1 is 54.97."""
    axes = made.case.axes
    with model_artifacts.load(made.project.paths.root) as model:
        for height, width in [(32, 40), (100, 80), (50, 70), (33, 79)]:
            shape = (height if "height" in axes else 64, width if "width" in axes else 64)
            batch = np.random.default_rng(height).normal(size=(2, 3, *shape)).astype(np.float32)
            with torch.no_grad():
                results = made.network(torch.from_numpy(batch))
            found = model(batch)
            pairs = zip(
                [*found.values()] if isinstance(found, dict) else [found],
                results if isinstance(results, tuple) else [results],
                strict=True,
            )
            for got, want in pairs:
                assert got.shape == tuple(want.shape)
                assert np.linalg.norm(got - want.numpy()) < 3e-3 * np.linalg.norm(want.numpy())


@pytest.mark.parametrize("made", ["segmentation"], indirect=True)
def test_a_graph_by_way_of_the_traced_size_is_rejected(made: Made, tmp_path: Path) -> None:
    """An FP16 graph whose maps pass the size of its trace is right there, and at no other size."""
    shutil.copytree(made.project.config_file.parent, tmp_path / "broken")
    broken = Project.load(tmp_path / "broken/pipeline.yaml", STAGES)
    model = onnx.load(broken.paths.onnx(Graph.FP16))
    last = [node for node in model.graph.node if node.op_type == "Resize"][-1]
    place = list(model.graph.node).index(last)
    model.graph.initializer.append(numpy_helper.from_array(np.array([64, 64]), "traced_size"))
    nodes = [
        helper.make_node("Shape", [last.input[0]], ["batch_and_classes"], start=0, end=2),
        helper.make_node("Concat", ["batch_and_classes", "traced_size"], ["traced_sizes"], axis=0),
        helper.make_node("Resize", [last.input[0], "", "", "traced_sizes"], ["traced"], mode="linear"),
    ]
    last.input[0] = "traced"
    for node in reversed(nodes):
        model.graph.node.insert(place, node)
    onnx.checker.check_model(model)
    onnx.save(model, broken.paths.onnx(Graph.FP16))
    report = validate_variant(broken, broken.plan.variant(FP16))
    failed = [check.metric for check in report.checks if not check.passed]
    for sizes in made.case.checked:
        assert any(f" at {shown(sizes, made.case)} " in metric for metric in failed)
    assert all(" at height " in metric for metric in failed), "at the images' own size it is right"


@pytest.mark.parametrize(("step", "error"), [(with_data, DataError), (exported, ExportError)], ids=["data", "graph"])
def test_a_file_whose_maps_have_the_traced_size_is_refused(
    tmp_path: Path, step: Callable[[Project], None], error: type[Exception]
) -> None:
    """The file is its own reference, and shows that its maps follow no image. Nothing is exported of it."""
    _, text = written(tmp_path, "segmentation")
    write_onnx(Constant().eval(), tmp_path / "own.onnx", ["maps"], 64, traced=True)
    own = project_of(tmp_path, re.sub(r"profiles: .*", f"profiles: [{{batch: 2, {HEIGHT}}}]", text))
    make_source(own)
    with pytest.raises(error, match=r"the height of the network's maps does not follow the image\n(.*\n)*.*height 32"):
        step(own)
    assert not own.paths.onnx(Graph.FP32).exists()
