"""Transfers to and from a real registry that restarts, breaks off, lies, dawdles or refuses."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from model_artifacts.errors import ArtifactError, StorageError, StoreError
from model_artifacts.host.hashes import describe_file
from model_artifacts.records import LATEST
from model_artifacts.releases.oci.references import reference_of
from model_artifacts.releases.oci.registry import Registry
from model_artifacts.releases.signature import Verifier
from model_artifacts.releases.store import collect_garbage, pull, push, read_tags
from tests.support.faulty_proxy import Asked, Fault, Proxy, before
from tests.support.registries import needs_registry, running
from tests.support.stores import leftovers, listing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.stages.release.stage import Release

pytestmark = needs_registry

CHUNK = 200_000
LARGE = "report.html"
"""The largest file of a release: more than twenty such chunks."""


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release of a few MB goes in many chunks."""
    monkeypatch.setattr("model_artifacts.releases.oci.uploads._CHUNK", CHUNK)


def large(released: Release) -> int:
    """Return the size of a release's largest file in bytes."""
    return (released.folder / LARGE).stat().st_size


# Pushes.


def test_a_push_goes_on_after_the_registry_restarts(released: Release, tmp_path: Path) -> None:
    """With the bytes that it has, of a file that was half there."""
    with running(tmp_path / "registry") as server, before(server.port) as proxy:
        chunks: list[Asked] = []

        def restarting(asked: Asked) -> Fault | None:
            if asked.method == "PATCH":
                chunks.append(asked)
                if len(chunks) == 10:
                    server.stop()
                    server.start()
                    return Fault(502)  # of the machine before it, while it was away
            return None

        proxy.fault = restarting
        push(proxy.url("team/tiny"), released.folder)
        assert len(chunks) > 20
        assert sum(asked.sent for asked in chunks) <= large(released) + CHUNK
        pull(proxy.url("team/tiny"), tmp_path / "models")
        assert listing(tmp_path / "models") == listing(released.folder)


@pytest.mark.parametrize(
    "answer",
    [Fault(404), Fault(204), Fault(204, {"Range": "0-999999999999"})],
    ids=["unknown", "without-a-range", "more-than-there-is"],
)
def test_an_upload_that_the_registry_has_forgotten_begins_again(
    proxy: Proxy, repository: str, released: Release, tmp_path: Path, answer: Fault
) -> None:
    """As after a restart with another secret, or on another machine of a registry."""
    lost: list[Asked] = []

    def forgetting(asked: Asked) -> Fault | None:
        if asked.method == "PATCH" and not lost:
            lost.append(asked)
            return Fault(503)
        return answer if asked.method == "GET" and "/blobs/uploads/" in asked.path else None

    proxy.fault = forgetting
    push(proxy.url(repository), released.folder)
    assert lost
    pull(proxy.url(repository), tmp_path / "models")
    assert listing(tmp_path / "models") == listing(released.folder)


def test_a_lost_answer_spoils_nothing(proxy: Proxy, repository: str, released: Release, tmp_path: Path) -> None:
    """A file that is there is not sent again. Docker's registry forgets an upload after a chunk's lost answer."""
    dropped: list[str] = []

    def dropping(asked: Asked) -> Fault | None:
        if asked.method in {"PUT", "PATCH"} and "/blobs/uploads/" in asked.path and dropped.count(asked.method) < 2:
            dropped.append(asked.method)
            return Fault(drops=True)
        return None

    proxy.fault = dropping
    push(proxy.url(repository), released.folder)
    assert sorted(dropped) == ["PATCH", "PATCH", "PUT", "PUT"]
    finished = [asked.path.partition("digest=")[2] for asked in proxy.asked if "digest=" in asked.path]
    assert len(set(finished)) == len(finished)
    pull(proxy.url(repository), tmp_path / "models")
    assert listing(tmp_path / "models") == listing(released.folder)


