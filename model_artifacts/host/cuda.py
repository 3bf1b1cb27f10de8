"""GPU memory, streams, events and graphs through cuda-bindings, without torch; callers close all that they create."""

from __future__ import annotations

import ctypes
import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from cuda.bindings import runtime as runtime  # noqa: PLC0414 - also the runtime of gpu_arrays

from model_artifacts.errors import RetryableError, RunError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt

    from model_artifacts.records import Gpu


class Closable(Protocol):
    """A thing that is given back once."""

    def close(self) -> None:
        """Give it back."""


_OLD_DRIVER = "cudaErrorInsufficientDriver"


def check(result: tuple[Any, ...]) -> Any:  # noqa: ANN401 - cuda-bindings is untyped
    """Check the status of a CUDA call, and return None, its single result, or a tuple of its results.

    Args:
        result: the status and the results, as cuda-bindings return them.

    Raises:
        RunError: the call failed; the message has CUDA's own words.
        RetryableError: the driver is too old for this CUDA.
    """
    status, *values = result
    if int(status) != 0:
        _, text = runtime.cudaGetErrorString(status)
        name = str(status.name)
        if name == _OLD_DRIVER:
            raise _old_driver()
        raise RunError("a CUDA call failed", got=f"{name}: {text.decode()}")
    return values[0] if len(values) == 1 else tuple(values) or None


def _old_driver() -> RetryableError:
    _, driver = runtime.cudaDriverGetVersion()
    _, needed = runtime.cudaRuntimeGetVersion()
    return RetryableError(
        "the NVIDIA driver is too old",
        expected=f"a driver for CUDA {needed // 1000}",
        got=f"a driver for CUDA {cuda_version(driver)}" if driver else "no driver",
        fix="update the driver",
    )


def cuda_version(number: int) -> str:
    """Return the version for CUDA's number: 13000 is 13.0."""
    return f"{number // 1000}.{number % 1000 // 10}"


def use(gpu: Gpu) -> None:
    """Make a GPU the current one of this thread.

    Raises:
        RunError: CUDA cannot use the GPU.
    """
    check(runtime.cudaSetDevice(gpu.index))


@contextmanager
def using(gpu: Gpu) -> Iterator[None]:
    """Make a GPU the current one of this thread for a block, and the one of before again at its end.

    Raises:
        RunError: CUDA cannot use the GPU.
    """
    before = check(runtime.cudaGetDevice())
    use(gpu)
    try:
        yield
    finally:
        if before != gpu.index:
            check(runtime.cudaSetDevice(before))


@contextmanager
def keeping() -> Iterator[None]:
    """Give this thread its current GPU of before again after a block that may choose another one."""
    status, before = runtime.cudaGetDevice()
    try:
        yield
    finally:
        if int(status) == 0 and check(runtime.cudaGetDevice()) != before:
            check(runtime.cudaSetDevice(before))


@contextmanager
def beside_captures() -> Iterator[None]:
    """Let this thread free memory in a block, also in the middle of a capture of its own.

    A garbage collection may end a stream of batches, or a model, while its thread captures a graph. CUDA would refuse
    to free memory then, and break the capture. What is freed here belongs to no graph that is being captured.
    """
    relaxed = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
    status, before = runtime.cudaThreadExchangeStreamCaptureMode(relaxed)
    try:
        yield
    finally:
        if int(status) == 0:
            check(runtime.cudaThreadExchangeStreamCaptureMode(before))


def close_all(items: Iterable[Closable]) -> None:
    """Close each of some things, the last one first, even if one of them fails; raise the error of one that did."""
    with ExitStack() as stack:
        for item in items:
            stack.callback(item.close)


def free_bytes() -> int:
    """Return the current GPU's free memory in bytes.

    Raises:
        RunError: CUDA cannot be used.
    """
    return int(check(runtime.cudaMemGetInfo())[0])


