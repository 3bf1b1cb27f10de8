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

from model_artifacts.errors import RunError, listed
from model_artifacts.host import cuda
from model_artifacts.sessions.feeds.batches import each, feed_of
from model_artifacts.sessions.feeds.checks import Shapes, refusal, require_batch, require_usable, shape_of, shapes_of
from model_artifacts.sessions.onnx import named
from model_artifacts.sessions.overlap.turns import Turns, require_buffers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    import numpy.typing as npt

    from model_artifacts.records import Gpu, TensorSpec
    from model_artifacts.sessions.feeds.batches import Batch
    from model_artifacts.sessions.feeds.staging import Copiers
    from model_artifacts.sessions.onnx import Outputs
    from model_artifacts.tensorrt.runtime import Context, LoadedEngine


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
        for _ in range(3):
            self.events.append(cuda.Event())  # one by one: `close` destroys those that there are

    def close(self) -> None:
        """Free everything, the graph first."""
        blocks: list[cuda.Closable] = [*self.device.values(), *self.pinned.values(), *self.events]
        graphs = [] if self.graph is None else [self.graph]
        self.graph = None
        for held in (self.on_gpu, self.staged, self.device, self.pinned, self.events):
            held.clear()
        cuda.close_all([*blocks, *graphs])


@contextmanager
def open_overlap(
    loaded: LoadedEngine,
    gpu: Gpu,
    context_on: Callable[[int], AbstractContextManager[Context]],
    copiers: Copiers,
    buffers: int,
) -> Iterator[Overlap]:
    """Open an execution context for batches in a row, for the calling thread.

    Args:
        loaded: the engine.
        gpu: its GPU.
        context_on: opens the execution context on a stream.
        copiers: copy batches to pinned memory.
        buffers: the batches under way at once: 2 to 4.

    Raises:
        UsageError: the number of buffers is none that overlaps.
        RunError: the GPU has no room.
        KernelsError: the cache is damaged, or another GPU, driver or version wrote it.
    """
    require_buffers(buffers)
    cuda.use(gpu)
    with ExitStack() as stack:
        streams = Streams(*(stack.enter_context(closing(cuda.Stream())) for _ in range(3)))
        context = stack.enter_context(context_on(streams.kernels.handle))
        overlap = Overlap(loaded, context, streams, copiers, buffers)
        stack.callback(overlap.close)
        yield overlap


