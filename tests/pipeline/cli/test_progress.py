"""The steps of a run, and the time that the others take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pipeline.cli.progress import Planned, Progress, Working, add_durations, read_durations

if TYPE_CHECKING:
    from pathlib import Path

PLANNED = {
    "build:a": Planned("build"),
    "build:b": Planned("build"),
    "build:gpu": Planned("build", instant=True),
    "benchmark:t": Planned("benchmark", alone=True),
}
EARLIER = {"build:a": 60.0, "build:b": 120.0, "benchmark:t": 600.0}


def test_the_time_left_is_that_of_earlier_runs() -> None:
    """Steps side by side share their time, the benchmark has the machine alone, and a skipped step takes none."""
    progress = Progress(PLANNED, EARLIER, 2)
    assert progress.summary(0) == "0 of 4 steps, about 12 min left"  # 120 s, which the longest takes, and 600 s
    progress.begin("build:b", 0)
    assert progress.summary(90) == "0 of 4 steps, about 11 min left"  # (60 + 30) / 2 or 60, and 600
    progress.end("build:b", 100, done=True)
    progress.end("build:a", 100, done=False)  # up to date
    progress.end("build:gpu", 100, done=True)
    assert progress.summary(100) == "3 of 4 steps, about 10 min left"
    assert progress.took == {"build:b": 100}


def test_a_step_of_a_new_name_is_expected_to_take_as_long_as_its_stage() -> None:
    """The mean of the stage's other steps serves for a variant that was never built."""
    progress = Progress({"build:new": Planned("build")}, EARLIER, 1)
    assert progress.summary(0) == "0 of 1 steps, about 90 s left"


def test_a_stage_that_was_never_done_makes_the_time_a_lower_bound() -> None:
    """The first run knows only the stages that it has done."""
    progress = Progress(PLANNED, {}, 2)
    assert progress.summary(0) == "0 of 4 steps"
    progress.begin("build:a", 0)
    progress.end("build:a", 50, done=True)
    assert progress.summary(50) == "1 of 4 steps, at least 50 s left"
    assert Progress(PLANNED, EARLIER, None).summary(0) == "0 of 4 steps"  # a farm decides how many work at once


def test_the_first_run_counts_with_the_rough_durations_of_its_stages() -> None:
    """They give a lower bound, of which the time at work is taken off, until the stage's first step is done."""
    planned = {
        "build:a": Planned("build", roughly=30),
        "build:b": Planned("build", roughly=30),
        "build:gpu": Planned("build", instant=True, roughly=30),
        "benchmark:t": Planned("benchmark", alone=True, roughly=100),
    }
    progress = Progress(planned, {}, 1)
    assert progress.summary(0) == "0 of 4 steps, at least 3 min left"  # 30, 30 and 100 s
    progress.begin("build:a", 0)
    assert [item.left for item in progress.working(10)] == [None]
    assert progress.summary(100) == "0 of 4 steps, at least 2 min left"  # 30 and 100 s
    progress.end("build:a", 200, done=True)
    assert progress.summary(200) == "1 of 4 steps, at least 5 min left"  # 200 and 100 s
    progress = Progress(planned, {"build:a": 50.0, "benchmark:t": 70.0}, 1)
    assert progress.summary(0) == "0 of 4 steps, about 3 min left"  # 50, 50 and 70 s


def test_a_failure_teaches_no_duration() -> None:
    """A step that died after a second is not expected to take a second."""
    progress = Progress(PLANNED, {}, 1)
    progress.begin("build:a", 0)
    progress.end("build:a", 1, done=False)
    assert progress.took == {}


def test_a_step_at_work_tells_its_last_line_and_its_time() -> None:
    """A line that only counts is taken, any other one is also to be printed; a step's name is matched as a whole."""
    progress = Progress(PLANNED, EARLIER, 2)
    progress.begin("build:a", 10)
    assert not progress.hear("build:a: tuning")
    assert not progress.hear("build:ab: 3 of 4")
    assert progress.hear("build:a: layers: 3 of 12, about 30 s left")
    (working,) = progress.working(30)
    assert working == Working("build:a", "layers: 3 of 12, about 30 s left", 20, 40)
    progress.begin("a group", 10)  # which is no step
    assert len(progress.working(100)) == 1
    assert progress.working(100)[0].left == 0


def test_durations_are_kept_between_runs(tmp_path: Path) -> None:
    """A later run adds its own, and a duration that is not new stays."""
    path = tmp_path / "durations.json"
    add_durations(path, {"build:a": 1.23, "build:b": 4.0})
    add_durations(path, {"build:b": 5.0})
    assert read_durations(path) == {"build:a": 1.2, "build:b": 5.0}
    add_durations(tmp_path / "other.json", {})
    assert not (tmp_path / "other.json").exists()


@pytest.mark.parametrize("text", ["", "[1]", '{"build:a": "soon"}', '{"build:a": -1}', '{"build:a": NaN}', "\xff"])
def test_damaged_durations_are_none(tmp_path: Path, text: str) -> None:
    """They serve an estimate alone, so that no run fails for them."""
    path = tmp_path / "durations.json"
    path.write_bytes(text.encode("latin-1"))
    assert read_durations(path) == {}
    add_durations(path, {"build:a": 1.0})
    assert read_durations(path) == {"build:a": 1.0}


def test_durations_that_cannot_be_written_fail_no_run(tmp_path: Path) -> None:
    """The next run has no estimate, and this one ends as it would."""
    (tmp_path / "file").touch()
    add_durations(tmp_path / "file" / "durations.json", {"build:a": 1.0})
