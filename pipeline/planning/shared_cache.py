"""A step's results ↔ a cache that machines share: what one has made by a key, no other makes again.

    cache/results/<stage>/<the key's digest>.json   what a step made: its record and its files
    cache/blobs/<first two digits>/<SHA-256>        those, by their digests

What is taken has the digests that its listing says and the key that this machine has computed; the record that then
lies in artifacts/ is the maker's, with its toolchain and time. Whoever can write into the cache is trusted as a maker.
"""

from __future__ import annotations

import logging
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from model_artifacts.errors import RecordError, StorageError, StoreError
from model_artifacts.host.files import install_files, scratch_folder
from model_artifacts.host.hashes import describe_file
from model_artifacts.host.record_files import read_record
from model_artifacts.releases.objects import ObjectStore, blob_path
from pipeline.planning.freshness import is_current
from pipeline.planning.keys import key_of
from pipeline.records import Artifact, CachedStep, Outcome

if TYPE_CHECKING:
    from model_artifacts.records import FileRecord, Key, StageRecord
    from pipeline.planning.project import Project
    from pipeline.planning.steps import Step

log = logging.getLogger(__name__)

_MAX_LISTING_BYTES = 2**20


class _RecordFile(NamedTuple):
    """Where a step's record lies, and of which kind it is."""

    path: Path
    kind: type[StageRecord]


class SharedCache:
    """Where machines leave what they have made, and find what others have."""

    def __init__(self, url: str) -> None:
        """Prepare to reach it; nothing is asked yet.

        Raises:
            StoreError: no such kind of URL is known, or its package is not installed.
        """
        self._store = ObjectStore(url)

    def fetch(self, project: Project, step: Step) -> str:
        """Take a step's results from the cache, in place of what is there.

        Args:
            project: what the step is made from must be there.
            step: what to look for.

        Returns:
            where from and when they were made; empty where there are none. A cache that cannot be reached, or is
            damaged, is told of and has none: the step is made here.

        Raises:
            RecordError: what the step is made from is missing.
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
        """Fetch what a listing names, check it, and put it in its place."""
        text = self._store.read(listing, _MAX_LISTING_BYTES)
        if text is None:
            return ""
        found = CachedStep.model_validate_json(text)
        self._check(found, place.path.relative_to(root).as_posix(), listing)
        for file in (found.record, *found.files):
            self._store.fetch(_blob(file), file, scratch / file.path, lambda _: None)
        record = read_record(scratch / found.record.path, place.kind)
        if record.key != key or {*record.files} != {*found.files}:
            raise StoreError(f"{listing} of {self._store.shown} is of something else")
        install_files(scratch, root, (*found.files, found.record))
        return f"{self._store.shown}, made at {record.built_at:%Y-%m-%d %H:%M} UTC"

    def _check(self, found: CachedStep, record: str, listing: str) -> None:
        """Check that what was found lies where the step's own results lie, and nowhere else."""
        own = PurePosixPath(record).parent
        if found.record.path != record or any(PurePosixPath(file.path).parent != own for file in found.files):
            raise StoreError(f"{listing} of {self._store.shown} names files that are not the step's")

    def offer(self, project: Project, step: Step) -> None:
        """Leave a step's results where other machines find them; a cache that does not take them is told of.

        Failures are not left there, nor what shares its files with another step.
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
