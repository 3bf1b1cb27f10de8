"""GPU memory, streams, events and graphs through cuda-bindings, without torch; callers close all that they create."""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from cuda.bindings import runtime

from model_artifacts.errors import RetryableError, RunError, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from model_artifacts.records import Gpu

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


def free_bytes() -> int:
    """Return the current GPU's free memory in bytes.

    Raises:
        RunError: CUDA cannot be used.
    """
    free, _ = check(runtime.cudaMemGetInfo())
    return int(free)


@contextmanager
def looked_at() -> Iterator[None]:
    """Let a profiler that waits for CUDA's profiler marks record the block.

    Raises:
        RunError: CUDA cannot be used.
    """
    check(runtime.cudaProfilerStart())
    yield
    check(runtime.cudaProfilerStop())


def bytes_of(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Return the size of a contiguous array in bytes."""
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


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

    def close(self) -> None:
        """Destroy the stream."""
        check(runtime.cudaStreamDestroy(self._stream))

    def capture(self, work: Callable[[], None]) -> Graph:
        """Return the work that a function puts on this stream as a CUDA graph, without running it.

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

    def record(self, stream: Stream) -> None:
        """Mark the moment at which the stream has finished its present work."""
        check(runtime.cudaEventRecord(self._event, stream.handle))

    def synchronize(self) -> None:
        """Wait for that moment."""
        check(runtime.cudaEventSynchronize(self._event))

    def milliseconds_since(self, earlier: Event) -> float:
        """Return the milliseconds between two events that have both passed."""
        return float(check(runtime.cudaEventElapsedTime(earlier._event, self._event)))

    def close(self) -> None:
        """Destroy the event."""
        check(runtime.cudaEventDestroy(self._event))


def copy_to_gpu(target: DeviceArray, source: npt.NDArray[Any], stream: Stream) -> None:
    """Put a copy from host memory on the stream; `source` must stay alive until the copy is done."""
    kind = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
    check(runtime.cudaMemcpyAsync(target.pointer, source.ctypes.data, source.nbytes, kind, stream.handle))


def copy_to_host(target: npt.NDArray[Any], source: DeviceArray, stream: Stream) -> None:
    """Put a copy to host memory on the stream; `target` must stay alive until the copy is done."""
    kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
    check(runtime.cudaMemcpyAsync(target.ctypes.data, source.pointer, source.bytes, kind, stream.handle))


def copy_on_gpu(target: DeviceArray, source: DeviceArray, stream: Stream) -> None:
    """Put a copy within GPU memory on the stream."""
    kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
    check(runtime.cudaMemcpyAsync(target.pointer, source.pointer, source.bytes, kind, stream.handle))


class _DLDataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _DLTensor(ctypes.Structure):
    """DLPack's tensor, which every version of its managed tensors contains (dlpack.h, ABI of version 0)."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype", _DLDataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_DLPACK_KINDS = {0: "i", 1: "u", 2: "f", 6: "b"}
"""DLPack's type code → numpy's kind: kDLInt, kDLUInt, kDLFloat, kDLBool."""


def on_gpu(array: object) -> bool:
    """Return True if an object declares itself an array in GPU memory."""
    if hasattr(array, "__cuda_array_interface__"):
        return True
    device = getattr(array, "__dlpack_device__", None)
    return device is not None and int(device()[0]) == _DL_CUDA


_DL_CUDA = 2


def view(array: Any, stream: Stream) -> DeviceArray:  # noqa: ANN401 - an array of any library
    """Return another library's GPU array without copying it.

    Later work on `stream` waits for the work that the array's owner has put on its own stream.

    Args:
        array: has `__cuda_array_interface__` (version 3) or `__dlpack__`.
        stream: the stream that will use the array.

    Raises:
        RunError: the array is not contiguous, not in this GPU's memory, or of a type that numpy lacks.
    """
    # DLPack first: only its protocol always names the stream to wait for.
    viewed = _from_dlpack(array, stream) if hasattr(array, "__dlpack_device__") else _from_interface(array, stream)
    _require_here(viewed)
    return viewed


def _require_here(array: DeviceArray) -> None:
    here = check(runtime.cudaGetDevice())
    facts = check(runtime.cudaPointerGetAttributes(array.pointer))
    if facts.type not in _GPU_MEMORY or facts.device != here:
        raise RunError(
            "the array is not in this GPU's memory",
            expected=f"memory of GPU {here}",
            got=f"{facts.type.name.removeprefix('cudaMemoryType').lower()} memory of GPU {facts.device}",
            fix="copy the array to this GPU first",
        )


_GPU_MEMORY = {runtime.cudaMemoryType.cudaMemoryTypeDevice, runtime.cudaMemoryType.cudaMemoryTypeManaged}


def _from_interface(array: Any, stream: Stream) -> DeviceArray:  # noqa: ANN401
    facts = array.__cuda_array_interface__
    shape, dtype = tuple(facts["shape"]), np.dtype(facts["typestr"])
    strides = facts.get("strides")
    _require_contiguous(shape, None if strides is None else tuple(size // dtype.itemsize for size in strides))
    producer = facts.get("stream")
    if producer is not None:
        _wait_for(int(producer), stream)
    elif facts.get("version", 0) < _FIRST_WITH_STREAMS:
        check(runtime.cudaStreamSynchronize(_LEGACY_STREAM))  # the interface names no stream to wait for
    return DeviceArray(int(facts["data"][0]), shape, dtype, array)


_LEGACY_STREAM = 1
_FIRST_WITH_STREAMS = 3
"""First version of the interface that names the stream of the array's pending writes."""


def _wait_for(producer: int, stream: Stream) -> None:
    """Make a stream wait for the present work of another stream."""
    event = Event()
    try:
        check(runtime.cudaEventRecord(event._event, producer))  # noqa: SLF001 - another library's stream has no wrapper
        check(runtime.cudaStreamWaitEvent(stream.handle, event._event, 0))  # noqa: SLF001
    finally:
        event.close()


def _from_dlpack(array: Any, stream: Stream) -> DeviceArray:  # noqa: ANN401
    try:
        capsule = array.__dlpack__(stream=stream.handle)
    except Exception as exc:  # each library raises types of its own
        raise RunError("the array cannot be read through DLPack", got=one_line(exc)) from exc
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    address = pointer_of(capsule, b"dltensor")
    tensor = _DLTensor.from_address(address)
    kind = _DLPACK_KINDS.get(tensor.dtype.code)
    if kind is None or tensor.dtype.lanes != 1:
        raise RunError("numpy has no type for the array", got=f"DLPack type code {tensor.dtype.code}")
    shape = tuple(tensor.shape[: tensor.ndim])
    _require_contiguous(shape, tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None)
    # The capsule stays unconsumed: its destructor frees the memory after the last reference.
    start = int(tensor.data or 0) + int(tensor.byte_offset)
    return DeviceArray(start, shape, np.dtype(f"{kind}{tensor.dtype.bits // 8}"), (array, capsule))


def _require_contiguous(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> None:
    """Check strides in elements; an axis of length 1 may have any stride."""
    if strides is None or 0 in shape:
        return
    dense = [int(np.prod(shape[axis + 1 :], dtype=np.int64)) for axis in range(len(shape))]
    if any(size > 1 and have != want for size, have, want in zip(shape, strides, dense, strict=True)):
        raise RunError(
            "the array is not contiguous",
            expected=f"strides {tuple(dense)} (in elements)",
            got=str(strides),
            fix="make a contiguous copy first; in torch: `.contiguous()`",
        )
