"""Copies on a real GPU: pinned memory, pieces, overlapped batches, and the rates of PCIe."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pytest

from model_artifacts.errors import RunError
from model_artifacts.host import cuda
from model_artifacts.host.environment import installed
from model_artifacts.sessions.feeds.batches import parts_of
from model_artifacts.sessions.feeds.staging import PIECE_BYTES, Copiers
from pipeline.stages.benchmark.clocks import measured_link
from pipeline.stages.common.opening import gpu_of, open_serialized
from tests.support.logits import FP16, distance, images, reference

if TYPE_CHECKING:
    from pipeline.planning.project import Project
    from pipeline.records import Artifact


def test_pinned_memory_is_told_from_ordinary_memory(project: Project, fixed: Artifact) -> None:
    """CUDA's own and torch's pinned arrays are; numpy's are not."""
    cuda.use(gpu_of(project, fixed))
    with closing(cuda.PinnedMemory(64)) as pinned:
        array = pinned.array((16,), np.dtype(np.float32))
        assert cuda.is_pinned(array)
        assert cuda.is_pinned(array[3:])
    assert not cuda.is_pinned(np.zeros(16, np.float32))
    if installed("torch"):
        import torch  # noqa: PLC0415 - only where it is installed

        assert cuda.is_pinned(torch.zeros(16).pin_memory().numpy())


def test_an_array_in_pinned_memory_gives_the_same_logits(project: Project, ranged: Artifact) -> None:
    """It is read where it lies, and the logits are those of an ordinary array."""
    batch = images(project, 3)
    with open_serialized(project, ranged) as engine, engine.session() as run:
        with closing(cuda.PinnedMemory(batch.nbytes)) as pinned:
            array = pinned.array(batch.shape, batch.dtype)
            array[...] = batch
            np.testing.assert_array_equal(run(array), run(batch))
        assert distance(run(batch), reference(project, 3)) < FP16


@pytest.mark.parametrize("threads", [0, 1, 6])
def test_pieces_reach_the_gpu(project: Project, fixed: Artifact, threads: int) -> None:
    """A large array goes through pinned memory in pieces, by one thread or several, and arrives as it was."""
    cuda.use(gpu_of(project, fixed))
    source = np.random.default_rng(0).integers(0, 255, 40 * PIECE_BYTES + 12345, np.uint8)
    with (
        closing(cuda.Stream()) as stream,
        closing(cuda.Memory(source.nbytes)) as memory,
        closing(cuda.PinnedMemory(source.nbytes)) as pinned,
        closing(Copiers(threads)) as copiers,
    ):
        there, staged = memory.array(source.shape, source.dtype), pinned.array(source.shape, source.dtype)
        for shift in range(3):
            batch = source + np.uint8(shift)
            copiers.copy(staged, batch, cuda.part_copier(there, staged, stream))
            stream.synchronize()
            np.testing.assert_array_equal(cuda.downloaded(there), batch)


def test_parts_of_a_batch_give_the_logits_of_all(project: Project, ranged: Artifact) -> None:
    """Callers' arrays that are joined are copied one after another, and are a batch like any other."""
    batch = images(project, 4)
    with open_serialized(project, ranged) as engine, engine.session() as run:
        np.testing.assert_array_equal(run(parts_of([batch[:1], batch[1:3], batch[3:]])), run(batch))


def test_memory_is_freed_in_the_middle_of_a_capture(project: Project, fixed: Artifact) -> None:
    """As by a garbage collection: the capture is whole. Without the relaxed mode, CUDA refuses and breaks it."""
    cuda.use(gpu_of(project, fixed))
    with closing(cuda.Stream()) as stream, closing(cuda.Memory(64)) as memory:
        there = memory.array((64,), np.dtype(np.uint8))

        def work() -> None:
            with cuda.beside_captures():
                other.close()
            cuda.clear(there, stream)

        other = cuda.Memory(2**20)
        cuda.copy_to_gpu(there, np.ones(64, np.uint8), stream)
        stream.synchronize()
        with closing(stream.capture(work)) as graph:
            assert cuda.downloaded(there).all()
            graph.launch()
            stream.synchronize()
            assert not cuda.downloaded(there).any()
        other = cuda.Memory(2**20)
        with pytest.raises(RunError, match="captur"):
            stream.capture(other.close)
        other.close()


@pytest.mark.parametrize("buffers", [2, 3, 4])
def test_overlapped_batches_have_their_own_logits(project: Project, ranged: Artifact, buffers: int) -> None:
    """Hundreds of different batches in a row give what each gives alone, also when their size changes."""
    batch, wanted = images(project, 4), reference(project, 4)
    order = [np.roll(np.arange(4), number)[:size] for number in range(100) for size in (4, 4, 4, 1)]
    with open_serialized(project, ranged) as engine, engine.overlap(buffers) as overlap:
        found = list(overlap.map(np.ascontiguousarray(batch[rows]) for rows in order))
    assert len(found) == len(order)
    for logits, rows in zip(found, order, strict=True):
        assert distance(logits, wanted[rows]) < FP16


def test_overlapped_batches_leave_no_memory_behind(project: Project, fixed: Artifact) -> None:
    """Ten openings take no more memory than one."""
    with open_serialized(project, fixed) as engine:
        taken = []
        for _ in range(10):
            with engine.overlap() as overlap:
                list(overlap.map([images(project, 1)] * 5))
            taken.append(cuda.free_bytes())
    assert taken[0] - taken[-1] <= 2**21


def test_rates_are_those_of_a_bus(project: Project, fixed: Artifact) -> None:
    """From PCIe 3 with four lanes to NVLink; two measurements agree."""
    first, second = (measured_link(gpu_of(project, fixed)) for _ in range(2))
    for link in (first, second):
        assert 1e9 < link.to_gpu_bytes_per_s < 1e12
        assert 1e9 < link.to_host_bytes_per_s < 1e12
    assert abs(first.to_gpu_bytes_per_s / second.to_gpu_bytes_per_s - 1) < 0.2
