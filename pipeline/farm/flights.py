"""Leases of keys on a cluster, so that two drivers do not build the same at once.

A driver renews its leases. Those of a killed driver end after `_LEASE_SECONDS`. A lost lease costs duplicate work and
nothing else, because every driver's result is right.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from model_artifacts.errors import FarmError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.farm.cluster import Cluster

_NAME = "flights"
_LEASE_SECONDS = 20.0
_RENEWED_EVERY_SECONDS = 5.0
_PATIENCE_SECONDS = 30.0
"""Time limit of the board's answer."""


class Board:
    """The leases of all drivers. The cluster has one board."""

    def __init__(self) -> None:
        """Begin without leases."""
        self._held: dict[str, tuple[str, float]] = {}

    def take(self, key: str, driver: str, now: float | None = None) -> str:
        """Lease a key to a driver, unless another driver holds it. A second call renews the lease.

        Args:
            key: the digest of the key.
            driver: the name of the driver that asks.
            now: the time in seconds; None takes the board's own clock.

        Returns:
            The name of the driver that holds the key now.
        """
        now = time.monotonic() if now is None else now
        holder, until = self._held.get(key, (driver, now))
        if holder != driver and until > now:
            return holder
        self._held[key] = (driver, now + _LEASE_SECONDS)
        return driver

    def give(self, key: str, driver: str) -> None:
        """End a driver's lease of a key."""
        if self._held.get(key, ("", 0.0))[0] == driver:
            del self._held[key]


class Flights:
    """A driver's leases."""

    def __init__(self, cluster: Cluster, driver: str) -> None:
        """Begin without leases. The first lease reaches the board.

        Args:
            cluster: the board's cluster.
            driver: this driver's name, for the messages of the others.
        """
        self._cluster = cluster
        self._driver = driver
        self._lock = threading.Lock()
        self._board: Any = None
        self._mine: set[str] = set()
        self._renewing: threading.Thread | None = None

    @contextmanager
    def alone(self, key: str, waiting: Callable[[str], None]) -> Iterator[None]:
        """Hold the lease of a key while the block runs.

        Args:
            key: the digest of the key.
            waiting: called every second with the name of the driver that holds the key; an exception ends the wait.
        """
        while (holder := self._take(key)) != self._driver:
            waiting(holder)
            time.sleep(1)
        with self._lock:
            self._mine.add(key)
            if self._renewing is None:
                self._renewing = threading.Thread(target=self._renew, daemon=True, name="flights")
                self._renewing.start()
        try:
            yield
        finally:
            with self._lock:
                self._mine.discard(key)
                board = self._board
            if board:  # no wait for the answer: without this call the lease ends by itself
                board.give.remote(key, self._driver)

    def _renew(self) -> None:
        """Renew this driver's leases for ever, as a thread."""
        while True:
            time.sleep(_RENEWED_EVERY_SECONDS)
            with self._lock:
                mine = sorted(self._mine)
            for key in mine:
                self._take(key)

    def _take(self, key: str) -> str:
        """Return the driver that holds a key now, by the board. If the board's process has ended, start a new board."""
        for _ in range(2):
            with suppress(FarmError):
                with self._lock:
                    self._board = self._board or self._cluster.actor(Board, _NAME)
                    board = self._board
                return str(self._cluster.ask(board.take.remote(key, self._driver), _PATIENCE_SECONDS))
            self._board = None
        return self._driver  # without a board, two drivers may build the same: duplicate work, right results