def bytes_of(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Return the size of a contiguous array in bytes."""
    return math.prod(shape) * dtype.itemsize


@dataclass(frozen=True)
class DeviceArray:
    """A C-contiguous array in GPU memory that another object owns."""

    pointer: int
    """Address of the first element in GPU memory."""
    shape: tuple[int, ...]
    """Sizes of the axes."""
    dtype: np.dtype[Any]
    """Type of the elements."""
    keeps: object = None
    """The owner of the memory, kept alive by this reference."""

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return bytes_of(self.shape, self.dtype)

    def rows(self, start: int, stop: int) -> DeviceArray:
        """Return some of the rows, in the same memory."""
        sample = self.shape[1:]
        return DeviceArray(
            self.pointer + start * bytes_of(sample, self.dtype), (stop - start, *sample), self.dtype, self.keeps
        )

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        """The array for torch, CuPy and Numba, in version 3 of the CUDA array interface."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "strides": None,
            "version": 3,
        }


class Stream:
    """A non-blocking CUDA stream."""

    def __init__(self) -> None:
        self._stream = check(runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking))
        self.handle = int(self._stream)

    def synchronize(self) -> None:
        """Wait until all work on the stream is done.

        Raises:
            RunError: some of that work failed.
        """
        check(runtime.cudaStreamSynchronize(self._stream))

    def wait(self, event: Event) -> None:
        """Let later work on this stream begin only after an event's moment. The host does not wait.

        Raises:
            RunError: CUDA cannot do so.
        """
        check(runtime.cudaStreamWaitEvent(self._stream, event.handle, 0))

    def close(self) -> None:
        """Destroy the stream."""
        check(runtime.cudaStreamDestroy(self._stream))

    def capture(self, work: Callable[[], None]) -> Graph:
        """Return the work that a function puts on this stream as a CUDA graph, without running it.

        Other threads may allocate and free memory meanwhile; in CUDA's global mode, that would break the capture. What
        a garbage collection of this thread frees goes through `beside_captures`.

        Args:
            work: puts the work on this stream.

        Raises:
            RunError: CUDA cannot capture the work.
        """
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check(runtime.cudaStreamBeginCapture(self._stream, mode))
        try:
            work()
        except BaseException:
            _, graph = runtime.cudaStreamEndCapture(self._stream)
            if int(graph or 0):
                runtime.cudaGraphDestroy(graph)
            raise
        return Graph(check(runtime.cudaStreamEndCapture(self._stream)), self)


class Graph:
    """A CUDA graph for replaying."""

    def __init__(self, graph: Any, stream: Stream) -> None:  # noqa: ANN401 - cuda-bindings is untyped
        try:
            self._executable = check(runtime.cudaGraphInstantiate(graph, 0))
        finally:
            check(runtime.cudaGraphDestroy(graph))
        self._stream = stream.handle

    def launch(self) -> None:
        """Replay the graph on the stream of its capture.

        Raises:
            RunError: CUDA cannot launch the graph.
        """
        (status,) = runtime.cudaGraphLaunch(self._executable, self._stream)
        if status:
            check((status,))

    def close(self) -> None:
        """Destroy the graph."""
        check(runtime.cudaGraphExecDestroy(self._executable))


class Memory:
    """A block of GPU memory."""

    def __init__(self, size: int) -> None:
        try:
            self.pointer = int(check(runtime.cudaMalloc(max(size, 1))))
        except RunError as exc:
            raise RunError(
                "the GPU has too little free memory for a buffer",
                expected=f"{size:,} bytes free",
                got=f"{free_bytes():,} bytes free",
                fix="free GPU memory, or use a profile with a smaller batch",
            ) from exc

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceArray:
        """Return the beginning of the block as an array."""
        return DeviceArray(self.pointer, shape, dtype, self)

    def close(self) -> None:
        """Free the block."""
        check(runtime.cudaFree(self.pointer))


