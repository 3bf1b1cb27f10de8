"""Releases ↔ a store: a folder, S3, Google Cloud Storage, or any web server to pull from.

    blobs/<first two digits>/<SHA-256>   the files, each once, whichever releases have them
    releases/<SHA-256>.json              what a release consists of; its name is its own digest
    tags/<name>.json                     which release a name stands for: the only objects that change

A release is listed after its files are there, and a tag moves after that: readers never see half of one. What is pulled
is checked byte by byte, verified as `verify` does, and takes its folder's place in one step.
"""

from __future__ import annotations

import hashlib
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from pydantic import ValidationError

from model_artifacts.deployment.loading import read_manifest, this_host
from model_artifacts.deployment.resolution import resolve_entry
from model_artifacts.errors import StoreError
from model_artifacts.host.hashes import describe_file
from model_artifacts.host.progress import Bars
from model_artifacts.records import LATEST, StoredRelease, StoreTag
from model_artifacts.releases.archive import MAX_BYTES, unpacked
from model_artifacts.releases.objects import ObjectStore, blob_path
from model_artifacts.releases.staging import staged
from model_artifacts.releases.verification import EVIDENCE, check_release, entry_files, verify_release

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from model_artifacts.deployment.resolution import Requirements
    from model_artifacts.records import FileRecord, ManifestEntry
    from model_artifacts.releases.signature import Verifier
    from model_artifacts.releases.staging import Staged

T = TypeVar("T")
R = TypeVar("R")

_AT_ONCE = 8
_MAX_LISTING_BYTES = 64 * 2**20
_MAX_TAG_BYTES = 4096
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Pushed(NamedTuple):
    """What a push did."""

    release: StoredRelease
    digest: str
    sent: tuple[FileRecord, ...]
    """The others were there."""


class Pulled(NamedTuple):
    """What a pull did."""

    release: StoredRelease
    digest: str
    fetched: tuple[FileRecord, ...]
    """The others were taken from what was installed before, or are not for this host."""
    entry: ManifestEntry | None
    """The one that was pulled, where it was for one host."""


class StoredTag(NamedTuple):
    """A name, and the digest of the release that it stands for."""

    name: str
    release: str


class Garbage(NamedTuple):
    """What no tag of a store reaches."""

    paths: tuple[str, ...]
    young: int
    """How many more were left because they are too new: of a push that goes on, perhaps."""


def push(url: str, release: Path, tags: Sequence[str] = (LATEST,), *, again: bool = False) -> Pushed:
    """Put a release into a store, and then let tags stand for it.

    Args:
        url: the store.
        release: a release's folder or archive, which is verified first.
        tags: the names to move.
        again: send also what is there already.

    Raises:
        ReleaseError: the release is not what it says it is.
        StoreError: the store cannot be reached, or not be written.
        StorageError: the same, of a folder.
    """
    store = ObjectStore(url)
    store.demand_writable()
    for tag in tags:
        _check_tag(tag)
    with unpacked(release) as folder:
        verify_release(folder)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = tuple(describe_file(path, folder) for path in paths)
        listing = StoredRelease(name=release.name.removesuffix(".tar.zst"), files=files)
        different = list({file.sha256: file for file in files}.values())
        missing = different if again else _missing(store, different)
        _send(store, folder, missing)
        text = listing.to_json().encode()
        digest = hashlib.sha256(text).hexdigest()
        store.write(_listing(digest), text)
        for tag in tags:
            store.write(_tag(tag), StoreTag(release=digest).to_json().encode())
        # Garbage that was collected meanwhile, by tags of before, may be what was there; from here on, tags reach it.
        _send(store, folder, _missing(store, different))
        if store.size(_listing(digest)) is None:
            store.write(_listing(digest), text)
    return Pushed(listing, digest, tuple(missing))


def _missing(store: ObjectStore, files: Sequence[FileRecord]) -> list[FileRecord]:
    """Return which files a store does not have in their size."""
    sizes = _at_once(lambda file: store.size(blob_path(file.sha256)), files)
    return [file for file, size in zip(files, sizes, strict=True) if size != file.bytes]


def _send(store: ObjectStore, folder: Path, files: Sequence[FileRecord]) -> None:
    with _Progress("pushing", files) as told:
        _at_once(lambda file: store.upload(blob_path(file.sha256), folder / file.path, told), files)


