"""A release's folder ↔ one .tar.zst: the same bytes from the same files, and only plain files on the way back."""

from __future__ import annotations

import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, cast

from model_artifacts.errors import ReleaseError, one_line
from model_artifacts.host.files import replacing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

_LEVEL = 10
"""Engines hardly shrink, ONNX files a little; higher levels take minutes for nothing."""
MAX_BYTES = 64 * 2**30
MAX_FILES = 100_000
_MAX_HEADER_BYTES = 2**20
"""Of all that may come between two files: a long name, and what fills up blocks."""


def pack(folder: Path, archive: Path, when: datetime) -> None:
    """Write a folder as an archive: sorted, of nobody, with one time for all.

    Raises:
        StorageError: it cannot be written.
    """
    import zstandard  # noqa: PLC0415 - not installed in deployments

    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    with (
        replacing(archive) as temporary,
        temporary.open("wb") as file,
        compressor.stream_writer(file) as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            member = tarfile.TarInfo(path.relative_to(folder).as_posix())
            member.size, member.mode, member.mtime = path.stat().st_size, 0o644, int(when.timestamp())
            with path.open("rb") as content:
                tar.addfile(member, content)


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Hand out a release's folder: itself, or what an archive holds, until the block ends.

    Raises:
        ReleaseError: it is neither, or the archive holds links, paths that lead out of it, or too much.
    """
    if path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        unpack(path, Path(folder))
        yield Path(folder)


def unpack(archive: Path, folder: Path) -> None:
    """Write what an archive holds into a folder.

    Raises:
        ReleaseError: it is no archive, or it holds links, paths that lead out of it, or too much.
    """
    import zstandard  # noqa: PLC0415 - not installed in deployments

    total = 0
    try:
        with (
            archive.open("rb") as file,
            zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(file) as plain,
            tarfile.open(fileobj=cast("IO[bytes]", stream := _Bounded(plain, archive)), mode="r|") as tar,
        ):
            for number, member in enumerate(tar):
                total += member.size
                path = PurePosixPath(member.name)
                if not member.isreg() or path.is_absolute() or ".." in path.parts:
                    raise ReleaseError(f"{archive} holds something that is no plain file in it: {member.name}")
                if number >= MAX_FILES or total > MAX_BYTES:
                    raise _too_much(archive)
                stream.left = member.size + _MAX_HEADER_BYTES
                tar.extract(member, folder, filter="data")
    except (tarfile.TarError, zstandard.ZstdError, OSError, EOFError, RecursionError) as exc:
        raise ReleaseError(
            f"{archive} cannot be unpacked", expected="a .tar.zst of a release", got=one_line(exc)
        ) from exc


class _Bounded:
    """A stream that ends in an error where more comes than was announced: tarfile reads headers of any size."""

    def __init__(self, stream: IO[bytes], archive: Path) -> None:
        self._stream = stream
        self._archive = archive
        self.left = _MAX_HEADER_BYTES
        """How many bytes may come."""

    def read(self, count: int) -> bytes:
        """Return the next bytes."""
        data = self._stream.read(count)
        self.left -= len(data)
        if self.left < 0:
            raise _too_much(self._archive)
        return data


def _too_much(archive: Path) -> ReleaseError:
    return ReleaseError(f"{archive} holds more than a release has: {MAX_FILES:,} files, 64 GiB, names of some bytes")
