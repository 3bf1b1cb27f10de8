"""Files that are never half-written: write beside the target, flush to disk, then rename over it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from model_artifacts.errors import MissingRecordError, NewerRecordError, RecordError
from model_artifacts.host.files import write_bytes
from model_artifacts.records import SCHEMA_VERSION, Record

if TYPE_CHECKING:
    from pathlib import Path


R = TypeVar("R", bound=Record)


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
