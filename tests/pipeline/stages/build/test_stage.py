"""The outcome of a build: done, skipped or failed with a reason, and the files on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import BuildError, RecordError
from model_artifacts.host.environment import missing_driver
from model_artifacts.records import Graph, ModuleContents, OperatorCalls
from pipeline.planning.keys import key_of
from pipeline.planning.plan import Plan
from pipeline.planning.project import Project
from pipeline.planning.steps import Step
from pipeline.records import Artifact, Outcome
from pipeline.stages import STAGES
from pipeline.stages.build import stage
from pipeline.stages.build.stage import _build, _description, _onnx, build_variant
from tests.support.hosts import H100, host

if TYPE_CHECKING:
    from pathlib import Path

ENGINE = "tiny/rtx-sm80+/fp16-b1-ws16MiB"
INT8 = "tiny/rtx-sm80+/int8-b1-ws16MiB"
DYNAMO = "tiny/gpu/dynamo-fp16-b1-ws16MiB"
ONNXRUNTIME = "tiny/cpu-x86_64/onnxruntime-fp16"
EAGER = "tiny/cpu-x86_64/eager-fp32"


@pytest.fixture
def project(copied: Path) -> Project:
    """A finished project to build in again."""
    return Project.load(copied / "pipeline.yaml", STAGES)


def artifact(project: Project, variant_id: str) -> Artifact:
    """Return a variant's record."""
    return project.artifact(project.plan.variant(variant_id))


def build(project: Project, variant_id: str) -> Artifact:
    """Build a variant."""
    return build_variant(project, project.plan.variant(variant_id))


def break_graph(project: Project) -> None:
    """Put something else where the FP16 graph lies."""
    project.paths.onnx(Graph.FP16).write_bytes(b"no graph")


def test_the_line_of_a_build_says_that_a_batch_runs_in_parts(built: Project) -> None:
    """The file is for one of them, and other programs would run no whole batch with it."""
    whole = artifact(built, ENGINE)
    assert whole.built_for is not None
    split = whole.model_copy(update={"built_for": whole.built_for.model_copy(update={"batch_parts": 2})})
    assert "of activations, in 2 parts at once, built in" in _description(split)
    assert "parts" not in _description(whole)


@pytest.mark.parametrize("variant_id", [ENGINE, ONNXRUNTIME, EAGER, INT8, DYNAMO])
def test_record_is_written(project: Project, variant_id: str) -> None:
    """However a build ends, the record on disk is the one returned, with the step's key."""
    record = build(project, variant_id)

    assert artifact(project, variant_id) == record
    assert record.key == key_of(project, Step("build", variant_id))


@pytest.mark.parametrize("variant_id", [ENGINE, ONNXRUNTIME, EAGER])
def test_done(built: Project, variant_id: str) -> None:
    """A build that succeeds has a file and no reason."""
    record = artifact(built, variant_id)

    assert (record.outcome, record.reason) == (Outcome.DONE, "")
    assert record.file is not None
    assert built.file(record.file).is_file()


def test_onnx_file_is_an_artifact_as_it_is(built: Project) -> None:
    """ONNX Runtime's artifact is the exported graph itself."""
    record = artifact(built, ONNXRUNTIME)

    assert record.file == built.onnx(Graph.FP16).file


def test_eager_artifact_is_the_weights(built: Project) -> None:
    """The eager variant's file is the stored weights, and its input and output are the model's."""
    record = artifact(built, EAGER)

    assert record.file == built.source().weights
    assert [spec.shape for spec in (*record.inputs, *record.outputs)] == [("batch", 3, 32, 32), ("batch", 10)]


@pytest.mark.parametrize(
    ("variant_id", "reason"), [(INT8, "cannot build int8 convolutions"), (DYNAMO, missing_driver() or "no Torch")]
)
def test_skipped(built: Project, variant_id: str, reason: str) -> None:
    """A build that this host or flavour cannot do is skipped, with the reason and without a file."""
    record = artifact(built, variant_id)

    assert (record.outcome, record.file, record.log) == (Outcome.SKIPPED, None, None)
    assert reason in record.reason


