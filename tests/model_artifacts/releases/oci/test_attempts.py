"""Pauses between attempts, and sums of bytes."""

from __future__ import annotations

import pytest

from model_artifacts.releases.oci.attempts import Counted, Waits


def is_given_up(waits: Waits, done: int) -> bool:
    """Return whether a failure is raised again, rather than waited for."""

    def fail() -> None:
        raise ConnectionError

    try:
        fail()
    except ConnectionError:
        try:
            waits.wait_or_raise(done)
        except ConnectionError:
            return True
    return False


def attempts_until_given_up(waits: Waits, done: list[int]) -> int:
    """Return the number of failures that are waited for, by the bytes that are there at each."""
    return next((number for number, count in enumerate(done) if is_given_up(waits, count)), len(done))


def test_attempts_without_a_byte_end() -> None:
    """A byte begins the count anew."""
    assert attempts_until_given_up(Waits(), [0] * 9) == 5
    assert attempts_until_given_up(Waits(2), [0] * 9) == 2
    assert attempts_until_given_up(Waits(2), [0, 0, 1, 1, 1]) == 4


def test_reports_are_summed_and_passed_on() -> None:
    """Negative ones, too."""
    seen: list[int] = []
    counted = Counted(seen.append)
    counted(5)
    counted(-2)
    assert (counted.total, seen) == (3, [5, -2])


@pytest.mark.parametrize("fruitless", [1, 3])
def test_the_first_attempt_always_counts_as_progress(fruitless: int) -> None:
    """Even at byte 0."""
    assert attempts_until_given_up(Waits(fruitless), [0]) == 1
