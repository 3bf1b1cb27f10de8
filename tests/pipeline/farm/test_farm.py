"""What travels to the farm and back, and what is refused of it; the farm itself is in test_farm_cluster.py."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from doit.exceptions import TaskFailed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement
from ray._private.label_utils import validate_label_selector

from model_artifacts import __version__
from model_artifacts.deployment.loading import this_host
from model_artifacts.errors import FarmError, LostWorkerError, RecordError, UnknownFarmError
from model_artifacts.host import environment
from model_artifacts.host.hashes import describe_bytes, describe_file
from model_artifacts.host.record_files import write_record
from model_artifacts.records import DeploymentHost, EngineFlavour, FileRecord, Gpu, Tool
from pipeline.__main__ import main
from pipeline.cli.tasks import FarmAction
from pipeline.config.settings import FarmTarget
from pipeline.farm import executor, worker
from pipeline.farm.cluster import Cluster, Node, NodeRequirements, Probe, Running
from pipeline.farm.flights import Board
from pipeline.farm.inspection import able_nodes, common_host, look_at_farm, unfit_nodes
from pipeline.farm.parcels import (
    SMALL_BYTES,
    Began,
    Completed,
    Input,
    Message,
    Packed,
    Parcel,
    PrintedLine,
    Refused,
    accept,
    check_list,
    is_small,
    pack,
    read_message,
    this_package,
)
from pipeline.farm.sent import Sent
from pipeline.planning.freshness import is_current
from pipeline.planning.keys import key_of
from pipeline.planning.plan import Plan
from pipeline.planning.project import Project
from pipeline.planning.steps import Stage, Step
from pipeline.records import FarmHost, FarmNode, FarmRecord, Outcome
from tests.conftest import REPOSITORY, TINY
from tests.support.hosts import H100, L4, RTX, TRT10, TRT86, host, machine, workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ENGINE = "tiny/rtx-sm80+/fp16-b1-ws16MiB"
TWIN = "tiny/rtx-sm80+/fp16-b1-ws32MiB"
BUILD = Step(Stage.BUILD, ENGINE)
NEEDS = "a processor with tensorrt_rtx"
FARM = TINY + "executor: ray\nfarm: {targets: [{flavour: tensorrt_rtx}]}\n"
AHEAD = FarmTarget(flavour=EngineFlavour.TENSORRT_RTX)
TUNED = FarmTarget(flavour=EngineFlavour.TENSORRT, accelerator="H100")


@pytest.fixture
def project(copied: Path) -> Project:
    """The finished tiny project, whose engines are a farm's from now on."""
    (copied / "pipeline.yaml").write_text(FARM)
    write_record(copied / "artifacts/farm.json", FarmRecord(hosts=(workers(NEEDS, environment.read_host()),)))
    return Project.load(copied / "pipeline.yaml")


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where workers of this test keep their files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"pipeline-farm-{os.getuid()}"


def packed(project: Project, step: Step = BUILD) -> Packed:
    """Return what travels for a step."""
    found = project.plan.workers(step)
    assert found is not None
    return pack(project, step, found)


def working(parcel: Parcel, *contents: bytes) -> list[str | bytes]:
    """Return what a worker says of a parcel, and gives."""
    small = [content for file, content in zip(parcel.files, contents, strict=True) if is_small(file)]
    large = [content for file, content in zip(parcel.files, contents, strict=True) if not is_small(file)]
    return [*worker.work(parcel, b"".join(small), lambda number: iter([large[number]]), "node")]


def sent(found: Packed) -> list[str | bytes]:
    """Return what a worker says of a packed step, and gives."""
    return working(found.parcel, *(item.read() for item in found.inputs))


def command(code: str, *files: FileRecord, seconds: float = 60) -> Parcel:
    """Return a parcel that runs some Python."""
    return Parcel(command=("-c", code), files=files, timeout_seconds=seconds)


def messages(items: list[str | bytes]) -> list[Message]:
    """Return what a worker says."""
    return [read_message(item) for item in items if isinstance(item, str)]


def followed(project: Project, items: list[str | bytes], step: Step = BUILD) -> tuple[int, list[PrintedLine]]:
    """Return what the driver makes of that: the exit status, and what was told."""
    told: list[PrintedLine] = []
    trip = executor._Trip(project, step, lambda: None, told.append)  # noqa: SLF001 - without a cluster
    return trip.follow(iter(items)), told


# A step travels, and comes back.


def test_step_runs_elsewhere_as_it_runs_here(project: Project, at_home: Path) -> None:
    """With nothing but what was packed: the same key, an engine with its record, and what was printed."""
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


@pytest.mark.parametrize("stage", [Stage.BUILD, Stage.VALIDATE])
def test_step_finds_its_twin_elsewhere(project: Project, at_home: Path, stage: Stage) -> None:
    """What a smaller workspace has given travels, too: the same engine is one file, judged once."""
    assert at_home
    step = Step(stage, TWIN)
    status, told = followed(project, sent(packed(project, step)), step)
    assert (status, len(told)) == (0, 1)
    assert project.artifact(project.plan.variant(TWIN)).same_as == ENGINE
    assert is_current(project, step)


def test_benchmark_of_a_target_travels_with_all_of_its_engines(project: Project, at_home: Path) -> None:
    """Here no GPU runs them, which is what comes back."""
    assert at_home
    step = Step(Stage.BENCHMARK, "tiny/rtx-sm80+")
    found = packed(project, step)
    names = {item.record.path for item in found.inputs}
    assert found.parcel.timed
    assert f"artifacts/{ENGINE}/model.engine" in names
    status, told = followed(project, sent(found), step)
    assert status == 0
    assert any("no NVIDIA driver found" in said.line for said in told)
    assert is_current(project, step)


