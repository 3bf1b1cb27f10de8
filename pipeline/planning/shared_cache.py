"""A cache of results that machines share: a result with the same key is made only once.

    cache/results/<stage>/<digest of the key>.json   the listing of a result: its record and its files
    cache/blobs/<first two digits>/<SHA-256>         the record and the files, by their digests

A fetched result has the digests of its listing and the key that this machine computed. Its record is the maker's, with
the maker's toolchain and time. Everyone who can write to the cache is trusted as a maker.
"""

from __future__ import annotations

import logging
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import Field, ValidationError, model_validator

from model_artifacts.errors import RecordError, StorageError, StoreError
from model_artifacts.host.files import install_files, scratch_folder
from model_artifacts.host.hashes import describe_file
from model_artifacts.host.record_files import read_record
from model_artifacts.records import SCHEMA_VERSION, FileRecord, Record
from model_artifacts.records.releases import check_paths
from model_artifacts.releases.objects import ObjectStore, blob_path
from pipeline.planning.freshness import is_current
from pipeline.planning.keys import key_of
from pipeline.records import Artifact, Outcome

if TYPE_CHECKING:
    from model_artifacts.records import Key, StageRecord
    from pipeline.planning.project import Project
    from pipeline.planning.steps import Step

log = logging.getLogger(__name__)

_MAX_LISTING_BYTES = 2**20


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


class _RecordFile(NamedTuple):
    """The path and the type of a step's record."""

    path: Path
    kind: type[StageRecord]


class SharedCache:
    """A store of results, by the digests of their keys."""

    def __init__(self, url: str) -> None:
        """Prepare a connection; nothing is sent yet.

        Raises:
            StoreError: the URL has an unknown scheme, or the package for it is not installed.
        """
        self._store = ObjectStore(url)

    def fetch(self, project: Project, step: Step) -> str:
        """Replace a step's results on disk by those of the cache.

        Args:
            project: the place of the results; the step's inputs must be there.
            step: the step to look for.

        Returns:
            their origin and time; empty if the cache has none. If the cache is unreachable or damaged, a warning is
            printed and the step is built locally.

        Raises:
            RecordError: an input of the step is missing.
            StorageError: the results cannot be written.
        """
        place = _place(project, step)
        if place is None:
            return ""
        key = key_of(project, step)
        root = project.paths.root
        try:
            with scratch_folder(root) as scratch:
                return self._take(_listing(step, key.digest), key, place, root, scratch)
        except (StoreError, RecordError, ValidationError) as exc:
            log.info("made here, because the cache cannot be used: %s", str(exc).replace("\n", "; "))
            return ""

    def _take(self, listing: str, key: Key, place: _RecordFile, root: Path, scratch: Path) -> str:
        """Fetch the files of a listing, check them, and install them."""
        text = self._store.read(listing, _MAX_LISTING_BYTES)
        if text is None:
            return ""
        found = CachedStep.model_validate_json(text)
        self._check(found, place.path.relative_to(root).as_posix(), listing)
        for file in (found.record, *found.files):
            self._store.fetch(_blob(file), file, scratch / file.path, lambda _: None)
        record = read_record(scratch / found.record.path, place.kind)
        listed = describe_file(scratch / found.record.path, scratch) == found.record
        if not listed or record.key != key or {*record.files} != {*found.files}:
            raise StoreError(f"{listing} of {self._store.shown} is of something else")
        install_files(scratch, root, (*found.files, found.record))
        return f"{self._store.shown}, made at {record.built_at:%Y-%m-%d %H:%M} UTC"

    def _check(self, found: CachedStep, record: str, listing: str) -> None:
        """Check that the listed files belong into the step's own folder."""
        own = PurePosixPath(record).parent
        if found.record.path != record or any(PurePosixPath(file.path).parent != own for file in found.files):
            raise StoreError(f"{listing} of {self._store.shown} names files that are not the step's")

    def offer(self, project: Project, step: Step) -> None:
        """Put a step's results into the cache; if the cache does not take them, a warning is printed.

        Failures, and results that share files with another step, stay out.
        """
        place = _place(project, step)
        if place is None:
            return
        root = project.paths.root
        try:
            record = read_record(place.path, place.kind)
            own = place.path.parent
            files = record.files
            made = not isinstance(record, Artifact) or record.outcome is Outcome.DONE
            if not made or not is_current(project, step) or any(project.file(file).parent != own for file in files):
                return
            listed = CachedStep(record=describe_file(place.path, root), files=files)
            for file in (*listed.files, listed.record):
                if self._store.size(_blob(file)) != file.bytes:
                    self._store.upload(_blob(file), root / file.path, lambda _: None)
            self._store.write(_listing(step, record.key.digest), listed.to_json().encode())
        except (StoreError, StorageError, RecordError) as exc:
            log.info("not left in the cache: %s", str(exc).replace("\n", "; "))


def _place(project: Project, step: Step) -> _RecordFile | None:
    """Return the place of a step's record; None for results that belong to one machine."""
    spec, subject = project.schedule.spec(step.stage), project.schedule.subject(step)
    if not spec.is_shared(project.plan, subject):
        return None
    (path,) = spec.records(project.paths, project.plan, subject)
    return _RecordFile(path, spec.record)


def _listing(step: Step, digest: str) -> str:
    return f"cache/results/{step.stage}/{digest}.json"


def _blob(file: FileRecord) -> str:
    return f"cache/{blob_path(file.sha256)}"
