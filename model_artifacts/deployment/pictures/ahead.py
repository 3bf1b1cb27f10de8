"""Pictures → batches, the next of which is read while the caller runs the present one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from model_artifacts.deployment.pictures.readers import Read, Reader
    from model_artifacts.sessions.preprocessing import Picture


class Batch(NamedTuple):
    """Pictures that were read as one batch."""

    size: int
    """The number of pictures; the batch may be filled up to more."""
    read: Read


def batches_ahead(
    pictures: Iterator[Picture], read: Reader, smallest: int, largest: int
) -> Generator[Batch, None, None]:
    """Yield the batches of pictures. The caller's thread takes them from the iterator, and another thread reads them.

    One batch is read ahead. The first one is read in the caller's thread: nothing runs beside it.

    Args:
        pictures: the pictures, which are asked for only between two batches.
        read: reads the pictures of a batch, on one thread at a time.
        smallest: the smallest batch that the artifact takes.
        largest: the most pictures of a batch.

    Raises:
        DataError: a picture cannot be read; the batches before it were yielded.
    """
    chunk = tuple(islice(pictures, largest))
    if not chunk:
        return
    present = Batch(len(chunk), read(chunk, smallest))
    chunk = tuple(islice(pictures, largest))
    if chunk:
        with ThreadPoolExecutor(1, thread_name_prefix="pictures") as thread:
            while chunk:
                coming = thread.submit(read, chunk, smallest)
                yield present
                present = Batch(len(chunk), coming.result())
                chunk = tuple(islice(pictures, largest))
    yield present


def batches_in_turn(
    pictures: Iterator[Picture], read: Reader, smallest: int, largest: int
) -> Generator[Batch, None, None]:
    """Yield the batches of pictures, each read in the caller's thread when it is asked for. See `batches_ahead`."""
    while chunk := tuple(islice(pictures, largest)):
        yield Batch(len(chunk), read(chunk, smallest))