def test_only_what_a_step_takes_travels(project: Project) -> None:
    """An engine takes its graph; no images, no weights, no other graph."""
    files = {item.record.path for item in packed(project).inputs}
    kept = {path for path in files if not path.startswith("tests/")}
    assert kept == {
        "pipeline.yaml",
        "artifacts/farm.json",
        "artifacts/tiny/source/source.json",
        "artifacts/tiny/onnx/fp16.json",
        "artifacts/tiny/onnx/fp16.onnx",
    }
    assert "tests/support/tiny_model.py" in files  # the factory's own code


def test_damaged_input_does_not_travel(project: Project) -> None:
    """Who sends it says so."""
    file = project.file(project.onnx(project.plan.graphs[1]).file)
    assert file.name == "fp16.onnx"
    file.write_bytes(b"x")
    with pytest.raises(RecordError, match=r"fp16\.onnx is not what was made"):
        packed(project)


@pytest.mark.parametrize("damaged", ["model.engine", "artifact.json"])
@pytest.mark.parametrize("step", [BUILD, Step(Stage.BUILD, TWIN)])
def test_what_a_step_may_do_without_is_left_out_when_it_is_damaged(project: Project, step: Step, damaged: str) -> None:
    """A former engine, or a twin's, must not keep the step from running that makes it again."""
    project.config_file.write_text(FARM + "tensorrt: {refit: true}\n")
    refits = Project.load(project.config_file)
    former = f"artifacts/{ENGINE}/model.engine"
    assert former in {item.record.path for item in packed(refits, step).inputs}
    (project.paths.root / ENGINE / damaged).write_text("{}")
    files = {item.record.path for item in packed(refits, step).inputs}
    assert f"artifacts/{ENGINE}/{damaged}" not in files


def test_failure_comes_back_with_its_record_and_its_log(project: Project, at_home: Path) -> None:
    """As a failure here leaves them."""
    assert at_home
    text = FARM.replace("[16MiB, 32MiB]", "[1KiB]")
    project.config_file.write_text(text)
    small = Project.load(project.config_file)
    step = Step(Stage.BUILD, "tiny/rtx-sm80+/fp16-b1-ws1KiB")
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


ONLY = """\
import re, sys
from importlib.machinery import PathFinder

class Only:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in {modules} else PathFinder.find_spec(name, path, target)

    @staticmethod
    def find_distributions(*context):
        found = PathFinder.find_distributions(*context)
        return (item for item in found if re.sub("[-_.]+", "-", item.name).lower() in {packages})

sys.meta_path = [Only if finder is PathFinder else finder for finder in sys.meta_path]
"""


@pytest.fixture
def without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What processes do not find from here on: all but what `pip install ".[runtime,farm]"` brings."""
    there = brought_by("model-artifact-pipeline", "runtime", "farm")
    owners = importlib.metadata.packages_distributions().items()
    hidden = {module for module, names in owners if not {normalized(name) for name in names} & there}
    (tmp_path / "only").mkdir()
    (tmp_path / "only/sitecustomize.py").write_text(ONLY.format(modules=hidden, packages=there))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "only"), str(REPOSITORY)]))
    return hidden


def normalized(name: str) -> str:
    """Return a package's name as PyPI compares it."""
    return re.sub("[-_.]+", "-", name).lower()


def brought_by(package: str, *extras: str) -> set[str]:
    """Return what a package brings with it, itself included."""
    found: set[str] = set()
    left = [(normalized(package), extras)]
    while left:
        name, chosen = left.pop()
        found.add(name)
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # for another Python
            for line in importlib.metadata.requires(name) or ():
                needed = Requirement(line)
                wanted = any(not needed.marker or needed.marker.evaluate({"extra": extra}) for extra in ("", *chosen))
                if wanted and normalized(needed.name) not in found:
                    left.append((normalized(needed.name), tuple(needed.extras)))
    return found


def test_worker_takes_what_its_extras_bring(project: Project, at_home: Path, without_torch: set[str]) -> None:
    """No torch, no doit, nothing of the driver's store: it says what it is, and builds an engine."""
    assert at_home
    assert {"torch", "torchvision", "doit", "fsspec", "sklearn"} <= without_torch
    joins = "import pipeline.farm.cluster, sys; sys.exit('model_artifacts.releases.store' in sys.modules)"
    subprocess.run([sys.executable, "-c", joins], check=True)  # noqa: S603 - this repository's own code
    told = subprocess.run([sys.executable, "-m", "model_artifacts", "host"], check=True, capture_output=True, text=True)
    there = DeploymentHost.model_validate_json(told.stdout)
    assert there.host.torch == "absent"
    write_record(project.paths.farm, FarmRecord(hosts=(FarmHost(worker_kind=NEEDS, host=there),)))
    planned = Project.load(project.config_file)
    status, said = followed(planned, sent(packed(planned)))
    assert status == 0, said


# What comes back is believed once it holds.


