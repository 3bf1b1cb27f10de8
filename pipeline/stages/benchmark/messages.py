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
    """A message that the process has imported its libraries. Sent back, it lets the process open the artifact."""


@dataclass(frozen=True)
class Ready:
    """A message that the artifact is open."""

    cold_start: ColdStart | None = None
    device_memory_bytes: int | None = None
    runtime_cache: FileRecord | None = None
    tuning_seconds: float | None = None
    """Time to the first result of a module whose kernels inductor tuned; None if it loaded them, or has none."""


@dataclass(frozen=True)
class Ask:
    """A request to time a batch size."""

    batch: int
    runs: int
    """The smallest number of runs."""
    milliseconds: float
    """The shortest duration."""
    warm_up_seconds: float = 0.0
    """The time limit of a warm-up until the medians settle; 0 times the batches instead."""


@dataclass(frozen=True)
class AskLink:
    """A request to measure the rates of copies to and from the GPU, which a `Link` or a `NoLink` answers."""


@dataclass(frozen=True)
class NoLink:
    """An answer without rates, which keeps no variant from being timed."""

    reason: str


@dataclass(frozen=True)
class Samples:
    """A round's latencies, by one clock."""

    clock: Clock
    milliseconds: tuple[float, ...]
    enqueue_us: tuple[float, ...] = ()
    layout: Layout = Layout.CONTIGUOUS
    note: str = ""
    """The reason why another clock could not be timed."""


@dataclass(frozen=True)
class Warm:
    """The answer to an `Ask` that only warms up."""

    settled: bool


class SampleSet(NamedTuple):
    """The clock, batch size and layout of samples."""

    clock: Clock
    batch: int
    layout: Layout = Layout.CONTIGUOUS

    @property
    def name(self) -> str:
        """The name of their array on disk."""
        layout = "" if self.layout is Layout.CONTIGUOUS else f"_{self.layout.value}"
        return f"{self.clock.value}{layout}_batch_{self.batch}"
