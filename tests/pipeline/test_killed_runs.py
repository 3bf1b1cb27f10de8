"""Runs, steps and writers that are killed or asked to end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from model_artifacts.host.files import replacing
from model_artifacts.records import StageRecord
from pipeline.planning.project import Project
from pipeline.planning.steps import Step
from pipeline.stages import STAGES
from tests.conftest import TINY
from tests.support.doit_runs import begin, doit
from tests.support.leftovers import record_paths, temporaries, unwhole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.parts import Part

pytestmark = pytest.mark.faults

STEP = " -m pipeline "
"""In the commands of steps, but not in that of the server that forks them."""
SMALL = (
    TINY.replace("[fp32, fp16, bf16, int8]", "[fp32, int8]")
    .replace("[1, {min: 1, opt: 2, max: 4}]", "[1]")
    .replace("[16MiB, 32MiB]", "[16MiB]")
    .replace("{batches: [1, 2], restarts: 2", "{batches: [1], restarts: 1")
    .replace("[inductor, onnxruntime]", "[]")
)
INTERRUPTED = [
    Step("source", "tiny"),
    Step("data", "tiny"),
    Step("export", "tiny/fp32"),
    Step("quantize", "tiny/int8"),
    Step("build", "tiny/rtx-sm80+/fp32-b1-ws16MiB"),
    Step("validate", "tiny/cpu-x86_64/onnxruntime-fp32"),
    Step("benchmark", "tiny/cpu-x86_64"),
    Step("manifest", "tiny"),
    Step("report", "tiny"),
]
"""One of every stage of that run."""


def kept_work(project: Project) -> dict[Path, bytes]:
    """Return the records that are there, all but those that tell of many others."""
    many = {"manifest", "report", "benchmark"}
    steps = [step for step in project.schedule.steps if step.stage not in many]
    paths = {path for step in steps for path in record_paths(project, step) if path.exists()}
    return {path: path.read_bytes() for path in paths}


def told(project: Project) -> dict[str, Any]:
    """Return the manifest's contents without measurements and without the bytes of engines."""
    said = project.manifest().model_dump(mode="json")
    for entry in said["artifacts"]:
        for name in ("timings", "noise", "build_seconds", "cold_start", "device_memory_bytes", "runtime_cache"):
            del entry[name]
        if entry["kind"] == "tensorrt" and entry["file"]:
            entry["file"] = entry["file"]["path"]
    return {name: said[name] for name in ("artifacts", "model", "host")}


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
            steps = [command for command in processes_in(self._folder) if STEP in command]
            yield {command.split(STEP, 1)[1].split()[0] for command in steps}
            time.sleep(0.02)

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
        while processes_in(self._folder) and time.monotonic() < deadline:
            time.sleep(0.02)


def take_away(project: Project, step: Step) -> dict[Path, bytes]:
    """Remove the files of a step alone, its records last, as if it had never run, and return the step."""
    paths = record_paths(project, step)
    folders = {path.parent for path in paths}
    files = [
        project.file(file)
        for record in project.records(step)
        if isinstance(record, StageRecord)
        for file in record.files
    ]
    own = [file for file in files if file.parent in folders]
    restarts = [path for folder in folders if step.stage == "benchmark" for path in project.paths.restarts_in(folder)]
    removed = {path: path.read_bytes() for path in (*own, *restarts, *paths)}
    for path in removed:
        path.unlink()
    return removed


def test_killed_at_any_instant_a_run_goes_on_where_it_was(finished: Path, part: Part) -> None:
    """Kills in all stages leave nothing half-written, repeat no finished work, and give the usual manifest."""
    (finished / "pipeline.yaml").write_text(SMALL)
    project = Project.load(finished / "pipeline.yaml", STAGES)
    steps, kills = part.of(INTERRUPTED, 3), part.number(50, 3)
    for step in steps:
        take_away(project, step)
    seconds = {step.stage: 0.1 for step in steps} | Run(finished).seconds()
    expected = told(project)
    print(f"undisturbed: {seconds}")  # noqa: T201 - shown where this fails
    hits = dict.fromkeys((step.stage for step in steps), 0)
    for _ in range(kills + 6 * len(steps)):
        step = min(steps, key=lambda step: hits[step.stage])
        removed = take_away(project, step)
        done = kept_work(project)
        after = part.chance.uniform(0, seconds[step.stage])
        hit = Run(finished).kill(step.stage, after, alone=part.chance.random() < 0.5)
        hits[step.stage] += hit
        if not hit:
            seconds[step.stage] *= 0.7  # the machine was busier then
        assert unwhole(project) == []
        assert {path: path.read_bytes() for path in done} == done, "work that was done was done again, or lost"
        if sum(hits.values()) >= kills and all(hits.values()):
            break
        for path, data in removed.items() if hit else ():  # so that the next run begins with its own step
            path.write_bytes(data)
    print(f"hits {hits}")  # noqa: T201 - the same
    assert sum(hits.values()) >= kills
    assert all(hits.values())
    ended = doit(finished)
    assert ended.returncode == 0, ended.stderr
    assert {path: path.read_bytes() for path in done} == done
    assert "everything is up to date" in doit(finished).stdout
    assert told(project) == expected
    for step in steps:  # what a killed process could not remove goes with the next one that writes the same
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
    assert processes_in(interrupted) == []
    assert temporaries(interrupted) == []


def test_a_killed_doit_takes_its_steps_with_it(checkout: Path) -> None:
    """The steps of a killed doit end with it, rather than run on beside those of the next run."""
    process = subprocess.Popen(
        [sys.executable, "-m", "doit"], cwd=checkout, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 20
    while not processes_in(checkout) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while processes_in(checkout) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_in(checkout) == []


def test_a_killed_benchmark_takes_its_processes_with_it(finished: Path) -> None:
    """Busy processes of a killed benchmark end too, because they would disturb the next timing."""
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


def processes_in(folder: Path) -> list[str]:
    """Return the commands of the pipeline's processes that work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
            if " -m pipeline" in command and (process / "cwd").resolve() == folder.resolve():
                found.append(command)
    return found


def test_what_a_killed_writer_left_the_next_one_removes(tmp_path: Path) -> None:
    """A writer removes the temporary files of killed writers, and keeps those of living ones."""
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
