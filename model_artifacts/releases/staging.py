"""Staging folder of a pull: private, beside the folder that it replaces, then swapped with it in one step.

Others may write to the folder around it, as in /tmp. So its name is new each time, only its user may enter it, and a
link or a folder of another user in such a place is never used.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from model_artifacts.errors import ReleaseError, StorageError, StoreError, storage_errors
from model_artifacts.host.files import refuse_mount_point, replace_folder
from model_artifacts.host.hashes import sha256_of
from model_artifacts.host.plain_files import tree
from model_artifacts.releases.verification import SUMS, release_paths

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from model_artifacts.records import FileRecord

_RELEASE, _PARTS = "release", "parts"
"""Folders in the staging folder: the release, and its files on their way."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Staged:
    """A release before its installation."""

    def __init__(self, place: Path, handle: int, folder: Path) -> None:
        self.path = place / _RELEASE
        """Folder of its files until then."""
        self._parts = place / _PARTS
        self._handle = handle
        """The open staging folder, which stays the same if somebody renames it."""
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

    def part(self, file: FileRecord) -> Path:
        """Return the path to fetch a file to, for `take`."""
        return self._parts / hashlib.sha256(file.path.encode()).hexdigest()

    def take(self, file: FileRecord) -> None:
        """Move a fetched file from `part` to its place in the release."""
        staged_file = self.path / file.path
        staged_file.parent.mkdir(parents=True, exist_ok=True)
        self.part(file).replace(staged_file)

    def demand_space(self, count: int) -> None:
        """Check that the disk has room for a number of bytes.

        Raises:
            StorageError: it has not.
        """
        begun = sum(part.stat().st_size for part in self._parts.iterdir())
        free = shutil.disk_usage(self._parts).free
        if count - begun > free:
            raise StorageError(
                f"the disk of {self._folder} is too full for the release; nothing more was fetched",
                expected=f"{count - begun:,} bytes free",
                got=f"{free:,} bytes",
                fix="free some disk space, then pull again",
            )

    def keep_only(self, paths: Collection[str]) -> None:
        """Remove other files that an earlier pull left.

        Args:
            paths: the paths to keep, below the release's folder.
        """
        for path in tree(self.path):
            if path.is_file() and path.relative_to(self.path).as_posix() not in paths:
                path.unlink()

    def install(self) -> None:
        """Replace the folder in one step, then remove its former contents.

        Raises:
            OSError: the folder cannot be replaced; it is unchanged.
            StoreError: another user has put something else in the release's place.
        """
        release = os.open(_RELEASE, _FOLDER, dir_fd=self._handle)
        try:
            _demand_same(release, self.path)
            replace_folder(self.path, self._folder)
            _demand_same(release, self._folder)
        finally:
            os.close(release)