def test_record_is_put_in_its_place_after_what_it_vouches_for(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever their names: a recipe is JSON, too."""
    variant = project.plan.variant(ENGINE)
    recipe = tmp_path / ENGINE / "recipe.json"
    recipe.parent.mkdir(parents=True)
    recipe.write_text("{}")
    files = describe_file(recipe, tmp_path)
    write_record(tmp_path / ENGINE / "artifact.json", project.artifact(variant).model_copy(update={"file": files}))
    made = Completed(status=0, files=tuple(describe_file(path, tmp_path) for path in sorted(recipe.parent.iterdir())))
    order: list[str] = []
    monkeypatch.setattr(Path, "replace", lambda self, _: order.append(self.name))
    accept(project, BUILD, made, tmp_path)
    assert order == ["recipe.json", "artifact.json"]


def test_wrong_bytes_are_refused(project: Project, at_home: Path) -> None:
    """Nothing of the step is kept, and what was there before is."""
    assert at_home
    before = describe_file(project.paths.engine(project.plan.variant(ENGINE)), project.paths.root)
    items = sent(packed(project))
    items[-1] = bytes(len(items[-1]))
    with pytest.raises(FarmError, match="has not come as its worker announced it"):
        followed(project, items)
    assert describe_file(project.paths.engine(project.plan.variant(ENGINE)), project.paths.root) == before
    assert list(project.paths.root.glob(".writing-*")) == []


@pytest.mark.parametrize("change", ["fewer", "more", "none"])
def test_wrong_number_of_bytes_is_refused(project: Project, at_home: Path, change: str) -> None:
    """A stream that ends early, and one that does not end."""
    assert at_home
    *items, last = sent(packed(project))
    assert isinstance(last, bytes)
    items += {"fewer": [last[:-1]], "more": [last + b"x"], "none": []}[change]
    said = "more has come than the worker announced" if change == "more" else "has not come as its worker announced it"
    with pytest.raises(FarmError, match=said):
        followed(project, items)


@pytest.mark.parametrize(
    "path", ["manifest.json", "tiny/source/weights.safetensors", "../pipeline.yaml", f"{ENGINE}/other", "/etc/passwd"]
)
def test_file_that_is_not_the_steps_is_refused(project: Project, path: str) -> None:
    """Before a byte of it is taken."""
    made = Completed(status=0, files=(describe_bytes(path, b""),))
    with pytest.raises(FarmError, match="a file that is not the step's"):
        check_list(project, BUILD, made)


def test_file_that_comes_twice_is_refused(project: Project) -> None:
    """Which of them would hold?"""
    twice = describe_bytes(f"{ENGINE}/model.engine", b"")
    with pytest.raises(FarmError, match="a file that is not the step's"):
        check_list(project, BUILD, Completed(status=0, files=(twice, twice)))


def test_record_of_something_else_is_refused(project: Project, tmp_path: Path) -> None:
    """A worker that has built from another graph."""
    path = Path(ENGINE) / "artifact.json"
    good = project.artifact(project.plan.variant(ENGINE))
    other = good.model_copy(update={"key": key_of(project, Step(Stage.BUILD, TWIN))})
    write_record(tmp_path / path, other)
    made = Completed(status=0, files=(describe_file(tmp_path / path, tmp_path),))
    with pytest.raises(FarmError, match="do not hold; nothing of them was kept") as caught:
        accept(project, BUILD, made, tmp_path)
    assert "variant changed" in str(caught.value)
    assert project.artifact(project.plan.variant(ENGINE)) == good


def test_record_without_its_file_is_refused(project: Project, tmp_path: Path) -> None:
    """An engine that was announced by its record alone."""
    project.paths.engine(project.plan.variant(ENGINE)).unlink()
    path = Path(ENGINE) / "artifact.json"
    write_record(tmp_path / path, project.artifact(project.plan.variant(ENGINE)))
    made = Completed(status=0, files=(describe_file(tmp_path / path, tmp_path),))
    with pytest.raises(FarmError, match="nothing of them was kept"):
        accept(project, BUILD, made, tmp_path)


def test_success_without_a_record_is_refused(project: Project, tmp_path: Path) -> None:
    """Exit status 0 alone proves nothing."""
    shutil.rmtree(project.paths.variant(project.plan.variant(ENGINE)))
    with pytest.raises(FarmError, match="do not hold"):
        accept(project, BUILD, Completed(status=0, files=()), tmp_path)


def test_worker_that_falls_silent_is_lost(project: Project) -> None:
    """Its step may run elsewhere."""
    with pytest.raises(LostWorkerError, match="the worker was lost"):
        followed(project, [Began(node="n").to_json()])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("told", [0, 128])
def test_step_that_somebody_has_ended_may_run_elsewhere(project: Project, number: signal.Signals, told: int) -> None:
    """The kernel does so for want of memory; the step's own process, or one whose end that tells of."""
    status = told + number if told else -number
    with pytest.raises(LostWorkerError, match=f"its process was killed by {number.name}"):
        followed(project, [Completed(status=status, files=()).to_json()])


def test_step_whose_builder_is_killed_has_not_failed(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a worker it leaves no record, and says by its exit status that it may run elsewhere."""
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
    """By the exit status that a shell gives for it."""
    process = subprocess.Popen([sys.executable, "-m", "pipeline", "source", "tiny"], cwd=interrupted)
    while not (interrupted / "begun").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM


def test_step_that_fails_without_a_record_has_its_own_status(project: Project, at_home: Path) -> None:
    """It has said why; what was there before stays."""
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
    """It would crash elsewhere, too."""
    status, told = followed(project, [Completed(status=-signal.SIGSEGV, files=()).to_json()])
    assert status == -signal.SIGSEGV
    assert told == [PrintedLine(error=True, line="its process was killed by SIGSEGV")]


def test_refusal_says_why(project: Project) -> None:
    """In the worker's words."""
    with pytest.raises(FarmError, match=r"^no room$"):
        followed(project, [Began(node="n").to_json(), Refused(reason="no room").to_json()])


@pytest.mark.parametrize("item", ["{", '{"kind": "sung"}', b"bytes first"])
def test_what_nobody_says_is_refused(project: Project, item: str | bytes) -> None:
    """Another version of this package might."""
    with pytest.raises(FarmError, match="does not know"):
        followed(project, [item])


# The worker.


def test_command_tells_its_lines_as_they_are(at_home: Path) -> None:
    """Of both streams, in order, the last one without its newline; then its exit status."""
    assert at_home
    code = "import sys; print('a'); print(); print('b', end='', file=sys.stderr); sys.exit(3)"
    began, *said, made = messages(working(command(code)))
    assert began == Began(node="node")
    assert [message.line for message in said if isinstance(message, PrintedLine) and not message.error] == ["a", ""]
    assert [message.line for message in said if isinstance(message, PrintedLine) and message.error] == ["b"]
    assert made == Completed(status=3, files=())


def test_line_is_told_before_the_command_ends(at_home: Path) -> None:
    """That is what progress is."""
    assert at_home
    parcel = command("import sys, time; print('begun', flush=True); time.sleep(60)")
    items = worker.work(parcel, b"", lambda _: (), "node")
    assert messages([str(next(items)), str(next(items))])[1] == PrintedLine(error=False, line="begun")
    items.close()


def test_worker_that_is_stopped_ends_its_command(at_home: Path) -> None:
    """And removes where it ran."""
    parcel = command("import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    items = worker.work(parcel, b"", lambda _: (), "node")
    next(items)
    (said,) = messages([str(next(items))])
    assert isinstance(said, PrintedLine)
    items.close()
    assert not Path("/proc", said.line).exists()
    assert list((at_home / "work").iterdir()) == []


def test_worker_that_is_stopped_twice_kills_its_command(at_home: Path) -> None:
    """One that does not end when asked to: nobody waits for it, and nothing is left."""
    ignore = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    items = worker.work(command(f"{ignore}; print(os.getpid(), flush=True); time.sleep(60)"), b"", lambda _: (), "node")
    next(items)
    (said,) = messages([str(next(items))])
    assert isinstance(said, PrintedLine)
    again = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    again.start()
    with pytest.raises(KeyboardInterrupt):
        items.close()
    again.join()
    assert not Path("/proc", said.line).exists()
    assert list((at_home / "work").iterdir()) == []


def test_input_stays_on_the_cluster_while_a_step_needs_it(tmp_path: Path) -> None:
    """It is put there once for all steps that are under way, and is gone with the last of them."""
    put: list[Path | bytes] = []

    def counted(content: Path | bytes) -> list[int]:
        put.append(content)
        return [len(put)]

    held = Sent(counted)
    (tmp_path / "graph").write_bytes(b"graph")
    graph = Input(describe_file(tmp_path / "graph", tmp_path), tmp_path / "graph")
    text = Input(describe_bytes("text", b"text"), b"text")
    with held.holding((graph, text)) as one:
        with held.holding((graph,)) as other:
            assert (one, other) == ([[1], [2]], [[1]])
        assert put == [tmp_path / "graph", b"text"]
    with held.holding((graph,)) as later:
        assert later == [[3]]
    assert held._held == {}  # noqa: SLF001 - what it is for


def test_command_that_takes_too_long_is_ended(at_home: Path) -> None:
    """With what to do about it."""
    *_, last = messages(working(command("import time; time.sleep(60)", seconds=0.3)))
    assert isinstance(last, Refused)
    assert "has not ended in 0.3 s" in last.reason
    assert "farm.step_timeout_seconds" in last.reason
    assert list((at_home / "work").iterdir()) == []


def test_only_what_is_new_or_other_comes_back(at_home: Path) -> None:
    """By its path, with its digest, and its bytes in order."""
    assert at_home
    old, changed = (describe_bytes(f"artifacts/{name}", name.encode()) for name in ("old", "changed"))
    code = "open('artifacts/changed', 'w').write('!'); open('artifacts/new', 'w').write('?'); open('elsewhere', 'w')"
    items = working(command(code, old, changed), b"old", b"changed")
    made = messages(items)[-1]
    assert made == Completed(status=0, files=(describe_bytes("changed", b"!"), describe_bytes("new", b"?")))
    assert [item for item in items if isinstance(item, bytes)] == [b"!?"]


def test_what_builders_have_timed_stays_on_the_machine(at_home: Path) -> None:
    """The next step's command finds it."""
    file = describe_bytes("artifacts/x", b"x")
    working(command("open('artifacts/timing-cache/t', 'w').write('timed')", file), b"x")
    items = working(command("print(open('artifacts/timing-cache/t').read())", file), b"x")
    assert PrintedLine(error=False, line="timed") in messages(items)
    assert (at_home / "timing-cache/t").is_file()


def test_another_version_of_this_package_refuses(at_home: Path) -> None:
    """By name, before anything is run."""
    assert at_home
    parcel = command("open('/nowhere', 'w')").model_copy(update={"package": f"{__version__}, code 0123"})
    *_, last = messages(working(parcel))
    assert isinstance(last, Refused)
    assert "another version of this package" in last.reason
    assert f"expected: {__version__}, code 0123\n  got:      {this_package()} on" in last.reason


LARGE = b"x" * (SMALL_BYTES + 1)
SIZE = "import os; print(os.path.getsize('artifacts/x'))"


def test_large_inputs_are_kept_for_the_next_parcel(at_home: Path) -> None:
    """They travel once to each machine."""
    file = describe_bytes("artifacts/x", LARGE)
    working(command("", file), LARGE)
    assert (at_home / "blobs" / file.sha256).read_bytes() == LARGE
    items = [*worker.work(command(SIZE, file), b"", _never, "node")]
    assert PrintedLine(error=False, line=str(len(LARGE))) in messages(items)


def _never(number: int) -> Iterator[bytes]:
    raise AssertionError(number)


def test_damaged_input_is_fetched_again(at_home: Path) -> None:
    """What is kept is not trusted, either."""
    file = describe_bytes("artifacts/x", LARGE)
    working(command("", file), LARGE)
    (at_home / "blobs" / file.sha256).write_bytes(LARGE[1:])
    assert PrintedLine(error=False, line=str(len(LARGE))) in messages(working(command(SIZE, file), LARGE))


@pytest.mark.parametrize("content", [b"x", LARGE], ids=["small", "large"])
def test_input_that_has_changed_on_its_way_is_refused(at_home: Path, content: bytes) -> None:
    """And not kept."""
    *_, last = messages(working(command("", describe_bytes("artifacts/x", content)), content[1:] + b"y"))
    assert isinstance(last, Refused)
    assert "artifacts/x has not come as it was sent" in last.reason
    assert [*at_home.glob("blobs/*")] == []


@given(
    lengths=st.lists(
        st.sampled_from([0, 1, SMALL_BYTES, SMALL_BYTES + 1]) | st.integers(0, 3 * SMALL_BYTES), max_size=5
    ),
    piece=st.integers(1_000, 4 * SMALL_BYTES),
)
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_travels_is_the_same_however_it_is_cut(at_home: Path, lengths: list[int], piece: int) -> None:
    """Files of any length there, large and small ones in any order, and the same files back in pieces of any length."""
    assert at_home
    contents = [bytes([65 + number]) * length for number, length in enumerate(lengths)]
    files = [describe_bytes(f"in/{number}", content) for number, content in enumerate(contents)]
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(worker, "_INLINE_BYTES", piece)
        code = "import os, shutil; os.makedirs('in', exist_ok=True); shutil.copytree('in', 'artifacts')"
        items = iter(working(command(code, *files), *contents))
        made = next(message for item in items if isinstance(message := read_message(str(item)), Completed))
        assert made == Completed(status=0, files=tuple(describe_bytes(str(i), c) for i, c in enumerate(contents)))
        incoming = executor._Incoming(items)  # noqa: SLF001 - without a cluster
        for number, file in enumerate(made.files):
            incoming.receive(file, Path(folder) / file.path)
            assert (Path(folder) / file.path).read_bytes() == contents[number]
        incoming.end()


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/x"])
def test_input_that_would_lie_elsewhere_is_refused(at_home: Path, path: str) -> None:
    """Nothing is written outside of the step's folder."""
    *_, last = messages(working(command("", describe_bytes(path, b"x")), b"x"))
    assert isinstance(last, Refused)
    assert "outside of its folder" in last.reason
    assert list((at_home / "work").iterdir()) == []


def test_machine_keeps_what_was_used_last(at_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs that were not used for the longest time make room."""
    monkeypatch.setattr(worker, "_KEPT_BYTES", 2 * len(LARGE))
    texts = [letter * len(LARGE) for letter in (b"a", b"b", b"c")]
    for number, text in enumerate(texts):
        file = describe_bytes("artifacts/x", text)
        working(command("", file), text)
        os.utime(at_home / "blobs" / file.sha256, (number, number))
    assert {path.read_bytes() for path in (at_home / "blobs").iterdir()} == {*texts[1:]}


def test_what_a_killed_worker_left_the_next_one_removes(at_home: Path) -> None:
    """A folder whose worker lives stays."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for process in (ended.pid, os.getpid()):
        (at_home / "work" / f"{process}-left").mkdir(parents=True)
    working(command(""))
    assert [path.name for path in (at_home / "work").iterdir()] == [f"{os.getpid()}-left"]


@given(st.lists(st.binary(max_size=20)))
def test_lines_are_the_same_however_they_arrive(pieces: list[bytes]) -> None:
    """Wherever the pipe cuts them."""
    lines = worker._Lines(error=False)  # noqa: SLF001 - its one behaviour
    taken = [said.line for piece in (*[piece for piece in pieces if piece], b"") for said in lines.take(piece)]
    whole = b"".join(pieces)
    expected = whole.split(b"\n")[: None if whole and not whole.endswith(b"\n") else -1]
    assert taken == [line.decode(errors="replace") for line in expected]


# Which machines there are.

HEAD = Node("head", "10.0.0.1", {"node:10.0.0.1": 1.0, "memory": 9e9})
NODE_H100 = Node("h", "10.0.0.2", {"CPU": 8.0, "GPU": 1.0, "accelerator_type:H100": 1.0, "tensorrt": 1.0})
NODE_PROCESSOR = Node("p", "10.0.0.3", {"CPU": 4.0})
OTHER = Node("o", "10.0.0.4", {"CPU": 4.0})
NODES = (HEAD, NODE_H100, NODE_PROCESSOR)


@pytest.mark.parametrize(
    ("target", "able"),
    [
        (AHEAD, ["h", "p"]),
        (TUNED, ["h"]),
        (TUNED.model_copy(update={"resources": ("tensorrt",)}), ["h"]),
        (AHEAD.model_copy(update={"resources": ("tensorrt",)}), ["h"]),
    ],
)
def test_target_runs_where_all_that_it_needs_is(target: FarmTarget, able: list[str]) -> None:
    """A GPU of its type, a core, and every resource that it names."""
    assert [node.id for node in able_nodes(target, NODES)] == able


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"accelerator": "L4"}, "1 CPU, 1 GPU of accelerator type L4"),
        ({"resources": ("pcie",)}, "1 CPU, 1 GPU of accelerator type H100, the resource 'pcie'"),
    ],
)
def test_target_without_a_machine_is_told_what_there_is(change: dict[str, object], expected: str) -> None:
    """What it needs, and what every machine has."""
    with pytest.raises(FarmError) as caught:
        able_nodes(TUNED.model_copy(update=change), NODES)
    assert f"expected: {expected}" in str(caught.value)
    assert "10.0.0.1: nothing; 10.0.0.2: 8 CPU, 1 GPU, 1 tensorrt, H100; 10.0.0.3: 4 CPU" in str(caught.value)


