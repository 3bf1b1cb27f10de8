"""Sessions of an engine on a CUDA with memory in the host: results, and the release of all resources."""

from __future__ import annotations

import multiprocessing
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from model_artifacts.errors import RunError
from model_artifacts.host import cuda
from model_artifacts.records import AxisRange, BatchRange, BuiltFor, Clock, EngineFlavour, Link, Precision, TensorSpec
from model_artifacts.sessions.engine import Engine, open_engine
from model_artifacts.tensorrt.flavour import Flavour
from pipeline.planning.plan import Plan
from pipeline.planning.project import Project
from pipeline.records import Outcome
from pipeline.stages import STAGES
from pipeline.stages.benchmark import clocks, worker
from pipeline.stages.benchmark.clocks import timed_on_gpu
from pipeline.stages.benchmark.messages import Ask, AskLink, Ready, Started, Warm
from pipeline.stages.benchmark.worker import cold_start, serve
from pipeline.stages.common.outcomes import Ending
from pipeline.stages.validate import stage
from tests.support.fake_cuda import FakeEngine, FakeRuntime
from tests.support.hosts import H100, host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy.typing as npt

    from pipeline.records import Artifact

RANGE = BatchRange(min=1, opt=4, max=12)
ENGINE = "tiny/rtx-sm80+/fp16-b1-2-4-ws16MiB"


@pytest.fixture
def loaded(gpu: FakeRuntime) -> Any:
    """An engine for 1 to 12 images."""
    return FakeEngine(gpu, RANGE)


@pytest.fixture
def engine(loaded: Any) -> Engine:
    """The same, ready for sessions."""
    return Engine(loaded, H100)


def images(count: int) -> npt.NDArray[np.float32]:
    """Return images, the first of which is all 0, the second all 1, and so on."""
    return np.array(
        np.broadcast_to(np.arange(count, dtype=np.float32)[:, None, None, None], (count, 3, 4, 4)), order="C"
    )


def logits(count: int) -> npt.NDArray[np.float32]:
    """Return the network's logits for these images."""
    return (np.arange(count)[:, None] + np.arange(10)[None]).astype(np.float32)


def uploaded(gpu: FakeRuntime, batch: npt.NDArray[Any]) -> tuple[cuda.Memory, cuda.DeviceArray]:
    """Return a copy of a batch in memory that is not the session's."""
    memory = cuda.Memory(batch.nbytes)
    array = memory.array(batch.shape, batch.dtype)
    gpu.cudaMemcpyAsync(array.pointer, batch.ctypes.data, batch.nbytes)
    return memory, array


def downloaded(array: cuda.DeviceArray) -> npt.NDArray[np.float32]:
    """Return a copy of an array on the GPU."""
    target: npt.NDArray[np.float32] = np.empty(array.shape, array.dtype)
    stream = cuda.Stream()
    cuda.copy_to_host(target, array, stream)
    stream.close()
    return target


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_batches_of_every_size_give_their_logits(engine: Engine, *, cuda_graph: bool) -> None:
    """Sizes may change from one batch to the next, in any order, with and without graphs."""
    with engine.session(cuda_graph=cuda_graph) as run:
        for size in (4, 1, 12, 4, 1):
            np.testing.assert_allclose(run(images(size)), logits(size))


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_images_of_every_size_in_the_range_give_their_logits(engine: Engine, loaded: Any, *, cuda_graph: bool) -> None:
    """A graph belongs to the shape of a batch, not to its size alone; other sizes are refused."""
    ranges = (AxisRange(name="height", min=2, opt=4, max=8), AxisRange(name="width", min=2, opt=4, max=6))
    shape = ("batch", 3, "height", "width")
    loaded.inputs = (TensorSpec(name="image", shape=shape, dtype="float32", layout="NCHW", ranges=ranges),)
    with engine.session(cuda_graph=cuda_graph) as run:
        for height, width in ((4, 4), (8, 6), (2, 6), (4, 4), (8, 2)):
            batch = np.ascontiguousarray(np.broadcast_to(images(3)[:, :, :1, :1], (3, 3, height, width)))
            np.testing.assert_allclose(run(batch), logits(3))
        with pytest.raises(RunError, match=r"height 2 to 8, width 2 to 6\), contiguous\n.*\(3, 3, 8, 7\)"):
            run(np.zeros((3, 3, 8, 7), np.float32))
        run.prepare(2)
        assert loaded.contexts[0].images == (2, 3, 4, 4)


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_maps_of_every_size_come_as_large_as_their_images(engine: Engine, loaded: Any, *, cuda_graph: bool) -> None:
    """The buffers hold the maps of the largest images; each batch takes its own part, in the shape that it has."""
    ranges = (AxisRange(name="height", min=2, opt=4, max=8), AxisRange(name="width", min=2, opt=4, max=6))
    given, maps = loaded.inputs[0], loaded.outputs[0]
    loaded.inputs = (given.model_copy(update={"shape": ("batch", 3, "height", "width"), "ranges": ranges}),)
    loaded.outputs = (maps.model_copy(update={"shape": ("batch", 10, "height", "width")}),)
    loaded.maps = True
    with engine.session(cuda_graph=cuda_graph) as run, engine.overlap() as overlap:
        for height, width in ((4, 4), (8, 6), (2, 6), (8, 2)):
            batch = np.ascontiguousarray(np.broadcast_to(images(3)[:, :, :1, :1], (3, 3, height, width)))
            wanted = np.broadcast_to(logits(3)[:, :, None, None], (3, 10, height, width))
            np.testing.assert_allclose(run(batch), wanted)
            np.testing.assert_allclose([*overlap.map([batch, batch])], [wanted, wanted])


