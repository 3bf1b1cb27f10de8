"""Arrays of other libraries in GPU memory, through DLPack and the CUDA array interface, without a copy."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from model_artifacts.errors import RunError, one_line
from model_artifacts.host import cuda


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
    if type(array) is np.ndarray:  # the answer takes numpy as long as a copy of a small batch
        return False
    try:
        if hasattr(array, "__cuda_array_interface__"):
            return True
        return int(array.__dlpack_device__()[0]) == _DL_CUDA  # type: ignore[attr-defined]  # that is the question
    except Exception:  # noqa: BLE001 - no such method, or one that knows no such device; each library in its own way
        return False


_DL_CUDA = 2


def view(array: Any, stream: cuda.Stream) -> cuda.DeviceArray:  # noqa: ANN401 - an array of any library
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


def _require_here(array: cuda.DeviceArray) -> None:
    here = cuda.check(cuda.runtime.cudaGetDevice())
    facts = cuda.check(cuda.runtime.cudaPointerGetAttributes(array.pointer))
    if facts.type not in _GPU_MEMORY or facts.device != here:
        raise RunError(
            "the array is not in this GPU's memory",
            expected=f"memory of GPU {here}",
            got=f"{facts.type.name.removeprefix('cudaMemoryType').lower()} memory of GPU {facts.device}",
            fix="copy the array to this GPU first",
        )


_GPU_MEMORY = {cuda.runtime.cudaMemoryType.cudaMemoryTypeDevice, cuda.runtime.cudaMemoryType.cudaMemoryTypeManaged}


def _from_interface(array: Any, stream: cuda.Stream) -> cuda.DeviceArray:  # noqa: ANN401
    facts = array.__cuda_array_interface__
    shape, dtype = tuple(facts["shape"]), np.dtype(facts["typestr"])
    strides = facts.get("strides")
    _require_contiguous(shape, None if strides is None else tuple(size // dtype.itemsize for size in strides))
    producer = facts.get("stream")
    if producer is not None:
        _wait_for(int(producer), stream)
    elif facts.get("version", 0) < _FIRST_WITH_STREAMS:
        cuda.check(cuda.runtime.cudaStreamSynchronize(_LEGACY_STREAM))  # the interface names no stream to wait for
    return cuda.DeviceArray(int(facts["data"][0]), shape, dtype, array)


_LEGACY_STREAM = 1
_FIRST_WITH_STREAMS = 3
"""First version of the interface that names the stream of the array's pending writes."""


def _wait_for(producer: int, stream: cuda.Stream) -> None:
    """Make a stream wait for the present work of another stream."""
    event = cuda.Event()
    try:
        cuda.check(cuda.runtime.cudaEventRecord(event.handle, producer))  # another library's stream has no wrapper
        stream.wait(event)
    finally:
        event.close()


def _from_dlpack(array: Any, stream: cuda.Stream) -> cuda.DeviceArray:  # noqa: ANN401
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
    return cuda.DeviceArray(start, shape, np.dtype(f"{kind}{tensor.dtype.bits // 8}"), (array, capsule))


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
