"""Risky work in a process of its own: a segfault, a hang or a sticky CUDA error ends that process, and nothing else."""

from __future__ import annotations

import ctypes
import faulthandler
import multiprocessing
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, TypeVar, cast

from pipeline.errors import CrashedError, PipelineError, one_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess
    from pathlib import Path

T = TypeVar("T")

_GRACE_SECONDS = 2.0
_LINE = 200
_PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""


def run_isolated(function: Callable[..., T], *arguments: object, timeout_seconds: float, log: Path, rerun: str) -> T:
    """Run a function in a process of its own and return what it returned.

    Args:
        function: importable by its module's name; its arguments and its result can be pickled.
        arguments: what it is called with.
        timeout_seconds: how long it may take.
        log: what the process and its native libraries write to standard error is appended here.
        rerun: the command that repeats it, for the message.

    Raises:
        PipelineError: what the function raised, of the same type.
        CrashedError: it died, took too long, or raised something else; the message ends with the log's last lines.
    """
    context = multiprocessing.get_context("spawn")  # nothing is inherited, least of all a CUDA context
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(theirs, os.getpid(), str(log), function, arguments), daemon=True)
    with ours:
        process.start()
        theirs.close()
        try:
            answer = ours.recv() if ours.poll(timeout_seconds) else None
        except EOFError:
            answer = _DIED
        except BaseException:  # interrupted: native code does not look at signals
            process.kill()
            process.join()
            raise
        try:
            return cast("T", _result(answer, process, timeout_seconds, log, rerun))
        finally:
            _end(process)
            process.close()


_DIED = "died"


def _result(answer: object, process: BaseProcess, timeout_seconds: float, log: Path, rerun: str) -> object:
    """Return what came back, or raise what it means."""
    if isinstance(answer, tuple):
        done, value = answer
        if done:
            return value
        if isinstance(value, PipelineError):
            raise value
        what = f"it raised {value}"
    elif answer is None:
        process.kill()
        what = f"no result in {timeout_seconds:g} s, which is all that it was given"
    else:
        process.join(_GRACE_SECONDS)
        what = describe_exit(process.exitcode)
    said = " | ".join(last_lines(log)) or "nothing"
    raise CrashedError(what, got=f"last log lines: {said}", fix=f"run it by itself: `{rerun}`")


def describe_exit(status: int | None) -> str:
    """Return what a process died of: a signal's name, or its exit status."""
    if status is None or status >= 0:
        return f"its process ended without a result (exit status {status})"
    name = signal.Signals(-status).name
    hint = ", which the kernel sends when memory runs out" if name == "SIGKILL" else ""
    return f"its process was killed by {name}{hint}"


def last_lines(log: Path, count: int = 5) -> list[str]:
    """Return the last lines of a log that are not empty, each cut to a readable length.

    Of the stack that faulthandler leaves, the innermost frame is enough.
    """
    text = log.read_text(errors="replace") if log.is_file() else ""
    said, fatal, stack = text.rpartition("Fatal Python error:")
    lines = [line.strip()[:_LINE] for line in (said if fatal else stack).splitlines()]
    if fatal:
        frames = [line.strip() for line in stack.splitlines() if line.lstrip().startswith("File ")]
        lines += [f"{fatal}{stack.splitlines()[0]}", *frames[:1]]
    return [line for line in lines if line][-count:]


def _end(process: BaseProcess) -> None:
    """Let a process end by itself, or else end it."""
    process.join(_GRACE_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()


def _serve(
    connection: Connection, parent: int, log: str, function: Callable[..., object], arguments: tuple[object, ...]
) -> None:
    """Run in the new process: send (True, result) or (False, what went wrong)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before that took effect
        os._exit(1)
    target = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(target, 2)
    os.close(target)
    faulthandler.enable(2)
    try:
        connection.send((True, function(*arguments)))
    except PipelineError as exc:
        connection.send((False, exc))
    except Exception as exc:  # noqa: BLE001 - whatever it is, the parent must hear of it
        traceback.print_exc(file=sys.stderr)
        connection.send((False, one_line(exc)))
    sys.stdout.flush()
    sys.stderr.flush()
