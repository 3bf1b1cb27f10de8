"""Artifacts × batch sizes → `BenchmarkReport`: interleaved rounds, one process a variant, every sample kept."""

from __future__ import annotations

import logging
import multiprocessing
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.atomic import describe_file, replacing, write_bytes, write_record
from pipeline.environment import driver_version, missing_driver, now, processor, threads, tools
from pipeline.errors import PipelineError, RecordError, RunError, UnsupportedError
from pipeline.gpu_lock import exclusive, others
from pipeline.isolation import describe_exit
from pipeline.plan import CPU_TARGET, Stage, Step
from pipeline.preprocessing import to_input
from pipeline.records import (
    Artifact,
    Backend,
    BatchTiming,
    BenchmarkReport,
    Clock,
    ColdStart,
    FileRecord,
    Layout,
    Outcome,
    Variant,
)
from pipeline.runners import gpu_of, open_module, open_runner, open_serialized
from pipeline.staleness import key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    import numpy.typing as npt

    from pipeline.config import BenchmarkConfig, Config
    from pipeline.engine_runner import Session
    from pipeline.module_runner import ModuleSession
    from pipeline.project import Project
    from pipeline.records import Gpu, Key

    Images = npt.NDArray[np.float32]
    Latencies = npt.NDArray[np.float64]

log = logging.getLogger(__name__)

_NOT_BUILT = "not built: what it is made from is missing, or the build was not run or died"

_START_SECONDS = 300.0
"""How long a variant's process may take to start, and then to load its artifact; nine import torch at once."""
_SETTLE_SECONDS = 0.05
"""How long a variant waits before its turn, for the threads of the one before it to stop spinning; then it runs once
untimed, to have its own data in the caches."""
_ANSWER_SECONDS = 600.0
"""How long one round of one variant may take."""
_PROCESSES = 8
"""How many variants are timed against each other, besides the baseline; each process with torch takes gigabytes."""
_PROCESS_BYTES = 4 * 2**30
"""What each may take of a GPU's memory: CUDA's context, libraries, weights, and the activations of a large batch."""


def benchmark_target(project: Project, target: str) -> tuple[BenchmarkReport, ...]:
    """Time a target's variants against each other and record each one's latencies.

    Every round times every variant once (A B C A B C), so that a change of the machine's pace hits all alike. Each
    variant has a process of its own, and only one of them works at a time.

    Returns:
        one report a variant, in the plan's order.

    Raises:
        RecordError: an artifact is missing.
        StorageError: the results cannot be written.
    """
    key = key_of(project, Step(Stage.BENCHMARK, f"{project.plan.model}/{target}"))
    variants = [variant for variant in project.plan.variants if variant.target == target]
    artifacts = [artifact for variant in variants if (artifact := _artifact(project, variant))]
    reasons = {variant.id: _NOT_BUILT for variant in variants}
    reasons.update({artifact.variant.id: _untimed(artifact) for artifact in artifacts})
    gpu = project.plan.gpu(target)
    with exclusive(gpu):
        ready = [artifact for artifact in artifacts if not reasons[artifact.variant.id]]
        shared = _shared(ready)
        groups = _groups(project, target, [artifact for artifact in ready if artifact.variant.id not in shared])
        measured = [item for group in groups for item in _measure(project, gpu, group)]
    reports = []
    for variant in variants:
        timed = shared.get(variant.id, variant.id)
        found = next((replace(item, variant=variant) for item in measured if item.variant.id == timed), None)
        report = _report(project, key, found or _Measured(variant, skipped=reasons[variant.id]))
        write_record(project.paths.benchmark(variant), report)
        reports.append(report)
    return tuple(reports)


