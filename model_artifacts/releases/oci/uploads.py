"""Uploads of blobs in chunks, which go on where the registry has them: after a break, and in the next command.

A registry names an upload's URL anew with each chunk. The newest one of each large blob is in a file of the user's
cache until the blob is there. It is a hint: the registry says how many bytes it has, and compares the digest of all.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import urljoin

from pydantic import BaseModel, ConfigDict, ValidationError

from model_artifacts.errors import StoreError
from model_artifacts.host.plain_files import open_part
from model_artifacts.releases.oci.attempts import Counted, Waits
from model_artifacts.releases.oci.transport import BrokenError, RefusedError, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import requests

    from model_artifacts.releases.oci.transport import Transport

_CHUNK = 16 * 2**20
"""Bytes of one request of an upload. A smaller blob is sent in one."""
_MOST_BYTES = 2**16
"""Most bytes of a file that holds an upload's URL."""


class _Known(BaseModel):
    """An upload that was begun. Its file is in no release, and only this module reads it."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    location: str


class _Session:
    """The file that holds an upload's URL; without one, nothing is kept."""

    def __init__(self, file: IO[bytes] | None, path: Path) -> None:
        self._file = file
        self._path = path

    def location(self) -> str:
        """Return the URL that an earlier command left; empty without one, and for a file that was half written."""
        if self._file is None:
            return ""
        self._file.seek(0)
        try:
            return _Known.model_validate_json(self._file.read(_MOST_BYTES)).location
        except ValidationError:  # a hint that cannot be read is none
            return ""

    def keep(self, location: str) -> None:
        """Replace the URL. A full disk ends no upload: the next command then begins the file again."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.truncate(0)
                self._file.write(_Known(location=location).model_dump_json().encode())
                self._file.flush()

    def forget(self) -> None:
        """Remove the file: the blob is there, or its upload is of no more use."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            self._file = None


