"""Inputs on the cluster: each is put there once for all steps that take it, and stays no longer than one needs it."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from pipeline.farm.parcels import Input

    Objects = list[Any]
    """A file in pieces, as the cluster calls them."""


@dataclass
class _Held:
    """An input that steps need."""

    users: int = 0
    objects: Objects | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class Sent:
    """The inputs of the steps that are under way."""

    def __init__(self, put: Callable[[Path | bytes], Objects]) -> None:
        """Begin with none.

        Args:
            put: gives a file to the cluster.
        """
        self._put = put
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}

    @contextmanager
    def holding(self, inputs: Sequence[Input]) -> Iterator[list[Objects]]:
        """Hand out a step's inputs as objects of the cluster, which go with the last step that needs them."""
        with ExitStack() as stack:
            yield [stack.enter_context(self._holding(item)) for item in inputs]

    @contextmanager
    def _holding(self, item: Input) -> Iterator[Objects]:
        digest = item.record.sha256
        with self._lock:
            held = self._held.setdefault(digest, _Held())
            held.users += 1
        try:
            with held.lock:  # others that need the same wait for it; nobody else does
                if held.objects is None:
                    held.objects = self._put(item.content)
            yield held.objects
        finally:
            with self._lock:
                held.users -= 1
                if not held.users:
                    del self._held[digest]
