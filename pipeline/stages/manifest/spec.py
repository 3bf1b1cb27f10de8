"""The stage `manifest`: the list of all artifacts and their verdicts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.host.hashes import sha256_of
from model_artifacts.records import KernelSpecialization, Manifest
from pipeline.planning.folder.whole import left_models
from pipeline.planning.freshness import current_paths
from pipeline.planning.keys import code_version, make_key
from pipeline.planning.spec import MODEL, StageSpec

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from model_artifacts.records import Key
    from pipeline.planning.project import Project

VERSION = 5
"""Raise it when the same records give another manifest. Since 2 each entry names the commits that made it. Since 3
TensorRT's graphs are not deployable on a processor. Since 4 it has the arguments of the model's factory. Since 5
milestones are those of which the plan has an artifact."""


def manifest_key(project: Project, current: Collection[Path]) -> Key:
    """Return the key of the manifest: the digests of all records that it reads, for variants of the current ones.

    Args:
        project: the place of the records.
        current: the paths of the current records; all others count as absent.
    """
    paths, plan = project.paths, project.plan
    shared = [paths.source, paths.data, *map(paths.onnx_record, plan.graphs), *map(paths.rounding, plan.arithmetics)]
    records = list(shared)
    for variant in plan.variants:
        records += [paths.artifact(variant), paths.accuracy(variant), paths.benchmark(variant)]
    read = {*shared, *current}
    digests = {
        str(path.relative_to(paths.root)): sha256_of(path) if path in read and path.is_file() else None
        for path in records
    }
    of_pictures = [path for path in map(paths.pictures, plan.variants) if path in read]
    digests |= {str(path.relative_to(paths.root)): sha256_of(path) for path in of_pictures}
    return make_key(records=digests, **_kernels(project), **code_version(VERSION))


def _kernels(project: Project) -> dict[str, object]:
    """Return the field for the time at which engines compile kernels; none for the default, so that older keys hold."""
    chosen = project.config.tensorrt.kernel_specialization
    return {} if chosen is KernelSpecialization.EAGER else {"kernels": chosen}


SPEC = StageSpec(
    name="manifest",
    sentence="artifacts/manifest.json: the facts and the status of every artifact.",
    subjects=MODEL,
    version=VERSION,
    record=Manifest,
    records=lambda paths, _plan, _model: (paths.manifest,),
    key=lambda project, _model: manifest_key(project, current_paths(project)),
    key_beside=lambda project, steps: manifest_key(project, current_paths(project, steps)),
    run="pipeline.stages.manifest.stage:run",
    follows=lambda schedule, _model: tuple(step for step in schedule.steps if not schedule.spec(step.stage).last),
    retried=lambda project, _record: left_models(project),
    last=True,
    prints_a_table=True,
)
