"""The driver's side of a step: sending, following, retrying and stopping."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from doit.exceptions import TaskFailed

from model_artifacts.errors import FarmError, LostWorkerError
from model_artifacts.host import environment
from model_artifacts.host.record_files import write_record
from model_artifacts.records import DeploymentHost, EngineFlavour, Tool
from pipeline.cli.actions import FarmAction
from pipeline.cli.main import main
from pipeline.config.settings import FarmTarget
from pipeline.farm import executor
from pipeline.farm.cluster import Node, NodeRequirements, Running
from pipeline.farm.parcels import Began, Completed, PrintedLine, Refused, read_message
from pipeline.farm.sent import Sent
from pipeline.planning.freshness import is_current
from pipeline.planning.keys import key_of
from pipeline.planning.plan import Plan
from pipeline.planning.project import Project
from pipeline.planning.steps import Step
from pipeline.records import FarmRecord, Outcome
from pipeline.stages import STAGES
from tests.support.farm_steps import (
    AHEAD,
    BUILD,
    ENGINE,
    FARM,
    HEAD,
    NEEDS,
    NODE_H100,
    NODE_PROCESSOR,
    OTHER,
    TWIN,
    Cancelled,
    Machines,
    followed,
    packed,
    sent,
)
from tests.support.hosts import host, machine, workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


# A step travels, and comes back.


def test_step_runs_elsewhere_as_it_runs_here(project: Project, at_home: Path) -> None:
    """A worker with only the packed files gives the same key, an engine with its record, and the printed lines."""
    shutil.rmtree(project.paths.variant(project.plan.variant(ENGINE)))
    status, told = followed(project, sent(packed(project)))
    assert status == 0
    (said,) = told
    assert "built in" in said.line
    artifact = project.artifact(project.plan.variant(ENGINE))
    assert artifact.outcome is Outcome.DONE
    assert artifact.key == key_of(project, BUILD)
    assert is_current(project, BUILD)
    assert list((at_home / "work").iterdir()) == []


@pytest.mark.parametrize("stage", ["build", "validate"])
def test_step_finds_its_twin_elsewhere(project: Project, at_home: Path, stage: str) -> None:
    """The artifact of a smaller workspace travels too, so that an equal engine is one file and judged once."""
    assert at_home
    step = Step(stage, TWIN)
    status, told = followed(project, sent(packed(project, step)), step)
    assert (status, len(told)) == (0, 1)
    assert project.artifact(project.plan.variant(TWIN)).same_as == ENGINE
    assert is_current(project, step)


def test_benchmark_of_a_target_travels_with_all_of_its_engines(project: Project, at_home: Path) -> None:
    """A worker without a GPU reports that no engine of the target ran."""
    assert at_home
    step = Step("benchmark", "tiny/rtx-sm80+")
    found = packed(project, step)
    names = {item.record.path for item in found.inputs}
    assert found.parcel.timed
    assert f"artifacts/{ENGINE}/model.engine" in names
    status, told = followed(project, sent(found), step)
    assert status == 0
    assert any("no NVIDIA driver found" in said.line for said in told)
    assert is_current(project, step)


def test_failure_comes_back_with_its_record_and_its_log(project: Project, at_home: Path) -> None:
    """A remote failure leaves the same record and log as a local one."""
    assert at_home
    text = FARM.replace("[16MiB, 32MiB]", "[1KiB]")
    project.config_file.write_text(text)
    small = Project.load(project.config_file, STAGES)
    step = Step("build", "tiny/rtx-sm80+/fp16-b1-ws1KiB")
    status, told = followed(small, sent(packed(small, step)), step)
    artifact = small.artifact(small.plan.variant(step.subject))
    assert (status, artifact.outcome) == (1, Outcome.FAILED)
    assert any(said.error for said in told)
    assert artifact.log is not None
    assert small.file(artifact.log).is_file()


def test_what_an_earlier_build_gave_goes(project: Project, at_home: Path) -> None:
    """A file that the new record does not name is not left beside it."""
    assert at_home
    left = project.paths.module(project.plan.variant(ENGINE))
    left.write_bytes(b"of an earlier build")
    followed(project, sent(packed(project)))
    assert not left.exists()


# What comes back is believed once it holds.


def test_worker_that_falls_silent_is_lost(project: Project) -> None:
    """A worker whose messages stop early is lost, so that its step may run elsewhere."""
    with pytest.raises(LostWorkerError, match="the worker was lost"):
        followed(project, [Began(node="n").to_json()])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("told", [0, 128])
def test_step_that_somebody_has_ended_may_run_elsewhere(project: Project, number: signal.Signals, told: int) -> None:
    """A step whose process, or a child of it, was killed by a signal may run elsewhere."""
    status = told + number if told else -number
    with pytest.raises(LostWorkerError, match=f"its process was killed by {number.name}"):
        followed(project, [Completed(status=status, files=()).to_json()])


def test_step_whose_builder_is_killed_has_not_failed(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A killed builder on a worker leaves no record, and its exit status says that the step may run elsewhere."""
    before = project.artifact(project.plan.variant(ENGINE))
    record = FarmRecord(hosts=(workers(NEEDS, environment.read_host()),), here=NEEDS)
    write_record(project.paths.farm, record)
    monkeypatch.setattr("pipeline.stages.build.engine._build", _kill_itself)
    assert main(["build", ENGINE, "--config", str(project.config_file)]) == 128 + signal.SIGKILL
    assert "killed by SIGKILL, as the kernel does when memory is short" in capsys.readouterr().err
    assert project.artifact(project.plan.variant(ENGINE)) == before