def test_whole_gpu_or_none_is_asked_for() -> None:
    """With its type, and every resource that the target names; what names no GPU takes none."""
    needs = NodeRequirements.of(TUNED.model_copy(update={"resources": ("pcie",)}))
    marks = {"accelerator_type:H100": 0.001, "pcie": 0.001}
    assert needs.options() == {"num_cpus": 1, "num_gpus": 1, "resources": marks}
    assert NodeRequirements.of(AHEAD).options() == {"num_cpus": 1, "num_gpus": 0, "resources": {}}


@pytest.mark.parametrize("sharing", range(1, 101))
def test_as_many_share_a_gpu_as_are_to(sharing: int) -> None:
    """Ray counts ten-thousandths: those that share fit, and one more does not."""
    needs = NodeRequirements.of(TUNED.model_copy(update={"steps_per_gpu": sharing}), alone=False)
    parts = round(1e4 * needs.gpus)
    assert 1e4 * needs.gpus == pytest.approx(parts, abs=1e-9)
    assert sharing * parts <= 10_000 < (sharing + 1) * parts


@pytest.mark.parametrize(
    ("stage", "flavour", "timed"),
    [
        (Stage.BENCHMARK, EngineFlavour.TENSORRT_RTX, True),
        (Stage.PROFILE, EngineFlavour.TENSORRT_RTX, True),
        (Stage.BUILD, EngineFlavour.TENSORRT, True),
        (Stage.BUILD, EngineFlavour.TENSORRT_RTX, False),
        (Stage.VALIDATE, EngineFlavour.TENSORRT, False),
        (Stage.VALIDATE, EngineFlavour.TENSORRT_RTX, False),
    ],
)
def test_what_is_timed_shares_no_gpu(stage: Stage, flavour: EngineFlavour, *, timed: bool) -> None:
    """Measurements, profiles, and the builds of TensorRT, which times its tactics."""
    target = FarmTarget(flavour=flavour, accelerator="H100", steps_per_gpu=4)
    needs = NodeRequirements.of(target, alone=executor._is_timed(Step(stage, ENGINE), target))  # noqa: SLF001 - without a cluster
    assert needs.gpus == (1 if timed else 0.25)


