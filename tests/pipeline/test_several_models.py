"""Two small networks in one configuration, from `doit` to an answer."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

import model_artifacts
from model_artifacts.errors import UsageError
from model_artifacts.host.record_files import read_record
from model_artifacts.records import Manifest, Status, model_names, of_model
from model_artifacts.sessions.preprocessing import to_input
from pipeline.cli.main import main
from pipeline.planning.folder.projects import load_projects
from pipeline.planning.freshness import freshness_of
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.release.stage import make_release
from tests.conftest import COMMIT, copy_doit_files
from tests.support.doit_runs import doit, ran

if TYPE_CHECKING:
    from pathlib import Path

SHARED = """\
preprocessing: {resize: 32, crop: 32, interpolation: bilinear, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}
data: {calibration: 16, validation: 40}
precisions: [fp32]
profiles: [1]
workspaces: [16MiB]
benchmark:
  {batches: [1], restarts: 1, warmup_runs: 1, warmup_seconds: 0.1, rounds: 1, runs_per_round: 2, streams: 2,
  baselines: [onnxruntime]}
"""
MODEL = "{{name: {}, factory: 'tests.support.tiny_model:make', weights: sample}}"
TWO = f"""\
models:
- model: {MODEL.format("first")}
- model: {MODEL.format("second")}
  data: {{calibration: 8, validation: 30}}
{SHARED}"""
ENGINE = "second/rtx-sm80+/fp32-b1-ws16MiB"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which doit has built both."""
    folder = tmp_path_factory.mktemp("several") / "project"
    copy_doit_files(folder)
    (folder / "pipeline.yaml").write_text(TWO)
    done = doit(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "said").write_text(done.stdout)
    return folder


@pytest.fixture
def copy(both: Path, tmp_path: Path) -> Path:
    """A copy of it, to do anything with."""
    shutil.copytree(both, tmp_path / "copy")
    return tmp_path / "copy"


def reasons_of(project: Project, stage: str) -> tuple[str, ...]:
    """Return the reasons why the only step of a stage is stale."""
    (step,) = project.schedule.of(stage)
    return freshness_of(project, step).reasons


def test_a_run_builds_both_and_shows_both(both: Path) -> None:
    """The last lines name the answer for each model, and how to see it again."""
    said = (both / "said").read_text()
    assert {"first", "second"} == {found[1] for found in re.finditer(r'load\("artifacts", model="(\w+)"\)', said)}
    *_, first, again, second, again_too = said.splitlines()
    assert first.startswith("first: to deploy for the lowest latency: ")
    assert second.startswith("second: to deploy for the lowest latency: ")
    assert again.endswith("show artifacts --model first")
    assert again_too.endswith("show artifacts --model second")


def test_one_manifest_has_both(both: Path) -> None:
    """Each artifact names its model, and is what was built of it: an engine of TensorRT-RTX, an ONNX file."""
    manifest = read_record(both / "artifacts/manifest.json", Manifest)
    assert model_names(manifest) == ("first", "second")
    entries = {entry.id: entry for entry in manifest.artifacts}
    assert entries[ENGINE].status is Status.BUILT
    assert entries["first/cpu-x86_64/onnxruntime-fp32"].status is Status.DEPLOYABLE
    assert all(entry.id.startswith(f"{entry.model}/") for entry in manifest.artifacts)
    assert [part.model.name for part in manifest.models if part.model] == ["first", "second"]


def test_a_deployment_chooses_a_model(both: Path) -> None:
    """Each gives its own answers, and nobody gets one by accident."""
    root = both / "artifacts"
    for project in load_projects(both / "pipeline.yaml", STAGES):
        data = project.data()
        assert data.reference
        pixels, reference = project.pixels(data.validation), np.load(project.file(data.reference))
        with model_artifacts.load(root, model=project.plan.model) as model:
            assert model.entry.model == project.plan.model
            logits = model(to_input(pixels[:4], model.preprocessing))
        assert np.abs(logits - reference[:4]).max() < 1e-3
    with pytest.raises(UsageError, match="one of first, second"):
        model_artifacts.load(root).__enter__()
    with pytest.raises(UsageError, match="no model 'third'"):
        model_artifacts.resolve(root, model="third")


