"""Signatures of releases: keys, identities and forgeries."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import ReleaseError
from model_artifacts.host.hashes import sha256_of
from model_artifacts.host.record_files import read_record, write_record
from model_artifacts.records import Manifest
from model_artifacts.releases.archive import unpacked
from model_artifacts.releases.signature import Signer, Verifier, signed_name
from model_artifacts.releases.signing_keys import PrivateKey
from model_artifacts.releases.store import pull, push
from model_artifacts.releases.verification import verify_release
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.release.stage import Release, make_release
from tests.conftest import COMMIT
from tests.support.keys import pem
from tests.support.releases import listing

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _committed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tree is that of a commit."""
    monkeypatch.setattr("pipeline.planning.project.git_state", lambda _: COMMIT)


@pytest.fixture
def project(copied: Path) -> Project:
    """A finished project, to do anything with."""
    return Project.load(copied / "pipeline.yaml", STAGES)


def test_a_forger_who_keeps_everything_right_is_caught_by_the_signature_alone(
    released: Release, keys: tuple[Path, Path], project: Project
) -> None:
    """A complete forged release passes every check except the signature."""
    signature = (released.folder / "model.sig").read_bytes()
    write_record(project.paths.manifest, project.manifest().model_copy(update={"host": "forged"}))
    made = released.folder
    manifest = read_record(made / "manifest.json", Manifest).model_copy(update={"host": "forged"})
    other = Release(made, released.archive, manifest, signed=False)
    (made / "NOTICES.txt").write_text("forged\n")
    for name in ("NOTICES.txt",):
        old = json.loads((made / "provenance.intoto.json").read_text())
        for item in old["subject"]:
            if item["name"] == name:
                item["digest"]["sha256"] = sha256_of(made / name)
        (made / "provenance.intoto.json").write_text(json.dumps(old))
    lines = [f"{sha256_of(made / name)}  {name}\n" for name in sorted(listing(made) - {"SHA256SUMS", "model.sig"})]
    (made / "SHA256SUMS").write_text("".join(lines))
    assert verify_release(other.folder)
    (made / "model.sig").write_bytes(signature)
    with pytest.raises(ReleaseError, match="the signature does not hold"):
        verify_release(made, Verifier(keys[1]))


def test_a_wrong_key_and_a_missing_signature_are_refused(released: Release, project: Project, tmp_path: Path) -> None:
    """A wrong key and a missing signature each have their own message."""
    with pytest.raises(ReleaseError, match="the signature does not hold"):
        verify_release(released.folder, Verifier(pem(tmp_path, "theirs")[1]))
    plain = make_release(project)
    with pytest.raises(ReleaseError, match="has no signature"):
        verify_release(plain.folder, Verifier(pem(tmp_path, "ours")[1]))


@pytest.mark.parametrize("text", ["", "no key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_key_that_is_none_releases_nothing(project: Project, tmp_path: Path, text: str) -> None:
    """One message; no folder, no archive, nothing half-written."""
    (tmp_path / "key.pem").write_text(text)
    with pytest.raises(ReleaseError, match="holds no private key"):
        make_release(project, Signer(PrivateKey(tmp_path / "key.pem")))
    assert list(project.paths.releases.iterdir()) == []


def test_without_an_identity_nothing_is_signed_by_one(project: Project) -> None:
    """Outside CI there is no token."""
    with pytest.raises(ReleaseError, match="expected: an OIDC token"):
        make_release(project, Signer())


def test_the_subject_of_a_signature_is_the_release(released: Release, keys: tuple[Path, Path]) -> None:
    """It is the release's own name, in the folder and in the archive, and not that of a scratch folder."""
    for path in (released.folder, released.archive):
        with unpacked(path) as folder:
            verify_release(folder, Verifier(keys[1]))
            assert signed_name(folder) == "tiny-cccccccccccc"


def test_a_signature_is_listed_under_its_own_name_only(
    released: Release, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    """A store that offers an old release under a new one's name is refused; a renamed folder keeps its name."""
    store, renamed = tmp_path / "store", tmp_path / "tiny-newest"
    shutil.copytree(released.folder, renamed)
    pushed = push(str(store), renamed)
    assert pushed.release.name == "tiny-cccccccccccc"
    assert pull(str(store), tmp_path / "models", verifier=Verifier(keys[1])).release.name == "tiny-cccccccccccc"
    text = pushed.release.model_copy(update={"name": "tiny-newest"}).to_json().encode()
    digest = hashlib.sha256(text).hexdigest()
    (store / f"releases/{digest}.json").write_bytes(text)
    with pytest.raises(ReleaseError, match=r"(?s)another name.*expected: tiny-cccccccccccc\n.*got:      tiny-newest"):
        pull(str(store), tmp_path / "others", digest, Verifier(keys[1]))
    assert not (tmp_path / "others").exists()


def test_a_signature_that_is_no_json_has_no_name(tmp_path: Path) -> None:
    """One message for each damage; a pipe is not waited for."""
    for text in ("", "[]", '{"dsseEnvelope": {"payload": "!"}}', '{"dsseEnvelope": {"payload": "e30="}}'):
        (tmp_path / "model.sig").write_text(text)
        with pytest.raises(ReleaseError, match="cannot be read"):
            signed_name(tmp_path)
    (tmp_path / "model.sig").unlink()
    os.mkfifo(tmp_path / "model.sig")
    with pytest.raises(ReleaseError, match="cannot be read"):
        signed_name(tmp_path)
