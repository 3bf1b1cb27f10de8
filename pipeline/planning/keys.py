"""Staleness keys: the fields that a step's result depends on, and the facts of this host that go into them.

No key holds the time, the host's name, the place of the checkout, a file's time stamp, or comments and key order of
the configuration. Each stage's own key is in its `spec.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel

from model_artifacts.errors import RecordError
from model_artifacts.host.environment import installed_torch_tensorrt, missing_driver, tensorrt_of, version
from model_artifacts.records import CPU_TARGET, SCHEMA_VERSION, Key, KeyField
from pipeline.system.digests import digests_in

if TYPE_CHECKING:
    from model_artifacts.records import Gpu, InstalledTensorRT, Tool, Variant
    from pipeline.planning.project import Project
    from pipeline.planning.steps import Step
    from pipeline.records import Artifact


def key_of(project: Project, step: Step) -> Key:
    """Return the key of a step's result, from the configuration and the records that the step builds on.

    Raises:
        RecordError: one of those records is missing.
        UsageError: the plan has no such step.
    """
    return project.schedule.spec(step.stage).key(project, project.schedule.subject(step))


def make_key(**fields: object) -> Key:
    """Return a key of named fields and the records' schema version; a value is a record or plain JSON data."""
    named = {"schema": SCHEMA_VERSION, **fields}
    return Key(fields=tuple(KeyField(name=name, value=_text(named[name])) for name in sorted(named)))


def _text(value: object) -> str:
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return json.dumps(plain, sort_keys=True, separators=(",", ":"))


def code_version(version: int) -> dict[str, object]:
    """Return the key field of a stage's code version; none for version 1, whose keys are older than the field."""
    return {"code": version} if version > 1 else {}


def build_identity(artifact: Artifact) -> list[str]:
    """Return the identity of a build: its variant with the file's digest, or with the outcome if there is no file."""
    return [artifact.variant.id, artifact.file.sha256 if artifact.file else artifact.outcome.value]


def build_identity_on_disk(project: Project, variant: Variant) -> list[str]:
    """Return the identity of a variant's build, or "missing" if it has no readable record."""
    try:
        return build_identity(project.artifact(variant))
    except RecordError:
        return [variant.id, "missing"]


def gpu_type(gpu: Gpu | None) -> list[str | int] | None:
    """Return the name and compute capability of a GPU, for engines that were tuned on its type."""
    return [gpu.name, gpu.compute_capability] if gpu else None


def driver_presence(project: Project, variant: Variant) -> str | None:
    """Return "present" or the reason why no driver is there; None for variants of the CPU."""
    if variant.target == CPU_TARGET:
        return None
    if workers := project.plan.workers_of(variant.target):
        return workers.host.driver if workers.host.driver == "absent" else "present"
    return missing_driver() or "present"


class Installed(NamedTuple):
    """The versions of the libraries that run a target's variants."""

    torch: str
    onnxruntime: str
    torch_tensorrt: Tool
    tensorrt: InstalledTensorRT
    """The TensorRT that Torch-TensorRT builds with."""


def installed_for(project: Project, target: str) -> Installed:
    """Return the libraries that run a target's variants, on this machine or on the target's workers."""
    if workers := project.plan.workers_of(target):
        has, library, onnxruntime = workers.machine, workers.host.torch_tensorrt, workers.host.onnxruntime.version
        return Installed(has.torch, onnxruntime, library, has.tensorrt(tensorrt_of(library)))
    library = installed_torch_tensorrt()
    used = project.plan.host.tensorrt(tensorrt_of(library))
    return Installed(version("torch"), version("onnxruntime-gpu"), library, used)


def file_digest(project: Project, path: str) -> str | None:
    """Return the digest of a file that the configuration names; None if the value names no file."""
    file = Path(path)
    return digests_in(project.paths.digests).sha256_of(file) if file.is_file() else None


def folder_digest(project: Project, path: str) -> str | None:
    """Return the digest of a folder that the configuration names; None if the value names no folder."""
    folder = Path(path)
    return digests_in(project.paths.digests).sha256_of_folder(folder) if folder.is_dir() else None


def name_fields(project: Project) -> dict[str, object]:
    """Return the names that the configuration gives the axes of arrays; none for images, whose axes are known."""
    axes = project.config.data.axes
    return {"names_of_axes": [[item.input, item.axes] for item in axes]} if axes else {}
