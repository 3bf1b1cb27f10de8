"""Risky work in a process of its own: a segfault, a hang or a sticky CUDA error ends that process, and nothing else."""

from __future__ import annotations

import faulthandler
import math
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from model_artifacts.errors import (
    ArtifactError,
    CrashedError,
    KilledError,
    OverdueError,
    one_line,
    out_of_memory,
    storage_errors,
)
from pipeline.system.forks import Surroundings, current_server
from pipeline.system.processes import KILLED, ask_to_end, describe_exit, live_with, release

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    from typing_extensions import TypeVarTuple, Unpack

    from pipeline.system.processes import Process

    Ts = TypeVarTuple("Ts")

T = TypeVar("T")

_TERM_SECONDS = 2.0
"""The grace period of a process that is asked to end; then it is killed."""
_EXIT_SECONDS = 10.0
"""The grace period of a process that is ending by itself: the driver frees its memory on the GPU."""
_LOOK_SECONDS = 1.0
_TAIL_BYTES = 1 << 16
_LINE_LENGTH = 200
_STACK_FRAME = re.compile(r'File ".*", line \d+ in ')
"""A line of a stack that faulthandler wrote; a traceback has a comma before the `in`."""
_NOISE = re.compile(
    r"Extension modules:|Current thread's C stack trace|Binary file \"|<truncated rest of calls>|<cannot get C stack"
)
"""Lines that faulthandler adds below a stack. Since Python 3.14 the C stack is among them; it stays in the log."""


def run_isolated(
    function: Callable[[Unpack[Ts]], T],
    *arguments: Unpack[Ts],
    rerun: str,
    timeout_seconds: float = math.inf,
    log: Path | None = None,
) -> T:
    """Run a function in a process of its own, which ends before this returns.

    Args:
        function: importable by its module's name. It, its arguments and its result can be pickled.
        arguments: the function's arguments.
        rerun: the command that repeats the work, for messages.
        timeout_seconds: the time limit, the start of the process included.
        log: the file that standard error of the process and of its native libraries is appended to; None keeps it for
            messages alone.

    Returns:
        the function's result.

    Raises:
        ArtifactError: the function raised it; type and message are the same.
        StorageError: the log cannot be written.
        KilledError: something outside has ended the process. The message has the log's last lines.
        OverdueError: it took too long. The message has the log's last lines.
        CrashedError: the process died, and the message has the log's last lines; or the function raised any other
            error, and the log has its traceback.
    """
    if log is None:
        with tempfile.TemporaryDirectory() as folder:
            own = Path(folder) / "stderr.log"
            return run_isolated(function, *arguments, rerun=rerun, timeout_seconds=timeout_seconds, log=own)
    process, ours = _started(log, rerun)
    with ours:
        try:
            done, value = _ask(process, ours, (function, arguments), timeout_seconds)
        except TimeoutError:
            ask_to_end(process, _TERM_SECONDS)
            headline = f"no result within the limit of {timeout_seconds:g} s"
            raise _crashed(headline, log, rerun, OverdueError) from None
        except EOFError:
            process.join(_EXIT_SECONDS)
            error = KilledError if process.exitcode in KILLED else CrashedError
            raise _crashed(describe_exit(process.exitcode), log, rerun, error) from None
        else:
            process.join(_EXIT_SECONDS)
        finally:
            release(process, _EXIT_SECONDS)
    if done:
        return value  # type: ignore[no-any-return]  # the function's result
    raise value


def _started(log: Path, rerun: str) -> tuple[Process, Connection]:
    """Start the process, in which nothing of this one is left, least of all a CUDA context."""
    if server := current_server():
        return server.fork(_serve, (log, rerun), surroundings=Surroundings.here(title=rerun))
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_spawned, args=(theirs, os.getpid(), log, rerun))
    with theirs:  # so that our end notices when the other end closes
        try:
            with _interrupts_held():
                process.start()
        except BaseException:
            ours.close()
            release(process, _EXIT_SECONDS)
            raise
    return process, ours


