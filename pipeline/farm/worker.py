"""What a worker does with a parcel: lay out its files, run its command, tell what it says, give back what it makes.

It knows nothing of the cluster: inputs are what a function gives, and what it tells are the items of an iterator.

    <temporary folder>/pipeline-farm-<user>/blobs/<SHA-256>   large inputs, kept for later parcels, hashed once each
    <temporary folder>/pipeline-farm-<user>/timing-cache/     what builders have timed on this machine
    <temporary folder>/pipeline-farm-<user>/work/<process>-…  where a command runs; gone with it
"""

from __future__ import annotations

import hashlib
import os
import platform
import selectors
import shutil
import signal
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
from pipeline.farm.parcels import ARTIFACTS, Began, Completed, PrintedLine, Refused, is_small, this_package
from pipeline.system.digests import digests_in
from pipeline.system.isolation import step_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from model_artifacts.records import FileRecord
    from pipeline.farm.parcels import Parcel

    Content = Callable[[int], Iterable[bytes]]
    """The number of one of a parcel's large files, among those → its bytes, in pieces."""

CHUNK_BYTES = 16 * 2**20
"""What travels at once."""
_INLINE_BYTES = 80_000
"""What a cluster hands on at once; Ray puts 100 kB or more into shared memory first, which takes some 8 ms."""
_INLINE_PIECES = 8
"""Up to so many of those; more is sent faster in large pieces."""
_KEPT_BYTES = 20 * 2**30
"""How much of inputs a machine keeps; those go that were not used for the longest time."""
_USED_SECONDS = 3600.0
"""How exactly it is known when an input was last used; each note of it has the input hashed again."""
_LOOK_SECONDS = 0.1
"""How soon it is seen that the worker was asked to stop."""
TERM_SECONDS = 5.0
"""How long a command may take to end when asked to; then it is killed."""


def work(parcel: Parcel, small: bytes, content: Content, node: str) -> Generator[str | bytes]:
    """Run a parcel's command.

    Args:
        parcel: what to run, and on what.
        small: the bytes of its small files, one after another.
        content: gives those of the others.
        node: what the cluster calls this machine.

    Yields:
        messages as JSON: `Began`, `PrintedLine` for every line, then `Completed`, after which come the bytes of what was made, one
        file after another, in pieces; or `Refused`.
    """
    yield Began(node=node).to_json()
    deadline = time.monotonic() + parcel.timeout_seconds
    try:
        if parcel.package != this_package():
            raise FarmError(
                "the worker has another version of this package",
                expected=parcel.package,
                got=f"{this_package()} on {platform.node()}",
                fix="install the same version on every machine of the farm",
            )
        with _folder() as folder:
            _lay_out(parcel, small, content, folder)
            root = folder / ARTIFACTS
            before = _looks(root)
            status = yield from _run(parcel, folder, deadline)
            after = _looks(root)
            made = tuple(describe_file(path, root) for path in after if before.get(path) != after[path])
            yield Completed(status=status, files=made).to_json()
            few = sum(file.bytes for file in made) < _INLINE_PIECES * _INLINE_BYTES
            yield from pieces(*(root / file.path for file in made), size=_INLINE_BYTES if few else CHUNK_BYTES)
    except ArtifactError as exc:
        yield Refused(reason=str(exc)).to_json()


def _looks(root: Path) -> dict[Path, tuple[int, int, int]]:
    """Return what changes of every file below a folder when somebody writes it, in the order of their paths."""
    found = {}
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if path.is_file() and not path.is_symlink() and not hidden:
            stat = path.stat()
            found[path] = stat.st_ino, stat.st_size, stat.st_mtime_ns
    return found


def pieces(*paths: Path, size: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Yield the bytes of files, one after another, as they travel: all pieces but the last have a size.

    Raises:
        StorageError: one cannot be read.
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
    return Path(tempfile.gettempdir()) / f"pipeline-farm-{os.getuid()}"


@contextmanager
def _folder() -> Iterator[Path]:
    """Hand out an empty folder that goes with the block; those of workers that were killed go, too."""
    there = _home() / "work"
    with storage_errors(f"writing {there}"):
        there.mkdir(parents=True, exist_ok=True)
        for left in there.iterdir():
            if not Path("/proc", left.name.partition("-")[0]).exists():
                shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=there))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _lay_out(parcel: Parcel, small: bytes, content: Content, folder: Path) -> None:
    """Write a parcel's files into a folder, each with its digest.

    Raises:
        FarmError: one of them would lie elsewhere, or has not come as it was sent.
        StorageError: the folder cannot be written.
    """
    together, numbers = BytesIO(small), count()
    with storage_errors(f"writing {folder}"):
        for file in parcel.files:
            path = folder / file.path
            if ".." in path.parts or not path.is_relative_to(folder):
                raise FarmError(f"a parcel's file would lie outside of its folder: {file.path}")
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
                    raise FarmError(f"{file.path} has come, and is damaged on {platform.node()}'s disk")
        artifacts = folder / ARTIFACTS
        if artifacts.is_dir():
            timings = _home() / "timing-cache"
            timings.mkdir(parents=True, exist_ok=True)
            (artifacts / "timing-cache").symlink_to(timings)


def _check(file: FileRecord, sha256: str) -> None:
    """Check what has come.

    Raises:
        FarmError: it is not what was sent.
    """
    if sha256 != file.sha256:
        raise FarmError(f"{file.path} has not come as it was sent", expected=file.sha256, got=f"SHA-256 {sha256}")


def _copied(blob: Path, path: Path, file: FileRecord) -> bool:
    """Copy what is kept of an input, and return whether it is there and whole."""
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
    """Keep an input that has come, if it is what was sent.

    Raises:
        FarmError: it is not.
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
    """Remove the inputs that were not used for the longest time, where there are too many."""
    found = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another worker makes room, too
            stat = path.stat()
            found.append((stat.st_mtime, stat.st_size, path))
    excess = sum(size for _, size, _ in found) - _KEPT_BYTES
    for _, size, path in sorted(found):
        if excess <= 0:
            return
        if path != keep:
            path.unlink(missing_ok=True)
            excess -= size


def _run(parcel: Parcel, folder: Path, deadline: float) -> Generator[str, None, int]:
    """Run the command; yield what it says; return its exit status.

    Raises:
        FarmError: it takes too long, and was ended.
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
                        f"the step has not ended in {parcel.timeout_seconds:g} s, and was ended",
                        where=platform.node(),
                        fix="raise farm.step_timeout_seconds, or see why it takes so long",
                    )
                for key, _ in selector.select(_LOOK_SECONDS):
                    data = os.read(key.fd, CHUNK_BYTES)
                    yield from (message.to_json() for message in key.data.take(data))
                    if not data:
                        selector.unregister(key.fileobj)
        return process.wait()
    finally:
        _end(process)


class _Lines:
    """Bytes → whole lines."""

    def __init__(self, *, error: bool) -> None:
        self._error = error
        self._rest = b""

    def take(self, data: bytes) -> list[PrintedLine]:
        """Return the lines that are whole by now; at the end, which has no bytes, also one that is not."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data and self._rest:
            lines.append(self._rest)
            self._rest = b""
        return [PrintedLine(error=self._error, line=line.decode(errors="replace")) for line in lines]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the command, unless it has ended."""
    try:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(TERM_SECONDS)
    finally:  # too slow; or the worker was asked again, and is to end at once
        if process.poll() is None:
            process.kill()
            process.wait()
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()
