"""A variant's process: it opens one artifact, and times it on request."""

from __future__ import annotations

import multiprocessing
import time
from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from model_artifacts.errors import ArtifactError, RunError, one_line
from model_artifacts.host.environment import installed
from model_artifacts.host.files import write_bytes
from model_artifacts.host.hashes import describe_file
from model_artifacts.records import CPU_TARGET, Backend, Clock, ColdStart, Layout, ranking_clock
from model_artifacts.sessions.opening import package_of
from pipeline.stages.benchmark.clocks import (
    measured_link,
    timed,
    timed_on_gpu,
    timed_on_streams,
    timed_overlapped,
    timed_pinned,
)
from pipeline.stages.benchmark.messages import Ask, AskLink, NoLink, Ready, Samples, Started, Warm
from pipeline.stages.benchmark.statistics import settled
from pipeline.stages.common.opening import gpu_of, open_module, open_runner, open_serialized
from pipeline.stages.common.outcomes import ending_of
from pipeline.stages.common.samples import images_of, layouts_of
from pipeline.system.processes import live_with

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.connection import Connection

    import numpy.typing as npt

    from model_artifacts.records import Gpu, Link, Variant
    from model_artifacts.sessions.engine import Session
    from model_artifacts.sessions.module import ModuleSession
    from model_artifacts.sessions.overlap.lanes import Overlap
    from pipeline.planning.project import Project
    from pipeline.records import Artifact

    Images = npt.NDArray[Any]
    Time = Callable[[Ask, Images], tuple[Samples, ...]]

_SETTLE_SECONDS = 0.05
"""The pause before a variant's turn, in which the threads of the previous variant stop spinning. Then it runs once
untimed, to have its own data in the caches.
"""


def serve(connection: Connection, project: Project, artifact: Artifact, *, first: bool) -> None:
    """Open an artifact on request, then answer every `Ask`, until the other end closes.

    Args:
        connection: the connection to the benchmark.
        project: the project that holds the artifact.
        artifact: the artifact to time.
        first: true for the first restart, which times the cold start and for that opens the artifact more than once.
    """
    if parent := multiprocessing.parent_process():
        live_with(parent.pid or 0)
    try:
        variant = artifact.variant
        if variant.backend is Backend.TENSORRT:
            _serve_engine(connection, project, artifact, first=first)
        elif variant.backend.is_module and variant.target != CPU_TARGET:
            _serve_module(connection, project, artifact, first=first)
        else:
            _serve_runner(connection, project, artifact)
    except (EOFError, KeyboardInterrupt):
        return
    except ArtifactError as exc:
        connection.send(ending_of(exc))
    except Exception as exc:  # noqa: BLE001 - any library's error is this variant's failure
        connection.send(ending_of(RunError(f"running failed: {type(exc).__name__}: {exc}")))


def _start(connection: Connection, gpu: Gpu | None) -> None:
    """Start CUDA, which is no part of the artifact's cold start, report that, and wait for this process's turn."""
    if gpu:
        from model_artifacts.host import cuda  # noqa: PLC0415 - only where there is a GPU

        cuda.use(gpu)
        cuda.free_bytes()
    connection.send(Started())
    connection.recv()


def _answer(connection: Connection, project: Project, variant: Variant, measure: Time, gpu: Gpu | None = None) -> None:
    while True:
        ask: Ask | AskLink = connection.recv()
        if isinstance(ask, AskLink):
            connection.send(_link_of(gpu))
            continue
        images = images_of(project, ask.batch, variant)
        if ask.warm_up_seconds:
            connection.send(_warm_up(ask, lambda: measure(ask, images)))  # noqa: B023 - called at once
        else:
            connection.send(measure(ask, images))


def _link_of(gpu: Gpu | None) -> Link | NoLink:
    """Return the rates of copies, or the reason why there are none, such as a GPU without room for one."""
    if gpu is None:
        return NoLink("the artifact runs on the processor")
    try:
        return measured_link(gpu)
    except RunError as exc:
        return NoLink(one_line(exc))


