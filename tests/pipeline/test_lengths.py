"""A network for texts of any length goes through the whole pipeline, and is proven at the ends of its range."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch

import model_artifacts
from model_artifacts.errors import ConfigError, DataError, ExportError, RunError
from model_artifacts.records import Graph, Status
from pipeline.cli.main import main
from pipeline.stages.build.stage import build_variant
from pipeline.stages.common.model import restore_model
from pipeline.stages.export.stage import make_onnx
from pipeline.stages.source.stage import make_source
from pipeline.stages.validate.stage import validate_variant
from tests.support.small_projects import exported, project_of, with_data, with_graph_of
from tests.support.tasks import FP16, FP32
from tests.support.texts import LENGTHS, LONGEST, WORDS, arrays_of, configuration, write_texts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

    from model_artifacts.records import ManifestEntry
    from pipeline.planning.project import Project

ENGINE = "tiny/rtx-sm80+/fp16-b1-2-4-sequence4-12-24-ws16MiB"
FIXED_ENGINE = "tiny/rtx-sm80+/fp16-b1-ws16MiB"
RECIPE = "tiny/gpu/torch_compile-fp16-b1-2-4-sequence4-12-24-ws16MiB"
OTHERS = (4, 12, 15)
"""The lengths that are checked beside the texts' own: the smallest, the best, and an odd one between."""


def run_steps(project: Project, built: set[str]) -> None:
    """Run a project's steps, and build and validate these variants."""
    for step in project.schedule.steps:
        of_variant = step.stage in {"build", "validate"} and step.subject in built
        if step.stage in {"source", "data", "export", "rounding"} or of_variant:
            assert main([step.stage, step.subject, "--config", str(project.config_file)]) == 0, step
    assert main(["manifest", "tiny", "--config", str(project.config_file)]) == 0


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose ONNX files are validated, and whose engines are built ahead of time."""
    folder = tmp_path_factory.mktemp("lengths")
    project = project_of(folder, configuration(write_texts(folder)))
    run_steps(project, {FP16, FP32, ENGINE, FIXED_ENGINE, RECIPE})
    return project


@pytest.fixture(scope="module")
def of_file(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The same network as an ONNX file whose axis has a name of its own, as another exporter gives it."""
    folder = tmp_path_factory.mktemp("file")
    model = onnx.load(project.paths.onnx(Graph.FP32))
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[1].dim_param = "s77"
    onnx.save(model, folder / "own.onnx")
    text = configuration(write_texts(folder)).replace(
        'factory: "tests.support.texts:Texts", weights: factory', f'onnx: "{folder / "own.onnx"}"'
    )
    own = project_of(folder, text)
    run_steps(own, {FP16, FP32, ENGINE})
    return own


def entry_of(project: Project, name: str) -> ManifestEntry:
    """Return the manifest's entry of a variant."""
    return next(entry for entry in project.manifest().artifacts if entry.id == name)


def texts(count: int, length: int) -> dict[str, npt.NDArray[np.generic]]:
    """Return texts of a length, the last place of which is empty."""
    rng = np.random.default_rng(length)
    mask = np.ones((count, length), np.float32)
    mask[:, -1] = 0
    return {"tokens": rng.integers(1, WORDS, (count, length)), "mask": mask}


@pytest.mark.parametrize("name", [FP16, ENGINE])
@pytest.mark.parametrize("made", ["project", "of_file"], ids=["torch", "ONNX file"])
def test_the_manifest_has_the_range_of_both_inputs(request: pytest.FixtureRequest, made: str, name: str) -> None:
    """An ONNX file and an engine name the axis of each input, with the lengths that they take."""
    entry = entry_of(request.getfixturevalue(made), name)
    assert [spec.name for spec in entry.inputs] == ["tokens", "mask"]
    for spec in entry.inputs:
        assert spec.shape == ("batch", "sequence")
        assert [axis.label for axis in spec.ranges] == ["sequence4-12-24"]
    assert entry.outputs[0].shape == ("batch", 16)


def test_a_profile_without_the_axis_has_the_length_of_the_texts(project: Project) -> None:
    """Its engine is as fixed as one of a project without dynamic axes; a recipe is skipped with the reason."""
    assert [spec.shape for spec in entry_of(project, FIXED_ENGINE).inputs] == [(1, LONGEST), (1, LONGEST)]
    assert entry_of(project, ENGINE).status is Status.BUILT, "TensorRT-RTX builds ahead of time, and nothing ran it"
    recipe = entry_of(project, RECIPE)
    assert recipe.status is Status.SKIPPED
    assert "a recipe of torch_compile describes images alone: take the saved modules" in recipe.reason


