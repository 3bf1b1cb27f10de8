"""Digests of files, cached between processes until a file changes, so that an engine is hashed once.

They decide staleness only. Files that are loaded or released are always hashed.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
import weakref
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

from model_artifacts.errors import storage_errors
from model_artifacts.host.hashes import sha256_of

if TYPE_CHECKING:
    import os
    from pathlib import Path

_SETTLED_SECONDS = 2.0
"""The age from which an unchanged file is trusted. A younger one may change again within the clock's grain and look the
same (git's "racily clean").
"""
_SMALL_BYTES = 1 << 16
"""Smaller files are hashed directly: that takes no longer than a look into the cache."""
_BUSY_SECONDS = 5.0


class Digests:
    """A cache that many processes share. If it is missing or damaged, every file is hashed."""

    def __init__(self, file: Path) -> None:
        """Name the cache's file, which is created with the first digest."""
        self._file = file
        self._lock = threading.Lock()
        self._known: sqlite3.Connection | None = None

    def sha256_of(self, path: Path) -> str:
        """Return the SHA-256 of a file's bytes, in hexadecimal.

        Raises:
            StorageError: the file cannot be read.
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
            StorageError: one of the files cannot be read.
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
            except sqlite3.OperationalError:  # missing, locked, or in a folder that cannot be written
                return None
            except sqlite3.DatabaseError:  # damaged: start a new one
                if self._known is not None:
                    self._known.close()
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
            # All threads share one connection, one at a time by the lock.
            known = sqlite3.connect(self._file, timeout=_BUSY_SECONDS, check_same_thread=False)
            try:
                known.execute("CREATE TABLE IF NOT EXISTS digests (path TEXT PRIMARY KEY, look TEXT, sha256 TEXT)")
            except sqlite3.Error:
                known.close()
                raise
            weakref.finalize(self, known.close)  # Python 3.13 and later warn of a connection that nobody closes
            self._known = known
        return self._known


def _look(stat: os.stat_result) -> tuple[int, ...]:
    """Return the attributes that change when a file does."""
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _is_young(changed: float) -> bool:
    """Return true if a file changed so recently, or so far in the future, that another change might not show."""
    return time.time() - changed < _SETTLED_SECONDS


@cache
def digests_in(file: Path) -> Digests:
    """Return this process's instance of the cache in a file."""
    return Digests(file)
