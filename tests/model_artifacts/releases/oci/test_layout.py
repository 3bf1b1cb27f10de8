"""Documents of a release in a registry, against the specification of ModelPack and against those who lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator

from model_artifacts.errors import ReleaseError, StoreError
from model_artifacts.records import CPU_TARGET, FileRecord, StoredRelease
from model_artifacts.releases.oci.documents import MAX_BYTES, ImageIndex, ImageManifest, parsed
from model_artifacts.releases.oci.layout import (
    check_offers,
    documents_of,
    index_of,
    listing_of,
    offers_of,
)
from tests.support.deployables import engine, module
from tests.support.hosts import H100, L4
from tests.support.manifests import entry, manifest, timing

if TYPE_CHECKING:
    from model_artifacts.records import Manifest, ManifestEntry
    from model_artifacts.releases.oci.layout import Documents

SCHEMA = Path(__file__).parents[3] / "support/schemas/modelpack-config.json"
WHERE = "oci://registry/team/tiny"


def file(path: str, digit: str) -> FileRecord:
    """Return the record of a file."""
    return FileRecord(path=path, bytes=10, sha256=digit * 64)


def with_file(made: ManifestEntry, digit: str) -> ManifestEntry:
    """Return an entry with a file of its own."""
    return made.model_copy(update={"file": file(f"{made.id}/engine.plan", digit)})


ENTRIES = (
    with_file(entry("cpu", timing(1, 2.0)).model_copy(update={"target": CPU_TARGET}), "a"),
    with_file(engine("h100", 0.25).model_copy(update={"target": "sm90-h100-80gb-hbm3"}), "b"),
    with_file(engine("l4", 0.75, gpu=L4).model_copy(update={"target": "sm89-l4"}), "c"),
    with_file(engine("rtx", gpu=None).model_copy(update={"target": "rtx-sm80+"}), "d"),
    with_file(module("module", 1.0), "e"),
)
EVIDENCE = (file("manifest.json", "1"), file("README.md", "2"))


def made(*entries: ManifestEntry) -> tuple[Documents, Manifest, StoredRelease]:
    """Return the documents of a release, its manifest and its files."""
    described = manifest(*entries)
    parts = {item.id: item.files for item in entries}
    files = (*EVIDENCE, *(record for records in parts.values() for record in records))
    listing = StoredRelease(name="tiny-cccccccccccc", files=tuple(sorted(files, key=lambda item: item.path)))
    return documents_of(listing, described, parts), described, listing


def test_every_manifest_is_a_modelpack() -> None:
    """Its configuration is valid by the specification's own schema, and its types are the specification's."""
    documents, _, _ = made(*ENTRIES)
    validator = Draft202012Validator(json.loads(SCHEMA.read_text()))
    for config, data in zip(documents.configs, documents.manifests, strict=True):
        validator.validate(json.loads(config))
        image = json.loads(data)
        assert image["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
        assert image["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
        assert image["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
        assert all(layer["mediaType"].startswith("application/vnd.cncf.model.") for layer in image["layers"])
        assert [layer["digest"] for layer in image["layers"]] == json.loads(config)["modelfs"]["diffIds"]
    with pytest.raises(Exception, match="modelfs"):
        validator.validate({"descriptor": {}, "config": {}})


def test_the_files_come_back() -> None:
    """All manifests together list the release, and the same release gives the same bytes."""
    documents, described, listing = made(*ENTRIES)
    index = index_of(documents.release, WHERE)
    images = [parsed(ImageManifest, data, WHERE) for data in documents.manifests]
    assert listing_of(index, images, WHERE) == listing
    assert made(*ENTRIES)[0] == documents
    for image, item in zip(images, described.artifacts, strict=True):
        paths = {layer.annotations["org.cncf.model.filepath"] for layer in image.layers}
        assert paths == {"manifest.json", "README.md", *(record.path for record in item.files)}


def test_a_client_that_knows_no_gpu_finds_none_of_its_files() -> None:
    """Such a client compares architecture, system and variant, as containerd does: a processor's files alone match."""
    index = json.loads(made(*ENTRIES)[0].release)
    plain = {"os": "linux", "architecture": "amd64"}
    matching = [item for item in index["manifests"] if item["platform"] == plain]
    assert [item["annotations"]["dev.model-artifacts.artifact"] for item in matching] == [ENTRIES[0].id]


def test_the_facts_are_there_to_read() -> None:
    """GPU, compute capability, TensorRT, precision, batch range, latency, gate and Triton's image."""
    index = json.loads(made(*ENTRIES)[0].release)
    known: dict[str, dict[str, str]] = {
        item["annotations"]["dev.model-artifacts.artifact"]: {
            name.removeprefix("dev.model-artifacts."): value for name, value in item["annotations"].items()
        }
        for item in index["manifests"]
    }
    h100 = known[ENTRIES[1].id]
    assert h100["gpu"] == H100.name
    assert h100["sm"] == "90"
    assert h100["tensorrt"] == "tensorrt 10.15.1.29"
    assert h100["p50"] == "0.25 ms at batch 1 on the GPU, as a CUDA graph"
    assert h100["triton"] == "nvcr.io/nvidia/tritonserver:26.02-py3"
    assert known[ENTRIES[3].id]["triton"].startswith("none")
    assert known[ENTRIES[3].id]["sm"] == "80,86,89,120"
    assert known[ENTRIES[4].id]["libraries"].startswith("torch 2.11.0, torch-tensorrt 2.11.0")


