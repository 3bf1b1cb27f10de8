"""Reads of plain files: never a pipe or a device, never more than a limit, never through a planted link."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import RecordError, StorageError
from model_artifacts.host.hashes import sha256_of
from model_artifacts.host.plain_files import open_part, open_plain, read_plain, tree
from model_artifacts.host.record_files import read_record, write_record
from model_artifacts.records import Manifest, StoreTag

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_pipe_and_a_device_are_no_files(tmp_path: Path) -> None:
    """Opening a pipe would block, and a device has no end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros"):
        with pytest.raises(OSError, match="it is no plain file"):
            open_plain(tmp_path / name)
        with pytest.raises(StorageError, match="it is no plain file"):
            sha256_of(tmp_path / name)
        with pytest.raises(RecordError, match="it is no plain file"):
            read_record(tmp_path / name, StoreTag)
    with pytest.raises(IsADirectoryError):
        open_plain(tmp_path)


def test_a_link_to_a_file_is_read(tmp_path: Path) -> None:
    """Content stores, as of Hugging Face and DVC, link to their files."""
    (tmp_path / "blob").write_bytes(b"data")
    (tmp_path / "name").symlink_to("blob")
    assert read_plain(tmp_path / "name", 4) == b"data"


def test_no_more_than_the_limit_is_read(tmp_path: Path) -> None:
    """A larger file is refused before it is in memory."""
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match="larger than 5 bytes"):
        read_plain(tmp_path / "large", 5)
    with pytest.raises(RecordError, match="larger than 67,108,864 bytes"):
        read_record(tmp_path / "large", Manifest)


def test_a_record_that_is_written_over_a_pipe_replaces_it(tmp_path: Path) -> None:
    """What is there is looked at first, without waiting for it."""
    os.mkfifo(tmp_path / "tag.json")
    tag = StoreTag(release="0" * 64)
    write_record(tmp_path / "tag.json", tag)
    assert read_record(tmp_path / "tag.json", StoreTag) == tag


def test_a_part_is_never_written_through_another_name(tmp_path: Path) -> None:
    """A link, a second name of a file and a pipe in its place are replaced; an own part goes on."""
    victim, part = tmp_path / "victim", tmp_path / "x.part"
    victim.write_bytes(b"precious")
    plant: dict[str, Callable[[], None]] = {
        "a link": lambda: part.symlink_to(victim),
        "a second name": lambda: part.hardlink_to(victim),
        "a pipe": lambda: os.mkfifo(part),
        "a link to nothing": lambda: part.symlink_to(tmp_path / "nothing"),
    }
    for how in plant.values():
        part.unlink(missing_ok=True)
        how()
        for expected in (b"", b"some"):
            with open_part(part) as file:
                assert file.read() == expected
                file.write(b"some")
        assert part.read_bytes() == b"somesome"
        assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "nothing").exists()


def test_a_tree_of_any_depth_is_listed(tmp_path: Path) -> None:
    """Folders that are deeper than Python's stack, which `os.walk` of Python 3.11 takes for its own."""
    before = Path.cwd()
    os.chdir(tmp_path)
    for _ in range(1200):
        Path("d").mkdir()
        os.chdir("d")
    os.chdir(before)
    (tmp_path / "link").symlink_to(tmp_path)
    assert len(tree(tmp_path)) == 1201
    for path in reversed(tree(tmp_path)):
        path.unlink() if path.is_symlink() else path.rmdir()


def test_a_tree_of_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of them would fill the memory."""
    monkeypatch.setattr("model_artifacts.host.plain_files._MOST_PATHS", 3)
    for name in "abcd":
        (tmp_path / name).touch()
    with pytest.raises(OSError, match="more than 3 paths"):
        tree(tmp_path)
