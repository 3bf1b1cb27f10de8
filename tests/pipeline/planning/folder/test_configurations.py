"""The configurations of a file, and of a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import ConfigError, UsageError
from model_artifacts.records import Host
from pipeline.planning.folder.configurations import files_in, read_only_one, read_place
from pipeline.planning.folder.projects import load_projects
from pipeline.planning.project import Project
from pipeline.planning.steps import Step
from pipeline.stages import STAGES
from tests.support.configs import FARM, MATRIX, ON_H100

if TYPE_CHECKING:
    from pathlib import Path

MODEL = "model: {{name: {}, weights: sample}}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two configurations, and with files that are none."""
    found = tmp_path / "configs"
    (found / "more.yaml").mkdir(parents=True)
    (found / "more.yaml" / "c.yaml").write_text("nonsense: 1\n")
    for name in (".hidden.yaml", ".yaml", "notes.txt", "a.yml", "b.yaml~"):
        (found / name).write_text("nonsense: 1\n")
    (found / "b.yaml").write_text(MATRIX + MODEL.format("second"))
    (found / "a.yaml").write_text(f"{MATRIX}models: [{{{MODEL.format('third').strip()}}}]\n")
    return found


def test_a_folder_has_the_models_of_its_files(folder: Path) -> None:
    """In the order of the names of the files; hidden files, other files and folders are none."""
    assert files_in(folder) == (folder / "a.yaml", folder / "b.yaml")
    found = [(item.config.model.name, item.file.name) for item in read_place(folder, Host())]
    assert found == [("third", "a.yaml"), ("second", "b.yaml")]
    (folder / "a.yaml").write_text(f"models: [{{model: {{name: z}}}}, {{model: {{name: y}}}}]\n{MATRIX}")
    assert [item.config.model.name for item in read_place(folder, Host())] == ["z", "y", "second"]


def test_a_project_knows_its_file_and_is_named_by_its_folder(folder: Path) -> None:
    """Commands and doit name the folder; the artifacts lie where the files say, as those of one file do."""
    third, second = load_projects(folder, STAGES)
    assert third.paths.root == second.paths.root == folder / "artifacts"
    assert second.config_file == folder / "b.yaml"
    assert second.command(Step("source", "second")) == f"python -m pipeline source second --config {folder}"
    assert second.doit == f"doit config={folder}"
    assert second.paths.report == folder / "artifacts/second/report.html"
    (alone,) = load_projects(folder / "b.yaml", STAGES)
    assert alone.doit == f"doit config={folder / 'b.yaml'}"
    assert (alone.plan, alone.paths.folder) == (second.plan, second.paths.folder)


def test_a_file_that_is_named_alone_is_no_folder(folder: Path) -> None:
    """A folder with one file is like that file; one with several models is refused where one is needed."""
    with pytest.raises(UsageError, match=rf"(?s)several models.*third, second.*--config {folder}/a.yaml"):
        Project.load(folder, STAGES)
    assert Project.load(folder / "b.yaml", STAGES).place is None
    (folder / "a.yaml").unlink()
    project = Project.load(folder, STAGES)
    assert (project.config_file, project.named) == (folder / "b.yaml", folder)
    assert project.paths.report == folder / "artifacts/report.html"
    assert read_only_one(folder, Host()).config == read_only_one(folder / "b.yaml", Host()).config


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            MODEL.format("third") + MATRIX,
            "b.yaml:1:15: `model.name`: 'third' is the name of a model of {}/a.yaml, too; give it another",
        ),
        (
            MODEL.format("x") + MATRIX + "artifacts: ../artifacts\n",
            "b.yaml:4:12: `artifacts`: the models of a folder share one; expected 'artifacts', as in {}/a.yaml",
        ),
        (
            MODEL.format("x") + MATRIX + FARM.format(ON_H100),
            "b.yaml:4:11: `executor`: the models of a folder have one farm; write it as in {}/a.yaml",
        ),
        ("nonsense: 1\n" + MODEL.format("x") + MATRIX, "b.yaml:1:1: unknown key 'nonsense'; known keys: "),
        ("", "b.yaml:1:1: missing key 'profiles'"),
    ],
    ids=["a name twice", "another artifacts folder", "another farm", "a wrong file", "an empty file"],
)
def test_files_that_do_not_go_together_are_refused(folder: Path, text: str, found: str) -> None:
    """Each problem has its place in its file."""
    (folder / "b.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_place(folder, Host())
    assert str(caught.value).startswith(f"{folder} has ")
    assert caught.value.problems[0].startswith(f"{folder}/{found.format(folder)}")


def test_all_problems_of_all_files_are_listed(folder: Path) -> None:
    """What is wrong with one file hides nothing of the others."""
    (folder / "b.yaml").write_text(MODEL.format("third") + MATRIX)
    (folder / "c.yaml").write_text("profiles: [0]\nworkspaces: [1GiB]\n")
    (folder / "d.yaml").write_bytes(b"\xff")
    with pytest.raises(ConfigError) as caught:
        read_place(folder, Host())
    places = [problem.removeprefix(f"{folder}/").split(": ")[0] for problem in caught.value.problems]
    assert places == ["c.yaml:1:12", "d.yaml:1:1", "b.yaml:1:15"]


@pytest.mark.parametrize("spelt", ["configs/artifacts", "./artifacts"], ids=["another folder", "the same"])
def test_the_same_folder_may_be_spelt_otherwise(folder: Path, spelt: str) -> None:
    """What counts is where it lies."""
    (folder / "b.yaml").write_text(MODEL.format("second") + MATRIX + f"artifacts: {spelt}\n")
    if spelt == "./artifacts":
        assert len(read_place(folder, Host())) == 2
    else:
        with pytest.raises(ConfigError, match="`artifacts`"):
            read_place(folder, Host())


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    """The message says what a folder needs, and which name a file must have."""
    with pytest.raises(UsageError, match=r"(?s)no configuration.*\*\.yaml.*got: +no such file"):
        read_place(tmp_path, Host())
    (tmp_path / "detector.yml").touch()
    with pytest.raises(UsageError, match=r"(?s)got: +detector\.yml.*rename it to detector\.yaml"):
        read_place(tmp_path, Host())


def test_a_link_that_leads_nowhere_is_no_missing_model(folder: Path) -> None:
    """Passed over, its model would leave the manifest."""
    (folder / "c.yaml").symlink_to("nowhere.yaml")
    with pytest.raises(UsageError, match=r"c\.yaml cannot be read: No such file"):
        read_place(folder, Host())


def test_artifacts_beside_the_folder_have_a_short_path(folder: Path, tmp_path: Path) -> None:
    """Except below a link, whose parent is another folder."""
    for name in ("a", "b"):
        (folder / f"{name}.yaml").write_text(MODEL.format(name) + MATRIX + "artifacts: ../artifacts\n")
    assert {item.artifacts for item in read_place(folder, Host())} == {tmp_path / "artifacts"}
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(folder)
    found = {item.artifacts for item in read_place(tmp_path / "elsewhere" / "link", Host())}
    assert {path.resolve() for path in found} == {tmp_path / "artifacts"}
