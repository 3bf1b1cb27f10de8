"""The choice of an artifact by a registry's index alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from model_artifacts.cli.main import main
from model_artifacts.deployment.loading import resolve
from model_artifacts.deployment.requirements import Requirements
from model_artifacts.deployment.resolution import resolve_entry
from model_artifacts.errors import ResolveError, StoreError
from model_artifacts.records import CPU_TARGET, Backend, FileRecord
from model_artifacts.releases.oci.documents import INDEX_TYPE, describe
from model_artifacts.releases.oci.offers import Offered, read_offers, resolve_offered
from model_artifacts.releases.oci.references import reference_of
from model_artifacts.releases.oci.registry import Registry, Stored
from model_artifacts.releases.store import pull, push
from tests.support.deployables import engine, machine
from tests.support.faulty_proxy import Fault
from tests.support.hosts import H100, L4
from tests.support.manifests import entry, manifest, timing
from tests.support.registries import needs_registry

if TYPE_CHECKING:
    from pathlib import Path

    from model_artifacts.records import ManifestEntry
    from pipeline.stages.release.stage import Release
    from tests.support.faulty_proxy import Proxy


def offered(*entries: ManifestEntry, factory: str = "") -> Offered:
    """Return artifacts as an index describes them."""
    digests = tuple(f"{number:064x}" for number in range(len(entries)))
    return Offered("tiny", "f" * 64, entries, digests, factory, "oci://registry/team/tiny")


@needs_registry
def test_no_file_is_fetched(
    proxy: Proxy, repository: str, released: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The choice is that of the folder, by one request for the tag and one for the index."""
    url = proxy.url(repository)
    pushed = push(f"{url}:1.4", released.folder)
    proxy.asked.clear()
    wishes = Requirements(precision="fp16")
    read = read_offers(f"{url}:1.4")
    found = resolve_offered(read, wishes)
    assert [asked.path.rpartition("/")[2] for asked in proxy.asked] == ["1.4", f"sha256:{pushed.digest}"]
    expected = resolve(released.folder, wishes)
    assert found.entry.id == expected.entry.id
    assert found.latency_ms == expected.latency_ms
    assert [item.id for item in found.rejected] == [item.id for item in expected.rejected]
    assert read.place_of(found.entry).startswith(f"{url}@sha256:")
    assert main(["resolve", f"{url}:1.4", "--precision", "fp16", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["id"] == expected.entry.id
    assert said["file"] == read.place_of(found.entry)
    pulled = pull(f"{url}:1.4", tmp_path / "models", for_host=wishes)
    assert pulled.entry is not None
    assert pulled.entry.id == said["id"]


@needs_registry
def test_what_is_no_release_of_ours_offers_nothing(proxy: Proxy, repository: str) -> None:
    """Another index, no repository, and a busy registry."""
    url = proxy.url(repository)
    with pytest.raises(StoreError, match="no such repository, or no tag in it"):
        read_offers(url)
    data = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'
    Registry(reference_of(url)).put_manifest("latest", Stored(data, INDEX_TYPE))
    with pytest.raises(StoreError, match="is no release of this project"):
        read_offers(url)
    assert describe(data, INDEX_TYPE).size == len(data)
    proxy.fault = lambda _: Fault(503)
    with pytest.raises(StoreError, match="status 503"):
        read_offers(url)


def test_each_host_is_offered_its_own() -> None:
    """An engine of another GPU is never offered; hosts without a GPU get the processor's file."""
    plan = FileRecord(path="x", bytes=1, sha256="a" * 64)
    entries = (
        entry("cpu", timing(1, 2.0)).model_copy(update={"target": CPU_TARGET, "file": plan}),
        engine("h100", 0.25),
        engine("l4", 0.75, gpu=L4),
    )
    there = offered(*entries)
    for host, expected in ((machine(H100), entries[1]), (machine(L4), entries[2]), (machine(), entries[0])):
        found = resolve_offered(there, Requirements(), host)
        assert found.entry == expected
        assert found == resolve_entry(manifest(*entries), host, Requirements())
    assert there.place_of(entries[2]) == f"oci://registry/team/tiny@sha256:{2:064x}"
    with pytest.raises(ResolveError, match="no artifact"):
        resolve_offered(offered(entries[1]), Requirements(), machine())


def test_a_recipe_needs_its_factory_here() -> None:
    """For this machine; what another one has installed is not known."""
    recipe = entry("recipe").model_copy(update={"backend": Backend.TORCH_COMPILE})
    with pytest.raises(ResolveError, match="absent_package:make, which is not installed here"):
        resolve_offered(offered(recipe, factory="absent_package:make"), Requirements())
    with pytest.raises(ResolveError, match="does not record the libraries"):
        resolve_offered(offered(recipe, factory="absent_package:make"), Requirements(), machine(H100))
