"""Engines on a real GPU: results, refusals, and the release of all resources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from model_artifacts.errors import CrashedError, RunError
from model_artifacts.host import cuda
from model_artifacts.host.environment import installed
from model_artifacts.records import Status
from model_artifacts.tensorrt.flavour import load_flavour
from model_artifacts.tensorrt.runtime import load_engine
from pipeline.planning.paths import Paths
from pipeline.planning.project import Project
from pipeline.records import Artifact, Outcome
from pipeline.stages import STAGES
from pipeline.stages.benchmark.gpu_watch import others
from pipeline.stages.common.opening import gpu_of, open_serialized
from pipeline.system.isolation import run_isolated
from tests.support.logits import FP16, distance, images, reference

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

    from model_artifacts.records import Gpu


def downloaded(array: cuda.DeviceArray) -> npt.NDArray[np.float32]:
    """Return a copy of a GPU's array in the host's memory."""
    target: npt.NDArray[np.float32] = np.empty(array.shape, array.dtype)
    stream = cuda.Stream()
    cuda.copy_to_host(target, array, stream)
    stream.synchronize()
    stream.close()
    return target


def gpu(project: Project, artifact: Artifact) -> Gpu:
    """Return the GPU that the engine runs on."""
    return gpu_of(project, artifact)


def test_logits_are_the_references_within_fp16s_gate(project: Project, ranged: Artifact) -> None:
    """A numpy batch gives the reference's logits within FP16's rounding."""
    with open_serialized(project, ranged) as engine, engine.session() as run:
        assert distance(run(images(project, 3)), reference(project, 3)) < FP16


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_every_batch_size_gives_the_same_with_and_without_a_graph(
    project: Project, ranged: Artifact, *, cuda_graph: bool
) -> None:
    """Batches of changing size give their own logits, replayed as a graph or not."""
    with open_serialized(project, ranged) as engine, engine.session(cuda_graph=cuda_graph) as run:
        for size in (1, 4, 3, 1, 4, 2):
            assert distance(run(images(project, size)), reference(project, size)) < FP16


def test_a_result_survives_the_next_batch(project: Project, fixed: Artifact) -> None:
    """The result of a numpy batch belongs to the caller."""
    with open_serialized(project, fixed) as engine, engine.session() as run:
        first = run(images(project, 1))
        kept = first.copy()
        run(np.zeros_like(images(project, 1)))
        assert np.array_equal(first, kept)


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_an_array_on_the_gpu_is_taken_where_it_lies(project: Project, ranged: Artifact, *, cuda_graph: bool) -> None:
    """An array with `__cuda_array_interface__` gives logits on the GPU, in a buffer that is used again."""
    with open_serialized(project, ranged) as engine, engine.session(cuda_graph=cuda_graph) as run:
        batch = images(project, 2)
        memory = cuda.Memory(batch.nbytes)
        array = memory.array(batch.shape, batch.dtype)
        cuda.copy_to_gpu(array, batch, run.stream)
        run.stream.synchronize()
        first = run(array)
        assert distance(downloaded(first), reference(project, 2)) < FP16
        assert run(array).pointer == first.pointer
        memory.close()


@pytest.mark.skipif(not installed("torch"), reason="torch is not installed here")
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_a_torch_tensor_is_taken_through_dlpack(project: Project, ranged: Artifact, *, cuda_graph: bool) -> None:
    """A torch tensor on the GPU gives logits that torch can take."""
    import torch  # noqa: PLC0415 - hosts that build engines may have none

    with open_serialized(project, ranged) as engine, engine.session(cuda_graph=cuda_graph) as run:
        tensor = torch.from_numpy(images(project, 2)).cuda()
        logits = torch.as_tensor(run(tensor), device="cuda").cpu().numpy()
        assert distance(logits, reference(project, 2)) < FP16
        with pytest.raises(RunError, match="not contiguous"):
            run(tensor.to(memory_format=torch.channels_last))


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda batch: batch.astype(np.float64), "float64"),
        (lambda batch: batch[:, :, :16], "(2, 3, 16, 32)"),
        (lambda batch: batch[0], "(3, 32, 32)"),
        (lambda batch: np.concatenate([batch] * 40), "(80, 3, 32, 32)"),
        (lambda batch: batch[:0], "(0, 3, 32, 32)"),
        (lambda batch: batch.transpose(0, 1, 3, 2), "strides"),
    ],
)
def test_what_the_engine_does_not_take_is_refused_before_it_runs(
    project: Project, ranged: Artifact, change: Any, got: str
) -> None:
    """A wrong type, shape, batch or layout is refused with expected and got, and the session goes on."""
    batch = images(project, 2)
    if batch.shape[1:] != (3, 32, 32):
        pytest.skip("these are written for the tiny project")
    with open_serialized(project, ranged) as engine, engine.session() as run:
        with pytest.raises(RunError, match="takes other batches") as caught:
            run(change(batch))
        assert got in str(caught.value)
        assert "expected: float32 (1 to 4, 3, 32, 32), contiguous" in str(caught.value)
        assert distance(run(batch), reference(project, 2)) < FP16


def taken_by(cycle: Callable[[], None]) -> int:
    """Return the GPU memory in bytes that 200 cycles keep; the first 25 load lasting parts of the library."""
    for count in range(225):
        if count == 25:
            free = cuda.free_bytes()
        cycle()
    return free - cuda.free_bytes()


def library_alone(project: Project, artifact: Artifact, compiled: bytes | None) -> Callable[[], None]:
    """Return a cycle of the library's own calls, without a line of ours: deserialise, open a context, drop both.

    `compiled` is a runtime cache, where the flavour has one: without it every context would compile its kernels anew.
    """
    assert artifact.file is not None
    assert artifact.built_for is not None
    trt = load_flavour(artifact.built_for.flavour).module
    plan = project.file(artifact.file).read_bytes()
    logger = trt.Logger(trt.Logger.ERROR)

    def cycle() -> None:
        runtime = trt.Runtime(logger)
        engine = runtime.deserialize_cuda_engine(plan)
        config, kept = None, None
        if compiled is not None:
            config = engine.create_runtime_config()
            kept = config.create_runtime_cache()
            kept.deserialize(compiled)
            config.set_runtime_cache(kept)
        context = engine.create_execution_context(*([] if config is None else [config]))
        del context, kept, config, engine, runtime  # in this order: the library holds neither cache nor configuration

    return cycle


def test_memory_comes_back_after_200_cycles(project: Project, fixed: Artifact) -> None:
    """Opening, running and closing keeps only the memory that the library itself keeps of every context.

    TensorRT-RTX 1.4 keeps some 40 KB, seen with its own calls alone; TensorRT 8.6 nothing. The memory is
    the whole GPU's, so that nothing else may use it meanwhile.
    """
    cache = None

    def cycle() -> None:
        nonlocal cache
        with open_serialized(project, fixed) as engine, engine.session(cache=cache) as run:
            run(images(project, 1))
            cache = run.runtime_cache()

    ours = taken_by(cycle)
    assert ours <= taken_by(library_alone(project, fixed, cache)) + 2**21


def test_threads_share_an_engine_each_with_its_own_session(project: Project, ranged: Artifact) -> None:
    """Four threads run different batches at once, and each gets its own logits."""
    wrong: list[float] = []

    def work(engine: Any, index: int) -> None:
        batch, want = images(project, 4)[index : index + 1], reference(project, 4)[index : index + 1]
        with engine.session() as run:
            wrong.extend(error for _ in range(50) if (error := distance(run(batch), want)) >= FP16)

    with open_serialized(project, ranged) as engine:
        threads = [threading.Thread(target=work, args=(engine, index)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def moved(project: Project, artifact: Artifact, folder: Path, plan: bytes) -> Project:
    """Return a project in another folder whose engine has other bytes."""
    assert artifact.file is not None
    target = folder / "artifacts" / artifact.file.path
    target.parent.mkdir(parents=True)
    target.write_bytes(plan)
    return Project(project.plan, Paths(folder / "artifacts", project.plan.model), STAGES)


@pytest.mark.parametrize("damage", [lambda plan: plan[: len(plan) // 2], lambda plan: plan[:-9] + b"x" + plan[-8:]])
def test_a_damaged_engine_is_refused_before_it_is_loaded(
    project: Project, fixed: Artifact, tmp_path: Path, damage: Any
) -> None:
    """An engine that was cut or changed has another digest, and the message names both and the command to run."""
    assert fixed.file is not None
    other = moved(project, fixed, tmp_path, damage(project.file(fixed.file).read_bytes()))
    with pytest.raises(RunError, match="is damaged") as caught, open_serialized(other, fixed):
        pass
    assert fixed.file.sha256 in str(caught.value)
    assert "python -m pipeline build" in str(caught.value)


def test_half_an_engine_is_an_error_and_no_crash(project: Project, fixed: Artifact) -> None:
    """The library itself refuses a plan that ends too early."""
    assert fixed.file is not None
    assert fixed.built_for is not None
    plan = project.file(fixed.file).read_bytes()
    cuda.use(gpu(project, fixed))
    with (
        pytest.raises(RunError, match="cannot be loaded"),
        load_engine(load_flavour(fixed.built_for.flavour), plan[: len(plan) // 2]),
    ):
        pass


def test_a_damaged_runtime_cache_is_an_error_or_ignored(project: Project, fixed: Artifact) -> None:
    """A runtime cache of other bytes never gives wrong logits."""
    with open_serialized(project, fixed) as engine:
        try:
            with engine.session(cache=b"no cache at all" * 10) as run:
                assert distance(run(images(project, 1)), reference(project, 1)) < FP16
        except RunError as exc:
            assert "runtime cache" in str(exc)  # noqa: PT017 - either is right


def take_crumbs(taken: list[cuda.Memory]) -> None:
    """Take the GPU's memory in small blocks until none is left, which raises."""
    while True:
        taken.append(cuda.Memory(2**16))


