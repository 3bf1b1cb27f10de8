"""Who works on a GPU: what is timed alone, everything else side by side."""

from __future__ import annotations

import logging
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

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
