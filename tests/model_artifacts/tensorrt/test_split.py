"""A batch in parts that run at once: one session, whose rows are those of the parts in their order."""

from __future__ import annotations

import itertools
from contextlib import ExitStack, closing, contextmanager, suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cuda.bindings.runtime import cudaError_t

from model_artifacts.errors import RunError
from model_artifacts.host import cuda
from model_artifacts.records import BatchRange, TensorSpec
from model_artifacts.sessions.engine import Engine
from model_artifacts.tensorrt.inspector import EngineLayer
from model_artifacts.tensorrt.split import SplitContext, of_all_parts, part_obstacle
from tests.support.fake_cuda import FakeEngine, FakeRuntime
from tests.support.faulty_cuda import FaultyRuntime
from tests.support.hosts import H100

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

PARTS, ROWS = 3, 4
SAMPLE = (3, 4, 4)
CLASSES = 10


class Split(FakeEngine):
    """An engine for one part; its context is that of all parts."""

    def __init__(self, gpu: FakeRuntime) -> None:
        size = PARTS * ROWS
        super().__init__(gpu, BatchRange(min=size, opt=size, max=size), SAMPLE, CLASSES)

    @contextmanager
    def context(self, on: int, cache: bytes | None, how: object) -> Iterator[Any]:
        """Open a context for each part."""
        with ExitStack() as stack:
            parts: list[Any] = [stack.enter_context(super(Split, self).context(on, cache, how)) for _ in range(PARTS)]
            sizes = {"image": ROWS * int(np.prod(SAMPLE)), "logits": ROWS * CLASSES}
            split = SplitContext(parts, {name: 4 * size for name, size in sizes.items()})
            stack.callback(split.release)
            yield split


@pytest.fixture
def engine(gpu: FakeRuntime) -> Split:
    """An engine whose batch of 12 images is three parts of four."""
    return Split(gpu)


def images(first: int = 0) -> npt.NDArray[np.float32]:
    """Return a batch whose images are all `first`, all `first` + 1, and so on."""
    values = np.arange(first, first + PARTS * ROWS, dtype=np.float32)
    return np.array(np.broadcast_to(values[:, None, None, None], (PARTS * ROWS, *SAMPLE)), order="C")


def logits(first: int = 0) -> npt.NDArray[np.float32]:
    """Return the logits of these images."""
    return (np.arange(first, first + PARTS * ROWS)[:, None] + np.arange(CLASSES)[None]).astype(np.float32)


@pytest.mark.parametrize("cuda_graph", [True, False], ids=["graph", "kernels"])
def test_each_part_has_its_own_rows(engine: Any, gpu: FakeRuntime, *, cuda_graph: bool) -> None:
    """Batch after batch, in a graph that has all parts, and without one; nothing stays open afterwards."""
    with Engine(engine, H100).session(cuda_graph=cuda_graph) as run:
        for first in (0, 100, 7):
            np.testing.assert_array_equal(run(images(first)), logits(first))
        assert run.runtime_cache()
    assert [{*context.ran} for context in engine.contexts] == [{ROWS}] * PARTS
    assert len({len(context.ran) for context in engine.contexts}) == 1
    assert gpu.idle


def test_parts_of_overlapping_batches_have_their_own_rows(engine: Any, gpu: FakeRuntime) -> None:
    """Copies and parts overlap, and no batch has rows of another one."""
    with Engine(engine, H100).overlap(2) as overlap:
        overlap.put(images(0))
        for first in (50, 3):
            overlap.put(images(first))
            before = {50: 0, 3: 50}[first]
            np.testing.assert_array_equal(overlap.result(), logits(before))
    assert gpu.idle


@pytest.mark.usefixtures("gpu")
def test_layers_have_the_shapes_of_the_whole_batch() -> None:
    """Their arithmetic beside the time of all parts would otherwise be that of one. Unknown shapes stay so."""
    shapes = ("4x64x8x8", "4", "", "batchx8")
    layers = tuple(EngineLayer(f"layer {number}", "gemm", "", None, shape) for number, shape in enumerate(shapes))
    part: Any = SimpleNamespace(layers=lambda: layers, release=lambda: None)
    split = SplitContext([part] * PARTS, {})
    assert [layer.shape for layer in split.layers()] == ["12x64x8x8", "12", "", "batchx8"]
    split.release()


def test_layers_are_timed_in_all_parts(engine: Any) -> None:
    """The time of a layer is that of the whole batch: the sum of the parts', one after the other."""
    with Engine(engine, H100).session(cuda_graph=False) as run:
        run.prepare(PARTS * ROWS)
        times = {layer.name: taken for layer, taken in run.time_layers(2)}
    assert times == {"conv": pytest.approx(0.3 * PARTS), "copy": pytest.approx(0.1 * PARTS)}


def test_a_batch_without_equal_parts_is_refused(engine: Any) -> None:
    """No row is left out."""
    with engine.context(0, None, None) as context, pytest.raises(RunError, match="a batch of 11 has no 3 equal parts"):
        context.set_input_shape("image", (11, *SAMPLE))


