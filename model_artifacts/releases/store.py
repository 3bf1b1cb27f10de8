"""Releases ↔ a store: a folder, S3, Google Cloud Storage, a web server to pull from, or an OCI registry.

A push writes a release's files first, then its listing, then the tags, so that readers never get a part of a release.
A pull checks every file's digest, verifies the release as `verify` does, and replaces its folder in one step.
`object_releases` and `oci.releases` know how each kind of store keeps them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from model_artifacts.deployment.files import entry_files, uncallable
from model_artifacts.deployment.loading import this_host
from model_artifacts.deployment.resolution import resolve_entry
from model_artifacts.errors import (
    MissingRecordError,
    NewerRecordError,
    RecordError,
    ReleaseError,
    StoreError,
    UsageError,
)
from model_artifacts.host.hashes import describe_file
from model_artifacts.host.record_files import read_record, write_record
from model_artifacts.host.transfers import Progress, at_once
from model_artifacts.records import LATEST, HostRelease, Manifest, StoredRelease, of_model
from model_artifacts.releases.archive import unpacked
from model_artifacts.releases.listings import Garbage, StoredTag, check_tag
from model_artifacts.releases.object_releases import ObjectReleases, demand_same_model
from model_artifacts.releases.oci.references import is_registry, reference_of
from model_artifacts.releases.oci.releases import OciReleases
from model_artifacts.releases.signature import FOR_HOST, SIGNATURE, signed_name
from model_artifacts.releases.staging import staged
from model_artifacts.releases.verification import (
    EVIDENCE,
    MANIFEST,
    check_release,
    host_release,
    verify_release,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime, timedelta
    from pathlib import Path

    from model_artifacts.deployment.requirements import Requirements
    from model_artifacts.records import FileRecord, ManifestEntry
    from model_artifacts.releases.object_releases import Releases
    from model_artifacts.releases.signature import Verifier
    from model_artifacts.releases.staging import Staged


class Pushed(NamedTuple):
    """Result of a push."""

    release: StoredRelease
    digest: str
    """SHA-256 of the release's listing."""
    sent: tuple[FileRecord, ...]
    """Files that the store did not have yet."""


class Pulled(NamedTuple):
    """Result of a pull."""

    release: StoredRelease
    digest: str
    """SHA-256 of the release's listing."""
    fetched: tuple[FileRecord, ...]
    """Files from the store; the others were installed already, or are not for this host."""
    entry: ManifestEntry | None
    """The artifact of a pull for one host; None for a whole release."""
    built_at: datetime
    """Time in the release's manifest, which a signature covers."""
    replaced: datetime | None
    """That time of the release that was installed before; None without one."""

    @property
    def is_downgrade(self) -> bool:
        """True if the release was built before the one that it replaced."""
        return self.replaced is not None and self.built_at < self.replaced


def _opened(url: str, mounted_from: str = "") -> Releases:
    """Return the releases of a store.

    Raises:
        UsageError: the store has no other repositories to mount from.
        StoreError: the URL is of no supported store.
    """
    if is_registry(url):
        return OciReleases(url, mounted_from)
    if mounted_from:
        raise UsageError("expected an oci:// registry beside --mount-from, got another store")
    return ObjectReleases(url)


def _named(url: str, name: str | None) -> str:
    """Return the tag or the digest that is asked for, which the URL of a registry may hold, too.

    Raises:
        UsageError: the URL and the option name different ones.
        StoreError: the URL has another form.
    """
    stated = reference_of(url).name if is_registry(url) else ""
    if stated and name and name != stated:
        raise UsageError(f"expected one name of a release, got {stated} in the URL and {name} beside it")
    return name or stated or LATEST


def push(url: str, release: Path, tags: Sequence[str] = (), *, again: bool = False, mounted_from: str = "") -> Pushed:
    """Verify a release, copy it to a store, then move tags to it.

    Args:
        url: the store's URL, or a folder.
        release: the release's folder or archive.
        tags: the names of the tags to move or create, besides one in a registry's URL; without any, `latest`.
        again: True also sends files that the store has already.
        mounted_from: another repository of the registry, from which files are mounted rather than sent.

    Raises:
        ReleaseError: the release fails its verification.
        UsageError: the URL names a digest, a store without repositories is to mount, or a tag is another model's.
        StoreError: the store cannot be reached or written, or a tag's name is not valid.
        StorageError: the store is a folder and cannot be written.
    """
    store = _opened(url, mounted_from)
    store.demand_writable()
    tags = tags_to_move(url, tags)
    for tag in tags:
        check_tag(tag)
    with unpacked(release) as folder:
        if host_release(folder):
            raise ReleaseError(
                f"{release} is only a part of a release, pulled for one host", fix="push the whole release"
            )
        manifest = verify_release(folder)
        demand_same_model(store, tags, manifest)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = tuple(describe_file(path, folder) for path in paths)
        name = signed_name(folder) if (folder / SIGNATURE).is_file() else ""
        listing = _listing(name or release.resolve().name.removesuffix(".tar.zst"), files)
        different = list({file.sha256: file for file in files}.values())
        missing = different if again else store.missing(different)
        _send(store, folder, missing)
        digest = store.write(listing, manifest, folder)
        for tag in tags:
            store.write_tag(tag, digest)
        # A garbage collection by the former tags may have removed files meanwhile. From here on, tags reach them.
        _send(store, folder, store.missing(different))
        if not store.has(digest):
            store.write(listing, manifest, folder)
            for tag in tags:
                store.write_tag(tag, digest)
    return Pushed(listing, digest, tuple(missing))