def test_a_push_that_fails_is_not_seen_and_goes_on(
    proxy: Proxy, repository: str, released: Release, newer: Path, tmp_path: Path
) -> None:
    """The tag stands for the old release; the next push sends what is missing."""
    url = proxy.url(repository)
    old = push(url, newer).digest
    proxy.fault = lambda asked: Fault(503) if asked.method == "PUT" and "/manifests/" in asked.path else None
    with pytest.raises(StoreError, match="status 503"):
        push(url, released.folder)
    assert {tag.name: tag.release for tag in read_tags(url)} == {LATEST: old}
    assert pull(url, tmp_path / "models").digest == old
    proxy.fault = lambda _: None
    proxy.asked.clear()
    new = push(url, released.folder)
    assert new.sent == ()
    assert pull(url, tmp_path / "models").digest == new.digest


def test_a_registry_that_never_takes_a_chunk_is_given_up(proxy: Proxy, repository: str, released: Release) -> None:
    """After five attempts without a byte."""
    proxy.fault = lambda asked: Fault(502) if asked.method == "PATCH" else None
    with pytest.raises(StoreError, match="status 502"):
        push(proxy.url(repository), released.folder)
    assert 5 <= sum(asked.method == "PATCH" for asked in proxy.asked) <= 7


def test_a_file_that_changes_meanwhile_is_refused(url: str, tmp_path: Path) -> None:
    """The registry compares the digest."""
    file = tmp_path / "file"
    file.write_bytes(b"these bytes")
    registry = Registry(reference_of(url))
    with pytest.raises(StoreError, match="DIGEST_INVALID"):
        registry.upload("0" * 64, 11, file, lambda _: None)
    with pytest.raises(StorageError, match=r"reading .* failed"):
        registry.upload("0" * 64, 11, tmp_path / "absent", lambda _: None)
    assert registry.blob_bytes("0" * 64) is None


def test_a_server_that_names_no_upload_is_no_registry(proxy: Proxy, repository: str) -> None:
    """Any web server may answer 202."""
    proxy.fault = lambda asked: Fault(202) if asked.method == "POST" else None
    with pytest.raises(StoreError, match="names no place for an upload"):
        Registry(reference_of(proxy.url(repository))).write(b"{}")


# Pulls.


def test_a_broken_pull_goes_on_where_it_broke(proxy: Proxy, repository: str, released: Release, tmp_path: Path) -> None:
    """In the same command, and without a byte twice."""
    url = proxy.url(repository)
    push(url, released.folder)
    blob = describe_file(released.folder / LARGE, released.folder).sha256
    ranges: list[str] = []

    def breaking(asked: Asked) -> Fault | None:
        if asked.method == "GET" and asked.path.endswith(blob):
            ranges.append(asked.range)
            return Fault(cut_after=2 * 2**20) if len(ranges) < 3 else None
        return None

    proxy.fault = breaking
    pull(url, tmp_path / "models")
    assert ranges == ["", "bytes=2097152-", "bytes=4194304-"]
    assert listing(tmp_path / "models") == listing(released.folder)


def test_a_registry_without_ranges_begins_again(
    proxy: Proxy, repository: str, released: Release, tmp_path: Path
) -> None:
    """The whole file replaces what was there of it."""
    url = proxy.url(repository)
    push(url, released.folder)
    blob = describe_file(released.folder / LARGE, released.folder)
    data = (released.folder / LARGE).read_bytes()
    asked_for: list[Asked] = []

    def rangeless(asked: Asked) -> Fault | None:
        if asked.method == "GET" and asked.path.endswith(blob.sha256):
            asked_for.append(asked)
            return Fault(200, body=data, cut_after=2**20 if len(asked_for) == 1 else None)
        return None

    proxy.fault = rangeless
    pull(url, tmp_path / "models")
    assert len(asked_for) == 2
    assert listing(tmp_path / "models") == listing(released.folder)


def is_begun(folder: Path) -> bool:
    """Return whether a pull in a folder has more than a MiB of the largest file, which moves away once it is whole."""
    name = hashlib.sha256(LARGE.encode()).hexdigest()
    try:
        return any(part.stat().st_size > 2**20 for part in folder.glob(f".pulling-*/parts/{name}.part"))
    except FileNotFoundError:
        return False


