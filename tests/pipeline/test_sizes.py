"""A network for images of any size goes through the whole pipeline, and is proven at the ends of every axis."""

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
from model_artifacts.errors import ConfigError, DataError, ExportError, RunError
from model_artifacts.records import Graph, Status, TensorSpec
from pipeline.cli.main import main
from pipeline.planning.freshness import freshness_of
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.build.stage import build_variant
from pipeline.stages.common.model import restore_model
from pipeline.stages.export.stage import make_onnx
from pipeline.stages.source.stage import make_source
from pipeline.stages.validate.stage import validate_variant
from tests.support.small_projects import exported, project_of, with_data
from tests.support.tasks import FP16, FP32

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from model_artifacts.records import ManifestEntry

SIZES = "height24-32-48-width24-40-64"
ENGINE = f"tiny/rtx-sm80+/fp16-b1-2-4-{SIZES}-ws16MiB"
FIXED_ENGINE = "tiny/rtx-sm80+/fp16-b1-ws16MiB"
RECIPE = f"tiny/gpu/torch_compile-fp16-b1-2-4-{SIZES}-ws16MiB"
AXES = "height: {min: 24, opt: 32, max: 48}, width: {min: 24, opt: 40, max: 64}"
CHECKED = [(24, 24), (32, 40), (48, 64), (37, 45), (24, 64), (48, 24)]


def configuration(network: str = "make", weights: str = "sample", axes: str = AXES) -> str:
    """Return the configuration of a network of `sized_networks`."""
    return f"""\
model: {{name: tiny, factory: "tests.support.sized_networks:{network}", weights: {weights}}}
preprocessing: {{resize: 32, crop: 32, interpolation: bilinear, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}
data: {{images: digits, calibration: 16, validation: 100}}
precisions: [fp32, fp16]
profiles: [1, {{batch: {{min: 1, opt: 2, max: 4}}, {axes}}}]
workspaces: [16MiB]
benchmark: {{batches: [1], restarts: 1, warmup_runs: 1, warmup_seconds: 0.1, rounds: 1, runs_per_round: 2}}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose ONNX files are validated, and whose engines are built ahead of time."""
    project = project_of(tmp_path_factory.mktemp("sizes"), configuration())
    built = {FP16, FP32, ENGINE, FIXED_ENGINE, RECIPE}
    for step in project.schedule.steps:
        of_variant = step.stage in {"build", "validate"} and step.subject in built
        if step.stage in {"source", "data", "export", "rounding"} or of_variant:
            assert main([step.stage, step.subject, "--config", str(project.config_file)]) == 0, step
    assert main(["manifest", "tiny", "--config", str(project.config_file)]) == 0
    return project


def entry_of(project: Project, name: str) -> ManifestEntry:
    """Return the manifest's entry of a variant."""
    return next(entry for entry in project.manifest().artifacts if entry.id == name)


