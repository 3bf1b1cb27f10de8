"""Releases in a real registry: push, pull, tags, referrers and garbage."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import urllib.request
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import oras.client
import pytest

import model_artifacts as pipeline
from model_artifacts.cli.main import main
from model_artifacts.deployment.requirements import Requirements
from model_artifacts.errors import ReleaseError, ResolveError, StoreError, UsageError
from model_artifacts.host.hashes import describe_file, sha256_of
from model_artifacts.records import LATEST, Precision
from model_artifacts.releases.oci.offers import read_offers, resolve_offered
from model_artifacts.releases.signature import Verifier
from model_artifacts.releases.store import collect_garbage, move_tag, pull, push, read_tags
from tests.support.deployables import machine
from tests.support.faulty_proxy import Fault
from tests.support.gpu_releases import GPUS, write_release
from tests.support.keys import pem
from tests.support.registries import needs_registry, running
from tests.support.stores import leftovers, listing

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.stages.release.stage import Release
    from tests.support.faulty_proxy import Asked, Proxy
    from tests.support.registries import RegistryServer

pytestmark = needs_registry

NOW = timedelta(0)
SKOPEO = shutil.which("skopeo")
WISH = Requirements(precision=Precision.FP16)
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def document(server: RegistryServer, repository: str, name: str) -> dict[str, Any]:
    """Return a manifest or an index as any client gets it."""
    request = urllib.request.Request(
        f"http://{server.host}/v2/{repository}/manifests/{name}", headers={"Accept": f"{INDEX}, {MANIFEST}"}
    )
    with urllib.request.urlopen(request) as answer:  # noqa: S310 - fixed
        made: dict[str, Any] = json.load(answer)
    return made


def put(server: RegistryServer, repository: str, name: str, made: dict[str, Any]) -> None:
    """Write a manifest or an index as any client may."""
    request = urllib.request.Request(
        f"http://{server.host}/v2/{repository}/manifests/{name}",
        data=json.dumps(made).encode(),
        headers={"Content-Type": made["mediaType"]},
        method="PUT",
    )
    with urllib.request.urlopen(request):  # noqa: S310 - fixed
        pass


# There and back.


def test_what_is_pushed_is_what_is_pulled(url: str, released: Release, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    """A pulled release equals the pushed one byte for byte, signature included, and loads."""
    pushed = push(f"{url}:1.4", released.folder)
    pulled = pull(f"{url}:1.4", tmp_path / "models", verifier=Verifier(keys[1]))
    assert listing(tmp_path / "models") == listing(released.folder)
    assert pulled.release == pushed.release
    assert pulled.digest == pushed.digest
    assert {file.path for file in pulled.fetched} == set(listing(released.folder))
    assert leftovers(tmp_path / "models") == []
    assert [tag.name for tag in read_tags(url)] == ["1.4"]
    with pipeline.load(tmp_path / "models") as model:
        assert model.entry.id in {entry.id for entry in released.manifest.artifacts}


def test_pushing_again_sends_nothing(url: str, released: Release) -> None:
    """The same release has the same digest, and a second push writes a tag alone."""
    first = push(url, released.archive)
    second = push(f"{url}:1.4", released.archive, ["prod"])
    assert len(first.sent) == len({file.sha256 for file in first.release.files})
    assert second.sent == ()
    assert {tag.name: tag.release for tag in read_tags(url)} == dict.fromkeys(("1.4", "latest", "prod"), first.digest)


def test_only_what_a_host_needs_is_pulled(
    proxy: Proxy, repository: str, released: Release, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    """One artifact by requirements and the evidence; the signature still tells of everything."""
    push(proxy.url(repository), released.folder)
    proxy.asked.clear()
    pulled = pull(proxy.url(repository), tmp_path / "models", LATEST, Verifier(keys[1]), WISH)
    assert pulled.entry is not None
    assert pulled.entry.file is not None
    there = set(listing(tmp_path / "models"))
    assert [path for path in there if "/" in path] == [pulled.entry.file.path]
    fetched = {asked.path.rpartition(":")[2] for asked in proxy.asked if "/blobs/" in asked.path}
    assert fetched == {file.sha256 for file in pulled.fetched}
    with pytest.raises(ResolveError, match="no artifact of the manifest suits"):
        pull(proxy.url(repository), tmp_path / "none", for_host=Requirements(max_latency_ms=1e-9))
    assert not (tmp_path / "none").exists()


def test_each_gpu_pulls_its_own_engine(
    proxy: Proxy, repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a release for three types, a host gets one engine and never another type's; a fourth type gets none."""
    url = proxy.url(repository)
    entries = write_release(tmp_path / "release", 300_000)
    push(url, tmp_path / "release")
    for gpu, entry in zip(GPUS, entries, strict=True):
        proxy.asked.clear()
        monkeypatch.setattr("model_artifacts.releases.store.this_host", lambda gpu=gpu: machine(gpu))
        pulled = pull(url, tmp_path / gpu.slug, for_host=Requirements())
        assert pulled.entry == entry
        assert [file for file in pulled.fetched if "/" in file.path] == [entry.file]
        assert sum("/blobs/" in asked.path for asked in proxy.asked) == len(pulled.fetched)
        assert resolve_offered(read_offers(url), Requirements(), machine(gpu)).entry.id == entry.id
    other = GPUS[0].model_copy(update={"name": "NVIDIA H200", "compute_capability": 90})
    monkeypatch.setattr("model_artifacts.releases.store.this_host", lambda: machine(other))
    with pytest.raises(ResolveError, match=r"is for NVIDIA H100 80GB HBM3 \(SM 90\), got NVIDIA H200"):
        pull(url, tmp_path / "other", for_host=Requirements())
    assert not (tmp_path / "other").exists()


