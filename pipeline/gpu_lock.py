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
    """Hold a GPU: whatever is timed, a builder's own tactics included, is timed alone.

    The lock is the host's, not the checkout's: two checkouts, or two users, do not time on one GPU at once. It ends
    with the process that holds it.

    Args:
        gpu: which; None holds nothing.

    Raises:
        StorageError: the lock's file cannot be written.
    """
    if gpu is None:
        yield
        return
    from filelock import FileLock, Timeout  # noqa: PLC0415 - hosts without a GPU do without

    path = Path(tempfile.gettempdir()) / "pipeline-gpu-locks" / f"{gpu.uuid}.lock"
    with storage_errors(f"locking {path}"):
        _make_common(path.parent)
        lock = FileLock(path, mode=0o666)
        try:
            lock.acquire(timeout=_PATIENCE_SECONDS)
        except Timeout:
            log.info("waiting for the %s, on which something else is timed", gpu.name)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make_common(folder: Path) -> None:
    """Make a folder in which every user may open every file; a sticky one, as /tmp is, keeps others' files closed."""
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)


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
