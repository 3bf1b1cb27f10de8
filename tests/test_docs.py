"""What is generated of the docs is what the code says."""

from __future__ import annotations

import runpy
from typing import TYPE_CHECKING

import pytest

import pipeline

from .conftest import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def generated() -> dict[Path, str]:
    """What `doit docs` writes, with Python 3.11 or later."""
    pytest.importorskip("griffe2md")
    written: dict[Path, str] = runpy.run_path(str(REPOSITORY / "docs/generate.py"))["generated"]()
    return written


def test_the_docs_are_those_of_the_docstrings(generated: dict[Path, str]) -> None:
    """`doit docs` would change nothing."""
    assert [path.name for path, text in generated.items() if path.read_text() != text] == []


def test_everything_public_is_documented(generated: dict[Path, str]) -> None:
    """With what it is, and what it raises."""
    text = generated[REPOSITORY / "docs/api.md"]
    assert [name for name in pipeline.__all__ if f"## `{name}`" not in text] == []
    assert "](#" not in text


def test_every_record_of_the_manifest_is_documented(generated: dict[Path, str]) -> None:
    """Field by field, inherited ones too."""
    text = generated[REPOSITORY / "docs/manifest.md"]
    assert {"| `built_at: AwareDatetime` |", "| `gpu: GpuType \\| None` |", "| `gpu-graph` |"} <= {
        line[: line.index("` |") + 3] for line in text.splitlines() if "` |" in line
    }
