"""A line: what waits is run in groups, by few wakings, and nothing is lost at its end."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from model_artifacts.errors import RunError
from model_artifacts.serving.line import Line
from model_artifacts.serving.pool import Pool

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable

SLOW = 60_000.0
"""A delay in milliseconds that no test waits for."""


class Numbers:
    """Items that are numbers with one row each; it knows the groups that ran, and those that were told."""

    def __init__(self) -> None:
        self.ran: list[list[int]] = []
        self.told: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.began, self.done = threading.Semaphore(0), threading.Semaphore(0)

    def came(self, item: int) -> float:
        """Return now: no item has waited."""
        del item
        return time.monotonic()

    def take(self, waiting: deque[int], limit: int) -> tuple[list[int], int]:
        """Take as many as there may be."""
        group = [waiting.popleft() for _ in range(min(limit, len(waiting)))]
        return group, len(group)

    def run(self, run: Any, group: list[int]) -> Callable[[], None]:
        """Note the group, by the runner."""
        run(group)
        self.ran.append(group)
        self.began.release()
        assert self.gate.wait(30)

        def tell() -> None:
            self.told.append(group)
            self.done.release()

        return tell


def line_of(numbers: Numbers, limit: int, delay_ms: float = SLOW, runners: int = 1) -> tuple[Line[int], Pool]:
    """Return a line of runners that compute nothing."""
    pool = Pool([lambda group: group] * runners)
    return Line(pool, limit, delay_ms, numbers), pool


def test_a_group_that_is_full_runs_at_once() -> None:
    """Items that come together are cut where they fill a group; the rest waits for its delay or for others."""
    numbers = Numbers()
    line, _ = line_of(numbers, 3)
    line.put(range(7), 7)
    for _ in range(2):
        assert numbers.done.acquire(timeout=30)
    assert numbers.told == [[0, 1, 2], [3, 4, 5]]
    line.put((7, 8), 2)
    assert numbers.done.acquire(timeout=30)
    assert numbers.ran[-1] == [6, 7, 8]
    line.close(lambda _: None)


def test_a_delay_beyond_what_a_thread_can_wait_for_ends_none() -> None:
    """The group runs once it is full."""
    numbers = Numbers()
    line, _ = line_of(numbers, 2, delay_ms=1e300)
    line.put((1,), 1)
    line.put((2,), 1)
    assert numbers.done.acquire(timeout=30)
    assert numbers.told == [[1, 2]]
    line.close(lambda _: None)


def test_the_delay_of_the_first_item_ends_the_wait() -> None:
    """Without a delay, an item runs as it comes."""
    numbers = Numbers()
    line, _ = line_of(numbers, 100, 0.0)
    for item in range(5):
        line.put((item,), 1)
        assert numbers.done.acquire(timeout=30)
    assert numbers.told == [[item] for item in range(5)]
    line.close(lambda _: None)


def test_of_items_that_join_a_group_two_wake_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one, and the one that fills the group. Each waking costs as much as a small network's launch."""
    numbers = Numbers()
    numbers.gate.clear()
    line, _ = line_of(numbers, 50)
    woken: list[int] = []
    plain = line._came.notify  # noqa: SLF001 - what is counted

    def notify(count: int = 1) -> None:
        woken.append(len(line))
        plain(count)

    monkeypatch.setattr(line._came, "notify", notify)  # noqa: SLF001 - the same
    for item in range(49):
        line.put((item,), 1)
    assert woken == [1]
    line.put((49,), 1)
    assert woken == [1, 50]
    assert numbers.began.acquire(timeout=30)
    assert numbers.ran == [[*range(50)]]
    numbers.gate.set()
    line.close(lambda _: None)


def test_the_runner_is_free_before_callers_are_told() -> None:
    """Another thread may have it while one thread tells hundreds of callers."""
    idle: list[int] = []
    numbers = Numbers()
    line, pool = line_of(numbers, 1)

    class Watched(list[list[int]]):
        def append(self, group: list[int]) -> None:
            """Note how many runners are free."""
            idle.append(pool.idle)
            super().append(group)

    numbers.told = Watched()
    line.put((1,), 1)
    assert numbers.done.acquire(timeout=30)
    assert idle == [1]
    line.close(lambda _: None)


def test_a_withdrawn_item_never_runs() -> None:
    """One that runs cannot be withdrawn any more. A group whose items have all gone does not run."""
    numbers = Numbers()
    line, _ = line_of(numbers, 2)
    line.put((1,), 1)
    assert line.withdraw(1, 1)
    assert not line.withdraw(1, 1)
    line.put((2, 3), 2)
    assert numbers.done.acquire(timeout=30)
    assert numbers.ran == [[2, 3]]
    assert not line.withdraw(2, 1)
    line.close(lambda _: None)


def test_the_end_refuses_what_waits_and_waits_for_what_runs() -> None:
    """Each item is either told or refused, and the pool is closed."""
    numbers = Numbers()
    numbers.gate.clear()
    line, pool = line_of(numbers, 2, 0.0, runners=2)
    line.put(range(7), 7)
    for _ in range(2):
        assert numbers.began.acquire(timeout=30)
    refused: list[int] = []
    ending = threading.Thread(target=line.close, args=(refused.append,))
    ending.start()
    while len(refused) < 3:
        time.sleep(0.001)
    assert ending.is_alive()
    assert numbers.told == []
    numbers.gate.set()
    ending.join(30)
    assert sorted(item for group in numbers.told for item in group) + refused == [*range(7)]
    with pytest.raises(RunError, match="the model is closed"):
        line.put((8,), 1)
    with pytest.raises(RunError, match="the model is closed"):
        pool([8])


def test_an_item_is_next_while_a_runner_is_there_for_it() -> None:
    """A group of others before it takes the runner."""
    numbers = Numbers()
    numbers.gate.clear()
    line, _ = line_of(numbers, 2)
    line.put((1, 2), 2)
    assert numbers.began.acquire(timeout=30)
    line.put((3,), 1)
    assert not line.is_next(3, lambda _: 1)
    assert not line.is_next(1, lambda _: 1)
    numbers.gate.set()
    line.close(lambda _: None)
