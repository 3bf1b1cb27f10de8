"""Digests of files, kept between processes for as long as the files do not change."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import StorageError
from pipeline.system.digests import Digests

if TYPE_CHECKING:
    from pathlib import Path

LARGE = bytes(1 << 17)
LONG_AGO = 1_600_000_000


def settled(path: Path, data: bytes) -> Path:
    """Write a file that was last changed long ago."""
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(data)
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were hashed, in order."""
    seen: list[Path] = []

    def hashed(path: Path) -> str:
        seen.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr("pipeline.system.digests.sha256_of", hashed)
    return seen


def test_a_file_is_hashed_once_until_it_changes(tmp_path: Path, reads: list[Path]) -> None:
    """Another process, which knows the cache's file only, hashes it again when its bytes are others, and not before."""
    file = settled(tmp_path / "engine", LARGE)
    first = [Digests(tmp_path / "cache").sha256_of(file) for _ in range(3)]
    assert set(first) == {hashlib.sha256(LARGE).hexdigest()}
    assert len(reads) == 1
    settled(file, LARGE[:-1] + b"x")
    assert Digests(tmp_path / "cache").sha256_of(file) != first[0]
    assert len(reads) == 2


def test_a_file_that_was_just_written_is_hashed_every_time(tmp_path: Path, reads: list[Path]) -> None:
    """Within the clock's grain it could change again, and look the same."""
    file = tmp_path / "engine"
    file.write_bytes(LARGE)
    for _ in range(2):
        Digests(tmp_path / "cache").sha256_of(file)
    assert len(reads) == 2


def test_a_damaged_cache_is_made_anew(tmp_path: Path, reads: list[Path]) -> None:
    """An unreadable cache is empty, and works again from then on."""
    file = settled(tmp_path / "engine", LARGE)
    (tmp_path / "cache").write_bytes(b"garbage" * 1000)
    for _ in range(3):
        assert Digests(tmp_path / "cache").sha256_of(file) == hashlib.sha256(LARGE).hexdigest()
    assert len(reads) <= 2


@pytest.mark.parametrize("cache", ["missing/cache", "folder"])
def test_without_a_cache_everything_is_hashed(tmp_path: Path, reads: list[Path], cache: str) -> None:
    """A cache that cannot be written is done without."""
    (tmp_path / "folder").mkdir()
    file = settled(tmp_path / "engine", LARGE)
    for _ in range(2):
        assert Digests(tmp_path / cache).sha256_of(file) == hashlib.sha256(LARGE).hexdigest()
    assert len(reads) == 2


def test_a_cache_that_somebody_else_holds_is_waited_for_and_done_without(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that another process writes for long does not delay a digest."""
    monkeypatch.setattr("pipeline.system.digests._BUSY_SECONDS", 0.05)
    file = settled(tmp_path / "engine", LARGE)
    Digests(tmp_path / "cache").sha256_of(file)
    with sqlite3.connect(tmp_path / "cache") as other:
        other.execute("BEGIN EXCLUSIVE")
        assert Digests(tmp_path / "cache").sha256_of(file) == hashlib.sha256(LARGE).hexdigest()
        other.rollback()
    other.close()
    assert len(reads) == 2


def test_threads_share_a_cache(tmp_path: Path) -> None:
    """Many threads get the same answers at once."""
    files = [settled(tmp_path / f"{number}", LARGE + bytes([number])) for number in range(8)]
    digests = Digests(tmp_path / "cache")
    found: dict[Path, str] = {}
    threads = [
        threading.Thread(target=lambda path=path: found.update({path: digests.sha256_of(path)})) for path in files
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_missing_file_is_one_message(tmp_path: Path) -> None:
    """It is named."""
    with pytest.raises(StorageError, match="missing"):
        Digests(tmp_path / "cache").sha256_of(tmp_path / "missing")


def test_a_folder_is_its_names_and_bytes(tmp_path: Path, reads: list[Path]) -> None:
    """A folder's digest follows its names and bytes, and touching or moving it reads no file twice."""
    images = tmp_path / "images"
    one = settled(images / "a" / "1.png", b"one")
    settled(images / "b" / "2.png", b"two")
    digests = Digests(tmp_path / "cache")
    before = digests.sha256_of_folder(images)
    assert digests.sha256_of_folder(images) == before
    assert len(reads) == 2
    os.utime(one, (LONG_AGO + 9, LONG_AGO + 9))
    assert digests.sha256_of_folder(images) == before
    images.rename(tmp_path / "moved")
    assert digests.sha256_of_folder(tmp_path / "moved") == before
    settled(tmp_path / "moved" / "b" / "2.png", b"too")
    changed = digests.sha256_of_folder(tmp_path / "moved")
    (tmp_path / "moved" / "b" / "2.png").rename(tmp_path / "moved" / "b" / "3.png")
    assert len({before, changed, digests.sha256_of_folder(tmp_path / "moved")}) == 3
