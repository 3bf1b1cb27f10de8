"""Engines with a profile for each of several batch sizes: written, built, run, judged, described and served."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from google.protobuf import text_format
from pydantic import ValidationError
from tritonclient.grpc import model_config_pb2 as pb

from model_artifacts.errors import ConfigError, RunError
from model_artifacts.host import cuda
from model_artifacts.host.hashes import describe_file
from model_artifacts.host.record_files import write_record
from model_artifacts.records import Backend, BatchRange, Key, Precision, Setting, Status
from model_artifacts.releases.triton import make_repositories
from model_artifacts.sessions.engine import Engine
from pipeline.cli.main import main
from pipeline.config.loading import load_config
from pipeline.planning.freshness import current
from pipeline.planning.plan import Plan
from pipeline.planning.project import Project
from pipeline.planning.steps import Step
from pipeline.records import Outcome
from pipeline.stages import STAGES
from pipeline.stages.common.opening import open_runner
from pipeline.stages.validate import stage
from pipeline.stages.validate.batches import batch_sizes_of, checked_sizes
from tests.conftest import REPOSITORY, TINY
from tests.support.fake_cuda import FakeEngine, FakeRuntime, at
from tests.support.hosts import H100, host
from tests.support.plans import config_of
from tests.support.records import reread
from tests.support.triton import plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy.typing as npt

    from pipeline.stages.validate.outputs import Ran

EACH = BatchRange(min=1, opt=4, max=4, tuned=(1, 2, 4))
FAR = BatchRange(min=1, opt=12, max=12, tuned=(2, 5, 12))
ENGINE = "tiny/rtx-sm80+/fp16-each1-2-4-ws16MiB"
CPU_FP16 = "tiny/cpu-x86_64/onnxruntime-fp16"


# What is written.


def test_the_sizes_are_one_entry_of_the_matrix() -> None:
    """Its engine takes every batch up to the largest, is named after its sizes, and is timed at each of them."""
    config = config_of(profiles=[1, {"sizes": [1, 2, 4]}])
    assert config.profiles[1] == EACH
    assert [item.label for item in config.profiles] == ["b1", "each1-2-4"]
    assert config.timed_batches == (1, 2, 4)
    assert EACH.phrase == "1-4, tuned for each of 1, 2, 4"
    assert [EACH.padded(size) for size in (1, 2, 3, 4)] == [1, 2, 4, 4]
    assert [FAR.padded(size) for size in (1, 3, 12)] == [2, 5, 12]


def test_a_range_is_recorded_as_before() -> None:
    """Without sizes of their own the field is absent, so that older versions and keys hold."""
    plain = BatchRange(min=1, opt=2, max=4)
    assert plain.model_dump() == {"min": 1, "opt": 2, "max": 4}
    assert EACH.model_dump()["tuned"] == (1, 2, 4)
    assert reread(EACH) == EACH


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("{sizes: [8]}", "expected at least two sizes, got [8]; write 8 for one"),
        ("{sizes: [8, 1]}", "expected sizes in ascending order, each once, got [8, 1]"),
        ("{sizes: [1, 1]}", "expected sizes in ascending order, each once, got [1, 1]"),
        ("{sizes: [0, 8]}", "profiles[1].sizes[0]: expected at least 1, got 0"),
        ("{sizes: [1, yes]}", "profiles[1].sizes[1]: expected a whole number, got true"),
        ("{sizes: [1, 2.0]}", "profiles[1].sizes[1]: expected a whole number, got 2.0"),
        ("{sizes: []}", "expected a list of at least two batch sizes, such as [1, 8, 64], got []"),
        ("{sizes: 8}", "expected a list of at least two batch sizes, such as [1, 8, 64], got 8"),
        ("{sizes: [1, 8], max: 8}", "profiles[1].max: expected `sizes` alone, or min, opt and max; remove one of them"),
        ("{sizes: [1, 4294967296]}", "profiles[1].sizes[1]: expected at most 2147483647, got 4294967296"),
        ("each", "expected a batch size, {min, opt, max} or {sizes}, got 'each'"),
    ],
    ids=lambda value: value if value.startswith(("{", "each")) else "",
)
def test_mistakes_are_reported_with_their_place(write_config: Callable[[str], Path], entry: str, says: str) -> None:
    """The line is the entry's, and the text says what was expected. `test_problems` has the columns."""
    with pytest.raises(ConfigError) as caught:
        load_config(write_config(f"profiles:\n  - 1\n  - {entry}\nworkspaces: [1GiB]\n"), host())
    assert re.search(r"3:\d+: profiles\[1\]", str(caught.value))
    assert says in str(caught.value)


