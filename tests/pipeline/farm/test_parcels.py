"""Parcels: the inputs of a step, and the checks of its outputs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest

from model_artifacts.errors import FarmError, RecordError
from model_artifacts.host.environment import read_host
from model_artifacts.host.hashes import describe_bytes, describe_file
from model_artifacts.host.record_files import read_record, write_record
from model_artifacts.records import GitState
from pipeline.cli.main import main
from pipeline.farm.parcels import Completed, PrintedLine, accept, check_list, code_folders, pack, this_package
from pipeline.planning.keys import key_of
from pipeline.planning.project import Project
from pipeline.planning.steps import Step
from pipeline.records import Artifact, FarmRecord, Outcome
from pipeline.stages import STAGES
from pipeline.stages.source.stage import make_source
from tests.conftest import TINY
from tests.support.farm_steps import BUILD, ENGINE, FARM, NEEDS, TWIN, followed, messages, packed, sent
from tests.support.hosts import workers
from tests.support.onnx_models import configuration, make

if TYPE_CHECKING:
    from collections.abc import Callable

# A step travels, and comes back.


def test_only_what_a_step_takes_travels(project: Project) -> None:
    """The parcel of an engine's build holds its graph, but no images, no weights and no other graph."""
    files = {item.record.path for item in packed(project).inputs}
    kept = {path for path in files if not path.startswith("tests/")}
    assert kept == {
        "pipeline.yaml",
        "artifacts/farm.json",
        "artifacts/tiny/source/source.json",
        "artifacts/tiny/onnx/fp16.json",
        "artifacts/tiny/onnx/fp16.onnx",
    }
    assert "tests/support/tiny_model.py" in files  # the factory's own code


EAGER = Step("build", "tiny/gpu/eager-fp32")
NETWORK = """\
import json
from pathlib import Path

import layers
from torch import nn


def make():
    sides = json.loads(Path("settings/network.json").read_text())
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), layers.head(48, sides["classes"]))
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project in the current folder, whose factory imports a module there and reads a file there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "network.py").write_text(NETWORK)
    (tmp_path / "layers.py").write_text(
        "from torch import nn\n\n\ndef head(width, classes):\n    return nn.Linear(width, classes)\n"
    )
    (tmp_path / "unrelated.py").write_text("secret = 1\n")
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings/network.json").write_text('{"classes": 7}')
    text = TINY.replace("tests.support.tiny_model:make\n  weights: sample", "network:make\n  weights: factory")
    (tmp_path / "pipeline.yaml").write_text(text)
    made = Project.load(Path("pipeline.yaml"), STAGES)
    make_source(made)
    write_record(made.paths.farm, FarmRecord(hosts=(workers(NEEDS, read_host()),)))
    return made


def own_inputs(project: Project, step: Step = EAGER) -> set[str]:
    """Return the inputs of a step that calls the factory, without those of the artifacts folder."""
    parcel = pack(project, step, workers(NEEDS, read_host()))
    return {item.record.path for item in parcel.inputs if not item.record.path.startswith("artifacts/")}


def test_what_the_factory_needs_of_its_folder_travels(own: Project, at_home: Path) -> None:
    """A worker has the modules that it imports and the files that it reads, and can make the network; no other file."""
    assert own_inputs(own) == {"pipeline.yaml", "network.py", "layers.py", "settings/network.json"}
    parcel = pack(own, EAGER, workers(NEEDS, read_host()))
    code = "import sys; sys.path.insert(0, ''); import network; print(network.make()[-1])"
    told = sent(
        parcel._replace(parcel=parcel.parcel.model_copy(update={"command": ("-c", code), "timeout_seconds": 60}))
    )
    lines = [item.line for item in messages(told) if isinstance(item, PrintedLine)]
    assert lines == ["Linear(in_features=48, out_features=7, bias=True)"]
    assert at_home.is_dir()


def test_a_file_that_the_factory_read_travels_as_it_was(own: Project) -> None:
    """Another network would be made from a changed one."""
    Path("settings/network.json").write_text('{"classes": 8}')
    with pytest.raises(RecordError, match=r"settings/network\.json, which the factory read, is missing or has changed"):
        own_inputs(own)


SCORING = """\
import numpy as np
import limits


