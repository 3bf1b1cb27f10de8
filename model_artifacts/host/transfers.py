"""Transfers of a store: several at a time, under one progress bar."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from model_artifacts.host.progress import Bars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from model_artifacts.records import FileRecord

T = TypeVar("T")
R = TypeVar("R")

_AT_ONCE = 8
"""Number of concurrent transfers."""


def at_once(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Call a function with every item, several at a time; the first failure cancels the rest and is raised."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


class Progress:
    """A progress bar in MB for several threads; a context manager that yields the function to report bytes to."""

    def __init__(self, doing: str, files: Iterable[FileRecord]) -> None:
        self._phase = f"{doing}, MB"
        self._total = sum(file.bytes for file in files)
        self._done = 0
        self._lock = threading.Lock()
        self._bars = Bars()

    def __enter__(self) -> Callable[[int], None]:
        self._bars.__enter__()
        self._bars.start(self._phase, None, _megabytes(self._total))
        return self._more

    def __exit__(self, *_: object) -> None:
        self._bars.finish(self._phase)
        self._bars.__exit__()

    def _more(self, count: int) -> None:
        with self._lock:
            self._done += count
            done = self._done
        self._bars.step(self._phase, _megabytes(done))


def _megabytes(count: int) -> int:
    return round(count / 1e6)
