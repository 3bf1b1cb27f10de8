"""A folder behind a URL, through fsspec: objects that appear whole, or not at all, and are checked on the way in.

The one place that knows fsspec, and what its file systems raise.
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
"""Where an object that was not written whole is not seen."""
_READABLE = {"http", "https"}
_CHUNK = 16 * 2**20
"""What a request asks for: fewer requests, and no more memory than a thread may take."""


class StoredObject(NamedTuple):
    """What lies in a store."""

    path: str
    changed: datetime | None
    """None where the store does not say."""


def blob_path(sha256: str) -> str:
    """Return where an object lies that is known by its digest."""
    return f"blobs/{sha256[:2]}/{sha256}"


class ObjectStore:
    """Reads and writes objects by their paths below a URL."""

    def __init__(self, url: str) -> None:
        """Prepare to reach it; nothing is asked yet.

        Raises:
            StoreError: no such kind of URL is known, or its package is not installed.
        """
        import fsspec  # noqa: PLC0415 - 0.2 s, and only where something is pushed or pulled

        self.shown = without_secrets(url)
        kind = url.partition("://")[0].lower() if "://" in url else "file"
        if kind not in _WRITABLE | _READABLE:
            raise StoreError(
                f"{self.shown} is no store that this can use",
                expected="a folder, s3://, gs://, https:// or memory://",
                got=f"{kind}://",
            )
        self._writable = kind in _WRITABLE
        try:
            self._fs: Any
            self._fs, root = fsspec.url_to_fs(url, use_listings_cache=False)
        except ImportError as exc:
            raise StoreError(
                f"{kind}:// takes a package that is not installed here",
                got=one_line(exc),
                fix="install this project with its extra `store`; for gs:// `pip install gcsfs`, too",
            ) from exc
        except Exception as exc:  # of each file system, without a common base
            raise StoreError(f"{self.shown} cannot be reached", got=one_line(exc)) from exc
        self._root = root.rstrip("/")
        self._local = kind in {"file", "local"}
        self._seeks = kind not in _READABLE
        """Some web servers know no ranges of bytes."""

    def demand_writable(self) -> None:
        """Check that objects can be written.

        Raises:
            StoreError: they cannot.
        """
        if not self._writable:
            raise StoreError(f"{self.shown} can only be pulled from", expected="a folder, s3:// or gs://")

    def size(self, path: str) -> int | None:
        """Return an object's size in bytes; None where there is none.

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
        """Return a small object; None where there is none.

        Args:
            path: below the URL.
            limit: more bytes than this are refused.

        Raises:
            StoreError: it is larger, or the store cannot be reached.
        """
        try:
            with self._reached(f"reading {path}"), self._fs.open(self._at(path), "rb", **self._how) as file:
                data: bytes = file.read(limit + 1)
        except _MissingError:
            return None
        if len(data) > limit:
            raise StoreError(f"{path} of {self.shown} is too large", expected=f"at most {limit:,} bytes")
        return data

    def write(self, path: str, data: bytes) -> None:
        """Write a small object, in place of what was there.

        Raises:
            StoreError: the store cannot be reached, or does not let us.
            StorageError: the same, of a folder.
        """
        if self._local:
            with replacing(Path(self._at(path))) as temporary:
                temporary.write_bytes(data)
            return
        with self._reached(f"writing {path}"):
            self._fs.pipe_file(self._at(path), data)

    def upload(self, path: str, file: Path, told: Callable[[int], None]) -> None:
        """Write a file as an object.

        Args:
            path: below the URL.
            file: what to write.
            told: how many bytes more were sent.

        Raises:
            StoreError: the store cannot be reached, or does not let us.
            StorageError: the file cannot be read, or a folder not be written.
        """
        if self._local:
            with replacing(Path(self._at(path))) as temporary:
                shutil.copyfile(file, temporary)
            told(file.stat().st_size)
            return
        with self._reached(f"writing {path}"):
            self._fs.put_file(str(file), self._at(path))
        told(file.stat().st_size)

    def fetch(self, path: str, file: FileRecord, into: Path, told: Callable[[int], None], fix: str = "") -> None:
        """Read an object into a file, which appears once it is whole and what it should be.

        What an earlier try has left of it is gone on with; on the web, where not every server can, it is fetched again.

        Args:
            path: below the URL.
            file: what it should be.
            into: the file to write.
            told: how many bytes more are there.
            fix: what to do where it is not what it should be.

        Raises:
            StoreError: there is none, it is not what it should be, or the store cannot be reached.
            StorageError: the file cannot be written.
        """
        part = into.with_name(f"{into.name}.part")
        with storage_errors(f"writing {part}"):
            part.parent.mkdir(parents=True, exist_ok=True)
            got, size = self._append(path, file, part, told)
            if got != file.sha256:
                part.unlink()
                raise StoreError(
                    f"{file.path} is not what was listed; nothing of it was kept",
                    where=f"{path} of {self.shown}",
                    expected=f"{file.bytes:,} bytes, SHA-256 {file.sha256}",
                    got=f"{size:,} bytes, SHA-256 {got}",
                    fix=fix,
                )
            with part.open("rb") as whole:
                os.fsync(whole.fileno())
            part.replace(into)

    def _append(self, path: str, file: FileRecord, part: Path, told: Callable[[int], None]) -> tuple[str, int]:
        """Append to a file what it lacks of an object, and return the digest and the size of the whole."""
        digest = hashlib.sha256()
        if not self._seeks:
            part.unlink(missing_ok=True)
        with part.open("a+b") as local:
            local.seek(0)
            while chunk := local.read(_CHUNK):
                digest.update(chunk)
            told(local.tell())
            with self._reached(f"reading {path}"), self._fs.open(self._at(path), "rb", **self._how) as remote:
                if local.tell():
                    remote.seek(local.tell())
                while local.tell() <= file.bytes and (chunk := remote.read(_CHUNK)):
                    with storage_errors(f"writing {part}"):
                        local.write(chunk)
                    digest.update(chunk)
                    told(len(chunk))
            return digest.hexdigest(), local.tell()

    @property
    def _how(self) -> dict[str, object]:
        """How fsspec opens what is read once, from its beginning to its end; block size 0 is one stream."""
        if self._local:
            return {}
        return {"block_size": _CHUNK, "cache_type": "none"} if self._seeks else {"block_size": 0}

    def objects(self, folder: str) -> list[StoredObject]:
        """Return what lies in a folder of the store, and below it, sorted.

        Raises:
            StoreError: the store cannot be reached, or cannot be listed.
        """
        with self._reached(f"listing {folder}"):
            found: dict[str, dict[str, object]] = self._fs.find(self._at(folder), detail=True)
        return [StoredObject(name[len(self._root) + 1 :], _changed(info)) for name, info in sorted(found.items())]

    def remove(self, path: str) -> None:
        """Remove an object.

        Raises:
            StoreError: the store cannot be reached, or does not let us.
        """
        with self._reached(f"removing {path}"):
            self._fs.rm_file(self._at(path))

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    @contextmanager
    def _reached(self, doing: str) -> Iterator[None]:
        """Translate what file systems raise; each has exceptions of its own."""
        try:
            yield
        except ArtifactError:
            raise
        except FileNotFoundError as exc:
            raise _MissingError(f"{self.shown}: {doing} failed: there is no such object") from exc
        except Exception as exc:  # OSError, or of botocore, aiohttp and google, without a common base
            raise StoreError(f"{self.shown}: {doing} failed", got=without_secrets(one_line(exc))) from exc


class _MissingError(StoreError):
    """There is no such object."""


def without_secrets(text: str) -> str:
    """Return text whose URLs show neither a user's name and password nor a query, which may be a token."""
    return re.sub(r"\?[^\s'\")]*", "?…", re.sub(r"://[^/@\s]+@", "://…@", text))


def _changed(info: dict[str, object]) -> datetime | None:
    """Return when an object was written, as its file system says it: each has a name of its own for it."""
    said = next((info[name] for name in ("LastModified", "updated", "mtime", "created") if name in info), None)
    if isinstance(said, str):
        said = datetime.fromisoformat(said.replace("Z", "+00:00"))
    if isinstance(said, float | int):
        return datetime.fromtimestamp(said, timezone.utc)
    return said if isinstance(said, datetime) else None
