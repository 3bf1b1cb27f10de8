"""Object store behind a URL, by fsspec. Objects appear whole or not at all, and their digests are checked on reading.

Only this module uses fsspec and translates the exceptions of its file systems.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timezone
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from model_artifacts.errors import ArtifactError, StoreError, one_line, storage_errors
from model_artifacts.host.files import replacing
from model_artifacts.host.plain_files import open_part, open_plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from model_artifacts.records import FileRecord

_WRITABLE = {"file", "local", "memory", "s3", "s3a", "gcs", "gs"}
"""Schemes of stores that never show a partly written object."""
_READABLE = {"http", "https"}
"""Schemes of stores to pull from only."""
_ACCESS = "the store refuses access: check its URL, and the keys, the name or the password for it"
_SILENT_SECONDS = 60.0
"""Seconds without a byte after which a connection to a web server counts as dead."""
_CHUNK = 16 * 2**20
"""Bytes a request: few requests, and little memory of each thread."""


class StoredObject(NamedTuple):
    """An object of a store."""

    path: str
    """Path below the store's URL."""
    changed: datetime | None
    """Time of the last change; None if the store does not report it."""


def blob_path(sha256: str) -> str:
    """Return the path of the object with a SHA-256 digest."""
    return f"blobs/{sha256[:2]}/{sha256}"


class Source(NamedTuple):
    """Where a file is fetched from, for messages."""

    where: str
    fix: str
    """The remedy if its size or digest differs."""


class _Stream(Protocol):
    """A body to read once."""

    def read(self, count: int, /) -> bytes:
        """Return at most `count` of the next bytes."""


def fetch_verified(
    opened: Callable[[int], AbstractContextManager[tuple[_Stream, int]]],
    file: FileRecord,
    into: Path,
    report: Callable[[int], None],
    source: Source,
) -> None:
    """Read a stream into a file, which appears once its size and digest are verified. An interrupted one is resumed.

    Args:
        opened: gives the stream from a position, and the position that it really begins at: that one, or 0.
        file: the expected size and digest.
        into: the file to write.
        report: receives the number of bytes that each step adds.
        source: the source, for messages.

    Raises:
        StoreError: the size or the digest differs.
        StorageError: the file cannot be written.
    """
    part = into.with_name(f"{into.name}.part")
    with storage_errors(f"writing {part}"):
        part.parent.mkdir(parents=True, exist_ok=True)
        got, size = _append(opened, file, part, report)
        if got != file.sha256:
            part.unlink()
            raise StoreError(
                f"{file.path} differs from its listed digest and was discarded",
                where=source.where,
                expected=f"{file.bytes:,} bytes, SHA-256 {file.sha256}",
                got=f"{size:,} bytes, SHA-256 {got}",
                fix=source.fix,
            )
        with part.open("rb") as whole:
            os.fsync(whole.fileno())
        part.replace(into)


