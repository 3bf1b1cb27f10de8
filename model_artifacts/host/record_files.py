"""Records as JSON files: atomic writes, validated reads, and a refusal of newer schema versions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from model_artifacts.errors import MissingRecordError, NewerRecordError, RecordError
from model_artifacts.host.files import write_bytes
from model_artifacts.host.plain_files import read_plain
from model_artifacts.records import SCHEMA_VERSION, Manifest, Record

if TYPE_CHECKING:
    from pathlib import Path


R = TypeVar("R", bound=Record)

_MAX_BYTES, _MAX_MANIFEST_BYTES = 256 * 2**20, 64 * 2**20
"""Largest accepted files of records: a larger one is refused before it fills the memory."""


def write_record(path: Path, record: Record) -> None:
    """Write a record as canonical JSON.

    Raises:
        StorageError: the file cannot be written.
        NewerRecordError: a newer version of this package wrote the present file.
    """
    refuse_newer(path)
    write_bytes(path, record.to_json().encode())


def read_record(path: Path, kind: type[R], fix: str = "") -> R:
    """Read and validate a record.

    Args:
        path: the record's file.
        kind: the record's class.
        fix: the remedy for the error message.

    Raises:
        MissingRecordError: the file is missing.
        RecordError: the file cannot be read, is too large, is no such record, or has an older schema version.
        NewerRecordError: the record has a newer schema version.
    """
    try:
        return kind.model_validate_json(
            read_plain(path, _MAX_MANIFEST_BYTES if issubclass(kind, Manifest) else _MAX_BYTES)
        )
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
    """Refuse a record from a newer version of this package, before it is misread or overwritten.

    Raises:
        NewerRecordError: the record has a newer schema version.
    """
    try:
        content = json.loads(read_plain(path, _MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return  # no file, or no readable JSON
    version = content.get("schema_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise NewerRecordError(
            f"{path} was written by a newer version of this package",
            expected=f"schema_version {SCHEMA_VERSION} or older",
            got=f"schema_version {version}",
            fix="update this package, or delete the file and run its step again",
        )