def _listing(name: str, files: tuple[FileRecord, ...]) -> StoredRelease:
    """Return a release's listing.

    Raises:
        ReleaseError: a path or the name is one that no pull would accept.
    """
    try:
        return StoredRelease(name=name, files=files)
    except ValidationError as exc:
        raise ReleaseError(
            "the release cannot be listed in a store", got=exc.errors(include_url=False)[0]["msg"]
        ) from exc


def tags_to_move(url: str, tags: Sequence[str]) -> tuple[str, ...]:
    """Return the tags that a push moves: one in a registry's URL and others; without any, `latest`.

    Raises:
        UsageError: the URL names a digest.
        StoreError: the URL has another form.
    """
    reference = reference_of(url) if is_registry(url) else None
    if reference and reference.digest:
        raise UsageError("expected a tag in the URL, got a digest: only the release itself tells that")
    stated = (reference.tag,) if reference and reference.tag else ()
    return tuple(dict.fromkeys((*stated, *tags))) or (LATEST,)


def _send(store: Releases, folder: Path, files: Sequence[FileRecord]) -> None:
    with Progress("pushing", files) as report:
        at_once(lambda file: store.upload(file, folder / file.path, report), files, report.cancel)


def pull(  # noqa: PLR0913 - five of them have a default
    url: str,
    folder: Path,
    name: str | None = None,
    verifier: Verifier | None = None,
    for_host: Requirements | None = None,
    *,
    no_downgrade: bool = False,
) -> Pulled:
    """Fetch a release from a store, verify it, then install it in one step.

    An earlier release in the folder stays until then, and stays if anything fails. An interrupted pull is resumed.

    Args:
        url: the store's URL, or a folder.
        folder: the folder to install to: absent, empty, or the folder of an earlier pull. No mount point.
        name: a tag, or a release's SHA-256; None takes the one in a registry's URL, or else `latest`.
        verifier: the required signature; None checks no signature, so that the release's origin stays unproven.
        for_host: the requirements by which `resolve` chooses the only artifact to fetch, beside the evidence; None
            fetches all artifacts.
        no_downgrade: True refuses a release that was built before the installed one, by the time in both manifests.
            It needs a verifier, because only a signature proves that time.

    Raises:
        UsageError: `no_downgrade` without a verifier, or a name besides another one in the URL.
        ReleaseError: the release fails its verification, the signature is missing or another signer's, the release
            was signed under another name, or it is older than the installed one.
        ResolveError: no artifact suits this host.
        StoreError: the store cannot be reached, or its objects are missing, damaged or would leave the folder.
        StorageError: the folder cannot be written, is a mount point, or its disk is too full.
    """
    if no_downgrade and verifier is None:
        raise UsageError("expected a key or an identity beside no_downgrade: only a signature proves a release's age")
    store = _opened(url)
    digest = store.digest_of(_named(url, name))
    listing = store.read(digest)
    with staged(folder, digest) as place:
        files = _Files(store, listing, place)
        wanted = {file.path for file in listing.files} - {FOR_HOST}
        files.fetch(wanted & EVIDENCE)
        manifest = check_release(place.path, verifier, partial=True)  # before anything large is fetched
        store.check(digest, manifest)
        if verifier:
            _check_name(listing, place.path)
        former = _installed_at(folder, no_downgrade=no_downgrade)
        if no_downgrade and former:
            _check_age(listing, manifest.built_at, former)
        entry = None
        if for_host is not None:
            only = of_model(manifest)  # no artifact of another model may be chosen
            entry = resolve_entry(only, this_host(), for_host, uncallable(only)).entry
            wanted = (wanted & EVIDENCE) | files.of_entry(entry)
        files.fetch(wanted)
        place.keep_only(wanted)
        check_release(place.path, verifier, partial=entry is not None)
        if entry:
            part = HostRelease(artifact=entry.id, paths=tuple(sorted(wanted)))
            write_record(place.path / FOR_HOST, part)
        place.install()
    return Pulled(listing, digest, tuple(files.fetched), entry, manifest.built_at, former)


