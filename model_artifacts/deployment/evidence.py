"""Timings of an artifact → its speed on a device: measured there, or the nearest evidence of it. Pure."""

from __future__ import annotations

import math
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.records import ranking_clock

if TYPE_CHECKING:
    from model_artifacts.records import Gpu, ManifestEntry


class Nearness(IntEnum):
    """Likeness of the device of a timing to another device, the same one first."""

    SAME = 0
    """The same type of GPU, or the same processor with the same cores."""
    ARCHITECTURE = 1
    """A GPU of the same compute capability, or the same processor with other cores."""
    OTHER = 2
    """Another GPU or processor."""


class Evidence(NamedTuple):
    """The timing that is nearest to a device and a batch size."""

    nearness: Nearness
    batch: int
    p50_ms: float
    device: str
    """The device of the timing, as the manifest names it."""

    @property
    def rank(self) -> tuple[float, float]:
        """Sort key: the nearer device first, then the shorter time for an image."""
        return self.nearness, self.p50_ms / self.batch

    def __str__(self) -> str:
        """Return the timing as a phrase."""
        return f"{self.p50_ms:.4g} ms at batch {self.batch} on {self.device}"


def medians_of(entry: ManifestEntry) -> dict[int, float]:
    """Return the medians in milliseconds by batch size, by the ranking clock."""
    if not entry.timings:
        return {}
    clock = ranking_clock({timing.clock for timing in entry.timings})
    ranked = [timing for timing in entry.timings if timing.clock is clock]
    return {batch: min(t.p50_ms for t in ranked if t.batch == batch) for batch in {t.batch for t in ranked}}


def nearness_of(entry: ManifestEntry, gpu: Gpu | None, processor: str) -> Nearness:
    """Return the likeness of the device that timed an artifact to a device of a host.

    Args:
        entry: the artifact.
        gpu: the host's GPU; None for its processor.
        processor: the processor's name, a comma, and its cores.
    """
    timed = entry.device_type
    if timed == (gpu.name if gpu else processor):
        return Nearness.SAME
    if gpu:
        alike = entry.gpu is not None and entry.gpu.compute_capability == gpu.compute_capability
    else:
        alike = timed.rpartition(",")[0] == processor.rpartition(",")[0] != ""
    return Nearness.ARCHITECTURE if alike else Nearness.OTHER


def nearest(entry: ManifestEntry, gpu: Gpu | None, processor: str, batch: int | None) -> Evidence | None:
    """Return the timing that says most about an artifact's speed; None if it was timed nowhere.

    Args:
        entry: the artifact.
        gpu: the host's GPU; None for its processor.
        processor: the processor's name, a comma, and its cores.
        batch: the batch size, of which the nearest timed one counts; None for the one with the shortest time an image.
    """
    times = medians_of(entry)
    if not times:
        return None
    chosen = min(times, key=lambda timed: (abs(math.log(timed / batch)) if batch else 0.0, times[timed] / timed))
    return Evidence(nearness_of(entry, gpu, processor), chosen, times[chosen], entry.device_type)
