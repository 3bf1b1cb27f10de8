"""A repository of an OCI registry: its blobs, manifests, tags and referrers.

The requests are those of the OCI distribution specification 1.1. Everything that is named by a digest is hashed when
it arrives.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urljoin

from model_artifacts.errors import StoreError, storage_errors
from model_artifacts.host.plain_files import open_plain
from model_artifacts.releases.objects import Source, fetch_verified
from model_artifacts.releases.oci.attempts import Counted, Waits
from model_artifacts.releases.oci.documents import INDEX_TYPE, MANIFEST_TYPE, MAX_BYTES
from model_artifacts.releases.oci.transport import BrokenError, Request, Transport, read
from model_artifacts.releases.oci.uploads import Uploads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import requests

    from model_artifacts.records import FileRecord
    from model_artifacts.releases.oci.references import Reference

_PIECE = 2**20
"""Bytes of a body that are read at a time: what a broken connection loses."""
_MAX_TAGS = 100_000
_ACCEPT = {"Accept": f"{INDEX_TYPE}, {MANIFEST_TYPE}"}
_MISSING = frozenset({HTTPStatus.NOT_FOUND})


class Stored(NamedTuple):
    """A manifest or an index as the registry keeps it."""

    data: bytes
    media_type: str

    @property
    def sha256(self) -> str:
        """Digest of the bytes, in hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()


