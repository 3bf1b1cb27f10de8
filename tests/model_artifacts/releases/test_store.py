"""A store of releases: push, pull, tags and garbage."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

import model_artifacts as pipeline
from model_artifacts.cli.main import main
from model_artifacts.deployment.requirements import Requirements
from model_artifacts.errors import ArtifactError, ReleaseError, ResolveError, StoreError, UsageError
from model_artifacts.host.hashes import sha256_of
from model_artifacts.host.record_files import write_record
from model_artifacts.records import LATEST, Precision
from model_artifacts.releases.objects import ObjectStore
from model_artifacts.releases.signature import Signer, Verifier
from model_artifacts.releases.signing_keys import PrivateKey
from model_artifacts.releases.store import collect_garbage, move_tag, pull, push, read_tags
from model_artifacts.releases.verification import verify_release
from tests.support.command_line import status_of
from tests.support.keys import pem
from tests.support.stores import leftovers, listing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from model_artifacts.records import FileRecord
    from pipeline.stages.release.stage import Release


NOW = timedelta(0)
WISH = Requirements(precision=Precision.FP16)


def blob_of(store: Path, file: FileRecord | None) -> Path:
    """Return where a folder used as a store holds a file."""
    assert file is not None
    return store / "blobs" / file.sha256[:2] / file.sha256


# There and back.


def test_what_is_pushed_is_what_is_pulled(url: str, released: Release, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    """A pulled release equals the pushed one byte for byte, signature included, and loads."""
    pushed = push(url, released.folder)
    pulled = pull(url, tmp_path / "models", verifier=Verifier(keys[1]))
    assert listing(tmp_path / "models") == listing(released.folder)
    assert pulled.release == pushed.release
    assert pulled.digest == pushed.digest
    assert {file.path for file in pulled.fetched} == set(listing(released.folder))
    assert leftovers(tmp_path / "models") == []
    with pipeline.load(tmp_path / "models") as model:
        assert model.entry.id in {entry.id for entry in released.manifest.artifacts}


def test_an_archive_is_pushed_as_its_folder_is(store: Path, released: Release) -> None:
    """Its release has the same files."""
    one, other = push(str(store), released.folder), push(str(store), released.archive)
    assert one.release.name == other.release.name == "tiny-cccccccccccc"
    assert {file.path for file in other.sent} <= {"model.sig"}


def test_pushing_again_sends_nothing(url: str, released: Release) -> None:
    """A second push sends no existing file; only a new tag is written."""
    first = push(url, released.folder)
    second = push(url, released.folder, ["prod"])
    assert len(first.sent) == len({file.sha256 for file in first.release.files})
    assert second.sent == ()
    assert {tag.name: tag.release for tag in read_tags(url)} == {"latest": first.digest, "prod": first.digest}


def test_only_what_a_host_needs_is_pulled(
    store: Path, released: Release, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    """One artifact by requirements, and the evidence; the signature still tells of everything."""
    push(str(store), released.folder)
    pulled = pull(str(store), tmp_path / "models", LATEST, Verifier(keys[1]), WISH)
    assert pulled.entry is not None
    assert pulled.entry.file is not None
    assert pulled.entry.precision is Precision.FP16
    there = set(listing(tmp_path / "models"))
    assert [path for path in there if "/" in path] == [pulled.entry.file.path]
    assert verify_release(tmp_path / "models", Verifier(keys[1])) == released.manifest
    with pytest.raises(ReleaseError, match="only a part of a release"):
        push(str(store), tmp_path / "models")
    with pipeline.load(tmp_path / "models", WISH) as model:
        assert model.entry == pulled.entry
    (tmp_path / "models/for-host.json").rename(tmp_path / "aside")
    with pytest.raises(ReleaseError, match="no such file"):
        verify_release(tmp_path / "models")
    (tmp_path / "aside").rename(tmp_path / "models/for-host.json")
    (tmp_path / "models" / pulled.entry.file.path).unlink()
    with pytest.raises(ReleaseError, match="is missing, which was pulled for this host"):
        verify_release(tmp_path / "models")


def test_a_host_that_nothing_suits_pulls_nothing(store: Path, released: Release, tmp_path: Path) -> None:
    """The message gives the reasons, and nothing is pulled."""
    push(str(store), released.folder)
    with pytest.raises(ResolveError, match="no artifact of the manifest suits"):
        pull(str(store), tmp_path / "models", for_host=Requirements(max_latency_ms=1e-9))
    assert not (tmp_path / "models").exists()


# Another release over an older one.


def test_tags_move_and_go_back(url: str, released: Release, newer: Path, tmp_path: Path) -> None:
    """A tag moves to the release of another tag or digest, and old releases stay."""
    old = push(url, released.folder).digest
    new = push(url, newer).digest
    assert move_tag(url, "prod", LATEST) == new
    assert move_tag(url, "prod", old) == old
    assert [(tag.name, tag.release) for tag in read_tags(url)] == [("latest", new), ("prod", old)]
    assert pull(url, tmp_path / "models", "prod").digest == old
    assert pull(url, tmp_path / "models", new.upper()).digest == new


def signed_at(released: Release, days: int, key: Path, folder: Path) -> Path:
    """Return a copy of a release that was built some days later, with a signature of its own."""
    made = folder / f"tiny-{days}"
    shutil.copytree(released.folder, made)
    built = released.manifest.model_copy(update={"built_at": released.manifest.built_at + timedelta(days=days)})
    before = sha256_of(made / "manifest.json")
    write_record(made / "manifest.json", built)
    proof = made / "provenance.intoto.json"
    proof_before = sha256_of(proof)
    proof.write_text(proof.read_text().replace(before, sha256_of(made / "manifest.json")))
    sums = (made / "SHA256SUMS").read_text().replace(before, sha256_of(made / "manifest.json"))
    (made / "SHA256SUMS").write_text(sums.replace(proof_before, sha256_of(proof)))
    Signer(PrivateKey(key)).sign(made, made.name)
    return made


def test_going_back_is_said_and_refused_on_demand(
    store: Path, released: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str], keys: tuple[Path, Path]
) -> None:
    """A tag that was moved to an older release, whose signature holds, too."""
    for days, tag in ((0, "old"), (3, "new")):
        push(str(store), signed_at(released, days, keys[0], tmp_path), [tag])
    folder, key = str(tmp_path / "models"), str(keys[1])
    for tag in ("old", "new", "new"):
        assert main(["pull", str(store), folder, "--tag", tag, "--key", key, "--no-downgrade"]) == 0
        assert "goes back" not in capsys.readouterr().out
    before = listing(tmp_path / "models")
    for options in ([], ["--for-host"]):
        assert main(["pull", str(store), folder, "--tag", "old", "--key", key, "--no-downgrade", *options]) == 1
        assert "tiny-0 is older than the installed release, which is kept" in capsys.readouterr().err
        assert listing(tmp_path / "models") == before
    (tmp_path / "models/manifest.json").write_text("damaged")
    assert main(["pull", str(store), folder, "--tag", "new", "--key", key, "--no-downgrade"]) == 1
    assert "is not a valid Manifest" in capsys.readouterr().err
    assert main(["pull", str(store), folder, "--tag", "new", "--key", key]) == 0
    assert main(["pull", str(store), folder, "--tag", "old", "--key", key]) == 0
    assert "this goes back: it replaces a newer release, built 20" in capsys.readouterr().out
    with pytest.raises(UsageError, match="expected a key or an identity"):
        pull(str(store), tmp_path / "models", "new", no_downgrade=True)


# Refused: nothing is installed, the old release stays.


def flip(path: Path) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def relist(store: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Have the tag stand for a listing that somebody has changed."""
    tag = store / "tags/latest.json"
    said = json.loads((store / "releases" / f"{json.loads(tag.read_text())['release']}.json").read_text())
    change(said)
    text = json.dumps(said).encode()
    digest = hashlib.sha256(text).hexdigest()
    (store / "releases" / f"{digest}.json").write_bytes(text)
    tag.write_text(json.dumps({"schema_version": 1, "release": digest}))


