"""The restarts of the finals on disk: read in their order, and only while they hold."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from model_artifacts.host.environment import missing_driver
from model_artifacts.records import Clock
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.tune.finals.entrants import Entrants
from pipeline.tune.finals.restarts import Finals
from pipeline.tune.records import STREAM_SETTING, Choice, Trial
from pipeline.tune.setups import Setups

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not missing_driver(), reason="a search on a GPU is in tests/gpu")


def finals_of(project: Project) -> Finals:
    """Return the finals of all trials that passed."""
    paths = sorted((project.paths.tune / "trials").glob("*.json"))
    passed = [trial for path in paths if (trial := project.read(path, Trial)).passed]
    return Finals(Setups(project), Entrants(tuple(passed)))


def test_eager_fp32_takes_its_turn_beside_the_finalists(searched: Project) -> None:
    """Every restart has all of them, at every batch size."""
    finals = finals_of(searched)
    assert finals.points[-1].subject == "tiny/cpu-x86_64/eager-fp32"
    restarts = finals.read()
    assert [restart.restart for restart in restarts] == [1, 2]
    assert finals.backends() == dict.fromkeys(range(len(finals.points) - 1), "onnxruntime")
    for restart in restarts:
        assert restart.finalists == finals.points
        assert {(item.finalist, item.batch) for item in restart.sets} == {
            (index, 1) for index in range(len(finals.points))
        }


def test_a_damaged_restart_and_those_after_it_are_taken_again(searched_folder: Path, tmp_path: Path) -> None:
    """A search that was killed goes on after the last whole one."""
    shutil.copytree(searched_folder, tmp_path / "copy", symlinks=True)
    project = Project.load(tmp_path / "copy" / "pipeline.yaml", STAGES)
    first, second = sorted((project.paths.tune / "finals").glob("*.json"))
    text = second.read_text()
    second.write_text(text[:-10])
    assert [restart.restart for restart in finals_of(project).read()] == [1]
    second.write_text(text)
    first.unlink()
    assert finals_of(project).read() == []


def test_without_finalists_there_are_no_finals(searched: Project) -> None:
    """Nothing has passed."""
    assert Finals(Setups(searched)).read() == []
    assert Finals(Setups(searched)).points == ()


def test_all_that_takes_part_is_in_the_key(searched: Project) -> None:
    """Other entrants are other finals; eager FP32 stays the last."""
    plain = finals_of(searched)
    eight = plain.points[0].with_choice(Choice(setting=STREAM_SETTING, value=8))
    other = Finals(plain.setups, plain.entrants._replace(streams=(eight,)))
    assert other.points == (*plain.points[:-1], eight, plain.points[-1])
    assert other.key != plain.key
    assert other.read() == []


def test_the_same_artifact_takes_turns_with_itself(searched_folder: Path, tmp_path: Path) -> None:
    """Each entry has a process of its own. ONNX Runtime has no streams, so that no time is of several."""
    shutil.copytree(searched_folder, tmp_path / "copy", symlinks=True)
    plain = finals_of(Project.load(tmp_path / "copy" / "pipeline.yaml", STAGES))
    eight = plain.points[0].with_choice(Choice(setting=STREAM_SETTING, value=8))
    finals = Finals(plain.setups, Entrants(plain.finalists[:1], streams=(eight,)))
    taken = finals.take(1)
    assert finals.read() == [taken]
    assert taken.failures == ()
    assert {(item.finalist, item.clock, item.streams) for item in taken.sets} == {
        (index, Clock.HOST, None) for index in range(3)
    }
