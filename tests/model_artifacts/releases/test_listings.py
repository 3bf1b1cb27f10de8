"""Names of releases in a store: tags and digests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import StoreError
from model_artifacts.records import LATEST, StoredRelease
from model_artifacts.releases.listings import digest_of
from model_artifacts.releases.objects import ObjectStore
from model_artifacts.releases.store import collect_garbage, move_tag, pull, push, read_tags
from tests.model_artifacts.releases.test_store import NOW

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.stages.release.stage import Release

LIKE_A_DIGEST = ["ab" * 32, "AB" * 32, "0123abcd4567", "c" * 40, "sha256-0123abcd4567", "123456789012"]


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a" * 129, "ü", *LIKE_A_DIGEST])
def test_names_that_are_no_tags_are_refused(store: Path, released: Release, name: str) -> None:
    """Invalid names, and names that look like a digest or its beginning, are refused before anything is sent."""
    with pytest.raises(StoreError, match="is no valid tag"):
        push(str(store), released.folder, [name])
    assert not store.exists()


@pytest.mark.parametrize("name", ["v1.2.3", "20241128", "2024-11-28", "cafe", "latest-h100", "feedbeefx" * 3])
def test_usual_names_are_tags(store: Path, released: Release, name: str) -> None:
    """Versions, dates and words, even of hexadecimal digits, if they are short."""
    digest = push(str(store), released.folder, [name]).digest
    assert digest_of(ObjectStore(str(store)), name) == digest


def test_a_digest_is_taken_in_capitals(store: Path, released: Release, tmp_path: Path) -> None:
    """No tag is looked for: a planted one of that name stands for nothing."""
    digest = push(str(store), released.folder).digest
    planted = json.dumps({"schema_version": 1, "release": "0" * 64})
    for name in (digest, digest.upper()):
        (store / f"tags/{name}.json").write_text(planted)
        assert pull(str(store), tmp_path / "models", name).digest == digest
        (store / f"tags/{name}.json").unlink()


def test_a_tag_of_an_older_version_that_looks_like_a_digest_keeps_its_release(
    store: Path, released: Release, newer: Path, tmp_path: Path
) -> None:
    """It is listed, and its release is no garbage; a pull by it is refused, because it could be meant as a digest."""
    old = push(str(store), released.folder).digest
    (store / "tags/latest.json").rename(store / "tags/0123abcd4567.json")
    push(str(store), newer)
    assert ("0123abcd4567", old) in read_tags(str(store))
    assert collect_garbage(str(store), NOW, delete=True).paths == ()
    with pytest.raises(StoreError, match="is no valid tag"):
        pull(str(store), tmp_path / "models", "0123abcd4567")
    assert pull(str(store), tmp_path / "models", old).digest == old


def test_a_missing_tag_is_told_with_the_tags_that_there_are(url: str, released: Release, tmp_path: Path) -> None:
    """Each kind of store lists them."""
    push(url, released.folder, [LATEST, "prod"])
    with pytest.raises(StoreError, match=r"(?s)has no tag canary\n.*the tags latest, prod"):
        pull(url, tmp_path / "models", "canary")
    with pytest.raises(StoreError, match="has no tag canary"):
        move_tag(url, "prod", "canary")


def test_a_missing_bucket_or_folder_is_no_missing_tag(s3: str, tmp_path: Path) -> None:
    """The message names the bucket, or the folder."""
    for url, message in (
        ("s3://no-such-bucket/models", "there is no bucket no-such-bucket"),
        (str(tmp_path / "nothing"), "there is no folder"),
    ):
        with pytest.raises(StoreError, match=message):
            pull(url, tmp_path / "models")
        with pytest.raises(StoreError, match=message):
            read_tags(url)
    assert read_tags(s3) == ()


def test_a_listing_round_trips() -> None:
    """A listing that is written and read back is equal."""
    file = {"path": "a/b.onnx", "bytes": 3, "sha256": "0" * 64}
    listed = StoredRelease.model_validate({"name": "tiny", "files": [file]})
    assert StoredRelease.model_validate_json(listed.to_json()) == listed
    assert listed.total_bytes == 3