def images(count: int, height: int, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return seeded images."""
    return np.random.default_rng(height * width).normal(size=(count, 3, height, width)).astype(np.float32)


@pytest.mark.parametrize("name", [FP16, ENGINE])
def test_the_manifest_has_the_range_of_every_axis(project: Project, name: str) -> None:
    """An ONNX file and an engine of the range name their axes, with the sizes that they take."""
    (given,) = entry_of(project, name).inputs
    assert given.shape == ("batch", 3, "height", "width")
    assert [axis.label for axis in given.ranges] == ["height24-32-48", "width24-40-64"]
    assert entry_of(project, name).outputs[0].shape == ("batch", 10)


def test_a_profile_without_axes_has_the_size_of_the_images(project: Project) -> None:
    """Its engine is as fixed as one of a project without dynamic axes."""
    (given,) = entry_of(project, FIXED_ENGINE).inputs
    assert (given.shape, given.ranges) == ((1, 3, 32, 32), ())
    assert entry_of(project, ENGINE).status is Status.BUILT, "TensorRT-RTX builds ahead of time, and nothing ran it"


@pytest.mark.parametrize("name", [FP16, FP32])
def test_a_deployable_file_was_judged_at_every_size(project: Project, name: str) -> None:
    """Each size has a check of its own, in the smallest and in the largest batch."""
    entry = entry_of(project, name)
    assert entry.status is Status.DEPLOYABLE, entry.reason
    judged = {check.metric for check in entry.checks if " at height " in check.metric}
    assert judged == {
        f"relative L2 at height {height}, width {width} in batches of {batch}"
        for height, width in CHECKED
        for batch in (1, 32)
    }


def test_a_loaded_model_takes_every_size_in_the_range(project: Project) -> None:
    """Its logits are those of the network itself, also at sizes that no check has seen."""
    network = restore_model(project)
    wanted = model_artifacts.Requirements(precision="fp32")
    with model_artifacts.load(project.paths.root, wanted) as model:
        for height, width in [(24, 24), (48, 64), (33, 41), (31, 63), (32, 32)]:
            batch = images(2, height, width)
            with torch.no_grad():
                np.testing.assert_allclose(model(batch), network(torch.from_numpy(batch)), rtol=1e-3, atol=1e-4)
        assert model.predict(np.zeros((90, 70, 3), dtype=np.uint8))[0].name


@pytest.mark.parametrize(("height", "width"), [(23, 32), (32, 65), (49, 64), (32, 16)])
def test_a_loaded_model_refuses_every_other_size(project: Project, height: int, width: int) -> None:
    """The message says which sizes the artifact takes, and which one it got."""
    with (
        model_artifacts.load(project.paths.root) as model,
        pytest.raises(RunError, match=r"float32 \(batch, 3, height 24 to 48, width 24 to 64\)") as caught,
    ):
        model(images(1, height, width))
    assert f"(1, 3, {height}, {width})" in str(caught.value)


def test_a_graph_that_is_right_at_one_size_only_is_rejected(project: Project, tmp_path: Path) -> None:
    """A mean that divides by the places of a 32x32 image is right there, and wrong at every other size."""
    shutil.copytree(project.config_file.parent, tmp_path / "broken")
    broken = Project.load(tmp_path / "broken/pipeline.yaml", STAGES)
    model = onnx.load(broken.paths.onnx(Graph.FP16))
    pool = next(node for node in model.graph.node if node.op_type in {"GlobalAveragePool", "ReduceMean"})
    place = list(model.graph.node).index(pool)
    constants = {
        "places": np.full((1, 1, 1, 1), 1 / 64, dtype=np.float16),
        "axes_of_maps": np.array([2, 3], dtype=np.int64),
    }
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    model.graph.node.remove(pool)
    model.graph.node.insert(place, helper.make_node("Mul", ["summed", "places"], list(pool.output)))
    model.graph.node.insert(place, helper.make_node("ReduceSum", [pool.input[0], "axes_of_maps"], ["summed"]))
    onnx.save(model, broken.paths.onnx(Graph.FP16))
    report = validate_variant(broken, broken.plan.variant(FP16))
    assert not report.passed
    failed = [check.metric for check in report.checks if not check.passed]
    assert failed
    assert all(" at height " in metric for metric in failed), "at the network's own size it is right"
    assert any("at height 24, width 24" in metric for metric in failed)
    assert "so do 11 more of the 12 runs at other sizes, of which this is the worst" in report.reason


def test_a_file_of_several_profiles_is_judged_at_the_sizes_of_all_together(tmp_path: Path) -> None:
    """One profile has heights and the other widths: the file takes images with both, so that they are judged."""
    profiles = "{batch: 1, height: {min: 24, opt: 32, max: 40}}, {batch: 1, width: {min: 24, opt: 32, max: 48}}"
    text = re.sub(r"profiles: .*", f"profiles: [{profiles}]", configuration()).replace("[fp32, fp16]", "[fp32]")
    own = project_of(tmp_path, text)
    for step in own.schedule.steps:
        if step.stage in {"source", "data", "export", "rounding"}:
            assert main([step.stage, step.subject, "--config", str(own.config_file)]) == 0, step
    variant = own.plan.variant(FP32)
    (given,) = build_variant(own, variant).inputs
    report = validate_variant(own, variant)
    assert report.passed, report.reason
    judged = {check.metric for check in report.checks}
    for height, width in [(24, 24), (40, 48), (24, 48), (40, 24)]:
        assert given.takes_sample((3, height, width))
        assert f"relative L2 at height {height}, width {width} in batches of 1" in judged


def test_a_recipe_for_several_sizes_is_skipped(project: Project) -> None:
    """torch_compile builds for each shape that comes, and the record says what to take instead."""
    entry = entry_of(project, RECIPE)
    assert entry.status is Status.SKIPPED
    assert "builds an engine for each shape of a batch" in entry.reason
    assert "Take the saved modules (dynamo)" in entry.reason


def test_an_onnx_file_takes_every_size_in_the_range(project: Project, tmp_path: Path) -> None:
    """Its free axes become height and width, whatever the file calls them. Its own run is the reference."""
    model = onnx.load(project.paths.onnx(Graph.FP32))
    for place, name in ((2, "s12"), (3, "")):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_param = name
    onnx.save(model, tmp_path / "own.onnx")
    network = 'factory: "tests.support.sized_networks:make", weights: sample'
    own = project_of(tmp_path, configuration().replace(network, f'onnx: "{tmp_path / "own.onnx"}"'))
    for step in own.schedule.steps:
        of_variant = step.stage in {"build", "validate"} and step.subject in {FP16, FP32, ENGINE}
        if step.stage in {"source", "data", "export", "rounding"} or of_variant:
            assert main([step.stage, step.subject, "--config", str(own.config_file)]) == 0, step
    assert main(["manifest", "tiny", "--config", str(own.config_file)]) == 0
    for name in (FP16, ENGINE):
        (given,) = entry_of(own, name).inputs
        assert given.shape == ("batch", 3, "height", "width")
        assert [axis.label for axis in given.ranges] == ["height24-32-48", "width24-40-64"]
    entry = entry_of(own, FP16)
    assert entry.status is Status.DEPLOYABLE, entry.reason
    judged = {check.metric for check in entry.checks if " at height " in check.metric}
    assert len(judged) == 2 * len(CHECKED)


def test_an_onnx_file_of_one_size_is_refused(project: Project, tmp_path: Path) -> None:
    """A height that is fixed in the file is named, with its size."""
    model = onnx.load(project.paths.onnx(Graph.FP32))
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 32
    onnx.save(model, tmp_path / "own.onnx")
    network = 'factory: "tests.support.sized_networks:make", weights: sample'
    own = project_of(tmp_path, configuration().replace(network, f'onnx: "{tmp_path / "own.onnx"}"'))
    make_source(own)
    with pytest.raises(ExportError, match=r"(?s)axis 'height' is fixed.*input 'image'.*32 entries"):
        make_onnx(own, restore_model(own), Graph.FP16)


def test_other_ends_are_skipped(tmp_path: Path) -> None:
    """Pixels and classes are put around graphs of one size alone."""
    text = configuration() + "io: [{input: uint8}]\n"
    own = project_of(tmp_path, text)
    make_source(own)
    make_onnx(own, restore_model(own), Graph.FP32)
    artifact = build_variant(own, own.plan.variant("tiny/cpu-x86_64/onnxruntime-fp32-uint8"))
    assert artifact.reason.startswith("graphs with dynamic axes beside the batch take normalised float32 images")


@pytest.mark.parametrize(
    ("network", "step", "error", "said"),
    [
        ("make_flat", with_data, DataError, "takes no images of height 24, width 24"),
        ("make_flat", exported, ExportError, "takes no images of height 24, width 24"),
        ("make_read", exported, ExportError, "height"),
        (
            "make_gridded",
            exported,
            ExportError,
            "cannot run the exported graph\n.*fp32, height 24, width 24",
        ),
    ],
    ids=["flat data", "flat graph", "number of a size", "grid"],
)
def test_a_network_of_one_size_is_refused(
    tmp_path: Path, network: str, step: Callable[[Project], None], error: type[Exception], said: str
) -> None:
    """Nothing is built of a network that takes one size."""
    own = project_of(tmp_path, configuration(network, "factory"))
    make_source(own)
    with pytest.raises(error, match=said):
        step(own)
    assert not own.paths.onnx(Graph.FP32).exists()


def test_the_images_own_size_must_lie_in_the_range(tmp_path: Path) -> None:
    """All validation images are judged at it, so that a range without it is refused with its place."""
    own = project_of(tmp_path, configuration(axes="height: {min: 33, opt: 40, max: 48}"))
    make_source(own)
    with pytest.raises(ConfigError, match=r"yaml:5:57: .*height 33 to 48 does not hold the images' own height, 32"):
        with_data(own)


@pytest.mark.parametrize(
    ("profiles", "stale"),
    [
        (f"[1, 2, {{batch: {{min: 1, opt: 2, max: 4}}, {AXES}}}]", False),
        (f"[{{batch: {{min: 1, opt: 4, max: 8}}, {AXES}}}]", False),
        (f"[1, {{batch: 1, {AXES}}}, {{batch: 8, {AXES}}}]", False),
        (f"[1, {{batch: 1, {AXES}}}, {{batch: 8, height: {{min: 24, opt: 32, max: 32}}}}]", True),
        (f"[1, {{batch: 1, {AXES}}}, {{batch: 8, height: {{min: 33, opt: 40, max: 48}}}}]", True),
        (f"[1, {{batch: 1, {AXES.replace('48', '56')}}}]", True),
        ("[1]", True),
    ],
    ids=[
        "another batch",
        "other batches",
        "the same twice",
        "a part of the range",
        "without the own size",
        "another range",
        "none",
    ],
)
def test_the_data_is_stale_for_other_sizes_alone(project: Project, tmp_path: Path, profiles: str, stale: bool) -> None:  # noqa: FBT001 - a parameter
    """What is stored depends on the sizes of the profiles; a range without the own size is refused again."""
    text = re.sub(r"profiles: .*", f"profiles: {profiles}", configuration())
    other = project_of(tmp_path, text + f"artifacts: {project.paths.root}\n")
    assert other.paths.data == project.paths.data
    (step,) = other.schedule.of("data")
    assert bool(freshness_of(other, step).reasons) is stale


def test_the_last_screen_s_lines_open_an_artifact_of_all_sizes(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """They work as they are pasted, and show the ranges of the sizes."""
    assert main(["manifest", "tiny", "--config", str(project.config_file)]) == 0
    _, _, after = capsys.readouterr().out.partition("to load what suits this machine, in Python:\n")
    first, second = (line.removeprefix("  ") for line in after.splitlines()[:2])
    exec(compile(f"{first}\n{second}\n", "pasted", "exec"), {})  # noqa: S102 - it is our own
    said = capsys.readouterr().out
    assert said.startswith("tiny/cpu-x86_64/onnxruntime-fp")
    assert "AxisRange(name='height', min=24, opt=32, max=48)" in said


def test_a_spec_takes_the_samples_of_its_ranges_alone() -> None:
    """An axis with a name and no range takes nothing: no check has shown what it can take."""
    spec = TensorSpec(name="image", shape=("batch", 3, "height"), dtype="float32", layout="NCH")
    assert not spec.takes_sample((3, 8))