def test_step_is_kept_off_machines_by_their_names() -> None:
    """All others may take it: Ray spreads what is run again."""
    options = NodeRequirements.of(AHEAD).options({"b1", "a0"})
    selector = {"ray.io/node-id": "!in(a0,b1)"}
    assert options == {"num_cpus": 1, "num_gpus": 0, "resources": {}, "label_selector": selector}
    assert validate_label_selector(selector) is None


class Machines:
    """A cluster of which only the machines matter."""

    def __init__(self, *there: Node) -> None:
        self.there = there

    def nodes(self) -> tuple[Node, ...]:
        """Return those that are alive."""
        return self.there


def places(machines: Machines, unfit: frozenset[str] = frozenset()) -> executor._EligibleNodes:
    """Return where a step of a processor's may run."""
    return executor._EligibleNodes(machines, AHEAD, unfit)  # type: ignore[arg-type]  # noqa: SLF001 - without a cluster


def test_step_that_was_lost_runs_on_other_machines() -> None:
    """Where there are any; what lacks the flavour never gets it, and what was lost nowhere is kept off nothing."""
    found = places(Machines(NODE_H100, NODE_PROCESSOR, OTHER), frozenset("h"))
    assert found.avoid() == {"h"}
    found.lost("")
    assert found.avoid() == {"h"}
    found.lost("p")
    assert found.avoid() == {"h", "p"}
    found.lost("o")
    assert found.avoid() == {"h"}


