"""Ends of processes: end those that this one has started, end with the parent, and describe how one ended.

Callers pass their own grace periods, in seconds.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

PARENT_VARIABLE = "PIPELINE_PARENT"
"""The environment variable that names the parent to a started process, which ends with it."""
KILLED = {-signal.SIGKILL, -signal.SIGTERM}
"""Exit statuses of a process that something outside has ended: the kernel when memory is short, or a shutdown."""
_PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""
_LOOK_SECONDS = 0.05


class Process(Protocol):
    """A started process: one of multiprocessing's, or a fork."""

    @property
    def pid(self) -> int | None:
        """Its number; None before its start."""

    @property
    def exitcode(self) -> int | None:
        """Its exit status, negative for a signal's number; None while it runs."""

    def is_alive(self) -> bool:
        """Return whether it runs."""

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end, at most for a time in seconds."""

    def terminate(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """Kill it."""

    def close(self) -> None:
        """Free what belongs to it."""


def end_children(grace_seconds: float) -> None:
    """Ask all processes that this one has started to end, and kill those that have not after a while.

    A signal to this process alone does not reach them.
    """
    children = [pid for thread in Path("/proc/self/task").glob("*") for pid in _children(thread)]
    deadline = time.monotonic() + grace_seconds
    _send(children, signal.SIGTERM)
    while any(map(_runs, children)) and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
    _send([pid for pid in children if _runs(pid)], signal.SIGKILL)


def _children(thread: Path) -> list[int]:
    """Return the processes that a thread has started; an empty list if the thread has ended."""
    try:
        return [int(pid) for pid in (thread / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _send(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def _runs(process: int) -> bool:
    """Return whether a process still runs; a zombie does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in {"Z", "X"}


def end_command(command: subprocess.Popen[bytes], grace_seconds: float) -> None:
    """Ask a command to end, kill it if it has not after a while, and close its pipes."""
    try:
        if command.poll() is None:
            command.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                command.wait(grace_seconds)
    finally:  # also where a second signal interrupts the wait: then it must end at once
        if command.poll() is None:
            command.kill()
            command.wait()
        for stream in (command.stdout, command.stderr):
            if stream:
                stream.close()


def kill_session(command: subprocess.Popen[str]) -> None:
    """Kill a command that leads a session of its own, with everything that it has started."""
    os.killpg(command.pid, signal.SIGKILL)


def ask_to_end(process: Process, grace_seconds: float) -> None:
    """Ask a process to end, and wait for it a while."""
    process.terminate()
    process.join(grace_seconds)


def kill(process: Process) -> None:
    """Kill a process without a wait: native code does not react to gentler signals."""
    process.kill()


def reap(process: Process, grace_seconds: float) -> None:
    """Wait a while for a process that is ending by itself, then kill it."""
    process.join(grace_seconds)
    if process.is_alive():
        process.kill()
        process.join()


def release(process: Process, grace_seconds: float) -> None:
    """Kill a process unless it has ended, wait for it a while, and free its resources.

    A process that hangs in the driver cannot be ended, and is left behind.
    """
    if process.pid is not None:
        process.kill()
        process.join(grace_seconds)
    with suppress(ValueError):  # it hangs
        process.close()


def end_with(parent: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Have this process receive a signal when its parent ends: a parent that is killed cannot end it.

    Args:
        parent: its process id.
        number: the signal.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # the parent died before that took effect
        os._exit(1)


def live_with(parent: int) -> None:
    """Have this process end when its parent does, however that ends; interrupts are left to the parent.

    Args:
        parent: its process id.
    """
    end_with(parent, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def describe_exit(status: int | None) -> str:
    """Return how a process without a result ended: the signal's name, or the exit status."""
    if status is None:
        return "its process hung up, but did not end"
    if status >= 0:
        return f"its process ended without a result (exit status {status})"
    names = {int(known): known.name for known in signal.Signals}
    hint = ", as the kernel does when memory is short" if status == -signal.SIGKILL else ""
    return f"its process was killed by {names.get(-status, f'signal {-status}')}{hint}"
