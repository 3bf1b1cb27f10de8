"""A model of several named inputs goes through the whole pipeline, with a real engine built ahead of time."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

import model_artifacts
from model_artifacts.errors import RunError, UsageError
from model_artifacts.host.environment import missing_gpu
from model_artifacts.records import CPU_TARGET, Backend, Graph, Layout, Status
from model_artifacts.releases.triton import make_repositories
from model_artifacts.sessions.feeds.batches import from_fields
from pipeline.cli.main import main
from pipeline.planning.project import Project
from pipeline.records import Outcome
from pipeline.stages import STAGES
from pipeline.stages.build.stage import build_variant
from pipeline.stages.release.texts import model_card
from pipeline.stages.validate.stage import validate_variant
from tests.support.inputs import arrays_of, configuration, write_arrays
from tests.support.tasks import ENGINE, FP16, FP32, made_in, sensitivity_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

SHAPES = {"image": ("batch", 3, 16, 16), "vector": ("batch", 5)}
"""The inputs of `Pair` in the order of its `forward`; its file has the other order."""
TEXTS = {"tokens": ("batch", 12), "weights": ("batch", 12)}
INT8 = "tiny/cpu-x86_64/onnxruntime-int8"


def finished(folder: Path, network: str, task: str = "tensors", precisions: str = "[fp32, fp16]") -> Project:
    """Return a project of a network whose variants are validated where they run, and whose engine is built."""
    return made_in(folder, configuration(network, write_arrays(folder, network), task, precisions))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A network of an image and a vector."""
    return finished(tmp_path_factory.mktemp("pair"), "Pair")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A classifier of token ids in int64 with a weight for each."""
    return finished(tmp_path_factory.mktemp("texts"), "Words", "classification")


@pytest.fixture
def broken(project: Project, tmp_path: Path) -> Project:
    """A copy of the project, whose artifacts a test may damage."""
    shutil.copytree(project.config_file.parent, tmp_path / "copy")
    return Project.load(tmp_path / "copy" / "pipeline.yaml", STAGES)


def batch_of(project: Project, count: int) -> dict[str, npt.NDArray[Any]]:
    """Return the first validation samples."""
    batch: dict[str, npt.NDArray[Any]] = from_fields(project.pixels(project.data().validation)[:count])
    return batch


def test_every_input_keeps_its_name_type_and_shape(project: Project, texts: Project) -> None:
    """The names of `forward` stand in the record, the graphs, the engine and the manifest, in its order."""
    for made, shapes, types in ((project, SHAPES, ["float32"] * 2), (texts, TEXTS, ["int64", "float32"])):
        expected = [(name, shape, dtype) for (name, shape), dtype in zip(shapes.items(), types, strict=True)]
        assert [(spec.name, spec.shape, spec.dtype) for spec in made.source().inputs] == expected
        for graph in (Graph.FP32, Graph.FP16):
            assert [(spec.name, spec.shape, spec.dtype) for spec in made.onnx(graph).inputs] == expected
        entries = {entry.id: entry for entry in made.manifest().artifacts}
        for name in (FP16, FP32, ENGINE):
            found = [(spec.name, spec.shape, spec.dtype) for spec in entries[name].inputs]
            assert sorted(found) == sorted(expected), name
        for name in (FP16, FP32):
            assert entries[name].status is Status.DEPLOYABLE, entries[name].reason
        assert (entries[ENGINE].status, entries[ENGINE].settings[0].applied) == (Status.BUILT, True)


def test_samples_are_split_and_kept_together(project: Project) -> None:
    """Calibration and validation hold other rows of the file, and each row is of one sample."""
    arrays, data = arrays_of("Pair"), project.data()
    numbers = []
    for file, count in ((data.calibration, 16), (data.validation, 64)):
        rows = project.pixels(file)
        assert (len(rows), rows.dtype.names) == (count, ("image", "vector"))
        for row in rows:
            (number,) = np.flatnonzero((arrays["vector"] == row["vector"]).all(axis=1))
            np.testing.assert_array_equal(arrays["image"][number], row["image"])
            numbers.append(int(number))
    assert len({*numbers}) == len(numbers)
    assert (data.preprocessing, data.origin.value, data.labels) == (None, "tensors", None)


def test_the_reference_is_the_networks_own(project: Project) -> None:
    """Every artifact's outputs are near those of the network in torch, for the samples with their own vectors."""
    reference = np.load(project.file(project.data().reference))
    with model_artifacts.load(project.paths.root) as model:
        np.testing.assert_allclose(model(batch_of(project, 8)), reference[:8], atol=0.01 * np.abs(reference).max())


