"""Archives from strangers: paths, sizes, headers and damage."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zstandard

from model_artifacts.errors import ReleaseError
from model_artifacts.releases.archive import unpack
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
    with tarfile.open(fileobj=buffer, mode="w") as tar:
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


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.95])
def test_a_damaged_archive_is_one_message(released: Release, tmp_path: Path, share: float) -> None:
    """A truncated archive gives one message, at any length."""
    path = tmp_path / "short.tar.zst"
    data = released.archive.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ReleaseError):
        verify_release(path)