def test_step_that_finds_no_free_worker_does_not_wait_for_ever(project: Project) -> None:
    """Nor one that a worker was given, which never begins; the message names the setting."""
    farm = project.config.farm
    assert farm is not None
    short = project.config.model_copy(update={"farm": farm.model_copy(update={"queue_timeout_seconds": 0.01})})
    plan = Plan(short, project.plan.host, project.plan.farm)
    trip = executor._Trip(Project(plan, project.paths), BUILD, lambda: None, print)  # noqa: SLF001 - without a cluster
    time.sleep(0.02)
    with pytest.raises(FarmError, match=r"(?s)no worker was free in 0\.01 s.*farm\.queue_timeout_seconds"):
        trip.check_time()


def test_machine_that_is_lost_while_it_times_costs_that_measurement_alone(project: Project) -> None:
    """What was built and validated there stays, and so does what was timed of other targets."""
    step = Step(Stage.BENCHMARK, "tiny/rtx-sm80+")
    for variant in project.plan.variants_on(project.plan.target(step.subject)):
        project.paths.benchmark(variant).unlink()
    kept = [other for other in project.plan.steps if other.stage in {Stage.BUILD, Stage.VALIDATE, Stage.BENCHMARK}]
    before = {other for other in kept if is_current(project, other)}
    assert {other.stage for other in before} == {Stage.BUILD, Stage.VALIDATE, Stage.BENCHMARK}
    with pytest.raises(LostWorkerError):
        followed(project, [Began(node="n").to_json()], step)
    assert {other for other in kept if is_current(project, other)} == before
    assert step not in before


def test_step_whose_last_machine_goes_while_it_waits_does_not_wait_on() -> None:
    """It is tried on one that has lost it, where that is all there is; without any, it is told what there is."""
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


def nodes(*hosts: DeploymentHost) -> list[FarmNode]:
    """Return machines of the farm."""
    return [FarmNode(id=str(number), host=found) for number, found in enumerate(hosts)]


def test_machines_that_are_alike_are_one_kind() -> None:
    """Whatever their driver and their GPU's own number."""
    other = H100.model_copy(update={"uuid": L4.uuid, "index": 3})
    alike = [machine(host(gpu, flavours=(TRT10,))) for gpu in (H100, other)]
    assert common_host(TUNED, nodes(*alike)) == alike[0]


@pytest.mark.parametrize(
    ("gpu", "flavours", "torch", "got"),
    [
        (H100, (TRT86,), "2.11.0", "1 with tensorrt 8.6.0;"),
        (H100, (TRT10,), "2.12.0", "torch 2.12.0"),
        (H100.model_copy(update={"name": "NVIDIA H100 PCIe"}), (TRT10,), "2.11.0", "NVIDIA H100 PCIe"),
    ],
)
def test_machines_that_are_not_alike_are_refused(gpu: Gpu, flavours: tuple[Tool, ...], torch: str, got: str) -> None:
    """It would be chance which one a step meets; the message says how to tell them apart."""
    two = nodes(machine(host(H100, flavours=(TRT10,))), machine(host(gpu, flavours=flavours, torch=torch)))
    with pytest.raises(FarmError, match="are not alike") as caught:
        common_host(TUNED, two)
    assert got in str(caught.value)
    assert "`resources`" in str(caught.value)


