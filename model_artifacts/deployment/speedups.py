"""Speed-ups over eager FP32, with no more digits than the intervals of both latencies allow. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.records import Backend, Clock, Layout, Precision

if TYPE_CHECKING:
    from collections.abc import Iterable

    from model_artifacts.records import BatchTiming, ManifestEntry


class Speedup(NamedTuple):
    """Factor between the latency of eager FP32 and an artifact's."""

    factor: float | None
    """None if the two latencies are not told apart, because their 95 % intervals overlap."""
    at_least: bool = False
    """True if the factor is the least that the intervals allow."""

    @property
    def short(self) -> str:
        """The factor in a table: `5.42×`, `≥5.1×`, or nothing if there is none to tell."""
        if self.factor is None:
            return ""
        if not self.at_least:
            return f"{self.factor:.2f}×"
        digits = f"{self.factor:.1f}" if self.factor < 10 else f"{self.factor:.0f}"  # noqa: PLR2004 - two digits
        return f"≥{digits}×"

    @property
    def phrase(self) -> str:
        """The factor in a sentence."""
        if self.factor is None:
            return "not told apart from eager FP32"
        return f"{self.short.replace('≥', 'at least ')} eager FP32"


def speedup_of(
    entry: ManifestEntry, timing: BatchTiming, entries: Iterable[ManifestEntry], *, tied: bool = False
) -> Speedup | None:
    """Return an artifact's speed-up over eager FP32; None if eager FP32 was not timed beside it.

    Args:
        entry: the artifact.
        timing: its latency.
        entries: artifacts among which eager FP32 is looked for. Without it, its interval is taken for narrow.
        tied: True if the artifact is not told apart from another one. Then only the least factor is a fact.
    """
    if not timing.speedup:
        return None
    eager = _eager(entry, timing, entries)
    if is_eager(entry):
        return Speedup(None if tied else timing.speedup)
    if eager is not None and eager.ties_with(timing):
        return Speedup(None)
    if not tied:
        return Speedup(timing.speedup)
    slowest = timing.interval_ms[1] / timing.p50_ms if timing.p50_ms else 1.0
    fastest = eager.interval_ms[0] / eager.p50_ms if eager and eager.p50_ms else 1.0
    return Speedup(_rounded_down(timing.speedup * fastest / slowest), at_least=True)


def is_eager(entry: ManifestEntry) -> bool:
    """Return True for eager FP32, which others are compared with."""
    return entry.backend is Backend.EAGER and entry.precision is Precision.FP32


def _eager(entry: ManifestEntry, timing: BatchTiming, entries: Iterable[ManifestEntry]) -> BatchTiming | None:
    """Return the latency of eager FP32 that a speed-up is over: on the GPU's clock, without a CUDA graph."""
    clock = Clock.GPU if timing.clock in {Clock.GPU_GRAPH, Clock.STREAMS} else timing.clock
    wanted = (timing.batch, clock, Layout.CONTIGUOUS)
    return next(
        (
            found
            for other in entries
            if is_eager(other) and other.device == entry.device
            for found in other.timings
            if (found.batch, found.clock, found.layout) == wanted
        ),
        None,
    )


def _rounded_down(factor: float) -> float:
    """Return a factor of two digits that is not larger; whole from ten on."""
    return float(math.floor(factor)) if factor >= 10 else math.floor(factor * 10) / 10  # noqa: PLR2004 - two digits
