"""An artifact as a repeatable workload for all profilers.

python -m pipeline.stages.profile.workload CONFIG VARIANT    runs it between the marks that Nsight Systems waits for
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_artifacts.records import CPU_TARGET, Backend
from pipeline.planning.folder.projects import load_projects, project_with
from pipeline.stages.common.opening import gpu_of, open_module, open_runner, open_serialized
from pipeline.stages.common.samples import images_of
from pipeline.system.nvtx import nvtx_range

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from model_artifacts.records import Variant
    from pipeline.planning.project import Project
    from pipeline.records import Artifact

RUNS = 20
"""The number of profiled batches."""
_WARM_UP = 5


def batch_of(project: Project, variant: Variant) -> int:
    """Return the batch size to profile: the one that a variant is tuned for, or the first timed one."""
    return variant.profile.opt if variant.profile else project.config.timed_batches[0]


@contextmanager
def repeated(project: Project, artifact: Artifact) -> Iterator[Callable[[int], None]]:
    """Open an artifact, warm it up, and yield a function that runs a number of batches and waits for them.

    On a GPU the batch already lies in its memory, and no CUDA graph hides the kernels.
    """
    images = images_of(project, batch_of(project, artifact.variant), artifact.variant)
    with _single(project, artifact, images) as (run_one, wait):

        def run(count: int) -> None:
            for _ in range(count):
                run_one()
            wait()

        with nvtx_range("warm up"):
            run(_WARM_UP)
        yield run


@contextmanager
def _single(
    project: Project, artifact: Artifact, images: npt.NDArray[Any]
) -> Iterator[tuple[Callable[[], object], Callable[[], None]]]:
    variant = artifact.variant
    if variant.backend is Backend.TENSORRT:
        specialization = project.config.tensorrt.kernel_specialization
        with (
            open_serialized(project, artifact) as engine,
            engine.session(cuda_graph=False, specialization=specialization) as session,
        ):
            session.upload(images)
            yield session.enqueue_kernels, session.stream.synchronize
    elif variant.backend.is_module and variant.target != CPU_TARGET:
        with open_module(project, artifact) as module:
            module.upload(images)
            yield module.enqueue_kernels, module.stream.synchronize
    else:
        with open_runner(project, artifact) as run:
            yield lambda: run(images), lambda: None


@contextmanager
def _looked_at() -> Iterator[None]:
    """Let a profiler that waits for CUDA's profiler marks record the block.

    Raises:
        RunError: CUDA cannot be used.
    """
    from model_artifacts.host import cuda  # noqa: PLC0415 - only where there is a GPU

    cuda.check(cuda.runtime.cudaProfilerStart())
    yield
    cuda.check(cuda.runtime.cudaProfilerStop())


def main(config: str, variant_id: str) -> None:
    """Run an artifact on its GPU. CUDA's profiler marks enclose the runs after the warm-up."""
    from model_artifacts.host import cuda  # noqa: PLC0415 - only where there is a GPU

    # Records are read here, and no step is run.
    project, variant = project_with(load_projects(Path(config), stages=()), variant_id)
    artifact = project.artifact(variant)
    cuda.use(gpu_of(project, artifact))
    with repeated(project, artifact) as run, _looked_at(), nvtx_range(variant_id):
        run(RUNS)


if __name__ == "__main__":
    main(*sys.argv[1:])