def test_machines_that_lack_a_flavour_are_not_the_targets() -> None:
    """H100s with TensorRT and a processor with TensorRT-RTX are one cluster; each builds what it can."""
    tuned, ahead = nodes(machine(host(H100, flavours=(TRT10,))), machine(host(flavours=(RTX,))))
    both = (tuned, ahead)
    assert common_host(AHEAD, both) == ahead.host
    assert common_host(TUNED, both) == tuned.host
    record = FarmRecord(hosts=(), nodes=both)
    assert unfit_nodes(AHEAD, record) == {tuned.id}
    assert unfit_nodes(TUNED, record) == {ahead.id}


@pytest.mark.parametrize("first", [0, 1])
def test_target_without_a_gpu_takes_machines_whatever_else_they_have(first: int) -> None:
    """Its engines depend on the flavour alone; a GPU that is there is not what they are built on."""
    two = nodes(machine(host(H100, flavours=(TRT10, RTX), torch="absent")), machine(host(flavours=(RTX,))))
    found = common_host(AHEAD, [two[first], two[1 - first]])
    assert (found.host.gpus, found.driver) == ((), "absent")


@pytest.mark.parametrize(
    ("there", "problem"),
    [
        (host(H100, flavours=(RTX,)), "the machines for H100 with tensorrt lack its flavour"),
        (host(H100, flavours=()), "no TensorRT"),
        (host(flavours=(TRT10,)), "claim a GPU, and their driver shows none"),
    ],
)
def test_machines_that_lack_what_a_target_takes_are_refused(there: object, problem: str) -> None:
    """Before anything is sent to them."""
    with pytest.raises(FarmError, match=problem):
        common_host(TUNED, nodes(machine(there)))  # type: ignore[arg-type]


