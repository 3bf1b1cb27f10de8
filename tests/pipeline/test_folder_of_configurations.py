"""Two small networks, each with a file of its own in a folder of configurations."""

from __future__ import annotations

import re
import shlex
import shutil
from typing import TYPE_CHECKING

import pytest

from model_artifacts.host.hashes import sha256_of
from model_artifacts.host.record_files import read_record
from model_artifacts.records import Manifest, model_names
from pipeline.cli.main import main
from pipeline.planning.folder.projects import load_projects
from pipeline.planning.freshness import freshness_of
from pipeline.stages import STAGES
from pipeline.stages.release.stage import make_release
from tests.conftest import COMMIT, copy_doit_files
from tests.support.doit_runs import doit, ran

if TYPE_CHECKING:
    from pathlib import Path

SMALL = """\
model: {{name: {}, factory: 'tests.support.tiny_model:make', weights: sample}}
preprocessing: {{resize: 32, crop: 32, interpolation: bilinear, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}
data: {{calibration: 8, validation: {}}}
precisions: [fp32]
profiles: [1]
workspaces: [16MiB]
benchmark:
  {{batches: [1], restarts: 1, warmup_runs: 1, warmup_seconds: 0.1, rounds: 1, runs_per_round: 2, streams: 2,
  baselines: [onnxruntime]}}
artifacts: ../artifacts
"""
CONFIG = "config=configs/"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which doit has built both models of a folder; the file of the second comes first."""
    folder = tmp_path_factory.mktemp("folder") / "project"
    copy_doit_files(folder)
    (folder / "configs").mkdir()
    (folder / "configs/b.yaml").write_text(SMALL.format("first", 40))
    (folder / "configs/a.yaml").write_text(SMALL.format("second", 30))
    done = doit(folder, CONFIG)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "said").write_text(done.stdout)
    return folder


@pytest.fixture
def copy(both: Path, tmp_path: Path) -> Path:
    """A copy of it, to do anything with."""
    return shutil.copytree(both, tmp_path / "copy")


def reasons(folder: Path) -> dict[str, tuple[str, ...]]:
    """Return the stale steps of the folder's models, with their reasons."""
    return {
        step.name: found
        for project in load_projects(folder / "configs", STAGES)
        for step in project.schedule.steps
        if (found := freshness_of(project, step).reasons)
    }


def test_a_run_makes_one_manifest_and_a_page_for_each(both: Path) -> None:
    """In the order of the files; what the last screen says names the folder."""
    assert model_names(read_record(both / "artifacts/manifest.json", Manifest)) == ("first", "second")
    links = re.findall(r'href="([^"]+)"', (both / "artifacts/report.html").read_text())
    assert links == ["first/report.html", "second/report.html"]
    said = (both / "said").read_text()
    assert [line.split(":")[0] for line in said.splitlines()[-4:]] == [
        "second", "all of this again", "first", "all of this again"
    ]  # fmt: skip
    assert "doit config=configs release" in said


def test_nothing_is_left_to_do_then(copy: Path) -> None:
    """The verdict of each model has a line, in the order of the files."""
    done = doit(copy, CONFIG)
    on_terminal = "and on the terminal `model-artifacts show artifacts --model"
    assert done.stdout.splitlines() == [
        "everything is up to date",
        f"the verdict of second: artifacts/second/report.html, {on_terminal} second`",
        f"the verdict of first: artifacts/first/report.html, {on_terminal} first`",
    ]
    assert doit(copy, CONFIG, "report:first").stdout.count("the verdict of") == 1


def test_a_change_of_a_file_is_one_of_its_model(copy: Path) -> None:
    """The other model has nothing to do."""
    (copy / "configs/b.yaml").write_text(SMALL.format("first", 41))
    assert {name.partition(":")[2].partition("/")[0] for name in reasons(copy)} == {"first"}
    assert ran(doit(copy, CONFIG, "data").stdout) == {"data:first"}


def test_a_file_that_comes_or_goes_is_a_model(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan has it at once; a model whose file is gone leaves the manifest and the front page."""
    monkeypatch.chdir(copy)
    assert reasons(copy) == {}
    (copy / "configs/c.yaml").write_text(SMALL.format("third", 30))
    assert {name.partition(":")[2].partition("/")[0] for name in reasons(copy)} == {"third"}
    done = doit(copy, CONFIG, "build:third/rtx-sm80+/fp32-b1-ws16MiB")
    assert done.returncode == 0, done.stderr
    assert (copy / "artifacts/third/rtx-sm80+").is_dir()
    for file in ("b.yaml", "c.yaml"):
        (copy / "configs" / file).unlink()
    assert reasons(copy)["manifest:second"] == ("no configuration makes first any more",)
    assert doit(copy, CONFIG).returncode == 0
    assert model_names(read_record(copy / "artifacts/manifest.json", Manifest)) == ("second",)
    assert "<title>second: build report</title>" in (copy / "artifacts/report.html").read_text()
    assert reasons(copy) == {}


def test_every_command_of_the_plan_is_one_of_the_folder(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It runs as it is printed, in the project's folder."""
    assert main(["plan", "--config", str(copy / "configs")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        f"python -m pipeline source {name} --config {shlex.quote(str(copy / 'configs'))}"
        for name in ("second", "first")
    ]
    for step in ("manifest", "report"):
        for line in (line for line in lines if line.startswith(f"python -m pipeline {step} ")):
            assert main(shlex.split(line)[3:]) == 0
    assert reasons(copy) == {}


def test_one_file_alone_is_the_same_model(copy: Path) -> None:
    """`--config configs/b.yaml` has the same steps in the same folder, and keeps the other model."""
    (project,) = load_projects(copy / "configs/b.yaml", STAGES)
    stale = {step.stage for step in project.schedule.steps if freshness_of(project, step).reasons}
    assert stale == {"report"}  # a file's report is artifacts/report.html
    assert main(["manifest", "first", "--config", str(project.config_file)]) == 0
    assert model_names(read_record(project.paths.manifest, Manifest)) == ("first", "second")


def test_a_release_has_the_digest_of_its_models_file(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other model's file is no input of it."""
    monkeypatch.setattr("pipeline.planning.project.git_state", lambda _: COMMIT)
    second, _ = load_projects(copy / "configs", STAGES)
    made = make_release(second, allow_dirty=True)
    evidence = "".join(file.read_text() for file in made.folder.glob("*.json*"))
    assert sha256_of(copy / "configs/a.yaml") in evidence
    assert sha256_of(copy / "configs/b.yaml") not in evidence


def test_a_wrong_file_stops_a_run_before_it_begins(copy: Path) -> None:
    """The message has the place, and the status is that of a wrong configuration."""
    (copy / "configs/c.yaml").write_text(SMALL.format("first", 40))
    done = doit(copy, CONFIG)
    assert done.returncode == 2
    assert "configs/c.yaml:1:15: `model.name`: 'first' is the name of a model of configs/b.yaml" in done.stderr
    (copy / "empty").mkdir()
    done = doit(copy, "config=empty")
    assert (done.returncode, "the folder empty has no configuration" in done.stderr) == (2, True)


def test_a_search_is_of_one_file(both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The refusal names the command of one."""
    assert main(["tune", "--config", str(both / "configs")]) == 2
    assert f"--config {both}/configs/a.yaml" in capsys.readouterr().err
