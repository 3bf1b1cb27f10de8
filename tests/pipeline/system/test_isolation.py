"""Risky work in a process of its own."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import util
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import ArtifactError, ConfigError, CrashedError, KilledError, StorageError, UnsupportedError
from pipeline.system import forks
from pipeline.system.isolation import last_lines, run_isolated, step_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from typing_extensions import TypeVarTuple, Unpack

    Ts = TypeVarTuple("Ts")

RERUN = "python -m pipeline build tiny/rtx-sm80+/fp16-b1-ws16MiB"
SECONDS = 60.0
"""More than anything here takes."""


@pytest.fixture(autouse=True, params=["forked", pytest.param("spawned", marks=pytest.mark.part(12, of="spawned"))])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The way in which the process starts: in a doit's step, and in a command that a person has typed."""
    way: str = request.param
    if way == "spawned":
        monkeypatch.setattr(forks, "_current", None)
    return way


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The file for a process's standard error."""
    return tmp_path / "log"


def crash(log: Path, function: Callable[[Unpack[Ts]], object], *arguments: Unpack[Ts], seconds: float = SECONDS) -> str:
    """Return the message with which a function fails."""
    with pytest.raises(CrashedError) as caught:
        run_isolated(function, *arguments, timeout_seconds=seconds, log=log, rerun=RERUN)
    return str(caught.value)


def say(text: str) -> None:
    """Print as native libraries do."""
    os.write(2, text.encode() + b"\n")


def echo(value: object, size: int = 0) -> tuple[int, object, bytes]:
    """Return who has run this, and something large."""
    return os.getpid(), value, bytes(size)


def die(number: int) -> None:
    """Die by a signal."""
    os.kill(os.getpid(), number)
    time.sleep(SECONDS)


def read_address_zero() -> bytes:
    """Crash as native code does."""
    return ctypes.string_at(0)


def complain_and_abort() -> None:
    """Say something as native libraries do, then abort."""
    for number in range(9):
        say(f"complaint {number} {'x' * 300}")
    os.abort()


def leave(status: int) -> None:
    """End the process behind Python's back."""
    os._exit(status)


def say_and_hang() -> None:
    """Say which process hangs, and hang, as native code does."""
    say(f"pid {os.getpid()}")
    ctypes.CDLL(None).sleep(int(SECONDS))


def hang_stubbornly() -> None:
    """Hang, and do not end when asked to."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say_and_hang()


def leave_a_process_behind() -> None:
    """Die while another process holds everything open that this one has."""
    if os.fork() == 0:
        time.sleep(12)
        os._exit(0)
    die(signal.SIGKILL)


def return_and_linger() -> str:
    """Return, but have the process end late."""
    threading.Thread(target=time.sleep, args=(1,)).start()
    return "an answer"


def refuse(kind: type[ArtifactError]) -> None:
    """Fail as this package does."""
    raise kind("it cannot be done", where="here", got="nothing", fix="do without")


def find_problems() -> None:
    """Fail with the one error whose constructor differs."""
    raise ConfigError(Path("pipeline.yaml"), ["pipeline.yaml:1:1: bad", "pipeline.yaml:2:1: worse"])


def stumble() -> None:
    """Fail as libraries do."""
    message = "CUDA error: an illegal memory access\nand much more"
    raise RuntimeError(message)


def return_a_lambda() -> object:
    """Return a value that cannot be pickled."""
    return lambda: None


def print_and_warn() -> None:
    """Print, and say something on standard error, both by way of Python."""
    print("progress")  # noqa: T201 - that is the point
    logging.getLogger("library").warning("careful")


def interrupt_itself() -> str:
    """Send this process the signal of Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)
    return "still here"


class Fragile:
    """An argument that cannot be read on the other side."""

    def __reduce__(self) -> tuple[object, ...]:
        """Become a call that fails."""
        return int, ("no number",)


def test_a_result_comes_back_from_another_process(log: Path) -> None:
    """The function runs in another process, and its result is returned."""
    pid, value, _ = run_isolated(echo, ("a", 1), 0, timeout_seconds=SECONDS, log=log, rerun=RERUN)
    assert value == ("a", 1)
    assert pid != os.getpid()


