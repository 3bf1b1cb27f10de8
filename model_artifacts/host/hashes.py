"""Files that are never half-written: write beside the target, flush to disk, then rename over it."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import TYPE_CHECKING

from model_artifacts.errors import RunError, storage_errors
from model_artifacts.records import FileRecord

if TYPE_CHECKING:
    from pathlib import Path


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal; read once a process while the file does not change.

    Raises:
        StorageError: it cannot be read.
    """
    with storage_errors(f"reading {path}"):
        stat = path.stat()
        return _sha256(path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@cache
def _sha256(path: Path, *_identity: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def describe_bytes(path: str, data: bytes) -> FileRecord:
    """Return the record of a file with these bytes."""
    return FileRecord(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def describe_file(path: Path, root: Path) -> FileRecord:
    """Return the record of a file under `root`: path, size and digest.

    Raises:
        StorageError: it cannot be read.
    """
    with storage_errors(f"reading {path}"):
        size = path.stat().st_size
    return FileRecord(path=path.relative_to(root).as_posix(), bytes=size, sha256=sha256_of(path))


def check_digest(path: Path, file: FileRecord, fix: str) -> None:
    """Check a file before it is loaded: a damaged engine can crash its process, and a module holds code.

    Args:
        path: the file.
        file: its record.
        fix: the remedy that the message names.

    Raises:
        RunError: its SHA-256 differs from the record's.
        StorageError: it cannot be read.
    """
    if (got := sha256_of(path)) != file.sha256:
        raise RunError(
            f"{path} is damaged, or is not the recorded file",
            expected=f"SHA-256 {file.sha256}",
            got=f"SHA-256 {got}",
            fix=fix,
        )