def test_a_killed_pull_goes_on_with_the_next(proxy: Proxy, repository: str, released: Release, tmp_path: Path) -> None:
    """Another command, from the bytes on disk; the old release stays until then."""
    url = proxy.url(repository)
    push(url, released.folder)
    blob = describe_file(released.folder / LARGE, released.folder).sha256
    ranges: list[str] = []

    def slow(asked: Asked) -> Fault | None:
        if asked.method == "GET" and asked.path.endswith(blob):
            ranges.append(asked.range)
            return Fault(seconds=0.05)
        return None

    proxy.fault = slow
    command = [sys.executable, "-m", "model_artifacts", "pull", url, str(tmp_path / "models")]
    running_pull = subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL)  # noqa: S603 - fixed
    until = time.monotonic() + 60
    while not is_begun(tmp_path):
        assert time.monotonic() < until
        assert running_pull.poll() is None
        time.sleep(0.01)
    running_pull.send_signal(signal.SIGKILL)
    running_pull.wait()
    assert not (tmp_path / "models").exists()
    proxy.fault = lambda asked: ranges.append(asked.range) if asked.path.endswith(blob) else None
    pull(url, tmp_path / "models")
    assert ranges[0] == ""
    assert int(ranges[1].removeprefix("bytes=").removesuffix("-")) > 2**20
    assert listing(tmp_path / "models") == listing(released.folder)
    assert leftovers(tmp_path / "models") == []


def test_a_slow_registry_is_waited_for(
    proxy: Proxy, repository: str, released: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as bytes come: silence counts, not the time of a file."""
    monkeypatch.setattr("model_artifacts.releases.oci.transport._SILENT_SECONDS", 1.0)
    url = proxy.url(repository)
    push(url, released.folder)
    proxy.fault = lambda asked: Fault(seconds=0.02) if "/blobs/" in asked.path else None
    start = time.monotonic()
    pull(url, tmp_path / "models")
    assert time.monotonic() - start > 1.5
    assert listing(tmp_path / "models") == listing(released.folder)


def flipped(data: bytes) -> bytes:
    """Return bytes with another bit in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    ("kind", "message"),
    [("/blobs/", "differs from its listed digest"), ("/manifests/sha256:", "gave other bytes than those asked for")],
    ids=["blob", "manifest"],
)
def test_a_bit_that_flips_on_the_way_is_refused(  # noqa: PLR0913 - fixtures
    proxy: Proxy, repository: str, released: Release, newer: Path, tmp_path: Path, *, kind: str, message: str
) -> None:
    """Of a file or of a manifest: the old release stays, byte for byte."""
    url = proxy.url(repository)
    push(url, newer, ["old"])
    push(url, released.folder)
    pull(url, tmp_path / "models", "old")
    before_it = listing(tmp_path / "models")
    proxy.fault = lambda asked: Fault(altered=flipped) if asked.method == "GET" and kind in asked.path else None
    with pytest.raises(StoreError, match=message):
        pull(url, tmp_path / "models")
    assert listing(tmp_path / "models") == before_it


def relisted(url: str, change: Callable[[dict[str, Any], list[dict[str, Any]]], object]) -> None:
    """Have the tag stand for documents that somebody with the right to push has changed, digests and all."""
    registry = Registry(reference_of(url))
    index = registry.manifest(LATEST)
    assert index is not None
    said = json.loads(index.data)
    found = [registry.manifest(item["digest"]) for item in said["manifests"]]
    images = [json.loads(stored.data) for stored in found if stored]
    change(said, images)
    for item, image in zip(said["manifests"], images, strict=True):
        data = json.dumps(image).encode()
        item["digest"], item["size"] = f"sha256:{hashlib.sha256(data).hexdigest()}", len(data)
        registry.put_manifest(item["digest"], found[0]._replace(data=data) if found[0] else index)
    registry.put_manifest(LATEST, index._replace(data=json.dumps(said).encode()))


LIES: dict[str, tuple[Callable[[dict[str, Any], list[dict[str, Any]]], object], str]] = {
    "size": (lambda _, images: images[0]["layers"][-1].update(size=1), "each path once"),
    "every-size": (
        lambda _, images: [image["layers"][-1].update(size=1) for image in images],
        "differs from its listed",
    ),
    "path": (
        lambda _, images: images[0]["layers"][0]["annotations"].update({"org.cncf.model.filepath": "../../x"}),
        "stay in their folder",
    ),
    "less": (lambda _, images: [image["layers"].pop(2) for image in images], "does not match|is missing|has no|lacks"),
    "name": (
        lambda said, _: said["annotations"].update({"dev.model-artifacts.release": "other"}),
        "under another name than it was signed with",
    ),
    "praise": (
        lambda said, _: said["manifests"][0]["annotations"].update(
            {
                "dev.model-artifacts.entry": said["manifests"][0]["annotations"]["dev.model-artifacts.entry"].replace(
                    '"p50_ms":0.', '"p50_ms":0.000'
                )
            }
        ),
        "describes artifacts otherwise",
    ),
    "type": (lambda said, _: said.update(artifactType="application/x"), "is no release of this project"),
}


