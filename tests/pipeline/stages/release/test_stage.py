"""Releases: contents, conditions, and the command."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

import model_artifacts as pipeline
from model_artifacts.cli.main import main as deploy
from model_artifacts.errors import ArtifactError, ReleaseError
from model_artifacts.host.hashes import sha256_of
from model_artifacts.host.record_files import read_record
from model_artifacts.records import GitState, Manifest, Status
from pipeline.cli.main import main
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.manifest.stage import make_manifest
from pipeline.stages.release.stage import Release, make_release
from tests.conftest import COMMIT
from tests.support.releases import listing

if TYPE_CHECKING:
    from pathlib import Path


REBUILT = "tiny/cpu-x86_64/onnxruntime-fp16"


@pytest.fixture(autouse=True)
def _committed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tree is that of a commit."""
    monkeypatch.setattr("pipeline.planning.project.git_state", lambda _: COMMIT)


@pytest.fixture
def project(copied: Path) -> Project:
    """A finished project, to do anything with."""
    return Project.load(copied / "pipeline.yaml", STAGES)


def test_a_release_has_what_may_be_deployed_and_its_evidence(released: Release, project: Project) -> None:
    """A release has exactly the deployable files and the evidence, and its manifest lists nothing else."""
    built = project.manifest()
    entries = [item for item in built.artifacts if item.id in {entry.id for entry in released.manifest.artifacts}]
    assert {item.status for item in entries} == {Status.DEPLOYABLE}
    assert {item.backend.value for item in entries} == {"onnxruntime"}
    files = {item.file.path for item in entries if item.file}
    evidence = {"manifest.json", "report.html", "bom.cdx.json", "provenance.intoto.json", "NOTICES.txt", "SHA256SUMS"}
    evidence |= {"README.md", "RELEASE_NOTES.md"}
    assert listing(released.folder) == files | evidence | {"model.sig"}
    assert read_record(released.folder / "manifest.json", Manifest) == released.manifest
    assert released.folder.name == "tiny-cccccccccccc"


def test_a_release_is_loaded_as_it_is(released: Release) -> None:
    """Its folder is an artifacts folder."""
    with pipeline.load(released.folder) as model:
        assert model.entry.id in {entry.id for entry in released.manifest.artifacts}


def test_the_sums_are_those_of_the_usual_tool(released: Release) -> None:
    """`sha256sum -c` accepts the file of sums."""
    tool = shutil.which("sha256sum")
    assert tool is not None
    subprocess.run([tool, "--quiet", "--strict", "-c", "SHA256SUMS"], check=True, cwd=released.folder)  # noqa: S603


def test_the_same_build_gives_the_same_archive(copied: Path, tmp_path: Path) -> None:
    """Unsigned archives of one build are equal byte for byte, independent of path and owner."""
    shutil.copytree(copied, tmp_path / "elsewhere")
    (tmp_path / "elsewhere/artifacts/manifest.json").chmod(0o600)
    made = [make_release(Project.load(folder / "pipeline.yaml", STAGES)) for folder in (copied, tmp_path / "elsewhere")]
    assert sha256_of(made[0].archive) == sha256_of(made[1].archive)
    assert not made[0].signed


# What is not released.


