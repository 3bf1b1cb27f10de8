"""Record of a step's result in the shared cache."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from model_artifacts.records import SCHEMA_VERSION, FileRecord, Record
from model_artifacts.records.releases import check_paths


class CachedStep(Record):
    """`cache/results/<stage>/<key>.json` of a store: a step's result, each file of which is an object by its digest."""

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    """Version of the record's schema."""
    record: FileRecord
    """The step's own record, by its path below artifacts/."""
    files: Annotated[tuple[FileRecord, ...], Field(max_length=1000)]
    """Result files that the step's record lists."""

    @model_validator(mode="after")
    def _stays_in_its_folder(self) -> CachedStep:
        check_paths((self.record, *self.files))
        return self