def near(outputs, truth):
    return np.asarray((np.abs(outputs - truth) < limits.NEAR).mean(axis=1))
"""
WHERE = "tiny/cpu-x86_64/onnxruntime-fp16"


@pytest.mark.parametrize("broken", [False, True], ids=["right", "wrong"])
def test_the_users_metric_judges_elsewhere(own: Project, at_home: Path, *, broken: bool) -> None:
    """A worker has its module and what that imports; a fault in the latter is the reason of the failure."""
    code = {"scoring.py": SCORING, "limits.py": "NEAR = 'no number'\n" if broken else "NEAR = 0.05\n"}
    for name, lines in code.items():
        Path(name).write_text(lines)
    text = own.config_file.read_text().replace("weights: factory", "weights: factory\n  task: tensors")
    text = text.replace("task: tensors", "task: tensors\n  metric: scoring:near") + FARM.removeprefix(TINY)
    own.config_file.write_text(text)
    made = Project.load(Path("pipeline.yaml"), STAGES)
    for command in ("source tiny", "data tiny", "export tiny/fp32", "export tiny/fp16", "rounding tiny/fp16"):
        assert main(command.split()) == 0, command
    for item in ("tiny/fp32", "tiny/tf32"):
        assert main(["rounding", item]) == 0
    assert main(["build", WHERE]) == 0
    step = Step("validate", WHERE)
    parcel = pack(made, step, workers(NEEDS, read_host()))
    paths = {item.record.path for item in parcel.inputs if not item.record.path.startswith("artifacts/")}
    assert paths == {"pipeline.yaml", "network.py", "layers.py", "scoring.py", "limits.py"}
    for name in code:
        Path(name).unlink()  # the worker has its own
    told = sent(parcel)
    for name, lines in code.items():
        Path(name).write_text(lines)
    followed(made, told, step)
    report = made.accuracy(made.plan.variant(WHERE))
    assert at_home.is_dir()
    if broken:
        assert "the metric scoring:near fails" in report.reason
        return
    assert report.passed, report.reason
    assert report.accuracy is not None
    assert [score.metric for score in report.accuracy.scores] == ["scoring:near"]
    assert {"metric", "metric_code"} <= {field.name for field in report.key.fields}


def test_a_decoder_of_the_users_own_travels(own: Project) -> None:
    """Workers decode a detector's outputs by it."""
    Path("decoder.py").write_text("def boxes(outputs):\n    return []\n")
    text = own.config_file.read_text()
    own.config_file.write_text(
        text.replace("weights: factory", "weights: factory\n  task: detection\n  postprocess: decoder:boxes")
        + FARM.removeprefix(TINY)
    )
    step = Step("build", "tiny/cpu-x86_64/eager-fp32")
    assert "decoder.py" in own_inputs(Project.load(Path("pipeline.yaml"), STAGES), step)


def test_an_onnx_files_engine_is_built_elsewhere(
    tmp_path: Path, at_home: Path, write_config: Callable[[str], Path]
) -> None:
    """Neither the file nor a factory's code travels: the worker builds from the graph that was made of it."""
    onnx.save(make(), tmp_path / "own.onnx")
    farm = "executor: ray\nfarm: {targets: [{flavour: tensorrt_rtx}]}\ndata: {calibration: 8, validation: 40}"
    file = write_config(configuration(tmp_path / "own.onnx", more=farm))
    write_record(tmp_path / "artifacts/farm.json", FarmRecord(hosts=(workers(NEEDS, read_host()),)))
    made = Project.load(file, STAGES)
    for command in ("source tiny", "export tiny/fp32", "export tiny/fp16"):
        assert main([*command.split(), "--config", str(file)]) == 0
    step = Step("build", "tiny/rtx-sm80+/fp16-b1-2-4-ws16MiB")
    parcel = packed(made, step)
    assert {item.record.path for item in parcel.inputs} == {
        "pipeline.yaml",
        "artifacts/farm.json",
        "artifacts/tiny/source/source.json",
        "artifacts/tiny/onnx/fp16.json",
        "artifacts/tiny/onnx/fp16.onnx",
    }
    status, said = followed(made, sent(parcel), step)
    assert (status, made.artifact(made.plan.variant(step.subject)).outcome) == (0, Outcome.DONE), said
    assert at_home.is_dir()


