"""Records: the frozen, validated types that cross modules and that JSON files hold.

A record refuses unknown fields, is checked once when it is made, and round-trips through JSON. Units are in the names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from model_artifacts.records.base import SCHEMA_VERSION, FileRecord, Record, Sha256

if TYPE_CHECKING:
    from collections.abc import Collection

LATEST = "latest"
"""The tag that `push` moves and that `pull` reads by default."""


def check_paths(files: Collection[FileRecord]) -> None:
    """Refuse paths that lead out of the folder that they are relative to, and one that is there twice."""
    paths = [file.path for file in files]
    for path in paths:
        parts = path.split("/")
        if not all(parts) or {".", ".."} & set(parts) or "\\" in path or "\0" in path:
            raise ValueError(f"expected paths that stay in their folder, got {path!r}")
    if len(set(paths)) < len(paths):
        raise ValueError("expected each path once")


class StoredRelease(Record):
    """`releases/<its SHA-256>.json` of a store: the files of a release, each of which is an object by its digest."""

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    name: str
    """As its folder was called: `<model>-<commit>`."""
    files: Annotated[tuple[FileRecord, ...], Field(min_length=1, max_length=100_000)]
    """Sorted by their paths below the release's folder."""

    @model_validator(mode="after")
    def _stays_in_its_folder(self) -> StoredRelease:
        check_paths(self.files)
        return self

    @property
    def total_bytes(self) -> int:
        """Of all files together."""
        return sum(file.bytes for file in self.files)


class StoreTag(Record):
    """`tags/<name>.json` of a store: which release a name stands for."""

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    release: Sha256
