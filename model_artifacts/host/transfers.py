"""Transfers of a store: several at a time, under one progress bar."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, TypeVar

from model_artifacts.errors import StoreError
from model_artifacts.host.progress import Bars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from typing_extensions import Self

    from model_artifacts.records import FileRecord

T = TypeVar("T")
R = TypeVar("R")

_AT_ONCE = 8
"""Number of concurrent transfers."""


def at_once(work: Callable[[T], R], items: Sequence[T], cancel: Callable[[], None] = lambda: None) -> list[R]:
    """Call a function with every item, several at a time; the first failure cancels the rest and is raised.

    Args:
        work: the function.
        items: its arguments.
        cancel: ends the calls that are under way, such as `Progress.cancel`.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in as_completed(futures):  # a failure is raised when it comes, whatever its place
                future.result()
            return [future.result() for future in futures]
        except BaseException:
            cancel()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


class Progress:
    """A progress bar in MB for several threads: a context manager, and the function to report bytes to."""

    def __init__(self, doing: str, files: Iterable[FileRecord]) -> None:
        self._phase = f"{doing}, MB"
        self._total = sum(file.bytes for file in files)
        self._done = 0
        self._lock = threading.Lock()
        self._bars = Bars()
        self._cancelled = False

    def __enter__(self) -> Self:
        self._bars.__enter__()
        self._bars.start(self._phase, None, _megabytes(self._total))
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.finish(self._phase)
        self._bars.__exit__()

    def __call__(self, count: int) -> None:
        """Add transferred bytes.

        Raises:
            StoreError: the transfers were cancelled.
        """
        if self._cancelled:
            raise StoreError("another transfer failed or was interrupted")
        with self._lock:
            self._done += count
            done = self._done
        self._bars.step(self._phase, _megabytes(done))

    def cancel(self) -> None:
        """End each transfer at its next report. A slow one could go on for hours."""
        self._cancelled = True


def _megabytes(count: int) -> int:
    return round(count / 1e6)
