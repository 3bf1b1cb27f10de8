"""Runners for several threads: contexts of one engine, and kernels that never keep an engine from running."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from model_artifacts.errors import KernelsError, RunError
from model_artifacts.host import cuda
from model_artifacts.records import (
    Backend,
    BatchRange,
    BuiltFor,
    EngineFlavour,
    KernelSpecialization,
    Precision,
    Variant,
)
from model_artifacts.serving.batching import Batcher, Batching
from model_artifacts.serving.pool import Pool
from model_artifacts.serving.runners import open_runners, open_serving, run_joined
from model_artifacts.serving.streams import Streams
from model_artifacts.sessions import engine as engine_sessions
from model_artifacts.sessions.engine import Engine
from model_artifacts.sessions.opening import ArtifactFile
from model_artifacts.tensorrt.kernels import kept_kernels
from tests.support.fake_cuda import FakeContext, FakeEngine, FakeRuntime
from tests.support.hosts import H100

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from model_artifacts.tensorrt.kernels import KeptKernels

IMAGES = np.ones((2, 3, 4, 4), np.float32)
STRANGE = b"kernels of another GPU"


class CompilingEngine(FakeEngine):
    """An engine whose contexts start with the kernels that they are given, and refuse those of another GPU."""

    def __init__(self, fake: FakeRuntime) -> None:
        super().__init__(fake, BatchRange(min=1, opt=4, max=4))
        self.specializations: list[object] = []

    @contextmanager
    def context(self, stream: int, cache: bytes | None, specialization: object) -> Iterator[FakeContext]:
        """Open a context."""
        if cache == STRANGE:
            self.caches.append(cache)
            raise KernelsError("the runtime cache cannot be used", got="of another GPU")
        self.specializations.append(specialization)
        with super().context(stream, cache, specialization) as context:
            context.runtime_cache = lambda: cache or b"kernels" + b"+" * context.enqueued  # type: ignore[method-assign]
            yield context


class Machine(NamedTuple):
    """A CUDA with memory in the host, an engine, its file, and the place of its kernels."""

    cuda: FakeRuntime
    engine: CompilingEngine
    file: ArtifactFile
    kept: KeptKernels


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """An engine of TensorRT-RTX; in the end nothing on the GPU may still be open."""
    fake = FakeRuntime()
    engine = CompilingEngine(fake)
    loaded: Any = engine

    @contextmanager
    def opened(*_: object) -> Iterator[Engine]:
        cuda.use(H100)
        yield Engine(loaded, H100)

    monkeypatch.setattr(cuda, "runtime", fake)
    monkeypatch.setattr(engine_sessions, "open_engine", opened)
    monkeypatch.setattr("model_artifacts.tensorrt.flavour.load_flavour", lambda _: None)
    path = tmp_path / "engine"
    path.write_bytes(b"engine")
    file = ArtifactFile(
        id="m/rtx/fp16",
        variant=Variant(model="m", target="rtx", backend=Backend.TENSORRT, precision=Precision.FP16),
        path=path,
        gpu=H100,
        fix="",
        record=None,
        built_for=BuiltFor(flavour=EngineFlavour.TENSORRT_RTX, version="1.4", compute_capabilities=(80, 90), gpu=None),
        specialization=KernelSpecialization.LAZY,
    )
    yield Machine(fake, engine, file, kept_kernels(tmp_path / "kernels", "0" * 64, "1.4", H100, "580"))
    assert fake.idle


def test_contexts_share_one_engine(machine: Machine) -> None:
    """Each thread has a context with memory of its own; all give the same logits, and later ones compile nothing."""
    with open_runners(machine.file, 3, machine.kept) as runs:
        assert len(runs) == 3
        expected = runs[0](IMAGES)
        pool = Pool(runs)
        with ThreadPoolExecutor(6) as threads:
            for found in threads.map(pool, [IMAGES] * 60):
                np.testing.assert_array_equal(found, expected)
    assert len(machine.engine.contexts) == 3
    assert machine.engine.caches == [None, b"kernels", b"kernels"]
    assert machine.engine.specializations == [KernelSpecialization.LAZY] * 3


@pytest.mark.parametrize("ends", [(0, 1, 2, 3, 4), (0, 3, 4), (0, 2), (0, 4)], ids=str)
def test_batches_of_several_callers_run_as_one(machine: Machine, ends: tuple[int, ...]) -> None:
    """An engine copies each where it is read, gives what it gives for one array of all, and refuses too many."""
    whole = np.arange(4, dtype=np.float32)[:, None, None, None] + np.zeros((4, 3, 4, 4), np.float32)
    with open_runners(machine.file) as (run,):
        own = [whole[start:end] for start, end in pairwise(ends)]
        np.testing.assert_array_equal(run_joined(run, own), run(whole[: ends[-1]]))
        np.testing.assert_array_equal(run_joined(run, [part[:, :, ::-1] for part in own]), run(whole[: ends[-1]]))
        with pytest.raises(RunError, match="the engine takes other batches"):
            run_joined(run, [whole, whole])
        np.testing.assert_array_equal(run_joined(lambda batch: batch, own), whole[: ends[-1]])


def test_joined_calls_of_threads_have_their_own_rows(machine: Machine) -> None:
    """Four threads fill each batch, in whatever order they come."""
    with open_runners(machine.file) as runs:
        batcher = Batcher(Pool(runs), Batching(4, 60_000.0), 4)

        def call(start: int) -> bool:
            batches = [np.full((1, 3, 4, 4), number, np.float32) for number in range(start, start + 20)]
            return all(batcher(batch)[0, 0] == batch[0, 0, 0, 0] for batch in batches)

        with ThreadPoolExecutor(4) as threads:
            assert all(threads.map(call, (0, 100, 200, 300)))
        batcher.close()
    assert machine.engine.contexts[0].ran == [4] * 21  # one of them before the capture


def test_kernels_are_kept_for_the_next_process(machine: Machine) -> None:
    """What is compiled while the engine opens and runs is there at the next start."""
    with open_runners(machine.file, 1, machine.kept) as (run,):
        assert machine.kept.read() == b"kernels"
        run(IMAGES)
    compiled = machine.kept.read()
    assert compiled is not None
    assert compiled.startswith(b"kernels+")
    with open_runners(machine.file, 1, machine.kept):
        pass
    assert machine.engine.caches == [None, compiled]


def test_kernels_that_came_with_the_engine_are_not_kept_twice(machine: Machine) -> None:
    """This machine writes nothing if it compiled nothing."""
    file = replace(machine.file, runtime_cache=b"kernels of the benchmark")
    with open_runners(file, 2, machine.kept) as runs:
        runs[1](IMAGES)
    assert machine.engine.caches == [b"kernels of the benchmark"] * 2
    assert machine.kept.read() is None


def test_kernels_of_another_gpu_are_set_aside(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    """The engine compiles its own with a warning, keeps them, and does not ask for the others again."""
    file = replace(machine.file, runtime_cache=STRANGE)
    with open_runners(file, 1, machine.kept) as (run,):
        assert run(IMAGES).shape == (2, 10)
    assert "m/rtx/fp16 compiles its kernels anew: those kept are of another run: of another GPU" in caplog.text
    machine.engine.caches.clear()
    own = machine.kept.read()
    with open_runners(file, 1, machine.kept):
        pass
    assert own is not None
    assert machine.engine.caches == [own]


def test_kept_kernels_that_the_library_refuses_are_replaced(machine: Machine) -> None:
    """Those of the artifact are next, and the refused ones do not come back."""
    machine.kept.keep(STRANGE)
    with open_runners(machine.file, 1, machine.kept) as (run,):
        assert run(IMAGES).shape == (2, 10)
    assert machine.engine.caches == [STRANGE, None]
    assert (machine.kept.read() or b"").startswith(b"kernels")


def test_without_a_place_nothing_is_kept(machine: Machine) -> None:
    """An engine of TensorRT compiles nothing at run time."""
    with open_runners(machine.file) as (run,):
        run(IMAGES)
    assert machine.kept.read() is None


def batches(start: int, count: int) -> Iterator[Any]:
    """Yield batches of 1 to 4 images, each of one value: `start`, and the numbers after it."""
    for number in range(start, start + count):
        yield np.full((1 + number // 5 % 4, 3, 4, 4), number, np.float32)


def streams_of(stack: ExitStack, machine: Machine) -> tuple[Pool, Streams]:
    """Return the pool and the streams of an open engine with one context."""
    opened = stack.enter_context(open_serving(machine.file, 1, machine.kept))
    assert opened.overlap is not None
    pool = Pool(opened.runs)
    streams = Streams(pool, opened.overlap)
    stack.callback(streams.close)
    return pool, streams


@pytest.mark.parametrize("buffers", [2, 3, 4])
def test_a_stream_gives_what_the_runner_gives(machine: Machine, buffers: int) -> None:
    """It has a context of its own with the compiled kernels, and the thread keeps its GPU between the results."""
    with ExitStack() as stack:
        pool, streams = streams_of(stack, machine)
        expected = [pool(batch) for batch in batches(0, 30)]
        machine.cuda.current = 1
        found = streams.results(batches(0, 30), lambda batch: batch, buffers)
        for outputs, wanted in zip(found, expected, strict=True):
            assert machine.cuda.current == 1
            np.testing.assert_array_equal(outputs, wanted)
        assert machine.cuda.chosen[-2:] == [H100.index, 1]
        assert machine.engine.caches == [None, b"kernels"]
        assert len(machine.cuda.blocks) == 2  # those of the runner
        machine.cuda.current = H100.index


def test_streams_of_several_threads_have_their_own_results(machine: Machine) -> None:
    """Each has a context, and so has a call in between; one that is left gives its memory back at once."""

    def use(start: int) -> list[Any]:
        return list(streams.results(batches(start, 20), lambda batch: batch, 3))

    with ExitStack() as stack:
        pool, streams = streams_of(stack, machine)
        starts = [0, 100, 200]
        expected = [[pool(batch) for batch in batches(start, 20)] for start in starts]
        with ThreadPoolExecutor(3) as threads:
            for found, wanted in zip(threads.map(use, starts), expected, strict=True):
                for outputs, those in zip(found, wanted, strict=True):
                    np.testing.assert_array_equal(outputs, those)
        for _ in streams.results(batches(0, 20), lambda batch: batch, 3):
            assert pool(IMAGES).shape == (2, 10)
            assert len(machine.cuda.blocks) > 2
            break
        assert len(machine.cuda.blocks) == 2


def test_the_end_of_an_engine_ends_its_streams(machine: Machine) -> None:
    """Everything is given back while the caller still has the stream, and nothing more is run."""
    with ExitStack() as stack:
        _, streams = streams_of(stack, machine)
        left = streams.results(batches(0, 20), lambda batch: batch, 3)
        next(left)
    assert machine.cuda.idle
    with pytest.raises(RunError, match="the model is closed"):
        next(left)


@pytest.mark.parametrize("taken", [1, 2], ids=["full", "emptying"])
def test_results_that_the_end_discards_are_missed(machine: Machine, taken: int) -> None:
    """A stream whose batches have all begun does not stop as if it had given every result."""
    with ExitStack() as stack:
        _, streams = streams_of(stack, machine)
        left = streams.results(batches(0, 3), lambda batch: batch, 3)
        for _ in range(taken):
            next(left)
    with pytest.raises(RunError, match="the model is closed"):
        next(left)


def test_a_stream_without_room_leaves_the_engine_usable(machine: Machine) -> None:
    """Its error names the memory, and a call goes on."""
    with ExitStack() as stack:
        pool, streams = streams_of(stack, machine)
        machine.cuda.total = 3000
        with pytest.raises(RunError, match="too little free memory"):
            list(streams.results(batches(15, 4), lambda batch: batch, 4))
        assert pool(IMAGES).shape == (2, 10)
        assert len(machine.cuda.blocks) == 2


@pytest.mark.parametrize(("backend", "contexts"), [(Backend.ONNXRUNTIME, 4), (Backend.ONNX_REFERENCE, 1)])
def test_graphs_are_called_at_once_where_that_is_safe(tmp_path: Path, backend: Backend, contexts: int) -> None:
    """Threads share one session of ONNX Runtime, which is inside of several calls at once; onnx's evaluator is not."""
    shape = ["batch", 64]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("image", "logits")]
    twos = helper.make_tensor("twos", TensorProto.FLOAT, [1], [2.0])
    body = helper.make_graph(
        [helper.make_node("Mul", ["image", "twos"], ["logits"])], "double", ends[:1], ends[1:], [twos]
    )
    path = tmp_path / "double.onnx"
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    variant = Variant(model="m", target="cpu", backend=backend, precision=Precision.FP32)
    file = ArtifactFile(id="m", variant=variant, path=path, gpu=None, fix="", record=None)
    with open_runners(file, 4) as runs:
        assert len(runs) == contexts
        inside, together = threading.Barrier(contexts, timeout=30), []

        def meeting(run: Any) -> Any:
            def met(batch: Any) -> Any:
                together.append(inside.wait())
                return run(batch)

            return met

        pool = Pool([meeting(run) for run in runs])
        batches = [np.full((3, 64), number, np.float32) for number in range(contexts * 5)]
        with ThreadPoolExecutor(contexts) as threads:
            for number, found in enumerate(threads.map(pool, batches)):
                np.testing.assert_array_equal(found, np.full((3, 64), 2 * number, np.float32))
        assert len(together) == contexts * 5
