"""The run of a parcel on a worker: it lays out the files, runs the command, and returns output and results.

The module does not depend on the cluster. A function returns the inputs, and an iterator yields the messages.

    <temporary folder>/pipeline-farm-<user>/blobs/<SHA-256>   large inputs, each hashed once and kept for later parcels
    <temporary folder>/pipeline-farm-<user>/timing-cache/     kernel timings of this machine
    <temporary folder>/pipeline-farm-<user>/work/<process>-…  a command's folder, removed after it
"""

from __future__ import annotations

import hashlib
import os
import platform
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from model_artifacts.errors import ArtifactError, FarmError, StorageError, storage_errors
from model_artifacts.host.files import replacing
from model_artifacts.host.hashes import describe_file
from pipeline.farm.parcels import (
    ARTIFACTS,
    Began,
    Completed,
    PrintedLine,
    Refused,
    code_folders,
    is_small,
    this_package,
)
from pipeline.system.digests import digests_in
from pipeline.system.isolation import step_environment
from pipeline.system.processes import end_command

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from model_artifacts.records import FileRecord
    from pipeline.farm.parcels import Parcel

    Content = Callable[[int], Iterable[bytes]]
    """The index of one of a parcel's large files → its bytes, in pieces."""

CHUNK_BYTES = 16 * 2**20
"""The size of a piece of a large file."""
_INLINE_BYTES = 80_000
"""The size of a small piece. Ray puts 100 kB or more into shared memory first, which takes about 8 ms."""
_INLINE_PIECES = 8
"""The largest number of small pieces. More bytes travel faster in large pieces."""
_KEPT_BYTES = 20 * 2**30
"""The limit of kept inputs on a machine. The least recently used are removed first."""
_USED_SECONDS = 3600.0
"""The accuracy of an input's time of last use. Each update of the time costs another hash of the input."""
_LOOK_SECONDS = 0.1
"""The interval of the checks for a request to stop."""
TERM_SECONDS = 5.0
"""The time for a command to end after SIGTERM. Then it is killed."""


def work(parcel: Parcel, small: bytes, content: Content, node: str) -> Generator[str | bytes]:
    """Run a parcel's command.

    Args:
        parcel: the command and its files.
        small: the bytes of the small files, one after another.
        content: returns the bytes of a large file.
        node: the cluster's id of this machine.

    Yields:
        Messages as JSON: `Began`, a `PrintedLine` for every line, and `Completed`. The bytes of the results follow,
        one file after another, in pieces. After an error, `Refused` ends the messages.
    """
    yield Began(node=node).to_json()
    deadline = time.monotonic() + parcel.timeout_seconds
    try:
        if parcel.package != this_package():
            raise FarmError(
                "the worker runs other code than this driver has sent",
                expected=parcel.package,
                got=f"{this_package()} on {platform.node()}, from {', '.join(map(str, code_folders()))}",
                fix="start Ray there without a PYTHONPATH or a sitecustomize that has this package",
            )
        with _folder() as folder:
            _lay_out(parcel, small, content, folder)
            root = folder / ARTIFACTS
            before = _states(root)
            status = yield from _run(parcel, folder, deadline)
            after = _states(root)
            results = tuple(describe_file(path, root) for path in after if before.get(path) != after[path])
            yield Completed(status=status, files=results).to_json()
            few = sum(file.bytes for file in results) < _INLINE_PIECES * _INLINE_BYTES
            yield from pieces(*(root / file.path for file in results), size=_INLINE_BYTES if few else CHUNK_BYTES)
    except ArtifactError as exc:
        yield Refused(reason=str(exc)).to_json()


def _states(root: Path) -> dict[Path, tuple[int, int, int]]:
    """Return inode, size and time of change of every file below a folder, in the order of the paths.

    A write changes at least one of them.
    """
    states = {}
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if path.is_file() and not path.is_symlink() and not hidden:
            stat = path.stat()
            states[path] = stat.st_ino, stat.st_size, stat.st_mtime_ns
    return states


