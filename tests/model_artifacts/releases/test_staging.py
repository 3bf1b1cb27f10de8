"""A pulled release takes its place: swapped, replaced or resumed."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import io
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
from s3fs.core import S3File

from model_artifacts.errors import StorageError, StoreError
from model_artifacts.releases.store import pull, push
from tests.support.stores import left_by_a_pull, leftovers, listing, part_of

if TYPE_CHECKING:
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
    largest = max((path for path in released.folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    chunk = largest.stat().st_size // 5
    monkeypatch.setattr("model_artifacts.releases.objects._CHUNK", chunk)
    asked: list[int] = []
    blob = hashlib.sha256(largest.read_bytes()).hexdigest()
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
    assert asked[:5] == [0, chunk, 2 * chunk, 3 * chunk, 3 * chunk]
    assert listing(tmp_path / "models") == listing(released.folder)


def test_what_a_broken_pull_has_left_damaged_is_fetched_again(store: Path, released: Release, tmp_path: Path) -> None:
    """A part that is not the beginning of the file is found out, and goes."""
    place = left_by_a_pull(tmp_path / "models", push(str(store), released.folder).digest)
    part_of(place, "manifest.json").write_bytes(b"rubbish")
    (place / "release/report.html").write_bytes(b"rubbish")
    with pytest.raises(StoreError, match=r"manifest\.json differs from its listed digest"):
        pull(str(store), tmp_path / "models")
    pull(str(store), tmp_path / "models")
    assert listing(tmp_path / "models") == listing(released.folder)
    assert leftovers(tmp_path / "models") == []


def test_two_pulls_into_one_folder_do_not_mix(store: Path, released: Release, tmp_path: Path) -> None:
    """The second is told of the first."""
    place = left_by_a_pull(tmp_path / "models", push(str(store), released.folder).digest)
    handle = os.open(place, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(StoreError, match="another pull into"):
        pull(str(store), tmp_path / "models")
    os.close(handle)
    pull(str(store), tmp_path / "models")


def test_only_its_own_leftovers_are_swept(store: Path, released: Release, tmp_path: Path) -> None:
    """Those of another folder, whose name begins alike, are kept for its next pull."""
    digest = push(str(store), released.folder).digest
    other = left_by_a_pull(tmp_path / "models-v2", digest)
    left_by_a_pull(tmp_path / "models", "0" * 64)
    (tmp_path / f".pulling-models-{digest[:16]}").mkdir()  # an older version's
    pull(str(store), tmp_path / "models")
    assert leftovers(tmp_path / "models") == [other.name]


# A shared folder around it, in which others plant things.


def test_planted_links_are_never_followed(store: Path, released: Release, tmp_path: Path) -> None:
    """Links at every name that a staging folder has or had: the release is a real folder, and nothing else changes."""
    digest = push(str(store), released.folder).digest
    victim = tmp_path / "victim"
    victim.mkdir()
    names = [f".pulling-models-{digest[:16]}", f".pulling-models-{digest[:16]}-abcdefgh"]
    for name in names:
        (tmp_path / name).symlink_to(victim)
    pull(str(store), tmp_path / "models")
    assert not (tmp_path / "models").is_symlink()
    assert listing(tmp_path / "models") == listing(released.folder)
    assert list(victim.iterdir()) == []
    assert sorted(leftovers(tmp_path / "models")) == names


@pytest.mark.parametrize("owner", ["another user", "us, but open to all"])
def test_a_planted_folder_is_not_used(
    store: Path, released: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: str
) -> None:
    """A staging folder of another user, or one that others may enter, is left alone; a new one is made."""
    place = left_by_a_pull(tmp_path / "models", push(str(store), released.folder).digest)
    (place / "release/extra.bin").write_text("planted")
    if owner == "another user":
        monkeypatch.setattr("os.geteuid", lambda: place.stat().st_uid + 1)
    else:
        place.chmod(0o755)
    pull(str(store), tmp_path / "models")
    assert listing(tmp_path / "models") == listing(released.folder)
    assert place.exists() == (owner == "another user")


def test_a_link_inside_of_the_staging_folder_is_removed(store: Path, released: Release, tmp_path: Path) -> None:
    """A link in a part's place, in a file's place and in a folder's place: nothing is written through them."""
    place = left_by_a_pull(tmp_path / "models", push(str(store), released.folder).digest)
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("precious")
    part_of(place, "manifest.json").symlink_to(victim / "file")
    (place / "release/report.html").symlink_to(victim / "file")
    (place / "release/tiny").symlink_to(victim)
    os.mkfifo(place / "release/NOTICES.txt")
    pull(str(store), tmp_path / "models")
    assert listing(tmp_path / "models") == listing(released.folder)
    assert listing(victim) == {"file": b"precious"}


