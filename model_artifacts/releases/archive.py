"""A release's folder ↔ one .tar.zst.

The same files always give the same bytes. Unpacking accepts plain files only.
"""

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
"""Zstandard's level. Engines hardly shrink, ONNX files a little; higher levels take minutes for nothing."""
MAX_BYTES = 64 * 2**30
"""The most bytes that an archive may unpack to: 64 GiB."""
MAX_FILES = 100_000
"""The most files that an archive may hold."""
_MAX_HEADER_BYTES = 2**20
"""The most bytes between the contents of two files: headers, long names and the padding of blocks."""


def pack(folder: Path, archive: Path, when: datetime) -> None:
    """Write a folder as an archive, reproducibly: sorted names, no owner, one modification time.

    Args:
        folder: the folder to pack.
        archive: the .tar.zst to write.
        when: the modification time of every file.

    Raises:
        StorageError: the archive cannot be written.
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
    """Yield a release's folder; an archive is unpacked into a temporary folder for the length of the block.

    Args:
        path: a release's folder or its .tar.zst.

    Raises:
        ReleaseError: `path` is neither, or the archive holds links, paths that lead out of it, or too much data.
    """
    if path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        unpack(path, Path(folder))
        yield Path(folder)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive into a folder.

    Args:
        archive: a .tar.zst.
        folder: the folder to write to.

    Raises:
        ReleaseError: the file is no archive, or it holds links, paths that lead out of it, or too much data.
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
                    raise ReleaseError(
                        f"{archive} holds a link, a special file or a path that leads out of it", got=member.name
                    )
                if number >= MAX_FILES or total > MAX_BYTES:
                    raise _too_much(archive)
                stream.left = member.size + _MAX_HEADER_BYTES
                tar.extract(member, folder, filter="data")
    except (tarfile.TarError, zstandard.ZstdError, OSError, EOFError, RecursionError) as exc:
        raise ReleaseError(
            f"{archive} cannot be unpacked", expected="the .tar.zst of a release", got=one_line(exc)
        ) from exc


class _Bounded:
    """A stream that fails once it gives more bytes than announced, because tarfile reads headers of any size."""

    def __init__(self, stream: IO[bytes], archive: Path) -> None:
        self._stream = stream
        self._archive = archive
        self.left = _MAX_HEADER_BYTES
        """The number of bytes that it may still give."""

    def read(self, count: int) -> bytes:
        """Return at most `count` of the next bytes.

        Raises:
            ReleaseError: the stream has given more bytes than announced.
        """
        data = self._stream.read(count)
        self.left -= len(data)
        if self.left < 0:
            raise _too_much(self._archive)
        return data


def _too_much(archive: Path) -> ReleaseError:
    return ReleaseError(
        f"{archive} holds more than a release may", expected=f"at most {MAX_FILES:,} files and 64 GiB, with short names"
    )
