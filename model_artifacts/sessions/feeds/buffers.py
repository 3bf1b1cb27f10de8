"""A session's memory: each input and output on the GPU and in the host's pinned memory, as arrays of a batch's shape.

The arrays are made once for a shape. Made anew in each call, they took as long as some networks run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from model_artifacts.host import cuda

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from model_artifacts.records import TensorSpec


class Place(NamedTuple):
    """An input or output of a prepared batch, in both memories."""

    on_gpu: cuda.DeviceArray
    """Its array on the GPU, with the rows that fill up the batch."""
    rows: cuda.DeviceArray
    """The batch's own rows of it."""
    staged: npt.NDArray[Any]
    """The pinned array of these rows."""

    @property
    def is_filled_up(self) -> bool:
        """True if the GPU runs more rows than the batch has."""
        return self.rows is not self.on_gpu

    def uploads_on(self, stream: cuda.Stream) -> Callable[[slice], None]:
        """Return what puts the copy of some of the pinned bytes to the GPU on a stream, for many calls."""
        return cuda.part_copier(self.rows, self.staged, stream)

    def downloads_on(self, stream: cuda.Stream) -> Callable[[], None]:
        """Return what puts the copy of the rows to the pinned array on a stream, for many calls."""
        kind = cuda.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        there, here, size, handle = self.staged.ctypes.data, self.rows.pointer, self.rows.bytes, stream.handle

        def download() -> None:
            cuda.check(cuda.runtime.cudaMemcpyAsync(there, here, size, kind, handle))

        return download


class Buffers:
    """The memory of all inputs and outputs for the largest batch."""

    def __init__(self) -> None:
        """Allocate nothing yet."""
        self._device: dict[str, cuda.Memory] = {}
        self._pinned: dict[str, cuda.PinnedMemory] = {}

    def allocate(self, name: str, size: int, stream: cuda.Stream | None = None) -> int:
        """Allocate both memories of an input or output, and return its address on the GPU.

        Args:
            name: its name.
            size: the bytes of its largest batch.
            stream: puts zeros into the GPU's memory before its later work; None leaves what other programs left there.
                A batch runs before its capture, and before it has any rows of a caller: an index from nowhere, such as
                a token, would be read from beyond a table.

        Raises:
            RunError: the GPU has no room.
        """
        self._device[name] = cuda.Memory(size)
        if stream is not None:
            cuda.clear(self._device[name].array((size,), np.dtype(np.uint8)), stream)
        self._pinned[name] = cuda.PinnedMemory(size)
        return self._device[name].pointer

    def place(self, spec: TensorSpec, shape: tuple[int, ...], rows: int | None = None) -> Place:
        """Return the arrays of an input or output.

        Args:
            spec: the input or output.
            shape: its shape as the GPU runs it.
            rows: the rows of the batch, fewer than the shape has; None for a batch that fills it.
        """
        dtype = np.dtype(spec.dtype)
        on_gpu = self._device[spec.name].array(shape, dtype)
        own = on_gpu if rows is None else on_gpu.rows(0, rows)
        return Place(on_gpu, own, self._pinned[spec.name].array(own.shape, dtype))

    def close(self) -> None:
        """Free everything."""
        blocks: list[cuda.Closable] = [*self._device.values(), *self._pinned.values()]
        self._device.clear()
        self._pinned.clear()
        cuda.close_all(blocks)
