"""Check of a release's evidence: its CycloneDX bill of materials and its in-toto provenance (SLSA v1)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from model_artifacts.errors import ReleaseError, one_line

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


_BEYOND = {"provenance.intoto.json", "SHA256SUMS"}
"""Files written after the provenance, which therefore does not list them."""


def check_evidence(bill: str, statement: str, sums: Mapping[str, str], evidence: Collection[str]) -> None:
    """Check that a bill of materials and a provenance are valid and list the release's files.

    Args:
        bill: the bill of materials, CycloneDX JSON.
        statement: the provenance, in-toto JSON.
        sums: the SHA-256 of the release's files by name.
        evidence: the names of the release's own files, which belong to no artifact.

    Raises:
        ReleaseError: either document is damaged or lists other files.
    """
    from google.protobuf.json_format import ParseDict  # noqa: PLC0415 - not installed in deployments
    from in_toto_attestation.v1.statement import Statement  # noqa: PLC0415 - the same
    from in_toto_attestation.v1.statement_pb2 import Statement as Message  # noqa: PLC0415 - the same

    try:
        parsed = Statement.copy_from_pb(ParseDict(json.loads(statement), Message()))
        parsed.validate()
        subjects = {item.name: item.digest["sha256"] for item in parsed.pb.subject}
        components = {
            part["name"]: part["hashes"][0]["content"]
            for part in json.loads(bill)["components"]
            if part["type"] == "file"
        }
    except Exception as exc:  # of json, protobuf and in-toto, without a common base
        raise ReleaseError("the release's evidence is damaged", got=one_line(exc)) from exc
    before = {name: digest for name, digest in sums.items() if name not in _BEYOND}
    artifacts = {name: digest for name, digest in sums.items() if name not in evidence}
    for document, got, expected in (("provenance", subjects, before), ("bill of materials", components, artifacts)):
        if got != expected:
            different = sorted(name for name in got.keys() | expected.keys() if got.get(name) != expected.get(name))
            raise ReleaseError(f"the {document} does not match the release's files: {', '.join(different[:3])}")