class PinnedMemory:
    """Pinned host memory, which the GPU reads and writes by itself."""

    def __init__(self, size: int) -> None:
        self.pointer = int(check(runtime.cudaHostAlloc(max(size, 1), runtime.cudaHostAllocDefault)))
        self._bytes = np.ctypeslib.as_array((ctypes.c_uint8 * max(size, 1)).from_address(self.pointer))

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return the beginning of the block as an array, which is valid until `close`."""
        return self._bytes[: bytes_of(shape, dtype)].view(dtype).reshape(shape)

    def close(self) -> None:
        """Free the block."""
        check(runtime.cudaFreeHost(self.pointer))


class Event:
    """A CUDA event: a moment on a stream."""

    def __init__(self) -> None:
        self._event = check(runtime.cudaEventCreate())

    @property
    def handle(self) -> Any:  # noqa: ANN401 - cuda-bindings is untyped
        """The event as CUDA's functions take it."""
        return self._event

    def record(self, stream: Stream) -> None:
        """Mark the moment at which the stream has finished its present work."""
        check(runtime.cudaEventRecord(self._event, stream.handle))

    def synchronize(self) -> None:
        """Wait for that moment."""
        check(runtime.cudaEventSynchronize(self._event))

    def milliseconds_since(self, earlier: Event) -> float:
        """Return the milliseconds between two events that have both passed."""
        return float(check(runtime.cudaEventElapsedTime(earlier.handle, self._event)))

    def close(self) -> None:
        """Destroy the event."""
        check(runtime.cudaEventDestroy(self._event))


def copy_to_gpu(target: DeviceArray, source: npt.NDArray[Any], stream: Stream) -> None:
    """Put a copy from host memory on the stream; `source` must stay alive until the copy is done."""
    kind = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
    check(runtime.cudaMemcpyAsync(target.pointer, source.ctypes.data, source.nbytes, kind, stream.handle))


def part_copier(target: DeviceArray, source: npt.NDArray[Any], stream: Stream) -> Callable[[slice], None]:
    """Return what puts a copy of some bytes on the stream, to the same place of `target`; both are contiguous.

    Args:
        target: as many bytes as `source`, or more.
        source: host memory, which must stay alive until the copies are done.
        stream: the stream.

    Returns:
        a function of the bytes, counted from the beginning, with a start and a stop.
    """
    kind = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
    there, here, handle = target.pointer, source.ctypes.data, stream.handle

    def copy(part: slice) -> None:
        begin = int(part.start)
        check(runtime.cudaMemcpyAsync(there + begin, here + begin, int(part.stop) - begin, kind, handle))

    return copy


def is_pinned(array: npt.NDArray[Any]) -> bool:
    """Return True if the GPU reads an array by itself: one in memory that CUDA, or torch, has pinned.

    Raises:
        RunError: CUDA cannot tell.
    """
    facts = check(runtime.cudaPointerGetAttributes(array.ctypes.data))
    return bool(facts.type == runtime.cudaMemoryType.cudaMemoryTypeHost)


def copy_to_host(target: npt.NDArray[Any], source: DeviceArray, stream: Stream) -> None:
    """Put a copy to host memory on the stream; `target` must stay alive until the copy is done."""
    kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
    check(runtime.cudaMemcpyAsync(target.ctypes.data, source.pointer, source.bytes, kind, stream.handle))


def copy_on_gpu(target: DeviceArray, source: DeviceArray, stream: Stream) -> None:
    """Put a copy within GPU memory on the stream."""
    kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
    check(runtime.cudaMemcpyAsync(target.pointer, source.pointer, source.bytes, kind, stream.handle))


def clear(array: DeviceArray, stream: Stream) -> None:
    """Put zeros into an array on the stream."""
    check(runtime.cudaMemsetAsync(array.pointer, 0, array.bytes, stream.handle))


def repeat_rows(array: DeviceArray, there: int, stream: Stream) -> None:
    """Put copies of an array's first rows into all others on the stream.

    Args:
        array: an array of at least one row in GPU memory.
        there: the number of rows that it has.
        stream: the stream.
    """
    while there < array.shape[0]:
        more = min(there, array.shape[0] - there)
        copy_on_gpu(array.rows(there, there + more), array.rows(0, more), stream)
        there += more


def downloaded(array: DeviceArray) -> npt.NDArray[Any]:
    """Return a copy in the host's memory of an array whose work is done.

    Raises:
        RunError: CUDA cannot copy it.
    """
    copy = np.empty(array.shape, array.dtype)
    kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
    check(runtime.cudaMemcpy(copy.ctypes.data, array.pointer, array.bytes, kind))
    return copy
