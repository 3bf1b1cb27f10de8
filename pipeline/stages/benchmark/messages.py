"""Messages between the benchmark and a variant's process.

A process that cannot go on sends an `Ending` in place of an answer, and ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.records import Clock, Layout

if TYPE_CHECKING:
    from model_artifacts.records import ColdStart, FileRecord


@dataclass(frozen=True)
class Started:
    """The process has imported its libraries; sent back, it is its turn to open the artifact."""


@dataclass(frozen=True)
class Ready:
    """The artifact is open."""

    cold_start: ColdStart | None = None
    device_memory_bytes: int | None = None
    runtime_cache: FileRecord | None = None


@dataclass(frozen=True)
class Ask:
    """What the process is asked to time."""

    batch: int
    runs: int
    """How many at least."""
    milliseconds: float
    """How long at least."""
    warm_up_seconds: float = 0.0
    """Above 0: only warm up, until the medians settle, for no longer than this."""


@dataclass(frozen=True)
class Samples:
    """A round's latencies, by one clock."""

    clock: Clock
    milliseconds: tuple[float, ...]
    enqueue_us: tuple[float, ...] = ()
    layout: Layout = Layout.CONTIGUOUS
    note: str = ""
    """What could not be timed beside it, and why."""


@dataclass(frozen=True)
class Warm:
    """The answer to an `Ask` that only warms up."""

    settled: bool


class SampleSet(NamedTuple):
    """What samples are of."""

    clock: Clock
    batch: int
    layout: Layout = Layout.CONTIGUOUS

    @property
    def name(self) -> str:
        """What their array is called on disk."""
        layout = "" if self.layout is Layout.CONTIGUOUS else f"_{self.layout.value}"
        return f"{self.clock.value}{layout}_batch_{self.batch}"
