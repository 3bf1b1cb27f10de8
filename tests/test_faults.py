"""Whatever happens to a run, nothing is half-written and nothing is lost."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.__main__ import main
from pipeline.atomic import read_record, replacing, write_record
from pipeline.plan import Stage, Step
from pipeline.project import Project
from pipeline.records import Artifact, Graph
from pipeline.staleness import NOT_MADE, is_current, status_of
from tests.conftest import TINY

from .test_staleness import records
from .test_tasks import begin, doit, ran

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.faults

KILLS = 50
MEAN_SECONDS = 1.5
SMALL = (
    TINY.replace("[fp32, fp16, bf16, int8]", "[fp32, fp16]")
    .replace("[1, {min: 1, opt: 2, max: 4}]", "[1]")
    .replace("[16MiB, 32MiB]", "[16MiB]")
    .replace("benchmark: {batches: [1, 2], ", "benchmark: {baselines: [], batches: [1], ")
)
ENGINE = "tiny/rtx-sm80+/fp16-b1-ws16MiB"
TWIN = "tiny/rtx-sm80+/fp16-b1-ws32MiB"
STEPS = [
    Step(Stage.SOURCE, "tiny"),
    Step(Stage.DATA, "tiny"),
    Step(Stage.EXPORT, "tiny/fp16"),
    Step(Stage.QUANTIZE, "tiny/int8"),
    Step(Stage.BUILD, ENGINE),
    Step(Stage.BUILD, "tiny/cpu-x86_64/onnxruntime-fp16"),
    Step(Stage.VALIDATE, "tiny/cpu-x86_64/onnxruntime-fp16"),
    Step(Stage.BENCHMARK, "tiny/cpu-x86_64"),
    Step(Stage.MANIFEST, "tiny"),
    Step(Stage.REPORT, "tiny"),
]
"""One of every stage that a run has."""
by_step = pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step.stage.value}:{step.subject}")


def run(step: Step, config: Path) -> int:
    """Run a step in this process, and return its exit status."""
    return main([step.stage.value, step.subject, "--config", str(config)])


def unwhole(project: Project) -> list[str]:
    """Return what is wrong with what lies on disk, but for what is missing, or made from something else than now."""
    found = []
    for path in project.paths.root.rglob("*.json"):
        with contextlib.suppress(FileNotFoundError):
            json.loads(path.read_bytes())
    for step in project.plan.steps:
        reasons = status_of(project, step).reasons
        found += [f"{step}: {reason}" for reason in reasons if "not what was made" in reason or "not a valid" in reason]
    return found


def temporaries(folder: Path) -> list[Path]:
    """Return the files that were being written."""
    return [path for path in folder.rglob("*") if path.name.startswith(".writing-")]


def finished_work(project: Project) -> dict[Path, bytes]:
    """Return the records of the steps that are done, all but those that tell of many others."""
    many = {Stage.MANIFEST, Stage.REPORT, Stage.BENCHMARK}
    steps = [step for step in project.plan.steps if step.stage not in many and is_current(project, step)]
    return {path: path.read_bytes() for step in steps for path, _ in records(project, step)}


def told(project: Project, ids: set[str]) -> list[dict[str, Any]]:
    """Return what the manifest says of some variants, but for what is measured anew and what others there are."""
    measured = {
        "timings",
        "noise",
        "build_seconds",
        "cold_start",
        "smallest_workspace",
        "equals",
        "device_memory_bytes",
    }
    entries = [entry.model_dump(mode="json") for entry in project.manifest().artifacts if entry.id in ids]
    return [{name: value for name, value in entry.items() if name not in measured} for entry in entries]


# Killed.


def test_killed_at_any_instant_a_run_goes_on_where_it_was(checkout: Path, built: Project) -> None:
    """After 50 kills nothing is half-written, what was done is not done again, and the manifest is the usual one."""
    (checkout / "pipeline.yaml").write_text(SMALL)
    project = Project.load(checkout / "pipeline.yaml")
    chance = random.Random()  # noqa: S311 - no secret
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}  # half a data file
    done: dict[Path, bytes] = {}
    for _ in range(KILLS):
        process = subprocess.Popen(
            [sys.executable, "-m", "doit"],
            cwd=checkout,
            env=plain,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2 + chance.expovariate(1 / MEAN_SECONDS))
        if chance.random() < 0.5:
            process.kill()  # doit alone: its steps end with it
        else:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert unwhole(project) == []
        now = finished_work(project)
        assert {path: now.get(path) for path in done} == done, "work that was done was done again, or lost"
        done = now
    ended = doit(checkout)
    assert ended.returncode == 0, ended.stderr
    now = finished_work(project)
    assert {path: now[path] for path in done} == done
    assert "everything is up to date" in doit(checkout).stdout
    assert temporaries(checkout) == []
    ids = {entry.id for entry in project.manifest().artifacts} & {entry.id for entry in built.manifest().artifacts}
    assert len(ids) > 5
    assert told(project, ids) == told(built, ids)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_asked_to_end_a_run_ends_with_its_steps(interrupted: Path, name: str) -> None:
    """A signal to doit alone ends its steps, too, in one message, and leaves nothing half-written."""
    process = begin(interrupted)
    process.send_signal(signal.Signals[name])
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "run `doit` again to go on from here" in said
    assert "Traceback" not in said
    assert steps_in(interrupted) == []
    assert temporaries(interrupted) == []


def test_a_killed_doit_takes_its_steps_with_it(checkout: Path) -> None:
    """They do not go on in the background, beside those of the next run."""
    process = subprocess.Popen(
        [sys.executable, "-m", "doit"], cwd=checkout, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 20
    while not steps_in(checkout) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while steps_in(checkout) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert steps_in(checkout) == []


def steps_in(folder: Path) -> list[str]:
    """Return the commands of the pipeline's processes that work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if "pipeline" in command and (process / "cwd").resolve() == folder.resolve():
                found.append(" ".join(command))
    return found