def test_an_engine_that_streams_weights_runs_without_graphs(engine: Engine, loaded: Any) -> None:
    """Weights that are streamed exclude the capture of a graph, so that every batch enqueues the kernels."""
    loaded.streams_weights = True
    with engine.session() as run:
        for _ in range(3):
            np.testing.assert_allclose(run(images(4)), logits(4))
    assert loaded.contexts[0].enqueued == 3


def test_result_stays_when_the_next_batch_runs(engine: Engine) -> None:
    """A host's logits are a copy of its own."""
    with engine.session() as run:
        first = run(images(2))
        run(images(2) + 5)
        np.testing.assert_allclose(first, logits(2))


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_array_on_the_gpu_gives_one_on_the_gpu(gpu: FakeRuntime, engine: Engine, *, cuda_graph: bool) -> None:
    """A batch on the GPU runs there, and its logits stay there."""
    with engine.session(cuda_graph=cuda_graph) as run:
        memory, array = uploaded(gpu, images(3))
        found = run(array)
        assert isinstance(found, cuda.DeviceArray)
        np.testing.assert_allclose(downloaded(found), logits(3))
        memory.close()


def test_array_on_the_gpu_is_not_copied_without_a_graph(gpu: FakeRuntime, engine: Engine, loaded: Any) -> None:
    """The engine reads where the array lies, and reads its own buffer again for the host's next batch."""
    with engine.session(cuda_graph=False) as run:
        memory, array = uploaded(gpu, images(2))
        run(array)
        assert loaded.contexts[0].addresses["image"] == memory.pointer
        memory.close()
        np.testing.assert_allclose(run(images(2) + 1), logits(2) + 1)


def test_array_of_another_gpu_is_refused(engine: Engine) -> None:
    """Memory of another GPU is not read."""
    with engine.session() as run, pytest.raises(RunError, match=r"(?s)not in this GPU's memory.*got: +device memory"):
        run(cuda.DeviceArray(64, (1, 3, 4, 4), np.dtype("float32")))


class Foreign:
    """Another library's array, which is written on a stream."""

    def __init__(self, array: cuda.DeviceArray, **changes: object) -> None:
        self.__cuda_array_interface__ = array.__cuda_array_interface__ | changes


@pytest.mark.parametrize(("facts", "stream"), [({"stream": 77}, 77), ({"version": 2}, 1)])
def test_array_is_waited_for(gpu: FakeRuntime, engine: Engine, facts: dict[str, object], stream: int) -> None:
    """Work follows the owner's stream; an owner without a stream is waited for at once."""
    with engine.session() as run:
        memory, array = uploaded(gpu, images(1))
        run(Foreign(array, **facts))
        assert stream in gpu.waits
        memory.close()