class Registry:
    """A repository of a registry."""

    def __init__(self, reference: Reference, *, patient: bool = True) -> None:
        """Prepare a session; no request is sent yet.

        Args:
            reference: the repository.
            patient: False for one that another can stand in for: what fails for the moment is not tried again.

        Raises:
            StoreError: `requests` is not installed.
        """
        self.shown = reference.shown
        self._at = f"{reference.repository}/"
        self._transport = Transport(reference) if patient else Transport(reference, attempts=1)
        self._patient = patient
        self._uploads = Uploads(self._transport, reference.repository, self.blob_bytes)

    # Manifests and tags.

    def manifest(self, name: str, limit: int = MAX_BYTES) -> Stored | None:
        """Return a manifest or an index; None if there is none.

        Args:
            name: a tag, or a digest with its algorithm, with which the bytes are compared.
            limit: the largest accepted size in bytes.

        Raises:
            StoreError: the bytes differ from the digest, are too many, or the registry cannot be reached.
        """
        request = Request("GET", f"{self._at}manifests/{name}", f"reading {name}", _ACCEPT, also=_MISSING)
        response, data = self._transport.send(request, limit)
        if response.status_code == HTTPStatus.NOT_FOUND:
            return None
        stored = Stored(data, response.headers.get("Content-Type", "").partition(";")[0].strip())
        if name.startswith("sha256:") and name != f"sha256:{stored.sha256}":
            raise StoreError(
                f"{self.shown}: the registry gave other bytes than those asked for",
                expected=name,
                got=f"sha256:{stored.sha256}",
                fix="do not use it; push the release again",
            )
        return stored

    def digest_of(self, tag: str) -> str | None:
        """Return the SHA-256 of a tag's manifest, as the registry states it; None without such a tag.

        Raises:
            StoreError: the registry cannot be reached.
        """
        request = Request("HEAD", f"{self._at}manifests/{tag}", f"looking for {tag}", _ACCEPT, also=_MISSING)
        response, _ = self._transport.send(request)
        if response.status_code == HTTPStatus.NOT_FOUND:
            return None
        stated = re.fullmatch(r"sha256:([0-9a-f]{64})", response.headers.get("Docker-Content-Digest", ""))
        if stated:
            return stated[1]
        stored = self.manifest(tag)  # the header is optional
        return stored.sha256 if stored else None

    def put_manifest(self, name: str, stored: Stored) -> bool:
        """Write a manifest or an index, or move a tag to it.

        Returns:
            True if the registry keeps the manifest as a referrer of its subject by itself.

        Raises:
            StoreError: the registry refuses it, as while a blob is missing, or cannot be reached.
        """
        headers = {"Content-Type": stored.media_type}
        request = Request("PUT", f"{self._at}manifests/{name}", f"writing {name}", headers, body=stored.data)
        response, _ = self._transport.send(request)
        return "OCI-Subject" in response.headers

    def remove_manifest(self, sha256: str) -> bool:
        """Remove a manifest or an index with all its tags; return False if it was gone already.

        Raises:
            StoreError: the registry refuses removals, or cannot be reached.
        """
        also = _MISSING | {HTTPStatus.METHOD_NOT_ALLOWED}
        request = Request("DELETE", f"{self._at}manifests/sha256:{sha256}", f"removing {sha256}", also=also)
        response, _ = self._transport.send(request)
        if response.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            raise StoreError(
                f"{self.shown}: the registry removes nothing",
                fix="allow it there; docker's registry needs `storage: {delete: {enabled: true}}`",
            )
        return response.status_code != HTTPStatus.NOT_FOUND

    def tags(self) -> list[str]:
        """Return the names of all tags, sorted; none if there is no such repository.

        Raises:
            StoreError: the registry cannot be reached, or its answer is no list of tags.
        """
        names: list[object] = []
        url, params = f"{self._at}tags/list", {"n": "1000"}
        while url:
            request = Request("GET", url, "listing the tags", params=params, also=_MISSING)
            response, data = self._transport.send(request, MAX_BYTES)
            if response.status_code == HTTPStatus.NOT_FOUND:
                break
            try:
                page = list(json.loads(data)["tags"] or [])
            except (ValueError, LookupError, TypeError) as exc:
                raise StoreError(f"{self.shown}: the list of tags cannot be read") from exc
            names += page
            following = response.links.get("next", {}).get("url", "")
            url, params = (urljoin(str(response.url), following) if following and page else ""), {}
            if len(names) > _MAX_TAGS:
                raise StoreError(f"{self.shown} has too many tags", expected=f"at most {_MAX_TAGS:,}")
        return sorted({name for name in names if isinstance(name, str)})

    def keeps_referrers(self) -> bool:
        """Return True if the registry lists the referrers of a manifest by itself.

        Raises:
            StoreError: the registry cannot be reached.
        """
        request = Request(
            "GET", f"{self._at}referrers/sha256:{'0' * 64}", "looking for referrers", also=frozenset({400, 404, 405})
        )
        response, _ = self._transport.send(request, MAX_BYTES)
        return response.status_code == HTTPStatus.OK

    # Blobs.

    def blob_bytes(self, sha256: str) -> int | None:
        """Return a blob's size in bytes; None if there is none.

        Raises:
            StoreError: the registry cannot be reached.
        """
        request = Request("HEAD", f"{self._at}blobs/sha256:{sha256}", f"looking for {sha256}", also=_MISSING)
        response, _ = self._transport.send(request)
        stated = response.headers.get("Content-Length", "")
        return int(stated) if response.status_code == HTTPStatus.OK and stated.isdecimal() else None

    def fetch(self, file: FileRecord, into: Path, report: Callable[[int], None], fix: str) -> None:
        """Read a blob into a file, which appears once its size and digest are verified.

        A broken connection is opened again at the byte where it broke.

        Args:
            file: the expected size and digest.
            into: the file to write.
            report: receives the number of bytes that each step adds.
            fix: the remedy that the error names if size or digest differ.

        Raises:
            StoreError: the blob is missing, its size or digest differs, or the registry cannot be reached.
            StorageError: the file cannot be written.
        """
        source = Source(f"sha256:{file.sha256} of {self.shown}", fix)
        waits = Waits() if self._patient else Waits(1)
        while True:
            counted = Counted(report)
            try:
                fetch_verified(lambda start: self._reading(file, start), file, into, counted, source)
            except BrokenError:
                waits.wait_or_raise(counted.total)
                report(-counted.total)  # the next attempt counts what is there
            else:
                return

    @contextmanager
    def _reading(self, file: FileRecord, start: int) -> Iterator[tuple[_Body, int]]:
        """Yield a blob's body and the position that it begins at."""
        if start >= file.bytes:  # whole, and not renamed yet; a registry would refuse the range
            yield _Body(None), start
            return
        headers = {"Range": f"bytes={start}-"} if start else {}
        request = Request("GET", f"{self._at}blobs/sha256:{file.sha256}", f"reading {file.path}", headers, attempts=1)
        with self._transport.opened(request) as response:
            span = re.match(rf"bytes {start}-", response.headers.get("Content-Range", ""))
            yield _Body(response), start if response.status_code == HTTPStatus.PARTIAL_CONTENT and span else 0

    def upload(self, sha256: str, size: int, file: Path, report: Callable[[int], None], mounted_from: str = "") -> None:
        """Write a file as a blob, as `Uploads.send` does.

        Args:
            sha256: the blob's digest.
            size: its size in bytes.
            file: the file to send.
            report: receives the number of bytes that each step adds.
            mounted_from: another repository of this registry, from which the blob is taken if it is there.

        Raises:
            StoreError: the registry cannot be reached or refuses the blob, as if the file has changed.
            StorageError: the file cannot be read.
        """
        with storage_errors(f"reading {file}"), open_plain(file) as content:
            self._uploads.send(sha256, size, content, report, mounted_from)

    def write(self, data: bytes) -> None:
        """Write bytes as a blob, unless it is there.

        Raises:
            StoreError: the registry cannot be reached or refuses the blob.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        if self.blob_bytes(sha256) != len(data):
            self._uploads.send(sha256, len(data), io.BytesIO(data), lambda _: None)


class _Body:
    """The body of an answer; without one, it is at its end."""

    def __init__(self, response: requests.Response | None) -> None:
        self._response = response

    def read(self, count: int, /) -> bytes:
        """Return at most `count` of the next bytes; none at the end."""
        return read(self._response, min(count, _PIECE)) if self._response is not None else b""