def exchanged(project: Project, names: dict[str, str]) -> None:
    """Exchange the names of two inputs of the FP16 graph, wherever they are read."""
    path = project.paths.onnx(Graph.FP16)
    model = onnx.load(path)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    onnx.save(model, path)


def test_exchanged_inputs_of_one_shape_are_rejected(tmp_path: Path) -> None:
    """A graph that reads the right signal where the left one belongs fails, and the outputs in question are named."""
    made = finished(tmp_path, "Siamese")
    entries = {entry.id: entry for entry in made.manifest().artifacts}
    assert entries[FP16].status is Status.DEPLOYABLE, entries[FP16].reason
    exchanged(made, {"left": "right", "right": "left"})
    report = validate_variant(made, made.plan.variant(FP16))
    assert not report.passed
    failing = {check.metric.partition(":")[0] for check in report.checks if not check.passed}
    assert failing == {"one", "other"}  # their distance is the same both ways


@pytest.mark.parametrize("change", ["renamed", "one more", "one less"])
def test_a_graph_of_other_inputs_is_no_result(broken: Project, change: str) -> None:
    """An artifact with an input that no sample fills is not judged by the rest."""
    path = broken.paths.onnx(Graph.FP16)
    model = onnx.load(path)
    if change == "renamed":
        model.graph.input[1].name = "other"
        for node in model.graph.node:
            node.input[:] = ["other" if name == "vector" else name for name in node.input]
    elif change == "one more":
        model.graph.input.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, ["batch", 5]))
        model.graph.node.append(onnx.helper.make_node("Neg", ["more"], ["unused"]))
    else:
        value = model.graph.input.pop()
        zeros = np.zeros((1, 5), dtype=np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(zeros, value.name))
    onnx.save(model, path)
    report = validate_variant(broken, broken.plan.variant(FP16))
    assert report.accuracy is None
    assert "other inputs than the batch" in report.reason


EAGER = "tiny/cpu-x86_64/eager-fp32"


@pytest.mark.parametrize("network", ["project", "texts"])
def test_eager_takes_several_inputs_on_a_processor(network: str, request: pytest.FixtureRequest) -> None:
    """The baseline of the speed-up: an image beside a vector, or token ids, in its own type and order."""
    made: Project = request.getfixturevalue(network)
    eager = made.plan.variant(EAGER)
    assert build_variant(made, eager).outcome is Outcome.DONE
    report = validate_variant(made, eager)
    assert report.passed, report.reason
    assert report.accuracy is not None
    assert report.accuracy.relative_l2 < 1e-5
    assert main(["benchmark", "tiny/cpu-x86_64", "--config", str(made.config_file)]) == 0
    timed = made.benchmark(made.plan.variant(FP32))
    assert timed is not None
    assert timed.timings[0].speedup is not None


def test_modules_that_are_for_images_are_skipped_with_the_reason(broken: Project) -> None:
    """Recipes of torch_compile, and eager in channels_last. Of the others this host lacks the GPU."""
    on_gpu = [item for item in broken.plan.variants if item.backend.is_module and item.target != CPU_TARGET]
    reasons = {item: build_variant(broken, item).reason for item in on_gpu}
    for item, reason in reasons.items():
        if item.backend is Backend.TORCH_COMPILE:
            assert "a recipe of torch_compile describes images alone" in reason
        elif item.layout is Layout.CHANNELS_LAST:
            assert "only images lie in channels_last" in reason
        else:
            assert reason.startswith(missing_gpu())


def test_inputs_are_handed_over_by_their_names(project: Project) -> None:
    """As keywords or as a mapping, in any order."""
    batch = batch_of(project, 3)
    with model_artifacts.load(project.paths.root) as model:
        expected = model(batch)
        np.testing.assert_array_equal(model(**batch), expected)
        np.testing.assert_array_equal(model({"vector": batch["vector"], "image": batch["image"]}), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            {"vector": None}, r"(?s)takes other inputs.*vector: float32 \(batch, 5\).*model\(image=", id="less"
        ),
        pytest.param({"more": np.zeros(3)}, "takes other inputs", id="more"),
        pytest.param({"vector": np.zeros((3, 5))}, r"(?s)'vector'.*got: +float64.*astype\(numpy.float32\)", id="type"),
        pytest.param({"vector": np.zeros((3, 6), np.float32)}, r"(?s)'vector'.*got: +float32 \(3, 6\)", id="shape"),
        pytest.param({"vector": np.zeros((2, 5), np.float32)}, "different numbers of samples", id="number"),
        pytest.param({"vector": np.full((3, 5), np.nan, np.float32)}, "not finite", id="NaN"),
    ],
)
def test_other_inputs_are_refused(project: Project, change: dict[str, Any], message: str) -> None:
    """Each refusal names the input, and what it takes."""
    batch = {**batch_of(project, 3), **change}
    with model_artifacts.load(project.paths.root) as model, pytest.raises(RunError, match=message):
        model({name: array for name, array in batch.items() if array is not None})