def pipe(path: Path) -> None:
    """Have a pipe in a file's place."""
    path.unlink()
    os.mkfifo(path)


def at(path: str) -> Callable[[dict[str, Any]], object]:
    """Return a change of a listing that sends its first file elsewhere."""
    return lambda said: said["files"][0].update(path=path)


DAMAGE: dict[str, tuple[Callable[[Path, Release], object], str]] = {
    "a flipped byte of an artifact": (
        lambda store, made: flip(blob_of(store, made.manifest.artifacts[0].file)),
        "differs from its listed digest",
    ),
    "a missing blob": (
        lambda store, made: blob_of(store, made.manifest.artifacts[0].file).unlink(),
        "there is no such object",
    ),
    "a blob cut short": (
        lambda store, made: blob_of(store, made.manifest.artifacts[0].file).write_bytes(b"short"),
        "differs from its listed digest",
    ),
    "a blob that goes on": (
        lambda store, made: blob_of(store, made.manifest.artifacts[0].file).write_bytes(bytes(10**7)),
        "differs from its listed digest",
    ),
    "a flipped byte of the listing": (
        lambda store, _: flip(next((store / "releases").iterdir())),
        "is damaged",
    ),
    "no listing": (lambda store, _: next((store / "releases").iterdir()).unlink(), "has no release"),
    "a tag that is none": (lambda store, _: (store / "tags/latest.json").write_text("{}"), "is damaged"),
    "no tag": (lambda store, _: (store / "tags/latest.json").unlink(), "has no tag latest"),
    "no store": (lambda store, _: shutil.rmtree(store), "there is no folder"),
    "a path that leads out": (lambda store, _: relist(store, at("../outside")), "paths that stay in"),
    "a path deep inside that leads out": (lambda store, _: relist(store, at("a/../../outside")), "paths that stay in"),
    "an absolute path": (lambda store, _: relist(store, at("/tmp/outside")), "paths that stay in"),  # noqa: S108
    "one path twice": (lambda store, _: relist(store, lambda said: said["files"].append(said["files"][0])), "once"),
    "a file too many": (
        lambda store, _: relist(
            store, lambda said: said["files"].append({**said["files"][0], "path": "zzz/extra.bin"})
        ),
        "zzz/extra.bin does not match SHA256SUMS",
    ),
    "a file too few": (lambda store, _: relist(store, lambda said: said["files"].pop()), "does not match SHA256SUMS"),
    "more than a release has": (
        lambda store, _: relist(store, lambda said: said["files"][0].update(bytes=2**40)),
        "too large",
    ),
    "no release at all": (lambda store, _: relist(store, lambda said: said.update(files=[])), "lists no release"),
    "the name of another release": (
        lambda store, _: relist(store, lambda said: said.update(name="x\x1b[2J")),
        "printable",
    ),
    "a deep path": (lambda store, _: relist(store, at("a/" * 1500 + "a")), "of 1501 names"),
    "a file in a file": (lambda store, _: relist(store, at("manifest.json/x")), "a file or a folder"),
    "a pipe as a blob": (
        lambda store, made: pipe(blob_of(store, made.manifest.artifacts[0].file)),
        "it is no plain file",
    ),
    "a newer listing": (lambda store, _: relist(store, lambda said: said.update(schema_version=9)), "lists no release"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_what_is_damaged_is_refused_and_the_old_release_stays(
    store: Path, released: Release, newer: Path, tmp_path: Path, how: str
) -> None:
    """Any damage leaves the old release in place and nothing of the new one."""
    push(str(store), newer)
    pull(str(store), tmp_path / "models")
    shutil.rmtree(store)
    push(str(store), released.folder)
    for file in newer.rglob("*.onnx"):  # they would be taken from what is installed
        (tmp_path / "models" / file.relative_to(newer)).write_bytes(b"")
    before = listing(tmp_path / "models")
    damage, message = DAMAGE[how]
    damage(store, released)
    with pytest.raises(ArtifactError, match=message):
        pull(str(store), tmp_path / "models")
    assert listing(tmp_path / "models") == before
    assert not (tmp_path / "outside").exists()


def test_a_signature_that_is_demanded_must_be_there_and_theirs(
    store: Path, released: Release, newer: Path, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    """Nothing is installed, and nothing of it is kept."""
    push(str(store), newer, ["unsigned"])
    push(str(store), released.folder, ["signed"])
    theirs = Verifier(pem(tmp_path, "theirs")[1])
    for requirements in (None, WISH):
        with pytest.raises(ReleaseError, match="has no signature"):
            pull(str(store), tmp_path / "models", "unsigned", Verifier(keys[1]), requirements)
        with pytest.raises(ReleaseError, match="the signature does not hold"):
            pull(str(store), tmp_path / "models", "signed", theirs, requirements)
    assert not (tmp_path / "models").exists()
    assert leftovers(tmp_path / "models") == []


def test_a_signature_tells_of_what_a_host_did_not_pull(
    store: Path, released: Release, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    """Sums of files that are not there are held to it, too."""
    push(str(store), released.folder)
    pull(str(store), tmp_path / "models", LATEST, Verifier(keys[1]), WISH)
    sums = tmp_path / "models/SHA256SUMS"
    absent = next(line for line in sums.read_text().splitlines() if line.endswith("fp32.onnx"))
    sums.write_text(sums.read_text().replace(absent, "0" * 64 + absent[64:]))
    with pytest.raises(ReleaseError, match="the signature does not hold"):
        verify_release(tmp_path / "models", Verifier(keys[1]), partial=True)


def test_a_release_that_is_not_what_it_says_is_not_pushed(store: Path, released: Release) -> None:
    """Nothing of it is sent."""
    flip(released.folder / "manifest.json")
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        push(str(store), released.folder)
    assert not store.exists()


def test_a_name_that_no_pull_accepts_is_not_pushed(store: Path, newer: Path) -> None:
    """An unsigned release has the name of its folder."""
    with pytest.raises(ReleaseError, match="expected paths of printable characters"):
        push(str(store), newer.rename(newer.with_name("x\x1b[2J")))
    assert not store.exists()


# Broken transfers.


def test_a_broken_push_is_not_seen(
    s3: str, released: Release, newer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tag stands for the old release until all of the new one is there; the next push sends the rest."""
    push(s3, released.folder)
    genuine = ObjectStore.upload
    sent: list[str] = []

    def breaking(self: ObjectStore, path: str, file: Path, told: Callable[[int], None]) -> None:
        if len(sent) == 1:
            raise StoreError("the line is dead")
        sent.append(path)
        genuine(self, path, file, told)

    monkeypatch.setattr(ObjectStore, "upload", breaking)
    with pytest.raises(StoreError, match="the line is dead"):
        push(s3, newer)
    assert pull(s3, tmp_path / "models").release.name == "tiny-cccccccccccc"
    monkeypatch.setattr(ObjectStore, "upload", genuine)
    assert len(push(s3, newer).sent) == 2


def test_a_damaged_blob_is_sent_again_on_demand(store: Path, released: Release, tmp_path: Path) -> None:
    """The repair that the pull's error suggests works."""
    push(str(store), released.folder)
    flip(blob_of(store, released.manifest.artifacts[0].file))
    with pytest.raises(StoreError, match="--again"):
        pull(str(store), tmp_path / "models")
    push(str(store), released.folder, again=True)
    pull(str(store), tmp_path / "models")


# Garbage.


def test_garbage_is_what_no_tag_reaches(url: str, released: Release, newer: Path, tmp_path: Path) -> None:
    """Garbage is listed first and deleted on demand, and the remaining releases can be pulled."""
    push(url, released.folder)
    push(url, newer)
    only_old = {file.sha256 for file in push(url, released.folder, ["old"]).release.files} - {
        file.sha256 for file in push(url, newer).release.files
    }
    assert collect_garbage(url, NOW).paths == ()
    move_tag(url, "old", LATEST)
    found = collect_garbage(url, NOW)
    assert {path.rpartition("/")[2] for path in found.paths if path.startswith("blobs/")} == only_old
    assert collect_garbage(url, NOW) == found
    assert collect_garbage(url, NOW, delete=True) == found
    assert collect_garbage(url, NOW).paths == ()
    pull(url, tmp_path / "models")


def test_what_is_new_is_no_garbage_yet(url: str, released: Release) -> None:
    """A push writes its tag last."""
    push(url, released.folder)
    ObjectStore(url).write("blobs/ab/" + "ab" * 32, b"of a push that goes on")
    found = collect_garbage(url, timedelta(hours=1), delete=True)
    assert found == ((), 1)


def test_nothing_is_deleted_while_a_tag_is_damaged(store: Path, released: Release) -> None:
    """The files that a damaged tag refers to are unknown, so nothing is deleted."""
    push(str(store), released.folder)
    (store / "tags/other.json").write_text("{}")
    before = listing(store)
    with pytest.raises(StoreError, match=r"other\.json .* is damaged"):
        collect_garbage(str(store), NOW, delete=True)
    assert listing(store) == before


def reused(url: str, released: Release, newer: Path, monkeypatch: pytest.MonkeyPatch, before: str) -> None:
    """Push a release over leftovers that the garbage collection removes just before a kind of object is written."""
    push(url, newer, ["other"])
    push(url, released.folder)
    move_tag(url, LATEST, "other")
    write = ObjectStore.write

    def collecting(self: ObjectStore, path: str, data: bytes) -> None:
        if path.startswith(before):
            monkeypatch.setattr(ObjectStore, "write", write)
            assert collect_garbage(url, NOW, delete=True).paths
        write(self, path, data)

    monkeypatch.setattr(ObjectStore, "write", collecting)
    push(url, released.folder)


@pytest.mark.parametrize("before", ["releases/", "tags/"])
def test_a_push_sends_again_what_was_collected_meanwhile(
    store: Path, released: Release, newer: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """Files, and the listing, that were there when it looked, and not when its tag moved."""
    reused(str(store), released, newer, monkeypatch, before)
    pull(str(store), store.with_name("models"))
    assert listing(store.with_name("models")) == listing(released.folder)


def test_a_collection_tells_of_what_a_push_has_just_made_use_of(
    store: Path, released: Release, newer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collection reports a tag whose files it deleted while a push reused them."""
    push(str(store), newer, ["other"])
    push(str(store), released.folder)
    move_tag(str(store), LATEST, "other")
    remove = ObjectStore.remove

    def pushing(self: ObjectStore, path: str) -> None:
        monkeypatch.setattr(ObjectStore, "remove", remove)
        push(str(store), released.folder)
        remove(self, path)

    monkeypatch.setattr("model_artifacts.host.transfers._AT_ONCE", 1)
    monkeypatch.setattr(ObjectStore, "remove", pushing)
    with pytest.raises(StoreError, match=r"a tag to objects that were just deleted|has no release"):
        collect_garbage(str(store), NOW, delete=True)


def test_what_a_killed_push_has_left_is_no_tag(store: Path, released: Release) -> None:
    """Tags are read and garbage is collected beside it."""
    pushed = push(str(store), released.folder)
    (store / "tags/.writing-latest.json.abc.json").write_text("")
    assert read_tags(str(store)) == ((LATEST, pushed.digest),)
    assert collect_garbage(str(store), NOW).paths == ()


# The command line, and what it says.


def test_the_commands_say_what_they_did(
    store: Path, released: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str], keys: tuple[Path, Path]
) -> None:
    """The commands push, tag, pull and gc print the amount, the release and the signature's state."""
    artifacts = str(released.folder.parents[1])
    assert main(["push", str(store), "--artifacts", artifacts, "--tag", "latest", "--tag", "prod"]) == 0
    said = capsys.readouterr().out
    assert "of tiny-cccccccccccc" in said
    assert re.search(r"^latest [0-9a-f]{64}\nprod [0-9a-f]{64}$", said, re.MULTILINE)
    assert main(["tag", str(store), "canary", "prod"]) == 0
    assert main(["tag", str(store)]) == 0
    assert capsys.readouterr().out.count("canary ") == 2
    folder = str(tmp_path / "models")
    assert main(["pull", str(store), folder, "--for-host", "--precision", "fp16", "--key", str(keys[1])]) == 0
    assert "the signature holds" in capsys.readouterr().out
    capsys.readouterr()
    assert main(["verify", folder]) == 0
    assert "1 of 3 artifacts are here, pulled for one host, and what the release says" in capsys.readouterr().out
    assert main(["pull", str(store), folder, "--tag", "prod"]) == 0
    assert "nobody vouches for it" in capsys.readouterr().out
    assert main(["gc", str(store)]) == 0
    assert "0 objects are reached by no tag" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pull", "STORE", "F", "--batch", "2"], "expected --for-host beside a requirement"),
        (["pull", "STORE", "F", "--identity", "me"], "expected --key, or --identity with --issuer, got --identity"),
        (["tag", "STORE", "prod"], "expected another tag or a release's SHA-256 after prod, got nothing"),
        (["gc", "STORE", "--grace-hours", "-1"], "expected hours, 0 or more, got '-1'"),
    ],
)
def test_wrong_usage_is_told(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong usage ends with status 2 and one line, before the store is reached."""
    assert status_of(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