def test_large_arguments_and_results_travel(log: Path) -> None:
    """64 MiB in each direction arrive."""
    size = 1 << 26
    _, value, data = run_isolated(echo, b"\1" * size, size, timeout_seconds=SECONDS, log=log, rerun=RERUN)
    assert value == b"\1" * size
    assert data == bytes(size)


@pytest.mark.parametrize("kind", [ArtifactError, StorageError, UnsupportedError])
def test_an_error_of_this_package_arrives_as_it_was(kind: type[ArtifactError], log: Path) -> None:
    """Type, message and parts of a ArtifactError are the same here as there."""
    with pytest.raises(kind) as here:
        run_isolated(refuse, kind, timeout_seconds=SECONDS, log=log, rerun=RERUN)
    with pytest.raises(kind) as there:
        refuse(kind)
    assert type(here.value) is kind
    assert str(here.value) == str(there.value)
    assert (here.value.what, here.value.got) == (there.value.what, there.value.got)


def test_a_configuration_error_arrives_as_it_was(log: Path) -> None:
    """An error with a constructor of its own arrives, too."""
    with pytest.raises(ConfigError, match=r"has 2 problems\n.*bad\n.*worse"):
        run_isolated(find_problems, timeout_seconds=SECONDS, log=log, rerun=RERUN)


def test_another_exception_is_named_and_its_traceback_logged(log: Path) -> None:
    """A library's exception is a crash that says its type and first line; the log says where."""
    message = crash(log, stumble)
    assert "raised RuntimeError: CUDA error: an illegal memory access\n" in message
    assert f"fix:      run it by itself: {RERUN}" in message
    assert "in stumble" in log.read_text()


def test_a_result_that_cannot_be_sent_is_a_crash(log: Path) -> None:
    """A result that cannot be pickled is said to be one."""
    assert "lambda" in crash(log, return_a_lambda)


def test_arguments_that_cannot_be_read_are_a_crash(log: Path) -> None:
    """A failure before the function begins is reported with the fix."""
    message = crash(log, echo, Fragile(), 0)
    assert "raised ValueError" in message
    assert RERUN in message


def test_arguments_that_cannot_be_sent_are_the_callers_error(log: Path) -> None:
    """An argument that cannot be pickled raises here, and leaves no process."""
    with pytest.raises(Exception, match="lambda"):
        run_isolated(echo, lambda: None, 0, timeout_seconds=SECONDS, log=log, rerun=RERUN)
    assert not multiprocessing.active_children()


def test_a_segfault_says_its_signal_and_place(log: Path) -> None:
    """A process that reads address zero dies alone; the message names the signal and the innermost frame."""
    message = crash(log, read_address_zero)
    assert message.startswith("its process was killed by SIGSEGV\n")
    assert "Fatal Python error: Segmentation fault" in message
    assert "in string_at" in message
    assert "in _serve" not in message
    assert f"fix:      run it by itself: {RERUN}" in message


def test_sigkill_hints_at_memory(log: Path) -> None:
    """The message names a lack of memory as the likely cause of SIGKILL."""
    message = crash(log, die, signal.SIGKILL)
    assert message.startswith("its process was killed by SIGKILL, as the kernel does when memory is short\n")
    assert "last log lines: nothing" in message


def test_the_last_words_of_native_code_are_in_the_message(log: Path) -> None:
    """The message has the last lines of descriptor 2 before an abort, cut to 200 characters each."""
    message = crash(log, complain_and_abort)
    assert "killed by SIGABRT" in message
    shown = [line.strip() for line in message.splitlines() if "complaint" in line]
    assert [line[:11] for line in shown] == ["complaint 7", "complaint 8"]
    assert {len(line) for line in shown} == {200}
    assert log.read_text().count("complaint") == 9


@pytest.mark.parametrize("status", [0, 3])
def test_an_exit_without_an_answer_is_a_crash(status: int, log: Path) -> None:
    """A process that just ends says its exit status, even if it is 0."""
    assert f"ended without a result (exit status {status})" in crash(log, leave, status)


