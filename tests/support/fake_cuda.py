"""A synchronous CUDA with its memory in the host, and an engine that runs on it.

It knows what is open, so that tests can tell that everything was given back. What a real GPU does is in tests/gpu.
"""
# ruff: noqa: D102,N802 - the methods are CUDA's functions

from __future__ import annotations

import ctypes
import itertools
import threading
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from cuda.bindings import runtime

from model_artifacts.errors import RunError
from model_artifacts.records import BatchRange, Precision, TensorSpec
from model_artifacts.tensorrt.inspector import EngineLayer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OK = runtime.cudaError_t.cudaSuccess
UNSAFE = runtime.cudaError_t.cudaErrorStreamCaptureUnsupported
GLOBAL = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeGlobal
RELAXED = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
NO_MEMORY = runtime.cudaError_t.cudaErrorMemoryAllocation


class FakeRuntime:
    """Stands in for `cuda.bindings.runtime`; names that it does not have are the real one's."""

    def __init__(self, total: int = 2**20) -> None:
        self.total = total
        self.blocks: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.open: set[int] = set()
        """Handles of streams, events and graphs."""
        self.waits: list[int] = []
        """Streams that were waited for."""
        self.current = 0
        """The current GPU."""
        self.chosen: list[int] = []
        """The GPUs that were made the current one."""
        self.graph_bytes = 0
        """The memory that each instantiated graph takes."""
        self.looked_at: list[bool] = []
        """When a profiler was told to look, and to look away."""
        self._handles = itertools.count(1)
        self._recorded_on: dict[int, list[Callable[[], None]]] = {}  # by stream
        self._marked: dict[int, int] = {}  # by event: the stream that it was last recorded on
        self._forked: dict[int, int] = {}  # by stream that a capture has taken in: the stream of the capture
        self._capturing = threading.local()  # of a thread: its mode, and whether a call has broken its capture
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        self._executables: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        """Return the constants and descriptions of the real module."""
        return getattr(runtime, name)

    @property
    def idle(self) -> bool:
        """Nothing is open or allocated."""
        return not (self.blocks or self.pinned or self.open)

    def do(self, work: Callable[[], None], stream: int = 0) -> None:
        """Put work on a stream: it is done now, or recorded."""
        if int(stream) in self._recorded_on:
            self._recorded_on[int(stream)].append(work)
        else:
            work()

    @property
    def is_capturing(self) -> bool:
        """This thread captures a graph."""
        return getattr(self._capturing, "stream", None) is not None

    def _refused(self) -> bool:
        """Break the capture of this thread by a call that may be unsafe, unless its mode allows such calls.

        CUDA names `cudaMalloc` as one. The calls of other threads break no capture in the mode of a thread.
        """
        broken = self.is_capturing and self._mode != RELAXED
        self._capturing.broken = broken or getattr(self._capturing, "broken", False)
        return broken

    @property
    def _mode(self) -> Any:
        return getattr(self._capturing, "mode", GLOBAL)

    def _new(self) -> int:
        handle = next(self._handles)
        self.open.add(handle)
        return handle

    def _end(self, handle: int) -> tuple[Any]:
        self.open.remove(handle)
        return (OK,)

    # Memory.

    def cudaSetDevice(self, index: int) -> tuple[Any]:
        self.current = index
        self.chosen.append(index)
        return (OK,)

    def cudaGetDevice(self) -> tuple[Any, int]:
        return OK, self.current

    def cudaMemGetInfo(self) -> tuple[Any, int, int]:
        taken = sum(map(ctypes.sizeof, self.blocks.values())) + self.graph_bytes * len(self._executables)
        return OK, self.total - taken, self.total

    def cudaMalloc(self, size: int) -> tuple[Any, int]:
        if self._refused():
            return UNSAFE, 0
        if size > self.cudaMemGetInfo()[1]:
            return NO_MEMORY, 0
        return OK, self._allocate(self.blocks, size)

    def cudaHostAlloc(self, size: int, _: int) -> tuple[Any, int]:
        if self._refused():
            return UNSAFE, 0
        return OK, self._allocate(self.pinned, size)

    @staticmethod
    def _allocate(where: dict[int, Any], size: int) -> int:
        block = (ctypes.c_uint8 * size).from_buffer(bytearray(b"\xff" * size))  # NaN, or an index from nowhere
        where[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def cudaFree(self, pointer: int) -> tuple[Any]:
        if self._refused():
            return (UNSAFE,)
        del self.blocks[pointer]
        return (OK,)

    def cudaFreeHost(self, pointer: int) -> tuple[Any]:
        if self._refused():
            return (UNSAFE,)
        del self.pinned[pointer]
        return (OK,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, *rest: Any) -> tuple[Any]:
        def copy() -> None:
            ctypes.memmove(target, source, size)

        self.do(copy, (0, *rest)[-1])
        return (OK,)

    def cudaMemsetAsync(self, target: int, value: int, size: int, stream: int) -> tuple[Any]:
        def clear() -> None:
            ctypes.memset(target, value, size)

        self.do(clear, stream)
        return (OK,)

    def cudaMemcpy(self, target: int, source: int, size: int, _: object) -> tuple[Any]:
        ctypes.memmove(target, source, size)
        return (OK,)

    def cudaPointerGetAttributes(self, pointer: int) -> tuple[Any, SimpleNamespace]:
        """Memory outside every block is another GPU's; pinned memory is the host's."""
        if _is_in(self.pinned, pointer):
            return OK, SimpleNamespace(type=runtime.cudaMemoryType.cudaMemoryTypeHost, device=self.current)
        inside = _is_in(self.blocks, pointer)
        kind = runtime.cudaMemoryType.cudaMemoryTypeDevice
        return OK, SimpleNamespace(type=kind, device=self.current if inside else 1 - self.current)

    # Streams and events.

    def cudaStreamCreateWithFlags(self, _: int) -> tuple[Any, int]:
        return OK, self._new()

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any]:
        self.waits.append(stream)
        return (OK,)

    def cudaStreamWaitEvent(self, stream: int, event: int, _: int) -> tuple[Any]:
        """Take a stream into a capture by an event of it, and let it go again once the capture waits for it."""
        there = self._marked.get(int(event), 0)
        if there in self._recorded_on and int(stream) not in self._recorded_on:
            self._recorded_on[int(stream)] = self._recorded_on[there]
            self._forked[int(stream)] = there
        elif self._forked.get(there) == int(stream):
            del self._forked[there], self._recorded_on[there]
        return (OK,)

    def cudaStreamDestroy(self, stream: int) -> tuple[Any]:
        return self._end(stream)

    def cudaProfilerStart(self) -> tuple[Any]:
        self.looked_at.append(True)
        return (OK,)

    def cudaProfilerStop(self) -> tuple[Any]:
        self.looked_at.append(False)
        return (OK,)

    def cudaEventCreate(self) -> tuple[Any, int]:
        return OK, self._new()

    def cudaEventRecord(self, event: int, stream: int) -> tuple[Any]:
        self.waits.append(stream)
        self._marked[int(event)] = int(stream)
        return (OK,)

    def cudaEventSynchronize(self, _: int) -> tuple[Any]:
        return (OK,)

    def cudaEventElapsedTime(self, *_: int) -> tuple[Any, float]:
        return OK, 0.25

    def cudaEventDestroy(self, event: int) -> tuple[Any]:
        return self._end(event)

    # Graphs.

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> tuple[Any]:
        assert mode == runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal, "others could break the capture"
        self._recorded_on[stream] = []
        self._capturing.stream, self._capturing.broken = stream, False
        return (OK,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, int]:
        work, self._capturing.stream = self._recorded_on.pop(stream), None
        forks = [fork for fork, origin in self._forked.items() if origin == stream]
        for fork in forks:  # the capture ends for all of its streams, however it ends
            del self._forked[fork], self._recorded_on[fork]
        if forks:
            return runtime.cudaError_t.cudaErrorStreamCaptureUnjoined, 0
        if self._capturing.broken:
            return runtime.cudaError_t.cudaErrorStreamCaptureInvalidated, 0
        graph = self._new()
        self._graphs[graph] = work
        return OK, graph

    def cudaThreadExchangeStreamCaptureMode(self, mode: Any) -> tuple[Any, Any]:
        before, self._capturing.mode = self._mode, mode
        return OK, before

    def cudaGraphInstantiate(self, graph: int, _: int) -> tuple[Any, int]:
        executable = self._new()
        self._graphs[executable] = self._graphs[graph]
        self._executables.add(executable)
        return OK, executable

    def cudaGraphLaunch(self, executable: int, _: int) -> tuple[Any]:
        for work in self._graphs[executable]:
            work()
        return (OK,)

    def cudaGraphDestroy(self, graph: int) -> tuple[Any]:
        return self._end(graph)

    def cudaGraphExecDestroy(self, executable: int) -> tuple[Any]:
        self._executables.remove(executable)
        return self._end(executable)


