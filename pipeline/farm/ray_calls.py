"""Calls of Ray: connections, waits, the functions that run as its tasks, and the translation of its errors."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from model_artifacts import __version__
from model_artifacts.errors import ArtifactError, FarmError, LostWorkerError, one_line, shortened
from pipeline.farm.parcels import CODE, Parcel, code_folders
from pipeline.farm.worker import work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from pipeline.farm.cluster import Node


_LOOK_SECONDS = 5.0
"""Interval of the checks during a wait, such as that of the time limit."""

TRY_SECONDS = 40.0
"""The time that Ray takes to notice a missing answer."""

NO_ANSWER = "check that the machine is up and reachable, or raise farm.connect_timeout_seconds"
"""The fix for an answer that does not arrive in time."""

_NAMESPACE = f"model-artifact-pipeline-{__version__}"


def on_node(node: Node) -> object:
    """Return the scheduling strategy that runs a task on a node and nowhere else."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415 - see `connect`

    return NodeAffinitySchedulingStrategy(node.id, soft=False)


def wait_for(ray: Any, item: Any, doing: str, look: Callable[[], None]) -> None:  # noqa: ANN401 - Ray's
    """Wait until an object is on this machine.

    Args:
        ray: the module.
        item: the object's reference, or a task's generator.
        doing: the purpose, for messages: "running a step".
        look: called every few seconds; an exception ends the wait.

    Raises:
        LostWorkerError: the worker or its node is gone.
        FarmError: Ray failed in another way.
    """
    ready: list[Any] = []
    while not ready:
        look()
        with ray_errors(doing):
            ready, _ = ray.wait([item], timeout=_LOOK_SECONDS)


def get_value(ray: Any, reference: Any, doing: str, look: Callable[[], None]) -> Any:  # noqa: ANN401 - of any type
    """Return an object's value, which may come from another machine.

    Args:
        ray: the module.
        reference: the object's.
        doing: the purpose, for messages: "running a step".
        look: called every few seconds; an exception ends the wait.

    Raises:
        LostWorkerError: the worker or its node is gone.
        FarmError: the task or Ray failed in another way.
    """
    while True:
        look()
        with ray_errors(doing), suppress(ray.exceptions.GetTimeoutError):
            return ray.get(reference, timeout=_LOOK_SECONDS)


def remote_work(text: str, small: bytes, large: list[list[Any]]) -> Iterator[str | bytes]:
    """Run a parcel as a Ray task: `work`, with inputs from Ray's object store."""
    import ray  # noqa: PLC0415 - only the worker needs it here

    node = ray.get_runtime_context().get_node_id()
    yield from work(Parcel.model_validate_json(text), small, lambda number: map(ray.get, large[number]), node)


def remote_probe() -> str:
    """Return the output of `model-artifacts host` on this machine, as a Ray task.

    A process of its own describes the machine, with all GPUs visible to CUDA.

    Raises:
        FarmError: that process failed.
    """
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-m", "model_artifacts", "host"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603 - ours
    if done.returncode != 0:
        raise FarmError(
            f"{platform.node()} cannot describe itself: its command `host` failed",
            got=done.stderr.strip()[-500:],
        )
    return done.stdout