def test_farm_that_nobody_has_looked_at_is_told_so(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """With the command that does."""
    project.paths.farm.unlink()
    with pytest.raises(UnknownFarmError, match="nobody has looked at the farm yet"):
        Project.load(project.config_file)
    assert main(["plan", "--config", str(project.config_file)]) == 1
    assert "python -m pipeline farm" in capsys.readouterr().err


def test_farm_whose_record_is_damaged_is_looked_at_again(project: Project) -> None:
    """As one that nobody has looked at, which doit does by itself."""
    project.paths.farm.write_text("{")
    with pytest.raises(UnknownFarmError, match="is not a valid FarmRecord"):
        Project.load(project.config_file)


def test_new_target_has_to_be_looked_at(project: Project) -> None:
    """Its workers are not known yet."""
    project.config_file.write_text(FARM.replace("[{f", "[{accelerator: L4, flavour: tensorrt}, {f"))
    with pytest.raises(UnknownFarmError, match="L4 with tensorrt"):
        Project.load(project.config_file)


def test_configuration_without_a_farm_has_none_to_look_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong usage."""
    (tmp_path / "pipeline.yaml").write_text(TINY)
    assert main(["farm", "--config", str(tmp_path / "pipeline.yaml")]) == 2
    assert "names no farm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("planned", "what"),
    [
        ({"host": host(flavours=(TRT10,))}, "TensorRT"),
        ({"host": host(torch="1.0")}, "torch"),
        ({"host": host(H100), "free_memory_bytes": (None,)}, "GPU"),
        ({"torch_tensorrt": Tool(name="torch-tensorrt", version="2.11.0")}, "Torch-TensorRT"),
        ({"onnxruntime": Tool(name="onnxruntime-gpu", version="1.0")}, "ONNX Runtime"),
    ],
)
def test_worker_that_is_not_what_was_planned_with_refuses(
    project: Project, planned: dict[str, object], what: str
) -> None:
    """It has changed since somebody looked: whatever must be alike on all of a target's machines."""
    project.config_file.write_text(FARM.replace("{f", "{accelerator: H100, f"))
    needs = "H100 with tensorrt_rtx"
    there = DeploymentHost.model_validate({**dict(this_host()), **planned})
    write_record(project.paths.farm, FarmRecord(hosts=(FarmHost(worker_kind=needs, host=there),), here=needs))
    with pytest.raises(FarmError, match=f"this worker's {what} is not what was planned with"):
        Project.load(project.config_file)


def test_worker_without_a_gpu_may_have_more_than_was_planned_with(project: Project) -> None:
    """What its target's engines do not depend on: another flavour, torch, a GPU."""
    planned = host(flavours=(TRT10, *environment.flavours()), torch="1.0")
    write_record(project.paths.farm, FarmRecord(hosts=(workers(NEEDS, planned),), here=NEEDS))
    adopted = Project.load(project.config_file).plan.workers(BUILD)
    assert adopted == workers(NEEDS, planned)


def test_worker_takes_nothing_from_a_cache_and_leaves_nothing(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver does, which may reach it."""
    project.config_file.write_text(f"{FARM}cache: {tmp_path / 'cache'}\n")
    record = FarmRecord(hosts=(workers(NEEDS, environment.read_host()),), here=NEEDS)
    write_record(project.paths.farm, record)
    monkeypatch.setattr("pipeline.planning.shared_cache.SharedCache", None)
    assert main(["build", ENGINE, "--config", str(project.config_file)]) == 0
    assert not (tmp_path / "cache").exists()


# The cluster that is not there.


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("ray://head:10001", "takes host:port or auto"),
        ("head", "takes host:port or auto, got head"),
        ("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1"),
    ],
)
def test_address_without_a_cluster_is_told_at_once(monkeypatch: pytest.MonkeyPatch, address: str, problem: str) -> None:
    """Ray alone would try for minutes."""
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    began = time.monotonic()
    with pytest.raises(FarmError, match=problem):
        Cluster.connect(address, 5)
    assert time.monotonic() - began < 5


def test_ray_that_is_not_installed_is_named(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the extra that has it."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(FarmError, match="its extra `farm`"):
        look_at_farm(project.config_file)


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ("Version mismatch: The cluster was started with:\n Ray: 2.9.0", "another version of Ray or of Python"),
        ("Can't find a `node_ip_address.json` file", "cannot join the cluster at 10.0.0.1:6379"),
    ],
)
def test_cluster_that_cannot_be_joined_says_why(monkeypatch: pytest.MonkeyPatch, said: str, what: str) -> None:
    """In Ray's words, and with what to do."""

    def refuse(**_: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr("ray.init", refuse)
    monkeypatch.setattr("socket.create_connection", lambda *_, **__: open(os.devnull))  # noqa: PTH123,SIM115
    with pytest.raises(FarmError, match=what) as caught:
        Cluster.connect("10.0.0.1:6379", 5)
    assert said.split(maxsplit=1)[0] in str(caught.value)


def test_cluster_that_cannot_be_reached_is_tried_once(project: Project) -> None:
    """Not by each of hundreds of steps, each for its time."""
    project.config_file.write_text(FARM.replace("farm: {", "farm: {address: nowhere, "))
    farm = executor.Farm(Project.load(project.config_file))
    with pytest.raises(FarmError, match="got nowhere"):
        farm.run(BUILD, print)
    with pytest.raises(FarmError, match="the first step that tried says why"):
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

    def result(self, deadline: float, look: Callable[[], None]) -> Probe:
        """Answer in time."""
        assert time.monotonic() < deadline
        look()
        return Probe(package=this_package(), host=self._there.to_json())

    def put(self, content: object) -> list[object]:
        """Take a file."""
        return [content]


def test_farm_that_has_changed_since_planning_is_planned_for_anew(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step is not run; the next doit finds what the machines are now."""
    there = machine(host(flavours=(Tool(name="tensorrt_rtx", version="1.7.1.116"),)))
    monkeypatch.setattr("pipeline.farm.cluster.Cluster.connect", lambda *_: Answering(there))
    with pytest.raises(FarmError, match="not what they were when this was planned"):
        executor.Farm(project).run(BUILD, print)
    (found,) = Project.load(project.config_file).plan.farm
    assert found.host.host.flavours == there.host.flavours


def test_what_was_left_in_the_cache_meanwhile_is_taken(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the first look and the key's turn another driver may have built it, and be done."""
    project.config_file.write_text(f"{FARM}cache: anywhere\n")
    there = machine(environment.read_host())
    monkeypatch.setattr("pipeline.farm.cluster.Cluster.connect", lambda *_: Answering(there))
    monkeypatch.setattr(executor, "Flights", lambda *_: Alone())
    monkeypatch.setattr(executor, "SharedCache", lambda _: FilledMeanwhile())
    told: list[PrintedLine] = []
    assert executor.Farm(Project.load(project.config_file)).run(BUILD, told.append) == 0
    assert told == [PrintedLine(error=False, line="taken from there")]


class Alone:
    """A board on which nobody else is."""

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
    """Stopping waits for nobody's connection; what was to follow it does not."""
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
        with pytest.raises(FarmError, match="stopped before it had ended"):
            running.result(30)


class Cancelled:
    """Ray, of which only the order to cancel matters."""

    def __init__(self) -> None:
        self.orders: list[bool] = []

    def cancel(self, _: object, *, force: bool) -> None:
        """Take note of it."""
        self.orders.append(force)


def test_step_is_asked_to_end_once_and_killed_once() -> None:
    """However many want it to end: asked again, Ray fails at times."""
    ray = Cancelled()
    running = Running(ray, None)
    for force in (False, False, True, False, True):
        running.cancel(force=force)
    assert ray.orders == [False, True]


class Silent(Running):
    """A step that is cancelled before it has said anything."""

    def __init__(self, stop: Callable[[], None]) -> None:
        super().__init__(Cancelled(), None)
        self._stop = stop

    def items(self, look: Callable[[], None]) -> Iterator[str | bytes]:
        """End without a word, as what is cancelled does."""
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
    """It was cancelled, not lost: nothing is said of another machine, and nothing more is sent."""
    cluster: Any = Sending()
    record = FarmRecord(hosts=project.plan.farm)
    joined = executor._Joined(cluster, record, None, Sent(cluster.put))  # type: ignore[arg-type]  # noqa: SLF001 - without a cluster
    monkeypatch.setattr(executor.Farm, "_join", lambda _: joined)
    farm = executor.Farm(project)
    cluster.stop = farm._stopped.set  # noqa: SLF001 - as a signal does, without waiting for what runs
    told: list[PrintedLine] = []
    with pytest.raises(FarmError, match="stopped before it had ended"):
        farm.run(Step(Stage.VALIDATE, ENGINE), told.append)
    assert told == []
    assert len(cluster.steps) == 1


def test_what_nobody_expects_fails_one_step(project: Project) -> None:
    """The others go on with the others, and it says what it was."""

    class Broken:
        def run(self, *_: object) -> int:
            raise RuntimeError(project.plan.model)

    said = io.StringIO()
    failed = FarmAction(Broken(), BUILD).execute(None, said)  # type: ignore[arg-type]
    assert isinstance(failed, TaskFailed)
    assert said.getvalue() == f"build:{ENGINE}: error: unexpected RuntimeError: tiny\n"


# Two drivers.


def test_one_driver_builds_a_key_at_a_time() -> None:
    """The other is told who does, until that is done."""
    board = Board()
    assert board.take("k", "a") == "a"
    assert board.take("k", "b") == "a"
    assert board.take("other", "b") == "b"
    board.give("k", "b")
    assert board.take("k", "b") == "a"
    board.give("k", "a")
    assert board.take("k", "b") == "b"


def test_what_a_killed_driver_holds_is_free_soon() -> None:
    """A driver that lives renews what it holds."""
    board = Board()
    board.take("k", "a", now=0)
    assert board.take("k", "b", now=19) == "a"
    assert board.take("k", "a", now=19) == "a"
    assert board.take("k", "b", now=38) == "a"
    assert board.take("k", "b", now=39) == "b"