def test_files_are_mounted_from_another_repository(
    proxy: Proxy, repository: str, released: Release, tmp_path: Path
) -> None:
    """No file is sent again, and a repository that lacks them gets them as always."""
    push(proxy.url(f"{repository}/dev"), released.folder)
    proxy.asked.clear()
    push(proxy.url(f"{repository}/prod"), released.folder, mounted_from=f"{repository}/dev")
    largest = max(path.stat().st_size for path in released.folder.rglob("*") if path.is_file())
    assert max(asked.sent for asked in proxy.asked) < largest
    assert {asked.path.partition("?")[2][:5] for asked in proxy.asked if asked.method == "POST"} >= {"mount"}
    pull(proxy.url(f"{repository}/prod"), tmp_path / "models")
    assert listing(tmp_path / "models") == listing(released.folder)
    push(proxy.url(f"{repository}/other"), released.folder, mounted_from=f"{repository}/absent")
    pull(proxy.url(f"{repository}/other"), tmp_path / "models")
    with pytest.raises(UsageError, match="expected an oci:// registry beside --mount-from"):
        push(str(tmp_path / "store"), released.folder, mounted_from="team/dev")


def test_tags_move_and_go_back(url: str, released: Release, newer: Path, tmp_path: Path) -> None:
    """A tag moves to the release of another tag or digest, and old releases stay."""
    old = push(url, released.folder).digest
    new = push(url, newer).digest
    assert move_tag(url, "prod", LATEST) == new
    assert move_tag(url, "prod", old) == old
    assert [(tag.name, tag.release) for tag in read_tags(url)] == [("latest", new), ("prod", old)]
    assert pull(f"{url}:prod", tmp_path / "models").digest == old
    assert pull(f"{url}@sha256:{new}", tmp_path / "models").digest == new
    assert pull(url, tmp_path / "models", old.upper()).digest == old
    with pytest.raises(StoreError, match="has no release 0000"):
        move_tag(url, "prod", "0" * 64)
    with pytest.raises(StoreError, match="the tags latest, prod"):
        pull(f"{url}:absent", tmp_path / "models")
    with pytest.raises(UsageError, match="got prod in the URL and latest beside it"):
        pull(f"{url}:prod", tmp_path / "models", LATEST)
    with pytest.raises(UsageError, match="got a digest"):
        push(f"{url}@sha256:{new}", released.folder)


def test_a_tag_that_moves_during_a_pull_changes_nothing(
    proxy: Proxy, repository: str, released: Release, newer: Path, tmp_path: Path
) -> None:
    """The digest is fixed first: the release of then is installed, whole."""
    url = proxy.url(repository)
    old = push(url, released.folder).digest
    new = push(url, newer, ["new"]).digest

    def moving(asked: Asked) -> None:
        if asked.method == "GET" and "/blobs/" in asked.path:
            proxy.fault = lambda _: None
            move_tag(url, LATEST, new)

    proxy.fault = moving
    assert pull(url, tmp_path / "models").digest == old
    assert listing(tmp_path / "models") == listing(released.folder)
    assert pull(url, tmp_path / "models").digest == new


# What other tools find.


def test_evidence_refers_to_the_release(server: RegistryServer, url: str, repository: str, released: Release) -> None:
    """Signature, bill of materials and provenance are listed at the fallback tag, beside what others attached."""
    digest = push(url, released.folder).digest
    fallback = f"sha256-{digest}"
    there = document(server, repository, fallback)
    kinds = {item["artifactType"] for item in there["manifests"]}
    bundle = "application/vnd.dev.sigstore.bundle.v0.3+json"
    assert kinds == {bundle, "application/vnd.cyclonedx+json", "application/vnd.in-toto+json"}
    for item in there["manifests"]:
        made = document(server, repository, item["digest"])
        assert made["subject"]["digest"] == f"sha256:{digest}"
        assert made["artifactType"] == item["artifactType"]
        path = made["layers"][0]["annotations"]["org.opencontainers.image.title"]
        assert made["layers"][0]["digest"] == f"sha256:{sha256_of(released.folder / path)}"
    foreign = {**there["manifests"][0], "artifactType": "application/vnd.scan"}
    foreign["digest"] = document(server, repository, LATEST)["manifests"][0]["digest"]
    put(server, repository, fallback, {**there, "manifests": [*there["manifests"], foreign]})
    push(url, released.folder)
    assert foreign in document(server, repository, fallback)["manifests"]
    assert len(document(server, repository, fallback)["manifests"]) == 4
    assert [tag.name for tag in read_tags(url)] == [LATEST]