def test_a_network_of_torch_takes_the_longest_texts_alone(project: Project) -> None:
    """It is judged at their length alone, so that its artifact claims no range."""
    eager = project.plan.variant("tiny/cpu-x86_64/eager-fp32")
    artifact, report = build_variant(project, eager), validate_variant(project, eager)
    assert [(spec.shape, spec.ranges) for spec in artifact.inputs] == [(("batch", LONGEST), ())] * 2
    assert report.passed, report.reason
    assert not [check.metric for check in report.checks if " at sequence " in check.metric]


@pytest.mark.parametrize("name", [FP16, FP32])
@pytest.mark.parametrize("made", ["project", "of_file"], ids=["torch", "ONNX file"])
def test_a_deployable_file_was_judged_at_every_length(request: pytest.FixtureRequest, made: str, name: str) -> None:
    """Each length has a check of its own, in the smallest and in the largest batch."""
    entry = entry_of(request.getfixturevalue(made), name)
    assert entry.status is Status.DEPLOYABLE, entry.reason
    judged = {check.metric for check in entry.checks if " at sequence " in check.metric}
    assert judged == {
        f"relative L2 at sequence {length} in batches of {batch}" for length in OTHERS for batch in (1, 32)
    }


def test_shorter_samples_are_the_beginnings_of_the_users_own(project: Project) -> None:
    """Nothing is resized or invented; the reference of each length is the network's own answer there."""
    whole, network = project.pixels(project.data().validation), restore_model(project)
    assert [item.sizes for item in project.data().sizes] == [(("sequence", length),) for length in OTHERS]
    for item in project.data().sizes:
        rows = project.pixels(item.pixels)
        ((_, length),) = item.sizes
        for name in ("tokens", "mask"):
            np.testing.assert_array_equal(rows[name], whole[name][: len(rows), :length])
        with torch.no_grad():
            found = network(*(torch.from_numpy(np.array(rows[name])) for name in ("tokens", "mask")))
        np.testing.assert_allclose(np.load(project.file(item.reference)), found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("made", ["project", "of_file"], ids=["torch", "ONNX file"])
def test_a_loaded_model_takes_every_length_in_the_range(
    request: pytest.FixtureRequest, project: Project, made: str
) -> None:
    """Its vectors are those of the network itself, also at lengths that no check has seen."""
    network, wanted = restore_model(project), model_artifacts.Requirements(precision="fp32")
    with model_artifacts.load(request.getfixturevalue(made).paths.root, wanted) as model:
        for length in (4, 7, 13, LONGEST):
            batch = texts(2, length)
            with torch.no_grad():
                expected = network(*map(torch.from_numpy, batch.values()))
            np.testing.assert_allclose(model(batch), expected, rtol=1e-3, atol=1e-4)


def test_a_loaded_model_refuses_every_other_length(project: Project) -> None:
    """And two inputs of different lengths, each of which it takes."""
    wanted = model_artifacts.Requirements(precision="fp32")
    with model_artifacts.load(project.paths.root, wanted) as model:
        for length in (3, 25):
            with pytest.raises(RunError, match=r"tokens: int64 \(batch, sequence 4 to 24\)") as caught:
                model(texts(1, length))
            assert f"(1, {length})" in str(caught.value)
        mixed = {"tokens": texts(1, 8)["tokens"], "mask": texts(1, 9)["mask"]}
        with pytest.raises(RunError, match=r"(?s)different sizes of the axis 'sequence'.*8 of 'tokens', 9 of 'mask'"):
            model(mixed)


@pytest.mark.parametrize("twin", ["FromEnd", "TracedLength"])
def test_a_graph_that_is_right_at_the_longest_length_only_is_rejected(
    project: Project, tmp_path: Path, twin: str
) -> None:
    """A table of positions from its end, or a mean by the traced length, is wrong at every other length."""
    broken = with_graph_of(project, tmp_path, configuration(write_texts(tmp_path), twin), Graph.FP16)
    report = validate_variant(broken, broken.plan.variant(FP16))
    assert not report.passed
    failed = [check.metric for check in report.checks if not check.passed]
    assert {length for length in OTHERS if any(f" at sequence {length} " in metric for metric in failed)} == {*OTHERS}
    assert all(" at sequence " in metric for metric in failed), "at the texts' own length it is right"


@pytest.mark.parametrize(
    ("network", "step", "error", "said"),
    [
        pytest.param("Flat", with_data, DataError, "takes no samples of sequence 4", id="flat data"),
        pytest.param("Flat", exported, ExportError, "takes no samples of sequence 4", id="flat graph"),
        pytest.param("Counted", exported, ExportError, "sequence", id="length as a number"),
        pytest.param("Wide", with_data, DataError, "gives other outputs for samples of sequence 4", id="wide data"),
        pytest.param("Wide", exported, ExportError, "gives other outputs for samples of sequence 4", id="wide graph"),
    ],
)
def test_a_network_of_one_length_is_refused(
    tmp_path: Path, network: str, step: Callable[[Project], None], error: type[Exception], said: str
) -> None:
    """Nothing is built of a network that takes one length, or whose vectors are as long as the text."""
    own = project_of(tmp_path, configuration(write_texts(tmp_path), network))
    make_source(own)
    with pytest.raises(error, match=said):
        step(own)
    assert not own.paths.onnx(Graph.FP32).exists()


def test_an_onnx_file_of_one_length_is_refused(project: Project, tmp_path: Path) -> None:
    """The message names the axis and the input, and how to export it."""
    model = onnx.load(project.paths.onnx(Graph.FP32))
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[1].dim_value = LONGEST
    onnx.save(model, tmp_path / "own.onnx")
    text = configuration(write_texts(tmp_path)).replace(
        'factory: "tests.support.texts:Texts", weights: factory', f'onnx: "{tmp_path / "own.onnx"}"'
    )
    own = project_of(tmp_path, text)
    make_source(own)
    with pytest.raises(DataError, match="takes no samples of sequence 4"):
        with_data(own)
    with pytest.raises(ExportError, match=r"(?s)axis 'sequence' is fixed.*input 'tokens'.*24 entries"):
        make_onnx(own, restore_model(own), Graph.FP16)


@pytest.mark.parametrize(
    ("axes", "sequence", "place", "said"),
    [
        pytest.param("{words: [sequence]}", LENGTHS, "6:", "`data.axes.words`: the model has no such input", id="name"),
        pytest.param(
            "{tokens: [sequence, null]}",
            LENGTHS,
            "6:",
            r"expected a name or null for each axis, got 2; its sample has 1 axes, of sizes \(24\)",
            id="number",
        ),
        pytest.param(
            "{tokens: [sequence]}",
            "{min: 4, opt: 8, max: 32}",
            "3:59",
            "sequence 4 to 32 must end at the size of the samples in .*, 24: .*; write `max: 24`, or pad the samples",
            id="longer",
        ),
        pytest.param(
            "{tokens: [sequence]}", "{min: 4, opt: 8, max: 16}", "3:59", "`max: 24`, or shorten", id="shorter"
        ),
    ],
)
def test_names_and_ranges_that_do_not_fit_the_samples_are_refused(
    tmp_path: Path, axes: str, sequence: str, place: str, said: str
) -> None:
    """With the line and the column of the setting; nothing is written."""
    own = project_of(tmp_path, configuration(write_texts(tmp_path), axes=axes, sequence=sequence))
    with pytest.raises(ConfigError, match=said) as caught:
        make_source(own)
    assert f"{own.config_file}:{place}" in str(caught.value)
    assert not own.paths.source.exists()


def test_texts_padded_at_their_start_are_refused(tmp_path: Path) -> None:
    """Their beginnings are all padding, so that one sample alone would judge the shortest length."""
    texts = arrays_of()
    tokens = np.concatenate([np.zeros_like(texts["tokens"][:, :4]), texts["tokens"][:, 4:]], axis=1)
    np.savez(tmp_path / "texts.npz", tokens=tokens, mask=np.ones_like(texts["mask"]))
    own = project_of(tmp_path, configuration(tmp_path / "texts.npz"))
    make_source(own)
    with pytest.raises(DataError, match=r"alike at sequence 4(.|\n)*pad the samples at their end"):
        with_data(own)


def test_one_name_is_one_size(tmp_path: Path) -> None:
    """Two arrays of different lengths cannot share a name."""
    arrays = arrays_of()
    np.savez(tmp_path / "texts.npz", tokens=arrays["tokens"], mask=arrays["mask"][:, :20])
    own = project_of(tmp_path, configuration(tmp_path / "texts.npz"))
    with pytest.raises(ConfigError, match="'sequence' has 20 entries in 'mask' and 24 in 'tokens'"):
        make_source(own)
