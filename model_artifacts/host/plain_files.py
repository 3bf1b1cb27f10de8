"""Reads of plain files: never a pipe, which would block, never a device, and no more bytes than a limit."""

from __future__ import annotations

import errno
import os
import stat
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_MOST_PATHS = 200_000
"""Twice the most files of a release, for their folders."""


def tree(folder: Path) -> list[Path]:
    """Return all paths below a folder, sorted; links are not followed, and any depth takes the same memory.

    Raises:
        OSError: a folder cannot be read, its path is too long, or there are too many paths.
    """
    found: list[Path] = []
    folders = [folder]
    while folders:
        for path in folders.pop().iterdir():
            found.append(path)
            if path.is_dir() and not path.is_symlink():
                folders.append(path)
            if len(found) > _MOST_PATHS:
                raise OSError(errno.EFBIG, f"it holds more than {_MOST_PATHS:,} paths", str(folder))
    return sorted(found)


def open_plain(path: Path) -> IO[bytes]:
    """Open a plain file to read; a link to one is followed.

    Raises:
        OSError: the file is missing or cannot be read, or the path is a folder, a pipe, a socket or a device.
    """
    return _checked(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), path, "rb")


def open_part(path: Path) -> IO[bytes]:
    """Open a file to read from its beginning and to append to, making it if it is missing.

    Something else in its place is removed first: a link, a pipe, or a file that has a second name elsewhere.

    Raises:
        OSError: the file cannot be written.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
    if os.path.lexists(path):
        there = path.lstat()
        if not stat.S_ISREG(there.st_mode) or there.st_nlink > 1 or there.st_uid != os.geteuid():
            path.unlink()
    if not os.path.lexists(path):
        flags |= os.O_CREAT | os.O_EXCL
    file = _checked(os.open(path, flags, 0o666), path, "a+b")
    file.seek(0)
    return file


def _checked(handle: int, path: Path, mode: str) -> IO[bytes]:
    mode_there = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode_there):
        os.close(handle)
        if stat.S_ISDIR(mode_there):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "it is no plain file", str(path))
    os.set_blocking(handle, True)
    return os.fdopen(handle, mode)


def read_plain(path: Path, limit: int) -> bytes:
    """Return the bytes of a plain file.

    Args:
        path: the file.
        limit: the largest accepted size in bytes.

    Raises:
        OSError: the file is missing, cannot be read, is no plain file or is larger.
    """
    with open_plain(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit:,} bytes", str(path))
    return data
