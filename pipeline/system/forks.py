"""Forks: children of a process that has imported the modules that steps share, which take seconds to import.

A fork server belongs to one process, a doit or a test run, and ends with it. It never touches CUDA. Its children may
ask it for more children. multiprocessing's own fork server is not used: a child of it that wants a process starts a
second server, which imports everything once more, and its processes outlive a killed parent.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.errors import KilledError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from multiprocessing.connection import Connection
    from typing import Any

SHARED = ("torch", "torchvision", "onnx", "onnxscript")
"""The modules that most steps import. None of them starts threads of its own, which a child would lack, or looks at the
driver; ONNX Runtime and TensorRT do.
"""
_RELEASED_SECONDS = 10.0


class Surroundings(NamedTuple):
    """The state of a process that a child shares with the one that asked for it."""

    folder: str
    """The working directory."""
    environment: dict[str, str]
    path: list[str] | None
    """Python's path of modules; None for that of a new process."""
    takes_interrupts: bool
    """Whether Ctrl-C reaches the child, unless it is ignored by all, as for work in the background."""
    title: str
    """The command line that tools such as `ps` show; an empty text leaves the server's."""

    @classmethod
    def here(cls, title: str = "") -> Surroundings:
        """Return those of this process, for a child that leaves Ctrl-C to it."""
        return cls(str(Path.cwd()), dict(os.environ), list(sys.path), takes_interrupts=False, title=title)

    @classmethod
    def of_step(cls, environment: dict[str, str], title: str) -> Surroundings:
        """Return those of a step in this folder, which finds modules as its command would, and takes Ctrl-C."""
        return cls(str(Path.cwd()), environment, None, takes_interrupts=True, title=title)


class ForkedProcess:
    """A child of the server, with the interface of `multiprocessing.Process`; closing it kills the child."""

    def __init__(self, pid: int, status: Connection) -> None:
        self.pid = pid
        self._status = status
        self._exitcode: int | None = None

    @property
    def exitcode(self) -> int | None:
        """The exit status; negative for the signal that has ended the process, None while it runs."""
        self.join(0)
        return self._exitcode

    def is_alive(self) -> bool:
        """Return whether the process runs."""
        return self.exitcode is None

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end of the process, at most for a time in seconds."""
        if self._exitcode is None and self._status.poll(timeout):
            try:
                self._exitcode = self._status.recv()
            except (EOFError, OSError):  # the server was killed, and its children with it
                self._exitcode = -signal.SIGKILL

    def terminate(self) -> None:
        """Ask the process to end."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the process."""
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        """Have the server send a signal: it knows whether the process's number still is this process."""
        if self.is_alive():
            with suppress(OSError):  # the server is gone
                self._status.send(number)

    def close(self) -> None:
        """Free the connection; a process that still runs is killed by that."""
        self._status.close()


class ForkServer:
    """The way to a fork server, which starts with the first child."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """Create it.

        Args:
            environment: that of the server. Native libraries of its children see this one, whatever theirs says.
        """
        self._environment = environment
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    @classmethod
    def inherited(cls, control: socket.socket) -> ForkServer:
        """Return the way from a child to the server that has forked it."""
        server = cls()
        server._control = control
        return server

    def fork(
        self,
        function: Callable[..., object],
        arguments: tuple[Any, ...],
        *,
        modules: Sequence[str] = (),
        surroundings: Surroundings | None = None,
        output: tuple[int, int] = (1, 2),
    ) -> tuple[ForkedProcess, Connection]:
        """Start a function in a child of the server.

        Args:
            function: importable by its module's name. It is called with the child's end of the connection and the
                arguments, and may raise SystemExit.
            arguments: they can be pickled.
            modules: those that the server imports before, for this child and all later ones, as far as it can.
            surroundings: None for those of this process.
            output: the descriptors of the child's standard output and standard error.

        Returns:
            the child, and this process's end of the connection.

        Raises:
            KilledError: the server was ended, or the system starts no more processes.
        """
        surroundings = surroundings or Surroundings.here()
        request = json.dumps({"modules": list(modules), "takes_interrupts": surroundings.takes_interrupts})
        ours, theirs = Pipe()
        status, reports = Pipe()
        try:
            with theirs, reports, suppress(ConnectionError):  # the server has just ended, and its answer is missing
                descriptors = [theirs.fileno(), reports.fileno(), *output]
                socket.send_fds(self._connected(), [request.encode()], descriptors)
            child = ForkedProcess(_started(status), status)
            with suppress(ConnectionError):  # it has ended already, and its exit status tells
                ours.send(surroundings)
                ours.send((function, arguments))
        except BaseException:
            ours.close()
            status.close()
            raise
        return child, ours

    def _connected(self) -> socket.socket:
        """Return the socket for requests, of a server that runs."""
        with self._lock:
            if self._process and self._process.poll() is not None:
                self._release()
            if self._control is None:
                self._control = self._start()
            return self._control

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            numbers = (theirs.fileno(), ours.fileno())
            self._process = subprocess.Popen(  # noqa: S603 - this package's own command
                [sys.executable, "-m", "pipeline.system.fork_server", *map(str, numbers)],
                stdin=subprocess.PIPE,  # its end tells the server of the end of this process
                pass_fds=numbers,
                env=self._environment,
            )
        return ours

    def close(self) -> None:
        """End the server, and with it all children that still run."""
        with self._lock:
            self._release()

    def _release(self) -> None:
        if self._control:
            self._control.close()
        self._control = None
        if self._process and self._process.stdin:
            self._process.stdin.close()
            try:
                self._process.wait(_RELEASED_SECONDS)
            except subprocess.TimeoutExpired:  # in the middle of an import
                self._process.kill()
                self._process.wait()
        self._process = None


def _started(status: Connection) -> int:
    """Wait for the start of a child, and return its process number."""
    try:
        answer = status.recv()
    except (EOFError, ConnectionError):
        raise KilledError("the process that starts steps was ended", fix="run it again") from None
    if isinstance(answer, str):
        raise KilledError(f"no process can be started: {answer}", fix="end others, or allow more: `ulimit -u`")
    return int(answer)


_current: ForkServer | None = None


def current_server() -> ForkServer | None:
    """Return the server that this process belongs to or has; None without one."""
    return _current


def inherit(control: socket.socket) -> None:
    """Have a child of a server ask that server for its own children."""
    global _current  # noqa: PLW0603 - one to a process
    _current = ForkServer.inherited(control)


@contextmanager
def forking(server: ForkServer) -> Iterator[ForkServer]:
    """Have isolated work of this process run in a server's children, and end the server."""
    global _current  # noqa: PLW0603 - the same
    before, _current = _current, server
    try:
        yield server
    finally:
        _current = before
        server.close()
