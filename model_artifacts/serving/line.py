"""Waiting items → groups, each of which one thread runs in a runner of a pool. `Batcher` and `doit load` share it.

Python's threads take turns, so that every lock and every waking counts: of a hundred calls that join one batch, one
wakes the thread that gathers them, and another one does if they fill the batch.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from contextlib import ExitStack
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from model_artifacts.errors import RunError
from model_artifacts.serving.pool import AFTER_THE_END, closed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from model_artifacts.serving.pool import Pool, Runner

Item = TypeVar("Item")


class Joining(Protocol[Item]):
    """The steps that a line takes with its items."""

    def came(self, item: Item) -> float:
        """Return the moment at which an item came, by `time.monotonic`."""

    def take(self, waiting: deque[Item], limit: int) -> tuple[list[Item], int]:
        """Remove the items of the next group from those that wait, at least one; return them and their rows.

        Args:
            waiting: all that wait, at least one, the oldest first.
            limit: the most rows in a group, unless its first item alone has more.
        """

    def run(self, run: Runner, group: list[Item]) -> Callable[[], None]:
        """Run a group, and return what tells its callers, which needs the runner no longer. Neither raises an error."""


class Line(Generic[Item]):
    """Items that wait in the order in which they came, and the threads that run them in groups."""

    def __init__(self, pool: Pool, limit: int, delay_ms: float, joining: Joining[Item]) -> None:
        """Start a thread for each of the pool's runners.

        Args:
            pool: the runners; `close` closes it.
            limit: the most rows in a group.
            delay_ms: the longest time in milliseconds that an item waits for others while a runner is free.
            joining: what is done with the items.
        """
        self.limit = limit
        """The most rows in a group."""
        self._pool = pool
        self._delay = delay_ms / 1e3
        self._joining = joining
        self._waiting: deque[Item] = deque()
        self._rows = 0
        self._closed = False
        self._process = os.getpid()
        self._has_runner = False
        """True while a thread that has a runner gathers items."""
        self._came = threading.Condition()
        self._gathering = threading.Lock()
        self._threads = [
            threading.Thread(target=self._work, name=f"batching-{n}", daemon=True) for n in range(len(pool))
        ]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        """The number of items that wait."""
        return len(self._waiting)

    def put(self, items: Collection[Item], rows: int) -> None:
        """Queue items that have come together.

        Args:
            items: the items, in their order.
            rows: the rows of all of them.

        Raises:
            RunError: the line is closed.
        """
        with self._came:
            self.check_open()
            first, before = not self._waiting, self._rows
            self._waiting.extend(items)
            self._rows += rows
            if first or before < self.limit <= self._rows:
                self._came.notify()  # the one that gathers; nothing else changes what it waits for

    def withdraw(self, item: Item, rows: int) -> bool:
        """Take an item away; return False if it does not wait any more.

        Args:
            item: the item.
            rows: its rows.
        """
        with self._came:
            try:
                self._waiting.remove(item)
            except ValueError:
                return False
            self._rows -= rows
            return True

    def is_next(self, item: Item, rows: Callable[[Item], int]) -> bool:
        """Return True if a runner is there for an item that still waits, so that it is not late."""
        with self._came:
            so_far = 0
            for other in self._waiting:
                so_far += min(rows(other), self.limit)  # a larger one runs alone
                if other is item:
                    return so_far <= self.limit * (self._pool.idle + self._has_runner)
        return False

    def check_open(self) -> None:
        """Check that items are taken.

        Raises:
            RunError: the line is closed, or this process is a fork, in which no thread answers.
        """
        if self._closed:
            raise closed(AFTER_THE_END)
        if os.getpid() != self._process:
            raise RunError(
                "the model was loaded before this process was forked",
                expected="`load` in the process that calls the model: its threads and its GPU are not inherited",
                got=f"process {os.getpid()}, loaded in process {self._process}",
                fix="load it in each worker, such as in gunicorn's `post_fork`, or without `--preload`",
            )

    def close(self, refuse: Callable[[Item], None]) -> None:
        """Refuse all items from now on; wait for the groups that run; close the pool.

        Args:
            refuse: called with each item that still waits.
        """
        with self._came:
            self._closed = True
            waiting = [*self._waiting]
            self._waiting.clear()
            self._rows = 0
            self._came.notify_all()
        for item in waiting:
            refuse(item)
        for thread in self._threads:
            thread.join()
        self._pool.close()

    def _work(self) -> None:
        """Run groups until the end."""
        while self._run_next():
            pass

    def _run_next(self) -> bool:
        """Gather a group and run it; return False at the end.

        One thread gathers at a time, or they would halve each group. It has a runner by then, so that items join it as
        long as all runners are busy.
        """
        with ExitStack() as lent:
            with self._gathering:
                if not self._wait_for_an_item():
                    return False
                run = lent.enter_context(self._pool.borrowed())
                group = self._gather()
            tell = self._joining.run(run, group) if group else None
        if tell is not None:
            tell()
        return True

    def _wait_for_an_item(self) -> bool:
        """Wait for an item; return False at the end."""
        with self._came:
            while not self._waiting and not self._closed:
                self._came.wait()
            return not self._closed

    def _gather(self) -> list[Item]:
        """Return the items of the next group, once it is full or its first item has waited long enough."""
        with self._came:
            self._has_runner = True
            while self._waiting and not self._closed and self._rows < self.limit:
                left = self._joining.came(self._waiting[0]) + self._delay - time.monotonic()
                if left <= 0:
                    break
                self._came.wait(min(left, threading.TIMEOUT_MAX))  # more is an error, which would end the thread
            self._has_runner = False
            if not self._waiting:  # withdrawn, or refused at the end
                return []
            group, rows = self._joining.take(self._waiting, self.limit)
            self._rows -= rows
            return group
