"""The stage `profile`: the layers and kernels that take the time of an artifact."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from model_artifacts.host.environment import driver_version, missing_driver, processor, threads
from model_artifacts.records import CPU_TARGET
from pipeline.planning.freshness import failed_or_lacked_before
from pipeline.planning.keys import build_identity, installed_for, make_key
from pipeline.planning.spec import VARIANT, StageSpec
from pipeline.planning.steps import Step
from pipeline.records import LayerProfile
from pipeline.stages.common import inputs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model_artifacts.records import Key, Variant
    from pipeline.planning.project import Project
    from pipeline.planning.spec import Input

VERSION = 1
"""Raise it when the same artifact is profiled in another way."""


def profile_key(project: Project, variant: Variant) -> Key:
    """Return the key of a variant's profile."""
    on_cpu = variant.target == CPU_TARGET
    gpu = project.plan.gpu(variant.target)
    has = installed_for(project, variant.target)
    return make_key(
        profiler=VERSION,
        artifact=build_identity(project.artifact(variant)),
        batches=project.config.timed_batches,
        preprocessing=project.source().preprocessing,
        processor=processor() if on_cpu else None,
        threads=threads() if on_cpu else None,
        torch=has.torch,
        onnxruntime=has.onnxruntime,
        nsight=None if on_cpu else shutil.which("nsys") is not None,
        driver=None if on_cpu else missing_driver() or driver_version(),
        gpu=gpu.uuid if gpu else None,
    )


def _inputs(project: Project, variant: Variant) -> Iterator[Input]:
    yield from inputs.to_run(project, variant)


SPEC = StageSpec(
    name="profile",
    sentence=(
        "On demand: which layers and kernels take an artifact's time, by the library's profiler and Nsight Systems."
    ),
    subjects=VARIANT,
    version=VERSION,
    record=LayerProfile,
    records=lambda paths, _plan, variant: (paths.layers(variant),),
    files=lambda paths, _plan, variant: (paths.trace(variant), paths.profile_log(variant)),
    key=profile_key,
    run="pipeline.stages.profile.stage:run",
    requires=lambda schedule, variant: (*schedule.of("data"), Step("build", variant.id)),
    inputs=_inputs,
    retried=failed_or_lacked_before,
    worker_fields=frozenset({"driver", "gpu", "nsight"}),
    on_demand=True,
    needs_build=True,
    alone=True,
    prints_a_table=True,
)
