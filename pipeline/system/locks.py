"""Locks of a host and of its GPUs: timed work runs alone, everything else side by side."""

from __future__ import annotations

import logging
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from model_artifacts.errors import listed, shortened, storage_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model_artifacts.records import Gpu

log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 2.0


@contextmanager
def working(*, alone: bool) -> Iterator[None]:
    """Work on this host: beside other steps, or alone for timed work, whose results other threads would change.

    Always acquired before a GPU's lock, so that two processes do not wait for each other.

    Raises:
        StorageError: the lock's file cannot be written.
    """
    with _locked("host", "this host", alone=alone):
        yield


@contextmanager
def exclusive(gpu: Gpu | None) -> Iterator[None]:
    """Hold a GPU alone, so that no other step works on it during timed work, a builder's timing of tactics included.

    The lock belongs to the host, not to the checkout: two checkouts or two users do not time on one GPU at once. It
    ends with the process that holds it.

    Args:
        gpu: the GPU; None holds nothing.

    Raises:
        StorageError: the lock's file cannot be written.
    """
    with _held(gpu, alone=True):
        yield


@contextmanager
def shared(gpu: Gpu | None) -> Iterator[None]:
    """Work on a GPU beside other untimed steps; only timed work excludes it.

    Args:
        gpu: the GPU; None holds nothing.

    Raises:
        StorageError: the lock's file cannot be written.
    """
    with _held(gpu, alone=False):
        yield


@contextmanager
def updating(file: Path) -> Iterator[None]:
    """Read and replace a file that other processes replace, too: one after the other, each for a moment.

    Raises:
        StorageError: the lock's file, beside the file, cannot be written.
    """
    from filelock import FileLock  # noqa: PLC0415 - it takes 0.1 s, which listing and planning save

    lock = FileLock(file.with_name(f".{file.name.lstrip('.')}.lock"))
    with storage_errors(f"locking {file}"):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _held(gpu: Gpu | None, *, alone: bool) -> Iterator[None]:
    if gpu is None:
        yield
        return
    with _locked(gpu.uuid, f"the {gpu.name}", alone=alone):
        yield


@contextmanager
def _locked(name: str, what: str, *, alone: bool) -> Iterator[None]:
    from filelock import ReadWriteLock, Timeout  # noqa: PLC0415 - it takes 0.1 s, which listing and planning save

    path = Path(tempfile.gettempdir()) / "pipeline-locks" / f"{name}.lock"
    with storage_errors(f"locking {path}"):
        _make_common(path)
        lock = ReadWriteLock(path, is_singleton=False)
        acquire = lock.acquire_write if alone else lock.acquire_read
        try:
            acquire(timeout=_PATIENCE_SECONDS)
        except Timeout:
            doing = "else works" if alone else "is timed"
            log.info("waiting for %s, on which something %s%s", what, doing, _named(_holders(path)))
            acquire()
    try:
        yield
    finally:
        lock.close()


def _named(commands: list[str]) -> str:
    return f": {listed(commands, most=3)}" if commands else ""


def _holders(path: Path) -> list[str]:
    """Return the commands of the other processes that hold a lock's file, as far as Linux tells them."""
    try:
        status = path.stat()
        table = Path("/proc/locks").read_text(encoding="ascii")
    except (OSError, ValueError):
        return []
    place = (os.major(status.st_dev), os.minor(status.st_dev), status.st_ino)
    fields = [line.split() for line in table.splitlines() if " -> " not in line]  # an arrow marks one that waits
    found = {int(item[4]) for item in fields if len(item) > 5 and _file_of(item[5]) == place}  # noqa: PLR2004 - proc(5)
    return [command for pid in sorted(found - {os.getpid()}) if (command := _command_of(pid))]


def _file_of(text: str) -> tuple[int, int, int]:
    """Return the numbers of a device and a file, from `fe:00:13656200`; the file's alone is decimal."""
    major, minor, inode = text.split(":")
    return int(major, 16), int(minor, 16), int(inode)


def _command_of(pid: int) -> str:
    """Return the command of a process, from the stage's name on; empty if it has ended."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace").replace("\0", " ")
    except OSError:
        return ""
    shown = (text.partition(" -m pipeline ")[2] or text).strip()
    plain = "".join(letter if letter.isprintable() else "?" for letter in shown)  # another user's, perhaps
    return f"`{shortened(plain, 100)}` (process {pid})" if plain else ""


def _make_common(path: Path) -> None:
    """Create a file that every user may open: in a sticky folder such as /tmp, others' files could not be opened."""
    folder = path.parent
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)
    if not path.exists():
        path.touch()
        path.chmod(0o666)
