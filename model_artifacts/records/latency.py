"""Records: the frozen, validated types that cross modules and that JSON files hold.

A record refuses unknown fields, is checked once when it is made, and round-trips through JSON. Units are in the names.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PositiveInt

from model_artifacts.records.base import Microseconds, Milliseconds, Record
from model_artifacts.records.variants import Layout

if TYPE_CHECKING:
    from collections.abc import Collection


class Clock(str, Enum):
    """What a latency is the time of."""

    HOST = "host"
    """A call: input and output in the host's memory, by the host's clock."""
    GPU = "gpu"
    """The work on the GPU, between two events on its stream; input and output stay there."""
    GPU_GRAPH = "gpu-graph"
    """The same, replayed as a CUDA graph."""
    COPIES = "copies"
    """The graph with the copies from and to pinned memory of the host around it, all on one stream."""
    STREAMS = "streams"
    """Several batches at once, each on its own stream: the time a batch. Throughput, not latency."""

    @property
    def phrase(self) -> str:
        """How it was timed, as a message says it."""
        return {
            Clock.HOST: "by the host's clock",
            Clock.GPU: "on the GPU, without a CUDA graph",
            Clock.GPU_GRAPH: "on the GPU, as a CUDA graph",
            Clock.COPIES: "with the copies to and from the GPU",
            Clock.STREAMS: "a batch, with several streams",
        }[self]


CLOCKS = (Clock.GPU_GRAPH, Clock.GPU, Clock.COPIES, Clock.HOST, Clock.STREAMS)
"""The one that tells most of an engine first."""


def ranking_clock(clocks: Collection[Clock]) -> Clock:
    """Return the clock that variants are compared by: a CUDA graph's, without one the GPU's, on a CPU the host's.

    Every other one is paced by the host's launches and copies too.

    Args:
        clocks: those that a variant was timed by, at least one.
    """
    return min(clocks, key=CLOCKS.index)


class BatchTiming(Record):
    """Latencies of whole batches."""

    batch: PositiveInt
    clock: Clock = Clock.HOST
    layout: Layout = Layout.CONTIGUOUS
    """Of the images."""
    runs: PositiveInt
    p50_ms: Milliseconds
    p90_ms: Milliseconds
    p99_ms: Milliseconds
    p50_low_ms: Milliseconds | None = None
    p50_high_ms: Milliseconds | None = None
    """The ends of the median's 95 % bootstrap interval, over all rounds of all restarts."""
    throughput_per_s: Annotated[float, Field(ge=0)]
    """Images a second: batch / p50."""
    speedup: float | None
    """p50 of eager FP32 at this batch, measured in the same rounds, over this p50."""
    enqueue_us: Microseconds | None = None
    """Median time that the host spends to put one batch on the GPU's stream."""

    @property
    def interval_ms(self) -> tuple[float, float]:
        """The ends of the median's interval; the median itself twice where there is none."""
        return (
            self.p50_ms if self.p50_low_ms is None else self.p50_low_ms,
            self.p50_ms if self.p50_high_ms is None else self.p50_high_ms,
        )

    def ties_with(self, other: BatchTiming) -> bool:
        """Return whether two medians cannot be told apart, because their intervals overlap."""
        (low, high), (other_low, other_high) = self.interval_ms, other.interval_ms
        return max(low, other_low) <= min(high, other_high)


class ColdStart(Record):
    """From opening an artifact to its first result, in a process that has CUDA and the library loaded."""

    seconds: Annotated[float, Field(ge=0)]
    cached_seconds: Annotated[float, Field(ge=0)] | None
    """The same with the runtime cache that lies beside the engine, where the flavour has one."""


class Doubt(Record):
    """A reason not to trust latencies to the last digit."""

    what: str
    """A sentence that many variants may share."""
    detail: str
    """How much, or which, of this variant."""

    def __str__(self) -> str:
        """Return both as one sentence."""
        return f"{self.what}: {self.detail}"
