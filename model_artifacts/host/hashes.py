"""Digests of files: SHA-256, file records, and checks against them."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from model_artifacts.errors import RunError, storage_errors
from model_artifacts.host.plain_files import open_plain
from model_artifacts.records import FileRecord

if TYPE_CHECKING:
    from pathlib import Path


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal.

    Each process reads an unchanged file only once.

    Raises:
        StorageError: the file cannot be read.
    """
    with storage_errors(f"reading {path}"):
        stat = path.stat()
        return _sha256(path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@cache
def _sha256(path: Path, *_identity: int) -> str:
    digest = hashlib.sha256()
    with open_plain(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def describe_bytes(path: str, data: bytes) -> FileRecord:
    """Return the record of a file with these bytes.

    Args:
        path: the path to record.
        data: the file's bytes.
    """
    return FileRecord(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def describe_file(path: Path, root: Path) -> FileRecord:
    """Return the record of a file below `root`: path, size and digest.

    Raises:
        StorageError: the file cannot be read.
    """
    with storage_errors(f"reading {path}"):
        size = path.stat().st_size
    return FileRecord(path=path.relative_to(root).as_posix(), bytes=size, sha256=sha256_of(path))


def leaves_its_folder(path: str) -> bool:
    """Return true if a recorded path leads out of its folder by itself: an absolute one, or one with `..`.

    A link may lead anywhere, as in the cache of Hugging Face or of DVC: the digest of the file behind it is checked.
    """
    return PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts


def check_digest(path: Path, file: FileRecord, fix: str) -> None:
    """Check a file's digest before it is loaded: a damaged engine can crash the process, and a module contains code.

    Args:
        path: the file.
        file: its record.
        fix: the remedy for the error message.

    Raises:
        RunError: the SHA-256 differs from the record's.
        StorageError: the file cannot be read.
    """
    if (got := sha256_of(path)) != file.sha256:
        raise RunError(
            f"{path} is damaged, or is not the recorded file",
            expected=f"SHA-256 {file.sha256}",
            got=f"SHA-256 {got}",
            fix=fix,
        )
