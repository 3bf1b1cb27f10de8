"""Staging folder of a pull: filled beside the folder that it replaces, then swapped in one step."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from model_artifacts.errors import ReleaseError, StoreError, storage_errors
from model_artifacts.host.files import replace_folder
from model_artifacts.host.hashes import sha256_of
from model_artifacts.releases.verification import SUMS, release_paths

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from model_artifacts.records import FileRecord


class Staged:
    """A release before its installation."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path = path
        """Folder of its files until then."""
        self._folder = folder

    def has(self, file: FileRecord) -> bool:
        """Return True if a file is staged; take it from the installed release if it has the same.

        A staged file with another size or digest is removed.
        """
        staged_file = self.path / file.path
        if not staged_file.is_file() and _matches(old := self._folder / file.path, file):
            staged_file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(old, staged_file)
        if _matches(staged_file, file):
            return True
        staged_file.unlink(missing_ok=True)
        return False

    def keep_only(self, paths: Collection[str]) -> None:
        """Remove other files that an earlier pull left.

        Args:
            paths: the paths to keep, below the release's folder.
        """
        for path in list(self.path.rglob("*")):
            if path.is_file() and path.relative_to(self.path).as_posix() not in paths:
                path.unlink()

    def install(self) -> None:
        """Replace the folder in one step, then remove its former contents.

        Raises:
            OSError: the folder cannot be replaced; it is unchanged.
        """
        replace_folder(self.path, self._folder)


@contextmanager
def staged(folder: Path, digest: str) -> Iterator[Staged]:
    """Yield a staging folder, which still holds the files of an interrupted pull of the same release.

    It is removed if the release fails its verification. After any other failure it stays for the next pull.

    Args:
        folder: the folder to replace.
        digest: the release's SHA-256.

    Raises:
        StoreError: the folder holds other files than a release's, or another process pulls the same release into it.
        StorageError: the folder cannot be written.
    """
    folder = folder.resolve()
    with storage_errors(f"writing {folder}"):
        _check_replaceable(folder)
        place = folder.parent / f".pulling-{folder.name}-{digest[:16]}"
        place.mkdir(parents=True, exist_ok=True)
        with _alone(place, folder):
            try:
                yield Staged(place, folder)
            except ReleaseError:
                shutil.rmtree(place)
                raise
        for left in folder.parent.glob(f".pulling-{glob.escape(folder.name)}-*"):
            with suppress(StoreError), _alone(left, folder):
                shutil.rmtree(left)


@contextmanager
def _alone(place: Path, folder: Path) -> Iterator[None]:
    handle = os.open(place, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise StoreError(f"another pull into {folder} is running", fix="wait for it or stop it") from exc
        yield
    finally:
        os.close(handle)


def _check_replaceable(folder: Path) -> None:
    """Raise `StoreError` if the folder holds files that no pull wrote."""
    fix = "name a new folder, or the folder of an earlier pull"
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is no folder", fix=fix)
    ours = release_paths(folder) if (folder / SUMS).is_file() else set()
    for path in folder.rglob("*"):
        if not path.is_dir() and (name := path.relative_to(folder).as_posix()) not in ours:
            raise StoreError(f"{folder} holds a file that no pull wrote; the folder is kept", got=name, fix=fix)


def _matches(path: Path, file: FileRecord) -> bool:
    """Return True if a path is a plain file, no link, with a record's size and digest."""
    if path.is_symlink() or not path.is_file():
        return False
    return path.stat().st_size == file.bytes and sha256_of(path) == file.sha256
