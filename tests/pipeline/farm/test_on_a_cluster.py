"""The farm for real: a Ray cluster of one machine whose nodes claim GPUs, and engines built there ahead of time."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from model_artifacts.host.environment import flavours, version
from pipeline.farm.parcels import code_folders
from pipeline.planning.freshness import is_current
from pipeline.planning.project import Project
from pipeline.planning.steps import Step
from pipeline.records import Outcome
from pipeline.stages import STAGES
from tests.support.farm_cluster import LOOPBACK, ONE_ENGINE, Served, served

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.faults, pytest.mark.part(2)]

FARM = (
    ONE_ENGINE
    + """\
benchmark: {{batches: [1], restarts: 1, warmup_runs: 1, warmup_seconds: 0.1, rounds: 1, runs_per_round: 2, streams: 2}}
executor: ray
farm:
  address: {address}
  connect_timeout_seconds: 300
  targets:
    - {{accelerator: H100, flavour: tensorrt_rtx}}
    - {{accelerator: A10G, flavour: tensorrt_rtx, compute_capabilities: [86]}}
    - {{flavour: tensorrt_rtx, compute_capabilities: [75, 80]}}
"""
)
H100, A10G, PROCESSOR = (f"tiny/rtx-sm{name}/fp16-b1-ws16MiB" for name in ("80+", "86", "75-80"))
ENGINES = (H100, A10G, PROCESSOR)


WITHOUT_THE_CHECKOUT = """\
import sys
from pathlib import Path

sys.path[:] = [entry for entry in sys.path if not Path(entry, "dodo.py").is_file()]
"""
"""A `sitecustomize` that hides an editable install, so that workers have the build half only from their driver."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A cluster with two machines that claim an H100, one with an A10G, and one with none; none has the checkout."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(WITHOUT_THE_CHECKOUT)
    claims = ["accelerator_type:H100", "accelerator_type:H100", "accelerator_type:A10G", ""]
    with served(claims, {"PYTHONPATH": str(folder)}) as there:
        yield there


@pytest.fixture(scope="module")
def record(cluster: Served) -> str:
    """The record of the cluster by `python -m pipeline farm`."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "pipeline.yaml").write_text(FARM.format(address=cluster.address))
        command = [sys.executable, "-m", "pipeline", "farm"]
        done = subprocess.run(  # noqa: S603 - this repository's own command
            command, cwd=folder, env={**os.environ, **LOOPBACK}, capture_output=True, text=True, check=True
        )
        (rtx,) = flavours()
        assert f"H100 with tensorrt_rtx: tensorrt_rtx {rtx.version}, torch {version('torch')}" in done.stdout
        assert "4 machines have the cores or the GPUs that the configuration names" in done.stdout
        return (Path(folder) / "artifacts/farm.json").read_text()


@pytest.fixture
def folder(checkout: Path, built_folder: Path, cluster: Served, record: str) -> Path:
    """A checkout that builds on a known farm, with all shared steps done."""
    for part in ("source", "data", "onnx", "cpu-x86_64"):
        shutil.copytree(built_folder / "artifacts/tiny" / part, checkout / "artifacts/tiny" / part)
    (checkout / "pipeline.yaml").write_text(FARM.format(address=cluster.address))
    (checkout / "artifacts/farm.json").write_text(record)
    return checkout


@pytest.fixture
def begin(folder: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A function that begins a command in the checkout, or in another folder; all of them end with the test."""
    begun = []

    def start(*arguments: str, cwd: Path = folder) -> subprocess.Popen[str]:
        process = subprocess.Popen(  # noqa: S603 - this repository's own commands
            [sys.executable, "-m", *arguments],
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **LOOPBACK},
        )
        begun.append(process)
        return process

    yield start
    for process in begun:
        process.kill()
        process.communicate()


@pytest.fixture
def run(begin: Callable[..., subprocess.Popen[str]]) -> Callable[..., tuple[int, str]]:
    """A function that runs a command to its end, and returns its exit status and its output."""

    def to_its_end(*arguments: str, **options: Path) -> tuple[int, str]:
        process = begin(*arguments, **options)
        said, _ = process.communicate(timeout=600)
        return process.returncode, said

    return to_its_end