def test_no_room_on_the_gpu_is_a_clear_error(project: Project, ranged: Artifact) -> None:
    """Opening fails with the needed and the free memory if the GPU's memory is taken."""
    cuda.use(gpu(project, ranged))
    with open_serialized(project, ranged) as engine:
        taken = [cuda.Memory(cuda.free_bytes() - 2**21)]
        try:
            with pytest.raises(RunError, match="too little free memory"):
                take_crumbs(taken)
            with pytest.raises(RunError), engine.session():
                pass
        finally:  # else every later test of this process would lack memory
            for memory in taken:
                memory.close()
    with open_serialized(project, ranged) as engine, engine.session() as run:
        assert distance(run(images(project, 1)), reference(project, 1)) < FP16


def spoil(project: Project, artifact: Artifact) -> None:
    """Leave a CUDA error that stays until the process ends: a copy to an address without an owner."""
    with open_serialized(project, artifact) as engine, engine.session() as run:
        nowhere = cuda.DeviceArray(0xDEAD0000, (1024,), np.dtype(np.float32))
        cuda.copy_on_gpu(nowhere, cuda.DeviceArray(0xBEEF0000, (1024,), np.dtype(np.float32)), run.stream)
        run.stream.synchronize()


def crash(project: Project, artifact: Artifact) -> None:
    """Die with the engine open."""
    with open_serialized(project, artifact) as engine, engine.session():
        os.kill(os.getpid(), 11)


