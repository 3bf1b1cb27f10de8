"""Kernels that TensorRT-RTX compiled on this machine, kept for the next process: files that nothing depends on.

Such a runtime cache suits one engine, GPU, driver and version of the library, and its file is named after all four. No
failure here is an error: kernels that are missing or unusable are compiled anew, which takes seconds.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model_artifacts.errors import StorageError, one_line
from model_artifacts.host.files import write_bytes
from model_artifacts.host.plain_files import open_plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model_artifacts.records import Gpu

log = logging.getLogger(__name__)

_DIGEST_BYTES = hashlib.sha256().digest_size


def user_folder() -> Path | None:
    """Return this user's folder of kept kernels: below `$XDG_CACHE_HOME`, or else below `~/.cache`.

    None, with a warning, for a user without a home folder, as containers run under a number alone.
    """
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    except RuntimeError as exc:
        log.warning("no kernels are kept, unless XDG_CACHE_HOME or `kernel_cache` names a folder: %s", one_line(exc))
        return None
    return Path(home, "model-artifacts", "kernels")


def kept_kernels(folder: Path, engine_sha256: str, version: str, gpu: Gpu, driver: str) -> KeptKernels:
    """Return the place of an engine's kernels.

    Args:
        folder: the folder of all kept kernels.
        engine_sha256: the digest of the engine's file.
        version: the version of TensorRT-RTX.
        gpu: the GPU, of which the type counts.
        driver: the version of its driver.
    """
    facts = "\n".join((engine_sha256, version, gpu.name, str(gpu.compute_capability), driver))
    return KeptKernels(folder / f"{gpu.slug}-{hashlib.sha256(facts.encode()).hexdigest()[:32]}.kernels")


@dataclass(frozen=True)
class KeptKernels:
    """The file of an engine's kernels: their SHA-256, then the library's bytes."""

    path: Path
    """The file; it may be missing."""

    def read(self) -> bytes | None:
        """Return the kernels; None if there are none, or if they cannot be trusted, with a warning."""
        try:
            with open_plain(self.path) as file:  # never a pipe, which would block
                if os.fstat(file.fileno()).st_uid not in {os.geteuid(), 0}:
                    log.warning("%s belongs to another user, and is not loaded", self.path)
                    return None
                digest, kernels = file.read(_DIGEST_BYTES), file.read()
        except FileNotFoundError:
            return None
        except OSError as exc:
            log.warning("the kept kernels cannot be read, and are compiled anew: %s", one_line(exc))
            return None
        if hashlib.sha256(kernels).digest() != digest:
            log.warning("%s is damaged; its kernels are compiled anew", self.path)
            return None
        return kernels

    def keep(self, kernels: bytes) -> None:
        """Write kernels, unless as many are kept, or another process writes this very file. A failure is a warning."""
        try:
            with self._alone() as alone:
                if alone and len(self.read() or b"") < len(kernels):
                    write_bytes(self.path, hashlib.sha256(kernels).digest() + kernels)
        except (OSError, StorageError) as exc:
            log.warning("the kernels cannot be kept, and the next process compiles them again: %s", one_line(exc))

    def drop(self) -> None:
        """Remove kernels that the library refused."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as exc:
            log.warning("the kept kernels cannot be removed: %s", one_line(exc))

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Hold the file's lock, which ends with the process; False if another one holds it."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(handle)
