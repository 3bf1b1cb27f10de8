"""Releases in a store of objects: a folder, S3, Google Cloud Storage, or a web server to pull from.

`listings` describes the objects, `objects` reads and writes them.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Protocol

from model_artifacts.errors import NewerRecordError, RecordError, StoreError, UsageError
from model_artifacts.host.record_files import read_record
from model_artifacts.host.transfers import at_once
from model_artifacts.records import Manifest, model_names
from model_artifacts.releases.listings import (
    Garbage,
    StoredTag,
    digest_of,
    listing_path,
    reachable_paths,
    read_listing,
    tag_names,
    tagged_digest,
    write_tag,
)
from model_artifacts.releases.objects import ObjectStore, blob_path

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from model_artifacts.records import FileRecord, StoredRelease


class Releases(Protocol):
    """The releases of one store. A release is named by the digest of what lists its files.

    `ObjectReleases` and `OciReleases` say what each method does and raises.
    """

    shown: str

    def demand_writable(self) -> None:
        """Check that the store can be written."""

    def digest_of(self, name: str) -> str:
        """Return a release's digest by a tag or itself."""

    def read(self, digest: str) -> StoredRelease:
        """Return a release's files."""

    def fetch(self, file: FileRecord, into: Path, report: Callable[[int], None]) -> None:
        """Read a file, which appears once it is verified."""

    def check(self, digest: str, manifest: Manifest) -> None:
        """Check what the store says of a release's artifacts."""

    def missing(self, files: Sequence[FileRecord]) -> list[FileRecord]:
        """Return the files that the store lacks."""

    def upload(self, file: FileRecord, path: Path, report: Callable[[int], None]) -> None:
        """Write a file."""

    def write(self, listing: StoredRelease, manifest: Manifest, folder: Path) -> str:
        """Write what lists a release's files, and return its digest."""

    def has(self, digest: str) -> bool:
        """Return True if a release is listed."""

    def write_tag(self, tag: str, digest: str) -> None:
        """Move a tag to a release, or create it."""

    def tags(self) -> tuple[StoredTag, ...]:
        """Return the tags with their digests."""

    def collect_garbage(self, grace: timedelta, *, delete: bool) -> Garbage:
        """List, and optionally delete, what no tag reaches."""


def demand_same_model(store: Releases, tags: Sequence[str], manifest: Manifest) -> None:
    """Check that no tag would move from one model to another, under those who pull it.

    Raises:
        UsageError: one would.
    """
    ours = model_names(manifest)
    for tag in tags:
        theirs = _models_of_tag(store, tag)
        if ours and theirs and ours != theirs:
            raise UsageError(
                f"the tag {tag} names a release of another model",
                where=store.shown,
                expected=", ".join(theirs),
                got=", ".join(ours),
                fix=f"push to a store of its own, or with a tag of its own, such as `--tag {ours[0]}`",
            )


def _models_of_tag(store: Releases, tag: str) -> tuple[str, ...]:
    """Return the models of the release that a tag names; none if there is no such tag, or no such release that reads.

    Raises:
        StorageError: the manifest cannot be written to a temporary folder.
    """
    with TemporaryDirectory() as folder:
        there = Path(folder) / "manifest.json"
        try:
            listing = store.read(store.digest_of(tag))
            for file in (item for item in listing.files if item.path == there.name):
                store.fetch(file, there, lambda _: None)
            return model_names(read_record(there, Manifest))
        except (StoreError, RecordError, NewerRecordError):  # a push is what mends it
            return ()


class ObjectReleases:
    """The releases of a store, as `store` moves them."""

    def __init__(self, url: str) -> None:
        """Choose the file system of a URL; no request is sent yet.

        Args:
            url: the store's URL, or a folder.

        Raises:
            StoreError: the scheme is not supported, or its package is not installed.
        """
        self._store = ObjectStore(url)
        self.shown = self._store.shown

    def demand_writable(self) -> None:
        """Check that the store can be written.

        Raises:
            StoreError: it can only be pulled from.
        """
        self._store.demand_writable()

    def digest_of(self, name: str) -> str:
        """Return the digest of a release by a tag, or by that digest itself, as `listings.digest_of` does."""
        return digest_of(self._store, name)

    def read(self, digest: str) -> StoredRelease:
        """Return a release's files, as `listings.read_listing` does."""
        return read_listing(self._store, digest)

    def fetch(self, file: FileRecord, into: Path, report: Callable[[int], None]) -> None:
        """Read a file, as `ObjectStore.fetch` does."""
        fix = "pull again; if that fails, too, push the release again with --again"
        self._store.fetch(blob_path(file.sha256), file, into, report, fix)

    def check(self, digest: str, manifest: Manifest) -> None:
        """Do nothing: a listing says nothing of artifacts."""
        del digest, manifest

    def missing(self, files: Sequence[FileRecord]) -> list[FileRecord]:
        """Return the files that the store lacks, or has in another size.

        Raises:
            StoreError: the store cannot be reached.
        """
        sizes = at_once(lambda file: self._store.size(blob_path(file.sha256)), files)
        return [file for file, size in zip(files, sizes, strict=True) if size != file.bytes]

    def upload(self, file: FileRecord, path: Path, report: Callable[[int], None]) -> None:
        """Write a file, as `ObjectStore.upload` does."""
        self._store.upload(blob_path(file.sha256), path, report)

    def write(self, listing: StoredRelease, manifest: Manifest, folder: Path) -> str:
        """Write a release's listing and return its digest.

        Raises:
            StoreError: the store cannot be reached or refuses the write.
            StorageError: the store is a folder and cannot be written.
        """
        del manifest, folder  # the listing has all that a pull needs
        text = listing.to_json().encode()
        digest = hashlib.sha256(text).hexdigest()
        self._store.write(listing_path(digest), text)
        return digest

    def has(self, digest: str) -> bool:
        """Return True if a release's listing is there.

        Raises:
            StoreError: the store cannot be reached.
        """
        return self._store.size(listing_path(digest)) is not None

    def write_tag(self, tag: str, digest: str) -> None:
        """Move a tag to a release, or create it, as `listings.write_tag` does."""
        write_tag(self._store, tag, digest)

    def tags(self) -> tuple[StoredTag, ...]:
        """Return the tags with their digests, sorted by name.

        Raises:
            StoreError: the store cannot be reached or listed, or a tag is damaged.
        """
        return tuple(StoredTag(name, tagged_digest(self._store, name)) for name in tag_names(self._store))

    def collect_garbage(self, grace: timedelta, *, delete: bool) -> Garbage:
        """List, and optionally delete, the objects that no tag reaches, as `store.collect_garbage` says.

        Raises:
            StoreError: the store cannot be reached or listed, or a tag or a listing is damaged; nothing is deleted
                then. Also if a push moved a tag to a deleted object meanwhile.
        """
        unreached = [item for folder in ("blobs", "releases") for item in self._store.objects(folder)]
        kept = reachable_paths(self._store)
        unreached = [item for item in unreached if item.path not in kept]
        before = datetime.now(timezone.utc) - grace
        old = [item.path for item in unreached if item.changed and item.changed.astimezone(timezone.utc) < before]
        if delete:
            at_once(self._store.remove, old)
            # A push checks its files again after moving its tag. Objects deleted after that check are reported here.
            gone = [path for path in reachable_paths(self._store).intersection(old) if self._store.size(path) is None]
            if gone:
                raise StoreError(
                    "a push moved a tag to objects that were just deleted",
                    got=f"{len(gone)} objects, such as {min(gone)}",
                    fix="push that release again",
                )
        return Garbage(tuple(old), len(unreached) - len(old))
