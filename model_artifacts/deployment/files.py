"""Files of an artifact below its manifest's folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.errors import RecordError
from model_artifacts.host.hashes import leaves_its_folder
from model_artifacts.host.record_files import read_record
from model_artifacts.records import Backend, Recipe

if TYPE_CHECKING:
    from pathlib import Path

    from model_artifacts.records import FileRecord, Manifest, ManifestEntry


def entry_files(entry: ManifestEntry, root: Path) -> tuple[FileRecord, ...]:
    """Return all files that an artifact needs: those of its entry, and the weights that a recipe names.

    Args:
        entry: the artifact's entry of the manifest.
        root: the folder of the manifest, in which the artifact's own file must lie.

    Raises:
        RecordError: a recipe is missing or damaged.
    """
    if entry.backend is Backend.TORCH_COMPILE and entry.file and not leaves_its_folder(entry.file.path):
        return (*entry.files, read_record(root / entry.file.path, Recipe).weights)
    return entry.files


def incomplete(root: Path, manifest: Manifest) -> set[str]:
    """Return the ids of artifacts that lack one of their files in a folder, as after a pull for one host."""
    return {entry.id for entry in manifest.artifacts if not _is_whole(entry, root)}


def _is_whole(entry: ManifestEntry, root: Path) -> bool:
    if not all((root / file.path).exists() for file in entry.files):
        return False
    try:
        return all((root / file.path).exists() for file in entry_files(entry, root))
    except RecordError:  # opening the recipe tells its damage
        return True
