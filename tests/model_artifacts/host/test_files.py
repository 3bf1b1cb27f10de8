"""Files and folders: whole or not there at all, whatever goes wrong."""

from __future__ import annotations

import ctypes
import errno
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_artifacts.errors import StorageError
from model_artifacts.host.files import keeping, replace_folder, replacing, replacing_folder, scratch_folder, write_bytes


def _no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")


def test_block_that_ends_well_becomes_the_file(tmp_path: Path) -> None:
    """The file has the content of the temporary path, and nothing else is left."""
    path = tmp_path / "new" / "folder" / "x.bin"
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_nothing_is_at_the_path_before_the_block_ends(tmp_path: Path) -> None:
    """A reader never sees a file that is still being written."""
    path = tmp_path / "x.bin"
    with replacing(path) as temporary:
        temporary.write_bytes(b"half")
        assert not path.exists()


def test_temporary_path_has_the_folder_and_the_suffix_of_the_file(tmp_path: Path) -> None:
    """Libraries that look at suffixes see the right one, and a rename stays within one file system."""
    with replacing(tmp_path / "x.onnx") as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".onnx")


def test_file_can_be_read_by_everyone(tmp_path: Path) -> None:
    """Files have the permissions that `open` gives them, not the private ones of temporary files."""
    write_bytes(tmp_path / "x", b"new")
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_block_that_fails_leaves_the_old_file(tmp_path: Path, failure: type[BaseException]) -> None:
    """After an exception, an interrupt included, the old file is whole and no temporary file is left."""
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise failure

    with pytest.raises(failure):
        write_half()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("operation", ["os.fsync", "pathlib.Path.replace", "pathlib.Path.write_bytes"])
def test_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str) -> None:
    """The message gives a fix and the old file stays whole, at whichever write the disk fills up."""
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(operation, _no_space)
        with pytest.raises(StorageError) as caught:
            write_bytes(path, b"new")
    message = str(caught.value)
    assert message.startswith(f"writing {path} failed: No space left on device\n")
    assert "fix:      free some disk space, then run the command again" in message
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_read_only_folder_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that this user may not write to is named, with both ways out."""

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / "tmp"))

    monkeypatch.setattr("tempfile.mkstemp", denied)
    with pytest.raises(StorageError) as caught:
        write_bytes(tmp_path / "x", b"new")
    assert str(caught.value).startswith(f"writing {tmp_path / 'x'} failed: Permission denied\n")
    assert "make the folder writable for this user, or set `artifacts:`" in str(caught.value)


def test_file_in_a_folders_place_is_named(tmp_path: Path) -> None:
    """A file where a folder should be is a storage error that names it."""
    (tmp_path / "m").write_text("I am no folder")
    with pytest.raises(StorageError) as caught:
        write_bytes(tmp_path / "m" / "x", b"new")
    assert f"where:    {tmp_path / 'm'}" in str(caught.value)


def test_folder_in_a_files_place_stays(tmp_path: Path) -> None:
    """A folder in the place of a file is a storage error, and keeps its contents."""
    (tmp_path / "x" / "precious").mkdir(parents=True)
    with pytest.raises(StorageError, match="failed: Is a directory"):
        write_bytes(tmp_path / "x", b"new")
    assert [path.name for path in tmp_path.rglob("*")] == ["x", "precious"]


@given(st.binary(max_size=100))
@settings(deadline=None)
def test_any_bytes_are_written_as_they_are(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """No byte is changed, and no length is too short."""
    path = tmp_path_factory.getbasetemp() / "any-bytes"
    write_bytes(path, data)
    assert path.read_bytes() == data


def test_a_sweep_that_comes_in_between_takes_no_file_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that another process takes for left over, before its writer holds its lock, is made again."""
    path, real = tmp_path / "x", tempfile.mkstemp
    made: list[Path] = []

    def swept(**arguments: Any) -> tuple[int, str]:
        handle, name = real(**arguments)
        made.append(Path(name))
        if len(made) == 1:
            with replacing(path) as other:  # which sweeps first
                other.write_bytes(b"other")
        return handle, name

    monkeypatch.setattr("tempfile.mkstemp", swept)
    write_bytes(path, b"new")
    assert len(made) == 3
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_a_killed_writer_left_goes_a_day_later(tmp_path: Path) -> None:
    """One that is younger may still be written."""
    old, young = tmp_path / ".writing-old", tmp_path / ".writing-young"
    old.mkdir()
    young.mkdir()
    yesterday = time.time() - 25 * 3600
    os.utime(old, (yesterday, yesterday))
    with replacing_folder(tmp_path / "release") as folder:
        (folder / "x").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".writing-young", "release"]


# Digests.


def test_a_log_is_kept_when_the_work_is_done(tmp_path: Path) -> None:
    """Appended lines are in the log after the block has ended, and not before."""
    with keeping(tmp_path / "deep" / "build.log") as log:
        log.write_text("said\n")
        assert not (tmp_path / "deep" / "build.log").exists()
    assert (tmp_path / "deep" / "build.log").read_text() == "said\n"


def test_a_log_is_kept_when_the_work_fails(tmp_path: Path) -> None:
    """The log of a failure stays, and replaces the log of an earlier success."""
    (tmp_path / "build.log").write_text("all well")

    def work() -> None:
        with keeping(tmp_path / "build.log") as log:
            log.write_text("oh")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert (tmp_path / "build.log").read_text() == "oh"


# Folders.


def folder(path: Path, text: str) -> Path:
    """Make a folder with one file."""
    path.mkdir()
    (path / "file").write_text(text)
    return path


class CannotSwap:
    """A file system that swaps nothing."""

    def renameat2(self, *_: object) -> int:
        """Fail as it does."""
        ctypes.set_errno(errno.EINVAL)
        return -1


@pytest.mark.parametrize("swaps", [True, False])
def test_a_folder_takes_the_place_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, swaps: bool) -> None:
    """The new folder replaces the old one completely, and works without an old one."""
    if not swaps:
        monkeypatch.setattr("model_artifacts.host.files.ctypes.CDLL", lambda *_, **__: CannotSwap())
    for text in ("first", "second"):
        replace_folder(folder(tmp_path / "new", text), tmp_path / "old")
        assert (tmp_path / "old/file").read_text() == text
        assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("swaps", [True, False])
def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, swaps: bool
) -> None:
    """A failed replacement leaves the old folder, with or without a swap."""
    if not swaps:
        monkeypatch.setattr("model_artifacts.host.files.ctypes.CDLL", lambda *_, **__: CannotSwap())
    old = folder(tmp_path / "old", "old")
    with pytest.raises(OSError, match="No such file"):
        replace_folder(tmp_path / "not there", old)
    assert (old / "file").read_text() == "old"


def test_scratch_goes_with_the_block(tmp_path: Path) -> None:
    """A scratch folder is removed even when the block is interrupted."""

    def interrupted() -> None:
        with scratch_folder(tmp_path / "root") as scratch:
            (scratch / "file").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list((tmp_path / "root").iterdir()) == []


def test_scratch_that_a_killed_process_left_goes_a_day_later(tmp_path: Path) -> None:
    """Younger scratch folders stay, because another process may still write there; other folders stay too."""
    for name, hours in ((".writing-old", 25), (".writing-new", 23), ("models", 25)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
        then = time.time() - hours * 3600
        os.utime(tmp_path / name, (then, then))
    with scratch_folder(tmp_path):
        assert not (tmp_path / ".writing-old").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".writing-new", "models"]
