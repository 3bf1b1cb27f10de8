"""Two configurations of one model's folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import UsageError
from pipeline.cli.main import main
from pipeline.planning.folder.owner import check_owner, claim
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from tests.support.configs import MATRIX
from tests.support.doit_runs import doit

if TYPE_CHECKING:
    from pathlib import Path

MODEL = "model: {name: mine, weights: sample}\n"


def _project(file: Path, text: str) -> Project:
    file.parent.mkdir(exist_ok=True)
    file.write_text(MATRIX + text)
    return Project.load(file, STAGES)


@pytest.mark.parametrize(
    ("text", "differs"),
    [
        ("model: {name: mine, weights: factory}\n", "`model`"),
        (MODEL + "data: {validation: 400}\n", "`data`"),
        (MODEL + "gates: {margin: 0.02}\n", "`gates`"),
        (MODEL + "tensorrt: {refit: true}\n", "`tensorrt`"),
        (MODEL + "quantization: {calibration: mse}\n", "`quantization`"),
        (MODEL + "leave_unquantized: {int8: [a]}\ndata: {calibration: 8}\n", "`data`, `leave_unquantized`"),
    ],
)
def test_another_configuration_with_other_settings_is_refused(tmp_path: Path, text: str, differs: str) -> None:
    """The message names both files, the folder and the sections that differ; the first one goes on."""
    first = _project(tmp_path / "pipeline.yaml", MODEL)
    claim(first)
    second = _project(tmp_path / "other.yaml", text)
    with pytest.raises(UsageError) as caught:
        check_owner(second)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'other.yaml'} and ")
    assert "pipeline.yaml would overwrite each other's results in" in said
    assert f"with other {differs}\n" in said
    assert f"change `model.name` in {tmp_path / 'other.yaml'}" in said
    check_owner(first)


@pytest.mark.parametrize(
    "text",
    [
        MODEL,
        MODEL + "precisions: [fp32]\ndevice: all\n",
        MODEL + "tensorrt: {compute_capabilities: [80], flavour: tensorrt_rtx, timing_cache: false}\n",
        MODEL + "benchmark: {restarts: 5}\ncache: /tmp/cache\n",
        "model: {name: another}\n",
        "model: {name: mine, weights: factory}\nartifacts: elsewhere\n",
    ],
)
def test_another_configuration_that_overwrites_nothing_may_run(tmp_path: Path, text: str) -> None:
    """A matrix of its own, a model of its own or a folder of its own keeps the results apart."""
    claim(_project(tmp_path / "pipeline.yaml", MODEL))
    check_owner(_project(tmp_path / "other.yaml", text))


def test_other_axes_of_the_profiles_are_refused(tmp_path: Path) -> None:
    """The graphs and the data have the axes of all profiles; with these alike, the batches may differ."""
    sized, other = (
        MODEL + f"profiles: [1, {{batch: 1, height: {{min: 24, opt: 32, max: {most}}}}}]\nworkspaces: [16MiB]\n"
        for most in (40, 48)
    )
    first = tmp_path / "pipeline.yaml"
    first.write_text(sized)
    claim(Project.load(first, STAGES))
    (tmp_path / "batches.yaml").write_text(sized.replace("[1, {batch: 1,", "[2, {batch: 8,"))
    check_owner(Project.load(tmp_path / "batches.yaml", STAGES))
    (tmp_path / "plain.yaml").write_text(MODEL + "profiles: [1]\nworkspaces: [16MiB]\n")
    (tmp_path / "other.yaml").write_text(other)
    for name in ("plain.yaml", "other.yaml"):
        with pytest.raises(UsageError, match="with other `profiles`"):
            check_owner(Project.load(tmp_path / name, STAGES))


def test_a_configuration_that_is_gone_wrong_or_changed_owns_nothing(tmp_path: Path) -> None:
    """Only a file that would make the same folder today stands in the way."""
    claim(_project(tmp_path / "pipeline.yaml", MODEL))
    second = _project(tmp_path / "other.yaml", "model: {name: mine, weights: factory}\n")
    for text in ("model: {name: renamed}\n" + MATRIX, "nonsense: 1\n"):
        (tmp_path / "pipeline.yaml").write_text(text)
        check_owner(second)
    (tmp_path / "pipeline.yaml").unlink()
    check_owner(second)
    claim(second)
    assert '"../other.yaml"' in second.paths.owner.read_text()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"configuration": "/no/such/file"}', '{"configuration": "."}'])
def test_a_damaged_record_stops_nobody(tmp_path: Path, content: str) -> None:
    """It is written anew by the next step."""
    project = _project(tmp_path / "pipeline.yaml", MODEL)
    project.paths.folder.mkdir(parents=True)
    project.paths.owner.write_text(content)
    check_owner(project)
    claim(project)
    assert '"../pipeline.yaml"' in project.paths.owner.read_text()


def test_a_copied_folder_belongs_to_the_copied_configuration(tmp_path: Path) -> None:
    """The record is relative, so that a checkout may be copied or moved."""
    claim(_project(tmp_path / "a" / "pipeline.yaml", MODEL))
    (tmp_path / "a").rename(tmp_path / "b")
    check_owner(Project.load(tmp_path / "b" / "pipeline.yaml", STAGES))


def test_a_step_refuses_before_it_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m pipeline source` ends with status 2."""
    claim(_project(tmp_path / "pipeline.yaml", MODEL))
    other = tmp_path / "other.yaml"
    other.write_text(MATRIX + "model: {name: mine, weights: factory}\n")
    assert main(["source", "mine", "--config", str(other)]) == 2
    assert "would overwrite each other's results" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "artifacts" / "mine").iterdir()] == ["configuration.json"]


def test_doit_refuses_as_well(checkout: Path) -> None:
    """`doit config=other.yaml` ends with status 2 before any step."""
    claim(Project.load(checkout / "pipeline.yaml", STAGES))
    text = (checkout / "pipeline.yaml").read_text()
    (checkout / "other.yaml").write_text(text.replace("calibration: 32", "calibration: 16"))
    done = doit(checkout, "config=other.yaml")
    assert done.returncode == 2
    assert "other.yaml and pipeline.yaml would overwrite each other's results in artifacts/tiny" in done.stderr
