"""Files that are never half-written: write beside the target, flush to disk, then rename over it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import os
import shutil
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from model_artifacts.errors import storage_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from model_artifacts.records import FileRecord


_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Of renameat2(2)."""
_TEMPORARY = ".writing-"
"""What names of files begin with that are not whole yet."""
_LEFT_SECONDS = 24 * 3600.0
"""A temporary folder as old as this is nobody's any more."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Hand out a temporary path in the folder of `path`; when the block ends well it becomes `path`.

    An exception, an interrupt included, removes the temporary file and leaves what was at `path`. What a process that
    was killed could not remove, the next one that writes `path` does.

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
    """Make a temporary file for `path`, and hold its lock; again, where a sweep has come between the two."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f"{_TEMPORARY}{path.name}.", suffix=path.suffix, dir=path.parent)
        with suppress(OSError):  # the file system has no locks
            fcntl.flock(handle, fcntl.LOCK_EX)  # whoever sweeps holds it for a moment
        if os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)


def _sweep(path: Path) -> None:
    """Remove temporary files of `path` that nobody writes any more: their writers hold a lock that ends with them."""
    for left in path.parent.glob(f"{_TEMPORARY}{glob.escape(path.name)}.*"):
        with suppress(OSError):  # another process has removed it, or it is somebody else's
            handle = os.open(left, os.O_RDWR)
            try:
                if _try_to_lock(handle):
                    left.unlink()
            finally:
                os.close(handle)


def _try_to_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or the file system has no locks
        return False
    return True


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Hand out an empty folder beside `folder`; when the block ends well it takes the place of `folder`.

    What a killed process left there goes a day later.

    Raises:
        StorageError: it cannot be written.
    """
    with storage_errors(f"writing {folder}"), _temporary_folder(folder.parent) as scratch:
        scratch.chmod(0o755)
        yield scratch
        replace_folder(scratch, folder)


def _sweep_folders(root: Path) -> None:
    """Remove temporary folders that are nobody's any more."""
    for left in root.glob(f"{_TEMPORARY}*"):
        with suppress(FileNotFoundError):
            if left.is_dir() and time.time() - left.stat().st_mtime > _LEFT_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def scratch_folder(root: Path) -> Iterator[Path]:
    """Hand out an empty folder in `root` that goes with the block; what a killed process left goes a day later.

    Raises:
        StorageError: it cannot be written.
    """
    with ExitStack() as stack:
        with storage_errors(f"writing {root}"):  # what goes wrong in the block has words of its own
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
    """Put a folder in the place of another, if there is one, in one step where the file system can.

    Elsewhere, as on some network file systems, there is a moment in which neither is there; the old one comes back
    when the new one cannot take its place.

    Raises:
        OSError: it cannot be done; the old one is there as before.
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
    shutil.rmtree(new)


def _swap_by_names(new: Path, old: Path) -> None:
    aside = new.with_name(f"{new.name}.old")
    old.rename(aside)
    try:
        new.rename(old)
    except BaseException:
        aside.rename(old)
        raise
    aside.rename(new)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all.

    Raises:
        StorageError: it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def keeping(path: Path) -> Iterator[Path]:
    """Hand out an empty file to append to, a log; however the block ends, what it then holds becomes `path`.

    Raises:
        StorageError: it cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / path.name
        log.touch()
        try:
            yield log
        finally:
            write_bytes(path, log.read_bytes())


def install_files(staged: Path, root: Path, files: Iterable[FileRecord]) -> None:
    """Move files from one folder to another on the same disk, each in one step, in their order: records belong last.

    Raises:
        StorageError: they cannot be written.
    """
    with storage_errors(f"writing {root}"):
        for file in files:
            there = root / file.path
            there.parent.mkdir(parents=True, exist_ok=True)
            (staged / file.path).replace(there)
