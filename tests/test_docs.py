"""The generated pages equal their sources."""

from __future__ import annotations

import re
import runpy
from typing import TYPE_CHECKING

import pytest
import yaml

import model_artifacts as pipeline
from pipeline.config.loading import load_config
from tests.conftest import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_GENERATED = {"api.md", "manifest.md"}
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "artifacts/README.md")
    for path in REPOSITORY.glob(pattern)
    if path.name not in _GENERATED
)
"""The pages that are written by hand."""


@pytest.fixture(scope="module")
def generated() -> dict[Path, str]:
    """The output of `doit docs`, with Python 3.11 or later."""
    pytest.importorskip("griffe2md")
    written: dict[Path, str] = runpy.run_path(str(REPOSITORY / "docs/generate.py"))["generated"]()
    return written


def test_the_docs_are_those_of_the_docstrings(generated: dict[Path, str]) -> None:
    """`doit docs` would change nothing."""
    assert [path.name for path, text in generated.items() if path.read_text() != text] == []


def test_everything_public_is_documented(generated: dict[Path, str]) -> None:
    """Each public name has a description and its errors."""
    text = generated[REPOSITORY / "docs/api.md"]
    assert [name for name in pipeline.__all__ if f"## `{name}`" not in text] == []
    assert "](#" not in text


def test_every_record_of_the_manifest_is_documented(generated: dict[Path, str]) -> None:
    """Field by field, inherited ones too."""
    text = generated[REPOSITORY / "docs/manifest.md"]
    assert {"| `built_at: AwareDatetime` |", "| `gpu: GpuType \\| None` |", "| `gpu-graph` |"} <= {
        line[: line.index("` |") + 3] for line in text.splitlines() if "` |" in line
    }


def test_the_sets_of_versions_are_those_of_the_project() -> None:
    """The versions in docs/hardware.md are pins of pyproject.toml."""
    pins = (REPOSITORY / "pyproject.toml").read_text()
    rows = re.findall(r"^\| (t.+?) \| (.+?) \| (.+?) \|$", (REPOSITORY / "docs/hardware.md").read_text(), re.MULTILINE)
    named = {name: cells for name, *cells in rows}
    for names, packages in {
        "torch, torchvision": ("torch", "torchvision"),
        "tensorrt-rtx, torch-tensorrt-rtx": ("tensorrt-rtx", "torch-tensorrt-rtx"),
    }.items():
        for cell in named[names]:
            for package, version in zip(packages, cell.split(", "), strict=True):
                assert f'"{package}=={version}"' in pins


def test_the_cluster_is_one_for_ray() -> None:
    """The cluster of docs/farm.md fits Ray's own schema."""
    from ray.autoscaler._private.util import prepare_config, validate_config  # noqa: PLC0415 - it takes a second

    validate_config(prepare_config(yaml.safe_load((REPOSITORY / "docs/cluster.yaml").read_text())))


def test_the_farm_of_the_docs_is_a_configuration(tmp_path: Path) -> None:
    """The farm of docs/farm.md is valid with this repository's matrix."""
    text = (REPOSITORY / "docs/farm.md").read_text().split("```yaml\n")[1].split("```")[0]
    own = (REPOSITORY / "pipeline.yaml").read_text().replace("executor: local", "# executor: local")
    (tmp_path / "pipeline.yaml").write_text(own + text)
    config = load_config(tmp_path / "pipeline.yaml")
    assert [target.accelerator for target in config.farm_targets] == ["H100", "L4", "RTX-PRO-6000"]


def _prose(page: Path) -> Iterator[str]:
    """Yield the lines of a page outside its code blocks."""
    in_code = False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            in_code = not in_code
        elif not in_code:
            yield line


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = [line.lstrip("#").strip().lower() for line in _prose(page) if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_every_link_leads_somewhere(page: Path) -> None:
    """Relative links lead to files and headings that exist."""
    links = [link for line in _prose(page) for link in re.findall(r"\]\(([^)\s]+)\)", line)]
    broken = []
    for link in (link for link in links if not re.match(r"[a-z]+:", link)):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_no_line_of_prose_is_too_long(page: Path) -> None:
    """Lines outside tables and code have at most 120 characters."""
    assert [line for line in _prose(page) if len(line) > 120 and not line.startswith("|")] == []


def test_the_readme_is_short() -> None:
    """The README has fewer than 150 lines."""
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) < 150