def test_a_gpu_without_torch_makes_no_module(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that builds engines needs no torch; its modules are skipped with that reason."""
    on_gpu = Project(Plan(project.config, host(H100)), project.paths, STAGES)
    monkeypatch.setattr("pipeline.stages.build.stage.installed", lambda module: module != "torch")

    record = build_variant(on_gpu, on_gpu.plan.variant("tiny/sm90-h100-80gb-hbm3-torch2.11/eager-fp16"))

    assert (record.outcome, record.reason) == (Outcome.SKIPPED, "torch is not installed here")


def test_a_baseline_on_a_gpu_is_its_weights(project: Project) -> None:
    """A baseline that torch runs needs no build: its file is the source's weights."""
    on_gpu = Project(Plan(project.config, host(H100)), project.paths, STAGES)

    record = build_variant(on_gpu, on_gpu.plan.variant("tiny/sm90-h100-80gb-hbm3-torch2.11/inductor-fp16"))

    assert (record.outcome, record.file) == (Outcome.DONE, project.source().weights)


def test_failed(project: Project) -> None:
    """A build that fails says why, and is not taken for a success."""
    break_graph(project)

    record = build(project, ENGINE)

    assert (record.outcome, record.file) == (Outcome.FAILED, None)
    assert "TensorRT cannot read the ONNX graph" in record.reason


def test_failed_build_removes_the_earlier_engine(project: Project) -> None:
    """The engine of an earlier build does not stay where a later one failed."""
    engine = project.paths.engine(project.plan.variant(ENGINE))
    assert engine.is_file()
    break_graph(project)

    build(project, ENGINE)

    assert not engine.exists()


def test_failed_build_keeps_its_log(project: Project) -> None:
    """The log of the build that failed is kept, and the record vouches for it."""
    break_graph(project)

    record = build(project, ENGINE)

    assert record.log is not None
    assert "Failed to parse" in project.file(record.log).read_text()


@pytest.fixture
def _uninstalled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In processes that builders run in, TensorRT-RTX cannot be imported."""
    (tmp_path / "tensorrt_rtx.py").write_text("raise ImportError('libtensorrt_rtx.so: not found')\n")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("_uninstalled")
def test_skipped_build_removes_the_earlier_engine(project: Project) -> None:
    """The engine of an earlier build does not stay where a later one was skipped."""
    assert build(project, ENGINE).outcome is Outcome.SKIPPED
    assert not project.paths.engine(project.plan.variant(ENGINE)).exists()


@pytest.mark.usefixtures("_uninstalled")
def test_skipped_build_says_what_to_do(project: Project) -> None:
    """The reason of a skipped build has the fix if there is one."""
    assert "the dependency group `rtx`" in build(project, ENGINE).reason


def test_failure_before_the_builder_has_no_log(project: Project) -> None:
    """A build that failed before its builder said anything has no log."""
    variant = project.plan.variant(ENGINE)
    project.paths.build_log(variant).unlink()
    broken = variant.model_copy(update={"profile": None})

    with pytest.raises(BuildError, match="is no engine"):
        _build(project, broken, key_of(project, Step("build", ENGINE)))

    assert not project.paths.build_log(variant).exists()


def test_build_after_a_failure(project: Project) -> None:
    """A build that succeeds after one that failed leaves no trace of the failure."""
    graph = project.paths.onnx(Graph.FP16).read_bytes()
    break_graph(project)
    build(project, ENGINE)
    project.paths.onnx(Graph.FP16).write_bytes(graph)

    record = build(project, ENGINE)

    assert (record.outcome, record.reason) == (Outcome.DONE, "")


@pytest.mark.parametrize("variant_id", [ENGINE, ONNXRUNTIME])
def test_graph_that_is_missing(project: Project, variant_id: str) -> None:
    """Without its graph a build is no failure of the variant: the message names the stage to run."""
    project.paths.onnx_record(Graph.FP16).unlink()

    with pytest.raises(RecordError, match="python -m pipeline export tiny/fp16"):
        build(project, variant_id)


def test_variant_without_a_graph(project: Project) -> None:
    """A variant that names no graph is no ONNX artifact."""
    variant = project.plan.variant(EAGER)

    with pytest.raises(BuildError, match="names no graph"):
        _onnx(project, variant, key_of(project, Step("build", EAGER)))


@pytest.mark.parametrize(
    ("segments", "operators", "words"),
    [
        (1, (), ", 1 TensorRT engine"),
        (2, ("aten.a",), ", 2 TensorRT engines; in PyTorch stayed aten.a"),
        (
            3,
            tuple("abcdefg"),
            ", 3 TensorRT engines; in PyTorch stayed a, b, c, d, e, …",
        ),
    ],
)
def test_a_module_that_is_partly_pytorch_says_so(segments: int, operators: tuple[str, ...], words: str) -> None:
    """The printed line counts a module's engines and names the operators in PyTorch."""
    contents = ModuleContents(segments=segments, torch_operators=operators, libraries=())
    assert stage._contents(contents) == words  # noqa: SLF001 - without a compiler


def test_what_stayed_in_pytorch_is_counted() -> None:
    """The most frequent operators come first, with how often they are called."""
    calls = (OperatorCalls(name="aten.b", calls=59), OperatorCalls(name="aten.a", calls=1))
    contents = ModuleContents(segments=1, torch_operators=("aten.a", "aten.b"), calls=calls, libraries=())
    assert stage._contents(contents) == ", 1 TensorRT engine; in PyTorch stayed aten.b ×59, aten.a"  # noqa: SLF001 - without a compiler