def test_a_batch_without_names_is_refused(project: Project) -> None:
    """Nothing says which of the inputs it is."""
    with model_artifacts.load(project.paths.root) as model, pytest.raises(RunError, match="without a name"):
        model(batch_of(project, 3)["image"])


@pytest.mark.parametrize("method", ["predict", "outputs"])
def test_pictures_are_refused(texts: Project, method: str) -> None:
    """Nothing prepares a picture for a model of tensors, and the refusal says how it is called."""
    with model_artifacts.load(texts.paths.root) as model:
        with pytest.raises(UsageError, match=r"(?s)takes tensors.*model\(tokens=…, weights=…\)"):
            getattr(model, method)("photo.jpg")
        with pytest.raises(UsageError, match="this model takes tensors"):
            _ = model.preprocessing
        assert model(batch_of(texts, 2)).shape == (2, 5)


def test_triton_gets_every_input(texts: Project, tmp_path: Path) -> None:
    """Names, types and shapes, and warm-up requests that fill them all."""
    configs = sorted(make_repositories(texts.paths.root, tmp_path / "triton").folder.rglob("config.pbtxt"))
    assert configs
    for config in configs:
        text = config.read_text()
        for name, kind in (("tokens", "TYPE_INT64"), ("weights", "TYPE_FP32")):
            assert f'name: "{name}"\n  data_type: {kind}\n  dims: 12' in text
            assert text.count(f'key: "{name}"') == text.count('name: "one request"') + text.count("the largest batch")
        assert "preprocessing" not in text


def test_people_see_every_input(texts: Project) -> None:
    """The card names them, and shows the call."""
    card = model_card("tiny", texts.manifest(), None)
    assert "| input | tokens: int64, (batch, 12); weights: float32, (batch, 12) |" in card
    assert "model(tokens=tokens, weights=weights)" in card
    assert "inputs.npz, 96 samples" in card


def test_latencies_and_layers_are_measured(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """Benchmark, profile and sensitivity feed every input."""
    config = ["--config", str(project.config_file)]
    for command in (["benchmark", "tiny/cpu-x86_64"], ["profile", FP32]):
        assert main([*command, *config]) == 0
    assert project.benchmark(project.plan.variant(FP16)).timings
    assert "Conv" in capsys.readouterr().out
    found = sensitivity_of(project)
    assert found.layers
    assert found.plain_loss > 0


@pytest.mark.parametrize(("network", "task"), [("Pair", "tensors"), ("Words", "classification")], ids=["pair", "texts"])
def test_quantised_graphs_keep_every_input(
    write_config: Callable[[str], Path], tmp_path: Path, network: str, task: str
) -> None:
    """int8 and fp8 are calibrated on all inputs, their own rounding is measured, and an int8 file is validated."""
    file = write_config(configuration(network, write_arrays(tmp_path, network), task, "[fp32, int8, fp8]"))
    made = Project.load(file, STAGES)
    for step in made.schedule.steps:
        whole = step.stage in {"source", "data", "export", "quantize", "rounding"}
        if whole or (step.subject == INT8 and step.stage in {"build", "validate"}):
            assert main([step.stage, step.subject, "--config", str(file)]) == 0, step
    names = [spec.name for spec in made.source().inputs]
    for graph in (Graph.INT8, Graph.INT8_CPU, Graph.FP8):
        model = onnx.load(made.paths.onnx(graph))
        assert [value.name for value in model.graph.input] == names
        assert any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    for arithmetic in made.plan.arithmetics:
        assert made.rounding(arithmetic).relative_l2_high is not None, made.rounding(arithmetic).trouble
    assert made.accuracy(made.plan.variant(INT8)).accuracy is not None
