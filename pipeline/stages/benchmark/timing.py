"""One restart of a group of variants: a fresh process for each, and rounds in which all take turns."""

from __future__ import annotations

import logging
import multiprocessing
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from model_artifacts.records import CPU_TARGET, Backend, Link
from pipeline.records import Outcome
from pipeline.stages.benchmark.gpu_watch import watching
from pipeline.stages.benchmark.messages import Ask, AskLink, NoLink, Ready, Started, Warm
from pipeline.stages.benchmark.results import Measured
from pipeline.stages.benchmark.worker import serve, takes
from pipeline.stages.common.outcomes import Ending
from pipeline.system.processes import describe_exit, kill, reap

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    from model_artifacts.records import Gpu, Variant
    from pipeline.config.benchmark import BenchmarkConfig
    from pipeline.config.settings import Config
    from pipeline.planning.project import Project
    from pipeline.records import Artifact


log = logging.getLogger(__name__)

_START_SECONDS = 300.0
"""The time limit for the start of a variant's process, and again for loading its artifact. Nine import torch at once.
"""
_ANSWER_SECONDS = 600.0
"""The time limit of one variant's round."""
_EXIT_SECONDS = 5.0
"""The grace period of a process to end by itself after its connection is closed; then it is killed."""


@dataclass(frozen=True)
class Worker:
    """A variant's process, and the connection to it."""

    process: BaseProcess
    connection: Connection


def time_restart(
    project: Project, gpu: Gpu | None, artifacts: Sequence[Artifact], number: int, guests: Collection[str] = ()
) -> list[Measured]:
    """Open every artifact in a fresh process, and time all in turn, each with its baseline.

    Args:
        project: the project that holds the artifacts.
        gpu: the GPU that they run on; None for the CPU.
        artifacts: the group, with the baseline first.
        number: the number of the restart, from 1.
        guests: ids of variants that are there for comparison only. Nothing is timed without another one.

    Returns:
        one result per artifact, with its baseline, in the same order.
    """
    measured = time_together(project.config, gpu, [(project, artifact) for artifact in artifacts], number, guests)
    wanted = project.plan.baseline(artifacts[0].variant.target)
    baseline = next((item for item in measured if item.variant == wanted and item.rounds and not item.ending), None)
    for item in measured:
        item.baseline = baseline
    return measured


def time_together(
    config: Config,
    gpu: Gpu | None,
    artifacts: Sequence[tuple[Project, Artifact]],
    number: int,
    guests: Collection[str] = (),
) -> list[Measured]:
    """Open the artifacts of one project or of several in fresh processes, and time all in turn.

    Loading is parallel, except for the first restart, which times each cold start. Timing is alone: the next group's
    processes are not opened meanwhile, since their loading would take memory bandwidth, cores and the GPU's clock.

    Args:
        config: the batch sizes and the benchmark's settings, which hold for all projects.
        gpu: the GPU that they run on; None for the CPU.
        artifacts: the artifacts, each with the project that holds it.
        number: the number of the restart, from 1.
        guests: ids of variants that are there for comparison only. Nothing is timed without another one.

    Returns:
        one result per artifact, in the same order.
    """
    settings = config.benchmark
    measured = [Measured(artifact.variant) for _, artifact in artifacts]
    with ExitStack() as stack:
        pairs = [
            (stack.enter_context(_worker(project, artifact, first=number == 1)), item)
            for (project, artifact), item in zip(artifacts, measured, strict=True)
        ]
        _open(pairs, config, apart=number == 1)
        ours = frozenset(worker.process.pid or 0 for worker, _ in pairs)
        if all(item.ending or item.variant.id in guests for item in measured):
            return measured
        link = _link(pairs) if gpu and number == 1 else None
        with watching(gpu, ours) as watch:
            for batch in config.timed_batches:
                timed = [pair for pair in pairs if takes(pair[1].variant, batch)]
                if timed:
                    times = f", {number} of {settings.restarts}" if settings.restarts > 1 else ""
                    log.info("timing %d variants at batch %d%s", len(timed), batch, times)
                for worker, item in timed:
                    _warm_up(worker, item, batch, settings)
                for _ in range(settings.rounds):
                    for worker, item in timed:
                        _one_round(worker, item, batch, settings, number - 1)
    for item in measured:
        item.disturbed_by = watch.strangers
        item.readings.extend(watch.readings)
        item.link = link
    return measured


def _link(pairs: list[tuple[Worker, Measured]]) -> Link | None:
    """Return the rates of copies to and from the GPU, which the first process that runs there measures."""
    for worker, item in pairs:
        if item.variant.backend is Backend.TENSORRT or item.variant.backend.is_module:
            found = _ask(worker, item, AskLink())
            if isinstance(found, Link):
                return found
            if isinstance(found, NoLink):
                item.notes.append(f"the rates of copies to and from the GPU are unknown: {found.reason}")
    return None


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
            if isinstance(answer, Ready):
                item.ready = answer if apart else Ready(tuning_seconds=answer.tuning_seconds)


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


def _ask(worker: Worker, item: Measured, ask: Ask | AskLink) -> object:
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
