"""Files of an artifact below its manifest's folder."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from model_artifacts.errors import RecordError, RunError
from model_artifacts.host.environment import installed
from model_artifacts.host.hashes import leaves_its_folder
from model_artifacts.host.record_files import read_record
from model_artifacts.records import Backend, FileRecord, Recipe, model_names

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from model_artifacts.records import Manifest, ManifestEntry


def check_names(path: Path, entry: ManifestEntry) -> None:
    """Check the names of an artifact, of which commands make paths and lines of listings.

    Raises:
        RunError: a file lies outside of the manifest's folder, or a name is none that a build gives.
    """
    files = [value for _, value in entry if isinstance(value, FileRecord)]
    for file in files:
        if leaves_its_folder(file.path):
            raise RunError(
                f"the manifest names a file outside its folder: {file.path}",
                where=str(path),
                expected="a path below the folder",
                got=file.path,
                fix="do not use this manifest",
            )
    wrong = [name for name in (entry.model, entry.target) if not is_plain_name(name)]
    wrong += [name for name in (entry.id, *(file.path for file in files)) if not name.isprintable()]
    if wrong:
        raise _unknown_name(path, wrong[0])


def check_model_names(path: Path, manifest: Manifest) -> None:
    """Check the names of a manifest's models, which it may have without artifacts.

    Raises:
        RunError: a name is none that a build gives.
    """
    for name in model_names(manifest):
        if not is_plain_name(name):
            raise _unknown_name(path, name)


def is_plain_name(name: str) -> bool:
    """Return True if a build may give this name to a model or a target: no path, no line break."""
    return _NAME.fullmatch(name) is not None


def _unknown_name(path: Path, name: str) -> RunError:
    return RunError(
        "the manifest has a name that no build gives",
        where=str(path),
        expected="letters, digits, `.`, `_`, `+` and `-`",
        got=ascii(name),
        fix="do not use this manifest",
    )


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
"""A name of a model or a target."""


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


def unusable(root: Path, manifest: Manifest) -> dict[str, str]:
    """Return the artifacts of a folder that this process cannot open on any host, with the reason, by their ids.

    Args:
        root: the folder of the manifest. After a pull for one host most artifacts lack their files.
        manifest: the folder's manifest.
    """
    return uncallable(manifest) | dict.fromkeys(incomplete(root, manifest), "was not pulled: its file is missing")


def incomplete(root: Path, manifest: Manifest) -> tuple[str, ...]:
    """Return the ids of artifacts that lack one of their files in a folder, as after a pull for one host."""
    return tuple(entry.id for entry in manifest.artifacts if _lacks_a_file(entry, root))


def uncallable(manifest: Manifest) -> dict[str, str]:
    """Return the recipes, which call the model's factory, if that is not installed here, with the reason, by id."""
    return uncallable_recipes(manifest.model.factory if manifest.model else "", manifest.artifacts)


def uncallable_recipes(factory: str, artifacts: Iterable[ManifestEntry]) -> dict[str, str]:
    """Return the recipes among artifacts, as `uncallable` does.

    Args:
        factory: the model's factory, `module:function`; empty if it is unknown.
        artifacts: the artifacts.
    """
    if not factory or installed(factory.partition(":")[0].partition(".")[0]):
        return {}
    recipes = [entry.id for entry in artifacts if entry.backend is Backend.TORCH_COMPILE]
    return dict.fromkeys(recipes, f"calls the model's factory {factory}, which is not installed here")


def _lacks_a_file(entry: ManifestEntry, root: Path) -> bool:
    """Return True if a file is missing without which the artifact does not run; compiled kernels are only for speed."""
    if not all((root / file.path).exists() for file in entry.files if file != entry.runtime_cache):
        return True
    try:
        files = entry_files(entry, root)
        return not all((root / file.path).exists() for file in files if file != entry.runtime_cache)
    except RecordError:  # opening the recipe tells its damage
        return False
