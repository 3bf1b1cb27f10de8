"""Inputs on the cluster: one copy for all steps that take it, removed after the last of them."""

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
    """A file as the cluster's references to its pieces."""


@dataclass
class _Held:
    """An input that steps need."""

    users: int = 0
    """Steps that need it now."""
    objects: Objects | None = None
    """None until the cluster has it."""
    lock: threading.Lock = field(default_factory=threading.Lock)


class Sent:
    """The inputs of all running steps."""

    def __init__(self, put: Callable[[Path | bytes], Objects]) -> None:
        """Begin without inputs.

        Args:
            put: sends a file to the cluster and returns its objects.
        """
        self._put = put
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}

    @contextmanager
    def holding(self, inputs: Sequence[Input]) -> Iterator[list[Objects]]:
        """Hand out a step's inputs as objects of the cluster, and remove them after their last step."""
        with ExitStack() as stack:
            yield [stack.enter_context(self._holding(item)) for item in inputs]

    @contextmanager
    def _holding(self, item: Input) -> Iterator[Objects]:
        """Hand out one input, and send it first if the cluster lacks it."""
        digest = item.record.sha256
        with self._lock:
            held = self._held.setdefault(digest, _Held())
            held.users += 1
        try:
            with held.lock:  # steps that need the same input wait, others do not
                if held.objects is None:
                    held.objects = self._put(item.content)
            yield held.objects
        finally:
            with self._lock:
                held.users -= 1
                if not held.users:
                    del self._held[digest]
