"""A batch that runs as two parts at once on a real GPU: judged, timed and served as one batch."""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import model_artifacts
from model_artifacts import Requirements
from model_artifacts.host import cuda
from model_artifacts.host.environment import installed
from model_artifacts.records import Backend, Status
from pipeline.stages.common.opening import open_serialized
from tests.conftest import TINY
from tests.gpu.conftest import with_one_engine
from tests.support.logits import FP16, distance, images, reference

if TYPE_CHECKING:
    from model_artifacts.records import ManifestEntry
    from pipeline.planning.project import Project
    from pipeline.records import Artifact

pytestmark = pytest.mark.skipif(not installed("torch"), reason="torch is not installed here")

SIZE = 64
HELD_BYTES = 2**30
"""What a stream is held back with: an H200 fills it in a fraction of a millisecond."""
CONFIGURATION = (
    TINY.replace("[fp32, fp16, bf16, int8]", "[fp16]")
    .replace("[16MiB, 32MiB]", "[64MiB]")
    .replace("[1, {min: 1, opt: 2, max: 4}]", f"[{SIZE}]")
    .replace("{batches: [1, 2], ", f"{{batches: [{SIZE}], ")
    + "tensorrt: {batch_parts: 2}\n"
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The tiny project with one engine, for half of the batch."""
    return with_one_engine(tmp_path_factory.mktemp("parts"), CONFIGURATION)


def test_the_whole_batch_is_judged(entry: ManifestEntry) -> None:
    """The gates see batches of 64, and the record says how they run."""
    assert entry.status is Status.DEPLOYABLE, entry.reason
    assert entry.built_for is not None
    assert entry.built_for.batch_parts == 2
    assert {row.batch for row in entry.rows} == {SIZE}
    assert [spec.shape[0] for spec in (*entry.inputs, *entry.outputs)] == [SIZE, SIZE]


def test_the_engine_is_for_one_part(project: Project, artifact: Artifact) -> None:
    """The library knows half of the batch, and its memory counts twice."""
    with open_serialized(project, artifact) as engine:
        assert engine.batches.sizes == (SIZE,)
        loaded: Any = engine._loaded  # noqa: SLF001 - the library's own object
        (name,) = [spec.name for spec in engine.inputs]
        assert next(iter(loaded._engine.get_tensor_shape(name))) == SIZE // 2  # noqa: SLF001 - as above
        assert artifact.memory is not None
        assert loaded.activation_bytes == artifact.memory.activation_bytes


@pytest.mark.parametrize("cuda_graph", [True, False], ids=["graph", "kernels"])
def test_every_row_is_that_of_its_image(project: Project, artifact: Artifact, *, cuda_graph: bool) -> None:
    """From the host and from the GPU, batch after batch, in any order of the images."""
    every, wanted = images(project, SIZE), reference(project, SIZE)
    with open_serialized(project, artifact) as engine, engine.session(cuda_graph=cuda_graph) as run:
        for number in range(20):
            chosen = np.roll(np.arange(SIZE), 37 * number)
            batch = np.ascontiguousarray(every[chosen])
            assert distance(run(batch), wanted[chosen]) < FP16, number
        memory = cuda.Memory(every.nbytes)
        array = memory.array(every.shape, every.dtype)
        cuda.copy_to_gpu(array, every, run.stream)
        run.stream.synchronize()
        assert distance(cuda.downloaded(run(array)), wanted) < FP16
        memory.close()


def test_overlapped_batches_keep_their_order(project: Project, artifact: Artifact) -> None:
    """Copies of one batch run beside both parts of another."""
    every, wanted = images(project, SIZE), reference(project, SIZE)
    orders = [np.roll(np.arange(SIZE), 11 * number) for number in range(12)]
    with open_serialized(project, artifact) as engine, engine.overlap(3) as overlap:
        waiting: list[Any] = []
        for order in orders:
            if overlap.full:
                assert distance(overlap.result(), wanted[waiting.pop(0)]) < FP16
            overlap.put(np.ascontiguousarray(every[order]))
            waiting.append(order)
        for order in waiting:
            assert distance(overlap.result(), wanted[order]) < FP16


def test_a_batch_ends_after_the_part_that_ends_last(project: Project, artifact: Artifact) -> None:
    """The GPU's clock, and the copies back, would otherwise miss a part that is slower than the first one."""
    with ExitStack() as stack:
        engine = stack.enter_context(open_serialized(project, artifact))
        run = stack.enter_context(engine.session(cuda_graph=False))
        room = stack.enter_context(closing(cuda.Memory(HELD_BYTES))).array((HELD_BYTES,), np.dtype(np.uint8))
        ended = stack.enter_context(closing(cuda.Event()))
        run.upload(images(project, SIZE))
        run.enqueue()
        run.stream.synchronize()
        parts: Any = run._context  # noqa: SLF001 - the contexts of both parts
        (side,) = parts._sides  # noqa: SLF001 - that of the second one
        for _ in range(100):  # some ten milliseconds, in which the first part would long be done
            cuda.clear(room, side.stream)
        run.enqueue()
        ended.record(run.stream)
        ended.synchronize()
        (status,) = cuda.runtime.cudaStreamQuery(side.stream.handle)
        assert int(status) == 0, "the second part is still running"


def test_a_deployment_does_not_see_the_parts(project: Project) -> None:
    """`load` serves whole batches, to several threads at once."""
    with model_artifacts.load(project.paths.root, Requirements(precision="fp16", batch=SIZE), contexts=2) as model:
        assert model.entry.backend is Backend.TENSORRT
        assert distance(model(images(project, SIZE)), reference(project, SIZE)) < FP16


def test_layers_are_those_of_both_parts(project: Project, artifact: Artifact) -> None:
    """The profile of a batch has the time of each layer once, for all rows."""
    with open_serialized(project, artifact) as engine, engine.session(cuda_graph=False) as run:
        run.prepare(SIZE)
        names = [layer.name for layer, _ in run.time_layers(5)]
    assert len(names) == len({*names}) > 1