def test_an_engine_for_a_part_of_the_batch_says_so_to_other_tools() -> None:
    """TensorRT and Triton would run it at half of the batch that the index names."""
    whole = ENTRIES[1]
    assert whole.built_for is not None
    split = whole.model_copy(update={"built_for": whole.built_for.model_copy(update={"batch_parts": 2})})
    index = json.loads(made(split)[0].release)
    (facts,) = [item["annotations"] for item in index["manifests"]]
    assert facts["dev.model-artifacts.parts"] == "2 of a batch at once; the file is for one of them"
    assert facts["dev.model-artifacts.triton"].startswith("none")
    (offer,) = offers_of(index_of(made(split)[0].release, WHERE), WHERE)
    assert offer.entry.built_for == split.built_for
    assert "dev.model-artifacts.parts" not in json.loads(made(whole)[0].release)["manifests"][0]["annotations"]


def test_what_a_choice_depends_on_is_in_the_index() -> None:
    """The entries differ from the manifest's in what no choice reads."""
    documents, described, _ = made(*ENTRIES)
    index = index_of(documents.release, WHERE)
    for offer, item in zip(offers_of(index, WHERE), described.artifacts, strict=True):
        assert offer.entry.timings == item.timings
        assert offer.entry.built_for == item.built_for
        assert offer.entry.checks == ()
    check_offers(index, described, WHERE)


def changed(index: dict[str, Any], place: int, name: str, value: str) -> dict[str, Any]:
    """Return an index with another annotation."""
    index["manifests"][place]["annotations"][f"dev.model-artifacts.{name}"] = value
    return index


def test_an_index_that_lies_of_an_artifact_is_refused() -> None:
    """Another status, another order, an artifact more or less, and no description at all."""
    documents, described, _ = made(*ENTRIES)
    for lie in (
        lambda said: changed(said, 1, "entry", said["manifests"][2]["annotations"]["dev.model-artifacts.entry"]),
        lambda said: changed(
            said, 2, "entry", said["manifests"][2]["annotations"]["dev.model-artifacts.entry"].replace("0.75", "0.05")
        ),
        lambda said: {**said, "manifests": said["manifests"][1:]},
        lambda said: {**said, "manifests": said["manifests"][::-1]},
    ):
        index = index_of(json.dumps(lie(json.loads(documents.release))).encode(), WHERE)
        with pytest.raises(ReleaseError, match="describes artifacts otherwise"):
            check_offers(index, described, WHERE)
    index = index_of(json.dumps(changed(json.loads(documents.release), 1, "entry", "{}")).encode(), WHERE)
    with pytest.raises(StoreError, match="does not describe its artifacts"):
        check_offers(index, described, WHERE)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("../outside", "stay in their folder"),
        ("/etc/passwd", "stay in their folder"),
        ("manifest.json/x", "a file or a folder"),
        ("x\x1b[2J", "printable"),
        ("a/" * 20 + "x", "at most 16 names"),
    ],
    ids=["up", "absolute", "under-a-file", "unprintable", "deep"],
)
def test_a_manifest_that_leads_out_is_refused(path: str, message: str) -> None:
    """Before anything is fetched."""
    documents, _, _ = made(*ENTRIES)
    image = json.loads(documents.manifests[1])
    image["layers"][0]["annotations"]["org.cncf.model.filepath"] = path
    lying = parsed(ImageManifest, json.dumps(image).encode(), WHERE)
    images = [parsed(ImageManifest, data, WHERE) for data in documents.manifests]
    with pytest.raises(StoreError, match=message):
        listing_of(index_of(documents.release, WHERE), [*images, lying], WHERE)


def test_two_manifests_that_disagree_are_refused() -> None:
    """The same path with other bytes, no path, and more bytes than a release may have."""
    documents, _, _ = made(*ENTRIES)
    index = index_of(documents.release, WHERE)
    images = [parsed(ImageManifest, data, WHERE) for data in documents.manifests]
    other = json.loads(documents.manifests[0])
    other["layers"][-1]["digest"] = f"sha256:{'f' * 64}"
    with pytest.raises(StoreError, match="each path once"):
        listing_of(index, [*images, parsed(ImageManifest, json.dumps(other).encode(), WHERE)], WHERE)
    del other["layers"][-1]["annotations"]
    with pytest.raises(StoreError, match=r"is no release of this project"):
        listing_of(index, [parsed(ImageManifest, json.dumps(other).encode(), WHERE)], WHERE)
    huge = json.loads(documents.manifests[0])
    huge["layers"][0]["size"] = 2**50
    with pytest.raises(StoreError, match="is too large"):
        listing_of(index, [parsed(ImageManifest, json.dumps(huge).encode(), WHERE)], WHERE)


def test_other_indexes_are_no_releases() -> None:
    """Another type, another kind of manifest, manifests without end, and no JSON."""
    said = json.loads(made(*ENTRIES)[0].release)
    nested = {**said["manifests"][0], "mediaType": "application/vnd.oci.image.index.v1+json"}
    huge = {**said["manifests"][0], "size": MAX_BYTES + 1}
    for wrong in ({**said, "artifactType": "x/y"}, {**said, "manifests": [nested]}, {**said, "annotations": {}}):
        with pytest.raises(StoreError, match="is no release of this project"):
            index_of(json.dumps(wrong).encode(), WHERE)
    with pytest.raises(StoreError, match="are too large"):
        index_of(json.dumps({**said, "manifests": [huge]}).encode(), WHERE)
    with pytest.raises(StoreError, match="is no release of this project"):
        parsed(ImageIndex, b"<html>", WHERE)


def test_a_release_that_no_registry_takes_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """One without an artifact, and one whose index is larger than registries allow."""
    with pytest.raises(ReleaseError, match="no artifact that a host could pick"):
        made()
    monkeypatch.setattr("model_artifacts.releases.oci.layout.MAX_BYTES", 1000)
    with pytest.raises(ReleaseError, match="too many artifacts for a registry"):
        made(*ENTRIES)
