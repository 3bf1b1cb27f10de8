"""Artifacts × batch sizes → `BenchmarkReport`: interleaved rounds, one process a variant, every sample kept."""

from __future__ import annotations

import logging
import multiprocessing
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.atomic import describe_file, replacing, write_record
from pipeline.environment import missing_driver, now, processor, threads, tools
from pipeline.errors import PipelineError, RecordError, RunError
from pipeline.plan import CPU_TARGET, Stage, Step
from pipeline.preprocessing import to_input
from pipeline.records import Artifact, Backend, BatchTiming, BenchmarkReport, FileRecord, Outcome, Precision, Variant
from pipeline.runners import open_runner
from pipeline.staleness import key_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    import numpy.typing as npt

    from pipeline.config import BenchmarkConfig
    from pipeline.project import Project
    from pipeline.records import Key

    Latencies = npt.NDArray[np.float64]

log = logging.getLogger(__name__)

_NOT_BUILT = "not built: what it is made from is missing, or the build was not run or died"

_START_SECONDS = 120.0
"""How long a variant's process may take to load its artifact."""
_SETTLE_SECONDS = 0.05
"""How long a variant waits before its turn, for the threads of the one before it to stop spinning; then it runs once
untimed, to have its own data in the caches."""
_ANSWER_SECONDS = 600.0
"""How long one round of one variant may take."""


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
    measured = _measure(project, [artifact for artifact in artifacts if not reasons[artifact.variant.id]])
    baseline = next((item for item in measured if _is_baseline(item.variant)), None)
    reports = []
    for variant in variants:
        found = next((item for item in measured if item.variant == variant), None)
        report = _report(project, key, variant, found, baseline, reasons[variant.id])
        write_record(project.paths.benchmark(variant), report)
        reports.append(report)
    return tuple(reports)


@dataclass
class _Measured:
    """One variant's latencies in milliseconds, by batch size, or what went wrong."""

    variant: Variant
    latencies: dict[int, list[float]] = field(default_factory=dict)
    error: str = ""


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
        return "ONNX Runtime's CPU provider runs no bfloat16 convolutions, and a reference evaluator is not timed"
    if artifact.variant.target != CPU_TARGET:
        return missing_driver() or "this version of the pipeline times no artifacts on a GPU yet"
    return ""


def _is_baseline(variant: Variant) -> bool:
    return variant.backend is Backend.EAGER and variant.precision is Precision.FP32


def _measure(project: Project, artifacts: list[Artifact]) -> list[_Measured]:
    settings = project.config.benchmark
    measured = [_Measured(artifact.variant) for artifact in artifacts]
    if not artifacts:
        return []
    with ExitStack() as stack:
        workers = [stack.enter_context(_worker(project, artifact)) for artifact in artifacts]
        for batch in project.config.timed_batches:
            log.info("timing %d variants at batch %d", len(workers), batch)
            for index in range(-1, settings.rounds):  # the first round warms up
                for worker, item in zip(workers, measured, strict=True):
                    if not item.error:
                        _one_round(worker, item, batch, settings, warm_up=index < 0)
    return measured


def _one_round(worker: Connection, item: _Measured, batch: int, settings: BenchmarkConfig, *, warm_up: bool) -> None:
    """Have one variant timed, and keep what comes back; a process that dies costs its own variant only."""
    runs = settings.warmup_runs if warm_up else settings.runs_per_round
    try:
        with suppress(BrokenPipeError):  # it has ended, and its last words may still lie there
            worker.send((batch, runs))
        if not worker.poll(_ANSWER_SECONDS if item.latencies or not warm_up else _START_SECONDS + _ANSWER_SECONDS):
            item.error = f"no answer in {_ANSWER_SECONDS:.0f} s"
            return
        answer = worker.recv()
    except (EOFError, OSError):
        item.error = "its process died"
        return
    if isinstance(answer, str):
        item.error = answer
    elif not warm_up:
        item.latencies.setdefault(batch, []).extend(answer)


@contextmanager
def _worker(project: Project, artifact: Artifact) -> Iterator[Connection]:
    """Start a process that has the artifact open and times it when asked; end it afterwards."""
    context = multiprocessing.get_context("spawn")  # nothing is inherited, least of all a library's threads
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, project, artifact), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()


def _serve(connection: Connection, project: Project, artifact: Artifact) -> None:
    """Answer (batch, runs) with the latencies in milliseconds, or with what went wrong, until the other end closes."""
    try:
        with open_runner(project, artifact) as run:
            data = project.data()
            pixels = project.pixels(data.validation)
            while True:
                batch, runs = connection.recv()
                image = to_input(np.resize(pixels[:batch], (batch, *pixels.shape[1:])), data.preprocessing)
                time.sleep(_SETTLE_SECONDS)
                run(image)
                latencies = []
                for _ in range(runs):
                    began = time.perf_counter()
                    run(image)
                    latencies.append((time.perf_counter() - began) * 1e3)
                connection.send(latencies)
    except (EOFError, KeyboardInterrupt):
        return
    except PipelineError as exc:
        connection.send(str(exc))
    except Exception as exc:  # noqa: BLE001 - whatever a library raises is this variant's failure
        connection.send(str(RunError(f"running failed: {type(exc).__name__}: {exc}")))


def summarize(latencies: Latencies, batch: int, baseline: Latencies | None) -> BatchTiming:
    """Return the percentiles of latencies of whole batches, and the speed-up over the baseline's median.

    Args:
        latencies: milliseconds, at least one.
        batch: images a batch.
        baseline: eager FP32's milliseconds at this batch, measured in the same rounds.
    """
    p50, p90, p99 = (float(value) for value in np.percentile(latencies, (50, 90, 99)))
    return BatchTiming(
        batch=batch,
        runs=len(latencies),
        p50_ms=round(p50, 4),
        p90_ms=round(p90, 4),
        p99_ms=round(p99, 4),
        throughput_per_s=round(batch / p50 * 1e3, 2),
        speedup=None if baseline is None else round(float(np.median(baseline)) / p50, 3),
    )


def _report(  # noqa: PLR0913 - one record's parts
    project: Project,
    key: Key,
    variant: Variant,
    found: _Measured | None,
    baseline: _Measured | None,
    untimed: str,
) -> BenchmarkReport:
    if found is None or found.error:
        outcome = Outcome.SKIPPED if found is None else Outcome.FAILED
        reason = untimed or (found.error if found else "")
        return BenchmarkReport(key=key, built_at=now(), variant_id=variant.id, outcome=outcome, reason=reason)
    base = baseline.latencies if baseline and not baseline.error else {}
    timings = tuple(
        summarize(np.array(values), batch, np.array(base[batch]) if batch in base else None)
        for batch, values in found.latencies.items()
    )
    return BenchmarkReport(
        key=key,
        built_at=now(),
        toolchain=tools("torch", "onnxruntime-gpu"),
        variant_id=variant.id,
        outcome=Outcome.DONE,
        device=processor(),
        threads=threads(),
        timings=timings,
        samples=_store(project, variant, found),
    )


def _store(project: Project, variant: Variant, found: _Measured) -> FileRecord:
    path = project.paths.samples(variant)
    with replacing(path) as temporary, temporary.open("wb") as file:
        arrays: dict[str, Any] = {f"batch_{batch}": np.array(values) for batch, values in found.latencies.items()}
        np.savez_compressed(file, **arrays)
    return describe_file(path, project.paths.root)