def pull(
    url: str,
    folder: Path,
    name: str = LATEST,
    verifier: Verifier | None = None,
    for_host: Requirements | None = None,
) -> Pulled:
    """Install a release of a store in a folder: verified first, and then in one step.

    What was installed before stays until then, whatever goes wrong. What a broken pull has fetched, the next one uses.

    Args:
        url: the store.
        folder: what becomes the release; what is there must be one that was pulled before, or empty.
        name: a tag, or a release's SHA-256.
        verifier: whose signature is demanded; None demands none, and then nobody vouches for what is pulled.
        for_host: take only the artifact that `resolve` picks for this host by such a requirements, beside the evidence; None
            takes everything.

    Raises:
        ReleaseError: it is not what it says it is, or the signature that is demanded is missing or another's.
        ResolveError: no artifact suits this host.
        StoreError: the store cannot be reached, or what it holds is damaged or leads out of the folder.
        StorageError: the folder cannot be written.
    """
    store = ObjectStore(url)
    digest = _digest_of(store, name)
    listing = _read_listing(store, digest)
    with staged(folder, digest) as place:
        files = _Files(store, listing, place)
        wanted = {file.path for file in listing.files}
        entry = None
        if for_host is not None:
            files.fetch(wanted & EVIDENCE)
            check_release(place.path, verifier, partial=True)  # before anything large is fetched
            entry = resolve_entry(read_manifest(place.path), this_host(), for_host).entry
            wanted = (wanted & EVIDENCE) | files.of_entry(entry)
        files.fetch(wanted)
        place.keep_only(wanted)
        check_release(place.path, verifier, partial=for_host is not None)
        place.install()
    return Pulled(listing, digest, tuple(files.fetched), entry)


class _Files:
    """Fetches the files of a release into a folder; remembers which."""

    def __init__(self, store: ObjectStore, listing: StoredRelease, place: Staged) -> None:
        self._store = store
        self._by_path = {file.path: file for file in listing.files}
        self._place = place
        self.fetched: list[FileRecord] = []

    def fetch(self, paths: Iterable[str]) -> None:
        """Fetch those that are not there yet."""
        files = [self._by_path[path] for path in sorted(paths) if path in self._by_path]
        missing = [file for file in files if not self._place.has(file)]
        with _Progress("pulling", missing) as told:
            _at_once(lambda file: self._fetch(file, told), missing)
        self.fetched += missing

    def _fetch(self, file: FileRecord, told: Callable[[int], None]) -> None:
        fix = "run this again; where it stays so, push the release again with --again"
        self._store.fetch(blob_path(file.sha256), file, self._place.path / file.path, told, fix)

    def of_entry(self, entry: ManifestEntry) -> set[str]:
        """Return the paths of an artifact's files, of which some are named by others."""
        if entry.file is None or entry.file.path not in self._by_path:
            raise StoreError(f"the release does not have the file of {entry.id}", fix="do not use it")
        self.fetch([entry.file.path])
        return {file.path for file in entry_files(entry, self._place.path)} & self._by_path.keys()


def read_tags(url: str) -> tuple[StoredTag, ...]:
    """Return the tags of a store, sorted by name.

    Raises:
        StoreError: the store cannot be reached or listed, or a tag is damaged.
    """
    store = ObjectStore(url)
    return tuple(StoredTag(name, _digest_of(store, name)) for name in _tag_names(store))


def _tag_names(store: ObjectStore) -> list[str]:
    """Return the tags that a store has; what a push that was killed has left of one is none."""
    names = [PurePosixPath(item.path).stem for item in store.objects("tags")]
    return [name for name in names if _is_tag(name)]


def move_tag(url: str, tag: str, to: str) -> str:
    """Let a tag stand for a release that is there, and return the release's digest.

    Args:
        url: the store.
        tag: the name to move, or to make.
        to: another tag, or a release's SHA-256.

    Raises:
        StoreError: there is no such release, or the store cannot be reached or written.
    """
    store = ObjectStore(url)
    store.demand_writable()
    _check_tag(tag)
    digest = _digest_of(store, to)
    _read_listing(store, digest)
    store.write(_tag(tag), StoreTag(release=digest).to_json().encode())
    return digest