def check_reachable(address: str, timeout_seconds: float, own: str) -> None:
    """Check that a Ray head answers, because Ray itself would try for minutes.

    Args:
        address: the head's `host:port`.
        timeout_seconds: the longest wait.
        own: this machine's address, as Ray takes it in place of localhost.

    Raises:
        FarmError: nothing answers, or the address has another form.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise FarmError(f"farm.address takes host:port or auto, got {address}")
    used = own if host in {"localhost", "127.0.0.1", "::1"} else host  # as Ray replaces it
    try:
        socket.create_connection((used, int(port)), timeout=timeout_seconds).close()
    except OSError as exc:
        raise FarmError(
            f"no Ray cluster answers at {used}:{port}",
            got=one_line(exc),
            fix="start its head with `ray start --head`, or correct farm.address",
        ) from exc


def sent_code(empty: str) -> dict[str, object]:
    """Return the `runtime_env` that sends both packages of this process to the workers.

    Ray puts the sent folders first on the PYTHONPATH of a worker, and the processes of its steps inherit that.

    Args:
        empty: an empty folder, which becomes the workers' current folder. Without a `working_dir`, Ray puts the
            driver's current folder first on the workers' `sys.path`. A checkout at the same path on a worker would then
            shadow the code that was sent.
    """
    # Ray matches a package's own folder as ".". "*" and "*.*" match it, too, and Ray then sends an empty package.
    excludes = ["?*.?*", *(f"!{pattern}" for pattern in CODE), "__pycache__"]
    return {"py_modules": [str(folder) for folder in code_folders()], "working_dir": empty, "excludes": excludes}


def join(ray: Any, address: str) -> None:  # noqa: ANN401 - Ray
    """Join a cluster as a driver, and send the code that its workers run.

    Raises:
        FarmError: no cluster answers, or it has another version of Ray or of Python.
    """
    try:
        with tempfile.TemporaryDirectory() as empty:
            ray.init(
                address=address,
                namespace=_NAMESPACE,
                runtime_env=sent_code(empty),
                log_to_driver=False,
                logging_level="ERROR",
            )
    except Exception as exc:  # RuntimeError, ConnectionError, ValueError: Ray has no one type for it
        text = " ".join(str(exc).split())
        skew = "ersion mismatch" in text
        raise FarmError(
            "the cluster has another version of Ray or of Python" if skew else f"cannot join the cluster at {address}",
            expected=f"Ray {ray.__version__} and Python {platform.python_version()}, as here" if skew else "",
            got=shortened(text, 500),
            fix="install the same versions on every machine"
            if skew
            else "this machine must be a node of the cluster: "
            "`ray start --address=HOST:PORT --num-cpus=0` makes it one that gives no CPUs",
        ) from exc


@contextmanager
def keep_signals() -> Iterator[None]:
    """Restore the handlers of SIGTERM after the block.

    Ray replaces Python's handler, and from any thread also the C handler below it.
    """
    before = signal.getsignal(signal.SIGTERM)
    get, put = ctypes.pythonapi.PyOS_getsig, ctypes.pythonapi.PyOS_setsig
    get.restype = put.restype = ctypes.c_void_p
    below = get(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
        put(signal.SIGTERM, ctypes.c_void_p(below))  # else Ray prints a stack trace before this project's message


@contextmanager
def ray_errors(doing: str) -> Iterator[None]:
    """Translate Ray's errors.

    Args:
        doing: the purpose, for messages: "running a step".

    Raises:
        LostWorkerError: the worker or its node is gone.
        FarmError: the task or Ray failed in another way.
    """
    from ray import exceptions  # noqa: PLC0415 - see `connect`

    lost = (
        exceptions.WorkerCrashedError,
        exceptions.NodeDiedError,
        exceptions.OutOfMemoryError,
        exceptions.ObjectLostError,
        exceptions.LocalRayletDiedError,
        exceptions.ActorDiedError,
        exceptions.ActorUnavailableError,
    )
    try:
        yield
    except lost as exc:
        raise LostWorkerError(f"{doing}: the worker was lost", got=one_line(exc)) from exc
    except exceptions.TaskCancelledError as exc:
        raise FarmError(f"{doing}: it was cancelled") from exc
    except exceptions.GetTimeoutError as exc:
        raise FarmError(f"{doing}: no answer in time", fix=NO_ANSWER) from exc
    except exceptions.RayTaskError as exc:
        cause = exc.cause if isinstance(exc.cause, Exception) else exc
        if isinstance(cause, ArtifactError):
            raise FarmError(str(cause)) from exc
        if isinstance(cause, ImportError):
            raise FarmError(
                f"{doing}: the machine lacks a package",
                got=one_line(cause),
                fix=f"install model-artifacts {__version__} with its extra `farm` on every machine of the farm",
            ) from exc
        raise FarmError(f"{doing}: an unexpected error on the worker", got=one_line(cause)) from exc
    except (exceptions.RayError, ConnectionError) as exc:
        raise FarmError(f"{doing} failed", got=one_line(exc)) from exc
