"""Records of the benchmark stage."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from model_artifacts.records import (
    BatchTiming,
    Clock,
    ColdStart,
    Count,
    Doubt,
    FileRecord,
    Layout,
    Link,
    Record,
    Sha256,
    VariantRecord,
)
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


class BenchmarkReport(VariantRecord):
    """Latencies of a variant: `benchmark.json` beside the artifact."""

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
    link: Link | None = None
    """Rates of the copies to and from the GPU, measured once before the latencies; None without a GPU."""

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """The raw samples and the runtime cache, as far as they exist."""
        return tuple(file for file in (self.samples, self.runtime_cache) if file)


class TimedVariant(Record):
    """Variant that took part in the rounds of a restart."""

    variant_id: str
    """Variant: `model/target/name`."""
    key_sha256: Sha256
    """Digest of the staleness key of its own restart."""


class TimedSet(Record):
    """Clock, batch size and layout of samples."""

    clock: Clock
    """The clock that measured them."""
    batch: Count
    """Number of images in a batch."""
    layout: Layout
    """Memory layout of the images."""


class RestartRecord(VariantRecord):
    """Samples of a variant and of its baseline in one restart: `benchmark.restart-1.json` beside the artifact."""

    restart: Annotated[int, Field(ge=1)]
    """Number of the restart."""
    run: str
    """Name of the run that took it. Its groups are timed soon after each other."""
    taken: str
    """Name of the rounds. Variants with the same name were timed against each other."""
    timed_with: tuple[TimedVariant, ...]
    """All variants with a record of these rounds, this one included."""
    sets: tuple[TimedSet, ...]
    """Sample sets of the variant, in their order."""
    baseline_sets: tuple[TimedSet, ...]
    """Sample sets of eager FP32 in the same rounds; empty if it was not timed."""
    samples: FileRecord
    """Every latency: npz with arrays as in `benchmark.npz`, those of the baseline beginning with `baseline_`."""
    notes: tuple[str, ...] = ()
    """Reasons why clocks are missing."""
    unsettled: tuple[str, ...] = ()
    """Batch sizes whose warm-up did not settle."""
    disturbed_by: tuple[str, ...] = ()
    """Other processes that computed on the GPU at the same time."""
    conditions: Conditions | None = None
    """State of the GPU during timing; the samples' file has every reading."""
    cold_start: ColdStart | None = None
    """Time to the first result; only the first restart has it."""
    tuning_seconds: Annotated[float, Field(ge=0)] | None = None
    """Time to the first result in a restart that tuned inductor's kernels; None if an earlier one had."""
    device_memory_bytes: Count | None = None
    """GPU memory that the artifact took."""
    runtime_cache: FileRecord | None = None
    """Kernels that the first restart compiled, which later ones load."""
    link: Link | None = None
    """Rates of the copies to and from the GPU; only the first restart has them."""

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """The samples, and the runtime cache if there is one."""
        return tuple(file for file in (self.samples, self.runtime_cache) if file)
