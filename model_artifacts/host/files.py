"""Files that are never half-written: write beside the target, flush to disk, then rename over it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from model_artifacts.errors import MissingRecordError, NewerRecordError, RecordError, storage_errors
from model_artifacts.records import SCHEMA_VERSION, FileRecord, Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

R = TypeVar("R", bound=Record)

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


def write_record(path: Path, record: Record) -> None:
    """Write a record as canonical JSON.

    Raises:
        StorageError: it cannot be written.
        NewerRecordError: what is there was written by a newer version of this package.
    """
    refuse_newer(path)
    write_bytes(path, record.to_json().encode())


def read_record(path: Path, kind: type[R], fix: str = "") -> R:
    """Read a record back.

    Raises:
        MissingRecordError: there is none.
        RecordError: it is not such a record, or of an older schema version.
        NewerRecordError: it is of a newer schema version.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError as exc:
        raise MissingRecordError(f"{path} is missing", fix=fix) from exc
    except OSError as exc:
        raise RecordError(f"{path} cannot be read: {exc.strerror}", fix=fix) from exc
    except ValidationError as exc:
        refuse_newer(path)
        first = exc.errors(include_url=False)[0]
        place = f"{'.'.join(map(str, first['loc']))}: " if first["loc"] else ""
        raise RecordError(f"{path} is not a valid {kind.__name__}: {place}{first['msg']}", fix=fix) from exc


def refuse_newer(path: Path) -> None:
    """Stop before a record is misread, or it and its files are lost, that a newer version of this package has written.

    Raises:
        NewerRecordError: it has.
    """
    try:
        written = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return  # nothing there, or nothing that anybody could read
    version = written.get("schema_version") if isinstance(written, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise NewerRecordError(
            f"{path} was written by a newer version of this project",
            expected=f"schema_version {SCHEMA_VERSION} or older",
            got=f"schema_version {version}",
            fix="update this checkout, or delete the file to have it made again",
        )


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
