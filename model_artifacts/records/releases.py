"""Records of a store of releases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from model_artifacts.records.base import SCHEMA_VERSION, FileRecord, Record, Sha256

if TYPE_CHECKING:
    from collections.abc import Collection

LATEST = "latest"
"""The tag that `push` moves and that `pull` reads by default."""


def check_paths(files: Collection[FileRecord]) -> None:
    """Refuse paths that lead out of their folder, and duplicate paths.

    Raises:
        ValueError: a path is not a plain relative path, or occurs twice.
    """
    paths = [file.path for file in files]
    for path in paths:
        parts = path.split("/")
        if not all(parts) or {".", ".."} & set(parts) or "\\" in path or "\0" in path:
            raise ValueError(f"expected paths that stay in their folder, got {path!r}")
    if len(set(paths)) < len(paths):
        raise ValueError("expected each path once")


class StoredRelease(Record):
    """`releases/<its SHA-256>.json` of a store: a release's files, each stored as an object under its digest."""

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    """Version of the record's schema."""
    name: str
    """Name of the release's folder: `<model>-<commit>`."""
    files: Annotated[tuple[FileRecord, ...], Field(min_length=1, max_length=100_000)]
    """The files, sorted by their paths below the release's folder."""

    @model_validator(mode="after")
    def _stays_in_its_folder(self) -> StoredRelease:
        check_paths(self.files)
        return self

    @property
    def total_bytes(self) -> int:
        """Size of all files together, in bytes."""
        return sum(file.bytes for file in self.files)


class StoreTag(Record):
    """`tags/<name>.json` of a store: the release that a name stands for."""

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    """Version of the record's schema."""
    release: Sha256
    """Digest of the release's record in the store."""
