"""Releases in a repository of an OCI registry, as `store` moves them.

A push writes blobs, then the manifests that name them, then the index, then what refers to it, and the tags last. So
readers never get a part of a release. A pull fixes the index's digest first, and everything else follows from it.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from model_artifacts.deployment.files import entry_files
from model_artifacts.errors import StoreError, listed
from model_artifacts.host.transfers import at_once
from model_artifacts.releases.listings import DIGEST, Garbage, StoredTag, check_tag
from model_artifacts.releases.oci.documents import (
    EMPTY,
    EMPTY_TYPE,
    INDEX_TYPE,
    MANIFEST_TYPE,
    Descriptor,
    ImageIndex,
    ImageManifest,
    describe,
    parsed,
)
from model_artifacts.releases.oci.layout import RELEASE_TYPE, check_offers, documents_of, index_of, listing_of
from model_artifacts.releases.oci.mirrors import MirroredRegistry
from model_artifacts.releases.oci.references import check_repository, reference_of
from model_artifacts.releases.oci.registry import Registry, Stored
from model_artifacts.releases.signature import SIGNATURE
from model_artifacts.releases.verification import BILL, PROVENANCE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from model_artifacts.records import FileRecord, Manifest, StoredRelease

_REFERRERS = {
    SIGNATURE: "application/vnd.dev.sigstore.bundle.v0.3+json",
    BILL: "application/vnd.cyclonedx+json",
    PROVENANCE: "application/vnd.in-toto+json",
}
"""Types of the evidence that other tools look for beside an image, by the file that holds it."""
_FALLBACK = re.compile(r"sha256-([0-9a-f]{64})")
"""Tag of the list of referrers, where the registry keeps none: the referrers tag schema of OCI 1.1."""
_PUSHED = "dev.model-artifacts.pushed"
"""Annotation of that list: the time of the last push, by which garbage is young or old."""


class OciReleases:
    """The releases of one repository."""

    def __init__(self, url: str, mounted_from: str = "") -> None:
        """Read the URL; no request is sent yet.

        Args:
            url: the repository's URL; a tag or a digest in it is not looked at.
            mounted_from: another repository of the registry, from which blobs are mounted rather than sent.

        Raises:
            StoreError: the URL or the other repository has another form, or `requests` is not installed.
        """
        if mounted_from:
            check_repository(mounted_from)
        reference = reference_of(url)
        self._registry = Registry(reference)
        self._mirrored = MirroredRegistry(reference, self._registry)
        self.shown = self._registry.shown
        self._mounted_from = mounted_from
        self._indexes: dict[str, bytes] = {}

    def demand_writable(self) -> None:
        """Do nothing: only the registry itself knows who may write."""

    # Reading.

    def digest_of(self, name: str) -> str:
        """Return the SHA-256 of a release's index.

        Args:
            name: a tag, or that digest, which is returned unchecked and in lower case.

        Raises:
            StoreError: there is no such tag, or the registry cannot be reached.
        """
        if DIGEST.fullmatch(name.lower()):
            return name.lower()
        check_tag(name)
        if (digest := self._mirrored.digest_of(name)) is None:
            there = [tag for tag in self._registry.tags() if not _FALLBACK.fullmatch(tag)]
            raise StoreError(
                f"{self.shown} has no tag {name}",
                got=f"the tags {listed(there)}" if there else "no such repository, or no tag in it",
                fix="list the tags with `model-artifacts tag URL`",
            )
        return digest

    def index(self, digest: str) -> ImageIndex:
        """Return a release's index.

        Raises:
            StoreError: it is missing or is no release's, or the registry cannot be reached.
        """
        return index_of(self._index_bytes(digest), f"{self.shown}@sha256:{digest}")

    def _index_bytes(self, digest: str) -> bytes:
        if digest not in self._indexes:
            stored = self._mirrored.manifest(f"sha256:{digest}")
            if stored is None:
                fix = "list the tags with `model-artifacts tag URL`"
                raise StoreError(f"{self.shown} has no release {digest}", fix=fix)
            self._indexes[digest] = stored.data
        return self._indexes[digest]

    def read(self, digest: str) -> StoredRelease:
        """Return a release's files, from its index and all its manifests.

        Raises:
            StoreError: a document is missing, damaged or is no release's, or the registry cannot be reached.
        """
        index = self.index(digest)
        where = f"{self.shown}@sha256:{digest}"
        return listing_of(index, at_once(self._image, index.manifests), where)

    def _image(self, item: Descriptor) -> ImageManifest:
        stored = self._mirrored.manifest(item.digest, item.size)
        if stored is None:
            raise StoreError(f"{self.shown} lacks a manifest of the release", got=item.digest, fix="push it again")
        return parsed(ImageManifest, stored.data, f"{self.shown}@{item.digest}")

    def fetch(self, file: FileRecord, into: Path, report: Callable[[int], None]) -> None:
        """Read a file, as `MirroredRegistry.fetch` does."""
        fix = "pull again; if that fails, too, the registry's disk is damaged: repair it, and push the release again"
        self._mirrored.fetch(file, into, report, fix)

    def check(self, digest: str, manifest: Manifest) -> None:
        """Check that the index describes the artifacts as the release's manifest does.

        Raises:
            ReleaseError: it does not.
            StoreError: the description is damaged.
        """
        check_offers(self.index(digest), manifest, f"{self.shown}@sha256:{digest}")

    # Writing.

    def missing(self, files: Sequence[FileRecord]) -> list[FileRecord]:
        """Return the files that the repository lacks, or has in another size.

        Raises:
            StoreError: the registry cannot be reached.
        """
        sizes = at_once(lambda file: self._registry.blob_bytes(file.sha256), files)
        return [file for file, size in zip(files, sizes, strict=True) if size != file.bytes]

    def upload(self, file: FileRecord, path: Path, report: Callable[[int], None]) -> None:
        """Write a file as a blob.

        Raises:
            StoreError: the registry cannot be reached or refuses it.
        """
        self._registry.upload(file.sha256, file.bytes, path, report, self._mounted_from)

    def write(self, listing: StoredRelease, manifest: Manifest, folder: Path) -> str:
        """Write a release's documents, whose blobs are there, and return the digest of its index.

        Raises:
            ReleaseError: the release has no artifact, or too many.
            StoreError: the registry refuses a document, or cannot be reached.
        """
        parts = {entry.id: entry_files(entry, folder) for entry in manifest.artifacts}
        documents = documents_of(listing, manifest, parts)
        at_once(self._registry.write, documents.configs)
        at_once(lambda image: self._put(image, MANIFEST_TYPE), documents.manifests)
        subject = self._put(documents.release, INDEX_TYPE)
        self._indexes[subject.sha256] = documents.release
        self._refer(subject, listing)
        return subject.sha256

    def _put(self, data: bytes, media_type: str) -> Descriptor:
        described = describe(data, media_type)
        self._registry.put_manifest(described.digest, Stored(data, media_type))
        return described

    def _refer(self, subject: Descriptor, listing: StoredRelease) -> None:
        """Write the evidence as referrers of the index, and their list where the registry keeps none."""
        self._registry.write(EMPTY)
        referrers, kept = [], True
        for file in listing.files:
            if file.path not in _REFERRERS:
                continue
            kind = _REFERRERS[file.path]
            title = {"org.opencontainers.image.title": file.path}
            layer = Descriptor(media_type=kind, digest=f"sha256:{file.sha256}", size=file.bytes, annotations=title)
            data = ImageManifest(
                artifact_type=kind, config=describe(EMPTY, EMPTY_TYPE), layers=(layer,), subject=subject
            ).to_bytes()
            described = describe(data, MANIFEST_TYPE)
            kept &= self._registry.put_manifest(described.digest, Stored(data, MANIFEST_TYPE))
            referrers.append(described.model_copy(update={"artifact_type": kind}))
        if not kept:
            self._list_referrers(subject, referrers)

    def _list_referrers(self, subject: Descriptor, ours: Sequence[Descriptor]) -> None:
        """Add referrers to the list at the fallback tag, beside those of other tools."""
        tag = f"sha256-{subject.sha256}"
        stored = self._registry.manifest(tag)
        there = parsed(ImageIndex, stored.data, f"{self.shown}:{tag}").manifests if stored else ()
        known = {item.digest for item in ours}
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        merged = (*(item for item in there if item.digest not in known), *ours)
        data = ImageIndex(manifests=merged, annotations={_PUSHED: now}).to_bytes()
        self._registry.put_manifest(tag, Stored(data, INDEX_TYPE))

    def has(self, digest: str) -> bool:
        """Return True if a release's index is there, and all its manifests.

        Raises:
            StoreError: the registry cannot be reached.
        """
        wanted = [digest, *self._parts(digest)]
        return wanted == at_once(lambda sha256: self._registry.digest_of(f"sha256:{sha256}"), wanted)

    def write_tag(self, tag: str, digest: str) -> None:
        """Move a tag to a release, or create it.

        Raises:
            StoreError: there is no such release, or the registry cannot be reached or refuses the write.
        """
        self._registry.put_manifest(tag, Stored(self._index_bytes(digest), INDEX_TYPE))

    # Tags and garbage.

    def tags(self) -> tuple[StoredTag, ...]:
        """Return the tags with their digests, sorted by name; lists of referrers are left out.

        Raises:
            StoreError: the registry cannot be reached.
        """
        names = [tag for tag in self._registry.tags() if not _FALLBACK.fullmatch(tag)]
        digests = at_once(self._registry.digest_of, names)
        return tuple(StoredTag(name, digest) for name, digest in zip(names, digests, strict=True) if digest)

    def collect_garbage(self, grace: timedelta, *, delete: bool) -> Garbage:
        """List, and optionally delete, the manifests of releases that no tag reaches.

        A registry lists no manifests without a tag. Those of a release are found by its list of referrers. The blobs
        go when the registry collects its own garbage.

        Args:
            grace: the least time since the last push of a release.
            delete: True deletes the manifests.

        Raises:
            StoreError: the registry keeps referrers itself, refuses removals or cannot be reached, a document is
                damaged, or a push moved a tag to a deleted release meanwhile.
        """
        if self._registry.keeps_referrers():
            raise StoreError(
                f"{self.shown}: this registry keeps referrers itself, so that releases without a tag cannot be found",
                fix="use the registry's own rules of retention",
            )
        fallbacks = [tag for tag in self._registry.tags() if _FALLBACK.fullmatch(tag)]
        tags = self.tags()
        tagged = sorted({tag.release for tag in tags})
        kept = {*tagged, *(sha256 for digest in tagged for sha256 in self._parts(digest))}
        before = datetime.now(timezone.utc) - grace
        old: list[str] = []
        young: set[str] = set()
        for tag in fallbacks:
            release = tag.removeprefix("sha256-")
            stored = self._registry.manifest(tag)
            if release in kept or stored is None or stored.media_type != INDEX_TYPE:
                continue
            referrers = parsed(ImageIndex, stored.data, f"{self.shown}:{tag}")
            if not self._is_ours(release, referrers):
                continue
            parts = [*self._parts(release), release, *(item.sha256 for item in referrers.manifests), stored.sha256]
            if self._pushed(referrers) < before:
                old += parts
            else:
                young.update(parts)
        old = [sha256 for sha256 in dict.fromkeys(old) if sha256 not in kept | young]
        if delete:
            self._delete(old, {tag.name for tag in tags})
        return Garbage(tuple(f"manifests/sha256:{sha256}" for sha256 in old), len(young - kept))

    def _delete(self, old: Sequence[str], names: set[str]) -> None:
        """Delete manifests, unless a push has just made use of one; tell of a push that was too late to be seen.

        Args:
            old: the digests of the manifests.
            names: the names of the tags when the digests were found.

        Raises:
            StoreError: a tag names one of them, or has gone with one.
        """
        fix = "push that release again"
        if used := [tag.name for tag in self.tags() if tag.release in old]:
            raise StoreError(
                "a push has just moved a tag to a release that was garbage; nothing was deleted", got=used[0]
            )
        for sha256 in old:
            self._registry.remove_manifest(sha256)
        left = {tag.name: tag.release for tag in self.tags()}
        if gone := sorted({*(names - left.keys()), *(name for name, release in left.items() if release in old)}):
            raise StoreError("a push moved a tag to a release that was just deleted", got=listed(gone), fix=fix)

    def _parts(self, digest: str) -> list[str]:
        """Return the digests of the manifests that an index lists; none for one manifest, and for a missing one."""
        stored = self._registry.manifest(f"sha256:{digest}")
        if stored is None or stored.media_type != INDEX_TYPE:
            return []
        where = f"{self.shown}@sha256:{digest}"
        return [item.sha256 for item in parsed(ImageIndex, stored.data, where).manifests]

    def _is_ours(self, digest: str, referrers: ImageIndex) -> bool:
        """Return True for a release that a push of this package has made; others' images may refer to nothing, too."""
        stored = self._registry.manifest(f"sha256:{digest}")
        if _PUSHED not in referrers.annotations or (stored and stored.media_type != INDEX_TYPE):
            return False
        where = f"{self.shown}@sha256:{digest}"
        return stored is None or parsed(ImageIndex, stored.data, where).artifact_type == RELEASE_TYPE

    def _pushed(self, referrers: ImageIndex) -> datetime:
        """Return the time of the last push of a release; now if its list does not tell, so that it stays."""
        try:
            return datetime.fromisoformat(referrers.annotations[_PUSHED]).astimezone(timezone.utc)
        except (KeyError, ValueError):
            return datetime.now(timezone.utc)
