"""Verification of a release: folder or archive, and any difference."""

from __future__ import annotations

import json
import os
import shutil
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from model_artifacts.cli.main import main
from model_artifacts.errors import ArtifactError, RecordError, ReleaseError
from model_artifacts.host.hashes import sha256_of
from model_artifacts.host.record_files import read_record, write_record
from model_artifacts.records import Manifest
from model_artifacts.releases.signature import Verifier
from model_artifacts.releases.verification import latest_release, verify_release
from tests.conftest import COMMIT
from tests.support.command_line import status_of
from tests.support.parts import long_test
from tests.support.records import with_digest
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


# The newest release.


def test_the_newest_release_is_the_one_that_was_built_last(released: Release) -> None:
    """Copies and edits change a file's time, but not the time in the manifest, which is signed."""
    newer = released.folder.with_name("tiny-a")
    shutil.copytree(released.folder, newer)
    later = released.manifest.built_at + timedelta(minutes=1)
    write_record(newer / "manifest.json", released.manifest.model_copy(update={"built_at": later}))
    os.utime(released.folder / "SHA256SUMS")
    os.utime(newer / "SHA256SUMS", (0, 0))
    assert latest_release(released.folder.parent) == newer
    again = released.folder.with_name("tiny-b")
    shutil.copytree(newer, again)
    os.utime(again / "SHA256SUMS", (9, 9))
    assert latest_release(released.folder.parent) == again
    assert latest_release(released.folder.parent, "tiny") == again
    with pytest.raises(ReleaseError, match="holds no release of second"):
        latest_release(released.folder.parent, "second")
    (released.folder / "manifest.json").write_text("{")
    with pytest.raises(RecordError, match=r"(?s)manifest\.json is not a valid Manifest.*name the release"):
        latest_release(released.folder.parent)


def test_the_newest_release_is_of_the_folder_s_model(
    released: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A later release of another model is not taken, and without a manifest there is a choice to make."""
    root = tmp_path / "artifacts"
    shutil.copytree(released.folder, root / "release/tiny-a")
    shutil.copytree(released.folder, root / "release/second-a")
    assert released.manifest.model is not None
    second = {
        "model": released.manifest.model.model_copy(update={"name": "second"}),
        "artifacts": tuple(item.model_copy(update={"model": "second"}) for item in released.manifest.artifacts),
        "built_at": released.manifest.built_at + timedelta(minutes=1),
    }
    write_record(root / "release/second-a/manifest.json", released.manifest.model_copy(update=second))
    write_record(root / "manifest.json", released.manifest)
    verify = ["verify", "--artifacts", str(root)]
    assert main(verify) == 0
    assert capsys.readouterr().out.startswith("tiny-a, built")
    (root / "manifest.json").write_text("{")
    assert main(verify) == 1
    assert "is not a valid Manifest" in capsys.readouterr().err
    (root / "manifest.json").unlink()
    assert status_of(verify) == 2
    told = capsys.readouterr().err
    assert "releases of several models, and none was chosen" in told
    assert "--model second" in told
    assert main([*verify, "--model", "tiny"]) == 0


# Sums, and odd files.


@pytest.mark.parametrize(
    "line", ["no digest  x", f"{'0' * 64}  manifest.json", f"{'0' * 64} x", f"{'0' * 64}  ", f"{'0' * 64}  SHA256SUMS"]
)
def test_a_damaged_line_of_sums_is_refused(released: Release, line: str) -> None:
    """A line that is none, and a second line for one file, of which only the last would count."""
    sums = released.folder / "SHA256SUMS"
    sums.write_text(f"{sums.read_text()}{line}\n")
    with pytest.raises(ReleaseError, match="SHA256SUMS is damaged in line"):
        verify_release(released.folder)


@pytest.mark.parametrize("name", ["model.sig", "tiny/pipe", "manifest.json", "SHA256SUMS"])
def test_a_pipe_in_a_release_is_refused(released: Release, name: str) -> None:
    """Nobody waits for what it would give."""
    (released.folder / name).unlink(missing_ok=True)
    os.mkfifo(released.folder / name)
    with pytest.raises(ReleaseError, match=r"no plain file|is missing"):
        verify_release(released.folder)


@long_test
def test_a_manifest_of_a_million_artifacts_is_refused(released: Release) -> None:
    """By its size, before it is parsed, and by the number of its artifacts."""
    path = released.folder / "manifest.json"
    entry = json.loads(path.read_text())["artifacts"][0]
    text = json.loads(path.read_text()) | {"artifacts": [entry] * 10_001}
    del text["digest"]
    path.write_text(with_digest("{\n" + json.dumps(text)[1:]))
    with pytest.raises(RecordError, match="at most 10000 items"):
        read_record(path, Manifest)
    with path.open("wb") as file:
        file.truncate(10**6 * 1500)
    with pytest.raises(RecordError, match="larger than 67,108,864 bytes"):
        read_record(path, Manifest)