def test_a_worker_knows_the_checkout_of_its_driver(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker's folder is no checkout: its records name the driver's, whose code and configuration it has."""
    state = GitState(commit="d" * 40, dirty=True)
    monkeypatch.setattr("pipeline.planning.project.git_state", lambda _: state)
    (farm,) = (item for item in packed(project).inputs if item.record.path == "artifacts/farm.json")
    monkeypatch.setattr("pipeline.planning.project.git_state", lambda _: None)
    (tmp_path / "worker").mkdir()
    (tmp_path / "worker/farm.json").write_bytes(farm.read())
    worker = Project.load(project.config_file, STAGES, tmp_path / "worker")
    assert (worker.on_worker, worker.git) == (True, state)
    made = project.artifact(project.plan.variant(ENGINE))
    assert worker.write(tmp_path / "worker/artifact.json", made) == made.model_copy(update={"git": state})
    assert read_record(tmp_path / "worker/artifact.json", Artifact).git == state
    assert Project.load(project.config_file, STAGES).git is None


def test_damaged_input_does_not_travel(project: Project) -> None:
    """The sender reports a damaged input."""
    file = project.file(project.onnx(project.plan.graphs[1]).file)
    assert file.name == "fp16.onnx"
    file.write_bytes(b"x")
    with pytest.raises(RecordError, match=r"fp16\.onnx does not match its record"):
        packed(project)


@pytest.mark.parametrize("damaged", ["model.engine", "artifact.json"])
@pytest.mark.parametrize("step", [BUILD, Step("build", TWIN)])
def test_what_a_step_may_do_without_is_left_out_when_it_is_damaged(project: Project, step: Step, damaged: str) -> None:
    """A damaged former engine, or a twin's, is left out, so that the step that rebuilds it can run."""
    project.config_file.write_text(FARM + "tensorrt: {refit: true}\n")
    refits = Project.load(project.config_file, STAGES)
    former = f"artifacts/{ENGINE}/model.engine"
    assert former in {item.record.path for item in packed(refits, step).inputs}
    (project.paths.root / ENGINE / damaged).write_text("{}")
    files = {item.record.path for item in packed(refits, step).inputs}
    assert f"artifacts/{ENGINE}/{damaged}" not in files


# What comes back is believed once it holds.


def test_record_is_put_in_its_place_after_what_it_vouches_for(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record is stored after its files, even if one of these is JSON too, such as a recipe."""
    variant = project.plan.variant(ENGINE)
    recipe = tmp_path / ENGINE / "recipe.json"
    recipe.parent.mkdir(parents=True)
    recipe.write_text("{}")
    files = describe_file(recipe, tmp_path)
    write_record(tmp_path / ENGINE / "artifact.json", project.artifact(variant).model_copy(update={"file": files}))
    made = Completed(status=0, files=tuple(describe_file(path, tmp_path) for path in sorted(recipe.parent.iterdir())))
    order: list[str] = []
    monkeypatch.setattr(Path, "replace", lambda self, _: order.append(self.name))
    accept(project, BUILD, made, tmp_path)
    assert order == ["recipe.json", "artifact.json"]


def test_wrong_bytes_are_refused(project: Project, at_home: Path) -> None:
    """Files with another digest than announced are refused whole, and earlier results stay."""
    assert at_home
    before = describe_file(project.paths.engine(project.plan.variant(ENGINE)), project.paths.root)
    items = sent(packed(project))
    items[-1] = bytes(len(items[-1]))
    with pytest.raises(FarmError, match="arrived with other bytes than its worker announced"):
        followed(project, items)
    assert describe_file(project.paths.engine(project.plan.variant(ENGINE)), project.paths.root) == before
    assert list(project.paths.root.glob(".writing-*")) == []


@pytest.mark.parametrize("change", ["fewer", "more", "none"])
def test_wrong_number_of_bytes_is_refused(project: Project, at_home: Path, change: str) -> None:
    """A stream with fewer or more bytes than announced is refused."""
    assert at_home
    *items, last = sent(packed(project))
    assert isinstance(last, bytes)
    items += {"fewer": [last[:-1]], "more": [last + b"x"], "none": []}[change]
    said = (
        "more bytes arrived than the worker announced"
        if change == "more"
        else "arrived with other bytes than its worker announced"
    )
    with pytest.raises(FarmError, match=said):
        followed(project, items)


@pytest.mark.parametrize(
    "path", ["manifest.json", "tiny/source/weights.safetensors", "../pipeline.yaml", f"{ENGINE}/other", "/etc/passwd"]
)
def test_file_that_is_not_the_steps_is_refused(project: Project, path: str) -> None:
    """A file that is not the step's is refused before a byte of it is read."""
    made = Completed(status=0, files=(describe_bytes(path, b""),))
    with pytest.raises(FarmError, match="a file that is not the step's"):
        check_list(project, BUILD, made)


def test_file_that_comes_twice_is_refused(project: Project) -> None:
    """A list that names a file twice is refused."""
    twice = describe_bytes(f"{ENGINE}/model.engine", b"")
    with pytest.raises(FarmError, match="a file that is not the step's"):
        check_list(project, BUILD, Completed(status=0, files=(twice, twice)))


def test_record_of_something_else_is_refused(project: Project, tmp_path: Path) -> None:
    """The record of another step is refused, and the earlier artifact stays."""
    path = Path(ENGINE) / "artifact.json"
    good = project.artifact(project.plan.variant(ENGINE))
    other = good.model_copy(update={"key": key_of(project, Step("build", TWIN))})
    write_record(tmp_path / path, other)
    made = Completed(status=0, files=(describe_file(tmp_path / path, tmp_path),))
    with pytest.raises(FarmError, match="failed their check; nothing of them was kept") as caught:
        accept(project, BUILD, made, tmp_path)
    assert "variant changed" in str(caught.value)
    assert project.artifact(project.plan.variant(ENGINE)) == good


def test_record_without_its_file_is_refused(project: Project, tmp_path: Path) -> None:
    """The record of an engine is refused if the engine's file does not arrive with it."""
    project.paths.engine(project.plan.variant(ENGINE)).unlink()
    path = Path(ENGINE) / "artifact.json"
    write_record(tmp_path / path, project.artifact(project.plan.variant(ENGINE)))
    made = Completed(status=0, files=(describe_file(tmp_path / path, tmp_path),))
    with pytest.raises(FarmError, match="nothing of them was kept"):
        accept(project, BUILD, made, tmp_path)


def test_success_without_a_record_is_refused(project: Project, tmp_path: Path) -> None:
    """Exit status 0 without a record is refused."""
    shutil.rmtree(project.paths.variant(project.plan.variant(ENGINE)))
    with pytest.raises(FarmError, match="failed their check"):
        accept(project, BUILD, Completed(status=0, files=()), tmp_path)


def test_digest_of_the_code_covers_both_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change in either package changes the digest of the code, and a copy elsewhere has the same digest."""
    folders = [shutil.copytree(folder, tmp_path / folder.name) for folder in code_folders()]
    monkeypatch.setattr("pipeline.farm.parcels.code_folders", lambda: folders)
    digests = [this_package(), this_package.__wrapped__()]
    for folder in folders:
        (folder / "py.typed").write_text("changed")
        digests.append(this_package.__wrapped__())
    assert digests[0] == digests[1]
    assert len({*digests}) == 3
