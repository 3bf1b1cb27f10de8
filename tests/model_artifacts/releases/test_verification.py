"""Verification of a release: folder or archive, and any difference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import ArtifactError, ReleaseError
from model_artifacts.host.hashes import sha256_of
from model_artifacts.releases.signature import Verifier
from model_artifacts.releases.verification import verify_release
from tests.conftest import COMMIT
from tests.support.releases import append

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.stages.release.stage import Release


@pytest.fixture(autouse=True)
def _committed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tree is that of a commit."""
    monkeypatch.setattr("pipeline.planning.project.git_state", lambda _: COMMIT)


# Verified.


def test_a_release_verifies_as_folder_and_as_archive(released: Release, keys: tuple[Path, Path]) -> None:
    """Folder and archive verify with a demanded signature and without one."""
    for path in (released.folder, released.archive):
        assert verify_release(path, Verifier(keys[1])) == released.manifest
        assert verify_release(path) == released.manifest


def test_a_release_verifies_by_a_relative_path(
    released: Release, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release is verified by a relative path too."""
    monkeypatch.chdir(released.folder.parent)
    assert verify_release(Path(released.folder.name), Verifier(keys[1])) == released.manifest


def to_link(path: Path) -> None:
    """Have a link in a file's place, to the same bytes elsewhere."""
    elsewhere = path.parents[4] / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped bit": lambda folder: (folder / "tiny/onnx/fp16.onnx").write_bytes(
        bytes([*(folder / "tiny/onnx/fp16.onnx").read_bytes()[:-1], 7])
    ),
    "a missing file": lambda folder: (folder / "tiny/onnx/fp16.onnx").unlink(),
    "an extra file": lambda folder: (folder / "extra.txt").write_text("x"),
    "another manifest": lambda folder: append(folder / "manifest.json"),
    "another report": lambda folder: append(folder / "report.html"),
    "another bill": lambda folder: append(folder / "bom.cdx.json"),
    "another provenance": lambda folder: append(folder / "provenance.intoto.json"),
    "other licences": lambda folder: append(folder / "NOTICES.txt"),
    "sums that are no text": lambda folder: (folder / "SHA256SUMS").write_bytes(b"\xff\xfe  x\n"),
    "a link": lambda folder: to_link(folder / "tiny/onnx/fp16.onnx"),
    "no sums": lambda folder: (folder / "SHA256SUMS").unlink(),
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("demanded", [True, False])
def test_whatever_differs_is_refused(released: Release, keys: tuple[Path, Path], how: str, *, demanded: bool) -> None:
    """Every difference is refused, with a demanded signature and without one."""
    DAMAGE[how](released.folder)
    with pytest.raises(ArtifactError):
        verify_release(released.folder, Verifier(keys[1]) if demanded else None)


def test_a_forger_who_keeps_the_sums_right_is_caught_by_the_manifest(released: Release) -> None:
    """A changed engine with a matching SHA256SUMS contradicts the manifest and the provenance."""
    file = released.folder / "tiny/onnx/fp16.onnx"
    before = sha256_of(file)
    append(file)
    sums = released.folder / "SHA256SUMS"
    sums.write_text(sums.read_text().replace(before, sha256_of(file)))
    with pytest.raises(ReleaseError, match=r"fp16\.onnx does not match the manifest"):
        verify_release(released.folder)


# Archives of strangers.


def test_a_path_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    """The message names the missing path."""
    with pytest.raises(ReleaseError, match=r"nothing\.tar\.zst cannot be unpacked"):
        verify_release(tmp_path / "nothing.tar.zst")