def _warm_up(ask: Ask, measure: Callable[[], tuple[Samples, ...]]) -> Warm:
    """Run until two medians in a row agree by the ranking clock, or the time is over."""
    medians: dict[Layout, list[float]] = {}
    end = time.perf_counter() + ask.warm_up_seconds
    while time.perf_counter() < end:
        measured = measure()
        ranking = ranking_clock({samples.clock for samples in measured})
        for samples in measured:
            if samples.clock is ranking:
                medians.setdefault(samples.layout, []).append(float(np.median(samples.milliseconds)))
        if all(settled(found) for found in medians.values()):
            return Warm(settled=True)
    return Warm(settled=False)


def _serve_runner(connection: Connection, project: Project, artifact: Artifact) -> None:
    """Time calls by the host's clock, after the cold start, which lasts from opening to the first result."""
    package = package_of(artifact.variant.backend)
    if package and installed(package):  # opening reports a missing package
        import_module(package)  # the import is no part of the artifact's cold start
    _start(connection, None)
    images = images_of(project, timed_batches(project, artifact.variant)[0], artifact.variant)
    began = time.perf_counter()
    with open_runner(project, artifact) as run:
        run(images)
        seconds = round(time.perf_counter() - began, 4)
        connection.send(Ready(ColdStart(seconds=seconds, cached_seconds=None)))

        def measure(ask: Ask, images: Images) -> tuple[Samples, ...]:
            time.sleep(_SETTLE_SECONDS)
            run(images)
            return (timed(Clock.HOST, ask, lambda: run(images)),)

        _answer(connection, project, artifact.variant, measure)


def _serve_engine(connection: Connection, project: Project, artifact: Artifact, *, first: bool) -> None:
    """Time an engine by every clock, after its cold start has been timed and its kernels have been kept."""
    gpu = gpu_of(project, artifact)
    _start(connection, gpu)
    ready, cache = cold_start(project, artifact) if first else (Ready(), _kept_kernels(project, artifact))
    specialization = project.config.tensorrt.kernel_specialization
    with ExitStack() as stack:
        engine = stack.enter_context(open_serialized(project, artifact))
        runs = [
            stack.enter_context(engine.session(cache=cache, specialization=specialization))
            for _ in range(project.config.benchmark.streams)
        ]
        buffers = project.config.benchmark.buffers
        overlap = (
            stack.enter_context(engine.overlap(buffers, cache=cache, specialization=specialization))
            if buffers > 1
            else None
        )
        connection.send(ready)

        def measure(ask: Ask, images: Images) -> tuple[Samples, ...]:
            return _time_engine(runs, overlap, ask, images)

        _answer(connection, project, artifact.variant, measure, gpu)


def _time_engine(runs: Sequence[Session], overlap: Overlap | None, ask: Ask, images: Images) -> tuple[Samples, ...]:
    """Time one session alone, then batches whose copies overlap, and then all sessions at once."""
    run = runs[0]
    for session in runs:
        session.upload(images)
    found = [
        timed_on_gpu(Clock.GPU, ask, run, run.enqueue_kernels),
        timed_on_gpu(Clock.GPU_GRAPH, ask, run, run.enqueue),
        timed_on_gpu(Clock.COPIES, ask, run, run.enqueue_with_copies),
        timed_pinned(ask, run),
        timed(Clock.HOST, ask, lambda: run(images)),
    ]
    if overlap is not None:
        found.append(timed_overlapped(ask, overlap, images))
    return (*found, *([timed_on_streams(ask, runs)] if len(runs) > 1 else []))


def _kept_kernels(project: Project, artifact: Artifact) -> bytes | None:
    """Return the kernels that the first restart has kept."""
    path = project.paths.runtime_cache(artifact.variant)
    return path.read_bytes() if path.is_file() else None


