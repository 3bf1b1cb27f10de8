"""Batches of pictures: taken on the caller's thread, and read ahead by one."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from model_artifacts.deployment.pictures.ahead import batches_ahead, batches_in_turn
from model_artifacts.deployment.pictures.readers import Read
from model_artifacts.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WAYS = pytest.mark.parametrize("way", [batches_ahead, batches_in_turn], ids=["ahead", "in-turn"])


def read(pictures: Sequence[Any], smallest: int) -> Read:
    """Return the pictures themselves, and refuse one that is bad."""
    if "bad" in pictures:
        raise DataError("a bad picture")
    return Read((tuple(pictures), smallest), ())


def threads_that_read() -> list[threading.Thread]:
    """Return the threads of reading ahead."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("pictures")]


@WAYS
@pytest.mark.parametrize("count", [0, 1, 3, 4, 6, 7])
def test_every_picture_is_in_one_batch(way: Any, count: int) -> None:
    """In the order of the pictures, each batch as large as may be."""
    pictures = [str(number) for number in range(count)]
    found = list(way(iter(pictures), read, 2, 3))
    assert [name for _, (batch, _) in found for name in batch[0]] == pictures
    assert [item.size for item in found] == [3] * (count // 3) + [count % 3] * bool(count % 3)
    assert {item.read.batch[1] for item in found} <= {2}
    assert threads_that_read() == []


def test_the_next_batch_is_read_while_the_caller_runs_one() -> None:
    """Both sides meet, while the pictures themselves come on the caller's thread alone."""
    meeting, own = threading.Barrier(2, timeout=30), threading.current_thread()

    def pictures() -> Iterator[str]:
        for number in range(9):
            assert threading.current_thread() is own
            yield str(number)

    def meeting_read(pictures: Sequence[Any], smallest: int) -> Read:
        if pictures[0] != "0":
            meeting.wait()
        return read(pictures, smallest)

    for number, _ in enumerate(batches_ahead(pictures(), meeting_read, 1, 3)):
        if number < 2:
            meeting.wait()


@WAYS
def test_a_bad_picture_is_an_error_after_the_batches_before(way: Any) -> None:
    """Its batch is not given, and no thread is left."""
    batches = way(iter(["a", "b", "c", "bad", "e"]), read, 1, 2)
    assert next(batches).read.batch[0] == ("a", "b")
    with pytest.raises(DataError, match="a bad picture"):
        next(batches)
    assert threads_that_read() == []


@WAYS
def test_a_caller_that_fails_leaves_no_thread(way: Any) -> None:
    """The batch that is being read is waited for."""
    batches = way(iter("abcdef"), read, 1, 2)
    next(batches)
    batches.close()
    assert threads_that_read() == []