def _groups(project: Project, target: str, artifacts: list[Artifact]) -> list[list[Artifact]]:
    """Return what is timed together: no more processes than a host has room for, each time beside the baseline.

    The baseline of engines is eager FP32 on the same GPU, which belongs to another target.
    """
    variant = project.plan.baseline(target)
    baseline = next((artifact for artifact in artifacts if artifact.variant == variant), None)
    others = [artifact for artifact in artifacts if artifact is not baseline]
    if baseline is None and variant is not None and others:
        guest = _artifact(project, variant)
        baseline = guest if guest and not _untimed(guest) else None
    first = [baseline] if baseline else []
    room = _room(project.plan.gpu(target))
    chunks = [others[start : start + room] for start in range(0, len(others), room)]
    return [[*first, *chunk] for chunk in chunks] or ([first] if first else [])


def _room(gpu: Gpu | None) -> int:
    """Return how many variants may be open at once, besides the baseline."""
    return _PROCESSES if gpu is None else max(1, min(_PROCESSES, gpu.memory_bytes // _PROCESS_BYTES))


@dataclass(frozen=True)
class _Ask:
    """What a variant's process is asked to time."""

    batch: int
    runs: int
    """How many at least."""
    milliseconds: float
    """How long at least."""


@dataclass(frozen=True)
class _Samples:
    """What it answers, a clock."""

    clock: Clock
    milliseconds: tuple[float, ...]
    enqueue_us: tuple[float, ...] = ()
    layout: Layout = Layout.CONTIGUOUS
    note: str = ""
    """What could not be timed beside it, and why."""


@dataclass(frozen=True)
class _Started:
    """What it says once its libraries are imported; it opens its artifact when it is told to."""


@dataclass(frozen=True)
class _Ready:
    """What it says once its artifact is open."""

    cold_start: ColdStart | None = None
    device_memory_bytes: int | None = None
    runtime_cache: FileRecord | None = None


@dataclass(frozen=True)
class _Trouble:
    """What it says instead of either."""

    what: str
    skipped: bool = False


class _What(NamedTuple):
    """What samples are of."""

    clock: Clock
    batch: int
    layout: Layout = Layout.CONTIGUOUS

    @property
    def name(self) -> str:
        """What their array is called on disk."""
        layout = "" if self.layout is Layout.CONTIGUOUS else f"_{self.layout.value}"
        return f"{self.clock.value}{layout}_batch_{self.batch}"


@dataclass
class _Measured:
    """One variant's samples, or what went wrong."""

    variant: Variant
    samples: dict[_What, list[_Samples]] = field(default_factory=dict)
    ready: _Ready = _Ready()
    error: str = ""
    skipped: str = ""
    disturbed_by: tuple[str, ...] = ()
    baseline: _Measured | None = None
    """What was timed in the same rounds for comparison."""

    def latencies(self, what: _What) -> Latencies:
        """Return all samples of one kind, in milliseconds."""
        found = self.samples.get(what, ())
        return np.array([value for samples in found for value in samples.milliseconds], dtype=np.float64)


@dataclass(frozen=True)
class _Worker:
    """A variant's process, and the connection to it."""

    process: BaseProcess
    connection: Connection


def _shared(artifacts: list[Artifact]) -> dict[str, str]:
    """Return, by the variants that share the engine of another, that other, which is timed for both."""
    ids = {artifact.variant.id for artifact in artifacts}
    return {artifact.variant.id: artifact.same_as for artifact in artifacts if artifact.same_as in ids}


def _artifact(project: Project, variant: Variant) -> Artifact | None:
    try:
        return project.artifact(variant)
    except RecordError:
        return None  # its build failed, which is no reason not to time the others


def _untimed(artifact: Artifact) -> str:
    """Return why an artifact is not timed, nothing where it is."""
    if artifact.outcome is not Outcome.DONE:
        return f"not built: {artifact.reason.splitlines()[0]}"
    if artifact.variant.backend is Backend.ONNX_REFERENCE:
        kind = artifact.variant.precision.value
        return f"ONNX Runtime's CPU provider runs no {kind} convolutions, and a reference evaluator is not timed"
    if artifact.variant.target != CPU_TARGET and (reason := missing_driver()):
        return reason
    return ""


def _measure(project: Project, gpu: Gpu | None, artifacts: list[Artifact]) -> list[_Measured]:
    settings = project.config.benchmark
    measured = [_Measured(artifact.variant) for artifact in artifacts]
    with ExitStack() as stack:
        workers = [stack.enter_context(_worker(project, artifact)) for artifact in artifacts]
        for worker, item in zip(workers, measured, strict=True):
            _await(worker, item, _START_SECONDS)
        for worker, item in zip(workers, measured, strict=True):
            _open(worker, item, project.config)  # one at a time, so that each one's cold start and memory are its own
        ours = frozenset(worker.process.pid or 0 for worker in workers)
        strangers = _Strangers(gpu, ours)
        for batch in project.config.timed_batches:
            timed = [pair for pair in zip(workers, measured, strict=True) if _takes(pair[1].variant, batch)]
            if timed:
                log.info("timing %d variants at batch %d", len(timed), batch)
            for index in range(-1, settings.rounds):  # the first round warms up
                for worker, item in timed:
                    _one_round(worker, item, batch, settings, warm_up=index < 0)
                strangers.look()
    wanted = project.plan.baseline(artifacts[0].variant.target)
    baseline = next((item for item in measured if item.variant == wanted), None)
    for item in measured:
        item.disturbed_by = strangers.seen
        item.baseline = baseline
    return measured


class _Strangers:
    """Other processes that were seen to compute on the GPU."""

    def __init__(self, gpu: Gpu | None, ours: frozenset[int]) -> None:
        self._gpu = gpu
        self._ours = ours
        self.seen: tuple[str, ...] = ()
        self.look()

    def look(self) -> None:
        """Look now."""
        if self._gpu:
            self.seen = tuple(dict.fromkeys((*self.seen, *others(self._gpu, self._ours))))


def _takes(variant: Variant, batch: int) -> bool:
    """Return whether a variant runs batches of this size; on the CPU, all do."""
    return variant.profile is None or variant.profile.takes(batch)


def _one_round(worker: _Worker, item: _Measured, batch: int, settings: BenchmarkConfig, *, warm_up: bool) -> None:
    """Have one variant timed, and keep what comes back; a process that dies costs its own variant only."""
    if item.error or item.skipped:
        return
    on_gpu = item.variant.target != CPU_TARGET
    runs = settings.warmup_runs if warm_up else settings.runs_per_round
    with suppress(BrokenPipeError):  # it has ended, and its last words may still lie there
        worker.connection.send(_Ask(batch, runs, settings.gpu_round_ms if on_gpu and not warm_up else 0.0))
    answer = _await(worker, item, _ANSWER_SECONDS)
    for samples in answer if isinstance(answer, tuple) and not warm_up else ():
        item.samples.setdefault(_What(samples.clock, batch, samples.layout), []).append(samples)


def _open(worker: _Worker, item: _Measured, config: Config) -> None:
    """Have an artifact opened, and keep what that took."""
    if item.error or item.skipped:
        return
    compiles = item.variant.backend.is_module and item.variant.target != CPU_TARGET
    with suppress(BrokenPipeError):  # it has ended, and its last words may still lie there
        worker.connection.send(_Started())
    answer = _await(worker, item, config.torch_tensorrt.build_timeout_seconds if compiles else _START_SECONDS)
    if isinstance(answer, _Ready):
        item.ready = answer


def _await(worker: _Worker, item: _Measured, seconds: float) -> object:
    """Return what a variant's process says; None where something went wrong, which is then kept."""
    try:
        if not worker.connection.poll(seconds):
            worker.process.kill()  # it must not work on while the others are timed
            item.error = f"no answer in {seconds:.0f} s"
            return None
        answer = worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join(1)
        item.error = describe_exit(worker.process.exitcode)
        return None
    if not isinstance(answer, _Trouble):
        return answer
    if answer.skipped:
        item.skipped = answer.what
    else:
        item.error = answer.what
    return None


@contextmanager
def _worker(project: Project, artifact: Artifact) -> Iterator[_Worker]:
    """Start a process that has the artifact open and times it when asked; end it afterwards."""
    context = multiprocessing.get_context("spawn")  # nothing is inherited, least of all a library's threads
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, project, artifact), daemon=True)
    process.start()
    theirs.close()
    try:
        yield _Worker(process, ours)
    finally:
        ours.close()
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()


