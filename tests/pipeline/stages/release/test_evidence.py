"""A release's evidence: bill of materials, provenance and notices."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from model_artifacts.host.hashes import sha256_of
from model_artifacts.records import GitState, Graph
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.release.stage import Release, make_release, read_by
from tests.conftest import COMMIT, REPOSITORY
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


def test_the_bill_of_materials_is_valid_and_complete(released: Release) -> None:
    """The bill satisfies CycloneDX's schema, with every file's digest and every tool's version."""
    text = (released.folder / "bom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    parts = json.loads(text)["components"]
    files = {part["name"]: part["hashes"][0]["content"] for part in parts if part["type"] == "file"}
    assert files == {entry.file.path: entry.file.sha256 for entry in released.manifest.artifacts if entry.file}
    assert {"torch", "onnx", "python"} <= {part["name"] for part in parts if part["type"] == "library"}


def test_the_provenance_names_commit_weights_and_tools(released: Release) -> None:
    """The provenance follows in-toto and SLSA, and covers every file that existed then."""
    statement = json.loads((released.folder / "provenance.intoto.json").read_text())
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    materials = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    digests = [material.get("digest", {}) for material in materials]
    assert {"gitCommit": "c" * 40} in digests
    assert released.manifest.model is not None
    assert {"sha256": released.manifest.model.weights_sha256} in digests
    assert any(material.get("uri", "").startswith("pkg:pypi/torch@") for material in materials)
    named = {item["name"] for item in statement["subject"]}
    assert named == listing(released.folder) - {"SHA256SUMS", "model.sig", "provenance.intoto.json"}


def test_the_provenance_names_what_was_asked_for_and_read(
    project: Project, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration by its own name, the options, and the record of the images by its digest."""
    (copied / "pipeline.yaml").rename(copied / "ci.yaml")
    monkeypatch.setattr("pipeline.planning.project.git_state", lambda _: GitState(commit="c" * 40, dirty=True))
    made = make_release(Project.load(copied / "ci.yaml", STAGES), allow_dirty=True)
    build = json.loads((made.folder / "provenance.intoto.json").read_text())["predicate"]["buildDefinition"]
    assert build["externalParameters"] == {"configuration": "ci.yaml", "command": "doit release --allow-dirty"}
    known = {item["name"]: item["digest"] for item in build["resolvedDependencies"] if "name" in item}
    assert known["ci.yaml"] == {"sha256": sha256_of(copied / "ci.yaml")}
    assert known["data.json"] == {"sha256": sha256_of(project.paths.data)}


@pytest.mark.parametrize("placement", ["auto", "model_optimizer"])
def test_the_provenance_names_the_proposals_that_were_read(copied: Path, placement: str) -> None:
    """Without them nobody could make the int8 graph again; a proposal that no graph took is no input."""
    config = copied / "pipeline.yaml"
    config.write_text(f"{config.read_text()}quantization: {{placement: {placement}}}\n")
    project = Project.load(config, STAGES)
    proposal = project.paths.proposal(Graph.INT8)
    proposal.write_text("{}")
    assert [path.name for path in read_by(project)] == [
        "pipeline.yaml",
        "data.json",
        *([proposal.name] if placement == "model_optimizer" else []),
    ]


@pytest.mark.parametrize("in_ci", [True, False])
def test_the_provenance_names_the_workflow_that_built(
    project: Project, monkeypatch: pytest.MonkeyPatch, *, in_ci: bool
) -> None:
    """In CI the builder is the workflow, in the form of GitHub's certificates; elsewhere it is unknown."""
    told = {
        "GITHUB_SERVER_URL": "https://github.com",
        "GITHUB_REPOSITORY": "team/models",
        "GITHUB_WORKFLOW_REF": "team/models/.github/workflows/release.yml@refs/tags/v1",
        "GITHUB_RUN_ID": "7",
        "GITHUB_RUN_ATTEMPT": "2",
    }
    for name, value in told.items():
        monkeypatch.setenv(name, value if in_ci else "")
    made = make_release(project)
    run = json.loads((made.folder / "provenance.intoto.json").read_text())["predicate"]["runDetails"]
    workflow = "https://github.com/team/models/.github/workflows/release.yml@refs/tags/v1"
    assert run["builder"]["id"] == (workflow if in_ci else "urn:model-artifact-pipeline:local")
    attempt = "https://github.com/team/models/actions/runs/7/attempts/2"
    assert run["metadata"].get("invocationId") == (attempt if in_ci else None)


def test_licences_are_stated_where_packages_state_them(released: Release) -> None:
    """Each package has one line with its licence."""
    text = (released.folder / "NOTICES.txt").read_text()
    assert "onnx 1.23.2: Apache-2.0" in text
    assert "states none" not in text
    assert (REPOSITORY / "LICENSE").read_text() in text
