"""Digests of files, and their cache."""

from __future__ import annotations

import errno
import hashlib
import os
from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import StorageError
from model_artifacts.host.files import write_bytes
from model_artifacts.host.hashes import describe_file, sha256_of
from model_artifacts.records import FileRecord

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")


def test_digest_is_sha256(tmp_path: Path) -> None:
    """The digest is that of the file's bytes, also beyond one block of reading."""
    data = bytes(range(256)) * 8192  # 2 MiB
    (tmp_path / "x").write_bytes(data)
    assert sha256_of(tmp_path / "x") == hashlib.sha256(data).hexdigest()


def _appended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def _replaced(path: Path) -> None:
    write_bytes(path, b"new")


def _rewritten_with_the_old_time(path: Path) -> None:
    before = path.stat()
    path.write_bytes(b"new")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [_appended, _replaced, _rewritten_with_the_old_time])
def test_changed_file_has_another_digest(tmp_path: Path, change: Callable[[Path], None]) -> None:
    """A file that changes within one process is read again, same size or not."""
    path = tmp_path / "x"
    path.write_bytes(b"old")
    before = sha256_of(path)
    change(path)
    assert sha256_of(path) != before
    assert sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_unchanged_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of gigabytes are hashed once a process."""
    path = tmp_path / "x"
    path.write_bytes(b"old")
    before = sha256_of(path)
    monkeypatch.setattr("pathlib.Path.open", _no_space)
    assert sha256_of(path) == before


def test_digest_of_a_missing_file_is_a_storage_error(tmp_path: Path) -> None:
    """A file that is not there is named."""
    with pytest.raises(StorageError, match="failed: No such file or directory"):
        sha256_of(tmp_path / "absent")


def test_described_file_has_its_path_below_the_root(tmp_path: Path) -> None:
    """A file's record holds for any place that the artifacts are moved to."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"old")
    expected = FileRecord(path="a/x", bytes=3, sha256=hashlib.sha256(b"old").hexdigest())
    assert describe_file(tmp_path / "a" / "x", tmp_path) == expected
