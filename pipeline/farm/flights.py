"""Which keys are being built on a cluster, and by whom: two drivers do not build the same at once.

A driver renews what it holds; what one holds that was killed is free again soon after. Nothing rests on this but work
that is done twice: a result is right whoever has built it.
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


class Board:
    """Who builds which key; the cluster has one."""

    def __init__(self) -> None:
        """Begin with nobody building anything."""
        self._held: dict[str, tuple[str, float]] = {}

    def take(self, key: str, driver: str, now: float | None = None) -> str:
        """Let a driver build a key, unless another does.

        Args:
            key: what it would build.
            driver: who asks; again, to renew.
            now: in seconds; left out, the board's own clock.

        Returns:
            who builds it now.
        """
        now = time.monotonic() if now is None else now
        holder, until = self._held.get(key, (driver, now))
        if holder != driver and until > now:
            return holder
        self._held[key] = (driver, now + _LEASE_SECONDS)
        return driver

    def give(self, key: str, driver: str) -> None:
        """Let others build a key."""
        if self._held.get(key, ("", 0.0))[0] == driver:
            del self._held[key]


class Flights:
    """A driver's view of the board."""

    def __init__(self, cluster: Cluster, driver: str) -> None:
        """Nothing is asked yet.

        Args:
            cluster: on which the board is.
            driver: this one's name, for the others' messages.
        """
        self._cluster = cluster
        self._driver = driver
        self._lock = threading.Lock()
        self._board: Any = None
        self._mine: set[str] = set()
        self._renewing: threading.Thread | None = None

    @contextmanager
    def alone(self, key: str, waiting: Callable[[str], None]) -> Iterator[None]:
        """Hold a key while the block runs.

        Args:
            key: what the block builds.
            waiting: called every second while another driver holds it, with its name; what it raises ends this.
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
            if board:  # nobody waits for its answer: what it does not hear of is free again when the lease ends
                board.give.remote(key, self._driver)

    def _renew(self) -> None:
        while True:
            time.sleep(_RENEWED_EVERY_SECONDS)
            with self._lock:
                mine = sorted(self._mine)
            for key in mine:
                self._take(key)

    def _take(self, key: str) -> str:
        """Ask the board who builds a key now; one that has gone, with its process, is begun anew."""
        for _ in range(2):
            with suppress(FarmError):
                with self._lock:
                    self._board = self._board or self._cluster.actor(Board, _NAME)
                    board = self._board
                return str(self._cluster.ask(board.take.remote(key, self._driver), _PATIENCE_SECONDS))
            self._board = None
        return self._driver  # nobody to ask: work may be done twice, and is right all the same