def pieces(*paths: Path, size: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Yield the bytes of files, one after another, in pieces of one size. The last piece may be smaller.

    Args:
        paths: the files.
        size: bytes of a piece.

    Raises:
        StorageError: a file cannot be read.
    """
    rest = b""
    for path in paths:
        with storage_errors(f"reading {path}"), path.open("rb") as file:
            while piece := file.read(size - len(rest)):
                rest += piece
                if len(rest) == size:
                    yield rest
                    rest = b""
    if rest:
        yield rest


def _home() -> Path:
    """Return this user's folder on the machine."""
    return Path(tempfile.gettempdir()) / f"pipeline-farm-{os.getuid()}"


@contextmanager
def _folder() -> Iterator[Path]:
    """Hand out an empty folder and remove it after the block. Folders of killed workers are removed, too."""
    parent = _home() / "work"
    with storage_errors(f"writing {parent}"):
        parent.mkdir(parents=True, exist_ok=True)
        for left in parent.iterdir():
            if not Path("/proc", left.name.partition("-")[0]).exists():
                shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _lay_out(parcel: Parcel, small: bytes, content: Content, folder: Path) -> None:
    """Write a parcel's files into a folder and check their digests.

    Raises:
        FarmError: a file's path leads out of the folder, or its bytes do not match its digest.
        StorageError: the folder cannot be written.
    """
    together, numbers = BytesIO(small), count()
    with storage_errors(f"writing {folder}"):
        for file in parcel.files:
            path = folder / file.path
            if ".." in path.parts or not path.is_relative_to(folder):
                raise FarmError(f"the path of a parcel's file leads out of its folder: {file.path}")
            path.parent.mkdir(parents=True, exist_ok=True)
            if is_small(file):
                data = together.read(file.bytes)
                _check(file, hashlib.sha256(data).hexdigest())
                path.write_bytes(data)
                continue
            blob, number = _home() / "blobs" / file.sha256, next(numbers)
            if not _copied(blob, path, file):
                _receive(content(number), blob, file)
                if not _copied(blob, path, file):
                    raise FarmError(
                        f"{file.path} arrived, but its copy on the disk of {platform.node()} is damaged",
                        fix="check that machine's disk and memory",
                    )
        artifacts = folder / ARTIFACTS
        if artifacts.is_dir():
            timings = _home() / "timing-cache"
            timings.mkdir(parents=True, exist_ok=True)
            (artifacts / "timing-cache").symlink_to(timings)


def _check(file: FileRecord, sha256: str) -> None:
    """Check the digest of a received input.

    Raises:
        FarmError: the digest is another.
    """
    if sha256 != file.sha256:
        raise FarmError(
            f"{file.path} arrived with other bytes than were sent", expected=file.sha256, got=f"SHA-256 {sha256}"
        )


def _copied(blob: Path, path: Path, file: FileRecord) -> bool:
    """Copy a kept input. Return False if it is missing or damaged."""
    try:
        if digests_in(_home() / "digests.sqlite3").sha256_of(blob) != file.sha256:
            return False
        shutil.copyfile(blob, path)
        if time.time() - blob.stat().st_mtime > _USED_SECONDS:
            os.utime(blob)
    except (FileNotFoundError, StorageError):
        return False
    return True


def _receive(pieces: Iterable[bytes], blob: Path, file: FileRecord) -> None:
    """Keep a received input.

    Raises:
        FarmError: the input has another digest.
    """
    digest = hashlib.sha256()
    with replacing(blob) as temporary:
        with temporary.open("wb") as out:
            for piece in pieces:
                digest.update(piece)
                out.write(piece)
        _check(file, digest.hexdigest())
    _make_room(blob.parent, keep=blob)


def _make_room(folder: Path, keep: Path) -> None:
    """Remove the least recently used inputs, if there are too many."""
    kept = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another worker may remove inputs at the same time
            stat = path.stat()
            kept.append((stat.st_mtime, stat.st_size, path))
    excess = sum(size for _, size, _ in kept) - _KEPT_BYTES
    for _, size, path in sorted(kept):
        if excess <= 0:
            return
        if path != keep:
            path.unlink(missing_ok=True)
            excess -= size


def _run(parcel: Parcel, folder: Path, deadline: float) -> Generator[str, None, int]:
    """Run the command, yield its output as messages, and return its exit status.

    Raises:
        FarmError: the command took too long and was ended.
    """
    process = subprocess.Popen(  # noqa: S603 - this package's own command
        [sys.executable, *parcel.command],
        cwd=folder,
        env=step_environment(timed=parcel.timed),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        with selectors.DefaultSelector() as selector:
            for stream, error in ((process.stdout, False), (process.stderr, True)):
                if stream:
                    selector.register(stream, selectors.EVENT_READ, _Lines(error=error))
            while selector.get_map():
                if time.monotonic() > deadline:
                    raise FarmError(
                        f"the step took longer than {parcel.timeout_seconds:g} s and was ended",
                        where=platform.node(),
                        fix="raise farm.step_timeout_seconds, or look in the step's output for the reason",
                    )
                for key, _ in selector.select(_LOOK_SECONDS):
                    data = os.read(key.fd, CHUNK_BYTES)
                    yield from (message.to_json() for message in key.data.take(data))
                    if not data:
                        selector.unregister(key.fileobj)
        return process.wait()
    finally:
        end_command(process, TERM_SECONDS)


class _Lines:
    """The bytes of a stream, split into whole lines."""

    def __init__(self, *, error: bool) -> None:
        self._error = error
        self._rest = b""

    def take(self, data: bytes) -> list[PrintedLine]:
        """Return the lines that are complete now. Empty data is the end, and completes the last line."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data and self._rest:
            lines.append(self._rest)
            self._rest = b""
        return [PrintedLine(error=self._error, line=line.decode(errors="replace")) for line in lines]
