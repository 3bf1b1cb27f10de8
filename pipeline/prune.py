"""Variants that pipeline.yaml no longer asks for → their files, and nothing else, deleted."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, NamedTuple

from pipeline.atomic import read_record
from pipeline.errors import RecordError, storage_errors
from pipeline.records import Artifact

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.project import Project
    from pipeline.records import Variant


class Leftovers(NamedTuple):
    """What lies in the artifacts folder beside what is planned."""

    files: tuple[Path, ...]
    """Files and folders of variants that the configuration no longer asks for."""
    variants: tuple[Variant, ...]
    """Those variants."""
    elsewhere: tuple[Variant, ...]
    """Variants that the configuration asks for on targets that this host does not have: another host's, and kept."""
    in_use: tuple[Path, ...]
    """Files of dropped variants that a planned variant shares, and that are kept for it."""

    @property
    def bytes(self) -> int:
        """How much room the files take."""
        inner = [path for file in self.files for path in (file.rglob("*") if file.is_dir() else (file,))]
        return sum(path.stat().st_size for path in inner if path.is_file())


def find_leftovers(project: Project) -> Leftovers:
    """Return what `delete` would delete.

    A folder is a variant's because the record in it says so. One whose target is not planned here is another host's,
    as long as the same precision, profile and workspace are planned for some target.

    Raises:
        StorageError: the artifacts folder cannot be read.
        NewerRecordError: a record is there that only a newer version of this package can read.
    """
    plan, paths = project.plan, project.paths
    with storage_errors(f"reading {paths.folder}"):
        found = [_record(path) for path in sorted(paths.folder.glob("*/*/artifact.json"))]
    records = [record for record in found if record and paths.artifact(record.variant).exists()]
    planned = {variant.id for variant in plan.variants}
    names = {variant.name for variant in plan.variants}
    others = [record.variant for record in records if record.variant.id not in planned]
    elsewhere = [variant for variant in others if variant.target not in plan.targets and variant.name in names]
    dropped = [variant for variant in others if variant not in elsewhere]
    kept = [record for record in records if record.variant not in dropped]
    used = {project.file(file) for record in kept for file in record.files}
    theirs = [path for variant in dropped for path in (*paths.of_variant(variant), paths.engine_cache(variant))]
    files = [path for path in theirs if path.exists()]
    return Leftovers(
        files=tuple(path for path in files if path not in used),
        variants=tuple(dropped),
        elsewhere=tuple(elsewhere),
        in_use=tuple(path for path in files if path in used),
    )


def delete(project: Project, leftovers: Leftovers) -> None:
    """Delete a variant's record last, so that an interrupted deletion is found again; then the folders left empty.

    Raises:
        StorageError: something cannot be deleted.
    """
    records = {project.paths.artifact(variant) for variant in leftovers.variants}
    for path in sorted(leftovers.files, key=lambda path: path in records):
        with storage_errors(f"deleting {path}"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    for variant in leftovers.variants:
        folder = project.paths.variant(variant)
        for empty in (folder, folder.parent):
            with storage_errors(f"deleting {empty}"):
                if empty.is_dir() and not any(empty.iterdir()):
                    empty.rmdir()


def _record(path: Path) -> Artifact | None:
    """Return a build's record; None for what is not one, which is not ours to delete."""
    try:
        return read_record(path, Artifact)
    except RecordError:
        return None
