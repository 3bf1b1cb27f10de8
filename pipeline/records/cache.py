"""Records: the frozen, validated types that cross modules and that JSON files hold.

A record refuses unknown fields, is checked once when it is made, and round-trips through JSON. Units are in the names.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from model_artifacts.records import SCHEMA_VERSION, FileRecord, Record
from model_artifacts.records.releases import check_paths


class CachedStep(Record):
    """`cache/results/<stage>/<key>.json` of a store: what a step made; each file of it is an object by its digest."""

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    record: FileRecord
    """The step's own, by its path below artifacts/."""
    files: Annotated[tuple[FileRecord, ...], Field(max_length=1000)]
    """What that record vouches for."""

    @model_validator(mode="after")
    def _stays_in_its_folder(self) -> CachedStep:
        check_paths((self.record, *self.files))
        return self
