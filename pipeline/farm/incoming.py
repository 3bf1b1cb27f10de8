"""The bytes of a worker's results → files, each checked against its announced size and digest."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from model_artifacts.errors import FarmError, storage_errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from model_artifacts.records import FileRecord


class Incoming:
    """The bytes of a worker's results: one file after another, in pieces that do not end with the files."""

    def __init__(self, items: Iterator[str | bytes]) -> None:
        """Begin before the first file.

        Args:
            items: the pieces; a message among them ends the files.
        """
        self._items = items
        self._rest = memoryview(b"")

    def receive(self, file: FileRecord, path: Path) -> None:
        """Write the next file.

        Args:
            file: the announced size and digest.
            path: the place of the file.

        Raises:
            FarmError: the bytes have another size or digest.
            StorageError: the file cannot be written.
        """
        digest, left = hashlib.sha256(), file.bytes
        with storage_errors(f"writing {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as out:
                while left and (piece := self._take(left)):
                    left -= len(piece)
                    digest.update(piece)
                    out.write(piece)
                out.flush()
                os.fsync(out.fileno())
            path.chmod(0o644)
        if left or digest.hexdigest() != file.sha256:
            raise FarmError(
                f"{file.path} arrived with other bytes than its worker announced; nothing of the step was kept",
                expected=f"{file.bytes:,} bytes, SHA-256 {file.sha256}",
                got=f"{file.bytes - left:,} bytes, SHA-256 {digest.hexdigest()}",
                fix="run the step again; if this repeats, check that machine's memory and disk",
            )

    def end(self) -> None:
        """Check that no bytes follow the announced files.

        Raises:
            FarmError: bytes follow them.
        """
        if self._rest:
            raise FarmError("more bytes arrived than the worker announced; nothing of the step was kept")

    def _take(self, most: int) -> memoryview:
        """Return up to `most` of the next bytes. Empty at the end."""
        if not self._rest:
            item = next(self._items, None)
            self._rest = memoryview(item if isinstance(item, bytes) else b"")
        piece, self._rest = self._rest[:most], self._rest[most:]
        return piece
