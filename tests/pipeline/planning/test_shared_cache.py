"""The shared cache: results by key, checked, and no failures."""

from __future__ import annotations

import json
import logging
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from model_artifacts.errors import ConfigError
from model_artifacts.host.hashes import describe_file
from model_artifacts.host.record_files import read_record, write_record
from model_artifacts.records import Graph
from pipeline.cli.main import main
from pipeline.planning.freshness import is_current
from pipeline.planning.project import Project
from pipeline.planning.shared_cache import CachedStep, SharedCache
from pipeline.planning.steps import Step
from pipeline.records import Artifact, Outcome
from pipeline.stages import STAGES
from tests.conftest import TINY
from tests.support.doit_runs import doit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ENGINE = "tiny/rtx-sm80+/fp16-b1-ws16MiB"
TWIN = "tiny/rtx-sm80+/fp16-b1-ws32MiB"
BUILD = Step("build", ENGINE)
EXPORT = Step("export", "tiny/fp16")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The folder that is used as a cache."""
    return tmp_path / "cache"


@pytest.fixture
def project(copied: Path, cache: Path) -> Project:
    """A finished project of one machine, whose engine and graph are in the cache."""
    (copied / "pipeline.yaml").write_text(TINY + f"cache: {cache}\n")
    found = Project.load(copied / "pipeline.yaml", STAGES)
    for step in (EXPORT, BUILD):
        SharedCache(str(cache)).offer(found, step)
    return found


@pytest.fixture
def other(project: Project, tmp_path: Path) -> Project:
    """The same project on another machine, which has not built the engine yet."""
    folder = tmp_path / "other machine"
    shutil.copytree(project.config_file.parent, folder)
    found = Project.load(folder / "pipeline.yaml", STAGES)
    shutil.rmtree(found.paths.artifact(found.plan.variant(ENGINE)).parent)
    return found


def run(project: Project, step: Step) -> int:
    """Run a step as the command line does."""
    return main([step.stage, step.subject, "--config", str(project.config_file)])


def engine(project: Project) -> Path:
    """Return where the engine lies."""
    return project.paths.engine(project.plan.variant(ENGINE))


def listing(cache: Path, stage: str = "build") -> Path:
    """Return the cache's listing of the engine, or of the graph."""
    (found,) = (cache / "cache/results" / stage).iterdir()
    return found


