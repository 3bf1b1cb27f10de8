"""A session's memory, as arrays of a batch's shape."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pytest

from model_artifacts.errors import RunError
from model_artifacts.records import TensorSpec
from model_artifacts.sessions.feeds.buffers import Buffers

if TYPE_CHECKING:
    from tests.support.fake_cuda import FakeRuntime

IMAGE = TensorSpec(name="image", shape=("batch", 3), dtype="float32", layout="NC")
INDEX = TensorSpec(name="index", shape=("batch",), dtype="int32", layout="N")


def test_arrays_lie_in_the_memory_of_their_tensor(gpu: FakeRuntime) -> None:
    """Of the batch's shape and type, on the GPU and in pinned memory; all of it is freed."""
    with closing(Buffers()) as buffers:
        address = buffers.allocate("image", 48)
        buffers.allocate("index", 16)
        assert {*gpu.blocks} >= {address}
        place = buffers.place(IMAGE, (2, 3))
        assert (place.on_gpu.pointer, place.on_gpu.shape, place.on_gpu.bytes) == (address, (2, 3), 24)
        assert place.rows is place.on_gpu
        assert not place.is_filled_up
        assert place.staged.shape == (2, 3)
        assert place.staged.dtype == np.float32
        assert place.staged.ctypes.data in gpu.pinned
        assert buffers.place(INDEX, (3,)).staged.dtype == np.int32
    assert gpu.idle


def test_a_batch_that_is_filled_up_has_its_own_rows(gpu: FakeRuntime) -> None:
    """The GPU runs four of them, and the host sends and takes three."""
    with closing(Buffers()) as buffers:
        buffers.allocate("image", 48)
        place = buffers.place(IMAGE, (4, 3), 3)
        assert place.is_filled_up
        assert (place.on_gpu.shape, place.rows.shape, place.staged.shape) == ((4, 3), (3, 3), (3, 3))
        assert place.rows.pointer == place.on_gpu.pointer
    assert gpu.idle


def test_what_there_is_is_freed_where_there_is_no_room(gpu: FakeRuntime) -> None:
    """The first tensor fits, the second one does not."""
    gpu.total = 60
    with closing(Buffers()) as buffers:
        buffers.allocate("image", 48)
        with pytest.raises(RunError, match="too little free memory"):
            buffers.allocate("index", 16)
    assert gpu.idle
