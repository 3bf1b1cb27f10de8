"""Artifacts × batch sizes → `BenchmarkReport`: interleaved rounds, one process per variant, all samples kept."""

from __future__ import annotations

import logging
import multiprocessing
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from model_artifacts.errors import RecordError
from model_artifacts.host.environment import host_memory_bytes, missing_driver
from model_artifacts.host.record_files import refuse_newer
from model_artifacts.records import CPU_TARGET, STAND_IN, Backend
from pipeline.planning.keys import key_of
from pipeline.planning.steps import Step
from pipeline.records import Outcome
from pipeline.stages.benchmark.gpu_watch import watching
from pipeline.stages.benchmark.messages import Ask, Ready, Started, Warm
from pipeline.stages.benchmark.results import Measured, report_of
from pipeline.stages.benchmark.worker import serve, takes
from pipeline.stages.common.outcomes import Ending
from pipeline.system.locks import exclusive
from pipeline.system.processes import describe_exit, kill, reap

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    from model_artifacts.records import Gpu, Variant
    from pipeline.config.settings import BenchmarkConfig, Config
    from pipeline.planning.project import Project
    from pipeline.planning.spec import Console
    from pipeline.records import Artifact, BenchmarkReport


log = logging.getLogger(__name__)

_NOT_BUILT = "not built: what it is made from is missing, or the build was not run or died"

_START_SECONDS = 300.0
"""The time limit for the start of a variant's process, and again for loading its artifact. Nine import torch at once.
"""
_ANSWER_SECONDS = 600.0
"""The time limit of one variant's round."""
_EXIT_SECONDS = 5.0
"""The grace period of a process to end by itself after its connection is closed; then it is killed."""
_PROCESSES = 12
"""The number of variants timed against each other, besides the baseline."""
_PROCESS_BYTES = 4 * 2**30
"""The share of a host's and of a GPU's memory for each: libraries, CUDA's context, weights, a batch's activations."""


def benchmark_target(project: Project, target: str) -> tuple[BenchmarkReport, ...]:
    """Time a target's variants against each other, and record each one's latencies.

    Every round times every variant once (A B C A B C), so that a change of the machine's speed affects all alike. Each
    variant has a process of its own, only one of them works at a time, and all are restarted several times.

    Returns:
        one report per variant, in the plan's order.

    Raises:
        RecordError: an artifact is missing.
        StorageError: the results cannot be written.
    """
    key = key_of(project, Step("benchmark", f"{project.plan.model}/{target}"))
    variants = [variant for variant in project.plan.variants if variant.target == target]
    for variant in variants:
        refuse_newer(project.paths.benchmark(variant))
    artifacts = [artifact for variant in variants if (artifact := _artifact(project, variant))]
    reasons = {variant.id: _NOT_BUILT for variant in variants}
    reasons.update({artifact.variant.id: _untimed(artifact) for artifact in artifacts})
    gpu = project.plan.gpu(target)
    with exclusive(gpu):
        ready = [artifact for artifact in artifacts if not reasons[artifact.variant.id]]
        shared = _shared(ready)
        groups = group(project, target, [artifact for artifact in ready if artifact.variant.id not in shared])
        measured = [item for members in groups for item in _measure(project, gpu, members)]
    reports = []
    for variant in variants:
        timed = shared.get(variant.id, variant.id)
        result = next((replace(item, variant=variant) for item in measured if item.variant.id == timed), None)
        untimed = Measured(variant, ending=Ending(Outcome.SKIPPED, reasons[variant.id]))
        report = report_of(project, key, result or untimed)
        reports.append(project.write(project.paths.benchmark(variant), report))
    return tuple(reports)


def group(project: Project, target: str, artifacts: list[Artifact]) -> list[list[Artifact]]:
    """Return the groups to time together: no more processes than the host has room for, each group with the baseline.

    The baseline of engines is eager FP32 on the same GPU, which belongs to another target.
    """
    variant = project.plan.baseline(target)
    baseline = next((artifact for artifact in artifacts if artifact.variant == variant), None)
    others = [artifact for artifact in artifacts if artifact is not baseline]
    if baseline is None and variant is not None and others:
        guest = _artifact(project, variant)
        baseline = guest if guest and not _untimed(guest) else None
    first = [baseline] if baseline else []
    room = room_of(project.plan.gpu(target), host_memory_bytes())
    chunks = [others[start : start + room] for start in range(0, len(others), room)]
    return [[*first, *chunk] for chunk in chunks] or ([first] if first else [])