def test_a_dirty_tree_is_refused_unless_told(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--allow-dirty` releases a dirty tree, and the provenance says so."""
    monkeypatch.setattr("pipeline.planning.project.git_state", lambda _: GitState(commit="c" * 40, dirty=True))
    with pytest.raises(ReleaseError, match=r"(?s)differ from the commit.*commit the changes, run .*`doit config="):
        make_release(project)
    made = make_release(project, allow_dirty=True)
    assert "with changes that are not committed" in (made.folder / "provenance.intoto.json").read_text()


def test_a_later_commit_does_not_block_a_release(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit to README changes no artifact: the release keeps the name and the commits of its build."""
    later = GitState(commit="d" * 40, dirty=False)
    monkeypatch.setattr("pipeline.planning.project.git_state", lambda _: later)
    made = make_release(project)
    assert made.folder.name == "tiny-cccccccccccc"
    assert {entry.commits for entry in made.manifest.artifacts} == {(COMMIT,)}
    assert "d" * 40 not in (made.folder / "provenance.intoto.json").read_text()


def rebuilt(copied: Path, monkeypatch: pytest.MonkeyPatch, state: GitState | None) -> Project:
    """Return the project after an artifact's build, the manifest and the report ran from a checkout."""
    monkeypatch.setattr("pipeline.planning.project.git_state", lambda _: state)
    for stage, subject in (("build", REBUILT), ("manifest", "tiny"), ("report", "tiny")):
        assert main([stage, subject, "--config", str(copied / "pipeline.yaml")]) == 0
    return Project.load(copied / "pipeline.yaml", STAGES)


def test_each_artifact_is_of_the_commit_that_made_it(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later commit stands beside the artifact that it built, and the release names both."""
    later = GitState(commit="d" * 40, dirty=False)
    project = rebuilt(copied, monkeypatch, later)
    commits = {entry.id: entry.commits for entry in project.manifest().artifacts}
    assert commits[REBUILT] == (COMMIT, later)
    assert commits["tiny/cpu-x86_64/onnxruntime-fp32"] == (COMMIT,)
    assert project.artifact(project.plan.variant(REBUILT)).git == later
    assert project.source().git == COMMIT
    made = make_release(project)
    assert made.folder.name == "tiny-dddddddddddd"
    said = json.loads((made.folder / "provenance.intoto.json").read_text())["predicate"]["buildDefinition"]
    digests = [item.get("digest", {}).get("gitCommit") for item in said["resolvedDependencies"]]
    assert [digest for digest in digests if digest] == [COMMIT.commit, later.commit]


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        (GitState(commit="d" * 40, dirty=True), "made from files that differ from their commit"),
        (None, "made outside of a git checkout"),
    ],
)
def test_an_artifact_of_no_commit_is_not_released(
    copied: Path, monkeypatch: pytest.MonkeyPatch, state: GitState | None, problem: str
) -> None:
    """A clean manifest made afterwards does not wash an artifact that a dirty tree, or none, made."""
    rebuilt(copied, monkeypatch, state)
    monkeypatch.setattr("pipeline.planning.project.git_state", lambda _: COMMIT)
    for stage in ("manifest", "report"):
        assert main([stage, "tiny", "--config", str(copied / "pipeline.yaml")]) == 0
    project = Project.load(copied / "pipeline.yaml", STAGES)
    with pytest.raises(ReleaseError, match=rf"(?s)1 of 3 artifacts were {problem}.*{REBUILT}.*then run `doit config="):
        make_release(project)
    assert make_release(project, allow_dirty=True).folder.is_dir()


def test_what_was_built_of_a_dirty_tree_is_refused_once_it_is_clean(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build of a dirty tree stays dirty after the changes are put away."""
    built = project.manifest().model_copy(update={"git": GitState(commit="c" * 40, dirty=True)})
    monkeypatch.setattr(Project, "manifest", lambda _: built)
    with pytest.raises(ReleaseError, match=r"(?s)or did when the manifest was made.*python -m pipeline manifest tiny"):
        make_release(project)


def test_the_commit_is_that_of_the_configurations_folder(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit does not depend on the current folder, and equals the manifest's."""
    asked: list[Path] = []

    def state(folder: Path) -> GitState:
        asked.append(folder)
        return COMMIT

    monkeypatch.setattr("pipeline.planning.project.git_state", state)
    make_release(project)
    make_manifest(project)
    assert asked == [project.config_file.parent]


def test_what_is_no_checkout_is_refused_unless_told(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The build's key replaces the commit of an allowed folder outside git."""
    monkeypatch.setattr("pipeline.planning.project.git_state", lambda _: None)
    with pytest.raises(ReleaseError, match="the configuration is in no git checkout"):
        make_release(project)
    built = project.manifest().model_copy(update={"git": None})
    monkeypatch.setattr(Project, "manifest", lambda _: built)
    assert make_release(project, allow_dirty=True).folder.name == f"tiny-{built.key.digest[:12]}"


def test_what_is_stale_is_not_released(project: Project, copied: Path) -> None:
    """The reason is in the message."""
    project.paths.manifest.unlink()
    with pytest.raises(ReleaseError, match="the manifest is not up to date: not made yet"):
        make_release(Project.load(copied / "pipeline.yaml", STAGES))


def test_nothing_deployable_is_no_release(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty release helps nobody."""
    monkeypatch.setattr("pipeline.stages.release.stage._deployable", lambda _: ())
    with pytest.raises(ReleaseError, match="no artifact is deployable"):
        make_release(project)


def test_a_release_that_fails_leaves_the_old_one(
    released: Release, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk may be full when the archive is written."""
    before = {path: path.read_bytes() for path in project.paths.releases.rglob("*") if path.is_file()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.stages.release.stage.pack", full)
    with pytest.raises(ArtifactError, match="No space left on device"):
        make_release(project)
    assert released.folder.is_dir()
    assert {path: path.read_bytes() for path in project.paths.releases.rglob("*") if path.is_file()} == before


# Typed.


def test_commands_release_and_verify(
    project: Project, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands print the folder, the state of the signature and the number of checked artifacts."""
    assert main(["release", "--config", str(project.config_file), "--key", str(keys[0])]) == 0
    said = capsys.readouterr().out
    assert f"3 artifacts, signed: {project.paths.releases}/tiny-cccccccccccc\n" in said
    folder = str(next(project.paths.releases.glob("*/")))
    assert deploy(["verify", folder, "--key", str(keys[1])]) == 0
    said = capsys.readouterr().out
    assert re.fullmatch(
        r"tiny-cccccccccccc, built [-0-9]+ [:0-9]+ UTC: 3 artifacts are what the release says; the signature holds\n",
        said,
    )
    assert deploy(["verify", f"{folder}.tar.zst"]) == 0
    assert "so nobody vouches for it" in capsys.readouterr().out


def test_two_ways_to_sign_are_wrong_usage() -> None:
    """A key and CI's identity exclude each other."""
    with pytest.raises(SystemExit) as ended:
        main(["release", "--key", "a", "--keyless"])
    assert ended.value.code == 2
