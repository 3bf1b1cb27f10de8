"""Records of measured latencies with the clocks that measure them, and of loads."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PositiveInt

from model_artifacts.records.base import Microseconds, Milliseconds, Record
from model_artifacts.records.variants import Layout

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


class Clock(str, Enum):
    """Clock of a latency: the interval that it covers."""

    HOST = "host"
    """A whole call by the host's clock, with input and output in the host's memory."""
    GPU = "gpu"
    """The work on the GPU, between two events on its stream; input and output stay in GPU memory."""
    GPU_GRAPH = "gpu-graph"
    """The same work, replayed as a CUDA graph."""
    COPIES = "copies"
    """The CUDA graph, and the copies from and to pinned host memory around it, all on one stream."""
    PINNED = "pinned"
    """Host to host: the same work and copies by the host's clock, from pinned memory to pinned memory, one batch at a
    time."""
    OVERLAPPED = "overlapped"
    """Host to host in a row: the copies of some batches beside the computation of another, from pinned memory to
    pinned memory; the time per batch. A throughput, not a latency."""
    STREAMS = "streams"
    """Several batches at once, each on its own stream: the time per batch. A throughput, not a latency."""

    @property
    def phrase(self) -> str:
        """The clock as a phrase in messages."""
        return {
            Clock.HOST: "by the host's clock",
            Clock.GPU: "on the GPU, without a CUDA graph",
            Clock.GPU_GRAPH: "on the GPU, as a CUDA graph",
            Clock.COPIES: "with the copies to and from the GPU",
            Clock.PINNED: "from host to host, pinned",
            Clock.OVERLAPPED: "per batch from host to host, copies overlapped",
            Clock.STREAMS: "per batch, with several streams",
        }[self]

    @property
    def is_latency(self) -> bool:
        """True if it times one batch from its beginning to its end; false if several are under way at once."""
        return self not in {Clock.STREAMS, Clock.OVERLAPPED}

    @property
    def of_eager(self) -> Clock:
        """The clock of eager FP32 that speed-ups by this one are over.

        On the GPU that is a plain user's run, between two events, without a CUDA graph and one batch after the other.
        """
        if self in {Clock.GPU_GRAPH, Clock.STREAMS}:
            return Clock.GPU
        return Clock.PINNED if self is Clock.OVERLAPPED else self

    @property
    def counts_copies(self) -> bool:
        """True if copies from and to pinned memory are in its interval."""
        return self in {Clock.COPIES, Clock.PINNED, Clock.OVERLAPPED}


CLOCKS = (
    Clock.GPU_GRAPH,
    Clock.GPU,
    Clock.COPIES,
    Clock.PINNED,
    Clock.HOST,
    Clock.STREAMS,
    Clock.OVERLAPPED,
)
"""All clocks; the one that says most about an engine comes first."""


def ranking_clock(clocks: Collection[Clock]) -> Clock:
    """Return the clock for comparisons: with a CUDA graph, else on the GPU, and on a CPU by the host.

    The other clocks also measure the host's launches and copies.

    Args:
        clocks: the clocks that timed a variant, at least one.
    """
    return min(clocks, key=CLOCKS.index)


class BatchTiming(Record):
    """Latencies of whole batches, at one batch size and by one clock."""

    batch: PositiveInt
    """Number of images in a batch."""
    clock: Clock = Clock.HOST
    """The clock that measured the latencies."""
    layout: Layout = Layout.CONTIGUOUS
    """Memory layout of the images."""
    runs: PositiveInt
    """Number of timed batches."""
    p50_ms: Milliseconds
    """Median."""
    p90_ms: Milliseconds
    """90th percentile."""
    p99_ms: Milliseconds
    """99th percentile."""
    p50_low_ms: Milliseconds | None = None
    """Lower end of the median's 95 % bootstrap interval, over all rounds of all restarts."""
    p50_high_ms: Milliseconds | None = None
    """Upper end of that interval."""
    throughput_per_s: Annotated[float, Field(ge=0)]
    """Images per second: batch / p50."""
    speedup: float | None
    """Median of eager FP32 at this batch, measured in the same rounds, divided by this median."""
    enqueue_us: Microseconds | None = None
    """Median time that the host spends to put one batch on the GPU's stream."""

    @property
    def interval_ms(self) -> tuple[float, float]:
        """Both ends of the median's interval; the median itself twice if there is no interval."""
        return (
            self.p50_ms if self.p50_low_ms is None else self.p50_low_ms,
            self.p50_ms if self.p50_high_ms is None else self.p50_high_ms,
        )

    @property
    def has_interval(self) -> bool:
        """False if nothing tells how far the median spreads, as after one round of one restart."""
        low, high = self.interval_ms
        return low < high

    def ties_with(self, other: BatchTiming) -> bool:
        """Return True if the intervals of two medians overlap, so that the medians may be equal."""
        (low, high), (other_low, other_high) = self.interval_ms, other.interval_ms
        return max(low, other_low) <= min(high, other_high)