def test_what_a_killed_writer_left_the_next_one_removes(tmp_path: Path) -> None:
    """A temporary file that nobody holds goes; that of a living writer stays."""
    path = tmp_path / "model.engine"
    left = tmp_path / ".writing-model.engine.abc.engine"
    left.write_bytes(b"half")
    with replacing(path) as mine:
        assert not left.exists()
        with replacing(path) as other:
            assert mine.exists()
            other.write_bytes(b"other")
        mine.write_bytes(b"mine")
    assert path.read_bytes() == b"mine"
    assert temporaries(tmp_path) == []


# No room, no right.


def mount(*arguments: str) -> None:
    """Mount something, or skip the test."""
    tool = shutil.which("mount")
    done = subprocess.run([tool, *arguments], check=False, capture_output=True, text=True) if tool else None  # noqa: S603
    if done is None or done.returncode:
        pytest.skip(f"this user cannot mount: {done.stderr.strip() if done else 'no mount command'}")


@pytest.fixture
def disk(tmp_path: Path, built_folder: Path) -> Iterator[Path]:
    """The finished tiny project on a disk of its own of 64 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder))
    try:
        shutil.copytree(built_folder, folder / "project")
        yield folder / "project"
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)  # noqa: S603,S607 - as mounted


def fill(file: Path, left: int) -> None:
    """Leave no more than some bytes free on the disk."""
    with file.open("wb", buffering=0) as out, contextlib.suppress(OSError):
        while True:
            out.write(bytes(1 << 14))
    os.truncate(file, max(0, file.stat().st_size - left))


def spoil(project: Project, step: Step) -> None:
    """Have a step's results made again by taking one of its records away."""
    paths = {Stage.MANIFEST: project.paths.manifest, Stage.REPORT: project.paths.report_record}
    path = paths.get(step.stage) or records(project, step)[0][0]
    path.unlink()


