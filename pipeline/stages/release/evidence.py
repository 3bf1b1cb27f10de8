"""Evidence of a release: CycloneDX bill of materials, in-toto statement with SLSA provenance, and licences."""

from __future__ import annotations

import importlib.metadata
import json
import os
import uuid
from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.host.environment import version

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from packageurl import PackageURL

    from model_artifacts.records import FileRecord, GitState, Manifest, Tool


_PROJECT = "model-artifacts"
_PREDICATE = "https://slsa.dev/provenance/v1"
_BUILD_TYPE = "urn:model-artifact-pipeline:doit:v1"
_BUILDER = "urn:model-artifact-pipeline:local"
"""Builder outside GitHub's workflows; only a signature identifies the person."""

_NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")
"""UUID namespace of URLs (RFC 9562)."""


def tools_of(manifest: Manifest) -> tuple[Tool, ...]:
    """Return the tools that made a manifest's artifacts, sorted, each version once."""
    tools = {(tool.name, tool.version): tool for entry in manifest.artifacts for tool in entry.toolchain}
    return tuple(tools[key] for key in sorted(tools) if key[1] != "absent")


def bill_of_materials(manifest: Manifest, files: Sequence[FileRecord]) -> str:
    """Return a CycloneDX 1.6 document in JSON: the model, its files with digests, and the tools that made them.

    Args:
        manifest: the release's manifest.
        files: the files of its artifacts.
    """
    from cyclonedx.model import HashAlgorithm, HashType  # noqa: PLC0415 - not installed in deployments
    from cyclonedx.model.bom import Bom, BomMetaData  # noqa: PLC0415 - the same
    from cyclonedx.model.component import Component, ComponentType  # noqa: PLC0415 - the same
    from cyclonedx.output.json import JsonV1Dot6  # noqa: PLC0415 - the same

    def hashed(sha256: str) -> list[HashType]:
        return [HashType(alg=HashAlgorithm.SHA_256, content=sha256)]

    model = manifest.model
    root = Component(
        name=model.name if model else "model",
        version=manifest.key.digest[:12],
        type=ComponentType.MACHINE_LEARNING_MODEL,
        description=f"{model.weights_origin.value}: {model.weights_detail}" if model else None,
        bom_ref="model",
    )
    parts = [
        Component(name=file.path, type=ComponentType.FILE, hashes=hashed(file.sha256), bom_ref=f"file:{file.path}")
        for file in files
    ]
    parts += [
        Component(
            name=tool.name,
            version=tool.version,
            type=ComponentType.LIBRARY,
            purl=_purl(tool),
            bom_ref=f"tool:{tool.name}@{tool.version}",
        )
        for tool in tools_of(manifest)
    ]
    bom = Bom(
        components=parts,
        metadata=BomMetaData(component=root, timestamp=manifest.built_at),
        serial_number=uuid.uuid5(_NAMESPACE, manifest.to_json()),
    )
    bom.register_dependency(root, parts)
    return str(JsonV1Dot6(bom).output_as_string(indent=2)) + "\n"


def _purl(tool: Tool) -> PackageURL:
    """Return the package URL of a tool."""
    from packageurl import PackageURL  # noqa: PLC0415 - not installed in deployments

    return PackageURL("generic" if tool.name == "python" else "pypi", name=tool.name, version=tool.version)


class ReleaseRequest(NamedTuple):
    """Parameters of a release, for its provenance."""

    commits: tuple[GitState, ...]
    """Checkouts that made the artifacts, then the manifest's, each once."""
    options: tuple[str, ...]
    """Options of the command line, without paths of keys."""


def _builder() -> tuple[str, dict[str, str]]:
    """Return the builder's id and its run; in GitHub's CI the workflow, named as in its OIDC tokens."""
    environment = os.environ
    if not environment.get("GITHUB_WORKFLOW_REF"):
        return _BUILDER, {}
    server = environment.get("GITHUB_SERVER_URL", "https://github.com")
    run = f"{environment.get('GITHUB_REPOSITORY', '')}/actions/runs/{environment.get('GITHUB_RUN_ID', '')}"
    attempt = environment.get("GITHUB_RUN_ATTEMPT", "1")
    return f"{server}/{environment['GITHUB_WORKFLOW_REF']}", {"invocationId": f"{server}/{run}/attempts/{attempt}"}


