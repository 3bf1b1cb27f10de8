"""Writes what is generated of the docs: `doit docs` runs it, and a test holds the files to it.

api.md                the public API, from its docstrings
manifest.md           the records of artifacts/manifest.json, from theirs
manifest.schema.json  the same as JSON Schema
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from griffe import Alias, Attribute, Class, GriffeLoader, Object
from griffe2md import ConfigDict, render_object_docs

import model_artifacts
from model_artifacts.records import manifest_schema

_FOLDER = Path(__file__).parent
_API = """\
# The public API

What `import model_artifacts` gives, for machines that run artifacts. `pip install "model-artifact-pipeline[runtime]"` runs
engines and ONNX files, the extras `verify` and `store` pull releases; neither brings torch or doit. Everything that is
raised on purpose is a `ArtifactError`, whose text says what, where, expected, got and what to do. This page is
generated: `doit docs`.

"""
_MANIFEST = """\
# artifacts/manifest.json

Each record, field by field; [manifest.schema.json](manifest.schema.json) says the same to programs. The file is
canonical: keys and artifacts are sorted, units are in the names, and `built_at` is the only time, so that a diff of
two manifests is readable. This page is generated: `doit docs`.

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
    """Return what each of the files has to hold."""
    loader = GriffeLoader(docstring_parser="google")
    package = loader.load("model_artifacts")
    loader.resolve_aliases()
    public = [package[name].final_target for name in model_artifacts.__all__]
    schema = manifest_schema()
    records = [package[f"records.{name}"] for name in ["Manifest", *sorted(json.loads(schema)["$defs"])]]
    return {
        _FOLDER / "api.md": _API + "\n\n".join(map(_page, public)) + "\n",
        _FOLDER / "manifest.md": _MANIFEST + "\n\n".join(map(_table, records)) + "\n",
        _FOLDER / "manifest.schema.json": schema,
    }


def _page(item: Object) -> str:
    """Return a class or a function with its docstrings, without links: they would lead to other pages than this."""
    text = re.sub(r"\[([^\[\]]*)\]\(#[^()]*\)", r"\1", render_object_docs(item, _CONFIG))
    text = re.sub(r"</?code>", "`", text).replace("**`", "`").replace("`**", "`")
    text = re.sub(r"^(#+ `)model_artifacts\.[a-z_.]+\.", r"\1", text, flags=re.MULTILINE)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def _table(record: Class) -> str:
    """Return a record, or the names of an enumeration, as a table."""
    members = [item.final_target if isinstance(item, Alias) else item for item in record.all_members.values()]
    fields = [item for item in members if isinstance(item, Attribute)]
    shown = [item for item in fields if not item.name.startswith(("_", "model_")) and "property" not in item.labels]
    rows = [f"| `{_said(item)}` | {_text(item)} |" for item in shown]
    return "\n".join([f"## `{record.name}`", "", _text(record), "", "| | |", "|---|---|", *rows])


def _said(item: Attribute) -> str:
    """Return a field and its type, or the text that an enumeration's name stands for."""
    if item.annotation is None:
        return str(item.value).strip("'\"")
    return f"{item.name}: {item.annotation}".replace("|", "\\|")


def _text(item: Object) -> str:
    return " ".join(item.docstring.value.split()).replace("|", "\\|") if item.docstring else ""


if __name__ == "__main__":
    for path, text in generated().items():
        path.write_text(text, encoding="utf-8")
