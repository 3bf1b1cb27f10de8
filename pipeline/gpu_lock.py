"""Who works on a GPU: one of us at a time, and whether anybody else does."""

from __future__ import annotations

import logging
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.environment import missing_driver
from pipeline.errors import storage_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.records import Gpu

log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 2.0


@contextmanager
def exclusive(gpu: Gpu | None) -> Iterator[None]:
    """Hold a GPU alone: nothing else of ours works on it while something is timed, a builder's own tactics included.

    The lock is the host's, not the checkout's: two checkouts, or two users, do not time on one GPU at once. It ends
    with the process that holds it.

    Args:
        gpu: which; None holds nothing.

    Raises:
        StorageError: the lock's file cannot be written.
    """
    with _held(gpu, alone=True):
        yield


@contextmanager
def shared(gpu: Gpu | None) -> Iterator[None]:
    """Work on a GPU beside others who do: only what is timed is kept waiting, and waited for.

    Args:
        gpu: which; None holds nothing.

    Raises:
        StorageError: the lock's file cannot be written.
    """
    with _held(gpu, alone=False):
        yield


@contextmanager
def _held(gpu: Gpu | None, *, alone: bool) -> Iterator[None]:
    if gpu is None:
        yield
        return
    from filelock import ReadWriteLock, Timeout  # noqa: PLC0415 - hosts without a GPU do without

    path = Path(tempfile.gettempdir()) / "pipeline-gpu-locks" / f"{gpu.uuid}.lock"
    with storage_errors(f"locking {path}"):
        _make_common(path)
        lock = ReadWriteLock(path, is_singleton=False)
        acquire = lock.acquire_write if alone else lock.acquire_read
        try:
            acquire(timeout=_PATIENCE_SECONDS)
        except Timeout:
            log.info("waiting for the %s, on which something %s", gpu.name, "else works" if alone else "is timed")
            acquire()
    try:
        yield
    finally:
        lock.close()


def _make_common(path: Path) -> None:
    """Make a file that every user may open; a sticky folder, as /tmp is, would keep others' files closed."""
    folder = path.parent
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)
    if not path.exists():
        path.touch()
        path.chmod(0o666)


def others(gpu: Gpu, ours: frozenset[int]) -> tuple[str, ...]:
    """Return the processes that compute on a GPU and are not `ours`, with the memory that they hold.

    Args:
        gpu: which.
        ours: process ids that do not count; this process is always one.
    """
    if missing_driver():
        return ()
    import pynvml  # noqa: PLC0415 - hosts without a driver do without

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
        found = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError as exc:
        return (f"unknown: NVML does not tell ({exc})",)
    memory = {process.pid: (process.usedGpuMemory or 0) / 2**20 for process in found}
    strange = set(memory) - ours - {os.getpid()}
    if strange and not strange < set(memory):  # none of ours is among them: NVML sees another PID namespace
        count = len(memory) - len(ours)
        return (f"processes outside this container: {count}",) if count > 0 else ()
    return tuple(f"process {pid} with {memory[pid]:.0f} MiB" for pid in sorted(strange))