def room_of(gpu: Gpu | None, host_bytes: int) -> int:
    """Return the number of variants that fit into the memory of the host and of its GPU, besides the baseline."""
    memories = (host_bytes, gpu.memory_bytes) if gpu else (host_bytes,)
    return max(1, min(_PROCESSES, *(memory // _PROCESS_BYTES for memory in memories)))


@dataclass(frozen=True)
class Worker:
    """A variant's process, and the connection to it."""

    process: BaseProcess
    connection: Connection


def _shared(artifacts: list[Artifact]) -> dict[str, str]:
    """Return a map from variants that share another's engine to that other, which is timed for both."""
    ids = {artifact.variant.id for artifact in artifacts}
    return {artifact.variant.id: artifact.same_as for artifact in artifacts if artifact.same_as in ids}


def _artifact(project: Project, variant: Variant) -> Artifact | None:
    try:
        return project.artifact(variant)
    except RecordError:
        return None  # a failed build does not keep the others from being timed


def _untimed(artifact: Artifact) -> str:
    """Return the reason why an artifact is not timed; empty if it is."""
    if artifact.outcome is not Outcome.DONE:
        return f"not built: {artifact.reason.splitlines()[0]}"
    if artifact.variant.backend is Backend.ONNX_REFERENCE:
        kind = artifact.variant.precision.value
        return f"ONNX Runtime's CPU provider runs no {kind} convolutions, and a reference evaluator is not timed"
    if artifact.variant.stands_in:
        return f"not deployed on a processor, and not timed: {STAND_IN}"
    if artifact.variant.target != CPU_TARGET and (reason := missing_driver()):
        return reason
    return ""


def _measure(project: Project, gpu: Gpu | None, artifacts: list[Artifact]) -> list[Measured]:
    """Time a group, with the configured number of restarts."""
    measured = [Measured(artifact.variant) for artifact in artifacts]
    for restart in range(project.config.benchmark.restarts):
        _one_restart(project, gpu, artifacts, measured, restart)
    wanted = project.plan.baseline(artifacts[0].variant.target)
    baseline = next((item for item in measured if item.variant == wanted), None)
    for item in measured:
        item.baseline = baseline
    return measured


def _one_restart(
    project: Project, gpu: Gpu | None, artifacts: list[Artifact], measured: list[Measured], restart: int
) -> None:
    """Open every artifact in a fresh process, and time all in turn."""
    settings = project.config.benchmark
    with ExitStack() as stack:
        open_now = [pair for pair in zip(artifacts, measured, strict=True) if not pair[1].ending]
        pairs = [
            (stack.enter_context(_worker(project, artifact, first=restart == 0)), item) for artifact, item in open_now
        ]
        _open(pairs, project.config, apart=restart == 0)
        ours = frozenset(worker.process.pid or 0 for worker, _ in pairs)
        with watching(gpu, ours) as watch:
            for batch in project.config.timed_batches:
                timed = [pair for pair in pairs if takes(pair[1].variant, batch)]
                if timed:
                    times = f", {restart + 1} of {settings.restarts}" if settings.restarts > 1 else ""
                    log.info("timing %d variants at batch %d%s", len(timed), batch, times)
                for worker, item in timed:
                    _warm_up(worker, item, batch, settings)
                for _ in range(settings.rounds):
                    for worker, item in timed:
                        _one_round(worker, item, batch, settings, restart)
    for _, item in pairs:
        item.disturbed_by = tuple(dict.fromkeys((*item.disturbed_by, *watch.strangers)))
        item.readings.extend(watch.readings)


def _open(pairs: list[tuple[Worker, Measured]], config: Config, *, apart: bool) -> None:
    """Open all artifacts and wait for them.

    Args:
        pairs: the processes and the results.
        config: the configuration, for its time limits.
        apart: open one after the other, and keep each one's own cold start.
    """
    for worker, item in pairs:
        await_answer(worker, item, _START_SECONDS)
    waiting = [pairs] if not apart else [[pair] for pair in pairs]
    for turn in waiting:
        for worker, item in turn:
            if not item.ending:
                with suppress(BrokenPipeError):  # it has ended, but its last message may still be there
                    worker.connection.send(Started())
        for worker, item in turn:
            answer = None if item.ending else await_answer(worker, item, _seconds_to_open(item.variant, config))
            if isinstance(answer, Ready) and apart:
                item.ready = answer


def _seconds_to_open(variant: Variant, config: Config) -> float:
    provider = variant.backend is Backend.ONNXRUNTIME_TENSORRT  # the validation has kept its engine, or else it builds
    compiles = provider or (variant.backend.is_module and variant.target != CPU_TARGET)
    return config.torch_tensorrt.build_timeout_seconds if compiles else _START_SECONDS


def _warm_up(worker: Worker, item: Measured, batch: int, settings: BenchmarkConfig) -> None:
    """Run a variant until its latency settles."""
    on_gpu = item.variant.target != CPU_TARGET
    ask = Ask(batch, settings.warmup_runs, settings.gpu_round_ms / 5 if on_gpu else 0.0, settings.warmup_seconds)
    answer = _ask(worker, item, ask)
    if isinstance(answer, Warm) and not answer.settled and f"batch {batch}" not in item.unsettled:
        item.unsettled.append(f"batch {batch}")


def _one_round(worker: Worker, item: Measured, batch: int, settings: BenchmarkConfig, restart: int) -> None:
    """Time one variant, and keep the samples. If its process dies, only this variant fails."""
    on_gpu = item.variant.target != CPU_TARGET
    answer = _ask(worker, item, Ask(batch, settings.runs_per_round, settings.gpu_round_ms if on_gpu else 0.0))
    for samples in answer if isinstance(answer, tuple) else ():
        item.keep(restart, batch, samples)


def _ask(worker: Worker, item: Measured, ask: Ask) -> object:
    if item.ending:
        return None
    with suppress(BrokenPipeError):  # it has ended, but its last message may still be there
        worker.connection.send(ask)
    return await_answer(worker, item, _ANSWER_SECONDS)


def await_answer(worker: Worker, item: Measured, seconds: float) -> object:
    """Return the answer of a variant's process; None after a failure, whose ending is kept."""
    try:
        if not worker.connection.poll(seconds):
            kill(worker.process)  # it must not work on while the others are timed
            item.ending = Ending(Outcome.FAILED, f"no answer in {seconds:.0f} s")
            return None
        answer = worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join(1)
        item.ending = Ending(Outcome.FAILED, describe_exit(worker.process.exitcode))
        return None
    if not isinstance(answer, Ending):
        return answer
    item.ending = answer
    return None


@contextmanager
def _worker(project: Project, artifact: Artifact, *, first: bool) -> Iterator[Worker]:
    """Start a process that opens the artifact and times it on request; end it afterwards."""
    context = multiprocessing.get_context("spawn")  # nothing is inherited, least of all a library's threads
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, project, artifact), kwargs={"first": first}, daemon=True)
    process.start()
    theirs.close()
    try:
        yield Worker(process, ours)
    except BaseException:
        kill(process)  # nobody waits for its answer
        raise
    finally:
        ours.close()
        reap(process, _EXIT_SECONDS)


def run(project: Project, target: str, console: Console) -> int:
    """Time a target, and print the variants that could not be timed."""
    reports = benchmark_target(project, target)
    failed = [report for report in reports if report.outcome is Outcome.FAILED]
    for report in failed:
        console.say(f"FAILED: {report.variant_id}: {report.reason}")
    for reason in sorted({report.reason for report in reports if report.outcome is Outcome.SKIPPED}):
        console.say(f"skipped: {reason}")
    return 1 if failed else 0