def test_another_client_gets_a_folder_that_loads(
    server: RegistryServer, url: str, repository: str, released: Release, tmp_path: Path
) -> None:
    """One that knows OCI and nothing of this project, by the digest of an artifact's manifest."""
    push(url, released.folder)
    found = document(server, repository, LATEST)["manifests"][0]
    client = oras.client.OrasClient(hostname=server.host, insecure=True)
    client.pull(f"{server.host}/{repository}@{found['digest']}", outdir=str(tmp_path / "models"), allowed_media_type=[])
    path = json.loads(found["annotations"]["dev.model-artifacts.entry"])["file"]["path"]
    whole = listing(released.folder)
    wanted = {name: data for name, data in whole.items() if "/" not in name or name == path}
    assert listing(tmp_path / "models") == wanted
    with pipeline.load(tmp_path / "models") as model:
        assert model.entry.id == found["annotations"]["dev.model-artifacts.artifact"]


@pytest.mark.skipif(SKOPEO is None, reason="no client that knows no GPU: `apt-get install skopeo` brings one")
def test_a_client_that_knows_no_gpu_takes_no_engine(
    server: RegistryServer, url: str, repository: str, released: Release, tmp_path: Path
) -> None:
    """Podman and CRI-O choose as skopeo does: none of three engines; a file for processors, if the release has any."""
    write_release(tmp_path / "engines", 1000)
    push(f"{url}:engines", tmp_path / "engines")
    push(f"{url}:files", released.folder)
    for tag, expected in (("engines", "no image found in image index"), ("files", "operation on artifact with type")):
        command = [str(SKOPEO), "inspect", "--tls-verify=false", f"docker://{server.host}/{repository}:{tag}"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - fixed
        assert expected in done.stderr


# Refused: nothing is installed, the old release stays.


def test_a_flipped_blob_is_refused(server: RegistryServer, url: str, released: Release, tmp_path: Path) -> None:
    """Nothing is installed: before any release, and over one."""
    digest = push(url, released.folder).digest
    file = describe_file(released.folder / "tiny/onnx/fp32.onnx", released.folder)
    blob = server.blob(file.sha256)
    genuine = blob.read_bytes()
    try:
        blob.write_bytes(genuine[:-1] + bytes([genuine[-1] ^ 1]))
        with pytest.raises(StoreError, match="differs from its listed digest and was discarded"):
            pull(url, tmp_path / "models")
        assert not (tmp_path / "models").exists()
        blob.write_bytes(genuine[:-1])
        with pytest.raises(StoreError, match=r"fp32\.onnx"):
            pull(url, tmp_path / "models")
    finally:
        blob.write_bytes(genuine)
    assert pull(url, tmp_path / "models").digest == digest


def test_a_release_that_lacks_a_manifest_is_refused(
    proxy: Proxy, repository: str, released: Release, tmp_path: Path
) -> None:
    """As after a clean-up that knew no index."""
    url = proxy.url(repository)
    digest = push(url, released.folder).digest
    proxy.fault = lambda asked: Fault(404) if "/manifests/sha256:" in asked.path and digest not in asked.path else None
    with pytest.raises(StoreError, match="lacks a manifest of the release"):
        pull(url, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_release_without_the_right_signature_is_not_installed(
    url: str, released: Release, newer: Path, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    """Neither an unsigned one nor a stranger's; the installed one stays."""
    push(f"{url}:unsigned", newer)
    push(f"{url}:signed", released.folder)
    theirs = Verifier(pem(tmp_path, "theirs")[1])
    pull(f"{url}:signed", tmp_path / "models", verifier=Verifier(keys[1]))
    before = listing(tmp_path / "models")
    with pytest.raises(ReleaseError, match="has no signature"):
        pull(f"{url}:unsigned", tmp_path / "models", verifier=Verifier(keys[1]))
    with pytest.raises(ReleaseError, match="the signature does not hold"):
        pull(f"{url}:signed", tmp_path / "models", verifier=theirs)
    assert listing(tmp_path / "models") == before


# Garbage.


def test_garbage_is_what_no_tag_reaches(  # noqa: PLR0913 - fixtures
    server: RegistryServer, url: str, repository: str, released: Release, newer: Path, tmp_path: Path
) -> None:
    """It is listed first and deleted on demand; the other release, and what others have pushed, can be pulled."""
    old = push(url, newer).digest
    new = push(url, released.folder).digest
    image = document(server, repository, document(server, repository, LATEST)["manifests"][0]["digest"])
    put(server, repository, "theirs", {**image, "annotations": {"whose": "not ours"}})
    untagged = {**image, "annotations": {"whose": "not ours, and pulled by its digest"}}
    kept = f"sha256:{hashlib.sha256(json.dumps(untagged).encode()).hexdigest()}"
    put(server, repository, kept, untagged)
    empty = {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}
    put(server, repository, kept.replace(":", "-"), empty)
    put(server, repository, f"sha256-{'1' * 64}", image)
    assert collect_garbage(url, timedelta(hours=1)).paths == ()
    assert collect_garbage(url, timedelta(hours=1)).young > 0
    found = collect_garbage(url, NOW)
    assert f"manifests/sha256:{old}" in found.paths
    assert f"manifests/sha256:{new}" not in found.paths
    assert collect_garbage(url, NOW) == found
    assert collect_garbage(url, NOW, delete=True) == found
    assert collect_garbage(url, NOW).paths == ()
    with pytest.raises(StoreError, match="has no release"):
        pull(url, tmp_path / "models", old)
    assert pull(url, tmp_path / "models").digest == new
    assert document(server, repository, "theirs")["annotations"] == {"whose": "not ours"}
    assert document(server, repository, kept) == untagged
    push(url, newer)
    pull(url, tmp_path / "models", old)


def test_a_collection_tells_of_what_a_push_has_just_made_use_of(
    proxy: Proxy, repository: str, released: Release, newer: Path, tmp_path: Path
) -> None:
    """A tag that moves to a release while it is deleted is named; one that moves before that stops the collection."""
    url = proxy.url(repository)
    old = push(url, newer).digest
    push(url, released.folder)

    def moving(asked: Asked) -> None:
        if asked.method == "DELETE" and asked.path.endswith(old):
            proxy.fault = lambda _: None
            push(url, newer)

    proxy.fault = moving
    with pytest.raises(StoreError, match="a release that was just deleted") as caught:
        collect_garbage(url, NOW, delete=True)
    assert LATEST in str(caught.value)

    push(url, newer)
    old = push(url, released.folder).digest
    push(url, newer)
    listings: list[Asked] = []

    def early(asked: Asked) -> None:
        listings.append(asked)
        if sum("/tags/list" in item.path for item in listings) == 3:
            proxy.fault = lambda _: None
            move_tag(url, LATEST, old)

    proxy.fault = early
    with pytest.raises(StoreError, match="nothing was deleted"):
        collect_garbage(url, NOW, delete=True)
    assert pull(url, tmp_path / "models").digest == old


def test_a_registry_that_removes_nothing_says_so(released: Release, newer: Path, tmp_path: Path) -> None:
    """As docker's does by default."""
    with running(tmp_path / "registry", deletes=False) as server:
        url = server.url("team/tiny")
        push(url, newer)
        push(url, released.folder)
        with pytest.raises(StoreError, match="the registry removes nothing"):
            collect_garbage(url, NOW, delete=True)


# The command line.


def test_the_commands_say_what_they_did(
    url: str, released: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str], keys: tuple[Path, Path]
) -> None:
    """The commands push, tag, resolve, pull and gc take a registry's URL as they take any store's."""
    artifacts, folder = str(released.folder.parents[1]), str(tmp_path / "models")
    assert main(["push", f"{url}:1.4", "--artifacts", artifacts, "--tag", "prod"]) == 0
    said = capsys.readouterr().out
    assert "of tiny-cccccccccccc" in said
    digest = said.splitlines()[1].partition(" ")[2]
    assert said.splitlines()[1:] == [f"1.4 {digest}", f"prod {digest}"]
    assert main(["tag", url, "canary", "1.4"]) == 0
    assert main(["tag", url]) == 0
    assert capsys.readouterr().out.count("canary ") == 2
    assert main(["resolve", f"{url}:1.4", "--precision", "fp16"]) == 0
    assert f"file  {url}@sha256:" in capsys.readouterr().out
    assert main(["pull", f"{url}:1.4", folder, "--for-host", "--precision", "fp16", "--key", str(keys[1])]) == 0
    assert "the signature holds" in capsys.readouterr().out
    assert main(["verify", folder]) == 0
    assert "1 of 3 artifacts are here" in capsys.readouterr().out
    assert main(["pull", url, folder, "--release", digest]) == 0
    assert main(["gc", url]) == 0
    assert "0 objects are reached by no tag" in capsys.readouterr().out
