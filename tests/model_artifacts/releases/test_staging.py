"""A pulled release takes its place: swapped, replaced or resumed."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from typing import TYPE_CHECKING

import pytest
from s3fs.core import S3File

from model_artifacts.errors import StoreError
from model_artifacts.releases.store import pull, push
from tests.support.stores import leftovers, listing

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.stages.release.stage import Release


# Another release over an older one.


def test_a_newer_release_takes_the_place_of_the_old_one(
    store: Path, released: Release, newer: Path, tmp_path: Path
) -> None:
    """Only changed files travel, and files of the old release alone disappear."""
    push(str(store), released.folder)
    pull(str(store), tmp_path / "models")
    push(str(store), newer)
    pulled = pull(str(store), tmp_path / "models")
    assert {file.path for file in pulled.fetched} == {"NOTICES.txt", "provenance.intoto.json", "SHA256SUMS"}
    assert listing(tmp_path / "models") == listing(newer)


def test_where_folders_cannot_be_swapped_they_are_renamed(
    store: Path, released: Release, newer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File systems that cannot swap folders, such as some network ones, get two renames."""

    class NoSwap:
        def renameat2(self, *_: object) -> int:
            """Fail as a file system does that cannot."""
            ctypes.set_errno(errno.EINVAL)
            return -1

    monkeypatch.setattr("model_artifacts.host.files.ctypes.CDLL", lambda *_, **__: NoSwap())
    push(str(store), released.folder)
    pull(str(store), tmp_path / "models")
    push(str(store), newer)
    pull(str(store), tmp_path / "models")
    assert listing(tmp_path / "models") == listing(newer)
    assert leftovers(tmp_path / "models") == []


# Refused: nothing is installed, the old release stays.


def test_a_folder_that_was_not_pulled_is_not_replaced(store: Path, released: Release, tmp_path: Path) -> None:
    """A build's folder, a release with foreign files and a plain file are not replaced."""
    push(str(store), released.folder)
    build = released.folder.parent.parent
    before = listing(build)
    with pytest.raises(StoreError, match="holds a file that no pull wrote"):
        pull(str(store), build)
    assert listing(build) == before
    pull(str(store), tmp_path / "models")
    (tmp_path / "models/notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"(?s)holds a file that no pull wrote.*notes\.txt"):
        pull(str(store), tmp_path / "models")
    with pytest.raises(StoreError, match="is no folder"):
        pull(str(store), tmp_path / "models/notes.txt")


# Broken transfers.


def test_a_broken_pull_goes_on_where_it_was(
    s3: str, released: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed pull fetches no complete file again, and only the rest of a partial one."""
    push(s3, released.folder)
    monkeypatch.setattr("model_artifacts.releases.objects._CHUNK", 1 << 12)
    asked: list[int] = []
    entry = max(released.manifest.artifacts, key=lambda item: item.file.bytes if item.file else 0)
    assert entry.file is not None
    blob = entry.file.sha256
    genuine = S3File._fetch_range  # noqa: SLF001 - what reaches the server

    def breaking(self: S3File, start: int, end: int) -> bytes:
        if blob in self.path:
            asked.append(start)
            if len(asked) == 4:
                raise ConnectionResetError("the line is dead")
        data: bytes = genuine(self, start, end)
        return data

    monkeypatch.setattr(S3File, "_fetch_range", breaking)
    with pytest.raises(StoreError, match="the line is dead"):
        pull(s3, tmp_path / "models")
    assert not (tmp_path / "models").exists()
    assert len(leftovers(tmp_path / "models")) == 1
    pull(s3, tmp_path / "models")
    assert asked[:5] == [0, 1 << 12, 2 << 12, 3 << 12, 3 << 12]
    assert listing(tmp_path / "models") == listing(released.folder)


def test_what_a_broken_pull_has_left_damaged_is_fetched_again(store: Path, released: Release, tmp_path: Path) -> None:
    """A part that is not the beginning of the file is found out, and goes."""
    digest = push(str(store), released.folder).digest
    place = tmp_path / f".pulling-models-{digest[:16]}"
    place.mkdir()
    (place / "manifest.json.part").write_bytes(b"rubbish")
    (place / "report.html").write_bytes(b"rubbish")
    with pytest.raises(StoreError, match=r"manifest\.json differs from its listed digest"):
        pull(str(store), tmp_path / "models")
    pull(str(store), tmp_path / "models")
    assert listing(tmp_path / "models") == listing(released.folder)


def test_two_pulls_into_one_folder_do_not_mix(store: Path, released: Release, tmp_path: Path) -> None:
    """The second is told of the first."""
    digest = push(str(store), released.folder).digest
    place = tmp_path / f".pulling-models-{digest[:16]}"
    place.mkdir()
    handle = os.open(place, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(StoreError, match="another pull into"):
        pull(str(store), tmp_path / "models")
    os.close(handle)
    pull(str(store), tmp_path / "models")