def _serve_module(connection: Connection, project: Project, artifact: Artifact, *, first: bool) -> None:
    """Time a torch module by every clock, with images in both layouts, after its cold start has been timed."""
    from model_artifacts.host import cuda  # noqa: PLC0415 - only where there is a GPU
    from pipeline.stages.common.modules import keep_tuned, load_libraries, tuned_here  # noqa: PLC0415 - the same

    keep_tuned(project, artifact, afresh=first)
    load_libraries(artifact)
    gpu = gpu_of(project, artifact)
    _start(connection, gpu)
    before = cuda.free_bytes()
    opening = [images_of(project, batch, artifact.variant) for batch in first_batches(project, artifact)]
    began = time.perf_counter()
    with open_module(project, artifact) as run:
        for images in opening:
            run(images)
        seconds = round(time.perf_counter() - began, 4)
        for batch in timed_batches(project, artifact.variant):
            run(images_of(project, batch, artifact.variant))
        used = max(0, before - cuda.free_bytes())
        tuning_seconds = seconds if tuned_here(artifact) else None
        ready = Ready(ColdStart(seconds=seconds, cached_seconds=None), used, tuning_seconds=tuning_seconds)
        connection.send(ready)
        layouts = layouts_of(project, artifact.variant)
        _answer(
            connection,
            project,
            artifact.variant,
            lambda ask, images: tuple(item for layout in layouts for item in time_module(run, ask, images, layout)),
            gpu,
        )


def time_module(run: ModuleSession, ask: Ask, images: Images, layout: Layout) -> list[Samples]:
    """Time a module with images in one layout: kernels, CUDA graph if it has one, copies, and whole calls."""
    run.upload(images, layout)
    found = [timed_on_gpu(Clock.GPU, ask, run, run.enqueue_kernels)]
    if not run.graph_trouble:
        try:
            found.append(timed_on_gpu(Clock.GPU_GRAPH, ask, run, run.enqueue))
            found.append(timed_on_gpu(Clock.COPIES, ask, run, run.enqueue_with_copies))
            found.append(timed_pinned(ask, run))
        except RunError:
            if not run.graph_trouble:
                raise
    note = f"no CUDA graph: {run.graph_trouble}" if run.graph_trouble else ""
    found.append(timed(Clock.HOST, ask, lambda: run(images, layout)))
    return [replace(samples, layout=layout, note=note) for samples in found]


def first_batches(project: Project, artifact: Artifact) -> list[int]:
    """Return the batch sizes that a module runs during its cold start: those it is compiled for, or else one."""
    variant = artifact.variant
    if variant.backend is Backend.TORCH_COMPILE and variant.profile:
        return list(variant.profile.sizes)
    return timed_batches(project, variant)[:1]


def timed_batches(project: Project, variant: Variant) -> list[int]:
    """Return the batch sizes to time of a variant, or else the one that it is tuned for."""
    batches = [batch for batch in project.config.timed_batches if takes(variant, batch)]
    return batches or [variant.profile.opt if variant.profile else 1]


def takes(variant: Variant, batch: int) -> bool:
    """Return true if a variant takes batches of this size; on the CPU, all do."""
    return variant.profile is None or variant.profile.takes(batch)


def cold_start(project: Project, artifact: Artifact) -> tuple[Ready, bytes | None]:
    """Time open → first result. If that compiles kernels, keep them beside the engine, and time it again with them."""
    batches = timed_batches(project, artifact.variant)
    cold = _open_and_run(project, artifact, batches, None)
    if cold.cache is None:
        return Ready(ColdStart(seconds=cold.seconds, cached_seconds=None), cold.used_bytes), None
    path = project.paths.runtime_cache(artifact.variant)
    write_bytes(path, cold.cache)
    again = _open_and_run(project, artifact, batches[:1], cold.cache)
    both = ColdStart(seconds=cold.seconds, cached_seconds=again.seconds)
    return Ready(both, cold.used_bytes, describe_file(path, project.paths.root)), cold.cache


class _Opened(NamedTuple):
    """The cost and the results of opening an engine."""

    seconds: float
    """The time until the first batch's result."""
    used_bytes: int
    """The GPU's memory in use after all batches have run."""
    cache: bytes | None
    """The kernels of all batches."""


def _open_and_run(project: Project, artifact: Artifact, batches: list[int], cache: bytes | None) -> _Opened:
    from model_artifacts.host import cuda  # noqa: PLC0415 - only where there is a GPU

    images = [images_of(project, batch, artifact.variant) for batch in batches]
    specialization = project.config.tensorrt.kernel_specialization
    before = cuda.free_bytes()
    began = time.perf_counter()
    with (
        open_serialized(project, artifact) as engine,
        engine.session(cache=cache, specialization=specialization) as run,
    ):
        run(images[0])
        seconds = time.perf_counter() - began
        for batch in images[1:]:
            run(batch)
        return _Opened(round(seconds, 4), max(0, before - cuda.free_bytes()), run.runtime_cache())
