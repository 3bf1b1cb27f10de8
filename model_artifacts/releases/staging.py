"""A folder that is filled beside the one that it replaces, and takes its place in one step."""

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
    """A release that is not installed yet."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path = path
        """Where its files lie until then."""
        self._folder = folder

    def has(self, file: FileRecord) -> bool:
        """Return whether a file is there, or was installed already; another one in its place goes."""
        mine = self.path / file.path
        if not mine.is_file() and _is(old := self._folder / file.path, file):
            mine.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(old, mine)
        if _is(mine, file):
            return True
        mine.unlink(missing_ok=True)
        return False

    def keep_only(self, paths: Collection[str]) -> None:
        """Remove what an earlier try has left of other files."""
        for path in list(self.path.rglob("*")):
            if path.is_file() and path.relative_to(self.path).as_posix() not in paths:
                path.unlink()

    def install(self) -> None:
        """Take the folder's place; what was there before is removed after that."""
        replace_folder(self.path, self._folder)


@contextmanager
def staged(folder: Path, digest: str) -> Iterator[Staged]:
    """Hand out a place to fill, with what an earlier try has left there of the same release.

    When a release turns out not to be what it says, the place goes; whatever else fails, it stays to be gone on with.

    Args:
        folder: what it is going to replace.
        digest: the release's.

    Raises:
        StoreError: the folder holds something else than a release, or another process works on the same.
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
            raise StoreError(f"another pull into {folder} is running", fix="wait for it, or stop it") from exc
        yield
    finally:
        os.close(handle)


def _check_replaceable(folder: Path) -> None:
    """Refuse to replace what was not pulled."""
    fix = "name a new folder, or one that was pulled into before"
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is no folder", fix=fix)
    ours = release_paths(folder) if (folder / SUMS).is_file() else set()
    for path in folder.rglob("*"):
        if not path.is_dir() and (name := path.relative_to(folder).as_posix()) not in ours:
            raise StoreError(f"{folder} holds what no pull has put there", got=name, fix=fix)


def _is(path: Path, file: FileRecord) -> bool:
    """Return whether a path is a file, no link, and what a record says of it."""
    if path.is_symlink() or not path.is_file():
        return False
    return path.stat().st_size == file.bytes and sha256_of(path) == file.sha256