def test_the_same_sizes_twice_are_an_error(write_config: Callable[[str], Path]) -> None:
    """Two engines with the same profiles would be one."""
    entries = "profiles: [{sizes: [1, 8]}, {sizes: [1, 8]}]\nworkspaces: [1GiB]\n"
    with pytest.raises(ConfigError, match="lists the same entry twice: each1-8"):
        load_config(write_config(entries), host())


def test_a_record_with_another_range_is_refused() -> None:
    """A damaged record cannot claim batches that no profile takes."""
    with pytest.raises(ValidationError, match="expected min 1, opt and max 8"):
        BatchRange(min=1, opt=8, max=64, tuned=(1, 8))


# What is built.


@pytest.fixture(scope="module")
def project(built_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The tiny project with an engine of several profiles beside the others, built by TensorRT-RTX."""
    folder = tmp_path_factory.mktemp("profiles")
    (folder / "pipeline.yaml").write_text(TINY.replace("max: 4}]", "max: 4}, {sizes: [1, 2, 4]}]"))
    shutil.copytree(built_folder / "artifacts", folder / "artifacts")
    found = Project.load(folder / "pipeline.yaml", STAGES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        for step in (("build", ENGINE), ("validate", ENGINE), ("build", module_of(found)), ("manifest", "tiny")):
            assert main([*step, "--config", str(folder / "pipeline.yaml")]) == 0, step
    return found


def module_of(project: Project) -> str:
    """Return the id of a module with several profiles."""
    return next(item.id for item in project.plan.variants if item.backend is Backend.DYNAMO and item.profile == EACH)


def test_one_file_has_a_profile_for_each_size(project: Project) -> None:
    """The library tells of the memory of each; the engine's is that of all, and the batch stays dynamic."""
    artifact = project.artifact(project.plan.variant(ENGINE))
    assert (artifact.outcome, artifact.variant.profile) == (Outcome.DONE, EACH)
    assert [(spec.name, spec.shape[0]) for spec in (*artifact.inputs, *artifact.outputs)] == [
        ("image", "batch"),
        ("logits", "batch"),
    ]
    assert Setting(name="profile", value="each1-2-4", applied=True) in artifact.settings
    assert artifact.log is not None
    log = project.file(artifact.log).read_text()
    sizes = [int(size) for size in re.findall(r"Total Activation Memory: (\d+)", log)]
    assert len(sizes) == 3
    assert "[profile 2]" in log
    assert "[profile 3]" not in log
    assert artifact.memory is not None
    assert artifact.memory.activation_bytes == sum(sizes)


def test_an_engine_of_one_profile_is_not_affected(project: Project) -> None:
    """What was built before is up to date, by its key and its name."""
    for name in ("fp16-b1-ws16MiB", "fp16-b1-2-4-ws16MiB"):
        variant = project.plan.variant(f"tiny/rtx-sm80+/{name}")
        assert current(project, Step("build", variant.id), partial(project.artifact, variant)) is not None


def test_modules_are_skipped_with_the_reason(project: Project) -> None:
    """Torch-TensorRT compiles a module for one range."""
    artifact = project.artifact(project.plan.variant(module_of(project)))
    assert artifact.outcome is Outcome.SKIPPED
    assert "only engines have a profile for each batch size" in artifact.reason


def test_the_manifest_tells_the_sizes(project: Project) -> None:
    """A deployment sees what the engine is tuned for. It was built, and is deployable on no word but a GPU's."""
    document = json.loads(project.paths.manifest.read_text())
    entries = {item["id"]: item for item in document["artifacts"]}
    assert entries[ENGINE]["profile"] == {"min": 1, "opt": 4, "max": 4, "tuned": [1, 2, 4]}
    assert entries[ENGINE]["status"] == Status.BUILT.value
    assert "tuned" not in entries["tiny/rtx-sm80+/fp16-b1-2-4-ws16MiB"]["profile"]


# What runs.


@pytest.fixture
def loaded(gpu: FakeRuntime) -> Any:
    """An engine for batches of 2, 5 and 12."""
    return FakeEngine(gpu, FAR)


def images(count: int, first: int = 0) -> npt.NDArray[np.float32]:
    """Return images, the first of which is all `first`, the next one more, and so on."""
    values = np.arange(first, first + count, dtype=np.float32)
    return np.array(np.broadcast_to(values[:, None, None, None], (count, 3, 4, 4)), order="C")


def logits(count: int, first: int = 0) -> npt.NDArray[np.float32]:
    """Return the network's logits for these images."""
    return (np.arange(first, first + count)[:, None] + np.arange(10)[None]).astype(np.float32)


@pytest.mark.parametrize("cuda_graph", [True, False], ids=["graph", "kernels"])
def test_a_batch_runs_as_the_next_size_without_the_surplus(loaded: Any, *, cuda_graph: bool) -> None:
    """In any order, from the host: as many rows come back as went in, and the next larger profile ran."""
    sizes = (12, 1, 5, 2, 3, 12, 4, 11, 6, 1)
    with Engine(loaded, H100).session(cuda_graph=cuda_graph) as run:
        for number, size in enumerate(sizes):
            found = run(images(size, number))
            assert found.shape == (size, 10)
            np.testing.assert_allclose(found, logits(size, number))
    ran = loaded.contexts[0].ran
    assert {*ran} == {2, 5, 12}
    if not cuda_graph:
        assert ran == [FAR.padded(size) for size in sizes]


@pytest.mark.parametrize("cuda_graph", [True, False], ids=["graph", "kernels"])
def test_a_batch_on_the_gpu_is_padded_there(gpu: FakeRuntime, loaded: Any, *, cuda_graph: bool) -> None:
    """The caller's memory ends after its own rows, and nothing behind it is read."""
    with Engine(loaded, H100).session(cuda_graph=cuda_graph) as run:
        for size in (12, 5, 4, 1, 2):
            batch = images(size, 7)
            memory = cuda.Memory(batch.nbytes)
            array = memory.array(batch.shape, batch.dtype)
            gpu.cudaMemcpyAsync(array.pointer, batch.ctypes.data, batch.nbytes)
            found = run(array)
            assert found.shape == (size, 10)
            np.testing.assert_allclose(cuda.downloaded(found), logits(size, 7))
            memory.close()


def test_the_surplus_is_the_batch_again(gpu: FakeRuntime, loaded: Any) -> None:
    """What fills a batch up are its own rows, not those of an earlier caller, nor memory that nobody wrote."""
    with Engine(loaded, H100).session(cuda_graph=False) as run:
        run(images(12, 100))
        run(images(3, 1))
        pointer = loaded.contexts[0].addresses["image"]
        there = at(pointer, (12, 3, 4, 4))[:, 0, 0, 0]
        assert there[:5].tolist() == [1, 2, 3, 1, 2]
    assert gpu.idle


def test_each_profile_has_one_graph(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that are padded to the same size share its graph."""
    captures: list[int] = []
    capture = cuda.Stream.capture

    def counted(stream: cuda.Stream, work: Callable[[], None]) -> cuda.Graph:
        captures.append(1)
        return capture(stream, work)

    monkeypatch.setattr(cuda.Stream, "capture", counted)
    with Engine(loaded, H100).session() as run:
        for size in (1, 2, 3, 4, 5, 6, 12, 1, 3, 7):
            np.testing.assert_allclose(run(images(size)), logits(size))
    assert len(captures) == 3


def test_a_prepared_batch_is_padded_too(loaded: Any) -> None:
    """What is timed is what runs, with the copies of the rows that were given alone."""
    with Engine(loaded, H100).session() as run:
        run.upload(images(4, 3))
        run.enqueue()
        landed = run.enqueue_with_copies()
        assert isinstance(landed, np.ndarray)
        assert landed.shape == (4, 10)
    assert loaded.contexts[0].ran == [5, 5, 5]  # before the capture, and two replays


def test_a_batch_beyond_the_largest_size_is_refused(loaded: Any) -> None:
    """The message tells the batches that are taken, and the session goes on."""
    with Engine(loaded, H100).session() as run:
        with pytest.raises(RunError, match=r"1 to 12"):
            run(images(13))
        np.testing.assert_allclose(run(images(3)), logits(3))


# What is judged.


def test_each_size_is_validated_and_a_padded_one_below_it() -> None:
    """All samples run at every size, and rows are checked between the sizes, too."""
    assert checked_sizes(FAR) == (1, 2, 3, 5, 8, 12)
    assert checked_sizes(EACH) == (1, 2, 3, 4)


@pytest.fixture
def ran(built: Project) -> Callable[[int], Ran]:
    """A function that runs the FP16 graph as an engine whose profile of one size is wrong."""

    def make(wrong: int) -> Ran:
        variant = built.plan.variant(CPU_FP16)
        sizes = batch_sizes_of(built, variant, EACH)
        assert (sizes.most, sizes.others) == (4, (1, 2))
        with open_runner(built, built.artifact(variant)) as run:

            def profiled(batch: npt.NDArray[np.float32]) -> Any:
                found = run(batch)
                return found[:, ::-1] if EACH.padded(len(batch)) == wrong else found

            return stage._run_all(profiled, built, variant, sizes)  # noqa: SLF001 - in a process of its own otherwise

    return make


@pytest.mark.parametrize("wrong", [0, 1, 2, 4])
def test_one_wrong_profile_rejects_the_engine(
    built: Project, ran: Callable[[int], Ran], wrong: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gates judge all samples of every profile, and the reason names the batch size."""
    variant = built.plan.variant(CPU_FP16)
    monkeypatch.setattr(stage, "_run", lambda *_: ran(wrong))
    report = stage._validate(built, variant, Key(fields=()))  # noqa: SLF001 - without its record
    assert report.passed == (wrong == 0), report.reason
    failed = {check.metric.partition(":")[0] for check in report.checks if not check.passed}
    assert f"batch {wrong}" in failed or wrong == 0
    sizes = {check.metric for check in report.checks if check.metric.endswith(": relative L2")}
    assert sizes == {"batch 1: relative L2", "batch 2: relative L2", "batch 4: relative L2"}
    if wrong:
        assert not report.proven
        assert report.accuracy is not None
        assert report.accuracy.top1_agreement is not None
        assert report.accuracy.top1_agreement < 0.5


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.FP32], ids=["right", "wrong"])
def test_the_layers_of_each_profile_are_judged(
    copied: Path, gpu: FakeRuntime, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    """The inspector is asked for each profile, with the shapes of its size."""
    (copied / "pipeline.yaml").write_text(TINY.replace("max: 4}]", "max: 4}, {sizes: [1, 2, 4]}]"))
    found = Project.load(copied / "pipeline.yaml", STAGES)
    project = Project(Plan(found.config, host(H100)), found.paths, STAGES)
    fake: Any = FakeEngine(gpu, EACH, sample=(3, 32, 32))
    fake.narrow_at, fake.narrow = 2, precision

    @contextmanager
    def open_fake(*_: object) -> Iterator[Engine]:
        yield Engine(fake, H100)

    monkeypatch.setattr(stage, "open_serialized", open_fake)
    variant = next(item for item in project.plan.variants if item.id.endswith("/fp16-each1-2-4-ws16MiB"))
    artifact = project.artifact(project.plan.variant("tiny/rtx-sm80+/fp16-b1-ws16MiB")).model_copy(
        update={"variant": variant}
    )
    seen = stage._run_engine(project, artifact)  # noqa: SLF001 - in a process of its own otherwise
    assert (seen.batch, [other.batch for other in seen.others]) == (4, [1, 2])
    by_size = {run.batch: [share.precision for share in run.layers] for run in (seen, *seen.others)}
    assert by_size == {4: [Precision.FP16], 1: [Precision.FP16], 2: [precision]}
    fake.batches = BatchRange(min=1, opt=2, max=4)
    with pytest.raises(RunError, match="other optimization profiles than its variant"):
        stage._run_engine(project, artifact)  # noqa: SLF001 - as above


# What is served.


def test_triton_chooses_among_all_profiles(built: Project, tmp_path: Path) -> None:
    """Its instance has a context for each. It composes and pads no batches, and warms each size up."""
    entry = plan("h100", 1.0, profile=FAR)
    root = tmp_path / "artifacts"
    (root / "m").mkdir(parents=True)
    (root / "m/plan").write_bytes(b"plan")
    whole = entry.model_copy(update={"file": describe_file(root / "m/plan", root)})
    manifest = built.manifest()
    assert manifest.model is not None
    own = manifest.model.model_copy(update={"name": whole.model})
    write_record(root / "manifest.json", manifest.model_copy(update={"model": own, "artifacts": (whole,)}))
    make_repositories(root, tmp_path / "triton")
    folder = tmp_path / "triton/sm90/m-fp16-each2-5-12-trt"
    config = text_format.Parse((folder / "config.pbtxt").read_text(), pb.ModelConfig())
    assert [list(group.profile) for group in config.instance_group] == [["0", "1", "2"]]
    assert (config.max_batch_size, list(config.input[0].dims)) == (0, [-1, 3, 32, 32])
    assert not config.HasField("dynamic_batching")
    assert [next(iter(item.inputs["image"].dims)) for item in config.model_warmup] == [12, 2, 5]
    size = (folder / "warmup" / config.model_warmup[0].inputs["image"].input_data_file).stat().st_size
    assert size == 12 * 3 * 32 * 32 * 4