def test_a_folder_that_somebody_exchanges_is_not_installed(
    store: Path, released: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may rename the staging folder cannot have another one installed in silence."""
    push(str(store), released.folder)
    (tmp_path / "theirs").mkdir()
    monkeypatch.setattr(
        "model_artifacts.releases.staging.replace_folder", lambda _, old: (tmp_path / "theirs").rename(old)
    )
    with pytest.raises(StoreError, match="another process has put something else at"):
        pull(str(store), tmp_path / "models")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link to another user")
def test_a_link_of_another_user_is_no_destination(store: Path, released: Release, tmp_path: Path) -> None:
    """Its owner would choose where the release goes; one's own link is followed."""
    push(str(store), released.folder)
    (tmp_path / "large-disk").mkdir()
    (tmp_path / "models").symlink_to("large-disk")
    os.chown(tmp_path / "models", 12345, 12345, follow_symlinks=False)
    with pytest.raises(StoreError, match="is a link that another user made"):
        pull(str(store), tmp_path / "models")
    assert list((tmp_path / "large-disk").iterdir()) == []
    os.chown(tmp_path / "models", os.geteuid(), -1, follow_symlinks=False)
    pull(str(store), tmp_path / "models")
    assert (tmp_path / "models").is_symlink()
    assert listing(tmp_path / "large-disk") == listing(released.folder)


# Folders that cannot be replaced, and full disks.


@pytest.mark.parametrize("kind", ["file system", "bind mount"])
def test_a_mount_point_is_refused_before_anything_is_fetched(
    store: Path, released: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A volume of Kubernetes cannot be renamed; the message names a folder inside it, which works."""
    push(str(store), released.folder)
    volume = Path("/dev/shm") if kind == "file system" else tmp_path / "a volume"  # noqa: S108 - it is only refused
    if kind == "bind mount":
        volume.mkdir()
        info = f"36 35 98:0 / {tmp_path}/a\\040volume rw,noatime shared:1 - ext4 /dev/root rw\n"
        genuine = Path.read_text
        monkeypatch.setattr(
            Path, "read_text", lambda self, **how: info if self.name == "mountinfo" else genuine(self, **how)
        )
    monkeypatch.setattr("model_artifacts.releases.objects.ObjectStore.fetch", None)
    with pytest.raises(StorageError, match=rf"(?s){volume} is a mount point.*{volume}/current"):
        pull(str(store), volume)


def test_a_folder_on_another_file_system_works(store: Path, released: Release) -> None:
    """The staging folder is in the destination's own file system, not in that of temporary files."""
    push(str(store), released.folder)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as volume:
        pull(str(store), Path(volume) / "current")
        assert listing(Path(volume) / "current") == listing(released.folder)
        assert leftovers(Path(volume) / "current") == []


def test_a_folder_that_cannot_be_renamed_stays_as_it_was(
    store: Path, released: Release, newer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of a container's image, on overlayfs: the message names the remedy, and the old release stays."""
    push(str(store), released.folder)
    pull(str(store), tmp_path / "models")
    push(str(store), newer)

    class Refusing:
        def __init__(self, number: int) -> None:
            self._number = number

        def renameat2(self, *_: object) -> int:
            """Fail as such a file system does."""
            ctypes.set_errno(self._number)
            return -1

    for number in (errno.EXDEV, errno.EBUSY):
        library = Refusing(number)
        monkeypatch.setattr("model_artifacts.host.files.ctypes.CDLL", lambda *_, library=library, **__: library)
        with pytest.raises(StorageError, match=r"(?s)cannot be replaced in one step, and is unchanged.*a new folder"):
            pull(str(store), tmp_path / "models")
        assert listing(tmp_path / "models") == listing(released.folder)
    pull(str(store), tmp_path / "other")


def test_a_full_disk_is_left_tidy(
    store: Path, released: Release, newer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that was fetched is removed, as the message says, and the old release stays."""
    push(str(store), newer)
    pull(str(store), tmp_path / "models")
    push(str(store), released.folder)
    before = listing(tmp_path / "models")

    class Full(io.FileIO):
        def write(self, _: object) -> NoReturn:
            """Fail as on a full disk."""
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("model_artifacts.releases.objects.open_part", lambda path: Full(path, "a+"))
    with pytest.raises(StorageError, match=r"(?s)the disk or your quota is full.*what was fetched .* was removed"):
        pull(str(store), tmp_path / "models")
    assert leftovers(tmp_path / "models") == []
    assert listing(tmp_path / "models") == before


def test_a_release_that_has_no_room_is_not_fetched(
    store: Path, released: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The room that it needs is compared with the disk's first."""
    push(str(store), released.folder)
    usage = type(shutil.disk_usage(tmp_path))(10**6, 10**6 - 9, 9)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    monkeypatch.setattr("model_artifacts.releases.objects.ObjectStore.fetch", None)
    with pytest.raises(StorageError, match=r"(?s)too full for the release.*bytes free.*got:      9 bytes"):
        pull(str(store), tmp_path / "models")
