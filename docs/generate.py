"""Generator of the docs from docstrings: `doit docs` runs it, and a test compares its output with the files.

api.md                the public API
manifest.md           the records of artifacts/manifest.json
manifest.schema.json  the same records as JSON Schema
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from griffe import Alias, Attribute, Class, GriffeLoader, Object
from griffe2md import ConfigDict, render_object_docs

import model_artifacts
from model_artifacts import records
from model_artifacts.records import manifest_schema

_FOLDER = Path(__file__).parent
_API = """\
# The public API

The functions and classes of `import model_artifacts`, for machines that run artifacts. Install them with
`pip install "model-artifacts[tensorrt-rtx]"`. The extras `tensorrt`, `tensorrt-rtx`, `onnxruntime` and
`onnxruntime-gpu` run artifacts; `verify` with `store` or `oci` pulls releases. None of them brings torch or doit. Every
expected failure raises an `ArtifactError`, whose text names the failure, the place, the expected and the actual value,
and the fix. This page is generated: `doit docs`.

"""
_MANIFEST = """\
# artifacts/manifest.json

The records of the manifest, field by field; [manifest.schema.json](manifest.schema.json) is the same for programs. A
diff of two manifests is readable: keys and artifacts are sorted, and `built_at` is the only time. Names of fields
contain the units. This page is generated: `doit docs`.

"""
_CONFIG = ConfigDict(
    heading_level=2,
    show_root_full_path=False,
    show_object_full_path=False,
    show_category_heading=False,
    separate_signature=True,
    show_signature_annotations=True,
    signature_crossrefs=False,
    summary=False,
    members_order="source",
    filters=["!^_", "!^model_"],
)


def generated() -> dict[Path, str]:
    """Return each generated file and its text."""
    loader = GriffeLoader(
        docstring_parser="google", docstring_options={"returns_multiple_items": False, "returns_named_value": False}
    )
    package = loader.load("model_artifacts")
    loader.resolve_aliases()
    public = [package[name].final_target for name in model_artifacts.__all__]
    schema = manifest_schema()
    documented = [package[f"records.{name}"] for name in ["Manifest", *sorted(json.loads(schema)["$defs"])]]
    return {
        _FOLDER / "api.md": _API + "\n\n".join(map(_page, public)) + "\n",
        _FOLDER / "manifest.md": _MANIFEST + "\n\n".join(map(_table, documented)) + "\n",
        _FOLDER / "manifest.schema.json": schema,
    }


def _page(item: Object) -> str:
    """Return a class or a function with its docstrings as Markdown, without links, whose targets are missing here."""
    text = re.sub(r"\[([^\[\]]*)\]\(#[^()]*\)", r"\1", render_object_docs(item, _CONFIG))
    text = re.sub(r"</?code>", "`", text).replace("**`", "`").replace("`**", "`")
    text = re.sub(r"^(#+ `)model_artifacts\.[a-z_.]+\.", r"\1", text, flags=re.MULTILINE)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def _table(record: Class) -> str:
    """Return a record, or an enumeration, as a Markdown table."""
    members = [item.final_target if isinstance(item, Alias) else item for item in record.all_members.values()]
    fields = [item for item in members if isinstance(item, Attribute)]
    shown = [item for item in fields if not item.name.startswith(("_", "model_")) and "property" not in item.labels]
    rows = [f"| `{_label(record, item)}` | {_text(item)} |" for item in shown]
    return "\n".join([f"## `{record.name}`", "", _text(record), "", "| | |", "|---|---|", *rows])


def _label(record: Class, item: Attribute) -> str:
    """Return a field's key in JSON and its type, or the value of an enumeration's member."""
    if item.annotation is None:
        return str(item.value).strip("'\"")
    key = getattr(records, record.name).model_fields[item.name].alias or item.name
    return f"{key}: {item.annotation}".replace("|", "\\|")


def _text(item: Object) -> str:
    return " ".join(item.docstring.value.split()).replace("|", "\\|") if item.docstring else ""


if __name__ == "__main__":
    for path, text in generated().items():
        path.write_text(text, encoding="utf-8")
