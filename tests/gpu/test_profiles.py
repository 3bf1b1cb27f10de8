"""An engine with a profile for each of several batch sizes on a real GPU: proven at each, and served by its size."""

from __future__ import annotations

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

SIZES = (1, 8, 64)
CONFIGURATION = (
    TINY.replace("[fp32, fp16, bf16, int8]", "[fp16]")
    .replace("[16MiB, 32MiB]", "[64MiB]")
    .replace("[1, {min: 1, opt: 2, max: 4}]", "[{sizes: [1, 8, 64]}]")
)
TURNS = (1, 64, 1, 5, 8, 2, 64, 63, 9, 8, 1, 7, 33, 1)
"""Batch sizes of calls, in an order in which each profile runs again after each other one."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The tiny project with one engine, of three profiles."""
    return with_one_engine(tmp_path_factory.mktemp("profiles"), CONFIGURATION)


def metrics(entry: ManifestEntry) -> list[str]:
    """Return the names of all checks."""
    return [check.metric for check in entry.checks]


def test_the_engine_is_deployable_by_the_gates_of_each_profile(entry: ManifestEntry) -> None:
    """Every check of all samples stands there for each size, with the layers of that profile."""
    assert entry.status is Status.DEPLOYABLE, entry.reason
    assert entry.profile is not None
    assert entry.profile.tuned == SIZES
    by_size = {size: {name for name in metrics(entry) if name.startswith(f"batch {size}: ")} for size in SIZES}
    for size, found in by_size.items():
        assert f"batch {size}: executed precision" in found
        assert {name.partition(": ")[2] for name in found} >= {name.partition(": ")[2] for name in by_size[1]}
    assert {*SIZES} <= {row.batch for row in entry.rows}


def test_the_library_reads_back_what_was_asked_for(project: Project, artifact: Artifact) -> None:
    """The engine has three profiles of one size each, and its memory is that of a context for each."""
    with open_serialized(project, artifact) as engine:
        assert engine.batches.tuned == SIZES
        loaded: Any = engine._loaded  # noqa: SLF001 - the library's own object
        assert loaded._engine.num_optimization_profiles == len(SIZES)  # noqa: SLF001 - as above
        (name,) = [spec.name for spec in engine.inputs]
        for index, size in enumerate(SIZES):
            shapes = loaded._engine.get_tensor_profile_shape(name, index)  # noqa: SLF001 - as above
            assert [next(iter(shape)) for shape in shapes] == [size] * 3
        assert artifact.memory is not None
        assert loaded.activation_bytes == artifact.memory.activation_bytes
        largest = int(loaded._engine.device_memory_size_v2)  # noqa: SLF001 - as above
        assert largest < loaded.activation_bytes <= len(SIZES) * largest


@pytest.mark.parametrize("cuda_graph", [True, False], ids=["graph", "kernels"])
def test_batches_of_any_size_in_turns_give_their_own_logits(
    project: Project, artifact: Artifact, *, cuda_graph: bool
) -> None:
    """No profile disturbs another one, and no padding the rows: each answer is that of the reference."""
    every, wanted = images(project, 64), reference(project, 64)
    with open_serialized(project, artifact) as engine, engine.session(cuda_graph=cuda_graph) as run:
        for number, size in enumerate(TURNS * 2):
            chosen = np.roll(np.arange(64), number)[:size]
            found = run(np.ascontiguousarray(every[chosen]))
            assert found.shape == (size, wanted.shape[1])
            assert distance(found, wanted[chosen]) < FP16, (number, size)


@pytest.mark.parametrize("cuda_graph", [True, False], ids=["graph", "kernels"])
def test_a_batch_on_the_gpu_is_padded_there(project: Project, artifact: Artifact, *, cuda_graph: bool) -> None:
    """An array in the GPU's memory gives as many rows, at its profile's size and below it."""
    with open_serialized(project, artifact) as engine, engine.session(cuda_graph=cuda_graph) as run:
        for size in (8, 3, 64, 1, 50):
            batch = images(project, size)
            memory = cuda.Memory(batch.nbytes)
            array = memory.array(batch.shape, batch.dtype)
            cuda.copy_to_gpu(array, batch, run.stream)
            run.stream.synchronize()
            found = run(array)
            assert found.shape[0] == size
            assert distance(cuda.downloaded(found), reference(project, size)) < FP16
            memory.close()


def test_a_padded_row_does_not_depend_on_what_fills_the_batch(project: Project, artifact: Artifact) -> None:
    """The same rows, after other callers' batches, give the same bits."""
    with open_serialized(project, artifact) as engine, engine.session() as run:
        first = run(images(project, 5))
        run(np.full_like(images(project, 64), 1e4))
        assert np.array_equal(run(images(project, 5)), first)


def test_a_deployment_picks_the_profile_by_the_batch(project: Project) -> None:
    """`load` serves every batch up to the largest from one file, to several threads at once."""
    with model_artifacts.load(project.paths.root, Requirements(precision="fp16"), contexts=2) as model:
        assert model.entry.backend is Backend.TENSORRT
        for size in (1, 3, 8, 20, 64):
            assert distance(model(images(project, size)), reference(project, size)) < FP16
        pixels = list(np.asarray(project.pixels(project.data().validation)[:70]))
        assert len(model.predict(pixels)) == 70