def _folder() -> Path:
    """Return the folder of these files, in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "model-artifacts" / "uploads"


@contextmanager
def _session(shown: str, sha256: str) -> Iterator[_Session]:
    """Yield the file of a blob's upload to a repository, for this process alone.

    Nothing is kept where the cache cannot be written, or while another process sends the same blob.
    """
    path = _folder() / f"{hashlib.sha256(shown.encode()).hexdigest()[:16]}-{sha256}.json"
    with contextlib.ExitStack() as stack:
        file = None
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            opened = stack.enter_context(open_part(path))
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file = opened
        except (
            OSError,
            RuntimeError,
        ):  # no home, a read-only one, or a lock: an upload without a hint
            pass
        yield _Session(file, path)


class Uploads:
    """The uploads to one repository."""

    def __init__(self, transport: Transport, repository: str, blob_bytes: Callable[[str], int | None]) -> None:
        """Prepare; no request is sent yet.

        Args:
            transport: the connection to the registry.
            repository: the repository's path.
            blob_bytes: returns the size of a blob that is there, by its digest.
        """
        self._transport = transport
        self._url = f"{repository}/blobs/uploads/"
        self._blob_bytes = blob_bytes

    def send(
        self, sha256: str, size: int, content: IO[bytes], report: Callable[[int], None], mounted_from: str = ""
    ) -> None:
        """Write a blob, however often the connection breaks.

        Args:
            sha256: its digest.
            size: its size in bytes.
            content: its bytes, at any position.
            report: receives the number of bytes that each step adds.
            mounted_from: another repository of the registry, from which the blob is taken if it is there.

        Raises:
            StoreError: the registry cannot be reached or refuses the blob, as if the file has changed.
        """
        begun = self._begun(sha256, mounted_from) if mounted_from else None
        if begun == "":
            report(size)
            return
        if size <= _CHUNK:
            self._sent(sha256, size, content, (begun or self._begun(sha256, ""), 0), report, _Session(None, Path()))
            return
        with _session(self._transport.reference.shown, sha256) as session:
            found = self._found(session, size)
            if found:
                counted = Counted(report)
                counted(found[1])
                try:
                    self._sent(sha256, size, content, found, counted, session)
                except RefusedError:  # what the registry has of it are other bytes: begin again
                    session.forget()
                    report(-counted.total)
                else:
                    return
            self._sent(sha256, size, content, (begun or self._begun(sha256, ""), 0), report, session)

    def _begun(self, sha256: str, mounted_from: str) -> str:
        """Begin an upload and return its URL; empty if the blob was mounted instead."""
        params = {"mount": f"sha256:{sha256}", "from": mounted_from} if mounted_from else {}
        request = Request("POST", self._url, f"sending {sha256}", params=params)
        response, _ = self._transport.send(request)
        if mounted_from and response.status_code == HTTPStatus.CREATED:
            return ""
        return self._location(response)

    def _found(self, session: _Session, size: int) -> tuple[str, int] | None:
        """Return where the upload of an earlier command goes on; None if there is none, or nothing of it is left."""
        location = session.location()
        if not location or not self._transport.is_home(location):
            return None
        try:
            found = self._where(location, size)
        except RefusedError:  # the URL has expired; a lack of rights will show again
            return None
        return found if found and found[1] else None

    def _sent(  # noqa: PLR0913 - the blob's three, its upload, and what is told of it
        self,
        sha256: str,
        size: int,
        content: IO[bytes],
        begun: tuple[str, int],
        report: Callable[[int], None],
        session: _Session,
    ) -> None:
        """Send a blob's bytes to an upload: in chunks, each of which is sent again from where the registry has it."""
        location, done = begun
        waits = Waits()
        doing, kind = f"sending {sha256}", {"Content-Type": "application/octet-stream"}
        while True:
            try:
                while size - done > _CHUNK:
                    content.seek(done)
                    chunk = content.read(_CHUNK)
                    headers = {**kind, "Content-Range": f"{done}-{done + len(chunk) - 1}"}
                    response, _ = self._transport.send(
                        Request("PATCH", location, doing, headers, body=chunk, attempts=1)
                    )
                    location, done = self._location(response), done + len(chunk)
                    session.keep(location)
                    report(len(chunk))  # ends a transfer that was cancelled
                content.seek(done)
                rest = content.read(size - done)
                headers = {**kind, "Content-Range": f"{done}-{size - 1}"} if done and rest else kind
                params = {"digest": f"sha256:{sha256}"}
                self._transport.send(Request("PUT", location, doing, headers, params, rest, attempts=1))
                session.forget()
                report(len(rest))
            except BrokenError:  # noqa: PERF203 - the loop is there to try again
                waits.wait_or_raise(done)
                if self._blob_bytes(sha256) == size:  # the last answer was lost, not the request
                    session.forget()
                    report(size - done)
                    return
                before = done
                location, done = self._where(location, size) or (self._begun(sha256, ""), 0)
                report(done - before)
            else:
                return

    def _where(self, location: str, size: int) -> tuple[str, int] | None:
        """Return where an upload goes on, and the number of bytes that the registry has; None if it has forgotten it.

        Args:
            location: the upload's URL.
            size: the bytes to send; a registry that has more of them tells of something else.

        Raises:
            StoreError: the registry cannot be reached.
        """
        request = Request("GET", location, "looking for an upload", also=frozenset({400, 404, 405, 410, 416}))
        response, _ = self._transport.send(request)
        span = re.fullmatch(r"(?:bytes=)?0-(\d+)", response.headers.get("Range", ""))
        last = int(span[1]) if span else size
        if response.status_code >= HTTPStatus.BAD_REQUEST or last >= size:
            return None
        return self._location(response, location), last + 1 if last else 0  # `0-0` is docker's word for nothing

    def _location(self, response: requests.Response, default: str = "") -> str:
        """Return the URL that an answer names for the next request.

        Raises:
            StoreError: it names none.
        """
        target = response.headers.get("Location", "")
        if not target and not default:
            shown = self._transport.reference.shown
            raise StoreError(f"{shown}: the registry names no place for an upload", fix="it is no OCI registry")
        return urljoin(str(response.url), target) if target else default