def last_lines(log: Path, count: int = 5) -> list[str]:
    """Return the last lines of a log that have content, each cut to 200 characters; none if it cannot be read.

    Of a stack that faulthandler wrote only the innermost frame counts, so that earlier lines are not crowded out.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    outer = [bool(_STACK_FRAME.match(a) and _STACK_FRAME.match(b)) for a, b in zip(["", *lines], lines, strict=False)]
    telling = [line for line, skip in zip(lines, outer, strict=True) if not skip]
    return [line[:_LINE_LENGTH] for line in telling if not _NOISE.match(line)][-count:]


def _crashed(headline: str, log: Path, rerun: str, error: type[CrashedError] = CrashedError) -> CrashedError:
    lines = "".join(f"\n{'':12}{line}" for line in last_lines(log)) or " nothing"
    return error(headline, got=f"last log lines:{lines}", fix=_fix(rerun))


def _fix(rerun: str) -> str:
    return f"run it by itself: {rerun}"


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Delay interrupts in this process and in one that it starts, so that neither is interrupted half-started.

    Another thread may still receive one. Then the new process gets no request, and ends by itself.
    """
    resource_tracker.ensure_running()  # if multiprocessing started it later, interrupts would be let in again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ask(process: Process, connection: Connection, request: object, seconds: float) -> tuple[bool, Any]:
    """Send a request, and return (True, result) or (False, error).

    Raises:
        EOFError: the process has ended without an answer.
        TimeoutError: it has not answered in time.
    """
    deadline = time.monotonic() + seconds
    with suppress(ConnectionError):  # its last message may still be there
        connection.send(request)
    while (left := deadline - time.monotonic()) > 0:
        if connection.poll(min(left, _LOOK_SECONDS)):
            try:
                return connection.recv()  # type: ignore[no-any-return]  # sent by `_serve`
            except OSError as exc:  # it died in the middle of its answer
                raise EOFError from exc
        # Processes that it has started may hold the connection open after its end, hence this check.
        if not process.is_alive() and not connection.poll():
            raise EOFError
    raise TimeoutError


def step_environment(*, timed: bool) -> dict[str, str]:
    """Return the environment variables of a step that this process starts.

    A timed step runs as a user's process would. Others work side by side. There the threads of OpenMP sleep while they
    wait: by default they keep the processors from other steps, and two steps on two cores took ten times as long. And
    glibc keeps freed memory, because giving back every large tensor costs a tenth of their time. Every step may leave
    bytecode: without it, each would compile torch again where PYTHONDONTWRITEBYTECODE is set, as in most containers.
    """
    common = dict(os.environ)
    common.pop("PYTHONDONTWRITEBYTECODE", None)
    if timed:
        return common
    keep = str(2**32)
    untimed = {"OMP_WAIT_POLICY": "passive", "MALLOC_MMAP_THRESHOLD_": keep, "MALLOC_TRIM_THRESHOLD_": keep}
    return {**untimed, **common}


def _spawned(connection: Connection, parent: int, log: Path, rerun: str) -> None:
    live_with(parent)
    _serve(connection, log, rerun)


def _serve(connection: Connection, log: Path, rerun: str) -> None:
    """Run in the new process: receive (function, arguments), send (True, result) or (False, error)."""
    try:
        with storage_errors(f"writing {log}"):
            descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(descriptor, 2)
        os.close(descriptor)
        faulthandler.enable(all_threads=False)
        faulthandler.register(signal.SIGTERM, all_threads=False, chain=True)  # a hang leaves its stack in the log
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
        function, arguments = connection.recv()
        connection.send((True, function(*arguments)))
    except ArtifactError as exc:
        connection.send((False, exc))
    except Exception as exc:  # noqa: BLE001 - the parent must receive any library's error
        traceback.print_exc(file=sys.stderr)
        connection.send((False, out_of_memory(exc) or CrashedError(f"it raised {one_line(exc)}", fix=_fix(rerun))))
