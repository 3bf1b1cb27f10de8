"""A pool of runners: bounded, fair, and closed from any thread."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import BusyError, RunError
from model_artifacts.serving.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Callable


class Gate:
    """A runner that waits until it is let through, and counts how many calls are inside at once."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.inside = threading.Semaphore(0)
        self.order: list[int] = []

    def __call__(self, number: int) -> int:
        """Return the double of a number."""
        self.order.append(number)
        self.inside.release()
        assert self.open.wait(30)
        return 2 * number


def until_waiting(pool: Pool, calls: int) -> None:
    """Wait until so many calls of other threads wait."""
    end = time.monotonic() + 30
    while pool.waiting != calls:
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize("contexts", [1, 3])
def test_as_many_calls_run_at_once_as_there_are_runners(contexts: int) -> None:
    """The pool is bounded, all calls get their own answers, and each runner has one call at a time."""
    running, most, lock = [0] * contexts, [0] * contexts, threading.Lock()
    together = [0]

    def runner(index: int) -> Callable[[int], int]:
        def run(number: int) -> int:
            with lock:
                running[index] += 1
                most[index] = max(most[index], running[index])
                together[0] = max(together[0], sum(running))
            time.sleep(0.002)
            with lock:
                running[index] -= 1
            return 2 * number

        return run

    pool = Pool([runner(index) for index in range(contexts)])
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(pool, range(60))) == [2 * number for number in range(60)]
    assert most == [1] * contexts
    assert together == [contexts]
    assert len(pool) == contexts


def test_the_call_that_came_first_runs_first() -> None:
    """Nobody overtakes a call that waits, not even one that comes at the moment of a return."""
    gate = Gate()
    pool = Pool([gate])
    with ThreadPoolExecutor(20) as threads:
        calls = [threads.submit(pool, 0)]
        gate.inside.acquire()
        for number in range(1, 20):
            calls.append(threads.submit(pool, number))
            until_waiting(pool, number)
        gate.open.set()
        assert [call.result() for call in calls] == [2 * number for number in range(20)]
    assert gate.order == list(range(20))


def test_a_call_waits_no_longer_than_it_may() -> None:
    """It names the limit and what to do; the call that runs is not disturbed, and later calls run again."""
    gate = Gate()
    pool = Pool([gate], wait_seconds=0.01)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(pool, 1)
        gate.inside.acquire()
        with pytest.raises(BusyError, match=r"(?s)is busy.*within 0\.01 s.*its one context.*raise `contexts`"):
            pool(2)
        assert pool.waiting == 0
        gate.open.set()
        assert first.result() == 2
    assert pool(3) == 6
    assert gate.order == [1, 3]


def test_the_end_waits_for_what_runs_and_refuses_what_waits() -> None:
    """A call that still waits is told so at once, and no runner is called after the end."""
    gate = Gate()
    pool = Pool([gate])
    with ThreadPoolExecutor(3) as threads:
        running = threads.submit(pool, 1)
        gate.inside.acquire()
        refused = threads.submit(pool, 2)
        until_waiting(pool, 1)
        ending = threads.submit(pool.close)
        with pytest.raises(RunError, match=r"(?s)the model is closed.*still waited at its end"):
            refused.result()
        assert not ending.done()
        gate.open.set()
        ending.result()
        assert running.result() == 2
    with pytest.raises(RunError, match=r"(?s)the model is closed.*a call after its end"):
        pool(3)
    pool.close()
    assert gate.order == [1]


def test_a_runner_comes_back_after_an_error() -> None:
    """An error reaches its caller, and takes no runner away."""

    def run(number: int) -> int:
        if number < 0:
            raise RunError("below zero")
        return number

    pool = Pool([run])
    for _ in range(3):
        with pytest.raises(RunError, match="below zero"):
            pool(-1)
    assert pool(4) == 4


def test_an_interrupted_wait_gives_its_runner_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that is interrupted in the moment of its turn leaves the runner to the one behind it."""
    gate = Gate()
    pool = Pool([gate])
    wait = threading.Event.wait

    def interrupted(event: threading.Event, timeout: float | None = None) -> bool:
        found = wait(event, timeout)
        if threading.current_thread().name == "interrupted":
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(threading.Event, "wait", interrupted)
    ended: list[type[BaseException]] = []

    def call() -> None:
        try:
            pool(2)
        except KeyboardInterrupt as exc:
            ended.append(type(exc))

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(pool, 1)
        gate.inside.acquire()
        thread = threading.Thread(target=call, name="interrupted")
        thread.start()
        until_waiting(pool, 1)
        third = threads.submit(pool, 3)
        until_waiting(pool, 2)
        gate.open.set()
        assert [first.result(), third.result()] == [2, 6]
        thread.join()
    assert ended == [KeyboardInterrupt]
    assert gate.order == [1, 3]
