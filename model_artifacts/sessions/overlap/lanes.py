"""Batches on the GPU in a row: one is copied in, one computed and one copied out at the same time.

    with engine.overlap(buffers=3) as overlap:
        for logits in overlap.map(batches):
            …

Three streams do this. A batch's computation waits for its copy, and its copy back for the computation. The host waits
for a result before it uses that batch's buffers again.
"""

from __future__ import annotations

from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from model_artifacts.host import cuda
from model_artifacts.sessions.feeds.batches import each, feed_of, size_of
from model_artifacts.sessions.feeds.checks import refusal, require_batch, sample_of
from model_artifacts.sessions.onnx import named
from model_artifacts.sessions.overlap.turns import Turns, require_buffers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy.typing as npt

    from model_artifacts.records import Gpu, KernelSpecialization
    from model_artifacts.sessions.feeds.batches import Batch
    from model_artifacts.sessions.onnx import Outputs
    from model_artifacts.tensorrt.runtime import ExecutionContext, LoadedEngine


class Streams(NamedTuple):
    """The streams of the copies in, of the computation, and of the copies out."""

    uploads: cuda.Stream
    kernels: cuda.Stream
    downloads: cuda.Stream


class _Lane:
    """The buffers of one batch, with the events of its way."""

    def __init__(self) -> None:
        self.device: dict[str, cuda.Memory] = {}
        self.pinned: dict[str, cuda.PinnedMemory] = {}
        self.on_gpu: dict[str, cuda.DeviceArray] = {}
        self.staged: dict[str, npt.NDArray[Any]] = {}
        self.graph: cuda.Graph | None = None
        self.events: list[cuda.Event] = []

    def allocate(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Allocate both memories of an input or an output; `close` frees what there is if this fails half-way.

        Raises:
            RunError: the GPU has no room.
        """
        size = cuda.bytes_of(shape, dtype)
        self.device[name] = cuda.Memory(size)
        self.on_gpu[name] = self.device[name].array(shape, dtype)
        self.pinned[name] = cuda.PinnedMemory(size)
        self.staged[name] = self.pinned[name].array(shape, dtype)

    def mark(self) -> None:
        """Make the events."""
        self.events += [cuda.Event() for _ in range(3)]

    def drop_graph(self) -> None:
        """Destroy the graph, which belongs to one batch size."""
        if self.graph is not None:
            self.graph.close()
            self.graph = None

    def close(self) -> None:
        """Free everything."""
        self.drop_graph()
        blocks: list[cuda.Memory | cuda.PinnedMemory | cuda.Event] = [*self.device.values(), *self.pinned.values()]
        for block in (*blocks, *self.events):
            block.close()
        self.on_gpu.clear()
        self.staged.clear()
        self.device.clear()
        self.pinned.clear()
        self.events.clear()


@contextmanager
def open_overlap(
    loaded: LoadedEngine,
    gpu: Gpu,
    buffers: int,
    cache: bytes | None,
    specialization: KernelSpecialization,
) -> Iterator[Overlap]:
    """Open an execution context for batches in a row, for the calling thread.

    Args:
        loaded: the engine.
        gpu: its GPU.
        buffers: the batches under way at once: 2 to 4.
        cache: kernels from a session's `runtime_cache()`, for flavours that compile some at run time.
        specialization: the time at which such flavours compile kernels for the shapes in use.

    Raises:
        UsageError: the number of buffers is none that overlaps.
        RunError: the GPU has no room.
        KernelsError: the cache is damaged, or another GPU, driver or version wrote it.
    """
    require_buffers(buffers)
    cuda.use(gpu)
    with ExitStack() as stack:
        streams = Streams(*(stack.enter_context(closing(cuda.Stream())) for _ in range(3)))
        context = stack.enter_context(loaded.context(streams.kernels.handle, cache, specialization))
        overlap = Overlap(loaded, context, streams, buffers)
        stack.callback(overlap.close)
        yield overlap


class Overlap:
    """Runs batches of one size at a time, several of them under way. One thread uses it."""

    def __init__(
        self,
        loaded: LoadedEngine,
        context: ExecutionContext,
        streams: Streams,
        buffers: int,
    ) -> None:
        """Allocate nothing yet: `prepare` does.

        Args:
            loaded: the engine.
            context: an execution context of its own.
            streams: for the copies in, for the computation, and for the copies out.
            buffers: the batches under way at once.

        Raises:
            UsageError: the number of buffers is none that overlaps.
        """
        self._turns = Turns(buffers)
        self._loaded = loaded
        self._context = context
        self._streams = streams
        self._lanes = [_Lane() for _ in range(buffers)]
        self._inputs, self._outputs = loaded.inputs, loaded.outputs
        self.size = 0
        """The number of images of a batch, as prepared; 0 before."""

    def __len__(self) -> int:
        """The number of batches under way."""
        return len(self._turns)

    @property
    def full(self) -> bool:
        """True if every buffer has a batch, so that a result must be taken first."""
        return self._turns.full

    def prepare(self, size: int) -> None:
        """Allocate the buffers, and capture a CUDA graph for each of them. Results that were not taken are lost.

        Args:
            size: the number of images in each of the next batches.

        Raises:
            RunError: the engine does not take this size, or the GPU has no room.
        """
        if not self._loaded.batches.takes(size):
            first = self._inputs[0]
            raise refusal(self._inputs, self._loaded.batches, f"{first.dtype} {(size, *sample_of(first))}")
        if size == self.size:
            return
        self._clear()
        for spec in self._inputs:
            self._context.set_input_shape(spec.name, (self._loaded.batches.padded(size), *sample_of(spec)))
        for lane in self._lanes:
            for spec in (*self._inputs, *self._outputs):
                lane.allocate(spec.name, self._context.shape(spec.name), np.dtype(spec.dtype))
            lane.mark()
            if not self._loaded.streams_weights:
                self._bind(lane)
                self._context.enqueue(self._streams.kernels.handle)  # an engine must have run before a capture
                self._streams.kernels.synchronize()
                lane.graph = self._streams.kernels.capture(lambda: self._context.enqueue(self._streams.kernels.handle))
        self.size = size

    def feed(self) -> dict[str, npt.NDArray[Any]]:
        """Return the pinned arrays of the next batch's inputs, by their names, for the caller to fill.

        Raises:
            RunError: every buffer has a batch.
        """
        lane = self._lanes[self._turns.next]
        return {spec.name: lane.staged[spec.name][: self.size] for spec in self._inputs}

    def put(self, batch: Batch) -> None:
        """Copy a batch to the pinned memory of the next buffer, and start it. Another size is prepared for first.

        Args:
            batch: a numpy array as `Session` takes it; of several inputs, such an array by the name of each.

        Raises:
            RunError: the engine does not take it, every buffer has a batch, or running failed.
        """
        feed = feed_of([spec.name for spec in self._inputs], batch)
        arrays = [np.asarray(array) for array in feed.values()]
        require_batch(self._inputs, self._loaded.batches, arrays)
        self.prepare(len(arrays[0]))
        for staged, array in zip(self.feed().values(), arrays, strict=True):
            np.copyto(staged, array)
        self.start()

    def start(self) -> None:
        """Start the batch that `feed` has the arrays of, without waiting for it.

        Raises:
            RunError: every buffer has a batch, or the engine failed.
        """
        lane = self._lanes[self._turns.next]
        uploaded, computed, downloaded = lane.events
        uploads, kernels, downloads = self._streams
        for spec in self._inputs:
            _fill_up(lane.staged[spec.name], self.size)
            cuda.copy_to_gpu(lane.on_gpu[spec.name], lane.staged[spec.name], uploads)
        uploaded.record(uploads)
        kernels.wait(uploaded)
        if lane.graph is not None:
            lane.graph.launch()
        else:
            self._bind(lane)
            self._context.enqueue(kernels.handle)
        computed.record(kernels)
        downloads.wait(computed)
        for spec in self._outputs:
            cuda.copy_to_host(lane.staged[spec.name], lane.on_gpu[spec.name], downloads)
        downloaded.record(downloads)
        self._turns.start()

    def result(self) -> Outputs:
        """Wait for the batch that was started first.

        Returns:
            its logits in pinned memory, which are valid until its buffers take a batch again; of several outputs, such
            an array by the name of each.

        Raises:
            RunError: no batch is under way, or the engine failed.
        """
        lane = self._lanes[self._turns.oldest]
        lane.events[-1].synchronize()
        self._turns.end()
        found = [lane.staged[spec.name][: self.size] for spec in self._outputs]
        return named(tuple(spec.name for spec in self._outputs), found)

    def map(self, batches: Iterable[Batch]) -> Iterator[Outputs]:
        """Yield the logits of batches in their order, each as a new array.

        Args:
            batches: numpy arrays as `Session` takes them. While their size stays the same, they overlap.

        Raises:
            RunError: the engine does not take a batch, or running failed.
        """
        for batch in batches:
            while len(self) and (self.full or size_of(batch) != self.size):
                yield each(self.result(), np.array)
            self.put(batch)
        while len(self):
            yield each(self.result(), np.array)

    def close(self) -> None:
        """Wait for what is under way, and free all memory."""
        self._clear()

    def _clear(self) -> None:
        for stream in self._streams:
            stream.synchronize()
        while len(self._turns):
            self._turns.end()
        for lane in self._lanes:
            lane.close()
        self.size = 0

    def _bind(self, lane: _Lane) -> None:
        for name, memory in lane.device.items():
            self._context.set_address(name, memory.pointer)


def _fill_up(batch: npt.NDArray[Any], rows: int) -> None:
    """Repeat a batch's first rows to its end: an engine of several profiles runs the next of their sizes."""
    if rows < len(batch):
        batch[rows:] = np.resize(batch[:rows], batch[rows:].shape)