@pytest.fixture
def on_workers(cluster: Served) -> Callable[..., list[int]]:
    """A function that returns the processes of a subject's steps, or of all, that workers of this cluster run.

    Other tests run such steps at the same time, in folders of their own.
    """

    def find(subject: str = "") -> list[int]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                ours = (process / "cwd").resolve().is_relative_to(cluster.folder)
                if "pipeline" in command and ours and subject in (command[4], ""):
                    found.append(int(process.name))
        return found

    return find


def until(condition: Callable[[], object], seconds: float = 300) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


def parent(process: int) -> int:
    """Return the parent of a process."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def project_in(folder: Path) -> Project:
    """Return the project of a checkout."""
    return Project.load(folder / "pipeline.yaml", STAGES)


def is_built(folder: Path, subject: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Return whether an engine is there, whole and up to date."""
    monkeypatch.chdir(folder)
    project = project_in(folder)
    done = project.artifact(project.plan.variant(subject)).outcome is Outcome.DONE
    return done and is_current(project, Step("build", subject))


def test_every_target_is_built_where_it_can_be(
    folder: Path, run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One doit builds on three kinds of machine and writes a manifest, and leaves nothing to do."""
    (folder / "artifacts/farm.json").unlink()
    status, said = run("doit")
    assert status == 0, said
    assert "looking at the farm" in said
    assert all(f"build:{engine}: 0." in said for engine in ENGINES)
    assert f"validate:{H100}: skipped: no NVIDIA driver found" in said
    assert all(is_built(folder, engine, monkeypatch) for engine in ENGINES)
    assert {entry.id for entry in project_in(folder).manifest().artifacts} >= {*ENGINES}
    status, said = run("doit")
    assert status == 0
    assert said.startswith("everything is up to date\n")
    assert list(folder.glob("artifacts/.writing-*")) == []


PLACES = """\
import sys
from pipeline.farm.cluster import Cluster, NodeRequirements
from pipeline.farm.parcels import Parcel, read_message
cluster = Cluster.connect(sys.argv[1], 300)
nodes = {node.id: node for node in cluster.nodes()}
def began(needs, *avoid):
    parcel = Parcel(command=("-c", ""), files=(), timeout_seconds=60)
    said = [read_message(item) for item in cluster.submit(parcel, b"", [], needs, avoid).items(lambda: None)]
    return said[0].node
first = began(NodeRequirements("H100", ()))
for node in (first, began(NodeRequirements("H100", ()), first), began(NodeRequirements("A10G", (), 3))):
    print(node, *sorted(name for name in nodes[node].resources if name.startswith("accelerator_type:")))
cluster.close()
"""


def test_step_is_placed_where_what_it_needs_is(run: Callable[..., tuple[int, str]], cluster: Served) -> None:
    """A step runs on a machine with its GPU, and on another of the kind if the first is avoided."""
    (cluster.folder / "places.py").write_text(PLACES)
    status, said = run("places", cluster.address, cwd=cluster.folder)
    assert status == 0, said
    nodes, types = zip(*(line.split() for line in said.splitlines()), strict=True)
    assert types == ("accelerator_type:H100", "accelerator_type:H100", "accelerator_type:A10G")
    assert len({*nodes}) == 3


ALONE = """\
import importlib.util, sys
import ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
print(ray.get(ray.remote(lambda: str(importlib.util.find_spec("pipeline"))).remote()))
"""
SENT = """\
import os, sys
from pipeline.farm.cluster import Cluster, NodeRequirements
from pipeline.farm.parcels import Parcel, PrintedLine, read_message
os.chdir("hostile")
cluster = Cluster.connect(sys.argv[1], 300)
code = '''
import model_artifacts, pipeline
from pathlib import Path
for package in (model_artifacts, pipeline):
    print(*(path for path in Path(package.__path__[0]).rglob("*.*") if path.suffix != ".pyc"), sep=chr(10))
'''
parcel = Parcel(command=("-c", code), files=(), timeout_seconds=60)
for item in cluster.submit(parcel, b"", [], NodeRequirements(None, ()), ()).items(lambda: None):
    message = read_message(item)
    if isinstance(message, PrintedLine):
        print(message.line)
cluster.close()
"""


def test_workers_take_the_code_from_the_driver(
    folder: Path, run: Callable[..., tuple[int, str]], cluster: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker without the build half runs a step with the driver's packages, of which only code has travelled."""
    (cluster.folder / "alone.py").write_text(ALONE)
    assert run("alone", cluster.address, cwd=cluster.folder) == (0, "None\n")
    (cluster.folder / "sent.py").write_text(SENT)
    (cluster.folder / "hostile").mkdir()
    (cluster.folder / "hostile/pipeline.py").write_text("raise SystemExit(1)")
    status, said = run("sent", cluster.address, cwd=cluster.folder)
    assert status == 0, said
    sent = {Path(line.partition("/_ray_pkg_")[2].partition("/")[2]) for line in said.splitlines()}
    ours = {path.relative_to(code.parent) for code in code_folders() for path in code.rglob("*.*")}
    assert sent == {path for path in ours if path.suffix != ".pyc"}
    assert {path.suffix for path in sent} == {".py", ".jinja", ".txt", ".typed"}
    status, said = run("pipeline", "build", PROCESSOR)
    assert status == 0, said
    assert is_built(folder, PROCESSOR, monkeypatch)


def test_target_that_no_machine_has_is_refused_before_anything_is_sent(
    folder: Path, run: Callable[..., tuple[int, str]]
) -> None:
    """The message lists the present machines, where Ray would wait in silence."""
    text = (folder / "pipeline.yaml").read_text()
    (folder / "pipeline.yaml").write_text(text.replace("accelerator: A10G", "accelerator: L4"))
    status, said = run("doit")
    assert status == 1
    assert "no machine of the farm can run steps of the target L4 with tensorrt_rtx" in said
    assert "1 GPU of accelerator type L4" in said
    assert said.count("1 CPU, 1 GPU, H100") == 2
    assert "Traceback" not in said


def test_nothing_but_loopback_is_used(cluster: Served) -> None:
    """The cluster's processes listen on, and are connected to, this machine alone."""
    sockets = {}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, local, remote, *rest = line.split()
            sockets[rest[6]] = (local, remote)
    seen = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(cluster.folder).encode() in (process / "environ").read_bytes():
                links = [str(file.readlink()) for file in (process / "fd").iterdir()]
                seen += [sockets[link[8:-1]] for link in links if link.startswith("socket:") and link[8:-1] in sockets]
    assert any(address(local)[1] == int(cluster.address.rpartition(":")[2]) for local, _ in seen)
    others = {address(end) for ends in seen for end in ends if not address(end)[0].is_loopback}
    assert {found for found in others if not found[0].is_unspecified} == set()
    assert {port for found, port in others if found.is_unspecified} == {0}  # of who listens, nobody at the other end


def address(text: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    """Return the address in a line of /proc/net/tcp."""
    host, _, port = text.partition(":")
    raw = b"".join(bytes.fromhex(host[i : i + 8])[::-1] for i in range(0, len(host), 8))
    found = ipaddress.ip_address(socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw))
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found, int(port, 16)


@pytest.mark.parametrize("what", ["the step", "the worker"])
def test_step_whose_worker_is_killed_is_run_again(
    folder: Path,
    begin: Callable[..., subprocess.Popen[str]],
    on_workers: Callable[..., list[int]],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    """A step runs again if its worker is killed, as for want of memory."""
    process = begin("pipeline", "build", H100)
    until(lambda: on_workers(H100))
    (step,) = on_workers(H100)
    os.kill(step if what == "the step" else parent(step), signal.SIGKILL)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert "trying again elsewhere, 2 tries left" in said
    assert is_built(folder, H100, monkeypatch)


def test_worker_that_is_lost_every_time_is_given_up(
    folder: Path, begin: Callable[..., subprocess.Popen[str]], on_workers: Callable[..., list[int]]
) -> None:
    """A step is given up after the configured tries, with the command that repeats it and no half-written results."""
    text = (folder / "pipeline.yaml").read_text()
    (folder / "pipeline.yaml").write_text(text + "  retries: 0\n")
    process = begin("doit", f"build:{H100}")
    until(lambda: on_workers(H100))
    os.kill(on_workers(H100)[0], signal.SIGKILL)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 1
    assert f"build:{H100}: running a step: its process was killed by SIGKILL" in said
    assert f"build:{H100}: error: the step's worker was lost 1 times" in said
    assert f"doit build:{H100}" in said
    assert not (folder / "artifacts" / H100).exists()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_doit_ends_its_steps_on_the_farm(
    begin: Callable[..., subprocess.Popen[str]], folder: Path, on_workers: Callable[..., list[int]], how: signal.Signals
) -> None:
    """Ctrl-C, or a batch system's signal, ends the steps elsewhere with one message."""
    process = begin("doit", "build")
    until(on_workers)
    process.send_signal(how)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "run `doit build` again to go on from here" in said
    assert "Traceback" not in said
    assert "*** SIG" not in said  # as Ray would say of it
    assert on_workers() == []
    assert list(folder.glob("artifacts/.writing-*")) == []


def test_driver_that_was_killed_picks_up_what_had_finished(
    folder: Path,
    begin: Callable[..., subprocess.Popen[str]],
    run: Callable[..., tuple[int, str]],
    on_workers: Callable[..., list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Steps of a killed driver end, and the next run builds the rest."""
    process = begin("doit", "build")
    until(lambda: list(folder.glob("artifacts/tiny/rtx-*/*/artifact.json")))
    process.kill()
    until(lambda: not on_workers())
    before = {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("artifacts/tiny/rtx-*/*/artifact.json")}
    status, said = run("doit", "build")
    assert status == 0, said
    assert all(is_built(folder, engine, monkeypatch) for engine in ENGINES)
    finished = [engine for engine in ENGINES if (folder / "artifacts" / engine).name in before]
    assert [engine for engine in finished if f"build:{engine}: 0." not in said]


def test_what_one_machine_has_built_no_other_builds(
    folder: Path,
    begin: Callable[..., subprocess.Popen[str]],
    run: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """One of two concurrent drivers builds, the other takes its result, and a third takes all from the store."""
    (folder / "pipeline.yaml").write_text((folder / "pipeline.yaml").read_text() + f"cache: {tmp_path / 'cache'}\n")
    other, third = tmp_path / "other", tmp_path / "third"
    for copy in (other, third):
        shutil.copytree(folder, copy)
    both = [begin("pipeline", "build", H100, cwd=cwd) for cwd in (folder, other)]
    said = sorted(process.communicate(timeout=600)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("built in" in text for text in said) == 1, said
    assert sum("waiting for" in text and "taken from" in text for text in said) == 1, said
    assert run("doit", "build")[0] == 0
    status, output = run("doit", "build", cwd=third)
    assert status == 0
    assert output.count("taken from") == 3, output
    assert "built in" not in output
    assert all(is_built(third, engine, monkeypatch) for engine in ENGINES)


def test_machine_that_is_lost_costs_what_it_ran(
    folder: Path,
    begin: Callable[..., subprocess.Popen[str]],
    on_workers: Callable[..., list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The step runs on another machine of the kind."""
    process = begin("pipeline", "build", H100)
    until(lambda: on_workers(H100))
    (step,) = on_workers(H100)
    worker = parent(step)
    for lost in (parent(worker), worker, step):  # a worker whose machine's own process is gone may still end its step
        with contextlib.suppress(ProcessLookupError):  # it has gone with the one before
            os.kill(lost, signal.SIGKILL)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert "the worker was lost" in said
    assert is_built(folder, H100, monkeypatch)
    until(lambda: not on_workers())
