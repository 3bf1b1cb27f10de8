"""The order in which buffers take batches: each in turn, and none again before its result was taken. Pure."""

from __future__ import annotations

from collections import deque

from model_artifacts.errors import RunError, UsageError

FEWEST, MOST = 2, 4
"""The number of buffers: one to copy and one to compute, at most one each to fill, copy in, compute and copy out."""


def require_buffers(count: object) -> None:
    """Check the number of buffers.

    Raises:
        UsageError: it is another number, or no whole one.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not FEWEST <= count <= MOST:
        raise UsageError(
            "copies cannot overlap with so many buffers",
            expected=f"{FEWEST} to {MOST} buffers",
            got=repr(count),
            fix="take 3: one is copied in, one computed, one copied out",
        )


class Turns:
    """The batches under way, the oldest first, by the numbers of their buffers."""

    def __init__(self, buffers: int) -> None:
        """Begin with no batch.

        Raises:
            UsageError: the number of buffers is none that overlaps.
        """
        require_buffers(buffers)
        self._buffers = buffers
        self._busy: deque[int] = deque()
        self._next = 0

    def __len__(self) -> int:
        """The number of batches under way."""
        return len(self._busy)

    @property
    def full(self) -> bool:
        """Return True if every buffer has a batch, so that a result must be taken first."""
        return len(self._busy) == self._buffers

    @property
    def next(self) -> int:
        """Return the buffer of the next batch.

        Raises:
            RunError: every buffer has a batch.
        """
        if self.full:
            raise RunError("all buffers have a batch", expected="a call of `result` first", got="one more batch")
        return self._next

    @property
    def oldest(self) -> int:
        """Return the buffer of the batch that was started first.

        Raises:
            RunError: no batch is under way.
        """
        if not self._busy:
            raise RunError("no batch is under way", expected="a batch first", got="a call of `result`")
        return self._busy[0]

    def start(self) -> int:
        """Note that the next batch is under way, and return its buffer.

        Raises:
            RunError: every buffer has a batch.
        """
        buffer = self.next
        self._busy.append(buffer)
        self._next = (buffer + 1) % self._buffers
        return buffer

    def end(self) -> int:
        """Note that the oldest batch's result was taken, and return its buffer.

        Raises:
            RunError: no batch is under way.
        """
        buffer = self.oldest
        self._busy.popleft()
        return buffer