def test_what_is_in_the_cache_is_not_made_again(
    other: Project, project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cached result has the bytes and the record of the other machine, and the step is up to date."""
    monkeypatch.setattr("pipeline.stages.build.engine.make_engine", None)
    assert run(other, BUILD) == 0
    assert engine(other).read_bytes() == engine(project).read_bytes()
    assert other.artifact(other.plan.variant(ENGINE)) == project.artifact(project.plan.variant(ENGINE))
    assert is_current(other, BUILD)
    said = capsys.readouterr().out
    assert "taken from " in said
    assert "made at " in said


def test_what_is_not_in_the_cache_is_made_and_left_there(other: Project, cache: Path) -> None:
    """A missing result is made, and put into the cache for the next machine."""
    shutil.rmtree(cache)
    assert run(other, BUILD) == 0
    shutil.rmtree(engine(other).parent)
    assert SharedCache(str(cache)).fetch(other, BUILD)
    assert is_current(other, BUILD)


def test_another_key_finds_nothing(other: Project) -> None:
    """Other weights make another engine."""
    record = other.onnx(Graph.FP16).model_copy(update={"canonical_sha256": "0" * 64})
    write_record(other.paths.onnx_record(Graph.FP16), record)
    assert SharedCache(str(other.config.cache)).fetch(other, BUILD) == ""


def test_graphs_are_shared_too(other: Project, project: Project) -> None:
    """A shared graph has all of its forms."""
    for path in other.paths.onnx_record(Graph.FP16).parent.glob("fp16*"):
        path.unlink()
    assert SharedCache(str(other.config.cache)).fetch(other, EXPORT)
    assert other.onnx(Graph.FP16) == project.onnx(Graph.FP16)
    assert is_current(other, EXPORT)


def test_a_bucket_is_a_cache(project: Project, other: Project, s3: str) -> None:
    """A bucket serves as a cache like a folder."""
    SharedCache(s3).offer(project, BUILD)
    assert s3 in SharedCache(s3).fetch(other, BUILD)
    assert engine(other).read_bytes() == engine(project).read_bytes()


@pytest.mark.parametrize("step", [Step("validate", ENGINE), Step("build", "tiny/cpu-x86_64/onnxruntime-fp32")])
def test_what_is_a_machines_own_is_not_shared(project: Project, cache: Path, step: Step) -> None:
    """Measurements, and results that are only another step's file, stay out of the cache."""
    shutil.rmtree(cache)
    SharedCache(str(cache)).offer(project, step)
    assert SharedCache(str(cache)).fetch(project, step) == ""
    assert not cache.exists()


def test_what_shares_a_file_is_not_shared(project: Project, cache: Path) -> None:
    """Another machine may have another file there."""
    assert project.artifact(project.plan.variant(TWIN)).same_as == ENGINE
    shutil.rmtree(cache)
    SharedCache(str(cache)).offer(project, Step("build", TWIN))
    assert not cache.exists()


def test_failures_and_damage_are_not_shared(project: Project, cache: Path) -> None:
    """They are made again, here and elsewhere."""
    shutil.rmtree(cache)
    path = project.paths.artifact(project.plan.variant(ENGINE))
    good = read_record(path, Artifact)
    write_record(path, good.model_copy(update={"outcome": Outcome.FAILED, "file": None, "log": None, "reason": "why"}))
    SharedCache(str(cache)).offer(project, BUILD)
    write_record(path, good)
    engine(project).write_bytes(b"damaged")
    SharedCache(str(cache)).offer(project, BUILD)
    assert not cache.exists()


def flipped(cache: Path, project: Project) -> None:
    """Change the engine in the cache."""
    file = project.artifact(project.plan.variant(ENGINE)).file
    assert file is not None
    (cache / "cache/blobs" / file.sha256[:2] / file.sha256).write_bytes(b"x" * file.bytes)


def gone(cache: Path, project: Project) -> None:
    """Remove it."""
    file = project.artifact(project.plan.variant(ENGINE)).file
    assert file is not None
    (cache / "cache/blobs" / file.sha256[:2] / file.sha256).unlink()


def relisted(change: Callable[[dict[str, Any]], object]) -> Callable[[Path, Project], None]:
    """Return a change of the listing."""

    def apply(cache: Path, _: Project) -> None:
        said = json.loads(listing(cache).read_text())
        change(said)
        listing(cache).write_text(json.dumps(said))

    return apply


def of_the_graph(cache: Path, _: Project) -> None:
    """Have the engine's listing name the graph's files."""
    shutil.copy(listing(cache, "export"), listing(cache))


DAMAGE: dict[str, tuple[Callable[[Path, Project], object], str]] = {
    "other bytes": (flipped, "differs from its listed digest"),
    "no bytes": (gone, "there is no such object"),
    "no JSON": (lambda cache, _: listing(cache).write_text("{"), "Invalid JSON"),
    "another step's": (of_the_graph, "names files that are not the step's"),
    "outside": (relisted(lambda said: said["files"][0].update(path="../../outside")), "paths that stay in"),
    "elsewhere": (relisted(lambda said: said["files"][0].update(path="tiny/onnx/fp32.onnx")), "not the step's"),
    "fewer files": (relisted(lambda said: said["files"].pop()), "is of something else"),
    "newer": (relisted(lambda said: said.update(schema_version=9)), "schema_version"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_cache_costs_no_more_than_the_build(
    other: Project, project: Project, cache: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The step is made here, the reason is told, and nothing of the cache is seen."""
    damage, message = DAMAGE[how]
    damage(cache, project)
    before = {path for path in other.paths.root.rglob("*") if path.is_file()}
    caplog.set_level(logging.INFO, "pipeline")
    assert SharedCache(str(cache)).fetch(other, BUILD) == ""
    assert "made here, because the cache cannot be used" in caplog.text
    assert message in caplog.text
    assert {path for path in other.paths.root.rglob("*") if path.is_file()} == before


def test_a_key_of_another_is_not_believed(other: Project, project: Project, cache: Path) -> None:
    """The record in the cache must have the key that was asked for, whatever its listing is called."""
    path = project.paths.artifact(project.plan.variant(ENGINE))
    record = read_record(path, Artifact)
    fields = (*record.key.fields[:-1], record.key.fields[-1].model_copy(update={"value": "another"}))
    write_record(path, record.model_copy(update={"key": record.key.model_copy(update={"fields": fields})}))
    forged = describe_file(path, project.paths.root)
    said = CachedStep.model_validate_json(listing(cache).read_text()).model_copy(update={"record": forged})
    listing(cache).write_text(said.to_json())
    blob = cache / "cache/blobs" / forged.sha256[:2] / forged.sha256
    blob.parent.mkdir(exist_ok=True)
    shutil.copy(path, blob)
    assert SharedCache(str(cache)).fetch(other, BUILD) == ""


def test_every_edit_of_the_cache_is_noticed(
    other: Project, project: Project, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another digit in the listing or in the record is told as the reason to build here."""
    record = project.paths.artifact(project.plan.variant(ENGINE))
    digest = describe_file(record, project.paths.root).sha256
    caplog.set_level(logging.INFO, "pipeline")
    for path, step in ((listing(cache), 1), (cache / "cache/blobs" / digest[:2] / digest, 9)):
        sound = path.read_text()
        places = [index for index, letter in enumerate(sound) if letter.isdigit()][::step]
        assert len(places) > 9
        for index in places:
            caplog.clear()
            path.write_text(f"{sound[:index]}{9 - int(sound[index])}{sound[index + 1 :]}")
            assert SharedCache(str(cache)).fetch(other, BUILD) == "", sound[index - 20 : index + 1]
            assert "made here, because the cache cannot be used" in caplog.text
        path.write_text(sound)
    assert SharedCache(str(cache)).fetch(other, BUILD) != ""


def test_an_edited_record_is_not_restored_whatever_its_listing_says(
    other: Project, project: Project, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A record that was edited before it came into the cache is refused by its own digest."""
    path = project.paths.artifact(project.plan.variant(ENGINE))
    path.write_text(path.read_text().replace('"outcome": "done"', '"outcome": "skipped"'))
    forged = describe_file(path, project.paths.root)
    said = CachedStep.model_validate_json(listing(cache).read_text()).model_copy(update={"record": forged})
    listing(cache).write_text(said.to_json())
    (cache / "cache/blobs" / forged.sha256[:2]).mkdir(exist_ok=True)
    shutil.copy(path, cache / "cache/blobs" / forged.sha256[:2] / forged.sha256)
    caplog.set_level(logging.INFO, "pipeline")
    assert SharedCache(str(cache)).fetch(other, BUILD) == ""
    assert "it was changed after it was written" in caplog.text
    SharedCache(str(cache)).offer(project, BUILD)
    assert "it was changed after it was written" in caplog.text.partition("not left in the cache")[2]


def test_a_cache_that_cannot_be_reached_stops_nobody(
    other: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told of twice: when it is asked, and when it is offered the result."""
    (tmp_path / "file").write_text("")
    other.config_file.write_text(TINY + f"cache: {tmp_path / 'file'}\n")
    assert run(other, BUILD) == 0
    said = capsys.readouterr().out
    assert "made here, because the cache cannot be used" in said
    assert "not left in the cache" in said


def test_a_cache_of_an_unknown_kind_is_an_error(other: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake of the configuration is not passed over."""
    other.config_file.write_text(TINY + "cache: ftp://somewhere\n")
    assert run(other, BUILD) == ConfigError.exit_code
    assert "ftp://somewhere" in capsys.readouterr().err


def test_two_checkouts_build_once(checkout: Path, finished: Path, tmp_path: Path) -> None:
    """Doit in a second checkout takes the results of the first one, and builds nothing."""
    cache = tmp_path / "cache"
    steps = [f"build:{ENGINE}", "export:tiny/fp16"]
    assert checkout == finished
    (checkout / "pipeline.yaml").write_text(TINY + f"cache: {cache}\n")
    project = Project.load(checkout / "pipeline.yaml", STAGES)
    shutil.rmtree(project.paths.artifact(project.plan.variant(ENGINE)).parent)
    first = doit(checkout, *steps)
    assert first.returncode == 0, first.stderr
    shutil.rmtree(project.paths.artifact(project.plan.variant(ENGINE)).parent)
    second = doit(checkout, *steps)
    assert f"build:{ENGINE}: taken from {cache}" in second.stdout
    assert is_current(project, BUILD)
