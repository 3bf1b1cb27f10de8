"""The manifest's entries → the way from eager FP32 to the best engine, which users ask for first. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pipeline.records import AHEAD_OF_TIME, Backend, Clock, Layout, Milestone, Precision, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.records import Gpu, ManifestEntry


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
    chosen = [(kind, _best(kind, batch, entries)) for kind in _KINDS]
    first = chosen[0][1]
    eager = _latency(first, batch, Clock.GPU) if first else None
    return [_row(gpu, batch, kind.label, entry, eager) for kind, entry in chosen]


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
        key=lambda entry: (entry.status is not Status.DEPLOYABLE, _fastest(entry, batch) or float("inf")),
        default=None,
    )


def _row(gpu: str, batch: int, label: str, entry: ManifestEntry | None, eager: float | None) -> Milestone:
    fastest = _fastest(entry, batch) if entry else None
    return Milestone(
        gpu=gpu,
        batch=batch,
        label=label,
        id=entry.id if entry else None,
        status=entry.status if entry else Status.SKIPPED,
        p50_ms=_latency(entry, batch, Clock.GPU) if entry else None,
        graph_ms=_latency(entry, batch, Clock.GPU_GRAPH) if entry else None,
        speedup=round(eager / fastest, 2) if eager and fastest else None,
        relative_l2=entry.accuracy.relative_l2 if entry and entry.accuracy else None,
    )


def _fastest(entry: ManifestEntry, batch: int) -> float | None:
    """Return the better of both ways; eager FP32 is what users run, which is without a CUDA graph."""
    clocks = (Clock.GPU,) if entry.kind is Backend.EAGER else (Clock.GPU, Clock.GPU_GRAPH)
    found = [latency for clock in clocks if (latency := _latency(entry, batch, clock)) is not None]
    return min(found, default=None)


def _latency(entry: ManifestEntry, batch: int, clock: Clock) -> float | None:
    return next(
        (
            timing.p50_ms
            for timing in entry.timings
            if (timing.batch, timing.clock, timing.layout) == (batch, clock, Layout.CONTIGUOUS)
        ),
        None,
    )
