"""A release's folder ↔ one .tar.zst: the same bytes from the same files, and only plain files on the way back."""

from __future__ import annotations

import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pipeline.atomic import replacing
from pipeline.errors import ReleaseError, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

_LEVEL = 10
"""Engines hardly shrink, ONNX files a little; higher levels take minutes for nothing."""
MAX_BYTES = 64 * 2**30
MAX_FILES = 100_000


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
            zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(file) as stream,
            tarfile.open(fileobj=stream, mode="r|") as tar,
        ):
            for number, member in enumerate(tar):
                total += member.size
                path = PurePosixPath(member.name)
                if not member.isreg() or path.is_absolute() or ".." in path.parts:
                    raise ReleaseError(f"{archive} holds something that is no plain file in it: {member.name}")
                if number >= MAX_FILES or total > MAX_BYTES:
                    raise ReleaseError(f"{archive} holds more than a release has: {MAX_FILES:,} files, 64 GiB")
                tar.extract(member, folder, filter="data")
    except (tarfile.TarError, zstandard.ZstdError, OSError, EOFError) as exc:
        raise ReleaseError(
            f"{archive} cannot be unpacked", expected="a .tar.zst of a release", got=one_line(exc)
        ) from exc
