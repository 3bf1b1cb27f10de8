"""Objects of a store: paths of releases and tags, and their checked reading.

    blobs/<first two digits>/<SHA-256>   files, each stored once for all releases
    releases/<SHA-256>.json              list of a release's files, named by its own digest
    tags/<name>.json                     digest of a tag's release

Blobs and listings never change; tags do.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from model_artifacts.errors import StoreError, listed
from model_artifacts.records import StoredRelease, StoreTag
from model_artifacts.releases.archive import MAX_BYTES
from model_artifacts.releases.objects import blob_path

if TYPE_CHECKING:
    from model_artifacts.releases.objects import ObjectStore

_MAX_LISTING_BYTES = 64 * 2**20
_MAX_TAG_BYTES = 4096
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
DIGEST = re.compile(r"[0-9a-f]{64}")
"""A release's SHA-256 in full."""
"""A release's SHA-256 in full."""
_LIKE_A_DIGEST = re.compile(r"(sha256[._-]?)?[0-9a-fA-F]{12,}", re.IGNORECASE)
"""Names that people, or `pull`, would take for a digest or the beginning of one, which `pull` shows in 12 digits."""


class StoredTag(NamedTuple):
    """A tag with its release's digest."""

    name: str
    release: str


class Garbage(NamedTuple):
    """Objects that no tag of a store reaches."""

    paths: tuple[str, ...]
    """Paths of those older than the grace period."""
    young: int
    """Number of younger ones, which a running push may still need."""


def listing_path(digest: str) -> str:
    """Return the path of a release's listing."""
    return f"releases/{digest}.json"


def write_tag(store: ObjectStore, tag: str, digest: str) -> None:
    """Move a tag to a release, or create it.

    Raises:
        StoreError: the store cannot be reached or refuses the write.
        StorageError: the store is a folder and cannot be written.
    """
    store.write(_tag_path(tag), StoreTag(release=digest).to_json().encode())


def _tag_path(name: str) -> str:
    return f"tags/{name}.json"


def check_tag(name: str) -> None:
    """Check that a name is valid for a tag.

    Raises:
        StoreError: the name has other characters, is too long, or looks like a digest or the beginning of one.
    """
    if not _TAG.fullmatch(name) or _LIKE_A_DIGEST.fullmatch(name):
        raise StoreError(
            f"{name!r} is no valid tag",
            expected="at most 128 letters, digits, `.`, `_` and `-`, beginning with a letter or digit, and no name "
            "that looks like a digest: 12 or more hexadecimal digits alone",
        )


def tag_names(store: ObjectStore) -> list[str]:
    """Return the names of a store's tags; temporary files of a killed push are left out.

    Names that look like digests are among them: older versions allowed some, and their releases are no garbage.

    Raises:
        StoreError: the store cannot be reached or listed.
    """
    names = [PurePosixPath(item.path).stem for item in store.objects("tags")]
    return [name for name in names if _TAG.fullmatch(name)]


def digest_of(store: ObjectStore, name: str) -> str:
    """Return the digest of a release.

    Args:
        store: the store.
        name: a tag, or a release's SHA-256, which is returned unchecked and in lower case.

    Raises:
        StoreError: the tag is invalid, missing or damaged, or the store cannot be reached.
    """
    if DIGEST.fullmatch(name.lower()):
        return name.lower()
    check_tag(name)
    return tagged_digest(store, name)


def tagged_digest(store: ObjectStore, name: str) -> str:
    """Return the digest of a tag's release, also for a name that `check_tag` would refuse.

    Raises:
        StoreError: the tag is missing or damaged, or the store cannot be reached.
    """
    path = _tag_path(name)
    text = store.read(path, _MAX_TAG_BYTES)
    if text is None:
        there = [] if store.is_web else sorted(tag_names(store))  # which tells of a missing bucket or folder
        raise StoreError(
            f"{store.shown} has no tag {name}",
            got=f"the tags {listed(there)}" if there else f"no object {path}",
            fix="list the tags with `model-artifacts tag URL`",
        )
    try:
        return StoreTag.model_validate_json(text).release
    except ValidationError as exc:
        raise StoreError(f"{path} of {store.shown} is damaged", fix="move the tag again") from exc


def read_listing(store: ObjectStore, digest: str) -> StoredRelease:
    """Return a release's listing, checked against its digest.

    Raises:
        StoreError: the listing is missing or damaged, its files are too large, or the store cannot be reached.
    """
    path = listing_path(digest)
    text = store.read(path, _MAX_LISTING_BYTES)
    if text is None:
        raise StoreError(f"{store.shown} has no release {digest}", fix="list the tags with `model-artifacts tag URL`")
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


def reachable_paths(store: ObjectStore) -> set[str]:
    """Return the paths of all listings and blobs that tags reach.

    Raises:
        StoreError: the store cannot be reached or listed, or a tag or a listing is missing or damaged.
    """
    paths = set()
    for name in tag_names(store):
        digest = tagged_digest(store, name)
        files = read_listing(store, digest).files
        paths |= {listing_path(digest), *(blob_path(file.sha256) for file in files)}
    return paths
