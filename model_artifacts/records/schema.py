"""JSON Schema of the manifest, made from its records."""

from __future__ import annotations

import json

from model_artifacts.records.manifest import Manifest

_DIGEST = "SHA-256 of the file without the line of this digest, which is the second one."


def manifest_schema() -> str:
    """Return the JSON Schema of `artifacts/manifest.json` as text; `docs/manifest.schema.json` holds a copy."""
    plain = Manifest.model_json_schema()
    digest = {"pattern": "^[0-9a-f]{64}$", "title": "Digest", "type": "string", "description": _DIGEST}
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **plain,
        "properties": {"digest": digest, **plain["properties"]},
        "required": ["digest", *plain["required"]],
    }
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
