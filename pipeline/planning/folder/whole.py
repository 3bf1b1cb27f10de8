"""The one manifest of an artifacts folder: several projects write their parts of it, each its own.

A writer reads the manifest, replaces its own part, and writes the whole, all under a lock: no part is lost. The parts
of models that no configuration makes any more are left out then.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from model_artifacts.errors import RecordError
from model_artifacts.host.record_files import read_record, write_record
from model_artifacts.records import Manifest, joined, manifests_of, model_names, of_model
from pipeline.planning.folder.owner import is_made
from pipeline.system.locks import updating

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.planning.project import Project


def write_part(project: Project, own: Manifest) -> Manifest:
    """Write this model's part of the folder's manifest, with the checkout that made it, and return the part.

    Raises:
        StorageError: the manifest cannot be written.
        NewerRecordError: a newer version of this package wrote the present one.
    """
    made = own.model_copy(update={"git": project.git})
    with updating(project.paths.manifest):
        kept = (item for name, item in _others(project).items() if is_made(project, name))
        write_record(project.paths.manifest, joined((made, *kept)))
    return made


def read_released(project: Project) -> Manifest | None:
    """Return what the released manifest, which the configuration names, says of this model; None if it names none.

    Raises:
        RecordError: it is missing or damaged.
        UsageError: it has several models, and not this one.
    """
    if project.config.release is None:
        return None
    fix = "set `release.manifest` in pipeline.yaml to the manifest.json of a released build"
    released = read_record(Path(project.config.release.manifest), Manifest, fix=fix)
    return of_model(released, project.plan.model) if released.models else released


def left_models(project: Project) -> Iterator[str]:
    """Yield the reason to write the manifest again: it has models that no configuration makes any more."""
    if left := [name for name in _others(project) if not is_made(project, name)]:
        yield f"no configuration makes {', '.join(left)} any more"


def shares_its_folder(project: Project) -> bool:
    """Return whether the folder's manifest has other models beside this one."""
    return bool(_others(project))


def _others(project: Project) -> dict[str, Manifest]:
    """Return the parts of the other models, by name; none if the manifest is missing or damaged.

    The next run of another project then finds that its part is missing, and writes it again.
    """
    try:
        whole = read_record(project.paths.manifest, Manifest)
    except RecordError:
        return {}
    named = {name: item for item in manifests_of(whole) for name in model_names(item)[:1]}
    return {name: item for name, item in named.items() if name != project.plan.model}
