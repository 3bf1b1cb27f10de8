"""Object store behind a URL, by fsspec. Objects appear whole or not at all, and their digests are checked on reading.

Only this module uses fsspec and translates the exceptions of its file systems.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from model_artifacts.errors import ArtifactError, StoreError, one_line, storage_errors
from model_artifacts.host.files import replacing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from model_artifacts.records import FileRecord

_WRITABLE = {"file", "local", "memory", "s3", "s3a", "gcs", "gs"}
"""Schemes of stores that never show a partly written object."""
_READABLE = {"http", "https"}
"""Schemes of stores to pull from only."""
_CHUNK = 16 * 2**20
"""Bytes a request: large enough for few requests, small enough for the memory of one thread."""


class StoredObject(NamedTuple):
    """An object of a store."""

    path: str
    """Path below the store's URL."""
    changed: datetime | None
    """Time of the last change; None if the store does not report it."""


def blob_path(sha256: str) -> str:
    """Return the path of the object with a SHA-256 digest."""
    return f"blobs/{sha256[:2]}/{sha256}"


class ObjectStore:
    """Objects by their paths below a URL."""

    def __init__(self, url: str) -> None:
        """Choose the file system of a URL; no request is sent yet.

        Args:
            url: a folder, or a URL of the schemes file, memory, s3, gs, http or https.

        Raises:
            StoreError: the scheme is not supported, its package is not installed, or its file system refuses the URL.
        """
        import fsspec  # noqa: PLC0415 - 0.2 s, and only where something is pushed or pulled

        self.shown = without_secrets(url)
        scheme = url.partition("://")[0].lower() if "://" in url else "file"
        if scheme not in _WRITABLE | _READABLE:
            raise StoreError(
                f"{self.shown} is no supported store",
                expected="a folder, s3://, gs://, https:// or memory://",
                got=f"{scheme}://",
            )
        self._writable = scheme in _WRITABLE
        try:
            self._fs: Any
            self._fs, root = fsspec.url_to_fs(url, use_listings_cache=False)
        except ImportError as exc:
            raise StoreError(
                f"{scheme}:// needs a package that is not installed here",
                got=one_line(exc),
                fix="install model-artifacts with its extra `store`; for gs:// also `pip install gcsfs`",
            ) from exc
        except Exception as exc:  # of each file system, without a common base
            raise StoreError(f"{self.shown} cannot be reached", got=one_line(exc)) from exc
        self._root = root.rstrip("/")
        self._local = scheme in {"file", "local"}
        self._seeks = scheme not in _READABLE
        """False for the web: some servers support no byte ranges."""

    def demand_writable(self) -> None:
        """Check that the store's scheme supports writing.

        Raises:
            StoreError: the store can only be pulled from.
        """
        if not self._writable:
            raise StoreError(f"{self.shown} can only be pulled from", expected="a folder, s3:// or gs://")

    def size(self, path: str) -> int | None:
        """Return an object's size in bytes; None if there is no such object.

        Raises:
            StoreError: the store cannot be reached.
        """
        try:
            with self._reached(f"looking for {path}"):
                size: int | None = self._fs.info(self._at(path))["size"]
                return size
        except _MissingError:
            return None

    def read(self, path: str, limit: int) -> bytes | None:
        """Return a small object's bytes; None if there is no such object.

        Args:
            path: the object's path below the URL.
            limit: the largest accepted size in bytes.

        Raises:
            StoreError: the object is larger, or the store cannot be reached.
        """
        try:
            with self._reached(f"reading {path}"), self._fs.open(self._at(path), "rb", **self._options) as file:
                data: bytes = file.read(limit + 1)
        except _MissingError:
            return None
        if len(data) > limit:
            raise StoreError(f"{path} of {self.shown} is too large", expected=f"at most {limit:,} bytes")
        return data

    def write(self, path: str, data: bytes) -> None:
        """Write a small object, replacing an older one.

        Raises:
            StoreError: the store cannot be reached or refuses the write.
            StorageError: the store is a folder and cannot be written.
        """
        if self._local:
            with replacing(Path(self._at(path))) as temporary:
                temporary.write_bytes(data)
            return
        with self._reached(f"writing {path}"):
            self._fs.pipe_file(self._at(path), data)

    def upload(self, path: str, file: Path, report: Callable[[int], None]) -> None:
        """Write a file as an object.

        Args:
            path: the object's path below the URL.
            file: the file to send.
            report: receives the number of bytes sent, once they are.

        Raises:
            StoreError: the store cannot be reached or refuses the write.
            StorageError: the store is a folder, and the file cannot be read or the folder not be written.
        """
        if self._local:
            with replacing(Path(self._at(path))) as temporary:
                shutil.copyfile(file, temporary)
            report(file.stat().st_size)
            return
        with self._reached(f"writing {path}"):
            self._fs.put_file(str(file), self._at(path))
        report(file.stat().st_size)

    def fetch(self, path: str, file: FileRecord, into: Path, report: Callable[[int], None], fix: str = "") -> None:
        """Read an object into a file, which appears once its size and digest are verified.

        An interrupted fetch is resumed. From the web it starts again, because not every server supports byte ranges.

        Args:
            path: the object's path below the URL.
            file: the expected size and digest.
            into: the file to write.
            report: receives the number of bytes that each step adds.
            fix: the remedy that the error names if size or digest differ.

        Raises:
            StoreError: the object is missing, its size or digest differs, or the store cannot be reached.
            StorageError: the file cannot be written.
        """
        part = into.with_name(f"{into.name}.part")
        with storage_errors(f"writing {part}"):
            part.parent.mkdir(parents=True, exist_ok=True)
            got, size = self._append(path, file, part, report)
            if got != file.sha256:
                part.unlink()
                raise StoreError(
                    f"{file.path} differs from its listed digest and was discarded",
                    where=f"{path} of {self.shown}",
                    expected=f"{file.bytes:,} bytes, SHA-256 {file.sha256}",
                    got=f"{size:,} bytes, SHA-256 {got}",
                    fix=fix,
                )
            with part.open("rb") as whole:
                os.fsync(whole.fileno())
            part.replace(into)

    def _append(self, path: str, file: FileRecord, part: Path, report: Callable[[int], None]) -> tuple[str, int]:
        """Append an object's missing bytes to a file; return the whole file's SHA-256 and its size in bytes."""
        digest = hashlib.sha256()
        if not self._seeks:
            part.unlink(missing_ok=True)
        with part.open("a+b") as local:
            local.seek(0)
            while chunk := local.read(_CHUNK):
                digest.update(chunk)
            report(local.tell())
            with self._reached(f"reading {path}"), self._fs.open(self._at(path), "rb", **self._options) as remote:
                if local.tell():
                    remote.seek(local.tell())
                while local.tell() <= file.bytes and (chunk := remote.read(_CHUNK)):
                    with storage_errors(f"writing {part}"):
                        local.write(chunk)
                    digest.update(chunk)
                    report(len(chunk))
            return digest.hexdigest(), local.tell()

    @property
    def _options(self) -> dict[str, object]:
        """Options of fsspec's `open` for one sequential read; block size 0 is one stream."""
        if self._local:
            return {}
        return {"block_size": _CHUNK, "cache_type": "none"} if self._seeks else {"block_size": 0}

    def objects(self, folder: str) -> list[StoredObject]:
        """Return the objects in a folder of the store and below it, sorted by path.

        Raises:
            StoreError: the store cannot be reached or listed.
        """
        with self._reached(f"listing {folder}"):
            listed: dict[str, dict[str, object]] = self._fs.find(self._at(folder), detail=True)
        return [StoredObject(name[len(self._root) + 1 :], _changed(info)) for name, info in sorted(listed.items())]

    def remove(self, path: str) -> None:
        """Remove an object.

        Raises:
            StoreError: the store cannot be reached or refuses the removal.
        """
        with self._reached(f"removing {path}"):
            self._fs.rm_file(self._at(path))

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    @contextmanager
    def _reached(self, doing: str) -> Iterator[None]:
        """Translate the exceptions of file systems, each of which has its own, into `StoreError`."""
        try:
            yield
        except ArtifactError:
            raise
        except FileNotFoundError as exc:
            raise _MissingError(f"{self.shown}: {doing} failed: there is no such object") from exc
        except Exception as exc:  # OSError, or of botocore, aiohttp and google, without a common base
            raise StoreError(f"{self.shown}: {doing} failed", got=without_secrets(one_line(exc))) from exc


class _MissingError(StoreError):
    """A missing object."""


def without_secrets(text: str) -> str:
    """Remove user names, passwords and queries, which may hold tokens, from the URLs in a text."""
    return re.sub(r"\?[^\s'\")]*", "?…", re.sub(r"://[^/@\s]+@", "://…@", text))


def _changed(info: dict[str, object]) -> datetime | None:
    """Return the time of an object's last change; each file system reports it under another name."""
    value = next((info[name] for name in ("LastModified", "updated", "mtime", "created") if name in info), None)
    if isinstance(value, str):
        value = datetime.fromisoformat(value.replace("Z", "+00:00"))
    if isinstance(value, float | int):
        return datetime.fromtimestamp(value, timezone.utc)
    return value if isinstance(value, datetime) else None
