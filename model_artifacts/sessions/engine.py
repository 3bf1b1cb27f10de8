"""Serialized engine → sessions that run batches on the GPU, without torch.

    with open_engine(flavour, plan, built_for, gpu) as engine, engine.session() as run:
        logits = run(images)

Many threads share one engine. Each has a session of its own.
"""

from __future__ import annotations

from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from model_artifacts.host import cuda, gpu_arrays
from model_artifacts.records import KernelSpecialization
from model_artifacts.sessions.feeds.batches import Parts, each, feed_of
from model_artifacts.sessions.feeds.buffers import Buffers
from model_artifacts.sessions.feeds.checks import Shapes, refusal, require_batch, require_usable, shape_of, shapes_of
from model_artifacts.sessions.feeds.room import largest_bytes
from model_artifacts.sessions.feeds.staging import Copiers
from model_artifacts.sessions.onnx import ends_of, named
from model_artifacts.sessions.overlap.lanes import open_overlap
from model_artifacts.tensorrt.fits import check_fits
from model_artifacts.tensorrt.graphs import SizeGraphs
from model_artifacts.tensorrt.inspector import EngineLayer, shares
from model_artifacts.tensorrt.runtime import load_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    import numpy.typing as npt

    from model_artifacts.errors import RunError
    from model_artifacts.records import BatchRange, BuiltFor, Gpu, LayerShare, TensorSpec
    from model_artifacts.sessions.feeds.batches import Batch
    from model_artifacts.sessions.feeds.buffers import Place
    from model_artifacts.sessions.overlap.lanes import Overlap
    from model_artifacts.tensorrt.flavour import Flavour
    from model_artifacts.tensorrt.runtime import Context, LoadedEngine


class Engine:
    """An engine in the GPU's memory. Threads share it; each opens a session of its own."""

    def __init__(self, loaded: LoadedEngine, gpu: Gpu, copiers: Copiers | None = None) -> None:
        self._loaded, self._gpu = loaded, gpu
        self._copiers = copiers or Copiers(0)  # the caller's own thread copies

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs, such as images."""
        return self._loaded.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs, such as the logits."""
        return self._loaded.outputs

    @property
    def batches(self) -> BatchRange:
        """The batch sizes that the engine takes."""
        return self._loaded.batches

    @contextmanager
    def session(
        self,
        *,
        cuda_graph: bool = True,
        cache: bytes | None = None,
        specialization: KernelSpecialization = KernelSpecialization.EAGER,
    ) -> Iterator[Session]:
        """Open an execution context with its stream and buffers, for the calling thread.

        Args:
            cuda_graph: replay a captured graph instead of enqueuing every kernel again, unless the engine streams
                its weights.
            cache: kernels from an earlier session's `runtime_cache()`, for flavours that compile some at run time.
            specialization: the time at which such flavours compile kernels for the shapes in use.

        Raises:
            RunError: the GPU has no room.
            KernelsError: the cache is damaged, or another GPU, driver or version wrote it.
        """
        cuda.use(self._gpu)
        with ExitStack() as stack:
            stream = cuda.Stream()
            stack.callback(stream.close)
            context = stack.enter_context(self._loaded.context(stream.handle, cache, specialization))
            session = Session(self._loaded, context, stream, self._copiers, cuda_graph=cuda_graph)
            stack.callback(session.close)
            session.allocate()
            yield session

    def overlap(
        self,
        buffers: int = 3,
        *,
        cache: bytes | None = None,
        specialization: KernelSpecialization = KernelSpecialization.EAGER,
    ) -> AbstractContextManager[Overlap]:
        """Open a context for batches in a row, as `open_overlap` does; `cache` and `specialization` as in `session`."""
        loaded, copiers = self._loaded, self._copiers
        return open_overlap(loaded, self._gpu, lambda on: loaded.context(on, cache, specialization), copiers, buffers)


