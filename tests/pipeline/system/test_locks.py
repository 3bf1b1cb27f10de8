"""Locks of a GPU and a host: timed work alone, all other work side by side."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import StorageError
from pipeline.system.locks import exclusive, shared, working
from tests.support.hosts import H100, L4

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from model_artifacts.records import Gpu

HOLDER = """
import sys
from pipeline.system.locks import exclusive, shared
from tests.support.hosts import H100
with {how}(H100):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks of these tests are not those of this host."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("pipeline.system.locks._PATIENCE_SECONDS", 0.05)


@contextlib.contextmanager
def holder(how: str = "exclusive") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the H100 until it is sent a line, or ended."""
    command = [sys.executable, "-c", HOLDER.format(how=how)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


class Waiter(threading.Thread):
    """Takes a GPU in this process, once it is free."""

    def __init__(self, how: Callable[[Gpu], AbstractContextManager[None]] = exclusive) -> None:
        super().__init__(daemon=True)
        self._how = how
        self.holds = threading.Event()
        self.start()

    def run(self) -> None:
        """Take it and give it back."""
        with self._how(H100):
            self.holds.set()


def release(process: subprocess.Popen[str]) -> None:
    """Let a holder go."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_two_processes_exclude_each_other(caplog: pytest.LogCaptureFixture) -> None:
    """The second waits for the first, says so, and goes on when the first is done."""
    caplog.set_level(logging.INFO, "pipeline")
    with holder() as process:
        waiter = Waiter()
        assert not waiter.holds.wait(0.5)
        release(process)
        assert waiter.holds.wait(10)
    (message,) = caplog.messages
    assert message.startswith("waiting for the NVIDIA H100 80GB HBM3, on which something else works")


@pytest.mark.skipif(not Path("/proc/locks").is_file(), reason="only Linux lists the holders of locks")
def test_waiting_names_the_process_that_it_waits_for(caplog: pytest.LogCaptureFixture) -> None:
    """The message has the command and the process of each holder, and none of those that wait, too."""
    caplog.set_level(logging.INFO, "pipeline")
    with holder() as process:
        waiter = Waiter()
        assert not waiter.holds.wait(0.5)
        release(process)
        assert waiter.holds.wait(10)
    (message,) = caplog.messages
    said, _, command = message.partition(": ")
    assert said == "waiting for the NVIDIA H100 80GB HBM3, on which something else works"
    assert command.startswith(f"`{sys.executable[:20]}")  # a long command is shortened in its middle
    assert command.endswith(f"` (process {process.pid})")
    assert command.isprintable()


def test_work_that_is_not_timed_goes_on_side_by_side() -> None:
    """Validations do not wait for each other."""
    with holder("shared"), shared(H100):
        pass


def test_work_waits_for_what_is_timed(caplog: pytest.LogCaptureFixture) -> None:
    """While something is timed, nothing else works on the GPU."""
    caplog.set_level(logging.INFO, "pipeline")
    with holder() as process:
        waiter = Waiter(shared)
        assert not waiter.holds.wait(0.5)
        release(process)
        assert waiter.holds.wait(10)
    (message,) = caplog.messages
    assert message.startswith("waiting for the NVIDIA H100 80GB HBM3, on which something is timed")


def test_what_is_timed_waits_for_work() -> None:
    """Nothing is timed while others work on the GPU."""
    with holder("shared") as process:
        waiter = Waiter()
        assert not waiter.holds.wait(0.5)
        release(process)
        assert waiter.holds.wait(10)


def test_lock_ends_with_the_process_that_holds_it() -> None:
    """A killed process releases its lock."""
    with holder() as process:
        waiter = Waiter()
        assert not waiter.holds.wait(0.2)
        process.kill()
        assert waiter.holds.wait(10)


def test_a_host_that_is_timed_on_is_held_whole() -> None:
    """A timed step has the host to itself; steps without timing go on side by side."""
    taken = threading.Event()

    def time_something() -> None:
        with working(alone=True):
            taken.set()

    with working(alone=False), working(alone=False):
        threading.Thread(target=time_something, daemon=True).start()
        assert not taken.wait(0.5)
    assert taken.wait(10)


def test_other_gpus_are_not_held() -> None:
    """Work on one GPU does not wait for work on another."""
    with holder(), exclusive(L4):
        pass


def test_no_gpu_holds_nothing(tmp_path: Path) -> None:
    """No lock and no file is made without a GPU."""
    with exclusive(None), exclusive(None):
        assert list(tmp_path.iterdir()) == []


def test_lock_is_given_back_after_an_error() -> None:
    """An error releases the GPU's lock."""
    with pytest.raises(ZeroDivisionError), exclusive(H100):
        raise ZeroDivisionError
    with exclusive(H100):
        pass


def test_lock_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    """A lock's file that cannot be opened is an error that names it."""
    path = tmp_path / "pipeline-locks" / f"{H100.uuid}.lock"
    path.mkdir(parents=True)
    with pytest.raises(StorageError, match=f"locking {path} failed"), exclusive(H100):
        pass


def test_locks_folder_that_cannot_be_made_is_one_message(tmp_path: Path) -> None:
    """A file where the locks' folder should be is an error that names the lock."""
    (tmp_path / "pipeline-locks").write_bytes(b"")
    with pytest.raises(StorageError, match=rf"locking {tmp_path}/pipeline-locks/{H100.uuid}\.lock failed"):
        exclusive(H100).__enter__()


@pytest.mark.parametrize("umask", [0o022, 0o077], ids=oct)
def test_lock_is_everybodys(tmp_path: Path, umask: int) -> None:
    """Whatever this user's mask is, others may open the lock: neither its folder nor its file is this user's alone."""
    before = os.umask(umask)
    try:
        with exclusive(H100):
            folder = tmp_path / "pipeline-locks"
            modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / f"{H100.uuid}.lock")]
    finally:
        os.umask(before)
    assert modes == [0o777, 0o666]


def test_locks_folder_of_somebody_else_is_used_as_it_is(tmp_path: Path) -> None:
    """A folder that is there already, as another user's is, is not changed."""
    folder = tmp_path / "pipeline-locks"
    folder.mkdir(mode=0o755)
    with exclusive(H100):
        pass
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
