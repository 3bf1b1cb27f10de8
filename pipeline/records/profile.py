"""Records: the frozen, validated types that cross modules and that JSON files hold.

A record refuses unknown fields, is checked once when it is made, and round-trips through JSON. Units are in the names.
"""

from __future__ import annotations

from pydantic import Field, PositiveInt

from model_artifacts.records import Count, FileRecord, Microseconds, Precision, Record, Share, StageRecord, Tool
from pipeline.records.outcome import Outcome


class LayerTime(Record):
    """A layer of an engine, or a node of an ONNX graph, and the time that it takes."""

    name: str
    kind: str
    """Its type, in the library's words."""
    precision: Precision | None = None
    """What it multiplies in, or gives; None where it is not told."""
    tactic: str = ""
    """The kernel that the builder chose."""
    shape: str = ""
    """Of its first output, such as `1x64x112x112`."""
    weights: Count = 0
    """How many values; 0 also where they are not told."""
    median_us: Microseconds
    """For one batch."""
    share: Share
    """Of the time of all layers."""


class HotFunction(Record):
    """A kernel of a GPU, or an operator of torch on a CPU, and the time spent in it."""

    name: str
    calls: PositiveInt
    total_us: Microseconds
    """In all calls."""
    share: Share
    """Of the time in all functions."""


class LayerProfile(StageRecord):
    """What takes a variant's time: `layers.json` beside the artifact."""

    variant_id: str
    outcome: Outcome
    reason: str = ""
    """Why there is no profile, or what is missing from it."""
    retryable: bool = Field(default=False, alias="mendable")
    """Whether it was skipped for what this host may have the next time: then it is tried again."""
    device: str = ""
    batch: Count = 0
    runs: Count = 0
    """How many batches the times are of."""
    layers: tuple[LayerTime, ...] = ()
    """The hottest first."""
    copy_share: Share = 0.0
    """Of the layers' time, in those that only reformat, convert or copy."""
    functions: tuple[HotFunction, ...] = ()
    """The hottest first."""
    profilers: tuple[Tool, ...] = ()
    """What measured layers and functions."""
    command: str = ""
    """What recorded the trace."""
    trace: FileRecord | None = None
    """For Nsight Systems to open."""

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """The trace."""
        return (self.trace,) if self.trace else ()
