"""The stage `pictures`: an artifact's answers to pictures that its GPU decodes and resizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.host.environment import driver_version, missing_driver, version
from model_artifacts.records import CPU_TARGET
from pipeline.planning.freshness import failed_or_lacked_before
from pipeline.planning.keys import build_identity, gpu_type, make_key
from pipeline.planning.spec import VARIANT, StageSpec, Subjects
from pipeline.planning.steps import Step
from pipeline.records import PicturesReport

if TYPE_CHECKING:
    from model_artifacts.records import Key, Variant
    from pipeline.planning.project import Project

VERSION = 1
"""Raise it when the same artifact and pictures give another verdict."""

_ON_GPU: Subjects[Variant] = Subjects(
    "variant of a GPU",
    VARIANT.example,
    lambda plan: {name: item for name, item in plan.variants_by_id.items() if item.target != CPU_TARGET},
    VARIANT.target,
)


def pictures_key(project: Project, variant: Variant) -> Key:
    """Return the key of a variant's answers to pictures that its GPU decodes."""
    data = project.data()
    return make_key(
        pictures=VERSION,
        artifact=build_identity(project.artifact(variant)),
        judged=project.accuracy(variant).key.digest,
        names=data.names.sha256 if data.names else None,
        folder=project.config.data.images,
        torch=version("torch"),
        torchvision=version("torchvision"),
        driver=None if project.plan.workers_of(variant.target) else missing_driver() or driver_version(),
        gpu=gpu_type(project.plan.gpu(variant.target)),
    )


SPEC = StageSpec(
    name="pictures",
    sentence="On demand: whether pictures may be decoded and resized on the GPU, by each artifact's answers to them.",
    subjects=_ON_GPU,
    version=VERSION,
    record=PicturesReport,
    records=lambda paths, _plan, variant: (paths.pictures(variant),),
    key=pictures_key,
    run="pipeline.stages.pictures.stage:run",
    requires=lambda _schedule, variant: (Step("validate", variant.id),),
    retried=failed_or_lacked_before,
    # a step of this machine proves nothing of a worker's GPU
    lacks_hardware=lambda plan, variant: (
        plan.gpu(variant.target) is None or plan.workers_of(variant.target) is not None
    ),
    on_demand=True,
    in_manifest=True,
    needs_build=True,
)
