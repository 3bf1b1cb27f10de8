"""Atomic writes of files and folders: write beside the target, flush to disk, then rename over it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import os
import re
import shutil
import stat
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from model_artifacts.errors import StorageError, storage_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from model_artifacts.records import FileRecord


_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Constants of renameat2(2)."""
_TEMPORARY = ".writing-"
"""Prefix of the names of unfinished files."""
_LEFT_SECONDS = 24 * 3600.0
"""Age of a temporary folder after which no process uses it any more."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; if the block succeeds, it becomes `path`.

    An exception, an interrupt included, removes the temporary file and leaves the former `path` in place. A killed
    process leaves its temporary file; the next process that writes `path` removes it.

    Raises:
        StorageError: the folder or the file cannot be written.
    """
    with storage_errors(f"writing {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        handle, temporary = _begin(path)
        try:
            yield temporary
            temporary.chmod(0o644)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
            os.close(handle)


def _begin(path: Path) -> tuple[int, Path]:
    """Make a temporary file for `path` and lock it; repeat this if a sweep removed the file before the lock."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f"{_TEMPORARY}{path.name}.", suffix=path.suffix, dir=path.parent)
        with suppress(OSError):  # the file system has no locks
            fcntl.flock(handle, fcntl.LOCK_EX)  # a sweep in another process holds the lock for a moment
        if os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)


def _sweep(path: Path) -> None:
    """Remove abandoned temporary files of `path`: a live writer holds a lock, which ends with its process."""
    for left in path.parent.glob(f"{_TEMPORARY}{glob.escape(path.name)}.*"):
        with suppress(OSError):  # another process has removed the file, or another user owns it
            handle = os.open(left, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if _try_to_lock(handle):
                    left.unlink()
            finally:
                os.close(handle)


def _try_to_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another process holds the lock, or the file system has no locks
        return False
    return True


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`; if the block succeeds, it replaces `folder`.

    A killed process leaves its temporary folder, which is removed a day later.

    Raises:
        StorageError: the folder cannot be written, or is a mount point.
    """
    refuse_mount_point(folder)
    with storage_errors(f"writing {folder}"), _temporary_folder(folder.parent) as scratch:
        scratch.chmod(0o755)
        yield scratch
        replace_folder(scratch, folder)


def _sweep_folders(root: Path) -> None:
    """Remove this user's temporary folders that are older than a day."""
    for left in root.glob(f"{_TEMPORARY}*"):
        with suppress(FileNotFoundError):
            there = left.lstat()  # a link is none of ours
            ours = stat.S_ISDIR(there.st_mode) and there.st_uid == os.geteuid()
            if ours and time.time() - there.st_mtime > _LEFT_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def scratch_folder(root: Path) -> Iterator[Path]:
    """Yield an empty folder in `root`, which is removed after the block.

    A killed process leaves its folder, which is removed a day later.

    Raises:
        StorageError: the folder cannot be written.
    """
    with ExitStack() as stack:
        with storage_errors(f"writing {root}"):  # errors of the block itself pass unchanged
            scratch = stack.enter_context(_temporary_folder(root))
        yield scratch


@contextmanager
def _temporary_folder(root: Path) -> Iterator[Path]:
    root.mkdir(parents=True, exist_ok=True)
    _sweep_folders(root)
    scratch = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=root))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def replace_folder(new: Path, old: Path) -> None:
    """Replace a folder by another, in one step if the file system can do that.

    Some network file systems cannot. There, for a moment, neither folder is in place, and after a failure the old
    folder is put back.

    Args:
        new: the folder to put in place.
        old: the folder to replace; it may be missing.

    Raises:
        OSError: the folder cannot be replaced; the old one is in place as before.
    """
    if not old.exists():
        new.rename(old)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        if number not in {errno.EINVAL, errno.ENOSYS}:
            raise OSError(number, os.strerror(number), str(old))
        _swap_by_names(new, old)
    if new.is_symlink():
        new.unlink()
    else:
        shutil.rmtree(new)


def _swap_by_names(new: Path, old: Path) -> None:
    aside = Path(tempfile.mkdtemp(prefix=f"{new.name}.old-", dir=new.parent))
    old.rename(aside)
    try:
        new.rename(old)
    except BaseException:
        aside.rename(old)
        raise
    aside.rename(new)


def refuse_mount_point(folder: Path) -> None:
    """Refuse a folder that another folder cannot replace, because a file system is mounted there.

    Raises:
        StorageError: the folder is a mount point, such as a volume of a container.
    """
    if os.path.ismount(folder) or str(folder.resolve()) in _mount_points():
        raise StorageError(
            f"{folder} is a mount point, which cannot be replaced in one step",
            fix=f"name a folder inside it, such as {folder / 'current'}",
        )


def _mount_points() -> set[str]:
    """Return the mount points of this process, from proc_pid_mountinfo(5); none where there is no /proc."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return set()
    return {re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split()[4]) for line in lines}


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all.

    Raises:
        StorageError: the file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def keeping(path: Path) -> Iterator[Path]:
    """Yield an empty log file to append to; at the end of the block, even after an error, it becomes `path`.

    Raises:
        StorageError: the file cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / path.name
        log.touch()
        try:
            yield log
        finally:
            write_bytes(path, log.read_bytes())


def install_files(staged: Path, root: Path, files: Iterable[FileRecord]) -> None:
    """Move files from one folder to another on the same disk, each in one step.

    Args:
        staged: the folder that holds the files.
        root: the folder to move them to.
        files: the files, in the order of the moves; records belong last.

    Raises:
        StorageError: a file cannot be written.
    """
    with storage_errors(f"writing {root}"):
        for file in files:
            target = root / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            (staged / file.path).replace(target)