def collect_garbage(url: str, grace: timedelta, *, delete: bool = False) -> Garbage:
    """Return, or delete, what no tag of a store reaches, and nothing that is younger than a grace.

    Args:
        url: the store.
        grace: a push writes its files before its tag; they are not garbage.
        delete: whether it goes; once deleted, a release can no longer be pulled by its digest.

    Raises:
        StoreError: the store cannot be reached or listed, or a tag or a listing is damaged: then nothing is deleted.
            Or a push has just let a tag stand for what was deleted.
    """
    store = ObjectStore(url)
    store.demand_writable()
    unreached = [item for folder in ("blobs", "releases") for item in store.objects(folder)]
    kept = _reached(store)
    unreached = [item for item in unreached if item.path not in kept]
    before = datetime.now(timezone.utc) - grace
    old = [item.path for item in unreached if item.changed and item.changed.astimezone(timezone.utc) < before]
    if delete:
        _at_once(store.remove, old)
        # A push whose tag moved since sends again what it then finds gone; what it did not find gone is told here.
        gone = [path for path in _reached(store).intersection(old) if store.size(path) is None]
        if gone:
            what = "a push has let a tag stand for what was just deleted"
            raise StoreError(what, got=f"{len(gone)} objects, such as {min(gone)}", fix="push that release again")
    return Garbage(tuple(old), len(unreached) - len(old))


def _reached(store: ObjectStore) -> set[str]:
    """Return the paths of all objects that tags reach."""
    paths = set()
    for name in _tag_names(store):
        digest = _digest_of(store, name)
        files = _read_listing(store, digest).files
        paths |= {_listing(digest), *(blob_path(file.sha256) for file in files)}
    return paths


def _digest_of(store: ObjectStore, name: str) -> str:
    """Return the digest of a release by a tag, or by itself."""
    if _DIGEST.fullmatch(name):
        return name
    _check_tag(name)
    path = _tag(name)
    text = store.read(path, _MAX_TAG_BYTES)
    if text is None:
        raise StoreError(f"{store.shown} has no tag {name}", fix="`model-artifacts tag URL` lists them")
    try:
        return StoreTag.model_validate_json(text).release
    except ValidationError as exc:
        raise StoreError(f"{path} of {store.shown} is damaged", fix="move the tag again") from exc


def _read_listing(store: ObjectStore, digest: str) -> StoredRelease:
    """Return what a release consists of, once that is what its digest says."""
    path = _listing(digest)
    text = store.read(path, _MAX_LISTING_BYTES)
    if text is None:
        raise StoreError(f"{store.shown} has no release {digest}", fix="`model-artifacts tag URL` lists what there is")
    got = hashlib.sha256(text).hexdigest()
    if got != digest:
        raise StoreError(f"{path} of {store.shown} is damaged", expected=f"SHA-256 {digest}", got=f"SHA-256 {got}")
    try:
        listing = StoredRelease.model_validate_json(text)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        raise StoreError(f"{path} of {store.shown} lists no release", got=first["msg"], fix="do not use it") from exc
    if listing.total_bytes > MAX_BYTES:
        expected = f"at most {MAX_BYTES:,} bytes"
        raise StoreError(f"{listing.name} is too large", expected=expected, got=f"{listing.total_bytes:,} bytes")
    return listing


def _is_tag(name: str) -> bool:
    return bool(_TAG.fullmatch(name)) and not _DIGEST.fullmatch(name)


def _check_tag(name: str) -> None:
    if not _is_tag(name):
        raise StoreError(
            f"{name!r} is no name for a tag", expected="letters, digits, `.`, `_` and `-`, 128 at most, and no digest"
        )


def _listing(digest: str) -> str:
    return f"releases/{digest}.json"


def _tag(name: str) -> str:
    return f"tags/{name}.json"


def _at_once(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Do something with each of many things, several at a time; the first failure ends it."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


class _Progress:
    """A bar of megabytes, which several threads move. A context manager."""

    def __init__(self, doing: str, files: Iterable[FileRecord]) -> None:
        self._phase = f"{doing}, MB"
        self._total = sum(file.bytes for file in files)
        self._done = 0
        self._lock = threading.Lock()
        self._bars = Bars()

    def __enter__(self) -> Callable[[int], None]:
        self._bars.__enter__()
        self._bars.start(self._phase, None, _megabytes(self._total))
        return self._more

    def __exit__(self, *_: object) -> None:
        self._bars.finish(self._phase)
        self._bars.__exit__()

    def _more(self, count: int) -> None:
        with self._lock:
            self._done += count
            done = self._done
        self._bars.step(self._phase, _megabytes(done))


def _megabytes(count: int) -> int:
    return round(count / 1e6)