def test_each_size_has_a_graph(gpu: FakeRuntime, engine: Engine, captures: list[int]) -> None:
    """More than eight sizes are no reason to launch kernel by kernel; all give their logits."""
    with engine.session() as run:
        before = len(gpu.open)
        for size in [*range(1, 13)] * 10:
            np.testing.assert_allclose(run(images(size)), logits(size))
        assert len(gpu.open) - before == len(captures) == 12


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one with each capture of a graph."""
    found: list[int] = []
    capture = cuda.Stream.capture

    def counted(stream: cuda.Stream, work: Callable[[], None]) -> cuda.Graph:
        found.append(1)
        return capture(stream, work)

    monkeypatch.setattr(cuda.Stream, "capture", counted)
    return found


def test_a_prepared_size_always_has_a_graph(engine: Engine, captures: list[int], loaded: Any) -> None:
    """A benchmark of many sizes replays a graph at each of them, in whatever order they are prepared."""
    with engine.session() as run:
        for size in (*range(1, 13), 1, 12):
            run.prepare(size)
            kernels = loaded.contexts[0].enqueued
            run.enqueue()
            assert loaded.contexts[0].enqueued == kernels
        run(images(5))
        run.prepare(5)
        run.enqueue()
    assert len(captures) >= 12


def test_prepared_batch_can_be_replayed(engine: Engine, loaded: Any) -> None:
    """Once uploaded, a batch is put on the stream again and again without the host's memory."""
    with engine.session() as run:
        run.upload(images(3))
        kernels = loaded.contexts[0].enqueued
        run.enqueue()
        run.enqueue()
        assert loaded.contexts[0].enqueued == kernels  # the graph was replayed
        run.enqueue_kernels()
        assert loaded.contexts[0].enqueued == kernels + 1


def test_preparing_the_same_size_again_changes_nothing(engine: Engine, loaded: Any) -> None:
    """A size that is prepared is prepared."""
    with engine.session() as run:
        run.prepare(2)
        kernels = loaded.contexts[0].enqueued
        run.prepare(2)
        assert loaded.contexts[0].enqueued == kernels


def test_gpu_without_room_says_how_much_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A buffer without room is an error with both sizes, and earlier allocations are released."""
    fake = FakeRuntime(total=100)
    monkeypatch.setattr(cuda, "runtime", fake)
    loaded: Any = FakeEngine(fake, BatchRange(min=1, opt=1, max=1))
    with (
        pytest.raises(RunError, match=r"(?s)too little free memory for a buffer.*192 bytes free.*100 bytes free"),
        Engine(loaded, H100).session(),
    ):
        pass
    assert fake.idle


def test_work_that_cannot_be_captured_leaves_nothing_behind(gpu: FakeRuntime, engine: Engine, loaded: Any) -> None:
    """An engine that fails while it is captured fails with its own error, and the graph begun is destroyed."""
    with engine.session() as run:
        context = loaded.contexts[0]
        real = context.enqueue

        def fails_the_second_time(stream: int) -> None:
            if context.enqueued:
                raise RunError("the engine could not be run")
            real(stream)

        context.enqueue = fails_the_second_time
        before = set(gpu.open)
        with pytest.raises(RunError, match="the engine could not be run"):
            run.prepare(2)
        assert gpu.open == before


@pytest.mark.parametrize("prepares", [False, True], ids=["call", "prepare"])
def test_a_failed_capture_leaves_no_graph_of_another_size(engine: Engine, loaded: Any, *, prepares: bool) -> None:
    """The size whose capture failed runs as itself the next time, and not by the former size's graph."""
    with engine.session() as run:
        run(images(4))
        context = loaded.contexts[0]
        real = context.enqueue

        def fails(_: int) -> None:
            raise RunError("the engine could not be run")

        context.enqueue = fails
        with pytest.raises(RunError, match="could not be run"):
            run.prepare(2) if prepares else run(images(2))
        with pytest.raises(RunError, match="no batch is prepared"):
            run.enqueue()
        context.enqueue = real
        for size in (2, 4, 2):
            np.testing.assert_array_equal(run(images(size)), logits(size))


def test_a_session_that_has_ended_runs_nothing(gpu: FakeRuntime, engine: Engine) -> None:
    """Each call says so, and allocates nothing."""
    with engine.session() as run:
        run(images(2))
    calls = (lambda: run(images(2)), lambda: run.prepare(2), lambda: run.upload(images(2)), run.enqueue)
    for call in (*calls, run.enqueue_kernels, run.enqueue_with_copies):
        with pytest.raises(RunError, match="the session has ended"):
            call()
    assert gpu.idle