def _serve(connection: Connection, project: Project, artifact: Artifact) -> None:
    """Open an artifact when told to, then answer every `_Ask` with `_Samples`, until the other end closes."""
    try:
        variant = artifact.variant
        if variant.backend is Backend.TENSORRT:
            _serve_engine(connection, project, artifact)
        elif variant.backend.is_module and variant.target != CPU_TARGET:
            _serve_module(connection, project, artifact)
        else:
            _serve_runner(connection, project, artifact)
    except (EOFError, KeyboardInterrupt):
        return
    except UnsupportedError as exc:
        connection.send(_Trouble(exc.what, skipped=True))
    except PipelineError as exc:
        connection.send(_Trouble(str(exc)))
    except Exception as exc:  # noqa: BLE001 - whatever a library raises is this variant's failure
        connection.send(_Trouble(str(RunError(f"running failed: {type(exc).__name__}: {exc}"))))


def _serve_runner(connection: Connection, project: Project, artifact: Artifact) -> None:
    """Time calls by the host's clock."""
    _start(connection, None)
    with open_runner(project, artifact) as run:
        connection.send(_Ready())
        while True:
            ask = connection.recv()
            images = _images(project, ask.batch)
            time.sleep(_SETTLE_SECONDS)
            run(images)
            connection.send((_timed(Clock.HOST, ask, lambda: run(images)),))  # noqa: B023 - called at once


