"""The stage `load`: the rates and latencies of artifacts under load, and the settings that are best for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.host.environment import driver_version, missing_driver, processor, threads, version
from model_artifacts.records import CPU_TARGET
from pipeline.planning.freshness import failed_or_lacked_before
from pipeline.planning.keys import build_identity, installed_for, make_key
from pipeline.planning.spec import VARIANT, StageSpec
from pipeline.planning.steps import Step
from pipeline.records import LoadReport
from pipeline.stages.common import inputs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model_artifacts.records import Key, Variant
    from pipeline.planning.project import Project
    from pipeline.planning.spec import Input

VERSION = 2  # queries that are due come together, and are joined to full batches
"""Raise it when the same artifact is put under load in another way."""


def load_key(project: Project, variant: Variant) -> Key:
    """Return the key of a variant's results under load."""
    on_cpu = variant.target == CPU_TARGET
    gpu = project.plan.gpu(variant.target)
    has = installed_for(project, variant.target)
    accuracy = project.accuracy(variant)
    return make_key(
        load=VERSION,
        artifact=build_identity(project.artifact(variant)),
        verdict=[accuracy.outcome.value, accuracy.passed, bool(accuracy.rows)],
        settings=project.config.load.run_settings,
        batches=project.config.timed_batches,
        preprocessing=project.source().preprocessing,
        processor=processor(),  # it sends the queries and joins the batches of a GPU, too
        threads=threads(),
        torch=has.torch,
        onnxruntime=has.onnxruntime,
        loadgen=version("mlcommons-loadgen"),
        driver=None if on_cpu else missing_driver() or driver_version(),
        gpu=gpu.uuid if gpu else None,
        kernels=project.config.tensorrt.kernel_specialization,
    )


def _inputs(project: Project, variant: Variant) -> Iterator[Input]:
    yield from inputs.to_run(project, variant)
    yield from inputs.accuracy_if_whole(project, variant)


SPEC = StageSpec(
    name="load",
    sentence="On demand: the rate that an artifact serves within its p99 bound, by MLCommons' LoadGen, and how.",
    subjects=VARIANT,
    version=VERSION,
    record=LoadReport,
    records=lambda paths, _plan, variant: (paths.load(variant),),
    files=lambda paths, _plan, variant: (paths.load_summaries(variant), paths.load_log(variant)),
    key=load_key,
    run="pipeline.stages.load.stage:run",
    requires=lambda schedule, variant: (*schedule.of("data"), Step("build", variant.id)),
    follows=lambda _schedule, variant: (Step("validate", variant.id),),
    inputs=_inputs,
    retried=failed_or_lacked_before,
    worker_fields=frozenset({"driver", "gpu", "processor", "threads", "loadgen"}),
    on_demand=True,
    in_manifest=True,
    needs_build=True,
    alone=True,
    timed=True,
    prints_a_table=True,
)
