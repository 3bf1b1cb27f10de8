"""Forks of a process that has imported what steps share."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from model_artifacts.errors import KilledError
from pipeline.cli.main import run_forked
from pipeline.system.forks import SHARED, ForkedProcess, ForkServer, Surroundings, forking
from pipeline.system.isolation import run_isolated
from tests.pipeline.system.test_isolation import gone

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

SECONDS = 30.0
"""More than anything here takes."""


@pytest.fixture
def server() -> Iterator[ForkServer]:
    """A server of its own, which imports nothing unless asked to."""
    with forking(ForkServer()) as server:
        yield server


def fork(server: ForkServer, function: Callable[..., object], *arguments: Any, **options: Any) -> Forked:
    """Start a function in a child."""
    return Forked(*server.fork(function, arguments, **options))


class Forked:
    """A child and its connection."""

    def __init__(self, process: ForkedProcess, connection: Connection) -> None:
        self.process = process
        self.connection = connection

    def answer(self) -> Any:
        """Return what the child sends, once it has ended."""
        assert self.connection.poll(SECONDS)
        answer = self.connection.recv()
        self.process.join(SECONDS)
        assert self.process.exitcode == 0
        return answer


def tell_parent(connection: Connection) -> None:
    """Send the parent's process number."""
    connection.send(os.getppid())


def tell_surroundings(connection: Connection) -> None:
    """Send all that a process inherits."""
    ctrl_c = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    connection.send((str(Path.cwd()), os.environ.get("HERE"), sys.path[-1], ctrl_c, sys.stdin.read()))


def tell_modules(connection: Connection) -> None:
    """Send whether a module was there at the start."""
    connection.send("statistics" in sys.modules)


def tell_libraries(connection: Connection) -> None:
    """Send the names of the libraries that are imported."""
    connection.send({name.partition(".")[0] for name in sys.modules})


def tell_title(connection: Connection) -> None:
    """Send this process's command line."""
    connection.send(Path("/proc/self/cmdline").read_bytes().rstrip(b"\0").decode())


def exit_with(_connection: Connection, status: int) -> None:
    """End as a command does."""
    sys.exit(status)


def hang(connection: Connection) -> None:
    """Say that it hangs, and hang."""
    connection.send(os.getpid())
    time.sleep(SECONDS)


def clean_up(connection: Connection, file: str) -> None:
    """Hang until asked to end, then take a moment to clean up."""

    def finish(*_: object) -> None:
        time.sleep(0.2)
        Path(file).touch()
        sys.exit(143)

    signal.signal(signal.SIGTERM, finish)
    hang(connection)


def ask_for_two(connection: Connection) -> None:
    """Send the parents of two processes that are isolated from this one, and this one's parent."""
    connection.send((os.getppid(), [run_isolated(os.getppid, rerun="it") for _ in range(2)]))


def wait_for_isolated(connection: Connection, log: str) -> None:
    """Wait for isolated work that hangs."""
    connection.send(os.getpid())
    run_isolated(time.sleep, SECONDS, rerun="it", log=Path(log))


def test_all_children_have_one_parent_which_is_not_this_process(server: ForkServer) -> None:
    """The server starts once."""
    parents = {fork(server, tell_parent).answer() for _ in range(3)}
    assert len(parents) == 1
    assert parents != {os.getpid()}


def test_a_child_asks_the_same_server_for_its_own_children(server: ForkServer) -> None:
    """A second server would import everything once more."""
    parent, others = fork(server, ask_for_two).answer()
    assert others == [parent, parent]


def test_modules_are_imported_once_for_all_children(server: ForkServer) -> None:
    """The server imports them before it forks; a name that cannot be imported is the child's business."""
    assert not fork(server, tell_modules).answer()
    assert fork(server, tell_modules, modules=("no_such_module", "statistics")).answer()
    assert fork(server, tell_modules).answer()


def test_what_does_not_survive_a_fork_is_not_shared(server: ForkServer) -> None:
    """ONNX Runtime starts a thread when it is imported, and TensorRT looks at the driver."""
    found = fork(server, tell_libraries, modules=(run_forked.__module__, *SHARED)).answer()
    assert {"torch", "torchvision", "onnx", "pipeline"} <= found
    assert not found & {"onnxruntime", "tensorrt", "tensorrt_rtx", "torch_tensorrt", "cuda", "ray"}


@pytest.mark.parametrize("takes_interrupts", [True, False])
def test_surroundings_of_a_child(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, takes_interrupts: bool
) -> None:
    """Folder, environment and path are the caller's; Ctrl-C as asked for; standard input is empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERE", "yes")
    monkeypatch.setattr(sys, "path", [*sys.path, "/a/folder"])
    surroundings = Surroundings.here()._replace(takes_interrupts=takes_interrupts)
    told = fork(server, tell_surroundings, surroundings=surroundings).answer()
    assert told == (str(tmp_path), "yes", "/a/folder", takes_interrupts, "")


def test_a_step_finds_modules_as_its_command_would(server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m` puts the working directory first; a path that doit has added is not there."""
    monkeypatch.setattr(sys, "path", [*sys.path, "/a/folder"])
    folder, here, last, ctrl_c, _ = fork(
        server, tell_surroundings, surroundings=Surroundings.of_step({"HERE": "step"}, "")
    ).answer()
    assert (folder, here, ctrl_c) == (str(Path.cwd()), "step", True)
    assert last != "/a/folder"


