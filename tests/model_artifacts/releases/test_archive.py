"""Archives from strangers: paths, sizes, headers and damage."""

from __future__ import annotations

import errno
import io
import os
import tarfile
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zstandard

from model_artifacts.errors import ReleaseError, StorageError
from model_artifacts.releases.archive import pack, unpack
from model_artifacts.releases.verification import verify_release
from tests.conftest import COMMIT
from tests.support.releases import listing

if TYPE_CHECKING:
    from pipeline.stages.release.stage import Release


@pytest.fixture(autouse=True)
def _committed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tree is that of a commit."""
    monkeypatch.setattr("pipeline.planning.project.git_state", lambda _: COMMIT)


def archive(folder: Path, *members: tarfile.TarInfo) -> Path:
    """Write an archive of members that hold as many zeros as they say."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(bytes(member.size)) if member.isreg() else None)
    path = folder / "stranger.tar.zst"
    path.write_bytes(zstandard.compress(buffer.getvalue()))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 1, target: str = "") -> tarfile.TarInfo:
    """Return a member."""
    made = tarfile.TarInfo(name)
    made.type, made.size, made.linkname = kind, size if kind == tarfile.REGTYPE else 0, target
    return made


@pytest.mark.parametrize(
    "bad",
    [
        member("../outside"),
        member("a/../../outside"),
        member("/tmp/absolute-outside"),  # noqa: S108 - it must not get there
        member("link", tarfile.SYMTYPE, target="/etc/passwd"),
        member("link", tarfile.LNKTYPE, target="manifest.json"),
        member("device", tarfile.CHRTYPE),
        member("pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda bad: f"{bad.name} {bad.type.decode()}",
)
def test_what_leads_out_of_the_folder_is_not_unpacked(tmp_path: Path, bad: tarfile.TarInfo) -> None:
    """Paths and links that lead outside, and entries that are no files, are refused."""
    (tmp_path / "in").mkdir()
    with pytest.raises(ReleaseError):
        unpack(archive(tmp_path, member("manifest.json"), bad), tmp_path / "in")
    assert not (tmp_path / "outside").exists()
    assert not Path("/tmp/absolute-outside").exists()  # noqa: S108 - that is the test
    assert listing(tmp_path / "in") <= {"manifest.json"}


@pytest.mark.parametrize(("limit", "value"), [("MAX_FILES", 2), ("MAX_BYTES", 2)])
def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
    """Archives with too many files or with too large ones are refused."""
    monkeypatch.setattr(f"model_artifacts.releases.archive.{limit}", value)
    with pytest.raises(ReleaseError, match="holds more than a release may"):
        unpack(archive(tmp_path, *(member(str(number)) for number in range(3))), tmp_path)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_long_header_is_not_read(tmp_path: Path, kind: bytes) -> None:
    """An oversized header is refused before it fills the memory."""
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = kind, 3 * 2**20
    parts = [header.tobuf(tarfile.USTAR_FORMAT), bytes(header.size), member("x").tobuf(), bytes(2048)]
    path = tmp_path / "stranger.tar.zst"
    path.write_bytes(zstandard.compress(b"".join(parts)))
    with pytest.raises(ReleaseError, match="holds more than a release may"):
        unpack(path, tmp_path)


def test_an_archive_that_grows_too_much_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two megabytes cannot fill a disk with 63 GiB: the limit follows from the archive's own size."""
    path = archive(tmp_path, member("zeros", size=2**20))
    assert path.stat().st_size < 2**10
    unpack(path, tmp_path)
    monkeypatch.setattr("model_artifacts.releases.archive._ALWAYS_BYTES", 2**10)
    (tmp_path / "in").mkdir()
    with pytest.raises(ReleaseError, match="100 times the archive's own size"):
        unpack(path, tmp_path / "in")
    assert listing(tmp_path / "in") == set()
    with pytest.raises(ReleaseError, match="100 times the archive's own size"):
        pack(tmp_path, tmp_path / "own.tar.zst", datetime.now(timezone.utc))
    assert not (tmp_path / "own.tar.zst").exists()


def test_facts_that_a_release_never_states_are_refused_by_name(tmp_path: Path) -> None:
    """An infinite time, an owner and a sparse size in pax headers are refused, and so is a negative size."""
    for name, value in (("mtime", "inf"), ("uname", "root"), ("GNU.sparse.realsize", "1"), ("size", "-9")):
        odd = member("odd.onnx")
        odd.pax_headers = {name: value}
        with pytest.raises(ReleaseError, match=r"odd\.onnx|more than a release may"):
            unpack(archive(tmp_path, odd), tmp_path)
    assert listing(tmp_path) == {"stranger.tar.zst"}


def test_a_sparse_file_is_refused_by_name(tmp_path: Path) -> None:
    """GNU's old form of a file with holes states any size, for hardly any data."""
    header = bytearray(member("sparse.onnx", size=512).tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:398], header[398:410], header[483:495] = b"0" * 11 + b"\0", b"0" * 8 + b"777\0", b"7" * 11 + b"\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = tmp_path / "stranger.tar.zst"
    path.write_bytes(zstandard.compress(bytes(header) + bytes(512 + 1024)))
    with pytest.raises(ReleaseError, match=r"'sparse\.onnx' in it is none"):
        unpack(path, tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a/x.onnx", "a/x.onnx"), r"'a/x\.onnx'.*\n.*a second file"),
        (("a", "a/x.onnx"), r"'a/x\.onnx'.*\n.*a second file"),
        (("a/x.onnx", "a"), r"'a'.*\n.*a second file"),
        (("/".join("a" * 1500),), "of 1500 names"),
        (("n" * 250,), "of 1 names and 250"),
        (("\x1b[2Jx.onnx",), "printable"),
        (("a\\x",), "stay in their folder"),
    ],
    ids=["one name twice", "a file as folder", "a folder as file", "deep", "long", "escapes", "backslash"],
)
def test_odd_paths_are_refused_by_name(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    """Paths occur once, stay short and flat, and have no characters that a terminal obeys."""
    path = archive(tmp_path, *(member(name) for name in names))
    (tmp_path / "in").mkdir()
    with pytest.raises(ReleaseError, match=message) as caught:
        unpack(path, tmp_path / "in")
    assert "\x1b" not in str(caught.value)


def test_nothing_may_follow_the_last_file(tmp_path: Path) -> None:
    """Hidden data behind the tar's end, a second frame, a skippable frame and loose bytes are refused."""
    good = archive(tmp_path, member("manifest.json")).read_bytes()
    plain = bytearray(zstandard.decompress(good))
    plain[-100:] = b"x" * 100
    hidden = {
        "after its last file": zstandard.compress(bytes(plain)),
        "25 bytes after its end": good + b"\x50\x2a\x4d\x18\x11\0\0\0" + b"s" * 17,
        "1 bytes after its end": good + b"\n",
        "bytes after its end": good + zstandard.compress(bytes(10240)),
    }
    for message, data in hidden.items():
        path = tmp_path / "more.tar.zst"
        path.write_bytes(data)
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        with pytest.raises(ReleaseError, match=message):
            unpack(path, folder)
        path.write_bytes(good)
        unpack(path, Path(tempfile.mkdtemp(dir=tmp_path)))


def test_a_pipe_is_no_archive(tmp_path: Path) -> None:
    """It is refused; nobody waits for a writer."""
    os.mkfifo(tmp_path / "pipe.tar.zst")
    with pytest.raises(ReleaseError, match="it is no plain file"):
        unpack(tmp_path / "pipe.tar.zst", tmp_path)


def test_a_full_disk_is_no_fault_of_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the disk."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = archive(tmp_path, member("manifest.json"))
    monkeypatch.setattr("model_artifacts.releases.archive.shutil.copyfileobj", full)
    with pytest.raises(StorageError, match=r"(?s)No space left.*free some disk space"):
        unpack(path, tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.95])
def test_a_damaged_archive_is_one_message(released: Release, tmp_path: Path, share: float) -> None:
    """A truncated archive gives one message, at any length."""
    path = tmp_path / "short.tar.zst"
    data = released.archive.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ReleaseError):
        verify_release(path)
