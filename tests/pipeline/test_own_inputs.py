"""Models of one input that is no picture, ONNX files of several inputs, and the refusals of arrays that do not fit."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import model_artifacts
from model_artifacts.errors import ConfigError, DataError, SourceError
from model_artifacts.records import Graph, Status
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.source.stage import make_source
from pipeline.stages.validate.stage import validate_variant
from tests.support.inputs import Words, arrays_of, configuration, write_arrays
from tests.support.tasks import ENGINE, FP16, FP32, made_in, with_another_end

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize(
    ("network", "task", "spec"),
    [
        pytest.param("Sensors", "tensors", ("field", "float32", ("batch", 2, 16, 16)), id="two channels"),
        pytest.param("Tokens", "classification", ("tokens", "int32", ("batch", 12)), id="integers"),
    ],
)
def test_one_input_is_an_array_alone(tmp_path: Path, network: str, task: str, spec: tuple[Any, ...]) -> None:
    """From its file to a call: two channels, which no picture has, or token ids; with an engine built ahead of time."""
    made = made_in(tmp_path, configuration(network, write_arrays(tmp_path, network), task))
    entries = {entry.id: entry for entry in made.manifest().artifacts}
    for name in (FP16, FP32):
        assert entries[name].status is Status.DEPLOYABLE, entries[name].reason
    assert entries[ENGINE].status is Status.BUILT
    for name in (FP16, FP32, ENGINE):
        (found,) = entries[name].inputs
        assert (found.name, found.dtype, found.shape) == spec
    rows = np.ascontiguousarray(made.pixels(made.data().validation)[:4][spec[0]])
    reference = np.load(made.file(made.data().reference))[:4]
    with model_artifacts.load(made.paths.root) as model:
        np.testing.assert_allclose(model(rows), reference, atol=0.01 * np.abs(reference).max())
        np.testing.assert_array_equal(model(**{spec[0]: rows}), model(rows))


def test_batch_norms_are_folded_by_the_models_own_samples(tmp_path: Path) -> None:
    """The graph of two inputs has none left, and computes what the network does."""
    made = made_in(tmp_path, configuration("Pair", write_arrays(tmp_path, "Pair")))
    assert made.onnx(Graph.FP32).folded_batch_norms == 1


def test_an_onnx_file_of_several_inputs_is_a_model(tmp_path: Path) -> None:
    """The file is the reference: its graphs are judged by its own run, and an engine is built."""
    first = tmp_path / "first"
    first.mkdir()
    torchs = made_in(first, configuration("Words", write_arrays(first, "Words"), "classification"))
    shutil.copyfile(torchs.paths.onnx(Graph.FP32), tmp_path / "own.onnx")
    text = torchs.config_file.read_text().replace(
        'factory: "tests.support.inputs:Words", weights: factory', f'onnx: "{tmp_path / "own.onnx"}"'
    )
    second = tmp_path / "second"
    second.mkdir()
    made = made_in(second, text)
    entries = {entry.id: entry for entry in made.manifest().artifacts}
    for name in (FP16, FP32):
        assert entries[name].status is Status.DEPLOYABLE, entries[name].reason
    assert entries[ENGINE].status is Status.BUILT
    assert [spec.name for spec in made.source().inputs] == ["tokens", "weights"]
    ours, theirs = (np.load(item.file(item.data().reference)) for item in (made, torchs))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def project_with(write_config: Callable[[str], Path], tmp_path: Path, arrays: dict[str, Any]) -> Project:
    """Return a project of `Pair` with other arrays."""
    file = tmp_path / "inputs.npz"
    np.savez(file, **arrays)
    return Project.load(write_config(configuration("Pair", file)), STAGES)


OWN = arrays_of("Pair", 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"vector": None}, "arguments of the network's `forward`, image, vector, got image", id="one less"),
        pytest.param({"more": OWN["vector"]}, "arguments of the network's `forward`", id="one more"),
        pytest.param({"vector": OWN["vector"].astype(np.float64)}, "got float64; cast it", id="another type"),
        pytest.param({"vector": OWN["vector"][:5]}, "as many samples in every array, got 5 of 'vector'", id="fewer"),
        pytest.param({"vector": np.array(["a"] * 8, dtype=object)}, "object", id="objects"),
        pytest.param({"vector": np.full((8, 5), np.inf, np.float32)}, "'vector': expected finite", id="infinite"),
        pytest.param({"image": OWN["image"][:1], "vector": OWN["vector"][:1]}, "2 samples or more", id="one sample"),
    ],
)
def test_arrays_that_are_no_inputs_are_refused(
    write_config: Callable[[str], Path], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """With the line and the column of the setting; nothing is written."""
    arrays = {name: array for name, array in {**OWN, **change}.items() if array is not None}
    project = project_with(write_config, tmp_path, arrays)
    with pytest.raises(ConfigError, match=message) as caught:
        make_source(project)
    assert f"{project.config_file}:6:" in str(caught.value)
    assert not project.paths.source.exists()


def test_a_file_that_is_no_archive_is_refused(write_config: Callable[[str], Path], tmp_path: Path) -> None:
    """A text, and a file that is not there."""
    for name in ("text.npz", "none.npz"):
        if name == "text.npz":
            (tmp_path / name).write_text("no arrays")
        project = Project.load(write_config(configuration("Pair", tmp_path / name)), STAGES)
        with pytest.raises(ConfigError, match=r"pipeline.yaml:6:\d+: `data.tensors`: expected a npz file"):
            make_source(project)


@pytest.mark.parametrize("place", [80, 5_000], ids=["header", "values"])
def test_a_damaged_archive_is_refused(write_config: Callable[[str], Path], tmp_path: Path, place: int) -> None:
    """In the packed header of an array, which is read first, or in its values."""
    file = tmp_path / "inputs.npz"
    np.savez_compressed(file, image=arrays_of("Pair", 32)["image"], vector=arrays_of("Pair", 32)["vector"])
    whole = bytearray(file.read_bytes())
    whole[place : place + 16] = bytes(16)
    file.write_bytes(whole)
    project = Project.load(write_config(configuration("Pair", file)), STAGES)
    with pytest.raises((ConfigError, DataError), match=r"(?s)`data.tensors`.*inputs\.npz"):
        make_source(project)
    assert not project.paths.source.exists()


def test_a_shape_that_the_network_does_not_take_is_refused(write_config: Callable[[str], Path], tmp_path: Path) -> None:
    """The network itself says so."""
    project = project_with(write_config, tmp_path, {**OWN, "vector": np.zeros((8, 6), np.float32)})
    with pytest.raises(SourceError, match=r"(?s)does not take the arrays of `data.tensors`.*inputs of `forward`"):
        make_source(project)


def test_an_input_with_the_name_of_an_output_is_refused(write_config: Callable[[str], Path], tmp_path: Path) -> None:
    """A graph would hold one tensor for both."""
    file = tmp_path / "inputs.npz"
    np.savez(file, vector=OWN["vector"])
    project = Project.load(write_config(configuration("Echo", file)), STAGES)
    with pytest.raises(SourceError, match=r"(?s)same name.*'vector'.*inputs vector; outputs vector, twice"):
        make_source(project)
    assert not project.paths.source.exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        pytest.param("images: photographs, ", "`data.images` belongs to images", id="images"),
        pytest.param("labels: answers, ", "`task: tensors` is judged by distances, unless `model.metric`", id="labels"),
    ],
)
def test_settings_of_images_are_refused(
    write_config: Callable[[str], Path], tmp_path: Path, setting: str, message: str
) -> None:
    """No setting is accepted that has no effect."""
    text = configuration("Pair", tmp_path / "inputs.npz").replace("data: {", f"data: {{{setting}")
    with pytest.raises(ConfigError, match=message):
        Project.load(write_config(text), STAGES)


def test_a_preprocessing_beside_arrays_is_refused(write_config: Callable[[str], Path], tmp_path: Path) -> None:
    """The arrays are the inputs as they are."""
    text = configuration("Pair", tmp_path / "inputs.npz")
    text += "preprocessing: {resize: 8, crop: 8, interpolation: bilinear, mean: [0.5], std: [0.5]}\n"
    with pytest.raises(ConfigError, match=r":7:\d+: `preprocessing` is of images"):
        Project.load(write_config(text), STAGES)


def labelled(folder: Path, wrong: int) -> Project:
    """Return a finished project of `Words`, whose labels are its own answers, but for the first samples of the file."""
    arrays = arrays_of("Words")
    with torch.no_grad():
        torch.manual_seed(0)
        network = Words().eval()
        answers = network(*(torch.from_numpy(arrays[name]) for name in ("tokens", "weights"))).argmax(1).numpy()
    answers[:wrong] = (answers[:wrong] + 1) % 5
    torch.save(network.state_dict(), folder / "weights.pt")
    np.savez(folder / "inputs.npz", answers=answers.astype(np.uint8), **arrays)  # type: ignore[arg-type]  # as `write_arrays`
    text = configuration("Words", folder / "inputs.npz", "classification")
    text = text.replace("validation: 64", "validation: 64, labels: answers")
    return made_in(folder, text.replace("weights: factory", f'weights: "{folder / "weights.pt"}"'))


def test_labels_in_the_file_judge_by_top1(tmp_path: Path) -> None:
    """Each sample keeps its own label, and the gate of the top-1 drop is the one that decides."""
    (tmp_path / "own").mkdir()
    made = labelled(tmp_path / "own", 12)
    data, entries = made.data(), {entry.id: entry for entry in made.manifest().artifacts}
    assert data.labels is not None
    labels, reference = np.load(made.file(data.labels)), np.load(made.file(data.reference))
    assert (labels.dtype, labels.shape) == (np.int64, (64,))
    share = float((reference.argmax(1) == labels).mean())
    assert data.reference_top1 == share
    assert 1 - 12 / 64 <= share < 1
    report = made.accuracy(made.plan.variant(FP16))
    assert "labelled top-1 drop" in {check.metric for check in report.checks}
    assert report.accuracy is not None
    assert report.accuracy.top1 == share
    assert entries[FP16].status is Status.DEPLOYABLE, entries[FP16].reason
    assert [spec.name for spec in made.source().inputs] == ["tokens", "weights"]
    model = made.manifest().model
    assert model is not None
    assert model.labelled
    broken = with_another_end(made, tmp_path / "copy", "Mul", np.array([[1, -1, 1, -1, 1]], np.float32))
    failed = validate_variant(broken, broken.plan.variant(FP16))
    assert "labelled top-1 drop" in {check.metric for check in failed.checks if not check.passed}


def test_an_array_of_labels_that_is_not_there_is_refused(write_config: Callable[[str], Path], tmp_path: Path) -> None:
    """At its own place in the configuration, and nothing is written."""
    text = configuration("Words", write_arrays(tmp_path, "Words"), "classification")
    text = text.replace("validation: 64", "validation: 64, labels: answers")
    project = Project.load(write_config(text), STAGES)
    with pytest.raises(ConfigError, match=r"pipeline.yaml:6:\d+: `data.labels`: .*got 'answers'; it has tokens"):
        make_source(project)
    assert not project.paths.source.exists()
