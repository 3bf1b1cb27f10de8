"""Transfers: several at a time, and the first failure ends all."""

from __future__ import annotations

import threading
import time

import pytest

from model_artifacts.host.transfers import Progress, at_once


def test_results_come_in_the_order_of_the_items() -> None:
    """Whichever call ends first."""

    def work(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    assert at_once(work, [0.05, 0.0, 0.02]) == [0.05, 0.0, 0.02]


@pytest.mark.parametrize("place", [0, 3])
@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failure_ends_the_transfers_under_way(place: int, failure: type[BaseException]) -> None:
    """Slow ones would go on for hours: they end at their next report, wherever the failed one stands."""
    slow = threading.Semaphore(0)

    def work(number: int) -> None:
        if number == place:
            for _ in range(3):
                slow.acquire()
            raise failure
        slow.release()
        for _ in range(10_000):
            report(1)
            time.sleep(0.01)

    begun = time.monotonic()
    with Progress("pulling", []) as report, pytest.raises(failure):
        at_once(work, range(4), report.cancel)
    assert time.monotonic() - begun < 10
