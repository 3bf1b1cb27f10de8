"""Torch modules of the tiny project, built in the process of the test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from model_artifacts.host.record_files import write_record
from model_artifacts.records import Backend, FileRecord, Key, Variant
from pipeline.records import Artifact, Outcome
from pipeline.stages.build import module as torchtrt
from tests.support.hosts import H100

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.planning.project import Project


def named(project: Project, name: str) -> Variant:
    """Return the variant of this name."""
    return next(item for item in project.plan.variants if item.name == name and "torch" in item.target)


def artifact_of(project: Project, variant: Variant, path: Path, **more: Any) -> Artifact:
    """Return the record of a file that a build made."""
    record = FileRecord(path=path.relative_to(project.paths.root).as_posix(), bytes=1, sha256="0" * 64)
    return Artifact(
        key=Key(fields=()),
        built_at=project.source().built_at,
        variant=variant,
        outcome=Outcome.DONE,
        file=record,
        **more,
    )


def made(project: Project, name: str) -> Artifact:
    """Build a Torch-TensorRT variant as `make_module` does, but in this process."""
    variant = named(project, name)
    in_time = variant.backend is Backend.TORCH_COMPILE
    path = project.paths.recipe(variant) if in_time else project.paths.module(variant)
    path.parent.mkdir(parents=True, exist_ok=True)
    result = torchtrt._make(project, variant, H100, path)
    if in_time:
        write_record(path, torchtrt.recipe_of(project, variant, result.settings))
    return artifact_of(project, variant, path, module=result.contents)
