"""The process of a fork server: `python -m pipeline.system.fork_server REQUESTS ASKING`, started by `forks`.

It has one thread, waits for requests, and imports and forks. It ends with the process that has started it, and with it
end its children.
"""

from __future__ import annotations

import gc
import importlib
import json
import multiprocessing
import os
import select
import signal
import socket
import sys
import warnings
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, NamedTuple

import setproctitle

from pipeline.system import forks
from pipeline.system.processes import end_with

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess
    from types import FrameType

    from pipeline.system.forks import Surroundings

_FORK = multiprocessing.get_context("fork")
_LARGEST_REQUEST = 1 << 16
"""Bytes."""
_DESCRIPTORS = 4
"""Of a request: the child's connection, the server's reports, standard output and standard error."""
_SIGNALS = (signal.SIGCHLD, signal.SIGTERM)
"""Those that the server waits for: a child has ended, and the server shall end."""


class _Request(NamedTuple):
    """A wish for a child."""

    connection: int
    """The descriptor of the child's end."""
    reports: Connection
    """Takes the number of the process and its exit status; signals for it come back. Its end kills the child."""
    output: tuple[int, int]
    """The descriptors of the child's standard output and standard error."""
    modules: tuple[str, ...]
    """Those to import before."""
    takes_interrupts: bool
    """Whether Ctrl-C, and a signal to end that the server receives, are the child's, too."""

    @classmethod
    def received(cls, requests: socket.socket) -> _Request:
        """Receive the next one."""
        message, (connection, reports, out, error), _, _ = socket.recv_fds(requests, _LARGEST_REQUEST, _DESCRIPTORS)
        said = json.loads(message)
        return cls(connection, Connection(reports), (out, error), tuple(said["modules"]), said["takes_interrupts"])

    def close(self) -> None:
        """Close the descriptors that are the child's alone."""
        for descriptor in (self.connection, *self.output):
            os.close(descriptor)


class _Child(NamedTuple):
    """A child that runs."""

    process: BaseProcess
    request: _Request
    owned: bool = True
    """False once the process has ended that asked for it."""


class Server:
    """The loop of the server."""

    def __init__(self, requests: socket.socket, asking: socket.socket) -> None:
        """Create it.

        Args:
            requests: the socket that requests come from.
            asking: the other end, which children inherit.
        """
        self._requests = requests
        self._asking = asking
        self._children: dict[int, _Child] = {}
        self._asked_to_end = False
        self._interrupts = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's reach the children, too
        self._signals, self._woken = socket.socketpair()
        for end in (self._signals, self._woken):
            end.settimeout(0)
        signal.set_wakeup_fd(self._woken.fileno())
        for number in _SIGNALS:
            signal.signal(number, _wake)

    def serve(self) -> None:
        """Fork a child for each request, until the process ends that this server belongs to."""
        while self._children or not self._asked_to_end:
            reports = {child.request.reports.fileno(): pid for pid, child in self._children.items() if child.owned}
            waiting = select.poll()
            for descriptor in (0, self._requests.fileno(), self._signals.fileno(), *reports):
                waiting.register(descriptor, select.POLLIN)
            ready = {descriptor for descriptor, _ in waiting.poll()}
            if 0 in ready and not os.read(0, 1):
                break
            if self._signals.fileno() in ready:
                self._take_signals()
            for descriptor in ready & set(reports):
                self._relay(reports[descriptor])
            if self._requests.fileno() in ready:
                self._answer(_Request.received(self._requests))
        signal.set_wakeup_fd(-1)
        for end in (self._signals, self._woken):
            end.close()
        for child in self._children.values():
            child.process.kill()

    def _take_signals(self) -> None:
        if signal.SIGTERM in self._signals.recv(1 << 10):
            self._asked_to_end = True
            for child in self._children.values():
                if child.request.takes_interrupts:
                    child.process.terminate()
        for pid, child in list(self._children.items()):
            if (status := child.process.exitcode) is not None:
                del self._children[pid]
                child.process.close()
                with child.request.reports as reports, suppress(OSError):  # its owner may have ended
                    reports.send(status)

    def _relay(self, pid: int) -> None:
        """Send a child the signal that its owner asks for; kill it where the owner has ended."""
        if (child := self._children.get(pid)) is None:  # it has ended meanwhile
            return
        try:
            os.kill(pid, child.request.reports.recv())
        except (EOFError, OSError):
            child.process.kill()
            self._children[pid] = child._replace(owned=False)

    def _answer(self, request: _Request) -> None:
        """Import what a request names, fork, and tell the number of the child, or the reason why there is none."""
        answer = "the run was interrupted" if self._asked_to_end else self._fork(request)
        with suppress(OSError):  # the owner has ended meanwhile, and the next round notices
            request.reports.send(answer)
        if isinstance(answer, str):
            request.reports.close()
        request.close()

    def _fork(self, request: _Request) -> int | str:
        for name in request.modules:
            with suppress(Exception):  # the child imports it, too, and says so
                importlib.import_module(name)
        gc.freeze()  # a collection in the child would copy the memory of all that is imported
        process = _FORK.Process(target=self._work, args=(os.getpid(), request))
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # in the child until it has its own handlers
        try:
            with warnings.catch_warnings():
                # Since Python 3.12. The other threads are OpenBLAS's, which ends them before a fork.
                warnings.filterwarnings("ignore", "This process.*is multi-threaded", DeprecationWarning)
                process.start()
        except OSError as exc:  # too many processes, or too little memory
            return exc.strerror or str(exc)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        number = process.pid or 0
        self._children[number] = _Child(process, request)
        return number

    def _work(self, server: int, request: _Request) -> None:
        """Do the job of a child, in the child."""
        self._become_a_child(server, request)
        with Connection(request.connection) as connection:
            surroundings: Surroundings = connection.recv()
            os.chdir(surroundings.folder)
            os.environ.clear()
            os.environ.update(surroundings.environment)
            if surroundings.path is not None:
                sys.path[:] = surroundings.path
            if surroundings.title:
                setproctitle.setproctitle(surroundings.title)
            function, arguments = connection.recv()  # of modules that may lie on that path
            function(connection, *arguments)

    def _become_a_child(self, server: int, request: _Request) -> None:
        """Leave everything behind that is the server's alone."""
        end_with(server, signal.SIGKILL)
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        if request.takes_interrupts:
            signal.signal(signal.SIGINT, self._interrupts)
        for end in (self._requests, self._signals, self._woken, request.reports):
            end.close()
        for child in self._children.values():
            child.request.reports.close()
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (request.output[0], 1), (request.output[1], 2)):
            os.dup2(source, target)
            os.close(source)
        # The server's streams may believe that they write to a file, in which they can seek.
        sys.stdout = open(1, "w", encoding=sys.stdout.encoding, closefd=False)  # noqa: SIM115 - for good
        sys.stderr = open(2, "w", 1, sys.stderr.encoding, "backslashreplace", closefd=False)  # noqa: SIM115
        forks.inherit(self._asking)


def _wake(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the signal's number is written to the descriptor that the loop looks at."""


def main() -> None:
    """Serve."""
    requests, asking = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    for end in (requests, asking):
        end.set_inheritable(False)
    setproctitle.getproctitle()  # it looks for the place of the title, while the environment is as it was
    with requests, asking:
        Server(requests, asking).serve()


if __name__ == "__main__":
    main()