def _serve_engine(connection: Connection, project: Project, artifact: Artifact) -> None:
    """Time an engine by every clock, after its cold start has been timed and its kernels have been kept."""
    _start(connection, gpu_of(project, artifact))
    ready, cache = _cold_start(project, artifact)
    specialization = project.config.tensorrt.kernel_specialization
    with (
        open_serialized(project, artifact) as engine,
        engine.session(cache=cache, specialization=specialization) as run,
    ):
        connection.send(ready)
        while True:
            ask = connection.recv()
            images = _images(project, ask.batch)
            run.upload(images)
            clocks = ((Clock.GPU, run.enqueue_kernels), (Clock.GPU_GRAPH, run.enqueue))
            on_gpu = [_timed_on_gpu(clock, ask, run, enqueue) for clock, enqueue in clocks]
            connection.send((*on_gpu, _timed(Clock.HOST, ask, lambda: run(images))))  # noqa: B023 - called at once


def _serve_module(connection: Connection, project: Project, artifact: Artifact) -> None:
    """Time a torch module by every clock, with images in both layouts, after its cold start has been timed."""
    from pipeline import cuda  # noqa: PLC0415 - only where there is a GPU
    from pipeline.module_runner import load_libraries  # noqa: PLC0415 - the same

    layouts = artifact.variant.backend.layouts
    load_libraries(artifact)
    _start(connection, gpu_of(project, artifact))
    before = cuda.free_bytes()
    first = [_images(project, batch) for batch in _first_batches(project, artifact)]
    began = time.perf_counter()
    with open_module(project, artifact) as run:
        for images in first:
            run(images)
        seconds = round(time.perf_counter() - began, 4)
        for batch in _timed_batches(project, artifact.variant):
            run(_images(project, batch))
        used = max(0, before - cuda.free_bytes())
        connection.send(_Ready(ColdStart(seconds=seconds, cached_seconds=None), used))
        while True:
            ask = connection.recv()
            images = _images(project, ask.batch)
            connection.send(tuple(item for layout in layouts for item in _timed_module(run, ask, images, layout)))