def _kill_itself(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_step_that_is_asked_to_end_says_so(interrupted: Path) -> None:
    """A terminated step has the exit status that a shell gives for the signal."""
    process = subprocess.Popen([sys.executable, "-m", "pipeline", "source", "tiny"], cwd=interrupted)
    while not (interrupted / "begun").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM


def test_step_that_fails_without_a_record_has_its_own_status(project: Project, at_home: Path) -> None:
    """A step that fails without a record keeps its exit status, and earlier results stay."""
    assert at_home
    project.paths.build_log(project.plan.variant(ENGINE)).unlink()
    items = sent(packed(project))
    made = read_message(str(next(item for item in items if isinstance(item, str) and '"made"' in item)))
    assert isinstance(made, Completed)
    (log,) = (file for file in made.files if file.path.endswith("build.log"))
    given = b"".join(item for item in items if isinstance(item, bytes))
    start = sum(file.bytes for file in made.files[: made.files.index(log)])
    failed = Completed(status=1, files=(log,))
    before = project.artifact(project.plan.variant(ENGINE))
    status, _ = followed(project, [failed.to_json(), given[start : start + log.bytes]])
    assert status == 1
    assert project.artifact(project.plan.variant(ENGINE)) == before


def test_step_that_has_crashed_has_failed(project: Project) -> None:
    """A step that crashed has failed, because it would crash elsewhere, too."""
    status, told = followed(project, [Completed(status=-signal.SIGSEGV, files=()).to_json()])
    assert status == -signal.SIGSEGV
    assert told == [PrintedLine(error=True, line="its process was killed by SIGSEGV")]


def test_refusal_says_why(project: Project) -> None:
    """The error for a refused step has the worker's reason."""
    with pytest.raises(FarmError, match=r"^no room$"):
        followed(project, [Began(node="n").to_json(), Refused(reason="no room").to_json()])


@pytest.mark.parametrize("item", ["{", '{"kind": "sung"}', b"bytes first"])
def test_what_nobody_says_is_refused(project: Project, item: str | bytes) -> None:
    """Messages that the driver does not know are refused; another version of this package might send them."""
    with pytest.raises(FarmError, match="does not know"):
        followed(project, [item])


# Which machines there are.


@pytest.mark.parametrize(
    ("stage", "flavour", "timed"),
    [
        ("benchmark", EngineFlavour.TENSORRT_RTX, True),
        ("profile", EngineFlavour.TENSORRT_RTX, True),
        ("build", EngineFlavour.TENSORRT, True),
        ("build", EngineFlavour.TENSORRT_RTX, False),
        ("validate", EngineFlavour.TENSORRT, False),
        ("validate", EngineFlavour.TENSORRT_RTX, False),
    ],
)
def test_what_is_timed_shares_no_gpu(stage: str, flavour: EngineFlavour, *, timed: bool) -> None:
    """Measurements, profiles and TensorRT's builds, which time tactics, share no GPU; other steps do."""
    target = FarmTarget(flavour=flavour, accelerator="H100", steps_per_gpu=4)
    spec = next(spec for spec in STAGES if spec.name == stage)
    needs = NodeRequirements.of(target, alone=executor._is_timed(spec, target))  # noqa: SLF001 - without a cluster
    assert needs.gpus == (1 if timed else 0.25)


def places(machines: Machines, unfit: frozenset[str] = frozenset()) -> executor._EligibleNodes:
    """Return where a step of a processor's may run."""
    return executor._EligibleNodes(machines, AHEAD, unfit)  # type: ignore[arg-type]  # noqa: SLF001 - without a cluster


def test_step_that_was_lost_runs_on_other_machines() -> None:
    """A lost step avoids its former machines as long as others have the flavour."""
    found = places(Machines(NODE_H100, NODE_PROCESSOR, OTHER), frozenset("h"))
    assert found.avoid() == {"h"}
    found.lost("")
    assert found.avoid() == {"h"}
    found.lost("p")
    assert found.avoid() == {"h", "p"}
    found.lost("o")
    assert found.avoid() == {"h"}


def test_step_that_finds_no_free_worker_does_not_wait_for_ever(project: Project) -> None:
    """A step that never begins is given up, and the message names the setting."""
    farm = project.config.farm
    assert farm is not None
    short = project.config.model_copy(update={"farm": farm.model_copy(update={"queue_timeout_seconds": 0.01})})
    plan = Plan(short, project.plan.host, project.plan.farm)
    trip = executor._Trip(Project(plan, project.paths, STAGES), BUILD, lambda: None, print)  # noqa: SLF001 - without a cluster
    time.sleep(0.02)
    with pytest.raises(FarmError, match=r"(?s)no worker was free in 0\.01 s.*farm\.queue_timeout_seconds"):
        trip.check_time()


def test_machine_that_is_lost_while_it_times_costs_that_measurement_alone(project: Project) -> None:
    """Results that the machine built and validated stay, and so do timings of other targets."""
    step = Step("benchmark", "tiny/rtx-sm80+")
    for variant in project.plan.variants_on(project.schedule.subject(step)):
        project.paths.benchmark(variant).unlink()
    kept = [other for other in project.schedule.steps if other.stage in {"build", "validate", "benchmark"}]
    before = {other for other in kept if is_current(project, other)}
    assert {other.stage for other in before} == {"build", "validate", "benchmark"}
    with pytest.raises(LostWorkerError):
        followed(project, [Began(node="n").to_json()], step)
    assert {other for other in kept if is_current(project, other)} == before
    assert step not in before


def test_step_whose_last_machine_goes_while_it_waits_does_not_wait_on() -> None:
    """A step tries a machine that lost it before if no other is left, and fails if none is left."""
    machines = Machines(NODE_PROCESSOR, OTHER)
    found = places(machines)
    found.lost("p")
    avoid = found.avoid()
    found.check(avoid)
    machines.there = (NODE_PROCESSOR,)
    with pytest.raises(LostWorkerError, match="waiting for a machine"):
        found.check(avoid)
    machines.there = (HEAD,)
    with pytest.raises(FarmError, match="no machine of the farm can run"):
        found.check(avoid)
    with pytest.raises(FarmError, match="no machine of the farm can run"):
        found.avoid()


# The cluster that is not there.


def test_cluster_that_cannot_be_reached_is_tried_once(project: Project) -> None:
    """Hundreds of steps try an unreachable cluster once, not once each."""
    project.config_file.write_text(FARM.replace("farm: {", "farm: {address: nowhere, "))
    farm = executor.Farm(Project.load(project.config_file, STAGES))
    with pytest.raises(FarmError, match="got nowhere"):
        farm.run(BUILD, print)
    with pytest.raises(FarmError, match="see the error of the first step"):
        farm.run(BUILD, print)


class Answering(Machines):
    """A cluster whose machines all say the same of themselves."""

    def __init__(self, there: DeploymentHost) -> None:
        super().__init__(NODE_PROCESSOR)
        self._there = there

    def probe(self, node: Node) -> Answering:
        """Ask one."""
        assert node == NODE_PROCESSOR
        return self

    def result(self, deadline: float, look: Callable[[], None]) -> str:
        """Answer in time."""
        assert time.monotonic() < deadline
        look()
        return self._there.to_json()

    def put(self, content: object) -> list[object]:
        """Take a file."""
        return [content]


def test_farm_that_has_changed_since_planning_is_planned_for_anew(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step runs on machines that have changed since the plan; the next doit plans for the present ones."""
    there = machine(host(flavours=(Tool(name="tensorrt_rtx", version="1.7.1.116"),)))
    monkeypatch.setattr("pipeline.farm.cluster.Cluster.connect", lambda *_: Answering(there))
    with pytest.raises(FarmError, match="have changed since the plan was made"):
        executor.Farm(project).run(BUILD, print)
    (found,) = Project.load(project.config_file, STAGES).plan.farm
    assert found.host.host.flavours == there.host.flavours


def test_what_was_left_in_the_cache_meanwhile_is_taken(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result that another driver stores between the first look and the key's turn is taken from the cache."""
    project.config_file.write_text(f"{FARM}cache: anywhere\n")
    there = machine(environment.read_host())
    monkeypatch.setattr("pipeline.farm.cluster.Cluster.connect", lambda *_: Answering(there))
    monkeypatch.setattr(executor, "Flights", lambda *_: Alone())
    monkeypatch.setattr(executor, "SharedCache", lambda _: FilledMeanwhile())
    told: list[PrintedLine] = []
    assert executor.Farm(Project.load(project.config_file, STAGES)).run(BUILD, told.append) == 0
    assert told == [PrintedLine(error=False, line="taken from there")]


class Alone:
    """A board without other drivers."""

    @contextlib.contextmanager
    def alone(self, *_: object) -> Iterator[None]:
        """Hold any key."""
        yield


class FilledMeanwhile:
    """A cache in which the first look finds nothing."""

    def __init__(self) -> None:
        self._found = iter(("", "there"))

    def fetch(self, *_: object) -> str:
        """Look."""
        return next(self._found)


def test_driver_that_joins_can_be_stopped(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopping does not wait for a pending connection, and nothing runs after it."""
    going, on = threading.Event(), threading.Event()

    def connect(*_: object) -> Answering:
        going.set()
        assert on.wait(30)
        return Answering(machine(environment.read_host()))

    monkeypatch.setattr("pipeline.farm.cluster.Cluster.connect", connect)
    farm = executor.Farm(project)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(farm.run, BUILD, print)
        assert going.wait(30)
        began = time.monotonic()
        farm.stop()
        assert time.monotonic() - began < 5
        on.set()
        with pytest.raises(FarmError, match="the step was stopped before its end"):
            running.result(30)


class Silent(Running):
    """A step that is cancelled before it has said anything."""

    def __init__(self, stop: Callable[[], None]) -> None:
        super().__init__(Cancelled(), None)
        self._stop = stop

    def items(self, look: Callable[[], None]) -> Iterator[str | bytes]:
        """End without a message, like a cancelled step."""
        look()
        self._stop()
        return iter(())


class Sending(Machines):
    """A cluster that takes steps; the driver stops while each runs."""

    def __init__(self) -> None:
        super().__init__(NODE_PROCESSOR)
        self.steps: list[Silent] = []
        self.stop: Callable[[], None] = lambda: None

    def put(self, content: object) -> list[object]:
        """Take a file."""
        return [content]

    def submit(self, *_: object) -> Silent:
        """Take a step."""
        self.steps.append(Silent(self.stop))
        return self.steps[-1]


def test_step_that_falls_silent_when_stopped_is_not_run_again(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancelled step of a stopped driver is not lost: no message names another machine, nothing is sent again."""
    cluster: Any = Sending()
    record = FarmRecord(hosts=project.plan.farm)
    joined = executor._Joined(cluster, record, None, Sent(cluster.put))  # type: ignore[arg-type]  # noqa: SLF001 - without a cluster
    monkeypatch.setattr(executor.Farm, "_join", lambda _: joined)
    farm = executor.Farm(project)
    cluster.stop = farm._stopped.set  # noqa: SLF001 - as a signal does, without waiting for what runs
    told: list[PrintedLine] = []
    with pytest.raises(FarmError, match="the step was stopped before its end"):
        farm.run(Step("validate", ENGINE), told.append)
    assert told == []
    assert len(cluster.steps) == 1


def test_what_nobody_expects_fails_one_step(project: Project) -> None:
    """An unexpected error fails its own step with a message, and the other steps go on."""

    class Broken:
        def run(self, *_: object) -> int:
            raise RuntimeError(project.plan.model)

    said = io.StringIO()
    failed = FarmAction(Broken(), BUILD).execute(None, said)  # type: ignore[arg-type]
    assert isinstance(failed, TaskFailed)
    assert said.getvalue() == f"build:{ENGINE}: error: unexpected RuntimeError: tiny\n"
