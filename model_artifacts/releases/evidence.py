"""What a release says of itself in the formats that others read: CycloneDX, in-toto with SLSA provenance, licences."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from model_artifacts.errors import ReleaseError, one_line

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


_BEYOND = {"provenance.intoto.json", "SHA256SUMS"}
"""Files that come after the provenance."""


def check_evidence(bill: str, statement: str, sums: Mapping[str, str], evidence: Collection[str]) -> None:
    """Check that a bill of materials and a provenance are what they should be, and tell of the files that are there.

    Args:
        bill: CycloneDX, JSON.
        statement: in-toto, JSON.
        sums: the release's files' digests by name.
        evidence: names of files that are no artifacts'.

    Raises:
        ReleaseError: one is damaged, or tells of other files.
    """
    from google.protobuf.json_format import ParseDict  # noqa: PLC0415 - not installed in deployments
    from in_toto_attestation.v1.statement import Statement  # noqa: PLC0415 - the same
    from in_toto_attestation.v1.statement_pb2 import Statement as Message  # noqa: PLC0415 - the same

    try:
        parsed = Statement.copy_from_pb(ParseDict(json.loads(statement), Message()))
        parsed.validate()
        told = {item.name: item.digest["sha256"] for item in parsed.pb.subject}
        listed = {
            part["name"]: part["hashes"][0]["content"]
            for part in json.loads(bill)["components"]
            if part["type"] == "file"
        }
    except Exception as exc:  # of json, protobuf and in-toto, without a common base
        raise ReleaseError("the release's evidence is damaged", got=one_line(exc)) from exc
    before = {name: digest for name, digest in sums.items() if name not in _BEYOND}
    artifacts = {name: digest for name, digest in sums.items() if name not in evidence}
    for what, got, expected in (("provenance", told, before), ("bill of materials", listed, artifacts)):
        if got != expected:
            different = sorted(name for name in got.keys() | expected.keys() if got.get(name) != expected.get(name))
            raise ReleaseError(f"the {what} tells of other files: {', '.join(different[:3])}")
