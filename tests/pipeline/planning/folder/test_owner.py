"""Two configurations of one model's folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import ConfigError, UsageError
from pipeline.cli.main import main
from pipeline.planning.folder.owner import check_owner, claim
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from tests.support.configs import MATRIX, PREPROCESSING
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


LINKED = "tensorrt: {max_aux_streams: 0}\ngates: {margin: 0.02}\n"
"""What a point of a search has beside the links."""


def _point(folder: Path, text: str, links: tuple[str, ...] = ("data", "onnx", "source")) -> Project:
    """Return a project whose images, graphs and model are links to those of `pipeline.yaml`, as a search leaves it."""
    project = _project(folder / "artifacts/mine/tune/point/pipeline.yaml", text)
    project.paths.folder.mkdir(parents=True)
    for name in links:
        (folder / "artifacts/mine" / name).mkdir()
        (project.paths.folder / name).symlink_to(f"../../../../{name}")
    return project


@pytest.mark.parametrize(
    ("links", "changed", "differs"),
    [
        (("data",), "data: {validation: 400}\n", "`data`"),
        (("data", "onnx"), "data: {validation: 400}\nleave_unquantized: {int8: [a]}\n", "`data`, `leave_unquantized`"),
        (("source", "onnx"), PREPROCESSING.format(64, 64, "bilinear", "[0, 0, 0]", "[1, 1, 1]"), "`preprocessing`"),
    ],
    ids=["images", "layers", "preprocessing"],
)
def test_nothing_is_overwritten_through_links(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], links: tuple[str, ...], changed: str, differs: str
) -> None:
    """A former point of a search is refused once its configuration makes other images or graphs."""
    (tmp_path / "artifacts/mine/tune/point").mkdir(parents=True)
    base = _project(tmp_path / "pipeline.yaml", MODEL)
    claim(base)
    point = _point(tmp_path, MODEL + LINKED, links)
    check_owner(point)
    own = "precisions: [fp16, int8]\n" if "leave" in changed else ""
    _project(base.config_file, MODEL + own + changed)
    with pytest.raises(UsageError, match=rf"(?s)through the link {point.paths.folder}.*other {differs}.*search again"):
        check_owner(point)
    assert main(["data", "mine", "--config", str(point.config_file)]) == 2
    assert "would overwrite results of" in capsys.readouterr().err
    assert not [*(tmp_path / "artifacts/mine" / links[0]).iterdir()]
    check_owner(base)


def test_links_to_what_nobody_makes_otherwise_are_no_matter(tmp_path: Path) -> None:
    """Other layers have graphs of their own; a disk elsewhere has no configuration, nor has a file that is gone."""
    (tmp_path / "artifacts/mine/tune/point").mkdir(parents=True)
    base = _project(tmp_path / "pipeline.yaml", MODEL)
    claim(base)
    point = _point(tmp_path, MODEL + LINKED + "leave_unquantized: {int8: [a]}\nprecisions: [int8]\n", ("data",))
    (tmp_path / "disk").mkdir()
    (point.paths.folder / "releases").symlink_to(tmp_path / "disk")
    check_owner(point)
    base.config_file.write_text("nonsense: 1\n")
    with pytest.raises(ConfigError, match="nonsense"):
        check_owner(point)
    base.config_file.unlink()
    check_owner(point)


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
