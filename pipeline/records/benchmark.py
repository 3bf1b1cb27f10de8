"""Records: the frozen, validated types that cross modules and that JSON files hold.

A record refuses unknown fields, is checked once when it is made, and round-trips through JSON. Units are in the names.
"""

from __future__ import annotations

from pydantic import Field

from model_artifacts.records import BatchTiming, ColdStart, Count, Doubt, FileRecord, Record, StageRecord
from pipeline.records.outcome import Outcome


class Range(Record):
    """What a sensor showed over a run."""

    low: float
    median: float
    high: float


class Conditions(Record):
    """What NVML told of a GPU while something was timed on it."""

    sm_clock_mhz: Range
    memory_clock_mhz: Range
    temperature_c: Range
    power_w: Range
    throttled_by: tuple[str, ...]
    """Why its clocks were held down, in NVML's words, each once; being idle is no reason."""


class BenchmarkReport(StageRecord):
    """A variant's latencies: `benchmark.json` beside the artifact."""

    variant_id: str
    outcome: Outcome
    reason: str = ""
    retryable: bool = Field(default=False, alias="mendable")
    """Whether it was skipped for what this host may have the next time: then it is tried again."""
    device: str = ""
    threads: Count = 0
    timings: tuple[BatchTiming, ...] = ()
    samples: FileRecord | None = None
    """Every latency measured: npz, one array `<clock>_batch_<n>` a clock and batch size, in milliseconds."""
    cold_start: ColdStart | None = None
    device_memory_bytes: Count | None = None
    """What it had taken from the GPU's free memory after its first run of every timed batch size, CUDA's own context
    not counted."""
    runtime_cache: FileRecord | None = None
    """The kernels that TensorRT-RTX compiled for this GPU, for the next process to load."""
    disturbed_by: tuple[str, ...] = ()
    """Other processes that computed on the GPU meanwhile."""
    restarts: Count = 0
    """How often it was opened and timed anew, each time in a fresh process."""
    conditions: Conditions | None = None
    noise: tuple[Doubt, ...] = ()
    """Why these latencies are not to be trusted to the last digit."""

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """The raw samples, and the runtime cache."""
        return tuple(file for file in (self.samples, self.runtime_cache) if file)