@pytest.mark.parametrize(
    ("step", "left"),
    [*((step, 0) for step in STEPS), *((step, 8192) for step in STEPS if step.stage is not Stage.BENCHMARK)],
    ids=str,
)
def test_a_full_disk_is_one_message_and_loses_nothing(
    disk: Path, step: Step, left: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """No step writes half of anything; with room again, the same command does its work."""
    config = disk / "pipeline.yaml"
    project = Project.load(config)
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
        assert status_of(project, step).reasons
    (disk / "filler").unlink()
    assert run(step, config) == 0
    assert is_current(project, step)


@by_step
def test_a_read_only_disk_is_one_message(disk: Path, step: Step, capsys: pytest.CaptureFixture[str]) -> None:
    """A step that cannot write says so, and what to do."""
    config = disk / "pipeline.yaml"
    spoil(Project.load(config), step)
    mount("-o", "remount,ro", str(disk.parent))
    assert run(step, config) == 1
    said = capsys.readouterr().err
    assert "Read-only file system" in said
    assert "remount it writable" in said


def test_finding_out_what_is_stale_needs_no_right_to_write(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing can be written, what is there can still be asked about."""
    mount("-o", "remount,ro", str(disk.parent))
    assert main(["why", ENGINE, "--config", str(disk / "pipeline.yaml")]) == 0
    assert "is up to date" in capsys.readouterr().out


# Two at once.


def test_of_two_doits_at_once_one_refuses_and_the_other_finishes(finished: Path) -> None:
    """The one that came second says so; what the first makes is whole."""
    project = Project.load(finished / "pipeline.yaml")
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
    assert refused.startswith("error: another doit is running in this folder")
    assert unwhole(project) == []
    assert is_current(project, Step(Stage.BUILD, ENGINE))


def test_two_of_the_same_step_at_once_leave_one_whole_result(finished: Path) -> None:
    """Commands that people paste know no lock: the last one to finish is what is there."""
    project = Project.load(finished / "pipeline.yaml")
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
    """Results and files from the future are what they are."""
    project = Project.load(copied / "pipeline.yaml")
    path = project.paths.artifact(project.plan.variant(ENGINE))
    future = datetime(2099, 1, 1, tzinfo=timezone.utc)
    write_record(path, read_record(path, Artifact).model_copy(update={"built_at": future}))
    for file in project.paths.root.rglob("*"):
        os.utime(file, (future.timestamp(), future.timestamp()))
    steps = [step for step in project.plan.steps if step.stage not in {Stage.MANIFEST, Stage.REPORT}]
    assert [step for step in steps if not is_current(project, step)] == []
    engine = project.paths.engine(project.plan.variant(ENGINE))
    engine.write_bytes(engine.read_bytes()[:-1] + b"x")
    os.utime(engine, (future.timestamp(), future.timestamp()))
    assert not is_current(project, Step(Stage.BUILD, ENGINE))


# Elsewhere.


@pytest.mark.parametrize(
    "locale", [{"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "latin-1"}]
)
def test_a_terminal_that_knows_no_unicode_is_told_in_ascii(finished: Path, locale: dict[str, str]) -> None:
    """In a folder with an umlaut and with a locale without one, a run works, and says what it says."""
    project = Project.load(finished / "pipeline.yaml")
    project.paths.engine(project.plan.variant(ENGINE)).unlink()
    done = subprocess.run(
        [sys.executable, "-m", "doit"], check=False, cwd=finished, capture_output=True, env={**os.environ, **locale}
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr + done.stdout
    assert b"deployable" in done.stdout


# Nothing left over.


def test_descriptors_and_temporary_folders_come_back(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Steps that work and steps that fail leave as many open files and temporary folders as there were."""
    config = copied / "pipeline.yaml"
    project = Project.load(config)
    steps = [step for step in STEPS if step.stage not in {Stage.SOURCE, Stage.EXPORT, Stage.REPORT}]
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
    project = Project.load(finished / "pipeline.yaml")
    engine = project.paths.engine(project.plan.variant(ENGINE))
    data = bytearray(engine.read_bytes())
    data[len(data) // 2] ^= 1
    engine.write_bytes(data)
    done = doit(finished)
    assert done.returncode == 0
    assert f"build:{ENGINE}: stale: {ENGINE}/model.engine is not what was made" in done.stdout
    assert {name for name in ran(done.stdout) if name.startswith("build:")} <= {f"build:{ENGINE}", f"build:{TWIN}"}
    assert status_of(project, Step(Stage.BUILD, ENGINE)).reasons != (NOT_MADE,)
