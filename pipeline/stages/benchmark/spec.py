"""The stage `benchmark`: latency and throughput of the artifacts of a target."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.host.environment import driver_version, missing_driver, processor, threads
from model_artifacts.records import CPU_TARGET
from pipeline.planning.freshness import failed_before, is_current
from pipeline.planning.keys import build_identity_on_disk, installed_for, make_key
from pipeline.planning.spec import TARGET, StageSpec
from pipeline.planning.steps import Step
from pipeline.records import BenchmarkReport, Outcome
from pipeline.stages.common import inputs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from model_artifacts.records import Key, Variant
    from pipeline.planning.paths import Paths
    from pipeline.planning.plan import Plan
    from pipeline.planning.project import Project
    from pipeline.planning.schedule import Schedule
    from pipeline.planning.spec import Input

VERSION = 6
"""Raise it when the same artifacts are timed in another way.

2 keeps the GPU busy while the host enqueues, and separates restarts for its intervals. 4 times all groups in every
restart, widens the intervals of variants that never met in a round, and tunes inductor once. It does not time
TensorRT's graphs on a processor, which are never deployed there. 5 times torch_compile with contiguous images alone.
6 times calls from host to host, and the rates of copies.
"""


def benchmark_key(project: Project, target: str) -> Key:
    """Return the key of the latencies of a target's variants, which are measured together."""
    variants = [*project.plan.variants_on(target)]
    baseline = project.plan.baseline(target)
    if baseline is not None and baseline not in variants:
        variants.append(baseline)
    return make_key(
        artifacts=sorted(build_identity_on_disk(project, variant) for variant in variants),
        settings=project.config.benchmark.timing_settings,
        **_circumstances(project, target),
    )


def restart_key(project: Project, target: str, variant: Variant) -> Key:
    """Return the key of a variant's samples in one restart, timed together with the baseline.

    The number of restarts is not in it, so that more of them extend a benchmark. Nor are the other variants of the
    target: each has samples and a key of its own.
    """
    baseline = project.plan.baseline(target)
    return make_key(
        artifact=build_identity_on_disk(project, variant),
        baseline=build_identity_on_disk(project, baseline) if baseline else None,
        settings=project.config.benchmark.restart_settings,
        **_circumstances(project, target),
    )


def _circumstances(project: Project, target: str) -> dict[str, object]:
    """Return the fields of a key that all variants of a target share."""
    gpu = project.plan.gpu(target)
    has = installed_for(project, target)
    return {
        "timer": VERSION,
        "batches": project.config.timed_batches,
        "preprocessing": project.source().preprocessing,
        "processor": processor() if target == CPU_TARGET else None,
        "threads": threads() if target == CPU_TARGET else None,
        "torch": has.torch,
        "onnxruntime": has.onnxruntime,
        "driver": None if target == CPU_TARGET else missing_driver() or driver_version(),
        "gpu": gpu.uuid if gpu else None,
        "kernels": project.config.tensorrt.kernel_specialization,
    }


def _follows(schedule: Schedule, target: str) -> tuple[Step, ...]:
    """Return everything that would disturb the clock: all builds, validations and earlier benchmarks.

    For a target of the farm only steps of the same workers count.
    """
    step = Step("benchmark", f"{schedule.plan.model}/{target}")
    earlier = schedule.of("benchmark")
    others = (*schedule.of("build"), *schedule.of("validate"), *earlier[: earlier.index(step)])
    if workers := schedule.workers(step):
        return tuple(other for other in others if schedule.workers(other) == workers)
    return others


def _inputs(project: Project, target: str) -> Iterator[Input]:
    baseline = project.plan.baseline(target)
    variants = [*project.plan.variants_on(target), *([baseline] if baseline else [])]
    yield inputs.source(project, variants)
    yield inputs.data(project)
    for variant in variants:
        yield from inputs.graph(project, variant)
        yield from inputs.artifact(project, variant)
        yield from inputs.accuracy_if_whole(project, variant)
    if not is_current(project, Step("benchmark", f"{project.plan.model}/{target}")):  # or else all are taken anew
        for variant in project.plan.variants_on(target):
            yield from inputs.restarts_if_whole(project, variant)


def _files(paths: Paths, plan: Plan, target: str) -> Iterator[Path]:
    """Yield the places of the samples of all variants, and of their restarts."""
    for variant in plan.variants_on(target):
        yield from (paths.samples(variant), paths.runtime_cache(variant))
        for number in range(1, plan.config.benchmark.restarts + 1):
            yield from (paths.restart_samples(variant, number), paths.restart(variant, number))


def _retried(project: Project, record: BenchmarkReport) -> Iterator[str]:
    """Yield a reason for a variant that failed, or that could not be run and has been validated since."""
    yield from failed_before(project, record)
    if record.retryable:
        variant = project.plan.variant(record.variant_id)
        if project.accuracy(variant).outcome is Outcome.DONE:
            yield f"{record.variant_id} runs here by now"


SPEC = StageSpec(
    name="benchmark",
    sentence="Latency and throughput of a target's artifacts, in interleaved rounds.",
    subjects=TARGET,
    version=VERSION,
    record=BenchmarkReport,
    records=lambda paths, plan, target: tuple(map(paths.benchmark, plan.variants_on(target))),
    files=lambda paths, plan, target: tuple(_files(paths, plan, target)),
    key=benchmark_key,
    run="pipeline.stages.benchmark.stage:run",
    seconds=100,
    requires=lambda schedule, _target: schedule.of("data"),
    follows=_follows,
    inputs=_inputs,
    retried=_retried,
    worker_fields=frozenset({"driver", "gpu"}),
    in_manifest=True,
    alone=True,
    timed=True,
)
