"""JSON Schema of the manifest, made from its records."""

from __future__ import annotations

import json

from model_artifacts.records.manifest import Manifest


def manifest_schema() -> str:
    """Return the JSON Schema of `artifacts/manifest.json` as text; `docs/manifest.schema.json` holds a copy."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Manifest.model_json_schema()}
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