def test_everything_is_up_to_date_then(copy: Path) -> None:
    """The next run has nothing to do; a change of one model's data makes only its own results again."""
    said, *verdicts = doit(copy).stdout.splitlines()
    assert said == "everything is up to date"
    assert [line.split(":")[0] for line in verdicts] == ["the verdict of first", "the verdict of second"]
    (copy / "pipeline.yaml").write_text(TWO.replace("validation: 30", "validation: 31"))
    assert ran(doit(copy, "data").stdout) == {"data:second"}


def test_a_model_among_others_is_what_it_is_alone(copy: Path) -> None:
    """Its ids, keys and its part of the manifest are the same, so that nothing is built again."""
    alone = copy / "alone.yaml"
    alone.write_text(f"model: {MODEL.format('first')}\n{SHARED}")
    project = Project.load(alone, STAGES)
    steps = [step for step in project.schedule.steps if step.stage != "report"]
    assert {step.name: reasons for step in steps if (reasons := freshness_of(project, step).reasons)} == {}
    whole = read_record(project.paths.manifest, Manifest)
    assert project.manifest() == of_model(whole, "first")
    assert main(["manifest", "first", "--config", str(alone)]) == 0
    assert model_names(read_record(project.paths.manifest, Manifest)) == ("first", "second")


def test_each_model_has_a_page(copy: Path) -> None:
    """The front page leads to them; it is written again when it is edited or lost, and when the manifest changes."""
    front = copy / "artifacts/report.html"
    links = re.findall(r'href="([^"]+)"', front.read_text())
    assert links == ["first/report.html", "second/report.html"]
    for name, link in zip(("first", "second"), links, strict=True):
        assert f"<title>{name}: build report</title>" in (front.parent / link).read_text()
    first, second = load_projects(copy / "pipeline.yaml", STAGES)
    for damage in (front.unlink, lambda: front.write_text("edited")):
        damage()
        reasons = [reasons_of(item, "report") for item in (first, second)]
        assert all(reason.startswith("report.html is") for (reason,) in reasons)
        assert main(["report", "first", "--config", str(first.config_file)]) == 0
        assert [reasons_of(item, "report") for item in (first, second)] == [(), ()]


def test_a_release_is_of_one_model(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is resolved without a name, and the newest of each model is found by the name."""
    monkeypatch.setattr("pipeline.planning.project.git_state", lambda _: COMMIT)
    for project in load_projects(copy / "pipeline.yaml", STAGES):
        made = make_release(project, allow_dirty=True)
        assert model_names(read_record(made.folder / "manifest.json", Manifest)) == (project.plan.model,)
        assert model_artifacts.resolve(made.folder).entry.model == project.plan.model
        assert f"<title>{project.plan.model}: " in (made.folder / "report.html").read_text()
    for model in ("first", "second"):
        done = doit(copy, "verify", "--model", model)
        assert done.returncode == 0, done.stdout
        assert f"{model}-" in done.stdout


def test_a_model_that_left_is_no_longer_deployed(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The next run takes it out of the manifest; its files stay, and `prune` names them."""
    file = copy / "pipeline.yaml"
    file.write_text(TWO.replace("name: second", "name: third"))
    first, third = load_projects(file, STAGES)
    assert reasons_of(first, "manifest") == ("no configuration makes second any more",)
    assert main(["manifest", "first", "--config", str(file)]) == 0
    assert model_names(read_record(first.paths.manifest, Manifest)) == ("first",)
    capsys.readouterr()
    assert main(["prune", "--config", str(file)]) == 0
    assert capsys.readouterr().out.startswith(f"kept: {third.paths.root / 'second'}, a model of another name")


def test_commands_find_the_model_by_its_subject(both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`plan` lists the steps stage by stage, and `why` answers for any variant."""
    config = ["--config", str(both / "pipeline.yaml")]
    assert main(["plan", *config]) == 0
    lines = [line.partition(" --config")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == ["python -m pipeline source first", "python -m pipeline source second"]
    assert len(lines) == len({*lines})
    assert main(["why", ENGINE, *config]) == 0
    assert capsys.readouterr().out.startswith(f"{ENGINE} is up to date since 20")
    assert main(["build", "thrd/cpu-x86_64/eager-fp32", *config]) == 2
    assert "expected: one of " in capsys.readouterr().err