class Part:
    """A context that the library may run no more."""

    def __init__(self, gpu: FakeRuntime) -> None:
        self._gpu = gpu
        self.fails = False
        self.released = False

    def enqueue(self, stream: int) -> None:
        """Put something on a stream.

        Raises:
            RunError: it fails.
        """
        if self.fails:
            raise RunError("the engine cannot be run")
        self._gpu.do(lambda: None, stream)

    def release(self) -> None:
        """Take no more batches."""
        self.released = True


@pytest.mark.parametrize("failing", range(PARTS), ids=str)
@pytest.mark.parametrize("captures", [True, False], ids=["capture", "kernels"])
def test_a_part_that_fails_leaves_none_behind(
    gpu: FakeRuntime, monkeypatch: pytest.MonkeyPatch, failing: int, *, captures: bool
) -> None:
    """Those that have begun end before the stream's later work, and before the end of a capture; the next one works."""
    waiting: list[int] = []
    wait = gpu.cudaStreamWaitEvent

    def noted(stream: int, event: int, flags: int) -> tuple[Any]:
        waiting.append(int(stream))
        return wait(stream, event, flags)

    monkeypatch.setattr(gpu, "cudaStreamWaitEvent", noted)
    parts: list[Any] = [Part(gpu) for _ in range(PARTS)]
    with closing(cuda.Stream()) as stream:
        split = SplitContext(parts, {})
        parts[failing].fails = True

        def enqueue() -> None:
            split.enqueue(stream.handle)

        with pytest.raises(RunError, match="the engine cannot be run"):
            stream.capture(enqueue) if captures else enqueue()
        begun = failing or PARTS - 1  # the first part begins last
        assert len(waiting) == 2 * begun
        assert waiting[begun:] == [stream.handle] * begun
        parts[failing].fails = False
        stream.capture(enqueue).close()
        split.release()
    assert all(part.released for part in parts)
    assert gpu.idle


@pytest.mark.parametrize("overlaps", [True, False], ids=["overlap", "session"])
def test_whatever_call_fails_the_next_batch_is_right(monkeypatch: pytest.MonkeyPatch, *, overlaps: bool) -> None:
    """Or the session could not be opened. In any case nothing stays open."""

    def run(fails: int) -> FaultyRuntime:
        gpu = FaultyRuntime(fails)
        monkeypatch.setattr(cuda, "runtime", gpu)
        engine: Any = Split(gpu)
        with suppress(RunError), opened(Engine(engine, H100)) if overlaps else session(Engine(engine, H100)) as call:
            for first in (0, 100, 7):
                with suppress(RunError):
                    np.testing.assert_array_equal(call(images(first)), logits(first))
            np.testing.assert_array_equal(call(images(3)), logits(3))
        assert gpu.idle, f"call {fails}, {gpu.failed}"
        return gpu

    calls = run(0).calls
    assert all(run(number).failed for number in range(1, calls))


@contextmanager
def opened(engine: Engine) -> Iterator[Callable[[Any], Any]]:
    """Open batches in a row, of which one runs at a time."""
    with engine.overlap(2) as overlap:
        yield lambda batch: next(iter([*overlap.map([batch])]))


def session(engine: Engine) -> Any:
    """Open a session that enqueues each part again for each batch."""
    return engine.session(cuda_graph=False)


@pytest.mark.parametrize("made", range(2 * PARTS - 1), ids=str)
def test_parts_that_cannot_be_made_leave_nothing_open(
    gpu: FakeRuntime, monkeypatch: pytest.MonkeyPatch, made: int
) -> None:
    """CUDA may lack the memory for any of the streams and events."""
    handles = itertools.count()

    def new(create: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *rest: create(*rest) if next(handles) < made else (cudaError_t.cudaErrorMemoryAllocation, 0)

    for name in ("cudaStreamCreateWithFlags", "cudaEventCreate"):
        monkeypatch.setattr(gpu, name, new(getattr(gpu, name)))
    with pytest.raises(RunError, match="a CUDA call failed"):
        SplitContext([Part(gpu) for _ in range(PARTS)], {})  # type: ignore[misc]  # a stand-in
    assert gpu.idle


@pytest.mark.parametrize(
    ("shape", "dtype", "says"),
    [
        ((64, 10), "float32", ""),
        ((32, 1000), "float16", ""),
        ((16, 10), "float32", "a part of logits has 640 bytes, 128 more than a multiple of 256"),
        (("batch", 10), "float32", "logits has axes of several sizes"),
        ((64, "axis_1"), "float32", "logits has axes of several sizes"),
        ((64, 10), "BOOL", "logits is of the type BOOL, which NumPy does not know"),
    ],
    ids=str,
)
def test_parts_begin_at_aligned_addresses(shape: tuple[int | str, ...], dtype: str, says: str) -> None:
    """TensorRT takes no address in between, and undefined sizes give none."""
    found = part_obstacle([TensorSpec(name="logits", shape=shape, dtype=dtype, layout="NC")])
    assert found.startswith(says)
    assert bool(found) == bool(says)


def test_specs_are_of_the_whole_batch() -> None:
    """A caller sees one batch, and no part of it."""
    spec = TensorSpec(name="logits", shape=(64, 10), dtype="float32", layout="NC")
    assert of_all_parts(spec, 2).shape == (128, 10)
    assert of_all_parts(spec, 1) is spec