def _is_in(blocks: dict[int, Any], pointer: int) -> bool:
    return any(start <= pointer < start + ctypes.sizeof(block) for start, block in blocks.items())


def at(pointer: int, shape: tuple[int, ...], kind: type[Any] = ctypes.c_float) -> Any:
    """Return the array that lies at an address, of float32 or another type of C."""
    size = int(np.prod(shape))
    return np.ctypeslib.as_array((kind * size).from_address(pointer)).reshape(shape)


class FakeContext:
    """Runs batches of a network whose logits are each image's mean, plus 0, 1, 2 … by class.

    Of several outputs, the second has 100 more, the third 200. An input `tokens` adds each sample's sum to its logits.
    """

    def __init__(self, cuda: FakeRuntime, classes: int, outputs: tuple[str, ...], engine: FakeEngine) -> None:
        self._cuda = cuda
        self._classes = classes
        self._outputs = outputs
        self._engine = engine
        self.ran: list[int] = []
        """The batch sizes that ran."""
        self.addresses: dict[str, int] = {}
        self.images: tuple[int, ...] = ()
        self.tokens: tuple[int, ...] = ()
        self.enqueued = 0

    def set_address(self, name: str, pointer: int) -> None:
        """Keep it."""
        self.addresses[name] = pointer

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Keep it.

        Raises:
            RunError: the engine has no profile of this batch size.
        """
        if self._engine.batches.tuned and shape[0] not in self._engine.batches.tuned:
            raise RunError(f"no profile for a batch of {shape[0]}")
        if name == "tokens":
            self.tokens = shape
        else:
            self.images = shape

    def shape(self, name: str) -> tuple[int, ...]:
        """Return an input's, or the logits'."""
        inputs = {"image": self.images, "tokens": self.tokens}
        return inputs.get(name) or (self.images[0], self._classes, *(self.images[2:] if self._engine.maps else ()))

    def most_bytes(self, name: str) -> int:
        """Return the bytes of an output for the images that were set last: the largest, as a session does it."""
        return int(np.prod(self.shape(name))) * np.dtype(np.float32).itemsize

    def enqueue(self, stream: int) -> None:
        """Compute, now or at the replay of the graph, with the batch size of the capture."""
        images, tokens, addresses = self.images, self.tokens, dict(self.addresses)
        targets = [self.addresses[name] for name in self._outputs]
        places = images[2:] if self._engine.maps else ()

        def work() -> None:
            self.ran.append(images[0])
            means = at(addresses["image"], images).reshape(images[0], -1).mean(axis=1, keepdims=True)
            if tokens:
                means = means + at(addresses["tokens"], tokens, ctypes.c_int64).sum(axis=1, keepdims=True)
            for number, target in enumerate(targets):
                own = means + np.arange(self._classes) + 100 * number
                at(target, (*own.shape, *places))[...] = own.reshape(*own.shape, *(1 for _ in places))

        self.enqueued += 1
        self._cuda.do(work, stream)

    def runtime_cache(self) -> bytes:
        """Return the compiled kernels: one for each batch size."""
        return b"kernel" * self.enqueued

    def time_layers(self, stream: int, runs: int) -> dict[str, float]:
        """Return a convolution that the inspector knows, and a copy that it does not."""
        for _ in range(runs):
            self.enqueue(stream)
        return {"conv": 0.3, "copy": 0.1}

    def release(self) -> None:
        """Take no more batches."""
        self.addresses.clear()

    def layers(self) -> tuple[EngineLayer, ...]:
        """Return one convolution, in FP16 once the shapes are known: until then the inspector leaves types open."""
        known = self._engine.narrow if self.images[:1] == (self._engine.narrow_at,) else Precision.FP16
        return (EngineLayer("conv", "correlation", "", known if self.images else None),)


class FakeEngine:
    """A loaded engine, as a session uses it."""

    def __init__(  # noqa: PLR0913 - the facts of an engine
        self,
        cuda: FakeRuntime,
        batches: BatchRange,
        sample: tuple[int, int, int] = (3, 4, 4),
        classes: int = 10,
        outputs: tuple[str, ...] = ("logits",),
        *,
        takes_tokens: bool = False,
    ) -> None:
        self._cuda = cuda
        self._classes = classes
        self.batches = batches
        self.inputs: tuple[TensorSpec, ...] = (
            TensorSpec(name="image", shape=("batch", *sample), dtype="float32", layout="NCHW"),
            *([TensorSpec(name="tokens", shape=("batch", 2), dtype="int64", layout="NC")] if takes_tokens else []),
        )
        self.outputs = tuple(
            TensorSpec(name=name, shape=("batch", classes), dtype="float32", layout="NC") for name in outputs
        )
        self.narrow_at, self.narrow = 0, Precision.FP16
        """A batch size, and the type in which its kernels multiply."""
        self.maps = False
        """True if each logit fills a map of the image's size. The outputs must say so."""
        self.contexts: list[FakeContext] = []
        self.caches: list[bytes | None] = []
        self.streams_weights = False

    @contextmanager
    def context(self, _: int, cache: bytes | None, __: object) -> Iterator[FakeContext]:
        """Open a context."""
        self.caches.append(cache)
        names = tuple(spec.name for spec in self.outputs)
        self.contexts.append(FakeContext(self._cuda, self._classes, names, self))
        yield self.contexts[-1]