def test_a_hang_is_ended_after_its_time(log: Path) -> None:
    """A process that takes too long is ended; the message says how long it had and where it hung."""
    began = time.monotonic()
    message = crash(log, say_and_hang, seconds=4)
    assert time.monotonic() - began < 10
    assert message.startswith("no result within the limit of 4 s\n")
    assert "pid " in message
    assert "in say_and_hang" in message
    assert f"fix:      run it by itself: {RERUN}" in message


def test_a_hang_that_ignores_sigterm_is_killed(log: Path) -> None:
    """A process that does not end when asked to is killed."""
    crash(log, hang_stubbornly, seconds=4)
    assert gone(hanging(log))


def test_a_death_is_noticed_while_a_grandchild_lives(log: Path) -> None:
    """A child of a dead process does not delay the error."""
    began = time.monotonic()
    assert "SIGKILL" in crash(log, leave_a_process_behind)
    assert time.monotonic() - began < 10


def test_an_answer_counts_although_the_process_ends_late(log: Path) -> None:
    """A thread that is left does not cost the result."""
    assert run_isolated(return_and_linger, timeout_seconds=SECONDS, log=log, rerun=RERUN) == "an answer"


def test_standard_error_is_appended_and_output_stays(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Standard output appears here, and standard error is appended to the log."""
    log.write_text("before\n")
    run_isolated(print_and_warn, timeout_seconds=SECONDS, log=log, rerun=RERUN)
    assert capfd.readouterr() == ("progress\n", "")
    assert log.read_text() == "before\ncareful\n"


def test_a_log_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    """A log in a folder that is not there is said to be the problem."""
    with pytest.raises(StorageError, match="No such file"):
        run_isolated(echo, 1, 0, timeout_seconds=SECONDS, log=tmp_path / "no" / "log", rerun=RERUN)


def test_nothing_is_left_behind(log: Path) -> None:
    """20 processes, dead and well, leave no descriptor and no child."""
    crash(log, leave, 1)  # multiprocessing starts its tracker once
    before = descriptors()
    children = set(child_processes())
    for _ in range(10):
        run_isolated(echo, 1, 0, timeout_seconds=SECONDS, log=log, rerun=RERUN)
        crash(log, leave, 1)
    assert descriptors() == before
    assert set(child_processes()) == children
    assert not multiprocessing.active_children()


def test_the_process_ignores_interrupts(log: Path) -> None:
    """Ctrl-C on a terminal reaches both processes, and the parent decides."""
    assert run_isolated(interrupt_itself, timeout_seconds=SECONDS, log=log, rerun=RERUN) == "still here"


def test_an_exception_while_waiting_kills_the_process(log: Path) -> None:
    """SIGTERM turned into an exception goes on, and the process is dead by then."""

    def stop(*_: object) -> None:
        raise SystemExit(143)

    def terminate() -> None:
        hanging(log)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    thread = threading.Thread(target=terminate)
    thread.start()
    try:
        with pytest.raises(SystemExit):
            run_isolated(hang_stubbornly, timeout_seconds=SECONDS, log=log, rerun=RERUN)
    finally:
        thread.join()
        signal.signal(signal.SIGTERM, before)
    assert not Path(f"/proc/{hanging(log)}").exists()


@pytest.mark.parametrize("way", ["spawned"], indirect=True)
def test_an_interrupt_while_it_starts_waits_for_the_start(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt during the start leaves no process either."""
    spawn = util.spawnv_passfds
    started = []

    def interrupted(path: bytes, arguments: Sequence[str], descriptors: Sequence[int]) -> int:
        started.append(spawn(path, arguments, descriptors))
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        return started[-1]

    crash(log, leave, 1)  # multiprocessing starts its tracker once
    monkeypatch.setattr(util, "spawnv_passfds", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_isolated(say_and_hang, timeout_seconds=SECONDS, log=log, rerun=RERUN)
    assert [Path(f"/proc/{pid}").exists() for pid in started] == [False]


WAITING = """
import sys
from contextlib import nullcontext
from pathlib import Path
from pipeline.system.forks import ForkServer, forking
from pipeline.system.isolation import run_isolated
from tests.pipeline.system.test_isolation import hang_stubbornly
with forking(ForkServer()) if sys.argv[2] == "forked" else nullcontext():
    run_isolated(hang_stubbornly, timeout_seconds=60, log=Path(sys.argv[1]), rerun='')
"""


@pytest.fixture
def parent(log: Path, way: str) -> Iterator[subprocess.Popen[str]]:
    """A process, with a group of its own, that waits for one that hangs."""
    command = [sys.executable, "-c", WAITING, str(log), way]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:  # noqa: S603
        yield process
        process.kill()


def test_ctrl_c_ends_both(parent: subprocess.Popen[str], log: Path) -> None:
    """Ctrl-C goes to the whole group: the parent is interrupted, and the child is gone with it."""
    pid = hanging(log)
    os.killpg(parent.pid, signal.SIGINT)
    _, said = parent.communicate(timeout=10)
    assert said.splitlines()[-1] == "KeyboardInterrupt"
    assert said.count("Traceback") == 1
    assert gone(pid)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_process_that_somebody_has_ended_is_told_from_one_that_crashed(number: signal.Signals, log: Path) -> None:
    """A killed process may succeed on a host with more memory; a crash comes again."""
    with pytest.raises(KilledError, match=number.name):
        run_isolated(die, number, timeout_seconds=SECONDS, log=log, rerun=RERUN)
    with pytest.raises(CrashedError, match="SIGSEGV") as caught:
        run_isolated(read_address_zero, timeout_seconds=SECONDS, log=log, rerun=RERUN)
    assert type(caught.value) is CrashedError


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_parent_takes_the_process_with_it(
    number: signal.Signals, parent: subprocess.Popen[str], log: Path
) -> None:
    """A parent that cannot clean up does not leave a process that runs for hours."""
    pid = hanging(log)
    parent.send_signal(number)
    assert parent.wait(timeout=10) == -number
    assert gone(pid)


def test_last_lines_are_those_that_say_something(log: Path) -> None:
    """Empty lines do not count, nor do bytes that are no text stop this; few lines are all lines."""
    log.write_bytes(b"one\n\ntwo \xff\n  three  \n\n")
    assert last_lines(log, 2) == ["two \N{REPLACEMENT CHARACTER}", "three"]
    assert len(last_lines(log)) == 3


def test_last_lines_of_a_huge_log(log: Path) -> None:
    """A log of many megabytes ends as a small one does."""
    log.write_text("noise\n" * 2_000_000 + "the end\n")
    assert last_lines(log, 2) == ["noise", "the end"]


def test_a_log_that_is_not_there_has_no_last_lines(log: Path) -> None:
    """A message about a crash does not fail for want of a log."""
    assert last_lines(log) == []


def descriptors() -> list[str]:
    """Return this process's open file descriptors."""
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def child_processes() -> list[str]:
    """Return this process's children, zombies included."""
    return [pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]


def hanging(log: Path) -> int:
    """Return the process that hangs, once it does."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if log.is_file() and (text := log.read_text()).endswith("\n"):
            return int(text.splitlines()[0].removeprefix("pid "))
        time.sleep(0.05)
    raise TimeoutError


def gone(pid: int) -> bool:
    """Return whether a process ends within seconds; whoever inherits it may reap it later."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("timed", [False, True])
def test_steps_leave_bytecode_for_the_next_ones(monkeypatch: pytest.MonkeyPatch, *, timed: bool) -> None:
    """A container's PYTHONDONTWRITEBYTECODE does not reach steps, each of which would compile torch again."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("KEPT", "yes")
    environment = step_environment(timed=timed)
    assert "PYTHONDONTWRITEBYTECODE" not in environment
    assert environment["KEPT"] == "yes"


def test_threads_of_steps_that_work_side_by_side_sleep_while_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed has OpenMP's own policy, and a policy that the user has set is everybody's."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert step_environment(timed=False)["OMP_WAIT_POLICY"] == "passive"
    assert "OMP_WAIT_POLICY" not in step_environment(timed=True)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert step_environment(timed=False)["OMP_WAIT_POLICY"] == "active"