@pytest.mark.parametrize("lie", LIES)
def test_documents_that_lie_are_refused(
    url: str, released: Release, tmp_path: Path, keys: tuple[Path, Path], lie: str
) -> None:
    """Whoever may push can make documents whose digests are right: nothing of them is installed."""
    push(url, released.folder)
    change, message = LIES[lie]
    relisted(url, change)
    with pytest.raises(ArtifactError, match=message):
        pull(url, tmp_path / "models", verifier=Verifier(keys[1]))
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(("status", "message"), [(401, "docker login"), (404, "has no tag"), (500, "try again later")])
def test_a_refused_pull_changes_nothing(  # noqa: PLR0913 - fixtures
    proxy: Proxy, repository: str, released: Release, tmp_path: Path, *, status: int, message: str
) -> None:
    """The old release stays, and the message says what to do."""
    url = proxy.url(repository)
    push(url, released.folder)
    pull(url, tmp_path / "models")
    proxy.fault = lambda asked: Fault(status) if "/manifests/" in asked.path else None
    with pytest.raises(StoreError, match=message):
        pull(url, tmp_path / "models")
    assert listing(tmp_path / "models") == listing(released.folder)


# Lists.


def answering(body: bytes) -> Callable[[Asked], Fault]:
    """Return a fault that is an answer to everything."""
    return lambda _: Fault(200, body=body)


def test_tags_come_in_pages(proxy: Proxy, repository: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page names the next one; an answer that is no list is told."""
    pages = {
        "n=1000": Fault(200, {"Link": f'</v2/{repository}/tags/list?last=b>; rel="next"'}, b'{"tags": ["b", "a"]}'),
        "last=b": Fault(200, body=b'{"tags": ["c", 7]}'),
    }
    proxy.fault = lambda asked: pages[asked.path.partition("?")[2]]
    registry = Registry(reference_of(proxy.url(repository)))
    assert registry.tags() == ["a", "b", "c"]
    proxy.fault = lambda _: Fault(200, body=b'{"tags": null}')
    assert registry.tags() == []
    for odd in (b"[]", b"<html>", b"{}", b'{"tags": 7}'):
        proxy.fault = answering(odd)
        with pytest.raises(StoreError, match="the list of tags cannot be read"):
            registry.tags()
    monkeypatch.setattr("model_artifacts.releases.oci.registry._MAX_TAGS", 10)
    again = {"Link": f'</v2/{repository}/tags/list?again=1>; rel="next"'}
    proxy.fault = lambda _: Fault(200, again, b'{"tags": [7]}')
    with pytest.raises(StoreError, match="has too many tags"):
        registry.tags()


def test_a_tag_whose_digest_is_not_stated_is_read(proxy: Proxy, url: str, repository: str, released: Release) -> None:
    """The header is optional."""
    digest = push(url, released.folder).digest
    proxy.fault = lambda asked: Fault(200) if asked.method == "HEAD" else None
    assert Registry(reference_of(proxy.url(repository))).digest_of(LATEST) == digest


def test_a_registry_that_keeps_referrers_has_rules_of_its_own(proxy: Proxy, repository: str, released: Release) -> None:
    """No list is written at a fallback tag there, and garbage is not looked for in vain."""
    subject = {"OCI-Subject": f"sha256:{'0' * 64}"}
    proxy.fault = lambda asked: Fault(headers=subject) if asked.method == "PUT" else None
    digest = push(proxy.url(repository), released.folder).digest
    assert not [asked for asked in proxy.asked if f"sha256-{digest}" in asked.path]
    proxy.fault = lambda asked: Fault(200, body=b"{}") if "/referrers/" in asked.path else None
    with pytest.raises(StoreError, match="keeps referrers itself"):
        collect_garbage(proxy.url(repository), timedelta(0))
