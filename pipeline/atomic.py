"""Files that are never half-written: write beside the target, flush to disk, then rename over it."""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from pipeline.errors import RecordError, storage_errors
from pipeline.records import FileRecord, Record

if TYPE_CHECKING:
    from collections.abc import Iterator

R = TypeVar("R", bound=Record)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Hand out a temporary path in the folder of `path`; when the block ends well it becomes `path`.

    An exception, an interrupt included, removes the temporary file and leaves what was at `path`.

    Raises:
        StorageError: the folder or the file cannot be written.
    """
    with storage_errors(f"writing {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


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


def write_record(path: Path, record: Record) -> None:
    """Write a record as canonical JSON.

    Raises:
        StorageError: it cannot be written.
    """
    write_bytes(path, record.to_json().encode())


def read_record(path: Path, kind: type[R], fix: str = "") -> R:
    """Read a record back.

    Raises:
        RecordError: it is missing, not such a record, or of another schema version.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError as exc:
        raise RecordError(f"{path} is missing", fix=fix) from exc
    except OSError as exc:
        raise RecordError(f"{path} cannot be read: {exc.strerror}", fix=fix) from exc
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        place = f"{'.'.join(map(str, first['loc']))}: " if first["loc"] else ""
        raise RecordError(f"{path} is not a valid {kind.__name__}: {place}{first['msg']}", fix=fix) from exc


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


def describe_file(path: Path, root: Path) -> FileRecord:
    """Return the record of a file under `root`: path, size and digest.

    Raises:
        StorageError: it cannot be read.
    """
    with storage_errors(f"reading {path}"):
        size = path.stat().st_size
    return FileRecord(path=path.relative_to(root).as_posix(), bytes=size, sha256=sha256_of(path))
