"""Disks that are full or read-only, two runs at once, clocks and terminals."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from model_artifacts.host.record_files import read_record, write_record
from model_artifacts.records import Graph
from pipeline.cli.main import main
from pipeline.planning.freshness import NOT_MADE, freshness_of, is_current
from pipeline.planning.project import Project
from pipeline.planning.steps import Step
from pipeline.records import Artifact
from pipeline.stages import STAGES
from tests.support.doit_runs import doit, ran
from tests.support.leftovers import record_paths, temporaries, unwhole
from tests.support.parts import long_test
from tests.support.records import with_digest

if TYPE_CHECKING:
    from collections.abc import Iterator


pytestmark = pytest.mark.faults

ENGINE = "tiny/rtx-sm80+/fp16-b1-ws16MiB"
TWIN = "tiny/rtx-sm80+/fp16-b1-ws32MiB"
STEPS = [
    Step("source", "tiny"),
    Step("data", "tiny"),
    Step("export", "tiny/fp16"),
    Step("quantize", "tiny/int8"),
    Step("build", ENGINE),
    Step("build", "tiny/cpu-x86_64/onnxruntime-fp16"),
    Step("validate", "tiny/cpu-x86_64/onnxruntime-fp16"),
    Step("benchmark", "tiny/cpu-x86_64"),
    Step("manifest", "tiny"),
    Step("report", "tiny"),
]
"""One of every stage that a run has."""
by_step = pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step.stage}:{step.subject}")


def run(step: Step, config: Path) -> int:
    """Run a step in this process, and return its exit status."""
    return main([step.stage, step.subject, "--config", str(config)])


# No room, no right.


AS_ROOT = [] if os.geteuid() == 0 else ["sudo", "-n"]


def mount(*arguments: str) -> None:
    """Mount something, or skip the test; in CI, where a skip would go unnoticed, fail it."""
    tool = shutil.which(AS_ROOT[0] if AS_ROOT else "mount")
    command = [*AS_ROOT, "mount", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True) if tool else None  # noqa: S603
    if done is None or done.returncode:
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up(f"cannot mount: {done.stderr.strip() if done else 'no such command'}; `unshare -rm pytest …` can")


@pytest.fixture
def disk(tmp_path: Path, built_folder: Path) -> Iterator[Path]:
    """The finished tiny project on a disk of its own of 64 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", f"size=64m,uid={os.geteuid()}", "tmpfs", str(folder))
    try:
        shutil.copytree(built_folder, folder / "project")
        time_little(folder / "project/pipeline.yaml")
        yield folder / "project"
    finally:
        subprocess.run([*AS_ROOT, "umount", "-l", str(folder)], check=True)  # noqa: S603 - as mounted


def time_little(config: Path) -> None:
    """Have as little timed as can be."""
    config.write_text(config.read_text().replace("batches: [1, 2], restarts: 2", "batches: [1], restarts: 1"))


def fill(file: Path, left: int) -> None:
    """Leave no more than some bytes free on the disk."""
    with file.open("wb", buffering=0) as out, contextlib.suppress(OSError):
        while True:
            out.write(bytes(1 << 14))
    os.truncate(file, max(0, file.stat().st_size - left))


def spoil(project: Project, step: Step) -> None:
    """Have a step's results made again by taking one of its records away."""
    record_paths(project, step)[0].unlink()


