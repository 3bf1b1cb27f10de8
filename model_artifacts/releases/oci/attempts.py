"""Transfers that are tried again: pauses, and sums of bytes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_FRUITLESS, _PAUSE = 5, 1.0
"""Interruptions of a transfer in a row without a new byte, after which it fails, and the seconds after the first."""


class Counted:
    """A function to report bytes to, which knows their sum."""

    def __init__(self, report: Callable[[int], None]) -> None:
        self._report = report
        self.total = 0

    def __call__(self, count: int) -> None:
        """Pass a number of bytes on."""
        self.total += count
        self._report(count)


class Waits:
    """Pauses between the attempts of a transfer, which end once several in a row brought nothing."""

    def __init__(self, fruitless: int = _FRUITLESS) -> None:
        """Begin without an attempt.

        Args:
            fruitless: the number of attempts in a row without a byte, after which the transfer is given up.
        """
        self._most = fruitless
        self._furthest = -1
        self._fruitless = 0

    def wait_or_raise(self, done: int) -> None:
        """Wait a moment, or raise the exception that is being handled.

        Args:
            done: the number of bytes that are there.
        """
        self._fruitless = 0 if done > self._furthest else self._fruitless + 1
        self._furthest = max(done, self._furthest)
        if self._fruitless >= self._most:
            raise  # noqa: PLE0704 - called in an `except` block
        time.sleep(_PAUSE * 2**self._fruitless)