@contextmanager
def staged(folder: Path, digest: str) -> Iterator[Staged]:
    """Yield a staging folder, which still holds the files of an interrupted pull of the same release.

    It is removed if the release fails its verification, or if the disk is full. After any other failure it stays for
    the next pull.

    Args:
        folder: the folder to replace.
        digest: the release's SHA-256.

    Raises:
        StoreError: the folder holds other files than a release's, is another user's link, or another process pulls
            the same release into it.
        StorageError: the folder cannot be written, or is a mount point.
    """
    _refuse_foreign_link(folder)
    folder = folder.resolve()
    refuse_mount_point(folder)
    with storage_errors(f"writing {folder}"):
        _check_replaceable(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        place, handle = _place(folder, digest[:16])
        try:
            for name in (_RELEASE, _PARTS):
                (place / name).mkdir(exist_ok=True)
            yield Staged(place, handle, folder)
        except ReleaseError:
            shutil.rmtree(place)
            raise
        except (StorageError, OSError) as exc:
            _explain(exc, place, folder)
            raise
        finally:
            os.close(handle)
        _sweep(folder)


def _place(folder: Path, digest: str) -> tuple[Path, int]:
    """Return a locked staging folder: that of an interrupted pull, or a new one."""
    for left in _left_by_pulls(folder, digest):
        if (handle := _open_own(left)) is None:
            continue
        if not _lock(handle):
            os.close(handle)
            raise StoreError(f"another pull into {folder} is running", fix="wait for it or stop it")
        if stat.S_IMODE(os.fstat(handle).st_mode) & 0o077 == 0:
            _remove_odd_files(left)
            return left, handle
        os.close(handle)
    place = Path(tempfile.mkdtemp(prefix=f".pulling-{_shown(folder)}-{digest}-", dir=folder.parent))
    handle = os.open(place, _FOLDER)
    _lock(handle)
    return place, handle


def _shown(folder: Path) -> str:
    """Return the folder's name, shortened so that the staging folder's is no longer than file systems allow."""
    return os.fsdecode(os.fsencode(folder.name)[:150])


def _left_by_pulls(folder: Path, digest: str) -> list[Path]:
    """Return the paths of staging folders for a folder, in which anything may lie.

    Args:
        folder: the folder that they would replace.
        digest: the beginning of the release's digest, as a regular expression.
    """
    name = re.compile(rf"\.pulling-{re.escape(_shown(folder))}-{digest}(-[a-z0-9_]{{8}})?", re.DOTALL)
    return sorted(path for path in folder.parent.iterdir() if name.fullmatch(path.name))


def _open_own(path: Path) -> int | None:
    """Open a folder of this user; None for a link, for another user's folder, and for anything else."""
    try:
        handle = os.open(path, _FOLDER)
    except OSError:
        return None
    if os.fstat(handle).st_uid == os.geteuid():
        return handle
    os.close(handle)
    return None


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system has no locks
        return True
    return True


def _sweep(folder: Path) -> None:
    """Remove this user's staging folders that no pull uses."""
    for left in _left_by_pulls(folder, "[0-9a-f]{16}"):
        if (handle := _open_own(left)) is None:
            continue
        if _lock(handle):
            shutil.rmtree(left, ignore_errors=True)
        os.close(handle)


def _remove_odd_files(place: Path) -> None:
    """Remove everything from an earlier pull's staging folder that is no folder and no plain file."""
    for root, folders, files in os.walk(place):
        for path in (Path(root) / name for name in (*folders, *files)):
            if not stat.S_ISREG(mode := path.lstat().st_mode) and not stat.S_ISDIR(mode):
                path.unlink()


def _demand_same(handle: int, path: Path) -> None:
    if not os.path.samestat(os.fstat(handle), path.lstat()):
        raise StoreError(
            f"another process has put something else at {path}; do not use it",
            fix="name a folder in one that only you can write to, and pull again",
        )


def _explain(exc: OSError | StorageError, place: Path, folder: Path) -> None:
    """Raise a clearer error for a full disk, whose staging folder is removed, and for a folder that cannot be moved."""
    cause = exc if isinstance(exc, OSError) else exc.__cause__
    number = cause.errno if isinstance(cause, OSError) else None
    if number in {errno.ENOSPC, errno.EDQUOT}:
        shutil.rmtree(place)
        raise StorageError(
            f"the disk or your quota is full: {folder} cannot be written",
            got=os.strerror(number or 0),
            fix="free some disk space, then pull again; what was fetched of this release was removed",
        ) from exc
    if number in {errno.EXDEV, errno.EBUSY}:
        raise StorageError(
            f"{folder} cannot be replaced in one step, and is unchanged",
            got=f"{os.strerror(number or 0)}: it is a mount point, or belongs to a lower layer of a container's image",
            fix="name a new folder",
        ) from exc


def _refuse_foreign_link(folder: Path) -> None:
    """Raise `StoreError` for a link that another user made, who would choose where the release goes."""
    if folder.is_symlink() and folder.lstat().st_uid not in {os.geteuid(), 0}:
        raise StoreError(f"{folder} is a link that another user made", fix="name the folder itself")


def _check_replaceable(folder: Path) -> None:
    """Raise `StoreError` if the folder holds files that no pull wrote."""
    fix = "name a new folder, or the folder of an earlier pull"
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is no folder", fix=fix)
    ours = release_paths(folder) if (folder / SUMS).is_file() else set()
    for path in tree(folder) if folder.exists() else ():
        if (path.is_symlink() or not path.is_dir()) and (name := path.relative_to(folder).as_posix()) not in ours:
            raise StoreError(f"{folder} holds a file that no pull wrote; the folder is kept", got=name, fix=fix)


def _matches(path: Path, file: FileRecord) -> bool:
    """Return True if a path is a plain file, no link, with a record's size and digest."""
    if path.is_symlink() or not path.is_file():
        return False
    return path.stat().st_size == file.bytes and sha256_of(path) == file.sha256
