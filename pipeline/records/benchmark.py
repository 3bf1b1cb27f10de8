"""Records of the benchmark stage."""

from __future__ import annotations

from pydantic import Field

from model_artifacts.records import BatchTiming, ColdStart, Count, Doubt, FileRecord, Record, StageRecord
from pipeline.records.outcome import Outcome


class Range(Record):
    """Range of a sensor's readings over a run."""

    low: float
    """Smallest reading."""
    median: float
    """Median reading."""
    high: float
    """Largest reading."""


class Conditions(Record):
    """State of a GPU during timing, read through NVML."""

    sm_clock_mhz: Range
    """Clock of the streaming multiprocessors, in MHz."""
    memory_clock_mhz: Range
    """Clock of the memory, in MHz."""
    temperature_c: Range
    """Temperature of the GPU, in °C."""
    power_w: Range
    """Power draw, in W."""
    throttled_by: tuple[str, ...]
    """NVML's reasons for reduced clocks, each once; being idle is no reason."""


class BenchmarkReport(StageRecord):
    """Latencies of a variant: `benchmark.json` beside the artifact."""

    variant_id: str
    """Variant of the artifact: `model/target/name`."""
    outcome: Outcome
    """Outcome of the benchmark."""
    reason: str = ""
    """Reason for a failed or skipped benchmark, or notes on a successful one."""
    retryable: bool = Field(default=False, alias="mendable")
    """True if the variant was skipped, but the next run tries it again, because this host may change."""
    device: str = ""
    """GPU and driver, or processor and its number of cores."""
    threads: Count = 0
    """Number of processor cores that the process could use."""
    timings: tuple[BatchTiming, ...] = ()
    """Latencies, one entry per batch size, clock and layout."""
    samples: FileRecord | None = None
    """Every measured latency: npz with one array `<clock>_batch_<n>` per clock and batch size, in milliseconds."""
    cold_start: ColdStart | None = None
    """Time to the first result; None if it was not measured."""
    device_memory_bytes: Count | None = None
    """GPU memory that the artifact took until after its first run of every timed batch size, without CUDA's own
    context."""
    runtime_cache: FileRecord | None = None
    """Kernels that TensorRT-RTX compiled for this GPU, which the next process can load."""
    disturbed_by: tuple[str, ...] = ()
    """Other processes that computed on the GPU at the same time."""
    restarts: Count = 0
    """Number of times that the artifact was opened and timed, each time in a new process."""
    conditions: Conditions | None = None
    """State of the GPU during timing; None without a GPU or without NVML's readings."""
    noise: tuple[Doubt, ...] = ()
    """Reasons for doubt about the latencies."""

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """The raw samples and the runtime cache, as far as they exist."""
        return tuple(file for file in (self.samples, self.runtime_cache) if file)

    @property
    def folder(self) -> str:
        """The variant's folder, whose path is the variant's id."""
        return self.variant_id
