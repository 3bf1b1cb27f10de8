"""Digests of files, kept between processes for as long as the files do not change: an engine is hashed once.

What is loaded or shipped is hashed anyway; this decides staleness only.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

from model_artifacts.errors import storage_errors
from model_artifacts.host.hashes import sha256_of

if TYPE_CHECKING:
    import os
    from pathlib import Path

_SETTLED_SECONDS = 2.0
"""A younger file may change again within the clock's grain, and look the same: git calls that racily clean."""
_SMALL_BYTES = 1 << 16
"""Hashing less takes no longer than asking."""
_BUSY_SECONDS = 5.0


class Digests:
    """A cache that many processes share; without it, or where it is damaged, everything is hashed."""

    def __init__(self, file: Path) -> None:
        """Name the cache's file; it is made when there is something to keep."""
        self._file = file
        self._lock = threading.Lock()
        self._known: sqlite3.Connection | None = None

    def sha256_of(self, path: Path) -> str:
        """Return the SHA-256 of a file's bytes, in hexadecimal.

        Raises:
            StorageError: it cannot be read.
        """
        with storage_errors(f"reading {path}"):
            stat = path.stat()
        if stat.st_size < _SMALL_BYTES or _is_young(stat.st_mtime):
            return sha256_of(path)
        look = repr(_look(stat))
        return self._kept(str(path), look) or self._keep(str(path), look, sha256_of(path))

    def sha256_of_folder(self, folder: Path) -> str:
        """Return the SHA-256 of the names and bytes of a folder's files, at any depth, in hexadecimal.

        Raises:
            StorageError: one of them cannot be read.
        """
        with storage_errors(f"reading {folder}"):
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            stats = [path.stat() for path in files]
        names = [path.relative_to(folder).as_posix() for path in files]
        seen = [(name, _look(stat)) for name, stat in zip(names, stats, strict=True)]
        look = hashlib.sha256(repr(seen).encode()).hexdigest()
        if kept := self._kept(str(folder), look):
            return kept
        digest = hashlib.sha256()
        for name, path in zip(names, files, strict=True):
            digest.update(f"{name}\0{sha256_of(path)}\0".encode())
        if any(_is_young(stat.st_mtime) for stat in stats):
            return digest.hexdigest()
        return self._keep(str(folder), look, digest.hexdigest())

    def _kept(self, path: str, look: str) -> str | None:
        with self._lock:
            try:
                row = self._open().execute("SELECT sha256 FROM digests WHERE path = ? AND look = ?", (path, look))
                found = row.fetchone()
            except sqlite3.OperationalError:  # not there, locked, or in a folder that cannot be written
                return None
            except sqlite3.DatabaseError:  # damaged: it is made anew
                self._known = None
                with suppress(OSError):
                    self._file.unlink(missing_ok=True)
                return None
            return str(found[0]) if found else None

    def _keep(self, path: str, look: str, digest: str) -> str:
        with self._lock, suppress(sqlite3.Error), self._open() as known:
            known.execute("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", (path, look, digest))
        return digest

    def _open(self) -> sqlite3.Connection:
        if self._known is None:
            # One connection for all threads, which the lock lets in one by one.
            known = sqlite3.connect(self._file, timeout=_BUSY_SECONDS, check_same_thread=False)
            known.execute("CREATE TABLE IF NOT EXISTS digests (path TEXT PRIMARY KEY, look TEXT, sha256 TEXT)")
            self._known = known
        return self._known


def _look(stat: os.stat_result) -> tuple[int, ...]:
    """Return what changes when a file does."""
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _is_young(changed: float) -> bool:
    """Return whether a file was changed so lately, or so far in the future, that it may look the same changed again."""
    return time.time() - changed < _SETTLED_SECONDS


@cache
def digests_in(file: Path) -> Digests:
    """Return this process's view of the cache in a file."""
    return Digests(file)
