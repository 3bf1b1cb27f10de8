"""Processes end with their parent, when asked to, or by force."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from pipeline.system.processes import (
    _children,
    _runs,
    ask_to_end,
    describe_exit,
    end_command,
    kill_session,
    reap,
    release,
)

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
WILLING = "import time; print('up', flush=True); time.sleep(60)"


def started(script: str) -> subprocess.Popen[bytes]:
    """Return a Python process that has begun to run a script."""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)  # noqa: S603 - ours
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    return process


@pytest.mark.parametrize(("script", "number"), [(WILLING, signal.SIGTERM), (STUBBORN, signal.SIGKILL)])
def test_a_command_is_asked_to_end_and_then_killed(script: str, number: signal.Signals) -> None:
    """A command that ignores SIGTERM is killed after the grace period."""
    process = started(script)

    end_command(process, 0.2)

    assert process.returncode == -number
    assert process.stdout is not None
    assert process.stdout.closed


def test_a_command_that_has_ended_keeps_its_status() -> None:
    """A command that has ended by itself is not signalled."""
    process = started("print('up')")
    process.wait()

    end_command(process, 0.2)

    assert process.returncode == 0


def test_children_are_ended_by_force_after_the_grace_period() -> None:
    """All children of this process end, the stubborn ones by SIGKILL."""
    script = (
        "import subprocess, sys; from pipeline.system.processes import end_children\n"
        f"scripts = {[WILLING, STUBBORN]!r}\n"
        "both = [subprocess.Popen([sys.executable, '-c', item], stdout=subprocess.PIPE) for item in scripts]\n"
        "for process in both: process.stdout.readline()\n"
        "end_children(0.2)\n"
        "print([process.wait(10) for process in both])\n"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)  # noqa: S603 - ours

    assert done.stdout == "[-15, -9]\n"


def test_without_children_nothing_is_awaited() -> None:
    """A process without children returns at once, however long the grace period."""
    script = "from pipeline.system.processes import end_children; end_children(1000)"

    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)  # noqa: S603 - ours


def test_a_session_ends_with_all_that_it_started(tmp_path: Path) -> None:
    """A killed session takes along the processes that its command has started."""
    file = tmp_path / "child"
    os.mkfifo(file)
    command = ["sh", "-c", f"sleep 60 & echo $! > {file}; wait"]
    with subprocess.Popen(command, text=True, start_new_session=True) as process:  # noqa: S603 - ours
        child = int(file.read_text())
        kill_session(process)

    deadline = time.monotonic() + 10
    while _runs(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_that_ends_by_itself_is_not_killed() -> None:
    """A process within its grace period keeps its exit status."""
    process = get_context("fork").Process(target=int)
    process.start()

    reap(process, 10)

    assert process.exitcode == 0


@pytest.mark.parametrize(("end", "number"), [(ask_to_end, signal.SIGTERM), (reap, signal.SIGKILL)])
def test_a_process_that_hangs_is_ended(end: object, number: signal.Signals) -> None:
    """A process that does not end by itself is ended by a signal."""
    process = get_context("fork").Process(target=signal.pause)
    process.start()

    assert callable(end)
    end(process, 0.2)

    assert process.exitcode == -number


def test_a_released_process_is_gone() -> None:
    """A released process has ended, and its resources are free."""
    process = get_context("fork").Process(target=signal.pause)
    process.start()

    release(process, 10)

    with pytest.raises(ValueError, match="closed"):
        process.is_alive()


def test_a_process_that_never_started_is_released() -> None:
    """A process that was never started is released without an error."""
    release(get_context("fork").Process(target=signal.pause), 10)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (None, "its process hung up, but did not end"),
        (7, "its process ended without a result (exit status 7)"),
        (-signal.SIGBUS, "its process was killed by SIGBUS"),
        (-40, "its process was killed by signal 40"),
    ],
)
def test_exits_in_words(status: int | None, text: str) -> None:
    """Every way to end has its words, signals without a name included."""
    assert describe_exit(status) == text


def test_a_thread_that_has_ended_has_no_children() -> None:
    """Threads may end while the processes of all threads are listed."""
    assert _children(Path("/proc/self/task/0")) == []