def provenance(manifest: Manifest, sums: Mapping[str, str], request: ReleaseRequest, inputs: Mapping[str, str]) -> str:
    """Return an in-toto statement in JSON, with SLSA v1 provenance of every file.

    Args:
        manifest: the release's manifest.
        sums: the SHA-256 of the release's files by name.
        request: the parameters of the release.
        inputs: the SHA-256 by name of inputs outside the release: first the configuration, then the images' record
            and proposals of places.
    """
    from google.protobuf.json_format import MessageToDict  # noqa: PLC0415 - not installed in deployments
    from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor  # noqa: PLC0415 - the same
    from in_toto_attestation.v1.statement import Statement  # noqa: PLC0415 - the same

    materials: list[dict[str, Any]] = [{"name": name, "digest": {"sha256": sha256}} for name, sha256 in inputs.items()]
    for state in request.commits:
        dirty = " (with changes that are not committed)" if state.dirty else ""
        materials.append({"name": f"source checkout{dirty}", "digest": {"gitCommit": state.commit}})
    if manifest.model:
        materials.append({"name": manifest.model.weights_detail, "digest": {"sha256": manifest.model.weights_sha256}})
    materials += [{"uri": _purl(tool).to_string()} for tool in tools_of(manifest)]
    builder, run = _builder()
    predicate = {
        "buildDefinition": {
            "buildType": _BUILD_TYPE,
            "externalParameters": {
                "configuration": next(iter(inputs)),
                "command": " ".join(["doit release", *request.options]),
            },
            "internalParameters": {"host": manifest.host},
            "resolvedDependencies": materials,
        },
        "runDetails": {
            "builder": {"id": builder, "version": {"pipeline": version(_PROJECT)}},
            "metadata": {**run, "finishedOn": manifest.built_at.isoformat().replace("+00:00", "Z")},
        },
    }
    subjects = [ResourceDescriptor(name=name, digest={"sha256": digest}).pb for name, digest in sums.items()]
    statement = Statement(subjects, _PREDICATE, predicate)
    statement.validate()
    return json.dumps(MessageToDict(statement.pb), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def notices(manifest: Manifest) -> str:
    """Return the licences of the tools that made the artifacts, as their packages state them."""
    model = manifest.model
    lines = ["Tools that made these artifacts, with the licence that each package states.", ""]
    lines += [f"{tool.name} {tool.version}: {_licence(tool)}" for tool in tools_of(manifest)]
    if model:
        data = "images" if model.preprocessing else "data"
        lines += ["", f"Weights: {model.weights_origin.value}, {model.weights_detail}; {data}: {model.images}."]
    lines += [
        "",
        "The terms of the weights and of the images are those of their providers; they are not stated here.",
        "",
        f"{_PROJECT}, which made the release:",
        "",
        _own_licence(),
    ]
    return "\n".join(lines) + "\n"


def _own_licence() -> str:
    """Return the full text of this project's licence, or its SPDX id if the text is not installed."""
    try:
        return importlib.metadata.distribution(_PROJECT).read_text("licenses/LICENSE") or "Apache-2.0"
    except importlib.metadata.PackageNotFoundError:
        return "Apache-2.0"


def _licence(tool: Tool) -> str:
    if tool.name == "python":
        return "PSF-2.0"
    try:
        metadata = importlib.metadata.metadata(tool.name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed where this was written"
    classifiers = [text.rpartition(" :: ")[2] for text in metadata.get_all("Classifier") or () if "License ::" in text]
    fields = [
        *(metadata.get_all("License-Expression") or ()),
        "; ".join(classifiers),
        *(metadata.get_all("License") or ()),
    ]
    return next((field.strip().splitlines()[0] for field in fields if field.strip()), "states none")