def _timed_module(run: ModuleSession, ask: _Ask, images: Images, layout: Layout) -> list[_Samples]:
    run.upload(images, layout)
    found = [_timed_on_gpu(Clock.GPU, ask, run, run.enqueue_kernels)]
    if not run.graph_trouble:
        try:
            found.append(_timed_on_gpu(Clock.GPU_GRAPH, ask, run, run.enqueue))
        except RunError:
            if not run.graph_trouble:
                raise
    note = f"no CUDA graph: {run.graph_trouble}" if run.graph_trouble else ""
    found.append(_timed(Clock.HOST, ask, lambda: run(images, layout)))
    return [replace(samples, layout=layout, note=note) for samples in found]


def _first_batches(project: Project, artifact: Artifact) -> list[int]:
    """Return the batch sizes that a module has run once it is ready: what it is compiled for, or else one."""
    variant = artifact.variant
    if variant.backend is Backend.TORCH_COMPILE and variant.profile:
        return list(variant.profile.sizes)
    return _timed_batches(project, variant)[:1]


def _timed_batches(project: Project, variant: Variant) -> list[int]:
    """Return the batch sizes that are timed of a variant, or else the one that it is tuned for."""
    batches = [batch for batch in project.config.timed_batches if _takes(variant, batch)]
    return batches or [variant.profile.opt if variant.profile else 1]


def _start(connection: Connection, gpu: Gpu | None) -> None:
    """Have CUDA start, which is not the artifact's doing, say so, and wait until it is this process's turn."""
    if gpu:
        from pipeline import cuda  # noqa: PLC0415 - only where there is a GPU

        cuda.use(gpu)
        cuda.free_bytes()
    connection.send(_Started())
    connection.recv()


def _cold_start(project: Project, artifact: Artifact) -> tuple[_Ready, bytes | None]:
    """Time open → first result; where kernels are compiled then, keep them beside the engine, and time it with them."""
    batches = _timed_batches(project, artifact.variant)
    first = _open_and_run(project, artifact, batches, None)
    if first.cache is None:
        return _Ready(ColdStart(seconds=first.seconds, cached_seconds=None), first.used_bytes), None
    path = project.paths.runtime_cache(artifact.variant)
    write_bytes(path, first.cache)
    second = _open_and_run(project, artifact, batches[:1], first.cache)
    cold = ColdStart(seconds=first.seconds, cached_seconds=second.seconds)
    return _Ready(cold, first.used_bytes, describe_file(path, project.paths.root)), first.cache


class _Opened(NamedTuple):
    """What opening an engine took and gave."""

    seconds: float
    """Until the first batch's result."""
    used_bytes: int
    """Of the GPU's memory, after all batches have run."""
    cache: bytes | None
    """The kernels of all batches."""


def _open_and_run(project: Project, artifact: Artifact, batches: list[int], cache: bytes | None) -> _Opened:
    from pipeline import cuda  # noqa: PLC0415 - only where there is a GPU

    images = [_images(project, batch) for batch in batches]
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


def _images(project: Project, batch: int) -> Images:
    """Return validation images as the network takes them, over and over where there are too few."""
    data = project.data()
    pixels = project.pixels(data.validation)
    return to_input(np.resize(pixels[:batch], (batch, *pixels.shape[1:])), data.preprocessing)


def _timed(clock: Clock, ask: _Ask, call: Callable[[], object]) -> _Samples:
    """Time calls by the host's clock."""
    latencies: list[float] = []
    began = time.perf_counter()
    while len(latencies) < ask.runs or (time.perf_counter() - began) * 1e3 < ask.milliseconds:
        start = time.perf_counter()
        call()
        latencies.append((time.perf_counter() - start) * 1e3)
    return _Samples(clock, tuple(latencies))


