"""The manifest's JSON Schema, and its copy in the documentation."""

from __future__ import annotations

import json

from model_artifacts.records import Manifest, manifest_schema
from tests.conftest import REPOSITORY


def test_documentation_holds_the_schema() -> None:
    """docs/manifest.schema.json equals the schema of the records, byte for byte."""
    assert (REPOSITORY / "docs" / "manifest.schema.json").read_text(encoding="utf-8") == manifest_schema()


def test_schema_names_its_dialect() -> None:
    """A validator learns from the schema which dialect it is in."""
    assert json.loads(manifest_schema())["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_schema_has_every_field_of_the_manifest() -> None:
    """Each field of the manifest and the digest of its file are described, and no other is allowed."""
    schema = json.loads(manifest_schema())
    assert sorted(schema["properties"]) == sorted({"digest", *Manifest.model_fields})
    assert schema["additionalProperties"] is False


def test_every_part_of_the_schema_is_closed_and_described() -> None:
    """No object within the manifest allows unknown keys or lacks a description."""
    parts = json.loads(manifest_schema())["$defs"].values()
    objects = [part for part in parts if part["type"] == "object"]
    assert len(objects) > 10
    assert [part["title"] for part in objects if part["additionalProperties"] is not False] == []
    assert [part["title"] for part in parts if not part.get("description")] == []
