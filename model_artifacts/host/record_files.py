"""Records as JSON files: atomic writes, validated reads, and a refusal of changed and of newer files.

A record that decides something begins with a digest of all its other bytes, on a line of its own:

    {
      "digest": "<SHA-256 of the file without this line>",

A file whose digest does not hold is refused, so that its step runs again. The digest tells of edits and of damage, not
of forgery: whoever computes it anew is stopped by a release's signature alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from model_artifacts.errors import MissingRecordError, NewerRecordError, RecordError
from model_artifacts.host.files import write_bytes
from model_artifacts.host.plain_files import read_plain
from model_artifacts.records import SCHEMA_VERSION, DigestedRecord, Manifest, Record

if TYPE_CHECKING:
    from pathlib import Path


R = TypeVar("R", bound=Record)

_DIGEST = re.compile(rb'\{\n  "digest": "([0-9a-f]{64})",\n')
"""The first two lines of a file with a digest."""


def file_of(record: Record) -> bytes:
    """Return the bytes of a record's file: its canonical JSON, with the digest if its kind has one."""
    plain = record.to_json().encode()
    if not isinstance(record, DigestedRecord):
        return plain
    return f'{{\n  "digest": "{hashlib.sha256(plain).hexdigest()}",\n'.encode() + plain.removeprefix(b"{\n")


_MAX_BYTES, _MAX_MANIFEST_BYTES = 256 * 2**20, 64 * 2**20
"""Largest accepted files of records: a larger one is refused before it fills the memory."""


def write_record(path: Path, record: Record) -> None:
    """Write a record as canonical JSON.

    Raises:
        StorageError: the file cannot be written.
        NewerRecordError: a newer version of this package wrote the present file.
    """
    refuse_newer(path)
    write_bytes(path, file_of(record))


def read_record(path: Path, kind: type[R], fix: str = "") -> R:
    """Read and validate a record.

    Args:
        path: the record's file.
        kind: the record's class.
        fix: the remedy for the error message.

    Raises:
        MissingRecordError: the file is missing.
        RecordError: the file cannot be read, is too large, was changed, is no such record, or has an older schema
            version.
        NewerRecordError: the record has a newer schema version.
    """
    try:
        data = read_plain(path, _MAX_MANIFEST_BYTES if issubclass(kind, Manifest) else _MAX_BYTES)
        return kind.model_validate_json(_checked(path, data, kind, fix) if issubclass(kind, DigestedRecord) else data)
    except FileNotFoundError as exc:
        raise MissingRecordError(f"{path} is missing", fix=fix) from exc
    except OSError as exc:
        raise RecordError(f"{path} cannot be read: {exc.strerror}", fix=fix) from exc
    except ValidationError as exc:
        refuse_newer(path)
        first = exc.errors(include_url=False)[0]
        place = f"{'.'.join(map(str, first['loc']))}: " if first["loc"] else ""
        raise RecordError(f"{path} is not a valid {kind.__name__}: {place}{first['msg']}", fix=fix) from exc


def _checked(path: Path, data: bytes, kind: type[Record], fix: str) -> bytes:
    """Return a record's JSON without its digest, after a check of the digest.

    Raises:
        RecordError: there is no digest, or it is that of other bytes.
        NewerRecordError: there is no digest, and the record has a newer schema version.
    """
    stated, got, plain = _digests(data)
    if stated is None:
        refuse_newer(path)
        raise RecordError(
            f"{path} is not a valid {kind.__name__}: it lacks the digest of itself",
            expected="`digest` on the second line, as this version of the package writes it",
            fix=fix,
        )
    if stated != got:
        raise RecordError(
            f"{path} is not a valid {kind.__name__}: it was changed after it was written",
            expected=f"SHA-256 {stated}",
            got=f"SHA-256 {got}",
            fix=fix,
        )
    return plain


def _digests(data: bytes) -> tuple[str | None, str, bytes]:
    """Return the digest that a file states, None without one, the digest of its other bytes, and these bytes."""
    if not (found := _DIGEST.match(data)):
        return None, "", data
    plain = b"{\n" + data[found.end() :]
    return found[1].decode(), hashlib.sha256(plain).hexdigest(), plain


def refuse_newer(path: Path) -> None:
    """Refuse a record from a newer version of this package, before it is misread or overwritten.

    A file that was changed after it was written may be overwritten, whatever version it states.

    Raises:
        NewerRecordError: the record has a newer schema version.
    """
    try:
        stated, got, data = _digests(read_plain(path, _MAX_BYTES))
        content = json.loads(data)
    except (OSError, ValueError, RecursionError):
        return  # no file, or no readable JSON
    if stated is not None and stated != got:
        return
    version = content.get("schema_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise NewerRecordError(
            f"{path} was written by a newer version of this package",
            expected=f"schema_version {SCHEMA_VERSION} or older",
            got=f"schema_version {version}",
            fix="update this package, or delete the file and run its step again",
        )
