"""The projects of a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import UsageError
from model_artifacts.host.record_files import read_record
from model_artifacts.records import Manifest, model_names
from pipeline.config.files.models import sources_of
from pipeline.planning.folder.owner import check_owner, claim, is_made
from pipeline.planning.folder.projects import load_projects, project_of, project_with
from pipeline.planning.folder.whole import left_models, write_part
from pipeline.planning.steps import Step
from pipeline.stages import STAGES
from tests.support.configs import MATRIX
from tests.support.manifests import entry, manifest

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.config.files.models import Sources
    from pipeline.config.files.yaml_source import YamlSource

TWO = "models: [{model: {name: first, weights: sample}}, {model: {name: second, weights: sample}}]\n"


def test_a_step_belongs_to_the_project_of_its_subject(tmp_path: Path) -> None:
    """A mistyped subject is compared with those of all models."""
    (tmp_path / "pipeline.yaml").write_text(TWO + MATRIX)
    projects = first, second = load_projects(tmp_path / "pipeline.yaml", STAGES)
    assert first.paths.root == second.paths.root == tmp_path / "artifacts"
    assert project_of(projects, Step("export", "second/fp16")) is second
    assert project_of(projects, Step("source", "first")) is first
    with pytest.raises(UsageError, match=r"(?s)no graph 'secnd/fp16'.*second/fp16"):
        project_of(projects, Step("export", "secnd/fp16"))
    project, variant = project_with(projects, "second/cpu-x86_64/onnxruntime-fp16")
    assert (project, variant.model) == (second, "second")
    with pytest.raises(UsageError, match="no variant 'second/cpu/onnx'"):
        project_with(projects, "second/cpu/onnx")


def test_a_page_of_its_own_has_each_of_several_models(tmp_path: Path) -> None:
    """One model has the page that it always had."""
    file = tmp_path / "pipeline.yaml"
    file.write_text(TWO + MATRIX)
    pages = [project.paths.report for project in load_projects(file, STAGES)]
    assert pages == [tmp_path / "artifacts" / name / "report.html" for name in ("first", "second")]
    file.write_text("model: {name: first, weights: sample}\n" + MATRIX)
    (alone,) = load_projects(file, STAGES)
    assert alone.paths.report == alone.paths.front == tmp_path / "artifacts/report.html"
    assert alone.paths.report_record == tmp_path / "artifacts/report.json"


@pytest.mark.parametrize("elsewhere", [None, "elsewhere"], ids=["a renamed file", "--artifacts"])
def test_every_model_of_the_configuration_is_kept(tmp_path: Path, elsewhere: str | None) -> None:
    """Whatever ran last in its folder: its file may have moved, or name another artifacts folder."""
    file = tmp_path / "pipeline.yaml"
    file.write_text(TWO + MATRIX)
    root = tmp_path / elsewhere if elsewhere else None
    for project in load_projects(file, STAGES, root):
        claim(project)
        write_part(project, part(project.plan.model))
    if elsewhere is None:
        file = file.rename(tmp_path / "p2.yaml")
    first, _ = load_projects(file, STAGES, root)
    assert [*left_models(first)] == []
    write_part(first, part("first"))
    assert model_names(read_record(first.paths.manifest, Manifest)) == ("first", "second")
    file.write_text("model: {name: first, weights: sample}\n" + MATRIX)
    assert [*left_models(first)] == ["no configuration makes second any more"]


def test_a_configuration_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many of its models ask whether it makes the others; another content of the file is read again."""
    read: list[YamlSource] = []

    def counted(source: YamlSource) -> Sources:
        read.append(source)
        return sources_of(source)

    monkeypatch.setattr("pipeline.config.loading.sources_of", counted)
    file, other = tmp_path / "pipeline.yaml", tmp_path / "other.yaml"
    file.write_text(TWO + MATRIX)
    other.write_text("model: {name: third, weights: sample}\n" + MATRIX)
    for project in (*load_projects(file, STAGES), *load_projects(other, STAGES)):
        claim(project)
        write_part(project, part(project.plan.model))
    for project in load_projects(file, STAGES):
        assert [*left_models(project)] == []
    assert len(read) == 2
    file.write_text(TWO.replace("second", "fourth") + MATRIX)
    assert [project.plan.model for project in load_projects(file, STAGES)] == ["first", "fourth"]
    assert len(read) == 3


def part(model: str) -> Manifest:
    """Return the part of a model in a manifest."""
    return manifest(entry("v", id=f"{model}/cpu-x86_64/v", model=model))


def test_another_configuration_may_have_one_of_the_models(tmp_path: Path) -> None:
    """If its settings are the same; else they would overwrite each other's results."""
    file, other = tmp_path / "pipeline.yaml", tmp_path / "other.yaml"
    file.write_text(TWO + MATRIX)
    first, second = load_projects(file, STAGES)
    claim(second)
    other.write_text("model: {name: second, weights: sample}\n" + MATRIX)
    check_owner(*load_projects(other, STAGES))
    other.write_text("model: {name: second, weights: sample}\ndata: {validation: 7}\n" + MATRIX)
    with pytest.raises(UsageError, match="with other `data`"):
        check_owner(*load_projects(other, STAGES))
    assert is_made(first, "second")
    file.write_text("model: {name: first, weights: sample}\n" + MATRIX)
    assert not is_made(first, "second")