class Overlap:
    """Runs batches of one shape at a time, several of them under way. One thread uses it."""

    def __init__(
        self,
        loaded: LoadedEngine,
        context: Context,
        streams: Streams,
        copiers: Copiers,
        buffers: int,
    ) -> None:
        """Allocate nothing yet: `prepare` does.

        Args:
            loaded: the engine.
            context: an execution context of its own.
            streams: for the copies in, for the computation, and for the copies out.
            copiers: copy batches to pinned memory.
            buffers: the batches under way at once.

        Raises:
            UsageError: the number of buffers is none that overlaps.
        """
        self._turns = Turns(buffers)
        self._loaded = loaded
        self._context = context
        self._streams = streams
        self._copiers = copiers
        self._lanes = [_Lane() for _ in range(buffers)]
        self._inputs, self._outputs = loaded.inputs, loaded.outputs
        self._shapes: Shapes = ()
        self._closed = False

    def __len__(self) -> int:
        """The number of batches under way."""
        return len(self._turns)

    @property
    def size(self) -> int:
        """The number of images of a batch, as prepared; 0 before."""
        return self._shapes[0][0] if self._shapes else 0

    @property
    def full(self) -> bool:
        """True if every buffer has a batch, so that a result must be taken first."""
        return self._turns.full

    def prepare(self, size: int) -> None:
        """Allocate the buffers, and capture a CUDA graph for each of them.

        Dynamic axes have the size that the engine is tuned for.

        Args:
            size: the number of images in each of the next batches.

        Raises:
            RunError: the engine does not take this size, batches of another shape are under way, the overlap has
                ended, or the GPU has no room.
        """
        shapes = tuple(shape_of(spec, size, "opt") for spec in self._inputs)
        if not self._loaded.batches.takes(size):
            raise refusal(self._inputs, self._loaded.batches, f"{self._inputs[0].dtype} {shapes[0]}")
        self._prepare(shapes)

    def _prepare(self, shapes: Shapes) -> None:
        require_usable(ended=self._closed)
        if shapes == self._shapes:
            return
        if len(self):
            raise RunError(
                "batches of another shape are under way",
                expected=listed([str(shape) for shape in self._shapes]),
                got=listed([str(shape) for shape in shapes]),
                fix="take their results first",
            )
        self._clear()
        for spec, shape in zip(self._inputs, shapes, strict=True):
            self._context.set_input_shape(spec.name, (self._loaded.batches.padded(shape[0]), *shape[1:]))
        for lane in self._lanes:
            for spec in (*self._inputs, *self._outputs):
                lane.allocate(spec.name, self._context.shape(spec.name), np.dtype(spec.dtype))
            lane.mark()
            if not self._loaded.streams_weights:
                lane.graph = self._captured(lane)
        self._shapes = shapes

    def _captured(self, lane: _Lane) -> cuda.Graph:
        """Return a graph of a buffer's batch. An engine must have run before: on zeros, for no caller's rows are there.

        In what other programs have left in this memory, an index such as a token may lie beyond its table.
        """
        kernels = self._streams.kernels
        self._bind(lane)
        for spec in self._inputs:
            cuda.clear(lane.on_gpu[spec.name], kernels)
        self._context.enqueue(kernels.handle)
        kernels.synchronize()
        return kernels.capture(lambda: self._context.enqueue(kernels.handle))

    def feed(self) -> dict[str, npt.NDArray[Any]]:
        """Return the pinned arrays of the next batch's inputs, by their names, for the caller to fill.

        Raises:
            RunError: nothing is prepared, or every buffer has a batch.
        """
        lane = self._next_lane()
        return {spec.name: lane.staged[spec.name][: self.size] for spec in self._inputs}

    def put(self, batch: Batch) -> None:
        """Copy a batch to the pinned memory of the next buffer, and start it. Another shape is prepared for first.

        Args:
            batch: a numpy array as `Session` takes it; of several inputs, such an array by the name of each. It may
                change after the call.

        Raises:
            RunError: the engine does not take it, every buffer has a batch, batches of another shape are under way,
                the overlap has ended, or running failed.
        """
        arrays = self._arrays_of(batch)
        require_batch(self._inputs, self._loaded.batches, arrays)
        self._prepare(shapes_of(arrays))
        lane = self._next_lane()
        for spec, array in zip(self._inputs, arrays, strict=True):
            self._send(lane, spec, np.ascontiguousarray(array))
        self._compute(lane)

    def _arrays_of(self, batch: Batch) -> list[npt.NDArray[Any]]:
        return [np.asarray(array) for array in feed_of([spec.name for spec in self._inputs], batch).values()]

    def _send(self, lane: _Lane, spec: TensorSpec, array: npt.NDArray[Any]) -> None:
        """Copy an input to its pinned memory, from which each piece goes on to the GPU."""
        staged = lane.staged[spec.name]
        upload = cuda.part_copier(lane.on_gpu[spec.name], staged, self._streams.uploads)
        self._copiers.copy(staged, array, upload)
        if array.nbytes < staged.nbytes:
            _fill_up(staged, self.size)
            upload(slice(array.nbytes, staged.nbytes))

    def fits(self, batch: Batch) -> bool:
        """Return True if a batch may begin beside those under way: it has their shape, or there are none.

        Raises:
            RunError: the engine has other inputs than the batch.
        """
        return not len(self) or shapes_of(self._arrays_of(batch)) == self._shapes

    def _next_lane(self) -> _Lane:
        require_usable(ended=self._closed, prepared=bool(self._shapes))
        return self._lanes[self._turns.next]

    def start(self) -> None:
        """Start the batch that `feed` has the arrays of, without waiting for it.

        Raises:
            RunError: nothing is prepared, every buffer has a batch, or the engine failed.
        """
        lane = self._next_lane()
        for spec in self._inputs:
            _fill_up(lane.staged[spec.name], self.size)
            cuda.copy_to_gpu(lane.on_gpu[spec.name], lane.staged[spec.name], self._streams.uploads)
        self._compute(lane)

    def _compute(self, lane: _Lane) -> None:
        """Start the computation after the copies in, and the copies out after it."""
        uploaded, computed, downloaded = lane.events
        uploads, kernels, downloads = self._streams
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

        A loop that is left early discards the batches under way.

        Args:
            batches: numpy arrays as `Session` takes them. While their shape stays the same, they overlap.

        Raises:
            RunError: batches are under way already, the engine does not take a batch, or running failed.
        """
        if len(self):
            raise RunError("batches are under way", expected="none before `map`", got=f"{len(self)}")
        try:
            for batch in batches:
                while self.full or not self.fits(batch):
                    yield each(self.result(), np.array)
                self.put(batch)
            while len(self):
                yield each(self.result(), np.array)
        finally:
            if len(self):
                self._drain()

    def close(self) -> None:
        """Wait for what is under way, and free all memory."""
        self._closed = True
        self._clear()

    def _drain(self) -> None:
        """Wait for what is under way, and discard it."""
        for stream in self._streams:
            stream.synchronize()
        while len(self._turns):
            self._turns.end()

    def _clear(self) -> None:
        self._shapes = ()
        try:
            self._drain()
        finally:
            cuda.close_all(self._lanes)

    def _bind(self, lane: _Lane) -> None:
        for name, memory in lane.device.items():
            self._context.set_address(name, memory.pointer)


def _fill_up(batch: npt.NDArray[Any], rows: int) -> None:
    """Repeat a batch's first rows to its end: an engine of several profiles runs the next of their sizes."""
    if rows < len(batch):
        batch[rows:] = np.resize(batch[:rows], batch[rows:].shape)
