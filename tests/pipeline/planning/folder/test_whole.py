"""The one manifest of two projects in an artifacts folder."""

from __future__ import annotations

import multiprocessing
import shutil
from typing import TYPE_CHECKING

import pytest

import model_artifacts
from model_artifacts.cli.main import main as deploy
from model_artifacts.errors import MissingRecordError, UsageError
from model_artifacts.host.record_files import read_record
from model_artifacts.records import Manifest, model_names, of_model
from pipeline.cli.main import main
from pipeline.planning.folder.owner import claim
from pipeline.planning.folder.whole import write_part
from pipeline.planning.freshness import freshness_of
from pipeline.planning.project import Project
from pipeline.planning.steps import Step
from pipeline.stages import STAGES
from tests.conftest import TINY
from tests.support.manifests import entry, manifest

if TYPE_CHECKING:
    from pathlib import Path

SMALL = (
    TINY.replace("name: tiny", "name: second")
    .replace("[fp32, fp16, bf16, int8]", "[fp32]")
    .replace("[1, {min: 1, opt: 2, max: 4}]", "[1]")
    .replace("[16MiB, 32MiB]", "[16MiB]")
    .replace("batches: [1, 2]", "batches: [1]")
    .replace("baselines: [inductor, onnxruntime]", "baselines: [onnxruntime]")
)
"""Another model with few variants."""


def _second(folder: Path) -> Project:
    """Return a project of another model in a project's folder, with its data and weights, and nothing built."""
    (folder / "second.yaml").write_text(SMALL)
    return Project.load(folder / "second.yaml", STAGES)


def _run(project: Project) -> None:
    for step in project.schedule.steps:
        assert main([step.stage, step.subject, "--config", str(project.config_file)]) == 0, step


