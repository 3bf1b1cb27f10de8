"""The process of a command line: its streams, its signals and a reader that goes away."""

from __future__ import annotations

import os
import select
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType


def end_like_ctrl_c() -> None:
    """Let SIGTERM raise KeyboardInterrupt, as Ctrl-C does, so that a command cleans up before it ends."""
    signal.signal(signal.SIGTERM, _end_once)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background jobs ignore it
        signal.signal(signal.SIGINT, _end_once)


def ignore_further_signals() -> None:
    """Ignore SIGINT and SIGTERM from now on.

    A terminal and doit may both ask a process to end. The second signal would cut the exit short, with a complaint.
    The handler does nothing, because Python complains of a pending signal whose handler is SIG_IGN by then.
    """
    for request in (signal.SIGINT, signal.SIGTERM):
        signal.signal(request, lambda _number, _frame: None)


def reader_is_gone() -> bool:
    """Return True if standard output is a pipe whose reader has ended, as in `… | head -1`."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # no file at all, as in a test
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def discard_output() -> None:
    """Send the rest of standard output to /dev/null, so that Python's flush at exit raises no error."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _end_once(number: int, _frame: FrameType | None) -> None:
    ignore_further_signals()
    raise KeyboardInterrupt(number)