def _timed_on_gpu(clock: Clock, ask: _Ask, session: Session | ModuleSession, enqueue: Callable[[], None]) -> _Samples:
    """Time the work between two events on the stream, one batch at a time; and the host's time to enqueue it."""
    from pipeline import cuda  # noqa: PLC0415 - only where there is a GPU

    enqueue()
    session.stream.synchronize()
    start, end = cuda.Event(), cuda.Event()
    latencies: list[float] = []
    enqueues: list[float] = []
    began = time.perf_counter()
    while len(latencies) < ask.runs or (time.perf_counter() - began) * 1e3 < ask.milliseconds:
        start.record(session.stream)
        before = time.perf_counter()
        enqueue()
        after = time.perf_counter()
        end.record(session.stream)
        end.synchronize()
        latencies.append(end.milliseconds_since(start))
        enqueues.append((after - before) * 1e6)
    start.close()
    end.close()
    return _Samples(clock, tuple(latencies), tuple(enqueues))


def summarize(
    latencies: Latencies,
    batch: int,
    baseline: Latencies | None,
    clock: Clock = Clock.HOST,
    enqueue_us: float | None = None,
) -> BatchTiming:
    """Return the percentiles of latencies of whole batches, and the speed-up over the baseline's median.

    Args:
        latencies: milliseconds, at least one.
        batch: images a batch.
        baseline: eager FP32's milliseconds at this batch, measured in the same rounds.
        clock: what they are the time of.
        enqueue_us: the median time that the host takes to enqueue one, in microseconds.
    """
    p50, p90, p99 = (float(value) for value in np.percentile(latencies, (50, 90, 99)))
    return BatchTiming(
        batch=batch,
        clock=clock,
        runs=len(latencies),
        p50_ms=round(p50, 4),
        p90_ms=round(p90, 4),
        p99_ms=round(p99, 4),
        throughput_per_s=round(batch / p50 * 1e3, 2),
        speedup=None if baseline is None else round(float(np.median(baseline)) / p50, 3),
        enqueue_us=enqueue_us,
    )


def _report(project: Project, key: Key, found: _Measured) -> BenchmarkReport:
    variant = found.variant
    if found.error or found.skipped:
        outcome = Outcome.FAILED if found.error else Outcome.SKIPPED
        reason = found.error or found.skipped
        return BenchmarkReport(key=key, built_at=now(), variant_id=variant.id, outcome=outcome, reason=reason)
    gpu = project.plan.gpu(variant.target)
    return BenchmarkReport(
        key=key,
        built_at=now(),
        toolchain=tools("cuda-bindings") if gpu else tools("torch", "onnxruntime-gpu"),
        variant_id=variant.id,
        outcome=Outcome.DONE,
        reason="; ".join(dict.fromkeys(item.note for kept in found.samples.values() for item in kept if item.note)),
        device=f"{gpu.name}, driver {driver_version()}" if gpu else processor(),
        threads=threads(),
        timings=tuple(_timing(found, what) for what in found.samples),
        samples=_store(project, variant, found),
        cold_start=found.ready.cold_start,
        device_memory_bytes=found.ready.device_memory_bytes,
        runtime_cache=found.ready.runtime_cache,
        disturbed_by=found.disturbed_by,
    )


def _timing(found: _Measured, what: _What) -> BatchTiming:
    base = _baseline_latencies(found, what)
    enqueues = [value for samples in found.samples[what] for value in samples.enqueue_us]
    timing = summarize(
        found.latencies(what),
        what.batch,
        base if len(base) else None,
        what.clock,
        round(float(np.median(enqueues)), 2) if enqueues else None,
    )
    return timing.model_copy(update={"layout": what.layout})


def _baseline_latencies(found: _Measured, what: _What) -> Latencies:
    """Return eager FP32's by the same clock, contiguous; a CUDA graph is held against what users run, which is none."""
    clock = Clock.GPU if what.clock is Clock.GPU_GRAPH else what.clock
    return found.baseline.latencies(_What(clock, what.batch)) if found.baseline else np.empty(0)


def _store(project: Project, variant: Variant, found: _Measured) -> FileRecord:
    path = project.paths.samples(variant)
    with replacing(path) as temporary, temporary.open("wb") as file:
        arrays: dict[str, Any] = {what.name: found.latencies(what) for what in found.samples}
        np.savez_compressed(file, **arrays)
    return describe_file(path, project.paths.root)