class Link(Record):
    """Rates of the copies between the host's pinned memory and a GPU, as measured: PCIe's."""

    gpu: str
    """Name of the GPU."""
    to_gpu_bytes_per_s: Annotated[float, Field(gt=0)]
    """Median rate of copies to the GPU."""
    to_host_bytes_per_s: Annotated[float, Field(gt=0)]
    """Median rate of copies to the host."""
    copied_bytes: PositiveInt
    """Size of each copy."""
    copies: PositiveInt
    """Number of timed copies in each direction."""

    def floor_ms(self, to_gpu_bytes: int, to_host_bytes: int) -> float:
        """Return the least time of a batch's copies, in ms: one after the other, at these rates.

        Args:
            to_gpu_bytes: the size of its inputs.
            to_host_bytes: the size of its outputs.
        """
        return (to_gpu_bytes / self.to_gpu_bytes_per_s + to_host_bytes / self.to_host_bytes_per_s) * 1e3


def fastest_links(links: Iterable[Link]) -> tuple[Link, ...]:
    """Return the rates of copies of each GPU, the fastest that were measured, because a floor is of them."""
    best: dict[str, Link] = {}
    for link in links:
        known = best.get(link.gpu)
        if known is None or link.floor_ms(1, 1) < known.floor_ms(1, 1):
            best[link.gpu] = link
    return tuple(best[name] for name in sorted(best))


class ColdStart(Record):
    """Time from opening an artifact to its first result, in a process with CUDA and the library already loaded."""

    seconds: Annotated[float, Field(ge=0)]
    """The time without a runtime cache."""
    cached_seconds: Annotated[float, Field(ge=0)] | None
    """The time with the runtime cache beside the engine; None if the flavour has no such cache."""


class Doubt(Record):
    """A reason for doubt about the last digits of latencies."""

    what: str
    """The reason, in words that many variants may share."""
    detail: str
    """The extent or the cause for this variant."""

    def __str__(self) -> str:
        """Return the reason and its detail as one line."""
        return f"{self.what}: {self.detail}"


class Scenario(str, Enum):
    """Pattern of queries, as MLPerf Inference defines it (its rules, section "Scenarios")."""

    SINGLE_STREAM = "single_stream"
    """One image a query; the next query comes when the last one is answered."""
    MULTI_STREAM = "multi_stream"
    """Eight images a query; the next query comes when the last one is answered."""
    OFFLINE = "offline"
    """All images in one query."""
    SERVER = "server"
    """One image a query; queries come at random, as a Poisson process, whether or not earlier ones are answered."""


class LoadSettings(Record):
    """Settings of the loader under load."""

    contexts: PositiveInt
    """Most batches that run at once: `contexts` of `load`, instances in Triton."""
    batch: PositiveInt
    """Most images in a batch: calls are joined up to it, larger queries are cut. `Batching.max_size` in `load`."""
    max_delay_ms: Milliseconds
    """Longest time that a call waits for others to join it: `Batching.max_delay_ms` in `load`."""


class LoadResult(Record):
    """Result of a scenario, of a run that LoadGen calls valid, by the settings that won."""

    scenario: Scenario
    """Pattern of the queries."""
    p99_bound_ms: Milliseconds | None = None
    """Bound of the 99th percentile that the rate keeps, of a server; None for other scenarios."""
    settings: LoadSettings
    """Settings that won."""
    samples_per_query: PositiveInt
    """Images in a query; offline, of the whole run."""
    queries: PositiveInt
    """Number of queries."""
    rate_per_s: Annotated[float, Field(ge=0)]
    """Images per second: answered ones, and of a server those that came."""
    p50_ms: Milliseconds
    """Median latency of a query, by LoadGen."""
    p90_ms: Milliseconds
    """90th percentile."""
    p99_ms: Milliseconds
    """99th percentile."""


class Load(Record):
    """Results of an artifact under load, in one process on one device."""

    device: str
    """GPU and driver, or processor and its number of cores."""
    loadgen: str
    """Version of MLCommons' LoadGen, which sent the queries and judged the runs."""
    results: tuple[LoadResult, ...]
    """One for each scenario, and of a server for each bound that some rate keeps."""

    def server(self, p99_ms: float | None = None) -> LoadResult | None:
        """Return the result of a server.

        Args:
            p99_ms: the bound in milliseconds; None takes the strictest that some rate keeps.

        Returns:
            the result of the loosest bound that promises as much; None if there is none.
        """
        kept = {item.p99_bound_ms: item for item in self.results if item.p99_bound_ms is not None}
        if p99_ms is None:
            return kept[min(kept)] if kept else None
        within = [bound for bound in kept if bound <= p99_ms]
        return kept[max(within)] if within else None
