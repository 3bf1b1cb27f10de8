"""The manifest's entries → the way from eager FP32 to the best engine, which users ask for first. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.records import AHEAD_OF_TIME, Backend, Clock, Layout, Milestone, Precision, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from model_artifacts.records import BatchTiming, Gpu, ManifestEntry


class _Kind(NamedTuple):
    label: str
    backends: frozenset[Backend]
    precision: Precision | None
    """None is any."""


_KINDS = (
    _Kind("eager FP32", frozenset({Backend.EAGER}), Precision.FP32),
    _Kind("torch_compile FP32", frozenset({Backend.TORCH_COMPILE}), Precision.FP32),
    _Kind("torch_compile FP16", frozenset({Backend.TORCH_COMPILE}), Precision.FP16),
    _Kind("dynamo FP32", AHEAD_OF_TIME, Precision.FP32),
    _Kind("dynamo FP16", AHEAD_OF_TIME, Precision.FP16),
    _Kind("the best engine", frozenset({Backend.TENSORRT}), None),
)


def milestones_of(entries: Sequence[ManifestEntry], gpu_of: Callable[[str], Gpu | None]) -> tuple[Milestone, ...]:
    """Return a row a kind, for every GPU and every batch size that was timed on it.

    Args:
        entries: of the manifest.
        gpu_of: a target's name → the GPU that it runs on here; None for the CPU's.
    """
    by_gpu: dict[str, list[ManifestEntry]] = {}
    for entry in entries:
        if gpu := gpu_of(entry.target):
            by_gpu.setdefault(gpu.name, []).append(entry)
    return tuple(
        row
        for gpu_name, found in by_gpu.items()
        for batch in sorted({timing.batch for entry in found for timing in entry.timings})
        for row in _rows(gpu_name, batch, found)
    )


def _rows(gpu: str, batch: int, entries: list[ManifestEntry]) -> list[Milestone]:
    return [_row(gpu, batch, kind.label, _best(kind, batch, entries)) for kind in _KINDS]


def _best(kind: _Kind, batch: int, entries: list[ManifestEntry]) -> ManifestEntry | None:
    """Return the fastest that may be deployed, or else the first that says why it may not."""
    alike = [
        entry
        for entry in entries
        if entry.kind in kind.backends
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


def _row(gpu: str, batch: int, label: str, entry: ManifestEntry | None) -> Milestone:
    """Return a row; its speed-up is the timing's own, over eager FP32 in the same rounds."""
    fastest = _fastest(entry, batch) if entry else None
    return Milestone(
        gpu=gpu,
        batch=batch,
        label=label,
        id=entry.id if entry else None,
        status=entry.status if entry else Status.SKIPPED,
        p50_ms=_p50(entry, batch, Clock.GPU) if entry else None,
        graph_ms=_p50(entry, batch, Clock.GPU_GRAPH) if entry else None,
        speedup=round(fastest.speedup, 2) if fastest and fastest.speedup else None,
        relative_l2=entry.accuracy.relative_l2 if entry and entry.accuracy else None,
    )


def _fastest(entry: ManifestEntry, batch: int) -> BatchTiming | None:
    """Return the better of both ways; eager FP32 is what users run, which is without a CUDA graph."""
    clocks = (Clock.GPU,) if entry.kind is Backend.EAGER else (Clock.GPU, Clock.GPU_GRAPH)
    found = [timing for clock in clocks if (timing := _timing(entry, batch, clock))]
    return min(found, key=lambda timing: timing.p50_ms, default=None)


def _timing(entry: ManifestEntry, batch: int, clock: Clock) -> BatchTiming | None:
    wanted = (batch, clock, Layout.CONTIGUOUS)
    return next((item for item in entry.timings if (item.batch, item.clock, item.layout) == wanted), None)


def _p50(entry: ManifestEntry, batch: int, clock: Clock) -> float | None:
    timing = _timing(entry, batch, clock)
    return timing.p50_ms if timing else None
