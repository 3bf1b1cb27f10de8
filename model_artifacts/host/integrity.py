"""Artifact → a context manager that turns a batch into logits; knows of torch only once a module is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.errors import RunError
from model_artifacts.host.hashes import sha256_of

if TYPE_CHECKING:
    from pathlib import Path

    from model_artifacts.records import FileRecord


def verify(path: Path, file: FileRecord, fix: str) -> None:
    """Check a file before it is loaded: a damaged engine can crash the process that does, and a module holds code.

    Raises:
        RunError: it is not what was built; `fix` is the remedy that the message names.
        StorageError: it cannot be read.
    """
    if (got := sha256_of(path)) != file.sha256:
        raise RunError(
            f"{path} is damaged, or is not what was built",
            expected=f"SHA-256 {file.sha256}",
            got=f"SHA-256 {got}",
            fix=fix,
        )
