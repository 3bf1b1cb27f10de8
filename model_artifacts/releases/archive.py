"""A release's folder ↔ one .tar.zst.

The same files always give the same bytes. Unpacking accepts plain files only.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from model_artifacts.errors import ReleaseError, StorageError, listed, one_line, shortened, storage_errors
from model_artifacts.host.files import replacing
from model_artifacts.host.plain_files import open_plain
from model_artifacts.records.releases import check_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

_LEVEL = 10
"""Zstandard's level. Engines hardly shrink, ONNX files a little; higher levels take minutes for nothing."""
MAX_BYTES = 64 * 2**30
"""The most bytes that an archive may unpack to: 64 GiB."""
MAX_FILES = 100_000
"""The most files that an archive may hold."""
_ALWAYS_BYTES, _MAX_RATIO = 2**28, 100
"""An archive may unpack to 256 MiB, and above that to 100 times its own size: weights hardly shrink."""
_CHUNK = 2**20
_NOT_USED = "do not use it; copy or pull the release again"
_MAX_FRAME_HEADER_BYTES, _REPEATED = 18, 1
"""RFC 8878: the longest header of a frame, and the kind of block that is one byte, repeated."""
_MAX_HEADER_BYTES = 2**20
"""The most bytes between the contents of two files: headers, long names and the padding of blocks."""


def pack(folder: Path, archive: Path, when: datetime) -> None:
    """Write a folder as an archive, reproducibly: sorted names, no owner, one modification time.

    Args:
        folder: the folder to pack.
        archive: the .tar.zst to write.
        when: the modification time of every file.

    Raises:
        ReleaseError: the files are more than `unpack` takes.
        StorageError: the archive cannot be written.
    """
    import zstandard  # noqa: PLC0415 - not installed in deployments

    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    total = 0
    with replacing(archive) as temporary:
        with (
            temporary.open("wb") as file,
            compressor.stream_writer(file) as stream,
            tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar,
        ):
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                member = tarfile.TarInfo(path.relative_to(folder).as_posix())
                member.size, member.mode, member.mtime = path.stat().st_size, 0o644, int(when.timestamp())
                total += member.size
                with path.open("rb") as content:
                    tar.addfile(member, content)
        if total > _most(temporary.stat().st_size):
            raise _too_much(archive)


def _most(size: int) -> int:
    """Return the most bytes that an archive of a size may unpack to."""
    return min(MAX_BYTES, _ALWAYS_BYTES + _MAX_RATIO * size)


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
        folder: the folder to write to, empty.

    Raises:
        ReleaseError: the file is no archive of a release: it holds other things than plain files, paths that lead out
            of it, too much data, or anything after its end.
        StorageError: the folder cannot be written.
    """
    import zstandard  # noqa: PLC0415 - not installed in deployments

    try:
        with open_plain(archive) as file:
            most = _most(_demand_one_frame(file, archive))
            with (
                zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(file) as plain,
                tarfile.open(fileobj=cast("IO[bytes]", stream := _Bounded(plain, archive)), mode="r|") as tar,
            ):
                _extract(tar, stream, folder, most)
                _demand_end(tar, archive)
    except (ReleaseError, StorageError):
        raise
    except Exception as exc:  # of tarfile, zstandard and the disk, without a common base
        raise ReleaseError(
            f"{archive} cannot be unpacked", expected="the .tar.zst of a release", got=one_line(exc)
        ) from exc


def _extract(tar: tarfile.TarFile, stream: _Bounded, folder: Path, most: int) -> None:
    """Write an archive's files, and nothing else that it says of them: no owner, no mode, no time."""
    total = 0
    for number, member in enumerate(tar):
        total += member.size
        _check_member(member, tar, stream.archive)
        if number >= MAX_FILES or total > most:
            raise _too_much(stream.archive, f"{number + 1:,} files and {total:,} bytes, up to {member.name}")
        stream.left = member.size + _MAX_HEADER_BYTES
        there = folder / member.name
        content = cast("IO[bytes]", tar.extractfile(member))
        with storage_errors(f"unpacking {stream.archive} to {folder}"):
            try:
                there.parent.mkdir(parents=True, exist_ok=True)
                with there.open("xb") as file:
                    shutil.copyfileobj(content, file, _CHUNK)
            except (FileExistsError, NotADirectoryError):
                raise _odd(member, stream.archive, "a second file of this name") from None


def _demand_end(tar: tarfile.TarFile, archive: Path) -> None:
    """Refuse anything but zeros behind the last file, where tarfile stops reading."""
    rest = cast("IO[bytes]", tar.fileobj)
    while data := rest.read(_CHUNK):
        if data.strip(b"\0"):
            raise ReleaseError(f"{archive} holds data after its last file", fix=_NOT_USED)


def _check_member(member: tarfile.TarInfo, tar: tarfile.TarFile, archive: Path) -> None:
    """Refuse everything in an archive that `pack` never writes, by the member's name.

    Raises:
        ReleaseError: the member is a link, a special or a sparse file, has an odd path or other facts in its header.
    """
    if member.type not in {tarfile.REGTYPE, tarfile.AREGTYPE} or member.issparse() or member.size < 0:
        raise _odd(member, archive, "a link, a special file or a sparse one")
    if others := sorted({*member.pax_headers, *tar.pax_headers} - {"path", "size"}):
        raise _odd(member, archive, f"a header that says {shortened(listed(others))}")
    try:
        check_path(member.name)
    except ValueError as exc:
        raise _odd(member, archive, str(exc)) from exc


def _odd(member: tarfile.TarInfo, archive: Path, got: str) -> ReleaseError:
    name = shortened(repr(member.name))
    return ReleaseError(f"{archive} is no release: {name} in it is none of its files", got=got, fix=_NOT_USED)


def _demand_one_frame(file: IO[bytes], archive: Path) -> int:
    """Return an archive's size in bytes, once it is known to be one frame of Zstandard with nothing after it.

    The form is that of RFC 8878: a header, blocks of which each states its size and whether it is the last, and
    possibly a checksum of 4 bytes.

    Raises:
        ReleaseError: something follows the frame, or the frame ends early.
    """
    import zstandard  # noqa: PLC0415 - not installed in deployments

    head = file.read(_MAX_FRAME_HEADER_BYTES)
    checksum_bytes = 4 if zstandard.get_frame_parameters(head).has_checksum else 0
    file.seek(zstandard.frame_header_size(head))
    is_last = False
    while not is_last:
        if len(three := file.read(3)) < 3:  # noqa: PLR2004 - the length of a block's header
            raise EOFError(f"{archive} ends early")
        block = int.from_bytes(three, "little")
        is_last, kind, size = bool(block & 1), (block >> 1) & 3, block >> 3
        file.seek(1 if kind == _REPEATED else size, os.SEEK_CUR)
    end, size = file.tell() + checksum_bytes, file.seek(0, os.SEEK_END)
    file.seek(0)
    if size > end:
        raise ReleaseError(f"{archive} holds {size - end:,} bytes after its end", fix=_NOT_USED)
    return size


class _Bounded:
    """A stream that fails once it gives more bytes than announced, because tarfile reads headers of any size."""

    def __init__(self, stream: IO[bytes], archive: Path) -> None:
        self._stream = stream
        self.archive = archive
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
            raise _too_much(self.archive)
        return data


def _too_much(archive: Path, got: str = "") -> ReleaseError:
    return ReleaseError(
        f"{archive} holds more than a release may",
        expected=f"at most {MAX_FILES:,} files with short names, 64 GiB, and {_MAX_RATIO} times the archive's own size",
        got=got,
        fix=_NOT_USED,
    )
