"""Records: the frozen, validated types that cross modules and that JSON files hold.

A record refuses unknown fields, is checked once when it is made, and round-trips through JSON. Units are in the names.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

SCHEMA_VERSION = 1
"""The version of every record on disk; part of every staleness key."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Whole = Annotated[int, Field(strict=True, ge=1)]
"""A whole number of at least 1; `true` and `"8"` are not numbers."""
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Milliseconds = Annotated[float, Field(ge=0)]
Microseconds = Annotated[float, Field(ge=0)]


class Record(BaseModel):
    """Frozen, closed, and comparable; NaN and infinity are refused because JSON has neither."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_by_name=True,  # an alias is the key in JSON of a field that Python has by a better name
        validate_by_alias=True,
        serialize_by_alias=True,
    )

    def to_json(self) -> str:
        """Return the record as JSON in canonical form: sorted keys, two spaces, a newline at the end."""
        return json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


class FileRecord(Record):
    """A file under artifacts/, by its path there, its size and its digest."""

    path: str
    bytes: Count
    sha256: Sha256


class Tool(Record):
    """A package that took part, with its full version."""

    name: str
    version: str


class KeyField(Record):
    """One thing that a result depends on, flattened to text."""

    name: str
    value: str


class Key(Record):
    """The staleness key: a result is current while its key is."""

    fields: tuple[KeyField, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the fields as canonical JSON."""
        text = json.dumps([[field.name, field.value] for field in self.fields], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


class StageRecord(Record):
    """What every stage writes beside its results."""

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    key: Key
    built_at: AwareDatetime
    toolchain: tuple[Tool, ...] = ()

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """The files that this record vouches for."""
        return ()