@contextmanager
def open_engine(
    flavour: Flavour, plan: bytes, built_for: BuiltFor, gpu: Gpu, weights: Path | None = None
) -> Iterator[Engine]:
    """Load an engine into a GPU's memory.

    Args:
        flavour: this host's flavour.
        plan: the serialized engine. The caller has checked its digest.
        built_for: the TensorRT and the GPUs in the engine's record.
        gpu: the GPU.
        weights: the ONNX file of a stripped engine.

    Raises:
        RunError: the engine is built for another GPU or library, is damaged, does not fit into the GPU's memory, or has
            no input or no output.
    """
    check_fits(built_for, flavour, gpu)
    cuda.use(gpu)
    has_code, parts = built_for.version_compatible, built_for.batch_parts
    with load_engine(flavour, plan, weights, host_code=has_code, parts=parts) as loaded:
        ends_of([spec.name for spec in loaded.inputs], [spec.name for spec in loaded.outputs])
        with closing(Copiers()) as copiers:
            yield Engine(loaded, gpu, copiers)


class Session:
    """A session that turns batches into logits. Its buffers hold one batch, and serve the next one again."""

    def __init__(
        self,
        loaded: LoadedEngine,
        context: Context,
        stream: cuda.Stream,
        copiers: Copiers,
        *,
        cuda_graph: bool,
    ) -> None:
        self.stream = stream
        self._loaded, self._copiers = loaded, copiers
        self._context = context
        self._cuda_graph = cuda_graph and not loaded.streams_weights
        self._inputs, self._outputs = loaded.inputs, loaded.outputs
        self._names = tuple(spec.name for spec in loaded.outputs)
        self._input_names = [spec.name for spec in loaded.inputs]
        self._buffers = Buffers()
        self._graphs = SizeGraphs(self._run_kernels, lambda: stream.capture(lambda: context.enqueue(stream.handle)))
        self._graph: cuda.Graph | None = None
        self._shapes: Shapes = ()
        self._padded: Shapes = ()  # the shapes that run: of an engine with several profiles the next of their sizes
        self._sent: list[Place] = []  # the inputs and outputs of these shapes, in the engine's order
        self._fetched: list[Place] = []
        self._uploads: list[Callable[[slice], None]] = []  # their copies, made once: each call has some microseconds
        self._downloads: list[Callable[[], None]] = []
        self._own_pointers: dict[str, int] = {}
        self._bound: dict[str, int] = {}
        self._ended = False

    def allocate(self) -> None:
        """Allocate memory for the largest batch of the largest samples.

        Raises:
            RunError: the GPU has no room, or the size of an output is not known.
        """
        inputs = {spec.name for spec in self._inputs}
        for name, size in largest_bytes(self._loaded, self._context).items():
            pointer = self._buffers.allocate(name, size, self.stream if name in inputs else None)
            self._context.set_address(name, pointer)
            if name in inputs:
                self._own_pointers[name] = pointer
        self._bound = self._own_pointers

    def close(self) -> None:
        """Free all memory. Arrays on the GPU that the session returned are no longer valid."""
        self._ended, self._graph, self._shapes, self._padded = True, None, (), ()
        self._sent, self._fetched, self._uploads, self._downloads = [], [], [], []
        cuda.close_all([self._buffers, self._graphs])

    def __call__(self, batch: Any) -> Any:  # noqa: ANN401 - numpy in, numpy out; any library's GPU array in, ours out
        """Run one batch and wait for it.

        A numpy array goes to the GPU in pieces by way of pinned memory, and directly if it lies in pinned memory. So do
        the arrays of `Parts`, which are one batch.

        Args:
            batch: float32 (batch, channels, height, width), contiguous: a numpy array, or an array in this GPU's memory
                with `__dlpack__` or `__cuda_array_interface__`. Of several inputs, such an array by the name of each,
                all of them in one of these memories.

        Returns:
            the logits (batch, classes): a new numpy array; or for an array on the GPU a `DeviceArray` in memory of the
            session, which the next batch overwrites. Of several outputs, such an array by the name of each.

        Raises:
            RunError: the engine does not take such a batch, or running failed.
        """
        arrays = self._arrays_of(batch)
        near = [gpu_arrays.on_gpu(array) for array in arrays]
        if any(near) and not all(near):
            raise self._refusal("some inputs in this GPU's memory, and others in the host's")
        if all(near):
            return self._run_on_gpu(arrays)
        return self._run_from_host([item if isinstance(item, Parts) else np.asarray(item) for item in arrays])

    def _arrays_of(self, batch: Any) -> list[Any]:  # noqa: ANN401 - arrays of any library
        """Return each input's array, in the order of the engine's inputs."""
        require_usable(ended=self._ended)
        return list(feed_of(self._input_names, batch).values())

    def prepare(self, size: int) -> None:
        """Make the next `enqueue` run this number of images from the session's own buffer, by a CUDA graph.

        Dynamic axes have the size that the engine is tuned for.

        Raises:
            RunError: the engine does not take this batch size.
        """
        self._prepare_graph(tuple(shape_of(spec, size, "opt") for spec in self._inputs))

    def _prepare_graph(self, shapes: Shapes) -> None:
        require_usable(ended=self._ended)
        self._prepare(shapes)
        if self._cuda_graph and self._graph is None:
            padded, self._shapes, self._padded = self._padded, (), ()  # as in `_shape_for`
            self._graph = self._graphs.keep(padded)
            self._shapes, self._padded = shapes, padded

    def upload(self, batch: Batch) -> None:
        """Copy a batch from the host's memory into the session's own buffers, and prepare for its shape."""
        arrays = self._arrays_of(batch)
        require_batch(self._inputs, self._loaded.batches, arrays)
        self._prepare_graph(shapes_of(arrays))
        for place, array in zip(self._sent, arrays, strict=True):
            place.staged[...] = array  # from here `enqueue_with_copies` sends it again
            cuda.copy_to_gpu(place.rows, place.staged, self.stream)
        self._fill_up()
        self.stream.synchronize()

    def enqueue(self) -> None:
        """Enqueue the prepared batch on the stream without waiting for it.

        Raises:
            RunError: no batch is prepared, the session has ended, or the engine failed.
        """
        if self._graph is not None:
            self._graph.launch()
        else:
            self.enqueue_kernels()

    def enqueue_kernels(self) -> None:
        """Enqueue as `enqueue` does, but always without a CUDA graph.

        Raises:
            RunError: no batch is prepared, the session has ended, or the engine failed.
        """
        require_usable(ended=self._ended, prepared=bool(self._shapes))
        self._context.enqueue(self.stream.handle)

    def enqueue_with_copies(self) -> npt.NDArray[Any] | dict[str, npt.NDArray[Any]]:
        """Enqueue as `enqueue` does, with copies from pinned host memory before and back to it after.

        What is copied is the batch of the last `upload`.

        Returns:
            the host's array that the logits are copied to; of several outputs, such an array by the name of each. It
            is valid once the stream has finished, until the next call.

        Raises:
            RunError: no batch is prepared, the session has ended, or the engine failed.
        """
        require_usable(ended=self._ended, prepared=bool(self._shapes))
        for place in self._sent:
            cuda.copy_to_gpu(place.rows, place.staged, self.stream)
        self._fill_up()
        self.enqueue()
        return self._fetch()

    def _fetch(self) -> npt.NDArray[Any] | dict[str, npt.NDArray[Any]]:
        """Enqueue the copies of the outputs to pinned memory, and return the arrays that they go to."""
        for download in self._downloads:
            download()
        return named(self._names, [place.staged for place in self._fetched])

    def _prepare(self, shapes: Shapes) -> None:
        """Prepare as `prepare` does, but by a graph only if these shapes are called often enough for a capture."""
        if shapes != self._shapes or self._bound is not self._own_pointers:
            self._bind(self._own_pointers)
            self._shape_for(shapes)

    def shares(self) -> tuple[LayerShare, ...]:
        """Return the number of convolutions and matrix products by precision, from the engine's inspector."""
        return shares(self._context.layers())

    def time_layers(self, runs: int) -> tuple[tuple[EngineLayer, float], ...]:
        """Run the prepared batch, and return every layer with its median time, in milliseconds.

        The session is of no other use afterwards, because it goes on timing.

        Raises:
            RunError: the engine failed.
        """
        known = {layer.name: layer for layer in self._context.layers()}
        times = self._context.time_layers(self.stream.handle, runs)
        return tuple((known.get(name) or EngineLayer(name, "", "", None), taken) for name, taken in times.items())

    def runtime_cache(self) -> bytes | None:
        """Return the kernels compiled for this GPU so far; None for a flavour that compiles none at run time."""
        return self._context.runtime_cache()

    def _run_from_host(self, arrays: list[npt.NDArray[Any] | Parts]) -> Batch:
        require_batch(self._inputs, self._loaded.batches, arrays)
        for array in arrays:
            if not isinstance(array, Parts) and not array.flags.c_contiguous:
                raise self._refusal(f"{array.dtype} {array.shape} with strides {array.strides}")
        self._prepare(shapes_of(arrays))
        for place, upload, array in zip(self._sent, self._uploads, arrays, strict=True):
            self._send(place, upload, array)
        self._fill_up()
        self.enqueue()
        landed = self._fetch()
        self.stream.synchronize()
        return each(landed, np.array)

    def _send(self, place: Place, upload: Callable[[slice], None], array: npt.NDArray[Any] | Parts) -> None:
        """Enqueue the copy of an input from the host's memory to the session's own."""
        if isinstance(array, Parts):
            self._copiers.gather(place.staged, array.arrays, upload)
        elif cuda.is_pinned(array):
            cuda.copy_to_gpu(place.rows, array, self.stream)
        else:
            self._copiers.copy(place.staged, array, upload)

    def _run_on_gpu(self, batch: list[Any]) -> cuda.DeviceArray | dict[str, cuda.DeviceArray]:
        arrays = [gpu_arrays.view(array, self.stream) for array in batch]
        require_batch(self._inputs, self._loaded.batches, arrays)
        shapes = shapes_of(arrays)
        rows = shapes[0][0]
        # A graph reads the addresses that it was captured with, and a padded batch more rows than the caller has.
        if self._cuda_graph or self._loaded.batches.padded(rows) != rows:
            self._prepare(shapes)
            for place, array in zip(self._sent, arrays, strict=True):
                cuda.copy_on_gpu(place.rows, array, self.stream)
            self._fill_up()
        else:
            self._bind({spec.name: array.pointer for spec, array in zip(self._inputs, arrays, strict=True)})
            self._shape_for(shapes)
        self.enqueue()
        self.stream.synchronize()
        return named(self._names, [place.rows for place in self._fetched])

    def _fill_up(self) -> None:
        """Repeat the batch's rows up to the size that runs. Without it, those of an earlier batch would run again."""
        for place in self._sent:
            if place.is_filled_up:
                cuda.repeat_rows(place.on_gpu, place.rows.shape[0], self.stream)

    def _bind(self, pointers: dict[str, int]) -> None:
        former, self._bound = self._bound, {}  # if an address is refused, nothing is known of the others
        for name, pointer in pointers.items():
            if pointer != former.get(name):
                self._context.set_address(name, pointer)
        self._bound = pointers

    def _shape_for(self, shapes: Shapes) -> None:
        if shapes == self._shapes:
            return
        if not self._loaded.batches.takes(shapes[0][0]):
            raise self._refusal(f"{self._inputs[0].dtype} {shapes[0]}")
        batch = self._loaded.batches.padded(shapes[0][0])
        padded = tuple((batch, *shape[1:]) for shape in shapes)
        former, self._graph, self._shapes, self._padded = self._padded, None, (), ()  # whatever fails: nothing prepared
        if padded != former:
            for spec, shape in zip(self._inputs, padded, strict=True):
                self._context.set_input_shape(spec.name, shape)
        rows = shapes[0][0] if padded != shapes else None
        given = zip(self._inputs, padded, strict=True)
        self._sent = [self._buffers.place(spec, shape, rows) for spec, shape in given]
        found = ((spec, self._context.shape(spec.name)) for spec in self._outputs)
        self._fetched = [self._buffers.place(spec, shape, rows) for spec, shape in found]
        self._uploads = [place.uploads_on(self.stream) for place in self._sent]
        self._downloads = [place.downloads_on(self.stream) for place in self._fetched]
        self._graph = self._graphs.called(padded) if self._cuda_graph else None
        self._shapes, self._padded = shapes, padded

    def _run_kernels(self) -> None:
        """Run the batch that is being prepared without a graph, and wait for it."""
        self._context.enqueue(self.stream.handle)
        self.stream.synchronize()

    def _refusal(self, got: str) -> RunError:
        return refusal(self._inputs, self._loaded.batches, got)