def test_compiled_kernels_are_handed_on(engine: Engine, loaded: Any) -> None:
    """A session exports its compiled kernels, and another one imports them."""
    with engine.session(cuda_graph=False) as run:
        run(images(1))
        kept = run.runtime_cache()
    with engine.session(cache=kept):
        assert loaded.caches == [None, b"kernel"]


@pytest.mark.parametrize(("sizes", "expected"), [((), None), ((2,), Precision.FP16)], ids=["before", "after"])
def test_layers_are_those_of_the_session(engine: Engine, sizes: tuple[int, ...], expected: Precision | None) -> None:
    """A session reports the precision of its layers; types that follow from the batch are known after a run."""
    with engine.session() as run:
        for size in sizes:
            run(images(size))
        assert [(share.precision, share.examples) for share in run.shares()] == [(expected, ("conv",))]


def test_layers_are_told_with_their_times(engine: Engine) -> None:
    """The inspector's layer is joined with its time; an unknown layer has a time only."""
    with engine.session(cuda_graph=False) as run:
        run.upload(images(2))
        found = run.time_layers(3)
    assert [(layer.name, layer.kind, taken) for layer, taken in found] == [
        ("conv", "correlation", 0.3),
        ("copy", "", 0.1),
    ]


# Opening.


def test_engine_of_one_input_is_opened(gpu: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that fits is loaded, and gives sessions."""
    assert opened(FakeEngine(gpu, RANGE), monkeypatch) == RANGE


@pytest.mark.parametrize("compatible", [True, False])
def test_code_in_a_version_compatible_engine_is_run(
    gpu: FakeRuntime, monkeypatch: pytest.MonkeyPatch, *, compatible: bool
) -> None:
    """Only an engine that holds its lean runtime may bring code of its own. The parts of its batch are the record's."""
    asked: list[object] = []

    @contextmanager
    def load(*_: object, host_code: bool, parts: int) -> Iterator[Any]:
        asked.append((host_code, parts))
        yield FakeEngine(gpu, RANGE)

    monkeypatch.setattr("model_artifacts.sessions.engine.load_engine", load)
    nothing: Any = None
    built_for = BuiltFor(
        flavour=EngineFlavour.TENSORRT,
        version="10",
        gpu=H100.name,
        compute_capabilities=(90,),
        version_compatible=compatible,
        batch_parts=3,
    )
    with open_engine(Flavour(EngineFlavour.TENSORRT, "10", nothing), b"", built_for, H100):
        pass
    assert asked == [(compatible, 3)]


def test_engine_without_an_input_is_refused(gpu: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that takes nothing gives one answer to every image."""
    none = FakeEngine(gpu, RANGE)
    none.inputs = ()
    with pytest.raises(RunError, match="has no input"):
        opened(none, monkeypatch)


@pytest.mark.parametrize("cuda_graph", [False, True], ids=["kernels", "graph"])
def test_every_output_of_an_engine_is_given_by_its_name(gpu: FakeRuntime, *, cuda_graph: bool) -> None:
    """From the host and from the GPU, at every batch size, each output has its own memory."""
    engine = Engine(FakeEngine(gpu, RANGE, outputs=("boxes", "scores")), H100)  # type: ignore[arg-type]  # a stand-in
    with engine.session(cuda_graph=cuda_graph) as run:
        for size in (1, 3):
            found = run(images(size))
            assert [*found] == ["boxes", "scores"]
            np.testing.assert_allclose(found["boxes"], logits(size))
            np.testing.assert_allclose(found["scores"], logits(size) + 100)
        memory, array = uploaded(gpu, images(3))
        there = run(array)
        assert [*there] == ["boxes", "scores"]
        np.testing.assert_allclose(downloaded(there["boxes"]), logits(3))
        np.testing.assert_allclose(downloaded(there["scores"]), logits(3) + 100)
        memory.close()


def opened(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> BatchRange:
    """Open an engine, and return the batches that it takes."""

    @contextmanager
    def load(*_: object, **__: object) -> Iterator[Any]:
        yield loaded

    monkeypatch.setattr("model_artifacts.sessions.engine.load_engine", load)
    built_for = BuiltFor(flavour=EngineFlavour.TENSORRT, version="10", gpu=H100.name, compute_capabilities=(90,))
    nothing: Any = None
    with open_engine(Flavour(EngineFlavour.TENSORRT, "10", nothing), b"", built_for, H100) as engine:
        return engine.batches


# What times and judges sessions.


def test_gpu_is_timed_by_its_own_clock(engine: Engine) -> None:
    """Latencies are those between two events, each with the host's time to enqueue."""
    with engine.session() as run:
        run.upload(images(2))
        samples = timed_on_gpu(Clock.GPU, Ask(batch=2, runs=5, milliseconds=0.0), run, run.enqueue_kernels)
    assert (samples.clock, samples.milliseconds) == (Clock.GPU, (0.25,) * 5)
    assert len(samples.enqueue_us) == 5


@pytest.fixture
def served(copied: Path, gpu: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> tuple[Project, Artifact]:
    """The tiny project on a host with a GPU, and an engine of it that runs there."""
    found = Project.load(copied / "pipeline.yaml", STAGES)
    project = Project(Plan(found.config, host(H100)), found.paths, STAGES)
    fake: Any = FakeEngine(gpu, BatchRange(min=2, opt=2, max=4), sample=(3, 32, 32))

    @contextmanager
    def open_fake(*_: object) -> Iterator[Engine]:
        yield Engine(fake, H100)

    monkeypatch.setattr(worker, "open_serialized", open_fake)
    monkeypatch.setattr(stage, "open_serialized", open_fake)
    return project, project.artifact(project.plan.variant(ENGINE))


def test_cold_start_keeps_the_kernels_that_it_compiled(served: tuple[Project, Artifact]) -> None:
    """An engine is started without kernels and again with them, which lie beside it then."""
    project, artifact = served
    limited = project.config.benchmark.model_copy(update={"batches": (2,)})
    project = Project(Plan(project.config.model_copy(update={"benchmark": limited}), host(H100)), project.paths, STAGES)
    ready, cache = cold_start(project, artifact)
    assert ready.cold_start is not None
    assert ready.cold_start.cached_seconds is not None
    assert ready.runtime_cache is not None
    assert project.file(ready.runtime_cache).read_bytes() == cache


def test_engine_is_timed_by_every_clock(
    served: tuple[Project, Artifact], gpu: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker reports its cold start and the copies' rates, warms up, and then answers by every clock."""
    monkeypatch.setattr(clocks, "_LINK_BYTES", gpu.total // 4)
    project, artifact = served
    limited = project.config.benchmark.model_copy(update={"batches": (2,)})
    project = Project(Plan(project.config.model_copy(update={"benchmark": limited}), host(H100)), project.paths, STAGES)
    ours, theirs = multiprocessing.Pipe()
    ours.send(Started())  # its turn
    ours.send(AskLink())
    ours.send(Ask(batch=2, runs=3, milliseconds=0.0, warm_up_seconds=5.0))
    ours.send(Ask(batch=2, runs=3, milliseconds=0.0))
    ours.send("no question")  # ends the worker
    serve(theirs, project, artifact, first=True)
    started, ready, link, warm, answer, trouble = (ours.recv() for _ in range(6))
    assert isinstance(link, Link)
    assert isinstance(warm, Warm)
    assert isinstance(started, Started)
    assert isinstance(ready, Ready)
    assert ready.device_memory_bytes == 4 * (4 * 3 * 32 * 32 + 4 * 10)
    assert [(samples.clock, len(samples.milliseconds)) for samples in answer] == [
        (Clock.GPU, 3),
        (Clock.GPU_GRAPH, 3),
        (Clock.COPIES, 3),
        (Clock.PINNED, 3),
        (Clock.HOST, 3),
        (Clock.OVERLAPPED, 3),
        (Clock.STREAMS, 3),
    ]
    assert isinstance(trouble, Ending)
    assert trouble.outcome is Outcome.FAILED


def test_engine_is_judged_by_all_samples_and_its_layers(served: tuple[Project, Artifact]) -> None:
    """A validation has the logits of every sample and the precisions of the layers."""
    project, artifact = served
    seen = stage._run_engine(project, artifact)  # noqa: SLF001 - in a process of its own otherwise
    assert seen.logits.shape == (project.data().validation_samples, 10)
    assert [(share.precision, share.layers) for share in seen.layers] == [(Precision.FP16, 1)]
    assert seen.device.startswith("NVIDIA H100 80GB HBM3, driver ")