def test_functions_of_modules_on_the_callers_path(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child has the path before it looks for the function."""
    (tmp_path / "somebodys.py").write_text("def answer(connection):\n    connection.send(42)\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert fork(server, importlib.import_module("somebodys").answer).answer() == 42


def test_a_child_is_listed_by_its_title(server: ForkServer) -> None:
    """`ps`, and the message of who is waited for, show the step."""
    title = "python -m pipeline build tiny/fp16"
    assert fork(server, tell_title, surroundings=Surroundings.here(title)).answer() == title


def test_a_child_writes_to_the_descriptors_that_it_is_given(server: ForkServer) -> None:
    """Output arrives in full, although the child ends at once."""
    source, target = os.pipe()
    child = fork(server, print, "text", output=(target, target))
    os.close(target)
    with open(source, encoding="utf-8") as lines:  # noqa: PTH123 - a descriptor
        assert "text" in lines.read()
    child.process.join(SECONDS)
    assert child.process.exitcode == 0


@pytest.mark.parametrize("status", [0, 1, 137])
def test_exit_status(server: ForkServer, status: int) -> None:
    """A child that ends as a command does has the command's exit status."""
    process = fork(server, exit_with, status).process
    process.join(SECONDS)
    assert process.exitcode == status
    assert not process.is_alive()


@pytest.mark.parametrize(("how", "status"), [("terminate", -15), ("kill", -9)])
def test_a_child_is_ended_by_its_owner(server: ForkServer, how: str, status: int) -> None:
    """The exit status names the signal; the server and other children live on."""
    other, child = fork(server, hang), fork(server, hang)
    child.connection.recv()
    getattr(child.process, how)()
    child.process.join(SECONDS)
    assert child.process.exitcode == status
    assert other.process.is_alive()


def test_a_child_is_killed_when_nobody_waits_for_it_any_more(server: ForkServer) -> None:
    """An exception in the process that asked for it leaves nothing behind."""
    child = fork(server, hang)
    pid = child.connection.recv()
    child.process.close()
    assert gone(pid)
    assert fork(server, tell_parent).answer()


def test_work_that_a_killed_step_has_isolated_ends_with_it(server: ForkServer, tmp_path: Path) -> None:
    """Both are children of the server, which knows who asked for whom."""
    step = fork(server, wait_for_isolated, str(tmp_path / "log"))
    pid = step.connection.recv()
    parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    (isolated,) = other_children(int(parent), pid)
    step.process.kill()
    assert gone(isolated)


def other_children(parent: int, pid: int) -> list[int]:
    """Return a process's children but one, once there are any."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        if others := [int(child) for child in children if int(child) != pid]:
            return others
        time.sleep(0.05)
    raise TimeoutError


def test_the_children_end_with_a_killed_server(server: ForkServer) -> None:
    """Their owner is told that they were killed, and the next child has a new server."""
    child = fork(server, hang)
    pid = child.connection.recv()
    first = fork(server, tell_parent).answer()
    os.kill(first, signal.SIGKILL)
    assert gone(pid)
    child.process.join(SECONDS)
    assert child.process.exitcode == -signal.SIGKILL
    assert server_process(server).wait(SECONDS) == -signal.SIGKILL
    assert fork(server, tell_parent).answer() != first


def server_process(server: ForkServer) -> subprocess.Popen[bytes]:
    """Return the process of a server."""
    process = server._process  # noqa: SLF001 - the test waits for its end
    assert process is not None
    return process


def fork_until_refused(server: ForkServer) -> None:
    """Ask for children; the signal to end may still be on its way."""
    for _ in range(100):
        fork(server, tell_parent)


def test_a_server_that_is_asked_to_end_lets_steps_clean_up(server: ForkServer, tmp_path: Path) -> None:
    """Steps are asked to end, isolated work is theirs to end, no more children start, and then the server ends."""
    file = tmp_path / "cleaned up"
    step = fork(server, clean_up, str(file), surroundings=Surroundings.of_step(dict(os.environ), ""))
    step.connection.recv()
    process = server_process(server)
    process.terminate()
    with pytest.raises(KilledError, match=r"interrupted|was ended"):
        fork_until_refused(server)
    assert process.wait(SECONDS) == 0
    assert file.exists()
    step.process.join(SECONDS)
    assert step.process.exitcode == 143


def test_closing_a_server_ends_its_children() -> None:
    """Nothing outlives the process that a server belongs to."""
    with forking(ForkServer()) as server:
        child = fork(server, hang)
        pid = child.connection.recv()
        process = server_process(server)
    assert process.returncode == 0
    assert gone(pid)
