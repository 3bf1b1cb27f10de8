"""Records of the profile stage."""

from __future__ import annotations

from pydantic import Field, PositiveInt

from model_artifacts.records import Count, FileRecord, Microseconds, Precision, Record, Share, Tool, VariantRecord
from pipeline.records.outcome import Outcome


class LayerTime(Record):
    """Time of a layer of an engine, or of a node of an ONNX graph."""

    name: str
    """The library's name of the layer."""
    kind: str
    """Type of the layer, in the library's words."""
    precision: Precision | None = None
    """Type in which the layer multiplies, or of its output; None if unknown."""
    tactic: str = ""
    """The kernel that the builder chose."""
    shape: str = ""
    """Shape of the first output, such as `1x64x112x112`."""
    weights: Count = 0
    """Number of weight values; 0 also if unknown."""
    median_us: Microseconds
    """Median time for one batch."""
    share: Share
    """Fraction of the time of all layers."""


class HotFunction(Record):
    """Time spent in a GPU kernel, or in an operator of torch on a CPU."""

    name: str
    """Name of the kernel or operator."""
    calls: PositiveInt
    """Number of calls."""
    total_us: Microseconds
    """Time of all calls together."""
    share: Share
    """Fraction of the time in all functions."""


class LayerProfile(VariantRecord):
    """Profile of a variant's time: `layers.json` beside the artifact."""

    outcome: Outcome
    """Outcome of the profile."""
    reason: str = ""
    """Reason for a missing profile, or for a part that is missing from it."""
    retryable: bool = Field(default=False, alias="mendable")
    """True if the variant was skipped, but the next run tries it again, because this host may change."""
    device: str = ""
    """GPU and driver, or processor and its number of cores."""
    batch: Count = 0
    """Number of images in a batch."""
    runs: Count = 0
    """Number of profiled batches."""
    layers: tuple[LayerTime, ...] = ()
    """Layers, the slowest first."""
    copy_share: Share = 0.0
    """Fraction of the layers' time in layers that only reformat, convert or copy."""
    functions: tuple[HotFunction, ...] = ()
    """Functions, the slowest first."""
    profilers: tuple[Tool, ...] = ()
    """Profilers that measured the layers and functions."""
    command: str = ""
    """Command that recorded the trace."""
    trace: FileRecord | None = None
    """Trace for Nsight Systems; None without one."""

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """The trace, if there is one."""
        return (self.trace,) if self.trace else ()
