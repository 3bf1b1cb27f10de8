"""The manifest's entries → milestones: the speed of each step from eager FP32 to the best engine. Pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.records import AHEAD_OF_TIME, Backend, Clock, Layout, Milestone, Precision, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from model_artifacts.records import BatchTiming, Gpu, ManifestEntry


class _Kind(NamedTuple):
    """A row of the table of milestones."""

    label: str
    backends: frozenset[Backend]
    precision: Precision | None
    """None for any."""


_KINDS = (
    _Kind("eager FP32", frozenset({Backend.EAGER}), Precision.FP32),
    _Kind("torch_compile FP32", frozenset({Backend.TORCH_COMPILE}), Precision.FP32),
    _Kind("torch_compile FP16", frozenset({Backend.TORCH_COMPILE}), Precision.FP16),
    _Kind("dynamo FP32", AHEAD_OF_TIME, Precision.FP32),
    _Kind("dynamo FP16", AHEAD_OF_TIME, Precision.FP16),
    _Kind("the best engine", frozenset({Backend.TENSORRT}), None),
)


def milestones_of(entries: Sequence[ManifestEntry], gpu_of: Callable[[str], Gpu | None]) -> tuple[Milestone, ...]:
    """Return the milestones of every GPU, for every batch size with a timing on it.

    Args:
        entries: the manifest's entries.
        gpu_of: a target's name → its GPU on this host; None for the CPU's target.
    """
    by_gpu: dict[str, list[ManifestEntry]] = {}
    for entry in entries:
        if gpu := gpu_of(entry.target):
            by_gpu.setdefault(gpu.name, []).append(entry)
    return tuple(
        row
        for gpu_name, members in by_gpu.items()
        for batch in sorted({timing.batch for entry in members for timing in entry.timings})
        for row in _rows(gpu_name, batch, members)
    )


def _rows(gpu: str, batch: int, entries: list[ManifestEntry]) -> list[Milestone]:
    """Return the steps of which the plan has an artifact: others would be empty rows."""
    found = [(kind.label, _best(kind, batch, entries)) for kind in _KINDS]
    return [_row(gpu, batch, label, entry) for label, entry in found if entry]


def _best(kind: _Kind, batch: int, entries: list[ManifestEntry]) -> ManifestEntry | None:
    """Return the fastest deployable entry, or else the fastest with another status; None if none is of this kind."""
    alike = [
        entry
        for entry in entries
        if entry.backend in kind.backends
        and entry.io.is_plain  # steps are compared, so all of them do the same
        and kind.precision in {None, entry.precision}
        and (entry.profile is None or entry.profile.takes(batch))
    ]
    return min(
        alike,
        key=lambda entry: (entry.status is not Status.DEPLOYABLE, _pace(entry, batch)),
        default=None,
    )


def _pace(entry: ManifestEntry, batch: int) -> float:
    fastest = _fastest(entry, batch)
    return fastest.p50_ms if fastest else float("inf")


def _row(gpu: str, batch: int, label: str, entry: ManifestEntry) -> Milestone:
    """Return a milestone; its speed-up is the timing's, over eager FP32 in the same rounds."""
    fastest = _fastest(entry, batch)
    return Milestone(
        gpu=gpu,
        batch=batch,
        label=label,
        id=entry.id,
        status=entry.status,
        p50_ms=_p50(entry, batch, Clock.GPU),
        graph_ms=_p50(entry, batch, Clock.GPU_GRAPH),
        speedup=round(fastest.speedup, 2) if fastest and fastest.speedup else None,
        relative_l2=entry.accuracy.relative_l2 if entry.accuracy else None,
    )


def _fastest(entry: ManifestEntry, batch: int) -> BatchTiming | None:
    """Return the faster timing of with and without a CUDA graph; eager FP32 runs without one, as users run it."""
    clocks = (Clock.GPU,) if entry.backend is Backend.EAGER else (Clock.GPU, Clock.GPU_GRAPH)
    timings = [timing for clock in clocks if (timing := _timing(entry, batch, clock))]
    return min(timings, key=lambda timing: timing.p50_ms, default=None)


def _timing(entry: ManifestEntry, batch: int, clock: Clock) -> BatchTiming | None:
    wanted = (batch, clock, Layout.CONTIGUOUS)
    return next((item for item in entry.timings if (item.batch, item.clock, item.layout) == wanted), None)


def _p50(entry: ManifestEntry, batch: int, clock: Clock) -> float | None:
    timing = _timing(entry, batch, clock)
    return timing.p50_ms if timing else None
