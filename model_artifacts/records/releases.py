"""Records of a store of releases."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from model_artifacts.records.base import SCHEMA_VERSION, FileRecord, Record, Sha256

if TYPE_CHECKING:
    from collections.abc import Collection

LATEST = "latest"
"""The tag that `push` moves and that `pull` reads by default."""


_DEEPEST, _LONGEST, _LONGEST_NAME = 16, 512, 200
"""Limits of a path: folders and file, its length, and the length of each name, in bytes of UTF-8."""


def check_path(path: str) -> None:
    """Refuse a path that is not plain and relative, is too deep or too long, or has characters that terminals obey.

    Raises:
        ValueError: the path is refused.
    """
    parts = path.split("/")
    if not all(parts) or {".", ".."} & set(parts) or "\\" in path or "\0" in path:
        raise ValueError(f"expected paths that stay in their folder, got {path[:_LONGEST]!r}")
    if not path.isprintable():
        raise ValueError(f"expected paths of printable characters, got {path[:_LONGEST]!r}")
    if (
        len(parts) > _DEEPEST
        or len(path.encode()) > _LONGEST
        or max(len(part.encode()) for part in parts) > _LONGEST_NAME
    ):
        raise ValueError(
            f"expected paths of at most {_DEEPEST} names and {_LONGEST} bytes, got one of {len(parts)} names and "
            f"{len(path):,} characters: {path[:80]}…"
        )


def check_paths(files: Collection[FileRecord]) -> None:
    """Refuse paths as `check_path` does, duplicate paths, and a file in another one's folder.

    Raises:
        ValueError: a path is refused, occurs twice, or is both a file and a folder.
    """
    paths = {file.path for file in files}
    for path in paths:
        check_path(path)
        for folder in PurePosixPath(path).parents:
            if folder.as_posix() in paths:
                raise ValueError(f"expected each path to be a file or a folder, got {folder.as_posix()!r} as both")
    if len(paths) < len(files):
        raise ValueError("expected each path once")


class StoredRelease(Record):
    """`releases/<its SHA-256>.json` of a store: a release's files, each stored as an object under its digest."""

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    """Version of the record's schema."""
    name: str
    """Name of the release: `<model>-<commit>`."""
    files: Annotated[tuple[FileRecord, ...], Field(min_length=1, max_length=100_000)]
    """The files, sorted by their paths below the release's folder."""

    @model_validator(mode="after")
    def _stays_in_its_folder(self) -> StoredRelease:
        check_path(self.name)
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


class HostRelease(Record):
    """`for-host.json` of a pulled release: the part of it that was installed for one host.

    It is not signed. It only allows other files to be missing; each file that is there is checked as always.
    """

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    """Version of the record's schema."""
    artifact: str
    """Variant of the artifact that was installed."""
    paths: Annotated[tuple[str, ...], Field(min_length=1, max_length=100_000)]
    """Paths of all installed files, sorted."""

    @model_validator(mode="after")
    def _stays_in_its_folder(self) -> HostRelease:
        for path in self.paths:
            check_path(path)
        return self