def _check_age(listing: StoredRelease, built_at: datetime, former: datetime) -> None:
    """Check that a release was not built before the installed one.

    Raises:
        ReleaseError: it was.
    """
    if built_at < former:
        raise ReleaseError(
            f"{listing.name} is older than the installed release, which is kept",
            expected=f"built at {former:%Y-%m-%d %H:%M:%S} UTC or later",
            got=f"built at {built_at:%Y-%m-%d %H:%M:%S} UTC",
            fix="find out who moved the tag, and move it to the newest release",
        )


def _check_name(listing: StoredRelease, folder: Path) -> None:
    """Check that the store lists a release under the name that its signature covers.

    Raises:
        ReleaseError: the names differ.
    """
    signed = signed_name(folder)
    if signed and signed != listing.name:
        raise ReleaseError(
            "the store lists a release under another name than it was signed with",
            expected=signed,
            got=listing.name,
            fix="do not use it; push the release again",
        )


def _installed_at(folder: Path, *, no_downgrade: bool) -> datetime | None:
    """Return the time at which the installed release was built; None without one.

    Raises:
        RecordError: `no_downgrade` is True, and its manifest is damaged.
    """
    try:
        return read_record(folder / MANIFEST, Manifest, fix="remove the folder, if nothing in it is needed").built_at
    except MissingRecordError:
        return None
    except (RecordError, NewerRecordError):
        if no_downgrade:
            raise
        return None


class _Files:
    """Files of a release, fetched into a staging folder."""

    def __init__(self, store: Releases, listing: StoredRelease, place: Staged) -> None:
        self._store = store
        self._by_path = {file.path: file for file in listing.files}
        self._place = place
        self.fetched: list[FileRecord] = []
        """Files fetched from the store so far."""

    def fetch(self, paths: Iterable[str]) -> None:
        """Fetch the files that are not staged yet.

        Raises:
            StoreError: an object is missing or damaged, or the store cannot be reached.
            StorageError: a file cannot be written.
        """
        files = [self._by_path[path] for path in sorted(paths) if path in self._by_path]
        missing = [file for file in files if not self._place.has(file)]
        self._place.demand_space(sum(file.bytes for file in missing))
        with Progress("pulling", missing) as report:
            at_once(lambda file: self._fetch(file, report), missing, report.cancel)
        self.fetched += missing

    def _fetch(self, file: FileRecord, report: Callable[[int], None]) -> None:
        self._store.fetch(file, self._place.part(file), report)
        self._place.take(file)

    def of_entry(self, entry: ManifestEntry) -> set[str]:
        """Return the paths of an artifact's files, and fetch its own file, which may name others.

        Raises:
            StoreError: the release lacks the artifact's file, or the file cannot be fetched.
            RecordError: a recipe is damaged.
        """
        if entry.file is None or entry.file.path not in self._by_path:
            raise StoreError(f"the release has no file of {entry.id}", fix="do not use it")
        self.fetch([entry.file.path])
        return {file.path for file in entry_files(entry, self._place.path)} & self._by_path.keys()


def read_tags(url: str) -> tuple[StoredTag, ...]:
    """Return the tags of a store, sorted by name.

    Raises:
        StoreError: the store cannot be reached or listed, or a tag is damaged.
    """
    return _opened(url).tags()


def move_tag(url: str, tag: str, to: str) -> str:
    """Move a tag to a release of the store, or create it.

    Args:
        url: the store's URL, or a folder.
        tag: the tag's name.
        to: another tag, or a release's SHA-256.

    Returns:
        the release's digest.

    Raises:
        StoreError: there is no such release, the tag's name is not valid, or the store cannot be reached or written.
        StorageError: the store is a folder and cannot be written.
    """
    store = _opened(url)
    store.demand_writable()
    check_tag(tag)
    digest = store.digest_of(to)
    store.read(digest)
    store.write_tag(tag, digest)
    return digest


def collect_garbage(url: str, grace: timedelta, *, delete: bool = False) -> Garbage:
    """List, and optionally delete, the objects that no tag reaches and that are older than a grace period.

    Args:
        url: the store's URL, or a folder.
        grace: the least age of garbage; younger objects may belong to a running push, which writes its tag last.
        delete: True deletes the garbage. A release without a tag can then no longer be pulled by its digest.

    Raises:
        StoreError: the store cannot be reached or listed, or a tag or a listing is damaged; nothing is deleted then.
            Also if a push moved a tag to a deleted object meanwhile.
    """
    store = _opened(url)
    store.demand_writable()
    return store.collect_garbage(grace, delete=delete)