@pytest.mark.part(3)
@pytest.mark.parametrize(
    ("step", "left"),
    [*((step, 0) for step in STEPS), *((step, 8192) for step in STEPS if step.stage != "benchmark")],
    ids=str,
)
def test_a_full_disk_is_one_message_and_loses_nothing(
    disk: Path, step: Step, left: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """No step writes half of anything; with room again, the same command does its work."""
    config = disk / "pipeline.yaml"
    project = Project.load(config, STAGES)
    spoil(project, step)
    fill(disk / "filler", left)
    status = run(step, config)
    said = capsys.readouterr().err
    assert unwhole(project) == []
    assert temporaries(disk) == []
    if status or not is_current(project, step):  # what is small enough fits into what is left
        assert status == 1
        assert "No space left on device" in said
        assert "free some disk space" in said
        assert freshness_of(project, step).reasons
    (disk / "filler").unlink()
    assert run(step, config) == 0
    assert is_current(project, step)


@pytest.mark.part(2)
@by_step
def test_a_read_only_disk_is_one_message(disk: Path, step: Step, capsys: pytest.CaptureFixture[str]) -> None:
    """A step that cannot write ends with a message and its fix."""
    config = disk / "pipeline.yaml"
    spoil(Project.load(config, STAGES), step)
    mount("-o", "remount,ro", str(disk.parent))
    assert run(step, config) == 1
    said = capsys.readouterr().err
    assert "Read-only file system" in said
    assert "remount it writable" in said


def test_finding_out_what_is_stale_needs_no_right_to_write(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Staleness can be determined on a read-only file system."""
    mount("-o", "remount,ro", str(disk.parent))
    assert main(["why", ENGINE, "--config", str(disk / "pipeline.yaml")]) == 0
    assert "is up to date" in capsys.readouterr().out


@pytest.mark.part(3)
@by_step
def test_a_newer_record_and_its_files_are_kept(copied: Path, step: Step, capsys: pytest.CaptureFixture[str]) -> None:
    """A command refuses before it replaces files of a newer version."""
    config = copied / "pipeline.yaml"
    project = Project.load(config, STAGES)
    record = record_paths(project, step)[0]
    record.write_text(with_digest(record.read_text().replace('"schema_version": 1', '"schema_version": 2')))
    before = {path: path.read_bytes() for path in project.paths.folder.rglob("*") if path.is_file()}
    assert run(step, config) == 1
    assert "was written by a newer version" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in project.paths.folder.rglob("*") if path.is_file()} == before


# Two at once.


def test_of_two_doits_at_once_one_refuses_and_the_other_finishes(finished: Path) -> None:
    """The second doit refuses with a message, and the results of the first are whole."""
    project = Project.load(finished / "pipeline.yaml", STAGES)
    project.paths.engine(project.plan.variant(ENGINE)).unlink()
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "doit"], cwd=finished, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1]
    refused = next(text for process, text in zip(both, said, strict=True) if process.returncode)
    assert refused.startswith("error: another doit works in artifacts")
    assert unwhole(project) == []
    assert is_current(project, Step("build", ENGINE))


def test_two_of_the_same_step_at_once_leave_one_whole_result(finished: Path) -> None:
    """Two concurrent commands of one step take no lock, and the last one to finish leaves a whole result."""
    project = Project.load(finished / "pipeline.yaml", STAGES)
    both = [
        subprocess.Popen(  # noqa: S603 - fixed arguments
            [sys.executable, "-m", "pipeline", "build", ENGINE], cwd=finished, stdout=subprocess.DEVNULL
        )
        for _ in range(2)
    ]
    assert [process.wait(120) for process in both] == [0, 0]
    assert unwhole(project) == []
    assert temporaries(finished) == []


# Back in time.


def test_a_clock_that_was_set_back_makes_nothing_stale(copied: Path) -> None:
    """Results and files from the future stay current."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    path = project.paths.artifact(project.plan.variant(ENGINE))
    future = datetime(2099, 1, 1, tzinfo=timezone.utc)
    write_record(path, read_record(path, Artifact).model_copy(update={"built_at": future}))
    for file in project.paths.root.rglob("*"):
        os.utime(file, (future.timestamp(), future.timestamp()))
    steps = [step for step in project.schedule.steps if step.stage not in {"manifest", "report"}]
    assert [step for step in steps if not is_current(project, step)] == []
    engine = project.paths.engine(project.plan.variant(ENGINE))
    engine.write_bytes(engine.read_bytes()[:-1] + b"x")
    os.utime(engine, (future.timestamp(), future.timestamp()))
    assert not is_current(project, Step("build", ENGINE))


# Elsewhere.


@pytest.mark.parametrize(
    "locale", [{"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "latin-1"}]
)
def test_a_terminal_that_knows_no_unicode_is_told_in_ascii(finished: Path, locale: dict[str, str]) -> None:
    """A run works in a folder with an umlaut under an ASCII locale, and prints escaped characters."""
    project = Project.load(finished / "pipeline.yaml", STAGES)
    project.paths.engine(project.plan.variant(ENGINE)).unlink()
    done = subprocess.run(
        [sys.executable, "-m", "doit"], check=False, cwd=finished, capture_output=True, env={**os.environ, **locale}
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr + done.stdout
    assert b"deployable" in done.stdout


# Nothing left over.


@long_test
def test_descriptors_and_temporary_folders_come_back(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Steps that work and steps that fail leave as many open files and temporary folders as there were."""
    config = copied / "pipeline.yaml"
    time_little(config)
    project = Project.load(config, STAGES)
    steps = [step for step in STEPS if step.stage not in {"source", "export", "report"}]
    for step in steps:
        assert run(step, config) == 0  # what is loaded once stays loaded
    before = open_files(), names_in(tempfile.gettempdir())
    project.paths.onnx(Graph.FP16).write_bytes(b"no graph")
    failed = [run(step, config) for step in steps]
    capsys.readouterr()
    assert 1 in failed
    assert (open_files(), names_in(tempfile.gettempdir())) == before


def open_files() -> int:
    """Return how many descriptors this process has."""
    return len(names_in("/proc/self/fd"))


def names_in(folder: str) -> list[str]:
    """Return the names in a folder, sorted."""
    return sorted(path.name for path in Path(folder).iterdir())


def test_only_the_damaged_is_made_again(finished: Path) -> None:
    """A flipped bit in one engine rebuilds that engine, says so, and validates nothing that is the same afterwards."""
    project = Project.load(finished / "pipeline.yaml", STAGES)
    engine = project.paths.engine(project.plan.variant(ENGINE))
    data = bytearray(engine.read_bytes())
    data[len(data) // 2] ^= 1
    engine.write_bytes(data)
    done = doit(finished)
    assert done.returncode == 0
    assert f"build:{ENGINE}: stale: {ENGINE}/model.engine is not what was made" in done.stdout
    assert {name for name in ran(done.stdout) if name.startswith("build:")} <= {f"build:{ENGINE}", f"build:{TWIN}"}
    assert freshness_of(project, Step("build", ENGINE)).reasons != (NOT_MADE,)