@pytest.mark.parametrize("harm", [spoil, crash])
def test_what_one_process_does_to_its_gpu_context_ends_with_it(
    project: Project, fixed: Artifact, tmp_path: Path, harm: Any
) -> None:
    """A CUDA error or a segfault fails that process alone; the next starts on a healthy GPU."""
    log = tmp_path / "log"
    with pytest.raises((RunError, CrashedError)):
        run_isolated(harm, project, fixed, timeout_seconds=120.0, log=log, rerun="it")
    with open_serialized(project, fixed) as engine, engine.session() as run:
        assert distance(run(images(project, 1)), reference(project, 1)) < FP16


def test_another_process_on_the_gpu_is_noticed(project: Project, fixed: Artifact) -> None:
    """A process that holds a CUDA context is named with its memory; our own workers are not."""
    script = "from cuda.bindings import runtime as r; r.cudaFree(0); print('ready', flush=True); input()"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as stranger:  # noqa: S603 - fixed
        assert stranger.stdout is not None
        stranger.stdout.readline()
        seen = others(gpu(project, fixed), frozenset())
        ours = others(gpu(project, fixed), frozenset({stranger.pid}))
        stranger.communicate(b"\n")
    assert any(str(stranger.pid) in text for text in seen)
    assert not any(str(stranger.pid) in text for text in ours)


def test_every_engine_was_validated_here_and_says_what_it_computed_in(project: Project) -> None:
    """Each engine that was built has run on this GPU, passed its gate, and proves its precision."""
    for entry in project.manifest().artifacts:
        if entry.built_for is not None:
            report = project.accuracy(project.plan.variant(entry.id))
            assert report.outcome is Outcome.DONE, report.reason
            assert entry.status in {Status.DEPLOYABLE, Status.REJECTED}


def test_a_copied_project_runs(project: Project, fixed: Artifact, tmp_path: Path) -> None:
    """An artifacts folder can be moved: nothing in it names where it was built."""
    shutil.copytree(project.paths.root, tmp_path / "artifacts")
    other = Project(project.plan, Paths(tmp_path / "artifacts", project.plan.model), STAGES)
    with open_serialized(other, fixed) as engine, engine.session() as run:
        assert distance(run(images(other, 1)), reference(other, 1)) < FP16
