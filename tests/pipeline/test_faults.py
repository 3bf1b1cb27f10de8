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

from model_artifacts.host.files import replacing
from model_artifacts.host.record_files import read_record, write_record
from model_artifacts.records import Graph
from pipeline.__main__ import main
from pipeline.planning.freshness import NOT_MADE, freshness_of, is_current, readers
from pipeline.planning.project import Project
from pipeline.planning.steps import Stage, Step
from pipeline.records import Artifact
from tests.conftest import TINY
from tests.pipeline.cli.test_tasks import begin, doit, ran

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.faults

KILLS = 50
SMALL = (
    TINY.replace("[fp32, fp16, bf16, int8]", "[fp32, int8]")
    .replace("[1, {min: 1, opt: 2, max: 4}]", "[1]")
    .replace("[16MiB, 32MiB]", "[16MiB]")
    .replace("benchmark: {batches: [1, 2], restarts: 2", "benchmark: {baselines: [], batches: [1], restarts: 1")
)
INTERRUPTED = [
    Step(Stage.SOURCE, "tiny"),
    Step(Stage.DATA, "tiny"),
    Step(Stage.EXPORT, "tiny/fp32"),
    Step(Stage.QUANTIZE, "tiny/int8"),
    Step(Stage.BUILD, "tiny/rtx-sm80+/fp32-b1-ws16MiB"),
    Step(Stage.VALIDATE, "tiny/cpu-x86_64/onnxruntime-fp32"),
    Step(Stage.BENCHMARK, "tiny/cpu-x86_64"),
    Step(Stage.MANIFEST, "tiny"),
    Step(Stage.REPORT, "tiny"),
]
"""One of every stage of that run."""
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
        reasons = freshness_of(project, step).reasons
        found += [f"{step}: {reason}" for reason in reasons if "not what was made" in reason or "not a valid" in reason]
    return found


def temporaries(folder: Path) -> list[Path]:
    """Return the files that were being written."""
    return [path for path in folder.rglob("*") if path.name.startswith(".writing-")]


def record_paths(project: Project, step: Step) -> list[Path]:
    """Return where a step's records lie."""
    plan, paths = project.plan, project.paths
    one = {
        Stage.SOURCE: lambda: paths.source,
        Stage.DATA: lambda: paths.data,
        Stage.EXPORT: lambda: paths.onnx_record(plan.graph(step.subject)),
        Stage.QUANTIZE: lambda: paths.onnx_record(plan.graph(step.subject)),
        Stage.BUILD: lambda: paths.artifact(plan.variant(step.subject)),
        Stage.VALIDATE: lambda: paths.accuracy(plan.variant(step.subject)),
        Stage.MANIFEST: lambda: paths.manifest,
        Stage.REPORT: lambda: paths.report_record,
    }
    if step.stage in one:
        return [one[step.stage]()]
    return [paths.benchmark(variant) for variant in plan.variants_on(plan.target(step.subject))]


def kept_work(project: Project) -> dict[Path, bytes]:
    """Return the records that are there, all but those that tell of many others."""
    many = {Stage.MANIFEST, Stage.REPORT, Stage.BENCHMARK}
    steps = [step for step in project.plan.steps if step.stage not in many]
    paths = {path for step in steps for path in record_paths(project, step) if path.exists()}
    return {path: path.read_bytes() for path in paths}


def told(project: Project) -> dict[str, Any]:
    """Return what the manifest says, but for what is measured anew and an engine's bytes, which may be others."""
    said = project.manifest().model_dump(mode="json")
    for entry in said["artifacts"]:
        for name in ("timings", "noise", "build_seconds", "cold_start", "device_memory_bytes", "runtime_cache"):
            del entry[name]
        if entry["kind"] == "tensorrt" and entry["file"]:
            entry["file"] = entry["file"]["path"]
    return {name: said[name] for name in ("artifacts", "model", "host")}


# Killed.