def _append(
    opened: Callable[[int], AbstractContextManager[tuple[_Stream, int]]],
    file: FileRecord,
    part: Path,
    report: Callable[[int], None],
) -> tuple[str, int]:
    """Append a stream's missing bytes to a file; return the whole file's SHA-256 and its size in bytes."""
    digest = hashlib.sha256()
    with open_part(part) as local:
        while chunk := local.read(_CHUNK):
            digest.update(chunk)
        report(local.tell())
        with opened(local.tell()) as (remote, start):
            if start != local.tell():  # the server begins again
                report(-local.tell())
                digest = hashlib.sha256()
                local.truncate(0)
                local.seek(0)
            while local.tell() <= file.bytes and (chunk := remote.read(_CHUNK)):
                with storage_errors(f"writing {part}"):
                    local.write(chunk)
                digest.update(chunk)
                report(len(chunk))
        return digest.hexdigest(), local.tell()


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
            self._fs, root = fsspec.url_to_fs(url, use_listings_cache=False, **_web_options(scheme))
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
        """False for the web, where one request gives a file from a position to its end."""
        self._lists_at_once = self._seeks and not self._local and scheme != "memory"
        """True for buckets, which have no folders to walk through."""

    @property
    def is_web(self) -> bool:
        """True for a web server, which lists its files in a page of any form and length, or not at all."""
        return not self._seeks

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
        data = b""
        try:
            with self._reached(f"reading {path}"), self._opened(path, 0) as (file, _):
                while len(data) <= limit and (chunk := file.read(limit + 1 - len(data))):
                    data += chunk
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

        An interrupted fetch is resumed; from a web server without byte ranges it starts again.

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
        fetch_verified(
            lambda start: self._reading(path, start), file, into, report, Source(f"{path} of {self.shown}", fix)
        )

    @contextmanager
    def _reading(self, path: str, start: int) -> Iterator[tuple[Any, int]]:
        with self._reached(f"reading {path}"), self._opened(path, start) as opened:
            yield opened

    @contextmanager
    def _opened(self, path: str, start: int) -> Iterator[tuple[Any, int]]:
        """Yield an object to read once, and the position of its first byte: `start`, or 0 where ranges are unknown."""
        if self._local:
            with open_plain(Path(self._at(path))) as file:
                file.seek(start)
                yield file, start
        elif self._seeks:
            with self._fs.open(self._at(path), "rb", block_size=_CHUNK, cache_type="none") as file:
                file.seek(start)
                yield file, start
        else:
            with self._streamed(path, start) as file:
                span = re.match(rf"bytes {start}-", file.r.headers.get("Content-Range", ""))
                yield file, start if file.r.status == HTTPStatus.PARTIAL_CONTENT and span else 0

    def _streamed(self, path: str, start: int) -> Any:  # noqa: ANN401 - fsspec is untyped
        """Return a response's body as one stream: a block size of 0, and any size, save fsspec a request for it."""
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        try:
            return self._fs.open(self._at(path), "rb", block_size=0, size=1, headers=headers)
        except Exception as exc:  # of aiohttp, which is not imported here
            if start and getattr(exc, "status", None) == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return self._streamed(path, 0)
            raise

    def objects(self, folder: str) -> list[StoredObject]:
        """Return the objects in a folder of the store and below it, sorted by path; none if there is no such folder.

        Raises:
            StoreError: the store cannot be reached or listed, or its own folder or bucket is missing.
        """
        walking = {} if self._lists_at_once else {"on_error": "raise"}  # else fsspec takes a failure for no objects
        listed: dict[str, dict[str, object]] = {}
        try:
            with self._reached(f"listing {folder}"):
                listed = self._fs.find(self._at(folder), detail=True, **walking)
        except _MissingError:
            self._demand_root()
        return [StoredObject(name[len(self._root) + 1 :], _changed(info)) for name, info in sorted(listed.items())]

    def _demand_root(self) -> None:
        """Check that the store's own folder or bucket exists, where that can be asked.

        Raises:
            StoreError: it does not, or the store cannot be reached.
        """
        root = self._root.partition("/")[0] if self._lists_at_once else self._root
        with self._reached(f"looking for {root}"):
            there = not self._seeks or self._fs.exists(root)
        if not there:
            kind = "bucket" if self._lists_at_once else "folder"
            raise StoreError(
                f"there is no {kind} {without_secrets(root)}",
                fix="check the store's URL; a push makes a folder, but no bucket",
            )

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
            fix = _ACCESS if isinstance(exc, PermissionError) else remedy(getattr(exc, "status", None))
            raise StoreError(f"{self.shown}: {doing} failed", got=without_secrets(one_line(exc)), fix=fix) from exc


class _MissingError(StoreError):
    """A missing object."""


def _web_options(scheme: str) -> dict[str, object]:
    """Return fsspec's options for the web: time limits for silence, and none for a whole file (aiohttp's is 300 s)."""
    if scheme not in _READABLE:
        return {}
    import aiohttp  # noqa: PLC0415 - only where something is pulled from the web

    silence = aiohttp.ClientTimeout(total=None, sock_connect=_SILENT_SECONDS, sock_read=_SILENT_SECONDS)
    return {"client_kwargs": {"timeout": silence}}


def remedy(status: object) -> str:
    """Return the advice for a status of HTTP; empty for none and for all others."""
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return _ACCESS
    if isinstance(status, int) and (
        status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    ):
        return "the server is busy or broken: try again later"
    return ""


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
