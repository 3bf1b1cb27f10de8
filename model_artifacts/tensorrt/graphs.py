"""CUDA graphs of a session's batch shapes: those that are called most often are kept, within bounds.

A batch is never padded to a size that has a graph. Padded rows cost the GPU their full share, while a graph only saves
the launches, which matter for small batches alone; and the outputs would be those of another size's kernels.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from model_artifacts.host import cuda

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

MOST_GRAPHS = 64
"""The number of batch sizes whose graphs a session keeps, if their memory allows it."""
MOST_BYTES = 64 * 2**20
"""The GPU memory after which a session keeps no further graph. CUDA allocates it in steps of megabytes."""
_MORE_CALLS = 8
"""The lead in calls, beyond twice as many, that gives a batch size the graph of another one."""
_REMEMBERED_CALLS = 4096
"""The number of calls after which all counts are halved, so that the sizes of today outweigh those of yesterday."""


class SizeGraphs:
    """The graphs of a session by their batch size. Once all sizes have come, no calls capture any more."""

    def __init__(self, run: Callable[[], None], capture: Callable[[], cuda.Graph]) -> None:
        """Keep no graph yet.

        Args:
            run: runs the prepared batch and waits for it, which an engine must have done before a capture.
            capture: captures the prepared batch.
        """
        self._run = run
        self._capture = capture
        self._graphs: dict[Hashable, cuda.Graph] = {}
        self._bytes: Counter[Hashable] = Counter()
        self._calls: Counter[Hashable] = Counter()

    def __len__(self) -> int:
        """The number of graphs."""
        return len(self._graphs)

    def called(self, size: Hashable) -> cuda.Graph | None:
        """Return the graph of the batch size that is prepared; None if sizes that are called as often have them all.

        A capture costs more than a graph saves in a few calls, so that sizes in turn must not take it from each other.

        Raises:
            RunError: the capture failed.
        """
        self._calls[size] += 1
        if self._calls.total() >= _REMEMBERED_CALLS:
            self._calls = Counter({known: count // 2 for known, count in self._calls.items() if count > 1})
        if size in self._graphs:
            return self._graphs[size]
        rarest = min((self._calls[known] for known in self._graphs), default=0)
        if self._have_room() or self._calls[size] > 2 * rarest + _MORE_CALLS:
            return self.keep(size)
        return None

    def keep(self, size: Hashable) -> cuda.Graph:
        """Capture the batch size that is prepared, in place of those with the fewest calls as far as there is no room.

        Raises:
            RunError: the capture failed.
        """
        while self._graphs and not self._have_room():
            self._drop(min(self._graphs, key=lambda known: self._calls[known]))
        self._run()
        before = cuda.free_bytes()
        graph = self._graphs[size] = self._capture()
        # Whatever else takes memory in this moment counts, too, which errs on the side of fewer graphs.
        self._bytes[size] = max(0, before - cuda.free_bytes())
        return graph

    def close(self) -> None:
        """Destroy all graphs."""
        graphs = [*self._graphs.values()]
        self._graphs.clear()
        self._bytes.clear()
        cuda.close_all(graphs)

    def _have_room(self) -> bool:
        return len(self._graphs) < MOST_GRAPHS and self._bytes.total() < MOST_BYTES

    def _drop(self, size: Hashable) -> None:
        self._graphs.pop(size).close()
        del self._bytes[size]