class Run:
    """A doit that is to be killed, alone in its folder; one step after the other, so that each takes its own time."""

    def __init__(self, folder: Path) -> None:
        """Start it, in a session of its own."""
        self._folder = folder
        plain = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}  # half a file
        self._process = subprocess.Popen(
            [sys.executable, "-m", "doit", "-n", "1"],
            cwd=folder,
            env=plain,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def stages(self) -> Iterator[set[str]]:
        """Yield the stages that are at work, over and over, until doit ends."""
        while self._process.poll() is None:
            yield {command.split("pipeline ", 1)[1].split()[0] for command in steps_in(self._folder)}
            time.sleep(0.1)

    def seconds(self) -> dict[str, float]:
        """Wait for its end; return how long each stage took."""
        seen: dict[str, list[float]] = {}
        for stages in self.stages():
            for stage in stages:
                seen.setdefault(stage, []).append(time.monotonic())
        assert self._process.returncode == 0
        return {stage: times[-1] - times[0] for stage, times in seen.items()}

    def kill(self, stage: str, seconds: float, *, alone: bool) -> bool:
        """Kill it, alone or with its steps, so long after a stage's begin; return whether that was at work then."""
        began: float | None = None
        for stages in self.stages():
            if began is None and stage in stages:
                began = time.monotonic()
            if began is not None and time.monotonic() - began >= seconds:
                self._end(alone=alone)
                return stage in stages
        return False

    def _end(self, *, alone: bool) -> None:
        if alone:
            self._process.kill()  # its steps end with it
        else:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        deadline = time.monotonic() + 20
        while steps_in(self._folder) and time.monotonic() < deadline:
            time.sleep(0.02)


def take_away(project: Project, step: Step) -> dict[Path, bytes]:
    """Remove what a step alone has made, its records last, as if it had never run; return it."""
    paths = record_paths(project, step)
    folders = {path.parent for path in paths}
    files = [project.file(file) for read in readers(project, step) for file in read().files]
    own = [file for file in files if file.parent in folders]
    removed = {path: path.read_bytes() for path in (*own, *paths)}
    for path in removed:
        path.unlink()
    return removed


def test_killed_at_any_instant_a_run_goes_on_where_it_was(finished: Path) -> None:
    """After 50 kills, in every stage, nothing is half-written, nothing done again, and the manifest the usual one."""
    (finished / "pipeline.yaml").write_text(SMALL)
    project = Project.load(finished / "pipeline.yaml")
    for step in INTERRUPTED:
        take_away(project, step)
    seconds = Run(finished).seconds()
    expected = told(project)
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}; undisturbed: {seconds}")  # noqa: T201 - shown where this fails
    chance = random.Random(seed)  # noqa: S311 - no secret
    hits = dict.fromkeys(seconds, 0)
    for number in range(2 * KILLS):
        step = INTERRUPTED[number % len(INTERRUPTED)]
        removed = take_away(project, step)
        done = kept_work(project)
        after = chance.uniform(0, seconds[step.stage.value])
        hit = Run(finished).kill(step.stage.value, after, alone=chance.random() < 0.5)
        hits[step.stage.value] += hit
        if not hit:
            seconds[step.stage.value] *= 0.7  # the machine was busier then
        assert unwhole(project) == []
        assert {path: path.read_bytes() for path in done} == done, "work that was done was done again, or lost"
        if sum(hits.values()) >= KILLS and all(hits.values()):
            break
        for path, data in removed.items() if hit else ():  # so that the next run begins with its own step
            path.write_bytes(data)
    print(f"hits {hits}")  # noqa: T201 - the same
    assert sum(hits.values()) >= KILLS
    assert all(hits[step.stage.value] for step in INTERRUPTED)
    ended = doit(finished)
    assert ended.returncode == 0, ended.stderr
    assert {path: path.read_bytes() for path in done} == done
    assert "everything is up to date" in doit(finished).stdout
    assert told(project) == expected
    for step in INTERRUPTED:  # what a killed process could not remove goes with the next one that writes the same
        take_away(project, step)
    assert doit(finished).returncode == 0
    assert temporaries(finished) == []
    assert told(project) == expected


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


def test_a_killed_benchmark_takes_its_processes_with_it(finished: Path) -> None:
    """Also those that are in the middle of something: they would disturb what is timed next."""
    command = [sys.executable, "-m", "pipeline", "benchmark", "tiny/cpu-x86_64"]
    process = subprocess.Popen(command, cwd=finished, stdout=subprocess.DEVNULL)  # noqa: S603 - fixed arguments
    deadline = time.monotonic() + 60
    while not (workers := children_of(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)  # nothing that it could do by itself ends it now
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [worker for worker in workers if Path(f"/proc/{worker}").exists()]
    for worker in left:
        os.kill(worker, signal.SIGKILL)
    assert workers
    assert left == []


def children_of(process: int) -> list[int]:
    """Return the processes that a process has started to time variants in, once they have begun to work."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    spawned = [int(pid) for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    return [pid for pid in spawned if "onnxruntime" in Path(f"/proc/{pid}/maps").read_text()]


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


AS_ROOT = [] if os.geteuid() == 0 else ["sudo", "-n"]


def mount(*arguments: str) -> None:
    """Mount something, or skip the test: where nobody looks, in CI, that is a failure."""
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
        assert freshness_of(project, step).reasons
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


@by_step
def test_a_newer_record_and_its_files_are_kept(copied: Path, step: Step, capsys: pytest.CaptureFixture[str]) -> None:
    """A command that is pasted refuses before it writes anything over what a newer version has made."""
    config = copied / "pipeline.yaml"
    project = Project.load(config)
    record = record_paths(project, step)[0]
    record.write_text(record.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    before = {path: path.read_bytes() for path in project.paths.folder.rglob("*") if path.is_file()}
    assert run(step, config) == 1
    assert "was written by a newer version" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in project.paths.folder.rglob("*") if path.is_file()} == before


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
    time_little(config)
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
    assert freshness_of(project, Step(Stage.BUILD, ENGINE)).reasons != (NOT_MADE,)