def test_two_projects_share_a_manifest(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each keeps its part; a deployment names its model, and gets what it would get without the other."""
    first, second = Project.load(copied / "pipeline.yaml", STAGES), _second(copied)
    alone, root = first.manifest(), copied / "artifacts"
    report = first.report().key
    with pytest.raises(MissingRecordError, match="nothing of second"):
        second.manifest()
    _run(second)
    whole = read_record(root / "manifest.json", Manifest)
    assert model_names(whole) == ("second", "tiny")
    assert first.manifest() == alone == of_model(whole, "tiny")
    for project in (first, second):
        assert freshness_of(project, Step("manifest", project.plan.model)).reasons == ()
    assert first.schedule.spec("report").key(first, "tiny") == report

    for call in (lambda: model_artifacts.resolve(root), lambda: model_artifacts.load(root).__enter__()):
        with pytest.raises(UsageError, match="one of second, tiny"):
            call()
    for name in ("second", "tiny"):
        assert model_artifacts.resolve(root, model=name).entry.model == name
        with model_artifacts.load(root, model=name) as model:
            assert model.entry.model == name
    capsys.readouterr()
    assert deploy(["resolve", str(root)]) == 2
    assert "--model second" in capsys.readouterr().err
    assert deploy(["resolve", str(root), "--model", "tiny"]) == 0
    assert capsys.readouterr().out.startswith("tiny/cpu-x86_64/")
    assert deploy(["show", str(root)]) == 0
    shown = capsys.readouterr().out
    assert f'load("{root}", model="second")' in shown
    assert f"resolve {root} --model tiny" in shown
    assert deploy(["triton", str(root), "--output", str(copied / "all")]) == 0
    assert {path.name.partition("-")[0] for path in (copied / "all" / "cpu").iterdir()} == {"second", "tiny"}
    assert deploy(["verify", "--artifacts", str(root)]) == 2
    assert "one of second, tiny" in capsys.readouterr().err
    assert deploy(["verify", "--artifacts", str(root), "--model", "tiny"]) == 1
    assert "run `doit release` first" in capsys.readouterr().err
    assert deploy(["verify", str(root), "--model", "tiny"]) == 2
    assert deploy(["triton", str(root), "--model", "second", "--output", str(copied / "one")]) == 0
    assert {path.name.partition("-")[0] for path in (copied / "one" / "cpu").iterdir()} == {"second"}


def test_a_model_that_nobody_makes_leaves_the_manifest(copied: Path) -> None:
    """Its configuration is gone, or names another model: the next run says so and writes the others alone."""
    first, second = Project.load(copied / "pipeline.yaml", STAGES), _second(copied)
    claim(second)
    write_part(second, _part("second"))
    assert freshness_of(first, Step("manifest", "tiny")).reasons == ()
    second.config_file.write_text("nonsense: 1\n")  # somebody edits it
    assert freshness_of(first, Step("manifest", "tiny")).reasons == ()
    second.config_file.write_text(SMALL.replace("name: second", "name: third"))
    assert freshness_of(first, Step("manifest", "tiny")).reasons == ("no configuration makes second any more",)
    assert main(["manifest", "tiny", "--config", str(first.config_file)]) == 0
    whole = read_record(first.paths.manifest, Manifest)
    assert (model_names(whole), whole.models) == (("tiny",), ())
    assert freshness_of(first, Step("manifest", "tiny")).reasons == ()


def test_a_renamed_model_does_not_stay_behind(copied: Path) -> None:
    """The former name has a folder, but no configuration."""
    config = copied / "pipeline.yaml"
    config.write_text(TINY.replace("name: tiny", "name: renamed"))
    project = Project.load(config, STAGES)
    claim(project)
    write_part(project, _part("renamed"))
    assert model_names(read_record(project.paths.manifest, Manifest)) == ("renamed",)


def test_a_copied_folder_is_made_again_for_its_model(copied: Path) -> None:
    """Nothing in the key of a network names the model: the manifest had the facts of the one it was copied from."""
    shutil.copytree(copied / "artifacts/tiny", copied / "artifacts/second")
    second = _second(copied)
    (reason,) = freshness_of(second, Step("source", "second")).reasons
    assert reason == f"{second.paths.source} is the record of the model tiny"
    assert main(["manifest", "second", "--config", str(second.config_file)]) == 0
    assert second.manifest().model is None
    assert main(["source", "second", "--config", str(second.config_file)]) == 0
    assert second.source().model == "second"


def test_a_damaged_manifest_costs_the_others_a_run(copied: Path) -> None:
    """The part that cannot be read is missing until its own project runs."""
    first, second = Project.load(copied / "pipeline.yaml", STAGES), _second(copied)
    claim(second)
    write_part(second, _part("second"))
    first.paths.manifest.write_text("{}")
    write_part(second, _part("second"))
    assert freshness_of(first, Step("manifest", "tiny")).reasons == ("not made yet",)
    assert main(["manifest", "tiny", "--config", str(first.config_file)]) == 0
    assert model_names(read_record(first.paths.manifest, Manifest)) == ("second", "tiny")


def test_no_part_is_lost_among_writers_at_once(tmp_path: Path) -> None:
    """Eight processes write their parts again and again; at the end all of them are there."""
    names = [f"model{number}" for number in range(8)]
    for name in names:
        (tmp_path / f"{name}.yaml").write_text(SMALL.replace("name: second", f"name: {name}"))
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_often, args=(tmp_path / f"{name}.yaml",)) for name in names]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0] * len(names)
    assert list(model_names(read_record(tmp_path / "artifacts/manifest.json", Manifest))) == names


def _write_often(file: Path) -> None:
    project = Project.load(file, STAGES)
    claim(project)
    for _ in range(10):
        write_part(project, _part(project.plan.model))


def _part(model: str) -> Manifest:
    return manifest(entry("v", id=f"{model}/cpu-x86_64/v", model=model))


def test_an_artifacts_folder_may_be_copied(copied: Path, tmp_path: Path) -> None:
    """The copy knows both of its projects."""
    second = _second(copied)
    claim(second)
    write_part(second, _part("second"))
    shutil.copytree(copied, tmp_path / "there")
    project = Project.load(tmp_path / "there/pipeline.yaml", STAGES)
    assert freshness_of(project, Step("manifest", "tiny")).reasons == ()
